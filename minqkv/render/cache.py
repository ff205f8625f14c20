"""A cache as it grows, drawn in a terminal: its bytes, and those that qkv would take."""

import sys
import time
from dataclasses import replace

import numpy as np
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from ..runtime.shown import counted
from ..variants import cache_bytes_per_token
from .console import bytes_text, say, stderr

LINES = 8  # of the picture of growth
LEAST, MOST = 8, 24  # columns of a bar
FULL, REST = "█", "░"
ERASE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


class Watch:
    """Watches a cache while a model with this configuration writes, and draws it on stderr.
    `n_read` is the number of tokens in the prompts.

    If stderr is a terminal, a line there shows the current size after each token. There is no such
    line if stdout is a terminal too, because it would tear apart the text being written.
    """

    def __init__(self, cache, config, n_read):
        self.cache, self.config, self.n_read = cache, config, n_read
        self.per_token = cache_bytes_per_token(
            replace(config, variant="qkv", plus_start=None), np.dtype(config.dtype).itemsize
        )
        console = stderr()
        self.line = console if console.is_terminal and not sys.stdout.isatty() else None
        self.seconds, self.growth = [], []  # of each step; (positions, bytes) after it

    def follow(self, tokens):
        """The same tokens, timed. The time of the first includes reading the prompts. What the
        caller does between two tokens does not count.
        """
        while True:
            began = time.perf_counter()
            token = next(tokens, None)
            if token is None:
                return
            self.seconds.append(time.perf_counter() - began)
            self.growth.append((int(self.cache.lengths.sum()), self.cache.nbytes))
            if self.line and len(self.growth) > 1:  # the first is shown by `show_prompts`
                self._draw_line(*self.growth[-1])
            yield token

    def _draw_line(self, n, held):
        """Draw the current size over the previous one."""
        qkv, most = n * self.per_token, self.cache.batch * self.cache.capacity * self.per_token
        now = f"{counted(n, 'token')}  {_bar(held, qkv, most, MOST)}  {bytes_text(held)}"
        text = Text(f"{now}, qkv {bytes_text(qkv)}", no_wrap=True, overflow="ellipsis")
        self.line.control(ERASE)
        self.line.print(text, end="", width=self.line.width - 1)

    def show_prompts(self):
        """The cache after the prompts, before the first new token is printed."""
        console = stderr()
        self._say_speed(console, "read", self.n_read, self.seconds[:1])
        self._show_layers(console)
        console.print()

    def show_all(self):
        """Speed, growth, layers and bytes so far."""
        console = stderr()
        if self.line:
            console.control(ERASE)
        console.print()
        self._say_speed(console, "read", self.n_read, self.seconds[:1])
        n_written = self.cache.batch * (len(self.seconds) - 1)
        self._say_speed(console, "written", n_written, self.seconds[1:])
        self._show_growth(console)
        self._show_layers(console)
        self._say_bytes(console)

    def _say_speed(self, console, what, n, seconds):
        took = sum(seconds)
        if took:
            speed = f"{n / took:,.0f} tokens/s"
            tokens = "token" if n == 1 else "tokens"
            say(console, f"{n:,} {tokens} {what} in {1e3 * took:,.1f} ms, {speed}")

    def _show_growth(self, console):
        """One line for each of some lengths: a bar of this cache's bytes, within those of qkv."""
        say(console, "growth", "bold")
        last = len(self.growth) - 1
        picked = sorted({round(i) for i in np.linspace(0, last, LINES)})
        rows = []
        for n, held in (self.growth[i] for i in picked):
            qkv = n * self.per_token
            rows.append((f"{n:,}", (held, qkv), bytes_text(held), bytes_text(qkv)))
        names = ("tokens", None, "this cache", "qkv")
        _lines(console, names, rows, self.growth[-1][0] * self.per_token)

    def _show_layers(self, console):
        say(console, "by layer", "bold")
        cache, rows = self.cache, []
        layers = zip(cache.layers, cache.stored, self.config.specs, strict=True)
        for i, (layer, stored, spec) in enumerate(layers):
            used = int(layer.slots.sum())
            slots = layer.capacity_nbytes // cache.bytes_per_token(stored, cache.dtype)
            held = bytes_text(layer.nbytes)
            rows.append((str(i + 1), spec.name, (used, slots), f"{used:,} of {slots:,}", held))
        _lines(console, ("layer", "variant", None, "used", "bytes"), rows, slots)

    def _say_bytes(self, console):
        cache = self.cache
        n, held, formula = int(cache.lengths.sum()), cache.nbytes, formula_bytes(cache)
        qkv = n * self.per_token
        same = "as the formula says" if formula == held else f"formula: {bytes_text(formula)}"
        say(console, f"now {bytes_text(held)} for {counted(n, 'token')}, {same}")
        say(console, f"qkv with the same heads, in {self.config.dtype}: {bytes_text(qkv)}")
        saved = 100 * (1 - held / qkv)
        say(console, f"saved {saved:.1f} %; allocated {bytes_text(cache.capacity_nbytes)}")


def formula_bytes(cache):
    """Bytes that the cache should hold: used slots · bytes per token, over layers and sequences."""
    total = 0
    for layer, stored in zip(cache.layers, cache.stored, strict=True):
        total += int(layer.slots.sum()) * cache.bytes_per_token(stored, cache.dtype)
    return total


def _lines(console, names, rows, most):
    """Columns of text, aligned to the right. A cell under the name None is (part, whole), drawn as
    a bar; a whole of `most` fills the column.
    """
    cells = [[cell if name else "" for name, cell in zip(names, row, strict=True)] for row in rows]
    texts = [[name or "" for name in names], *cells]
    widths = [max(len(row[i]) for row in texts) for i in range(len(names))]
    bar = names.index(None)
    widths[bar] = min(MOST, max(LEAST, console.width - sum(widths) - 2 * (len(names) - 1)))
    for text, row in zip(texts, [None, *rows], strict=True):
        if row:
            text[bar] = _bar(*row[bar], most, widths[bar])
        shown = [
            cell.ljust(width) if i == bar or name == "variant" else cell.rjust(width)
            for i, (name, cell, width) in enumerate(zip(names, text, widths, strict=True))
        ]
        line = Text("  ".join(shown).rstrip())
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


def _bar(part, whole, most, width):
    """A bar: the part full, the rest of the whole light, where `most` is `width` columns."""
    full, all_of_it = (round(width * n / most) for n in (part, whole))
    return FULL * full + REST * (all_of_it - full)
