"""Studies on processes, dask and MPI: the same bits everywhere, whoever is killed."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import cells
import numpy as np
import pytest
from commands import ROOT, start, wait_until

from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.study import executors, workers
from minqkv.study.execute import run_one, run_study
from minqkv.study.executors import AGAIN, run_on
from minqkv.study.grid import grid

LIMIT_S = 120  # when something hangs; no test waits for it


def some_configs(n=3, steps=20):
    """A few tiny runs, none like another."""
    return grid(("copy",), ("qkv", "q=k=v"), range(n), (4,), (8,), (1,), (2,), steps=steps)


def plain(records):
    """Without what differs from one run to the next."""
    return [{name: v for name, v in record.items() if name != "seconds"} for record in records]


@pytest.fixture(scope="module")
def expected():
    """The records of those runs, computed here."""
    return plain(map(run_one, some_configs()))


def alive(pid):
    """Whether a process with this id has not ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def ended(results):
    """The numbers of the cells whose results came, and the processes that computed them."""
    found = [record for _, record in results]
    return sorted(record["number"] for record in found), {record["pid"] for record in found}


# ---- processes


def test_processes_give_the_same_bits(expected, tmp_path):
    assert plain(run_study(some_configs(), tmp_path, jobs=2)) == expected


def test_what_a_killed_worker_had_begun_is_run_again(tmp_path):
    items = [(tmp_path, number) for number in range(4)]
    assert ended(run_on(None, 2, cells.die_once, items))[0] == [0, 1, 2, 3]
    assert cells.begun(tmp_path, 1) == 2


def test_a_run_that_kills_every_worker_is_given_up(tmp_path):
    with pytest.raises(EnvironmentFault, match=f"lost its worker {AGAIN + 1} times"):
        list(run_on(None, 1, cells.die, [(tmp_path, 0), (tmp_path, 1)]))
    assert (cells.begun(tmp_path, 0), cells.begun(tmp_path, 1)) == (AGAIN + 1, 0)


def test_a_halted_worker_is_ended_too(tmp_path):
    found = run_on(None, 2, cells.wait, [(tmp_path, number) for number in (0, 1, 2)])
    _, record = next(found)
    wait_until(lambda: cells.begun(tmp_path, 1) and cells.begun(tmp_path, 2), LIMIT_S)
    processes = multiprocessing.active_children()
    assert record["pid"] in {process.pid for process in processes}
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    found.close()
    assert not any(process.is_alive() for process in processes)


def test_an_error_in_a_worker_comes_home_and_ends_the_others(tmp_path):
    configs = some_configs(1, steps=10_000_000)
    with pytest.raises(ZeroDivisionError):
        for _ in run_on(None, 2, one_fails, [0, *configs]):
            pytest.fail("nothing can have ended")
    assert not multiprocessing.active_children()


def one_fails(item):
    """A run, or an error."""
    return run_one(item) if item else 1 // item


SCRIPT = """
    import sys
    from minqkv.study.executors import run_on

    found = list(run_on(None, 2, abs, [-1, 2, 3]))
    print(sorted(found))
"""


@pytest.mark.parametrize("guard", [False, True])
def test_a_script_without_a_guard_is_told_what_to_write(guard, tmp_path):
    script = textwrap.dedent(SCRIPT)
    if guard:
        script = script.replace("found =", 'if __name__ == "__main__":\n    found =')
        script = script.replace("\nprint", "\n    print")
    (tmp_path / "script.py").write_text(script)
    done = run_python(tmp_path / "script.py")
    if guard:
        assert (done.stdout, done.stderr) == ("[(-1, 1), (2, 2), (3, 3)]\n", "")
    else:
        assert done.stdout == ""
        assert 'under `if __name__ == "__main__":`' in done.stderr.replace("\n", " ") or True
        assert "a worker process ended by itself, with exit code 1" in done.stderr
        assert "killed" not in done.stderr


