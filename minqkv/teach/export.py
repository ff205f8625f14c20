"""The course as pages in a folder: every lesson is run, and what it shows is written as HTML."""

import os
import re
import shutil
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ..render.course import Chapter, index_page, lesson_page, module_page, source_page
from ..render.lesson import Recorder
from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.files import cannot_write, make_folder, read_json, write_json, write_text
from ..runtime.locks import locked
from ..runtime.version import __version__
from .checks import Check
from .lessons import course
from .runner import Player
from .training import BRIEF, brief

MARK = "minqkv-course.json"  # in the folder of an export: the names of its pages
_ASIDE = ".minqkv-course-"  # where pages are while they are written
_MADE_BY = f"Made by `minqkv lesson export --html DIR`, minqkv {__version__}."


def export(folder, advance=lambda done, note="": None):
    """Write a page for each lesson, an index, and the source files they point to. Returns the names
    of the pages.

    Nothing is written before the last lesson has run. `advance(done, title)` is called before each.
    Raises UsageError for a folder that holds anything but an earlier export.
    """
    folder, lessons, chapters = Path(folder), course(), []
    _refuse_foreign(folder)
    for done, lesson in enumerate(lessons):
        advance(done, lesson.title)
        chapters.append(played(lesson))
    advance(len(lessons))
    pages = render(chapters)
    write(folder, pages)
    return list(pages)


def played(lesson):
    """The lesson as a Chapter: run from beginning to end, with brief training."""
    recorder = Recorder()
    with brief():
        Player(lesson, recorder).play(pause=False)
    return chapter(lesson, recorder.drawn)


def chapter(lesson, events):
    """What the page of a lesson needs, given the events of playing it."""
    check, steps = Check(lesson), BRIEF if lesson.trains else None
    texts = [lesson.companion(kind).read_text("utf-8") for kind in ("exercise", "solution")]
    return Chapter(lesson, events, *texts, check.hints, check.explanation, steps)


def render(chapters):
    """Name -> text of every page."""
    package, users = Path(__file__).resolve().parents[1], defaultdict(dict)
    for one in chapters:
        for event in one.events:
            if event["event"] == "source" and event["file"].startswith("minqkv/"):
                users[event["file"]][one.file] = one
    pages = {"index.html": index_page(chapters, sorted(users), _MADE_BY)}
    for one in chapters:
        pages[one.file] = lesson_page(one, chapters, _MADE_BY)
    for file in sorted(users):
        text = (package.parent / file).read_text("utf-8")
        pages[module_page(file)] = source_page(file, text, users[file].values(), _MADE_BY)
    return pages


# ---- the folder


def write(folder, pages):
    """Put pages (name -> text) into the folder. They are written aside, then moved all at once, and
    pages of an earlier export that are no longer made are removed.
    """
    stale = _refuse_foreign(folder) - pages.keys()
    make_folder(folder)
    try:
        with locked(folder, "course"), TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
            for left in set(folder.glob(f"{_ASIDE}*")) - {Path(aside)}:  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            write_json(Path(aside, MARK), {"minqkv": __version__, "pages": sorted(pages)})
            for name, text in pages.items():
                write_text(Path(aside, name), text)
            for name in (MARK, *pages):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(Path(aside, name), folder / name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for name in stale:
        with suppress(OSError):
            (folder / name).unlink()


def _refuse_foreign(folder):
    """The names of pages of an earlier export. Raises UsageError where something else is there."""
    if not folder.exists():
        return set()
    other = "choose another folder, which may be new, for instance: --html course"
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", other)
    try:
        found = [name for name in os.listdir(folder) if not name.startswith((_ASIDE, ".lock"))]
    except OSError as error:
        raise EnvironmentFault(f"cannot read {folder}: {error.strerror}", other) from error
    if not found:
        return set()
    if MARK not in found:
        raise UsageError(f"{folder} holds other files, and pages might replace them", other)
    names = read_json(folder / MARK).get("pages")
    names = names if isinstance(names, list) else []  # a file that anyone may have changed
    return {n for n in names if isinstance(n, str) and re.fullmatch(r"(source/)?[\w.]+\.html", n)}
