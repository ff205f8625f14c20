"""`minqkv train`, `eval` and `generate`: one run at a time."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

from ..runtime.errors import UsageError
from ..tasks.rules import SPLITS, TASKS
from ..variants import VARIANTS
from .options import (
    computes,
    configurable,
    cores,
    either,
    given_settings,
    own_task,
    prepared,
    print_json,
    print_toml,
    settings,
)  # fmt: skip

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
@click.option("--task", help=f"{either(TASKS)}; or MODULE:CLASS, a task of your own.")
@click.option(
    "--variant", help=f"{either(VARIANTS)}; or one for each layer: qkv/q-k=v.  [default: qkv]"
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
@configurable
@computes
@click.pass_context
def train(ctx, distributed, **flags):
    """Train one model into a run folder.

    The folder keeps configuration, metrics and checkpoints. Killed at any moment,
    the run continues with `minqkv train --resume --out FOLDER`.
    """
    if not distributed:
        _train(ctx, None, **flags)
        return
    from ..runtime.distributed import ranks

    with ranks() as comm:
        if not comm.rank:
            click.echo("note: if one process dies, all end; continue with --resume", err=True)
        _train(ctx, comm, **flags)


def _train(ctx, comm, task, out, resume, as_json, show_config, more, threads, **flags):
    """Train in one process or, with `comm`, in one of several that share each batch. Only rank 0
    uses the folder and the terminal.
    """
    from ..render.progress import progress
    from ..runs import train_run

    given = given_settings(flags, more) | {n: v for n, v in flags.items() if v is not None}
    typed = ctx.get_parameter_source("threads")
    if typed in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP) or not resume:
        given["threads"] = threads
    own_task(task)  # every rank needs the class
    first = comm is None or not comm.rank
    config, out = _config_to_train(task, out, resume, given) if first else (None, None)
    ended = first and (show_config or (resume and (out / "result.json").exists()))
    if comm:
        config, ended = comm.bcast((config, ended))
    if not first:
        if not ended:
            train_run(config)
        return
    if show_config:
        print_toml(_flat(config))
        return
    try:
        with progress("train", config.recipe.steps) as advance:
            _, result = train_run(
                config, out, resume, lambda step, steps, loss: advance(step, f"loss {loss:.4f}")
            )
    except KeyboardInterrupt:
        again = shlex.join(["minqkv", "train", "--resume", "--out", str(out)])
        again += f" --task {config.task.name}" if ":" in config.task.name else ""
        raise KeyboardInterrupt(f"continue with: {again}") from None
    names = {"task": config.task.name, "variant": config.variant, "seed": config.seed}
    if as_json:
        print_json({**names, **result, "out": str(out)})
        return
    metric, folder = config.task.metric, shlex.quote(str(out))
    what = f"{config.task.name} with {config.variant}: {config.split} {metric} {result[metric]:.4f}"
    click.echo(f"{what} after {result['steps']} steps, kept in {out}")
    click.echo(f"see its mistakes: minqkv eval {folder} --wrong 5")


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
        what = f"{out} holds no run to continue" if resume and out else "train needs a task"
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


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@own_task_option
@click.option("--split", default="test", show_default=True, help=f"{either(SPLITS)}.")
@click.option("--n", type=click.IntRange(1), help="How many examples.  [default: the task's own]")
@click.option(
    "--wrong", type=click.IntRange(0), default=0, help="Show this many wrong predictions."
)
@computes
def evaluate_run(run, own, split, n, wrong, as_json):
    """Score a run; show where it is wrong."""
    from ..runs import load_run

    model, config = load_run(run, own_task(own))
    if not (run / "result.json").exists():
        click.echo("note: this run is unfinished; its last checkpoint is scored", err=True)
    task = config.task
    x, y = task.draw(config.seed, split, n or task.n_test)
    score = task.predict(model, x, y)
    items = task.mistakes(x, y, score.pop("predictions"))
    further = [name for name in score if name != task.metric]
    misses = [item for item in items if item["expected"] != item["predicted"]]
    score |= {"split": split, "sequences": len(x), "sequences_wrong": len(misses)}
    score |= {"tokens": sum(len(item["expected"]) for item in items)}
    if as_json:
        print_json({**score, "wrong": misses[:wrong]})
        return
    what = f"{task.name} with {config.variant}, {split} split"
    click.echo(f"{what}: {task.metric} {score[task.metric]:.4f} on {score['tokens']:,} tokens")
    click.echo(f"{len(misses):,} of {len(x):,} sequences have a mistake")
    for name in further:
        click.echo(f"{name.replace('_', ' ')} {score[name]:.4f}")
    for item in misses[:wrong]:
        _show(item)


def _show(item):
    """One example, in columns; wrong answers are marked."""
    pairs = zip(item["expected"], item["predicted"], strict=True)
    rows = {**item, "": ["^" if a != b else " " for a, b in pairs]}
    rows = {name: [_id(value) for value in row] for name, row in rows.items()}
    width = max(len(value) for row in rows.values() for value in row)
    for name, row in rows.items():
        text = " ".join(f"{value:>{width}}" for value in row)
        click.echo(f"{name:>10}  {text}".rstrip())


def _id(value):
    """An id as text; ids at the same position are joined by a plus."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1)
