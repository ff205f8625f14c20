"""The runner: keys, progress, what a learner's file can do wrong, the terminal, and how the lessons
are installed.
"""

import fcntl
import itertools
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
import xml.dom.minidom
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import PATIENCE_S, ROOT, start, wait_until

import minqkv as mq
from minqkv.render import lesson as stages
from minqkv.render import training as live
from minqkv.render.layout import Page, lines
from minqkv.runs import configure, train_run
from minqkv.runtime.errors import EnvironmentFault, MinqkvError, UsageError
from minqkv.teach import answers, checks, child, desk, events, lessons
from minqkv.teach.lessons import course, find, fingerprint, still_counts
from minqkv.teach.progress import Progress, next_thing
from minqkv.teach.runner import Player
from minqkv.teach.training import STEPS, brief, trained
from minqkv.variants import NAMES

LESSON = find("06", course())
CHECK = checks.Check(LESSON)
SOLUTION = LESSON.companion("solution").read_text("utf-8")
WORK_010 = Path(__file__).with_name("data") / "work-0.1.0"  # a learner's folder, as 0.1.0 wrote it


def text_of(found):
    return " ".join(str(event.get("text", event.get("source", ""))) for event in found)


def examined(path):
    """(passed, events) of a file as an answer to the lesson, in this process."""
    passed, found = child.examine(CHECK, str(path))
    return passed, json.loads(json.dumps(found, default=repr))


def drawn_at(found, width):
    """Events as text of this width."""
    rows = [line for event in found for line in lines(event, Page(width))]
    return "\n".join("".join(text for text, _ in row) for row in rows)


# ---- a learner's file

ATTEND = "def attend(x, wq, wk, wv):\n"
MIX = "    return x @ wv\n"
ANSWERS = {
    "empty": ("", "is empty"),
    "syntax": ("def attend(x, wq, wk, wv)\n    return 1\n", "line 1: expected ':'"),
    "not text": (b"\xff\xfe\x00x", "not UTF-8"),
    "stub": (LESSON.companion("exercise").read_text("utf-8"), "not written yet"),
    "another name": ("def attention(x):\n    return x\n", "defines no attend"),
    "at import": ("import nothing_of_the_kind\n", "stops before it is used: ModuleNotFoundError"),
    "import error line": ("x = 1\nx.y\n", "line 2: x.y"),
    "too many arguments": ("def attend(x):\n    return x\n", "TypeError"),
    "raises": (
        f"{ATTEND}    y = x\n    return y.nothing\n",
        "line 3 (in attend): return y.nothing",
    ),
    "exit": (f"import sys\n{ATTEND}    sys.exit(0)\n", "calls exit()"),
    "none": (f"{ATTEND}    x @ wv\n", "is there a `return`?"),
    "list": (f"{ATTEND}    return (x @ wv).tolist()\n", "expected a NumPy array of shape"),
    "tensor": (f"import minqkv\n{ATTEND}    return minqkv.Tensor(x @ wv)\n", "a Tensor"),
    "shape": (f"{ATTEND}    return x\n", "has shape"),
    "dtype": (
        f"{ATTEND}    return (x @ wv).astype('float32')\n",
        "dtype float32; expected float64",
    ),
    "nan": (f"{ATTEND}    return x @ wv * float('nan')\n", "not finite"),
    "in place": (f"{ATTEND}    x += 1\n{MIX}", "the argument x was changed in place"),
    "prints": (f"{ATTEND}    print('look', x.shape)\n{MIX}", "look ("),
    "byte order mark": (b"\xef\xbb\xbf" + (ATTEND + MIX).encode(), "off by up to"),
    "a tab in an error": (f"{ATTEND}    raise ValueError('a\\tb\\x1b[31m')\n", "ValueError: a"),
    "complex": (f"{ATTEND}    return x @ wv + 0j\n", "dtype complex128"),
    "strings": (
        f"import numpy as np\n{ATTEND}    return (x @ wv).astype(str)\n",
        "dtype",
    ),
    "a class that objects": (
        "import numpy as np\nclass A(np.ndarray):\n    def __abs__(self):\n"
        "        raise OSError('no')\n    __sub__ = __abs__\n"
        f"{ATTEND}    return (x @ wv * 2).view(A)\n",
        "off by up to",
    ),
    "prints a lot": (f"{ATTEND}    print('a' * 3_000_000)\n{MIX}", "(and more)"),
    "too large to show": (
        f"import numpy as np\n{ATTEND}    return np.ones((99, 99))\n",
        "too large to show",
    ),
    "a dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        f"class A:\n    x: int\n{ATTEND}    return A(1).x * (x @ wv)\n",
        "off by up to",
    ),
}
PROCESSES = {  # what only a process of its own survives
    "endless": (f"{ATTEND}    while True:\n        x = x\n", "a loop that never ends"),
    "endless import": ("while True:\n    pass\n", "never ends"),
    "hard exit": (
        f"import os\n{ATTEND}    os._exit(0)\n",
        "ended the check (exit code 0)",
    ),
    "elsewhere": (
        f"import os\nos.chdir('/')\n{ATTEND}    return x.nothing\n",
        "return x.nothing",
    ),
    "a thread left": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        f"{ATTEND}{MIX}",
        "off by up to",
    ),
    "prints nonsense": (f"print('{{\"passed\": true}}')\n{ATTEND}{MIX}", "off by up to"),
}


