"""Texts that can be downloaded, and the folder in which prepared and downloaded texts are kept."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..runtime import files
from ..runtime.errors import EnvironmentFault, UsageError, unknown

TIMEOUT_S = 30.0  # without a byte; the whole download may take PATIENCE times as long
PATIENCE = 20
CHUNK = 1 << 16


@dataclass(frozen=True)
class Download:
    """A text on the web: its address, its size and SHA-256, and the file that it is saved as."""

    file: str
    url: str
    n_bytes: int
    sha256: str
    about: str


DOWNLOADS = {
    "shakespeare": Download(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "tiny Shakespeare: 1.1 MB of his plays",
    )
}


def cache_root() -> Path:
    """The folder for data: $MINQKV_CACHE, or $XDG_CACHE_HOME/minqkv, or ~/.cache/minqkv."""
    if own := os.environ.get("MINQKV_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(shared, "minqkv")


def place(name: str) -> Path:
    """The path of a download."""
    return cache_root() / "downloads" / DOWNLOADS[name].file


def is_whole(path: Path, wanted: Download) -> bool:
    """Whether the file is there, with the right content."""
    if not path.is_file() or path.stat().st_size != wanted.n_bytes:
        return False
    with files.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256


def fetch(
    name: str,
    url: str | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = TIMEOUT_S,
) -> Path:
    """Download a text, from its own address or from `url`, unless it is there; returns its path.

    `timeout` is in seconds. Raises UsageError for an unknown name or a URL that is not http(s), and
    EnvironmentFault if the download fails or is another file. In that case nothing is saved.
    """
    if name not in DOWNLOADS:
        raise unknown("text", name, DOWNLOADS)
    wanted, path = DOWNLOADS[name], Path(out) if out else place(name)
    url = url or wanted.url
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"{url!r} is not a web address", "it must begin with https:// or http://")
    if is_whole(path, wanted):
        return path
    from http.client import HTTPException  # here: most runs download nothing

    try:
        data = _received(url, wanted, progress, timeout)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed address
        cause = getattr(error, "reason", None) or error
        why = " ".join(str(getattr(cause, "strerror", None) or cause).split())
        raise EnvironmentFault(
            f"cannot download {url}: {why}",
            f"download {wanted.url} in another way, then name the file: --text FILE",
        ) from error
    with files.replacing(path) as file:
        file.write(data)
    return path


def _received(url, wanted, progress, timeout):
    """The content at this address. Raises OSError if it is not the wanted text."""
    from urllib.request import urlopen

    data, limit = bytearray(), time.monotonic() + PATIENCE * timeout
    with urlopen(url, timeout=timeout) as answer:
        while chunk := answer.read1(CHUNK):  # what has arrived, so that a slow server is noticed
            data += chunk
            if len(data) > wanted.n_bytes:
                raise OSError(f"it is longer than the {wanted.n_bytes:,} bytes expected")
            if time.monotonic() > limit:
                raise OSError(f"only {len(data):,} bytes came in {PATIENCE * timeout:.0f} s")
            if progress:
                progress(len(data), wanted.n_bytes)
    if len(data) < wanted.n_bytes:
        raise OSError(f"it ended after {len(data):,} of {wanted.n_bytes:,} bytes")
    if hashlib.sha256(data).hexdigest() != wanted.sha256:
        raise OSError("it is another text than expected: its SHA-256 differs")
    return data
