"""Runs a learner's code in a check, and ends it: `python guard.py FOLDER SECONDS COMMAND ...`.

Limits that the code sets itself, before it reads the answer, hold one process: see `hold`. What it
starts is watched from here, and nothing outlives the guard. It ends all when the code has ended,
when there is too much of it, or when its own stdin is closed: the command that started it is gone,
however that happened. Then the folder is removed.

On Linux the code gets a separate numbering of processes, where the system permits that: it can
signal nothing outside, and the kernel ends all of it at once. Elsewhere orphans come to the guard,
which looks for them ten times a second. On macOS an orphan made in between is not found, and memory
is limited only by looking. This guards against mistakes; it does not keep secrets: what the user
may read and write, the code may too.
"""

import ctypes
import errno
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import suppress

MEMORY, OUTPUT, FILES, PROCESSES = 1 << 30, 16 << 20, 64, 8  # bytes, bytes a file, open, at once
STEP_S = 0.1  # how often processes are counted
START_S = 60.0  # what a process may take to start
LATE_S = 2.0  # the code stops itself in time, unless it has changed that

TOO_MUCH = {
    "memory": f"your code needs too much memory: a check allows {MEMORY >> 30} GB",
    "output": f"your code writes too much: a check allows {OUTPUT >> 20} MB",
    "files": f"your code opens too many files: a check allows {FILES}",
    "processes": f"your code starts too many processes or threads: a check allows {PROCESSES}",
}
_NUMBERS = {
    errno.ENOMEM: "memory", errno.EFBIG: "output", errno.EMFILE: "files", errno.EAGAIN: "processes",
}  # fmt: skip

HERE = hasattr(os, "fork")  # not on Windows
LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None, use_errno=True) if LINUX else None
PDEATHSIG, CAPBSET_DROP, SUBREAPER = 1, 24, 36  # of prctl
SYS_RESOURCE = 24  # root's right to lift limits
NEWUSER, NEWPID = 0x10000000, 0x20000000  # of unshare

Process = namedtuple("Process", "parent start cpu memory owner threads")
NOBODY = Process(*[None] * 6)


# ---- inside: called by the process that runs the code


def hold(seconds):
    """Limits that cannot be lifted again, for this process and all it starts."""
    import resource

    def limit(name, soft, spare=0):
        with suppress(AttributeError, OSError, ValueError):  # not on this system, or less already
            resource.setrlimit(getattr(resource, name), (soft, soft + spare))

    if LINUX:  # counted from what is reserved by now, which is far more than is touched
        with open("/proc/self/statm") as file:
            memory = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE") + MEMORY
        limit("RLIMIT_AS", memory, 64 << 20)
    limit("RLIMIT_NOFILE", FILES, 16)
    limit("RLIMIT_FSIZE", OUTPUT)
    limit("RLIMIT_CPU", math.ceil(time.process_time() + seconds + 5 * LATE_S))
    limit("RLIMIT_CORE", 0)
    mine = [process.threads for process in processes().values() if process.owner == os.getuid()]
    limit("RLIMIT_NPROC", sum(mine) + PROCESSES)  # for all of a user, so it needs to count


def more():
    """A little more room: for a report, once the code has used up all it may have."""
    if HERE:
        import resource

        for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
            resource.setrlimit(limit, 2 * resource.getrlimit(limit)[1:])


