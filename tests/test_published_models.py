"""Models in use: bytes by hand, by the formulas of attention, and of live arrays with these widths.

Figures by hand are bytes of a token in bf16, from the sizes that models.toml cites.
"""

import json
import re

import numpy as np
import pytest
from commands import ROOT
from test_prose import faults

from minqkv import Attention, KVCache, VariantSpec, shipped_layer
from minqkv.caches import RingCache
from minqkv.cli.info import DTYPES
from minqkv.designs.models import MODELS, Kept, published
from minqkv.runtime.errors import UsageError
from minqkv.tensor import Tensor
from minqkv.variants import SHIPPED

# model, kind of layers -> how many; arrays of one layer; bytes per token and layer, and of all of
# these layers: as needed, and as released
BY_HAND = {
    ("llama3-8b", "global"): (32, [(8, 128), (8, 128)], 4_096, 131_072, 131_072),
    ("qwen3-8b", "global"): (36, [(8, 128), (8, 128)], 4_096, 147_456, 147_456),
    ("gemma4-e2b", "global"): (3, [(1, 512), (1, 512)], 2_048, 6_144, 6_144),
    ("gemma4-e2b", "window"): (12, [(1, 256), (1, 256)], 1_024, 12_288, 12_288),
    ("gemma4-e2b", "shared"): (20, [], 0, 0, 0),
    ("gemma4-26b", "global"): (5, [(2, 512)], 2_048, 10_240, 20_480),
    ("gemma4-26b", "window"): (25, [(8, 256), (8, 256)], 8_192, 204_800, 204_800),
    ("gemma4-31b", "global"): (10, [(4, 512)], 4_096, 40_960, 81_920),
    ("gemma4-31b", "window"): (50, [(16, 256), (16, 256)], 16_384, 819_200, 819_200),
    ("deepseek-v3", "global"): (61, [(1, 512), (1, 64)], 1_152, 70_272, 70_272),
    ("deepseek-v4", "window only"): (2, [(1, 512)], 1_024, 2_048, 4_096),
    ("deepseek-v4", "window"): (41, [(1, 512)], 1_024, 41_984, 41_984),
    ("deepseek-v4", "CSA rows"): (21, [(1, 512)], 256, 5_376, 5_376),
    ("deepseek-v4", "CSA index"): (21, [(1, 128)], 64, 1_344, 1_344),
    ("deepseek-v4", "HCA rows"): (20, [(1, 512)], 8, 160, 160),
}
KEPT = {(name, kept.kind): kept for name in MODELS for kept in published(name).kept}
LIVE = [key for key, kept in KEPT.items() if kept.ratio == 1 and not kept.shared]

# model -> bytes at 100, 1,024 and 1,000,000 tokens: window layers stop at their window
AT = {
    "llama3-8b": [13_107_200, 134_217_728, 131_072_000_000],
    "gemma4-e2b": [100 * 18_432, 1_024 * 6_144 + 512 * 12_288, 6_144_000_000 + 512 * 12_288],
    "gemma4-26b": [100 * 215_040, 1_024 * 215_040, 10_240_000_000 + 1_024 * 204_800],
    "gemma4-31b": [100 * 860_160, 1_024 * 860_160, 40_960_000_000 + 1_024 * 819_200],
    "deepseek-v3": [7_027_200, 71_958_528, 70_272_000_000],
    "deepseek-v4": [100 * 44_032 + 25 * 4 * (5_376 + 1_344), 128 * 44_032 + 1_024 * 6_880,
                    128 * 44_032 + 1_000_000 * 6_720 + 7_812 * 20 * 1_024],
}  # fmt: skip


@pytest.mark.parametrize("key", KEPT, ids="-".join)
def test_bytes_by_hand(key):
    kept, (layers, stored, per_token, adds, released) = KEPT[key], BY_HAND[key]
    assert (kept.layers, kept.stored(), kept.per_token(2)) == (layers, stored, per_token)
    assert (kept.adds(0, 2), kept.adds(0, 2, released=True)) == (adds, released)
    assert kept.row_nbytes(1) % kept.ratio == 0  # so a token's share is a whole number
    assert kept.nbytes(kept.ratio, 2) == adds * kept.ratio


def test_each_layer_is_counted_once():
    assert BY_HAND.keys() == KEPT.keys()
    for name in MODELS:
        model = published(name)
        assert sum(kept.layers for kept in model.kept if kept.ratio == 1) == model.n_layer
    kinds = ("window", "CSA rows", "CSA index", "HCA rows")
    window, csa, index, hca = (KEPT["deepseek-v4", kind].layers for kind in kinds)
    assert (csa + hca, index) == (window, csa)


@pytest.mark.parametrize("name", AT)
def test_bytes_at_a_context(name):
    model = published(name)
    assert [model.nbytes(context, 2) for context in (100, 1_024, 1_000_000)] == AT[name]
    assert model.nbytes(1_024, 4) == 2 * model.nbytes(1_024, 2)
    for context in (0, 128, 512, 896, 1_024, 5_120):  # where no compressed row is unfinished
        grown = model.nbytes(context + 128, 2) - model.nbytes(context, 2)
        assert grown == sum(model.adds(n, 2) for n in range(context, context + 128))


