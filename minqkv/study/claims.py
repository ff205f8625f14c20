"""Contrasts that a plan names before the runs, and what may be claimed of each.

A claim takes at least eight seeds, an exact test, and a correction for how many are made.
"""

from dataclasses import asdict, dataclass

from . import stats
from .summary import Cell, Row

MARGIN = 0.02  # smaller differences of accuracy do not matter
UNTOLD = "cannot be told: a run diverged"


@dataclass(frozen=True)
class Contrast:
    """The score of one arm minus that of another, at the same bytes. An arm is (variant, heads,
    positions, what K = V stores under rope); `against` None is the baseline of the table.
    """

    family: str  # contrasts of a family are corrected together
    task: str
    per_token: int  # bytes
    arm: tuple
    against: tuple | None = None


_ONE = 1, "learned", "raw"
_RAW, _BACK = (1, "rope", "raw"), (1, "rope", "unrotate")
CONTRASTS = {  # docs/recall-plan.md
    "recall-full": [
        *(Contrast("pairs", "pairs", size, ("q-k=v", *_ONE)) for size in (8, 16, 24)),
        Contrast("mqar", "mqar", 32, ("q-k=v", *_RAW)),
        Contrast("mqar", "mqar", 48, ("q-k=v", *_RAW)),
        Contrast("mqar", "mqar", 48, ("q-k=v", *_BACK), ("q-k=v", *_RAW)),
        Contrast("mqar", "mqar", 48, ("qkv/q-k=v", *_RAW), ("q-k=v/qkv", *_RAW)),
    ],
}


@dataclass(frozen=True)
class Finding:
    """The outcome of one contrast."""

    family: str
    cell: str
    arm: str
    against: str
    difference: stats.Estimate | None
    p: float
    p_adjusted: float
    verdict: str


def findings(contrasts: list[Contrast], cells: list[Cell]) -> list[Finding]:
    """Each contrast, tested and corrected by Holm within its family. Where a seed is missing
    because its run diverged, there is no verdict: the missing runs may be the bad ones.
    """
    found = [(contrast, *_rows(contrast, cells)) for contrast in contrasts]
    results = []
    for family in dict.fromkeys(contrast.family for contrast in contrasts):
        mine = [entry for entry in found if entry[0].family == family]
        pairs = [stats.differences(row.by_seed, other.by_seed) for _, _, row, other in mine]
        p_values = [stats.sign_flip(pair) if pair else 1.0 for pair in pairs]
        tested = zip(mine, pairs, p_values, stats.holm(p_values), strict=True)
        for (_, cell, row, other), pair, p, adjusted in tested:
            difference = stats.estimate(pair)
            complete = len(pair) == len(row.by_seed) == len(other.by_seed)
            verdict = stats.verdict(difference, adjusted, MARGIN) if complete else UNTOLD
            about = (family, f"{cell.task}, {cell.equal['bytes']} B", row.arm, other.arm)
            results.append(Finding(*about, difference, p, adjusted, verdict))
    return results


def _rows(contrast, cells):
    """(cell, row of the arm, row of what it is compared with)."""
    equal = {"bytes": contrast.per_token}
    cell = next(c for c in cells if (c.task, c.equal) == (contrast.task, equal))
    rows = {_key(row): row for row in cell.rows if not row.lifted}
    baseline = next(row for row in cell.rows if row.arm == cell.baseline)
    return cell, rows[contrast.arm], rows[contrast.against] if contrast.against else baseline


def _key(row: Row):
    s = row.settings
    return row.variant, s["n_head"], s["position"], s["rope_value"]


def as_data(found: list[Finding]) -> list[dict]:
    """For results.json."""
    return [asdict(finding) for finding in found]
