"""`minqkv diagnose`: what the heads of a trained model do."""

from dataclasses import replace
from pathlib import Path

import click

from ..runtime.errors import UsageError
from ..runtime.shown import counted, pasted
from .evaluate import best_option, loaded
from .options import command_line, computes, echo, print_json
from .report import html_option, made_by
from .run import own_task_option
from .text import read_bytes


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@own_task_option
@click.option("--text", "file", metavar="FILE", help="For language models: look at this text.")
@click.option(
    "--n", type=click.IntRange(1), default=64, show_default=True, help="Look at so many examples."
)
@click.option("--maps", is_flag=True, help="Also draw who attends to whom in the first example.")
@html_option
@best_option
@computes
def diagnose(run, own, file, n, maps, html, best, as_json):
    """Show what each head of a trained model reads, passes on, and attends to.

    Numbers of its weights, and numbers on examples of the validation split. All but one stay the
    same if the weights are rewritten without changing the model. docs/diagnose.md explains them.
    """
    from ..analysis.diagnose import diagnose, first_tokens
    from ..study.summary import environment
    from ..tasks.registry import blaming

    if (run / "config.json").exists() and not (run / "result.json").exists():
        why = f"the run in {run} is unfinished, and only trained models are diagnosed"
        raise UsageError(why, f"minqkv train --resume --out {pasted(run)}")
    model, config = loaded(run, own, best)
    task, split = config.task, "validation"  # the test split is for scores alone
    if getattr(task, "padded", False):  # padding would count as tokens
        task = replace(task, padded=False)
    with blaming(task.name):
        x = task.draw(config.seed, split, n)[0] if file is None else _windows(model, task, file, n)
        x = first_tokens(model, x)
        layers, start = diagnose(model, x), diagnose(config.build().eval(), x)
    where = f"{counted(len(x), 'sequence')} of {counted(x.shape[1], 'token')}"
    where += f" of the {split} split" if file is None else f" of {file}"
    trained = made_by(run, config)
    if as_json:
        made = {"command": command_line(), "trained": trained, "versions": environment()}
        made |= {"task": task.name, "variant": config.variant, "examples": where}
        print_json(made | {"layers": layers, "start": start})
    elif maps or not html:
        _show(model, config, x, (layers, start, where), maps)
    if html:
        _write(model, config, x, (layers, start, where), html, [trained, command_line()])


def _windows(model, task, file, n):
    """The first n windows (n, T) of a text, or the whole of a short one."""
    import numpy as np

    if not task.language:
        why = f"--text is for language models, and this run has learned {task.name}"
        raise UsageError(why, "leave out --text")
    ids = np.array(task.prompt(read_bytes(file).decode(errors="surrogateescape")))  # (tokens,)
    T = min(model.config.block_size, len(ids))
    n = min(n, len(ids) // T)
    return ids[: n * T].reshape(n, T)


def _title(config):
    from ..variants import formula

    return f"{config.task.name} with {config.variant}: {formula(config.variant)}"


def _patterns(model, config, x):
    """(layer -> weights (H, T, T), labels of the tokens) of the first example."""
    from ..analysis.patterns import patterns
    from ..render.report import token_labels

    found = {name: weights[0] for name, weights in patterns(model, x[:1]).items()}
    return found, token_labels(config.task, x[0], next(iter(found.values())).shape[-1])


def _show(model, config, x, numbers, maps):
    import sys

    from ..render.console import stdout
    from ..render.diagnose import blocks, map_lines
    from ..render.document import show
    from ..render.layout import Page

    show(console := stdout(), _title(config), [*blocks(*numbers)])
    if maps:
        found, labels = _patterns(model, config, x)
        page = Page(console.width, sys.stdout.encoding)
        for line in map_lines(found, labels, page):
            click.echo(line)
    else:
        echo("who attends to whom: --maps, or --html FILE")
        echo("what each number means: docs/diagnose.md, or --html FILE")


def _write(model, config, x, numbers, html, commands):
    from ..render.console import say, stderr
    from ..render.diagnose import sections
    from ..render.document import write_html

    patterns = _patterns(model, config, x)
    write_html(html, _title(config), sections(*numbers, *patterns, commands))
    say(stderr(), f"written: {html}")


COMMANDS = (diagnose,)
