"""The study: what is recorded, reused and resumed, what jobs must not change, and the statistics of
its tables.
"""

import csv
import json
import math
import multiprocessing
import os
import shutil
import signal
import xml.dom.minidom
from dataclasses import asdict
from pathlib import Path

import pytest
import threadpoolctl
from commands import run, start, wait_until

import minqkv
from minqkv.runs import configure, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.study import execute, stats, summary
from minqkv.study.execute import Records, recorded, run_study
from minqkv.study.grid import ablation, arm, grid
from minqkv.study.presets import PRESETS, PROJECTIONS
from minqkv.study.published import synthetic_2026
from minqkv.study.summary import as_results, published_accuracies, summarise, unresolved

CELL = {"seq_len": (4,), "n_embd": (8,), "n_layer": (1,), "n_head": (2,)}
FLAGS = ("study", "--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2)
TWO_TASKS = ("--tasks", "reverse,copy", "--seeds", 2)
SMALL = (*FLAGS, *TWO_TASKS, "--variants", "qkv,q-k=v,gqa-2", "--steps", 8)
VOLATILE = ("seconds", "wall_seconds", "command")


def plain(value):
    """Results without what may differ between two runs of the same study."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in VOLATILE}
    return [plain(item) for item in value] if isinstance(value, list) else value


def results(out):
    return files.read_sealed(out / "results.json")


def small_grid(**changes):
    few = {"tasks": ("copy",), "variants": ("qkv", "q=k=v"), "seeds": (0, 1), "steps": (2,)}
    return grid(**{**few, **CELL, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study run by `--jobs 1`: its folder, stdout and stderr."""
    out = tmp_path_factory.mktemp("study") / "one"
    code, text, messages = run(*SMALL, "--jobs", 1, "--out", out)
    assert code == 0, messages
    return out, text, messages


# ---- running, recording, resuming


@pytest.mark.slow
def test_jobs_do_not_change_the_result(finished, tmp_path):
    code, text, _ = run(*SMALL, "--jobs", 2, "--out", tmp_path / "two")
    assert code == 0
    assert plain(results(tmp_path / "two")) == plain(results(finished[0]))
    assert text == finished[1]
    records = []
    for out in (tmp_path / "two", finished[0]):
        found = {path.name: plain(files.read_sealed(path)) for path in (out / "runs").iterdir()}
        records.append(found)
    assert records[0] == records[1]


@pytest.mark.slow
def test_neither_jobs_nor_the_threads_of_blas_change_a_bit(tmp_path, monkeypatch):
    def blas_threads(*_):
        libraries = threadpoolctl.threadpool_info()
        seen.append({lib["num_threads"] for lib in libraries if lib["user_api"] == "blas"})

    seen, size = [], {"seq_len": (16,), "n_embd": (64,), "n_layer": (1,), "n_head": (4,)}
    configs = grid(("reverse",), ("qkv", "mqa"), (0,), **size, steps=(3,))
    records = [run_study(configs, tmp_path / "one")]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "2")  # the processes of `jobs` read them, this one has done so
    records.append(run_study(configs, tmp_path / "two", jobs=2))
    with threadpoolctl.threadpool_limits(2, "blas"):
        records.append([execute.run_one(config) for config in configs])
        train_run(configs[0], progress=blas_threads)
        blas_threads()
    assert seen == [{1}, {1}, {1}, {2}]
    assert plain(records[0]) == plain(records[1]) == plain(records[2])


INTERRUPTED = (*FLAGS, *TWO_TASKS, "--variants", "qkv,q-k=v", "--steps", 300)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the study that the next tests interrupt."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(*INTERRUPTED, "--jobs", 2, "--out", out)[0] == 0
    return plain(results(out))


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc to find processes"
)
HOW = [("SIGINT", 2), ("SIGTERM", 2), ("SIGKILL", 2), ("SIGTERM", 1)]


