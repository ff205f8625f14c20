"""The least time that work can take on a GPU: its bytes over the bandwidth of the memory, or its
operations over the rate of the units, whichever is longer.

Bytes are those that have to pass between the memory and the chip if each kernel reads its inputs
once and writes its outputs once. Parameters, multiply-accumulates, bytes of caches and activations
are those that the package counts; the shapes of products are those of bench.products.
"""

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from minqkv import functional as F
from minqkv.analysis.memory import activation_bytes
from minqkv.analysis.plan import options
from minqkv.runtime.errors import UsageError, unknown
from minqkv.variants import macs, params

from .products import model_products
from .sizes import Size

FILE = Path(__file__).with_name("gpus.toml")
ITEMSIZE = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # of what is stored, by number type
STATE = 4  # bytes of a number of the optimiser: master weights, gradients and moments are in fp32


@dataclass(frozen=True)
class Work:
    """Bytes that are moved; operations of matrix products, two a multiply-accumulate; and
    operations on single numbers.
    """

    nbytes: float
    products: float = 0
    others: float = 0

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __rmul__(self, times):
        return Work(*(times * part for part in self.parts))

    @property
    def parts(self):
        return self.nbytes, self.products, self.others


class Bound(NamedTuple):
    """The least seconds for the bytes and for the operations of some work, and operations a byte:
    its arithmetic intensity.
    """

    bytes_s: float
    operations_s: float
    intensity: float

    @property
    def seconds(self):
        """The longer of the two."""
        return max(self.bytes_s, self.operations_s)

    @property
    def binds(self):
        """Which of the two it is."""
        return "bytes" if self.bytes_s >= self.operations_s else "operations"


@dataclass(frozen=True)
class Gpu:
    """A card of gpus.toml: bytes, bytes a second, and operations a second by number type."""

    name: str
    title: str
    devices: list
    memory: float
    bandwidth: float
    rates: dict
    sources: list

    def bound(self, work, dtype):
        """The Bound of some work whose products are of numbers of this type. Other operations run
        on the fp32 units; products in fp32 need these too, those of other types run beside them.
        """
        products, others = work.products / self.rates[dtype], work.others / self.rates["fp32"]
        operations_s = products + others if dtype == "fp32" else max(products, others)
        intensity = (work.products + work.others) / work.nbytes
        return Bound(work.nbytes / self.bandwidth, operations_s, intensity)

    def check(self, dtype):
        """Raises UsageError for a number type that the card does not have."""
        if dtype not in self.rates:
            has = ", ".join(self.rates)
            raise UsageError(f"the {self.name} has no {dtype} units", f"--dtype, one of {has}")


def gpus():
    """Name -> Gpu."""
    found = tomllib.loads(FILE.read_text("utf-8"))
    return {name: Gpu(name, **about) for name, about in found.items()}


def gpu(name):
    """The Gpu of this name. Raises UsageError for others."""
    found = gpus()
    if name.upper() not in found:
        raise unknown("GPU", name, found)
    return found[name.upper()]


def gpu_of(device):
    """The Gpu that CUDA calls `device`; None for one that is not in gpus.toml."""
    return next((each for each in gpus().values() if device in each.devices), None)


# ---- kernels


class Each(NamedTuple):
    """What a kernel does for each number of its largest array: numbers read and written, and
    operations. An exponential, a tanh or a root counts as one.
    """

    read: int
    written: int
    operations: int

    def work(self, n, itemsize):
        """The Work on n numbers."""
        return Work((self.read + self.written) * n * itemsize, 0, self.operations * n)


KERNELS = {  # by the formulas that tests/test_roofline.py runs on arrays that count
    "softmax rows": Each(1, 1, 6),  # scale, maximum, minus it, exp, sum, over the sum
    "softmax rows, backward": Each(2, 1, 5),
    "layer norm rows": Each(1, 1, 7),
    "layer norm rows, backward": Each(2, 1, 13),  # the normalised row is computed again
    "cross-entropy rows": Each(1, 0, 4),
    "cross-entropy rows, backward": Each(1, 1, 3),
    "GELU": Each(1, 1, 8),
    "GELU, backward": Each(2, 1, 15),  # tanh is computed again
    "dropout": Each(1, 1, 3),  # the mask comes from a counter, and is not stored
    "dropout, backward": Each(1, 1, 3),
    "AdamW": Each(4, 3, 14),  # reads a parameter, its gradient and two moments; writes all but one
    "AdamW with clipping": Each(5, 3, 17),  # the norm of the gradient comes first
}
SCORE = 5  # operations of a running softmax on a score: those of softmax rows without the scale


