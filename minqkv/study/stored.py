"""A study read back from its folder: the tables of one that has ended, or the plan and the records
of one that has not.

    results.json     the tables and runs, written at the end
    plan.json        what is to be run, written at the start
    runs/*.json      a record of each run that has ended

Files may be damaged, or made by anybody: every value that tables and figures need is checked, and
no code is imported because a file names it.
"""

import json
import math
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from ..runs import config_from, hash_of
from ..runtime import backend, files
from ..runtime.errors import EnvironmentFault, UsageError
from ..tasks.base import SHORT
from ..tasks.registry import task_class
from .claims import Finding
from .execute import Records, identity_of
from .grid import OF_AN_ARM
from .plan import Part, Plan
from .stats import Estimate
from .summary import Cell, Row

MOST_SEEDS = 10_000  # that choose a rate
AGAIN = "repeat the command of that study to write it again: finished runs are kept"


@dataclass(frozen=True)
class Stored:
    """What a folder holds. `records` maps the hash of a run to its record. `missing` runs of the
    plan are not on record; of those on record, `diverged` did not finish. `chosen`: whether the
    learning rates are, without which no table can be filled.
    """

    path: Path
    command: str
    cells: list[Cell]
    records: dict[str, dict]
    findings: list[Finding] = field(default_factory=list)
    versions: dict = field(default_factory=dict)
    recipes: dict = field(default_factory=dict)  # task -> hyper-parameters
    seconds: float | None = None
    itemsize: int = 4
    left_out: list[str] = field(default_factory=list)
    missing: int = 0
    planned: int = 0
    damaged: int = 0
    codes: dict[str, int] = field(default_factory=dict)  # version of the code -> how many runs
    chosen: bool = True

    @property
    def diverged(self):
        """Messages of the runs that diverged."""
        return [r["diverged"] for r in self.records.values() if r["diverged"]]


def is_study(path: str | Path) -> bool:
    """Whether a folder looks like that of a study."""
    return any((Path(path) / name).exists() for name in ("results.json", "plan.json", "runs"))


def write_plan(out: str | Path, plan: Plan, command: str) -> None:
    """Keep what is to be run as plan.json, so that a report of an unfinished study can say what is
    missing.
    """
    about = {"kind": "minqkv study plan", "command": command, "backend": backend.current.label}
    about |= {"impossible": plan.impossible, "parts": [asdict(part) for part in plan.parts]}
    text = json.dumps(files.sealed(about), ensure_ascii=False)
    files.write_text(Path(out) / "plan.json", text + "\n")


def read_study(path: str | Path, own: dict[str, type] | None = None) -> Stored:
    """What is in the folder of a study. `own`: MODULE:CLASS -> the class, for tasks of your own;
    those of a finished study can do without. Raises EnvironmentFault where there is no study, or
    its files are damaged.
    """
    path = Path(path)
    results, plan = path / "results.json", path / "plan.json"
    if not plan.exists() and not results.exists():
        cure = "create them with minqkv study --out FOLDER"
        if (path / "runs").is_dir():
            cure = "continue that study: repeat its command"
        raise EnvironmentFault(f"there are no study results in {path} (no results.json)", cure)
    found = _ended(path, files.read_sealed(results, AGAIN)) if results.exists() else None
    if plan.exists():
        begun, identity = _begun(path, files.read_sealed(plan, AGAIN), own)
        if not identity >= identity_of(results):
            why = f"{results} and the plan.json next to it belong to different studies"
            raise EnvironmentFault(why, "restore the right one of the two")
        if found is None or begun.planned > len(found.records):
            return begun
    return found


def _damaged(path, error):
    why = f"{path} is damaged, or of another version of minqkv: {error}"
    return EnvironmentFault(why, AGAIN)


# ---- a study that has ended


