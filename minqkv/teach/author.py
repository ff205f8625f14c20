"""For those who write lessons: every promise a lesson makes, checked. Each function yields faults
in words; a lesson without faults yields none.
"""

import ast
import contextlib
import io
import re
import time
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np

from ..render.lesson import Recorder
from ..variants import NAMES
from .checks import CASES, Check, diagnose, judge, namespace
from .child import examine
from .desk import ending
from .events import on
from .lessons import FILES, Hunt
from .runner import Player
from .training import brief

# Digits that were not measured: years, numbers of lessons, sections and models, shapes, names,
# small factors.
_ALLOWED = re.compile(
    r"\b(19|20)\d\d\b"
    r"|\b(lessons?|steps?|sections?|tables?|chapters?|Gemma) \d+(\.\d+)*(( and |, |–|-)\d+)*"
    r"|§ ?\d+(\.\d+)*"
    r"|\([\w,\s·]*,[\w,\s·]*\)"
    r"|\b[A-Za-z_]\w*\d\w*"
    r"|(?<![\d.])[-−+]?[012](?!\d|\.\d| ?%)"
    r"|(float|int)\d+",
    re.I,
)

check_of = cache(Check)  # one for all promises of a lesson: what it has computed is kept


def check_lesson(lesson, lessons):
    """Faults of one lesson or hunt, under the name of the promise it breaks."""
    if isinstance(lesson, Hunt):
        promises = {
            "files": program(lesson),
            "the program is wrong": wrong(lesson),
            "solution passes": solution(lesson),
            "near misses": misses(lesson, least=1),
            "hints": hints(lesson),
            "prose": prose(lesson),
            "reports": reports(lesson),
        }
        return {promise: _caught(faults) for promise, faults in promises.items()}
    promises = {
        "files": files(lesson),
        "stub fails": stub(lesson),
        "solution passes": solution(lesson),
        "near misses": misses(lesson),
        "hints": hints(lesson),
        "prose": prose(lesson),
        "needs": needs(lesson, lessons),
        "uses": uses(lesson),
        "runs": runs(lesson),
    }
    return {promise: _caught(faults) for promise, faults in promises.items()}


