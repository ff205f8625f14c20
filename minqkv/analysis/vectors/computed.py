"""What the cases give, as the real `Attention` computes it, seen through `trace`."""

from __future__ import annotations

import numpy as np

from ... import caches
from ...attention import Attention, causal_mask, sinusoids
from ...functional import merge_heads
from ...runtime import backend, tracing
from ...runtime.tracing import trace
from ...tensor import Tensor, no_grad, where
from .case import ARRAYS, Case, Sizes


def results(
    case: Case, task: str, given: dict, layer: Attention, grads: bool = True
) -> dict[str, np.ndarray]:
    """Every array of a task, as `layer` computes it, which may have been changed to err; without
    gradients if not `grads`.
    """
    run = _kernel if case.level == "kernel" else _forward if task == "forward" else _decode
    with np.errstate(all="ignore"):
        found = run(case, given, layer, task, grads)
    for name in {"scores", "plus", "pattern"} & found.keys():
        # A sink is not shown as a key; keys after the last that any query sees have no scores.
        array = found[name][..., layer.sink is not None :]
        rest = case.length + case.past - array.shape[-1]
        found[name] = np.pad(array, [(0, 0)] * 3 + [(0, rest)])  # (B, H, T, S)
    return {n: a for n, a in found.items() if not case.only or n in case.only}


def seen(case: Case, layer: Attention, queries, keys, segments=None, ahead: int = 0):
    """Which key each query sees, (T, S) or (B, 1, T, S); `ahead`: how many keys after itself."""
    mask = np.ones((len(queries), len(keys)), bool)
    if case.causal:
        window = layer.window and layer.window + ahead
        mask = causal_mask(queries + ahead, keys, window, layer.sinks)
    if segments is None:
        return mask
    asked, of = segments[:, :, None], segments[:, None, :]  # (B, T, 1), (B, 1, S)
    return mask & ((asked == of) & (asked >= 0))[:, None]


def _leaves(given, dtype):
    numbers = {n: a for n, a in given.items() if a.dtype.kind == "f"}
    return {n: Tensor(backend.upload(a, dtype), requires_grad=True) for n, a in numbers.items()}


def _host(array):
    array = array.data if isinstance(array, Tensor) else array
    return backend.to_host(array).astype("float64")


def _traced(t, leaves):
    """Arrays seen, then gradients of what was given."""
    found = {name: t[name].astype("float64") for name in ARRAYS if name in t}
    grads = {f"grad.{n}": _host(leaf.grad) for n, leaf in leaves.items() if leaf.grad is not None}
    return found | grads


def _kernel(case, given, layer, task, grads):
    leaves = _leaves(given, layer.wk.weight.dtype)
    T, S = case.length, case.length + case.past
    for name in "qkv":
        if name in given:
            setattr(layer, f"w{name}", lambda x, name=name: merge_heads(leaves[name]))
    at, here = slice(0, S), slice(case.past, S)
    mask = seen(case, layer, np.arange(T) + case.past, np.arange(S), given.get("segments"))
    with trace() as t:
        rows = layer.store(None, at)
        q = layer.query(None, rows, here)
        z = layer.answer(layer.attend(q, rows, at, backend.upload(mask), here), here)
        if grads:
            z.backward(leaves["grad.z"].data)
    found = _traced(t, leaves) | {"z": _host(z)}
    return {name: found[name] for name in (*ARRAYS, *found) if name in found}


def _with_positions(case, given, layer, leaves):
    """x and what a scheme adds to it."""
    position = case.about(layer)["position"]
    if position == "sinusoidal":
        table = sinusoids(*given["x"].shape[1:], dtype=leaves["x"].dtype)
        return leaves["x"] + Tensor(backend.upload(table))
    return leaves["x"] + leaves["positions"] if "learned" in position else leaves["x"]


