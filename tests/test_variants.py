"""The paper's table: closed forms to the unit, names in every spelling, and what is refused."""

import math
import re
from itertools import product

import pytest
from toys import DESIGNS, EVERY, SHIPPED, SMALL, design, gpt, host

from minqkv import backend, variants
from minqkv.cache import KVCache
from minqkv.models import GPT, GPTConfig
from minqkv.runtime.errors import UsageError
from minqkv.variants import NAMES, VARIANTS, VariantSpec

BIG = GPTConfig(vocab_size=50304, block_size=2048, n_layer=20, n_head=16, n_embd=1024)  # "300M"
HUGE = GPTConfig(vocab_size=50304, block_size=2048, n_layer=22, n_head=32, n_embd=2048)  # "1.2B"

# parameters (exact, or in millions to one decimal), cache bytes per token in 2-byte numbers, MiB at
# 32,768 tokens, reduction
PAPER = [
    (BIG, "qkv", 305_534_976, 81_920, 2560, 0),
    (BIG, "q=k-v", 284_542_976, 81_920, 2560, 0),
    (BIG, "q-k=v", 284_542_976, 40_960, 1280, 0.5),
    (BIG, "q=k=v", 263_550_976, 40_960, 1280, 0.5),
    (BIG, "gqa-4", 274.0, 20_480, 640, 0.75),
    (BIG, "mqa", 266.2, 5_120, 160, 0.9375),
    (BIG, "q-gqa-4", 268.8, 10_240, 320, 0.875),
    (BIG, "q-mqa", 264.9, 2_560, 80, 0.96875),
    (HUGE, "qkv", 1215.1, 180_224, 5632, 0),
    (HUGE, "q-k=v", 1122.8, 90_112, 2816, 0.5),
    (HUGE, "gqa-8", 1076.6, 45_056, 1408, 0.75),
    (HUGE, "mqa", 1036.2, 5_632, 176, 0.96875),
    (HUGE, "q-gqa-8", 1053.5, 22_528, 704, 0.875),
    (HUGE, "q-mqa", 1033.3, 2_816, 88, 0.984375),
]


@pytest.mark.parametrize(("cfg", "name", "params", "per_token", "mib", "reduction"), PAPER)
def test_the_papers_table(cfg, name, params, per_token, mib, reduction):
    spec = VariantSpec.parse(name)
    exact = spec.params(cfg)
    assert exact == params if isinstance(params, int) else round(exact / 1e6, 1) == params
    assert spec.cache_bytes_per_token(cfg, 2) == per_token
    assert spec.cache_bytes_per_token(cfg, 2) * 32_768 == mib * 2**20
    assert spec.reduction(cfg.n_head) == reduction
    qkv = VariantSpec.parse("qkv").cache_bytes_per_token(cfg, 2)
    assert 1 - per_token / qkv == reduction


def test_64_times_and_not_67():
    qkv, q_mqa = (
        VariantSpec.parse(name).cache_bytes_per_token(HUGE, 2) for name in ("qkv", "q-mqa")
    )
    assert qkv == 64 * q_mqa
    assert f"{VariantSpec.parse('q-mqa').reduction(32):.2%}" == "98.44%"


