"""The child process in which a learner's file runs: `python -m minqkv.teach.child LESSON FILE
REPORT SECONDS`.

It writes a report: {"passed": bool, "events": [...]}. Whatever the learner's code prints, breaks or
never ends, the parent survives it.
"""

import faulthandler
import json
import linecache
import os
import sys
from pathlib import Path
from types import ModuleType

from ..runtime.files import write_text
from . import lessons
from .checks import CASES, Check, case_events, cost, diagnose, judge, size
from .events import quoted, said
from .runner import frames


def main(lesson_path, file, report, seconds):
    """Check one file and write the report."""
    with open(f"{report}.frames", "w", encoding="utf-8") as stuck:
        faulthandler.dump_traceback_later(
            float(seconds), exit=True, file=stuck
        )  # says where an endless loop is
        passed, events = examine(lessons.read(Path(lesson_path)), file)
        faulthandler.cancel_dump_traceback_later()
    write_text(report, json.dumps({"passed": passed, "events": events}, default=repr))
    os._exit(0)  # whatever threads the learner's code has left


def examine(lesson, file):
    """(passed, events) of the learner's file."""
    check = Check(lesson)
    try:
        source = Path(file).read_text("utf-8-sig")  # some editors write a mark first
        if not source.strip():
            return False, [said(f"{file} is empty", "bad")]
        learner = sys.modules["exercise"] = ModuleType(
            "exercise"
        )  # a dataclass looks itself up there
        learner.__file__ = file
        linecache.cache[file] = (
            len(source),
            None,
            source.splitlines(True),
            file,
        )  # also after a chdir
        exec(compile(source, file, "exec"), vars(learner))
    except SyntaxError as error:
        return False, [
            said(f"{error.filename or file}, line {error.lineno}: {error.msg}", "bad"),
            quoted(error.text or ""),
        ]
    except UnicodeDecodeError:
        return False, [said(f"{file} is not UTF-8 text", "bad")]
    except (Exception, SystemExit) as error:
        return False, [
            said(f"{file} stops before it is used: {type(error).__name__}: {error}", "bad"),
            *_places(error, file),
        ]
    absent = [name for name in lesson.exercise if not hasattr(learner, name)]
    if absent:
        return False, [said(f"{file} defines no {' and no '.join(absent)}", "bad")]
    outcomes = judge(check, learner)
    failed = [outcome for outcome in outcomes if outcome.fault]
    if failed:
        return False, _failure(check, lesson, outcomes, min(failed, key=size), len(failed), file)
    return True, _success(check, learner)


def _failure(check, lesson, outcomes, worst, count, file):
    events = [said(worst.fault, "bad")]
    if worst.error is not None:
        events += _places(worst.error, file)
        if isinstance(worst.error, NotImplementedError):
            return events
    diagnosis = diagnose(check, lesson, outcomes)
    if diagnosis:
        events.append(said(diagnosis, "strong"))
    events.append(
        said(f"The smallest of {count} failing cases ({CASES} were tried), seed {worst.seed}:")
    )
    events += case_events(check, worst)
    if worst.printed:
        rows = worst.printed[:4000].splitlines()
        more = ["(and more)"] * (len(rows) > 20 or len(worst.printed) > 4000)
        events += [said("Your code printed, on this case:"), quoted("\n".join(rows[:20] + more))]
    return events


def _success(check, learner):
    faulthandler.cancel_dump_traceback_later()  # it has passed; how long a comparison takes is another matter
    text = f"Right on all {CASES} cases."
    if rows := cost(check, learner):
        (mine, my_peak), (theirs, their_peak) = rows["yours"], rows["the package"]
        text += f" On them your code took {mine / theirs:.2f} times as long as the package, "
        text += f"and at its peak {my_peak / max(1, their_peak):.2f} times the memory."
    return [said(text, "good"), {"event": "prose", "text": check.explanation}]


def _places(error, file):
    found = frames(error.__traceback__, file)
    if len(found) > 6:
        found = [*found[:3], f"... {len(found) - 5} more", *found[-2:]]
    return [quoted("\n".join(found))] if found else []


if __name__ == "__main__":
    main(*sys.argv[1:])
