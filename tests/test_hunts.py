"""Hunts: every program is wrong, every solution is right; a hunt from the list to the report."""

import io
import json
import re
import shutil
from itertools import chain

import pytest
from commands import PATIENCE_S, ROOT

from minqkv.render.lesson import Plain
from minqkv.runtime.errors import MinqkvError, UsageError
from minqkv.teach import author, desk
from minqkv.teach.child import examine
from minqkv.teach.lessons import course, find, fingerprint, hunts
from minqkv.teach.progress import Progress, next_thing

HUNTS = hunts()
FIRST = HUNTS[0]
each = pytest.mark.parametrize("hunt", HUNTS, ids=lambda hunt: hunt.name)


@each
def test_promises(hunt):
    report = author.check_lesson(hunt, course())
    assert len(report) == 7
    assert {promise: found for promise, found in report.items() if found} == {}


def test_there_are_enough():
    assert len(HUNTS) >= 12
    assert [hunt.key for hunt in HUNTS] == [f"h{n}" for n in range(1, len(HUNTS) + 1)]
    reports = list(chain.from_iterable(hunt.reports for hunt in HUNTS))
    assert len(set(reports)) == len(reports)
    names = [one.name.partition("_")[2] for one in course() + HUNTS]
    assert len(set(names)) == len(names)


@each
@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_law_and_the_numbers_fit(hunt, width):
    """The law is said before the numbers."""
    passed, events = examine(author.check_of(hunt), str(hunt.companion("exercise")))
    assert not passed
    for encoding in ("utf-8", "cp1252", "ascii"):
        stage = Plain(io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True), width)
        for event in events:
            stage.draw(event)
        text = stage.out.buffer.getvalue().decode(encoding)
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        assert "…" not in words
        law = words.index(author.check_of(hunt).law)
        assert law < words.index("yours") < words.rindex("expected")


def test_the_readme_lists_them_and_keeps_the_secret():
    text = (ROOT / "lessons/README.md").read_text("utf-8")
    for hunt in HUNTS:
        assert f"| {hunt.key} | {hunt.title} | {hunt.question} |" in text
        assert not any(report in text for report in hunt.reports)


# ---- the promises can be broken


