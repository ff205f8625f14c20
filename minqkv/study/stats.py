"""Means over seeds with Student t intervals, and differences paired by seed."""

import math
from dataclasses import dataclass
from functools import lru_cache


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


def paired(values: dict[int, float], baseline: dict[int, float]) -> Estimate | None:
    """The Estimate of values - baseline. Both map seed -> value; only shared seeds count."""
    return estimate([values[seed] - baseline[seed] for seed in values if seed in baseline])


@lru_cache
def t_quantile(freedom: int, p: float = 0.975) -> float:
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