def started(arguments, jobs, out):
    """A study as a child in a process group of its own, and what marks all of its processes."""
    token = f"MINQKV_TEST={out}"
    env = dict([token.split("=", 1)])
    command = (*arguments, "--jobs", jobs, "--out", out)
    return start(*command, env=env, start_new_session=True), token


def interrupt(child, how):
    """Send the signal; Ctrl-C reaches the workers too."""
    if how == "SIGINT":
        os.killpg(child.pid, signal.SIGINT)
    else:
        child.send_signal(getattr(signal, how))


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("how", "jobs"), HOW)
def test_interrupted_and_resumed(how, jobs, undisturbed, tmp_path):
    child, token = started(INTERRUPTED, jobs, tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("runs/*.json"))) >= 2)
    assert len(_processes_with(token)) > jobs - 1
    interrupt(child, how)
    out, err = child.communicate(timeout=60)
    wait_until(lambda: not _processes_with(token))
    assert out == ""
    assert "Traceback" not in err
    if how != "SIGKILL":
        assert child.returncode == 130
        assert "interrupted" in err
        assert str(tmp_path) in "".join(err.split())
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.json")}
    assert 2 <= len(kept) < 8
    code, _, err = run(*INTERRUPTED, "--jobs", jobs, "--out", tmp_path)
    assert code == 0
    assert f"8 runs, {len(kept)} of them on record" in err
    assert plain(results(tmp_path)) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def _processes_with(token):
    """Ids of living processes that were started with this NAME=VALUE in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marked = token.encode() in (path / "environ").read_bytes().split(b"\0")
            if marked and "State:\tZ" not in (path / "status").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@needs_proc
def test_the_runs_of_a_killed_worker_are_run_again(undisturbed, tmp_path):
    child, token = started(INTERRUPTED, 2, tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("runs/*.json"))) >= 1)
    os.kill(_workers(token)[0], signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "Traceback" not in err
    wait_until(lambda: not _processes_with(token))
    assert plain(results(tmp_path)) == undisturbed


@needs_proc
@pytest.mark.parametrize(("how", "jobs"), HOW)
def test_a_long_run_does_not_hold_up_the_end(how, jobs, tmp_path):
    """Each of these runs takes at least several minutes; whoever waits for one gets no further."""
    arguments = (*FLAGS, *TWO_TASKS, "--variants", "qkv", "--steps", 10_000_000)
    child, token = started(arguments, jobs, tmp_path)

    def running():
        """Whether everyone who trains has computed for a second, which is well past the imports."""
        busy = [child.pid] if jobs == 1 else _workers(token)
        return len(busy) == jobs and all(_cpu_seconds(pid) > 1 for pid in busy)

    wait_until(running, 60)
    interrupt(child, how)
    child.communicate(timeout=60)
    assert child.returncode == (-signal.SIGKILL if how == "SIGKILL" else 130)
    wait_until(lambda: not _processes_with(token))


@pytest.mark.slow
def test_whatever_the_caller_raises_no_process_is_left_behind(tmp_path):
    def on_record(*_):
        raise Full

    class Full(Exception):
        """Of a disk, for instance."""

    short, *long = small_grid()
    configs = [short, *(config.change(steps=10_000_000) for config in long)]
    with pytest.raises(Full) as caught:
        run_study(configs, tmp_path, jobs=2, on_record=on_record)
    try:  # `caught` keeps all frames alive, as the command line does while it reports the error
        wait_until(lambda: not multiprocessing.active_children(), 60)
    finally:
        for process in multiprocessing.active_children():
            process.kill()
    assert caught
    assert len(list(tmp_path.glob("runs/*.json"))) == 1


def _workers(token):
    return [
        pid
        for pid in _processes_with(token)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def _cpu_seconds(pid):
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")  # user and system


def reuse(configs, out, **options):
    """Run a study; for each configuration, whether its record was reused."""
    reused = {}

    def on_record(config, record, again):
        reused[config] = again

    run_study(configs, out, on_record=on_record, **options)
    return [reused[config] for config in configs]


def test_a_record_is_reused_only_for_the_same_run(tmp_path, monkeypatch):
    configs = small_grid()
    assert reuse(configs, tmp_path) == [False] * 4
    assert reuse(configs, tmp_path) == [True] * 4
    for change in ({"steps": 3}, {"alphabet": 9}):
        changed = [configs[0].change(**change), *configs[1:]]
        assert reuse(changed, tmp_path) == [False, True, True, True]
    monkeypatch.setattr(execute, "code_version", lambda: "other")
    assert reuse(configs, tmp_path) == [False] * 4
    monkeypatch.undo()
    assert reuse(configs, tmp_path) == [True] * 4
    with minqkv.use_backend("strict"):
        assert not any(recorded(config, tmp_path) for config in configs)


def test_what_is_left_to_the_protocol_makes_no_other_run(tmp_path):
    (config,) = small_grid(variants=("qkv",), seeds=(0,))
    (record,) = run_study([config], tmp_path)
    size = {name: values[0] for name, values in CELL.items()}
    asked = configure("copy", "QKV", **size, steps=2, lr=None, position=None)
    assert recorded(asked, tmp_path) == record
    assert reuse([asked], tmp_path) == [True]


@pytest.fixture
def as_code(monkeypatch):
    """as_code("name") -> from here on, the code has this version."""

    def change(name):
        for module in (execute, summary):
            monkeypatch.setattr(module, "code_version", lambda: name)

    return change


def test_records_of_other_code_are_told_apart_and_used_only_where_accepted(as_code, tmp_path):
    configs = small_grid()
    assert Records(tmp_path).of_other_code(configs) == {}
    as_code("old")
    before = run_study(configs, tmp_path)
    assert Records(tmp_path).of_other_code(configs) == {}
    as_code("new")
    assert Records(tmp_path).of_other_code(configs) == {"old": 4}
    assert [recorded(config, tmp_path) for config in configs] == [None] * 4
    assert [recorded(config, tmp_path, accept_code=True) for config in configs] == before
    with minqkv.use_backend("strict"):
        assert Records(tmp_path).of_other_code(configs) == {}
        assert recorded(configs[0], tmp_path, accept_code=True) is None

    (mine,) = run_study(configs[:1], tmp_path)
    assert Records(tmp_path).of_other_code(configs) == {"old": 3}
    assert reuse(configs, tmp_path, accept_code=True) == [True] * 4
    mixed = run_study(configs, tmp_path, accept_code=True)
    assert mixed == [mine, *before[1:]]
    codes = [one["code"] for one in as_results(mixed, "", 0)["runs"]]
    assert codes == ["new", "old", "old", "old"]
    assert reuse(configs, tmp_path) == [True, False, False, False]
    assert Records(tmp_path).of_other_code(configs) == {}
    assert not any("code" in one for one in as_results([mine], "", 0)["runs"])


def test_of_several_other_versions_the_last_is_accepted(as_code, tmp_path):
    configs, records = small_grid(variants=("qkv",)), {}
    for name in ("b", "c", "a"):
        as_code(name)
        records[name] = run_study(configs[:1] if name == "a" else configs, tmp_path)
    as_code("new")
    assert Records(tmp_path).of_other_code(configs) == {"a": 1, "b": 2, "c": 2}
    accepted = run_study(configs, tmp_path, accept_code=True)
    assert accepted == [records["a"][0], records["c"][1]]


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "minqkv study run", "code": ["old"]}'])
def test_a_damaged_record_of_other_code_is_not_accepted(content, as_code, tmp_path):
    configs = small_grid(seeds=(0,))
    as_code("old")
    run_study(configs, tmp_path)
    paths = {files.read_json(p)["config"]["variant"]: p for p in tmp_path.glob("runs/*.json")}
    paths["qkv"].write_text(content)
    as_code("new")
    assert Records(tmp_path).of_other_code(configs) == {"old": 1}
    assert reuse(configs, tmp_path, accept_code=True) == [False, True]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"accuracy": 1.0}', b"\xff\xfe", "of another run", "half of its fields"],
)
def test_a_damaged_record_is_run_again(content, tmp_path):
    configs = small_grid(seeds=(0,))
    before = run_study(configs, tmp_path)
    paths = {files.read_json(p)["config"]["variant"]: p for p in tmp_path.glob("runs/*.json")}
    if content == "of another run":
        content = paths["q=k=v"].read_bytes()
    elif content == "half of its fields":
        record, some = (
            files.read_sealed(paths["qkv"]),
            ("kind", "code", "backend", "config", "metric"),
        )
        content = json.dumps({name: record[name] for name in some})
    paths["qkv"].write_bytes(content if isinstance(content, bytes) else content.encode())
    assert reuse(configs, tmp_path) == [False, True]
    assert plain(run_study(configs, tmp_path)) == plain(before)


def test_a_diverged_run_is_recorded_and_the_others_go_on(tmp_path):
    configs = small_grid(seeds=(0, 1, 2))
    configs[1] = configs[1].change(lr=1e30)
    records = run_study(configs, tmp_path)
    finished = [record["diverged"] is None for record in records]
    assert finished == [True, False, True, True, True, True]
    assert "step 1 " in records[1]["diverged"]
    assert records[1]["score"] is None
    assert records[1]["params"] == records[0]["params"]
    (cell,) = summarise(records)
    assert cell.rows[0].by_seed[1] is None
    assert (cell.rows[0].score.n, cell.rows[1].score.n, cell.rows[1].to_baseline.n) == (2, 3, 2)
    assert reuse(configs, tmp_path) == [True] * 6


def test_a_study_with_a_diverged_run_reports_it_and_exits_with_4(finished, tmp_path, cli):
    out = tmp_path / "copy"
    (out / "runs").mkdir(parents=True)
    for path in (finished[0] / "runs").iterdir():
        record = files.read_sealed(path)
        config = record["config"]
        if (config["task"]["name"], config["variant"], config["seed"]) == ("copy", "q-k=v", 1):
            record |= {"score": None, "diverged": "the loss at step 3 is nan"}
        files.write_json(out / "runs" / path.name, record)
    code, text, err = cli(*SMALL, "--out", out)
    assert code == 4
    assert "1 of 8 runs diverged" in err
    assert "step 3" in err
    assert "diverged" in text
    text = (out / "results.json").read_text("utf-8")
    json.loads(text, parse_constant=pytest.fail)  # no NaN in it


def test_a_dry_run_runs_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "run_one", pytest.fail)
    code, text, _ = cli(*SMALL, "--dry-run")
    assert code == 0
    assert "8 runs, 0 of them on record" in text
    assert " ".join(text.split()).endswith("n_head 2 steps 8 lr 0.001")
    code, text, _ = cli(*SMALL, "--dry-run", "--json", "--out", "there")
    expected = {"runs": 8, "recorded": 0, "out": "there"}
    assert json.loads(text).items() >= expected.items()
    assert not list(tmp_path.iterdir())


def test_a_grid_has_each_run_once():
    names, size = ("qkv", "gqa-2", "mqa", "gqa-1"), {**CELL, "n_head": (2, 4)}
    configs = grid(("reverse",), names, (0, 1, 0), **size)
    of_one_seed = [(c.task.n_head, c.variant) for c in configs if c.seed == 0]
    assert of_one_seed == [(2, "qkv"), (2, "mqa"), (4, "qkv"), (4, "gqa-2"), (4, "mqa")]
    assert len(configs) == 10
    with pytest.raises(UsageError):
        grid((), ("qkv",), (0,), **CELL)


def test_presets_are_the_ones_asked_for():
    ((quick,), (paper,)) = (
        [grid(**block) for block in PRESETS[name]] for name in ("quick-2026", "paper")
    )
    assert len(quick) == 2 * 10 * 3
    assert len(paper) == 5 * 6 * 3 * 3 * 3 * 2 * 2
    assert {c.recipe.steps for c in quick + paper} == {158}
    assert {c.variant for c in quick} == {*PROJECTIONS, "gqa-2", "mqa", "q-gqa-2", "q-mqa"}


def test_the_ablation_of_plus():
    arms = {arm(config) for config in ablation(("sort",), (0,), **CELL)}
    changes = ("", "+", "+temperature", "+bias", " (diagonal masked)")
    assert {base + what for base in ("q=k-v", "q=k=v") for what in changes} <= arms


def test_the_ablation_on_the_command_line(cli, tmp_path):
    few = ("--tasks", "sort", "--seeds", 2, "--steps", 2, "--jobs", 1)
    code, text, _ = cli(*FLAGS, "--ablate", "plus", *few)
    assert code == 0
    for heading in ("temperature", "bias only", "diagonal masked"):
        assert heading in text
    assert list((tmp_path / "runs").glob("study-plus-*/results.json"))
    assert cli(*FLAGS, "--ablate", "plus", "--variants", "qkv")[0] == 2


# ---- what is kept


def test_results_json(finished):
    found = results(finished[0])
    assert found["versions"].keys() >= {"minqkv", "code", "numpy", "python", "backend"}
    recipe = {"batch": 128, "steps": 8, "clip": 5.0, "optimiser": "Adam"}
    assert found["hyper_parameters"]["reverse"].items() >= recipe.items()
    assert found["command"].startswith("minqkv study --seq-len 4")
    assert len(found["runs"]) == 8
    for one in found["runs"]:
        assert one["task"] in ("reverse", "copy")
        assert one["variant"] in ("qkv", "q-k=v")  # with two heads gqa-2 is qkv: not run twice
        assert one["seed"] in (0, 1)
        assert 0 <= one["accuracy"] <= 1
        assert one["seconds"] > 0
        assert "code" not in one  # all are of this code


def test_results_csv(finished):
    with open(finished[0] / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = results(finished[0])["runs"]
    assert [(r["task"], r["variant"], int(r["seed"]), float(r["accuracy"])) for r in rows] == [
        (r["task"], r["variant"], r["seed"], r["accuracy"]) for r in runs
    ]


@pytest.mark.parametrize("name", ["table.svg", "figure.svg", "curves.svg"])
def test_pictures_are_well_formed(name, finished):
    text = (finished[0] / name).read_text("utf-8")
    document = xml.dom.minidom.parseString(text)
    assert document.documentElement.tagName == "svg"
    tags = document.getElementsByTagName("text")
    words = "".join(node.data for tag in tags for node in tag.childNodes)
    assert "reverse" in words
    assert "q-k=v" in words
    assert "url(http" not in text  # needs no network


def test_the_table_shows_every_seed_the_cost_and_what_cannot_be_told(finished):
    out, text, _ = finished
    (first, *_), runs = results(out)["cells"], results(out)["runs"]
    assert first["task"] == "reverse"
    for one in runs:
        assert f"{one['accuracy']:.3f}".removeprefix("0") in text
        assert f"{one['params']:,}" in text
        assert one["cache_bytes_per_token"] == one["cache_bytes_per_token_formula"]
    assert "2 seeds (Student's t: 12.706)" in text
    assert "minus qkv," in text
    assert "accuracy against cache bytes" in text
    assert "softmax(αQKᵀ)K" in text
    for name in ("0/2", "64", "32"):
        assert name in text


def test_progress_goes_to_stderr(finished):
    _, text, messages = finished
    assert "8 runs, 0 of them on record" in messages
    assert "8/8" in messages
    assert "8/8" not in text
    assert "left" not in text


def test_json_on_stdout_is_what_is_kept(finished, cli, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    code, text, _ = cli(*SMALL, "--out", out, "--json")
    assert code == 0
    assert plain(json.loads(text)) == plain(results(out))


def test_wrong_input_of_a_study(cli):
    for flags, said in (
        (("--tasks", "reverse,srot"), "did you mean sort"),
        (("--variants", "qkv,q=kv"), "unknown variant 'q=kv'"),
        (("--variants", "kv"), "two meanings"),
        (("--seeds", "0"), "at least 1 is needed, not 0"),
        (("--seeds", "one"), "is not a list of ints"),
        (("--seeds=-1,2",), "seed -1 must be at least 0"),
        (("--tasks", ","), "empty"),
        (("--n-head", "3"), "not divisible"),
        (("--tasks", "swap", "--seq-len", "5"), "must be even"),
        (("--jobs", "0"), "0 is not in the range"),
        (("--steps", "0"), "steps 0 must be at least 1"),
    ):
        code, out, err = cli("study", "--n-embd", 8, *flags)
        assert (code, out) == (2, ""), flags
        assert said in " ".join(err.split())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        run_study(small_grid(), tmp_path / "file")


# ---- statistics


@pytest.mark.parametrize(
    ("freedom", "p", "value"),
    [
        *[(1, 0.975, 12.7062), (2, 0.975, 4.30265), (3, 0.975, 3.18245), (4, 0.975, 2.77645)],
        *[(9, 0.975, 2.26216), (29, 0.975, 2.04523), (120, 0.975, 1.97993)],
        *[(2, 0.95, 2.91999), (5, 0.995, 4.03214)],
    ],
)
def test_t_quantiles_are_those_of_the_tables(freedom, p, value):
    assert stats.t_quantile(freedom, p) == pytest.approx(value, abs=6e-5 if value > 10 else 6e-6)


def test_an_interval_is_t_times_the_standard_error():
    found = stats.estimate([1.0, 2.0, 6.0])
    assert found.mean == pytest.approx(3)
    assert found.half == pytest.approx(4.302652729911275 * math.sqrt(7) / math.sqrt(3), rel=1e-9)
    assert found.clear_of_zero is False
    assert stats.estimate([]) is None


def test_one_seed_gives_no_interval():
    found = stats.estimate([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.half)
    assert not found.clear_of_zero


def test_a_paired_difference_uses_the_seeds_both_have():
    found = stats.paired({0: 0.9, 1: 0.8, 2: 0.7, 3: 0.1}, {2: 0.5, 1: 0.7, 0: 0.6})
    assert found == stats.estimate([0.9 - 0.6, 0.8 - 0.7, 0.7 - 0.5])
    assert stats.paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_says_that_it_resolves_nothing(tmp_path):
    (cell,) = summarise(run_study(small_grid(seeds=(0,)), tmp_path))
    assert math.isnan(cell.rows[1].to_baseline.half)
    assert "one seed gives no interval" in unresolved(cell)


def test_what_cannot_be_told_is_said(tmp_path):
    def note(diverged=(), **changes):
        configs = small_grid(seeds=(0, 1, 2), **changes)
        records = run_study(configs, tmp_path)
        gone = {"score": None, "diverged": "the loss at step 1 is nan"}
        records = [
            record | gone if (c.variant, c.seed) in diverged else record
            for c, record in zip(configs, records, strict=True)
        ]
        return unresolved(summarise(records)[0])

    three, mqa_once = ("qkv", "q=k=v", "mqa"), [("mqa", 0), ("mqa", 1)]
    assert "3 seeds (Student's t: 4.303)" in note()
    assert "2 seeds (" in note(diverged=[("q=k=v", 0)])
    assert "3 seeds (" in note(diverged=mqa_once, variants=three)
    assert "mqa" in note(diverged=mqa_once, variants=three)
    assert note(variants=("qkv",)) == "qkv alone, so no differences"
    assert note(variants=("mqa",)) == "no qkv among the variants, so no differences"
    assert note(diverged=[("qkv", 0), ("qkv", 1), ("qkv", 2)]).startswith("no seed on which")


def test_the_line_under_a_table_word_by_word():
    def note(**accuracies):
        rows = [
            {"config": asdict(config), "metric": "accuracy"}
            | {"score": {"accuracy": accuracies[config.variant][config.seed]}}
            for config in small_grid(seeds=(0, 1, 2), variants=tuple(accuracies))
        ]
        costs = {"params": 0, "cache_bytes_per_token": 0, "cache_bytes_per_token_formula": 0}
        costs |= {"reached": None, "lifted": None}
        return unresolved(summarise([row | costs for row in rows])[0])

    two = note(qkv=(0.5, 0.6, 0.7), mqa=(0.3, 0.4, 0.51))
    assert two == (
        "3 seeds (Student's t: 4.303). 95 % half-width of the difference from qkv: .014. "
        "All are distinguishable from zero."
    )
    three = note(**{"qkv": (1.0, 1.0, 1.0), "mqa": (0.3, 0.4, 0.5), "q-mqa": (0.9, 1.0, 1.0)})
    assert three == (
        "3 seeds (Student's t: 4.303). 95 % half-widths of the differences from qkv: .143 to .248 "
        "(no correction for multiple comparisons). Not distinguishable from zero: q-mqa. "
        "A mean of 1.000 is at the ceiling."
    )


# ---- the published figures


def _rows():
    path = Path(minqkv.__file__).parent / "study" / "published" / "synthetic_2026.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_published_figures_are_those_of_the_same_configuration():
    rows = _rows()
    assert len(rows) == 3240 == sum(map(len, synthetic_2026().values()))
    dims = ("variant", "task", "seq_len", "n_embd", "n_layer", "n_head")
    for config in grid(**PRESETS["paper"][0])[::37]:
        flat = {"variant": config.variant, "task": config.task.name} | asdict(config.task)
        key = tuple(str(flat[name]) for name in dims)
        mine = [float(row["accuracy"]) for row in rows if tuple(row[name] for name in dims) == key]
        assert published_accuracies(config) == mine
        assert len(mine) == 3
    old = {"protocol": "2023", "position": "sinusoidal"}
    for change in (old, {"steps": 20}, {"variant": "mqa"}):
        assert published_accuracies(config.change(**change)) == []


def test_published_differences_of_the_quick_cell():
    """The authors' own runs, T 16, d 64, L 2, H 4: what the paper says of them comes out of our
    statistics.
    """

    def seeds(variant, task):
        return dict(enumerate(synthetic_2026()[variant, task, 16, 64, 2, 4]))

    means = [stats.estimate(list(seeds(name, "sort").values())).mean for name in PROJECTIONS]
    assert [round(mean, 3) for mean in means] == [0.625, 0.530, 0.578, 0.504, 0.686, 0.691]
    for task, variant, mean, half in (
        ("sort", "q=k=v", -0.120, 0.198),
        ("sort", "q=k-v+", 0.062, 0.123),
        ("reverse", "q=k=v", -0.404, 0.247),
    ):
        found = stats.paired(seeds(variant, task), seeds("qkv", task))
        assert found.mean == pytest.approx(mean, abs=2e-3)
        assert found.half == pytest.approx(half, abs=2e-3)
        assert found.clear_of_zero == (task == "reverse")


@pytest.mark.parametrize("name", ["equal_bytes", "equal_params"])
def test_nothing_is_equal_at_none_at_all(name):
    with pytest.raises(UsageError, match="nothing to run"):
        grid(["pairs"], ["qkv"], [0], **{name: (0,)})


@pytest.mark.parametrize(
    "changed",
    [
        {"curve": 3}, {"curve": [["a", "b"]]}, {"losses": "abc"}, {"params": "x"}, {"lifted": 3},
        {"lifted": {"score": 1}}, {"cache_bytes_per_token": "z"}, {"seconds": None},
        {"score": {"accuracy": True, "loss": 1.0}}, {"score": {"accuracy": 0.5, "loss": "x"}},
        {"score": None, "diverged": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_with_values_of_another_type_is_run_again(changed, tmp_path):
    size = {"n_layer": 1, "n_embd": 8, "n_head": 1, "pairs": 2, "keys": 4, "n_test": 4}
    (config,) = grid(["pairs"], ["qkv"], [0], steps=2, batch=4, **size)
    run_study([config], tmp_path)
    assert recorded(config, tmp_path)
    (path,) = (tmp_path / "runs").glob("*.json")
    path.write_text(json.dumps(files.read_sealed(path) | changed))
    assert recorded(config, tmp_path) is None
