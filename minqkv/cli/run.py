"""`minqkv train`, `eval` and `generate`: one run at a time."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from ..runtime.errors import UsageError
from .options import computes, cores, print_json


@click.command()
@click.option("--task", help="reverse, sort, sub, swap or copy.")
@click.option("--variant", default="qkv", show_default=True, help="`minqkv variants` lists them.")
@click.option(
    "--form",
    default="encoder",
    show_default=True,
    help="encoder, or causal: a decoder on `input | output`.",
)
@click.option(
    "--protocol", default="2026", show_default=True, help="2023 or 2026: data, blocks, optimiser."
)
@click.option("--seq-len", type=int, default=16, show_default=True, help="Length T.")
@click.option(
    "--alphabet", type=int, default=10, show_default=True, help="How many digits there are."
)
@click.option("--n-layer", type=int, default=2, show_default=True)
@click.option("--n-head", type=int, default=4, show_default=True)
@click.option("--n-embd", type=int, default=64, show_default=True)
@click.option("--position", help="learned, sinusoidal, none or rope.  [default: the protocol's]")
@click.option(
    "--rope-value",
    default="raw",
    show_default=True,
    help="What K = V stores under rope; unrotate is cheaper to read.",
)
@click.option(
    "--plus-start", type=float, help='Initial temperature of "+".  [default: random, near 0]'
)
@click.option("--hide-self", is_flag=True, help="Mask the diagonal of the scores (encoder).")
@click.option("--steps", type=int, help="[default: the protocol's epochs]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: the protocol's]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--threads",
    type=int,
    default=cores,
    envvar="MINQKV_THREADS",
    help="Cores a batch is spread over.  [default: all]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/<task>-<variant>-s<seed>]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, bit for bit.")
@computes
@click.pass_context
def train(ctx, out, resume, as_json, **flags):
    """Train one model into a run folder.

    The folder keeps configuration, metrics and checkpoints. Killed at any moment,
    the run goes on with `minqkv train --resume --out FOLDER`.
    """
    from ..render.progress import progress
    from ..runs import RunConfig, load_config, train_run

    given = {
        name: value
        for name, value in flags.items()
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    if out is None and flags["task"]:
        config = RunConfig(**flags).resolved()
        out = Path("runs") / f"{config.task}-{config.variant}-s{config.seed}"
    if resume and out and (out / "config.json").exists():
        config = replace(
            load_config(out), **{name: value for name, value in given.items() if value is not None}
        )
    elif flags["task"] is None:
        what = f"{out} holds no run to go on with" if resume and out else "train needs a task"
        raise UsageError(what, "--task reverse, or --resume --out FOLDER for a run begun earlier")
    else:
        config = RunConfig(**flags)
    config = config.resolved()
    try:
        with progress("train", config.steps) as advance:
            _, result = train_run(
                config, out, resume, lambda step, steps, loss: advance(step, f"loss {loss:.4f}")
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: minqkv train --resume --out {out}") from None
    result = {
        "task": config.task,
        "variant": config.variant,
        "seed": config.seed,
        **result,
        "out": str(out),
    }
    if as_json:
        print_json(result)
    else:
        what = f"{config.task} with {config.variant}: test accuracy {result['accuracy']:.4f} after {result['steps']} steps"
        click.echo(f"{what}, kept in {out}")
        click.echo(f"see its mistakes: minqkv eval {out} --wrong 5")


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--n", type=click.IntRange(1), help="Sequences.  [default: the protocol's test size]")
@click.option(
    "--wrong", type=click.IntRange(0), default=0, help="Show this many wrong predictions."
)
@computes
def evaluate_run(run, split, n, wrong, as_json):
    """Score a run; show where it is wrong."""
    from ..runs import load_run
    from ..tasks.synthetic import IGNORE
    from ..train import evaluate

    model, config = load_run(run)
    if not (run / "result.json").exists():
        click.echo("note: this run is unfinished; its last checkpoint is scored", err=True)
    x, y = config.data.draw(config.seed, split, n or config.recipe.n_test)
    score = evaluate(model, x, y)
    predicted, asked = score.pop("predictions"), y != IGNORE
    misses = [i for i in range(len(x)) if (predicted[i] != y[i])[asked[i]].any()]
    score |= {
        "split": split,
        "sequences": len(x),
        "sequences_wrong": len(misses),
        "tokens": int(asked.sum()),
    }
    if config.form == "causal":
        score["masked_perplexity"] = math.exp(score["loss"])
    shown = []
    for i in misses[:wrong]:
        rows = {
            "input": x[i][: config.seq_len],
            "expected": y[i][asked[i]],
            "predicted": predicted[i][asked[i]],
        }
        shown.append({name: row.tolist() for name, row in rows.items()})
    if as_json:
        print_json({**score, "wrong": shown})
        return
    what = f"{config.task} with {config.variant}, {split} split"
    click.echo(f"{what}: token accuracy {score['accuracy']:.4f} on {score['tokens']:,} tokens")
    click.echo(f"{len(misses):,} of {len(x):,} sequences have a mistake")
    if "masked_perplexity" in score:
        click.echo(f"perplexity over the answers alone {score['masked_perplexity']:.4f}")
    for item in shown:
        marks = [
            "^" if a != b else " " for a, b in zip(item["expected"], item["predicted"], strict=True)
        ]
        width = len(str(config.alphabet - 1))
        for name, row in {**item, "": marks}.items():
            click.echo(f"{name:>10}  {' '.join(f'{v:>{width}}' for v in row)}".rstrip())


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    help="[default: the length the model was trained on]",
)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy."
)
@click.option("--top-k", type=click.IntRange(1), help="Draw among the k likeliest only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--no-cache", is_flag=True, help="Compute the whole prefix again for every token.")
@click.option(
    "--compare",
    is_flag=True,
    help="Decode with and without the cache; print speed and bytes side by side.",
)
@click.option(
    "--threads",
    type=int,
    default=cores,
    envvar="MINQKV_THREADS",
    help="Cores a large model uses.  [default: all]",
)
@computes
def generate(
    run, prompt, max_new_tokens, temperature, top_k, seed, no_cache, compare, threads, as_json
):
    """Let a causal run answer a PROMPT of digits.

    For instance "3 1 4 1"; without one, a prompt per line is read from stdin.
    """
    from ..generation import compare_cache
    from ..generation import generate as decode
    from ..runs import load_run
    from ..runtime.parallel import set_threads

    set_threads(threads)
    model, config = load_run(run)
    if config.form != "causal":
        cure = f"minqkv train --task {config.task} --variant {config.variant} --form causal; for this one: minqkv eval {run}"
        raise UsageError(f"{run} is an encoder: it labels tokens and generates nothing", cure)
    lines = [" ".join(prompt)] if prompt else _lines_of_stdin()
    prompts = [_digits(line, config.alphabet) for line in lines if line.strip()]
    if not prompts:
        raise UsageError("the prompt is empty", f'for instance: minqkv generate {run} "3 1 4 1 5"')
    if any(len(row) != config.seq_len for row in prompts):
        click.echo(
            f"note: this run was trained on {config.seq_len} digits; on other lengths it has learned nothing",
            err=True,
        )
    ids = [[*row, config.alphabet] for row in prompts]  # the separator asks for the answer
    count, options = (
        max_new_tokens or config.seq_len,
        {"temperature": temperature, "top_k": top_k, "seed": seed},
    )
    if compare:
        _compare(compare_cache(model, ids, count, **options), ids, count, as_json)
        return
    out = decode(model, ids, count, use_cache=not no_cache, **options)
    answers = [
        {"prompt": row, "output": found[len(row) + 1 :].tolist()}
        for row, found in zip(prompts, out, strict=True)
    ]
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        click.echo(
            f"{' '.join(map(str, answer['prompt']))} | {' '.join(map(str, answer['output']))}"
        )


def _lines_of_stdin():
    if sys.stdin is None or sys.stdin.isatty():
        return []
    try:
        return sys.stdin.read().splitlines()
    except UnicodeDecodeError as error:
        raise UsageError("what came in on stdin is not text") from error


def _digits(line, alphabet):
    """ "3 1 4", "3,1,4" or (with at most ten digits) "314" -> [3, 1, 4]."""
    parts = line.replace(",", " ").split()
    if len(parts) == 1 and alphabet <= 10:
        parts = list(parts[0])
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        raise UsageError(
            f"the prompt {line!r} is not made of digits", 'separate numbers by spaces: "3 1 4 1 5"'
        ) from None
    if any(not 0 <= number < alphabet for number in numbers):
        raise UsageError(f"the prompt {line!r} has digits outside 0..{alphabet - 1}")
    return numbers


def _compare(report, ids, count, as_json):
    if as_json:
        print_json({name: {**part, "ids": part["ids"].tolist()} for name, part in report.items()})
        return
    from ..render.console import bytes_text, stdout, table

    rows = [[name, f"{part['seconds'] * 1e3:.1f} ms", f"{part['tokens_per_second']:,.0f}", bytes_text(part["cache_bytes"])]
            for name, part in report.items()]  # fmt: skip
    columns = [("decoding", "left"), ("time", "right"), ("tokens/s", "right"), ("cache", "right")]
    console = stdout()
    table(
        console,
        f"{len(ids)} prompt{'s' if len(ids) > 1 else ''}, {count} new tokens each",
        columns,
        rows,
    )
    same = (report["cached"]["ids"] == report["uncached"]["ids"]).all()
    click.echo(
        "both give the same tokens" if same else "the tokens differ: rounding decided a near tie"
    )


COMMANDS = (train, evaluate_run, generate)