@pytest.mark.parametrize("cfg", [BIG, HUGE], ids=["300M", "1.2B"])
@pytest.mark.parametrize(
    ("name", "q", "streams", "stored"),
    [
        ("qkv", 1, 2, 1),
        ("q=k-v", 0, 2, 1),
        ("q-k=v", 1, 1, 1),
        ("q=k=v", 0, 1, 1),
        ("gqa-4", 1, 2, 4),
        ("q-mqa", 1, 1, None),
    ],
)
def test_macs(cfg, name, q, streams, stored):
    """L[n·d·((q+1)d + σ·h·d_h) + 2n²d + 2ndf] + ndV, and the causal n(n+1)d in place of 2n²d."""
    L, d, H, f, V, n = cfg.n_layer, cfg.n_embd, cfg.n_head, cfg.d_ff, cfg.vocab_size, 1000
    h_d_h = {1: d, 4: 4 * d // H, None: d // H}[stored]
    full = L * (n * d * ((q + 1) * d + streams * h_d_h) + 2 * n * n * d + 2 * n * d * f) + n * d * V
    spec = VariantSpec.parse(name)
    assert spec.macs(cfg, n) == full
    assert spec.macs(cfg, n, causal=True) == full + L * (n * (n + 1) * d - 2 * n * n * d)
    assert spec.macs(cfg, 1, causal=True) == spec.macs(cfg, 1)


@pytest.mark.parametrize("name", [name for name in (*DESIGNS, *SHIPPED) if "+" not in name])
def test_macs_are_those_of_the_live_model(name, monkeypatch):
    """Every product of a real prefill counted from the shapes that reach it."""
    counted = []

    def count_bmm(a, b, bmm=backend.bmm):
        counted.append(a.size * b.shape[-1])
        return bmm(a, b)

    monkeypatch.setattr(backend, "bmm", count_bmm)
    model, n = design(name), 9
    model([[1] * n])
    assert sum(counted) == variants.macs(model.config, n)
    assert len(counted) >= 2 * 5 + 1
    if name in EVERY:
        assert VariantSpec.parse(name).macs(model.config, n) == sum(counted)


@pytest.mark.parametrize(
    ("bias", "position"), [*product([True, False], ["learned", "sinusoidal", "none", "rope"])]
)
@pytest.mark.parametrize("name", [*EVERY, "q=k-v+temperature", "q=k=v+bias", "gqa-4"])
def test_params_are_those_of_the_live_model(name, bias, position):
    cfg = GPTConfig(**SMALL, variant=name, bias=bias, position=position, d_ff=20)
    assert VariantSpec.parse(name).params(cfg) == variants.params(cfg) == GPT(cfg).n_params


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [*DESIGNS, *SHIPPED])
def test_params_of_every_design(name, bias):
    model = design(name, bias=bias)
    assert variants.params(model.config) == model.n_params


@pytest.mark.parametrize("name", [*DESIGNS, *SHIPPED])
def test_cache_bytes_are_those_of_a_live_cache(name):
    model = design(name)
    cache = model.new_cache(1, 1)
    assert variants.cache_bytes_per_token(model.config, 8) == cache.capacity_nbytes
    if name in EVERY:
        spec = VariantSpec.parse(name)
        assert spec.cache_bytes_per_token(model.config, 8) == cache.capacity_nbytes
        qkv = gpt("qkv").new_cache(1, 1).capacity_nbytes
        assert spec.reduction(4, 4) == 1 - cache.capacity_nbytes / qkv


ABLATIONS = ["q=k-v+temperature", "q=k-v+bias", "q=k=v+temperature", "q=k=v+bias"]


@pytest.mark.parametrize("name", [*EVERY, *ABLATIONS, "gqa-16", "q-gqa-8", "thin-1", "thin-48",
    "gta-8", "gta-1", "gla-2", "gla-1", "mla", "gqa-8-thin-4", "gqa-1-thin-16"])  # fmt: skip
def test_canonical_names_round_trip(name):
    spec = VariantSpec.parse(name)
    assert spec.name == name
    assert VariantSpec.parse(spec.name) == spec == VariantSpec.parse(spec)
    assert VariantSpec.parse(name.upper()) == spec


def test_every_name_is_a_design_of_its_own():
    assert [name.replace("2", "N") for name in EVERY] == list(NAMES)
    every = variants.variant_names(2, 6)
    assert len({VariantSpec.parse(name) for name in every}) == len(VARIANTS) == len(NAMES) + 4 == 15
    others = [name for name in EVERY if "mqa" not in name and "thin" not in name]
    assert len({VariantSpec.parse(name).formula for name in others}) == len(others) == 8
    names = variants.variant_names(4, 6)
    assert names[8:] == ("q-gqa-4", "q-mqa", "thin-6", "gqa-4-thin-6", "gta-4", "gla-4", "mla")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("QKV", "qkv"), ("mha", "qkv"), ("Q-K-V", "qkv"), (" q k v ", "qkv"), ("Q≠K≠V", "qkv"),
        ("Q≠K=V", "q-k=v"), ("Q-K=V", "q-k=v"), ("k=v", "q-k=v"), ("Q - K = V", "q-k=v"),
        ("Q=K-V", "q=k-v"), ("Q=K≠V", "q=k-v"), ("q=k", "q=k-v"), ("Q=K=V", "q=k=v"),
        ("(Q=K-V)+", "q=k-v+"), ("(Q=K=V)+", "q=k=v+"), ("Q=K-V+", "q=k-v+"),
        ("(Q=K≠V)+", "q=k-v+"),
        ("GQA-4", "gqa-4"), ("gqa4", "gqa-4"), ("gqa_4", "gqa-4"), ("gqa-04", "gqa-4"),
        ("Q-GQA-4", "q-gqa-4"),
        ("q_gqa4", "q-gqa-4"), ("MQA", "mqa"), ("gqa-1", "mqa"), ("GQA1", "mqa"),
        ("Q-MQA", "q-mqa"), ("q-gqa-1", "q-mqa"),
        ("GTA8", "gta-8"), ("gla_2", "gla-2"), ("MLA", "mla"), ("GQA8-thin4", "gqa-8-thin-4"),
        ("Thin-8", "thin-8"), ("thin8", "thin-8"), ("thin_08", "thin-8"),
    ],
)  # fmt: skip
def test_other_spellings(spelling, name):
    assert VariantSpec.parse(spelling) == VariantSpec.parse(name)
    assert VariantSpec.parse(spelling).name == name


