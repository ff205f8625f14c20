"""Near misses h8: repairs that are not."""

import numpy as np


def _turn(x, at):
    a, b = np.split(x, 2)
    angle = at * 10_000.0 ** (-np.arange(len(a)) / len(a))
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)]
    )


def _decode(q, k, v, of_query, of_key):
    answers = []
    for t in range(len(q)):
        keys = np.array([_turn(k[j], of_key(j, t)) for j in range(t + 1)])
        scores = keys @ _turn(q[t], of_query(t)) / np.sqrt(k.shape[1])
        e = np.exp(scores - scores.max())
        answers.append(e / e.sum() @ v[: t + 1])
    return np.array(answers)


def decode__both_twice(q, k, v):
    """You turn the query twice as well. The score depends on the distance again, but on twice the
    distance, and the model was not trained like this.
    """
    return _decode(q, k, v, lambda t: 2 * t, lambda j, t: 2 * j)


def decode__keys_never(q, k, v):
    """Now your keys are not turned at all, only the queries."""
    return _decode(q, k, v, lambda t: t, lambda j, t: 0)


def decode__by_the_step(q, k, v):
    """You turn all keys by the position of the new token: each key turns by its own."""
    return _decode(q, k, v, lambda t: t, lambda j, t: t)
