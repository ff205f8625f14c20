"""Is the learner's code right? On random cases, against the package; and if not, which known
mistake is it?

A check (lessons/NN_name/check.py) says what to try; `judge` tries it on a namespace of functions,
which may be the learner's, the solution's or a near miss's. Nothing here knows a lesson.
"""

import contextlib
import copy
import errno
import inspect
import io
import os
import runpy
import time
import traceback
import tracemalloc
import warnings
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np

from ..runtime.docs import docstrings
from . import guard
from .events import array_event, said

CASES = 30
PRINTED, MESSAGE = 3000, 1000  # characters that are kept: printed in a case, of an exception
PATIENCE_S = 1.0  # a comparison of costs that takes longer is left out


class Check:
    """The check file of a lesson or hunt: cases(rng), reference(*args), TOLERANCE, HINTS,
    EXPLANATION, perhaps LAW and use(learner, *args).
    """

    def __init__(self, lesson):
        found = runpy.run_path(str(lesson.companion("check")))
        self.lesson, self.names = lesson, lesson.exercise
        self.cases, self.reference = found["cases"], found["reference"]
        self.tolerance = found["TOLERANCE"]
        self.hints, self.explanation = found["HINTS"], found["EXPLANATION"]
        self.law, self.use = found.get("LAW"), found.get("use", self._call)
        self.arguments = list(inspect.signature(self.reference).parameters)
        self._expected = {}

    def _call(self, learner, *args):
        return getattr(learner, self.names[0])(*args)

    def case(self, seed):
        """The arguments of one random case."""
        return tuple(self.cases(np.random.default_rng(seed)))

    def expected(self, seed):
        """What the reference gives for that case; computed once."""
        if seed not in self._expected:
            self._expected[seed] = self.reference(*self.case(seed))
        return self._expected[seed]

    @cached_property
    def near_misses(self):
        """name -> NearMiss: `<exercise name>__<mistake>`, the solution with that name replaced."""
        solution = vars(namespace(self.lesson.companion("solution")))
        found = {}
        path = self.lesson.companion("near_misses")
        written = docstrings(path)
        for name, thing in vars(namespace(path)).items():
            replaced, mark, mistake = name.partition("__")
            if replaced in self.names and mark and mistake:
                diagnosis = " ".join(written[name].split())
                learner = SimpleNamespace(**{**solution, replaced: thing})
                found[name] = NearMiss(self, diagnosis, learner)
        return found


class NearMiss:
    """A known mistake: its diagnosis, and what it makes of each case."""

    def __init__(self, check, diagnosis, learner):
        self.check, self.diagnosis, self.learner = check, diagnosis, learner
        self._outcomes = {}

    def outcome(self, seed):
        """The Outcome of one case; computed once."""
        if seed not in self._outcomes:
            self._outcomes[seed] = attempt(self.check, self.learner, seed)
        return self._outcomes[seed]

    def explains(self, outcomes):
        """Whether it gives, on all these cases, what the learner's code gave."""
        for theirs in outcomes:
            mine = self.outcome(theirs.seed)
            if mine.error or difference(mine.result, theirs.result, self.check.tolerance):
                return False
        return True


@dataclass
class Outcome:
    """The outcome of one case; `fault` says in words what is wrong with it, None if nothing is."""

    seed: int
    args: tuple
    result: object = None
    expected: object = None
    error: BaseException | None = None
    fault: str | None = None
    printed: str = ""


def namespace(path):
    """The names that a file of Python defines."""
    return SimpleNamespace(**runpy.run_path(str(path)))


def attempt(check, learner, seed):
    """Run the learner's code on one case and compare."""
    args = check.case(seed)
    given, printed = copy.deepcopy(args), Printed()
    outcome = Outcome(seed, args)
    try:
        with (
            contextlib.redirect_stdout(printed),
            np.errstate(all="ignore"),
            warnings.catch_warnings(action="ignore"),
        ):
            outcome.result = check.use(learner, *given)
    except (Exception, SystemExit) as error:
        outcome.error, outcome.fault = error, in_words(error, check)
    outcome.printed = printed.getvalue()[: PRINTED + 1]
    if outcome.error is not None:
        return outcome
    outcome.expected = check.expected(seed)
    try:
        outcome.fault = difference(outcome.result, outcome.expected, check.tolerance)
    except Exception as error:
        outcome.fault = f"the result cannot be compared: {type(error).__name__}: {error}"
    for name, before, after in zip(check.arguments, args, given, strict=True):
        if difference(after, before, 0) is not None:
            outcome.fault = f"the argument {name} was changed in place; work on a copy"
    return outcome


class Printed(io.StringIO):
    """What is printed, up to the size that a file may have."""

    def write(self, text):
        if self.tell() + len(text) > guard.OUTPUT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return super().write(text)


