"""What models refuse, what they hide, and that they compute the same on every backend."""

import numpy as np
import pytest
from toys import POSITIONS, TEN, gpt, gradients, tagger

from minqkv import backend as backends
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
        ([[0] * 13], "13 tokens, but this model has 12 positions"),
    ],
)
def test_models_refuse_ids_out_of_range(make, ids, says, backend):
    model = make("qkv")
    with pytest.raises(UsageError, match=says):
        model(ids)
    model([[0, 10]])


def test_ids_on_the_device_are_refused(backend):
    """They could not be checked without waiting for it."""
    ids = backends.upload(np.array([[1, 2]]))
    if isinstance(ids, np.ndarray):
        pytest.skip("the host is the device")
    with pytest.raises((UsageError, TypeError)):
        gpt("qkv")(ids)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", TEN)
def test_numpy_and_strict_agree_on_a_gpt(variant, position, rope_value):
    """Same parameters, same gradients on both: the strict backend runs the GPU's code."""
    agree(lambda: gpt(variant, position=position, rope_value=rope_value))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", TEN)
def test_numpy_and_strict_agree_on_a_tagger(variant, protocol):
    agree(lambda: tagger(variant, protocol=protocol))


def agree(build):
    found = []
    for name in ("numpy", "strict"):
        with backends.use_backend(name):
            found.append(gradients(build()))
    for name, g in found[0].items():
        np.testing.assert_allclose(g, found[1][name], rtol=1e-11, atol=1e-11, err_msg=name)
