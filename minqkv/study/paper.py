"""The paper's tables beside ours, row by row, and the state of each row.

The file published/paper.toml lists the tables, where they are in the paper, and how our numbers are
found. Published numbers come from the files beside it, ours from result folders (measured.py) or
from a formula (beside.py).

A row that compares the same thing is "the same" if the 95 % interval of the difference lies inside
the margin of claims.py. It is "different" if, with at least eight of our seeds, both the exact
sign-flip test (which takes the published mean as exact) and Welch's test say so, corrected by Holm
within the table. Otherwise it "cannot be told". Figures that are computed are the same if they
agree in all digits that were printed. Results of a "smaller scale" get no verdict.
"""

import shlex
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from ..runtime.errors import unknown
from ..runtime.files import printable
from . import stats
from .beside import OURS, Row, with_source
from .claims import MARGIN, RELATIVE_MARGIN
from .measured import Results
from .published import printed, synthetic_2026
from .summary import Cell, without_nan

STATES = DIFFERENT, SAME, UNTOLD, SMALLER, NOT_RUN = (
    "different", "the same", "cannot be told", "smaller scale", "not run",
)  # fmt: skip
UNEXPLAINED = "No reason is known. The published figure may itself be one run, without an interval."


@dataclass(frozen=True)
class Group:
    """Rows of one kind, and the commands that make ours."""

    name: str
    title: str
    rows: tuple[Row, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One table of the paper, and where the paper has it."""

    name: str
    title: str
    where: str
    groups: tuple[Group, ...]

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return [row for group in self.groups for row in group.rows]


def registered() -> dict:
    """What is in published/paper.toml."""
    path = Path(__file__).parent / "published" / "paper.toml"
    return tomllib.loads(path.read_text("utf-8"))


def studies(quick: bool = False) -> dict[str, list[str]]:
    """The studies that make our numbers: name -> arguments of `minqkv`. `quick`: only those that
    fit into ten minutes together.
    """
    found = registered()["studies"].items()
    return {k: shlex.split(v["command"])[1:] for k, v in found if v.get("quick") or not quick}


def tables(results: Results, names: tuple[str, ...] | None = None) -> list[Table]:
    """The tables of these names, or all of them. Raises UsageError for an unknown name."""
    known = registered()
    commands = {name: study["command"] for name, study in known.pop("studies").items()}
    for name in names or ():
        if name not in known:
            raise unknown("table", name, list(known))
    return [_table(name, known[name], commands, results) for name in names or known]


def summary(found: list[Table]) -> dict[str, int]:
    """How many rows are in each state."""
    states = [row.state for table in found for row in table.rows]
    return {state: states.count(state) for state in STATES}


def as_data(found: list[Table]) -> dict:
    """For JSON: how many rows are in each state, and the tables."""
    return {"states": summary(found), "tables": without_nan([asdict(table) for table in found])}


def of_same_data(cell: Cell) -> tuple[str, dict[str, dict[str, str]]]:
    """What the paper has of the task and the data of a study's table, at whatever size: where, and
    variant -> source -> figure as printed.
    """
    settings = with_source(cell.size)
    for name, about in registered().items():
        for group, own in about.get("groups", {}).items():
            spec = about | own
            if spec.get("ours") == "runs" and spec["settings"].items() <= settings.items():
                return about["where"], printed().get(name, {}).get(group, {})
    return "", {}


def _table(name, about, commands, results):
    inherited = {k: v for k, v in about.items() if k not in ("groups", "title")}
    published, drafts = _published(name), []
    for group, own in about["groups"].items():
        spec = {"title": group, "name": group} | inherited | own
        figures = published.get(group, {})
        found = OURS[spec["ours"]](spec, figures, results) if "ours" in spec else ()
        rows = list(found) or [(spec["title"], Row(row, of)) for row, of in figures.items()]
        drafts += [(spec, *item) for item in rows or [(spec["title"], Row("all"))]]
    drafts, groups = _corrected(drafts), {}
    for spec, title, row in drafts:
        groups.setdefault((spec["name"], title), (spec, []))[1].append(_judged(row, spec))
    made = [_group(title, *of, commands) for (_, title), of in groups.items()]
    return Table(name, about["title"], about["where"], tuple(made))


def _group(title, spec, rows, commands):
    made_by = [*spec.get("commands", ()), *(commands[name] for name in spec.get("study", ()))]
    return Group(spec["name"], title, tuple(rows), tuple(made_by))


def _corrected(drafts):
    """The rows of a table, their p-values corrected together."""
    adjusted = iter(stats.holm([row.p for *_, row in drafts if row.p is not None]))
    return [
        (*about, row if row.p is None else replace(row, p=next(adjusted))) for *about, row in drafts
    ]


def _published(table):
    """group -> row -> source -> figure, as printed."""
    found = printed().get(table, {})
    if table == "synthetic":
        for (variant, task), mean in _grand_means().items():
            found[task][variant]["re-run"] = f"{mean:.3f}".removeprefix("0")
    return found


def _grand_means():
    """(variant, task) -> the mean of the authors' own runs over all sizes; the task "average" is
    the mean of the tasks.
    """
    scores = {}
    for (variant, task, *_), accuracies in synthetic_2026().items():
        scores.setdefault((variant, task), []).extend(accuracies)
    means = {key: fmean(values) for key, values in scores.items()}
    for variant in {variant for variant, _ in means}:
        means[variant, "average"] = fmean(m for (v, _), m in means.items() if v == variant)
    return means


# ---- states


def _judged(row, spec):
    """The row with its state, and why."""
    state = _state(row, spec.get("expect"))
    why = {
        NOT_RUN: spec.get("why", ""),
        SMALLER: _scale(row, spec),
        UNTOLD: _unclear(row),
        DIFFERENT: spec.get("different", {}).get(spec["name"], UNEXPLAINED),
    }
    return replace(row, state=state, why=why.get(state, ""))


def _state(row, expect):
    if row.ours is None and not row.lost:
        return NOT_RUN
    if row.smaller is not None:
        return SMALLER
    if row.agrees is not None:
        return SAME if row.agrees else DIFFERENT
    if row.lost:
        return UNTOLD
    margin = RELATIVE_MARGIN if row.relative else MARGIN
    found = row.difference or row.ours
    inside = abs(found.mean) + found.half < margin
    certain = row.p is not None and row.p <= 0.05
    if expect == "more":  # what is published takes a difference: none refutes it
        inside, certain = certain and found.mean > 0, inside or (certain and found.mean < 0)
    return SAME if inside else DIFFERENT if certain else UNTOLD


def _scale(row, spec):
    text = spec["scale"].format(**row.smaller) if row.smaller else ""
    text = printable(text)  # it may quote a file
    return f"{text} Runs that diverged: {row.lost}." if row.lost else text


def _unclear(row):
    """Why a row cannot be told, where the interval does not say it."""
    found = row.difference or row.ours
    if row.lost:
        return f"runs that diverged: {row.lost}"
    if row.ours and row.ours.n == 1:
        return "one seed gives no interval"
    if found and found.clear_of_zero:
        few = f"{row.ours.n} seeds are too few for a verdict, which needs {stats.SEEDS}"
        why = few if row.p is None else f"p, corrected, is {row.p:.2f}".replace("0.", ".")
        return f"the interval does not contain zero, but {why}"
    return ""
