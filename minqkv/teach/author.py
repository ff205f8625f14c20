"""For those who write lessons: every promise a lesson makes, checked. Each function yields faults
in words; none is good.
"""

import ast
import contextlib
import io
import re
import time
from importlib import import_module

from ..render.lesson import Recorder
from ..variants import NAMES
from .checks import Check, alike, judge, namespace, near_misses
from .desk import run
from .events import on
from .lessons import FILES
from .runner import Player

_ALLOWED = re.compile(  # digits that were not measured: years, numbers of lessons and sections, shapes, names, small factors
    r"\b(19|20)\d\d\b|\b(lessons?|steps?|sections?|tables?|chapters?) \d+(\.\d+)*(( and |, |–|-)\d+)*|§ ?\d+(\.\d+)*"
    r"|\([\w, ·]*,[\w, ·]*\)|\b[A-Za-z_]\w*\d\w*|(?<![\d.])[-−+]?[012](?!\d|\.\d| ?%)|(float|int)\d+",
    re.I,
)


def check_lesson(lesson, lessons):
    """Faults of one lesson, under the name of the promise it breaks."""
    promises = {
        "files": files(lesson), "stub fails": stub(lesson), "solution passes": solution(lesson), "near misses": misses(lesson),
        "hints": hints(lesson), "prose": prose(lesson), "needs": needs(lesson, lessons), "uses": uses(lesson),
        "runs": runs(lesson),
    }  # fmt: skip
    return {promise: _caught(faults) for promise, faults in promises.items()}


def _caught(faults):
    try:
        return list(faults)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def files(lesson):
    """A lesson has a stub, a solution, near misses and a check; imports are few."""
    yield from (
        f"{folder}/{lesson.path.name} is missing"
        for folder in FILES
        if not lesson.companion(folder).exists()
    )
    for node in ast.walk(ast.parse(lesson.text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from (
            f"imports {name}" for name in names if name.split(".")[0] not in ("numpy", "minqkv")
        )
    if len(lesson.question) > 72:
        yield "a question of more than 72 characters does not fit the start page"
    longest = max((step.code.count("\n") + 1 for step in lesson.steps), default=0)
    if longest > 24:
        yield f"a code cell of {longest} lines does not fit a screen"
    for step in lesson.steps:
        yield from (
            f"{step.title}: over 78 columns: {row.strip()}"
            for row in step.shown.split("\n")
            if len(row) > 78
        )


def stub(lesson):
    """The stub must fail as not written, and say in a docstring what is asked."""
    passed, events = run(lesson, lesson.companion("exercise"))
    if passed or "not written yet" not in str(events):
        yield f"the stub does not fail as NotImplementedError: {events[0]['text']}"
    functions = {node.name: node for node in ast.walk(ast.parse(lesson.companion("exercise").read_text("utf-8")))
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))}  # fmt: skip
    yield from (f"the stub of {name} has no docstring" for name in lesson.exercise
                if name not in functions or not ast.get_docstring(functions[name]))  # fmt: skip


def solution(lesson):
    """The solution must pass."""
    passed, events = run(lesson, lesson.companion("solution"))
    if not passed:
        yield f"the solution fails: {events[0]['text']}"


def misses(lesson):
    """At least three near misses; each fails, and none can be taken for another."""
    check, known = Check(lesson), near_misses(lesson)
    if len(known) < 3:
        yield f"{len(known)} near misses; three at least"
    if any(outcome.fault for outcome in judge(check, namespace(lesson.companion("solution")))):
        yield "the solution fails on some case"
    tried = {name: judge(check, wrong) for name, (_, wrong) in known.items()}
    for name, (diagnosis, _) in known.items():
        if not diagnosis or "\n" in diagnosis:
            yield f"{name}: the diagnosis is one line of docstring"
        if not any(outcome.fault for outcome in tried[name]):
            yield f"{name} passes"
        if any(outcome.error for outcome in tried[name]):
            yield f"{name} raises, so that nothing can be compared"
        twins = [
            other
            for other in tried
            if other != name and alike(tried[name], tried[other], check.tolerance)
        ]
        yield from (f"{name} cannot be told from {other}" for other in twins)


def hints(lesson):
    """Three hints; dimensions that differ within a case, and cases that differ from one another."""
    check = Check(lesson)
    if len(check.hints) != 3 or len(set(check.hints)) != 3:
        yield f"{len(check.hints)} hints; three"
    sizes = {str([getattr(x, "shape", x) for x in check.case(seed)]) for seed in range(30)}
    if len(sizes) < 3:
        yield f"only {len(sizes)} different sizes in thirty cases"


