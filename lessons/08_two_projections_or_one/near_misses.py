"""Near misses 08: gradients of a tied weight that miss a use, or go through one of them wrongly."""

import numpy as np


def _forward(x, w):
    """k (T, d), the pattern (T, T), and the scale."""
    k, scale = x @ w, 1 / np.sqrt(w.shape[1])
    e = np.exp(k @ k.T * scale)
    return k, e / e.sum(axis=-1, keepdims=True), scale


def _softmax(pattern, d):
    return pattern * (d - (d * pattern).sum(axis=-1, keepdims=True))


def _parts(x, w, g):
    """The gradients (C, d) of w as it makes queries, keys and values."""
    k, pattern, scale = _forward(x, w)
    d = _softmax(pattern, g @ k.T) * scale
    return x.T @ (d @ k), x.T @ (d.T @ k), x.T @ (pattern.T @ g)


def tied_gradient__value_only(x, w, g):
    """You take only the value's path: w also makes the queries and the keys, and so shapes the
    pattern.
    """
    return _parts(x, w, g)[2]


def tied_gradient__key_only(x, w, g):
    """You take only the key's path: w also makes the queries and the values."""
    return _parts(x, w, g)[1]


def tied_gradient__query_only(x, w, g):
    """You take only the query's path: w also makes the keys and the values."""
    return _parts(x, w, g)[0]


def tied_gradient__no_value(x, w, g):
    """The value's path is missing: the pattern depends on w, but so does what it mixes."""
    query, key, _ = _parts(x, w, g)
    return query + key


def tied_gradient__no_key(x, w, g):
    """The key's path is missing: the scores k @ k.T hold k twice, on the left as queries and on the
    right as keys.
    """
    query, _, value = _parts(x, w, g)
    return query + value


def tied_gradient__no_query(x, w, g):
    """The query's path is missing: the scores k @ k.T hold k twice, on the left as queries and on
    the right as keys.
    """
    _, key, value = _parts(x, w, g)
    return key + value


def tied_gradient__average(x, w, g):
    """You average the three uses: they add up. (Nudge one entry of w: the output moves by the
    sum.)
    """
    return sum(_parts(x, w, g)) / 3


def tied_gradient__scores_averaged(x, w, g):
    """You take half of the query's and the key's part, as if they shared one gradient: each counts
    in full.
    """
    query, key, value = _parts(x, w, g)
    return (query + key) / 2 + value


def tied_gradient__difference(x, w, g):
    """You subtract the key's part: all three are added. (The `-` in a variant's name is not a minus
    sign either.)
    """
    query, key, value = _parts(x, w, g)
    return query - key + value


def tied_gradient__query_twice(x, w, g):
    """You count the query's part twice: the scores are symmetric, but their gradient is not; the
    keys need its transpose.
    """
    query, _, value = _parts(x, w, g)
    return 2 * query + value


def tied_gradient__key_twice(x, w, g):
    """You count the key's part twice: the scores are symmetric, but their gradient is not; the
    queries need it untransposed.
    """
    _, key, value = _parts(x, w, g)
    return 2 * key + value


def tied_gradient__no_scale_backward(x, w, g):
    """You leave out the scale on the way back: the scores were divided by √d, so their gradient is
    as well.
    """
    query, key, value = _parts(x, w, g)
    return (query + key) * np.sqrt(w.shape[1]) + value


def tied_gradient__no_scale(x, w, g):
    """Your scores are not divided by √d, neither forward nor backward."""
    k = x @ w
    scores = k @ k.T
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    pattern = e / e.sum(axis=-1, keepdims=True)
    d = _softmax(pattern, g @ k.T)
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__scale_squared(x, w, g):
    """You scale twice on the way back: the gradient of the scores is divided by √d once, not by
    d.
    """
    query, key, value = _parts(x, w, g)
    return (query + key) / np.sqrt(w.shape[1]) + value


