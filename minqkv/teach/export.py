"""The course as pages or notebooks in a folder: every lesson is run, and what it shows is kept."""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..render.course import Chapter, index_page, lesson_page, module_page, source_page
from ..render.lesson import Recorder
from ..render.notebook import notebook
from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.files import cannot_write, make_folder, opened, read_json, write_json, write_text
from ..runtime.locks import locked
from ..runtime.version import __version__
from .checks import Check
from .lessons import course
from .notebook import performed
from .runner import Player
from .training import BRIEF, brief

_ASIDE = ".minqkv-course-"  # where files are while they are written
_MADE_BY = f"Made by `minqkv lesson export --html DIR`, minqkv {__version__}."


@dataclass(frozen=True)
class Kind:
    """What an export consists of: `mark` is a file in its folder with the names of the others and
    their hashes, and those that `edited` are not replaced once they have changed.
    """

    mark: str
    what: str
    names: str
    example: str
    edited: bool = False


PAGES = Kind("minqkv-course.json", "pages", r"(source/)?[\w.]+\.html", "--html course")
NOTEBOOKS = Kind("minqkv-notebooks.json", "notebooks", r"\w+\.ipynb", "--notebook notebooks", True)


def export(folder, advance=lambda done, note="": None):
    """Write a page for each lesson, an index, and the source files they point to. Returns the names
    of the pages.

    Nothing is written before the last lesson has run. `advance(done, title)` is called before each.
    Raises UsageError for a folder that holds anything but an earlier export.
    """
    return _export(Path(folder), PAGES, played, render, advance)


def export_notebooks(folder, advance=lambda done, note="": None):
    """`export` as a notebook for each lesson. Raises UsageError where one of an earlier export has
    been changed: somebody's work is in it.
    """
    return _export(Path(folder), NOTEBOOKS, as_cells, notebooks, advance)


def _export(folder, kind, play, render, advance):
    lessons, chapters = course(), []
    _refuse_foreign(folder, kind, [f"{lesson.name}.ipynb" for lesson in lessons])
    for done, lesson in enumerate(lessons):
        advance(done, lesson.title)
        chapters.append(play(lesson))
    advance(len(lessons))
    files = render(chapters)
    write(folder, files, kind)
    return list(files)


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


def as_cells(lesson):
    """(Chapter without events, its cells as `performed` gives them)."""
    return chapter(lesson, []), performed(lesson)


def notebooks(chapters):
    """Name -> text of every notebook, given (Chapter, cells) of each."""
    every = [one for one, _ in chapters]
    return {
        f"{one.lesson.name}.ipynb": notebook(one, every, cells, __version__)
        for one, cells in chapters
    }


# ---- the folder


def write(folder, pages, kind=PAGES):
    """Put pages (name -> text) into the folder. They are written aside, then moved all at once, and
    pages of an earlier export that are no longer made are removed.
    """
    stale = _refuse_foreign(folder, kind, pages) - pages.keys()
    make_folder(folder)
    hashes = {name: _written(pages[name], kind) for name in sorted(pages)}
    try:
        with locked(folder, "course"), TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
            for left in set(folder.glob(f"{_ASIDE}*")) - {Path(aside)}:  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            write_json(Path(aside, kind.mark), {"minqkv": __version__, "pages": hashes})
            for name, text in pages.items():
                write_text(Path(aside, name), text)
            for name in (kind.mark, *pages):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(Path(aside, name), folder / name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for name in stale:
        with suppress(OSError):
            (folder / name).unlink()


def _written(text, kind):
    """A hash of what people write in a file: of a notebook the sources of its cells, since Jupyter
    changes the rest when it runs or saves one. None if it is not a notebook.
    """
    if kind.edited:
        try:
            cells = json.loads(text)["cells"]
            text = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_foreign(folder, kind, made):
    """The names of files of an earlier export. Raises UsageError where something else is there, or
    somebody's work would be replaced by one of those that are `made`.
    """
    if not folder.exists():
        return set()
    other = f"choose another folder, which may be new, for instance: {kind.example}"
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", other)
    try:
        found = [name for name in os.listdir(folder) if not name.startswith((_ASIDE, ".lock"))]
    except OSError as error:
        raise EnvironmentFault(f"cannot read {folder}: {error.strerror}", other) from error
    if not found:
        return set()
    if kind.mark not in found:
        raise UsageError(f"{kind.what} might replace other files in {folder}", other)
    stored = read_json(folder / kind.mark).get("pages")
    stored = stored if isinstance(stored, dict) else {}  # a file that anyone may have changed
    names = {name for name in stored if re.fullmatch(kind.names, name)}
    for name in sorted(names.union(made)) if kind.edited else ():
        path = folder / name
        if path.exists() and _written(_read(path), kind) != stored.get(name):
            raise UsageError(f"{path} has changed since it was exported; it is not replaced", other)
    return names


def _read(path):
    try:
        with opened(path) as file:
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