def _ended(path, values):
    try:
        records = {hash_of(run["config"]): _run(run) for run in values["runs"]}
        recipes = values["hyper_parameters"]
        return Stored(
            path=path,
            command=_text(values["command"]),
            cells=[_cell(_today(cell, values), records) for cell in values["cells"]],
            records=records,
            findings=[_made(Finding, found) for found in values.get("contrasts", ())],
            versions=_texts(values["versions"]),
            recipes={_text(name): _texts(recipe) for name, recipe in recipes.items()},
            seconds=_seconds(values["wall_seconds"]),
            itemsize=_number(values["cache_itemsize"]),
            left_out=[_text(reason) for reason in values.get("left_out", ())],
            planned=len(records),
            codes=dict(Counter(run["code"] for run in records.values() if run["code"])),
        )
    except (UsageError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path / "results.json", error) from error


def _run(run):
    """What figures need of an entry of `runs`, in the form of a record."""
    diverged, config = run["diverged"], run["config"]
    recipe = config.get("recipe", config)  # in version 0.1.0, a configuration was flat
    kept = {"code": _text(run.get("code") or "")}
    kept |= {"config": {"recipe": {"steps": _number(recipe["steps"])}}}
    kept |= {"diverged": diverged and _text(diverged), "score": None if diverged else {}}
    kept |= {"losses": list(map(_number, run.get("losses", ())))}
    kept |= {"curve": [(_number(step), _number(score)) for step, score in run.get("curve", ())]}
    return kept | {"reached": _number_or_none(run.get("reached"))}


def _today(cell, values):
    """A table, one of version 0.1.0 in today's form."""
    if not any("to_qkv" in row for row in cell["rows"]):
        return cell
    size = {name: value for name, value in cell.items() if name != "rows"}
    runs = [run for run in values["runs"] if size.items() <= run.items()]
    rows = []
    for row in cell["rows"]:
        mine = [run for run in runs if run["arm"] == row["arm"]]
        about = {"variant": mine[0]["variant"], "lr": mine[0]["config"]["lr"], "reached": {}}
        about |= {"score": row["accuracy"], "to_baseline": row["to_qkv"]}
        about |= {"settings": {name: mine[0]["config"].get(name) for name in OF_AN_ARM}}
        rows.append(row | about | {"runs": [hash_of(run["config"]) for run in mine]})
    title = "  ".join(f"{SHORT[n]} {v}" if n in SHORT else f"{v}" for n, v in size.items())
    about = {"task": cell["task"], "title": title, "metric": "accuracy", "better": "higher"}
    about |= {"size": size | {"steps": runs[0]["config"]["steps"]}, "rows": rows}
    about |= {"baseline": "qkv" if any(row["arm"] == "qkv" for row in rows) else None}
    return about | {"solved_from": values["solved_from"]}


def _cell(values, records):
    cell = _made(Cell, values | {"rows": []})
    _number(cell.size["steps"])
    for n in (cell.equal or {}).values():
        _number(n)
    rows = [_row(row, records, *_limits(cell.task)) for row in values["rows"]]
    scored = {row.arm: {s for s, v in row.by_seed.items() if v is not None} for row in rows}
    for row in rows:
        trained = scored.get(row.arm.partition(", lifted")[0], set())
        if row.lifted and not scored[row.arm] <= trained:
            raise ValueError(f"{row.arm} has scores of seeds that were not trained")
        if not row.settings.keys() >= {*OF_AN_ARM}:
            raise ValueError(f"{row.arm} has no {' or '.join(OF_AN_ARM)}")
        if row.to_baseline and cell.baseline not in [other.arm for other in rows]:
            raise ValueError(f"no row is {cell.baseline}")
    return replace(cell, rows=tuple(rows))


def _limits(task):
    """What a score of this task lies between; anything, for a task of your own."""
    with suppress(UsageError):
        return task_class(task).limits
    return -math.inf, math.inf