def limit_met(error):
    """Which limit an exception comes from: a key of TOO_MUCH, or None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "processes"
    return _NUMBERS.get(error.errno) if isinstance(error, OSError) else None


# ---- outside


def main(folder, seconds, *command):
    """Run the command; print its number, then why it was ended (null if it was not), and its exit
    code.
    """
    if LINUX:
        LIBC.prctl(SUBREAPER, 1)  # orphans of what is started come to this process
        _apart()
    with (  # opened before the code runs, which may put anything in their place
        open(f"{folder}/report", "rb") as report,
        open(f"{folder}/frames", "rb") as frames,
        open(f"{folder}/output", "ab") as output,
    ):
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                 preexec_fn=_bind, start_new_session=True)  # fmt: skip
        print(child.pid, flush=True)
        tree = Tree()
        why = _watch(child, tree, report, float(seconds))
        _end(child, tree, why and frames)
    with suppress(BrokenPipeError):
        print(json.dumps([why, child.returncode]), flush=True)
    if os.path.exists("/bin/rm"):  # copes with folders in folders as deep as the system allows
        os.execv("/bin/rm", ["rm", "-rf", folder])
    shutil.rmtree(folder, ignore_errors=True)


def _apart():
    """Give the next child a separate numbering of processes, if that is permitted."""
    pid = os.fork()
    if not pid:  # tried first by a process that can be spared: half of it cannot be undone
        os._exit(_unshared())
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        _unshared()


def _unshared():
    """0 if it worked. Without being root it needs a numbering of users as well."""
    user, group = os.geteuid(), os.getegid()
    if LIBC.unshare(NEWPID | (NEWUSER if user else 0)):
        return 1
    try:
        for name, text in (("uid_map", f"{user} {user} 1"), ("setgroups", "deny"),
                           ("gid_map", f"{group} {group} 1")) if user else ():  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return 1
    return 0


def _bind():
    """In the child, before it runs: it dies with the guard, and if it is root, loses a right."""
    if LINUX:
        LIBC.prctl(PDEATHSIG, signal.SIGKILL)
        LIBC.prctl(CAPBSET_DROP, SYS_RESOURCE)


def _watch(child, tree, report, seconds):
    """Wait for the end of the child. Returns None, or what there was too much of."""
    started, began, before = time.monotonic(), None, 0.0
    while not select.select([0], [], [], STEP_S)[0]:
        if _reap(child):
            return None
        found, now = tree.look().values(), time.monotonic()
        cpu = sum(process.cpu for process in found)
        if began is None and _size(report):  # its first byte: now the answer runs
            began, before = now, cpu
        if len(found) > PROCESSES:
            return "processes"
        if sum(process.memory for process in found) > MEMORY:
            return "memory"
        if began is None and now - started > START_S:
            return "start"
        if began is not None and now - began > seconds + LATE_S:
            return "time"
        if began is not None and cpu - before > seconds + LATE_S:
            return "cpu"
    return "parent"


def _reap(child):
    """Bury what has ended. Whether the child has."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child.pid:
                child.returncode = os.waitstatus_to_exitcode(ended[1])
    return child.returncode is not None


def _end(child, tree, frames):
    """Kill everything. Into `frames`, if given, the child first writes where it is."""
    if frames:
        tree.stop({child.pid})
        _send(child.pid, signal.SIGXCPU)
        _send(child.pid, signal.SIGCONT)
        sizes = [0]
        while len(sizes) < 10 and (not sizes[-1] or sizes[-1] != sizes[-2]):  # it writes, or won't
            time.sleep(0.05)
            sizes.append(_size(frames))
    if child.returncode is None:
        _send(child.pid, signal.SIGKILL)
    tree.stop()
    while not _reap(child) or tree.look():
        for pid in tree.look():
            _send(pid, signal.SIGKILL)
        time.sleep(0.01)


def _size(file):
    return os.fstat(file.fileno()).st_size


def _send(pid, number):
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or has become another's
        os.kill(pid, number)


class Tree:
    """The processes that come from this one: its children, theirs, and those once seen to be."""

    def __init__(self):
        self.seen = {}

    def look(self):
        """pid -> Process of those that live."""
        table = processes()
        inside = {pid for pid, start in self.seen.items() if start == table.get(pid, NOBODY).start}
        parents = {os.getpid(), *inside}
        while parents := {pid for pid in table if table[pid].parent in parents} - inside:
            inside |= parents
        self.seen = {pid: table[pid].start for pid in inside}  # a number may be used again
        return {pid: table[pid] for pid in inside}

    def stop(self, spared=()):
        """Stop all but the spared, until no new ones are found: what is stopped starts nothing."""
        stopped = set(spared)
        while new := self.look().keys() - stopped:
            for pid in new:
                _send(pid, signal.SIGSTOP)
            stopped |= new


def processes():
    """pid -> Process of all that live, from /proc or, on other systems, from ps."""
    if not LINUX:
        return from_ps()
    found, tick, page = {}, os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGESIZE")
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # it may have ended
            state, *rest = file.read().rpartition(b")")[2].split()
            if state not in b"ZX":
                rest, owner = [*map(int, rest)], os.stat(f"/proc/{name}").st_uid
                cpu = sum(rest[10:14]) / tick  # its own and that of children it has waited for
                parts = (rest[0], rest[18], cpu, rest[20] * page, owner, rest[16])
                found[int(name)] = Process(*parts)
    return found


def from_ps():
    """The same; memory and time as ps rounds them, threads not counted."""
    fields, found = "pid=,ppid=,stat=,uid=,rss=,time=,lstart=", {}
    with subprocess.Popen(["ps", "-A", "-o", fields], stdout=subprocess.PIPE, text=True) as ps:
        for row in ps.stdout:
            pid, parent, state, owner, memory, used, start = row.split(None, 6)
            cpu = sum(float(x) * 60**i for i, x in enumerate(reversed(used.split(":"))))
            if int(pid) != ps.pid and state[0] != "Z":
                parts = (int(parent), start, cpu, int(memory) << 10, int(owner), 1)
                found[int(pid)] = Process(*parts)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
