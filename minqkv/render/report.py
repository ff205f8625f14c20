"""The report of a study or a run as Sections: what was found, what it cannot show, and how it was
made. `document.py` shows them.
"""

import math
import re
import shlex
from dataclasses import asdict, dataclass, replace

import numpy as np

from .. import runs
from ..analysis.patterns import LONGEST, patterns
from ..runtime import files
from ..runtime.errors import EnvironmentFault
from ..runtime.version import __version__
from ..study import stats
from ..study.claims import MARGIN, RELATIVE_MARGIN
from ..study.summary import unresolved
from ..tasks.registry import blaming
from . import study as view
from . import training
from .console import duration
from .document import Code, Figure, Fold, Gallery, Items, Section, Sheet, Table, Text
from .figures import heat_map
from .forest import NARROW, WIDE, Difference, forest

MANY = 12  # tables from which on a list of them is folded
SPELLED = {  # of a result
    "params": "parameters",
    "best": "steps with the best validation score",
    "reached": "steps until it was learned",
}
EXAMPLES, MAPS = 3, 8  # whose patterns are shown, and how many of each


# ---- a study


def study_sections(stored, command):
    """A Stored study as Sections; `command` is the one that makes this report."""
    sections = [Section("Summary", _summary(stored))]
    if stored.cells:
        figures = _figures(stored)
        sections += [Section("Figures", figures)] if figures else []
        sections += [Section("Tables", _tables(stored))]
        sections += [Section("What this n cannot tell", _cannot_tell(stored.cells))]
    return [*sections, Section("How it was made", _made(stored, command))]


def _summary(stored):
    n, cells = len(stored.records), stored.cells
    blocks = [Text(text, warning=True) for text in _warnings(stored)]
    seeds = sorted({seed for cell in cells for row in cell.rows for seed in row.by_seed})
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    if n:
        arms = len({row.arm for cell in cells for row in cell.rows if not row.lifted})
        parts = [f"{n:,} run{'s' * (n > 1)}", f"{arms} arm{'s' * (arms > 1)}"]
        parts.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)}")
        blocks.append(Text(f"{', '.join(parts)}. {_joined('Task', tasks)}."))
    if stored.findings:
        view.claims_table(sheet := Sheet(), stored.findings)
        blocks += sheet.blocks
    found = [line for cell in cells if (line := _verdict(cell))]
    if found:
        about = "Arms are called better or worse where the 95 % interval of their difference from "
        about += "the baseline does not contain zero (no correction for multiple comparisons):"
        listed = [Items(found)]
        blocks += [Text(about), *([Fold("All tables", listed)] if len(found) > MANY else listed)]
    return blocks


def _joined(what, names):
    return f"{what}{'s' * (len(names) > 1)}: {', '.join(names)}"


def _warnings(stored):
    """What a reader must know before anything else."""
    if stored.missing:
        yield (
            f"**This study is not finished: {stored.missing:,} of {stored.planned:,} runs are "
            "missing.** Every number below may still change. To continue, repeat its command."
        )
    if not stored.chosen:
        yield "The learning rates are not chosen yet, so there are no tables."
    if stored.damaged:
        n = stored.damaged
        yield f"{n} record{'s' * (n > 1)} could not be read and count{'s' * (n == 1)} as missing."
    if lost := stored.diverged:
        yield f"{len(lost)} of {len(stored.records)} runs diverged; the first: {lost[0]}"
    if len(stored.codes) > 1:
        counts = ", ".join(f"{code} ({n})" for code, n in stored.codes.items())
        yield f"The runs come from several versions of the code: {counts}."


def _verdict(cell):
    """One line on a table: which arms are better or worse than its baseline."""
    groups = {"better": [], "worse": [], "not distinguishable from zero": []}
    for row in (row for row in cell.rows if row.to_baseline and row.to_baseline.n > 1):
        up = (row.to_baseline.mean > 0) == (cell.better == "higher")
        sure = ("better" if up else "worse") if row.to_baseline.clear_of_zero else None
        groups[sure or "not distinguishable from zero"].append(_quoted(row.arm))
    said = [f"{how}: {', '.join(arms)}" for how, arms in groups.items() if arms]
    if not said:
        return ""
    return f"{_name(cell)}, {cell.metric} against {_quoted(cell.baseline)}: {'; '.join(said)}."


def _spoken(title):
    """The title of a table with commas between its parts."""
    return ", ".join(title.split("  "))


def _name(cell):
    """The name of a table in prose."""
    return f"**{_spoken(view.name_of(cell)).replace('*', '')}**"


def _quoted(arm):
    """The name of an arm in prose, where commas within it must not be taken for others."""
    return "`" + arm.replace("`", "'") + "`"


def _figures(stored):
    """Scores against bytes, differences, and how the runs learned, each for two widths."""
    cells, records, made = stored.cells, stored.records, []
    drawn = {
        "figure.svg": ("Score against cache bytes", lambda n: view.figure(cells, n)),
        "": ("Differences from the baseline", None),
        "curves.svg": ("How the runs learned", lambda n: view.curves(cells, records, n)),
    }
    for file, (title, draw) in drawn.items():
        if draw is None:
            made += [Figure(title, *pair) for pair in differences(cells)]
        elif wide := draw(2):
            known = file if (stored.path / file).is_file() else None
            known = known and (stored.path / file).as_posix()
            made.append(Figure(title, wide, draw(1), known))
    return made


