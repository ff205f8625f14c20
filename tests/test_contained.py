"""A learner's code in a check: what it may use is limited, it ends whatever it does, and what it
reports is not believed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import PATIENCE_S, ROOT, wait_until

from minqkv.render.layout import Page, lines
from minqkv.teach import checks, child, desk, guard, report
from minqkv.teach.events import quoted, said
from minqkv.teach.lessons import course, find

pytestmark = pytest.mark.skipif(not guard.HERE, reason="no processes to fork here")
linux = pytest.mark.skipif(not guard.LINUX, reason="looks into /proc")

LESSON = find("06", course())
ATTEND = "def attend(x, wq, wk, wv):\n"
WRONG = f"{ATTEND}    return x @ wv\n"
UNAPART = "        _apart()\n"  # the call in the guard


@pytest.fixture(params=["apart", "among others"])
def where(request, tmp_path, monkeypatch):
    """With a numbering of processes of its own, and as where that is not permitted."""
    if request.param == "among others":
        source = Path(guard.__file__).read_text()
        assert UNAPART in source
        (tmp_path / "guard.py").write_text(source.replace(UNAPART, ""))
        monkeypatch.setattr(guard, "__file__", str(tmp_path / "guard.py"))


def text_of(found):
    return " ".join(str(event.get("text", event.get("source", ""))) for event in found)


def answered(tmp_path, monkeypatch, source):
    """(passed, text) of an answer; nothing of it is left in the folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "a.py").write_text(source)
    passed, found = desk.run(LESSON, tmp_path / "a.py", PATIENCE_S)
    assert not list((tmp_path / "temporary").iterdir())
    return passed, text_of(found)


def living(mark):
    """How many processes have this word in their command line."""
    return sum(mark in row and row[0] != "Z" for row in table("stat=,args="))


def table(columns):
    """Rows of ps, however wide they are."""
    command = ["ps", "-A", "-ww", "-o", columns]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


# ---- limits, and other ends

