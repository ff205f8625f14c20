"""What fits a memory: every number by hand, against live caches, and as `minqkv plan` prints it."""

import json
import math
import re
from dataclasses import replace
from fractions import Fraction

import click
import numpy as np
import pytest
from commands import ROOT
from test_prose import faults

from minqkv import GPT, GPTConfig, VariantSpec, caches
from minqkv.analysis.plan import FARTHEST, check_memory, options, positions, unbeaten, usual
from minqkv.caches import KINDS
from minqkv.cli.options import LENGTH, SIZE
from minqkv.designs.models import MODELS, published
from minqkv.models import PRESETS
from minqkv.runtime.errors import UsageError
from minqkv.study.quality import costs, deployment, places
from minqkv.study.quality import plan as planned
from minqkv.study.stored import read_study

SMALL = GPTConfig(11, 64, 2, 4, 32, position="rope")  # d_h 8
RESULTS = ROOT / "bench" / "results"


def one(model=SMALL, variant="qkv", cache="plain", dtype="float32", itemsize=4, **more):
    return options(model, (variant,), (cache,), {dtype: itemsize}, **more)[-1]


# ---- lengths and sizes


@pytest.mark.parametrize(("kind", "text", "value"), [
    (LENGTH, "512", 512), (LENGTH, "32k", 32_768), (LENGTH, "128K", 131_072),
    (LENGTH, "1M", 1_048_576), (LENGTH, "1.5k", 1_536), (LENGTH, 7, 7), (LENGTH, " 2 k ", 2_048),
    (SIZE, "8GB", 8 * 10**9), (SIZE, "8gib", 8 * 2**30), (SIZE, "3.35TB/s", 3_350 * 10**9),
    (SIZE, "100 MB", 10**8), (SIZE, "48", 48), (SIZE, "48B", 48), (SIZE, "1KiB", 1_024),
])  # fmt: skip
def test_lengths_and_sizes(kind, text, value):
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize("text", [
    "", "k", "nan", "inf", "-1", "0", "0k", "1e9", "1.3k", "32kk", "3 2", "10**3", "1,000", "²",
    "999999M", "32GB", ".5k", "1" * 40,
])  # fmt: skip
def test_what_is_no_length(text):
    with pytest.raises(click.BadParameter):
        LENGTH.convert(text, None, None)


@pytest.mark.parametrize("text", [
    "8GBx", "8G", "nan", "-8GB", "0GB", "GB", "1.5B", "8 G B", "1e3GB", "9999PB", "8GB/h", "∞",
    "8Gb", "100Gb/s", "100 Mb/s",
])  # fmt: skip
def test_what_is_no_size(text):
    with pytest.raises(click.BadParameter):
        SIZE.convert(text, None, None)


# ---- by hand, and as live caches


def test_by_hand():
    """Two layers, K and V, four heads of width 8: 128 numbers a token."""
    found = one(dtype="bf16", itemsize=2)
    assert (found.per_token, found.cache_nbytes(10), found.cache_nbytes(10, 3)) == (256, 2560, 7680)
    assert one(cache="int8").per_token == 2 * 2 * 4 * (8 + 4)
    assert one(cache="float16", dtype="bf16").per_token == 256
    assert one(variant="q-mqa").per_token == 2 * 8 * 4
    ring = one(cache="ring", window=5)
    assert [ring.cache_nbytes(n) for n in (1, 5, 6, 10**9)] == [512, 2560, 2560, 2560]
    block = 4 * 32 * 32 + 4 * 32 + 2 * 4 * 32 * 32 + 5 * 32 + 4 * 32  # attention, MLP, two norms
    assert found.weights == 2 * (2 * block + 2 * 32 + 11 * 32) == found.read
    assert found.needs(10, 3) == found.weights + 7680
    assert found.tokens_per_second(1e6, 10, 3) == 3e6 / (found.weights + 7680)
    assert one(weights=999).needs(0) == 999