@pytest.fixture
def copy(tmp_path):
    """A copy of a hunt, and what the author is told after a change to one of its files."""
    folder = tmp_path / "h03_copy"
    shutil.copytree(FIRST.path.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    author.check_of.cache_clear()

    def change(kind, old, new):
        path = folder / f"{kind}.py"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")
        (hunt,) = hunts(tmp_path)
        report = author.check_lesson(hunt, course())
        return {promise: " | ".join(found) for promise, found in report.items() if found}

    return change


LONG = "".join(f"x{i} = {i}\n" for i in range(30))
TWICE = """cache.advance()
        keys, values = (np.append(rows, rows[-1:], 0) for rows in cache.get())
        cache.n -= 1"""


@pytest.mark.parametrize(
    ("kind", "old", "new", "promise", "part"),
    [
        ("exercise", "import numpy as np", f"import numpy as np\n{LONG}", "files", "lines of code"),
        ("exercise", "import numpy", f"# {80 * 'x'}\nimport numpy", "files", "over 78 columns"),
        ("check", "One token after another", "One " * 10, "files", "38 characters"),
        ("check", "A decoder", "A decoder " * 50, "files", "400 characters"),
        ("exercise", "self.n += 1", "self.n = 1 / 0", "the program is wrong", "raises"),
        (
            "exercise",
            "keys, values = cache.get()",
            TWICE,
            "the program is wrong",
            "gives the mistake",
        ),
        ("check", "\nLAW = ", "\nLAWS = ", "the program is wrong", "the law is not said"),
        ("solution", "cache.advance()  #", "#", "solution passes", "fails"),
        ("near_misses", "(q, k, v, 0, 1)", "(q, k, v, 0, 0)", "near misses", "passes"),
        ("check", "HINTS = (", 'HINTS = ("",', "hints", "4 hints"),
        ("check", "The new row was", "All 37 new rows were", "prose", "'37'"),
        ("check", 'LAW = "', 'LAW = "At 0.37 ', "prose", "'0.37'"),
        ("check", "https://github.com", "http://github.com", "reports", "no address"),
        ("check", '"self.append("', '"self.upend("', "reports", "no line of"),
        ("check", "LayerCache.attend", "LayerCache.atend", "reports", "AttributeError"),
    ],
)
def test_every_promise_can_be_broken(kind, old, new, promise, part, copy):
    assert part in copy(kind, old, new)[promise]


def test_a_program_that_is_right(copy):
    """What is wrong moves nowhere, and what is missing is named."""
    found = copy("exercise", "        cache.advance()\n    return", "    return")
    assert "the program is wrong" not in found  # nothing is counted: wrong in another way
    found = copy("exercise", "        keys, values = cache.get()", "        cache.advance()\n" * 1 +
                 "        keys, values = cache.get()")  # fmt: skip
    assert "passes its own check" in found["the program is wrong"]


def test_metadata_that_is_not_there(tmp_path, copy):
    for old, new in (("[tool.minqkv.hunt]", "[tool.minqkv.lesson]"), ("# title", "# titel")):
        with pytest.raises(MinqkvError, match=r"h03_copy/check.py: (no \[tool|metadata)"):
            copy("check", old, new)
        shutil.copy(FIRST.companion("check"), tmp_path / "h03_copy")


def test_a_missing_file(tmp_path, copy):
    (tmp_path / "h03_copy/near_misses.py").unlink()
    assert "h03_copy/near_misses.py is missing" in copy("check", "HINTS", "HINTS")["files"]


# ---- a hunt, from its list to its report


def test_from_the_list_to_the_report(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "LIMIT", PATIENCE_S)
    mine = tmp_path / f"minqkv-work/{FIRST.name}.py"
    code, out, _ = cli("lesson", "hunt")
    assert code == 0
    assert f" h1  {FIRST.title}\n" in out
    assert out.endswith(f"0 of {len(HUNTS)} found. Next: minqkv lesson hunt h1\n")
    assert not mine.exists()

    code, out, err = cli("lesson", "hunt", "1")
    assert (code, err) == (0, "")
    assert mine.read_text("utf-8") == FIRST.companion("exercise").read_text("utf-8")
    order = FIRST.title, "def decode", "The law: Token by token", "yours", "expected", "Again: "
    places = [out.index(part) for part in order]
    assert places == sorted(places)
    assert "minqkv lesson hint h1" in out
    assert not any(report in out for report in FIRST.reports)
    code, out, _ = cli("lesson", "hunt", "h1")  # again: the file is theirs now, and stays
    assert code == 0
    assert "def decode" not in out
    assert "The law: " in out

    assert re.findall(r" (h\d+) .*started", cli("lesson", "hunt")[1]) == ["h1"]
    assert "Hint 1 of 3" in cli("lesson", "hint", "h1")[1]
    code, _, err = cli("lesson", "solution", "h1")
    assert code == 2
    assert "minqkv lesson hint h1" in err
    mine.write_text(NEARLY)
    code, out, _ = cli("lesson", "check", "h1")
    assert code == 1
    assert "one place too late" in " ".join(out.split())

    mine.write_text(FIRST.companion("solution").read_text("utf-8"))
    code, out, _ = cli("lesson", "check", "cached_step")
    assert code == 0
    assert f"Reported: {FIRST.reports[0]}" in out
    (line,) = re.findall(r"LayerCache.attend: minqkv/cache.py, line (\d+)", out)
    assert (
        "self.append(" in (ROOT / "minqkv/cache.py").read_text("utf-8").splitlines()[int(line) - 1]
    )
    assert "minqkv lesson solution h1" in out
    assert "Next: minqkv learn" not in out
    assert Progress().of(FIRST)["passed"] == fingerprint(FIRST)
    code, out, _ = cli("lesson", "hunt")
    assert re.search(r" h1 .* found\n", out)
    assert out.endswith(f"1 of {len(HUNTS)} found. Next: minqkv lesson hunt h2\n")
    assert "def decode" in cli("lesson", "solution", "h1")[1]
    assert "Hunt h1 starts over" in cli("lesson", "reset", "h1")[1]
    assert "0 of" in cli("lesson", "hunt")[1]


NEARLY = """
import numpy as np

def decode(q, k, v):
    (keys, values), answers = np.zeros((2, len(k) + 1, k.shape[1])), []
    for t in range(len(q)):
        keys[t + 1], values[t + 1] = k[t], v[t]
        e = np.exp(keys[: t + 1] @ q[t] / np.sqrt(q.shape[1]))
        answers.append(e / e.sum() @ values[: t + 1])
    return np.array(answers)
"""


def test_all_are_found(cli):
    progress = Progress()
    for hunt in HUNTS:
        progress.update(hunt, passed=fingerprint(hunt))
    code, out, _ = cli("lesson", "hunt")
    assert code == 0
    assert out.endswith(f"{len(HUNTS)} of {len(HUNTS)} found.\n")


def test_json(cli, monkeypatch):
    monkeypatch.setattr(desk, "LIMIT", PATIENCE_S)
    rows = json.loads(cli("lesson", "hunt", "--json")[1])
    assert [row["number"] for row in rows] == [hunt.key for hunt in HUNTS]
    assert rows[0] == {"number": "h1", "name": FIRST.name, "title": FIRST.title, "state": ""}
    events = json.loads(cli("lesson", "hunt", "2", "--json")[1])
    assert events[0]["event"] == "prose"
    assert any(event.get("text", "").startswith("The law: ") for event in events)
    assert json.loads(cli("lesson", "start", "h3", "--json")[1])["write"] == ["attend"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("hunt", "99"), f"there are hunts h1 to h{len(HUNTS)}"),
        (("hunt", "h0"), "no hunt h0"),
        (("hunt", "cached_stepp"), "did you mean cached_step"),
        (("hunt", "nineteen"), "unknown hunt 'nineteen'"),
        (("check", "nineteen"), "unknown lesson 'nineteen'"),
        (("check", "h99"), "there are hunts h1"),
        (("check", "77"), "there are lessons 1 to"),
        (("hint", "windo"), "did you mean window"),
        (("play", "h2"), "minqkv lesson hunt h2"),
    ],
)
def test_wrong_input(args, message, cli):
    code, _, err = cli("lesson", *args)
    assert code == 2
    assert message in " ".join(err.split())


