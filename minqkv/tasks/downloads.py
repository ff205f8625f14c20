"""What can be downloaded, and the folder in which prepared texts and downloads are kept.

A download that ends early keeps what has arrived in a file `.NAME.part`, and goes on from there the
next time. Only a file with the right content gets its name.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..runtime import files
from ..runtime.errors import EnvironmentFault, UsageError, unknown
from ..runtime.locks import locked

TIMEOUT_S = 30.0  # without a byte
PATIENCE = 20  # after this many timeouts, a download must have been faster than SLOWEST
SLOWEST = 1000  # bytes per second
CHUNK = 1 << 16
ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class Download:
    """A file on the web: its name, address and size, and its SHA-256 or, if that is what was
    published, MD5, in hex digits.
    """

    file: str
    url: str
    n_bytes: int
    checksum: str
    about: str = ""

    @property
    def algorithm(self) -> str:
        """What the checksum is."""
        return "sha256" if len(self.checksum) == 64 else "md5"


@dataclass(frozen=True)
class Collection:
    """Files that belong together, in a folder."""

    about: str
    files: tuple[Download, ...]


def _published(base, *rows):
    return tuple(Download(file, base + file, size, checksum) for file, size, checksum in rows)


DOWNLOADS = {  # texts
    "shakespeare": Download(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "tiny Shakespeare: 1.1 MB of his plays",
    )
}
_TRAIN, _TEST = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"), (
    "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip
IMAGES = {
    "mnist": Collection(
        "MNIST: 70,000 handwritten digits, 28 × 28 pixels, grey",
        _published(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            (_TRAIN[0], 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            (_TRAIN[1], 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            (_TEST[0], 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            (_TEST[1], 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    "fashion": Collection(
        "Fashion-MNIST: 70,000 pieces of clothing, 28 × 28 pixels, grey",
        _published(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            (_TRAIN[0], 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            (_TRAIN[1], 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            (_TEST[0], 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            (_TEST[1], 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    "cifar10": Collection(
        "CIFAR-10: 60,000 photographs in 10 classes, 32 × 32 pixels, in colour",
        _published(
            "https://www.cs.toronto.edu/~kriz/",
            ("cifar-10-binary.tar.gz", 170_052_171,
             "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        ),
    ),
    "cifar100": Collection(
        "CIFAR-100: 60,000 photographs in 100 classes, 32 × 32 pixels, in colour",
        _published(
            "https://www.cs.toronto.edu/~kriz/",
            ("cifar-100-binary.tar.gz", 168_513_733,
             "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        ),
    ),
}  # fmt: skip


def cache_root() -> Path:
    """The folder for data: $MINQKV_CACHE, or $XDG_CACHE_HOME/minqkv, or ~/.cache/minqkv."""
    if own := os.environ.get("MINQKV_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minqkv")
    except RuntimeError as error:  # an account without a home folder
        cure = "set MINQKV_CACHE to a folder"
        raise EnvironmentFault("there is no folder to keep data in", cure) from error


def place(name: str) -> Path:
    """The path of a download: of the text, or of the folder of images."""
    file = DOWNLOADS[name].file if name in DOWNLOADS else name
    return cache_root() / "downloads" / file


def collection(name: str) -> Collection:
    """What a name stands for. Raises UsageError for an unknown one."""
    if name in DOWNLOADS:
        return Collection(DOWNLOADS[name].about, (DOWNLOADS[name],))
    if name not in IMAGES:
        raise unknown("download", name, (*DOWNLOADS, *IMAGES))
    return IMAGES[name]


def is_complete(name: str) -> bool:
    """Whether all files of a download are there, with the right content."""
    folder = place(name).parent if name in DOWNLOADS else place(name)
    return all(is_whole(folder / file.file, file) for file in collection(name).files)


def is_whole(path: Path, wanted: Download) -> bool:
    """Whether the file is there, with the right content."""
    if not path.is_file() or path.stat().st_size != wanted.n_bytes:
        return False
    with files.opened(path) as file:
        return hashlib.file_digest(file, wanted.algorithm).hexdigest() == wanted.checksum


def fetch(
    name: str,
    url: str | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = TIMEOUT_S,
) -> Path:
    """Download a text, or the files of a set of images, unless they are there; returns the path of
    the text, or of the folder.

    `url` is another address of a single file; `out` is another place. `progress(done, total)`
    counts bytes. `timeout` is in seconds. Raises UsageError for an unknown name or a URL that is
    not http(s), and EnvironmentFault if a download fails or is another file.
    """
    wanted, path = collection(name).files, Path(out) if out else place(name)
    if url and len(wanted) > 1:
        what = f"{name} has {len(wanted)} files, and --url is the address of one"
        raise UsageError(what, "leave it out, or download the files in another way")
    if url and not url.startswith(("https://", "http://")):
        raise UsageError(f"{url!r} is not a web address", "it must begin with https:// or http://")
    done, total = 0, sum(file.n_bytes for file in wanted)
    for file in wanted:
        target = path if name in DOWNLOADS else path / file.file

        def advance(n, before=done):
            if progress:
                progress(before + n, total)

        _fetch_file(file, url or file.url, target, advance, timeout, name in DOWNLOADS)
        done += file.n_bytes
        advance(0, done)
    return path


def _fetch_file(wanted, url, path, advance, timeout, is_text):
    """One file, unless it is there."""
    from http.client import HTTPException  # here: most runs download nothing

    path = Path(os.path.realpath(path))
    if is_whole(path, wanted):
        return
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file", "choose another place with --out")
    files.make_folder(path.parent)
    with locked(path.parent, "download"):
        try:
            _receive(url, wanted, path, advance, timeout)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed address
            cause = getattr(error, "reason", None) or error
            why = " ".join(str(getattr(cause, "strerror", None) or cause).split())
            use = "name the file: --text FILE" if is_text else f"put it into {path.parent}"
            raise EnvironmentFault(
                f"cannot download {url}: {why}",
                f"repeat the command, or download {wanted.url} in another way, then {use}",
            ) from error


def _receive(url, wanted, path, advance, timeout):
    """Download into a part file, which gets its name if its content is right. Raises OSError if it
    is not.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with files.appended(part) as file:
            whole = file.tell() >= wanted.n_bytes  # it was killed before it could be renamed
            resumed = whole or _append(file, url, wanted, advance, timeout)
            os.fsync(file.fileno())
            size = file.tell()
        if size < wanted.n_bytes:
            raise OSError(f"it ended after {size:,} of {wanted.n_bytes:,} bytes")
        if is_whole(part, wanted):
            os.replace(part, path)
            return
        os.truncate(part, 0)
        if not resumed:
            name = ALGORITHMS[wanted.algorithm]
            raise OSError(f"it is not the expected file: its {name} differs")
        _receive(url, wanted, path, advance, timeout)  # its beginning may have been of another file
    finally:
        with suppress(OSError):
            if not part.stat().st_size:
                part.unlink()


def _append(file, url, wanted, advance, timeout):
    """Add what is missing to a part file; from the beginning, if the server cannot do otherwise.
    Returns whether it went on from what was there. Raises OSError if it is too long, or too slow.
    """
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urlopen(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code != 416:  # no such range: the file is another one
            raise
        answer = urlopen(url, timeout=timeout)
    with answer:
        resumed = start > 0 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        if not resumed:
            file.seek(0)
            file.truncate()
        began, received = time.monotonic(), 0
        while chunk := answer.read1(CHUNK):  # what has arrived, so that a slow server is noticed
            received += len(chunk)
            if file.tell() + len(chunk) > wanted.n_bytes:
                file.seek(0)
                file.truncate()
                raise OSError(f"it is longer than the {wanted.n_bytes:,} bytes expected")
            _write(file, chunk)
            seconds = time.monotonic() - began
            if seconds > PATIENCE * timeout and received < SLOWEST * seconds:
                raise OSError(f"only {received:,} bytes came in {seconds:.0f} s")
            advance(file.tell())
    return resumed


def _write(file, chunk):
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise files.cannot_write(file.name, error) from error