@own_task_option
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    help="How many tokens to add.  [default: as many as in training]",
)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy."
)
@click.option("--top-k", type=click.IntRange(1), help="Draw among the k likeliest only.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws."
)
@click.option("--no-cache", is_flag=True, help="Compute the whole prefix again for every token.")
@click.option(
    "--compare",
    is_flag=True,
    help="Decode with and without the cache; print speed and bytes side by side.",
)
@threads_option
@computes
def generate(
    run, prompt, own, max_new_tokens, temperature, top_k, seed, no_cache, compare, threads, as_json
):
    """Let a causal run answer a PROMPT of digits.

    For instance "3 1 4 1"; without one, a prompt per line is read from stdin. The answer to a
    single prompt is printed token by token, as it is computed.
    """
    from ..generation import compare_cache, iter_tokens
    from ..runs import load_run
    from ..runtime.parallel import set_threads

    set_threads(threads)
    model, config = load_run(run, own_task(own))
    task = config.task
    task.prompt("")  # refused, with the reason, where nothing can be generated
    lines = [" ".join(prompt)] if prompt else _lines_of_stdin()
    ids = [task.prompt(line) for line in lines if line.strip()]
    if not ids:
        cure = f'for instance: minqkv generate {shlex.quote(str(run))} "{task.example()}"'
        raise UsageError("the prompt is empty", cure)
    usual = len(task.prompt(task.example()))
    if any(len(row) != usual for row in ids):
        note = f"note: this run was trained on {usual - 1} digits"
        click.echo(f"{note}; it was not trained on other lengths", err=True)
    count = max_new_tokens or task.n_answer
    options = {"temperature": temperature, "top_k": top_k, "seed": seed}
    if compare:
        _compare(compare_cache(model, ids, count, **options), ids, count, as_json)
        return
    tokens = iter_tokens(model, ids, count, use_cache=not no_cache, **options)  # each (B,)
    if len(ids) == 1 and not as_json:
        _stream(task, ids[0], tokens)
        return
    answers = zip(*[token.tolist() for token in tokens], strict=True)  # a row for each prompt
    if as_json:
        pairs = zip(ids, answers, strict=True)
        print_json([{"prompt": row[:-1], "output": answer} for row, answer in pairs])
        return
    for row, answer in zip(ids, answers, strict=True):
        click.echo(f"{task.decode(row)} {task.decode(answer)}")


def _stream(task, ids, tokens):
    """One answer, each token as soon as it is chosen; click.echo flushes."""
    click.echo(task.decode(ids), nl=False)
    try:
        for token in tokens:
            click.echo(f" {task.decode(token.tolist())}", nl=False)
    finally:
        click.echo()


def _lines_of_stdin():
    if sys.stdin is None or sys.stdin.isatty():
        return []
    try:
        return sys.stdin.read().splitlines()
    except UnicodeDecodeError as error:
        raise UsageError("what came in on stdin is not text") from error


def _compare(report, ids, count, as_json):
    if as_json:
        print_json({name: {**part, "ids": part["ids"].tolist()} for name, part in report.items()})
        return
    from ..render.console import bytes_text, stdout, table

    rows = []
    for name, part in report.items():
        speed = [f"{part['seconds'] * 1e3:.1f} ms", f"{part['tokens_per_second']:,.0f}"]
        rows.append([name, *speed, bytes_text(part["cache_bytes"])])
    columns = [("decoding", "left"), ("time", "right"), ("tokens/s", "right"), ("cache", "right")]
    title = f"{len(ids)} prompt{'s' if len(ids) > 1 else ''}, {count} new tokens each"
    table(stdout(), title, columns, rows)
    same = (report["cached"]["ids"] == report["uncached"]["ids"]).all()
    click.echo(
        "both give the same tokens" if same else "the tokens differ: rounding decided a near tie"
    )


COMMANDS = (train, evaluate_run, generate)