@pytest.mark.parametrize("name", [*ANSWERS, *PROCESSES])
def test_what_a_file_can_do_wrong(name, tmp_path):
    source, message = (ANSWERS | PROCESSES)[name]
    path = tmp_path / "mine.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    if "endless" in name:
        passed, found = stopped(path)
    elif name in PROCESSES:
        passed, found = desk.run(LESSON, path, PATIENCE_S)
    else:
        passed, found = examined(path)
    assert not passed
    text = text_of(found)
    assert message in text
    assert "Traceback" not in text
    assert "site-packages" not in text
    drawn = drawn_at(found, 40)
    assert "\x1b" not in drawn
    assert max(map(len, drawn.split("\n"))) <= 40


def stopped(path):
    """(passed, events) of an answer that never ends. On a machine so busy that the limit is over
    before the loop has begun, the next limit is longer.
    """
    for limit in (0.5, 5, 50, 500):
        passed, found = desk.run(LESSON, path, limit)
        if passed or "at line" in text_of(found):
            break
    return passed, found


@pytest.mark.parametrize("late", ["raise ValueError('worn out')", "time.sleep(0.002)"])
def test_a_right_answer_passes_however_it_fares_afterwards(late, tmp_path, monkeypatch):
    """It works thirty times and then no longer, or it is slow: its cost is left out, the pass is
    not.
    """
    solution = SOLUTION.replace("def attend(", "def right(")
    after = checks.CASES if "raise" in late else 0
    source = f"import time\n{solution}\ncalls = []\ndef attend(*args):\n    calls.append(1)\n"
    (tmp_path / "a.py").write_text(
        f"{source}    if len(calls) > {after}:\n        {late}\n    return right(*args)\n"
    )
    monkeypatch.setattr(checks, "PATIENCE_S", checks.CASES * 0.001)  # it sleeps twice as long
    passed, found = examined(tmp_path / "a.py")
    assert passed
    assert found[0]["text"] == f"Correct on all {checks.CASES} cases."


def test_the_cost_is_told_beside_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "PATIENCE_S", PATIENCE_S)
    passed, found = examined(LESSON.companion("solution"))
    assert passed
    assert "times as long as the package" in found[0]["text"]
    assert "times its peak memory" in found[0]["text"]


def test_two_terminals_on_one_progress_file(tmp_path):
    reading, checking = Progress(tmp_path), Progress(tmp_path)
    reading.update(LESSON, step=1)
    checking.update(LESSON, passed="x")
    reading.update(LESSON, step=2)
    assert Progress(tmp_path).of(LESSON) == {"step": 2, "passed": "x"}
    reading.forget(LESSON)
    assert not Progress(tmp_path).of(LESSON)


def test_a_file_that_is_gone_or_a_folder(tmp_path):
    progress = Progress(tmp_path)
    progress.file(LESSON).mkdir()
    passed, found = desk.check(LESSON, progress)
    assert not passed
    assert "is not a plain file" in text_of(found)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("1,024", True), ("1024", True), ("1.024", False), ("nan", None), ("x", None)],
)
def test_numbers_as_people_write_them(reply, right):
    assert answers.verdict(reply, 1024, None, 1e-2) is right
    assert answers.verdict("0,5", 0.5, None, 1e-2)


def test_a_mistake_that_is_no_near_miss_is_not_named(tmp_path):
    (tmp_path / "a.py").write_text("def attend(x, wq, wk, wv):\n    return x @ wv * 3\n")
    passed, found = examined(tmp_path / "a.py")
    diagnoses = {miss.diagnosis for miss in CHECK.near_misses.values()}
    assert not passed
    assert not diagnoses & {event.get("text") for event in found}
    names = [event["name"] for event in found if event["event"] == "show"]
    assert names == ["x", "wq", "wk", "wv", "yours", "expected"]


OTHER = {  # several names, a class with state, gradients: what `use` is for
    "exercise": "def double(x):\n    raise NotImplementedError\nclass Sum:\n    pass\n",
    "solution": """
def double(x):
    return x + x
class Sum:
    def __init__(self):
        self.total = 0
    def step(self, x):
        self.total = self.total + x
        return self.total
""",
    "near_misses": """
import numpy as np
def double__square(x):
    'You square.'
    return x * x
class Sum__forgets:
    'You keep nothing.'
    def step(self, x):
        return x
""",
    "check": """
import numpy as np
import minqkv as mq
from minqkv.teach import gradients
TOLERANCE, HINTS, EXPLANATION = 1e-9, ("a", "b", "c"), "So."
def cases(rng):
    n = int(rng.integers(2, 9))
    return rng.standard_normal(n), rng.standard_normal(n)
def reference(x, g):
    return {"double": gradients(lambda t: t * 2.0, [x], g), "sums": list(np.cumsum(x))}
def use(learner, x, g):
    state = learner.Sum()
    return {"double": gradients(learner.double, [x], g), "sums": [state.step(value) for value in x]}
""",
}


def test_an_exercise_of_several_names_with_state_and_gradients(tmp_path):
    head = HEAD.replace('exercise = "attend"', 'exercise = ["double", "Sum"]')
    lesson = made(tmp_path, f"{head}# %% One\nx = 1\n", **OTHER)
    assert desk.run(lesson, lesson.companion("solution"), PATIENCE_S)[0]
    check = checks.Check(lesson)
    for name, message in (("double__square", "You square."), ("Sum__forgets", "You keep nothing.")):
        miss = check.near_misses[name]
        outcomes = checks.judge(check, miss.learner)
        assert miss.diagnosis == message == checks.diagnose(check, outcomes)
        assert all(outcome.fault for outcome in outcomes)
    passed, found = child.examine(check, str(lesson.companion("exercise")))
    assert not passed
    assert "not written yet" in text_of(found)


