"""`minqkv study`."""

import time
from pathlib import Path

import click

from ..runtime.errors import Exit, UsageError
from ..tasks.rules import FORMS, RULES, YEARS
from ..variants import VARIANTS
from .options import Listed, command_line, computes, cores, echo, either, print_json

_GRID = ("tasks", "variants", "seeds", "seq_len", "n_embd", "n_layer", "n_head", "protocol", "form")


@click.command()
@click.option(
    "--preset",
    type=click.Choice(["quick", "paper"]),
    default="quick",
    show_default=True,
    help=f"quick: 2 tasks, {len(VARIANTS)} variants, 3 seeds, one size. paper: the full 2026 grid.",
)
@click.option("--tasks", type=Listed(), help=f"Tasks, from: {either(RULES)}.")
@click.option("--variants", type=Listed(), help=f"Variants, from: {either(VARIANTS)}.")
@click.option(
    "--seeds", type=Listed(int, counts=True), help="How many (3 means 0,1,2), or which (0,5,7)."
)
@click.option("--seq-len", type=Listed(int), help="Lengths T, for example 16,64.")
@click.option("--n-embd", type=Listed(int), help="Widths d, for example 32,64.")
@click.option("--n-layer", type=Listed(int), help="Numbers of layers L, for example 2,4.")
@click.option("--n-head", type=Listed(int), help="Numbers of heads H, for example 2,4.")
@click.option(
    "--protocol",
    type=click.Choice(YEARS),
    help="Which paper's data, blocks and optimiser.",
)
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Tagging encoder, or `input | output` decoder.",
)
@click.option(
    "--steps", type=click.IntRange(1), help="Training steps instead of the protocol's epochs."
)
@click.option(
    "--ablate",
    type=click.Choice(["plus"]),
    help='Instead of variants: the halves of "+", and a masked diagonal.',
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="How many runs in parallel, one core each.  [default: all cores]",
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
@computes
def study(preset, ablate, jobs, out, accept_code, dry_run, as_json, steps, **flags):
    """Compare variants on tasks over seeds, in tables and a picture.

    Each finished run is kept under --out: the same command continues where it was interrupted.
    """
    from ..render import study as view
    from ..render.console import duration, say, stderr, stdout, write_svg
    from ..study.execute import estimate_seconds
    from ..study.grid import PRESETS, ablation, fitting, grid
    from ..study.summary import as_results, summarise, unresolved, write_results

    given = {name: flags[name] for name in _GRID if flags[name]}
    dims = {**PRESETS[preset], **given}
    other = {} if steps is None else {"steps": steps}
    if ablate:
        if "variants" in given:
            raise click.UsageError(
                "--ablate plus chooses the variants itself; leave --variants out"
            )
        dims.pop("variants")
        configs = ablation(**dims, **other)
    else:
        if "variants" not in given:  # the preset's own: not all of them fit any number of heads
            dims["variants"] = fitting(dims["variants"], dims["n_head"])
        configs = grid(**dims, **other)
    jobs = min(jobs or cores(), len(configs))
    custom = bool(given) or steps is not None
    out = out or Path("runs") / ("study-" + ("plus" if ablate else "custom" if custom else preset))

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a folder", "choose another folder with --out")
    messages = stderr()
    missing, others = _missing(configs, out, accept_code)
    seconds = estimate_seconds(missing, jobs) if missing else 0
    plan = f"{len(configs)} runs, {len(configs) - len(missing)} of them on record in {out}"
    plan += f"; about {duration(seconds)} on {jobs} process{'es' if jobs > 1 else ''}"
    if dry_run:
        if as_json:
            counts = {"runs": len(configs), "recorded": len(configs) - len(missing)}
            counts |= {"other_code": others, "seconds": seconds, "jobs": jobs}
            print_json({**counts, "out": str(out)})
        else:
            _dry_run(configs, plan)
        return None
    say(messages, plan)

    began = time.perf_counter()
    try:
        records = _run_with_progress(configs, missing, out, jobs, accept_code)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished runs are kept in {out}: repeat the command to continue"
        ) from None
    results = as_results(records, command_line(), time.perf_counter() - began)
    cells = summarise(records)
    notes = [unresolved(cell) for cell in cells]

    def draw(console):
        view.study(
            console, cells, notes, results["cache_itemsize"], results["solved_from"], bool(ablate)
        )

    write_results(out, results)
    write_svg(out / "table.svg", "minqkv study", draw, width=150)
    write_svg(
        out / "picture.svg",
        "what each variant buys",
        lambda c: [view.picture(c, cell) for cell in cells],
        width=72,
    )
    if as_json:
        print_json(results)
    else:
        draw(stdout())
    say(messages, f"kept in {out}: results.json, results.csv, table.svg, picture.svg")
    diverged = [record["diverged"] for record in records if record["diverged"]]
    if diverged:
        say(messages, f"{len(diverged)} of {len(records)} runs diverged; the first: {diverged[0]}")
        return Exit.DIVERGED
    return None


def _missing(configs, out, accept_code):
    """(runs to do, records of other code by version); one line on stderr where there are such."""
    from ..render.console import say, stderr
    from ..study.execute import other_code, recorded

    missing = [config for config in configs if recorded(config, out) is None]
    others = other_code(configs, out)
    if others:
        unknown = [config for config in missing if recorded(config, out, accept_code=True) is None]
        found = f"{len(missing) - len(unknown)} of the {len(configs)} runs are on record"
        use = "they are used here" if accept_code else "--accept-code uses them"
        say(stderr(), f"{found} from other code ({', '.join(others)}); {use}")
        missing = unknown if accept_code else missing
    return missing, others


def _dry_run(configs, plan):
    from ..study.grid import arm

    echo(plan, indent=2)
    arms = [arm(config).replace(" ", "\u00a0") for config in configs]
    values = {"task": [config.task for config in configs], "variant": arms}
    for name in ("seed", "seq_len", "n_embd", "n_layer", "n_head"):
        values[name] = [getattr(config, name) for config in configs]
    for name, found in values.items():
        echo(f"  {name:8} {', '.join(map(str, dict.fromkeys(found)))}", indent=11)


def _run_with_progress(configs, missing, out, jobs, accept_code):
    """run_study with a bar on stderr, and a line for each cell (all seeds of a variant on a task)
    as it is complete.
    """
    from ..render.console import duration, say, stderr
    from ..render.progress import progress
    from ..render.study import number
    from ..study.execute import run_study

    console, began = stderr(), time.monotonic()
    cells, done, fresh = {}, 0, 0
    for config in configs:
        cells.setdefault(_cell(config), {})[config.seed] = None

    with progress(
        "study", len(configs), start=len(configs) - len(missing), console=console
    ) as advance:

        def on_record(config, record, reused):
            nonlocal done, fresh
            done, fresh = done + 1, fresh + (not reused)
            cell = cells[_cell(config)]
            cell[config.seed] = (
                "diverged" if record["accuracy"] is None else number(record["accuracy"])
            )
            if not reused:
                advance(done)
            if None not in cell.values() and not reused:
                left = (time.monotonic() - began) / fresh * (len(configs) - done)
                what = "  ".join(str(part) for part in _cell(config))
                values = " ".join(cell.values()) if len(cell) <= 5 else f"{len(cell)} seeds"
                say(console, f"{what}  {values}  {done}/{len(configs)}, {duration(left)} left")

        return run_study(configs, out, jobs, on_record, accept_code=accept_code)


def _cell(c):
    from ..study.grid import arm

    return c.task, arm(c), f"T{c.seq_len} d{c.n_embd} L{c.n_layer} H{c.n_head}"


COMMANDS = (study,)