def test_what_is_released_beside_what_is_needed():
    """Gemma 4's global layers and two layers of DeepSeek-V4 are stored twice, nothing else is."""
    twice = {key for key, kept in KEPT.items() if kept.stored(released=True) != kept.stored()}
    assert twice == {("gemma4-26b", "global"), ("gemma4-31b", "global")} | {
        ("deepseek-v4", "window only")
    }
    for key in twice:
        assert KEPT[key].stored(released=True) == 2 * KEPT[key].stored()
    assert published("gemma4-26b").nbytes(32_768, 2, released=True) == 840 << 20
    assert published("gemma4-26b").nbytes(32_768, 2) == 520 << 20


def layer_of(kept, n_embd=8, block_size=1_200):
    """A live layer with the real heads and widths, from few channels."""
    sizes = {"head_dim": kept.head_dim, "window": kept.window}
    if kept.design not in SHIPPED:
        return Attention(kept.spec, n_embd, kept.n_head, block_size, position="rope", **sizes)
    if "N" in SHIPPED[kept.design]["variant"]:
        sizes["kv_heads"] = kept.spec.kv_heads
    if kept.design == "deepseek-v4":
        sizes |= {"query_rank": 4, "groups": 8, "out_rank": 4}
    return shipped_layer(kept.design, n_embd, kept.n_head, block_size, **sizes)


@pytest.mark.parametrize("key", LIVE, ids="-".join)
def test_bytes_are_those_of_live_arrays(key, rng):
    """Of a layer that reads tokens, in float16; a window is kept in a ring."""
    kept = KEPT[key]
    layer, stored = layer_of(kept), kept.stored()
    n = 5 if kept.window is None else kept.window + 3
    of = KVCache if kept.window is None else RingCache
    options = {} if kept.window is None else {"window": kept.window}
    cache = of([stored], 1, n, "float16", **options)
    x = rng.standard_normal((1, 5, 8)).astype("float32")
    layer(Tensor(x), cache=cache.layers[0])
    assert [array.shape for array in cache.layers[0].rows] == [(1, h, 5, d) for h, d in stored]
    assert cache.nbytes * kept.layers == kept.nbytes(5, 2)
    if kept.window:
        rows = [np.ones((1, heads, n - 5, width), "float16") for heads, width in stored]
        cache.layers[0].append(*rows)
        assert len(cache) == n
        assert cache.nbytes * kept.layers == kept.nbytes(n, 2) == kept.nbytes(kept.window, 2)


@pytest.mark.parametrize(("variant", "needed", "released"), [
    ("qkv", 524_288, 524_288), ("gqa-8", 131_072, 131_072), ("q-gqa-8", 65_536, 65_536),
    ("gta-8", 69_632, 32 * 2 * (8 * 128 + 32 * 64)), ("gqa-8-thin-32", 81_920, 81_920),
    ("gla-2", 36_864, 36_864), ("mla", 36_864, 36_864),
])  # fmt: skip
def test_other_variants_in_llama(variant, needed, released):
    """GTA's released code repeats what turns for all 32 heads, and then stores more than GQA."""
    model = published("llama3-8b").with_variant(variant)
    assert (model.adds(9, 2), model.adds(9, 2, released=True)) == (needed, released)
    assert (model.variant, model.kept[0].design) == (variant, variant)
    assert any("GTA" in note for note in model.notes) == (released != needed)


def test_other_variants_replace_only_what_grows():
    model = published("Gemma4_31B")
    other = model.with_variant("mqa")
    assert other.kept[1] == model.kept[1]
    assert other.kept[0].stored() == other.kept[0].stored(released=True) == [(1, 512), (1, 512)]
    assert model.variant is None  # the first one is as it was
    small = published("gemma4-e2b")
    assert small.with_variant("qkv").kept[1:] == small.kept[1:]
    same = model.with_variant(VariantSpec(streams=1, kv_heads=4))
    assert same.nbytes(99, 2) == model.nbytes(99, 2)


def test_sources():
    """Each model says where its sizes are from, and no number of bytes is typed."""
    for name in MODELS:
        model = published(name)
        assert all(re.search(r": https://\S+$", source) for source in model.sources), name
        assert model.sources
        assert model.software
        assert [fault for note in model.notes for fault in faults(note)] == []
    fields = {key for about in MODELS.values() for layers in about["layers"] for key in layers}
    assert fields <= {*Kept.__dataclass_fields__, "kv_heads"}
    with pytest.raises(UsageError, match="unknown model 'gemma4-13b'") as caught:
        published("gemma4-13b")
    assert "gemma4-31b" in caught.value.hint


# ---- the command