HEAD = LESSON.text[: LESSON.text.index("# %%")]  # the metadata


def made(folder, lesson, **files):
    """A lesson of these files."""
    (folder / "01_made").mkdir()
    for kind, text in {"lesson": lesson, **files}.items():
        (folder / f"01_made/{kind}.py").write_text(text)
    return course(folder)[0]


@pytest.mark.parametrize(
    ("found", "expected", "fault"),
    [
        (1.0, 1, None),
        (np.float64(2), 2.0, None),
        (True, 1.0, "expected a number"),
        ("1", 1.0, "expected a number"),
        ((1, 2), (1, 2), None),
        ([1, 2], (1, 2), None),
        ((1,), (1, 2), "a tuple of 1"),
        (3, (1, 2), "expected a tuple of 2"),
        ({"a": 1}, {"a": 1}, None),
        ({"b": 1}, {"a": 1}, "expected ['a']"),
        ({"a": (1, 2)}, {"a": (1, 3)}, "['a'][1] is 2; expected 3"),
        ("x", "x", None),
        ("y", "x", "'y'"),
        (None, None, None),
        (np.ones(2), np.ones(2), None),
        (np.ones(2), np.ones(3), "shape"),
        (np.float64(1), np.asarray(1.0), None),
        (np.array([1, np.nan]), np.ones(2), "not finite"),
    ],
)
def test_differences(found, expected, fault):
    said = checks.difference(found, expected, 1e-9)
    assert said is None if fault is None else fault in said


# ---- training of minutes


