"""What a claim rests on: the sign-flip test, Holm's correction, the verdict, censored medians."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from minqkv.runtime.errors import UsageError
from minqkv.study.stats import Estimate, estimate, holm, median_steps, sign_flip, verdict

# ---- sign flips


def by_brute_force(differences):
    """The definition, in exact arithmetic, for differences that are fractions."""
    patterns = list(product((1, -1), repeat=len(differences)))

    def distance(signs):
        return abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))

    seen = abs(sum(differences))
    return sum(distance(signs) >= seen for signs in patterns) / len(patterns)


@pytest.mark.parametrize("n", range(1, 9))
def test_the_sign_flip_test_is_its_definition(n, rng):
    for _ in range(20):
        tenths = rng.integers(-5, 6, n).tolist()  # few values, so many ties
        exact = by_brute_force([Fraction(t, 10) for t in tenths])
        assert sign_flip([t / 10 for t in tenths]) == exact


def test_sums_that_are_equal_but_for_rounding_are_ties():
    """On paper a choice of signs ties with the one seen; in binary its sum is a little smaller."""
    hits, baseline = [403, 464, 476, 436], [414, 441, 430, 448]  # of 500 tokens
    counts = [a - b for a, b in zip(hits, baseline, strict=True)]
    rounded = [a / 500 - b / 500 for a, b in zip(hits, baseline, strict=True)]
    naive = by_brute_force(rounded)  # in floating point, taken at its word
    assert naive < by_brute_force(counts)
    assert sign_flip(rounded) == by_brute_force(counts) == sign_flip(counts)


def test_the_smallest_p_has_all_differences_on_one_side():
    assert sign_flip([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]) == 2 / 256
    assert sign_flip([-0.5] * 8) == 2 / 256
    assert sign_flip([1e-300] * 5) == 2 / 32
    assert sign_flip([0.01] * 16) == 2 / 65536


def test_extremes_of_the_sign_flip_test():
    assert sign_flip([0.0] * 8) == 1.0
    assert sign_flip([0.3]) == 1.0
    assert sign_flip([0.3, -0.3]) == 1.0
    assert sign_flip([0.3, 0.0]) == 1.0  # a zero carries no sign
    assert sign_flip([0.0, 0.1, 0.2, 0.3]) == sign_flip([0.1, 0.2, 0.3]) == 2 / 8


@pytest.mark.parametrize("differences", [[], [0.1] * 21, [0.1, math.nan], [math.inf, 0.1]])
def test_what_the_sign_flip_test_refuses(differences):
    with pytest.raises(UsageError, match="1 to 20 finite"):
        sign_flip(differences)


def test_darwins_maize():
    """Fisher, The Design of Experiments (1935), section 21: Darwin's 15 pairs of plants, in eighths
    of an inch. Of 32,768 choices of signs, 863 give a sum of 314 or more: p = 1,726 / 32,768.
    """
    eighths = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sum(eighths) == 314
    assert sign_flip(eighths) == 1726 / 32768


def test_neither_signs_order_nor_units_change_p(rng):
    differences = rng.normal(0.3, 1, 9).tolist()
    p = sign_flip(differences)
    assert 0.01 < p < 1
    assert sign_flip([-d for d in differences]) == p
    assert sign_flip(differences[::-1]) == p
    assert sign_flip([d * 1e-6 for d in differences]) == sign_flip([d * 3e7 for d in differences])
    assert sign_flip([d * 3e7 for d in differences]) == p


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "laplace"])
def test_where_nothing_differs_p_is_below_5_percent_as_often_as_that(draw, rng):
    """Whatever the distribution, if it is symmetric: p takes the values 2k/256 equally often."""
    found = [sign_flip(getattr(rng, draw)(size=8).tolist()) for _ in range(2000)]
    rate = np.mean([p <= 0.05 for p in found])
    expected = 12 / 256  # the largest multiple of 2/256 below .05
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


# ---- many contrasts


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, 0.01, 0.02]) == pytest.approx([0.2, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.5, 0.0]) == [0.5, 0.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects(rng):
    """The procedure: from the smallest on, reject while p ≤ α / (contrasts left)."""
    for _ in range(200):
        p = (rng.integers(1, 40, 6) / 256).tolist()
        rejected = set()
        for rank, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] * (6 - rank) > 0.05:
                break
            rejected.add(i)
        assert {i for i, q in enumerate(holm(p)) if q <= 0.05} == rejected


def test_holm_keeps_the_order_and_never_lowers_a_p(rng):
    p = rng.uniform(0, 1, 12).tolist()
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert max(adjusted) <= 1
    by_p = [adjusted[i] for i in np.argsort(p)]
    assert by_p == sorted(by_p)
    mixed = rng.permutation(12)
    assert holm([p[i] for i in mixed]) == [adjusted[i] for i in mixed]


def test_eight_seeds_can_tell_six_contrasts_apart_and_no_more():
    """To know before a run: with 8 seeds no p is below 2/256, and Holm multiplies the smallest."""
    assert max(holm([2 / 256] * 6)) <= 0.05
    assert min(holm([2 / 256] * 7)) > 0.05


# ---- what is said


@pytest.mark.parametrize(
    ("mean", "half", "n", "p", "expected"),
    [
        (0.10, 0.03, 8, 0.01, "different"),
        (-0.10, 0.03, 8, 0.05, "different"),
        (0.10, 0.03, 8, 0.051, "cannot be told"),
        (0.10, 0.03, 7, 0.01, "cannot be told"),
        (0.00, 0.01, 8, 1.0, "the same"),
        (-0.01, 0.009, 8, 1.0, "the same"),
        (-0.01, 0.011, 8, 1.0, "cannot be told"),
        (0.02, 0.0, 8, 1.0, "cannot be told"),  # on the margin is not inside it
        (0.01, 0.005, 8, 0.01, "the same"),  # certain, and too small to matter
        (0.018, 0.005, 8, 0.01, "different"),  # perhaps too small to matter, but certain
        (0.0, math.nan, 1, 1.0, "cannot be told"),
    ],
)
def test_verdicts(mean, half, n, p, expected):
    assert verdict(Estimate(mean, half, n), p, 0.02) == expected


def test_a_verdict_from_seeds():
    worse = [-0.12, -0.10, -0.09, -0.15, -0.08, -0.11, -0.13, -0.07]
    assert verdict(estimate(worse), sign_flip(worse), 0.02) == "different"
    noise = [0.12, -0.10, 0.09, -0.15, 0.08, -0.11, 0.13, -0.07]
    assert verdict(estimate(noise), sign_flip(noise), 0.02) == "cannot be told"
    assert verdict(estimate([0.0] * 8), sign_flip([0.0] * 8), 0.02) == "the same"


# ---- steps to a goal


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([300], (300, 1)),
        ([None], (None, 0)),
        ([100, 400, 200], (200, 3)),
        ([100, None, 200], (200, 2)),
        ([100, None, None], (None, 1)),
        ([100, 200, 300, None], (250, 3)),
        ([100, 200, None, None], (None, 2)),  # the median lies between 200 and beyond the budget
        ([100, 1001, 1000], (1000, 2)),  # reached, but after the budget
        ([0, 0, 0], (0, 3)),
        ([], (None, 0)),
    ],
)
def test_medians_with_runs_that_never_reached_the_goal(steps, expected):
    assert median_steps(steps, 1000) == expected
    assert median_steps(steps[::-1], 1000) == expected


def test_a_censored_median_does_not_depend_on_what_lies_beyond_the_budget(rng):
    for _ in range(100):
        times = rng.integers(1, 2000, int(rng.integers(1, 10))).tolist()
        middle, reached = median_steps(times, 1000)
        assert reached == sum(t <= 1000 for t in times)
        true = float(np.median(times))
        known = 2 * reached > len(times)
        assert middle == (true if known else None)
