"""Lessons as files: found by name, their metadata read, cut into steps. Order comes from the
numbers in the names.
"""

import ast
import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..runtime.errors import EnvironmentFault, MinqkvError, unknown

FILES = ("exercise", "solution", "near_misses", "check")
EVENTS = (
    "say",
    "show",
    "heat",
    "table",
    "curve",
    "predict",
    "compare",
    "memory",
    "cache_step",
    "source",
)
FIELDS = {
    "title": str, "question": str, "needs": list, "teaches": list, "minutes": int, "budget_s": (int, float), "exercise": list,
    "uses": list,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Prose, then a code cell that is shown and run. Either may be empty; `line` is where the code
    starts in the file.
    """

    title: str
    prose: str
    code: str
    line: int

    @property
    def shown(self):
        """The code without what only speaks: calls of the event functions, and their import."""
        rows = self.code.split("\n")
        for node in ast.parse(self.code).body:
            call = node.value if isinstance(node, ast.Expr) else None
            speaks = (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id in EVENTS
            )
            if speaks or (isinstance(node, ast.ImportFrom) and node.module == "minqkv.teach"):
                rows[node.lineno - 1 : node.end_lineno] = [None] * (
                    node.end_lineno - node.lineno + 1
                )
        return re.sub(r"\n{3,}", "\n\n", "\n".join(row for row in rows if row is not None)).strip(
            "\n"
        )


@dataclass(frozen=True)
class Lesson:
    """One lesson: `name` is 06_attention_by_hand, the rest its metadata."""

    path: Path
    title: str
    question: str
    needs: list
    teaches: list
    minutes: int
    budget_s: float
    exercise: list
    uses: list

    @property
    def name(self):
        """The name of its folder."""
        return self.path.parent.name

    @property
    def number(self):
        """Its place in the course."""
        return int(self.name[:2])

    @cached_property
    def text(self):
        """The file."""
        return self.path.read_text("utf-8")

    @cached_property
    def steps(self):
        """The lesson, cut at its code cells."""
        return _steps(self.text)

    def companion(self, kind):
        """The file beside it: exercise, solution, near_misses or check."""
        return self.path.with_name(f"{kind}.py")


def root():
    """The folder of the lessons: inside an installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_lessons", package.parent / "lessons"):
        if any(folder.glob("[0-9][0-9]_*/lesson.py")):
            return folder
    raise EnvironmentFault("the lessons are missing from this installation", "install minqkv again")


def course(folder=None):
    """All lessons, in order."""
    return [read(path) for path in sorted((folder or root()).glob("[0-9][0-9]_*/lesson.py"))]


def find(name, lessons):
    """A lesson by number (6, 06) or name (attention_by_hand, 06_attention_by_hand). Raises
    UsageError with near matches.
    """
    text = str(name).lower().removesuffix(".py").replace("-", "_")
    for lesson in lessons:
        if text in (lesson.name, lesson.name[3:]) or (
            text.isdecimal() and int(text) == lesson.number
        ):
            return lesson
    known = (
        [str(lesson.number) for lesson in lessons]
        if text.isdigit()
        else [lesson.name[3:] for lesson in lessons]
    )
    raise unknown("lesson", name, known)


def fingerprint(lesson):
    """A hash of what was passed: the check and the stub."""
    digest = hashlib.sha256()
    for folder in ("checks", "exercises"):
        digest.update(
            lesson.companion(folder).read_text("utf-8").encode()
        )  # the same with either kind of line end
    return digest.hexdigest()[:16]


def read(path):
    """A lesson's metadata. Raises MinqkvError naming the file and what is wrong."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", path.read_text("utf-8"), re.M)
    try:
        text = "".join(
            row.removeprefix("#").removeprefix(" ") + "\n" for row in block[1].splitlines()
        )
        fields = tomllib.loads(text)["tool"]["minqkv"]["lesson"]
    except (TypeError, KeyError, tomllib.TOMLDecodeError) as error:
        raise MinqkvError(
            f"{path.name}: no [tool.minqkv.lesson] in a `# /// script` block ({error})"
        ) from error
    if isinstance(fields.get("exercise"), str):
        fields["exercise"] = [fields["exercise"]]
    faults = [name for name in FIELDS if not isinstance(fields.get(name), FIELDS[name])] + sorted(
        fields.keys() - FIELDS
    )
    faults += [] if fields.get("exercise") else ["exercise"]
    if faults:
        raise MinqkvError(
            f"{path.name}: metadata missing, unknown or of the wrong type: {', '.join(faults)}"
        )
    return Lesson(path, **fields)


def _steps(text):
    """Cells into steps: markdown gathers until a code cell ends the step; prose after the last one
    is a step too.
    """
    steps, prose, cell = [], "", None
    for number, row in enumerate([*text.splitlines(), "# %% end"], 1):
        if row.startswith("# %%"):
            if cell and cell[0] == "[markdown]":
                prose += (
                    "\n".join(r.removeprefix("#").removeprefix(" ") for r in cell[2]).strip("\n")
                    + "\n\n"
                )
            elif cell and "".join(cell[2]).strip():
                steps.append(
                    Step(
                        cell[0],
                        prose.strip("\n"),
                        "\n".join(cell[2]).strip("\n"),
                        cell[1] + _blank(cell[2]),
                    )
                )
                prose = ""
            cell = (row[4:].strip(), number + 1, [])
        elif cell:
            cell[2].append(row)
    if prose:
        steps.append(Step("the end", prose.strip("\n"), "", number))
    return steps


def _blank(rows):
    return next(i for i, row in enumerate(rows) if row.strip())
