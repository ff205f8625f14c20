"""Consoles for stdout and stderr, tables that never cut a number, and SVG export."""

import io
import os
import re
import shutil
import sys

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..runtime import files

PIPE_WIDTH = 160  # nothing is read at a fixed width there


def stdout(width=None):
    """A console on stdout: the terminal's width, $COLUMNS, or wide enough for any table in a pipe."""
    if width is None:
        known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
        width = shutil.get_terminal_size().columns if known else PIPE_WIDTH
    return Console(
        width=width, height=25, highlight=False, soft_wrap=False
    )  # with a height rich believes the width on TERM=dumb


def stderr():
    """A console on stderr, for progress and messages."""
    return Console(stderr=True, highlight=False)


def say(console, text="", style=None):
    """A paragraph, wrapped; never read as markup, so `q[i]` stays `q[i]`."""
    console.print(Text(text, style=style or ""))


def table(console, title, columns, rows):
    """A table of strings. Too wide for the console, it comes in blocks of columns, each with the
    first one repeated.

    `columns` are (header, "left" or "right"); a cell may be a (text, style) pair.
    """
    cells = [
        [Text(*cell) if isinstance(cell, tuple) else Text(str(cell)) for cell in row]
        for row in rows
    ]
    widths = []
    for i, (header, _) in enumerate(columns):
        lines = header.split("\n") + [row[i].plain for row in cells]
        widths.append(max(cell_len(line) for line in lines))
    if title:
        say(console, title, "bold")
    for block in _blocks(widths, console.width):
        view = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for i in block:
            view.add_column(
                Text(columns[i][0]), justify=columns[i][1], no_wrap=True, min_width=widths[i]
            )
        for row in cells:
            view.add_row(*(row[i] for i in block))
        needed = sum(
            widths[i] + 3 for i in block
        )  # may exceed the console: better wrapped by the terminal than cut
        console.print(view, width=max(console.width, needed), crop=False)
        console.print()


def _blocks(widths, limit, gap=3):
    """Column numbers in groups that fit; column 0 opens each."""
    blocks, used = [], limit + 1
    for i in range(1, len(widths)):
        if used + gap + widths[i] > limit:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += gap + widths[i]
    return blocks


def bytes_text(n):
    """Bytes with a binary unit named: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:,.6g} {unit}"
        n /= 1024
    raise AssertionError("unreachable")


def duration(seconds):
    """Seconds as people say them: 7 s, 1:35 min, 2:05 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    unit, size = ("min", 60) if seconds < 3600 else ("h", 3600)
    return f"{seconds // size}:{seconds % size * 60 // size:02d} {unit}"


def write_svg(path, title, draw, width=100):
    """Run `draw(console)` on a recording console and write what it drew as an SVG that needs no
    network.
    """
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    draw(console)
    svg = console.export_svg(title=title, unique_id="minqkv")
    svg = re.sub(r"@font-face\s*{[^}]*}\s*", "", svg)
    files.write_text(
        path, svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
    )  # some viewers drop leading spaces otherwise
