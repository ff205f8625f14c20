"""Near misses 19: queries that look for something else."""

import numpy as np


def _centred(x, wk, wv):
    """Keys and values of the examples, without their means: (n, d) each."""
    keys, values = x @ wk, x @ wv
    return keys - keys.mean(axis=0), values - values.mean(axis=0)


def _fit(a, b):
    """The matrix that takes a to b by least squares."""
    return np.linalg.lstsq(a, b, rcond=None)[0]


def _m(x, wk, wv):
    keys, values = _centred(x, wk, wv)
    return _fit(values, keys)


def refit__not_transposed(x, wq, wk, wv):
    """You multiply wq by M. The matrix moves from the value to the query, and there it is
    transposed: q · (v M) = (q Mᵀ) · v.
    """
    return wq @ _m(x, wk, wv)


def refit__values_from_keys(x, wq, wk, wv):
    """You compute values from keys. The keys are dropped, so they must be computed from the values:
    exchange the two in the fit.
    """
    keys, values = _centred(x, wk, wv)
    return wq @ _fit(keys, values).T


def refit__inverse_of_the_other_fit(x, wq, wk, wv):
    """You compute values from keys and take the inverse of that matrix. It is not the best matrix
    the other way round, unless the fit is exact. Fit keys to values directly.
    """
    keys, values = _centred(x, wk, wv)
    return wq @ np.linalg.inv(_fit(keys, values)).T


def refit__inverse(x, wq, wk, wv):
    """You multiply wq by the inverse of M, transposed. That would be right if the rows became v M,
    as in a change of basis. Here they stay v, and the query takes M itself, transposed.
    """
    return wq @ np.linalg.inv(_m(x, wk, wv)).T


def refit__no_constant(x, wq, wk, wv):
    """You fit without a constant. Subtract the mean over tokens from the keys and from the values
    first, or add a column of ones to the values.
    """
    return wq @ _fit(x @ wv, x @ wk).T


def refit__values_not_centred(x, wq, wk, wv):
    """You subtract the mean from the keys only. The values need it too: otherwise M has to explain
    their mean as well.
    """
    return wq @ _fit(x @ wv, _centred(x, wk, wv)[0]).T


def refit__old_bias(x, wq, wk, wv):
    """You leave the bias of the queries as it was. It is a part of every query: multiply the last
    row of wq by Mᵀ as well.
    """
    return np.vstack([wq[:-1] @ _m(x, wk, wv).T, wq[-1:]])


def refit__no_bias(x, wq, wk, wv):
    """Your queries have lost their bias. Multiply the last row of wq by Mᵀ as the others."""
    return np.vstack([wq[:-1] @ _m(x, wk, wv).T, 0 * wq[-1:]])


def refit__constant_in_the_bias(x, wq, wk, wv):
    """You add c to the bias of the queries. The constant belongs to the keys. There it adds the
    same to all scores of a query, so it may be dropped.
    """
    M = _m(x, wk, wv)
    new = wq @ M.T
    new[-1] += (x @ wk).mean(axis=0) - (x @ wv).mean(axis=0) @ M
    return new


def refit__only_turned(x, wq, wk, wv):
    """Your M only turns. That is Procrustes, which is for a mean of both. Here any matrix may be
    used, so take the best one: least squares.
    """
    keys, values = _centred(x, wk, wv)
    u, _, vt = np.linalg.svd(values.T @ keys)
    return wq @ (u @ vt).T


def refit__fits_the_weights(x, wq, wk, wv):
    """You fit wk to wv. What counts is the keys and values of tokens, and tokens do not fill all
    directions alike: fit x @ wk to x @ wv.
    """
    return wq @ _fit(wv, wk).T


def refit__column_by_column(x, wq, wk, wv):
    """You give each column of the values a factor. A key may depend on all columns of the value:
    fit a whole matrix.
    """
    keys, values = _centred(x, wk, wv)
    return wq * (values * keys).sum(axis=0) / (values**2).sum(axis=0)


def refit__unchanged(x, wq, wk, wv):
    """Your queries still look for keys, as with keep_v. Multiply wq by Mᵀ."""
    return wq.copy()


def refit__new_keys(x, wq, wk, wv):
    """You return weights that make the keys, wv M. There are no keys of their own any more: the
    query takes M, and you return a new wq.
    """
    return wv @ _m(x, wk, wv)


def refit__queries_from_values(x, wq, wk, wv):
    """You fit queries to values. Of what tokens look for, values say little: fit the keys to the
    values.
    """
    _, values = _centred(x, wk, wv)
    queries = x @ wq
    return wq @ _fit(values, queries - queries.mean(axis=0)).T
