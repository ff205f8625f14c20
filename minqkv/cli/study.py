"""`minqkv study`."""

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from ..runtime.errors import EnvironmentFault, Exit, UsageError
from ..runtime.shown import counted
from ..tasks.rules import TASKS
from ..variants import VARIANTS
from .options import (
    SIZE,
    Known,
    Listed,
    command_line,
    computes,
    configurable,
    cores,
    echo,
    either,
    given_settings,
    look_here,
    own_task,
    print_json,
    print_toml,
    settings,
)  # fmt: skip
from .report import html_option, write_page

PRESETS = {  # name -> what it compares; the grids are in study/presets.py
    "quick": "recall at equal bytes, and sort",
    "recall": "accuracy against bytes, about 15 minutes",
    "recall-full": "the study of docs/recall.md, about two hours",
    "nano": "language models on tiny Shakespeare: docs/language-models.md, about two hours",
    "positions": "whether distances help Q = K: docs/positions.md, about 40 minutes",
    "designs": "rows of models that ship, at equal bytes: docs/designs.md, about 45 minutes",
    "mnist": "the paper's projections on MNIST (its folder: --data), about an hour",
    "cifar10": "the same on CIFAR-10, about an hour",
    "sets": "the same, finding the odd one out in a set, about 20 minutes",
    "dense": "the same, labelling the patches of generated shapes, about 20 minutes",
    "quick-2026": "two of the paper's tasks, ten variants, the default of version 0.1.0",
    "paper": "the paper's whole synthetic grid, about 70 hours",
}


@click.command()
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="quick",
    show_default=True,
    help="; ".join(f"{name}: {about}" for name, about in PRESETS.items())
    + ". Times are of two recent cores; --dry-run estimates yours.",
)
@click.option(
    "--tasks", type=Listed(Known(TASKS)), help=f"Tasks, from: {either(TASKS)}; or MODULE:CLASS."
)
@click.option(
    "--variants",
    type=Listed(Known(VARIANTS)),
    help=f"Variants, from: {either(VARIANTS)}; or by layer: qkv/q-k=v.",
)
@click.option(
    "--seeds", type=Listed(int, counts=True), help="How many (3 means 0,1,2), or which (0,5,7)."
)
@settings(listed=True)
@click.option(
    "--equal-bytes",
    type=Listed(SIZE),
    help="Choose each head's width so that a token takes this many cache bytes per layer.",
)
@click.option(
    "--equal-params",
    type=Listed(int),
    help="Choose each head's width for about this many parameters.",
)
@click.option(
    "--selection-seeds",
    type=click.IntRange(1),
    help="How many seeds, from 100 on, are used to choose among several --lr.  [default: 3]",
)
@click.option(
    "--ablate",
    type=click.Choice(["plus"]),
    help='Instead of variants, compare the two parts of "+", and a masked diagonal.',
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="How many runs in parallel, one core each.  [default: all cores]",
)
@click.option(
    "--executor",
    metavar="WHERE",
    help="Run on dask://HOST:PORT, mpi, or MODULE:FACTORY instead of in local processes.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of records and results.  [default: runs/study-<preset>]",
)
@click.option(
    "--accept-code", is_flag=True, help="Also use results recorded by other versions of the code."
)
@click.option("--dry-run", is_flag=True, help="Print what would run and what it would cost.")
@html_option
@configurable
@computes
def study(
    preset, ablate, jobs, executor, out, accept_code, dry_run, html, as_json, show_config, more,
    selection_seeds, **flags
):  # fmt: skip
    """Compare variants on tasks over seeds, in tables and figures.

    Each finished run is kept under --out: after an interruption, repeat the command to continue.
    """
    from ..render.console import say, stderr
    from ..study.claims import CONTRASTS
    from ..study.grid import short_hash
    from ..study.stored import write_plan

    if executor and ":" in executor:
        look_here()
    given = given_settings(flags, more, listed=True)
    flags["selection_seeds"] = selection_seeds
    given |= {name: value for name, value in flags.items() if value is not None}
    plan = _plan(preset, ablate, given)
    if show_config and as_json:
        print_json({"preset": preset, **given})
        return None
    if show_config:
        print_toml({"preset": preset, **given})
        _dry_run(plan, "", "# ")
        return None
    name = "plus" if ablate else preset
    out = out or Path("runs") / f"study-{name}{f'-{short_hash(given)}' if given else ''}"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a folder", "choose another folder with --out")
    jobs = min(jobs or cores(), len(plan.candidates) + len(plan.configs))
    changed = bool(given) and preset in CONTRASTS
    about = (executor, accept_code, changed, dry_run and as_json)
    missing, jobs, seconds, line = _outlook(plan, out, jobs, *about)
    if dry_run:
        if not as_json:
            _dry_run(plan, line)
        return None
    data = dict.fromkeys(filter(None, (config.task.about_data() for config in plan.configs)))
    for text in (line, *data, *(f"left out: {reason}" for reason in plan.impossible)):
        say(stderr(), text)
    began = time.perf_counter()
    try:
        with _reserved(plan, out, missing) as writable:
            if writable:
                write_plan(out, plan, command_line())
            records, selection = _run(plan, missing, seconds, out, jobs, executor, accept_code)
            wall = time.perf_counter() - began
            planned = None if given else preset
            kept = out if writable else None
            code = _report(plan, records, selection, wall, kept, planned, ablate, as_json)
            if html:
                write_page([out], html, plan.own)
            return code
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished runs are kept in {out}: repeat the command to continue"
        ) from None


