"""Near misses 05: weighted averages that are almost right, each with what it does wrong."""

import numpy as np


def _exp(scores, axis=-1):
    return np.exp(scores - scores.max(axis=axis, keepdims=True))


def _softmax(scores, axis=-1):
    e = _exp(scores, axis)
    return e / e.sum(axis=axis, keepdims=True)


def mix__plain_mean(scores, rows):
    """You give every token the plain average of all rows; the scores are not used."""
    return np.repeat(rows.mean(axis=0, keepdims=True), len(scores), axis=0)


def mix__scores_as_weights(scores, rows):
    """You use the scores as weights: they may be negative, and do not add up to one. Softmax comes
    first.
    """
    return scores @ rows


def mix__divided_scores(scores, rows):
    """You divide the scores by their sum without taking exponentials: weights must not be
    negative.
    """
    return scores / scores.sum(axis=-1, keepdims=True) @ rows


def mix__absolute_scores(scores, rows):
    """You make the scores positive by dropping their sign, so that a very low score gets a large
    weight. Take the exponential.
    """
    return abs(scores) / abs(scores).sum(axis=-1, keepdims=True) @ rows


def mix__clipped_scores(scores, rows):
    """You set negative scores to 0 and normalise: a low score still has a weight, a small one. Take
    the exponential.
    """
    positive = np.maximum(scores, 0)
    return positive / np.maximum(positive.sum(axis=-1, keepdims=True), 1e-12) @ rows


def mix__not_normalised(scores, rows):
    """Your weights are exponentials that are never divided by their sum."""
    return np.exp(scores) @ rows


def mix__shifted_not_normalised(scores, rows):
    """Your largest weight is always one: shift by the maximum, then still divide the exponentials
    by their sum.
    """
    return _exp(scores) @ rows


def mix__divided_by_count(scores, rows):
    """You divide the exponentials by how many there are, not by their sum: the weights do not add
    up to one.
    """
    return np.exp(scores) @ rows / len(rows)


def mix__over_tokens_that_look(scores, rows):
    """Your softmax runs over the wrong axis: each row (a token that looks) must add up to one, not
    each column.
    """
    return _softmax(scores, axis=0) @ rows


def mix__over_everything(scores, rows):
    """Your softmax runs over the whole array: each row must add up to one on its own (axis=-1,
    keepdims=True).
    """
    return _softmax(scores, axis=None) @ rows


def mix__averaged_again(scores, rows):
    """You divide the mixed rows by how many there are; the weights add up to one already."""
    return _softmax(scores) @ rows / len(rows)


def mix__keeps_the_last(scores, rows):
    """You write each weighted row over the one before, so that only the last is left: add them up
    (+=).
    """
    return _softmax(scores)[:, -1:] * rows[-1]


def mix__scaled_scores(scores, rows):
    """You divide the scores by √d first. That comes with attention, in lesson 06; take them as they
    are here.
    """
    return _softmax(scores / np.sqrt(rows.shape[1])) @ rows


def mix__weights_only(scores, rows):
    """You return the weights; they still have to be multiplied with the rows."""
    return _softmax(scores)


def mix__hard_pick(scores, rows):
    """You pick the row with the largest score. That has no gradient; mix all of them, by their
    weights.
    """
    return rows[scores.argmax(axis=-1)]


def mix__largest_score_times_row(scores, rows):
    """You keep only the row with the largest weight, times that weight; the others belong to the
    average as well.
    """
    weights = _softmax(scores)
    return rows[weights.argmax(axis=-1)] * weights.max(axis=-1, keepdims=True)


def mix__softmax_twice(scores, rows):
    """You apply softmax twice: the second one flattens the weights again."""
    return _softmax(_softmax(scores)) @ rows


def mix__softmax_of_rows(scores, rows):
    """You apply softmax to the rows as well; only the scores become weights, the rows are mixed as
    they are.
    """
    return _softmax(scores) @ _softmax(rows)


def mix__softmax_at_the_end(scores, rows):
    """You mix first and apply softmax to the result. It belongs on the scores, before the
    product.
    """
    return _softmax(scores @ rows)


def mix__lowest_first(scores, rows):
    """You take the exponential of minus the scores: the lowest score gets the largest weight."""
    return _softmax(-scores) @ rows


def mix__powers_of_two(scores, rows):
    """You raise 2 to the scores; softmax uses the exponential, np.exp."""
    powers = 2.0**scores
    return powers / powers.sum(axis=-1, keepdims=True) @ rows


def mix__sigmoid(scores, rows):
    """You squash each score on its own (a sigmoid) and then normalise. A softmax compares
    exponentials, np.exp.
    """
    squashed = 1 / (1 + np.exp(-scores))
    return squashed / squashed.sum(axis=-1, keepdims=True) @ rows


def mix__squared_scores(scores, rows):
    """You square the scores to make them positive, so that a very low score gets a large weight.
    Take the exponential.
    """
    return scores**2 / (scores**2).sum(axis=-1, keepdims=True) @ rows
