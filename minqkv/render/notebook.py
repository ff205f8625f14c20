"""A lesson as a Jupyter notebook (nbformat 4.5), and how its events are shown there.

Outputs hold only what Jupyter keeps of a notebook that it does not trust yet: no style sheet, no
inline SVG. Each has plain text beside the HTML.
"""

import base64
import json
import re
import sys

from .drawn import Events
from .layout import Page, lines, paragraphs, parts
from .lesson import Recorder
from .page import joined, tag

_MARK = re.compile(r"([\\`*<>\[\]$~|]|(?<!\w)_|_(?!\w))")  # what Markdown would take for its own
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class _Shown(Events):
    """Events in an output."""

    def figure(self, drawing, caption):
        """The drawing as an image, which may bring its own style."""
        data = base64.b64encode(drawing.encode()).decode()
        width = re.search(r'viewBox="0 0 (\d+)', drawing)[1]
        image = tag("img", src=f"data:image/svg+xml;base64,{data}", alt=caption, width=width)
        return tag("figure", image, tag("figcaption", caption))


def output(events):
    """What a cell shows: MIME type -> text."""
    page = Page(width=88)
    rows = [line for event in events for line in lines(event, page)]
    plain = ["".join(text for text, _ in row).rstrip() for row in rows]
    return {
        "text/html": joined(*_Shown().told(events), between="\n"),
        "text/plain": "\n".join(plain).strip("\n"),
    }


class Kernel(Recorder):
    """The stage inside a Jupyter kernel: at the end of a cell, it shows the events of the cell."""

    def __init__(self, shell):
        super().__init__()
        self.shell = shell
        shell.events.register("post_run_cell", self._end)

    def _end(self, result):
        if self.drawn:
            self.shell.display_pub.publish(output(self.drawn))
            self.drawn = []


def kernel():
    """The stage of the Jupyter kernel that this process is; None where it is none."""
    ipython = sys.modules.get("IPython")  # there already, in a kernel
    shell = ipython and ipython.get_ipython()
    return Kernel(shell) if hasattr(shell, "kernel") else None


# ---- the file


def notebook(chapter, chapters, played, version):
    """The text of the file. `played` is a list of (step, [(source, whether it only speaks, events)
    of each of its cells]).
    """
    made = _Notebook(chapter, chapters)
    lesson, beside = chapter.lesson, made.beside()
    cells = [_prose("title", made.top(version)), _code("setup", _setup(lesson))]
    for number, (step, ran) in enumerate(played, 1):
        title = f"## {number}. {step.title}"
        cells.append(_prose(f"step-{number}", f"{title}\n\n{made.text(step.prose)}".strip()))
        for i, (source, speaks, events) in enumerate(ran, 1):
            cells.append(_code(f"step-{number}-{i}", source, speaks, events))
    check = f"from minqkv.teach.notebook import check\n\ncheck({lesson.number}, In)"
    stub = re.sub(r'\A""".*?"""\n+', "", chapter.stub, flags=re.S)  # speaks of the terminal
    cells += [_prose("exercise", made.exercise()), _code("answer", stub), _code("check", check)]
    cells += [_prose("help", made.help()), _prose("next", beside)]
    made = {"cells": cells, "metadata": {"kernelspec": KERNEL, "language_info": {"name": "python"}}}
    made |= {"nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _prose(name, text):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _code(name, source, hidden=False, events=()):
    """A code cell; the source of a hidden one is folded up, in Jupyter and in Jupyter Book."""
    looks = {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]} if hidden else {}
    shown = {"output_type": "display_data", "metadata": {}}
    outputs = [shown | {"data": output(events)}] if events else []
    fixed = {"cell_type": "code", "id": name, "execution_count": None}
    return fixed | {"metadata": looks, "source": source.strip("\n"), "outputs": outputs}


def _setup(lesson):
    return (
        "# If this fails, the kernel lacks minqkv: see above.\n"
        f"from minqkv.teach import {', '.join(lesson.calls)}"
    )