@contextmanager
def _reserved(plan, out, missing):
    """The folder of the study, for this process alone; whether it can be written to. It need not
    be where no run is missing.
    """
    from ..render.console import say, stderr
    from ..study.execute import study_folder

    with ExitStack() as stack:
        try:
            stack.enter_context(study_folder(out, plan.identity))
            writable = True
        except EnvironmentFault as error:
            if missing or not isinstance(error.__cause__, OSError):
                raise
            say(stderr(), f"nothing is written: {error}")
            writable = False
        yield writable


def _plan(preset, ablate, given):
    """The Plan of a preset, with some of its lists replaced."""
    from ..render.progress import patient
    from ..study.grid import ablation, blocks
    from ..study.plan import Part, Plan, plan

    own = {name: own_task(name) for name in given.get("tasks", ()) if ":" in name}
    if not ablate:
        with patient("prepare the data", 100) as advance:
            return plan(blocks(preset, given, own), own, advance)
    if given.keys() & {"variants", "lr"}:
        why = "--ablate plus chooses the variants itself, and trains all at one rate"
        raise click.UsageError(f"{why}; leave out --variants and --lr")
    chosen = blocks("quick-2026" if preset == "quick" else preset, given, own)
    return Plan([Part(ablation(**{**block, "variants": None})) for block in chosen])


def _outlook(plan, out, jobs, executor, accept_code, changed_contrasts, as_json):
    """(runs to do, processes for them, how long they will take, a line that says so); with
    `as_json`, printed. Raises EnvironmentFault if a run does not fit into memory.
    """
    from ..analysis.needs import jobs_that_fit
    from ..render.console import duration, say, stderr
    from ..study.execute import Records, estimate_seconds, own_classes

    plan.recall(Records(out, own_classes(plan.configs)), accept_code)
    wanted = [*plan.candidates, *plan.configs]
    missing, others = _missing(wanted, out, accept_code)
    room = None if executor else jobs_that_fit(missing)
    jobs = min(jobs, room or jobs)
    seconds = estimate_seconds(missing, jobs) if missing else 0
    n = len(wanted)
    if as_json:
        counts = {"runs": n, "recorded": n - len(missing), "other_code": others}
        print_json({**counts, "seconds": seconds, "jobs": jobs, "out": str(out)})
        return missing, jobs, seconds, ""
    line = f"{counted(n, 'run')}, {n - len(missing)} of them on record in {out}"
    where = f"{jobs} process{'es' if jobs > 1 else ''}"
    where += f" like this one ({executor} may be faster)" if executor else ""
    where += f" (the GPU's memory has room for {room})" if room else ""
    line += f"; about {duration(seconds)} on {where}"
    if changed_contrasts:
        say(stderr(), "this study differs from its preset, so its planned contrasts are left out")
    return missing, jobs, seconds, line


def _report(plan, records, selection, wall, out, planned, ablate, as_json):
    """Tables on stdout, files in the folder, unless `out` is None; the exit code. `planned` is the
    preset if it runs unchanged: only then are its contrasts the planned ones.
    """
    from ..render import study as view
    from ..render.console import say, stderr, stdout
    from ..study.claims import CONTRASTS, as_data, findings
    from ..study.summary import as_results, unresolved

    cells = plan.cells(records)
    claims = findings(CONTRASTS.get(planned, ()), cells)
    about = (command_line(), wall, cells, selection, plan.impossible)
    results = as_results(records, *about, plan.own) | {"contrasts": as_data(claims)}
    notes = [unresolved(cell) for cell in cells]
    by_hash = {config.hash: r for config, r in zip(plan.configs, records, strict=True)}

    def draw(console):
        view.study(console, cells, notes, results["cache_itemsize"], claims, bool(ablate))

    kept = _keep(out, results, draw, cells, by_hash) if out else None
    if as_json:
        print_json(results)
    else:
        draw(stdout())
    if kept:
        say(stderr(), f"kept in {out}: {', '.join(kept)}")
    diverged = [record["diverged"] for record in records if record["diverged"]]
    if diverged:
        n = len(records)
        say(stderr(), f"{len(diverged)} of {n} runs diverged; the first: {diverged[0]}")
        return Exit.DIVERGED
    return None