def products(shapes, itemsize):
    """The Work of a forward pass of these products, each a kernel; see bench.products."""
    total = Work(0)
    for a, b, times in shapes:
        numbers = math.prod(a) + math.prod(b) + math.prod(a[:-1]) * b[-1]
        total += times * Work(numbers * itemsize, 2 * math.prod(a) * b[-1])
    return total


def adamw(n, itemsize, kernel="AdamW with clipping"):
    """The Work of a step on n parameters; where they are also stored in fewer bytes, this copy is
    written.
    """
    return KERNELS[kernel].work(n, STATE) + Work(n * itemsize if itemsize < STATE else 0)


# ---- a token


def token(cfg, context, batch, dtype, reads=1):
    """{"gemv products", "decode attention"} -> the Work of one new token of each of `batch`
    sequences; it sees `context` positions, itself included.

    Weights are read once for the batch. So is each cached row, unless `reads` is 2: then a row that
    is both key and value is read for the scores and again for the mix.
    """
    itemsize = ITEMSIZE[dtype]
    stored, weights = {dtype: itemsize}, params(cfg) * itemsize
    (option,) = options(cfg, (cfg.variant,), ("plain",), stored, weights=weights)
    one, two = (macs(cfg, n, causal=True) for n in (1, 2))
    position = two - 2 * one  # macs of a pair of a query and a key: n tokens have n (n + 1) / 2
    cache = option.cache_nbytes(context, batch) + (reads - 1) * again(cfg, context, batch, itemsize)
    scores = batch * context * cfg.n_layer * cfg.n_head
    return {
        "gemv products": Work(option.read, 2 * batch * (one - position)),
        "decode attention": Work(cache, 2 * batch * context * position, SCORE * scores),
    }


def again(cfg, context, batch, itemsize):
    """Bytes of the cached rows that are both key and value. Of a row beside which something turns,
    only a part is a key, unless it is latent.
    """
    numbers = 0
    for spec in cfg.specs:
        (heads, width), *beside = spec.stored(cfg)
        still = width if spec.latent or not beside else width - beside[0][1]
        numbers += heads * still if spec.streams == 1 else 0
    return batch * context * numbers * itemsize


# ---- a training step


def activations(cfg, batch, itemsize):
    """Bytes of the activations that are kept for backward, if a number has so many bytes."""
    small, large = (
        activation_bytes(replace(cfg, dtype=f"float{8 * n}"), batch, cfg.block_size) for n in (4, 8)
    )
    return small + (large - small) // 4 * (itemsize - 4)  # masks and ids do not change


def step(cfg, batch, dtype):
    """Kernel -> its Work in a training step of `batch` sequences of block_size tokens, with
    products as the package makes them: scores in blocks, which backward computes again where their
    weights are not kept.

    Left out: embeddings, sums with residuals, and biases.
    """
    itemsize, n = ITEMSIZE[dtype], batch * cfg.block_size
    shapes = model_products(cfg, batch, cfg.block_size)
    scores = [shape for shape in shapes if len(shape[0]) == 4]
    pattern = sum(math.prod(a[:-1]) * b[-1] * times for a, b, times in scores[::2])
    kept = cfg.block_size**2 <= F.KEEP
    norms = n * cfg.n_embd * (cfg.n_layer * (2 if cfg.d_ff else 1) + 1)
    dropped = n * cfg.n_embd * cfg.n_layer * (2 if cfg.d_ff else 1) if cfg.dropout else 0
    sizes = {
        "softmax rows": pattern * (1 if kept else 2),
        "softmax rows, backward": pattern,
        "layer norm rows": norms,
        "layer norm rows, backward": norms,
        "cross-entropy rows": n * cfg.vocab_size,
        "cross-entropy rows, backward": n * cfg.vocab_size,
        "GELU": n * cfg.d_ff * cfg.n_layer,
        "GELU, backward": n * cfg.d_ff * cfg.n_layer,
        "dropout": dropped,
        "dropout, backward": dropped,
    }
    found = {
        "products with weights": 3 * products([s for s in shapes if s not in scores], itemsize),
        "products of scores": 3 * products(scores, itemsize)
        + (0 if kept else 1) * products(scores[::2], itemsize),
    }
    found |= {name: KERNELS[name].work(size, itemsize) for name, size in sizes.items() if size}
    return found | {"AdamW with clipping": adamw(params(cfg), itemsize)}