@pytest.mark.parametrize(
    ("name", "own_query", "streams", "kv_heads", "plus", "formula"),
    [
        ("qkv", True, 2, None, None, "softmax(αQKᵀ)V"),
        ("q=k-v", False, 2, None, None, "softmax(αKKᵀ)V"),
        ("q-k=v", True, 1, None, None, "softmax(αQKᵀ)K"),
        ("q=k=v", False, 1, None, None, "softmax(αKKᵀ)K"),
        ("q=k-v+", False, 2, None, "full", "softmax(s·αKKᵀ+1gᵀ)V"),
        ("q=k=v+", False, 1, None, "full", "softmax(s·αKKᵀ+1gᵀ)K"),
        ("q=k=v+temperature", False, 1, None, "temperature", "softmax(s·αKKᵀ)K"),
        ("q=k-v+bias", False, 2, None, "bias", "softmax(αKKᵀ+1gᵀ)V"),
        ("gqa-4", True, 2, 4, None, "softmax(αQᵢK⌊i/G⌋ᵀ)V⌊i/G⌋"),
        ("mqa", True, 2, 1, None, "softmax(αQᵢK⌊i/G⌋ᵀ)V⌊i/G⌋"),
        ("q-gqa-4", True, 1, 4, None, "softmax(αQᵢK⌊i/G⌋ᵀ)K⌊i/G⌋"),
        ("q-mqa", True, 1, 1, None, "softmax(αQᵢK⌊i/G⌋ᵀ)K⌊i/G⌋"),
    ],
)
def test_fields_and_formula(name, own_query, streams, kv_heads, plus, formula):
    spec = VariantSpec.parse(name)
    assert spec == VariantSpec(own_query, streams, kv_heads, plus)
    assert spec.formula == formula


@pytest.mark.parametrize(
    ("name", "fields", "formula"),
    [
        ("gqa-8-thin-4", (True, 2, 8, None, 4), "softmax(αQᵢK⌊i/G⌋ᵀ)V⌊i/G⌋"),
        ("gta-8", (True, 1, 8, None, None, True), "softmax(α[Qᵢ,Pᵢ][K⌊i/G⌋,R]ᵀ)K⌊i/G⌋"),
        (
            "gla-2",
            (True, 1, 2, None, None, True, 2),
            "softmax(α[QᵢUᵢ,Pᵢ][K⌊i/G⌋,R]ᵀ)K⌊i/G⌋Wᵢ",
        ),
        ("mla", (True, 1, 1, None, None, True, 4), "softmax(α[QᵢUᵢ,Pᵢ][K⌊i/G⌋,R]ᵀ)K⌊i/G⌋Wᵢ"),
    ],
)
def test_fields_and_formula_of_designs_that_ship(name, fields, formula):
    spec = VariantSpec.parse(name)
    assert spec == VariantSpec(*fields)
    assert spec.formula == formula


LLAMA = GPTConfig(128_256, 8192, 32, 32, 4096, position="rope")  # the sizes of Llama 3, 8B
V3 = GPTConfig(129_280, 4096, 61, 128, 7168, head_dim=128, position="rope", d_rope=64)


