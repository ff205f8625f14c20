"""Hunt h1. Check your repair with `minqkv lesson check h1`."""

import numpy as np


class Cache:
    """Room for the keys and values of T tokens, of which the first n have
    been counted.
    """

    def __init__(self, T, d):
        self.k, self.v, self.n = np.zeros((T, d)), np.zeros((T, d)), 0

    def update(self, k, v):
        """Write the rows of the next token."""
        self.k[self.n], self.v[self.n] = k, v

    def get(self):
        """Keys and values so far, (n, d) each."""
        return self.k[: self.n], self.v[: self.n]

    def advance(self):
        """Count the token."""
        self.n += 1


def decode(q, k, v):
    """Attention, token by token: q, k and v (T, d) -> (T, d)."""
    cache, answers = Cache(*k.shape), []
    for t in range(len(q)):
        cache.update(k[t], v[t])
        keys, values = cache.get()
        scores = keys @ q[t] / np.sqrt(q.shape[1])  # (n,)
        e = np.exp(scores - scores.max(initial=-1e30))
        answers.append(e / e.sum() @ values)
        cache.advance()
    return np.array(answers)
