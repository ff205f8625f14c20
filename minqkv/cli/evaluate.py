"""`minqkv eval`: the score of a run, and its mistakes."""

from pathlib import Path

import click

from ..caches import KINDS
from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.shown import counted, decimal
from ..tasks.rules import SPLITS
from .options import Known, computes, echo, either, own_task, print_json
from .run import own_task_option

ROUNDING = [name for name, kind in KINDS.items() if kind.rounds and not kind.windowed]
best_option = click.option("--best", is_flag=True, help="Use the best checkpoint, not the last.")


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@own_task_option
@click.option(
    "--split", type=Known(SPLITS), default="test", show_default=True, help=f"{either(SPLITS)}."
)
@click.option(
    "--n", type=click.IntRange(1), help="Score this many examples.  [default: the task's own]"
)
@click.option(
    "--wrong", type=click.IntRange(0), default=0, help="Show this many wrong predictions."
)
@click.option(
    "--show-padded", is_flag=True, help="For texts: also show the perplexity that counts padding."
)
@click.option(
    "--cache",
    "kind",
    type=Known(ROUNDING),
    help=f"For decoders: also show the effect of rounding to {either(ROUNDING)}.",
)
@best_option
@computes
def evaluate_run(run, own, split, n, wrong, show_padded, kind, best, as_json):
    """Score a run, and show its mistakes.

    For a text, the score is perplexity, the exponential of the mean loss over its tokens. Bits
    per byte are printed too: they can be compared across tokenizers.
    """
    from ..train import counted_targets

    model, config = loaded(run, own, best)
    task = config.task
    if wrong and not task.answers:
        why = f"the task {task.name} has no answers that are right or wrong"
        raise UsageError(why, "leave out --wrong")
    padded = task.padded_score(model, split) if show_padded else None
    x, y = task.draw(config.seed, split, n or task.n_scored(split))
    score = task.predict(model, x, y)
    predictions = score.pop("predictions")
    further = [name for name in score if name != task.metric]
    score |= {"split": split, "sequences": len(x), "tokens": counted_targets(y)}
    misses = []
    if task.answers:
        items = task.mistakes(x, y, predictions)
        misses = [i for i, item in enumerate(items) if item["expected"] != item["predicted"]]
        score |= {"sequences_wrong": len(misses), "wrong": [items[i] for i in misses[:wrong]]}
    score |= {"padded": padded} if padded else {}
    score |= {"rounding": _rounding(model, kind, x, y)} if kind is not None else {}
    if as_json:
        print_json(score)
        return
    what = f"{task.name} with {config.variant}, {split} split"
    targets = task.unit.removesuffix("s") if y.ndim == 1 else "token"
    metric, n = decimal(score[task.metric]), score["tokens"]
    click.echo(f"{what}: {task.metric} {metric} on {counted(n, targets)}")
    if task.answers:
        verdict = "are wrong" if y.ndim == 1 else "have a mistake"
        click.echo(f"{len(misses):,} of {len(x):,} {task.unit} {verdict}")
    for name in further:
        click.echo(f"{name.replace('_', ' ')} {decimal(score[name])}")
    if padded:
        _show_padded(padded)
    if kind is not None:
        _show_rounding(score["rounding"], kind)
    for i in misses[:wrong]:
        for line in task.picture(x[i]) or ():
            click.echo(f"{'':10}  {line}")
        _show(items[i])


def loaded(run, own, best):
    """The model of a run at its last checkpoint, or its best one, and its configuration."""
    from ..runs import load_run

    if run.is_file():  # `load_run` would take one that mq.save has written
        raise EnvironmentFault(f"{run} is a file", "name the folder of a run")
    if any((run / name).exists() for name in ("plan.json", "results.json")):
        raise UsageError(f"{run} is a study, which keeps scores and no models", "name a run")
    model, config = load_run(run, own_task(own), **({"best": True} if best else {}))
    if not best and not (run / "result.json").exists():
        click.echo("note: this run is unfinished; this is its last checkpoint", err=True)
    return model, config


def _rounding(model, kind, x, y):
    """How a cache of this kind changes logits and perplexity."""
    from ..analysis.quantised import rounding_errors
    from ..caches import options
    from ..models import GPT

    if type(model) is not GPT:
        why = "this model is an encoder, or its attention is linear: it stores no rows"
        raise UsageError(why, "leave out --cache")
    if kind not in ROUNDING:
        why = f"--cache {kind}: only the rounding of {' and '.join(ROUNDING)} can be shown"
        raise UsageError(why, f"--cache {either(ROUNDING)}")
    return rounding_errors(model, x, y, **options(kind))


def _show_rounding(rows, kind):
    from ..render.console import stdout, table

    columns = [("rounded", "left"), ("perplexity", "right"), ("change", "right")]
    columns += [("largest |Δ logit|", "right"), ("mean |Δ logit|", "right")]
    exact, lines = rows[0]["perplexity"], []
    for row in rows:
        change = 100 * (row["perplexity"] / exact - 1)
        lines.append([row["rounded"], f"{row['perplexity']:.5f}", f"{change:+.4f} %"])
        lines[-1] += [f"{row['largest']:.2g}", f"{row['mean']:.2g}"]
    table(stdout(), f"Effect of rounding to {kind}", columns, lines)


def _show_padded(found):
    """Perplexity with and without the padding, and which of them to report."""
    if not found["padding"]:
        why = "No document of this split is shorter than a window, so nothing is padded"
        echo(f"{why}. A text of many short documents has padding: a folder, or a .jsonl file.")
        return
    share = f"{100 * found['padding']:.1f} % of them are padding"
    click.echo("with one document per row:")
    click.echo(f"  perplexity, masked {decimal(found['masked'])}: over the tokens of the documents")
    click.echo(f"  perplexity, padded {decimal(found['padded'])}: over all targets; {share}")
    if found["padded"] < found["masked"]:
        why = "Padding is easy to predict, so counting it makes a model look better. The more "
        why += "padding there is, the better it looks, whatever it knows about text."
    else:
        why = "This model was not trained to predict padding, so counting it makes the score "
        why += "worse. For a model trained on padding, counting it makes the score better."
    echo(f"Report the masked one. {why}")


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


COMMANDS = (evaluate_run,)
