"""What 0.1.0 wrote is read, scored and resumed by today's code, and decodes as it did then.

tests/data/0.1.0/README.md says how it was made.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import minqkv as mq
from minqkv.runs import config_from, load_config, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import EnvironmentFault
from minqkv.runtime.version import code_version
from minqkv.study import execute
from minqkv.study.grid import grid

OLD = Path(__file__).parent / "data" / "0.1.0"
_spec = importlib.util.spec_from_file_location("make_0_1_0", OLD / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def close(found, expected, atol):
    """Up to what another BLAS may change. On the machine that made them, runs agree to the bit."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# ---- runs


@pytest.mark.parametrize("name", ["encoder", "causal"])
def test_a_run_of_0_1_0_loads_and_scores(name):
    model, config = mq.load_run(OLD / name)
    expected = files.read_json(OLD / name / "result.json")
    found = config.task.score(model, "test", config.seed)
    assert model.n_params == expected["params"]
    close(found["loss"], expected["loss"], 1e-5)
    close(found["accuracy"], expected["accuracy"], 2e-4)


def test_a_run_of_0_1_0_resumes_and_ends_like_one_that_was_not_stopped(cli, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(OLD / "encoder-stopped", out)
    code, _, err = cli("train", "--resume", "--out", out)
    assert code == 0, err
    result, whole = (files.read_json(folder / "result.json") for folder in (out, OLD / "encoder"))
    assert result["steps"] == whole["steps"] == 60
    close(result["loss"], whole["loss"], 1e-5)
    close(result["accuracy"], whole["accuracy"], 2e-4)
    found, expected = _metrics(out), _metrics(OLD / "encoder")
    assert found[:30] == expected[:30] == _metrics(OLD / "encoder-stopped")[:30]
    assert [(step, lr) for step, _, lr in found] == [(step, lr) for step, _, lr in expected]
    close([loss for _, loss, _ in found], [loss for _, loss, _ in expected], 1e-5)
    (meta, found), (old_meta, expected) = (
        files.read_arrays(folder / "checkpoint.npz", "minqkv checkpoint")
        for folder in (out, OLD / "encoder")
    )
    assert {**meta, "version": 0} == {**old_meta, "version": 0, "backend": "numpy"}
    assert list(found) == list(expected)  # the order too: moments are stored in it
    for key, array in found.items():
        close(array, expected[key], 1e-5)


@pytest.mark.parametrize("name", ["encoder", "causal"])
def test_a_finished_run_of_0_1_0_is_shown_as_it_was(name, cli, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(OLD / name, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, text, err = cli("train", "--resume", "--out", out, "--json")
    assert code == 0, err
    result = files.read_json(OLD / name / "result.json")
    assert json.loads(text).items() >= result.items()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_was_never_bound_is_checked_as_far_as_it_can_be(tmp_path):
    """Lines of metrics are numbered, even where they carry no checksum."""
    out = tmp_path / "run"
    shutil.copytree(OLD / "encoder-stopped", out)
    lines = (out / "metrics.jsonl").read_bytes().splitlines(True)
    for damaged, says in (
        (lines[:20], "has 20 lines, but the checkpoint is from step 30"),
        ([*lines[:4], *lines[5:]], "good up to step 4; line 5 is damaged"),
        ([*lines[:4], b"{}\n", *lines[4:]], "good up to step 4; line 5 is damaged"),
    ):
        (out / "metrics.jsonl").write_bytes(b"".join(damaged))
        with pytest.raises(EnvironmentFault, match=says):
            train_run(load_config(out), out, resume=True)
    shutil.copy(OLD / "causal" / "checkpoint.npz", out)
    with pytest.raises(EnvironmentFault, match="from another model"):
        train_run(load_config(out), out, resume=True)


def test_an_old_folder_with_files_of_a_new_run_is_refused(cli, tmp_path):
    """Which carry the hash of a configuration that is not there."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(OLD / "encoder", old)
    train_run(load_config(old), new)
    for name, says in (
        ("checkpoint.npz", "belong to different configurations"),
        ("result.json", "was changed, or belongs to a different run"),
    ):
        kept = (old / name).read_bytes()
        shutil.copy(new / name, old)
        code, out, err = cli("train", "--resume", "--out", old)
        assert (code, out) == (3, "")
        assert says in " ".join(err.split())
        (old / name).write_bytes(kept)


def _metrics(folder):
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [tuple(json.loads(line)[key] for key in ("step", "loss", "lr")) for line in lines]


# ---- decoding


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", make.CASES, ids="-".join)
def test_decoding_gives_the_logits_and_tokens_of_0_1_0(case, dtype):
    with np.load(OLD / "decoding.npz") as file:
        number = make.CASES.index(case)
        expected = [file[f"{what} {dtype}"][number] for what in ("logits", "greedy", "drawn")]
    logits, greedy, drawn = make.decode(*case, dtype)
    assert logits.dtype == dtype
    close(logits, expected[0], 1e-12 if dtype == "float64" else 1e-5 * np.abs(expected[0]).max())
    assert greedy.tolist() == expected[1].tolist()
    assert drawn.tolist() == expected[2].tolist()


def test_a_decoder_trained_by_0_1_0_answers_as_it_did():
    with np.load(OLD / "decoding.npz") as file:
        expected = file["answers"].tolist()
    model, config = mq.load_run(OLD / "causal")
    ids = [[*row, *row, config.task.alphabet] for row in make.PROMPTS]
    answers = mq.generate(model, ids, config.task.seq_len)[:, config.task.seq_len + 1 :]
    assert answers.tolist() == expected


# ---- a study


@pytest.fixture
def study(tmp_path):
    """A copy of the study folder."""
    shutil.copytree(OLD / "study", tmp_path / "study")
    return tmp_path / "study"


def _configs():
    size = {"seq_len": (4,), "n_embd": (8,), "n_layer": (1,), "n_head": (2,), "steps": (8,)}
    return grid(("reverse", "copy"), ("qkv", "q-k=v"), (0, 1), **size)


def _contents(study):
    return {path.name: path.read_bytes() for path in (study / "runs").iterdir()}


def test_a_study_of_0_1_0_is_read_when_its_code_is_accepted(study, cli, monkeypatch):
    old, records = files.read_json(OLD / "study" / "results.json"), _contents(study)
    monkeypatch.setattr(execute, "run_one", pytest.fail)
    code, _, err = cli(*make.STUDY, "--jobs", 1, "--out", study, "--accept-code")
    assert code == 0, err
    assert "8 runs, 8 of them on record" in err
    assert _contents(study) == records
    new = files.read_json(study / "results.json")
    assert new["versions"]["code"] == code_version() != old["versions"]["code"]
    for run, was in zip(new["runs"], old["runs"], strict=True):
        assert run.items() >= {name: was[name] for name in was if name != "config"}.items()
        assert run["code"] == old["versions"]["code"]
        assert config_from(run["config"]) == config_from(was["config"])
    for cell, was in zip(new["cells"], old["cells"], strict=True):
        for row, old_row in zip(cell["rows"], was["rows"], strict=True):
            assert row["arm"] == old_row["arm"]
            assert row["by_seed"] == old_row["by_seed"]
    heading = (study / "results.csv").read_text("utf-8").splitlines()[0]
    assert heading.endswith(",code")


def test_otherwise_it_is_shown_apart_and_never_mixed_in(study, cli):
    old, records = files.read_json(OLD / "study" / "results.json"), _contents(study)
    others = execute.Records(study).of_other_code
    assert others(_configs()) == {old["versions"]["code"]: 8}
    assert not any(execute.recorded(config, study) for config in _configs())
    code, text, err = cli(*make.STUDY, "--jobs", 1, "--out", study, "--dry-run")
    assert code == 0, err
    assert "8 runs, 0 of them on record" in text
    assert old["versions"]["code"] in err + text
    code, _, err = cli(*make.STUDY, "--jobs", 1, "--out", study)
    assert code == 0, err
    new = files.read_json(study / "results.json")
    assert len(new["runs"]) == 8
    assert not any("code" in run for run in new["runs"])
    after = _contents(study)
    assert len(after) == 16
    assert after.items() >= records.items()
    assert execute.Records(study).of_other_code(_configs()) == {}


def test_accepted_records_are_those_of_0_1_0_and_this_code_comes_first(study):
    accepted = execute.run_study(_configs(), study, accept_code=True)
    assert {record["code"] for record in accepted} == {"0.1.0-5fa1c0098948"}
    config = _configs()[0]
    (mine,) = execute.run_study([config], study)
    assert mine["code"] == code_version()
    mixed = execute.run_study(_configs(), study, accept_code=True)
    assert mixed == [mine, *accepted[1:]]
    found, expected = mine["score"], accepted[0]["score"]
    close(found["loss"], expected["loss"], 1e-5)
    close(found["accuracy"], expected["accuracy"], 1e-3)
