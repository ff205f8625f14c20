"""The documents of a text: from a file, a folder, JSON Lines or stdin.

A plain file is one document. A file whose name ends in `.jsonl` holds one JSON object per line, and
the string in its field "text" is a document. A folder holds the documents of all its files, sorted
by path.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..runtime import files
from ..runtime.errors import EnvironmentFault, UsageError
from . import downloads

BUILT_IN = Path(__file__).with_name("builtin.jsonl")
BOM = b"\xef\xbb\xbf"  # some editors put it before a text in UTF-8
STDIN_BYTES = 1 << 30  # an endless stream would fill the memory


class Documents:
    """The documents of a source. Each iteration reads them again: (name, content as bytes).

    `source` is a file, a folder, "-" for stdin, the name of a download, or "" for the built-in
    corpus. `name` is its name in messages, and `label` a short name that is safe in file names.
    `left_out` counts what is not a document, by reason: hidden, linked, special, binary or empty.
    Linked is a link to a folder, or to a file outside this one; special is not a plain file, or a
    broken link; binary has a NUL byte. It is complete after an iteration.

    Raises UsageError if there is no such source, and EnvironmentFault if it cannot be read, now or
    during an iteration.
    """

    def __init__(self, source: str):
        self.reasons, self.typed = {}, None
        if source == "-":
            self.name = self.label = "stdin"
            self.typed = _from_stdin()
            return
        path = _located(source)
        self.name = str(path)
        name = path.resolve().name if path.is_dir() else path.stem
        self.label = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:40] or "text"
        self.paths = list(self._walk(path)) if path.is_dir() else [path]

    @property
    def left_out(self) -> Counter:
        """Reason -> how many files, folders or documents were left out for it."""
        return Counter(self.reasons.values())

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for name, data in self._all():
            data = data.removeprefix(BOM)
            if not data:
                self.reasons[name] = "empty"
            else:
                yield name, data

    def _all(self):
        if self.typed is not None:
            yield "stdin", self.typed
            return
        for path in self.paths:
            if path.suffix == ".jsonl":
                yield from _lines(path)
            elif b"\0" in (data := _content(path)):
                self.reasons[str(path)] = "binary"
            else:
                yield str(path), data

    def _walk(self, top):
        """The files of a folder, sorted by path; what is left out is noted."""
        root, found = os.path.realpath(top), []
        for folder, below, names in os.walk(top, onerror=_cannot_read):
            for name in (*below, *names):
                path = Path(folder, name)
                if why := _why_not(path, root):
                    self.reasons[str(path)] = why
                elif name in names:
                    found.append(path)
            below[:] = [name for name in below if str(Path(folder, name)) not in self.reasons]
        return sorted(found)


def _why_not(path, root):
    """Why an entry of a folder is left out, or None."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        inside = Path(os.path.realpath(path)).is_relative_to(root)
        return None if inside and path.is_file() else "linked"
    return None if path.is_dir() or path.is_file() else "special"


def _located(source):
    """The path of a source."""
    if not source:
        return BUILT_IN
    if os.path.exists(source):
        return Path(source)
    if source == BUILT_IN.stem:
        return BUILT_IN
    if source in downloads.DOWNLOADS:
        path = downloads.place(source)
        if not downloads.is_whole(path, downloads.DOWNLOADS[source]):
            command = f"minqkv data fetch {source}"
            raise EnvironmentFault(f"{source} is not downloaded yet", f"fetch it: {command}")
        return path
    known = ", ".join(downloads.DOWNLOADS)
    hint = f"name a file, a folder, - for stdin, or a text that can be downloaded: {known}"
    raise UsageError(f"there is no file or folder {source!r}", hint)


def _cannot_read(error):
    raise EnvironmentFault(f"cannot read {error.filename}: {error.strerror}") from error


def _content(path):
    try:
        with files.opened(path) as file:
            return file.read()
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error


def _from_stdin():
    if sys.stdin is None:
        raise UsageError("stdin is closed", "name a file, or send a text through a pipe")
    data = sys.stdin.buffer.read(STDIN_BYTES + 1)
    if len(data) > STDIN_BYTES:
        raise UsageError("stdin has more than 1 GiB of text", "save it as files, and name those")
    if b"\0" in data:
        raise EnvironmentFault("the input on stdin is binary, not text")
    return data


def _lines(path):
    """The documents of JSON Lines."""
    try:
        with files.opened(path) as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if line.strip():
                    yield where, _text_of(line.removeprefix(BOM), where)
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error


def _text_of(line, where):
    try:
        value = json.loads(line.decode("utf-8"))
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            return value["text"].encode("utf-8")
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", None) or getattr(error, "reason", None) or error
        raise EnvironmentFault(f"{where}: not valid JSON: {why}") from error
    raise EnvironmentFault(
        f'{where}: there is no string "text"', 'write one object per line: {"text": "…"}'
    )