@pytest.mark.parametrize("name", MODELS)
def test_the_command_as_data(name, cli):
    code, out, _ = cli("variants", "--model", name, "--context", 5_000, "--dtype", "fp32", "--json")
    found, model = json.loads(out), published(name)
    assert code == 0
    assert (found["dtype"], found["context"], found["n_layer"]) == ("fp32", 5_000, model.n_layer)
    assert found["bytes"] == model.nbytes(5_000, 4) == sum(k["bytes"] for k in found["kinds"])
    assert found["released_bytes"] == model.nbytes(5_000, 4, released=True)
    assert found["bytes_per_further_token"] == model.adds(5_000, 4)
    assert found["sources"] == list(model.sources)
    for row, kept in zip(found["kinds"], model.kept, strict=True):
        assert [tuple(array) for array in row["stored"]] == kept.stored()
        assert (row["rows"], row["variant"]) == (kept.rows(5_000), kept.spec.name)


def test_the_command_with_other_variants(cli):
    args = ("variants", "--model", "gemma4-26b", "--variants", "gqa-2,q-mqa")
    own, both, one = json.loads(cli(*args, "--json")[1])
    assert [r["variant"] for r in (own, both, one)] == [None, "gqa-2", "q-mqa"]
    assert both["bytes"] == own["released_bytes"] > own["bytes"] > one["bytes"]
    _, out, _ = cli(*args)
    assert re.search(r"q-gqa-2, its own +2×512 +10,240 B +520 MiB +840 MiB +100 %", out)
    assert re.search(r"gqa-2 +2×512 \+ 2×512 +20,480 B +840 MiB +– +161\.538 %", out)
    assert "Replaced: the design of the 5 global layers, of 30 in all." in out


@pytest.mark.parametrize(
    "args", [(name,) for name in MODELS] + [("llama3-8b", "--variants", "gta-8,gqa-8-thin-32")]
)
def test_the_command_in_any_width(args, cli, monkeypatch):
    """Nothing is cut; only addresses are left to the terminal to wrap."""
    seen = set()
    for width in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = cli("variants", "--model", *args)
        assert code == 0
        lines = [line for line in out.splitlines() if "https://" not in line]
        assert max(map(len, lines)) <= width
        assert "…" not in out
        seen.add(frozenset(re.findall(r"\d[\d.,]*\d|\d", out)))
        for source in published(args[0]).sources:
            assert f"Sizes: {source}" in out
    assert len(seen) == 1


@pytest.mark.parametrize(("more", "names"), [
    ((), ["global", "window"]), (("--variants", "gqa-4"), ["as it is", "gqa-4"])
])  # fmt: skip
def test_the_figure(more, names, cli, tmp_path):
    code, *_ = cli("variants", "--model", "gemma4-31b", "--svg", "model.svg", *more)
    text = (tmp_path / "model.svg").read_text("utf-8")
    assert code == 0
    assert all(f">{name}<" in text for name in [*names, "needed, MiB", "as released, MiB"])


@pytest.mark.parametrize(("args", "message"), [
    (("--model", "gemma4"), "unknown model 'gemma4' did you mean gemma4"),
    (("--model", ""), "unknown model ''"),
    (("--model", "llama3-8b", "--n-head", 4), "published sizes: --n-head does not apply"),
    (("--model", "llama3-8b", "--config", "300m"), "published sizes: --config does not apply"),
    (("--model", "deepseek-v4", "--variants", "mqa"), "no layer keeps a row of every token"),
    (("--model", "llama3-8b", "--variants", "gqa-5"), "KV heads that fit: 1, 2, 4, 8, 16, 32"),
    (("--model", "llama3-8b", "--variants", "gqa"), "how many KV heads?"),
])  # fmt: skip
def test_wrong_input(args, message, cli):
    code, out, err = cli("variants", *args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert len(err.splitlines()) <= 2


# ---- the page


def test_the_page_has_these_bytes():
    """docs/designs.md: the table at 32,768 tokens in bf16, and the addresses of its sizes."""
    page = (ROOT / "docs" / "designs.md").read_text("utf-8")
    section = page.split("## Bytes of models in use")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| `.*( \| .*){7} \|", line)]
    rows = [re.split(r" *\| *", line)[1:-1] for line in lines]
    found = {}
    for name, kind, layers, stored, kept, per_token, needed, released in rows:
        figures = [int(n.replace(",", "")) for n in (layers, kept, per_token, needed, released)]
        arrays = [tuple(map(int, array.split("×"))) for array in re.findall(r"\d+×\d+", stored)]
        found[name.strip("`"), kind] = arrays, figures
    due = {
        key: (kept.stored(), [kept.layers, kept.rows(32_768), kept.per_token(2),
                              kept.nbytes(32_768, 2), kept.nbytes(32_768, 2, released=True)])
        for key, kept in KEPT.items()
    }  # fmt: skip
    assert found == due
    for name in MODELS:
        for source in published(name).sources:
            assert source.split(": ")[-1] in section
    gta, gqa = (published("llama3-8b").with_variant(name) for name in ("gta-8", "gqa-8"))
    for n in (gta.adds(0, 2), gqa.adds(0, 2), gta.adds(0, 2, released=True)):
        assert f"{n:,}" in section
    assert DTYPES["bf16"] == 2