class _Notebook:
    """Its texts, as Markdown."""

    def __init__(self, chapter, chapters):
        self.chapter, self.chapters = chapter, chapters
        self.files = {other.lesson.number: f"{other.lesson.name}.ipynb" for other in chapters}
        self.taught = {topic: o.lesson.number for o in chapters for topic in o.lesson.teaches}

    def top(self, version):
        """Title, question, and what is needed."""
        lesson = self.chapter.lesson
        needed = [
            f"[{topic}]({self.files[self.taught[topic]]})" if topic in self.taught else topic
            for topic in lesson.needs
        ]
        about = f"About {lesson.minutes} minutes." + " You need: " * bool(needed)
        made = [
            f"# {self.chapter.title}",
            self.beside(),
            f"**{self.line(lesson.question)}**",
            f"{about}{', '.join(needed)}{'.' * bool(needed)}",
            "Run the cells from top to bottom. Guess before you open an answer. Where a cell is "
            "only a bar or three dots, its code prints what you see below it; click to read it.",
            f"**To run it** you need a Python kernel, 3.11 or newer, with minqkv {version}: in a "
            "copy of minqkv's repository, `pip install . ipykernel`, then choose that Python as "
            "the kernel (it is usually called *Python 3 (ipykernel)*).",
        ]
        if steps := self.chapter.brief:
            made.append(
                f"The outputs in this file are of a model trained for only {steps} steps, which "
                "has hardly learned anything. When you run the notebook, it trains for a few "
                "minutes, and keeps the model in `minqkv-work` beside it."
            )
        return "\n\n".join(made)

    def beside(self):
        """Links to the lessons before and after."""
        at, found = self.chapters.index(self.chapter), []
        if at:
            found.append(("← {}", self.chapters[at - 1]))
        if at + 1 < len(self.chapters):
            found.append(("{} →", self.chapters[at + 1]))
        links = [
            f"[{label.format(to.title)}]({self.files[to.lesson.number]})" for label, to in found
        ]
        return " · ".join(links)

    def exercise(self):
        """What to do in the next two cells."""
        names = " and ".join(f"`{name}`" for name in self.chapter.lesson.exercise)
        return (
            f"## Exercise\n\nWrite {names} in the next cell and run it. Then run the cell below "
            "it: your code is checked on random cases, and common mistakes are explained."
        )

    def help(self):
        """Hints and the solution, folded up."""
        chapter, count = self.chapter, len(self.chapter.hints)
        hints = [_fold(f"Hint {i} of {count}", self.text(hint))
                 for i, hint in enumerate(chapter.hints, 1)]  # fmt: skip
        solution = f"```python\n{chapter.solution.strip()}\n```\n\n{self.text(chapter.explanation)}"
        return "\n\n".join([*hints, _fold("The solution", solution)])

    def text(self, text):
        """Prose of a lesson."""
        made = []
        for group in paragraphs(text):
            rows = []
            for kind, words in group:
                if kind == "formula":
                    rows.append(f"```text\n{words}\n```")
                elif kind == "item":
                    rows.append("- " + self.line(words.removeprefix("- ")))
                else:
                    rows.append(self.line(words))
            made.append("\n".join(rows))
        return "\n\n".join(made)

    def line(self, text):
        """A paragraph. Only `code` and **strong** are marked; "lesson 05" is a link."""
        made = []
        for part, style in parts(text):
            plain = part if style == "code" else _MARK.sub(r"\\\1", part)
            made.append(f"**{plain}**" if style == "strong" else plain)
            if not style:
                made[-1] = re.sub(r"[Ll]esson (\d+)", self._link, plain)
        return "".join(made)

    def _link(self, found):
        number = int(found[1])
        linked = number in self.files and number != self.chapter.lesson.number
        return f"[{found[0]}]({self.files[number]})" if linked else found[0]


def _fold(summary, text):
    """A fold-out whose content is Markdown."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
