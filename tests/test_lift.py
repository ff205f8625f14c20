"""A lifted model computes what the original does, with and without a cache, at the same bytes."""

import numpy as np
import pytest

from minqkv import GPT, GPTConfig
from minqkv.analysis.lift import lift
from minqkv.runtime.errors import UsageError
from minqkv.runtime.rng import stream

IDS = stream(0, "ids").integers(0, 11, (3, 9))


def model(variant, position, **size):
    size = {"n_layer": 2, "n_head": 4, "n_embd": 24, "head_dim": 4, "dtype": "float64"} | size
    made = GPT(GPTConfig(11, 12, variant=variant, position=position, **size), seed=1)
    for p in made.parameters():  # as far from symmetric as can be: norms and biases too
        p.data[...] += stream(1, "noise", p.size).standard_normal(p.shape) * 0.3
    return made


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none", "rope"])
@pytest.mark.parametrize("variant", ["qkv", "gqa-2", "mqa", "qkv/mqa"])
def test_it_computes_the_same(variant, position):
    original = model(variant, position)
    twin = lift(original)
    assert all(spec.streams == 1 for spec in twin.config.specs)
    assert twin.config.head_dim == 8
    expected = original(IDS).data
    assert abs(expected).max() > 1
    np.testing.assert_allclose(twin(IDS).data, expected, rtol=0, atol=1e-12)
    caches = [m.new_cache(len(IDS)) for m in (original, twin)]
    for part in (IDS[:, :4], IDS[:, 4:5], IDS[:, 5:]):
        a, b = (m(part, cache=c).data for m, c in zip((original, twin), caches, strict=True))
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)
    assert caches[0].nbytes == caches[1].nbytes > 0


@pytest.mark.parametrize(("thin", "head_dim"), [(1, 3), (2, 4), (5, 2)])
def test_every_split_of_a_row(thin, head_dim):
    original = model(f"thin-{thin}", "learned", head_dim=head_dim, bias=False)
    twin = lift(original)
    assert twin.config.head_dim == thin + head_dim
    np.testing.assert_allclose(twin(IDS).data, original(IDS).data, rtol=0, atol=1e-12)


def test_float32_to_rounding():
    original = model("qkv", "rope", dtype="float32")
    expected = original(IDS).data
    np.testing.assert_allclose(lift(original)(IDS).data, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("variant", "position", "head_dim"),
    [("q-k=v", "none", 4), ("q=k-v", "none", 4), ("qkv/q-k=v", "none", 4), ("thin-4", "rope", 6)],
)
def test_what_has_no_twin_is_refused(variant, position, head_dim):
    with pytest.raises(UsageError, match=r"no twin|lacks the frequencies"):
        lift(model(variant, position, head_dim=head_dim))


def test_the_original_is_left_as_it_was():
    original = model("qkv", "learned")
    before = original.state_dict()
    lift(original)
    assert all((before[name] == array).all() for name, array in original.state_dict().items())
