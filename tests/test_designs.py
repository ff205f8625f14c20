"""Designs that ship as rows of the table: partial rotation, norms, what turns apart, latent rows
and thin keys, in every cache, on every backend. tests/test_authorities.py compares them with the
models that they come from.
"""

import numpy as np
import pytest
from test_laws import KINDS as PLAIN
from test_laws import Branches
from toys import IDS, SHIPPED, design, gpt, gradients, host, scramble

from minqkv import Attention, KVCache, generate, gradcheck, trace
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.analysis.laws import LAWS, Case, laws, schemes
from minqkv.caches import Int8Cache
from minqkv.nn import Init
from minqkv.tensor import Tensor
from minqkv.variants import NAMES, VARIANTS, variant_names

ROWS = variant_names(2, 6, [name for name in VARIANTS if name not in NAMES])
KINDS = PLAIN | {"int8": (Int8Cache, None, 0)}
NORMED = [("qkv", {}), ("gqa-2", {"d_rope": 2}), ("q-k=v", {}), ("q-mqa", {"d_rope": 2}),
          ("q=k=v", {"rope_base": 30.0}), ("gta-2", {}), ("mla", {"d_rope": 6})]  # fmt: skip


def broken(kind, *about, make=Case, **fields):
    """Law -> error or fault, for the laws that are broken at 1e-10."""
    found = laws(make(kind, *about, **fields))
    return {law: fault or error for law, error, fault in found if fault or not error <= 1e-10}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("variant", ROWS)
def test_laws(variant, name):
    kind, window, sinks = KINDS[name]
    for position, value in schemes(variant):
        assert broken(kind, variant, position, value, window, sinks) == {}, (position, value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("variant", "fields"), NORMED)
def test_laws_with_norms_and_partial_rotation(variant, fields, name):
    kind, window, sinks = KINDS[name]
    for position, value in schemes(variant):
        if position == "rope" or not fields:
            about = variant, position, value, window, sinks
            assert broken(kind, *about, norm=True, **fields) == {}, (position, value)
    assert len(LAWS) == 6


@pytest.mark.parametrize("variant", ROWS)
def test_laws_of_branches(variant):
    for position, value in schemes(variant):
        assert broken(KVCache, variant, position, value, make=Branches) == {}, (position, value)


