"""bench.gpu without a GPU: every part runs on the stand-in for CuPy, tiny, and what is written is
what was measured, also when a run is cut short.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # bench is run from a checkout; it is not installed

from bench import gpu, gpu_ops  # noqa: E402
from bench.card import Card, Sizes  # noqa: E402
from bench.sizes import Size  # noqa: E402
from minqkv import backend  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

TINY = Size(V=11, T=8, d=16, L=1, H=2, B=2)
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


@pytest.fixture
def card(tmp_path):
    """The stand-in, with PyTorch on the CPU, and a suite of one GPU test."""
    suite = tmp_path / "test_suite.py"
    suite.write_text("def test_right():\n    pass\n")
    sizes = Sizes(
        rounds=2,
        least=0,
        ops=TINY,
        steps={"tiny": TINY},
        decode=TINY._replace(L=2, B=1),
        contexts=(4, 9),
        copy=64,
        product=8,
        pytest=("-c", os.devnull, "-p", "no:cacheprovider", str(suite)),
    )
    description = {"gpu": "stand-in", "driver": "1.2"}
    return Card("strict", lambda: None, description, torch, "cpu", sizes=sizes)


def measured(folder, part):
    return json.loads((folder / f"gpu-{part}.json").read_text("utf-8"))


def swap_parts(monkeypatch, **cases):
    """bench.gpu has these parts instead of its own, each a dict of functions."""
    parts = {name: lambda card, left, found=found: found for name, found in cases.items()}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "show", lambda part, rows: None)


def test_every_part(card, tmp_path):
    """Each writes a file that says where, when and how it was measured, and its table prints."""
    assert gpu.run(list(gpu.PARTS), card, tmp_path / "out", 8)
    assert len(list((tmp_path / "out").iterdir())) == len(gpu.PARTS)
    for part in gpu.PARTS:
        result = measured(tmp_path / "out", part)
        assert result["part"] == f"gpu-{part}"
        assert result["command"].startswith("python -m bench.gpu")
        assert {"gpu", "driver", "date", "numpy", "python"} <= result["machine"].keys()
        assert result["complete"]
        assert result["rows"]
        for row in result["rows"]:
            assert "failed" not in row, row
            if part != "tests":
                assert all(row["samples"].values())


def test_shares_of_bounds(card, tmp_path, capsys):
    """On a card of gpus.toml, in the file and in the tables; on another one, nowhere."""
    known = replace(card, description={"gpu": "NVIDIA H100 80GB HBM3"})
    for one, there in ((known, True), (card, False)):
        assert gpu.run(["ops", "step", "decode", "ceilings"], one, tmp_path, 8)
        assert ("%" in capsys.readouterr().out) == there
        for part in ("ops", "step", "decode", "ceilings"):
            for row in measured(tmp_path, part)["rows"]:
                counted = there and row["case"] not in ("embedding", "rotate")
                assert ("of_bound" in row) == counted, row["case"]
                assert all(share > 0 for share in row.get("of_bound", {}).values())


@needs_torch
def test_every_operation_agrees_with_pytorch(card, tmp_path):
    assert gpu.run(["ops"], card, tmp_path, 8)
    rows = {row["case"]: row for row in measured(tmp_path, "ops")["rows"]}
    assert rows.keys() == {*gpu_ops.OPERATIONS, "AdamW"}
    for name, row in rows.items():
        assert row["agrees"], name
        arrays = len(row["inputs"]) + (name != "AdamW")  # the output besides
        assert len(row["differ_by"]) == arrays
        assert "step_ratio" in row or {"forward_ratio", "both_ratio"} <= row.keys()


@needs_torch
@pytest.mark.parametrize("part", ["step", "decode"])
def test_models_agree_with_pytorch(card, tmp_path, part):
    assert gpu.run([part], card, tmp_path, 8)
    rows = measured(tmp_path, part)["rows"]
    assert len(rows) == (1 if part == "step" else 6)
    for row in rows:
        assert row["agrees"]
        assert row["best_torch"] in row["samples"]
        assert len(row["ratio"]) == 3


@needs_torch
def test_an_operation_that_is_wrong(card, tmp_path, monkeypatch):
    """It is in the file, with the array that is wrong, and the run does not pass."""
    right = gpu_ops.OPERATIONS["gelu"]

    def wrong(sizes, card):
        return right(sizes, card)._replace(theirs=lambda x: x.relu())

    monkeypatch.setitem(gpu_ops.OPERATIONS, "gelu", wrong)
    assert not gpu.run(["ops"], card, tmp_path, 8)
    rows = {row["case"]: row for row in measured(tmp_path, "ops")["rows"]}
    assert not rows["gelu"]["agrees"]
    assert rows["gelu"]["differ_by"]["out"] > gpu_ops.TOLERANCE["fp32"]
    assert rows["softmax"]["agrees"]


def test_without_pytorch(card, tmp_path):
    """Its columns are empty, and that is no error."""
    assert gpu.run(list(gpu.PARTS), replace(card, torch=None), tmp_path, 8)
    for part in ("ops", "step", "decode", "ceilings"):
        for row in measured(tmp_path, part)["rows"]:
            assert not any(name.startswith("torch") for name in row["samples"])
            assert "agrees" not in row
            assert "ratio" not in row


def test_written_after_every_case(card, tmp_path, monkeypatch):
    """At any moment the file holds all that was measured before it."""
    path, seen = tmp_path / "gpu-one.json", []

    def look():
        seen.append(json.loads(path.read_text("utf-8")) if path.exists() else None)
        return {}

    swap_parts(monkeypatch, one={"a": look, "b": look, "c": look})
    assert gpu.run(["one"], card, tmp_path, 8)
    assert seen[0] is None
    assert [[row["case"] for row in file["rows"]] for file in seen[1:]] == [["a"], ["a", "b"]]
    assert not any(file["complete"] for file in seen[1:])
    assert measured(tmp_path, "one")["complete"]
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_interrupted(card, tmp_path, monkeypatch):
    """Ctrl-C ends the run; the parts and cases before it are kept."""

    def interrupt():
        raise KeyboardInterrupt

    never = {"x": lambda: pytest.fail("the run went on")}
    swap_parts(
        monkeypatch,
        first={"a": lambda: {"n": 1}},
        second={"b": lambda: {"n": 2}, "c": interrupt, **never},
        third=never,
    )
    with pytest.raises(KeyboardInterrupt):
        gpu.run(["first", "second", "third"], card, tmp_path, 8)
    assert measured(tmp_path, "first")["complete"]
    second = measured(tmp_path, "second")
    assert second["rows"] == [{"case": "b", "n": 2}]
    assert not second["complete"]
    assert not (tmp_path / "gpu-third.json").exists()


def test_a_case_that_fails(card, tmp_path, monkeypatch):
    """Its row says how, the others are measured, and the run does not pass."""

    def fail():
        raise MemoryError("out of device memory")

    swap_parts(monkeypatch, one={"a": fail, "b": lambda: {"n": 2}})
    assert not gpu.run(["one"], card, tmp_path, 8)
    rows = measured(tmp_path, "one")["rows"]
    assert rows[0] == {"case": "a", "failed": "MemoryError: out of device memory"}
    assert rows[1] == {"case": "b", "n": 2}


def test_the_time_is_up(card, tmp_path, monkeypatch, capsys):
    """What is left is named, in the file and on stderr; a part not begun leaves its file alone."""
    clock = [0.0]

    def long():
        clock[0] += 25
        return {}

    (tmp_path / "gpu-second.json").write_text("{}")
    swap_parts(monkeypatch, first={"a": long, "b": long, "c": long}, second={"d": long})
    assert gpu.run(["first", "second"], card, tmp_path, 1, now=lambda: clock[0])
    first = measured(tmp_path, "first")
    assert [row["case"] for row in first["rows"]] == ["a", "b"]
    assert first["left_out"] == ["c"]
    assert not first["complete"]
    assert measured(tmp_path, "second") == {}
    assert "first c, second d" in capsys.readouterr().err


def test_a_suite_that_fails(card, tmp_path):
    suite = Path(card.sizes.pytest[-1])
    suite.write_text("def test_right():\n    pass\ndef test_wrong():\n    assert 1 == 2\n")
    assert not gpu.run(["tests"], card, tmp_path, 8)
    row = measured(tmp_path, "tests")["rows"][0]
    assert (row["passed"], row["failed"]) == (1, 1)
    assert "test_wrong" in row["failures"][0]
    assert any("assert 1 == 2" in line for line in row["output"])


def test_a_suite_that_ran_nothing(card, tmp_path):
    """No test passed, so nothing was shown."""
    Path(card.sizes.pytest[-1]).write_text("")
    assert not gpu.run(["tests"], card, tmp_path, 8)


def test_a_suite_that_takes_too_long(card, tmp_path):
    """It is stopped, and the row says so."""
    suite = Path(card.sizes.pytest[-1])
    suite.write_text("import time\ndef test_long():\n    time.sleep(600)\n")
    row = gpu.gpu_card.tests(card.sizes.pytest, 0.5)
    assert row["cut_short"]
    assert not row["agrees"]


def test_the_clock_is_read_while_the_device_is_idle(card):
    events = []
    seconds = replace(card, wait=lambda: events.append("wait")).seconds
    assert seconds(lambda: events.append("call"), 2) >= 0
    assert events == ["wait", "call", "call", "wait"]


def test_tf32_is_for_one_product_only(card, tmp_path):
    switched = []
    assert gpu.run(["ceilings"], replace(card, tf32=switched.append), tmp_path, 8)
    assert switched == [False, False, False, True, False, False]  # and around the part
    assert [row["case"] for row in measured(tmp_path, "ceilings")["rows"]] == [
        "copy",
        "product fp32",
        "product tf32",
    ]


def command(*args):
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # also where the machine has a GPU
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *args],
        cwd=ROOT,
        env=hidden,
        capture_output=True,
        text=True,
    )


def test_without_a_gpu(tmp_path):
    """One line, exit 3, nothing written."""
    done = command("--out", str(tmp_path / "out"))
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    assert not (tmp_path / "out").exists()


def test_a_part_that_does_not_exist():
    done = command("--parts", "ops,opps")
    assert done.returncode == 2
    assert "opps" in done.stderr


def test_a_precision_has_files_of_its_own(card, tmp_path):
    """Products are rounded, so results differ by more, and by less than is allowed."""
    switched = []
    assert gpu.run(["step"], card, tmp_path, 8)
    card = replace(card, tf32=switched.append)
    assert gpu.run(["step"], card, tmp_path, 8, "bf16")
    assert switched == [True, False]
    assert backend.precision == "fp32"
    with open(tmp_path / "gpu-step-bf16.json", encoding="utf-8") as file:
        found = json.load(file)
    assert found["precision"] == "bf16"
    assert measured(tmp_path, "step")["precision"] == "fp32"
    if torch:
        (plain,), (rounded,) = measured(tmp_path, "step")["rows"], found["rows"]
        assert max(plain["differ_by"].values()) < 1e-5 < max(rounded["differ_by"].values())