@pytest.mark.parametrize(
    ("cfg", "name", "stored", "bytes_per_token"),
    [
        (LLAMA, "gqa-8", [(8, 128), (8, 128)], 131_072),
        (LLAMA, "q-gqa-8", [(8, 128)], 65_536),
        (LLAMA, "gta-8", [(8, 128), (1, 64)], 69_632),
        (LLAMA, "gqa-8-thin-32", [(8, 32), (8, 128)], 81_920),
        (LLAMA, "gla-2", [(2, 256), (1, 64)], 36_864),
        (LLAMA, "mla", [(1, 512), (1, 64)], 36_864),
        (V3, "mla", [(1, 512), (1, 64)], 70_272),
    ],
)
def test_bytes_of_designs_that_ship(cfg, name, stored, bytes_per_token):
    spec = VariantSpec.parse(name)
    assert spec.stored(cfg) == stored
    assert spec.cache_bytes_per_token(cfg, 2) == bytes_per_token
    (H, d_h, d_rope), qkv = spec.sizes(cfg), 2 * cfg.n_head * cfg.head_dim * cfg.n_layer * 2
    assert 1 - spec.reduction(H, d_h, d_rope) == pytest.approx(bytes_per_token / qkv, abs=1e-15)
    cache = KVCache([stored], 1, 3, "float16")
    assert cache.capacity_nbytes * cfg.n_layer == 3 * bytes_per_token


def test_gqa_with_all_heads_is_the_ungrouped_variant():
    assert VariantSpec.parse("gqa-8").for_heads(8).name == "qkv"
    assert VariantSpec.parse("q-gqa-8").for_heads(8).name == "q-k=v"
    assert VariantSpec.parse("gqa-8").for_heads(16).name == "gqa-8"
    assert GPTConfig(**SMALL, variant="gqa-4").variant == "qkv"
    ids = [[1, 2, 3, 4]]
    assert (host(gpt("gqa-4")(ids)) == host(gpt("qkv")(ids))).all()
    assert gpt("gqa-4").new_cache().stored == gpt("qkv").new_cache().stored


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("kv", "two meanings", "q=k-v .* or q-k=v "),
        ("KV", "two meanings", "q=k-v .* or q-k=v "),
        ("q=k-gqa-2", "Q = K with fewer KV heads is undefined", None),
        ("q=k-mqa", "Q = K with fewer KV heads is undefined", None),
        ("q=k=v-gqa-2", "Q = K with fewer KV heads is undefined", None),
        ("qkv+", "to make queries differ", None),
        ("(Q-K=V)+", "to make queries differ", None),
        ("gqa-4+", "to make queries differ", None),
        ("q-mqa+", "to make queries differ", None),
        ("gqa", "how many KV heads", "gqa-4"),
        ("gqa-", "how many KV heads", "gqa-4"),
        ("gqa-N", "how many KV heads", "gqa-4"),
        ("Q-GQA", "how many KV heads", "q-gqa-4"),
        ("gqa-0", "at least one", None),
        ("gqa--2", "unknown variant", "gqa-N"),
        ("q-k=c", "unknown variant", "did you mean .*q-k=v"),
        ("qvk", "unknown variant", "did you mean .*qkv"),
        ("mqaa", "unknown variant", "did you mean .*mqa"),
        ("q=k-v++", "unknown variant", "q=k-v\\+"),
        ("q=k-v+temprature", "unknown variant", "q=k-v\\+"),
        ("zzzzzzzz", "unknown variant", "known: qkv, q=k-v"),
        ("", "unknown variant", "known: "),
        ("thin", "how wide are its keys", "thin-4"),
        ("thin-N", "how wide are its keys", "thin-4"),
        ("thin-0", "width of at least 1", None),
        ("thin-4+", "to make queries differ", None),
        ("q-thin-4", "unknown variant", "thin-N"),
        ("gta", "how many KV heads", "gta-4"),
        ("gla-N", "how many KV heads", "gla-4"),
        ("gta-0", "at least one", None),
        ("mla+", "to make queries differ", None),
        ("mla-2", "unknown variant", "mla"),
        ("gtaa-2", "unknown variant", "gta-N"),
        ("gqa-2-thin", "unknown variant", "gqa-N-thin-M"),
        ("q-gqa-2-thin-4", "unknown variant", "gqa-N-thin-M"),
    ],
)  # fmt: skip
def test_refused_names(name, says, hint):
    with pytest.raises(UsageError, match=says) as caught:
        VariantSpec.parse(name)
    if hint:
        assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"streams": 3}, "streams is 1"),
        ({"kv_heads": 0}, "at least one"),
        ({"kv_heads": 2, "own_query": False}, "undefined"),
        ({"plus": "half", "own_query": False}, "unknown plus"),
        ({"plus": "full"}, "to make queries differ"),
        ({"key_width": 0}, "at least 1"),
        ({"key_width": 2, "streams": 1}, "K = V has one width"),
        ({"apart": True}, "stands apart from a row that is K and V"),
        ({"apart": True, "streams": 1, "own_query": False}, "Q has its own projection"),
        ({"latent": 4}, "a latent row is one stream"),
        ({"latent": 4, "streams": 1}, "what turns is apart"),
        ({"latent": 0, "streams": 1, "apart": True}, "at least a head wide"),
    ],
)
def test_refused_fields(fields, says):
    with pytest.raises(UsageError, match=says):
        VariantSpec(**fields)