def whole_step(cfg, batch, dtype):
    """The Work of a training step if nothing is moved or computed twice: products of a causal mask,
    weights read forward and backward, gradients written, the step of AdamW, and activations that
    are kept for backward, written and read.
    """
    itemsize = ITEMSIZE[dtype]
    nbytes = params(cfg) * (2 * itemsize + STATE) + 2 * activations(cfg, batch, itemsize)
    products = 2 * 3 * batch * macs(cfg, cfg.block_size, causal=True)
    return Work(nbytes, products) + adamw(params(cfg), itemsize)


# ---- what bench.gpu measures, all in float32


def of_operation(case, inputs):
    """Name of a measurement -> its Work, for an operation of bench.gpu_ops on inputs of these
    shapes; {} for one that is not counted.
    """
    n = math.prod(inputs[0])
    if case == "AdamW":
        return {"step": adamw(sum(map(math.prod, inputs)), STATE, "AdamW")}
    if case == "linear":
        (*rows, d), weight = inputs[0], inputs[1]
        forward = products([((math.prod(rows), d), weight, 1)], STATE)
        return {"forward": forward, "both": 3 * forward}
    if case == "sdpa causal":  # q, k, v and the output; then these but the last, and four gradients
        B, H, T, d = inputs[0]
        pairs = B * H * T * (T + 1) // 2
        forward = Work(4 * n * STATE, 2 * 2 * pairs * d, KERNELS["softmax rows"].operations * pairs)
        backward = Work(7 * n * STATE, 2 * forward.products)
        return {"forward": forward, "both": forward + backward}
    kernel = OPERATIONS.get(case)
    if kernel is None:
        return {}
    forward, backward = (KERNELS[k].work(n, STATE) for k in (kernel, f"{kernel}, backward"))
    return {"forward": forward, "both": forward + backward}


OPERATIONS = {  # of bench.gpu_ops -> the kernel that does the same
    "layer_norm": "layer norm rows",
    "gelu": "GELU",
    "softmax": "softmax rows",
    "cross_entropy": "cross-entropy rows",
    "dropout": "dropout",
}


def measured_work(part, row):
    """Name of a measurement -> its Work, for a row of a file of bench.gpu. The name "" is for all
    of them.
    """
    if part == "ops":
        return of_operation(row["case"], row["inputs"])
    size = Size(*row["V T d L H B"])
    if part == "step":
        return {"": whole_step(size.config(), size.B, "fp32")}
    return {"": sum(token(size.config(row["variant"]), size.T, size.B, "fp32").values(), Work(0))}


def shares(part, row, card, precision="fp32"):
    """What a row of bench.gpu is of its bounds on the Gpu `card`: {"bound_ms", "of_bound"}, both by
    what was measured; of ceilings, of the rate of the data sheet. {} where there is none.
    """
    if card is None or part == "tests" or "failed" in row:
        return {}
    if part == "ceilings":
        rates, best = row.get("GB_per_second"), card.bandwidth / 1e9
        if rates is None:
            rates, best = row["tflops"], card.rates[row["case"].split()[1]] / 1e12
        return {"of_bound": {name: rate / best for name, rate in rates.items()}}
    work, bounds = measured_work(part, row), {}
    for name in row["median_ms"]:
        found = work.get(name.removeprefix("torch "), work.get(""))
        if found:
            bounds[name] = 1e3 * card.bound(found, precision).seconds
    of_bound = {name: ms / row["median_ms"][name] for name, ms in bounds.items()}
    return {"bound_ms": bounds, "of_bound": of_bound} if bounds else {}
