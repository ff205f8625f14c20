"""Studies on processes, dask and MPI: the same bits everywhere, whoever is killed."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import cells
import numpy as np
import pytest
from commands import ROOT, start, wait_until

from minqkv.runtime import distributed
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.rng import first_row
from minqkv.study import executors, workers
from minqkv.study.execute import run_one, run_study
from minqkv.study.executors import AGAIN, run_on
from minqkv.study.grid import grid

LIMIT_S = 120  # when something hangs; no test waits for it
PATHS = os.pathsep.join(str(ROOT / place) for place in (".", "tests", "tests/support"))


SIZE = {"seq_len": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}


def some_configs(n=3, steps=20):
    """A few tiny runs, none like another."""
    return grid(("copy",), ("qkv", "q=k=v"), range(n), **SIZE, steps=steps)


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
        next(run_on(None, 2, one_fails, [0, *configs]))
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
        last = done.stderr.splitlines()[-1]
        assert "a worker process ended on its own, with exit code 1" in last
        assert 'under `if __name__ == "__main__":`' in last
        assert "spawn" not in done.stderr  # the workers' own tracebacks


def run_python(*arguments, **options):
    """A Python with this package, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": PATHS}
    options = {"capture_output": True, "text": True, "timeout": LIMIT_S, "env": env} | options
    return subprocess.run([sys.executable, *map(str, arguments)], check=False, **options)


@pytest.mark.parametrize("pause", [0, 0.02])
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
    """Before it unpickles what it may not know."""
    monkeypatch.setattr(executors, "code_version", lambda: "0.0-other")
    with pytest.raises(EnvironmentFault) as caught:
        list(run_on(None, 2, abs, [1, 2]))
    for part in (socket.gethostname(), workers.code_version(), "0.0-other"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [None, "cells:threads"])
def test_code_that_a_worker_lacks_is_one_line(name, tmp_path):
    with pytest.raises(EnvironmentFault, match="lacks some code: No module named 'no_such'"):
        list(run_on(name, 2, cells.lacks, [(tmp_path, 0)]))