def test_training_is_kept_and_continued(tmp_path, monkeypatch):
    """Ctrl-C ends it with a checkpoint; the next call continues there, and one more only loads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STEPS, raising=False)
    config = configure("reverse", seq_len=4, n_embd=8, n_head=2, batch=4, steps=6, n_test=8)

    def interrupt(self, step):
        if step.done == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as changed:
        changed.setattr(live.Live, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained("small", config)
    model, losses, result, folder = trained("small", config)
    assert [str(path) for path in Path("minqkv-work").iterdir()] == [folder]
    whole, expected = train_run(config)
    assert (len(losses), result["loss"]) == (6, expected["loss"])
    for name, array in model.state_dict().items():
        assert np.array_equal(array, whole.state_dict()[name]), name
    monkeypatch.delattr("minqkv.runs.fit")
    assert trained("small", config)[1:] == (losses, result, folder)


def test_brief_training_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STEPS, raising=False)
    config = configure("reverse", seq_len=4, n_embd=8, n_head=2, batch=4, steps=6, n_test=8)
    with brief(2):
        _, losses, result, folder = trained("small", config)
    assert (len(losses), result["steps"], folder) == (2, 2, None)
    assert not list(tmp_path.iterdir())
    assert STEPS not in os.environ


# ---- progress


def test_progress_is_kept_and_goes_on(tmp_path):
    lessons = course()
    progress = Progress(tmp_path)
    assert next_thing(lessons, progress)[1] == "play"
    for lesson in lessons:
        progress.update(lesson, step=len(lesson.steps) + 7)  # an upgrade may shorten a lesson
    again = Progress(tmp_path)
    assert again.seen(LESSON) == len(LESSON.steps)
    assert next_thing(lessons, again) == (lessons[0], "start")
    desk.start(LESSON, again)
    again.file(LESSON).write_text(SOLUTION)
    passed, _ = desk.check(LESSON, again, PATIENCE_S)
    assert passed
    assert Progress(tmp_path).of(LESSON)["passed"] == fingerprint(LESSON)


def test_progress_of_the_last_release_counts(cli, tmp_path):
    """A folder that 0.1.0 wrote: passes stay passes, places stay, and its files still work."""
    work = tmp_path / "minqkv-work"
    shutil.copytree(WORK_010, work, ignore=shutil.ignore_patterns("ruff.toml"))
    code, out, err = cli("lesson", "list", "--json")
    assert (code, err) == (0, "")
    states = {row["number"]: row["state"] for row in json.loads(out)}
    assert states.pop(11) == "step 8 of 13"  # one has been added after it
    assert {states.pop(number) for number in range(13, 21)} == {""}  # not there then
    assert set(states.values()) == {"done"}
    assert "Next:   minqkv learn" in cli()[1]
    assert "11 of 20 lessons done" in cli()[1]
    progress, eleven = Progress(), find("11", course())
    assert desk.hint(eleven, progress).startswith("Hint 2 of 3")
    passed, found = desk.check(eleven, progress, PATIENCE_S)  # the stub, as it was handed out
    assert not passed
    assert "You have not changed this file yet" in text_of(found)
    twelve = find("12", course())  # it imports from a place that has moved
    assert "from minqkv.stats import" in progress.file(twelve).read_text("utf-8")
    assert desk.check(twelve, progress, PATIENCE_S)[0]
    assert (work / "solutions/06_attention_by_hand.py").exists()
    assert desk.solution(LESSON, progress).read_text("utf-8") == SOLUTION


def test_each_check_of_the_last_release_is_known():
    """A check that asks something new takes its line out of RELEASED: old passes are then older."""
    known = [fingerprint(lesson) for lesson in course()[:12]]
    assert list(lessons.RELEASED.values()) == known
    assert not still_counts(LESSON, "of another day")


def test_a_pass_depends_on_code_alone(tmp_path):
    """Not on layout, comments, docstrings, imports or hints; but on what is tried and asked."""
    check = (
        'import minqkv\nTOLERANCE = 1e-9\nHINTS = ("a",)\nEXPLANATION = "b"\n'
        'def cases(rng):\n    """One."""\n    return (rng.standard_normal(3),)\n'
        "def reference(x):\n    return x + 1\n"
    )
    stub = 'def attend(x):\n    """Do it."""\n    raise NotImplementedError\n'
    lesson = made(tmp_path, f"{HEAD}# %% One\nx = 1\n", check=check, exercise=stub)
    before = fingerprint(lesson)

    def after(kind, old, new):
        text = lesson.companion(kind).read_text()
        assert old in text
        lesson.companion(kind).write_text(text.replace(old, new))
        found = fingerprint(lesson)
        lesson.companion(kind).write_text(text)
        return found

    for change in (
        ("check", "return (rng", "return (  # drawn\n        rng"),
        ("check", '"""One."""', '"""Another."""'),
        ("check", 'HINTS = ("a",)', 'HINTS = ("a", "c")'),
        ("check", "import minqkv\n", "from minqkv import functional\n\n"),
        ("exercise", "Do it.", "Please."),
    ):
        assert after(*change) == before, change
    for change in (
        ("check", "1e-9", "1e-6"),
        ("check", "x + 1", "x + 2"),
        ("check", "standard_normal(3)", "standard_normal(4)"),
        ("exercise", "attend(x)", "attend(x, y)"),
    ):
        assert after(*change) != before, change


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "lessons": 3}',
        '{"schema": "1", "lessons": {}}',
    ],
)
def test_a_damaged_progress_file_is_set_aside(content, tmp_path):
    progress = Progress(tmp_path)
    progress.update(LESSON, step=3)
    progress.path.write_text(content)
    said = []
    again = Progress(tmp_path, said.append)
    assert again.of(LESSON) == {}
    assert "is damaged, so progress starts over; the old file is now" in said[0]
    assert [path.read_text() for path in progress.path.parent.glob("*unreadable*")] == [content]
    assert Progress(tmp_path, pytest.fail).of(LESSON) == {}


def test_a_newer_progress_file_is_left_alone(tmp_path):
    progress = Progress(tmp_path)
    progress.update(LESSON, step=3)
    progress.path.write_text('{"schema": 99, "lessons": {}}')
    with pytest.raises(EnvironmentFault, match="newer"):
        Progress(tmp_path)
    assert "99" in progress.path.read_text()


def test_hints_solution_reset(tmp_path):
    progress = Progress(tmp_path)
    hints = [desk.hint(LESSON, progress)[:11] for _ in range(4)]
    assert hints == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Hint 3 of 3"]
    with pytest.raises(UsageError, match="unlocks once your code passes"):
        desk.solution(LESSON, progress)
    assert desk.solution(LESSON, progress, spoil=True).read_text("utf-8") == SOLUTION
    path, new = desk.start(LESSON, progress)
    assert new
    path.write_text("mine")
    assert desk.start(LESSON, progress) == (path, False)
    assert path.read_text() == "mine"
    assert desk.reset(LESSON, progress).read_text() == "mine"
    assert path.read_bytes() == LESSON.companion("exercise").read_bytes()
    assert Progress(tmp_path).lessons == {}


# ---- stepping


class Typing(stages.Recorder):
    """A stage at which somebody types these lines; predictions are answered with Enter."""

    def __init__(self, *replies):
        super().__init__()
        self.replies = list(replies)

    def ask(self, prompt):
        if "guess" in prompt:
            return ""
        if not self.replies:
            raise EOFError
        return self.replies.pop(0)

    @property
    def steps(self):
        return [event["number"] for event in self.drawn if event["event"] == "step"]


@pytest.mark.parametrize(
    ("replies", "steps"),
    [
        (("", ""), [1, 2, 3]),
        (("", "b", ""), [1, 2, 1, 2]),
        (("b",), [1, 1]),
        (("g 5", "b", "q", ""), [1, 5, 4]),
        (("g 99", "g x"), [1]),
    ],
)
def test_keys_that_move(replies, steps):
    stage, seen = Typing(*replies), []
    assert not Player(LESSON, stage, seen.append).play()
    assert stage.steps == steps
    assert seen[-1] == steps[-1]


def test_keys_that_tell():
    stage = Typing("g 3", "s", "h", "?", "x", "g 0")
    Player(LESSON, stage, hint=lambda: "Hint 1 of 3: think").play()
    text = text_of(stage.drawn)
    assert "Attention.forward" in text
    assert "def forward(" in text
    assert "Hint 1 of 3: think" in text
    assert "quit; your place is saved" in text
    assert "'x' is not a command here" in text
    assert "for example: g 2" in text


def test_the_source_of_a_function_of_the_lesson(tmp_path):
    """In the first step as well, where nothing has been run before."""
    lesson = made(tmp_path, f"{HEAD}# %% One\ndef double(x):\n    return 2 * x\n\n\ndouble(1)\n")
    stage = Typing("s", "q")
    Player(lesson, stage).play()
    assert "return 2 * x" in text_of(stage.drawn[3:])
    (tmp_path / "other").mkdir()
    lesson = made(tmp_path / "other", f"{HEAD}# %% One\nx = 1\n")
    stage = Typing("s", "q")
    Player(lesson, stage).play()
    assert "the last step lists the source" in " ".join(text_of(stage.drawn).split())


def test_code_never_breaks_inside_a_string():
    source = 'name = f("one two three four five six seven", value) + rest_of_it\n'
    source += "whole = 'one two three four five six seven eight nine ten'\n"
    source += "if some_condition and another_condition and a_third_condition:\n    pass"
    event = {"event": "code", "source": source, "line": 1}
    rows = ["".join(text for text, _ in line) for line in lines(event, Page(60))]
    text = "\n".join(rows)
    assert '"one two three four five six seven"' in text
    assert "'one two three four five six seven eight nine ten'" in text
    assert "another_condition and \\\n" in text
    assert 'seven", value) + \\\n' in text
    compile(textwrap.dedent(text), "code", "exec")  # it is still Python


def test_a_step_that_fails_names_its_line(tmp_path):
    lesson = made(tmp_path, f"{HEAD}# %% One\nx = 1\n\n\ndef f():\n    return x / 0\n\n\nf()\n")
    line = lesson.text.splitlines().index("    return x / 0") + 1
    where = rf"step 1, line {line + 3}: f\(\); line {line} \(in f\): return x / 0"
    with pytest.raises(MinqkvError, match=where) as error:
        Player(lesson, stages.Recorder()).play(pause=False)
    assert error.value.hint.startswith("ZeroDivisionError")


# ---- events


def drawn(function, *args, width=60, **kwargs):
    recorder = stages.Recorder()
    with events.on(recorder):
        function(*args, **kwargs)
    return drawn_at(recorder.drawn, width)


def test_rows_that_can_be_read_only_once():
    """Exercise 20 refuses what a chip cannot do: go back, choose a row, or hold all of them."""
    check = checks.Check(find("20", course()))

    def in_two_passes(q, rows, mask):
        scores = [q @ row for row in rows]
        return sum(score * row for score, row in zip(scores, rows, strict=True))

    faults = {
        "a second time": in_two_passes,
        "one after another": lambda q, rows, mask: rows[len(rows) - 1],
        "not an array": lambda q, rows, mask: np.asarray(rows),
        "'rows read'] is 1; expected 7": lambda q, rows, mask: 0 * next(iter(rows)),
    }
    for fault, running in faults.items():
        learner = SimpleNamespace(running=running)
        outcomes = [checks.attempt(check, learner, seed) for seed in range(checks.CASES)]
        assert any(fault in str(outcome.fault) for outcome in outcomes), fault
    seen = [np.isfinite(check.case(seed)[2]) for seed in range(checks.CASES)]
    scores = [check.case(seed)[1] @ check.case(seed)[0] for seed in range(checks.CASES)]
    assert {1} < {len(row) for row in seen}
    assert any(not row.any() for row in seen)
    assert any(row.any() and not row[0] for row in seen)
    assert max(s[row].max(initial=0) for s, row in zip(scores, seen, strict=True)) > 2000


def test_arrays_as_text():
    s, seen = np.array([[0.12345, -2], [1e-9, 3]]), [[True, False], [True, True]]
    found = drawn(events.show, "s", s, mask=seen, rows=["a", "b"])
    assert found.splitlines()[:4] == [
        "s  (2, 2)",
        "       0      1",
        "a  0.123      .",
        "b  0.000  3.000",
    ]
    wide = drawn(events.show, "w", np.arange(30.0).reshape(1, 30) * 1000, width=40)
    assert max(map(len, wide.splitlines())) <= 40
    assert all(f"{1000 * i}.000" in wide for i in range(30))
    assert "[1]" in drawn(events.show, "three", np.zeros((2, 1, 2)))
    assert "[/t]" in drawn(events.show, "[/t]", np.float64(2))
    assert "inf" in drawn(events.show, "over", np.array([np.inf, -np.inf, np.nan]))


def test_curves_and_tables_fit():
    curves = {"a": np.geomspace(1, 1e-4, 200), "b": np.ones(200)}
    header, row = ["name", *["column"] * 9], ["x", *range(1000, 1009)]
    for width in (40, 80):
        found = drawn(events.curve, "loss", curves, log=True, width=width)
        assert max(map(len, found.splitlines())) <= width
        assert "0.0001" in found
        found = drawn(events.table, "t", header, [row], width=width)
        assert max(map(len, found.splitlines())) <= width
        assert all(str(n) in found for n in range(1000, 1009))
    assert "3" in drawn(events.curve, "flat", {"one": [3.0]})


def test_a_roofline():
    """1e12 bytes and 1e14 operations per second: the corner is at 100 operations per byte."""
    points = {"few": 0.1, "some": 10, "as many": 10, "corner": 100, "many": 500}
    for width in (40, 60, 80):
        found = drawn(events.roofline, "a card", 1e12, 1e14, points, width=width).splitlines()
        assert max(map(len, found)) <= width
        assert found[0] == "a card"
        rows = [row.split("|") for row in found[1:11]]
        assert [round(float(row[0]), 3) for row in rows[::3]] == [100, 10, 1, 0.1]
        marks = {c: i for i, (_, row) in enumerate(rows) for c in row.strip() if c != "."}
        assert marks == {"a": 9, "*": 3, "d": 0, "e": 0}  # b and c meet
        line = [next(i for i, row in enumerate(rows) if row[1].ljust(c + 1)[c] != " ")
                for c in range(max(len(row[1]) for row in rows))]  # fmt: skip
        assert line == sorted(line, reverse=True)
        assert len(line) == min(width - 11, 64)
        assert found[12].split() == ["0.1", "1", "10", "100"]
        assert found[12].index("10 ") == 11 + rows[3][1].index("*")
    assert found[14] == "b  some: 10 operations per byte, at most 10 trillion per second"
    assert found[17] == "e  many: 500 operations per byte, at most 100 trillion per second"
    assert "a  one: 1 op" in drawn(events.roofline, "flat", 1e12, 1e12, {"one": 1})


def test_compare_holds_the_lesson_to_its_word():
    assert "the same" in drawn(events.compare, "a", np.ones(2), "b", np.ones(2))
    assert "not the same" in drawn(events.compare, "a", np.ones(2), "b", np.zeros(2), same=False)
    for a, same in ((np.zeros(2), True), (np.ones(2), False), (np.ones(3), True)):
        with pytest.raises(events.LessonError):
            drawn(events.compare, "a", a, "b", np.ones(2), same=same)


def test_memory_and_bytes():
    a = np.ones(4)
    assert "v: same memory as k (0 extra bytes)" in drawn(events.memory, k=a, v=a[:2])
    assert "v: its own memory (32 bytes)" in drawn(events.memory, k=a, v=a.copy())
    model = mq.GPT(mq.GPTConfig(5, 8, 1, 2, 8, "q-k=v"))
    cache = model.new_cache()
    model([[1, 2]], cache=cache)
    line = drawn(events.cache_step, cache, model.config, 2).strip()
    assert line == "t=2 write 64 B read 64 B cache 64 B (two arrays: 128 B)"
    with pytest.raises(events.LessonError, match="the formula says"):
        drawn(events.cache_step, cache, mq.GPTConfig(5, 8, 1, 2, 8, "qkv"))


class Guess(stages.Recorder):
    """A stage at which somebody guesses once, and then only presses Enter."""

    def __init__(self, reply):
        super().__init__()
        self.replies = [reply]

    def ask(self, prompt):
        return self.replies.pop() if self.replies else ""


@pytest.mark.parametrize(
    ("reply", "answer", "options", "right"),
    [
        ("4", 4.0, None, True),
        ("3,999", 4.0, None, True),
        ("5", 4.0, None, False),
        ("1/2", 0.5, None, True),
        ("-3 * -2 ** 2", 12, None, True),
        ("0,5", 0.5, None, True),
        ("1,024", 1024, None, True),
        ("2^10", 1024, None, True),
        ("1/3", 0.3333, None, True),
        ("50%", 0.5, None, True),
        ("½", 0.5, None, True),
        ("−.5", -0.5, None, True),
        (" 1 / 2 ", 0.5, None, True),
        ("1 024", 1024, None, True),
        ("1_024", 1024, None, True),
        ("[2,3]", "(2, 3)", ["(2, 3)", "(3,)"], True),
        ("3,", "(2, 3)", ["(2, 3)", "(3,)"], False),
        ("sqrt(2)", 1.414, None, True),
        ("exp(1)", 2.718, None, True),
        ("3/4", 0.5, None, False),
        ("", 4.0, None, None),
        ("y", True, None, True),
        ("no", True, None, False),
        ("b", "two", ["one", "two"], True),
        ("a", "two", ["one", "two"], False),
        ("Two", "two", ["one", "two"], True),
        ("7", np.int64(7), None, True),
    ],
)
def test_predictions(reply, answer, options, right):
    with events.on(Guess(reply)) as stage:
        events.predict("Which?", answer, options)
    assert [event["event"] for event in stage.drawn] == ["predict", "answer"]
    assert stage.drawn[1]["right"] is right


NO_NUMBERS = [
    "four", "4 nouns", "4nouns", "8 bytes", "1k", "nan", "1e999", "1/0", "(-8) ** .5", "9**9**9",
    "__import__('os')", "x.y", "[4]", "4 if 1 else 5", "True",
    "(" * 70 + "4", "4+" * 2000 + "4", "exp(1, 2)", "-'4'",
]  # fmt: skip
NO_ANSWERS = [
    *((text, 4.0, None) for text in NO_NUMBERS),
    *(("maybe", True, None), ("7", "5", ["5", "6"])),
    *(("c", "two", ["one", "two"]), ("tw", "two", ["one", "two"])),
]


@pytest.mark.parametrize(("reply", "answer", "options"), NO_ANSWERS)
def test_what_is_no_answer_is_asked_again(reply, answer, options):
    with events.on(Guess(reply)) as stage:
        events.predict("Which?", answer, options)
    assert [event["event"] for event in stage.drawn] == ["predict", "say", "answer"]
    assert stage.drawn[1]["text"].startswith("Answer ")
    assert stage.drawn[2]["right"] is None


class Asked(stages.Recorder):
    """A stage at which somebody types these lines, whatever is asked."""

    def __init__(self, *replies):
        super().__init__()
        self.replies = list(replies)

    def ask(self, prompt):
        if not self.replies:
            raise EOFError
        return self.replies.pop(0)


def test_keys_work_at_a_question(tmp_path):
    """Where they are no answers: b is the second option of a choice, and back elsewhere."""
    text = "from minqkv.teach import predict\n\n# %% One\nx = [1]\n\n# %% Two\n"
    text += "predict('How much?', 0.5)\n\n# %% Three\npredict('Which?', 'p', ['o', 'p'])\n"
    lesson = made(tmp_path, f"{HEAD}# %% Zero\n{text}")
    kept, keys = [], ["", "", "?", "h", "s", "x y", "g 2", "", "1/2", "", "b", "q"]
    stage = Asked(*keys)
    assert not Player(lesson, stage, kept.append, lambda: "think").play()
    assert stage.replies == []
    steps = [event["number"] for event in stage.drawn if event["event"] == "step"]
    assert steps == [1, 2, 3, 2, 3, 4]
    assert [e["right"] for e in stage.drawn if e["event"] == "answer"] == [True, True]
    said = text_of(stage.drawn)
    for words in ("back one step", "think", "No function", "Answer with a number"):
        assert words in said
    assert kept == [0, 1, 2, 1, 2, 3, 4]
    for keys, place in ((["", "", "q"], 2), (["", "", "b", "q"], 2), (["g 4", "q"], 3)):
        kept = []
        Player(lesson, Asked(*keys), kept.append).play()
        assert kept[-1] == place, keys


def test_a_step_that_was_left_halfway_starts_afresh(tmp_path):
    text = "from minqkv.teach import predict, say\nx = [1]\n\n"
    text += "# %% Two\nx.append(2)\npredict('How many?', len(x))\n"
    stage = Asked("", "g 2", "2", "q")
    Player(made(tmp_path, f"{HEAD}# %% One\n{text}"), stage).play()
    assert [e["right"] for e in stage.drawn if e["event"] == "answer"] == [True]


def test_a_prediction_that_cannot_be_right():
    with (
        events.on(stages.Recorder()),
        pytest.raises(events.LessonError, match="none of the options"),
    ):
        events.predict("Which?", "three", ["one", "two"])


# ---- commands


def test_commands_from_beginning_to_end(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "LIMIT", PATIENCE_S)
    number = str(LESSON.number)
    mine = tmp_path / f"minqkv-work/{LESSON.name}.py"
    assert "Next:   minqkv learn" in cli()[1]
    code, out, err = cli("lesson", "play", number)
    assert (code, err) == (0, "")
    assert not list(tmp_path.iterdir())  # no terminal, no progress
    assert cli("lesson", "check", number)[0] == 1
    assert "Write attend there" in cli("lesson", "start", number)[1]
    code, out, _ = cli("lesson", "check", number)
    assert code == 1
    assert "You have not changed this file yet; edit it." in out
    mine.write_text(SOLUTION)
    code, out, _ = cli("lesson", "check", number)
    assert code == 0
    assert f"Correct on all {checks.CASES} cases." in out
    assert "def attend" in cli("lesson", "solution", number)[1]
    assert "done" in cli("lesson", "list")[1]
    assert "older" not in cli("lesson", "list")[1]
    path = Progress().path
    Progress().update(LESSON, passed="of another day")
    assert "done (older)" in cli("lesson", "list")[1]
    Progress().update(LESSON, passed=fingerprint(LESSON))
    assert "backup-1" in cli("lesson", "reset", number)[1]
    path.write_text("{")
    code, out, err = cli("lesson", "list")
    assert code == 0
    assert "is damaged" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("lesson", "play", "77"), 2, "no lesson 77"),
        (("lesson", "play", "atention_by_hand"), 2, "did you mean attention_by_hand"),
        (("lesson", "chekc"), 2, "Did you mean"),
        (("lesson", "solution", "6"), 2, "unlocks once your code passes"),
        (("trace", "forward", "--tokens", "a"), 2, "not a list"),
        (("trace", "forward", "--tokens", "-1"), 2, "whole numbers from 0"),
        (("trace", "forward", "--variant", "q-k=w"), 2, "unknown variant"),
        (("trace", "decode", "--n-head", 3), 2, "not divisible"),
    ],
)
def test_wrong_input(args, code, message, cli):
    found, _, err = cli(*args)
    assert found == code
    assert message in err


COMMANDS = [
    "lesson list",
    "lesson play 6",
    "lesson start 6",
    "lesson check 6",
    "lesson hint 6",
    "lesson hunt",
    "lesson hunt 1",
    "trace forward",
    "trace decode",
    "trace backward",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_json(command, cli):
    _, out, _ = cli(*command.split(), "--json")
    for line in [out] if out.startswith(("[", "{\n")) else out.splitlines():
        json.loads(line, parse_constant=pytest.fail)


VARIANTS = [name.replace("-N", "-2") for name in NAMES] + ["gqa-2-thin-2", "gla-2", "mla"]
TRACED = [*itertools.product(VARIANTS, ["learned", "rope"]), ("gta-2", "rope")]


@pytest.mark.parametrize(("variant", "position"), TRACED)
def test_trace(variant, position, cli, monkeypatch):
    size = ("--n-head", 4, "--n-embd", 8)
    for view in ("forward", "decode", "backward"):
        for width in (40, 100):
            monkeypatch.setenv("COLUMNS", str(width))
            of = ("--variant", variant, "--position", position)
            code, out, err = cli("trace", view, *of, *size)
            assert (code, err) == (0, "")
            assert max(map(len, out.splitlines())) <= width
        if view == "decode":
            differences = re.findall(r"without a cache:\s+([\d.e+-]+)", " ".join(out.split()))
            assert max(map(float, differences)) < 1e-5
            spec, apart = mq.VariantSpec.parse(variant), "turned: its own memory" in out
            one_array = "values: same memory as keys" in out
            assert apart == (spec.apart and position == "rope")
            assert one_array == (spec.streams == 1 and not apart)
            assert ("(two arrays:" in out) == one_array
    assert "grad.scores" in out


def test_svg(cli, tmp_path):
    for args in (("lesson", "play", "6"), ("trace", "forward")):
        assert cli(*args, "--svg", "a.svg")[0] == 0
        text = (tmp_path / "a.svg").read_text("utf-8")
        xml.dom.minidom.parseString(text)
        assert ("pattern" if args[0] == "lesson" else "attention weights") in text
        for known in ("http://www.w3.org", "https://www.textualize.io"):
            text = text.replace(known, "")
        assert "http" not in text


def test_watch(tmp_path):
    desk.start(LESSON, Progress(tmp_path / "minqkv-work"))
    watching = start("lesson", "check", "6", "--watch", cwd=tmp_path, stdout=subprocess.PIPE)
    said = ""
    while "Watching the file" not in said:
        said += watching.stdout.readline() or pytest.fail(said)
    (tmp_path / f"minqkv-work/{LESSON.name}.py").write_text(SOLUTION)
    out, _ = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 0
    assert "not written yet" in said
    assert "Correct on all" in out


# ---- a real terminal


class Terminal:
    """A command in a pseudo-terminal that one can type into."""

    def __init__(self, *args, cwd, columns=80, **env):
        self.main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        options = dict.fromkeys(("stdin", "stdout", "stderr"), side)
        options |= {"encoding": None, "start_new_session": True, "preexec_fn": _interruptible}
        self.child = start(*args, cwd=cwd, env=env, **options)
        os.close(side)
        self.text = ""

    def until(self, part):
        """Read until this text has been printed; returns what was printed since the last call.
        Where a full screen waits, press Enter.
        """
        limit, more = time.monotonic() + PATIENCE_S, "[Enter] more, [?] keys: "
        while more in self.text or part not in self.text:
            if more in self.text:
                self.text = self.text.replace(more, "", 1)
                self.type("")
                continue
            assert time.monotonic() < limit, f"no {part!r} in {self.text[-500:]!r}"
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.main, 65536).decode()
                except OSError:  # the other side is closed
                    assert part in self.text, self.text[-500:]
        at = self.text.index(part) + len(part)
        before, self.text = self.text[:at], self.text[at:]
        return before

    def type(self, line):
        os.write(self.main, f"{line}\n".encode())

    def interrupt(self):
        """Ctrl-C, once the child sleeps in its read: C's fgets would lose an earlier one."""
        wait_until(lambda: _state(self.child.pid) in ("S", None))
        os.killpg(self.child.pid, signal.SIGINT)

    def end(self):
        os.close(self.main)
        return self.child.wait(PATIENCE_S)


