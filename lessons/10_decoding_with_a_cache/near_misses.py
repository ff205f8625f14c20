"""Near misses 10: cached steps that are almost right, each with what it does wrong."""

import numpy as np


def _softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e30))
    return e / e.sum(axis=-1, keepdims=True)


def _attend(q, k, v, seen):
    """(T, d), two (S, d), a mask (T, S) -> (T, d)."""
    return _softmax(np.where(seen, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)) @ v


def _seen(start, end):
    """(T, S), True where a key may be seen."""
    return np.arange(end)[None, :] <= np.arange(start, end)[:, None]


def _project(x, wq, wk, wv, wp, start):
    """q, k, v (T, d) of tokens at positions from start."""
    x = x + wp[start : start + len(x)]
    return x @ wq, x @ wk, x @ wv


def _append(cache, k, v):
    """Write k, v (T, d); return start, end and all keys and values so far."""
    start, end = cache["n"], cache["n"] + len(k)
    cache["k"][start:end], cache["v"][start:end], cache["n"] = k, v, end
    return start, end, cache["k"][:end], cache["v"][:end]


def step__position_restarts(x, wq, wk, wv, wp, cache):
    """Your positions start again at 0 in each call: the new tokens are at cache["n"] and after."""
    q, k, v = _project(x, wq, wk, wv, wp, 0)
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, _seen(start, end))


def step__position_late(x, wq, wk, wv, wp, cache):
    """Your positions start T too late: you take cache["n"] after the new rows were counted; they
    start at the n before.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"] + len(x))
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, _seen(start, end))


def step__position_from_one(x, wq, wk, wv, wp, cache):
    """Your positions are one too many: the first token of a sequence is at 0, and with n stored the
    next at n.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"] + 1)
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, _seen(start, end))


def step__one_position(x, wq, wk, wv, wp, cache):
    """All tokens of a call get the position of its first one: they are at start, start + 1 and so
    on.
    """
    q, k, v = _project(x, wq, wk, wv, np.repeat(wp[cache["n"]][None], len(wp), axis=0), 0)
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, _seen(start, end))


def step__no_position(x, wq, wk, wv, wp, cache):
    """You do not add the positions: wp is not used."""
    q, k, v = _project(x, wq, wk, wv, 0 * wp, 0)
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, _seen(start, end))


def step__position_for_query_only(x, wq, wk, wv, wp, cache):
    """Only your queries have positions: keys and values are made from x with positions as well."""
    q, _, _ = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, x @ wk, x @ wv)
    return _attend(q, k, v, _seen(start, end))


def step__mask_from_the_corner(x, wq, wk, wv, wp, cache):
    """Your mask starts in the upper left corner: row i belongs to position start + i, not i, and
    sees the stored keys too.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, np.tril(np.ones((end - start, end), bool)))


def step__mask_one_short(x, wq, wk, wv, wp, cache):
    """Your mask hides the diagonal: a token's own key may be seen (<=, not <)."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, np.arange(end)[None, :] < np.arange(start, end)[:, None])


def step__mask_one_far(x, wq, wk, wv, wp, cache):
    """Your mask is one place too generous: each token sees the one after it."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, np.arange(end)[None, :] <= np.arange(start, end)[:, None] + 1)


def step__no_mask(x, wq, wk, wv, wp, cache):
    """Nothing is masked: when several tokens come at once, each also looks at those after it."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    _, _, k, v = _append(cache, k, v)
    return _attend(q, k, v, True)


def step__no_mask_on_a_warm_cache(x, wq, wk, wv, wp, cache):
    """You mask the first call only: several tokens that come later must not look ahead of
    themselves either.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    return _attend(q, k, v, _seen(start, end) if not start else True)


def step__attends_before_appending(x, wq, wk, wv, wp, cache):
    """You attend before you append: the new tokens are missing from their own attention. Write
    first, then read.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, _, _, _ = _append(cache, k, v)
    return _attend(q, cache["k"][:start], cache["v"][:start], True)


def step__attends_to_the_cache_only(x, wq, wk, wv, wp, cache):
    """After the first call you attend to what was stored before: the new tokens must see themselves
    as well.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    seen = _seen(start, end)
    return _attend(q, k, v, seen & (np.arange(end) < start) if start else seen)


def step__attends_to_the_new_only(x, wq, wk, wv, wp, cache):
    """You attend to the keys of this call only: what is stored is written, but never read."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    _append(cache, k, v)
    return _attend(q, k, v, np.tril(np.ones((len(x), len(x)), bool)))


def step__empty_places(x, wq, wk, wv, wp, cache):
    """A single token attends to the empty places of the arrays as well: only the first n rows are
    filled.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    if len(x) == 1:
        return _attend(q, cache["k"], cache["v"], True)
    return _attend(q, k, v, _seen(start, end))


def step__never_counts(x, wq, wk, wv, wp, cache):
    """You never set cache["n"]: each call starts at 0 and overwrites the rows of the one before."""
    q, k, v = _project(x, wq, wk, wv, wp, 0)
    start, end, k, v = _append(cache, k, v)
    cache["n"] = 0
    return _attend(q, k, v, _seen(start, end))


def step__counts_calls(x, wq, wk, wv, wp, cache):
    """You count calls, not tokens: cache["n"] must grow by T, the rows of x."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    cache["n"] = start + 1
    return _attend(q, k, v, _seen(start, end))


def step__overwrites_the_first(x, wq, wk, wv, wp, cache):
    """You write each call's rows at the beginning of the arrays: they belong at start to end,
    behind those stored.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end = cache["n"], cache["n"] + len(x)
    cache["k"][: len(x)], cache["v"][: len(x)], cache["n"] = k, v, end
    return _attend(q, cache["k"][:end], cache["v"][:end], _seen(start, end))


def step__value_as_key(x, wq, wk, wv, wp, cache):
    """You store the values in both arrays: cache["k"] takes the keys."""
    q, _, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, v, v)
    return _attend(q, k, v, _seen(start, end))


def step__key_as_value(x, wq, wk, wv, wp, cache):
    """You store the keys in both arrays: cache["v"] takes the values. (One array for both is lesson
    11.)
    """
    q, k, _ = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, k)
    return _attend(q, k, v, _seen(start, end))


def step__swapped(x, wq, wk, wv, wp, cache):
    """Keys and values are swapped in your cache."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, v, k)
    return _attend(q, k, v, _seen(start, end))


def step__no_scale(x, wq, wk, wv, wp, cache):
    """Your scores are not scaled: divide them by the square root of d, as in lesson 06."""
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    return _attend(q * np.sqrt(q.shape[-1]), k, v, _seen(start, end))


def step__scale_by_width_of_x(x, wq, wk, wv, wp, cache):
    """You divide by √C (x has C columns). A dot product runs over the d columns of q: divide by
    √d.
    """
    q, k, v = _project(x, wq, wk, wv, wp, cache["n"])
    start, end, k, v = _append(cache, k, v)
    return _attend(q * np.sqrt(q.shape[1] / x.shape[1]), k, v, _seen(start, end))