def differences(cells):
    """The differences from the baseline as forest plots, one for each metric: pairs of SVG texts,
    for a wide and a narrow page.
    """
    groups = {}
    for cell in cells:
        rows = [_difference(row, cell.relative) for row in cell.rows if row.to_baseline]
        if rows:
            heading = f"{_spoken(view.name_of(cell))}, against {cell.baseline}"
            groups.setdefault((cell.metric, cell.relative), []).append((heading, rows))
    for (metric, relative), found in groups.items():
        label = f"{metric}: the arm {'against' if relative else 'minus'} the baseline"
        label += ", in %" if relative else ""
        margin = 100 * RELATIVE_MARGIN if relative else MARGIN
        means = [abs(row.mean) for _, rows in found for row in rows]
        limit = max(margin, 4 * max(means)) if relative else 1
        title = f"Differences of {metric}, paired by seed"
        yield [forest(title, found, label, margin, limit, width) for width in (WIDE, NARROW)]


def _difference(row, relative):
    estimate, scale = row.to_baseline, 100 if relative else 1
    half = None if math.isnan(estimate.half) else scale * estimate.half
    return Difference(row.arm, scale * estimate.mean, half, view.with_sign(estimate, relative))


def _tables(stored):
    """A table for each task and size, the memory of training, and what the names mean."""
    cells, blocks = stored.cells, []
    for cell in cells:
        view.cell_tables(sheet := Sheet(), cell, "")
        table, *notes = sheet.blocks
        if len(cells) > 1:
            heading = view.name_of(cell)
            table = replace(table, title="Scores") if heading == cell.title else table
            blocks.append(Section(_spoken(heading), [table, *notes]))
        else:
            blocks += sheet.blocks
    sheet = Sheet()
    if any("+temperature" in row.arm for cell in cells for row in cell.rows):
        view.ablation_table(sheet, cells)
    view.memory_table(sheet, cells)
    view.formulas(sheet, cells, stored.itemsize)
    return [*blocks, *sheet.blocks]


def _cannot_tell(cells):
    """How precise the differences are, table by table, and what no number here says."""
    known = [row.to_baseline for cell in cells for row in cell.rows if row.to_baseline]
    lines = [f"{_name(cell)}: {unresolved(cell)}" for cell in cells]
    n = min((estimate.n for estimate in known), default=0)
    said = []
    if n and n < stats.SEEDS:
        said.append(
            f"With {n} seed{'s' * (n > 1)}, an exact sign-flip test cannot give a p below "
            f"{view.number(2 / 2**n)}. Here a claim needs {stats.SEEDS} seeds or more, so the "
            "intervals on this page are descriptions, not tests."
        )
    if len(known) > 1:
        said.append(
            f"There are {len(known)} intervals of differences. If no arm differed from another, by "
            "chance about one in 20 such intervals would still not contain zero."
        )
    said.append(
        "The seeds vary the initial weights and the examples. Other sizes, tasks, training lengths "
        "and learning rates were not varied unless a table lists them, and no interval covers them."
    )
    return [Items(lines), Items(said)]


def _made(stored, command):
    blocks = [Text("The study, and this report:")]
    blocks.append(Code("\n".join(filter(None, (stored.command, command)))))
    rows = {name: str(value) for name, value in stored.versions.items() if value != "{}"}
    if stored.seconds is not None:
        rows["time of the last call"] = duration(stored.seconds)
    if stored.codes:
        rows["code of the runs"] = ", ".join(stored.codes)
    rows["report made by"] = f"minqkv {__version__}"
    columns = [("what", "left"), ("version or value", "left")]
    blocks.append(Table("Versions and machine", columns, [list(row) for row in rows.items()]))
    if recipes := stored.recipes:
        names = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
        rows = [[n, *(str(recipe.get(n, "–")) for recipe in recipes.values())] for n in names]
        columns = [("setting", "left"), *((name, "left") for name in recipes)]
        blocks.append(Table("How the models were trained", columns, rows))
    if stored.left_out:
        blocks += [Text("Left out, because it cannot be built:"), Items(stored.left_out)]
    return blocks


# ---- a run


@dataclass(frozen=True)
class Run:
    """A run folder as `runs.py` reads it: `result` is None where it has not ended, and `model`
    where there is no checkpoint yet.
    """

    config: object
    metrics: list
    result: dict | None
    model: object
    version: str  # of minqkv


def read_run(path, own=None):
    """The Run of a folder; `own` is the class of your own task. Raises EnvironmentFault."""
    config, metrics, result, model = runs.read_run(path, own)
    if result:
        result = {files.printable(name): value for name, value in result.items()}
    version = files.printable(str(files.read_json(path / "config.json").get("version")))
    return Run(config, metrics, result, model, version)