@pytest.mark.parametrize(
    ("name", "heads"), [("gqa-3", 4), ("q-gqa-4", 6), ("gqa-8", 4), ("gqa-2", 1)]
)
def test_heads_that_do_not_divide(name, heads):
    with pytest.raises(UsageError, match="equal groups") as caught:
        VariantSpec.parse(name).for_heads(heads)
    fits = [int(word) for word in caught.value.hint.partition(": ")[2].split(", ")]
    assert fits == [g for g in range(1, heads + 1) if math.gcd(g, heads) == g]
    with pytest.raises(UsageError, match="equal groups"):
        GPTConfig(**SMALL | {"n_head": heads, "n_embd": 8 * heads}, variant=name)


def test_a_cache_of_the_papers_size_without_allocating_it():
    """The shape a 300M q-mqa would store, one layer and four tokens of it, measured."""
    spec = VariantSpec.parse("q-mqa")
    cache = KVCache([spec.stored(BIG)], 1, 4, "float16")
    assert cache.capacity_nbytes * BIG.n_layer == 4 * spec.cache_bytes_per_token(BIG, 2)


# ---- a variant for each layer


@pytest.mark.parametrize(
    ("given", "n_layer", "layers", "name"),
    [
        ("qkv", 3, ["qkv"] * 3, "qkv"),
        ("qkv/q-k=v", 2, ["qkv", "q-k=v"], "qkv/q-k=v"),
        ("qkv/q-k=v", 4, ["qkv", "q-k=v"] * 2, "qkv/q-k=v"),
        ("qkv/q-k=v", 3, ["qkv", "q-k=v", "qkv"], "qkv/q-k=v"),
        ("qkv/qkv/mqa/qkv/qkv/mqa", 6, ["qkv", "qkv", "mqa"] * 2, "qkv/qkv/mqa"),
        ("qkv/qkv", 2, ["qkv", "qkv"], "qkv"),
        ("MHA / Q≠K=V", 2, ["qkv", "q-k=v"], "qkv/q-k=v"),
        ("gqa-4/gqa-2", 2, ["qkv", "gqa-2"], "qkv/gqa-2"),
        ("gqa-4/qkv", 2, ["qkv", "qkv"], "qkv"),
        ("thin-2/q=k=v+bias", 2, ["thin-2", "q=k=v+bias"], "thin-2/q=k=v+bias"),
    ],
)
def test_a_name_for_each_layer(given, n_layer, layers, name):
    specs = variants.layer_specs(given, n_layer, 4)
    assert [spec.name for spec in specs] == layers
    assert variants.layered_name(specs) == name
    assert variants.layer_specs(name, n_layer, 4) == specs
    config = GPTConfig(**SMALL | {"n_layer": n_layer}, variant=given)
    assert (config.variant, config.specs) == (name, specs)
    assert [block.attn.spec for block in GPT(config).blocks] == list(specs)


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("qkv/q-k=v/mqa", "names 3 layers, but the model has 2", "--n-layer 3"),
        ("qkv/q-k=w", "unknown variant 'q-k=w'", "q-k=v"),
        ("qkv/", "unknown variant ''", "known: "),
        ("qkv/gqa-3", "equal groups", "1, 2, 4"),
        ("kv/qkv", "two meanings", "q-k=v"),
    ],
)
def test_refused_layers(name, says, hint):
    with pytest.raises(UsageError, match=says) as caught:
        GPTConfig(**SMALL, variant=name)
    assert hint in caught.value.hint


