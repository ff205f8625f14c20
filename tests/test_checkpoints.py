"""Layers by their models' names, and checkpoints: what fits is read, and what does not is refused
in one line.
"""

import ast
import inspect
import json
import os
import re
import tracemalloc

import numpy as np
import pytest
import safetensors_file
from safetensors_file import write, write_raw
from test_authorities import LAYER, arrays, far, load, seen, tensors
from test_budget import code_lines
from test_laws import KINDS, Branches
from toys import host, scramble

import minqkv as mq
from minqkv import backend as backends
from minqkv import gradcheck
from minqkv.analysis.laws import Case, laws, schemes
from minqkv.designs import checkpoints
from minqkv.designs.checkpoints import read_header, read_tensor
from minqkv.designs.layers import Grouped, LowRank, Sink, Slim
from minqkv.models import GPT, GPTConfig
from minqkv.nn import Init
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.tensor import Tensor
from minqkv.variants import POSITIONS, SHIPPED, VariantSpec

PREFIX = f"model.layers.{LAYER}.self_attn."
SMALL = {
    "qwen3": {"kv_heads": 2, "head_dim": 4},
    "gemma3": {"kv_heads": 2, "head_dim": 4},
    "gemma4-global": {"kv_heads": 2, "head_dim": 8, "d_rope": 2},
    "deepseek-v3": {"query_rank": 6, "head_dim": 4, "d_rope": 2},
    "deepseek-v4": {"query_rank": 6, "groups": 2, "out_rank": 3, "head_dim": 8, "d_rope": 4},
}  # fmt: skip


def small(kind, init=None, **changes):
    """A layer of this kind of width 16, of four heads."""
    init = init or Init(0, "float64")
    return mq.shipped_layer(kind, 16, 4, 24, init, **SMALL[kind] | changes)


# ---- names


def test_every_name_has_a_small_layer_here():
    assert SMALL.keys() == SHIPPED.keys() == checkpoints.KINDS.keys() == checkpoints.TENSORS.keys()


@pytest.mark.parametrize("kind", SHIPPED)
def test_names(kind, rng):
    layer = small(kind)
    assert layer.kind == kind
    assert small(layer.kind).state_dict().keys() == layer.state_dict().keys()
    for spelling in (kind.upper(), kind.replace("-", "_")):
        assert mq.shipped_layer(spelling, 16, 4, 24, **SMALL[kind]).kind == kind
    assert layer.spec.name == SHIPPED[kind]["variant"].replace("N", "2")


@pytest.mark.parametrize("kind", SHIPPED)
def test_the_name_of_a_layer_is_not_that_of_a_variant(kind):
    with pytest.raises(UsageError, match=f"{kind} is a layer: the variant") as caught:
        VariantSpec.parse(kind)
    assert f"shipped_layer('{kind}'" in caught.value.hint


@pytest.mark.parametrize(("name", "near"), [("gemma4-globl", "gemma4-global"), ("qwen", "qwen3"),
                                            ("deepsek-v4", "deepseek-v4")])  # fmt: skip
def test_names_are_suggested(name, near):
    for call in (VariantSpec.parse, lambda name: mq.shipped_layer(name, 16, 4, 8),
                 lambda name: mq.load_layer("x", name, 0)):  # fmt: skip
        with pytest.raises(UsageError, match="unknown") as caught:
            call(name)
        assert near in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("qwen3", {"kv_heads": None}, "qwen3 needs kv_heads"),
        ("qwen3", {"kv_heads": 3}, "4 heads do not fall into 3 equal groups"),
        ("qwen3", {"kv_heads": 2.0}, "kv_heads must be a whole number"),
        ("qwen3", {"query_rank": 4}, "qwen3 has no query_rank"),
        ("qwen3", {"d_rope": 3}, "d_rope 3 must be even"),
        ("gemma4-global", {"groups": 2}, "gemma4-global has no groups"),
        ("deepseek-v3", {"kv_heads": 1}, "deepseek-v3 has no kv_heads"),
        ("deepseek-v3", {"query_rank": 0}, "query_rank must be a whole number"),
        ("deepseek-v3", {"out_rank": 2}, "deepseek-v3 has no out_rank"),
        ("deepseek-v4", {"query_rank": None}, "deepseek-v4 needs query_rank"),
        ("deepseek-v4", {"out_rank": None}, "deepseek-v4 needs out_rank"),
        ("deepseek-v4", {"groups": 3}, "4 heads do not fall into 3 equal groups"),
        ("deepseek-v4", {"d_rope": 10}, "d_rope 10: a key has 8 numbers"),
    ],
)
def test_sizes_that_are_refused(kind, changes, says):
    with pytest.raises(UsageError, match=says):
        small(kind, **changes)


