"""The learner's desk: their copy of an exercise, its check in a child process, hints, the solution,
a fresh start.
"""

import json
import os
import pkgutil
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
from . import guard, report
from .checks import Check
from .events import place, quoted, said
from .lessons import Hunt, code_of, fingerprint

LIMIT = 20.0  # seconds that the learner's code may take in a check
GRACE = 10.0  # seconds in which the guard ends what it guards, and itself
# More would each reserve a share of the memory that a check allows.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


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
        create = f"Create it with: minqkv lesson start {lesson.key}"
        return False, [said(f"There is no {path} yet. {create}", "bad")]
    if not path.is_file():
        return False, [said(f"{path} is not a plain file", "bad")]
    events = [said(f"Checking {path}")]
    passed, found = run(lesson, path, limit)
    if passed:
        progress.update(lesson, passed=fingerprint(lesson))
        return True, events + found + (ending(lesson) if isinstance(lesson, Hunt) else [])
    with suppress(
        OSError, ValueError, SyntaxError, RecursionError, MemoryError
    ):  # the check has said so
        stub = lesson.companion("exercise").read_text("utf-8")
        if code_of("\n".join(_rows(path))) == code_of(stub):
            found.append(said("You have not changed this file yet; edit it."))
    again = f"Again: minqkv lesson check {lesson.key}. A hint: minqkv lesson hint {lesson.key}"
    return False, [*events, *found, said(again)]


def ending(hunt):
    """What a hunt ends with: where such a mistake was reported, and the code that does it right."""
    reports = [said(f"Reported: {address}") for address in hunt.reports]
    return reports + [place(pkgutil.resolve_name(name), *at) for name, *at in hunt.source]


def run(lesson, path, limit=None):
    """(passed, events) of any file as an answer to this lesson, in a separate process."""
    limit = LIMIT if limit is None else limit
    make = tempfile.TemporaryDirectory(prefix="minqkv-", ignore_cleanup_errors=True)
    with (
        make as folder,  # opened before the code runs, which may put anything in their place:
        open(f"{folder}/report", "w+b") as told,
        open(f"{folder}/frames", "w+b") as where,
        open(f"{folder}/output", "w+b") as printed,
    ):
        why, status = _guarded(lesson, path, folder, limit)
        told, where = told.read(report.LARGEST + 1), where.read(report.LARGEST)
        printed.seek(-min(report.TEXT, printed.seek(0, os.SEEK_END)), os.SEEK_END)
        printed = printed.read()
    if found := report.read(told):
        return found
    return False, _ended(why, status, path, where.decode("utf-8", "replace"), printed, limit)


def _guarded(lesson, path, folder, limit):
    """Run the check in this folder. Returns (what there was too much of, exit code); (None, None)
    where that is not known.
    """
    package = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder) | dict.fromkeys(THREADS, "1")
    command = [sys.executable, "-X", "utf8", "-P", "-m", "minqkv.teach.child"]
    command += [str(lesson.path), str(path), folder, str(limit)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if guard.HERE:
        command = [sys.executable, "-I", "-S", guard.__file__, folder, str(limit), *command]
        options |= {"stdout": subprocess.PIPE, "start_new_session": True}
    options["env"] = {**os.environ, "PYTHONPATH": paths, **own}
    with subprocess.Popen(command, **options) as process:
        try:
            process.wait(guard.START_S + limit + 2 * GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.stdin.close()  # so the guard ends all that it guards, then itself
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE if guard.HERE else 0)
            process.kill()
        if not guard.HERE:
            return None, process.returncode
        return _verdict(process.stdout.read(1000).split(b"\n"))


def _verdict(said):
    """What the guard said. If it was killed, what it guarded is ended here, as far as it is
    known.
    """
    try:
        why, status = json.loads(said[1])
        return why and str(why), int(status)
    except (LookupError, ValueError, TypeError, RecursionError):
        with suppress(OSError, ValueError):
            if (group := int(said[0])) > 1:
                os.killpg(group, signal.SIGKILL)
        return None, None


def _ended(why, status, path, where, printed, limit):
    """The events of a check that was ended, by the code or by a limit."""
    line = _stuck_at(where, path)
    at = f", at line {line}" if line else ""
    fatal = re.match(r"Fatal Python error: (.*)", where)
    last = printed.decode("utf-8", "replace").strip().splitlines()[-1:]
    if why == "start":
        text = f"Python did not start within {guard.START_S:g} s; is this machine very busy?"
    elif why in ("time", "cpu") or where.startswith("Timeout"):
        after = f"After {limit:g} s{' of CPU time' if why == 'cpu' else ''}"
        text = f"{after} the check was stopped{at}: is there a loop that never ends?"
    elif why in guard.TOO_MUCH:
        text = f"The check was stopped{at}: {guard.TOO_MUCH[why]}"
    elif fatal:
        text = f"Your code ended the check{at}: {fatal[1]}"
    elif status == 1 and last:  # an exception that nobody caught
        text = f"Your code ended the check: {last[0]}"
    else:
        how = "it was killed" if status is None or status < 0 else f"exit code {status}"
        text = f"Your code ended the check{at} ({how})"
    row = _rows(path)[line - 1 : line] if line else []
    return report.clean([said(text[:1000], "bad"), *(quoted(text, line) for text in row)])


def _rows(path):
    """The lines of the learner's file; none if it is too large, or something else by now."""
    with suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= report.LARGEST:
            return path.read_text("utf-8-sig").splitlines()
    return []


def _stuck_at(dump, path):
    """The innermost line of this file in what faulthandler wrote."""
    found = re.search(rf'File "{re.escape(str(path))}", line (\d{{1,9}}) in', dump)
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
            f"minqkv lesson hint {lesson.key}, or --spoil to see it now",
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
