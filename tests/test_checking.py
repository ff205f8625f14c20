"""gradcheck finds a wrong backward, and a right one passes: for operations, for each variant's
Attention, and for whole models by every position scheme.
"""

import numpy as np
import pytest
from toys import EVERY, POSITIONS, host

from minqkv import backend as backends
from minqkv import functional as F
from minqkv import gradcheck
from minqkv.checking import GradcheckError
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig
from minqkv.tensor import make


def zero_softmax(x):
    y = F.softmax(x.detach())
    return make(y.data, (x,), lambda g, wanted: (backends.xp.zeros_like(g),))


def test_a_softmax_backward_of_zeros(backend, leaf):
    """A cotangent of ones cannot tell it from the right one: both give zeros, as every row sums to
    one. gradcheck can.
    """
    x = leaf(3, 4)
    found = []
    for softmax in (F.softmax, zero_softmax):
        x.zero_grad()
        softmax(x).backward(backends.xp.ones(x.shape))
        found.append(host(x.grad))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-15)
    with pytest.raises(GradcheckError, match="gradient of input 0"):
        gradcheck(zero_softmax, x)


WRONG = {
    "forgets its factor": lambda x, y: make(
        x.data * y.data, (x, y), lambda g, wanted: (g * y.data, g)
    ),
    "swaps its inputs": lambda x, y: make(
        x.data * y.data, (x, y), lambda g, wanted: (g * x.data, g * y.data)
    ),
    "loses one of two uses": lambda x, y: make(
        x.data * x.data + y.data, (x, y), lambda g, wanted: (g * x.data, g)
    ),
    "off by a millionth": lambda x, y: make(
        x.data + y.data, (x, y), lambda g, wanted: (g, g * (1 + 1e-5))
    ),
    "no gradient": lambda x, y: make(x.data + y.data, (x, y), lambda g, wanted: (g, None)),
    "keeps a broadcast row": lambda x, y: make(
        x.data + y.data, (x, y), lambda g, wanted: (g, g - g.mean(axis=0, keepdims=True))
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_gradcheck_finds_a_wrong_backward(backend, leaf, name):
    with pytest.raises(GradcheckError):
        gradcheck(WRONG[name], leaf(3, 4), leaf(3, 4))


def test_gradcheck_wants_float64_and_restores_its_inputs(backend, leaf):
    with pytest.raises(TypeError, match="float64"):
        gradcheck(F.exp, leaf(2, dtype="float32"))
    x = leaf(2, 3)
    before = host(x).copy()
    assert 0 <= gradcheck(F.exp, x) < 1e-7
    np.testing.assert_array_equal(host(x), before)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", EVERY)
def test_a_whole_gpt(variant, position, rope_value, hardware, rng):
    cfg = GPTConfig(
        7, 5, 1, 4, 8, variant, position=position, rope_value=rope_value, d_ff=8, dtype="float64"
    )
    model, ids = GPT(cfg), rng.integers(0, 7, (2, 5))
    for p in model.parameters():  # away from zero, where mistakes hide
        p.data += backends.upload(0.3 * rng.standard_normal(p.shape))
    assert gradcheck(lambda *_: model(ids), *model.parameters()) < 1e-7


@pytest.mark.parametrize("protocol", ["2023", "2026"])
@pytest.mark.parametrize("variant", ["qkv", "q=k=v+"])
def test_a_whole_tagger(variant, protocol, backend, rng):
    model = Tagger(TaggerConfig(5, 4, 1, 2, 8, variant, protocol, dtype="float64")).eval()
    ids = rng.integers(0, 5, (2, 4))
    assert gradcheck(lambda *_: model(ids), *model.parameters()) < 1e-6
