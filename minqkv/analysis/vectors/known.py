"""Known mistakes in attention, each as a change to a real layer that then makes it.

So what a mistake would give in a case is computed, not guessed: an array that is wrong in just that
way has its cause found. A mistake can be made in several ways, each a function (layer, case) that
changes the layer, or does nothing where the mistake cannot be made.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...functional import softmax
from ...runtime import backend
from ...tensor import Tensor
from .case import query_width, swap_pairing
from .computed import mixed_with, results, seen
from .files import Task


def _divided_by_d(layer, case):
    layer.root = query_width(layer)


def _scaled_twice(layer, case):
    layer.root **= 2


def _modulo(layer, case):
    mix, heads = layer.mix, np.arange(layer.n_head) % layer.kv_heads

    def mixed(q, k, v, mask, **plus):
        return mix(q, k[:, heads], v[:, heads], mask, **plus)  # (B, h, S, d) -> (B, H, S, d)

    if 1 < layer.kv_heads < layer.n_head:
        layer.mix = mixed


# ---- what is turned


def _in_scores(change):
    """Change what is read from rows, but only for the scores, not for Q = K: read(layer, k, v, at,
    asked) -> k, v.
    """

    def changed(layer, case):
        attend, read = layer.attend, layer.read

        def attended(q, rows, at, mask=None, asked=None):
            layer.read = lambda rows, at: change(layer, *read(rows, at), at, asked)
            try:
                return attend(q, rows, at, mask, asked)
            finally:
                layer.read = read

        layer.attend = attended

    return changed


def _again(layer, k, v, at, asked):
    return layer.turn(k, at), v


def _at_each_step(layer, k, v, at, asked):
    """Each new token turns all stored keys once more, by their own positions."""
    if asked is None or asked.stop - asked.start > 1 or layer.turn_late:
        return k, v
    steps = asked.start - np.arange(k.shape[2]) if isinstance(at, slice) else asked.start - at
    at = np.arange(k.shape[2]) if isinstance(at, slice) else at
    layer.reach(int((at * steps).max()) + 1)
    k = layer.turn(k, at * steps)
    return k, k if layer.turn_back else v


def _query_again(layer, case):
    query = layer.query
    layer.query = lambda x, rows, at: layer.turn(query(x, rows, at), at)


def _both_again(layer, case):
    _in_scores(_again)(layer, case)
    _query_again(layer, case)


def _stored_again(layer, case):
    store = layer.store

    def stored(x, at):
        first, *rest = store(x, at)
        if layer.spec.apart:
            return first, *[layer.turn(row, at) for row in rest]
        return layer.turn(first, at), *rest

    if not layer.turn_late:
        layer.store = stored


def _stored_and_query_again(layer, case):
    _stored_again(layer, case)
    _query_again(layer, case)


def _all_again(layer, case):
    turn = layer.turn
    layer.turn = lambda x, at, back=False: turn(turn(x, at, back), at, back)


def _key_as_value(layer, k, v, at, asked):
    one = layer.turn_late or (layer.spec.apart and not layer.spec.latent)
    return (k, k) if one else (k, v)


def _stored_turned(layer, case):
    layer.turn_late = layer.turn_late and not layer.d_rope


def _not_turned_back(layer, case):
    layer.turn_back = False


def _other_pairing(layer, case):
    if case.pairing == "interleaved":
        del layer.turn
    elif layer.d_rope:
        swap_pairing(layer)


# ---- who sees whom


def _mask(shift=0, wider=0, past=False, corner=False, tril=False):
    """Queries see `shift` keys more after them, and `wider` before; with `past` no new key; with
    `corner`, as if the first query were at position 0. With `tril`, a window is right even then.
    """

    def changed(layer, case):
        attend = layer.attend

        def attended(q, rows, at, mask=None, asked=None):
            keys = np.arange(rows[0].shape[2]) if isinstance(at, slice) else at
            here = asked if asked is not None else at
            queries = np.arange(here.start, here.stop)
            first = 0 if not corner else queries[0]
            segments = getattr(layer, "segments", None)
            mask = seen(case, layer, queries - first, keys, segments, shift)
            if past:
                mask = mask & (keys < queries[0])
            if tril:
                mask = mask & (keys <= (queries - queries[0])[:, None])
            blind = ~mask.any(-1, keepdims=True)  # (T, 1): anything may come out
            z = attend(q, rows, at, backend.upload(mask), asked)
            return z + Tensor(backend.upload(np.where(blind, np.nan, 0), z.dtype))

        if case.causal and (layer.window or not (wider or tril)):
            layer.window = layer.window and max(1, layer.window + wider)
            layer.attend = attended

    return changed


def _wrong_axis(axis):
    """The softmax goes over queries (-2) or heads (1) in place of keys."""

    order = {-2: (0, 1, 3, 2), 1: (0, 3, 2, 1)}[axis]  # either swaps two axes

    def other(scores):
        return softmax(scores.transpose(*order)).transpose(*order)

    def changed(layer, case):
        if layer.sink is None:
            layer.mix = mixed_with(other, layer)

    return changed


SCALE, HEADS, TWICE = "scaled by d", "head map i mod g", "rotated twice"
VALUE, BACK = "rotated key used as value", "back-rotation missing"
PAIRS, MASK, TOKEN = "pairing swapped", "mask off by one", "current token missing"
CORNER, AXIS = "mask from the upper left", "softmax over the wrong axis"
HALF, BUFFER = "float16 accumulation", "a V buffer for K = V"

WAYS = {
    SCALE: [_divided_by_d, _scaled_twice],
    HEADS: [_modulo],
    TWICE: [_in_scores(_again), _query_again, _both_again, _stored_again, _stored_and_query_again,
            _all_again, _in_scores(_at_each_step)],
    VALUE: [_in_scores(_key_as_value), _stored_turned],
    BACK: [_not_turned_back],
    PAIRS: [_other_pairing],
    MASK: [_mask(shift, wider) for shift in (-1, 0, 1) for wider in (-1, 0, 1) if shift or wider],
    TOKEN: [_mask(past=True)],
    CORNER: [_mask(corner=True), _mask(tril=True)],
    AXIS: [_wrong_axis(-2), _wrong_axis(1)],
}  # fmt: skip
MIXED = {"pattern", "z", "out"}  # arrays that come after every mistake
TURNS = {TWICE, VALUE, BACK, PAIRS}  # which only rotary positions can make
ALONE = {MASK: [_mask(0, -1), _mask(0, 1)], TOKEN: [_mask(-1), _mask(-1, 1)]}  # one query at a time
EXPLAINED = {
    SCALE: "the scores are divided by the width of a query, not by its root, or are scaled twice",
    HEADS: "query head i reads stored head i mod h, not ⌊i h/H⌋",
    TWICE: "queries, keys or both are turned twice by their positions",
    VALUE: "the value is the turned key, not the row as it was stored",
    BACK: "the answer is not turned back by the query's position",
    PAIRS: "rotary pairs are neighbours where they should be halves, or the reverse",
    MASK: "each query sees one key too many, or one too few",
    TOKEN: "a new token does not see its own key",
    CORNER: "the causal mask starts in the upper left corner, as if there were no past",
    AXIS: "the softmax runs over queries or heads, not over keys",
    HALF: "the error grows with the number of terms in a sum, as when float16 adds them up",
    BUFFER: "values are stored apart, though the one row is key and value",
}


def predictions(task: Task, names=None, grads: bool = False) -> Iterator[tuple]:
    """(name, way, arrays) of each way to make a mistake that can be made in this task, or of those
    with these `names`; with gradients if `grads`. NaN: anything may stand there.
    """
    case, given = task.case, task.given
    for name, ways in (
        WAYS | (ALONE if task.task != "forward" or case.length == 1 else {})
    ).items():
        for way in ways if names is None or name in names else ():
            layer = case.layer(task=task.task, weights=given)
            layer.segments, before = given.get("segments"), dict(vars(layer))
            if not layer.d_rope and name in TURNS:
                break
            way(layer, case)
            if vars(layer) == before | {"segments": layer.segments}:
                continue
            found = results(case, task.task, given, layer, grads)
            if "pattern" in found and not np.isfinite(found.get("z", found["pattern"])).all():
                found["pattern"][found["pattern"].sum(-1) == 0] = np.nan
            if any(np.isfinite(found[n]).any() for n in MIXED & found.keys()):
                yield name, way, found