def test_learned_positions_are_not_read():
    """A step reads one row of the table."""
    model = replace(SMALL, position="learned")
    found = one(model)
    assert found.weights - found.read == 2 * 64 * 32
    assert one(model, weights=1000).read == pytest.approx(1000 * found.read / found.weights)
    assert (positions(model), positions(SMALL), positions(published("qwen3-8b"))) == (
        64,
        None,
        None,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "gqa-2", "q-mqa", "gta-2", "mla", "thin-4",
                                     "qkv/q-k=v"])  # fmt: skip
def test_bytes_are_those_of_live_caches(kind, variant):
    window = 3 if KINDS[kind].windowed else None
    model = GPT(replace(SMALL, variant=variant, window=window))
    more = {"window": 3} if window else {}
    cache = model.new_cache(2, 8, **caches.options(kind, **more))
    option = one(SMALL, variant, kind, window=window)
    for n in (1, 2, 5):
        model(np.zeros((2, n - len(cache)), int), cache=cache)
        assert cache.nbytes == option.cache_nbytes(n, 2)
    assert option.weights == 2 * model.n_params


def test_what_fits_is_as_large_as_possible(rng):
    choices = [one(), one(variant="q-mqa", cache="int8"), one(cache="ring", window=9)]
    choices += options(published("gemma4-26b"), (), ("plain",), {"bf16": 2})
    choices += options(published("deepseek-v4"), (), ("int8",), {"bf16": 2})
    for option in choices:
        for share in rng.uniform(0, 3, 20):
            batch = int(rng.integers(1, 5))
            memory = option.weights + int(share * option.cache_nbytes(2_000, batch))
            longest = option.longest(memory, batch)
            if longest is None:
                assert option.needs(FARTHEST, batch) <= memory
            else:
                assert option.needs(longest, batch) <= memory < option.needs(longest + 1, batch)
            largest = option.largest(memory, 2_000)
            assert option.needs(2_000, largest) <= memory < option.needs(2_000, largest + 1)
        assert option.longest(option.weights - 1) == option.largest(option.weights - 1, 9) == 0


# ---- models in use


def test_parameters_by_hand():
    """From the sizes of their configuration files: two tables, and in each layer the projections,
    an MLP of three matrices, and norms.
    """
    d, heads = 4096, 4096 * (4096 + 4096 + 2 * 1024)
    for name, layers, vocabulary, hidden, norms in (
        ("llama3-8b", 32, 128_256, 14_336, 2 * d), ("qwen3-8b", 36, 151_936, 12_288, 2 * d + 256)
    ):  # fmt: skip
        model, table = published(name), vocabulary * d
        assert model.params == 2 * table + layers * (heads + 3 * d * hidden + norms) + d
        assert model.active == model.params - table
    for name in MODELS:
        assert 0 < published(name).active <= published(name).params


@pytest.mark.parametrize(("variant", "numbers"), [  # of a layer's projections, in units of 4096²
    ("gqa-8", Fraction(5, 2)), ("qkv", 4), ("q-k=v", 3), ("q=k=v", 2), ("mqa", 2 + Fraction(1, 16)),
])  # fmt: skip
def test_a_variant_brings_its_projections(variant, numbers):
    model = published("llama3-8b")
    other = model.with_variant(variant)
    more = 32 * 4096**2 * (numbers - Fraction(5, 2))
    assert (other.params - model.params, other.active - model.active) == (more, more)


def test_models_with_windows():
    """Gemma 4 26B: 5 layers of 2 x 512 numbers, 25 of 2 x 8 x 256 in a window of 1,024."""
    own, half = options(published("gemma4-26b"), (), ("plain", "int8"), {"bf16": 2})
    assert own.cache_nbytes(2_000) == 2 * (5 * 1_024 * 2_000 + 25 * 4_096 * 1_024)
    assert half.cache_nbytes(2_000) == 5 * 2 * 516 * 2_000 + 25 * 16 * 260 * 1_024
    assert (own.weights, own.read) == (50_400_000_000, 7_600_000_000)
    assert own.spec is None  # a variant in 5 of 30 layers is not the one that was measured
    (ring,) = options(published("gemma4-26b"), (), ("ring",), {"bf16": 2}, window=100)
    assert ring.cache_nbytes(2_000) == 2 * (5 * 1_024 * 100 + 25 * 4_096 * 100)