def test_the_formula_of_each_layer_is_shown():
    assert variants.formula("qkv/q-k=v") == "softmax(αQKᵀ)V  /  softmax(αQKᵀ)K"
    assert variants.formula("thin-2") == "softmax(αQKᵀ)V"


# ---- widths


@pytest.mark.parametrize(
    ("variant", "head_dim", "why"),
    [
        ("qkv", 3, "the width of a key, 3, must be even"),
        ("thin-3", 4, "the width of a key, 3, must be even"),
        ("qkv/thin-1", 4, "the width of a key, 1, must be even"),
    ],
)
def test_rotary_positions_turn_pairs_of_a_key(variant, head_dim, why):
    for position in ("learned", "none", "sinusoidal"):
        GPTConfig(**SMALL, variant=variant, head_dim=head_dim, position=position)
    with pytest.raises(UsageError, match=why):
        GPTConfig(**SMALL, variant=variant, head_dim=head_dim, position="rope")
    GPTConfig(**SMALL, variant="thin-2", head_dim=3, position="rope")  # values need no pairs


@pytest.mark.parametrize(
    ("variant", "changes", "why"),
    [
        ("qkv", {"d_rope": 3}, "d_rope 3 must be even"),
        ("qkv", {"d_rope": 0}, "d_rope 0 must be even, and 2 or more"),
        ("q-k=v", {"d_rope": 6}, "d_rope 6: a key has 4 numbers"),
        ("gta-2", {"d_rope": 6}, "d_rope 6: a key has 4 numbers"),
        ("gqa-2-thin-2", {"d_rope": 4}, r"d_rope 4: a key has 2 numbers \(gqa-2-thin-2\)"),
        ("mla", {"d_rope": 5}, "d_rope 5 must be even"),
        ("qkv", {"d_rope": 2, "position": "learned"}, "only rotary positions turn channels"),
        ("gta-2", {"position": "learned"}, "gta-2 stores what turns apart, and only rotary"),
        ("qkv/gta-2", {"position": "none"}, "gta-2 stores what turns apart, and only rotary"),
        ("gta-3", {}, "4 heads do not fall into 3 equal groups"),
        ("gla-3", {}, "4 heads do not fall into 3 equal groups"),
        ("qkv", {"rope_base": 0.0}, "rope_base 0.0 must be above 0"),
        ("qkv", {"rope_base": math.nan}, "rope_base nan must be above 0"),
    ],
)
def test_positions_that_a_design_cannot_have(variant, changes, why):
    with pytest.raises(UsageError, match=why):
        GPTConfig(**SMALL, **{"position": "rope"} | changes, variant=variant)


def test_more_layers_than_anybody_builds_are_refused():
    """Before a list of them is made."""
    with pytest.raises(UsageError, match="n_layer 2000000000 is too large"):
        GPTConfig(**{**SMALL, "n_layer": 2_000_000_000})


@pytest.mark.parametrize("head_dim", [0, -2, 2.0, "4"])
def test_a_head_without_a_width_is_refused(head_dim):
    with pytest.raises(UsageError, match="head_dim must be "):
        GPTConfig(**SMALL, head_dim=head_dim)


def test_a_width_of_heads_of_its_own():
    """n_embd / n_head unless given, and then it need not divide."""
    assert GPTConfig(**SMALL).head_dim == 4
    uneven = SMALL | {"n_embd": 18}
    with pytest.raises(UsageError, match="18 is not divisible by n_head 4") as caught:
        GPTConfig(**uneven)
    assert "--head-dim" in caught.value.hint
    attn = GPT(GPTConfig(**uneven, head_dim=5)).blocks[0].attn
    shapes = [w.weight.shape for w in (attn.wq, attn.wk, attn.wv, attn.wo)]
    assert shapes == [(18, 20), (18, 20), (18, 20), (20, 18)]


def test_thin_keys_by_hand():
    """4 heads: queries and keys of 2 numbers, values of 5."""
    attn = GPT(GPTConfig(**SMALL, variant="thin-2", head_dim=5)).blocks[0].attn
    shapes = [w.weight.shape for w in (attn.wq, attn.wk, attn.wv, attn.wo)]
    assert shapes == [(16, 8), (16, 8), (16, 20), (20, 16)]
    assert VariantSpec.parse("thin-2").reduction(4, 5) == 1 - 7 / 10
