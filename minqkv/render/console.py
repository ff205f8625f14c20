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
from .layout import Page, legible

PIPE_WIDTH = 160  # nothing is read at a fixed width there
GAP = 3  # columns between two columns of a table


def stdout(width=None):
    """A console on stdout: as wide as the terminal or $COLUMNS say; in a pipe, wide enough for any
    table.
    """
    if width is None:
        known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
        width = shutil.get_terminal_size().columns if known else PIPE_WIDTH
    height = 25  # without one, rich does not believe the width on TERM=dumb
    return Console(width=width, height=height, highlight=False, soft_wrap=False)


def stderr():
    """A console on stderr, for progress and messages."""
    return Console(stderr=True, highlight=False)


def say(console, text="", style=None):
    """A paragraph, wrapped; never read as markup, so `q[i]` stays `q[i]`. An object that is not a
    rich console may print it in its own way: see document.Sheet. This also holds for `table`.
    """
    if not isinstance(console, Console):
        console.say(text, style)
        return
    console.print(Text(_clean(text), style=style or ""))


def command(console, text):
    """A command, whose lines only the terminal itself wraps: so it can be copied."""
    console.print(Text(_clean(text)), soft_wrap=True)


def table(console, title, columns, rows):
    """A table of strings. One that is too wide for the console comes in blocks of columns, each of
    which repeats the first column.

    `columns` are (header, "left" or "right"); a cell may be a (text, style) pair.
    """
    if not isinstance(console, Console):
        console.table(title, columns, rows)
        return
    page = Page(encoding=console.encoding)  # what it lacks is spelled out before widths are taken
    cells = [[_text(cell, page) for cell in row] for row in rows]
    columns = [(legible(header, page), side) for header, side in columns]
    widths = []
    for i, (header, _) in enumerate(columns):
        lines = header.split("\n") + [row[i].plain for row in cells]
        widths.append(max(cell_len(line) for line in lines))
    if title:
        say(console, title, "bold")
    for block in _blocks(widths, console.width):
        view = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for i in block:
            header, side = columns[i]
            view.add_column(Text(_clean(header)), justify=side, no_wrap=True, min_width=widths[i])
        for row in cells:
            view.add_row(*(row[i] for i in block))
        needed = sum(widths[i] + GAP for i in block)
        # may be wider than the console: better wrapped by the terminal than cut
        console.print(view, width=max(console.width, needed), crop=False)
        console.print()


def _text(cell, page):
    text, style = cell if isinstance(cell, tuple) else (str(cell), "")
    return Text(_clean(legible(text, page)), style)


def _clean(text):
    """Lines without control characters, whatever file they quote."""
    return "\n".join(map(files.printable, text.split("\n")))


def _blocks(widths, limit):
    """Column numbers in groups that fit; each begins with column 0."""
    blocks, used = [], limit + 1
    for i in range(1, len(widths)):
        if used + GAP + widths[i] > limit:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += GAP + widths[i]
    return blocks


def bytes_text(n, digits=6):
    """Bytes with a binary unit named: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if n < 1024 or unit == "PiB":
            return f"{n:,.{digits}g} {unit}"
        n /= 1024
    raise AssertionError("unreachable")


def duration(seconds):
    """Seconds as people say them: 7 s, 1 min 35 s, 25 min, 2 h 5 min."""
    seconds = round(seconds)
    if seconds >= 600:
        seconds = round(seconds / 60) * 60  # of so many minutes, nobody counts the seconds
    minutes, s = divmod(seconds, 60)
    h, minutes = divmod(minutes, 60)
    parts = [f"{n} {unit}" for n, unit in ((h, "h"), (minutes, "min"), (s, "s")) if n]
    return " ".join(parts) or "0 s"


def write_svg(path, title, draw, width=100):
    """Run `draw(console)` on a recording console and write what it drew as an SVG that needs no
    network.
    """
    screen = {"force_terminal": True, "color_system": "truecolor", "highlight": False}
    console = Console(record=True, width=width, file=io.StringIO(), **screen)
    draw(console)
    svg = console.export_svg(title=title, unique_id="minqkv")
    svg = re.sub(r"@font-face\s*{[^}]*}\s*", "", svg)
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)  # or some drop leading spaces
    files.write_text(path, svg)
