"""The child process in which a learner's file runs: `python -m minqkv.teach.child LESSON FILE
REPORT SECONDS`.

It writes a report: {"passed": bool, "events": [...]}. The parent survives whatever the learner's
code prints or breaks, and code that never ends.
"""

import faulthandler
import json
import linecache
import os
import sys
from pathlib import Path
from types import ModuleType

from ..runtime.files import write_text
from ..study import stats
from . import lessons
from .checks import CASES, Check, case_events, cost, diagnose, judge, size
from .events import quoted, said
from .runner import frames

MOVED = {"minqkv.stats": stats}  # where learners' files of 0.1.0 import something from


def main(lesson_path, file, report, seconds):
    """Check one file and write the report."""
    check = Check(lessons.read(Path(lesson_path)))
    sys.modules.update(MOVED)
    with open(f"{report}.frames", "w", encoding="utf-8") as stuck:
        # From here on the learner's code runs. If it loops for ever, this records the line.
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=stuck)
        passed, events = examine(check, file)
        faulthandler.cancel_dump_traceback_later()
    write_text(report, json.dumps({"passed": passed, "events": events}, default=repr))
    os._exit(0)  # whatever threads the learner's code has left


def examine(check, file):
    """(passed, events) of the learner's file."""
    try:
        source = Path(file).read_text("utf-8-sig")  # some editors write a mark first
        if not source.strip():
            return False, [said(f"{file} is empty", "bad")]
        learner = _load(source, file)
    except SyntaxError as error:
        where = f"{error.filename or file}, line {error.lineno}"
        return False, [said(f"{where}: {error.msg}", "bad"), quoted(error.text or "")]
    except UnicodeDecodeError:
        return False, [said(f"{file} is not UTF-8 text", "bad")]
    except (Exception, SystemExit) as error:
        why = f"{file} stops before it is used: {type(error).__name__}: {error}"
        return False, [said(why, "bad"), *_places(error, file)]
    absent = [name for name in check.names if not hasattr(learner, name)]
    if absent:
        return False, [said(f"{file} defines no {' and no '.join(absent)}", "bad")]
    outcomes = judge(check, learner)
    failed = [outcome for outcome in outcomes if outcome.fault]
    if failed:
        return False, _failure(check, outcomes, min(failed, key=size), len(failed), file)
    return True, _success(check, learner)


def _load(source, file):
    """The learner's file as a module."""
    learner = sys.modules["exercise"] = ModuleType("exercise")  # a dataclass looks itself up there
    learner.__file__ = file
    rows = source.splitlines(True)
    linecache.cache[file] = (len(source), None, rows, file)  # also after a chdir
    exec(compile(source, file, "exec"), vars(learner))
    return learner


def _failure(check, outcomes, worst, count, file):
    events = [said(worst.fault, "bad")]
    if worst.error is not None:
        events += _places(worst.error, file)
        if isinstance(worst.error, NotImplementedError):
            return events
    diagnosis = diagnose(check, outcomes)
    if diagnosis:
        events.append(said(diagnosis, "strong"))
    shown = f"The smallest of {count} failing cases ({CASES} were tried), seed {worst.seed}:"
    events.append(said(shown))
    events += case_events(check, worst)
    if worst.printed:
        rows = worst.printed[:4000].splitlines()
        more = ["(and more)"] * (len(rows) > 20 or len(worst.printed) > 4000)
        events += [said("Your code printed, on this case:"), quoted("\n".join(rows[:20] + more))]
    return events


def _success(check, learner):
    faulthandler.cancel_dump_traceback_later()  # it has passed: the comparison may take longer
    text = f"Correct on all {CASES} cases."
    if rows := cost(check, learner):
        (mine, my_peak), (theirs, their_peak) = rows["yours"], rows["the package"]
        text += f" Your code took {mine / theirs:.2f} times as long as the package's "
        text += f"and used {my_peak / max(1, their_peak):.2f} times its peak memory."
    return [said(text, "good"), {"event": "prose", "text": check.explanation}]


def _places(error, file):
    found = frames(error.__traceback__, file)
    if len(found) > 6:
        found = [*found[:3], f"... {len(found) - 5} more", *found[-2:]]
    return [quoted("\n".join(found))] if found else []


if __name__ == "__main__":
    main(*sys.argv[1:])
