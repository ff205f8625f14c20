"""Means over seeds with Student t intervals, differences paired by seed, and what may be claimed of
them.
"""

import math
import statistics
from dataclasses import dataclass
from functools import lru_cache

from ..runtime.errors import UsageError


@dataclass(frozen=True)
class Estimate:
    """A mean over n values and the half-width of its 95 % interval (NaN where n < 2)."""

    mean: float
    half: float
    n: int

    @property
    def clear_of_zero(self):
        """Whether the interval does not contain zero."""
        return abs(self.mean) > self.half


def estimate(values: list[float]) -> Estimate | None:
    """Mean and 95 % interval: half = t(n-1) · s / √n, where s is `spread`. None without values."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, 1)
    return Estimate(mean, t_quantile(n - 1) * spread(values) / math.sqrt(n), n)


def spread(values: list[float]) -> float:
    """The sample standard deviation (n - 1 in the denominator); NaN below two values."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))


def paired(
    values: dict[int, float], baseline: dict[int, float], relative: bool = False
) -> Estimate | None:
    """The Estimate of `differences`. Both map seed -> value; only shared seeds count."""
    return estimate(differences(values, baseline, relative))


def differences(
    values: dict[int, float], baseline: dict[int, float], relative: bool = False
) -> list[float]:
    """values - baseline for each seed that both have; with `relative`, values / baseline - 1. A run
    that diverged has None.
    """
    shared = [seed for seed in values if None not in (values[seed], baseline.get(seed))]
    if relative:
        return [values[seed] / baseline[seed] - 1 for seed in shared]
    return [values[seed] - baseline[seed] for seed in shared]


def unpaired(values: list[float], others: list[float]) -> tuple[Estimate, float]:
    """The mean of `values` minus that of `others`, which share no seeds, by Welch's test: the
    Estimate, whose n counts `values`, and the two-sided p.

    A single number for `others` counts as one without an error. A single value tells nothing.
    """
    mean = math.fsum(values) / len(values) - math.fsum(others) / len(others)
    if len(values) < 2:
        return Estimate(mean, math.nan, 1), 1.0
    sides = [side for side in (values, others) if len(side) > 1]
    parts = [spread(side) ** 2 / len(side) for side in sides]  # variances of the means
    error = math.sqrt(math.fsum(parts))
    if not error:
        return Estimate(mean, 0.0, len(values)), float(not mean)
    pairs = zip(parts, sides, strict=True)
    freedom = error**4 / math.fsum(part**2 / (len(side) - 1) for part, side in pairs)
    p = 2 - 2 * _t_cdf(abs(mean) / error, freedom)
    return Estimate(mean, t_quantile(freedom) * error, len(values)), p


@lru_cache
def t_quantile(freedom: float, p: float = 0.975) -> float:
    """The p-quantile of Student's t with this many degrees of freedom, by bisection on its
    distribution function.
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < p:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _t_cdf(t, freedom, panels=200):
    """P(T ≤ t) for t ≥ 0 and ν degrees of freedom.

    Substituting t = √ν tan θ turns the density into a smooth cos^(ν-1) θ, which Simpson's rule
    integrates.
    """
    end = math.atan(t / math.sqrt(freedom))
    weights = [1, *([4, 2] * (panels // 2))[:-1], 1]
    heights = [w * math.cos(end * i / panels) ** (freedom - 1) for i, w in enumerate(weights)]
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + scale * end / (3 * panels) * math.fsum(heights)


# ---- claims: contrasts, margin and step budget are fixed before the run

SEEDS = 8  # the fewest that a claimed difference needs


def sign_flip(differences: list[float]) -> float:
    """The exact two-sided p of a paired permutation test of differences symmetric about zero.

    If the two arms did not differ, each seed's difference could as well have the opposite sign. p
    is the share of all 2^n choices of signs whose mean is at least as far from zero as the one
    seen, so it is never below 2 / 2^n. Two sums count as equal if they differ by 1e-9 of the sum of
    absolute values. That is far above the rounding error and far below one token of an accuracy,
    and one tie too many only makes p larger. Raises UsageError unless there are 1 to 20 finite
    differences.
    """
    if not 1 <= len(differences) <= 20 or not all(map(math.isfinite, differences)):
        raise UsageError("the sign-flip test takes 1 to 20 finite differences")
    sums = [0.0]
    for difference in differences:
        sums = [s + d for d in (difference, -difference) for s in sums]  # sums[0]: as seen
    slack = 1e-9 * math.fsum(map(abs, differences))
    return sum(abs(s) >= abs(sums[0]) - slack for s in sums) / len(sums)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction: the adjusted p-values, in the order given.

    If every contrast with an adjusted p ≤ α is called different, the probability of any false call
    is at most α. Of m contrasts the smallest p is multiplied by m, the next by m - 1, and so on;
    none becomes smaller than the one before it, or larger than 1.
    """
    adjusted, largest = list(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def verdict(difference: Estimate, p_adjusted: float, margin: float) -> str:
    """What may be claimed of a paired difference: "different", "the same" or "cannot be told".

    The first two need at least SEEDS seeds. "the same": the 95 % interval lies inside ±margin.
    "different": the adjusted p of the sign-flip test is at most .05. A difference can be certain
    and yet smaller than the margin. Then it is "the same", because the margin says in advance which
    differences matter; the interval printed beside it shows that it is not zero.
    """
    if difference.n >= SEEDS and abs(difference.mean) + difference.half < margin:
        return "the same"
    if difference.n >= SEEDS and p_adjusted <= 0.05:
        return "different"
    return "cannot be told"


def median_steps(steps: list[int | None], budget: int) -> tuple[float | None, int]:
    """Median number of steps to a goal, and how many runs reached it within the budget.

    None in the list is a run that never reached it. Where half of the runs or more did not, the
    median is None: all that is known is that it lies beyond the budget.
    """
    reached = [n for n in steps if n is not None and n <= budget]
    if 2 * len(reached) <= len(steps):
        return None, len(reached)
    missed = len(steps) - len(reached)
    return statistics.median(reached + [math.inf] * missed), len(reached)
