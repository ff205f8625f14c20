"""Is the learner's code right? On random cases, against the package; and if not, which known
mistake is it?

A check file (lessons/checks/NN_name.py) says what to try; `judge` tries it on a namespace of
functions, which may be the learner's, the solution's or a near miss's. Nothing here knows a lesson.
"""

import contextlib
import copy
import inspect
import io
import runpy
import time
import traceback
import tracemalloc
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from .events import array_event, said

CASES = 30


class Check:
    """A lesson's check file: cases(rng), reference(*args), TOLERANCE, HINTS, EXPLANATION, perhaps
    use(learner, *args).
    """

    def __init__(self, lesson):
        found = runpy.run_path(str(lesson.companion("check")))
        self.names = lesson.exercise
        self.cases, self.reference, self.tolerance = (
            found["cases"],
            found["reference"],
            found["TOLERANCE"],
        )
        self.hints, self.explanation = found["HINTS"], found["EXPLANATION"]
        self.use = found.get("use") or (
            lambda learner, *args: getattr(learner, self.names[0])(*args)
        )
        self.arguments = list(inspect.signature(self.reference).parameters)

    def case(self, seed):
        """The arguments of one random case."""
        return tuple(self.cases(np.random.default_rng(seed)))


@dataclass
class Outcome:
    """What came of one case; `fault` says in words what is wrong with it, None when nothing is."""

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


def near_misses(lesson):
    """name -> (diagnosis, namespace): the solution with one name replaced by a known mistake,
    `<name>__<mistake>`.
    """
    solution, wrong = (
        vars(namespace(lesson.companion("solution"))),
        vars(namespace(lesson.companion("near_misses"))),
    )
    found = {}
    for name, thing in wrong.items():
        replaced, mark, mistake = name.partition("__")
        if replaced in lesson.exercise and mark and mistake:
            found[name] = (inspect.getdoc(thing), SimpleNamespace(**{**solution, replaced: thing}))
    return found


def attempt(check, learner, seed):
    """Run the learner's code on one case and compare."""
    args = check.case(seed)
    given, printed = copy.deepcopy(args), io.StringIO()
    outcome = Outcome(seed, args)
    try:
        with (
            contextlib.redirect_stdout(printed),
            np.errstate(all="ignore"),
            warnings.catch_warnings(action="ignore"),
        ):
            outcome.result = check.use(learner, *given)
    except (Exception, SystemExit) as error:
        outcome.error, outcome.fault = error, _in_words(error, check)
    outcome.printed = printed.getvalue()
    if outcome.error is not None:
        return outcome
    outcome.expected = check.reference(*copy.deepcopy(args))
    try:
        outcome.fault = difference(outcome.result, outcome.expected, check.tolerance)
    except Exception as error:
        outcome.fault = f"the result cannot be compared: {type(error).__name__}: {error}"
    for name, before, after in zip(check.arguments, args, given, strict=True):
        if difference(after, before, 0) is not None:
            outcome.fault = f"the argument {name} was changed in place; work on a copy"
    return outcome


def _in_words(error, check):
    if isinstance(error, NotImplementedError):
        last = traceback.extract_tb(error.__traceback__)[-1].name
        return f"{last if last in check.names else ' and '.join(check.names)}: not written yet (NotImplementedError)"
    if isinstance(error, SystemExit):
        return "your code calls exit(); a function returns its result instead"
    return f"{type(error).__name__}: {error}"


def difference(found, expected, tolerance, what="the result"):
    """In words, how a result differs from what is expected; None where it does not. Nested tuples,
    lists and dicts are compared part by part; arrays by type, shape, dtype and value."""
    if isinstance(expected, (tuple, list, dict)):
        kinds = dict if isinstance(expected, dict) else (tuple, list)
        if not isinstance(found, kinds) or len(found) != len(expected):
            return f"{what} is {_kind(found)}; expected {_kind(expected)}"
        if kinds is dict and found.keys() != expected.keys():
            return f"{what} has the keys {list(found)}; expected {list(expected)}"
        keys = expected if kinds is dict else range(len(expected))
        faults = (
            difference(found[key], expected[key], tolerance, f"{what}[{key!r}]") for key in keys
        )
        return next((fault for fault in faults if fault), None)
    if isinstance(expected, np.ndarray):
        return _array_difference(found, expected, tolerance, what)
    if isinstance(expected, (int, float, np.number)) and not isinstance(expected, bool):
        if isinstance(found, bool) or not (isinstance(found, (int, float)) or _is_scalar(found)):
            return f"{what} is {_kind(found)}; expected a number"
        return (
            None
            if _close(found, expected, tolerance)
            else f"{what} is {float(found):.10g}; expected {float(expected):.10g}"
        )
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
    return f"{what} has the right shape, but its values are off by up to {abs(found * 1.0 - expected).max():.3g}"


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


def diagnose(check, lesson, outcomes):
    """The diagnosis of the only near miss that gives what the learner's code gave on all cases;
    None where none does.
    """
    if any(outcome.error for outcome in outcomes):
        return None
    found = []
    for diagnosis, wrong in near_misses(lesson).values():
        if alike(
            (attempt(check, wrong, outcome.seed) for outcome in outcomes), outcomes, check.tolerance
        ):
            found.append(diagnosis)
    return found[0] if len(found) == 1 else None


def alike(mine, others, tolerance):
    """Whether two lots of outcomes, of the same cases, have the same results."""
    pairs = zip(mine, others, strict=True)
    return all(
        a.error is None and difference(a.result, b.result, tolerance) is None for a, b in pairs
    )


def judge(check, learner, cases=CASES):
    """The Outcome of each seed from 0."""
    return [attempt(check, learner, seed) for seed in range(cases)]


def size(outcome):
    """How many numbers a case has: the smallest failing one is shown."""
    return sum(np.size(x) for x in _leaves(outcome.args))


def _leaves(value):
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (tuple, list))
        else None
    )
    return [value] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def case_events(check, outcome):
    """The case, the learner's result and the expected one, as events."""
    events = []
    for name, value in zip(check.arguments, outcome.args, strict=True):
        events += _value_events(name, value)
    if outcome.error is None:
        events += _value_events("yours", outcome.result) + _value_events(
            "expected", outcome.expected
        )
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
    on the same cases; None where that would take long, or where the learner's code works no longer.
    """
    rows = {}
    for name, function in (
        ("yours", lambda *args: check.use(learner, *args)),
        ("the package", check.reference),
    ):
        times = []
        for measure in (False, False, False, True):
            given = [check.case(seed) for seed in range(cases)]
            if measure:
                tracemalloc.start()
            began = time.perf_counter()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    for args in given:
                        function(*args)
            except (Exception, SystemExit):
                return None
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            times.append(time.perf_counter() - began)
            if times[0] > 1:
                return None
        rows[name] = (min(times[:3]), peak)
    return rows
