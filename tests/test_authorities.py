"""Layers of models that ship are equal to the models' own code: outputs, gradients, and decoding.

The arrays in tests/data/authorities come from transformers, whose modules made them without this
package (tests/support/make_authorities.py). GTA and GLA need a GPU of one kind to run; here their
steps are typed again from the released files (Dao-AILab/grouped-latent-attention, d008e74:
modeling_llama_GTA.py and modeling_llama_GLA.py), so this compares formulas and not programs.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors_file
from toys import host, scramble

import minqkv as mq
from minqkv import attention as attention_module
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.attention import Attention, causal_mask
from minqkv.cache import LayerCache
from minqkv.caches import RingCache
from minqkv.designs import checkpoints, layers
from minqkv.designs.layers import Sink, Slim
from minqkv.nn import Init
from minqkv.tensor import Tensor

FOLDER = Path(__file__).parent / "data" / "authorities"
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))
T, WINDOW, LAYER = 9, 4, 1
SIZES = {"deepseek-v4": {"d_rope": 8}}  # what tensors of this small layer do not show
BOUND = 1e-12  # relative to the largest number


def arrays(name):
    return dict(np.load(FOLDER / f"{name}.npz"))


def tensors(found):
    return {name: array for name, array in found.items() if name.startswith("model.")}


def load(name, tmp_path, found=None, **options):
    """The layer of a golden file, read from a checkpoint with its tensors."""
    path = tmp_path / "model.safetensors"
    safetensors_file.write(path, tensors(arrays(name)) if found is None else found)
    options = {"block_size": 32, "dtype": "float64"} | SIZES.get(name, {}) | options
    return mq.load_layer(path, name.removesuffix("-no-rank"), LAYER, **options)


def seen(window=T):
    at = backends.xp.arange(T)
    return causal_mask(at, at, window)


def far(found, expected):
    """The largest difference, relative to the largest number."""
    return np.abs(host(found) - expected).max() / np.abs(expected).max()


def new_cache(layer, x, kind=LayerCache, dtype="float64", **options):
    """An empty cache for the rows that this layer stores."""
    rows = layer.store(Tensor(x[:, :1]), slice(0, 1))
    return kind(len(x), [row.shape[1::2] for row in rows], 32, dtype, **options)


def decoded(layer, x, chunks, cache):
    """The output for these chunks, one after another, through a cache."""
    out, start = [], 0
    for n in chunks:
        out.append(host(layer(Tensor(x[:, start : start + n]), None, cache)))
        start += n
    return np.concatenate(out, axis=1)


def test_there_are_files():
    assert FILES == ["deepseek-v3", "deepseek-v3-no-rank", "deepseek-v4", "gemma3",
                     "gemma4-global", "qwen3"]  # fmt: skip


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("name", FILES)
def test_outputs_and_their_gradient(name, window, tmp_path, backend):
    found, start = arrays(name), "window." if window else ""
    layer = load(name, tmp_path)
    x = Tensor(backends.upload(found["x"]), requires_grad=True)
    out = layer(x, seen(window or T))
    out.backward(backends.upload(found["g"]))
    assert far(out, found[f"{start}out"]) < BOUND
    assert far(x.grad, found[f"{start}grad.x"]) < BOUND


@pytest.mark.parametrize("name", FILES)
def test_gradients_of_every_tensor(name, tmp_path):
    """A tensor's gradient is that of the layer's parameters, taken back through what made them of
    the tensor: each is a product of at most two numbers, so central differences are exact.
    """
    found, kind = arrays(name), name.removesuffix("-no-rank")
    layer = load(name, tmp_path)
    layer(Tensor(found["x"]), seen()).backward(found["g"])
    mine = {key: host(p.grad) for key, p in layer.named_parameters()}
    own = {key.split("self_attn.")[1].removesuffix(".weight"): a.copy()
           for key, a in tensors(found).items()}  # fmt: skip
    d_rope = SIZES.get(name, {}).get("d_rope")

    def state():
        made = checkpoints.KINDS[kind](own, d_rope, None)[1]
        return {key: array.copy() for key, array in made.items()}  # some are views

    for key in own:
        (full,) = [n for n in found if n.startswith("grad.model") and f".{key}." in f"{n}."]
        expected, array = found[full], own[key]
        made = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            ends = []
            for step in (0.5, -1.0):
                array[index] += step
                ends.append(state())
            array[index] += 0.5
            made[index] = sum(((ends[0][n] - ends[1][n]) * mine[n]).sum() for n in ends[0])
        assert far(made, expected) < 1e-11, key


@pytest.mark.parametrize("name", FILES)
def test_token_by_token_and_in_chunks(name, tmp_path, backend, rng):
    """Without a window, with one in a plain cache, and in a ring."""
    found = arrays(name)
    x = backends.upload(found["x"])
    for chunks in ([1] * T, [T], [4, 1, 3, 1]):
        layer = load(name, tmp_path)
        assert far(decoded(layer, x, chunks, new_cache(layer, x)), found["steps"]) < BOUND
        layer = load(name, tmp_path, window=WINDOW)
        plain = decoded(layer, x, chunks, new_cache(layer, x))
        ring = new_cache(layer, x, RingCache.layer_kind, window=WINDOW, sinks=0)
        assert far(plain, found["window.steps"]) < BOUND
        assert far(decoded(layer, x, chunks, ring), found["window.steps"]) < BOUND


@pytest.mark.parametrize("name", FILES)
def test_a_long_cache_of_another_dtype_is_read_in_blocks(name, tmp_path, monkeypatch):
    """A sink counts once, however many blocks there are."""
    monkeypatch.setattr("minqkv.online.BLOCK", 2)
    found, layer = arrays(name), load(name, tmp_path)
    cache = new_cache(layer, found["x"], dtype="float32")
    with mq.no_grad():
        out = decoded(layer, found["x"], [1] * T, cache)
    assert 1e-10 < far(out, found["steps"]) < 1e-5


@pytest.mark.parametrize(("name", "rows"), [
    ("qwen3", [(2, 8), (2, 8)]), ("gemma3", [(2, 8), (2, 8)]), ("gemma4-global", [(2, 16)]),
    ("deepseek-v3", [(1, 32), (1, 4)]), ("deepseek-v4", [(1, 16)]),
])  # fmt: skip
def test_bytes(name, rows, tmp_path):
    """What is stored is what the row of the table says: K = V is one row here."""
    layer, x = load(name, tmp_path), arrays(name)["x"]
    cache = new_cache(layer, x)
    decoded(layer, x, [5, 4], cache)
    assert [row.shape for row in cache.rows] == [(2, h, T, width) for h, width in rows]
    assert cache.nbytes == 2 * T * 8 * sum(h * width for h, width in rows)
    head_dim = layer.into.shape[1] if layer.spec.latent else rows[0][1]
    assert layer.spec.rows(4, head_dim, layer.d_rope) == rows


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v3-no-rank"])
def test_naive_latent_attention(name, tmp_path):
    """Each latent row made into the keys and values of all heads, as the model's own code does:
    the same as asking the row itself.
    """
    found, layer = arrays(name), load(name, tmp_path)
    x, at = Tensor(found["x"]), slice(0, T)
    c, r = layer.store(x, at)  # (B, 1, T, d_c), (B, 1, T, d_rope)
    q = layer.turn(F.split_heads(layer.wq(x), 4), at)
    k = F.concat([c @ layer.into.transpose(0, 2, 1), F.concat([r] * 4, axis=1)], axis=-1)
    z = F.scaled_dot_product_attention(q, k, c @ layer.out_of, seen())
    assert q.shape[-1] == k.shape[-1] == 12
    assert far(layer.wo(F.merge_heads(z)), found["out"]) < BOUND


# ---- mutants: what is easily got wrong is told from the authority


def no_back_rotation(layer):
    layer.turn_back = False


def gain_in_the_value(layer):
    read = layer.read
    layer.read = lambda rows, at=None: (read(rows, at)[0], rows[0] * layer.k_gain)


def gain_twice(layer):
    layer.k_gain.data *= layer.k_gain.data


def no_gain(layer):
    layer.k_gain.data[...] = 1


def another_base(layer):
    layer.angles = attention_module.rope_table(32, layer.d_rope, "float64", layer.rope_base * 10)


def turned_first(layer):
    layer.key = lambda k, at: layer.turn(k, at) * layer.k_gain


def turned_channels_first(layer):
    turn = layer.turn
    layer.turn = lambda x, at, back=False: turn(x[..., ::-1], at, back)[..., ::-1]


def no_sink(layer):
    layer.sink.data[...] = -1e9


def sink_in_every_value(layer):
    layer.mix = lambda q, k, v, mask, **plus: Attention.mix(layer, q, k, v, mask)


def root_of_the_row(layer):
    layer.root = 32**0.5


def turned_latent_row(layer):
    store = layer.store
    layer.store = lambda x, at: ((rows := store(x, at))[0] * 1.0, layer.turn(rows[1], at))


MUTANTS = {
    "deepseek-v4": [no_back_rotation, gain_twice, no_gain, another_base, turned_channels_first,
                    no_sink, sink_in_every_value, turned_first],
    "gemma4-global": [gain_in_the_value, gain_twice, no_gain, another_base, turned_channels_first,
                      turned_first],
    "deepseek-v3": [root_of_the_row, another_base, turned_latent_row],
    "qwen3": [gain_twice, no_gain, another_base, turned_channels_first, turned_first],
    "gemma3": [gain_twice, no_gain, another_base, turned_channels_first, turned_first],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mutant"), [(name, mutant) for name, all_of in MUTANTS.items() for mutant in all_of]
)
def test_mutants(name, mutant, tmp_path):
    found, layer = arrays(name), load(name, tmp_path)
    mutant(layer)
    assert far(layer(Tensor(found["x"]), seen()), found["out"]) > 1e-3


@pytest.mark.parametrize("name", FILES)
def test_where_eps_stands(name, tmp_path, monkeypatch):
    """Outside the root, or larger: by little, and by more than rounding."""
    found, layer = arrays(name), load(name, tmp_path)

    def outside(x, eps=1e-6):
        return x / ((x * x).mean(-1, keepdims=True).sqrt() + eps)

    for wrong in (outside, lambda x: F.rms_norm(x, 1e-5)):
        monkeypatch.setattr(attention_module, "rms_norm", wrong)
        assert far(layer(Tensor(found["x"]), seen()), found["out"]) > 1e-9


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v3-no-rank", "deepseek-v4"])
def test_swapped_pairs(name, tmp_path, monkeypatch):
    """Neighbours taken for halves."""
    monkeypatch.setattr(checkpoints, "_neighbours", lambda width, d_rope: np.arange(width))
    found = arrays(name)
    layer = load(name, tmp_path)
    assert far(layer(Tensor(found["x"]), seen()), found["out"]) > 1e-3


def test_pairs_of_gemma_reach_over_the_whole_head(tmp_path):
    """The first quarter turned as halves of its own is wrong, and so is the base of the whole."""
    found = arrays("gemma4-global")
    for wrong in ({"d_rope": 8}, {"rope_base": 1e6}):
        layer = load("gemma4-global", tmp_path, **wrong)
        assert far(layer(Tensor(found["x"]), seen()), found["out"]) > 1e-3


@pytest.mark.parametrize(("name", "other"), [("qwen3", "gemma3"), ("gemma3", "qwen3")])
def test_gains_of_two_kinds(name, other, tmp_path):
    """Gemma 3 stores a gain less 1, and the same names."""
    path = safetensors_file.write(tmp_path / "x.safetensors", tensors(arrays(name)))
    layer = mq.load_layer(path, other, LAYER, block_size=32, dtype="float64")
    found = arrays(name)
    assert far(layer(Tensor(found["x"]), seen()), found["out"]) > 1e-3


# ---- from released files, typed again


def rms(x, gain=1.0):
    return gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def heads(x, n):
    return x.reshape(*x.shape[:2], n, -1).transpose(0, 2, 1, 3)  # (B, n, T, d)


def turned(x, base=1e4):
    half = x.shape[-1] // 2
    angle = np.arange(T)[:, None] * base ** (-np.arange(half) / half)
    a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def causal_softmax(q, k, v, scale):
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) * scale, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    z = e / e.sum(-1, keepdims=True) @ v
    return z.transpose(0, 2, 1, 3).reshape(z.shape[0], T, -1)


def test_gta(rng):
    """The tied row's first part is half of the key; the other half is one turned row for all."""
    H, h, d_h, d_r, d = 4, 2, 8, 4, 24
    layer = scramble(Attention("gta-2", d, H, T, Init(dtype="float64"), bias=False, head_dim=d_h,
                               position="rope", d_rope=d_r))  # fmt: skip
    W, x = layer.state_dict(), rng.standard_normal((2, T, d))
    q, tied = heads(x @ W["wq.weight"], H), heads(x @ W["wk.weight"], h).repeat(H // h, axis=1)
    r = turned(heads(x @ W["wr.weight"], 1)).repeat(H, axis=1)
    q = np.concatenate([q[..., : d_h - d_r], turned(q[..., d_h - d_r :])], -1)
    k = np.concatenate([tied[..., : d_h - d_r], r], -1)
    expected = causal_softmax(q, k, tied, d_h**-0.5) @ W["wo.weight"]
    assert far(layer(Tensor(x), seen()), expected) < BOUND
    for mutant in (another_base, lambda layer: setattr(layer, "root", 12**0.5)):
        mutant(layer)
        assert far(layer(Tensor(x), seen()), expected) > 1e-3


def test_gla(rng):
    """Two latent rows of 2 d_h; the first half of the heads reads the first. Queries of low rank;
    gains, and keys and values made of the rows, as in the released file. The biases of its keys
    are equal for all keys of a query, so they change no weight.
    """
    H, d_h, d_r, d = 4, 8, 4, 24
    x = rng.standard_normal((2, T, d))
    shapes = {"qa": (d, 12), "gq": (12,), "qb": (12, H * (d_h + d_r)), "kv": (d, 4 * d_h),
              "r": (d, d_r), "g": (2, 2 * d_h), "up": (2, 2 * d_h, H // 2, 2 * d_h),
              "kb": (H, d_h), "o": (H * d_h, d)}  # fmt: skip
    W = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    q = heads(rms(x @ W["qa"], W["gq"]) @ W["qb"], H)
    q = np.concatenate([q[..., :d_h], turned(q[..., d_h:])], -1)
    c = rms(heads(x @ W["kv"], 2)) * W["g"][:, None]  # (B, 2, T, 2 d_h)
    kv = np.einsum("bltc,lche->blhte", c, W["up"]).reshape(2, H, T, 2 * d_h)
    r = turned(heads(x @ W["r"], 1)).repeat(H, axis=1)
    k = np.concatenate([kv[..., :d_h] + W["kb"][:, None], r], -1)
    expected = causal_softmax(q, k, kv[..., d_h:], (d_h + d_r) ** -0.5) @ W["o"]
    layer = Attention("gla-2", d, H, T, Init(dtype="float64"), bias=False, head_dim=d_h,
                      position="rope", d_rope=d_r)  # fmt: skip
    layer.wq = layers.LowRank(d, 12, H * (d_h + d_r), Init(dtype="float64"))
    up = (W["up"] * W["g"][:, :, None, None]).transpose(0, 2, 1, 3).reshape(H, 2 * d_h, 2 * d_h)
    layer.load_state_dict({
        "wq.down.weight": W["qa"], "wq.gain": W["gq"], "wq.up.weight": W["qb"],
        "wk.weight": W["kv"], "wr.weight": W["r"], "wo.weight": W["o"],
        "into": up[..., :d_h].swapaxes(1, 2), "out_of": up[..., d_h:]})  # fmt: skip
    assert far(layer(Tensor(x), seen()), expected) < BOUND
    assert far(decoded(layer, x, [4, 1, 4], new_cache(layer, x)), expected) < BOUND


def test_thin_keys(rng):
    H, h, d_k, d_v, d = 4, 2, 4, 6, 24
    layer = scramble(Attention("gqa-2-thin-4", d, H, T, Init(dtype="float64"), bias=False,
                               head_dim=d_v))  # fmt: skip
    W, x = layer.state_dict(), rng.standard_normal((2, T, d))
    q = heads(x @ W["wq.weight"], H)
    k, v = (heads(x @ W[f"w{n}.weight"], h).repeat(2, axis=1) for n in "kv")
    assert (k.shape[-1], v.shape[-1]) == (d_k, d_v)
    expected = causal_softmax(q, k, v, d_k**-0.5) @ W["wo.weight"]
    assert far(layer(Tensor(x), seen()), expected) < BOUND


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", ["none", "rope"])
def test_slim_is_the_layer_that_it_was_made_of(position, bias, rng, backend):
    whole = scramble(Attention("qkv", 24, 4, 32, Init(dtype="float64"), bias=bias,
                               position=position))  # fmt: skip
    slim, x = Slim(whole), Tensor(backends.upload(rng.standard_normal((2, T, 24))))
    expected = host(whole(x, seen()))
    assert far(slim(x, seen()), expected) < 1e-10
    cache = new_cache(slim, x.data)
    assert far(decoded(slim, x.data, [4, 1, 4], cache), expected) < 1e-10
    assert cache.nbytes * 2 == 2 * T * 2 * 24 * 8  # half of K and V
    assert isinstance(slim, Attention)
    assert not isinstance(slim, Sink)


# ---- live


def test_the_arrays_are_what_transformers_computes(tmp_path):
    """Where it is installed in the version that made them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if transformers.__version__ != "5.24.0":
        pytest.skip(f"transformers is {transformers.__version__}, not 5.24.0")
    script = Path(__file__).parent / "support" / "make_authorities.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=300)
    for name in FILES:
        again = dict(np.load(tmp_path / f"{name}.npz"))
        for key, array in arrays(name).items():
            assert far(again[key], array) < 1e-12, (name, key)