def test_a_model_in_place_of_itself_is_shown_once():
    found = options(published("llama3-8b"), ("gqa-8", "mha"), ("plain",), {"bf16": 2})
    assert [option.name for option in found] == ["as it is bf16", "mha bf16"]
    assert found[0].spec == VariantSpec(kv_heads=8)


def test_unknown_weights():
    model = replace(published("llama3-8b"), params=None, active=None)
    with pytest.raises(UsageError, match="weights of llama3-8b are not known") as caught:
        one(model)
    assert caught.value.hint == "give their bytes: --weights 16GB"
    assert one(model, weights=10**9).read == 10**9
    assert model.with_variant("qkv").params is None


def test_weights_that_do_not_fit():
    found = [one(PRESETS["300m"]), one(PRESETS["300m"], "q-mqa")]
    check_memory(found, found[1].weights)
    with pytest.raises(UsageError, match=r"take 0\.5297 GB, and the memory is 0\.5 GB"):
        check_memory(found, 500_000_000)


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 7, 16])
def test_usual_variants(heads):
    model = GPTConfig(11, 8, 1, heads, 8 * heads, position="rope")
    found = options(model, None, ("plain",), {"bf16": 2})
    assert len({option.spec for option in found}) == len(found) <= len(usual(model)) == 6


# ---- quality


def test_costs_are_those_of_the_page():
    results = json.loads((RESULTS / "language-models/results.json").read_text("utf-8"))
    rows = {row["arm"]: row["to_baseline"] for row in results["cells"][0]["rows"]}
    measured = costs()
    for name in ("q-k=v", "q=k-v", "q=k=v", "mqa", "q-mqa", "gqa-2"):
        assert vars(measured.changes[VariantSpec.parse(name)]) == pytest.approx(rows[name])
    assert measured.scale == "nano (3 layers, width 128, 4 heads), 8 seeds, docs/language-models.md"


@pytest.mark.parametrize(("variant", "cache", "is_measured"), [
    ("qkv", "plain", True), ("q-k=v", "plain", True), ("mqa", "plain", True),
    ("gqa-8", "plain", True),  # half of the heads, as gqa-2 of four
    ("gqa-4", "plain", False), ("gqa-2", "plain", False), ("q-gqa-8", "plain", False),
    ("thin-16", "plain", False), ("q=k-v+", "plain", False), ("q-k=v", "int8", False),
    ("q-k=v", "ring", False), ("qkv/q-k=v", "plain", False),
])  # fmt: skip
def test_what_was_measured(variant, cache, is_measured):
    window = 64 if cache == "ring" else None
    option = one(PRESETS["300m"], variant, cache, window=window)
    assert (costs().of(option) is not None) == is_measured


def test_unbeaten():
    points = [(1, 5), (2, 5), (2, 4), (1, 6), (3, 4), (3, 1), (3, 1)]
    assert unbeaten(points) == [0, 2, 5, 6]


def test_the_report_says_what_fits():
    found = options(PRESETS["300m"], None, ("plain", "int8"), {"bf16": 2})
    report = planned(found, 32_768, 1, 10**9, 10**11)
    fit = {row["name"]: row for row in report["rows"] if row["bytes"] <= 10**9}
    assert report["fit"] == len(fit)
    assert report["unbeaten"] == ["mqa bf16", "q-mqa bf16"]
    assert report["smallest"] == "q-mqa int8" == min(fit, key=lambda name: fit[name]["bytes"])
    none = planned(found, 10**9, 1, 10**9)
    assert (none["fit"], none["unbeaten"], none["smallest"]) == (0, [], None)


