"""Locks on folders: who is refused, what is taken over, what is left behind."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import PATIENCE_S, ROOT, wait_until

from minqkv.runtime import files, locks
from minqkv.runtime.errors import EnvironmentFault, Exit
from minqkv.runtime.locks import locked

needs_posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")

OWNER = """
from minqkv.runtime.locks import locked
with locked({folder!r}):
    print("locked", flush=True)
    input()
"""


@pytest.fixture
def script():
    """script(code) -> a Popen of Python, with pipes; killed when the test ends."""
    children = []

    def begin(code):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, "-c", code], text=True, env=env, **pipes)
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate(timeout=PATIENCE_S)


@pytest.fixture
def owner(script, tmp_path):
    """Another process that has the folder `tmp_path`."""
    child = script(OWNER.format(folder=str(tmp_path)))
    assert child.stdout.readline() == "locked\n"
    return child


def content(folder):
    return json.loads((folder / ".lock").read_text("utf-8"))


def leave(folder, **changes):
    """A lock file as a process would leave it that was killed."""
    left = {"pid": 999_999_999, "host": socket.gethostname(), "since": "2026-01-02 03:04:05.678901"}
    (folder / ".lock").write_text(json.dumps(left | changes), "utf-8")


@pytest.fixture
def without_locks(monkeypatch):
    """A file system whose kernel has no locks."""

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    fake = SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(locks, "fcntl", fake)
    monkeypatch.setattr(locks, "PAUSE_S", 0.01)


def test_inside_the_folder_says_who_has_it_and_afterwards_nothing_is_left(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            found = content(tmp_path)
            assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
        assert list(tmp_path.iterdir()) == []


def test_an_error_inside_releases_it(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_free(owner, tmp_path):
    (tmp_path / "inside").mkdir()
    with locked(tmp_path / "inside"):
        pass


# ---- who is refused


def test_a_second_process_is_told_about_the_first(owner, tmp_path):
    with pytest.raises(EnvironmentFault) as caught, locked(tmp_path, "study"):
        pass
    first = content(tmp_path)
    assert first["pid"] == owner.pid
    who = f"pid {owner.pid} on {socket.gethostname()} since {first['since'][:19]}"
    assert str(caught.value) == f"this study is locked by {who}: {tmp_path}"
    assert caught.value.hint == "wait until it ends, or choose another folder"
    assert caught.value.code == Exit.ENVIRONMENT
    assert content(tmp_path) == first
    owner.communicate("\n", timeout=PATIENCE_S)
    assert owner.returncode == 0
    with locked(tmp_path):
        pass


def test_a_second_process_is_refused_in_one_line(script, tmp_path):
    with locked(tmp_path):
        _, err = script(OWNER.format(folder=str(tmp_path))).communicate(timeout=PATIENCE_S)
    (line,) = [line for line in err.splitlines() if "EnvironmentFault" in line]
    assert f"locked by pid {os.getpid()} on " in line


@pytest.mark.parametrize("kind", ["flock", "without_locks"])
def test_the_same_thread_and_another_are_refused_too(kind, request, tmp_path):
    if kind != "flock":
        request.getfixturevalue(kind)
    refused = []

    def enter():
        try:
            with locked(tmp_path):
                pass
        except EnvironmentFault as error:
            refused.append(str(error))

    with locked(tmp_path):
        enter()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert content(tmp_path)["pid"] == os.getpid()
    assert len(refused) == 2
    assert all(f"pid {os.getpid()} on " in why for why in refused)
    enter()
    assert len(refused) == 2


# ---- what is taken over, and what is not


@needs_posix
def test_a_killed_owner_is_succeeded_silently(owner, tmp_path, capsys):
    owner.send_signal(signal.SIGKILL)
    owner.wait(timeout=PATIENCE_S)
    assert content(tmp_path)["pid"] == owner.pid
    with locked(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@needs_posix
def test_a_stopped_owner_is_not(owner, tmp_path):
    owner.send_signal(signal.SIGSTOP)
    with pytest.raises(EnvironmentFault, match=f"pid {owner.pid} "), locked(tmp_path):
        pass


GARBAGE = [
    b"",
    b"\0" * 50,
    b"{",
    b"\xff\xfe",
    b"[1, 2]",
    b"null",
    b"[" * 5000,
    b'{"pid": "12", "host": "here", "since": "now"}',
    b'{"pid": -1, "host": "here", "since": "now"}',
    b'{"pid": 1.0, "host": "here", "since": "now"}',
    b'{"pid": 12, "host": "elsewhere"}',
    b'{"pid": 12, "host": null, "since": "now"}',
    b'{"pid": 12, "host": "\\u001b[31m", "since": "now"}',
]


@pytest.mark.parametrize("kind", ["flock", "without_locks"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_file_that_says_nothing_of_an_owner_is_taken_over(garbage, kind, request, tmp_path):
    if kind != "flock":
        request.getfixturevalue(kind)
    (tmp_path / ".lock").write_bytes(garbage)
    with locked(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["flock", "without_locks"])
def test_an_owner_on_another_machine_is_believed(kind, request, tmp_path):
    if kind != "flock":
        request.getfixturevalue(kind)
    leave(tmp_path, pid=12, host="other-machine")
    before = (tmp_path / ".lock").read_bytes()
    with pytest.raises(EnvironmentFault) as caught, locked(tmp_path):
        pass
    who = "pid 12 on other-machine since 2026-01-02 03:04:05"
    assert str(caught.value) == f"this run is locked by {who}: {tmp_path}"
    cure = f"if you are sure that it no longer runs, remove {tmp_path / '.lock'}"
    assert caught.value.hint == cure
    assert (tmp_path / ".lock").read_bytes() == before
    (tmp_path / ".lock").unlink()  # as the hint says
    with locked(tmp_path):
        pass


def test_a_file_that_could_not_be_removed_is_released_all_the_same(tmp_path, monkeypatch):
    """As on Windows, where an open file cannot be removed: it is left, empty."""

    def unlink(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", unlink)
    for host in ("one", "two"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        with locked(tmp_path):
            assert content(tmp_path)["host"] == host
        assert (tmp_path / ".lock").read_bytes() == b""


def test_a_folder_that_was_moved_or_removed_meanwhile(tmp_path):
    """Leaving the block does not release what somebody else has locked under the old name."""
    run, aside = tmp_path / "run", tmp_path / "aside"
    run.mkdir()
    first, second = locked(run), locked(run)
    with first:
        run.rename(aside)
        run.mkdir()
        second.__enter__()
    assert content(run)["pid"] == os.getpid()
    with pytest.raises(EnvironmentFault), locked(run):
        pass
    second.__exit__(None, None, None)
    assert list(run.iterdir()) == []
    with locked(run):
        (run / ".lock").unlink()
        run.rmdir()
    assert not run.exists()


@needs_posix
def test_a_lock_on_a_file_that_was_just_removed_counts_for_nothing(tmp_path, monkeypatch):
    """Between opening and locking the file, its owner leaves, and a third process comes."""
    ask = locks._ask_kernel

    def late(file):
        (tmp_path / ".lock").unlink()
        leave(tmp_path)
        return ask(file)

    monkeypatch.setattr(locks, "_ask_kernel", late)
    with pytest.raises(EnvironmentFault, match="locked by another process"), locked(tmp_path):
        pass
    assert content(tmp_path)["pid"] == 999_999_999


# ---- children


@needs_posix
def test_a_forked_child_that_leaves_the_block_does_not_release_it(script, tmp_path):
    child = script(f"""
