"""Near misses 03: softmaxes and backwards that are almost right, each with what it does wrong."""

import numpy as np


def _share(e, axis=-1):
    return e / e.sum(axis=axis, keepdims=True)


def _softmax(x, axis=-1):
    return _share(np.exp(x - x.max(axis=axis, keepdims=True)), axis)


def softmax__no_shift(x):
    """Large scores overflow: subtract the maximum of each row before the exponential."""
    return _share(np.exp(x))


def softmax__shift_by_the_largest_of_all(x):
    """You shift all rows by one maximum: a row far below it becomes zeros, and 0 / 0. Each row
    needs its own.
    """
    return _share(np.exp(x - x.max()))


def softmax__shift_by_column(x):
    """You subtract the maximum of each column; only a shift that is the same within a row cancels
    (axis=-1).
    """
    return _share(np.exp(x - x.max(axis=0)))


def softmax__shift_by_mean(x):
    """You shift by the mean of a row; a score far above the mean still overflows. The maximum
    leaves nothing above 0.
    """
    return _share(np.exp(x - x.mean(axis=-1, keepdims=True)))


def softmax__shift_by_minimum(x):
    """You shift by the smallest score, so that the others lie above 0 and can overflow. Shift by
    the largest.
    """
    return _share(np.exp(x - x.min(axis=-1, keepdims=True)))


def softmax__clipped(x):
    """You clip the scores: two that are cut off come out equal. A shift keeps their difference."""
    return _share(np.exp(np.clip(x, -700, 700)))


def softmax__divided_by_maximum(x):
    """You divide by the maximum of a row instead of subtracting it: that changes the differences
    between scores.
    """
    return _softmax(x / x.max(axis=-1, keepdims=True))


def softmax__over_columns(x):
    """Your softmax runs over the wrong axis: each row must add up to one, not each column."""
    return _softmax(x, axis=0)


def softmax__over_everything(x):
    """Your softmax runs over the whole array: each row must add up to one on its own (axis=-1,
    keepdims=True).
    """
    return _softmax(x, axis=None)


def softmax__not_divided(x):
    """You return exponentials that are never divided by their sum."""
    return np.exp(x - x.max(axis=-1, keepdims=True))


def softmax__no_exponential(x):
    """You divide scores by their sum without taking exponentials: shares of negative scores would
    be negative.
    """
    return _share(x)


def softmax__logarithm(x):
    """You return the logarithm of the shares, not the shares."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax_vjp__diagonal_only(y, g):
    """Your backward uses only the diagonal of the Jacobian, y (1 - y): each score moves the other
    shares as well.
    """
    return g * y * (1 - y)


def softmax_vjp__no_average(y, g):
    """You return g * y: the weighted average of g has to be subtracted."""
    return g * y


def softmax_vjp__zeros(y, g):
    """Your backward returns zeros. A test with ones in g would not notice."""
    return np.zeros_like(g)


def softmax_vjp__sign(y, g):
    """Your backward has the wrong sign: a score gains where its g lies above the average, g - sum,
    not below it.
    """
    return y * ((g * y).sum(axis=-1, keepdims=True) - g)


def softmax_vjp__average_added(y, g):
    """You add the weighted average of g; it has to be subtracted."""
    return y * (g + (g * y).sum(axis=-1, keepdims=True))


def softmax_vjp__plain_sum(y, g):
    """You subtract the sum of g; it is the sum of g * y, an average weighted by the shares."""
    return y * (g - g.sum(axis=-1, keepdims=True))


def softmax_vjp__plain_mean(y, g):
    """You subtract the plain mean of g; weight it by the shares: the sum of g * y."""
    return y * (g - g.mean(axis=-1, keepdims=True))


def softmax_vjp__mean_of_products(y, g):
    """You take the mean of g * y; the shares are weights already, so it is the sum."""
    return y * (g - (g * y).mean(axis=-1, keepdims=True))


def softmax_vjp__sum_over_columns(y, g):
    """Your sum of g * y runs down the columns (axis=0); each row has its own average (axis=-1)."""
    return y * (g - (g * y).sum(axis=0))


def softmax_vjp__sum_over_everything(y, g):
    """Your sum of g * y runs over the whole array; each row has its own average (axis=-1,
    keepdims=True).
    """
    return y * (g - (g * y).sum())


def softmax_vjp__not_weighed(y, g):
    """You return g minus its average; that still has to be multiplied by the shares y."""
    return g - (g * y).sum(axis=-1, keepdims=True)


def softmax_vjp__average_not_weighed(y, g):
    """Only your first term is multiplied by y: it is y * (g - sum), so the sum is multiplied as
    well.
    """
    return y * g - (g * y).sum(axis=-1, keepdims=True)


def softmax_vjp__no_cotangent(y, g):
    """Your backward does not use g: y (1 - y) is a slope, and a backward weights slopes by the
    cotangent.
    """
    return y * (1 - y)


def softmax_vjp__cross_entropy(y, g):
    """You return y - g. That is the backward of cross-entropy, with g a row of 0 and 1; here it is
    softmax alone.
    """
    return y - g


def softmax_vjp__softmax_again(y, g):
    """You take the softmax of y; y holds the shares already, not the scores."""
    y = _softmax(y)
    return y * (g - (g * y).sum(axis=-1, keepdims=True))


def softmax_vjp__one_jacobian_for_all(y, g):
    """You use the Jacobian of the first row for every row; each row has its own, and you need none
    of them.
    """
    return g @ (np.diag(y[0]) - np.outer(y[0], y[0]))
