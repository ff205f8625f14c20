"""Every lesson keeps its promises: whatever lessons there are, each row below holds for each of
them.
"""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT
from lesson_golden import FOLDER, digest

from minqkv import backend as backends
from minqkv.render import lesson as stages
from minqkv.runtime.errors import MinqkvError
from minqkv.teach import author, desk
from minqkv.teach.lessons import course
from minqkv.teach.runner import Player

LESSONS = course()
each = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
_shared = {}


def events(lesson):
    """The lesson's events, with prose and code, played once for all tests."""
    if lesson.name not in _shared:
        recorder = stages.Recorder()
        Player(lesson, recorder).play(pause=False)
        _shared[lesson.name] = recorder.drawn
    return _shared[lesson.name]


def spoken(drawn):
    """What a lesson says itself, without what the runner adds."""
    return [event for event in drawn if event["event"] not in ("step", "prose", "code")]


@each
def test_as_plain_python(lesson, tmp_path):
    """Within its budget, from a foreign folder, through the plain renderer."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, lesson.path],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for event in spoken(events(lesson)):
        words = event.get("name") or event.get("title") or event.get("left") or event.get("answer")
        assert not words or words.split()[0] in done.stdout
    assert "\x1b" not in done.stdout
    assert not list(tmp_path.iterdir())


@each
def test_runs(lesson):
    assert list(author.runs(lesson)) == []


@each
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_plain_at_any_width_and_encoding(lesson, width, encoding):
    raw = io.BytesIO()
    stage = stages.Plain(io.TextIOWrapper(raw, encoding=encoding, write_through=True), width)
    for event in events(lesson):
        stage.draw(event)
    text = raw.getvalue().decode(encoding)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert_numbers_whole(lesson, text)


@each
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(
    "env",
    [{"TERM": "xterm-256color"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}],
    ids=str,
)
def test_rich_says_what_plain_says(lesson, width, env, monkeypatch):
    from rich.console import Console

    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    stage, plain = (
        stages.Rich(Console(file=out, force_terminal=True, width=width, height=25)),
        stages.Plain(out_of("utf-8"), width),
    )
    stage.width = width
    for event in events(lesson):
        stage.draw(event)
        plain.draw(event)
    text = out.buffer.getvalue().decode()
    if env["TERM"] == "dumb":
        assert "\x1b" not in text
    coloured = re.search(r"\x1b\[[0-9;]*3[0-7]m", text)
    assert bool(coloured) == (env["TERM"] == "xterm-256color")
    bare = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    assert bare == plain.out.buffer.getvalue().decode().splitlines()
    assert max(map(len, bare)) <= width


def out_of(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def assert_numbers_whole(lesson, text):
    """Each number of each array that is shown stands in the text."""
    from minqkv.render.layout import number

    found = set(text.split())
    for event in events(lesson):
        if event["event"] == "show":
            wanted = {
                number(value, event["digits"])
                for value in np.ravel(np.array(event["values"], object))
            }
            assert wanted <= found, event["name"]


@each
def test_ndjson(lesson, capsys):
    stage = stages.Ndjson()
    for event in events(lesson):
        stage.draw(event)
    out = capsys.readouterr().out
    assert [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()] == events(
        lesson
    )
    assert "\\u001b" not in out


@each
@pytest.mark.parametrize(
    "promise", ["files", "stub", "solution", "misses", "hints", "prose", "uses"]
)
def test_promise(lesson, promise):
    assert list(getattr(author, promise)(lesson)) == []


@each
def test_each_near_miss_gets_its_own_diagnosis(lesson, tmp_path):
    """In the learner's own way: as a file, in a child process. One of them for each lesson; the
    others in this process.
    """
    from minqkv.teach.checks import Check, diagnose, judge, near_misses

    check, known = Check(lesson), near_misses(lesson)
    for name, (diagnosis, wrong) in known.items():
        assert diagnose(check, lesson, judge(check, wrong)) == diagnosis, name
    name, (diagnosis, _) = next(iter(known.items()))
    replaced = name.partition("__")[0]
    answer = (
        lesson.companion("solutions").read_text("utf-8")
        + "\n\n"
        + lesson.companion("near_misses").read_text("utf-8")
    )
    (tmp_path / "answer.py").write_text(f"{answer}\n{replaced} = {name}\n", "utf-8")
    passed, found = desk.run(lesson, tmp_path / "answer.py")
    assert not passed
    assert diagnosis in [event.get("text") for event in found]


@each
def test_needs_were_taught_before(lesson):
    assert list(author.needs(lesson, LESSONS)) == []


def test_the_whole_course():
    """What can only be asked of all twelve."""
    assert [lesson.number for lesson in LESSONS] == sorted({lesson.number for lesson in LESSONS})
    assert len(LESSONS) == 12
    assert author.untaught_variants(LESSONS) == []
    from minqkv.teach.checks import near_misses

    assert sum(len(near_misses(lesson)) for lesson in LESSONS if lesson.exercise) >= 40


@each
def test_key_numbers(lesson):
    """`python tests/lesson_golden.py` writes them anew, when a change is meant."""
    stored, found = (
        json.loads((FOLDER / f"{lesson.name}.json").read_text("utf-8")),
        digest(spoken(events(lesson))),
    )
    assert [row[:2] for row in stored if row[0] != "answer"] == [
        row[:2] for row in found if row[0] != "answer"
    ]
    for a, b in zip(stored, found, strict=True):
        if a[0] == "answer":
            assert a[1] == b[1] or float(a[1]) == pytest.approx(float(b[1]), rel=2e-3, abs=1e-3)
        else:
            assert a[2:] == pytest.approx(b[2:], rel=1e-4, abs=1e-4), a[0]


@each
def test_numpy_and_strict_agree(lesson):
    with backends.use_backend("strict"):
        found, _ = author.events_of(lesson)
    for a, b in zip(digest(spoken(events(lesson))), digest(found), strict=True):
        assert a[:2] == b[:2]
        assert a[2:] == pytest.approx(b[2:], rel=1e-4, abs=1e-4), a[0]


def test_the_index_is_current():
    assert (ROOT / "lessons/README.md").read_text("utf-8") == author.readme(LESSONS)


# ---- the checks of this file can fail: a lesson with every fault

BAD = """# /// script
# [tool.minqkv.lesson]
# title = "Bad"
# question = "How fast is it?"
# needs = ["later"]
# teaches = ["later"]
# minutes = 1
# budget_s = 0.0
# exercise = "f"
# uses = ["minqkv.nothing"]
# ///