import os
from minqkv.runtime.locks import locked
with locked({str(tmp_path)!r}):
    if os.fork():
        os.wait()
        print("locked", flush=True)
        input()
""")
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(EnvironmentFault, match=f"pid {child.pid} "), locked(tmp_path):
        pass
    child.communicate("\n", timeout=PATIENCE_S)
    assert list(tmp_path.iterdir()) == []


@needs_posix
def test_a_forked_child_keeps_the_folder_of_a_killed_parent_until_it_ends(script, tmp_path):
    parent = script(f"""
import os, time
from minqkv.runtime.locks import locked
with locked({str(tmp_path)!r}):
    if child := os.fork():
        print(child, flush=True)
    input()
""")
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=PATIENCE_S)
    try:
        with pytest.raises(EnvironmentFault, match=f"pid {parent.pid} "), locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)

    def free():
        try:
            with locked(tmp_path):
                return True
        except EnvironmentFault:
            return False

    wait_until(free)


def test_a_program_that_was_started_inside_does_not_keep_the_folder(script, tmp_path):
    owner = script(f"""
import subprocess, sys
from minqkv.runtime.locks import locked
with locked({str(tmp_path)!r}):
    program = subprocess.Popen([sys.executable, "-c", "input()"], close_fds=False)
    print("started", flush=True)
    input()
    """)
    assert owner.stdout.readline() == "started\n"
    owner.kill()
    owner.wait(timeout=PATIENCE_S)
    with locked(tmp_path):
        pass


# ---- without locks of the kernel


def test_without_locks_a_dead_pid_is_succeeded(without_locks, tmp_path):
    for pid in (999_999_999, 1 << 70):
        leave(tmp_path, pid=pid)
        with locked(tmp_path):
            assert content(tmp_path)["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


def test_without_locks_a_living_pid_is_believed(without_locks, tmp_path, monkeypatch):
    leave(tmp_path, pid=os.getppid())
    with pytest.raises(EnvironmentFault, match=f"pid {os.getppid()} ") as caught, locked(tmp_path):
        pass
    assert caught.value.hint.endswith(f"remove {tmp_path / '.lock'}")

    def kill(pid, number):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(EnvironmentFault), locked(tmp_path):
        pass


def test_without_locks_the_last_of_two_that_come_at_once_wins(without_locks, tmp_path, monkeypatch):
    def pause(seconds):
        leave(tmp_path, pid=os.getppid())

    monkeypatch.setattr(locks.time, "sleep", pause)
    with pytest.raises(EnvironmentFault, match=f"pid {os.getppid()} "), locked(tmp_path):
        pass
    assert content(tmp_path)["pid"] == os.getppid()


@needs_posix
def test_without_locks_an_owner_may_leave_while_the_next_one_writes(
    without_locks, tmp_path, monkeypatch
):
    """It has removed the file that we wrote to, so whoever comes now makes another."""
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: (tmp_path / ".lock").unlink())
    with pytest.raises(EnvironmentFault), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@needs_posix
def test_on_windows(tmp_path, monkeypatch):
    """There, os.kill(pid, 0) would end a process, and the text must not lie in what is locked."""
    import fcntl

    def locking(number, how, n):
        assert os.lseek(number, 0, os.SEEK_CUR) > 1000
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    monkeypatch.setattr(locks, "fcntl", None)
    fake = SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setattr(locks, "msvcrt", fake, raising=False)
    monkeypatch.setattr(os, "kill", None)
    leave(tmp_path)
    with locked(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
        with pytest.raises(EnvironmentFault, match=f"pid {os.getpid()} "), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


# ---- what cannot be written


def test_a_read_only_folder(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(EnvironmentFault, match=r"cannot write .*: Read-only") as caught:
        locked(tmp_path).__enter__()
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("folder", ["absent", "a_file"])
def test_what_is_no_folder(folder, tmp_path):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"cannot write .*\.lock: "):
        locked(tmp_path / folder).__enter__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_file"]


@needs_posix
def test_a_full_disk(script, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    child = script(limit + OWNER.format(folder=str(tmp_path)))
    out, err = child.communicate(timeout=PATIENCE_S)
    assert out == ""
    assert f"EnvironmentFault: cannot write {tmp_path / '.lock'}: File too large" in err
    with locked(tmp_path):  # what is left, empty, is in nobody's way
        pass


@needs_posix
@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "dangling link", "socket"])
def test_special_files_are_refused_and_never_waited_for(kind, tmp_path):
    place, target = tmp_path / "run" / ".lock", tmp_path / "target"
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
    else:
        place.symlink_to(target)
        if kind == "link":
            target.write_text("precious")
    with pytest.raises(EnvironmentFault, match="not a plain file"):
        locked(place.parent).__enter__()
    assert os.path.lexists(place)
    assert not target.exists() or target.read_text() == "precious"


# ---- many at once

RACER = """
import os, pathlib, sys, time
from minqkv.runtime.errors import EnvironmentFault
from minqkv.runtime.locks import locked
folder, wins = pathlib.Path({folder!r}), 0
while not (folder / "go").exists():
    time.sleep(0.001)
while wins < 10:
    try:
        with locked(folder):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # FileExistsError for two
            os.unlink(folder / "inside")
            wins += 1
    except EnvironmentFault:
        time.sleep(0.0005)
"""


@pytest.mark.slow
def test_of_twenty_processes_one_at_a_time_is_inside(script, tmp_path):
    leave(tmp_path)  # to be taken over, by one of them
    racers = [script(RACER.format(folder=str(tmp_path))) for _ in range(20)]
    (tmp_path / "go").touch()
    for racer in racers:
        _, err = racer.communicate(timeout=PATIENCE_S)
        assert (racer.returncode, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["go"]


def test_of_many_threads_one_at_a_time_is_inside(tmp_path):
    inside, most, wins = 0, 0, [0] * 8

    def race(i):
        nonlocal inside, most
        while wins[i] < 20:
            try:
                with locked(tmp_path):
                    inside += 1
                    most = max(most, inside)
                    inside -= 1
                    wins[i] += 1
            except EnvironmentFault:
                pass

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, wins) == (1, [20] * 8)
    assert list(tmp_path.iterdir()) == []