def test_a_worker_without_the_backend_is_refused():
    with pytest.raises(EnvironmentFault, match=rf"{socket.gethostname()} cannot use no-such"):
        workers.run_here(b"", workers.code_version(), ("no-such-backend", "fp32", True), b"")


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
    """A dask cluster on this machine, of two worker processes."""
    dask = pytest.importorskip("distributed", reason="dask is not installed")
    size = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1"}
    with dask.LocalCluster(**size, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def dask(cluster):
    """What --executor names it by; both workers are up."""
    wait_until(lambda: len(cluster.scheduler.workers) == 2, LIMIT_S)
    return cluster.scheduler_address.replace("tcp://", "dask://")


def test_dask_gives_the_same_bits_though_a_worker_is_killed(dask, cluster, expected, tmp_path):
    victim = next(iter(cluster.workers.values())).pid

    def on_record(*_):
        if alive(victim):
            os.kill(victim, signal.SIGKILL)

    records = run_study(some_configs(), tmp_path, on_record=on_record, executor=dask)
    assert plain(records) == expected
    assert not alive(victim)


def test_dask_runs_again_what_a_killed_worker_had_begun(dask, tmp_path):
    items = [(tmp_path, number) for number in range(4)]
    assert ended(run_on(dask, 2, cells.die_once, items))[0] == [0, 1, 2, 3]
    assert cells.begun(tmp_path, 1) == 2


def test_a_run_that_kills_every_worker_of_dask_is_given_up(dask, tmp_path):
    with pytest.raises(EnvironmentFault, match=f"lost its worker {AGAIN + 1} times"):
        list(run_on(dask, 2, cells.die, [(tmp_path, 0)]))
    assert cells.begun(tmp_path, 0) == AGAIN + 1


def test_a_study_that_ends_early_leaves_nothing_running_on_dask(dask, tmp_path):
    found = run_on(dask, 2, cells.wait, [(tmp_path, number) for number in (0, 1, 2)])
    next(found)
    wait_until(lambda: cells.begun(tmp_path, 1), LIMIT_S)
    (tmp_path / "ended").unlink()
    found.close()
    wait_until((tmp_path / "ended").exists, LIMIT_S)
    later = tmp_path / "later"
    later.mkdir()
    assert ended(run_on(dask, 2, cells.compute, [(later, 0), (later, 1)]))[0] == [0, 1]


def test_dask_workers_with_other_code_are_refused(dask, monkeypatch):
    monkeypatch.setattr(executors, "code_version", lambda: "0.0-other")
    with pytest.raises(EnvironmentFault, match=r"the study has 0\.0-other"):
        list(run_on(dask, 2, abs, [1, 2]))


def test_a_scheduler_that_is_not_there_is_one_line():
    """In a process of its own: dask must say nothing beside it."""
    pytest.importorskip("distributed", reason="dask is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
        from minqkv.runtime.errors import EnvironmentFault
        from minqkv.study import executors

        executors.CONNECT_S = 0.5
        for name in ("dask://127.0.0.1:{port}", "dask+tcp://127.0.0.1:{port}", "dask://nowhere"):
            try:
                list(executors.run_on(name, 2, abs, [1]))
            except EnvironmentFault as error:
                print(error)
    """
    done = run_python("-c", textwrap.dedent(code))
    assert done.stderr == ""
    *two, third = done.stdout.splitlines()
    for line in two:
        assert line.startswith(f"no dask scheduler answers at tcp://127.0.0.1:{port}: ")
    assert third.startswith("no dask scheduler answers at tcp://nowhere: ")
    assert len(two) == 2


CLUSTER = """
    from distributed import LocalCluster

    if __name__ == "__main__":
        with LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster:
            print(cluster.scheduler_address.replace("tcp://", "dask://"), flush=True)
            input()
"""


def test_a_scheduler_that_goes_away_is_one_line(monkeypatch, tmp_path):
    """While a run is computed: its cluster, of processes of their own, is killed."""
    pytest.importorskip("distributed", reason="dask is not installed")
    monkeypatch.setattr(executors, "CONNECT_S", 0.5)
    (tmp_path / "cluster.py").write_text(textwrap.dedent(CLUSTER))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(
        [sys.executable, tmp_path / "cluster.py"],
        env={**os.environ, "PYTHONPATH": PATHS},
        text=True,
        start_new_session=True,
        **pipes,
    )
    with child:
        try:
            name = child.stdout.readline().strip()
            found = run_on(name, 2, cells.wait, [(tmp_path, 0), (tmp_path, 1)])
            next(found)
            wait_until(lambda: cells.begun(tmp_path, 1), LIMIT_S)
            os.killpg(child.pid, signal.SIGKILL)
            with pytest.raises(EnvironmentFault, match="no dask scheduler answers at tcp://127"):
                next(found)
        finally:
            os.killpg(child.pid, signal.SIGKILL)


# ---- MPI


@cache
def mpiexec():
    """The mpiexec of mpich, beside this Python or on the path; None where it does not work."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpiexec", path=places)
    probe = "import os; os.environ['PMI_RANK']; from mpi4py import MPI"
    try:
        done = under_mpi(found, 1, "-c", probe) if found else None
    except subprocess.TimeoutExpired:
        return None
    return found if done and done.returncode == 0 else None


def under_mpi(command, n, *arguments):
    """n Pythons with this package, started by mpiexec."""
    env = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    line = [command, "-n", str(n), sys.executable, *map(str, arguments)]
    options = {"capture_output": True, "text": True, "timeout": LIMIT_S, "env": env}
    return subprocess.run(line, check=False, **options)


@pytest.fixture
def mpi():
    """mpi(n, arguments of Python …) -> a finished process."""
    if mpiexec() is None:
        pytest.skip("no MPI: pip install mpi4py mpich")
    return partial(under_mpi, mpiexec())


STUDY = """
    import json, sys
    from pathlib import Path
    from minqkv.runtime.errors import MinqkvError
    from minqkv.study.execute import run_study
    from test_executors import some_configs

    if __name__ == "__main__":
        try:
            records = run_study(some_configs(), sys.argv[1], executor="mpi")
        except MinqkvError as error:
            print(error, error.hint)
            sys.exit(int(error.code))
        Path(sys.argv[1], "records.json").write_text(json.dumps(records))
"""


@pytest.fixture
def study(tmp_path):
    """A script that runs those configurations on MPI into the folder it is given."""
    path = tmp_path / "study.py"
    path.write_text(textwrap.dedent(STUDY))
    return path


def test_mpi_gives_the_same_bits(mpi, study, expected, tmp_path):
    done = mpi(3, "-m", "mpi4py.futures", study, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    records = json.loads((tmp_path / "out" / "records.json").read_text())
    assert plain(records) == expected


def test_a_study_that_nobody_can_compute_for_is_told_the_command(mpi, study, tmp_path):
    """One process, which leaves none to work; and several that do not know of each other."""
    for n, start_as in ((1, ("-m", "mpi4py.futures")), (2, ())):
        done = mpi(n, *start_as, study, tmp_path / "out")
        assert done.returncode == 2
        (line,) = done.stdout.splitlines()
        assert "mpiexec -n 4 python -m mpi4py.futures -m minqkv study" in line


# ---- one model on several ranks

TRAIN = ROOT / "tests" / "support" / "train_ranks.py"


def state(folder):
    """What the last checkpoint holds: weights, moments, and the losses up to there."""
    with np.load(folder / "checkpoint.npz") as file:
        return {name: file[name] for name in ("data", "m", "v", "losses")}


def trained(folder, start, *arguments):
    """The state after `train_ranks.py folder 6 …`, which must succeed."""
    folder.mkdir(exist_ok=True)
    done = start(TRAIN, folder, 6, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return state(folder)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """What two ranks make of the toy run."""
    if mpiexec() is None:
        pytest.skip("no MPI: pip install mpi4py mpich")
    folder = tmp_path_factory.mktemp("ranks") / "two"
    return trained(folder, partial(under_mpi, mpiexec(), 2))


def test_ranks_make_the_steps_of_one_process(mpi, on_two, tmp_path):
    """With dropout, and with targets that do not count: one of three ranks has hardly any."""
    alone = trained(tmp_path / "one", run_python)
    for several in (on_two, trained(tmp_path / "three", partial(mpi, 3))):
        for name, array in alone.items():
            np.testing.assert_allclose(several[name], array, rtol=1e-7, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_all_and_the_run_can_be_continued(victim, mpi, on_two, tmp_path):
    done = mpi(2, TRAIN, tmp_path, 6, victim, 3, "kill")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(state(tmp_path)["losses"]) in (3, 4)  # rank 0 may have been about to save
    again = trained(tmp_path, partial(mpi, 2))
    for name, array in on_two.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_a_rank_that_fails_is_named(mpi, on_two, tmp_path):
    done = mpi(2, TRAIN, tmp_path, 6, 1, 3, "error")
    assert done.returncode == 1
    first, second, *rest = done.stderr.splitlines()
    assert first == "minqkv: rank 1 of 2 failed: ValueError('boom')"
    assert "--resume" in second
    assert "Traceback" not in "".join(rest)
    again = trained(tmp_path, partial(mpi, 2))
    for name, array in on_two.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_an_error_that_all_ranks_meet_is_said_once(mpi, tmp_path):
    done = mpi(2, TRAIN, tmp_path, 6, "all", 3, "refuse")
    assert done.returncode == 2
    assert done.stderr.count("minqkv: refused") == 1
    assert "rank" not in done.stderr.splitlines()[0]


def test_ranks_with_different_code_are_told(mpi, tmp_path):
    done = mpi(2, TRAIN, tmp_path, 6, 1, 0, "other")
    assert done.returncode == 3
    first = done.stderr.splitlines()[0]
    assert first.startswith("minqkv: the ranks run different code: 0.0-other on numpy, ")
    assert workers.code_version() in first
    assert not list(tmp_path.iterdir())


def test_what_is_added_up_may_live_on_a_device(backend, monkeypatch):
    class Twice:
        """Two ranks that are alike."""

        size, rank = 2, 1

        def Allreduce(self, place, host):
            host *= 2

    monkeypatch.setattr(distributed, "mpi", lambda: SimpleNamespace(IN_PLACE=None))
    monkeypatch.setattr(distributed, "_comm", Twice())
    array = backend.upload(np.arange(3.0))
    distributed.add_up(array)
    np.testing.assert_array_equal(backend.to_host(array), [0, 2, 4])
    with distributed.own_rows(0, 5) as rows:
        assert (rows, first_row.get()) == (slice(2, 5), 2)
    assert first_row.get() == 0


def test_interrupts_are_left_to_rank_0(mpi, on_two, tmp_path):
    done = mpi(2, TRAIN, tmp_path, 6, 1, 3, "signal")
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(state(tmp_path)["data"], on_two["data"])


def test_one_process_is_told_to_start_several(mpi, tmp_path):
    done = mpi(1, TRAIN, tmp_path, 6)
    assert done.returncode == 2
    assert "mpiexec -n 2 minqkv train" in done.stderr
