"""Check 12: `perplexity` against the package's cross-entropy, `paired` against its statistics."""

import math

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.study import stats

TOLERANCE = 1e-6

HINTS = (
    "Both are a mean of the right numbers. For `perplexity`: which losses count? For `paired`: "
    "subtract first; after that you no longer need a and b.",
    "A boolean array selects entries: losses[counted] is one row of the losses that count. For "
    "the half width: the spread of the differences (with n - 1 in the denominator), divided by "
    "the square root of n, times Student's t for n - 1.",
    "np.exp(losses[counted].mean()); and d = a - b, then d.mean() and t_quantile(len(d) - 1) * "
    "d.std(ddof=1) / np.sqrt(len(d)).",
)

EXPLANATION = """
The package does the first in two places: `cross_entropy` leaves out the targets it is told to
ignore, and `evaluate` averages over batches, weighted by the number of counted targets. In a plain
mean of means, a batch with little text would count too much.

Its `paired` takes not two lists but two dicts, from seed to result. A run that diverged is then
simply missing, and only seeds that both variants finished are compared; in lists, one missing run
would shift all that follow and no error would be raised. And `t_quantile` is found by bisection on
the distribution function, so that no table of t has to be typed in.
"""


def cases(rng):
    """Losses of n documents of up to T targets; results of two variants with the same k seeds."""
    n, length, k = (int(m) for m in rng.permutation(np.arange(3, 10))[:3])
    losses = rng.gamma(2.0, 0.7, (n, length))  # (n, T)
    ends = rng.permutation(np.linspace(1, length - 1, n).astype(int))  # (n,)
    counted = np.arange(length) < ends[:, None]  # (n, T)
    losses = np.where(counted, losses, 0.02 * losses)
    common = rng.uniform(0.4, 0.9) + 0.08 * rng.standard_normal(k)  # (k,)
    a, b = common + 0.03 * rng.standard_normal((2, k)) + np.array([[0.01], [0.0]])
    return losses, counted, a, b


def use(learner, losses, counted, a, b):
    """Two numbers of a table."""
    return {"perplexity": learner.perplexity(losses, counted), "paired": learner.paired(a, b)}


def reference(losses, counted, a, b):
    """As losses of a choice between two symbols, they can go to the package's cross-entropy."""
    p = np.exp(-losses)
    logits = np.log(np.stack([p, 1 - p], axis=-1))  # (n, T, 2)
    mean = F.cross_entropy(mq.Tensor(logits), np.where(counted, 0, -100)).item()
    e = stats.paired(dict(enumerate(a)), dict(enumerate(b)))
    return {"perplexity": math.exp(mean), "paired": (e.mean, e.half)}