def test_published_sizes():
    """Where they are not given, they are the model's."""
    layer = mq.shipped_layer("gemma4-global", 64, 2, 4, kv_heads=1)
    assert layer.wk.weight.shape == (64, 512)
    assert layer.angles[0].shape == (4, 64)
    frequency = np.arccos(host(layer.angles[0])[1])  # of position 1
    np.testing.assert_allclose(frequency, 1e6 ** (-2 * np.arange(64) / 512), atol=1e-3)
    layer = mq.shipped_layer("deepseek-v3", 64, 2, 4)
    assert (layer.wk.weight.shape, layer.wr.weight.shape) == ((64, 512), (64, 64))
    assert layer.wq.weight.shape == (64, 2 * 192)


# ---- the laws, gradients and backends for layers that are more than a row


class Shipped(Case):
    """A model whose attention layers are of one kind."""

    kind = None

    @classmethod
    def build(cls, cfg, seed):
        model = GPT(cfg, seed)
        for i, block in enumerate(model.blocks):
            if cls.kind == "slim":
                options = {"position": cfg.position, "window": cfg.window, "sinks": cfg.sinks}
                whole = mq.Attention("qkv", 16, 4, 24, Init(i, "float64", "uniform"), **options)
                block.attn = Slim(whole)
            else:
                block.attn = small(cls.kind, window=cfg.window, sinks=cfg.sinks)
        return model


def fields(kind):
    """(variant, position, rope_value) of the rows that a kind stores, and further fields."""
    if kind == "slim":
        return ("q-k=v", "rope", "raw"), {}
    about = {"position": "rope", "rope_value": "raw"} | SHIPPED[kind] | SMALL[kind]
    row = about["variant"].replace("N", "2"), "rope", about["rope_value"]
    return row, {"head_dim": about["head_dim"], "d_rope": about.get("d_rope")}


@pytest.mark.parametrize("name", [*KINDS, "branches"])
@pytest.mark.parametrize("kind", [*SHIPPED, "slim"])
def test_laws(kind, name):
    cache, window, sinks = KINDS.get(name, KINDS["plain"])
    make = type("Of", (Shipped, Branches if name == "branches" else Case), {"kind": kind})
    row, others = fields(kind)
    model = make.build(GPTConfig(11, 24, 2, 4, 16, *row, dtype="float64", **others), 0)
    weights = host(model.blocks[0].attn.wk.weight)
    case = make(cache, *row, window, sinks, **others)
    assert (host(case.model.blocks[0].attn.wk.weight) != weights).any()  # scrambled
    if kind == "slim":  # what takes K to V was made of other keys: any matrix keeps the laws
        assert isinstance(case.model.blocks[0].attn, Slim)
    broken = {law: fault or error for law, error, fault in laws(case)
              if fault or not error <= 1e-10}  # fmt: skip
    assert broken == {}


@pytest.mark.parametrize("kind", SHIPPED)
def test_gradients(kind, backend, rng):
    layer = scramble(small(kind))
    x = Tensor(backends.upload(rng.standard_normal((2, 5, 16))), requires_grad=True)
    mask = backends.upload(np.tri(5, dtype=bool))
    assert gradcheck(lambda x, *_: layer(x, mask), x, *layer.parameters()) < 1e-6


