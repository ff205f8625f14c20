"""When `elementwise.cu` computes GELU, a step of Adam or dropout, and how it is launched."""

import math

from numpy import int64, uint32, uint64

EXAMPLE = {}
THREADS, BLOCKS = 256, 1024  # of a block; that keep a GPU busy


def _start(gpu, function, n, *args):
    """One thread for each of n numbers, or some of them; returns whether it was started."""
    blocks = min(max(1, -(-n // THREADS)), BLOCKS)
    return gpu.launch("elementwise", function, (blocks,), (THREADS,), args, {})


def gelu(gpu, x, y, slope):
    """Write GELU of x into y, and its derivative into slope unless that is None; returns y."""
    if x.dtype.name != "float32":
        return None
    x = gpu.xp.ascontiguousarray(x)
    return y if _start(gpu, "gelu", x.size, x, y, slope, int64(x.size)) else None


def adamw(gpu, adam, g, max_norm):
    """A step of the optimiser with a flat gradient, clipped; (the norm before or None,)."""
    if g.dtype.name != "float32":
        return None
    n, sums, norm, n_sums = int64(g.size), None, None, 1 + (g.size - 1) // THREADS
    if max_norm is not None:
        n_sums = min(n_sums, BLOCKS)
        sums, norm = gpu.empty((n_sums,), "float64"), gpu.empty((), "float32")
        if not _start(gpu, "squares", g.size, g, sums, n):
            return None
    beta1, beta2, lr = map(float, (*adam.betas, adam.lr))
    args = (adam.data, adam.m, adam.v, g, n, int64(adam.n_decayed))
    args += (1 - lr * float(adam.weight_decay), sums, n_sums, float(max_norm or 0), norm)
    args += (beta1, 1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(1 - beta2**adam.steps))
    args += (float(adam.eps), lr / (1 - beta1**adam.steps))
    return (norm,) if _start(gpu, "adamw", g.size, *args) else None


def dropout(gpu, x, rate, rng, begin):
    """(x with some numbers dropped, a function that drops the same of another array). x[0] has
    number `begin` of the generator's next key.
    """
    if x.dtype.name != "float32":
        return None
    key, least = uint64(rng.bit_generator.random_raw()), uint32(min(rate * 2**32, 2**32 - 1))

    def dropped(a):
        a, n = gpu.xp.ascontiguousarray(a), a.size
        y = gpu.empty(a.shape, "float32")
        args = (a, y, int64(n), key, int64(begin), least, 1 / (1 - float(rate)))
        return y if _start(gpu, "dropout", 1 + n // 4, *args) else None

    y = dropped(x)
    return None if y is None else (y, dropped)
