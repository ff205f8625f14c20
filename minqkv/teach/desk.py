"""The learner's desk: their copy of an exercise, its check in a child process, hints, the solution,
a fresh start.
"""

import json
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ..runtime.errors import UsageError
from ..runtime.files import write_text
from .checks import Check
from .events import quoted, said
from .lessons import code_of, fingerprint

LIMIT = 20.0  # seconds that the learner's code may take in a check
GRACE = 60.0  # extra seconds for start-up and report before the process is killed


def start(lesson, progress):
    """Copy the stub to the learner's folder; a file already there stays. Returns (path, whether it
    is new).
    """
    path = progress.file(lesson)
    if path.exists():
        return path, False
    write_text(path, lesson.companion("exercise").read_text("utf-8"))
    return path, True


def check(lesson, progress, limit=None):
    """(passed, events) of the learner's file; a pass is recorded."""
    path = progress.file(lesson)
    if not path.exists():
        create = f"Create it with: minqkv lesson start {lesson.number}"
        return False, [said(f"There is no {path} yet. {create}", "bad")]
    events = [said(f"Checking {path}")]
    passed, found = run(lesson, path, limit)
    if passed:
        progress.update(lesson, passed=fingerprint(lesson))
        return True, events + found
    with suppress(OSError, ValueError, SyntaxError, RecursionError):  # the check has said so
        stub = lesson.companion("exercise").read_text("utf-8")
        if code_of(path.read_text("utf-8")) == code_of(stub):
            found.append(said("You have not changed this file yet; edit it."))
    n = lesson.number
    again = f"Again: minqkv lesson check {n}. A hint: minqkv lesson hint {n}"
    return False, [*events, *found, said(again)]


def run(lesson, path, limit=None):
    """(passed, events) of any file as an answer to this lesson, in a child process of its own."""
    limit = LIMIT if limit is None else limit
    package = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-X", "utf8", "-P", "-m", "minqkv.teach.child"]
        command += [str(lesson.path), str(path), str(report), str(limit)]
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "env": {**os.environ, "PYTHONPATH": paths},
            "start_new_session": True,  # a group: what the learner's code starts ends with it
        }
        errors = Path(folder) / "errors"  # a file: nobody waits for those who inherit it
        with (
            open(errors, "wb") as stderr,
            subprocess.Popen(command, stderr=stderr, **options) as child,
        ):
            try:
                child.wait(timeout=limit + GRACE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(child)
        err = errors.read_text("utf-8", errors="replace")
        if report.exists():
            value = json.loads(report.read_text("utf-8"))
            return value["passed"], value["events"]
        stuck = Path(f"{report}.frames")
        line = _stuck_at(stuck.read_text("utf-8") if stuck.exists() else "", path)
    if line:
        text = f"After {limit:g} s the check was stopped, at line {line}: "
        text += "is there a loop that never ends?"
        linecache.checkcache(str(path))
        row = linecache.getline(str(path), line)  # empty, if it has changed since
        return False, [said(text, "bad"), quoted(row, line)]
    last = err.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    return False, [said(f"The process ended before the check did: {last[0]}", "bad")]


def _end(child):
    """Kill the child and, where there are process groups, all it has started there."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()


def _stuck_at(dump, path):
    """The innermost line of this file in what faulthandler wrote."""
    found = re.search(rf'File "{re.escape(str(path))}", line (\d+)', dump)
    return int(found[1]) if found else None


def watch(lesson, progress, draw, limit=None):
    """Check, then again whenever the file's time changes; ends on a pass."""
    path = progress.file(lesson)
    while True:
        before = _changed(path)
        passed, events = check(lesson, progress, limit)
        draw(events)
        if passed:
            return
        draw([said("Watching the file; Ctrl-C stops.")])
        while _changed(path) == before:
            time.sleep(0.3)


def _changed(path):
    with suppress(OSError):  # an editor that saves by renaming leaves a moment without a file
        return path.stat().st_mtime_ns
    return None


def hint(lesson, progress):
    """The next hint, in words; the last one again once all are known. Hints cost nothing."""
    hints = Check(lesson).hints
    taken = progress.of(lesson).get("hints", 0)
    taken = min(taken, len(hints) - 1) if isinstance(taken, int) and taken > 0 else 0
    progress.update(lesson, hints=taken + 1)
    return f"Hint {taken + 1} of {len(hints)}: {hints[taken]}"


def solution(lesson, progress, spoil=False):
    """Copy the solution beside the learner's file and return its path; before a pass only with
    `spoil`.
    """
    if "passed" not in progress.of(lesson) and not spoil:
        raise UsageError(
            "the solution unlocks once your code passes",
            f"minqkv lesson hint {lesson.number}, or --spoil to see it now",
        )
    path = progress.work / "solutions" / f"{lesson.name}.py"
    write_text(path, lesson.companion("solution").read_text("utf-8"))
    return path


def reset(lesson, progress):
    """Forget the lesson's progress and put a fresh stub in place. Returns where the learner's file
    was moved to, or None.
    """
    path, backup = progress.file(lesson), None
    if path.exists():
        number = 1
        while (backup := path.with_name(f"{path.stem}.backup-{number}.py")).exists():
            number += 1
        os.replace(path, backup)
        start(lesson, progress)
    progress.forget(lesson)
    return backup