def measured(text):
    """Digits in a text that no shape, year, section or name explains: numbers come through events."""
    return re.findall(r"\S*\d\S*", _ALLOWED.sub(" ", text))


def prose(lesson):
    """No measured number in prose, nor in what an event says word for word; no exclamation mark."""
    texts = [
        ("question", lesson.question),
        ("title", lesson.title),
        *((step.title, step.prose) for step in lesson.steps),
    ]
    texts += [("an event", text) for text in _spoken(lesson.text)]
    texts += [("the explanation", Check(lesson).explanation)]
    for where, text in texts:
        yield from (f"{where}: {found!r} is typed, not computed" for found in measured(text))
        if "!" in text:
            yield f"{where}: an exclamation mark"


def _spoken(source):
    """What say and predict state word for word."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", None) in ("say", "predict")
            and node.args
        ):
            parts = list(ast.walk(node.args[0]))
            formats = {
                id(part)
                for f in parts
                if isinstance(f, ast.FormattedValue) and f.format_spec
                for part in ast.walk(f.format_spec)
            }
            constants = [
                part.value
                for part in parts
                if isinstance(part, ast.Constant) and id(part) not in formats
            ]
            yield from (value for value in constants if isinstance(value, str))


def needs(lesson, lessons):
    """What it needs was taught before."""
    taught = {topic for other in lessons if other.number < lesson.number for topic in other.teaches}
    yield from (
        f"needs {topic!r}, which no earlier lesson teaches"
        for topic in lesson.needs
        if topic not in taught
    )


def uses(lesson):
    """Each public name exists."""
    for name in lesson.uses:
        module, _, attribute = name.rpartition(".")
        try:
            getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError):
            yield f"uses {name!r}, which does not exist"


def untaught_variants(lessons):
    """Variants of the paper that no lesson teaches."""
    taught = {topic for lesson in lessons for topic in lesson.teaches}
    return [name for name in NAMES if name not in taught]


def events_of(lesson):
    """(events, seconds) of the lesson as plain Python: the whole file at once, nothing asked."""
    recorder, began = Recorder(), time.perf_counter()
    with on(recorder), contextlib.redirect_stdout(io.StringIO()):
        exec(
            compile(lesson.text, str(lesson.path), "exec"),
            {"__name__": "lesson", "__file__": str(lesson.path)},
        )
    return recorder.drawn, time.perf_counter() - began


def runs(lesson):
    """It runs whole and step by step, within its budget, with something to predict and the place of
    the real code.
    """
    events, seconds = events_of(lesson)
    kinds = [event["event"] for event in events]
    if seconds > lesson.budget_s:
        yield f"took {seconds:.1f} s of {lesson.budget_s} s"
    if kinds.count("predict") < 2:
        yield "asks for fewer than two predictions"
    if "source" not in kinds:
        yield "does not point at the real implementation"
    if "\x1b" in str(events):
        yield "an event holds an escape code"
    stepped = Recorder()
    Player(lesson, stepped).play(pause=False)
    if [
        event for event in stepped.drawn if event["event"] not in ("step", "prose", "code")
    ] != events:
        yield "gives other events step by step than as a whole: is something random without a seed, or a time?"
    if not 6 <= len(lesson.steps) <= 14:
        yield f"{len(lesson.steps)} steps; eight to twelve read well"


def readme(lessons):
    """lessons/README.md, whole."""
    rows = []
    for lesson in lessons:
        needed = ", ".join(lesson.needs) or "–"
        link = f"[{lesson.title}]({lesson.path.name})"
        rows.append(
            f"| {lesson.number:02} | {link} | {lesson.question} | {needed} | {lesson.minutes} |"
        )
    total = sum(lesson.minutes for lesson in lessons)
    return _README.format(rows="\n".join(rows), total=total)


_README = """\
# Lessons

Type `minqkv` in a terminal: it says where you are and what comes next. `minqkv learn` goes on from there.
Each lesson is also a plain file to read here, to run with `python`, or to open as a notebook (percent cells).

| | lesson | question | needs | minutes |
|---|---|---|---|---|
{rows}

About {total} minutes in all. Each lesson ends with a short exercise: `minqkv lesson start 6` puts it into
`minqkv-work/`, `minqkv lesson check 6` runs what you wrote on random cases and says what is wrong, `minqkv lesson hint 6`
helps. How to write a lesson stands at the top of [minqkv/teach/\\_\\_init\\_\\_.py](../minqkv/teach/__init__.py).

This page is generated: `minqkv lesson dev readme > lessons/README.md`.
"""