@pytest.mark.parametrize("name", ["language-models", "recall-full", "mnist"])
def test_places(name):
    """Every arm that is beaten is beaten by one on the frontier, with no more bytes."""
    tables = {}
    for cell in read_study(RESULTS / name).cells:
        tables.setdefault((cell.task, cell.equal is None), []).append(cell)
    for cells in tables.values():
        found, sign = places(cells), 1 if cells[0].better == "higher" else -1
        front = {id(place.row): place for place in found if not place.beaten_by}
        assert len(found) == sum(not row.lifted for cell in cells for row in cell.rows)
        for place in found:
            if place.beaten_by:
                best = front[id(place.beaten_by)]
                assert best.size <= place.size
                assert sign * best.row.score.mean >= sign * place.row.score.mean
                assert place.difference.n == place.row.score.n
            others = [p for p in found if p.size <= place.size and p is not place]
            better = [p for p in others if sign * p.row.score.mean > sign * place.row.score.mean]
            assert bool(better) <= (place.beaten_by is not None)


def test_the_authors_advice():
    report = deployment(PRESETS["300m"], 32_768, 1, {"bf16": 2})
    rows = {row["variant"]: row for row in report["rows"]}
    assert [row["saved"] for row in rows.values()] == [75, 50, 87.5, 96.875]
    changes = [100 * row["change_in_its_table"] for row in rows.values()]
    assert changes == pytest.approx([100 * p / 5.11 - 100 for p in (5.15, 5.27, 5.32, 5.36)])
    assert [name for name, row in rows.items() if row["change_measured"]] == ["q-k=v", "q-mqa"]
    phone = rows["q-mqa"]
    assert phone["bytes_per_token"] == 2_560
    assert phone["longest_context"] == (12 * 10**9 - 2 * 264_862_976) // 2_560
    for device in report["devices"].values():
        assert all("https://" in source for source in device["sources"])


# ---- the command


def table_of(out):
    return frozenset(re.findall(r"\d[\d.,]*\d|\d", out))