def _interruptible():
    """As in a shell: a test run in the background would hand on that it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _state(pid):
    """One letter: R runs, S sleeps, Z is a zombie; None where it is gone, or there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    "env",
    [{"TERM": "xterm-256color"}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}],
    ids=str,
)
def test_a_walk(env, tmp_path):
    walk = Terminal("lesson", "play", "6", cwd=tmp_path, columns=60, **env)
    assert "step 1 of" in walk.until("keys: ")
    walk.type("")
    assert "step 2 of" in walk.until("?: keys): ")
    walk.type("4")
    assert "= right: 4" in walk.until("keys: ")
    walk.type("b")
    assert "step 1 of" in walk.until("keys: ")
    walk.type("h")
    assert "Hint 1 of 3" in walk.until("keys: ")
    walk.type("p")
    walk.until(">>> ")
    walk.type("x.shape")
    assert "(3, 4)" in walk.until(">>> ")
    walk.type("exit()")
    walk.until("keys: ")
    walk.type("g 4")
    walk.until("?: keys): ")
    walk.interrupt()
    walk.until("continue with: minqkv lesson play 6")
    assert walk.end() == 130
    walk = Terminal("lesson", "play", "6", cwd=tmp_path, columns=60, **env)
    assert "step 4 of" in walk.until("?: keys): ")
    walk.type("q")
    walk.until("Your place is saved. Next: minqkv lesson play 6")
    assert walk.end() == 0


# ---- installed


def test_the_wheel_carries_the_lessons(tmp_path):
    """What setuptools puts into one, without the network that building one may need."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build", "-b", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    code = "from minqkv.teach import lessons; print(lessons.root())\n"
    code += "print(*(lesson.name for lesson in lessons.course()))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    options = {"cwd": tmp_path, "env": env, "capture_output": True, "encoding": "utf-8"}
    done = subprocess.run([sys.executable, "-P", "-c", code], **options)
    assert done.returncode == 0, done.stderr
    where, names = done.stdout.splitlines()
    assert where == str(tmp_path / "lib/minqkv/_lessons")
    assert names.split() == [lesson.name for lesson in course()]
    for kind in lessons.FILES:
        assert (tmp_path / f"lib/minqkv/_lessons/{LESSON.name}/{kind}.py").exists()
        assert (tmp_path / f"lib/minqkv/_lessons/hunts/h01_cached_step/{kind}.py").exists()
