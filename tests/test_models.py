"""What models refuse, what they hide, and that they compute the same on every backend."""

import numpy as np
import pytest
from toys import DESIGNS, EVERY, POSITIONS, design, gpt, gradients, host, tagger

from minqkv import backend as backends
from minqkv.attention import Attention
from minqkv.models import PROTOCOLS, TaggerConfig
from minqkv.runtime.errors import UsageError
from minqkv.runtime.tracing import trace


@pytest.mark.parametrize("variant", ["qkv", "q=k-v+", "q=k=v"])
def test_hide_self_hides_the_diagonal(variant, backend, rng):
    ids = rng.integers(0, 11, (2, 6))
    with trace() as t:
        tagger(variant, hide_self=True)(ids)
        tagger(variant)(ids)
    for layer in range(2):
        hidden, open_ = t.all(f"blocks.{layer}.attn.pattern")
        np.testing.assert_allclose(hidden.sum(-1), 1)
        assert (np.einsum("bhii->bhi", hidden) == 0).all()
        assert (np.einsum("bhii->bhi", open_) > 0).all()
        assert (hidden[..., ~np.eye(6, dtype=bool)] > 0).all()


def test_hide_self_of_one_token_is_refused():
    with pytest.raises(UsageError, match="two tokens"):
        TaggerConfig(10, 1, 1, 1, 8, hide_self=True)
    with pytest.raises(UsageError, match="two tokens"):
        tagger("qkv", hide_self=True)([[1]])


@pytest.mark.parametrize("make", [gpt, tagger])
@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([[0, 11]], "id 11 is outside 0..10"),
        ([[-1, 0]], "id -1 is outside 0..10"),
        ([[1 << 40]], "outside"),
        ([[0.0]], "integers"),
        ([[True]], "integers"),
        ([0, 1], "batch, length"),
        ([[]], "at least 1"),
        ([[[[0]]]], "batch, length"),
        ([[0] * 13], "13 tokens, but this model has 12 positions"),
    ],
)
def test_models_refuse_ids_out_of_range(make, ids, says, backend):
    model = make("qkv")
    with pytest.raises(UsageError, match=says):
        model(ids)
    model([[0, 10]])


def test_ids_of_several_channels_are_added_as_embeddings(backend, rng):
    model, ids = gpt("q-k=v"), rng.integers(0, 11, (2, 5, 2))
    found = model(ids)
    x = model.wte(ids[..., 0]) + model.wte(ids[..., 1])
    model.wte.forward, real = lambda _: x, model.wte.forward  # the sum in place of one embedding
    expected = host(model(ids[..., 0]))
    model.wte.forward = real
    np.testing.assert_allclose(host(found), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(host(model(ids[..., :1])), host(model(ids[..., 0])))
    cache = model.new_cache(2)
    parts = [host(model(part, cache=cache)) for part in (ids[:, :3], ids[:, 3:])]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), host(found), rtol=0, atol=1e-10)


def test_an_encoder_refuses_several_channels(backend):
    with pytest.raises(UsageError, match="batch, length"):
        tagger("qkv")([[[0, 1], [1, 2]]])


def test_logits_where_they_are_asked_for(backend, rng):
    model, ids = gpt("qkv"), rng.integers(0, 11, (3, 6))
    at = rng.random((3, 6)) < 0.4
    # Close, not equal: BLAS may round a product of fewer rows differently.
    np.testing.assert_allclose(host(model(ids, at=at)), host(model(ids))[at], 1e-12, 1e-14)
    for wrong in (at[:, :5], at[:2], at[0]):
        with pytest.raises(UsageError, match="do not fit ids"):
            model(ids, at=wrong)
    cache = model.new_cache(3)
    with pytest.raises(UsageError, match="without a cache"):
        model(ids, cache, at)
    assert len(cache) == 0


def test_an_mlp_can_be_left_out(rng):
    model, ids = gpt("qkv", d_ff=0), rng.integers(0, 11, (2, 5))
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "mlp" in name or "ln_2" in name]
    block, x = model.blocks[0], model.wpe(model.wte(ids))
    np.testing.assert_array_equal(host(block(x)), host(x + block.attn(block.ln_1(x))))
    for d_ff in (-1, 1.5, "8"):
        with pytest.raises(UsageError, match="d_ff must be "):
            gpt("qkv", d_ff=d_ff)


def test_ids_on_the_device_are_refused(backend):
    """They could not be checked without waiting for it."""
    ids = backends.upload(np.array([[1, 2]]))
    if isinstance(ids, np.ndarray):
        pytest.skip("the host is the device")
    with pytest.raises((UsageError, TypeError)):
        gpt("qkv")(ids)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("name", DESIGNS)
def test_numpy_and_strict_agree_on_a_gpt(name, position, rope_value):
    """Same parameters, same gradients on both: the strict backend runs the GPU's code."""
    agree(lambda: design(name, position=position, rope_value=rope_value))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", EVERY)
def test_numpy_and_strict_agree_on_a_tagger(variant, protocol):
    agree(lambda: tagger(variant, protocol=protocol))


def agree(build):
    found = []
    for name in ("numpy", "strict"):
        with backends.use_backend(name):
            found.append(gradients(build()))
    for name, g in found[0].items():
        np.testing.assert_allclose(g, found[1][name], rtol=1e-11, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("sinks", [0, 2])
def test_what_a_window_shows(sinks, backend, rng):
    """A window of three is the token and the two before it; and the first tokens, if asked."""
    with trace() as t:
        gpt("qkv", window=3, sinks=sinks)(rng.integers(0, 11, (2, 6)))
    seen = np.array([[j <= i and (i - j < 3 or j < sinks) for j in range(6)] for i in range(6)])
    for layer in range(2):
        pattern = t[f"blocks.{layer}.attn.pattern"]
        assert (pattern[..., seen] > 0).all()
        assert not pattern[..., ~seen].any()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"window": 0}, "window must be a whole number from 1 to"),
        ({"window": 2.0}, "window must be"),
        ({"window": "4"}, "window must be"),
        ({"window": 4, "sinks": -1}, "sinks must be a whole number from 0 to"),
        ({"window": 4, "sinks": None}, "sinks must be"),
        ({"sinks": 1}, "1 sinks without a window"),
    ],
)
def test_windows_that_cannot_be(values, says):
    with pytest.raises(UsageError, match=says):
        gpt("qkv", **values)
    with pytest.raises(UsageError, match=says):
        Attention("qkv", 8, 2, 8, **values)
