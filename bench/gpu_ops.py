"""bench.gpu, part "ops": the large operations one by one, forward and backward, beside PyTorch's.

Both get the same float32 inputs and the same random cotangent. What they compute is compared by
‖ours - theirs‖ / ‖theirs‖, the output and the gradient of every input.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from minqkv import backend, optim
from minqkv import functional as F
from minqkv.attention import causal_mask, rope_table
from minqkv.tensor import Tensor

from .common import interleaved, median, ratio

# Each far above the rounding of factors in this precision, and below that in the next.
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
RATE = 0.1


class Operation(NamedTuple):
    """`ours` and `theirs` are functions of the inputs, whose shapes are `inputs`.

    Where PyTorch draws its own random numbers, `exact` is what ours must equal.
    """

    inputs: list
    ours: Callable
    theirs: Callable
    exact: Callable | None = None


def cases(card, left):
    """Name -> a function that measures it and returns a row."""
    found = {name: partial(operation, card, make) for name, make in OPERATIONS.items()}
    return found | {"AdamW": partial(adamw, card)}


def linear(s, card):
    shapes = [(s.B, s.T, s.d), (s.d, 4 * s.d), (4 * s.d,)]
    return Operation(shapes, F.linear, lambda x, w, b: x @ w + b)


def layer_norm(s, card):
    def theirs(x, w, b):
        return card.torch.nn.functional.layer_norm(x, (s.d,), w, b)

    return Operation([(s.B, s.T, s.d), (s.d,), (s.d,)], F.layer_norm, theirs)


def gelu(s, card):
    def theirs(x):
        return card.torch.nn.functional.gelu(x, approximate="tanh")

    return Operation([(s.B, s.T, 4 * s.d)], F.gelu, theirs)


def softmax(s, card):
    return Operation([(s.B, s.H, s.T, s.T)], F.softmax, lambda x: x.softmax(-1))


def sdpa(s, card):
    positions = backend.xp.arange(s.T)
    mask = causal_mask(positions, positions)

    def theirs(q, k, v):
        attention = card.torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, is_causal=True)

    heads = (s.B, s.H, s.T, s.d // s.H)
    return Operation(
        [heads] * 3, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), theirs
    )


def cross_entropy(s, card):
    targets = np.random.default_rng(1).integers(0, s.V, s.B * s.T)
    theirs = card.to_torch(targets)
    return Operation(
        [(s.B * s.T, s.V)],
        lambda x: F.cross_entropy(x, targets),
        lambda x: card.torch.nn.functional.cross_entropy(x, theirs),
    )


def embedding(s, card):
    ids = np.random.default_rng(1).integers(0, s.V, (s.B, s.T))
    theirs = card.to_torch(ids)
    return Operation(
        [(s.V, s.d)],
        lambda w: F.embedding(ids, w),
        lambda w: card.torch.nn.functional.embedding(theirs, w),
    )


def dropout(s, card):
    shape = (s.B, s.T, s.d)

    def ours(x):
        return F.dropout(x, RATE, np.random.default_rng(1))

    factor = card.to_torch(ours(Tensor(np.ones(shape, np.float32))).numpy())  # the mask, scaled
    return Operation(
        [shape],
        ours,
        lambda x: card.torch.nn.functional.dropout(x, RATE),
        lambda x: x * factor,
    )


def rotate(s, card):
    tables = rope_table(s.T, s.d // s.H)  # (T, d_h/2) each
    cos, sin = (card.to_torch(backend.to_host(table).copy()) for table in tables)

    def theirs(x):
        first, second = x.chunk(2, dim=-1)
        return card.torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    return Operation([(s.B, s.H, s.T, s.d // s.H)], lambda x: F.rotate(x, *tables), theirs)


OPERATIONS = {
    "linear": linear,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "softmax": softmax,
    "sdpa causal": sdpa,
    "cross_entropy": cross_entropy,
    "embedding": embedding,
    "dropout": dropout,
    "rotate": rotate,
}


def operation(card, make):
    """One operation: parity, then times, forward alone and with backward."""
    rng = np.random.default_rng(0)
    op = make(card.sizes.ops, card)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in op.inputs]
    leaves = [Tensor(backend.upload(array), requires_grad=True) for array in arrays]
    out = op.ours(*leaves)
    cotangent = np.asarray(rng.standard_normal(out.shape), np.float32)
    g = backend.upload(cotangent)
    out.backward(g)
    computed = [out.data, *(leaf.grad for leaf in leaves)]

    def both():
        for leaf in leaves:
            leaf.zero_grad()
        op.ours(*leaves).backward(g)

    candidates = {"forward": lambda: op.ours(*leaves), "both": both}
    row = {"inputs": op.inputs}
    if card.torch:
        xs = [card.to_torch(array).requires_grad_() for array in arrays]
        g_theirs = card.to_torch(cotangent)

        def their_both(function=op.theirs):
            return card.torch.autograd.grad(function(*xs), xs, g_theirs)

        exact = op.exact or op.theirs
        wanted = [exact(*xs), *their_both(exact)]
        row |= parity(["out", *(f"input {i}" for i in range(len(xs)))], computed, wanted)
        candidates |= {"torch forward": lambda: op.theirs(*xs), "torch both": their_both}
    samples = interleaved(candidates, **card.timing())
    return row | times(samples)


def parity(names, ours, theirs):
    """{"differ_by": relative difference of each array, "agrees": whether all are small}."""
    differ = {}
    for name, array, tensor in zip(names, ours, theirs, strict=True):
        wanted = tensor.detach().cpu().numpy()
        apart = np.linalg.norm(backend.to_host(array) - wanted)
        differ[name] = float(apart / np.linalg.norm(wanted))
    return {
        "differ_by": differ,
        "agrees": all(d < TOLERANCE[backend.precision] for d in differ.values()),
    }


def times(samples):
    """Medians in ms, ratios to PyTorch where it is there, the samples."""
    row = {"median_ms": {name: round(1e3 * median(samples, name), 4) for name in samples}}
    for name in samples:
        if f"torch {name}" in samples:
            row[f"{name}_ratio"] = ratio(samples, name, f"torch {name}")
    return row | {"samples": samples}


def adamw(card):
    """A step of AdamW on the matrices and vectors of a transformer block."""
    s, rng = card.sizes.ops, np.random.default_rng(0)
    shapes = [(s.d, s.d)] * 4 + [(s.d, 4 * s.d), (4 * s.d, s.d), (4 * s.d,), (s.d,)]
    arrays, slopes = (
        [rng.standard_normal(shape, dtype=np.float32) for shape in shapes] for _ in range(2)
    )
    leaves = [Tensor(backend.upload(array), requires_grad=True) for array in arrays]
    for leaf, slope in zip(leaves, slopes, strict=True):
        leaf.add_gradient(backend.upload(slope))
    optimizer = optim.AdamW(leaves, lr=1e-3)
    candidates, row = {"step": optimizer.step}, {"inputs": shapes}
    if card.torch:
        from . import torch_gpt

        xs = [card.to_torch(array.copy()).requires_grad_() for array in arrays]
        for x, slope in zip(xs, slopes, strict=True):
            x.grad = card.to_torch(slope)
        candidates["torch step"] = torch_gpt.adamw(SimpleNamespace(parameters=xs), True).step
        for step in candidates.values():
            for _ in range(3):
                step()
        names = [f"parameter {i}" for i in range(len(xs))]
        row |= parity(names, [leaf.data for leaf in leaves], xs)
    samples = interleaved(candidates, **card.timing())
    return row | times(samples)