def _caught(faults):
    try:
        return list(faults)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def files(lesson):
    """A lesson has a stub, a solution, near misses and a check; imports are few."""
    absent = [kind for kind in FILES if not lesson.companion(kind).exists()]
    yield from (f"{lesson.name}/{kind}.py is missing" for kind in absent)
    for node in ast.walk(ast.parse(lesson.text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        foreign = [name for name in names if name.split(".")[0] not in ("numpy", "minqkv")]
        yield from (f"imports {name}" for name in foreign)
    if len(lesson.question) > 72:
        yield "a question of more than 72 characters does not fit the start page"
    for step in lesson.steps:
        rows = step.shown.split("\n")
        if len(rows) > 24:
            yield f"{step.title}: {len(rows)} lines of code do not fit a screen"
        wide = [row.strip() for row in rows if len(row) > 78]
        yield from (f"{step.title}: over 78 columns: {row}" for row in wide)


MOST = 30  # lines of code of a hunt's program


def program(hunt):
    """A hunt has a program, a solution, near misses and a check; the program is short."""
    absent = [kind for kind in FILES if not hunt.companion(kind).exists()]
    yield from (f"{hunt.name}/{kind}.py is missing" for kind in absent)
    if len(hunt.question) > 400:
        yield "a question of more than 400 characters"
    if len(hunt.title) > 38:
        yield "a title of more than 38 characters does not fit the list"
    text = hunt.companion("exercise").read_text("utf-8")
    wide = [row.strip() for row in text.split("\n") if len(row) > 78]
    yield from (f"over 78 columns: {row}" for row in wide)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:
            del node.body[0]
    rows = list(filter(str.strip, ast.unparse(tree).split("\n")))
    if len(rows) > MOST:
        yield f"the program has {len(rows)} lines of code; {MOST} at most"


def wrong(hunt):
    """The program must break its law: it runs on every case, gives another result on some, and no
    diagnosis gives the mistake away. The law is said, with the numbers.
    """
    check = check_of(hunt)
    outcomes = judge(check, namespace(hunt.companion("exercise")))
    if not any(outcome.fault for outcome in outcomes):
        yield "the program passes its own check"
    yield from {f"the program raises: {one.fault}" for one in outcomes if one.error}
    if found := diagnose(check, outcomes):
        yield f"a near miss gives the mistake away: {found}"
    said = str(examine(check, str(hunt.companion("exercise")))[1])
    if not check.law or check.law not in said:
        yield "the law is not said"
    if "'name': 'expected" not in said and "expected[" not in said:
        yield "the numbers are not shown"


def reports(hunt):
    """Each report has an address, and the right code is where `source` says."""
    if not hunt.reports:
        yield "no report"
    form = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+")
    yield from (f"no address of a report: {at}" for at in hunt.reports if not form.fullmatch(at))
    ending(hunt)


def stub(lesson):
    """The stub must fail as not written, and say in a docstring what is asked."""
    path = lesson.companion("exercise")
    passed, events = examine(check_of(lesson), str(path))
    if passed or "not written yet" not in str(events):
        yield f"the stub does not fail as NotImplementedError: {events[0]['text']}"
    tree = ast.parse(path.read_text("utf-8"))
    defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    documented = {node.name for node in defined if ast.get_docstring(node)}
    absent = [name for name in lesson.exercise if name not in documented]
    yield from (f"the stub of {name} has no docstring" for name in absent)


def solution(lesson):
    """The solution must pass."""
    passed, events = examine(check_of(lesson), str(lesson.companion("solution")))
    if not passed:
        yield f"the solution fails: {events[0]['text']}"


def misses(lesson, least=3):
    """At least so many near misses; each fails, and none can be taken for another."""
    check = check_of(lesson)
    known = check.near_misses
    if len(known) < least:
        yield f"{len(known)} near misses; {least} at least"
    if any(outcome.fault for outcome in judge(check, namespace(lesson.companion("solution")))):
        yield "the solution fails on some case"
    tried = {name: [miss.outcome(seed) for seed in range(CASES)] for name, miss in known.items()}
    for name, miss in known.items():
        if not miss.diagnosis:
            yield f"{name} has no docstring, which is the diagnosis"
        if not any(outcome.fault for outcome in tried[name]):
            yield f"{name} passes"
        if any(outcome.error for outcome in tried[name]):
            yield f"{name} raises, so that nothing can be compared"
        twins = [other for other in tried if other != name and miss.explains(tried[other])]
        yield from (f"{name} cannot be distinguished from {other}" for other in twins)


def hints(lesson):
    """Three hints; dimensions that differ within a case, and cases that differ from one another."""
    check = check_of(lesson)
    if len(check.hints) != 3 or len(set(check.hints)) != 3:
        yield f"{len(check.hints)} hints; three"
    sizes = {str([getattr(x, "shape", x) for x in check.case(seed)]) for seed in range(30)}
    if len(sizes) < 3:
        yield f"only {len(sizes)} different sizes in thirty cases"


def measured(text):
    """Digits in a text that no shape, year, section or name explains: numbers come from events."""
    return re.findall(r"\S*\d\S*", _ALLOWED.sub(" ", text))


def prose(lesson):
    """No measured number in prose, nor in what an event says word for word; no exclamation mark."""
    texts = [("question", lesson.question), ("title", lesson.title)]
    texts += [(step.title, step.prose) for step in lesson.steps]
    texts += [("an event", text) for text in _spoken(lesson.text)]
    texts += [("the explanation", check_of(lesson).explanation), ("the law", check_of(lesson).law)]
    for where, text in [pair for pair in texts if pair[1]]:
        yield from (f"{where}: {found!r} is typed, not computed" for found in measured(text))
        if "!" in text:
            yield f"{where}: an exclamation mark"


def _spoken(source):
    """What say and predict state word for word."""
    for node in ast.walk(ast.parse(source)):
        speaks = isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("say", "predict")
        if not speaks or not node.args:
            continue
        parts = list(ast.walk(node.args[0]))
        formats = [getattr(part, "format_spec", None) for part in parts]  # {x:.3f}
        hidden = {id(part) for spec in formats if spec for part in ast.walk(spec)}
        constants = [part for part in parts if isinstance(part, ast.Constant)]
        spoken = [part.value for part in constants if id(part) not in hidden]
        yield from (value for value in spoken if isinstance(value, str))


def needs(lesson, lessons):
    """What it needs was taught before."""
    taught = {topic for other in lessons if other.number < lesson.number for topic in other.teaches}
    absent = [topic for topic in lesson.needs if topic not in taught]
    yield from (f"needs {topic!r}, which no earlier lesson teaches" for topic in absent)


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


@dataclass
class Played:
    """A lesson played step by step: its events, the CPU seconds it took, and what the calibration
    took beside it.
    """

    events: list
    seconds: float
    calibration: float


CALIBRATION_S = 0.04  # CPU seconds of `calibrate` on the machine that budgets are stated for


def calibrate():
    """CPU seconds of a fixed piece of work like that of lessons: Python between small arrays."""
    began = time.thread_time()
    x = np.linspace(-1, 1, 32 * 32).reshape(32, 32)
    total = {}
    for i in range(6000):
        y = np.tanh(x @ x)
        total[i % 7] = total.get(i % 7, 0.0) + float(y[i % 32].sum())
    return time.thread_time() - began


def play(lesson):
    """The lesson, Played, with brief training."""
    before, recorder, began = calibrate(), Recorder(), time.thread_time()
    with brief():
        Player(lesson, recorder).play(pause=False)
    seconds = time.thread_time() - began
    return Played(recorder.drawn, seconds, max(before, calibrate()))


def spoken(events):
    """What a lesson says itself, without what the runner adds."""
    return [event for event in events if event["event"] not in ("step", "prose", "code")]


def events_of(lesson):
    """The events of the lesson as plain Python: the whole file is run at once, with brief training,
    and no question is asked.
    """
    recorder = Recorder()
    with on(recorder), brief(), contextlib.redirect_stdout(io.StringIO()):
        code = compile(lesson.text, str(lesson.path), "exec")
        exec(code, {"__name__": "lesson", "__file__": str(lesson.path)})
    return recorder.drawn


def runs(lesson, played=None, whole=None):
    """It runs whole and step by step, within its budget, with something to predict and the place of
    the real code. What has been played already may be given.

    The budget is in CPU seconds, which other processes do not spend; a slow machine, where the
    calibration takes longer, gets more of them, and every machine twice as many.
    """
    whole = whole or events_of(lesson)
    played = played or play(lesson)
    kinds = [event["event"] for event in whole]
    pace = played.calibration / CALIBRATION_S
    if played.seconds > 2 * pace * lesson.budget_s:
        on_this = f"{lesson.budget_s} s, on a machine {pace:.1f} times as slow as the one it means"
        yield f"took {played.seconds:.1f} s of CPU, more than twice its budget: {on_this}"
    if kinds.count("predict") < 2:
        yield "asks for fewer than two predictions"
    if "source" not in kinds:
        yield "does not point at the real implementation"
    if "\x1b" in str(whole):
        yield "an event holds an escape code"
    if spoken(played.events) != whole:
        why = "is something random without a seed, or a time?"
        yield f"gives other events step by step than as a whole: {why}"
    if not 6 <= len(lesson.steps) <= 14:
        yield f"{len(lesson.steps)} steps; a lesson has six to fourteen"


def readme(lessons, hunts):
    """lessons/README.md, whole."""
    rows = []
    for lesson in lessons:
        link = f"[{lesson.title}]({lesson.name}/{lesson.path.name})"
        needed = ", ".join(lesson.needs) or "–"
        cells = f"{lesson.number:02}", link, lesson.question, needed, str(lesson.minutes)
        rows.append(f"| {' | '.join(cells)} |")
    total = sum(lesson.minutes for lesson in lessons)
    found = [f"| {each.key} | {each.title} | {each.question} |" for each in hunts]
    return _README.format(rows="\n".join(rows), total=total, hunts="\n".join(found))


_README = """\
# Lessons

Type `minqkv` in a terminal: it says where you are and what comes next. `minqkv learn` continues
from there. Each lesson is also a plain file: read it here, or run it with `python`.

| | lesson | question | needs | minutes |
|---|---|---|---|---|
{rows}

About {total} minutes in all. Each lesson ends with a short exercise. `minqkv lesson start 6` copies
it to `minqkv-work/`; `minqkv lesson check 6` runs your code on random cases and explains common
mistakes; `minqkv lesson hint 6` helps.

`minqkv lesson export --html DIR` writes all of them as web pages, to read or to link to;
`--notebook DIR` as Jupyter notebooks, in which the exercises can be written and checked.

Each folder holds `lesson.py`, the exercise and its solution, known mistakes (`near_misses.py`), and
what the check tries (`check.py`). [AUTHORS.md](AUTHORS.md) says how to write a lesson.

## Find the bug

Each of these programs is short and wrong, in a way that was reported in real software. `minqkv
lesson hunt h1` copies it to `minqkv-work/` and shows the law that it breaks, with numbers. Repair
it there; `minqkv lesson check h1` and `minqkv lesson hint h1` work as for a lesson. When you have
found it, you see the public report, and where this package does it right.

| | program | what is wrong |
|---|---|---|
{hunts}

This page is generated: `minqkv lesson dev readme > lessons/README.md`.
"""