def _row(values, records, low, high):
    row = _made(Row, values)
    scores, reached = ({int(seed): _number_or_none(v) for seed, v in found.items()}
                       for found in (row.by_seed, row.reached))  # fmt: skip
    if not all(low <= score <= high for score in scores.values() if score is not None):
        raise ValueError(f"{row.arm} has a score outside {low:g} to {high:g}")
    if row.memory:
        for name in ("weights", "gradients", "moments", "activations"):
            _number(row.memory[name])
        _number_or_none(row.memory["activations_formula"])
    settings = _texts(row.settings)
    for name in settings.keys() & {"position", "rope_value"}:
        _text(settings[name])
    known = tuple(name for name in row.runs if name in records)
    return replace(row, by_seed=scores, reached=reached, settings=settings, runs=known)


def _made(cls, values):
    """A dataclass from a JSON object. What an older version did not write is None or False, and a
    number that is missing is NaN. Raises TypeError for a value of another type.
    """
    hints, made = get_type_hints(cls), {}
    for name in (of.name for of in fields(cls)):
        value, kinds = values.get(name), get_args(hints[name]) or (hints[name],)
        if Estimate in kinds and isinstance(value, dict):
            value = _made(Estimate, value)
        elif kinds == (tuple,):
            value = tuple(value)
        elif str in kinds and value is not None:
            value = _text(value)
        elif value is None and type(None) not in kinds:
            value = {float: math.nan, bool: False}.get(kinds[0])
        of_kind = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not of_kind or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{name} cannot be {value!r:.40}")
        made[name] = value
    if cls is Estimate and not math.isfinite(made["mean"]):
        raise TypeError("a mean is not finite")
    return cls(**made)


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.40} is not a number")
    return value


def _number_or_none(value):
    return None if value is None else _number(value)


def _seconds(value):
    if not 0 <= _number(value) < math.inf:
        raise ValueError(f"{value!r:.40} is not a time")
    return value


def _text(value):
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return files.printable(value)


def _texts(values):
    """Settings as numbers, texts or None; anything else as JSON."""
    texts = {}
    for name, value in values.items():
        if not isinstance(value, (str, int, float, type(None))):
            value = json.dumps(value, ensure_ascii=False)
        texts[_text(name)] = _text(value) if isinstance(value, str) else value
    return texts


# ---- a study that has not ended


def _begun(path, values, own):
    """The plan, with what is on record so far: of any version of the code, on one backend; and its
    identity.
    """
    try:
        plan, where = _plan(values, own), _text(values["backend"])
        command, left_out = _text(values["command"]), [_text(why) for why in values["impossible"]]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError) and "of your own" in str(error):
            raise
        raise _damaged(path / "plan.json", error) from error
    on_record = Records(path, plan.own, where)
    plan.recall(on_record, accept_code=True)
    chosen = bool(plan.choices) or not plan.candidates
    records = [on_record.of(config, accept_code=True) for config in plan.configs]
    selection = [on_record.of(config, accept_code=True) for config in plan.candidates]
    found = {config.hash: r for config, r in zip(plan.configs, records, strict=True) if r}
    codes = dict(Counter(record["code"] for record in found.values()))
    stored = Stored(
        path=path,
        command=command,
        cells=plan.cells(records) if chosen else [],
        records=found,
        versions={"backend": where},
        left_out=left_out,
        missing=records.count(None) + selection.count(None),
        planned=len(records) + len(selection),
        damaged=on_record.damaged,
        codes=codes,
        chosen=chosen,
    )
    return stored, plan.identity


def _plan(values, own):
    """The Plan of a plan.json."""
    parts = []
    for part in values["parts"]:
        configs = [config_from(config, own) for config in part["configs"]]
        rates, targets = (tuple(map(_number, part[name])) for name in ("rates", "targets"))
        equal, n_seeds = part["equal"], _number(part["selection_seeds"])
        if equal not in (None, "bytes", "params") or not configs or n_seeds > MOST_SEEDS:
            raise ValueError("part of it is invalid")
        parts.append(Part(configs, rates, equal, targets, n_seeds, bool(part["one_rate"])))
    return Plan(parts, own=own or {})
