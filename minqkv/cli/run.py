"""`minqkv train`, `eval` and `generate`: one run at a time."""

import math
import sys
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import click
from click.core import ParameterSource

from ..runtime.errors import UsageError
from ..tasks.rules import FORMS, RULES, SPLITS, YEARS
from ..variants import POSITIONS, ROPE_VALUES, VARIANTS
from .options import computes, cores, either, print_json

_PI = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8)  # digits for an example

threads_option = click.option(
    "--threads",
    type=int,
    default=cores,
    envvar="MINQKV_THREADS",
    help="Cores to use.  [default: all]",
)


@click.command()
@click.option("--task", help=f"{either(RULES)}.")
@click.option("--variant", default="qkv", show_default=True, help=f"{either(VARIANTS)}.")
@click.option(
    "--form",
    default="encoder",
    show_default=True,
    help=f"{either(FORMS)}: label each digit, or continue `input | output`.",
)
@click.option(
    "--protocol",
    default="2026",
    show_default=True,
    help=f"{either(YEARS)}: data, blocks, optimiser.",
)
@click.option("--seq-len", type=int, default=16, show_default=True, help="Length T.")
@click.option(
    "--alphabet", type=int, default=10, show_default=True, help="How many digits there are."
)
@click.option("--n-layer", type=int, default=2, show_default=True, help="Number of layers L.")
@click.option("--n-head", type=int, default=4, show_default=True, help="Number of heads H.")
@click.option("--n-embd", type=int, default=64, show_default=True, help="Width d.")
@click.option("--position", help=f"{either(POSITIONS)}.  [default: the protocol's]")
@click.option(
    "--rope-value",
    default="raw",
    show_default=True,
    help=f"What K = V stores under rope: {either(ROPE_VALUES)}.",
)
@click.option(
    "--plus-start", type=float, help='Initial temperature of "+".  [default: random, near 0]'
)
@click.option("--hide-self", is_flag=True, help="Mask the diagonal of the scores (encoder).")
@click.option("--steps", type=int, help="Training steps.  [default: the protocol's epochs]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: the protocol's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@threads_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/<task>-<variant>[-causal]-s<seed>]",
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder, bit for bit.")
@computes
@click.pass_context
def train(ctx, out, resume, as_json, **flags):
    """Train one model into a run folder.

    The folder keeps configuration, metrics and checkpoints. Killed at any moment,
    the run continues with `minqkv train --resume --out FOLDER`.
    """
    from ..render.progress import progress
    from ..runs import RunConfig, load_config, train_run

    if out is None and flags["task"]:
        config = RunConfig(**flags).resolved()
        form = "" if config.form == "encoder" else f"-{config.form}"
        out = Path("runs") / f"{config.task}-{config.variant}{form}-s{config.seed}"
    if resume and out and (out / "config.json").exists():
        given = {
            name: value
            for name, value in flags.items()
            if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
        }
        config = replace(load_config(out), **given).resolved()
    elif flags["task"] is None:
        what = f"{out} holds no run to continue" if resume and out else "train needs a task"
        raise UsageError(what, "--task reverse, or --resume --out FOLDER for a run begun earlier")
    else:
        config = RunConfig(**flags).resolved()
    try:
        with progress("train", config.steps) as advance:
            _, result = train_run(
                config, out, resume, lambda step, steps, loss: advance(step, f"loss {loss:.4f}")
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"continue with: minqkv train --resume --out {out}") from None
    names = {"task": config.task, "variant": config.variant, "seed": config.seed}
    if as_json:
        print_json({**names, **result, "out": str(out)})
    else:
        what = f"{config.task} with {config.variant}: test accuracy {result['accuracy']:.4f}"
        click.echo(f"{what} after {result['steps']} steps, kept in {out}")
        click.echo(f"see its mistakes: minqkv eval {out} --wrong 5")


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help=f"{either(SPLITS)}.")
@click.option("--n", type=click.IntRange(1), help="Sequences.  [default: the protocol's test size]")
@click.option(
    "--wrong", type=click.IntRange(0), default=0, help="Show this many wrong predictions."
)
@computes
def evaluate_run(run, split, n, wrong, as_json):
    """Score a run; show where it is wrong."""
    from ..runs import load_run
    from ..train import IGNORE, evaluate

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
            text = " ".join(f"{value:>{width}}" for value in row)
            click.echo(f"{name:>10}  {text}".rstrip())


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1)
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
    run, prompt, max_new_tokens, temperature, top_k, seed, no_cache, compare, threads, as_json
):
    """Let a causal run answer a PROMPT of digits.

    For instance "3 1 4 1"; without one, a prompt per line is read from stdin. The answer to a
    single prompt is printed token by token, as it is computed.
    """
    from ..generation import compare_cache, iter_tokens
    from ..runs import load_run
    from ..runtime.parallel import set_threads

    set_threads(threads)
    model, config = load_run(run)
    if config.form != "causal":
        cure = f"minqkv train --task {config.task} --variant {config.variant} --form causal"
        cure += f"; for this one: minqkv eval {run}"
        raise UsageError(f"{run} is an encoder: it labels tokens and generates nothing", cure)
    lines = [" ".join(prompt)] if prompt else _lines_of_stdin()
    prompts = [_digits(line, config.alphabet) for line in lines if line.strip()]
    if not prompts:
        digits = _text(d % config.alphabet for d in islice(cycle(_PI), config.seq_len))
        raise UsageError("the prompt is empty", f'for instance: minqkv generate {run} "{digits}"')
    if any(len(row) != config.seq_len for row in prompts):
        note = f"note: this run was trained on {config.seq_len} digits"
        click.echo(f"{note}; it was not trained on other lengths", err=True)
    ids = [[*row, config.alphabet] for row in prompts]  # the separator asks for the answer
    count = max_new_tokens or config.seq_len
    options = {"temperature": temperature, "top_k": top_k, "seed": seed}
    if compare:
        _compare(compare_cache(model, ids, count, **options), ids, count, as_json)
        return
    tokens = iter_tokens(model, ids, count, use_cache=not no_cache, **options)  # each (B,)
    if len(prompts) == 1 and not as_json:
        _stream(prompts[0], tokens, config.alphabet)
        return
    answers = zip(*[token.tolist() for token in tokens], strict=True)  # a row for each prompt
    if as_json:
        print_json([{"prompt": p, "output": a} for p, a in zip(prompts, answers, strict=True)])
        return
    for row, answer in zip(prompts, answers, strict=True):
        click.echo(f"{_text(row)} | {_text(answer, config.alphabet)}")


def _stream(prompt, tokens, separator):
    """One answer, each token as soon as it is chosen; click.echo flushes."""
    click.echo(f"{_text(prompt)} |", nl=False)
    try:
        for token in tokens:
            click.echo(f" {_text([int(token[0])], separator)}", nl=False)
    finally:
        click.echo()


def _text(tokens, separator=None):
    """Digits, and the separator as "|"."""
    return " ".join("|" if token == separator else str(token) for token in tokens)


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
