"""Near misses 20: running softmaxes that are almost right, each with what it does wrong."""

import numpy as np


def _scored(q, rows, mask, root=None):
    """(score, row) of each row; `root` is what scores are divided by, unless it is √d."""
    for row, hidden in zip(rows, mask, strict=True):
        yield q @ row / (root or np.sqrt(len(q))) + hidden, row


def _sums(scored, d, of_total=True, of_mix=True, turned=False):
    """(total, mix), where shrinking may be left out of one of them, or turned upside down."""
    peak, total, mix = -np.inf, 0.0, np.zeros(d)
    for score, row in scored:
        if score == -np.inf:
            continue
        new = max(peak, score)
        shrink = np.exp(peak - new)
        if turned and total:
            shrink = 1 / shrink
        weight = np.exp(score - new)
        total = total * (shrink if of_total else 1) + weight
        mix = mix * (shrink if of_mix else 1) + weight * row
        peak = new
    return total, mix


def _divided(total, mix):
    return mix / total if total else mix


def running__never_shrinks(q, rows, mask):
    """Your sums do not shrink when a larger score comes. They were made with the old peak: multiply
    total and mix by exp(old - new).
    """
    return _divided(*_sums(_scored(q, rows, mask), len(q), of_total=False, of_mix=False))


def running__mix_does_not_shrink(q, rows, mask):
    """Your total shrinks when a larger score comes, and your mix does not. Both were made with the
    old peak: multiply both by exp(old - new).
    """
    return _divided(*_sums(_scored(q, rows, mask), len(q), of_mix=False))


def running__total_does_not_shrink(q, rows, mask):
    """Your mix shrinks when a larger score comes, and your total does not. Both were made with the
    old peak: multiply both by exp(old - new).
    """
    return _divided(*_sums(_scored(q, rows, mask), len(q), of_total=False))


def running__grows(q, rows, mask):
    """You multiply by exp(new - old) when a larger score comes. That makes the sums larger. They
    must become smaller: exp(old - new).
    """
    return _divided(*_sums(_scored(q, rows, mask), len(q), turned=True))


def running__no_peak(q, rows, mask):
    """You take the exponential of the scores as they are. It overflows for large scores: subtract
    the largest score so far.
    """
    total, mix = 0.0, np.zeros(len(q))
    for score, row in _scored(q, rows, mask):
        total, mix = total + np.exp(score), mix + np.exp(score) * row
    return _divided(total, mix)


def running__first_score_stays(q, rows, mask):
    """You subtract the first score from all of them. If a later one is much larger, its exponential
    overflows: go over to the larger one, and let the sums shrink.
    """
    first, total, mix = None, 0.0, np.zeros(len(q))
    for score, row in _scored(q, rows, mask):
        if score == -np.inf:
            continue
        first = score if first is None else first
        weight = np.exp(score - first)
        total, mix = total + weight, mix + weight * row
    return _divided(total, mix)


def running__not_divided(q, rows, mask):
    """You return the mix before it is divided. Divide it by the sum of exponentials, at the end."""
    return _sums(_scored(q, rows, mask), len(q))[1]


def running__divides_each_time(q, rows, mask):
    """You divide after every row and go on with the quotient. Then earlier rows are divided several
    times: divide once, at the end.
    """
    peak, total, mix = -np.inf, 0.0, np.zeros(len(q))
    for score, row in _scored(q, rows, mask):
        if score == -np.inf:
            continue
        new = max(peak, score)
        total = total * np.exp(peak - new) + np.exp(score - new)
        mix = (mix * np.exp(peak - new) + np.exp(score - new) * row) / total
        peak = new
    return mix


def running__not_scaled(q, rows, mask):
    """You do not divide the scores. Divide them by the square root of d."""
    return _divided(*_sums(_scored(q, rows, mask, 1), len(q)))


def running__scaled_by_d(q, rows, mask):
    """You divide the scores by d. Divide them by its square root."""
    return _divided(*_sums(_scored(q, rows, mask, len(q)), len(q)))


def running__mask_ignored(q, rows, mask):
    """You mix all rows. Add the mask to the scores: a row whose score is -inf has the weight 0."""
    return _divided(*_sums(_scored(q, rows, np.zeros(len(mask))), len(q)))


def running__minus_infinity_from_itself(q, rows, mask):
    """Your peak is still -inf when the score of a hidden row is, and -inf minus -inf is not a
    number. Leave out rows whose score is -inf.
    """
    peak, total, mix = -np.inf, 0.0, np.zeros(len(q))
    for score, row in _scored(q, rows, mask):
        new = max(peak, score)
        total = total * np.exp(peak - new) + np.exp(score - new)
        mix = mix * np.exp(peak - new) + np.exp(score - new) * row
        peak = new
    return _divided(total, mix)


def running__divides_by_zero(q, rows, mask):
    """If no row may be seen, your total is 0, and 0 / 0 is not a number. Return zeros."""
    total, mix = _sums(_scored(q, rows, mask), len(q))
    return mix / np.float64(total)


def running__hidden_by_a_large_number(q, rows, mask):
    """You hide rows by a large negative number instead of -inf. If all are hidden, all have nearly
    the same score, and you mix them. The answer should be zeros then.
    """
    return _divided(*_sums(_scored(q, rows, np.maximum(mask, -1e9)), len(q)))


def running__keeps_the_rows(q, rows, mask):
    """You collect the rows and use them later. All of them arrive in the same place, where the next
    one replaces the last: use each row as long as it is there.
    """
    kept = list(rows)
    return _divided(*_sums(_scored(q, kept, mask), len(q)))
