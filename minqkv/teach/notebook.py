"""Lessons in a notebook: its cells, run for their outputs, and the check of an exercise."""

import re
import tempfile
from pathlib import Path

from ..render.lesson import Recorder
from ..runtime.files import write_text
from .desk import run
from .events import on, said, stage
from .lessons import course, find
from .training import brief


def performed(lesson):
    """[(step, [(source, whether it only speaks, events) of each code cell])], with brief training.

    The cells run in one namespace, as in a kernel.
    """
    names, steps = {"__name__": "__main__"}, []
    exec(f"from minqkv.teach import {', '.join(lesson.calls)}", names)
    with brief():
        for step in lesson.steps:
            cells = []
            for piece in step.pieces:
                for source, speaks in zip(piece, (False, True), strict=True):
                    if source:
                        cells.append((source, speaks, _events(source, lesson, names)))
            steps.append((step, cells))
    return steps


def _events(source, lesson, names):
    with on(Recorder()) as recorder:
        exec(compile(source, lesson.name, "exec"), names)
    return recorder.drawn


def check(number, cells):
    """Check the exercise of a lesson: the newest of these sources of cells that defines it."""
    lesson = find(number, course())
    name = lesson.exercise[0]
    form = re.compile(rf"^(def|class)\s+{name}\b|^{name}\s*=", re.M)
    answers = [source for source in cells if form.search(source)]
    if not answers:
        stage().draw(said(f"Run the cell that defines {name} first."))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{lesson.name}.py")
        write_text(path, answers[-1])
        _, events = run(lesson, path)
    for event in events:
        if event["event"] == "say":
            event["text"] = event["text"].replace(str(path), "your cell")
        stage().draw(event)
