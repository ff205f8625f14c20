"""How many threads BLAS uses for a product, at run time and with no environment variable."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import threadpoolctl

from .claims import Claim

_lock = threading.Lock()
_libraries = None  # found once: the BLAS that NumPy uses
_asked = WeakKeyDictionary()  # who asks -> for how many; the smallest number is used
_before = []  # what each library had before anybody asked


@contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """BLAS on n threads inside, or fewer while another caller asks for fewer; restored at the end.

    If an interrupt hits the restoring itself, the next such block restores it.
    """
    asker = Claim()  # which is gone with this block, however it ends
    with _lock:
        _asked[asker] = n
        _apply()
    try:
        yield
    finally:
        with _lock:
            _asked.pop(asker, None)
            _apply()


def _apply():
    global _libraries, _before
    if _libraries is None:
        found = threadpoolctl.ThreadpoolController().select(user_api="blas")
        _libraries = found.lib_controllers
    if not _before:
        _before = [library.num_threads for library in _libraries]
    for library, before in zip(_libraries, _before, strict=True):
        wanted = min(_asked.values(), default=before)
        if library.num_threads != wanted:
            library.set_num_threads(wanted)
    if not _asked:
        _before = []


def _after_fork():
    """A child has none of its parent's other threads, and nothing in it has asked yet."""
    global _lock
    _lock = threading.Lock()
    _asked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
