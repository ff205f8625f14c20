"""Files that are whole or absent: written under another name, flushed to disk, then renamed over
the old one. What they hold carries a checksum, so that damage is noticed when they are read.
"""

import errno
import io
import json
import math
import os
import shutil
import zlib
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
    if _is_special(Path(path)):
        with _special(path, mode) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
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


def _is_special(path):
    """Whether a path leads to a FIFO, a device, a folder or an open stream. A name of a stream
    (/dev/stdout, or /dev/fd/63 from a shell) may lead to a plain file, not to be replaced.
    """
    stream = os.path.abspath(path).startswith(("/dev/fd/", "/dev/std", "/proc/"))
    return path.exists() and (stream or not path.is_file())


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
    cure = "name another place to write to, or work in another folder"
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


def read_json(path, cure=None):
    """A JSON object from a file. Raises EnvironmentFault when it is missing, corrupt, or holds
    something else; `cure` is for these. If the file could not even be read, the error has an
    OSError as its cause: then it may be whole.
    """
    try:
        with opened(path) as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise EnvironmentFault(f"{path} is larger than {LARGEST:,} bytes")
            value = json.loads(text_of(file.read()), parse_int=_integer)
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EnvironmentFault(f"{path} is not valid JSON: {error}", cure) from error
    if not isinstance(value, dict):
        raise EnvironmentFault(f"{path} is not a JSON object", cure)
    return value


def text_of(data):
    """The text of a file in any Unicode encoding, without the byte order mark that editors on
    Windows write. Raises UnicodeDecodeError.
    """
    return data.decode(json.detect_encoding(data))


def _integer(text):
    """Of a size that any sum with it can take."""
    if math.isinf(float(text)):
        raise ValueError(f"it has an integer of {len(text):,} digits")
    return int(text)


def sealed(value):
    """A JSON object with a checksum of itself, `check`; see `read_sealed`."""
    return {**value, "check": _checksum(value)}


def read_sealed(path, cure=None):
    """A JSON object from a file, without its checksum. Raises EnvironmentFault as `read_json` does,
    and where the object was changed. Files of earlier versions have no checksum.
    """
    value = read_json(path, cure)
    check = value.pop("check", None)
    if check is not None and check != _checksum(value):
        raise EnvironmentFault(f"{path} was changed after it was written", cure)
    return value


def _checksum(value):
    plain = json.loads(json.dumps(value))  # as it will be read: in JSON, all keys are texts
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


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

    meta = {"kind": kind, **meta}
    meta["check"] = _checksum_with(arrays, meta)
    label = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    # First whole in memory: an archive that meets a full disk half-way cannot even be closed.
    packed = io.BytesIO()
    np.savez(packed, __meta__=label, **arrays)
    with replacing(path) as file:
        file.write(packed.getbuffer())


def _checksum_with(arrays, meta):
    """A checksum of arrays and `meta`: those of the parts of the archive do not bind them."""
    import numpy as np

    check = int(_checksum(meta), 16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        check = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), check)
        check = zlib.crc32(array, check)
    return f"{check:08x}"


def _archive(file):
    """An open .npz. Raises ValueError where it is something else, which NumPy might advise to load
    unsafely.
    """
    import numpy as np

    if not file.peek(2).startswith(b"PK"):
        raise ValueError("it is not an archive of arrays")
    return np.load(file, allow_pickle=False)


def read_arrays(path, kind):
    """(meta, arrays) of a file written by `write_arrays` with this kind; never unpickles.

    Raises EnvironmentFault when it is missing, truncated, corrupt, or of another kind. When it
    cannot be read at all, the message is another one, and MemoryError is passed on: then the file
    may be whole.
    """
    try:
        with opened(path) as archive, _archive(archive) as file:
            if sum(member.file_size for member in file.zip.infolist()) > os.stat(path).st_size:
                raise ValueError("it unpacks to more than its own size")
            if damaged := file.zip.testzip():  # NumPy alone may stop reading before the checksum
                raise ValueError(f"{damaged} fails its checksum")
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("__meta__").tobytes())
        if not isinstance(meta, dict):
            raise ValueError("it does not say what it is")
        check = meta.pop("check", None)  # absent in files of earlier versions
        if check is not None and check != _checksum_with(arrays, meta):
            raise ValueError("its parts do not belong together")
        found = meta.pop("kind")
    except FileNotFoundError as error:
        raise EnvironmentFault(
            f"{path} does not exist",
            "if the run stopped before its first checkpoint, continue it with --resume",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything, even TokenError
        invalid = (None, errno.EINVAL)  # NumPy's own, and a seek before the start
        if isinstance(error, OSError) and error.errno not in invalid:
            raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
        raise EnvironmentFault(
            f"{path} is corrupt, truncated or not a {kind}: {' '.join(str(error).split())}",
            "restore it from a copy, or start again in another folder",
        ) from error
    if found != kind:
        raise EnvironmentFault(f"{path} is a {found}, not a {kind}")
    return meta, arrays