def _keep(out, results, draw, cells, by_hash):
    """Write the results, the tables and the figures of a study; the names of the files."""
    from ..render import study as view
    from ..render.console import write_svg
    from ..runtime.files import write_text
    from ..study.summary import write_results

    write_results(out, results)
    write_svg(out / "table.svg", "minqkv study", draw, width=150)
    drawn = {"figure.svg": view.figure(cells), "figure-narrow.svg": view.figure(cells, columns=1)}
    drawn["curves.svg"] = view.curves(cells, by_hash)
    figures = {file: text for file, text in drawn.items() if text}  # none where all runs diverged
    for file, text in figures.items():
        write_text(out / file, text)
    return ["results.json", "results.csv", "table.svg", *figures]


def _missing(configs, out, accept_code):
    """(runs to do, records of other code by version); one line on stderr where there are such."""
    from ..render.console import say, stderr
    from ..study.execute import Records, own_classes

    stored = Records(out, own_classes(configs))
    missing = [config for config in configs if stored.of(config) is None]
    others = stored.of_other_code(configs)
    if others:
        unknown = [config for config in missing if stored.of(config, accept_code=True) is None]
        found = f"{len(missing) - len(unknown)} of the {len(configs)} runs are on record"
        use = "they are used here" if accept_code else "--accept-code uses them"
        say(stderr(), f"{found} from other code ({', '.join(others)}); {use}")
        missing = unknown if accept_code else missing
    return missing, others


def _dry_run(plan, line, mark=""):
    """What would run, part by part."""
    from ..study.grid import arm, mixing_widths

    if line:
        echo(line, indent=2)
    mixing = mixing_widths(plan.configs)
    for part in plan.parts:
        arms = [arm(c, bool(part.equal), c.task.name in mixing) for c in part.configs]
        arms = [name.replace(" ", "\u00a0") for name in arms]
        values = {"task": [c.task.name for c in part.configs], "variant": arms}
        values["seed"] = [c.seed for c in part.configs]
        prepared = dict.fromkeys(name for c in part.configs for name in c.task.one_each)
        for name in (*prepared, "patch", "seq_len", "n_embd", "n_layer", "n_head"):
            values[name] = [getattr(c.task, name) for c in part.configs if hasattr(c.task, name)]
        values["steps"] = [c.recipe.steps for c in part.configs]
        rates = "one lr" if part.one_rate else "lr"
        values[rates] = part.rates or [c.recipe.lr for c in part.configs]
        for name, found in values.items():
            if found:
                text = ", ".join(map(str, dict.fromkeys(found)))
                echo(f"{mark}  {name:8} {text}", indent=11 if not mark else mark + " " * 11)
    for reason in plan.impossible:
        echo(f"{mark}  left out: {reason}", indent=11 if not mark else mark + " " * 11)


def _run(plan, missing, seconds, out, jobs, executor, accept_code):
    """Run the plan, with a bar on stderr, and a line for each arm once it is complete."""
    from ..render.console import duration, say, stderr
    from ..render.progress import creeping, progress
    from ..render.study import number
    from ..study.execute import run_study

    console, began = stderr(), time.monotonic()
    total = len(plan.candidates) + len(plan.configs)
    cells, done, fresh, label = {}, 0, 0, _labels([*plan.candidates, *plan.configs])
    each = max(0.1, seconds * jobs / max(1, len(missing)))

    with (
        progress("study", total, start=total - len(missing), console=console) as advance,
        creeping(advance, lambda: done, jobs, each),
    ):

        def on_record(config, record, reused):
            nonlocal done, fresh
            done, fresh = done + 1, fresh + (not reused)
            score = record["score"] and number(record["score"][record["metric"]])
            cell = cells[label(config)]
            cell[config.seed] = score or "diverged"
            if not reused:
                advance(done)
            if None not in cell.values() and not reused:
                left = (time.monotonic() - began) / fresh * (total - done)
                values = " ".join(cell.values()) if len(cell) <= 5 else f"{len(cell)} seeds"
                left = "" if console.is_terminal else f", {duration(left)} left"  # the bar shows it
                say(console, f"{label(config)}  {values}  {done}/{total}{left}")

        def execute(configs):
            for config in configs:
                cells.setdefault(label(config), {})[config.seed] = None
            return run_study(configs, out, jobs, on_record, accept_code, executor)

        return plan.run(execute)


def _labels(configs):
    """A function that names the cell of a run: the task, its size where there are several, the arm,
    the rate where rates are chosen, and what else differs.
    """
    from ..study.grid import OF_AN_ARM, apart, arm, cell

    titles, alike = {}, {}
    for c in configs:
        titles.setdefault(c.task.name, set()).add((c.task.title(OF_AN_ARM), c.recipe.steps))

    def short(c):
        several = len(titles[c.task.name]) > 1
        sized = f"{c.task.title(OF_AN_ARM)}  {counted(c.recipe.steps, 'step')}"
        task = sized if several else c.task.name
        rate = f"lr {c.recipe.lr:g}" if c.split == "validation" else ""
        return "  ".join(filter(None, (task, arm(c, True), rate)))

    for c in configs:
        alike.setdefault(short(c), []).append(cell(c, True))
    return lambda c: "  ".join([short(c), *apart(cell(c, True), alike[short(c)])])


COMMANDS = (study,)
