"""Check 13: `top_p` against the package's, which works on scores."""

import numpy as np

from minqkv.generation import nucleus

TOLERANCE = 1e-9

HINTS = (
    "For one row: which token is kept first, which second, and when do you stop? Look at the "
    "sum of those already kept: while it is below p, one more is needed.",
    "np.argsort(-probabilities, axis=1, kind='stable') gives the ids of each row, the likeliest "
    "first; np.take_along_axis reads in that order. A token is needed if the sum of those before "
    "it, cumsum minus itself, is below p. So the first one is always needed.",
    "kept = np.where(falling.cumsum(axis=1) - falling < p, falling, 0), then "
    "np.put_along_axis(found, order, kept, axis=1) on an array of zeros, and divide by "
    "found.sum(axis=1, keepdims=True).",
)

EXPLANATION = """
The package does this in `nucleus` (minqkv/generation.py), on scores instead of probabilities: what
is cut off becomes minus infinity, and the softmax that follows divides by the sum of what is left.
The temperature comes first: it changes the probabilities, and so how many of them it takes to reach
p. On the command line it is `minqkv generate RUN --temperature T --top-p P`.

Why compare the sum **before** a token with p, and not the sum that includes it? Because the token
with which the sum reaches p is the last one that is needed. And because the sum before the first
token is 0, one token is always kept, without a special rule.

To draw from the result, the package adds a random number to each score and takes the largest
(`pick`). That gives each token the probability that you computed.
"""


def cases(rng):
    """probabilities (B, V), some of them equal, and p."""
    B, V = (int(n) for n in rng.permutation(np.arange(2, 9))[:2])
    parts = rng.integers(1, 7, (B, V + 2)) ** rng.integers(1, 4, (B, 1))  # equal ones are frequent
    parts[rng.integers(B), rng.integers(V)] *= 40  # in one row, one token is likely
    p = rng.uniform(0.15, 0.95)
    return parts / parts.sum(axis=1, keepdims=True), float(p)


def reference(probabilities, p):
    """The package's, which takes scores: the logarithms of probabilities are such scores."""
    kept = np.exp(nucleus(np.log(probabilities), p))  # (B, V)
    return kept / kept.sum(axis=1, keepdims=True)
