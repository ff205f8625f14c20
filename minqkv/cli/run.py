"""`minqkv train`: one run."""

import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.shown import counted, decimal, pasted
from ..tasks.rules import TASKS
from ..variants import VARIANTS
from .options import (
    Known,
    computes,
    configurable,
    cores,
    echo,
    either,
    given_settings,
    own_task,
    prepared,
    print_json,
    print_toml,
    settings,
)  # fmt: skip
from .report import html_option, write_page

threads_option = click.option(
    "--threads",
    type=int,
    default=cores,
    envvar="MINQKV_THREADS",
    help="Cores to use.  [default: all]",
)
own_task_option = click.option(
    "--task", "own", metavar="MODULE:CLASS", help="The class of the run's task, if it is your own."
)


@click.command()
@click.option(
    "--task", type=Known(TASKS), help=f"{either(TASKS)}; or MODULE:CLASS, a task of your own."
)
@click.option(
    "--variant",
    type=Known(VARIANTS),
    help=f"{either(VARIANTS)}; or one for each layer: qkv/q-k=v.  [default: qkv]",
)
@settings()
@click.option("--seed", type=int, help="Seed of everything random.  [default: 0]")
@threads_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/<task>-<variant>[-causal]-s<seed>]",
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder, bit for bit.")
@click.option(
    "--distributed",
    type=click.Choice(["mpi"]),
    help="Share each batch among the processes of mpiexec -n N minqkv train …",
)
@html_option
@configurable
@computes
@click.pass_context
def train(ctx, distributed, **flags):
    """Train one model into a run folder.

    The folder holds the configuration, the metrics, the last and the best checkpoint, and
    curves.svg. If the run is killed, `minqkv train --resume --out FOLDER` continues it.
    """
    if not distributed:
        _train(ctx, None, **flags)
        return
    from ..runtime.distributed import ranks

    with ranks() as comm:
        if not comm.rank:
            click.echo("note: if one process dies, all end; continue with --resume", err=True)
        _train(ctx, comm, **flags)


def _train(ctx, comm, task, out, resume, html, as_json, show_config, more, threads, **flags):
    """Train in one process or, with `comm`, in one of several that share each batch. Only rank 0
    uses the folder and the terminal.
    """
    from ..render.training import live, loss_curve, write_curves
    from ..runs import read_metrics, train_run

    given = given_settings(flags, more) | {n: v for n, v in flags.items() if v is not None}
    typed = ctx.get_parameter_source("threads")
    if typed in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP) or not resume:
        given["threads"] = threads
    own_task(task)  # every rank needs the class
    first = comm is None or not comm.rank
    config, out = _config_to_train(task, out, resume, given) if first else (None, None)
    ended = first and (show_config or (resume and (out / "result.json").exists()))
    if first and not ended:
        _announce(config, comm)
    if comm:
        config, ended = comm.bcast((config, ended))
    if not first:
        if not ended:
            train_run(config)
        return
    if show_config and as_json:
        print_json(_flat(config))
        return
    if show_config:
        print_toml(_flat(config))
        _dry_run(config, comm)
        return
    try:
        with live(config) as progress:
            _, result = train_run(config, out, resume, progress)
    except KeyboardInterrupt:
        again = f"minqkv train --resume --out {pasted(out)}"
        again += f" --task {config.task.name}" if ":" in config.task.name else ""
        raise KeyboardInterrupt(f"continue with: {again}") from None
    names = {"task": config.task.name, "variant": config.variant, "seed": config.seed}
    metrics = [] if ended else read_metrics(out)
    if metrics:
        write_curves(out, config, metrics)
    if html:
        write_page([out], html, {config.task.name: type(config.task)})
    if as_json:
        print_json({**names, **result, "out": str(out)})
        return
    if metrics and sys.stdout.isatty():
        click.echo(loss_curve(metrics))
    metric, folder = config.task.metric, pasted(out)
    what = f"{config.task.name} with {config.variant}: {config.split} {metric}"
    after = f"{decimal(result[metric])} after {counted(result['steps'], 'step')}"
    click.echo(f"{what} {after}, kept in {out}")
    if best := result.get("best"):
        score = dict(result["curve"])[best]
        after = f"{decimal(score)}, after {counted(best, 'step')}"
        click.echo(f"best validation {metric} {after}: best.npz")
    if config.task.answers:
        click.echo(f"see its mistakes: minqkv eval {folder} --wrong 5")
    else:
        click.echo(f"let it write: minqkv generate {folder}")


def _announce(config, comm):
    """Print what a run needs. Raises EnvironmentFault if it does not fit into memory."""
    if ":" in config.task.name:
        return  # a user's task may have any model
    from ..analysis.needs import check_memory, run_seconds
    from ..render.training import needs_line

    found = check_memory(config, comm.size if comm else 1)
    seconds = None if comm else run_seconds(config)  # a rank cannot compute a step alone
    click.echo(needs_line(found, seconds), err=True)
    if about := config.task.about_data():
        click.echo(about, err=True)


def _dry_run(config, comm):
    """What a run would need, and whether that fits, as comments below its settings."""
    if ":" in config.task.name:
        return
    from ..analysis.needs import check_memory, needs
    from ..render.training import needs_line

    ranks = comm.size if comm else 1
    echo(f"# {needs_line(needs(config, ranks))}", indent="# ")
    try:
        check_memory(config, ranks)
        echo("# this fits into the memory that is free here")
    except EnvironmentFault as error:
        free = str(error).rpartition("but ")[2]
        echo(f"# this does not fit: {free}; {error.hint}", indent="# ")


def _config_to_train(task, out, resume, given):
    """(RunConfig, folder): of the run to continue, or of a new one."""
    from ..runs import configure, load_config

    own, config = own_task(task), None
    if task:
        given = prepared(task, own, given)
        config = configure(task, own=own, **given)
        out = out or Path("runs") / _folder(config)
    if resume and out and (out / "config.json").exists():
        stored = load_config(out, own)
        given = given if task else prepared(stored.task.name, own, given)
        given |= {"threads": given.get("threads", stored.threads)}
        if task is None or stored.task.name == task:
            config = stored.change(**given)
    elif task is None:
        what = f"there is no run to continue in {out}" if resume and out else "train needs a task"
        raise UsageError(what, "--task reverse, or --resume --out FOLDER for a run started earlier")
    return config, out


def _folder(config):
    form = "-causal" if getattr(config.task, "form", "") == "causal" else ""
    name = f"{config.task.name}-{config.variant}{form}-s{config.seed}"
    return name.replace("/", "_").replace(":", ".")


def _flat(config):
    """The settings of a run, as flags."""
    values = asdict(config)
    task, recipe = values.pop("task"), values.pop("recipe")
    flat = {"task": task.pop("name"), **values, **task, **recipe}
    return {name: value for name, value in flat.items() if value is not None}


COMMANDS = (train,)
