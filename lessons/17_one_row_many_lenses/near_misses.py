"""Near misses 17: absorbed steps that are almost right, each with what it does wrong."""

import numpy as np


def _asked(q, wk):
    return np.einsum("hd,hnd->hn", q, wk)


def _softmax(scores, axis=1):
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _results(asked, scores, c, wv, axis=1):
    """From scaled scores (H, S) on."""
    mixed = _softmax(scores, axis) @ c  # (H, n)
    return asked, mixed, np.einsum("hn,hnd->hd", mixed, wv)


def _scaled(divisor):
    """A step whose scores are divided by divisor(d, m, n)."""

    def absorb(q, p, c, r, wk, wv):
        asked = _asked(q, wk)
        scores = asked @ c.T + p @ r.T
        return _results(asked, scores / divisor(q.shape[1], p.shape[1], c.shape[1]), c, wv)

    return absorb


def absorb__scaled_by_the_row(q, p, c, r, wk, wv):
    """You divide the scores by √n, for the n columns of a stored row. A naive key has d + m
    numbers: divide by √(d + m).
    """
    return _scaled(lambda d, m, n: np.sqrt(n))(q, p, c, r, wk, wv)


def absorb__scaled_by_both_rows(q, p, c, r, wk, wv):
    """You divide the scores by √(n + m), for what is stored. A naive key has d + m numbers: divide
    by √(d + m).
    """
    return _scaled(lambda d, m, n: np.sqrt(n + m))(q, p, c, r, wk, wv)


def absorb__scaled_without_the_small_row(q, p, c, r, wk, wv):
    """You divide the scores by √d. With the small row beside it, a naive key has d + m numbers."""
    return _scaled(lambda d, m, n: np.sqrt(d))(q, p, c, r, wk, wv)


def absorb__no_scale(q, p, c, r, wk, wv):
    """Your scores are not scaled: divide them by √(d + m)."""
    return _scaled(lambda d, m, n: 1)(q, p, c, r, wk, wv)


def absorb__no_root(q, p, c, r, wk, wv):
    """You divide the scores by d + m, not by its square root."""
    return _scaled(lambda d, m, n: d + m)(q, p, c, r, wk, wv)


def absorb__small_row_not_scaled(q, p, c, r, wk, wv):
    """You scale only the first part of the scores. Add p @ r.T first, then divide the sum."""
    asked = _asked(q, wk)
    scores = asked @ c.T / np.sqrt(q.shape[1] + p.shape[1]) + p @ r.T
    return _results(asked, scores, c, wv)


def absorb__two_scales(q, p, c, r, wk, wv):
    """You scale each part of the scores by its own width. It is one key of d + m numbers: divide
    the sum by √(d + m).
    """
    asked = _asked(q, wk)
    scores = asked @ c.T / np.sqrt(q.shape[1]) + p @ r.T / np.sqrt(p.shape[1])
    return _results(asked, scores, c, wv)


def absorb__small_row_forgotten(q, p, c, r, wk, wv):
    """You leave out the small rows: add p @ r.T to the scores."""
    asked = _asked(q, wk)
    return _results(asked, asked @ c.T / np.sqrt(q.shape[1] + p.shape[1]), c, wv)


def absorb__two_softmaxes(q, p, c, r, wk, wv):
    """You make weights from each part and average them. The parts are added before the softmax."""
    asked, root = _asked(q, wk), np.sqrt(q.shape[1] + p.shape[1])
    weights = (_softmax(asked @ c.T / root) + _softmax(p @ r.T / root)) / 2
    mixed = weights @ c
    return asked, mixed, np.einsum("hn,hnd->hd", mixed, wv)


def absorb__reshaped(q, p, c, r, wk, wv):
    """You reshape wk to (H, d, n), which puts its numbers in other places. Swap the last two axes:
    wk.swapaxes(1, 2).
    """
    H, n, d = wk.shape
    asked = np.einsum("hd,hdn->hn", q, wk.reshape(H, d, n))
    scores = (asked @ c.T + p @ r.T) / np.sqrt(d + p.shape[1])
    return _results(asked, scores, c, wv)


def _with(q, p, c, r, wk, wv):
    asked = _asked(q, wk)
    return _results(asked, (asked @ c.T + p @ r.T) / np.sqrt(q.shape[1] + p.shape[1]), c, wv)


def absorb__one_pair_of_matrices(q, p, c, r, wk, wv):
    """All your heads use the matrices of head 0. Head i has wk[i] and wv[i]."""
    first = np.zeros(len(q), int)
    return _with(q, p, c, r, wk[first], wv[first])


def absorb__keys_of_the_first_head(q, p, c, r, wk, wv):
    """All your heads ask through wk[0]. Head i asks through wk[i]."""
    return _with(q, p, c, r, wk[np.zeros(len(q), int)], wv)


def absorb__values_of_the_first_head(q, p, c, r, wk, wv):
    """All your heads answer through wv[0]. Head i answers through wv[i]."""
    return _with(q, p, c, r, wk, wv[np.zeros(len(q), int)])


def absorb__mean_of_the_matrices(q, p, c, r, wk, wv):
    """You average the matrices of the heads into one. Each head has its own two matrices."""
    return _with(q, p, c, r, np.stack([wk.mean(0)] * len(q)), np.stack([wv.mean(0)] * len(q)))


def absorb__matrices_exchanged(q, p, c, r, wk, wv):
    """You have swapped the two matrices. Queries absorb wk, and answers go through wv."""
    return _with(q, p, c, r, wv, wk)


def absorb__answers_through_wk(q, p, c, r, wk, wv):
    """Your answers go through wk. That is for the queries; answers go through wv."""
    return _with(q, p, c, r, wk, wk)


def absorb__softmax_over_the_heads(q, p, c, r, wk, wv):
    """Your softmax runs over the heads. It should run over the rows: the weights of one head add up
    to 1."""
    asked = _asked(q, wk)
    scores = (asked @ c.T + p @ r.T) / np.sqrt(q.shape[1] + p.shape[1])
    return _results(asked, scores, c, wv, axis=0)


def absorb__asked_is_scaled(q, p, c, r, wk, wv):
    """You return `asked` after dividing it by the root. Divide the scores, and return `asked` as it
    is.
    """
    asked, mixed, z = _with(q, p, c, r, wk, wv)
    return asked / np.sqrt(q.shape[1] + p.shape[1]), mixed, z


def absorb__misses_itself(q, p, c, r, wk, wv):
    """You leave out the last row. It belongs to the new token, which sees itself."""
    return _with(q, p, c[:-1], r[:-1], wk, wv)


def absorb__evenly_mixed(q, p, c, r, wk, wv):
    """You return the mean of the stored rows as `mixed`. Mix them by the weights of each head."""
    asked = _asked(q, wk)
    mixed = np.tile(c.mean(axis=0), (len(q), 1))
    return asked, mixed, np.einsum("hn,hnd->hd", mixed, wv)
