"""Every lesson keeps its promises: whatever lessons there are, each row below holds for each of
them.
"""

import io
import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from commands import PATIENCE_S, ROOT
from lesson_golden import digest, path_of
from pages import Page, missing

from minqkv import backend as backends
from minqkv.render import lesson as stages
from minqkv.render.course import lesson_page
from minqkv.render.layout import number
from minqkv.runtime.errors import MinqkvError
from minqkv.teach import author, checks, desk, export
from minqkv.teach.lessons import course, hunts

LESSONS = course()
each = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
_played = {}


def played(lesson):
    """The lesson, played step by step once for all tests."""
    if lesson not in _played:
        _played[lesson] = author.play(lesson)
    return _played[lesson]


def events(lesson):
    """The lesson's events, with prose and code."""
    return played(lesson).events


@each
def test_as_plain_python(lesson, tmp_path):
    """From a foreign folder, it prints what it shows step by step, in plain text."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    env["MINQKV_LESSON_STEPS"] = "20"
    options = {"capture_output": True, "encoding": "utf-8", "timeout": PATIENCE_S}
    done = subprocess.run([sys.executable, lesson.path], cwd=tmp_path, env=env, **options)
    assert (done.returncode, done.stderr) == (0, "")
    stage = stages.Plain(out_of("utf-8"), 100)
    for event in author.spoken(events(lesson)):
        stage.draw(event)
    assert steady(done.stdout) == steady(stage.out.buffer.getvalue().decode())
    assert "\x1b" not in done.stdout
    assert not list(tmp_path.iterdir())


def steady(text):
    """The words of a text, without what rounding decides."""
    text = re.sub(r"\b\d(\.\d+)?e-(0[7-9]|1\d)\b", "tiny", " ".join(text.split()))
    rounded = "largest difference tiny, the same, up to rounding"
    return text.replace("the same, bit for bit", rounded)


@each
def test_runs(lesson):
    """As a whole it runs in the process above."""
    whole = author.spoken(events(lesson))
    assert list(author.runs(lesson, played(lesson), whole)) == []


@each
@pytest.mark.parametrize("width", [40, 80, 200])
def test_plain_at_any_width_and_encoding(lesson, width):
    for encoding in ("utf-8", "ascii", "cp1252"):
        out = out_of(encoding)
        stage = stages.Plain(out, width)
        for event in events(lesson):
            stage.draw(event)
        text = out.buffer.getvalue().decode(encoding)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert_numbers_whole(lesson, text)


@each
@pytest.mark.parametrize("width", [40, 80, 200])
def test_rich_says_what_plain_says(lesson, width, monkeypatch):
    from rich.console import Console

    plain = stages.Plain(out_of("utf-8"), width)
    for event in events(lesson):
        plain.draw(event)
    expected = plain.out.buffer.getvalue().decode().splitlines()
    for term, no_color in (("xterm-256color", None), ("xterm", "1"), ("dumb", None)):
        monkeypatch.setenv("TERM", term)
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        out = out_of("utf-8")
        stage = stages.Rich(Console(file=out, force_terminal=True, width=width, height=25))
        stage.width = width
        for event in events(lesson):
            stage.draw(event)
        text = out.buffer.getvalue().decode()
        if term == "dumb":
            assert "\x1b" not in text
        coloured = re.search(r"\x1b\[[0-9;]*3[0-7]m", text)
        assert bool(coloured) == (term == "xterm-256color")
        bare = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
        assert bare == expected
        assert max(map(len, bare)) <= width


@each
@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (80, 10)])
def test_nothing_scrolls_away_unread(lesson, width, height, monkeypatch):
    """On a terminal, between two questions, never more is written than the screen holds."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setattr("builtins.input", lambda prompt: marks.append(len(written())) or "")
    stage, marks = stages.Plain(out_of("utf-8"), width, interactive=True), [0]

    def written():
        return stage.out.buffer.getvalue().decode().splitlines()

    stage.rows = 0  # as a Player does
    for event in events(lesson):
        stage.draw(event)
        if event["event"] in ("predict", "step"):
            stage.ask("? ")
    marks.append(len(written()))
    assert max(end - begin for begin, end in pairwise(marks)) < height
    plain = stages.Plain(out_of("utf-8"), width)
    for event in events(lesson):
        plain.draw(event)
    assert plain.out.buffer.getvalue() == stage.out.buffer.getvalue()


