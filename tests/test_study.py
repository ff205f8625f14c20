"""The study: what is recorded, reused and resumed, what jobs must not change, and the statistics of
its tables.
"""

import csv
import json
import math
import os
import signal
import time
import xml.dom.minidom
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from commands import run, start, wait_until

import minqkv
from minqkv import study
from minqkv.runtime import files
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.study import stats
from minqkv.study.published import synthetic_2026

CELL = {"seq_len": (4,), "n_embd": (8,), "n_layer": (1,), "n_head": (2,)}
FLAGS = ("study", "--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2)
SMALL = (
    *FLAGS,
    "--tasks",
    "reverse,copy",
    "--variants",
    "qkv,q-k=v,gqa-2",
    "--seeds",
    2,
    "--steps",
    8,
)
VOLATILE = ("seconds", "wall_seconds", "command")


def plain(value):
    """Results without what may differ between two runs of the same study."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in VOLATILE}
    return [plain(item) for item in value] if isinstance(value, list) else value


def results(out):
    return json.loads((out / "results.json").read_text("utf-8"))


def small_grid(**changes):
    return study.grid(
        **{
            "tasks": ("copy",),
            "variants": ("qkv", "q=k=v"),
            "seeds": (0, 1),
            **CELL,
            "steps": 2,
            **changes,
        }
    )


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
    names = [
        sorted(path.name for path in (out / "runs").iterdir())
        for out in (tmp_path / "two", finished[0])
    ]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = (files.read_json(out / "runs" / name) for out in (tmp_path / "two", finished[0]))
        assert plain(one) == plain(two)


INTERRUPTED = (
    *FLAGS,
    "--tasks",
    "reverse,copy",
    "--variants",
    "qkv,q-k=v",
    "--seeds",
    2,
    "--steps",
    300,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the study that the next tests interrupt."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(*INTERRUPTED, "--jobs", 2, "--out", out)[0] == 0
    return plain(results(out))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find processes")
@pytest.mark.parametrize(
    ("how", "jobs"), [("SIGINT", 2), ("SIGTERM", 2), ("SIGKILL", 2), ("SIGTERM", 1)]
)
def test_interrupted_and_resumed(how, jobs, undisturbed, tmp_path):
    token = f"MINQKV_TEST={tmp_path}"
    child = start(
        *INTERRUPTED,
        "--jobs",
        jobs,
        "--out",
        tmp_path,
        env=dict([token.split("=", 1)]),
        start_new_session=True,
    )
    wait_until(lambda: len(list(tmp_path.glob("runs/*.json"))) >= 2)
    assert len(_processes_with(token)) > jobs - 1
    if how == "SIGINT":
        os.killpg(child.pid, signal.SIGINT)  # Ctrl-C reaches the workers too
    else:
        child.send_signal(getattr(signal, how))
    began = time.monotonic()
    out, err = child.communicate(timeout=30)
    wait_until(lambda: not _processes_with(token), 10)
    assert time.monotonic() - began < 5
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
            if (
                token.encode() in (path / "environ").read_bytes().split(b"\0")
                and "State:\tZ" not in (path / "status").read_text()
            ):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find processes")
def test_a_killed_worker_is_said_and_nothing_is_lost(tmp_path):
    token = f"MINQKV_TEST={tmp_path}"
    child = start(*INTERRUPTED, "--jobs", 2, "--out", tmp_path, env=dict([token.split("=", 1)]))
    wait_until(lambda: len(list(tmp_path.glob("runs/*.json"))) >= 1)
    os.kill(_workers(token)[0], signal.SIGKILL)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 3
    assert "a worker process was killed" in err
    assert "Traceback" not in err
    wait_until(lambda: not _processes_with(token), 5)
    assert list(tmp_path.glob("runs/*.json"))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find processes")
def test_a_long_run_does_not_hold_up_the_end(tmp_path):
    token = f"MINQKV_TEST={tmp_path}"
    arguments = (
        *FLAGS,
        "--tasks",
        "reverse,copy",
        "--variants",
        "qkv",
        "--seeds",
        2,
        "--steps",
        1_000_000,
        "--jobs",
        2,
    )
    child = start(*arguments, "--out", tmp_path, env=dict([token.split("=", 1)]))
    wait_until(lambda: len(_workers(token)) == 2)
    time.sleep(0.7)  # into their runs, which would take minutes
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=5)
    assert child.returncode == 130
    wait_until(lambda: not _processes_with(token), 5)


def _workers(token):
    return [
        pid
        for pid in _processes_with(token)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def reuse(configs, out):
    """Run a study; for each configuration, whether its record was reused."""
    reused = {}
    study.run_study(
        configs, out, on_record=lambda config, _, again: reused.__setitem__(config, again)
    )
    return [reused[config] for config in configs]


def test_a_record_is_reused_only_for_the_same_run(tmp_path, monkeypatch):
    configs = small_grid()
    assert reuse(configs, tmp_path) == [False] * 4
    assert reuse(configs, tmp_path) == [True] * 4
    assert reuse([replace(configs[0], steps=3), *configs[1:]], tmp_path) == [
        False,
        True,
        True,
        True,
    ]
    assert reuse([replace(configs[0], alphabet=9), *configs[1:]], tmp_path) == [
        False,
        True,
        True,
        True,
    ]
    monkeypatch.setattr(study, "code_version", lambda: "other")
    assert reuse(configs, tmp_path) == [False] * 4
    monkeypatch.undo()
    assert reuse(configs, tmp_path) == [True] * 4
    with minqkv.use_backend("strict"):
        assert not any(study.recorded(config, tmp_path) for config in configs)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"accuracy": 1.0}', b"\xff\xfe", "of another run", "half of its fields"],
)
def test_a_damaged_record_is_run_again(content, tmp_path):
    configs = small_grid(seeds=(0,))
    before = study.run_study(configs, tmp_path)
    paths = {
        files.read_json(path)["config"]["variant"]: path for path in tmp_path.glob("runs/*.json")
    }
    if content == "of another run":
        content = paths["q=k=v"].read_bytes()
    elif content == "half of its fields":
        record = files.read_json(paths["qkv"])
        content = json.dumps(
            {name: record[name] for name in ("kind", "code", "backend", "config", "accuracy")}
        )
    paths["qkv"].write_bytes(content if isinstance(content, bytes) else content.encode())
    assert reuse(configs, tmp_path) == [False, True]
    assert plain(study.run_study(configs, tmp_path)) == plain(before)


def test_a_diverged_run_is_recorded_and_the_others_go_on(tmp_path):
    configs = small_grid(seeds=(0, 1, 2))
    configs[1] = replace(configs[1], lr=1e30)
    records = study.run_study(configs, tmp_path)
    assert [record["diverged"] is None for record in records] == [
        True,
        False,
        True,
        True,
        True,
        True,
    ]
    assert "step 1 " in records[1]["diverged"]
    assert records[1]["accuracy"] is None
    assert records[1]["params"] == records[0]["params"]
    (cell,) = study.summarise(records)
    assert cell.rows[0].by_seed[1] is None
    assert (cell.rows[0].accuracy.n, cell.rows[1].accuracy.n, cell.rows[1].to_qkv.n) == (2, 3, 2)
    assert reuse(configs, tmp_path) == [True] * 6


def test_a_study_with_a_diverged_run_reports_it_and_exits_with_4(finished, tmp_path, cli):
    out = tmp_path / "copy"
    (out / "runs").mkdir(parents=True)
    for path in (finished[0] / "runs").iterdir():
        record = files.read_json(path)
        if (record["config"]["task"], record["config"]["variant"], record["config"]["seed"]) == (
            "copy",
            "q-k=v",
            1,
        ):
            record |= {"accuracy": None, "loss": None, "diverged": "the loss at step 3 is nan"}
        files.write_json(out / "runs" / path.name, record)
    code, text, err = cli(*SMALL, "--out", out)
    assert code == 4
    assert "1 of 8 runs diverged" in err
    assert "step 3" in err
    assert "diverged" in text
    json.loads(
        (out / "results.json").read_text("utf-8"), parse_constant=pytest.fail
    )  # no NaN in it


def test_a_dry_run_runs_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run_one", pytest.fail)
    code, text, _ = cli(*SMALL, "--dry-run")
    assert code == 0
    assert "8 runs, 0 of them on record" in text
    code, text, _ = cli(*SMALL, "--dry-run", "--json", "--out", "there")
    assert {name: json.loads(text)[name] for name in ("runs", "recorded", "out")} == {
        "runs": 8,
        "recorded": 0,
        "out": "there",
    }
    assert not list(tmp_path.iterdir())


def test_a_grid_has_each_run_once():
    configs = study.grid(
        ("reverse",), ("qkv", "gqa-2", "mqa", "gqa-1"), (0, 1, 0), (4,), (8,), (1,), (2, 4)
    )
    assert [(c.n_head, c.variant) for c in configs if c.seed == 0] == [
        (2, "qkv"),
        (2, "mqa"),
        (4, "qkv"),
        (4, "gqa-2"),
        (4, "mqa"),
    ]
    assert len(configs) == 10
    with pytest.raises(UsageError):
        study.grid((), ("qkv",), (0,), **CELL)


def test_presets_are_the_ones_asked_for():
    quick, paper = (study.grid(**study.PRESETS[name]) for name in ("quick", "paper"))
    assert len(quick) == 2 * 10 * 3
    assert len(paper) == 5 * 6 * 3 * 3 * 3 * 2 * 2
    assert {c.steps for c in quick + paper} == {158}
    assert {c.variant for c in quick} == {*study.PROJECTIONS, "gqa-2", "mqa", "q-gqa-2", "q-mqa"}


def test_the_ablation_of_plus():
    arms = {study.arm(config) for config in study.ablation(("sort",), (0,), **CELL)}
    assert {
        base + what
        for base in ("q=k-v", "q=k=v")
        for what in ("", "+", "+temperature", "+bias", " (diagonal masked)")
    } <= arms


def test_the_ablation_on_the_command_line(cli, tmp_path):
    code, text, _ = cli(
        *FLAGS, "--ablate", "plus", "--tasks", "sort", "--seeds", 2, "--steps", 2, "--jobs", 1
    )
    assert code == 0
    for heading in ("temperature", "bias only", "diagonal masked"):
        assert heading in text
    assert (tmp_path / "runs" / "study-plus" / "results.json").exists()
    assert cli(*FLAGS, "--ablate", "plus", "--variants", "qkv")[0] == 2


# ---- what is kept


def test_results_json(finished):
    found = results(finished[0])
    assert found["versions"].keys() >= {"minqkv", "code", "numpy", "python", "backend"}
    assert (
        found["hyper_parameters"]["2026"].items()
        >= {"batch": 128, "epochs": 2, "lr": 1e-3, "clip": 5.0}.items()
    )
    assert found["command"].startswith("minqkv study --seq-len 4")
    assert len(found["runs"]) == 8
    for one in found["runs"]:
        assert one["task"] in ("reverse", "copy")
        assert one["variant"] in (
            "qkv",
            "q-k=v",
        )  # gqa-2 of two heads is qkv, and did not run twice
        assert one["seed"] in (0, 1)
        assert 0 <= one["accuracy"] <= 1
        assert one["seconds"] > 0


def test_results_csv(finished):
    with open(finished[0] / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = results(finished[0])["runs"]
    assert [(r["task"], r["variant"], int(r["seed"]), float(r["accuracy"])) for r in rows] == [
        (r["task"], r["variant"], r["seed"], r["accuracy"]) for r in runs
    ]


@pytest.mark.parametrize("name", ["table.svg", "picture.svg"])
def test_pictures_are_well_formed(name, finished):
    text = (finished[0] / name).read_text("utf-8")
    document = xml.dom.minidom.parseString(text)
    assert document.documentElement.tagName == "svg"
    words = "".join(
        node.data for tag in document.getElementsByTagName("text") for node in tag.childNodes
    )
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
    assert "n = 2 seeds, t = 12.706" in text
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


def test_json_on_stdout_is_what_is_kept(finished, cli):
    code, text, _ = cli(*SMALL, "--out", finished[0], "--json")
    assert code == 0
    assert plain(json.loads(text)) == plain(results(finished[0]))


def test_wrong_input_of_a_study(cli):
    for flags, said in (
        (("--tasks", "reverse,srot"), "did you mean sort"),
        (("--variants", "qkv,q=kv"), "unknown variant 'q=kv'"),
        (("--variants", "kv"), "two meanings"),
        (("--seeds", "0"), "none"),
        (("--seeds", "one"), "is not a list of ints"),
        (("--seeds=-1,2",), "seed -1"),
        (("--tasks", ","), "empty"),
        (("--n-head", "3"), "not divisible"),
        (("--tasks", "swap", "--seq-len", "5"), "must be even"),
        (("--jobs", "0"), "0 is not in the range"),
        (("--steps", "0"), "0 is not in the range"),
    ):
        code, out, err = cli("study", "--n-embd", 8, *flags)
        assert (code, out) == (2, ""), flags
        assert said in " ".join(err.split())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        study.run_study(small_grid(), tmp_path / "file")


# ---- statistics


@pytest.mark.parametrize(
    ("freedom", "p", "value"),
    [(1, 0.975, 12.7062), (2, 0.975, 4.30265), (3, 0.975, 3.18245), (4, 0.975, 2.77645), (9, 0.975, 2.26216),
     (29, 0.975, 2.04523), (120, 0.975, 1.97993), (2, 0.95, 2.91999), (5, 0.995, 4.03214)],
)  # fmt: skip
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
    (cell,) = study.summarise(study.run_study(small_grid(seeds=(0,)), tmp_path))
    assert math.isnan(cell.rows[1].to_qkv.half)
    assert "one seed resolves nothing" in study.unresolved(cell)


def test_what_cannot_be_told_is_said(tmp_path):
    def note(diverged=(), **changes):
        configs = small_grid(seeds=(0, 1, 2), **changes)
        records = study.run_study(configs, tmp_path)
        gone = {"accuracy": None, "diverged": "the loss at step 1 is nan"}
        records = [
            record | gone if (c.variant, c.seed) in diverged else record
            for c, record in zip(configs, records, strict=True)
        ]
        return study.unresolved(study.summarise(records)[0])

    assert "n = 3 seeds, t = 4.303" in note()
    assert "n = 2 seeds" in note(diverged=[("q=k=v", 0)])
    assert "n = 3 seeds" in note(
        diverged=[("mqa", 0), ("mqa", 1)], variants=("qkv", "q=k=v", "mqa")
    )
    assert "mqa" in note(diverged=[("mqa", 0), ("mqa", 1)], variants=("qkv", "q=k=v", "mqa"))
    assert note(variants=("qkv",)) == "qkv alone, so no differences"
    assert note(variants=("mqa",)) == "no qkv among the variants, so no differences"
    assert note(diverged=[("qkv", 0), ("qkv", 1), ("qkv", 2)]).startswith("no seed on which")


# ---- the published figures


def _rows():
    with open(
        Path(minqkv.__file__).parent / "published" / "synthetic_2026.csv",
        encoding="utf-8",
        newline="",
    ) as file:
        return list(csv.DictReader(file))


def test_published_figures_are_those_of_the_same_configuration():
    rows = _rows()
    assert len(rows) == 3240 == sum(map(len, synthetic_2026().values()))
    dims = ("variant", "task", "seq_len", "n_embd", "n_layer", "n_head")
    for config in study.grid(**study.PRESETS["paper"])[::37]:
        key = tuple(str(asdict(config)[name]) for name in dims)
        mine = [float(row["accuracy"]) for row in rows if tuple(row[name] for name in dims) == key]
        assert study.published_accuracies(config) == mine
        assert len(mine) == 3
    assert (
        study.published_accuracies(replace(config, protocol="2023", position=None, steps=None))
        == []
    )
    assert study.published_accuracies(replace(config, steps=20)) == []
    assert study.published_accuracies(replace(config, variant="mqa")) == []


def test_published_differences_of_the_quick_cell():
    """The authors' own runs, T 16, d 64, L 2, H 4: what paper.md says of them comes out of our
    statistics.
    """

    def seeds(variant, task):
        return dict(enumerate(synthetic_2026()[variant, task, 16, 64, 2, 4]))

    means = {
        name: stats.estimate(list(seeds(name, "sort").values())).mean for name in study.PROJECTIONS
    }
    assert [round(mean, 3) for mean in means.values()] == [0.625, 0.530, 0.578, 0.504, 0.686, 0.691]
    for task, variant, mean, half in (
        ("sort", "q=k=v", -0.120, 0.198),
        ("sort", "q=k-v+", 0.062, 0.123),
        ("reverse", "q=k=v", -0.404, 0.247),
    ):
        found = stats.paired(seeds(variant, task), seeds("qkv", task))
        assert (found.mean, found.half) == (
            pytest.approx(mean, abs=2e-3),
            pytest.approx(half, abs=2e-3),
        )
        assert found.clear_of_zero == (task == "reverse")
