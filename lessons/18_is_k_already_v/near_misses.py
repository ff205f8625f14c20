"""Near misses 18: numbers that move, or that miss what is in common."""

import numpy as np


def _basis(w):
    return np.linalg.qr(w)[0]  # (C, d), orthonormal


def _cosines(wk, wv):
    return np.linalg.svd(_basis(wk).T @ _basis(wv), compute_uv=False).clip(0, 1)  # (d,)


def alike__constant(wk, wv):
    """Your number is the same for all weights. It stays in any basis, but it says nothing about
    keys and values: let it grow with what they have in common.
    """
    return 1.0


def alike__cosine(wk, wv):
    """You take the cosine of the two matrices. It changes with the basis, so it describes how a
    model is written down.
    """
    return (wk * wv).sum() / np.sqrt((wk**2).sum() * (wv**2).sum())


def alike__absolute_cosine(wk, wv):
    """You take the cosine of the two matrices without its sign. Only its sign is safe from −1: any
    other change of basis still moves it.
    """
    return abs((wk * wv).sum()) / np.sqrt((wk**2).sum() * (wv**2).sum())


def alike__product(wk, wv):
    """You measure the size of wk.T @ wv. It grows if keys or values are made longer, and changes
    with the basis. Take orthonormal bases of both first.
    """
    return np.sqrt(((wk.T @ wv) ** 2).sum())


def alike__product_by_sizes(wk, wv):
    """You divide the size of wk.T @ wv by the sizes of wk.T @ wk and wv.T @ wv. That stays if a
    basis is turned or scaled, but not in any basis. Take orthonormal bases instead.
    """
    above = ((wk.T @ wv) ** 2).sum()
    return above / np.sqrt(((wk.T @ wk) ** 2).sum() * ((wv.T @ wv) ** 2).sum())


def alike__column_by_column(wk, wv):
    """You compare two orthonormal bases column by column. One space has many such bases, which
    differ by a turn: compare every column with every other one, as k.T @ v does.
    """
    return (_basis(wk) * _basis(wv)).sum() / wk.shape[1]


def alike__columns_of_length_one(wk, wv):
    """You scale the columns to length 1, but they are not orthogonal yet. Another basis has other
    columns: use np.linalg.qr.
    """
    k, v = (w / np.sqrt((w**2).sum(axis=0)) for w in (wk, wv))
    return ((k.T @ v) ** 2).sum() / wk.shape[1]


def alike__values_as_they_are(wk, wv):
    """You take an orthonormal basis for the keys, but the values as they are. So your number
    changes with the basis of the values.
    """
    return ((_basis(wk).T @ wv) ** 2).sum() / (wv**2).sum()


def alike__keys_as_they_are(wk, wv):
    """You take an orthonormal basis for the values, but the keys as they are. So your number
    changes with the basis of the keys.
    """
    return ((_basis(wv).T @ wk) ** 2).sum() / (wk**2).sum()


def alike__first_angle(wk, wv):
    """You look at the first principal angle only. If one direction is shared, your number cannot
    say how many others are.
    """
    return _cosines(wk, wv).max()


def alike__last_angle(wk, wv):
    """A single direction that is not shared makes your number as small as if none were. Add the
    cosines instead of multiplying them, and look at all of them, not at the last.
    """
    return _cosines(wk, wv).prod()


def alike__angle(wk, wv):
    """Your number falls with what is in common: an angle is 0 where directions are the same. Take
    its cosine.
    """
    return np.arccos(_cosines(wk, wv)).mean()


def alike__counted(wk, wv):
    """You count the directions that are exactly the same. In a trained model there are none, but
    some are nearer than others.
    """
    rank = np.linalg.matrix_rank(np.hstack([wk, wv]), tol=1e-6)
    return 2.0 * wk.shape[1] - rank