HOSTILE = {
    "memory": (f"{ATTEND}    return bytes(10**11)\n", "memory: a check allows 1 GB line 2"),
    "memory kept": (
        f"import mmap\nheld = []\n{ATTEND}    while len(held) < 90:\n"
        "        held.append(mmap.mmap(-1, 1 << 24))\n",
        "memory: a check allows 1 GB line 5 (in attend)",
    ),
    "files kept": (
        f"held = []\n{ATTEND}    while len(held) < 100:\n        held.append(open('/dev/null'))\n",
        "too many files: a check allows 64 line 4 (in attend)",
    ),
    "prints without end": (
        f"{ATTEND}    while True:\n        print('x' * 1_000_000)\n",
        "writes too much: a check allows 16 MB line 3 (in attend)",
    ),
    "stdout and stderr together": (
        "import sys\nfor _ in range(10):\n"
        "    print('x' * 1_000_000)\n    sys.stderr.write('x' * 10**6)\n",
        "writes too much: a check allows 16 MB",
    ),
    "processes": (
        f"import os, time\n{ATTEND}    for _ in range(30):\n        if not os.fork():\n"
        f"            time.sleep({PATIENCE_S})\n    time.sleep({PATIENCE_S})\n",
        "too many processes or threads: a check allows 8",
    ),
    "lifts limits": (
        "import resource\nlifted, inf = [], resource.RLIM_INFINITY\n"
        "for name in ('AS', 'CPU', 'NOFILE', 'FSIZE', 'CORE'):\n    try:\n"
        "        resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (inf, inf))\n"
        "        lifted.append(name)\n    except (ValueError, OSError):\n        pass\n"
        "raise ValueError(f'lifted: {lifted}')\n",
        "ValueError: lifted: []",
    ),
    "a fault in C": (
        f"import ctypes\n{ATTEND}    ctypes.string_at(0)\n",
        "Your code ended the check, at line 3: Segmentation fault",
    ),
    "closes all it can": (f"import os\n{ATTEND}    os.closerange(0, 100)\n", "ended the check"),
    "an interrupt of its own": (
        f"{ATTEND}    raise KeyboardInterrupt\n",
        "Your code ended the check: KeyboardInterrupt line 2 (in attend)",
    ),
    "breaks what reports": (
        f"import json\njson.dumps = None\n{WRONG}",
        "Your code ended the check: TypeError",
    ),
    "a report of its own": (
        "import os\nfor fd in range(3, 20):\n    try:\n"
        "        os.write(fd, b'[true, [{\"event\": \"x\"}]]\\n')\n"
        "    except OSError:\n        pass\n"
        "os._exit(0)\n",
        "Your code ended the check (exit code 0)",
    ),
    "the folder replaced by FIFOs": (
        "import os, shutil\nfolder = os.environ['TMPDIR']\nshutil.rmtree(folder)\n"
        "os.mkdir(folder)\n"
        "for name in ('report', 'frames', 'output'):\n    os.mkfifo(f'{folder}/{name}')\n" + WRONG,
        "off by up to",
    ),
    "a message that cannot be shown": (
        f"class E(Exception):\n    def __str__(self):\n        raise SystemExit\n"
        f"{ATTEND}    raise E\n",
        "E: (its message cannot be shown)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_how_a_hostile_answer_ends(name, tmp_path, monkeypatch):
    if name == "memory kept" and not guard.LINUX:
        pytest.skip("here, memory counts only once it is used")
    source, message = HOSTILE[name]
    passed, text = answered(tmp_path, monkeypatch, source)
    assert not passed
    assert message in text.replace("\n", " ")


@linux
def test_who_kills_the_guard_is_ended(where, tmp_path, monkeypatch):
    """Where it can see it. What it started in its own group ends as well."""
    mark = f"600.{random.randrange(10**9):09}"
    source = f"import os, signal, subprocess\nsubprocess.Popen(['sleep', '{mark}'])\n"
    source += f"if os.getppid():\n    os.kill(os.getppid(), 9)\n    signal.pause()\n{WRONG}"
    passed, text = answered(tmp_path, monkeypatch, source)
    assert not passed
    assert "off by up to" in text or "ended the check (it was killed)" in text
    wait_until(lambda: not living(mark))


# ---- all ends with the check, or with what started it


def strays(mark):
    """Code that starts two processes, which leave group, session and parent behind."""
    return (
        "import os, subprocess\n"
        f"subprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n"
        "if not os.fork():\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n"
        f"    os.closerange(0, 3)\n    os.execvp('sleep', ['sleep', '{mark}'])\n"
    )


def test_strays_end_with_the_check(where, tmp_path, monkeypatch):
    mark = f"600.{random.randrange(10**9):09}"
    source = f"{strays(mark)}import time\n"
    source += "table = lambda: subprocess.run(['ps', '-A', '-o', 'args='], capture_output=True)\n"
    source += f"while table().stdout.count(b'sleep {mark}') < 2:\n    time.sleep(0.01)\n"
    _, text = answered(tmp_path, monkeypatch, f"{source}raise ValueError('both run')\n")
    assert "ValueError: both run" in text
    assert not living(mark)


def test_all_ends_with_a_parent_that_is_killed(where, tmp_path):
    mark = f"600.{random.randrange(10**9):09}"
    (tmp_path / "a.py").write_text(f"{strays(mark)}while True:\n    pass\n")
    (tmp_path / "temporary").mkdir()
    code = "from pathlib import Path\nfrom minqkv.teach import desk, guard, lessons\n"
    code += f"guard.__file__ = {guard.__file__!r}\nlesson = lessons.find('06', lessons.course())\n"
    code += f"desk.run(lesson, Path('a.py'), {PATIENCE_S})\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env) as parent:
        wait_until(lambda: living(f"sleep {mark}") == 2 or parent.poll() is not None)
        parent.kill()
    assert parent.returncode == -signal.SIGKILL
    wait_until(lambda: not living(mark) and not list((tmp_path / "temporary").iterdir()))


@linux
def test_all_ends_with_a_guard_that_is_killed(tmp_path, monkeypatch):
    """By others: where it can be, by the kernel at once, which the code itself can tell."""
    mark = f"600.{random.randrange(10**9):09}"
    source = f"{strays(mark)}import time\nif os.getpid() != 1:\n    os._exit(77)\n"

    def kill_guard():
        wait_until(lambda: living(f"sleep {mark}") == 2)
        for row in table("pid=,args="):
            if guard.__file__ in row and str(tmp_path / "temporary") in row:
                os.kill(int(row.split()[0]), signal.SIGKILL)

    thread = threading.Thread(target=kill_guard)
    thread.start()
    _, text = answered(tmp_path, monkeypatch, f"{source}while True:\n    pass\n")
    thread.join()
    wait_until(lambda: not living(mark))
    if "exit code 77" in text:
        pytest.skip("PID namespaces are not permitted here")
    assert "ended the check (it was killed)" in text


# ---- the guard's own parts


def test_the_table_of_processes():
    for table in (guard.processes(), guard.from_ps()):
        mine = table[os.getpid()]
        assert (mine.parent, mine.owner) == (os.getppid(), os.getuid())
        assert 1 << 20 < mine.memory < 1 << 40
        assert mine.cpu >= 0


MANY = dict.fromkeys(range(guard.PROCESSES + 1), guard.Process(1, 1, 0.0, 0, 0, 1))


@pytest.mark.parametrize(
    ("found", "seconds", "why"),
    [
        (MANY, 600, "processes"),
        ({1: guard.Process(1, 1, 0.0, guard.MEMORY + 1, 0, 1)}, 600, "memory"),
        ({1: guard.Process(1, 1, 0.0, 0, 0, 1)}, -10, "time"),
        (None, 600, "cpu"),
    ],
)
def test_what_the_guard_ends(found, seconds, why, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 400))  # CPU seconds at each look
    looks = found or {1: None}

    def look():
        return looks if found else {1: guard.Process(1, 1, next(clock), 0, 0, 1)}

    monkeypatch.setattr(guard.select, "select", lambda *_: [[]])
    (tmp_path / "report").write_bytes(report.BEGIN)
    process = SimpleNamespace(pid=-1, returncode=None)
    with open(tmp_path / "report") as begun:
        assert guard._watch(process, SimpleNamespace(look=look), begun, seconds) == why


def test_each_end_has_its_words(tmp_path):
    (tmp_path / "a.py").write_text("one\ntwo\n")
    path, frames = tmp_path / "a.py", f'File "{tmp_path}/a.py", line 2 in attend\n'
    for why, text in {
        "start": "Python did not start",
        "time": "After 3 s the check was stopped, at line 2",
        "cpu": "After 3 s of CPU time the check was stopped, at line 2",
        "memory": "The check was stopped, at line 2: your code needs too much memory",
    }.items():
        said, *code = desk._ended(why, -9, path, frames, b"", 3)
        assert said["text"].startswith(text)
        assert [event["source"] for event in code] == ["two"]
    assert desk._verdict([b"1", b"[["]) == desk._verdict([b"", b"[[], null]"]) == (None, None)
    assert desk._verdict([b""]) == desk._verdict([b"x", b"7"]) == (None, None)
    for line in (0, 3, 10**8):
        desk._ended("time", 0, path, frames.replace("2 in", f"{line} in"), b"", 3)
    os.remove(path)
    os.mkfifo(path)
    assert len(desk._ended("time", 0, path, frames, b"", 3)) == 1


def test_a_pass_is_told_before_its_cost_is_measured(monkeypatch):
    told = []
    monkeypatch.setattr(child, "cost", lambda *_: 1 / 0)
    solution = str(LESSON.companion("solution"))
    with pytest.raises(ZeroDivisionError):
        child.examine(checks.Check(LESSON), solution, lambda *parts: told.append(parts))
    assert [passed for passed, _ in told] == [True]


# ---- what a child reports


def show(**changed):
    event = {"event": "show", "name": "x", "shape": [1, 2], "dtype": "f", "values": [[1, "nan"]],
             "rows": None, "columns": None, "digits": 4}  # fmt: skip
    return [False, [{**event, **changed}]]


def line(value):
    return report.BEGIN + json.dumps(value).encode() + b"\n"


FORGED = {
    "nothing": b"",
    "only begun": report.BEGIN,
    "half a line": line([True, []])[:-1],
    "no JSON": b"\n{\n",
    "no text": b"\n\xff\xfe\n",
    "NaN": b"\n[true, [NaN]]\n",
    "deep": b"\n" + b"[" * 100_000 + b"\n",
    "many digits": b"\n[true, " + b"1" * 100_000 + b"]\n",
    "too large": line([True, [said("x" * report.TEXT)] * 300]),
    "three parts": line([True, [], 1]),
    "an object": line({"passed": True, "events": []}),
    "passed 1": line([1, []]),
    "events none": line([True, None]),
    "an event that is a word": line([True, ["say"]]),
    "an unknown event": line([True, [{"event": "run", "text": "x"}]]),
    "an event without a kind": line([True, [{"text": "x"}]]),
    "a kind that is a list": line([True, [{"event": []}]]),
    "a field missing": line([True, [{"event": "say", "text": "x"}]]),
    "a field too many": line([True, [{**said("x"), "more": 1}]]),
    "a number for a text": line([True, [said(1)]]),
    "a style unknown": line([True, [said("x", "blink")]]),
    "a long text": line([True, [said("x" * (report.TEXT + 1))]]),
    "a line that is a bool": line([True, [quoted("x", True)]]),
    "another shape": line(show(shape=[2, 2])),
    "a shape of words": line(show(shape=["1", 2])),
    "an entry of no kind": line(show(values=[[1, {}]])),
    "an entry too large": line(show()).replace(b"[[1,", b"[[1e999,"),
    "digits": line(show(digits=10**9)),
    "rows": line(show(rows=["a"])),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_report_that_no_check_writes(name):
    assert report.read(FORGED[name]) is None


def test_a_report_that_a_check_writes():
    assert report.read(line(show())) == (False, show()[1])
    events = [said("a\x1b[2J\x9b\x07\b\u202e\ud800", "bad"), quoted("x\n\ty", 3), *show()[1]]
    events += [said("x" * 10**6), {**show()[1][0], "values": [[10**9999, 1 + 2j]]}]
    passed, found = report.read(report.BEGIN + report.written(True, events))
    assert passed
    assert found[0]["text"] == "a\ufffd[2J" + 5 * "\ufffd"
    assert found[1]["source"] == "x\n\ty"
    assert found[4]["values"] == [["an integer of many digits", "(1+2j)"]]
    later = report.written(True, []) + report.written(False, [])
    assert report.read(later) == report.read(later + b"[tru") == (False, [])


@pytest.mark.parametrize("row", ["x = " + "-" * 3990 + "1", "-" * 90_000 + "1", "(" * 3000, "\0"])
def test_code_that_cannot_be_parsed_is_drawn(row):
    assert lines(quoted(row, 1), Page(80))


# ---- code of one's own that runs in the same process


@pytest.mark.parametrize("at", ["def attend(self, *a):\n            os._exit(0)", "os._exit(0)"])
def test_a_cache_that_ends_the_process(at, tmp_path):
    """An exit code of 0 would say that it keeps all laws."""
    source = "import os\nimport minqkv as mq\nfrom minqkv.cache import LayerCache\n"
    source += f"class Mine(mq.KVCache):\n    class layer_kind(LayerCache):\n        {at}\n"
    (tmp_path / "mine.py").write_text(source)
    command = [sys.executable, "-m", "minqkv", "check-cache", "mine:Mine", "--variants", "qkv"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "calls os._exit" in " ".join((done.stdout + done.stderr).split())
