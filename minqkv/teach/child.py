"""The child process in which a learner's file runs: `python -m minqkv.teach.child LESSON FILE
FOLDER SECONDS`.

It writes files into the folder that its parent has made: a report (see `report`), and `frames`,
where it was when it was stopped. The parent survives whatever the learner's code prints or breaks,
and code that never ends; see `guard`.
"""

import faulthandler
import linecache
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

from ..study import stats
from . import guard, lessons, report
from .checks import CASES, PRINTED, Check, case_events, cost, diagnose, in_words, judge, size
from .events import quoted, said
from .runner import frames

MOVED = {"minqkv.stats": stats}  # where learners' files of 0.1.0 import something from


def main(lesson_path, file, folder, seconds):
    """Check one file and write the report."""
    check = Check(lessons.read(Path(lesson_path)))
    sys.modules.update(MOVED)
    with open(f"{folder}/report", "wb", 0) as told, open(f"{folder}/frames", "wb") as stuck:
        # From here on the learner's code runs. If it is stopped, this records the line.
        faulthandler.enable(stuck)
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=stuck)
        if guard.HERE:
            faulthandler.register(signal.SIGXCPU, stuck, all_threads=False)
            guard.hold(float(seconds))
        told.write(report.BEGIN)

        def tell(passed, events):
            told.write(report.written(passed, events))

        try:
            tell(*examine(check, file, tell))
        except BaseException as error:  # also KeyboardInterrupt, and what fails in patched modules
            guard.more()
            text = f"Your code ended the check: {in_words(error)}"
            tell(False, [said(text, "bad"), *_places(error, file)])
    os._exit(0)  # whatever threads the learner's code has left


def examine(check, file, tell=lambda passed, events: None):
    """(passed, events) of the learner's file. A pass is told at once: to compare costs takes more
    time, and may fail.
    """
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
        guard.more()
        why = f"{file} stops before it is used: {in_words(error)}"
        return False, [said(why, "bad"), *_places(error, file)]
    absent = [name for name in check.names if not hasattr(learner, name)]
    if absent:
        return False, [said(f"{file} defines no {' and no '.join(absent)}", "bad")]
    outcomes = judge(check, learner)
    failed = [outcome for outcome in outcomes if outcome.fault]
    if failed:
        guard.more()
        return False, _failure(check, outcomes, failed, file)
    tell(True, _success(check))
    return True, _success(check, cost(check, learner))


def _load(source, file):
    """The learner's file as a module."""
    learner = sys.modules["exercise"] = ModuleType("exercise")  # a dataclass looks itself up there
    learner.__file__ = file
    rows = source.splitlines(True)
    linecache.cache[file] = (len(source), None, rows, file)  # also after a chdir
    exec(compile(source, file, "exec"), vars(learner))
    return learner


def _failure(check, outcomes, failed, file):
    worst = min(failed, key=lambda outcome: (not guard.limit_met(outcome.error), size(outcome)))
    events = [said(f"The law: {check.law}")] if check.law else []
    events.append(said(worst.fault, "bad"))
    if worst.error is not None:
        events += _places(worst.error, file)
        if isinstance(worst.error, NotImplementedError):
            return events
    diagnosis = diagnose(check, outcomes)
    if diagnosis:
        events.append(said(diagnosis, "strong"))
    count = f"{len(failed)} failing cases ({len(outcomes)} were tried)"
    shown = f"The smallest of {count}, seed {worst.seed}:"
    events.append(said(shown))
    events += case_events(check, worst)
    if worst.printed:
        rows = worst.printed[:PRINTED].splitlines()
        more = ["(and more)"] * (len(rows) > 20 or len(worst.printed) > PRINTED)
        events += [said("Your code printed, on this case:"), quoted("\n".join(rows[:20] + more))]
    return events


def _success(check, costs=None):
    text = f"Correct on all {CASES} cases."
    if costs:
        (mine, my_peak), (theirs, their_peak) = costs["yours"], costs["the package"]
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