def out_of(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def assert_numbers_whole(lesson, text):
    """Each number of each array that is shown is in the text."""
    found = set(text.split())
    for event in events(lesson):
        if event["event"] == "show":
            values = np.ravel(np.array(event["values"], object))
            wanted = {number(value, event["digits"]) for value in values}
            assert wanted <= found, event["name"]


@each
def test_events_are_json(lesson):
    out = json.dumps(events(lesson))
    assert json.loads(out, parse_constant=pytest.fail) == events(lesson)
    assert "\\u001b" not in out


@each
def test_as_a_page(lesson):
    """Every step, and what it shows, is there; what has no number of its own is named."""
    chapter = export.chapter(lesson, events(lesson))
    page = Page(lesson_page(chapter, [chapter], "A test."))
    assert missing(chapter.events, page) == []
    assert page.outside() == []
    assert len(page.ids()) == len(set(page.ids()))
    levels = page.levels()
    assert levels == [1] + [2] * (len(lesson.steps) + 1)
    count = sum(event["event"] == "answer" for event in chapter.events)
    assert len(page.all("details")) >= count + 4


@each
@pytest.mark.parametrize(
    "promise", ["files", "stub", "solution", "misses", "hints", "prose", "uses"]
)
def test_promise(lesson, promise):
    assert list(getattr(author, promise)(lesson)) == []


@each
def test_each_near_miss_gets_its_own_diagnosis(lesson, tmp_path):
    """One of them in the learner's own way, as a file in a child process; the others here."""
    check = author.check_of(lesson)
    for name, miss in check.near_misses.items():
        outcomes = [miss.outcome(seed) for seed in range(checks.CASES)]
        assert checks.diagnose(check, outcomes) == miss.diagnosis, name
    name, miss = next(iter(check.near_misses.items()))
    texts = [lesson.companion(kind).read_text("utf-8") for kind in ("solution", "near_misses")]
    answer = "\n\n".join([*texts, f"{name.partition('__')[0]} = {name}\n"])
    (tmp_path / "answer.py").write_text(answer, "utf-8")
    passed, found = desk.run(lesson, tmp_path / "answer.py", PATIENCE_S)
    assert not passed
    assert miss.diagnosis in [event.get("text") for event in found]


@each
def test_needs_were_taught_before(lesson):
    assert list(author.needs(lesson, LESSONS)) == []


def test_the_whole_course():
    """What can only be asked of all of them. Their numbers leave no gap."""
    assert [lesson.number for lesson in LESSONS] == list(range(1, len(LESSONS) + 1))
    assert author.untaught_variants(LESSONS) == []
    assert sum(len(author.check_of(lesson).near_misses) for lesson in LESSONS) >= 40


@each
def test_key_numbers(lesson):
    """`python tests/support/lesson_golden.py` writes them again, when a change is meant."""
    stored = json.loads(path_of(lesson).read_text("utf-8"))
    found = digest(events(lesson))
    named = [[row[:2] for row in rows if row[0] != "answer"] for rows in (stored, found)]
    assert named[0] == named[1]
    for a, b in zip(stored, found, strict=True):
        if a[0] == "answer":
            assert a[1] == b[1] or float(a[1]) == pytest.approx(float(b[1]), rel=2e-3, abs=1e-3)
        else:
            assert a[2:] == pytest.approx(b[2:], rel=1e-4, abs=1e-4), a[0]


@each
def test_numpy_and_strict_agree(lesson, monkeypatch):
    # Thread by thread on a CPU, the kernels would take minutes to train.
    monkeypatch.setattr(backends.GpuBackend, "kernels", False)
    with backends.use_backend("strict"):
        found = author.events_of(lesson)
    for a, b in zip(digest(events(lesson)), digest(found), strict=True):
        assert a[:2] == b[:2]
        assert a[2:] == pytest.approx(b[2:], rel=1e-4, abs=1e-4), a[0]


def test_the_index_is_current():
    assert (ROOT / "lessons/README.md").read_text("utf-8") == author.readme(LESSONS, hunts())


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
"""
BAD += f'x = "{92 * "."}"\n'
WRONG = """
def f__right(x):
    return x
def f__a(x):
    'A.'
    return 2 * x
def f__b(x):
    'B.'
    return x + x
"""
CHECK = """
def cases(rng):
    return (rng.standard_normal(3),)
def reference(x):
    return x
TOLERANCE = 1e-9
HINTS = ('a',)
EXPLANATION = 'It saves 97 %.'
"""


@pytest.fixture
def bad(tmp_path):
    folder = tmp_path / "01_bad"
    folder.mkdir()
    for kind, text in {
        "lesson": BAD,
        "exercise": "def f(x):\n    return x\n",
        "solution": "def f(x):\n    return -x\n",
        "near_misses": WRONG,
        "check": CHECK,
    }.items():
        (folder / f"{kind}.py").write_text(text)
    (lesson,) = course(tmp_path)
    return lesson


def test_every_promise_can_be_broken(bad):
    report = author.check_lesson(bad, [bad])
    text = {promise: " | ".join(faults) for promise, faults in report.items()}
    assert all(text.values()), text
    for promise, part in {
        "files": "imports os",
        "stub fails": "the stub does not fail",
        "solution passes": "the solution fails",
        "near misses": "f__right passes",
        "hints": "1 hints",
        "prose": "12.5",
        "needs": "'later'",
        "uses": "minqkv.nothing",
        "runs": "fewer than two predictions",
    }.items():
        assert part in text[promise]
    assert "f__a cannot be distinguished from f__b" in text["near misses"]
    assert "over 78 columns" in text["files"]
    assert all(part in text["prose"] for part in ("'30'", "'17'", "'97'", "exclamation"))
    assert all(part in text["runs"] for part in ("took", "other events", "real implementation"))


def test_files_that_are_missing(bad):
    bad.companion("check").unlink()
    assert "01_bad/check.py is missing" in list(author.files(bad))
    assert author.check_lesson(bad, [bad])["solution passes"]


def test_a_budget_follows_the_machine(bad):
    """The same lesson, twice as many CPU seconds: too many, unless the calibration took as long."""
    object.__setattr__(bad, "budget_s", 3)

    def faults(seconds, slower):
        calibration = slower * author.CALIBRATION_S
        return str(list(author.runs(bad, author.Played([], seconds, calibration))))

    assert "took" not in faults(5.9, 1)
    assert "took" in faults(6.1, 1)
    assert "took" not in faults(6.1, 2)
    assert author.calibrate() > 0


def test_a_lesson_without_metadata(tmp_path):
    (tmp_path / "01_none").mkdir()
    (tmp_path / "01_none/lesson.py").write_text("# %% One\nx = 1\n")
    with pytest.raises(MinqkvError, match=r"01_none/lesson\.py: no"):
        course(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "in lesson 08 and section 3.3, (3, 4) by (T, 4), 2026, x1, wq2, float32, "
            "divided by 2, 1/√d, (0,\n3)",
            [],
        ),
        ("it saves 50 % or 0.5 or 1.25 of 17 bytes", ["50", "0.5", "1.25", "17"]),
        ("takes 3 times 40", ["3", "40"]),
    ],
)
def test_measured_numbers(text, found):
    assert author.measured(text) == found
