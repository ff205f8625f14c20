"""Each benchmark as a smoke run in a process of its own: it ends well, and its JSON holds what the
tables are made of.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = importlib.util.find_spec("torch") is not None
PINNED = "-pinned" if os.environ.get("OPENBLAS_CORETYPE") else ""
HEAD = {"part", "command", "threads", "quick", "machine", "summary", "rows"}
KEYS = {  # what every row has, by kind
    "step": {
        None: {
            "size",
            "variant",
            "losses",
            "losses_differ_by",
            "gflops",
            "median_ms",
            "over_composed",
            "samples",
        }
    },
    "decode": {
        "cached": {
            "context",
            "batch",
            "variant",
            "cache_bytes",
            "read_per_token",
            "written_per_token",
            "us_per_token",
            "samples",
        },
        "uncached": {"variant", "us_per_token", "exponent", "samples"},
    },
    "memory": {
        kind: {"size", "variant", "analytic", "resident", "traced", "samples"}
        for kind in ("step", "decode")
    },
    "engine": {
        "operation": {"operation", "us", "samples"},
        "chain": {"us", "samples"},
        "step": {
            "size",
            "backward_over_forward",
            "products_over_step",
            "gflops",
            "sgemm_gflops",
            "share_of_sgemm",
            "samples",
        },
        "profile": {"size", "operations"},
    },
    "scale": {
        None: {"axis", "values", "ms", "bytes", "time_exponent", "memory_exponent", "samples"}
    },
}
COMPARED = {
    "step": None,
    "decode": "cached",
    "memory": "step",
}  # the kind of row with a ratio to PyTorch


def bench(*args, **environment):
    command = [sys.executable, "-m", args[0], "--quick", "--threads", "1", *args[1:]]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("part", KEYS)
def test_part(part, tmp_path):
    options = [] if TORCH or part not in COMPARED else ["--without-torch"]
    done = bench(f"bench.{part}", *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"{part}-1t{PINNED}.json"]
    result = json.loads((tmp_path / f"{part}-1t{PINNED}.json").read_text("utf-8"))
    assert result.keys() == HEAD
    assert (result["part"], result["threads"], result["quick"]) == (part, 1, True)
    assert {"cpu", "cores", "numpy", "python", "minqkv"} <= result["machine"].keys()
    assert {row.get("kind") for row in result["rows"]} == KEYS[part].keys()
    for row in result["rows"]:
        assert KEYS[part][row.get("kind")] <= row.keys()
        assert not row.get("failed")
        if TORCH and part in COMPARED and row.get("kind") == COMPARED[part]:
            assert row["ratio"]
        for samples in row.get("samples", {}).values():
            assert samples


@pytest.mark.slow
@pytest.mark.parametrize("part", COMPARED)
def test_without_pytorch(part, tmp_path):
    """One line that says what is missing, exit 3, nothing written."""
    (tmp_path / "torch.py").write_text("raise ImportError('hidden by a test')\n")
    done = bench(f"bench.{part}", "--out", str(tmp_path / "out"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 3
    assert [line for line in done.stderr.splitlines() if "load" not in line] == [
        done.stderr.splitlines()[-1]
    ]
    assert "--without-torch" in done.stderr
    assert not (tmp_path / "out").exists()


def test_threads_that_make_no_sense():
    done = bench("bench", "--threads", "0")
    assert done.returncode == 2
