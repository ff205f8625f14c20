"""Lessons and hunts as files: found by name, their metadata read, lessons cut into steps. Order
comes from the numbers in the names.
"""

import ast
import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from ..runtime.errors import EnvironmentFault, MinqkvError, UsageError, unknown

FILES = ("exercise", "solution", "near_misses", "check")
EVENTS = (
    "say", "show", "heat", "table", "curve", "roofline", "predict", "compare", "memory",
    "cache_step", "source",
)  # fmt: skip
FIELDS = {"title": str, "question": str, "exercise": list}
OF_LESSONS = FIELDS | {
    "needs": list, "teaches": list, "minutes": int, "budget_s": (int, float), "uses": list,
}  # fmt: skip
OF_HUNTS = FIELDS | {"reports": list, "source": list}
RELEASED = {  # hash that 0.1.0 stored with a pass -> fingerprint of that check, lessons 01 to 12
    "4678412bec76d630": "c2269162559ad454",
    "4fe902c20fd0430b": "e66da7dac08a0bf5",
    "76e0a89e70475f45": "e968a07ede49b0de",
    "13b6f844a3d99fa4": "31eddf5b86268804",
    "b10ef1bfc7385fb1": "88d1de1600ebf2aa",
    "d7adb1aeef463435": "8fe08764d969f66d",
    "79432dee7797756e": "3105956b0fb5ea03",
    "02fbdb5f034473fb": "3631ed5ed18664e9",
    "bfde1926625f23ca": "4694a472e153133e",
    "f02808a1853504af": "c41e0d1db91a362b",
    "5db9b27670cc2c04": "bee0d3ae04181cf6",
    "8ccf6b33156110e2": "7a942624834a365b",
}


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
        return _parted(self.code)[0]

    @property
    def pieces(self):
        """The code as [(what computes, what only speaks)], to be run in this order.

        Mostly it is one pair. Another begins where speaking first would change what is said: at a
        statement that speaks amid its work, such as a loop, or that binds a name spoken of before.
        """
        cuts, spoken = [0], set()
        body = ast.parse(self.code).body
        for before, node in pairwise(body):
            if _speaks(before):
                spoken |= _names(before, ast.Load)
            amid = not _speaks(node) and any(map(_is_event, ast.walk(node)))
            if amid or spoken & _names(node, ast.Store):
                cuts.append(before.end_lineno)
                spoken = set()
        rows = self.code.split("\n")
        return [_parted("\n".join(rows[a:b])) for a, b in pairwise([*cuts, None])]


@dataclass(frozen=True, eq=False)
class Exercise:
    """Something to write or to repair, with a check: `path` is the file that holds its metadata."""

    path: Path
    title: str
    question: str
    exercise: list

    @property
    def name(self):
        """The name of its folder: 06_attention_by_hand, h03_chunked_prefill."""
        return self.path.parent.name

    @property
    def key(self):
        """What a learner types: 6, h3."""
        return re.sub(r"^(h?)0*(\d+)_.*", r"\1\2", self.name)

    @cached_property
    def text(self):
        """The file."""
        return self.path.read_text("utf-8")

    def companion(self, kind):
        """The file beside it: exercise, solution, near_misses or check."""
        return self.path.with_name(f"{kind}.py")


@dataclass(frozen=True, eq=False)
class Hunt(Exercise):
    """A short program with a mistake to find: an exercise without a lesson.

    `reports` are the addresses where such a mistake was reported in public; `source` lists
    [name, part of a line] of the code of this package that does it right.
    """

    reports: list
    source: list
    steps = ()


@dataclass(frozen=True, eq=False)
class Lesson(Exercise):
    """One lesson: `path` is its lesson.py, the rest its metadata."""

    needs: list
    teaches: list
    minutes: int
    budget_s: float
    uses: list

    @property
    def number(self):
        """Its place in the course."""
        return int(self.key)

    @cached_property
    def steps(self):
        """The lesson, cut at its code cells."""
        return _steps(self.text)

    @property
    def calls(self):
        """The names it imports from minqkv.teach."""
        nodes = [node for node in ast.parse(self.text).body if isinstance(node, ast.ImportFrom)]
        teach = [node for node in nodes if node.module == "minqkv.teach"]
        return [alias.name for node in teach for alias in node.names]

    @property
    def trains(self):
        """Whether it trains for minutes: it imports `trained`."""
        return "trained" in self.calls


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


def hunts(folder=None):
    """All hunts, in order."""
    folder = folder or root() / "hunts"
    return [read(path) for path in sorted(folder.glob("h[0-9][0-9]_*/check.py"))]


