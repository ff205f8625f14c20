"""Near misses 06: attentions that are almost right, each with what it does wrong."""

import numpy as np


def _softmax(scores, axis=-1):
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _parts(x, wq, wk, wv):
    """q, k, v (T, d), scaled scores (T, T), and the mask (T, T)."""
    q, k, v = x @ wq, x @ wk, x @ wv
    scores = q @ k.T / np.sqrt(q.shape[-1])
    return q, k, v, scores, np.tril(np.ones(scores.shape, bool))


def attend__no_scale(x, wq, wk, wv):
    """Your scores are not scaled: divide them by the square root of d, the columns of q."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores * np.sqrt(wq.shape[1]), -np.inf)) @ v


def attend__scale_by_d(x, wq, wk, wv):
    """You divide the scores by d, not by its square root."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores / np.sqrt(wq.shape[1]), -np.inf)) @ v


def attend__scale_by_width_of_x(x, wq, wk, wv):
    """You divide by √C (x has C columns). A dot product runs over the d columns of q: divide by
    √d.
    """
    q, k, v, _, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, q @ k.T / np.sqrt(x.shape[1]), -np.inf)) @ v


def attend__scale_by_length(x, wq, wk, wv):
    """You divide by √T (there are T tokens). A dot product runs over the d columns of q: divide by
    √d.
    """
    q, k, v, _, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, q @ k.T / np.sqrt(len(x)), -np.inf)) @ v


def attend__multiplied_by_the_root(x, wq, wk, wv):
    """You multiply the scores by √d; they have to be divided by it."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores * wq.shape[1], -np.inf)) @ v


def attend__no_mask(x, wq, wk, wv):
    """Nothing is masked: each token also looks at those after it."""
    _, _, v, scores, _ = _parts(x, wq, wk, wv)
    return _softmax(scores) @ v


def attend__mask_after_softmax(x, wq, wk, wv):
    """You mask after the softmax: the rows no longer add up to one. Mask the scores, before it."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return (_softmax(scores) * seen) @ v


def attend__strict_mask(x, wq, wk, wv):
    """Your mask hides the diagonal: a token must see itself, and the first one sees nothing
    else.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(np.tril(seen, -1), scores, -np.inf)) @ v


def attend__strict_mask_large(x, wq, wk, wv):
    """Your mask hides the diagonal; the first token, which then sees nothing, averages
    everything.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(np.tril(seen, -1), scores, -1e30)) @ v


def attend__one_ahead(x, wq, wk, wv):
    """Your mask is off by one: each token also sees the one after it. The diagonal is the last that
    may be seen (k=0).
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(np.tril(np.ones(seen.shape, bool), 1), scores, -np.inf)) @ v


def attend__mask_times_infinity(x, wq, wk, wv):
    """You multiply a mask of 0 and 1 by infinity, and 0 times infinity is nan. Use np.where(mask,
    scores, -np.inf).
    """
    return np.full((len(x), wv.shape[1]), np.nan)


def attend__mask_smaller_than_some(x, wq, wk, wv):
    """You set hidden scores to -1, which still has a weight, and more than a seen score below it.
    Set them to minus infinity.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores, -1)) @ v


def attend__looks_ahead(x, wq, wk, wv):
    """Your mask is upside down: each token sees itself and those after it, not those before."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen.T, scores, -np.inf)) @ v


def attend__mask_added_as_numbers(x, wq, wk, wv):
    """You add the mask as 0 and 1: that only nudges the scores. What is hidden must become minus
    infinity.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(scores + seen) @ v


def attend__mask_multiplied(x, wq, wk, wv):
    """You set hidden scores to 0, but the exponential of 0 is 1: they still take part. Set them to
    minus infinity.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(scores * seen) @ v


def attend__softmax_over_queries(x, wq, wk, wv):
    """Your softmax runs over the wrong axis: each row (a query) must add up to one, not each
    column.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores, -np.inf), axis=0) @ v


def attend__softmax_over_everything(x, wq, wk, wv):
    """Your softmax runs over the whole array: each row must add up to one on its own (axis=-1,
    keepdims=True).
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores, -np.inf), axis=None) @ v


def attend__swapped(x, wq, wk, wv):
    """q and k are swapped: rows of the scores belong to queries, columns to keys (q @ k.T)."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores.T, -np.inf)) @ v


def attend__keys_as_values(x, wq, wk, wv):
    """You mix keys, not values. (That is the variant q-k=v, of lesson 08; here values have a matrix
    of their own.)
    """
    _, k, _, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores, -np.inf)) @ k


def attend__keys_as_queries(x, wq, wk, wv):
    """You compare keys with keys, and wq is not used. (That is the variant q=k-v, of lesson 08.)"""
    _, k, v, _, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, k @ k.T / np.sqrt(k.shape[-1]), -np.inf)) @ v


def attend__not_normalised(x, wq, wk, wv):
    """Your weights are exponentials that are never divided by their sum."""
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return np.exp(np.where(seen, scores, -np.inf)) @ v


def attend__pattern_transposed(x, wq, wk, wv):
    """You mix with the pattern transposed: row i of the pattern holds the weights of query i
    (pattern @ v).
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    return _softmax(np.where(seen, scores, -np.inf)).T @ v


def attend__sums_without_keepdims(x, wq, wk, wv):
    """Without keepdims=True, e.sum(axis=-1) has shape (T,), and e / that sum divides each column by
    the sum of another row. Keep the axis, so that each row is divided by its own sum.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    scores = np.where(seen, scores, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1) @ v


def attend__nothing_with_keepdims(x, wq, wk, wv):
    """Without keepdims=True, the largest score and the sum of each row have shape (T,), and NumPy
    takes them for a row: each column meets those of another row. Keep the axis in both.
    """
    _, _, v, scores, seen = _parts(x, wq, wk, wv)
    scores = np.where(seen, scores, -np.inf)
    e = np.exp(scores - scores.max(axis=-1))
    return e / e.sum(axis=-1) @ v
