"""The runner: keys, progress, what a learner's file can do wrong, the terminal, and how the lessons
are installed.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, start, wait_until

from minqkv.render import lesson as stages
from minqkv.render.layout import Page, lines
from minqkv.runtime.errors import EnvironmentFault, MinqkvError, UsageError
from minqkv.teach import checks, desk, events
from minqkv.teach.lessons import course, find, fingerprint
from minqkv.teach.progress import Progress, next_thing
from minqkv.teach.runner import Player

LESSON = find("06", course())


def text_of(found):
    return " ".join(str(event.get("text", event.get("source", ""))) for event in found)


# ---- a learner's file

ANSWERS = {
    "empty": ("", "is empty"),
    "syntax": ("def attend(x, wq, wk, wv)\n    return 1\n", "line 1: expected ':'"),
    "not text": (b"\xff\xfe\x00x", "not UTF-8"),
    "stub": (LESSON.companion("exercises").read_text("utf-8"), "not written yet"),
    "another name": ("def attention(x):\n    return x\n", "defines no attend"),
    "at import": ("import nothing_of_the_kind\n", "stops before it is used: ModuleNotFoundError"),
    "import error line": ("x = 1\nx.y\n", "line 2: x.y"),
    "too many arguments": ("def attend(x):\n    return x\n", "TypeError"),
    "raises": (
        "def attend(x, wq, wk, wv):\n    y = x\n    return y.nothing\n",
        "line 3 (in attend): return y.nothing",
    ),
    "endless": (
        "def attend(x, wq, wk, wv):\n    while True:\n        x = x\n",
        "a loop that never ends",
    ),
    "endless import": ("while True:\n    pass\n", "never ends"),
    "exit": ("import sys\ndef attend(x, wq, wk, wv):\n    sys.exit(0)\n", "calls exit()"),
    "hard exit": (
        "import os\ndef attend(x, wq, wk, wv):\n    os._exit(0)\n",
        "ended before the check did",
    ),
    "none": ("def attend(x, wq, wk, wv):\n    x @ wv\n", "is there a `return`?"),
    "list": (
        "def attend(x, wq, wk, wv):\n    return (x @ wv).tolist()\n",
        "expected a NumPy array of shape",
    ),
    "tensor": (
        "import minqkv\ndef attend(x, wq, wk, wv):\n    return minqkv.Tensor(x @ wv)\n",
        "a Tensor",
    ),
    "shape": ("def attend(x, wq, wk, wv):\n    return x\n", "has shape"),
    "dtype": (
        "def attend(x, wq, wk, wv):\n    return (x @ wv).astype('float32')\n",
        "dtype float32; expected float64",
    ),
    "nan": ("def attend(x, wq, wk, wv):\n    return x @ wv * float('nan')\n", "not finite"),
    "in place": (
        "def attend(x, wq, wk, wv):\n    x += 1\n    return x @ wv\n",
        "the argument x was changed in place",
    ),
    "prints": (
        "def attend(x, wq, wk, wv):\n    print('look', x.shape)\n    return x @ wv\n",
        "look (",
    ),
    "byte order mark": (
        b"\xef\xbb\xbfdef attend(x, wq, wk, wv):\n    return x @ wv\n",
        "off by up to",
    ),
    "a tab in an error": (
        "def attend(x, wq, wk, wv):\n    raise ValueError('a\\tb\\x1b[31m')\n",
        "ValueError: a",
    ),
    "complex": ("def attend(x, wq, wk, wv):\n    return x @ wv + 0j\n", "dtype complex128"),
    "strings": (
        "import numpy as np\ndef attend(x, wq, wk, wv):\n    return (x @ wv).astype(str)\n",
        "dtype",
    ),
    "a class that objects": (
        "import numpy as np\nclass A(np.ndarray):\n    def __abs__(self):\n        raise OSError('no')\n    __sub__ = __abs__\n"
        "def attend(x, wq, wk, wv):\n    return (x @ wv * 2).view(A)\n",
        "off by up to",
    ),
    "prints a lot": (
        "def attend(x, wq, wk, wv):\n    print('a' * 3_000_000)\n    return x @ wv\n",
        "(and more)",
    ),
    "too large to show": (
        "import numpy as np\ndef attend(x, wq, wk, wv):\n    return np.ones((99, 99))\n",
        "too large to show",
    ),
    "a dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
        "def attend(x, wq, wk, wv):\n    return A(1).x * (x @ wv)\n",
        "off by up to",
    ),
    "elsewhere": (
        "import os\nos.chdir('/')\ndef attend(x, wq, wk, wv):\n    return x.nothing\n",
        "return x.nothing",
    ),
    "a thread left": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "def attend(x, wq, wk, wv):\n    return x @ wv\n",
        "off by up to",
    ),
    "prints nonsense": (
        "print('{\"passed\": true}')\ndef attend(x, wq, wk, wv):\n    return x @ wv\n",
        "off by up to",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_file_can_do_wrong(name, tmp_path):
    source, message = ANSWERS[name]
    path = tmp_path / "mine.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    passed, found = desk.run(LESSON, path, limit=1.5 if "endless" in name else 20)
    assert not passed
    assert message in text_of(found)
    assert "Traceback" not in text_of(found)
    assert "site-packages" not in text_of(found)
    drawn = "\n".join(
        "".join(text for text, _ in line) for event in found for line in lines(event, Page(40))
    )
    assert "\x1b" not in drawn
    assert max(map(len, drawn.split("\n"))) <= 40


@pytest.mark.parametrize("late", ["raise ValueError('worn out')", "time.sleep(0.04)"])
def test_a_right_answer_passes_however_it_fares_afterwards(late, tmp_path):
    """It works thirty times and then no longer, or it is slow: its cost is left out, the pass is
    not.
    """
    solution = LESSON.companion("solutions").read_text("utf-8").replace("def attend(", "def right(")
    after = 30 if "raise" in late else 0
    source = f"import time\n{solution}\ncalls = []\ndef attend(*args):\n    calls.append(1)\n"
    (tmp_path / "a.py").write_text(
        f"{source}    if len(calls) > {after}:\n        {late}\n    return right(*args)\n"
    )
    passed, found = desk.run(LESSON, tmp_path / "a.py")
    assert passed
    assert found[0]["text"] == f"Right on all {checks.CASES} cases."


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
    assert "directory" in text_of(found)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("1,024", True), ("1024", True), ("1.024", False), ("nan", False), ("x", False)],
)
def test_numbers_as_people_write_them(reply, right):
    assert events._right(reply, 1024, "1024", None, 1e-2) is right
    assert events._right("0,5", 0.5, "0.5", None, 1e-2)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_what_an_answer_starts_ends_with_the_check(tmp_path):
    note = tmp_path / "pid"
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    (tmp_path / "a.py").write_text(
        f"import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {sleeper!r}], stdout=open({str(note)!r}, 'w'), stderr=subprocess.DEVNULL)\n"
        f"import os, time\n"
        f"while not os.path.getsize({str(note)!r}):\n    time.sleep(0.01)\n"
        f"def attend(x, wq, wk, wv):\n    return x @ wv\n"
    )
    passed, _ = desk.run(LESSON, tmp_path / "a.py")
    assert not passed

    def gone():
        try:
            return Path(f"/proc/{int(note.read_text())}/stat").read_text().split()[2] == "Z"
        except FileNotFoundError:
            return True

    wait_until(gone)


def test_a_mistake_that_is_no_near_miss_is_not_named(tmp_path):
    (tmp_path / "a.py").write_text("def attend(x, wq, wk, wv):\n    return x @ wv * 3\n")
    passed, found = desk.run(LESSON, tmp_path / "a.py")
    diagnoses = {diagnosis for diagnosis, _ in checks.near_misses(LESSON).values()}
    assert not passed
    assert not diagnoses & {event.get("text") for event in found}
    names = [event["name"] for event in found if event["event"] == "show"]
    assert names == ["x", "wq", "wk", "wv", "yours", "expected"]


OTHER = {  # several names, a class with state, gradients: what `use` is for
    "exercises": "def double(x):\n    raise NotImplementedError\nclass Sum:\n    pass\n",
    "solutions": """
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
    "checks": """
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
    head = LESSON.text[: LESSON.text.index("# %%")].replace(
        'exercise = "attend"', 'exercise = ["double", "Sum"]'
    )
    (tmp_path / "01_other.py").write_text(f"{head}# %% One\nx = 1\n")
    for folder, text in OTHER.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "01_other.py").write_text(text)
    (lesson,) = course(tmp_path)
    assert desk.run(lesson, lesson.companion("solutions"))[0]
    check = checks.Check(lesson)
    for name, message in (("double__square", "You square."), ("Sum__forgets", "You keep nothing.")):
        diagnosis, wrong = checks.near_misses(lesson)[name]
        outcomes = checks.judge(check, wrong)
        assert diagnosis == message == checks.diagnose(check, lesson, outcomes)
        assert all(outcome.fault for outcome in outcomes)
    passed, found = desk.run(lesson, lesson.companion("exercises"))
    assert not passed
    assert "not written yet" in text_of(found)


@pytest.mark.parametrize(
    ("found", "expected", "fault"),
    [
        (1.0, 1, None), (np.float64(2), 2.0, None), (True, 1.0, "expected a number"), ("1", 1.0, "expected a number"),
        ((1, 2), (1, 2), None), ([1, 2], (1, 2), None), ((1,), (1, 2), "a tuple of 1"), (3, (1, 2), "expected a tuple of 2"),
        ({"a": 1}, {"a": 1}, None), ({"b": 1}, {"a": 1}, "expected ['a']"),
        ({"a": (1, 2)}, {"a": (1, 3)}, "['a'][1] is 2; expected 3"), ("x", "x", None),
        ("y", "x", "'y'"), (None, None, None), (np.ones(2), np.ones(2), None), (np.ones(2), np.ones(3), "shape"),
        (np.float64(1), np.asarray(1.0), None), (np.array([1, np.nan]), np.ones(2), "not finite"),
    ],
)  # fmt: skip
def test_differences(found, expected, fault):
    said = checks.difference(found, expected, 1e-9)
    assert said is None if fault is None else fault in said


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
    (tmp_path / LESSON.path.name).write_bytes(LESSON.companion("solutions").read_bytes())
    passed, _ = desk.check(LESSON, again)
    assert passed
    assert Progress(tmp_path).of(LESSON)["passed"] == fingerprint(LESSON)


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
    again = Progress(tmp_path)
    assert again.of(LESSON) == {}
    assert "set" in again.message or "now" in again.message
    assert [path.read_text() for path in progress.path.parent.glob("*unreadable*")] == [content]
    assert Progress(tmp_path).message is None


def test_a_newer_progress_file_is_left_alone(tmp_path):
    progress = Progress(tmp_path)
    progress.update(LESSON, step=3)
    progress.path.write_text('{"schema": 99, "lessons": {}}')
    with pytest.raises(EnvironmentFault, match="newer"):
        Progress(tmp_path)
    assert "99" in progress.path.read_text()


def test_hints_solution_reset(tmp_path):
    progress = Progress(tmp_path)
    assert [desk.hint(LESSON, progress)[:11] for _ in range(4)] == [
        "Hint 1 of 3",
        "Hint 2 of 3",
        "Hint 3 of 3",
        "Hint 3 of 3",
    ]
    with pytest.raises(UsageError, match="after a pass"):
        desk.solution(LESSON, progress)
    assert (
        desk.solution(LESSON, progress, spoil=True).read_bytes()
        == LESSON.companion("solutions").read_bytes()
    )
    path, new = desk.start(LESSON, progress)
    assert new
    path.write_text("mine")
    assert desk.start(LESSON, progress) == (path, False)
    assert path.read_text() == "mine"
    assert desk.reset(LESSON, progress).read_text() == "mine"
    assert path.read_bytes() == LESSON.companion("exercises").read_bytes()
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
    assert seen == steps


def test_keys_that_tell():
    stage = Typing("g 3", "s", "h", "?", "x", "g 0")
    Player(LESSON, stage, hint=lambda: "Hint 1 of 3: think").play()
    text = text_of(stage.drawn)
    assert "Attention.forward" in text
    assert "def forward(self, x, mask=None" in text
    assert "Hint 1 of 3: think" in text
    assert "quit; the position is kept" in text
    assert "'x' is no key" in text
    assert "for instance: g 2" in text


def test_a_step_that_fails_names_its_line(tmp_path):
    head = LESSON.text[: LESSON.text.index("# %%")]
    (tmp_path / "01_a.py").write_text(
        f"{head}# %% One\nx = 1\n\n\ndef f():\n    return x / 0\n\n\nf()\n"
    )
    (lesson,) = course(tmp_path)
    line = lesson.text.splitlines().index("    return x / 0") + 1
    with pytest.raises(
        MinqkvError, match=rf"step 1, line {line + 3}: f\(\); line {line} \(in f\): return x / 0"
    ) as error:
        Player(lesson, stages.Recorder()).play(pause=False)
    assert error.value.hint.startswith("ZeroDivisionError")


# ---- events


def drawn(function, *args, width=60, **kwargs):
    recorder = stages.Recorder()
    with events.on(recorder):
        function(*args, **kwargs)
    return "\n".join(
        "".join(t for t, _ in line)
        for event in recorder.drawn
        for line in lines(event, Page(width))
    )


def test_arrays_as_text():
    found = drawn(
        events.show,
        "s",
        np.array([[0.12345, -2], [1e-9, 3]]),
        mask=[[True, False], [True, True]],
        rows=["a", "b"],
    )
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
    for width in (40, 80):
        found = drawn(
            events.curve,
            "loss",
            {"a": np.geomspace(1, 1e-4, 200), "b": np.ones(200)},
            log=True,
            width=width,
        )
        assert max(map(len, found.splitlines())) <= width
        assert "0.0001 at last" in found
        found = drawn(
            events.table, "t", ["name", *["column"] * 9], [["x", *range(1000, 1009)]], width=width
        )
        assert max(map(len, found.splitlines())) <= width
        assert all(str(n) in found for n in range(1000, 1009))
    assert "3" in drawn(events.curve, "flat", {"one": [3.0]})


def test_compare_holds_the_lesson_to_its_word():
    assert "the same" in drawn(events.compare, "a", np.ones(2), "b", np.ones(2))
    assert "not the same" in drawn(events.compare, "a", np.ones(2), "b", np.zeros(2), same=False)
    for a, same in ((np.zeros(2), True), (np.ones(2), False), (np.ones(3), True)):
        with pytest.raises(events.LessonError):
            drawn(events.compare, "a", a, "b", np.ones(2), same=same)


def test_memory_and_bytes():
    import minqkv as mq

    a = np.ones(4)
    assert "v: same memory as k (0 extra bytes)" in drawn(events.memory, k=a, v=a[:2])
    assert "v: its own memory (32 bytes)" in drawn(events.memory, k=a, v=a.copy())
    model = mq.GPT(mq.GPTConfig(5, 8, 1, 2, 8, "q-k=v"))
    cache = model.new_cache()
    model([[1, 2]], cache=cache)
    assert (
        drawn(events.cache_step, cache, model.config, 2).strip()
        == "t=2 write 64 B read 64 B cache 64 B (two arrays: 128 B)"
    )
    with pytest.raises(events.LessonError, match="the formula says"):
        drawn(events.cache_step, cache, mq.GPTConfig(5, 8, 1, 2, 8, "qkv"))


class Guess(stages.Recorder):
    def __init__(self, reply):
        super().__init__()
        self.reply = reply

    def ask(self, prompt):
        return self.reply


@pytest.mark.parametrize(
    ("reply", "answer", "options", "right"),
    [
        ("4", 4.0, None, True), ("3,999", 4.0, None, True), ("5", 4.0, None, False), ("four", 4.0, None, False),
        ("", 4.0, None, None),
        ("y", True, None, True), ("no", True, None, False), ("b", "two", ["one", "two"], True),
        ("a", "two", ["one", "two"], False), ("Two", "two", ["one", "two"], True), ("7", np.int64(7), None, True),
    ],
)  # fmt: skip
def test_predictions(reply, answer, options, right):
    with events.on(Guess(reply)) as stage:
        events.predict("Which?", answer, options)
    assert [event["event"] for event in stage.drawn] == ["predict", "answer"]
    assert stage.drawn[1]["right"] is right


def test_a_prediction_that_cannot_be_right():
    with (
        events.on(stages.Recorder()),
        pytest.raises(events.LessonError, match="none of the options"),
    ):
        events.predict("Which?", "three", ["one", "two"])


# ---- commands


def test_commands_from_beginning_to_end(cli, tmp_path):
    number = str(LESSON.number)
    assert "Next:   minqkv learn" in cli()[1]
    code, out, err = cli("lesson", "play", number)
    assert (code, err) == (0, "")
    assert not list(tmp_path.iterdir())  # no terminal, no progress
    assert cli("lesson", "check", number)[0] == 1
    assert "Write attend there" in cli("lesson", "start", number)[1]
    code, out, _ = cli("lesson", "check", number)
    assert code == 1
    assert "this is the one to edit" in out
    (tmp_path / "minqkv-work" / LESSON.path.name).write_bytes(
        LESSON.companion("solutions").read_bytes()
    )
    code, out, _ = cli("lesson", "check", number)
    assert code == 0
    assert "times as long as the package" in out
    assert "def attend" in cli("lesson", "solution", number)[1]
    assert "done" in cli("lesson", "list")[1]
    assert "older" not in cli("lesson", "list")[1]
    path = Progress().path
    path.write_text(path.read_text().replace(fingerprint(LESSON), "of another day"))
    assert "done (older)" in cli("lesson", "list")[1]
    path.write_text(path.read_text().replace("of another day", fingerprint(LESSON)))
    assert "backup-1" in cli("lesson", "reset", number)[1]
    (tmp_path / "minqkv-work/.minqkv/progress.json").write_text("{")
    code, out, err = cli("lesson", "list")
    assert code == 0
    assert "could not be read" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("lesson", "play", "77"), 2, "unknown lesson '77'"),
        (("lesson", "play", "atention_by_hand"), 2, "did you mean attention_by_hand"),
        (("lesson", "chekc"), 2, "Did you mean"), (("lesson", "solution", "6"), 2, "after a pass"),
        (("trace", "forward", "--tokens", "a"), 2, "not a list"),
        (("trace", "forward", "--tokens", "-1"), 2, "whole numbers from 0"),
        (("trace", "forward", "--variant", "q-k=w"), 2, "unknown variant"),
        (("trace", "decode", "--n-head", 3), 2, "not divisible"),
    ],
)  # fmt: skip
def test_wrong_input(args, code, message, cli):
    found, _, err = cli(*args)
    assert found == code
    assert message in err


COMMANDS = ["lesson list", "lesson play 6", "lesson start 6", "lesson check 6", "lesson hint 6", "trace forward", "trace decode",
            "trace backward"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_json(command, cli):
    _, out, _ = cli(*command.split(), "--json")
    for line in [out] if out.startswith(("[", "{\n")) else out.splitlines():
        json.loads(line, parse_constant=pytest.fail)


VARIANTS = (
    "qkv",
    "q=k-v",
    "q-k=v",
    "q=k=v",
    "q=k-v+",
    "q=k=v+",
    "gqa-2",
    "mqa",
    "q-gqa-2",
    "q-mqa",
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_trace(variant, position, cli, monkeypatch):
    for view in ("forward", "decode", "backward"):
        for width in (40, 100):
            monkeypatch.setenv("COLUMNS", str(width))
            code, out, err = cli(
                "trace",
                view,
                "--variant",
                variant,
                "--position",
                position,
                "--n-head",
                4,
                "--n-embd",
                8,
            )
            assert (code, err) == (0, "")
            assert max(map(len, out.splitlines())) <= width
        if view == "decode":
            worst = max(
                float(x)
                for x in re.findall(r"without a cache:\s+([\d.e+-]+)", " ".join(out.split()))
            )
            assert worst < 1e-5
            assert ("values: same memory as keys" in out) == (
                variant in ("q-k=v", "q=k=v", "q=k=v+", "q-gqa-2", "q-mqa")
            )
    assert "grad.scores" in out


def test_svg(cli, tmp_path):
    import xml.dom.minidom

    for args in (("lesson", "play", "6"), ("trace", "forward")):
        assert cli(*args, "--svg", "a.svg")[0] == 0
        text = (tmp_path / "a.svg").read_text("utf-8")
        xml.dom.minidom.parseString(text)
        assert "pattern" in text
        assert "http" not in text.replace("http://www.w3.org", "").replace(
            "https://www.textualize.io", ""
        )


def test_watch(tmp_path):
    desk.start(LESSON, Progress(tmp_path / "minqkv-work"))
    child = start("lesson", "check", "6", "--watch", cwd=tmp_path, stdout=subprocess.PIPE)
    said = ""
    while "Watching the file" not in said:
        said += child.stdout.readline() or pytest.fail(said)
    (tmp_path / "minqkv-work" / LESSON.path.name).write_bytes(
        LESSON.companion("solutions").read_bytes()
    )
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "not written yet" in said
    assert "Right on all" in out


# ---- a real terminal


class Terminal:
    """A command in a pseudo-terminal that one can type into."""

    def __init__(self, *args, cwd, columns=80, **env):
        self.main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        options = {
            "stdin": side,
            "stdout": side,
            "stderr": side,
            "encoding": None,
            "start_new_session": True,
        }
        self.child = start(*args, cwd=cwd, env=env, **options)
        os.close(side)
        self.text = ""

    def until(self, part, seconds=20):
        """Read until this text has been printed; returns what was printed since the last call."""
        limit = time.monotonic() + seconds
        while part not in self.text:
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

    def end(self):
        os.close(self.main)
        return self.child.wait(20)


@pytest.mark.parametrize(
    "env",
    [{"TERM": "xterm-256color"}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}],
    ids=str,
)
def test_a_walk(env, tmp_path):
    walk = Terminal("lesson", "play", "6", cwd=tmp_path, columns=60, **env)
    assert "step 1 of" in walk.until("keys: ")
    walk.type("")
    assert "step 2 of" in walk.until("show me): ")
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
    walk.until("show me): ")
    time.sleep(
        0.3
    )  # between its prompt and its reading, C's fgets would lose the signal; nobody is as fast
    os.killpg(walk.child.pid, signal.SIGINT)
    walk.until("the position is kept")
    assert walk.end() == 130
    walk = Terminal("lesson", "play", "6", cwd=tmp_path, columns=60, **env)
    assert "step 2 of" in walk.until("show me): ")  # `b` had gone back to the first
    walk.type("q")
    walk.until("The position is kept. Next: minqkv learn")
    assert walk.end() == 0


# ---- installed


def test_the_wheel_carries_the_lessons(tmp_path):
    """What setuptools puts into one, without the network that building one may need."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build", "-b", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    code = "from minqkv.teach.lessons import root, course; print(root()); print(*(lesson.name for lesson in course()))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    where, names = done.stdout.splitlines()
    assert where == str(tmp_path / "lib/minqkv/_lessons")
    assert names.split() == [lesson.name for lesson in course()]
    for folder in ("exercises", "solutions", "near_misses", "checks"):
        assert (tmp_path / f"lib/minqkv/_lessons/{folder}/{LESSON.path.name}").exists()