def in_words(error, check=None):
    """An exception that the learner's code raised, in one line."""
    if limit := guard.limit_met(error):
        return guard.TOO_MUCH[limit]
    if isinstance(error, NotImplementedError) and check:
        last = traceback.extract_tb(error.__traceback__)[-1].name
        name = last if last in check.names else " and ".join(check.names)
        return f"{name}: not written yet (NotImplementedError)"
    if isinstance(error, SystemExit) and check:
        return "your code calls exit(); a function returns its result instead"
    try:
        text = str(error)[:MESSAGE]
    except BaseException:  # its own __str__ is the learner's code as well
        text = "(its message cannot be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def difference(found, expected, tolerance, what="the result"):
    """In words, how a result differs from what is expected; None where it does not.

    Nested tuples, lists and dicts are compared part by part; arrays by type, shape, dtype, value.
    """
    if isinstance(expected, (tuple, list, dict)):
        kinds = dict if isinstance(expected, dict) else (tuple, list)
        if not isinstance(found, kinds) or len(found) != len(expected):
            return f"{what} is {_kind(found)}; expected {_kind(expected)}"
        if kinds is dict and found.keys() != expected.keys():
            return f"{what} has the keys {list(found)}; expected {list(expected)}"
        keys = expected if kinds is dict else range(len(expected))
        parts = ((found[key], expected[key], f"{what}[{key!r}]") for key in keys)
        faults = (difference(mine, theirs, tolerance, name) for mine, theirs, name in parts)
        return next((fault for fault in faults if fault), None)
    if isinstance(expected, np.ndarray):
        return _array_difference(found, expected, tolerance, what)
    if isinstance(expected, (int, float, np.number)) and not isinstance(expected, bool):
        if isinstance(found, bool) or not (isinstance(found, (int, float)) or _is_scalar(found)):
            return f"{what} is {_kind(found)}; expected a number"
        if _close(found, expected, tolerance):
            return None
        return f"{what} is {float(found):.10g}; expected {float(expected):.10g}"
    found = found.item() if isinstance(found, np.bool_) else found
    same = found is expected or (type(found) is type(expected) and found == expected)
    return None if same else f"{what} is {found!r:.200}; expected {expected!r}"


def _array_difference(found, expected, tolerance, what):
    if not isinstance(found, np.ndarray):
        if isinstance(found, np.number) and not expected.shape:
            found = np.asarray(found)
        else:
            return f"{what} is {_kind(found)}; expected a NumPy array of shape {expected.shape}"
    if found.shape != expected.shape:
        return f"{what} has shape {found.shape}; expected {expected.shape}"
    found, expected = np.asarray(found), np.asarray(expected)  # not a matrix, nor masked
    if found.dtype != expected.dtype:
        return f"{what} has dtype {found.dtype}; expected {expected.dtype}"
    if _close(found, expected, tolerance):
        return None
    if found.dtype.kind == "f" and not np.isfinite(found).all() and np.isfinite(expected).all():
        return f"{what} holds numbers that are not finite (inf or nan)"
    off = abs(found * 1.0 - expected).max()
    return f"{what} has the right shape, but its values are off by up to {off:.3g}"


def _is_scalar(value):
    return isinstance(value, (np.number, np.ndarray)) and value.shape == ()


def _close(a, b, tolerance):
    with np.errstate(all="ignore"):
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def _kind(value):
    if value is None:
        return "None (is there a `return`?)"
    if hasattr(value, "requires_grad"):
        return "a Tensor (its array is `.data`)"
    size = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"a {type(value).__name__}{size}"


def diagnose(check, outcomes):
    """The diagnosis of the only near miss that gives what the learner's code gave on all cases;
    None where none does.
    """
    if any(outcome.error for outcome in outcomes):
        return None
    found = [miss.diagnosis for miss in check.near_misses.values() if miss.explains(outcomes)]
    return found[0] if len(found) == 1 else None


def judge(check, learner, cases=CASES):
    """The Outcome of each seed from 0, up to one that met a limit."""
    outcomes = []
    for seed in range(cases):
        outcomes.append(attempt(check, learner, seed))
        if guard.limit_met(outcomes[-1].error):
            break
    return outcomes


def size(outcome):
    """How many numbers a case has: the smallest failing one is shown."""
    return sum(np.size(x) for x in _leaves(outcome.args))


def _leaves(value):
    if not isinstance(value, (dict, tuple, list)):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in _leaves(part)]


def case_events(check, outcome):
    """The case, the learner's result and the expected one, as events."""
    events = []
    for name, value in zip(check.arguments, outcome.args, strict=True):
        events += _value_events(name, value)
    if outcome.error is None:
        events += _value_events("yours", outcome.result)
        events += _value_events("expected", outcome.expected)
    return events


def _value_events(name, value):
    if isinstance(value, tuple) and all(isinstance(part, int) for part in value):
        return [said(f"{name} = {value!r}")]  # a shape, for one
    if isinstance(value, (tuple, list, dict)):
        keys = value if isinstance(value, dict) else range(len(value))
        return [event for key in keys for event in _value_events(f"{name}[{key!r}]", value[key])]
    if np.size(value) > 400 and isinstance(value, np.ndarray):
        return [said(f"{name}: an array of shape {value.shape}, too large to show")]
    if isinstance(value, (np.ndarray, np.number, int, float)) and not isinstance(value, bool):
        return [array_event("show", name, value, digits=4)]
    return [said(f"{name} = {value!r}"[:300])]


def cost(check, learner, cases=CASES):
    """Who -> (seconds, the best of three; peak bytes), of the learner's code and of the package's
    on the same cases; None if that takes too long, or if the learner's code no longer works.
    """
    rows = {}
    both = {"yours": lambda *args: check.use(learner, *args), "the package": check.reference}
    for name, function in both.items():
        times = []
        for measured in (False, False, False, True):
            given = [check.case(seed) for seed in range(cases)]
            if measured:
                tracemalloc.start()
            began = time.perf_counter()
            try:
                with contextlib.redirect_stdout(Printed()):
                    for args in given:
                        function(*args)
            except (Exception, SystemExit):
                return None
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            times.append(time.perf_counter() - began)
            if times[0] > PATIENCE_S:
                return None
        rows[name] = (min(times[:3]), peak)
    return rows