def find(name, exercises):
    """A lesson or hunt by number (6, 06, h3) or name (attention_by_hand, 06_attention_by_hand).
    Raises UsageError with near matches.
    """
    text = str(name).lower().removesuffix(".py").replace("-", "_")
    words = {one: one.name.partition("_")[2] for one in exercises}
    for one, word in words.items():
        if text in (one.name, word) or re.sub(r"^(h?)0+(?=\d)", r"\1", text) == one.key:
            return one
    what = "hunt" if text.startswith("h") or isinstance(exercises[0], Hunt) else "lesson"
    keys = [one.key for one in exercises if isinstance(one, Hunt) == (what == "hunt")]
    if keys and re.fullmatch(r"h?\d+", text):
        raise UsageError(f"no {what} {name}", f"there are {what}s {keys[0]} to {keys[-1]}")
    raise unknown(what, name, words.values())


def fingerprint(lesson):
    """A hash of what a pass depends on: the code of the check, and of the stub.

    It does not change with layout, comments, docstrings, imports, hints or the explanation.
    """
    digest = hashlib.sha256()
    for kind in ("check", "exercise"):
        digest.update(code_of(lesson.companion(kind).read_text("utf-8")).encode())
    return digest.hexdigest()[:16]


def still_counts(lesson, passed):
    """Whether a stored pass is one of the check as it is now."""
    return RELEASED.get(str(passed), passed) == fingerprint(lesson)


def code_of(text):
    """Python source as its syntax tree in words, without what only speaks to a reader.

    Not `ast.dump`, whose form differs between versions of Python.
    """
    return _tree([node for node in ast.parse(text).body if not _prose(node)])


def _tree(node):
    if isinstance(node, list):
        return f"[{' '.join(_tree(part) for part in node if not _prose(part))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return f"({type(node).__name__} {' '.join(f'{name} {_tree(value)}' for name, value in fields)})"


def _prose(node):
    """A docstring, an import, or one of the texts of a check."""
    if isinstance(node, ast.Assign):
        return getattr(node.targets[0], "id", None) in ("LAW", "HINTS", "EXPLANATION")
    quoted = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return quoted or isinstance(node, (ast.Import, ast.ImportFrom))


def read(path):
    """The Lesson or Hunt whose metadata this file holds. Raises MinqkvError naming the file and
    what is wrong.
    """
    kind, known = (Hunt, OF_HUNTS) if path.name == "check.py" else (Lesson, OF_LESSONS)
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", path.read_text("utf-8"), re.M)
    where = f"{path.parent.name}/{path.name}"
    try:
        rows = [row.removeprefix("#").removeprefix(" ") + "\n" for row in block[1].splitlines()]
        fields = tomllib.loads("".join(rows))["tool"]["minqkv"][kind.__name__.lower()]
    except (TypeError, KeyError, tomllib.TOMLDecodeError) as error:
        why = f"no [tool.minqkv.{kind.__name__.lower()}] in a `# /// script` block ({error})"
        raise MinqkvError(f"{where}: {why}") from error
    if isinstance(fields.get("exercise"), str):
        fields["exercise"] = [fields["exercise"]]
    faults = [name for name in known if not isinstance(fields.get(name), known[name])]
    faults += sorted(fields.keys() - known)
    faults += [] if fields.get("exercise") else ["exercise"]
    if faults:
        why = f"metadata missing, unknown or of the wrong type: {', '.join(faults)}"
        raise MinqkvError(f"{where}: {why}")
    return kind(path, **fields)


def _is_event(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) in EVENTS


def _speaks(node):
    return isinstance(node, ast.Expr) and _is_event(node.value)


def _names(node, context):
    """Names that a statement reads (ast.Load) or binds (ast.Store)."""
    found = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    return {name.id for name in found if isinstance(name.ctx, context)}


def _parted(code):
    """(what computes, what only speaks) of some code; the import of event functions is left out."""
    rows, spoken = code.split("\n"), []
    for node in ast.parse(code).body:
        if _speaks(node) or getattr(node, "module", None) == "minqkv.teach":
            hidden = slice(node.lineno - 1, node.end_lineno)
            spoken += rows[hidden] if _speaks(node) else []
            rows[hidden] = [None] * len(rows[hidden])
    text = "\n".join(row for row in rows if row is not None)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n"), "\n".join(spoken)


def _steps(text):
    """Cells into steps: markdown gathers until a code cell ends the step; prose after the last one
    is a step too.
    """
    steps, prose, cell = [], "", None
    for number, row in enumerate([*text.splitlines(), "# %% end"], 1):
        if row.startswith("# %%"):
            if cell:
                title, first, rows = cell
                body = "\n".join(rows).strip("\n")
                if title == "[markdown]":
                    prose += re.sub(r"^# ?", "", body, flags=re.M) + "\n\n"
                elif body.strip():
                    blank = next(i for i, row in enumerate(rows) if row.strip())
                    steps.append(Step(title, prose.strip("\n"), body, first + blank))
                    prose = ""
            cell = (row[4:].strip(), number + 1, [])
        elif cell:
            cell[2].append(row)
    if prose:
        steps.append(Step("the end", prose.strip("\n"), "", number))
    return steps
