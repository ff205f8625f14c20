"""The stages on which a lesson is played: rich, plain, or kept for --json. Each takes events, and
may ask a question.
"""

import shutil
import sys

from .layout import Page, lines

_COLOURS = {  # a style's name in the layout -> what rich makes of it
    "": "",
    "title": "bold cyan",
    "strong": "bold",
    "code": "cyan",
    "note": "dim",
    "ask": "bold magenta",
    "good": "green",
    "bad": "red",
    "heat0": "",
    "heat1": "blue",
    "heat2": "cyan",
    "heat3": "yellow",
    "heat4": "bold red",
}


class Plain:
    """Text without a single escape code. `drawn` keeps the events, for --svg."""

    def __init__(self, out=None, width=None, interactive=False):
        self.out, self.width, self.interactive = out or sys.stdout, width, interactive
        self.drawn, self.rows = [], None  # rows since the last pause; None: without pauses

    @property
    def page(self):
        """What there is to draw on now: a terminal may be resized between two steps."""
        width = self.width or shutil.get_terminal_size((100, 25)).columns
        return Page(width, self.out.encoding or "ascii")

    def draw(self, event):
        """Show one event."""
        self.drawn.append(event)
        laid, room = lines(event, self.page), max(2, shutil.get_terminal_size().lines - 2)
        if self.rows and self.rows + len(laid) > room:
            self.pause()
        for line in laid:
            if self.rows is not None and self.rows >= room:
                self.pause()
            self.put(line)
            self.rows = None if self.rows is None else self.rows + 1
        self.out.flush()

    def pause(self):
        """Wait until the learner has read what the screen holds."""
        while (reply := self.ask("[Enter] more, [?] keys: ")) and self.key(reply):
            pass

    def put(self, line):
        """Write one line of (text, style)."""
        print("".join(text for text, _ in line).rstrip(), file=self.out)

    def ask(self, prompt):
        """A line from the learner; None where nobody can answer. At the end of input: EOFError."""
        if not self.interactive:
            return None
        self.rows = self.rows and 0
        return input(prompt).strip()

    def key(self, reply):
        """Do what a key asks for; whether it was one. A Player has keys."""


class Rich(Plain):
    """The same lines, in colour where the terminal has any. Nothing is read as markup."""

    def __init__(self, console, interactive=False):
        super().__init__(console.file, None, interactive)
        self.console = console

    def put(self, line):
        from rich.text import Text

        text = Text.assemble(*((text, _COLOURS[style]) for text, style in line))
        self.console.print(text, soft_wrap=True)


class Recorder:
    """Draws nothing and keeps everything: for --json, for running ahead, and for tests."""

    def __init__(self):
        self.drawn = []

    def draw(self, event):
        """Keep one event."""
        self.drawn.append(event)

    def ask(self, prompt):
        """Nobody answers."""

    def key(self, reply):
        """Nobody has keys."""


def choose(plain=False, as_json=False, pause=True):
    """The stage for this stdout. It asks only if stdin and stdout are terminals, and `pause`."""
    interactive = pause and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if as_json:
        return Recorder()
    if plain or not sys.stdout.isatty():
        return Plain(interactive=interactive)
    from .console import stdout

    return Rich(stdout(), interactive)


def export(path, title, events, width=88):
    """What was on the screen, as an SVG."""
    from .console import write_svg

    def draw(console):
        stage = Rich(console)
        stage.width, stage.out = width, _Utf8()
        for event in events:
            stage.draw(event)

    write_svg(path, title, draw, width)


class _Utf8:
    encoding = "utf-8"

    def flush(self):
        """Nothing waits."""