def _forward(case, given, layer, task, grads):
    leaves = _leaves({n: given[n] for n in ("x", "positions", "grad.out") if n in given},
                     layer.wk.weight.dtype)  # fmt: skip
    h, at = _with_positions(case, given, layer, leaves), np.arange(case.length)
    with trace() as t:
        out = layer(h, backend.upload(seen(case, layer, at, at)))
        if grads:
            out.backward(leaves["grad.out"].data)
    added = {} if h is leaves["x"] else {"h": _host(h)}
    return added | _traced(t, leaves | dict(layer.named_parameters()))


def _decode(case, given, layer, task, grads):
    leaves = _leaves({n: given[n] for n in ("x", "positions") if n in given},
                     layer.wk.weight.dtype)  # fmt: skip
    cache = new_cache(case, task, layer)
    names = [n for row in _row_names(layer) for n in ((row, f"{row}.scale")[: cache.per_row])]
    rows, sizes, outs = {}, [], []
    with no_grad():
        h = _with_positions(case, given, layer, leaves)
        for t in range(case.length):
            outs.append(_host(layer(h[:, t : t + 1], cache=cache)))
            sizes.append(cache.nbytes)
            slot = int(np.flatnonzero(cache.held[0] == t)[0])
            for name, buffer in zip(names, cache.buffers, strict=True):
                row = backend.to_host(buffer[:, :, slot : slot + 1]).copy()  # (B, h, 1, width)
                rows[name] = np.concatenate([rows[name], row], 2) if t else row
    return rows | {"cache.bytes": np.array(sizes), "out": np.concatenate(outs, axis=1)}


def mixed_with(softmax, layer: Attention):
    """The method `mix` of a layer in small operations, with another softmax over the keys."""

    def mixed(q, k, v, mask, temperature=None, bias=None, **_):
        group = np.arange(layer.n_head) // (layer.n_head // k.shape[1])
        k, v = k[:, group], v[:, group]  # (B, h, S, d) -> (B, H, S, d)
        scores = q @ k.transpose(0, 1, 3, 2) * (1 / layer.root)  # (B, H, T, S)
        scores = scores if temperature is None else scores * temperature
        tracing.probe("scores", scores)
        scores = scores if bias is None else scores + bias
        if temperature is not None or bias is not None:
            tracing.probe("plus", scores)
        scores = scores if mask is None else where(mask, scores, -np.inf)
        pattern = softmax(scores)
        tracing.probe("pattern", pattern)
        return pattern @ v  # (B, H, T, S) -> (B, H, T, d_v)

    return mixed


def new_cache(case: Case, kind: str, layer: Attention):
    """An empty cache for a layer."""
    options = caches.options(kind)
    more = {"window": layer.window, "sinks": layer.sinks} if kind == "ring" else {}
    stored = layer.spec.rows(layer.n_head, layer.head_dim, layer.d_rope)
    dtype = layer.wk.weight.dtype
    return options["kind"].layer_kind(case.batch, stored, case.length, dtype, **more)


def _row_names(layer):
    names = ["cache.k", "cache.r" if layer.spec.apart else "cache.v"]
    return names[: len(layer.spec.rows(layer.n_head, layer.head_dim, layer.d_rope))]


def held(sizes: Sizes, kind: str) -> list[list[int]]:
    """(T, slots): the position of the row in each slot after each token, -1 for none."""
    T, w = sizes.length, sizes.window
    slots = T if kind != "ring" else min(T, w + 1)
    found = np.full((T, slots), -1)
    for t in range(T):
        found[t:, t if kind != "ring" or t < 1 else 1 + (t - 1) % w] = t
    return found.tolist()


def contents(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows by position (B, h, T, width) -> what a cache holds after each token, zeros where it
    holds nothing: (T, B, h, slots, width).
    """
    found = rows[:, :, np.maximum(at, 0)].transpose(2, 0, 1, 3, 4)  # (B, h, T, slots, width) ->
    return np.where(np.asarray(at)[:, None, None, :, None] < 0, rows.dtype.type(0), found)