# %% [markdown]
# It is 12.5 times as fast, a gain of 30 %!

# %% One
import os
import time

from minqkv.teach import say
say(f"{time.time()} and 17 more")
x = "............................................................................................"
"""


@pytest.fixture
def bad(tmp_path):
    for folder in author.FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "01_bad.py").write_text(BAD)
    (tmp_path / "exercises/01_bad.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "solutions/01_bad.py").write_text("def f(x):\n    return -x\n")
    wrong = "def f__right(x):\n    return x\n"
    wrong += "def f__a(x):\n    'A.'\n    return 2 * x\ndef f__b(x):\n    'B.'\n    return x + x\n"
    (tmp_path / "near_misses/01_bad.py").write_text(wrong)
    (tmp_path / "checks/01_bad.py").write_text(
        "def cases(rng):\n    return (rng.standard_normal(3),)\ndef reference(x):\n    return x\n"
        "TOLERANCE = 1e-9\nHINTS = ('a',)\nEXPLANATION = 'It saves 97 %.'\n"
    )
    (lesson,) = course(tmp_path)
    return lesson


def test_every_promise_can_be_broken(bad):
    report = author.check_lesson(bad, [bad])
    text = {promise: " | ".join(faults) for promise, faults in report.items()}
    assert all(text.values()), text
    for promise, part in {
        "files": "imports os", "stub fails": "the stub does not fail", "solution passes": "the solution fails",
        "near misses": "f__right passes", "hints": "1 hints", "prose": "12.5", "needs": "'later'", "uses": "minqkv.nothing",
        "runs": "fewer than two predictions",
    }.items():  # fmt: skip
        assert part in text[promise]
    assert "f__a cannot be told from f__b" in text["near misses"]
    assert "over 78 columns" in text["files"]
    assert all(part in text["prose"] for part in ("'30'", "'17'", "'97'", "exclamation"))
    assert all(part in text["runs"] for part in ("took", "other events", "real implementation"))


def test_a_lesson_without_metadata(tmp_path):
    (tmp_path / "01_none.py").write_text("# %% One\nx = 1\n")
    with pytest.raises(MinqkvError, match=r"01_none\.py: no"):
        course(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [("in lesson 08 and section 3.3, (3, 4) by (T, 4), 2026, x1, wq2, float32, divided by 2, 1/√d", []),
     ("it saves 50 % or 0.5 or 1.25 of 17 bytes", ["50", "0.5", "1.25", "17"]), ("takes 3 times 40", ["3", "40"])],
)  # fmt: skip
def test_measured_numbers(text, found):
    assert author.measured(text) == found
