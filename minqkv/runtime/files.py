"""Files that are whole or absent: written under another name, flushed to disk, then renamed."""

import errno
import io
import json
import math
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import EnvironmentFault, UsageError

LARGEST = 1 << 26  # bytes of a JSON file, which may take 25 times as many in memory


@contextmanager
def replacing(path, mode="wb"):
    """Open a temporary file beside `path`; at the end it takes its place, with its permissions. On
    any error the old file stays as it was. A link is followed. Anything but a plain file, such as a
    FIFO or a device, is written to directly.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with _special(path, mode) as file:
            yield file
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(aside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, aside)
        os.replace(aside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink()


def printable(text: str) -> str:
    """A text without control characters: a terminal must not obey a file."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _open(path, mode):
    """Bytes of a path that are not UTF-8 are written as \\udcff and so on, as JSON reads them."""
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    return open(path, mode, **text)


@contextmanager
def _special(path, mode):
    """A FIFO, a device or a socket, open for writing. A folder is refused."""
    try:
        with _open(path, mode) as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(path):
    """The folder, made if it does not exist. Raises EnvironmentFault if that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path, error):
    """An OSError met while writing, as an error that says what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "choose another place: with --out, or from another folder"
    cure = f"free some space, or {cure}" if full else cure
    return EnvironmentFault(f"cannot write {path}: {error.strerror or error}", cure)


def write_text(path, text):
    """Replace a text file. A page or a figure takes no place of another kind of file, such as one
    of a run that was named by mistake.
    """
    if text[:1] == "<" and Path(path).is_file():
        with open(path, "rb") as file:
            if file.read(1) not in b"<":
                why = f"{path} is another kind of file, which would be lost"
                raise UsageError(why, "choose another name, or remove that file first")
    with replacing(path, "w") as file:
        file.write(text)


def write_json(path, value):
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path):
    """A JSON object from a file. Raises EnvironmentFault when it is missing, corrupt, or holds
    something else.
    """
    try:
        with opened(path) as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise EnvironmentFault(f"{path} is larger than {LARGEST:,} bytes")
            value = json.loads(file.read().decode("utf-8"), parse_int=_integer)
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EnvironmentFault(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise EnvironmentFault(f"{path} holds no JSON object")
    return value


def _integer(text):
    """Of a size that any sum with it can take."""
    if math.isinf(float(text)):
        raise ValueError(f"it has an integer of {len(text):,} digits")
    return int(text)


def opened(path):
    """A plain file, open for reading. Anything else is refused: opening a FIFO would wait."""
    if Path(path).exists() and not Path(path).is_file():
        raise OSError(errno.EISDIR, "it is not a plain file")
    return open(path, "rb")


def appended(path, buffering=-1):
    """A plain file, open for appending and reading. Anything else is refused: writing would follow
    a link, and opening a FIFO would wait.
    """
    try:
        if Path(path).is_symlink() or (Path(path).exists() and not Path(path).is_file()):
            raise OSError("it is not a plain file")
        return open(path, "a+b", buffering=buffering)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_arrays(path, kind, meta, arrays):
    """Replace an .npz of named arrays; `kind` and `meta` (JSON) travel inside it."""
    import numpy as np  # here, because reading a JSON file must not wait for it

    label = np.frombuffer(json.dumps({"kind": kind, **meta}).encode(), np.uint8)
    packed = (
        io.BytesIO()
    )  # first whole in memory: an archive that meets a full disk half-way cannot even be closed
    np.savez(packed, __meta__=label, **arrays)
    with replacing(path) as file:
        file.write(packed.getbuffer())


def read_arrays(path, kind):
    """(meta, arrays) of a file written by `write_arrays` with this kind; never unpickles.

    Raises EnvironmentFault when it is missing, truncated, corrupt, or of another kind. When it
    cannot be read at all, the message is another one, and MemoryError is passed on: then the file
    may be whole.
    """
    import numpy as np

    try:
        with opened(path) as archive, np.load(archive, allow_pickle=False) as file:
            if sum(member.file_size for member in file.zip.infolist()) > os.stat(path).st_size:
                raise ValueError("it unpacks to more than its own size")
            if damaged := file.zip.testzip():  # NumPy alone may stop reading before the checksum
                raise ValueError(f"{damaged} fails its checksum")
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("__meta__").tobytes())
        found = meta.pop("kind")
    except FileNotFoundError as error:
        raise EnvironmentFault(
            f"{path} does not exist",
            "if the run stopped before its first checkpoint, continue it with --resume",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything, even TokenError
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek before the start
            raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
        raise EnvironmentFault(
            f"{path} is corrupt, truncated or no {kind}: {error}",
            "restore it from a copy, or start again in another folder",
        ) from error
    if found != kind:
        raise EnvironmentFault(f"{path} is a {found}, not a {kind}")
    return meta, arrays
