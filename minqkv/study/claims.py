"""Contrasts that a plan names before the runs, and what may be claimed of each.

A claim takes at least eight seeds, an exact test, and a correction for how many are made.
"""

from dataclasses import asdict, dataclass

from . import stats
from .summary import Cell, Row

MARGIN = 0.02  # smaller differences of accuracy do not matter
RELATIVE_MARGIN = 0.01  # neither do smaller relative differences of perplexity
UNTOLD = "cannot be told: a run diverged"


@dataclass(frozen=True)
class Contrast:
    """The score of one arm against that of another. In a table at equal bytes an arm is (variant,
    heads, positions, what K = V stores under rope); elsewhere it is the name of its row, or
    (variant, positions) where each scheme has a table. `against` None is the baseline of the table.
    """

    family: str  # contrasts of a family are corrected together
    task: str
    per_token: int | None  # bytes; None: the table is not at equal bytes
    arm: tuple | str
    against: tuple | str | None = None


def _distances(task, scheme, usual):
    """Do distances help Q = K, and does it then reach qkv?"""
    pairs = [
        ((name, scheme), other)
        for name in ("q=k-v", "q=k=v")
        for other in ((name, usual), ("qkv", scheme))
    ]
    return [Contrast(task, task, None, *pair) for pair in pairs]


_ONE = 1, "learned", "raw"
_RAW, _BACK = (1, "rope", "raw"), (1, "rope", "unrotate")
CONTRASTS = {
    "recall-full": [  # docs/recall-plan.md
        *(Contrast("pairs", "pairs", size, ("q-k=v", *_ONE)) for size in (8, 16, 24)),
        Contrast("mqar", "mqar", 32, ("q-k=v", *_RAW)),
        Contrast("mqar", "mqar", 48, ("q-k=v", *_RAW)),
        Contrast("mqar", "mqar", 48, ("q-k=v", *_BACK), ("q-k=v", *_RAW)),
        Contrast("mqar", "mqar", 48, ("qkv/q-k=v", *_RAW), ("q-k=v/qkv", *_RAW)),
    ],
    "positions": [  # docs/positions-plan.md
        *_distances("reverse", "learned+relative", "learned"),
        *_distances("sort", "learned+relative", "learned"),
        *_distances("mqar", "relative", "rope"),
    ],
    "designs": [  # docs/designs-plan.md
        Contrast(f"{size} B", "mqar", size, (name, 4, "rope", stored))
        for size in (48, 64)
        for name, stored in (
            ("gta-1", "raw"),
            ("gla-1", "raw"),
            ("mla", "raw"),
            ("q-mqa", "unrotate"),
            ("gqa-1-thin-4", "raw"),
        )
    ],
    "nano": [  # docs/language-models-plan.md
        *(
            Contrast("sharing", "text", None, name)
            for name in ("q-k=v", "q=k-v", "q=k=v", "mqa", "q-mqa")
        ),
        Contrast("equal bytes", "text", None, "q-k=v", "qkv (d_h 16)"),
        Contrast("equal bytes", "text", None, "q-k=v", "gqa-2"),
    ],
}


@dataclass(frozen=True)
class Finding:
    """The outcome of one contrast. A relative difference is a ratio minus 1."""

    family: str
    cell: str
    arm: str
    against: str
    difference: stats.Estimate | None
    relative: bool
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
        pairs = [stats.differences(a.by_seed, b.by_seed, c.relative) for _, c, a, b in mine]
        p_values = [stats.sign_flip(pair) if pair else 1.0 for pair in pairs]
        tested = zip(mine, pairs, p_values, stats.holm(p_values), strict=True)
        for (_, cell, row, other), pair, p, adjusted in tested:
            difference = stats.estimate(pair)
            complete = len(pair) == len(row.by_seed) == len(other.by_seed)
            margin = RELATIVE_MARGIN if cell.relative else MARGIN
            verdict = stats.verdict(difference, adjusted, margin) if complete else UNTOLD
            place = f"{cell.task}, {cell.equal['bytes']} B" if cell.equal else cell.task
            about = (family, place, *(_told(r, cells) for r in (row, other)))
            results.append(Finding(*about, difference, cell.relative, p, adjusted, verdict))
    return results


def _rows(contrast, cells):
    """(cell, row of the arm, row of what it is compared with)."""
    if isinstance(contrast.arm, tuple) and not contrast.per_token:
        found = {(row.variant, row.settings["position"]): (cell, row)
                 for cell in cells if cell.task == contrast.task for row in cell.rows}  # fmt: skip
        return *found[contrast.arm], found[contrast.against][1]
    equal = contrast.per_token and {"bytes": contrast.per_token}
    cell = next(c for c in cells if (c.task, c.equal) == (contrast.task, equal))
    name = _key if equal else lambda row: row.arm
    rows = {name(row): row for row in cell.rows if not row.lifted}
    baseline = next(row for row in cell.rows if row.arm == cell.baseline)
    return cell, rows[contrast.arm], rows[contrast.against] if contrast.against else baseline


def _told(row, cells):
    """The name of an arm, with its positions where another table has an arm of this name."""
    alike = [r for cell in cells for r in cell.rows if (cell.equal, r.arm) == (None, row.arm)]
    positions = {r.settings["position"] for r in alike}
    return f"{row.arm} ({row.settings['position']})" if len(positions) > 1 else row.arm


def _key(row: Row):
    s = row.settings
    return row.variant, s["n_head"], s["position"], s["rope_value"]


def as_data(found: list[Finding]) -> list[dict]:
    """For results.json."""
    return [asdict(finding) for finding in found]
