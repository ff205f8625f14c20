"""What a run looks like: before it starts, while it trains, and at its end."""

import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from rich.text import Text

from ..analysis.needs import peak_memory
from ..runtime import files
from ..runtime.shown import decimal, size_text
from ..tasks.registry import blaming
from .console import duration, say, stderr
from .figures import Panel, Series, figure
from .layout import Page, lines
from .progress import progress

PARTS = 40  # of a run: the mean loss of each is a point of its curve
WIDTH = 60  # of the curve in a terminal


def needs_line(needs, seconds=None):
    """What a run needs, in one line."""
    parts = {name: getattr(needs, name) for name in ("weights", "gradients", "moments")}
    parts |= {"activations": needs.activations, "scoring": needs.scoring}
    memory = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())
    text = f"{needs.parameters:,} parameters; training needs about {size_text(needs.total)}"
    return f"{text} ({memory})" + ("" if seconds is None else f" and {duration(seconds)}")


# ---- while it trains


@contextmanager
def live(config):
    """Yields the `progress` of `train_run`. On a terminal: a bar and a line below it. Elsewhere: a
    line for each tenth of the run. Whenever the validation split is scored: a sample of what the
    model writes.
    """
    with ExitStack() as stack:
        yield Live(config, stack)


class Live:
    """Shows each Step of a run on stderr. The bar appears with the first step, because only then
    is it known where a resumed run starts.
    """

    def __init__(self, config, stack):
        self.task, self.seed, self.stack = config.task, config.seed, stack
        self.console, self.began = stderr(), time.monotonic()
        self.start, self.advance, self.score = None, None, None
        self.seconds = 0.0  # of training, without scores and samples

    def __call__(self, step):
        with suppress(OSError):  # of a terminal that was closed: what ends a run is the signal
            self._show(step)

    def _show(self, step):
        if self.advance is None:
            self.start = step.done - 1
            own = self.console if self.console.is_terminal else None
            shown = progress("train", step.steps, self.start, own, True, self.began)
            self.advance = self.stack.enter_context(shown)
        self.seconds += step.seconds
        if step.validation is not None:
            self.score = f"{self.task.metric} {decimal(step.validation)}"
        self.advance(step.done, self._note(step))
        if step.validation is not None:
            self._sample(step)

    def _note(self, step):
        """Loss, validation score, speed and memory: as much as fits the terminal."""
        rate = (step.done - self.start) / max(1e-9, self.seconds)
        parts = [f"loss {decimal(step.loss)}", self.score]
        parts += [f"{step.tokens * rate:,.0f} tokens/s", size_text(peak_memory())]
        text = "  ".join(filter(None, parts))
        while self.console.is_terminal and len(text) > self.console.width and "  " in text:
            text = text.rpartition("  ")[0]
        return text

    def _sample(self, step):
        with blaming(self.task.name):
            text = self.task.sample(step.model, self.seed)
        if text is None:
            return
        if self.console.is_terminal:
            text = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
            say(self.console, f"step {step.done} writes:\n{text}")
        else:  # one line of a log
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
            line = f"    step {step.done} writes: {text}"
            self.console.print(Text(line), soft_wrap=True)


# ---- at its end


def averaged(metrics, parts=PARTS):
    """(last step, mean loss) of each of `parts` parts of a run with these metrics."""
    n, parts = len(metrics), min(parts, len(metrics))
    cuts = [n * i // parts for i in range(parts + 1)]
    losses = [line["loss"] for line in metrics]
    return [(b, sum(losses[a:b]) / (b - a)) for a, b in pairwise(cuts)]


def loss_curve(metrics):
    """The training loss as a picture made of characters, for a terminal."""
    ys = [loss for _, loss in averaged(metrics)]
    title = f"training loss, from step 1 to step {len(metrics)}"
    series = {"series": {"loss": ys}, "log": False, "x": "steps, averaged in parts"}
    page = Page(WIDTH, sys.stdout.encoding or "ascii")
    laid = lines({"event": "curve", "title": title, **series}, page)
    return "\n".join("".join(text for text, _ in line).rstrip() for line in laid)


def curves(config, metrics, columns=2):
    """The training loss of a run and, if it was watched, its score on the validation split: SVG
    text.
    """
    scores = [(i, m["validation"]) for i, m in enumerate(metrics, 1) if "validation" in m]
    losses, panels = averaged(metrics), []
    for name, what, points in (
        ("training", "loss", losses), ("validation", config.task.metric, scores)
    ):  # fmt: skip
        series = Series(name, tuple((*point, None, ()) for point in points))
        panels += [Panel("", "steps", f"{name} {what}", (series,))] if points else []
    title = f"{config.task.name} with {config.variant}, seed {config.seed}"
    caption = f"Training loss: means over {len(losses)} parts of the run."
    return figure(title, panels, columns, caption=caption)


def write_curves(folder, config, metrics):
    """curves.svg in the folder of a run."""
    files.write_text(Path(folder) / "curves.svg", curves(config, metrics))