def tied_gradient__everything_scaled(x, w, g):
    """You scale the value's part as well: √d belongs to the scores alone."""
    query, key, value = _parts(x, w, g)
    return query + key + value / np.sqrt(w.shape[1])


def tied_gradient__no_softmax(x, w, g):
    """You leave out the softmax on the way back: g @ k.T is the gradient of the pattern, not yet of
    the scores.
    """
    k, pattern, scale = _forward(x, w)
    d = g @ k.T * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__softmax_by_product(x, w, g):
    """Your softmax's backward is pattern * dp alone: first subtract from dp the sum of dp *
    pattern, row by row.
    """
    k, pattern, scale = _forward(x, w)
    d = pattern * (g @ k.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__softmax_diagonal(x, w, g):
    """Your softmax's backward is the diagonal, p * (1 - p): each weight of a row depends on every
    score in that row.
    """
    k, pattern, scale = _forward(x, w)
    d = pattern * (1 - pattern) * (g @ k.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__softmax_over_columns(x, w, g):
    """Your softmax's backward sums over the wrong axis: the softmax ran along the rows
    (axis=-1).
    """
    k, pattern, scale = _forward(x, w)
    d = g @ k.T
    d = pattern * (d - (d * pattern).sum(axis=0)) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__softmax_axis_not_kept(x, w, g):
    """Your softmax's backward subtracts each row's sum from a column: keep the axis when you sum
    (keepdims=True).
    """
    k, pattern, scale = _forward(x, w)
    d = g @ k.T
    d = pattern * (d - (d * pattern).sum(axis=-1)) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__stops_at_k(x, w, g):
    """That is the gradient of k, with a row for each token. Since k = x @ w, one more product is
    needed, with x.T on the left.
    """
    k, pattern, scale = _forward(x, w)
    d = _softmax(pattern, g @ k.T) * scale
    return d @ k + d.T @ k + pattern.T @ g


def tied_gradient__value_untransposed(x, w, g):
    """The value's part is pattern.T @ g: what token j handed over gathers the gradients of all who
    looked at it.
    """
    k, pattern, scale = _forward(x, w)
    d = _softmax(pattern, g @ k.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern @ g)


def tied_gradient__pattern_transposed(x, w, g):
    """The gradient of the pattern is the wrong way round: row i belongs to query i (g @ k.T, not k
    @ g.T).
    """
    k, pattern, scale = _forward(x, w)
    d = _softmax(pattern, k @ g.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__masked(x, w, g):
    """You put a causal mask on the scores: here there is none, every token sees every other."""
    k, scale = x @ w, 1 / np.sqrt(w.shape[1])
    e = np.tril(np.exp(k @ k.T * scale))
    pattern = e / e.sum(axis=-1, keepdims=True)
    d = _softmax(pattern, g @ k.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__softmax_over_queries(x, w, g):
    """Your pattern is normalised along the wrong axis: each row (a query) must add up to one, not
    each column.
    """
    k, scale = x @ w, 1 / np.sqrt(w.shape[1])
    e = np.exp(k @ k.T * scale)
    pattern = e / e.sum(axis=0)
    d = _softmax(pattern, g @ k.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__scale_by_d(x, w, g):
    """You divide by d, not by its square root."""
    k, scale = x @ w, 1 / w.shape[1]
    e = np.exp(k @ k.T * scale)
    pattern = e / e.sum(axis=-1, keepdims=True)
    d = _softmax(pattern, g @ k.T) * scale
    return x.T @ (d @ k + d.T @ k + pattern.T @ g)


def tied_gradient__query_unscaled(x, w, g):
    """The query's part lacks the scale: the scores are divided by √d, so both gradients must be as
    well.
    """
    query, key, value = _parts(x, w, g)
    return query * np.sqrt(w.shape[1]) + key + value


def tied_gradient__key_unscaled(x, w, g):
    """The key's part lacks the scale: the scores are divided by √d, so both gradients must be as
    well.
    """
    query, key, value = _parts(x, w, g)
    return query + key * np.sqrt(w.shape[1]) + value