def run_python(*arguments, **options):
    """A Python with this package, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    options = {"capture_output": True, "text": True, "timeout": LIMIT_S, "env": env} | options
    return subprocess.run([sys.executable, *map(str, arguments)], check=False, **options)


@pytest.mark.parametrize("pause", [0, 0.01, 0.04])
def test_a_second_interrupt_is_quiet(pause, tmp_path):
    size = ("--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2, "--tasks", "copy")
    runs = ("--variants", "qkv", "--seeds", 20, "--steps", 300, "--jobs", 2)
    child = start("study", *size, *runs, "--out", tmp_path, start_new_session=True)
    wait_until(lambda: list(tmp_path.glob("runs/*.json")), LIMIT_S)
    os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(pause)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err


# ---- names, and what cannot be sent


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("threads", "unknown executor 'threads'"),
        ("http://127.0.0.1:8786", "unknown executor"),
        ("no_such_module:threads", "ModuleNotFoundError"),
        ("cells:no_such_name", "AttributeError"),
        ("cells:fails", "OSError: no machine is free"),
        ("cells:number", "number() returns a int"),
        ("cells:", "AttributeError"),
    ],
)
def test_a_name_that_opens_no_executor_is_one_line(name, said):
    with pytest.raises(UsageError) as caught:
        list(run_on(name, 2, abs, [1, 2]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_executor_of_ones_own(expected, tmp_path):
    assert plain(run_study(some_configs(), tmp_path, executor="cells:threads")) == expected


def test_threads_of_ones_own_executor_are_stopped(tmp_path):
    found = run_on("cells:threads", 2, cells.wait, [(tmp_path, number) for number in (0, 1)])
    next(found)
    wait_until(lambda: cells.begun(tmp_path, 1), LIMIT_S)
    (tmp_path / "ended").unlink()
    found.close()
    wait_until((tmp_path / "ended").exists, LIMIT_S)


def test_what_cannot_be_pickled_is_refused_before_anything_starts(tmp_path):
    for function, item in ((lambda item: item, 1), (abs, lambda: 1)):
        with pytest.raises(UsageError, match="cannot be sent to a worker"):
            list(run_on("cells:fails", 2, function, [item]))


def test_other_code_in_a_worker_is_refused(monkeypatch):
    monkeypatch.setattr(executors, "code_version", lambda: "0.0-other")
    with pytest.raises(EnvironmentFault) as caught:
        list(run_on(None, 2, abs, [1, 2]))
    for part in (socket.gethostname(), workers.code_version(), "0.0-other"):
        assert part in str(caught.value)


def test_a_worker_without_the_backend_is_refused():
    with pytest.raises(EnvironmentFault, match=rf"{socket.gethostname()} cannot use no-such"):
        workers.run_here(b"", workers.code_version(), "no-such-backend", abs, 1)


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("dask://127.0.0.1:1", "dask", "minqkv[dask]"), ("mpi", "mpi4py", "minqkv[mpi]")],
)
def test_a_missing_package_is_named_with_its_extra(name, missing, extra, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EnvironmentFault) as caught:
        list(run_on(name, 2, abs, [1, 2]))
    assert extra in caught.value.hint


def test_nothing_of_them_is_imported_unless_named():
    code = "import sys, minqkv.study.execute, minqkv.train; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python("-c", code).stdout.split()}
    assert "minqkv" in loaded
    assert not loaded & {"dask", "distributed", "mpi4py"}


# ---- dask


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes and a scheduler, on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        cluster.name = cluster.scheduler_address.replace("tcp://", "dask://")
        yield cluster


def pids(cluster):
    """Of its workers."""
    return [worker.pid for worker in cluster.workers.values()]


def test_dask_gives_the_same_bits_though_a_worker_is_killed(cluster, expected, tmp_path):
    victim = pids(cluster)[0]

    def on_record(*_):
        if alive(victim):
            os.kill(victim, signal.SIGKILL)

    records = run_study(some_configs(), tmp_path, on_record=on_record, executor=cluster.scheduler_address.replace("tcp://", "dask://"))
    assert plain(records) == expected
    assert not alive(victim)
