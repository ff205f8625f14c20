"""Each benchmark as a smoke run in a process of its own: it ends well, and its JSON holds what the
tables are made of.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minqkv as mq

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # bench is run from a checkout; it is not installed

from bench import caches, common, kinds, lm, products  # noqa: E402
from bench.sizes import SIZES, Size  # noqa: E402

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
            "step_over_products",
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
    "threads": {None: {"steps", "length", "losses", "over_command_line", "samples"}},
    "lm": {
        "training": {"configuration", "tokens_per_second", "step_over_products", "samples"},
        "caches": {
            "variant",
            "context",
            "cache",
            "cache_bytes",
            "bytes_per_slot",
            "formula",
            "us_per_token",
            "over_plain",
            "samples",
        },
        "train": {"tokens", "samples"},
        "encode": {"words", "mb_per_s", "samples"},
        "recomputation": {"recompute", "traced", "resident", "formula", "samples"},
    },
}
COMPARED = {
    "step": None,
    "decode": "cached",
    "memory": "step",
    "lm": "training",
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
    if part == "engine":
        operations = result["rows"][-1]["operations"]
        assert {"forward", "backward", "step"} <= {o["phase"] for o in operations}
    for row in result["rows"]:
        assert KEYS[part][row.get("kind")] <= row.keys()
        assert not row.get("failed")
        if TORCH and part in COMPARED and row.get("kind") == COMPARED[part]:
            assert row["ratio"]
            assert part != "step" or row["blas_ratio"]
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


@pytest.mark.parametrize(
    ("name", "dropout", "weight_decay"), [("nano", 0.0, 0.1), ("small", 0.1, 0.1)]
)
def test_configurations_are_those_of_the_package(name, dropout, weight_decay):
    """What `minqkv train --config NAME` trains, without its text."""
    config = lm.configuration(name, threads=2)
    assert (config.task.dropout, config.recipe.weight_decay) == (dropout, weight_decay)
    assert (config.task.vocab_size, config.threads) == (lm.VOCABULARIES[name], 2)
    cfg, size = config.task.config("qkv"), lm.size_of(config)
    assert size == (cfg.vocab_size, cfg.block_size, cfg.n_embd, cfg.n_layer, cfg.n_head, size.B)
    assert size.config() == replace(cfg, dropout=0.0)


def test_dropout_in_pytorch_is_that_of_the_model():
    """Two forward passes differ with it, and agree without."""
    torch = pytest.importorskip("torch")
    from bench import torch_gpt

    size = Size(V=7, T=6, d=8, L=2, H=2, B=3)
    ids = torch.from_numpy(size.batch()[0])
    for dropout in (0.0, 0.5):
        model = torch_gpt.GPT(mq.GPT(size.config(dropout=dropout)))
        assert torch.equal(model(ids), model(ids)) is (dropout == 0)


@pytest.mark.parametrize("variant", kinds.VARIANTS)
def test_every_kind_of_cache_is_measured(variant):
    """Those of the command line, and branches; bytes are those of the formula; decoding leaves the
    cache that it starts from as it was.
    """
    size = Size(V=7, T=200, d=8, L=2, H=2, B=1)
    model = mq.GPT(size.config(variant)).eval()
    found = kinds.filled_caches(model, size)
    assert [*found] == [*kinds.KINDS, "4 branches"]
    for name, cache in found.items():
        decode, tokens = kinds.ours(model, cache, size)
        assert decode().shape == (tokens // kinds.STRETCH, 7)
        row = kinds.row(size, variant, name, cache, {name: [1.0], "plain": [1.0]}, None)
        assert row["positions"] == size.T - kinds.STRETCH
        assert row["slots"] == (132 if "ring" in name else row["positions"])
        assert row["cache_bytes"] == row["slots"] * row["formula"]


def other_version(folder, version):
    """A checkout of this package whose version is this expression."""
    shutil.copytree(ROOT / "minqkv", folder / "minqkv")
    path = folder / "minqkv/runtime/version.py"
    text = path.read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("__version__"))
    path.write_text(text.replace(line, f"import os\n__version__ = {version}"), "utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("part", ["step", "decode"])
def test_against_another_version(part, tmp_path):
    """Both versions are timed, each with its own package; the file names no folder of a machine."""
    other = other_version(tmp_path / "other", '"other than ours"')
    cut = ["--contexts", "256", "--variants", "q-k=v"]
    if part == "step":
        cut = ["--sizes", "S1", "--without-torch"]
    out = tmp_path / "out"
    done = bench(f"bench.{part}", *cut, "--against", str(other), "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads((out / f"{part}-against-1t{PINNED}.json").read_text("utf-8"))
    assert "--against FOLDER" in result["command"]
    assert result["summary"]["before"]["version"] == "other than ours"
    (row,) = result["rows"]
    assert len(row["over_before"]) == 3
    assert {"now", "before"} <= row["median_seconds"].keys()
    assert all(row["samples"].values())
    if TORCH and part == "decode":
        assert row["best_torch"] in row["samples"]
        assert row["ratio"]
        assert row["before_ratio"]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "blas"), [(True, "1"), (False, "2")])
def test_against_a_version_of_processes(processes, blas, tmp_path):
    """One that shares work among processes finds BLAS on one thread, others on all asked for."""
    other = other_version(tmp_path / "other", 'os.environ["OMP_NUM_THREADS"]')
    if processes:
        (other / "minqkv/workers.py").write_text("")
    options = ["--threads", "2", "--sizes", "S1", "--without-torch", "--out", str(tmp_path)]
    done = bench("bench.step", *options, "--against", str(other))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"step-against-2t{PINNED}.json").read_text("utf-8"))
    assert result["summary"]["before"]["version"] == blas


def test_against_a_folder_without_the_package(tmp_path):
    done = bench("bench.step", "--against", str(tmp_path))
    assert done.returncode == 2
    assert "there is no minqkv" in done.stderr


class CacheOfAllLayers:
    """The cache of 0.1.0: one object, rows appended by the number of the layer."""

    def __init__(self, cache):
        self.cache = cache

    def append(self, layer, k, v=None):
        self.cache.layers[layer].append(*([k] if v is None else [k, v]))


@pytest.mark.parametrize("variant", ["qkv", "q-k=v"])
def test_filled_caches_of_two_versions(variant, monkeypatch):
    """The same contents, one position short of full."""
    size = Size(V=7, T=70, d=8, L=2, H=2, B=3)
    model = mq.GPT(size.config(variant))
    new = caches.filled(model, size)
    make = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda *shape: CacheOfAllLayers(make(*shape)))
    old = caches.filled(model, size).cache
    assert len(new) == len(old) == 69
    for mine, theirs in zip(new.layers, old.layers, strict=True):
        for a, b in zip(mine.rows, theirs.rows, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("variant", common.VARIANTS)
def test_products_are_those_of_the_step(variant):
    """As many multiply-adds as the formula; fewer where a causal mask lets blocks be left out."""
    for name in ("S3", "S4", "S5"):
        size = SIZES[name]
        shapes = products.step_products(size, variant)
        forward = sum(2 * math.prod(a) * b[-1] * times for a, b, times in shapes)
        if size.T <= products.BLOCK:
            assert 3 * forward == size.flops(variant)
        else:
            scores = 2 * 3 * 2 * size.B * size.L * size.T**2 * size.d
            assert 3 * forward == size.flops(variant) - scores / 4  # one block of four


def test_interleaved_takes_turns():
    """A B A B ..., after each was called to warm up; a sample is a mean of calls."""
    order = []
    candidates = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = common.interleaved(
        candidates, rounds=3, least=0, rest=0, timer=lambda function, calls: function() or 2.0
    )
    assert order == [*"aabb", *"ababab"]
    assert samples == {"a": [2.0] * 3, "b": [2.0] * 3}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("--threads 2", "--threads 2"),
        ("--out /a/b --threads 2", "--threads 2"),
        ("--threads=2 --out=/a/b", "--threads 2"),
        ("--against /a/b --variants q-k=v", "--against FOLDER --variants q-k=v"),
    ],
)
def test_recorded_commands_name_no_folder(typed, kept, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", *typed.split()])
    assert common.command("step") == f"python -m bench.step {kept}"
