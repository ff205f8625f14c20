"""Plays a lesson: a step at a time, its prose, its code, and what the code shows; then a line from
the learner.
"""

import ast
import code
import copy
import inspect
import linecache
import traceback
from contextlib import suppress

from ..render.lesson import Recorder
from ..runtime.errors import MinqkvError
from .events import Go, LessonError, Quit, emit, on

KEYS = """Enter  go on; at a question, show the answer
b      back one step (the lesson is run again up to there)
g N    go to step N
s      source of the function just called
p      a Python prompt on a copy of the variables; exit() returns
h      a hint for the exercise, one more each time
?      these keys
q      quit; your place is saved"""


_AROUND = ("minqkv.teach", "minqkv.runtime")  # what `s` does not show: not what a lesson teaches


class Player:
    """Runs the steps of one lesson in one namespace.

    `stage` draws and asks; `saw(n)` is called when n steps have been seen; `hint()` gives the text
    of the next hint.
    """

    def __init__(self, lesson, stage, saw=lambda n: None, hint=lambda: None):
        self.lesson, self.stage, self.saw, self.hint = lesson, stage, saw, hint
        self.at = self.place = None  # the step in hand; how many are behind, as last told to `saw`
        self._begin()

    def _begin(self):
        """An empty namespace, in which no step has run."""
        self.namespace = {"__name__": "lesson", "__file__": str(self.lesson.path)}
        self.ran = 0

    def play(self, start=0, pause=True):
        """From step `start` (0 is the first) to the end. Returns whether the end was reached."""
        self.at = start
        if pause:  # the keys work wherever the stage asks, and it asks before a screen is full
            self.stage.key, self.stage.rows = self._key, 0
        try:
            while self.at < len(self.lesson.steps):
                try:
                    self._keep(self.at)
                    self._present(self.at)
                    self._keep(self.at + 1)
                    if pause:
                        self._ask()
                    self.at += 1
                except Go as go:
                    (self.at,) = go.args
        except (Quit, EOFError):
            return False
        return True

    def _keep(self, place):
        if place != self.place:
            self.saw(place)
            self.place = place

    def _present(self, at):
        """Run up to step `at` in silence where need be, then show and run it."""
        if self.ran != at:
            self._begin()
            with on(Recorder()):
                while self.ran < at:
                    self._run(self.ran)
        step = self.lesson.steps[at]
        with on(self.stage):
            emit("step", number=at + 1, of=len(self.lesson.steps), title=step.title)
            if step.prose:
                emit("prose", text=step.prose)
            if step.shown:
                emit("code", source=step.shown, line=step.line)
            self._run(at)

    def _run(self, at):
        step, path = self.lesson.steps[at], str(self.lesson.path)
        tree = ast.increment_lineno(ast.parse(step.code, path), step.line - 1)
        try:
            exec(compile(tree, path, "exec"), self.namespace)
        except (Quit, Go, EOFError, KeyboardInterrupt, BrokenPipeError):
            self.ran = -1  # half of it
            raise
        except BaseException as error:
            own = isinstance(error, LessonError)  # a lesson that contradicts itself says so
            hint = str(error) if own else f"{type(error).__name__}: {error}"
            where = "; ".join(frames(error.__traceback__, path))
            raise MinqkvError(f"{self.lesson.name}, step {at + 1}, {where}", hint) from error
        self.ran = at + 1

    def _ask(self):
        """Until the learner wants the next step."""
        while reply := self.stage.ask("\n[Enter] next, [?] keys: "):
            if not self._key(reply):
                text = f"{reply!r} is not a command here. ? lists them; Enter continues."
                with on(self.stage):
                    emit("say", text=text)

    def _key(self, reply):
        """Do what a key asks for; False where it is none. Raises Quit and Go."""
        (key, _, rest), steps = reply.lower().partition(" "), len(self.lesson.steps)
        if key not in tuple("qbgspqh?") or (rest and key != "g"):
            return False
        if key == "q":
            raise Quit
        if key == "b":
            raise Go(max(0, self.at - 1))
        if key == "g" and rest.strip().isdecimal() and 1 <= int(rest) <= steps:
            raise Go(int(rest) - 1)
        with on(self.stage):
            if key == "s":
                self._source(self.at)
            elif key == "p":
                self._prompt()
            elif key == "h":
                emit("say", text=self.hint())
            elif key == "g":
                emit("say", text=f"Type g and a step number from 1 to {steps}, for example: g 2")
            else:
                emit("code", source=KEYS, line=0)
        return True

    def _prompt(self):
        """A Python prompt on copies, as far as things can be copied."""
        names, memo = {"exit": _leave, "quit": _leave}, {}
        for name, value in self.namespace.items():
            names[name] = value
            with suppress(Exception):  # a module, a generator
                names[name] = copy.deepcopy(value, memo)
        banner = "A copy of the lesson's variables; exit() or Ctrl-D returns to the lesson."
        with suppress(SystemExit):
            code.interact(banner, local=names, exitmsg="")
        self.ran = -1  # what was not copied may have changed: the steps run again

    def _source(self, at):
        """The last function of the package, or of the lesson, that the step calls."""
        tree = ast.parse(self.lesson.steps[at].code)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls.sort(key=lambda node: (-node.lineno, node.col_offset))  # on a line, the outermost
        for call in calls:
            thing = inspect.unwrap(_resolve(call.func, self.namespace))
            if not inspect.isroutine(thing) and not inspect.isclass(thing):
                thing = getattr(type(thing), "forward", None)  # a module that is called
            module = getattr(thing, "__module__", None) or ""
            if module.split(".")[0] not in ("minqkv", "lesson") or module.startswith(_AROUND):
                continue
            try:
                file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
            except (OSError, TypeError):  # a class of the lesson itself
                continue
            emit("say", text=f"{thing.__qualname__}, {file}, line {line}")
            emit("code", source=inspect.getsource(thing).rstrip(), line=line)
            return
        text = "No function of the package or the lesson is called here"
        emit("say", text=f"{text}; the last step lists the source.")


def _leave(code=None):
    """What exit() is at the prompt: Python's own would close stdin for the lesson as well."""
    raise SystemExit


def _resolve(node, namespace):
    """What `name` or `name.name` refers to; None for others."""
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, namespace), node.attr, None)
    return namespace.get(node.id) if isinstance(node, ast.Name) else None


def frames(tb, path):
    """ "line 12 (in attend): scores = ..." of each frame in this file; of other files nothing."""
    found = []
    for frame in traceback.extract_tb(tb):
        if frame.filename == path:
            where = "" if frame.name == "<module>" else f" (in {frame.name})"
            row = linecache.getline(path, frame.lineno).strip()
            found.append(f"line {frame.lineno}{where}: {row}")
    return found
