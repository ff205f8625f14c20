"""Options and parameter types that several commands share."""

import json
import os
import shlex
import shutil
import sys
import textwrap

import click


class Listed(click.ParamType):
    """A comma-separated list: `16,64`. A lone number with `counts` means that many, from 0."""

    name = "list"

    def __init__(self, kind=str, counts=False):
        self.kind, self.counts = kind, counts

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            parts = tuple(self.kind(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of {self.kind.__name__}s, such as 1,2", param, ctx)
        if not parts:
            self.fail("the list is empty", param, ctx)
        if self.counts and "," not in value:
            if parts[0] < 1:
                self.fail(f"{value} of them would be none", param, ctx)
            return tuple(range(parts[0]))
        return parts


def _use_backend(ctx, param, value):
    if not ctx.resilient_parsing:
        from ..runtime.backend import set_backend, tame_allocator

        tame_allocator()
        if value:
            set_backend(value)


def computes(command):
    """--backend and --traceback, for commands that compute; the allocator is tamed for them."""
    command = click.option(
        "--backend",
        envvar="MINQKV_BACKEND",
        metavar="NAME",
        callback=_use_backend,
        expose_value=False,
        help="numpy, or cupy for a GPU.  [default: $MINQKV_BACKEND or numpy]",
    )(command)
    return reports(command)


def reports(command):
    """--json and --traceback, for every command that reports something."""
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON value instead of text."
    )(command)
    return click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        help="On an error, also print the Python traceback.",
    )(command)


def stages(command):
    """--plain and --svg, for commands that show arrays."""
    command = click.option(
        "--svg", type=click.Path(dir_okay=False), help="Also save the output as an SVG file."
    )(command)
    return click.option("--plain", is_flag=True, help="No colour.")(command)


def either(names):
    """ "raw or unrotate", "a, b or c": registered names, for a help text."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def echo(text, indent=0):
    """Print a text, wrapped to the terminal; its further lines are indented. It is not broken at a
    no-break space, which is printed as a plain one.
    """
    width, further = shutil.get_terminal_size((100, 25)).columns, " " * indent
    filled = textwrap.fill(text, width, subsequent_indent=further, break_on_hyphens=False)
    click.echo(filled.replace("\u00a0", " "))


def print_json(value):
    """One JSON value on stdout."""
    click.echo(
        json.dumps(value, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf"), indent=1)
    )


def cores():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_line():
    """The command as typed, for results files."""
    return "minqkv " + shlex.join(sys.argv[1:])
