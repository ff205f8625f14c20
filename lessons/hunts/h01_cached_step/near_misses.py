"""Near misses h1: repairs that are not."""

import numpy as np


def _decode(q, k, v, late, twice):
    keys, values = np.zeros((2, len(k) + 1, k.shape[1]))
    answers = []
    for n in range(len(q)):
        keys[n + late], values[n + late] = k[n], v[n]
        seen = [*range(n + 1), *[n] * twice]
        scores = keys[seen] @ q[n] / np.sqrt(k.shape[1])
        e = np.exp(scores - scores.max())
        answers.append(e / e.sum() @ values[seen])
    return np.array(answers)


def decode__counts_before_it_writes(q, k, v):
    """You count a token before you write its rows: they land one place too late, row 0 stays zero,
    and every token attends to it.
    """
    return _decode(q, k, v, 1, 0)


def decode__twice(q, k, v):
    """You add the new token's rows to what the cache returns, which contains them already: the
    token now counts twice.
    """
    return _decode(q, k, v, 0, 1)
