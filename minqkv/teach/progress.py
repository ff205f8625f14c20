"""Where a learner is: one JSON file beside their work, replaced whole after each step."""

import os
from pathlib import Path

from ..runtime.errors import EnvironmentFault
from ..runtime.files import read_sealed, sealed, write_json

SCHEMA = 1
WORK = Path("minqkv-work")


class Progress:
    """Steps seen, checks passed (with the hash of the check), hints taken, per lesson.

    A damaged file is set aside. One that cannot be read is left alone, for it may be whole: then,
    and where nothing can be written, progress is not kept. Each is told once, to `tell`.
    """

    def __init__(self, work=WORK, tell=lambda message: None):
        self.work, self.path = Path(work), Path(work) / ".minqkv" / "progress.json"
        self.lessons, self.tell, self.kept = {}, tell, True
        self._read()

    def _read(self):
        if not self.kept or not os.path.lexists(self.path):
            return
        try:
            stored = read_sealed(self.path)
            schema, lessons = stored["schema"], stored["lessons"]
            entries = all(isinstance(entry, dict) for entry in lessons.values())
            if type(schema) is not int or not entries:
                raise ValueError("its format is unknown")
        except (EnvironmentFault, KeyError, AttributeError, ValueError) as error:
            if isinstance(error.__cause__, OSError):
                self._keep_nothing(error)
                return
            aside = self.path.with_name(f"progress.unreadable-{os.getpid()}.json")
            try:
                os.replace(self.path, aside)
            except OSError:  # in a folder that cannot be written to, it stays
                self._keep_nothing(error)
            else:
                why = "the progress file is damaged, so progress starts over"
                self.tell(f"{why}; the old file is now {aside}")
            return
        if schema > SCHEMA:
            why = f"{self.path} was written by a newer minqkv"
            raise EnvironmentFault(why, "update your clone: git pull")
        self.lessons = lessons

    def of(self, lesson):
        """The entry of a lesson: {"step": steps seen, "passed": hash or absent, "hints": taken}."""
        return self.lessons.get(lesson.name, {})

    def update(self, lesson, **fields):
        """Change an entry and save; a field set to None is forgotten."""
        self._read()  # another terminal may have written since
        entry = {**self.of(lesson), **fields}
        kept = {name: value for name, value in entry.items() if value is not None}
        self.lessons[lesson.name] = kept
        self._write()

    def forget(self, lesson):
        """As if the lesson had never been started."""
        self._read()
        if self.lessons.pop(lesson.name, None) is not None:
            self._write()

    def _write(self):
        if self.kept:
            try:
                write_json(self.path, sealed({"schema": SCHEMA, "lessons": self.lessons}))
            except EnvironmentFault as error:
                self._keep_nothing(error)

    def _keep_nothing(self, error):
        self.kept = False
        self.tell(f"progress is not kept: {error}")

    def file(self, lesson):
        """The learner's own file."""
        return self.work / f"{lesson.name}.py"

    def seen(self, lesson):
        """Steps of the lesson that were seen, never more than it has."""
        step = self.of(lesson).get("step", 0)
        return min(step, len(lesson.steps)) if isinstance(step, int) and step > 0 else 0

    def done(self, lesson):
        """Whether the check is passed."""
        return "passed" in self.of(lesson)


def next_thing(lessons, progress):
    """(lesson, what to do): "play", "start" or "check"; (None, None) when the course is done."""
    for lesson in lessons:
        if progress.done(lesson):
            continue
        if progress.seen(lesson) < len(lesson.steps):
            return lesson, "play"
        return lesson, "check" if progress.file(lesson).exists() else "start"
    return None, None