def test_every_row_has_a_design():
    assert {name.split("-")[0] for name in ROWS} <= {name.split("-")[0] for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_gradients_are_those_of_the_function(name, backend, rng):
    layer = design(name, n_layer=len(SHIPPED[name]["variant"].split("/"))).blocks[-1].attn
    x = Tensor(backends.upload(rng.standard_normal((2, 5, 16))), requires_grad=True)
    mask = backends.upload(np.tri(5, dtype=bool))
    assert gradcheck(lambda x, *_: layer(x, mask), x, *layer.parameters()) < 1e-6


@pytest.mark.parametrize("name", SHIPPED)
def test_numpy_and_strict_agree(name):
    found = []
    for kind in ("numpy", "strict"):
        with backends.use_backend(kind):
            model = design(name)
            g, cache = gradients(model), model.new_cache(2)
            steps = [host(model(IDS[:, i : i + 2], cache=cache)) for i in (0, 2)]
            found.append(g | {"steps": np.concatenate(steps, axis=1)})
    for key, array in found[0].items():
        np.testing.assert_allclose(array, found[1][key], rtol=1e-11, atol=1e-11, err_msg=key)


@pytest.mark.parametrize("name", SHIPPED)
def test_float32_stays_float32(name, backend, rng):
    model, ids = design(name, dtype="float32"), rng.integers(0, 11, (2, 7))
    cache = model.new_cache(2)
    with trace() as t:
        logits = [host(model(ids[:, i:j], cache=cache)) for i, j in ((0, 5), (5, 6), (6, 7))]
    assert {array.dtype.name for probe in t for array in t.all(probe)} == {"float32"}
    found = np.concatenate(logits, axis=1)
    np.testing.assert_allclose(found, host(model(ids)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_generation_and_recomputation(name, rng):
    model, prompt = design(name), rng.integers(0, 11, (3, 4))
    model.ln_f.weight.data *= -1  # else the tied head repeats the last token
    cached, uncached = (generate(model, prompt, 8, use_cache=use) for use in (True, False))
    np.testing.assert_array_equal(cached, uncached)
    plain, again = (gradients(design(name, recompute=way)) for way in (False, True))
    for key, g in plain.items():
        np.testing.assert_array_equal(g, again[key])


def test_what_is_stored(rng):
    """One row, and what turns beside it: the same for all heads, and what it is called."""
    model = design("gta-2")
    cache = model.new_cache(3)
    with trace() as t:
        model(rng.integers(0, 11, (3, 5)), cache=cache)
    assert [row.shape for row in cache.layers[0].rows] == [(3, 2, 5, 4), (3, 1, 5, 2)]
    names = {probe.rsplit(".", 1)[1] for probe in t if ".cache." in probe}
    assert names == {"k", "r"}
    k, v = t.all("blocks.1.attn.k")[-1], t.all("blocks.1.attn.v")[-1]
    np.testing.assert_array_equal(k[..., :2], v[..., :2])  # tied, but for what turns
    np.testing.assert_array_equal(k[:, 0, :, 2:], k[:, 1, :, 2:])
    assert np.abs(k[..., 2:] - v[..., 2:]).min() > 0


def test_mla_is_q_mqa_in_two_steps(rng):
    """A latent row of which every matrix is the identity, and nothing that turns, is q-mqa with
    normed rows.
    """
    init = Init(3, "float64")
    mla = Attention("mla", 16, 4, 8, init, head_dim=4)
    mqa = Attention("q-mqa", 16, 4, 8, init, head_dim=16)
    x = Tensor(rng.standard_normal((2, 5, 16)))
    eye = np.stack([np.eye(4, 16, 4 * i) for i in range(4)])  # head i reads channels 4i to 4i + 3
    state = mla.state_dict() | {"into": eye, "out_of": eye.swapaxes(1, 2)}
    mla.load_state_dict(state)
    z = mla(x)
    wq = state["wq.weight"].reshape(16, 4, 4)
    wide = np.einsum("nhd,hdr->nhr", wq, eye).reshape(16, 64)
    wo = np.einsum("hrd,hdn->hrn", eye.swapaxes(1, 2), state["wo.weight"].reshape(4, 4, 16))
    bias = np.einsum("hd,hdr->hr", state["wq.bias"].reshape(4, 4), eye).reshape(64)
    mqa.load_state_dict({"wq.weight": wide, "wq.bias": bias, "wk.weight": state["wk.weight"],
                         "wk.bias": state["wk.bias"], "wo.weight": wo.reshape(64, 16),
                         "wo.bias": state["wo.bias"]})  # fmt: skip
    mqa.store = lambda x, at: (F.rms_norm(F.split_heads(mqa.wk(x), 1)),)
    mqa.root = mla.root
    np.testing.assert_allclose(host(z), host(mqa(x)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scheme", ["gpt2", "uniform", "xavier"])
def test_the_matrices_of_a_latent_row_start_by_the_scheme(scheme):
    layer = Attention("mla", 64, 8, 8, Init(0, "float64", scheme))
    for p, fan_in, fan_out in ((layer.into, 8, 32), (layer.out_of, 32, 8)):
        std = {"gpt2": 0.02, "uniform": (3 * fan_in) ** -0.5,
               "xavier": (2 / (fan_in + fan_out)) ** 0.5}[scheme]  # fmt: skip
        assert p.shape == (8, fan_in, fan_out)
        assert host(p).std() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("variant", ["gta-2", "gla-2", "mla"])
def test_what_stands_apart_has_no_choice_of_what_is_stored(variant, rng):
    """The row never turns: "raw" and "unrotate" are one model."""
    x, found = Tensor(rng.standard_normal((2, 5, 16))), []
    for rope_value in ("raw", "unrotate"):
        layer = Attention(variant, 16, 4, 8, Init(0, "float64"), position="rope", norm=True,
                          rope_value=rope_value)  # fmt: skip
        found.append(host(scramble(layer)(x)))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "q=k=v", "q-mqa", "gta-2", "mla"])
def test_every_gain_matters(variant, rng):
    """To the output, and in any choice of what is stored. Keys of mean square 1 change nothing if
    the row grows.
    """
    x = Tensor(rng.standard_normal((2, 5, 16)))
    for rope_value in ("raw", "unrotate"):
        layer = scramble(Attention(variant, 16, 4, 8, Init(0, "float64"), position="rope",
                                   norm=True, bias=False, rope_value=rope_value))  # fmt: skip
        before = host(layer(x))
        gains = {name for name, _ in layer.named_parameters() if "gain" in name}
        assert gains == {"q_gain", "k_gain"} - {"q=k=v": {"q_gain"}, "mla": {"k_gain"}}.get(
            variant, set()
        )
        layer.wk.weight.data *= 7.0
        np.testing.assert_allclose(host(layer(x)), before, rtol=0, atol=1e-5)
        for name in gains:
            gain = getattr(layer, name)
            gain.data *= 1.5
            assert np.abs(host(layer(x)) - before).max() > 1e-3, name
            gain.data /= 1.5


@pytest.mark.parametrize("variant", ["qkv", "q-mqa", "gta-2", "mla"])
def test_positions_beyond_the_tables(variant, rng):
    """Tables that grow have the base and the width of those that were there."""
    about = {"position": "rope", "rope_base": 30.0, "d_rope": 4, "n_layer": 1}
    short, long = (gpt(variant, block_size=n, **about) for n in (4, 40))
    ids = rng.integers(0, 11, (2, 30))
    cache = short.new_cache(2, 30)
    steps = [host(short(ids[:, i : i + 3], cache=cache)) for i in range(0, 30, 3)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), host(long(ids)), rtol=0, atol=1e-10)