def test_names():
    every = course() + HUNTS
    for name in ("h2", "H2", "h02", "first_token", "first-token", "h02_first_token"):
        assert find(name, every) is HUNTS[1]
    for name in ("2", "02", "from_numbers_to_arrays"):
        assert find(name, every) is every[1]
    with pytest.raises(UsageError):
        find("2", HUNTS)


def test_lessons_do_not_wait_for_hunts(tmp_path):
    progress = Progress(tmp_path)
    for lesson in course():
        progress.update(lesson, passed=fingerprint(lesson))
    assert next_thing(course(), progress) == (None, None)


def test_a_program_is_contained(tmp_path):
    """As an exercise is: a loop that never ends is stopped, and its line is named."""
    progress = Progress(tmp_path)
    progress.file(FIRST).write_text("def decode(q, k, v):\n    while True:\n        pass\n")
    passed, events = desk.check(FIRST, progress, limit=2)
    assert not passed
    text = " ".join(event.get("text", "") for event in events)
    assert "the check was stopped" in text


def test_completion_offers_them():
    from minqkv.cli.lesson import check, dev_check, hunt

    for command in (check, dev_check, hunt):
        (argument,) = [p for p in command.params if p.name in ("name", "names")]
        found = [item.value for item in argument.type.shell_complete(None, argument, "h")]
        assert "h1" in found
        found = [item.value for item in argument.type.shell_complete(None, argument, "likely")]
        assert found == ["likely_tokens"]
