"""Near misses 13: cuts that are almost right, each with what it does wrong."""

import numpy as np


def _sorted(probabilities, sign=-1):
    """(order, probabilities in that order), (B, V) each: falling, or with sign 1 rising."""
    order = (sign * probabilities).argsort(axis=1, kind="stable")
    return order, np.take_along_axis(probabilities, order, axis=1)


def _back(order, kept, divide=True):
    """Kept probabilities (B, V) back in the order of the ids, divided by their sum."""
    found = np.zeros(kept.shape)
    np.put_along_axis(found, order, kept, axis=1)
    return found / found.sum(axis=1, keepdims=True) if divide else found


def _cut(probabilities, p):
    """(order, what is kept) as it should be."""
    order, falling = _sorted(probabilities)
    return order, np.where(falling.cumsum(axis=1) - falling < p, falling, 0.0)


def top_p__without_the_one_that_reaches(probabilities, p):
    """You leave out the token with which the sum reaches p. It is needed: without it the sum is
    below p.
    """
    order, falling = _sorted(probabilities)
    kept = np.where(falling.cumsum(axis=1) < p, falling, 0.0)
    kept[:, 0] = falling[:, 0]  # at least one
    return _back(order, kept)


def top_p__one_too_many(probabilities, p):
    """You keep one token too many: stop with the one that reaches p."""
    order, falling = _sorted(probabilities)
    before = falling.cumsum(axis=1) - falling  # what those before a token reach
    needed = np.concatenate([np.zeros((len(before), 1)), before[:, :-1]], axis=1) < p
    return _back(order, np.where(needed, falling, 0.0))


def top_p__drops_a_likely_first(probabilities, p):
    """Where the likeliest token reaches p alone, you drop it and keep the second. It is the one to
    keep.
    """
    order, falling = _sorted(probabilities)
    kept = np.where(falling.cumsum(axis=1) - falling < p, falling, 0.0)
    alone = falling[:, 0] >= p
    kept[alone, :2] = np.stack([np.zeros(alone.sum()), falling[alone, 1]], axis=1)
    return _back(order, kept)


def top_p__keeps_all_where_one_is_enough(probabilities, p):
    """Where the likeliest token reaches p alone, you cut off nothing. Keep just that one."""
    order, falling = _sorted(probabilities)
    kept = np.where(falling.cumsum(axis=1) - falling < p, falling, 0.0)
    alone = falling[:, 0] >= p
    kept[alone] = falling[alone]
    return _back(order, kept)


def top_p__not_divided(probabilities, p):
    """You do not divide by the sum of what is kept: the rows no longer sum to 1."""
    return _back(*_cut(probabilities, p), divide=False)


def top_p__divided_by_p(probabilities, p):
    """You divide by p. What is kept sums to p or more: divide by that sum."""
    return _back(*_cut(probabilities, p), divide=False) / p


def top_p__softmax_again(probabilities, p):
    """You take a softmax of what is kept. They are probabilities already: divide by their sum."""
    order, kept = _cut(probabilities, p)
    return _back(order, np.where(kept > 0, np.exp(kept), 0.0))


def top_p__least_likely_first(probabilities, p):
    """You begin with the least likely tokens: sort the likeliest first."""
    order, rising = _sorted(probabilities, 1)
    return _back(order, np.where(rising.cumsum(axis=1) - rising < p, rising, 0.0))


def top_p__cuts_the_likely(probabilities, p):
    """You keep the tail and cut off the likely tokens: keep those that come before p is reached."""
    order, falling = _sorted(probabilities)
    cut = falling.cumsum(axis=1) - falling < p
    kept = np.where(cut, 0.0, falling)
    kept[:, -1] = falling[:, -1]  # at least one
    return _back(order, kept)


def top_p__in_the_order_of_ids(probabilities, p):
    """You add up in the order of the ids. Sort each row first, the likeliest in front."""
    order = np.broadcast_to(np.arange(probabilities.shape[1]), probabilities.shape)
    before = probabilities.cumsum(axis=1) - probabilities
    return _back(order, np.where(before < p, probabilities, 0.0))


def top_p__not_put_back(probabilities, p):
    """You return the rows in sorted order. Column i must be token i again."""
    kept = _cut(probabilities, p)[1]
    return kept / kept.sum(axis=1, keepdims=True)


def top_p__sorted_twice(probabilities, p):
    """You apply the order again where it has to be undone. `order` says which id comes where; write
    to those ids.
    """
    order, kept = _cut(probabilities, p)
    kept = np.take_along_axis(kept, order, axis=1)
    return kept / kept.sum(axis=1, keepdims=True)


def top_p__one_cut_for_all(probabilities, p):
    """You keep the same number of tokens in every row: each row has its own cut."""
    order, falling = _sorted(probabilities)
    needed = (falling.cumsum(axis=1) - falling < p).sum(axis=1).max()
    return _back(order, np.where(np.arange(falling.shape[1]) < needed, falling, 0.0))


def top_p__cut_of_the_first_row(probabilities, p):
    """You take the number of tokens from the first row, for all of them: each row has its own."""
    order, falling = _sorted(probabilities)
    needed = (falling[0].cumsum() - falling[0] < p).sum()
    return _back(order, np.where(np.arange(falling.shape[1]) < needed, falling, 0.0))


def top_p__sum_over_the_batch(probabilities, p):
    """You add up along the batch. A sum runs along one row, over its tokens: axis=1."""
    order, falling = _sorted(probabilities)
    kept = np.where(falling.cumsum(axis=0) - falling < p, falling, 0.0)
    kept[:, 0] = falling[:, 0]
    return _back(order, kept)


def top_p__threshold(probabilities, p):
    """You keep the tokens whose own probability is p or more. It is the sum of several that has to
    reach p.
    """
    kept = np.where(probabilities >= p, probabilities, 0.0)
    rows = np.arange(len(kept))
    best = probabilities.argmax(axis=1)
    kept[rows, best] = probabilities[rows, best]  # at least one
    return kept / kept.sum(axis=1, keepdims=True)


def top_p__threshold_of_the_rest(probabilities, p):
    """You keep the tokens whose own probability is above 1 − p. It is the sum of several that has
    to reach p.
    """
    kept = np.where(probabilities > 1 - p, probabilities, 0.0)
    rows = np.arange(len(kept))
    best = probabilities.argmax(axis=1)
    kept[rows, best] = probabilities[rows, best]
    return kept / kept.sum(axis=1, keepdims=True)


def top_p__all_that_are_equally_likely(probabilities, p):
    """You keep every token that is as likely as the last one needed. Of equally likely ones, those
    with lower ids go first, and no more than needed.
    """
    kept = _cut(probabilities, p)[1]
    least = np.where(kept > 0, kept, 1.0).min(axis=1, keepdims=True)
    found = np.where(probabilities >= least, probabilities, 0.0)
    return found / found.sum(axis=1, keepdims=True)


def top_p__higher_id_first(probabilities, p):
    """Of equally likely tokens you take the one with the higher id first. (A rising sort that is
    reversed does this.)
    """
    order = probabilities.argsort(axis=1, kind="stable")[:, ::-1]
    falling = np.take_along_axis(probabilities, order, axis=1)
    return _back(order, np.where(falling.cumsum(axis=1) - falling < p, falling, 0.0))


def top_p__a_share_of_the_tokens(probabilities, p):
    """You keep a share p of the number of tokens. It is the sum of their probabilities that has to
    reach p.
    """
    order, falling = _sorted(probabilities)
    needed = np.ceil(p * falling.shape[1])
    return _back(order, np.where(np.arange(falling.shape[1]) < needed, falling, 0.0))
