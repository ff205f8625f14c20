"""A folder that one process at a time may write to: `with locked(folder):`.

The kernel holds the lock, on the file `.lock` in the folder, and releases it when its owner ends,
however that happens. What the file says (pid, host, since when) is for the message that another
process gets, and for what a kernel cannot see: an owner on another machine.
"""

import errno
import json
import os
import socket
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from . import files
from .errors import EnvironmentFault

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

PAUSE_S = 0.1  # without locks: longer than another process takes from checking to claiming
BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # any other error: no locks on this file system


@contextmanager
def locked(folder, what="run"):
    """Reserve `folder`, which holds a `what`, for this `with` block alone. Its value is a function
    to call before each write: it raises EnvironmentFault once the folder is no longer there.

    Raises EnvironmentFault, not UsageError, while it is in use, by another process or by this one:
    the command is right, and later it will work. Raises files.cannot_write where `.lock` cannot be
    written. A lock whose owner is dead is taken over. One from another machine is not, unless it
    was released: whether its owner lives cannot be seen from here.

    A child that is forked inside shares the lock and keeps the folder until it ends, even if its
    parent is killed, because it may still write there. But leaving the block releases the lock only
    in the process that took it. Programs started inside do not inherit it.
    """
    path, pid = Path(folder) / ".lock", os.getpid()
    with files.appended(path, buffering=0) as file:
        _claim(file, path, what)

        def still():
            if not _in_place(file, path):
                why = f"{folder} was removed, emptied or moved while the {what} was using it"
                raise EnvironmentFault(why, "start again with another folder")

        try:
            yield still
        finally:
            if os.getpid() == pid:
                with suppress(OSError):  # if it cannot be removed: an empty file is free, too
                    file.truncate(0)
                    if _in_place(file, path):
                        path.unlink()


def _claim(file, path, what):
    """Make the open file say that the lock is ours. Raises EnvironmentFault where it is not.

    Where the file system has no locks, what the file says decides, by Fischer's algorithm: write,
    wait, and see whether it still says so. In that case, a new process with the owner's old pid
    counts as the owner.
    """
    kernel, owner = _ask_kernel(file), _read(file)
    if kernel is False or not _in_place(file, path):  # removed: by an owner who has just left
        raise _in_use(path, what, owner)
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": str(datetime.now())}
    foreign = owner and owner["host"] != mine["host"]
    if foreign or (owner and kernel is None and _alive(owner["pid"])):
        cure = f"if you are sure that it no longer runs, remove {path}"
        raise _in_use(path, what, owner, cure)
    try:
        file.truncate(0)
        file.write(json.dumps(mine).encode())
    except OSError as error:
        raise files.cannot_write(path, error) from error
    if kernel is None:
        time.sleep(PAUSE_S)
        owner = _read(file)
        if owner != mine or not _in_place(file, path):
            raise _in_use(path, what, owner)


def _ask_kernel(file):
    """Whether this file is locked for us now; None where the file system has no locks."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(1 << 20)  # locked bytes cannot be read: lock beyond the text
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return False if error.errno in BUSY else None
    return True


def _read(file):
    """What the file says of its owner; None where it is empty (released) or makes no sense."""
    try:
        file.seek(0)
        owner = json.loads(file.read(1000))
        sound = isinstance(owner["pid"], int) and owner["pid"] > 0
        sound = sound and (owner["host"] + owner["since"]).isprintable()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return owner if sound else None


def _in_place(file, path):
    """Whether the open file is the one that others find under this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    return False


def _alive(pid):
    """Whether a process of this number runs here; True where that cannot be known."""
    try:
        if fcntl:  # without it, on Windows, os.kill(pid, 0) would end the process
            os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def _in_use(path, what, owner, cure="wait until it ends, or choose another folder"):
    who = "another process"
    if owner:
        who = f"pid {owner['pid']} on {owner['host']} since {owner['since']:.19}"
    return EnvironmentFault(f"this {what} is locked by {who}: {path.parent}", cure)