@pytest.mark.parametrize("args", [
    ("--memory", "8GB", "--bandwidth", "100GB/s", "--window", "4k"),
    ("--model", "gemma4-31b", "--memory", "80GB", "--context", "128k"),
    ("--model", "deepseek-v4", "--context", "1M"), ("--deployment",),
    ("--study", RESULTS / "language-models"),
])  # fmt: skip
def test_the_command_in_any_width(args, cli, monkeypatch):
    seen = set()
    for width in (60, 80, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = cli("plan", *args)
        assert code == 0
        lines = [line for line in out.splitlines() if "https://" not in line]
        assert max(map(len, lines)) <= width
        assert "…" not in out
        seen.add(table_of(out))
    assert len(seen) == 1


def test_the_command_as_data(cli):
    args = ("plan", "--memory", "2GB", "--bandwidth", "50GB/s", "--batch", 2, "--context", "4k")
    code, out, _ = cli(*args, "--variants", "qkv,q-mqa", "--dtype", "bf16,fp32", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["model"], found["context"], found["memory"]) == ("300m", 4_096, 2 * 10**9)
    names = [row["name"] for row in found["rows"]]
    assert names == ["qkv bf16", "qkv fp32", "qkv int8", "q-mqa bf16", "q-mqa fp32", "q-mqa int8"]
    first = found["rows"][0]
    assert first["bytes"] == first["weights"] + 2 * 4_096 * 81_920 == 1_282_158_592
    assert first["longest_context"] == (2 * 10**9 - first["weights"]) // (2 * 81_920)
    assert first["change"] == {"mean": 0, "half": 0, "n": 8}
    read = first["bytes"] - 2 * 2_048 * 1_024
    assert math.isclose(first["tokens_per_second"], 2 * 50e9 / read)
    assert found["rows"][3]["change"]["n"] == 8
    assert found["rows"][5]["change"] is None


def test_the_study_as_data_and_picture(cli, tmp_path):
    args = ("plan", "--study", RESULTS / "language-models", "--svg", "frontier.svg")
    code, out, _ = cli(*args, "--json")
    (found,) = json.loads(out)
    assert code == 0
    beaten = {arm["arm"]: arm["beaten_by"] for arm in found["arms"]}
    assert [name for name, by in beaten.items() if by is None] == ["q-mqa", "mqa", "gqa-2", "qkv"]
    assert beaten["q-k=v"] == "gqa-2"
    text = (tmp_path / "frontier.svg").read_text("utf-8")
    assert all(f">{name}<" in text for name in ("frontier", "q-k=v", "gqa-2"))


@pytest.mark.parametrize(("args", "message"), [
    (("--memory", "8GBx"), "'8GBx' is not a size: write 8GB (10⁹ bytes each) or 8GiB (2³⁰)"),
    (("--memory", "-3"), "'-3' is not a size"), (("--memory", "nan"), "'nan' is not a size"),
    (("--context", "1.3k"), "1.3k is not a whole number: 1331.2"),
    (("--context", "0"), "0 is not in the range"), (("--batch", "0"), "0 is not in the range"),
    (("--memory", "500MB"), "weights alone take 0.5297 GB, and the memory is 0.5 GB --memory 1GB"),
    (("--model", "llama3-8b", "--memory", "8GB"), "and the memory is 8 GB --memory 16GB"),
    (("--model", "lama3"), "unknown model 'lama3' did you mean llama3-8b"),
    (("--variants", "qvk"), "unknown variant 'qvk' did you mean qkv"),
    (("--cache", "rign"), "unknown cache 'rign' did you mean ring"),
    (("--cache", "ring"), "a ring needs a window --window 4k"),
    (("--cache", "plain", "--window", "4k"), "--window is for a ring --cache ring, not plain"),
    (("--cache", "int8", "--dtype", "bf16"), "--dtype does not apply to int8"),
    (("--dtype", "bf17"), "'bf17' is not one of"),
    (("--model", "llama3-8b", "--n-head", "4"), "--n-head does not apply"),
    (("--deployment", "--memory", "8GB"), "--memory does not apply to --deployment"),
    (("--deployment", "--model", "llama3-8b"), "--model does not apply to --deployment"),
    (("--study", "x", "--context", "8k"), "--context does not apply to --study"),
    (("--study", "x", "--deployment"), "--deployment does not apply to --study"),
    (("--svg", "x.svg"), "--svg draws a study --study DIR"),
    (("--config", "300"), "no configuration '300'"),
])  # fmt: skip
def test_wrong_input(args, message, cli):
    code, out, err = cli("plan", *args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_no_study(cli):
    code, _, err = cli("plan", "--study", "nowhere")
    assert code == 3
    assert "there are no study results in nowhere" in err


def test_lengths_elsewhere(cli, tmp_path):
    """Every command takes them, also in lists, in --set and in a file of flags."""
    assert json.loads(cli("variants", "--context", "2k", "--variants", "qkv", "--json")[1])[0][
        "cache_bytes_at_context"] == 2_048 * 81_920  # fmt: skip
    flags = ("--task", "copy", "--show-config")
    (tmp_path / "long.toml").write_text('seq-len = "1k"\n')
    for given in (("--seq-len", "1k"), ("--set", "seq_len=1k"), ("--config", "long.toml")):
        assert "seq-len = 1024\n" in cli("train", *flags, *given)[1]
    out = cli("study", "--tasks", "copy", "--seq-len", "16,1k", "--show-config")[1]
    assert "seq-len = [16, 1024]\n" in out
    code, _, err = cli("study", "--tasks", "copy", "--seq-len", "16,1x")
    assert code == 2
    assert "'1x' is not a length" in err


# ---- the page


def test_the_page_shows_what_the_command_prints(cli, monkeypatch):
    page = (ROOT / "docs" / "plan.md").read_text("utf-8")
    assert list(faults(page)) == []
    blocks = re.findall(r"```\n\$ minqkv (plan .*)\n((?:.*\n)*?)```", page)
    assert len(blocks) == 4
    monkeypatch.setenv("COLUMNS", "80")
    for command, shown in blocks:
        monkeypatch.chdir(ROOT)
        code, out, _ = cli(*command.split())
        assert code == 0
        assert [line.rstrip() for line in out.splitlines()] == shown.splitlines(), command