def _is_number(value):
    """Whether it is one that can be drawn; no bool."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 64)


def run_sections(run, commands):
    """A Run as Sections; `commands` make it, and this report."""
    blocks = [Text(text, warning=True) for text in _unfinished(run)]
    if run.result:
        found = {n: v for n, v in run.result.items() if _is_number(v)}
        rows = [[SPELLED.get(n, n).replace("_", " "), f"{v:,.6g}"] for n, v in found.items()]
        title = f"{run.config.task.name} with {run.config.variant}, {run.config.split} split"
        blocks.append(Table(title, [("figure", "left"), ("value", "right")], rows))
    sections = [Section("Summary", blocks)]
    if run.metrics:
        wide, narrow = (training.curves(run.config, run.metrics, n) for n in (2, 1))
        sections.append(Section("How it learned", [Figure("How it learned", wide, narrow)]))
    if run.model:
        sections.append(Section("Who attends to whom", attention(run.model, run.config)))
    return [
        *sections,
        Section("What this n cannot tell", [Text(_one_seed(run.config))]),
        Section("How it was made", [Code("\n".join(commands)), _settings(run)]),
    ]


def _unfinished(run):
    done, steps = len(run.metrics), run.config.recipe.steps
    if run.result is None:
        yield f"**This run is not finished: {steps - done:,} of {steps:,} steps are missing.**"


def _one_seed(config):
    task, variant = shlex.quote(config.task.name), config.variant
    variants = shlex.quote(variant if variant == "qkv" else f"qkv,{variant}")
    return (
        "This is one run: one seed gives no interval, and a single number says nothing about how "
        "much the next seed would differ. To compare variants: "
        f"`minqkv study --tasks {task} --variants {variants} --seeds 5`."
    )


def _settings(run):
    values = {"minqkv": run.version, "report made by minqkv": __version__, **asdict(run.config)}
    task, recipe = values.pop("task"), values.pop("recipe")
    values = {"task": task.pop("name"), **values, **task, **recipe}
    rows = [[name, str(value)] for name, value in values.items() if value is not None]
    return Table("Versions and settings", [("what", "left"), ("value", "left")], rows)


def attention(model, config):
    """The patterns of a trained model on examples of its validation split: the first unfolded."""
    task = config.task
    try:
        with blaming(task.name):
            x, y = task.draw(config.seed, "validation", EXAMPLES)
            found = patterns(model, x)
            answers = [*_answers(task, model, x, y)] if task.answers else [""] * EXAMPLES
    except EnvironmentFault as error:  # without its data, the rest of the report still stands
        return [Text(f"There are no examples to show this on: {error}")]
    if not found:
        return [Text("This model has no attention that can be shown.")]
    maps = [(f"{layer_name(name)}, head {j}", weights[:, j])
            for name, weights in found.items() for j in range(weights.shape[1])]  # fmt: skip
    blocks = [Text(_about(maps, x.shape[1]))]
    for i, answer in enumerate(answers):
        labels = token_labels(task, x[i], maps[0][1].shape[-1])
        drawn = [Figure(name, _map(name, weights[i], labels)) for name, weights in maps[:MAPS]]
        shown = [*([Text(answer)] if answer else []), Gallery(drawn)]
        title = f"Example {i + 1} of the validation split"
        blocks.append(Fold(title, shown, unfolded=not i))
    return blocks


def _about(maps, n):
    """How to read the maps, and what of them is not shown."""
    text = "A row is a query, a column a key. The weights of a whole row add up to 1."
    text += " The scale of each map ends at its largest weight."
    text += f" The first {LONGEST} of {n} tokens are shown." if n > LONGEST else ""
    return text + (f" {MAPS} of {len(maps)} heads are shown." if len(maps) > MAPS else "")


def _answers(task, model, x, y):
    """What was expected of each example, and what the model predicts."""
    for item in task.mistakes(x, y, task.predict(model, x, y)["predictions"]):
        wrong = sum(a != b for a, b in zip(item["expected"], item["predicted"], strict=True))
        shown = [" ".join(map(str, item[n][:LONGEST])) for n in ("expected", "predicted")]
        n = len(item["expected"])
        verdict = f"{wrong} of {n} answers are wrong" if wrong and n > 1 else "wrong"
        verdict = verdict if wrong else "right"
        yield f"Expected `{shown[0]}`, predicted `{shown[1]}`: {verdict}."


def layer_name(name):
    """The name of a layer's attention in words: "blocks.0.attn" is layer 0."""
    return re.sub(r"^blocks\.(\d+)\.attn$", r"layer \1", name)


def _map(name, weights, labels):
    rows = [[None if np.isnan(w) else float(w) for w in row] for row in weights]
    return heat_map(name, [("", rows)], labels[: len(rows)], labels, 1, least_scale=0)


def token_labels(task, row, n):
    """The tokens of an example as text, where it is made of tokens; otherwise their numbers."""
    if row.ndim != 1 or row.dtype.kind not in "iu" or len(row) < n:
        return [str(i) for i in range(n)]
    return [repr(task.decode([int(token)]))[1:-1] or " " for token in row[:n]]