@pytest.mark.parametrize("kind", SHIPPED)
def test_numpy_and_strict_agree(kind, rng):
    x, found = rng.standard_normal((2, 5, 16)), []
    for name in ("numpy", "strict"):
        with backends.use_backend(name):
            layer = scramble(small(kind))
            out = layer(Tensor(backends.upload(x)), backends.upload(np.tri(5, dtype=bool)))
            out.sum().backward()
            found.append([host(out), *(host(p.grad) for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scheme", ["gpt2", "uniform", "xavier"])
def test_parts_start_by_the_scheme(scheme):
    init = Init(0, "float64", scheme)
    std = {"gpt2": 0.02, "uniform": 192**-0.5, "xavier": 96**-0.5}[scheme]
    assert host(LowRank(64, 32, 48, init).down.weight).std() == pytest.approx(
        {"xavier": 48**-0.5}.get(scheme, std), rel=0.1)  # fmt: skip
    assert host(Grouped(128, 2, 128, 16, init).weight).std() == pytest.approx(std, rel=0.1)


def test_a_sink_takes_weight_from_all_keys(rng):
    """softmax over one score more, of which nothing is mixed; a group of heads has its own each."""
    layer = scramble(Sink("q-mqa", 16, 4, 8, Init(0, "float64")))
    x = Tensor(rng.standard_normal((2, 5, 16)))
    with mq.trace() as t:
        layer(x)
    q, k = t.all("q")[-1], t.all("k")[-1]
    scores = q @ k.swapaxes(-1, -2) / 2
    e = np.exp(scores)
    sink = np.exp(host(layer.sink))[None]
    weights = e / (e.sum(-1, keepdims=True) + sink)
    np.testing.assert_allclose(t.all("z")[-1], weights @ k, atol=1e-12)


@pytest.mark.parametrize(
    ("variant", "options"),
    [("gqa-2", {}), ("q-k=v", {}), ("qkv", {"head_dim": 6}), ("qkv", {"norm": True})],
)
def test_layers_that_have_no_slim_form(variant, options):
    layer = mq.Attention(variant, 16, 4, 8, Init(0, "float64"), **options)
    with pytest.raises(UsageError, match="W_K is square"):
        Slim(layer)


def test_a_singular_matrix_has_no_slim_form():
    layer = mq.Attention("qkv", 16, 4, 8, Init(0, "float64"))
    layer.wk.weight.data[:, 3] = layer.wk.weight.data[:, 5]
    with pytest.raises(UsageError, match="without an inverse"):
        Slim(layer)


# ---- files


def test_the_reader_is_short():
    source = "".join(inspect.getsource(f) for f in (read_header, read_tensor))
    assert code_lines(source) <= 40
    assert ast.parse(source)


def test_numbers_of_every_kind(tmp_path, rng):
    found = {
        "a": rng.standard_normal((2, 3)),
        "b": rng.standard_normal((4,)).astype("float32"),
        "c": rng.standard_normal((2, 1, 2)).astype("float16"),
        "d": np.array([0x3F80, 0xC000, 0x7F80, 0x0001], "uint16"),  # 1, -2, infinity, tiny
        "e": np.float64(3.5).reshape(()),
        "f": np.zeros((0, 3)),
    }
    header, start = read_header(write(tmp_path / "x.safetensors", found, format="pt"))
    read = {name: read_tensor(tmp_path / "x.safetensors", header[name], start) for name in found}
    for name in "abcef":
        np.testing.assert_array_equal(read[name], found[name])
    np.testing.assert_array_equal(read["d"], np.float32([1, -2, np.inf, 2.0**-133]))
    assert {array.dtype.name for array in read.values()} == {"float32", "float64"}
    assert all(array.flags.writeable for array in read.values())


ENTRY = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
HOSTILE = {
    "empty": b"",
    "short": b"\x01\x00",
    "no header": (100).to_bytes(8, "little"),
    "a header beyond the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "not JSON": b"nonsense",
    "a list": b"[]",
    "a number": b"7",
    "not UTF-8": b'{"\xff": {}}',
    "deep": b"[" * 100_000,
    "a long number": b'{"x": ' + b"9" * 10_000 + b"}",
    "no dtype": {"x": {"shape": [2], "data_offsets": [0, 16]}},
    "an entry that is a list": {"x": [1]},
    "three offsets": {"x": ENTRY | {"data_offsets": [0, 8, 16]}},
    "a shape that is none": {"x": ENTRY | {"shape": None}},
    "a shape of words": {"x": ENTRY | {"shape": "2"}},
    "a negative size": {"x": ENTRY | {"shape": [-2]}},
    "a size that is true": {"x": ENTRY | {"shape": [2, True]}},
    "a fraction": {"x": ENTRY | {"shape": [2.0]}},
    "sizes that overflow": {"x": ENTRY | {"shape": [1 << 32, 1 << 32, 0]}},
    "many axes": {"x": ENTRY | {"shape": [1] * 100 + [2]}},
    "too many numbers": {"x": ENTRY | {"shape": [3]}},
    "too few": {"x": ENTRY | {"shape": [1]}},
    "beyond the file": {"x": ENTRY | {"shape": [3], "data_offsets": [0, 24]}},
    "before the file": {"x": ENTRY | {"data_offsets": [-16, 0]}},
    "the wrong way round": {"x": ENTRY | {"data_offsets": [16, 0]}},
    "infinite": {"x": ENTRY | {"data_offsets": [0, float("inf")]}},
    "a dtype that is a list": {"x": ENTRY | {"dtype": []}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    """One line that says what is wrong; and no memory for what only the header promises."""
    path, content = tmp_path / "x.safetensors", HOSTILE[name]
    if name in ("empty", "short", "no header", "a header beyond the file"):
        path.write_bytes(content)
    else:
        header = content if isinstance(content, bytes) else json.dumps(content).encode()
        write_raw(path, header, b"\0" * 16)
    tracemalloc.start()
    for call in (read_header, lambda path: mq.load_layer(path, "qwen3", 0)):
        with pytest.raises(EnvironmentFault, match="is not a safetensors file") as caught:
            call(path)
        assert "\n" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(EnvironmentFault, match="there is no such file"):
            read_header(path)


def test_cut_short(tmp_path):
    """Every file that ends too early is refused."""
    whole = write(tmp_path / "x.safetensors", {"x": np.ones(2)}).read_bytes()
    for n in range(len(whole)):
        (tmp_path / "y").write_bytes(whole[:n])
        with pytest.raises(EnvironmentFault):
            read_header(tmp_path / "y")


def test_other_numbers_are_refused_only_where_they_are_needed(tmp_path):
    found = tensors(arrays("qwen3"))
    path = write(tmp_path / "x.safetensors", found | {"model.other": np.arange(3)})
    mq.load_layer(path, "qwen3", LAYER, block_size=16)
    path = write(tmp_path / "y.safetensors", found | {f"{PREFIX}q_norm.weight": np.arange(8)})
    with pytest.raises(EnvironmentFault, match="holds I64, not F64, F32"):
        mq.load_layer(path, "qwen3", LAYER)


# ---- layers of a checkpoint


def changed(found, **changes):
    """Tensors, some of them replaced, and those that are None left out."""
    found = found | {f"{PREFIX}{name}": a for name, a in changes.items()}
    return {name: array for name, array in found.items() if array is not None}


@pytest.mark.parametrize("kind", [*SHIPPED, "deepseek-v3-no-rank"])
def test_a_tensor_that_is_missing_or_too_many(kind, tmp_path):
    found = tensors(arrays(kind))
    for name in found:
        short = name.removeprefix(PREFIX).removesuffix(".weight")
        with pytest.raises(EnvironmentFault, match=f"layer 1 of .*{short} is missing"):
            load(kind, tmp_path, {key: a for key, a in found.items() if key != name})
    more = found | {f"{PREFIX}q_proj.weight_scale_inv\x1b": np.ones(2)}
    with pytest.raises(EnvironmentFault, match=r"it has q_proj\.weight_scale_inv\ufffd"):
        load(kind, tmp_path, more)


@pytest.mark.parametrize(("kind", "other"), [
    ("qwen3", "deepseek-v3"), ("qwen3", "gemma4-global"), ("gemma4-global", "qwen3"),
    ("deepseek-v4", "deepseek-v3"), ("deepseek-v3", "deepseek-v4"), ("deepseek-v3", "qwen3"),
])  # fmt: skip
def test_a_checkpoint_of_another_kind(kind, other, tmp_path):
    path = write(tmp_path / "x.safetensors", tensors(arrays(kind)))
    with pytest.raises(EnvironmentFault, match=f"layer 1 of .* is not {other}: ") as caught:
        mq.load_layer(path, other, LAYER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [0, 2, 11])
def test_a_layer_that_is_not_there(layer, tmp_path):
    path = write(tmp_path / "x.safetensors", tensors(arrays("qwen3")))
    with pytest.raises(EnvironmentFault, match=f"no attention of layer {layer}") as caught:
        mq.load_layer(path, "qwen3", layer)
    assert "several files" in caught.value.hint


@pytest.mark.parametrize("layer", [-1, 1.0, "1", ".*", None, True])
def test_what_is_no_number_of_a_layer(layer, tmp_path):
    path = write(tmp_path / "x.safetensors", tensors(arrays("qwen3")))
    with pytest.raises(UsageError, match="numbered from 0"):
        mq.load_layer(path, "qwen3", layer)


def test_numbers_that_nothing_is_computed_in(tmp_path):
    path = write(tmp_path / "x.safetensors", tensors(arrays("qwen3")))
    with pytest.raises(UsageError, match="unknown dtype 'float16'"):
        mq.load_layer(path, "qwen3", LAYER, dtype="float16")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {"q_norm.weight": np.ones(7)}),
        ("qwen3", {"k_norm.weight": np.ones(16)}),
        ("qwen3", {"q_norm.weight": np.ones(0)}),
        ("qwen3", {"q_norm.weight": np.ones((2, 4))}),
        ("qwen3", {"q_proj.weight": np.ones(8)}),
        ("qwen3", {"k_proj.weight": np.ones((24, 24))}),
        ("qwen3", {"o_proj.weight": np.ones((24, 40))}),
        ("gemma4-global", {"o_proj.weight": np.ones((24, 60))}),
        ("deepseek-v3", {"kv_a_layernorm.weight": np.ones(36)}),
        ("deepseek-v3", {"kv_a_layernorm.weight": np.ones(37)}),
        ("deepseek-v3", {"kv_b_proj.weight": np.ones((48, 32))}),
        ("deepseek-v3", {"o_proj.weight": np.ones((24, 0))}),
        ("deepseek-v4", {"sinks": np.ones(5)}),
        ("deepseek-v4", {"sinks": np.ones(0)}),
        ("deepseek-v4", {"o_a_proj.weight": np.ones((12, 0))}),
        ("deepseek-v4", {"o_a_proj.weight": np.ones((12, 30))}),
        ("deepseek-v4", {"kv_norm.weight": np.ones(())}),
    ],
)
def test_tensors_that_do_not_fit_together(kind, changes, tmp_path):
    found = changed(tensors(arrays(kind)), **changes)
    with pytest.raises(EnvironmentFault, match="do not fit together") as caught:
        load(kind, tmp_path, found)
    assert "\n" not in str(caught.value)


def test_where_a_layer_may_be(tmp_path):
    """Under the names of a model alone, and of one with eyes, whose other layers are left alone."""
    found = arrays("gemma4-global")
    for prefix in ("layers.1.", "model.layers.1.", "language_model.model.layers.1.",
                   "model.language_model.layers.1."):  # fmt: skip
        moved = {name.replace("model.layers.1.", prefix): a for name, a in tensors(found).items()}
        moved |= {f"model.layers.1{n}.self_attn.q_proj.weight": np.ones((2, 2)) for n in range(3)}
        moved["vision_tower.encoder.layers.1.self_attn.v_proj.weight"] = np.ones((2, 2))
        layer = load("gemma4-global", tmp_path, moved)
        assert far(layer(Tensor(found["x"]), seen()), found["out"]) < 1e-12
    assert re.fullmatch("gemma4-global", layer.kind)


def test_half_precision(tmp_path):
    """As checkpoints are: the first 16 bits of a float32."""
    found = arrays("deepseek-v4")
    halves = {n: (a.astype("f4").view("u4") >> 16).astype("u2") for n, a in tensors(found).items()}
    path = safetensors_file.write(tmp_path / "x.safetensors", halves)
    layer = mq.load_layer(path, "deepseek-v4", LAYER, d_rope=8, block_size=16)
    assert layer.wk.weight.dtype == "float32"
    assert far(layer(Tensor(found["x"].astype("f4")), seen()), found["out"]) < 1e-5


def test_another_scale(tmp_path):
    """Scores of Gemma 3 may have a scale of their own; here, that of all others, by its number."""
    for name in ("gemma3", "deepseek-v3", "deepseek-v4", "qwen3"):
        found, width = arrays(name), {"deepseek-v3": 12, "deepseek-v4": 16}.get(name, 8)
        for scale, same in ((width**-0.5, True), (0.2, False)):
            layer = load(name, tmp_path, scale=scale)
            assert (far(layer(Tensor(found["x"]), seen()), found["out"]) < 1e-12) == same


def test_schemes_of_rows_that_turn_apart():
    assert schemes("gta-2") == [("rope", "raw")]
    assert [name for name, _ in schemes("mla")] == list(POSITIONS)
