"""When `rows.cu` computes norms, the loss and sums of columns, and how it is launched."""

from numpy import int64

from .softmax import HELD, threads

EXAMPLE = {"THREADS": 128}
MOST = 512  # threads of a block: of more, some would have too few registers
BLOCKS, ROWS = 1024, 16  # of the gradient of a norm: at most so many; at least so many rows each
SLABS, DEEP = 256, 64  # of sums of columns: at most so many; rows from which there are several


def launch(gpu, function, grid, args, n):
    """Start a function of rows.cu, a row of n numbers a block."""
    constants = {"THREADS": min(threads(n), MOST)}
    return gpu.launch("rows", function, grid, (constants["THREADS"],), args, constants)


def floats(gpu, *arrays):
    """These arrays, contiguous; None where one is not float32. None stays None."""
    if any(a is not None and a.dtype != "float32" for a in arrays):
        return None
    return [a if a is None else gpu.xp.ascontiguousarray(a) for a in arrays]


def norm(gpu, x, w, b, eps):
    """The layer norm of rows x (..., n) and its vjp; without w and b, the RMS norm.

    None unless all are float32, and rows fit into registers.
    """
    n, given = x.shape[-1], floats(gpu, x, w, b)
    if given is None or n > HELD * MOST or not x.size:
        return None
    (x, w, b), rows, centred = given, x.size // n, int(w is not None)
    y, means, invs = (gpu.empty(s, "float32") for s in (x.shape, (rows,), (rows,)))
    args = (x, w, b, y, means, invs, float(eps), centred, n)
    if not launch(gpu, "norm_forward", (rows,), args, n):
        return None

    def vjp(g, wanted):
        blocks = min(-(-rows // ROWS), BLOCKS)
        dx = gpu.empty(x.shape, "float32") if wanted[0] else None
        sums = gpu.empty((blocks, 2 * n), "float32") if any(wanted[1:]) else None
        args = (gpu.xp.ascontiguousarray(g), x, w, means, invs, dx, sums, int64(rows))
        launch(gpu, "norm_backward", (blocks,), (*args, centred, n), n)
        if sums is None:
            return (dx, None, None)[: len(wanted)]
        of_both = sum_columns(gpu, sums)  # (2n,)
        return dx, of_both[:n] if wanted[1] else None, of_both[n:] if wanted[2] else None

    return y, vjp


def sum_columns(gpu, a):
    """Sums over all axes but the last, (..., n) -> (n,); None unless they are float32."""
    n, given = a.shape[-1], floats(gpu, a)
    if given is None or not a.size:
        return None
    (a,), rows, wide = given, a.size // n, min(threads(HELD * n), 128)
    for slabs in (min(-(-rows // ROWS), SLABS), 1) if rows > DEEP else (1,):
        sums = gpu.empty((slabs, n), "float32")
        args = (a, sums, int64(rows), n)
        if not launch(gpu, "columns", (-(-n // wide), slabs), args, HELD * wide):
            return None
        a, rows = sums, slabs
    return sums.reshape(n)


def cross_entropy(gpu, logits, rows, targets):
    """The mean loss of some rows of logits (..., n), with these targets, and its vjp; None unless
    logits are float32. `rows` None: of all rows.
    """
    n, m, shape, given = logits.shape[-1], len(targets), logits.shape, floats(gpu, logits)
    if given is None:
        return None
    losses, peaks, totals = (gpu.empty((m,), "float32") for _ in range(3))
    rows = rows if rows is None else rows.astype("int64", copy=False)
    targets = targets.astype("int64", copy=False)
    args = (*given, rows, targets, losses, peaks, totals, n)
    if not launch(gpu, "loss_forward", (m,), args, n):
        return None

    def vjp(g, wanted):
        make = gpu.empty if m * n == logits.size else gpu.xp.zeros
        d = make(shape, "float32")
        args = (*given, rows, targets, peaks, totals, g, 1 / m, d, n)
        launch(gpu, "loss_backward", (m,), args, n)
        return (d,)

    return losses.sum() * (1 / m), vjp
