"""Rotary positions with K = V: two ways that depend on distances alone, and the naive one that does
not.
"""

import numpy as np
import pytest
from toys import gpt, host, scramble

from minqkv import backend as backends
from minqkv.attention import Attention, causal_mask, rope_table
from minqkv.cache import LayerCache
from minqkv.functional import rotate, scaled_dot_product_attention, split_heads
from minqkv.nn import Init
from minqkv.runtime.errors import UsageError
from minqkv.tensor import Tensor
from minqkv.variants import VariantSpec

T, D, H, D_HEAD = 6, 24, 4, 6
ONE_STREAM = ("q-k=v", "q=k=v", "q-gqa-2", "q-mqa")
TWO_STREAMS = ("qkv", "q=k-v", "gqa-2", "mqa", "q=k-v+")
BOTH = [(spec, value) for spec in ONE_STREAM for value in ("raw", "unrotate")] + [
    (spec, "raw") for spec in TWO_STREAMS
]


def attention(spec, rope_value="raw", block_size=40):
    init = Init(dtype="float64")
    return scramble(
        Attention(spec, D, H, block_size, init, position="rope", rope_value=rope_value), std=0.6
    )


def stored(attn):
    """(heads, width) of each array that a cache keeps for this layer."""
    return [(attn.kv_heads, D_HEAD)] * attn.spec.streams


def inputs(rng, n=T):
    return Tensor(backends.upload(rng.standard_normal((2, n, D))))


def causal(n):
    return causal_mask(backends.xp.arange(n), backends.xp.arange(n))


def shift_tables(attn, shift):
    attn.angles = tuple(table[shift:] for table in attn.angles)


def naive(attn, x, mask):
    """Rotated keys used as values, and nothing undone (the mistake that "unrotate" undoes)."""
    cos, sin = (table[:T] for table in attn.angles)
    k = rotate(split_heads(attn.wk(x), attn.kv_heads), cos, sin)
    q = rotate(split_heads(attn.wq(x), H), cos, sin)
    return attn.wo(
        scaled_dot_product_attention(q, k, k, mask).transpose(0, 2, 1, 3).reshape(x.shape)
    )


def moved_by(forward, attn, x, shift):
    before = host(forward(x, causal(T)))
    shift_tables(attn, shift)
    return np.abs(host(forward(x, causal(T))) - before).max()


@pytest.mark.parametrize("shift", [1, 9, 34])
@pytest.mark.parametrize(("spec", "rope_value"), BOTH)
def test_only_distances_matter(spec, rope_value, shift, backend, rng):
    attn = attention(spec, rope_value)
    assert moved_by(attn, attn, inputs(rng), shift) < 1e-12


@pytest.mark.parametrize("shift", [1, 9, 34])
@pytest.mark.parametrize("spec", ["q-k=v", "q-gqa-2", "q-mqa"])
def test_the_naive_form_depends_on_where_it_stands(spec, shift, rng):
    attn = attention(spec)
    assert moved_by(lambda x, mask: naive(attn, x, mask), attn, inputs(rng), shift) > 0.3


@pytest.mark.parametrize("spec", ["q-k=v", "q-mqa"])
def test_distances_do_matter(spec, rng):
    """The tests above would pass on a model without positions: this one would not."""
    x = inputs(rng)
    turned, plain = (
        attention(spec),
        scramble(Attention(spec, D, H, T, Init(dtype="float64")), std=0.6),
    )
    assert np.abs(host(turned(x, causal(T))) - host(plain(x, causal(T)))).max() > 0.1
    unrotated = attention(spec, "unrotate")
    assert (
        np.abs(host(turned(x, causal(T))) - host(unrotated(x, causal(T)))).max() > 0.1
    )  # they are two functions


@pytest.mark.parametrize(("spec", "rope_value"), BOTH)
def test_decoding_behind_hidden_keys_is_decoding_at_the_start(spec, rope_value, backend, rng):
    """The same tokens in a cache whose first positions are other tokens, which a mask hides."""
    attn, x, junk = attention(spec, rope_value), inputs(rng), 7
    spec = VariantSpec.parse(spec)
    if spec.plus:
        pytest.skip('the column bias of "+" is for absolute positions')
    expected = host(attn(x, causal(T)))
    cache = LayerCache(2, stored(attn), 20, "float64")
    attn(inputs(rng, junk), None, cache)
    out = []
    for i, j in ((0, 3), (3, 4), (4, 6)):
        mask = np.ones((j - i, junk + j), bool)  # that no key ahead is seen is the cache's to say
        mask[:, :junk] = False
        out.append(host(attn(Tensor(x.data[:, i:j]), backends.upload(mask), cache)))
    np.testing.assert_allclose(np.concatenate(out, axis=1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ONE_STREAM)
def test_what_the_cache_holds(spec, backend, rng):
    """raw: unturned keys. unrotate: turned ones. Either way one stream, and the angles by hand,
    halves convention.
    """
    x = inputs(rng)
    raw = host(
        split_heads(attention(spec).wk(x), VariantSpec.parse(spec).stored_heads(H))
    )  # (B, h, T, d_h)
    angle = np.arange(T)[:, None] * 10_000.0 ** (-np.array([0, 2, 4]) / D_HEAD)
    a, b = raw[..., :3], raw[..., 3:]
    turned = np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1
    )
    for rope_value, expected in (("raw", raw), ("unrotate", turned)):
        attn = attention(spec, rope_value)
        cache = LayerCache(2, stored(attn), T, "float64")
        for i, j in ((0, 4), (4, 6)):
            attn(Tensor(x.data[:, i:j]), None, cache)
        (row,) = cache.rows
        np.testing.assert_allclose(host(row), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spec", TWO_STREAMS)
def test_with_two_streams_only_the_keys_turn(spec, rng):
    attn, x = attention(spec), inputs(rng)
    cache = LayerCache(2, stored(attn), T, "float64")
    attn(x, None, cache)
    k, v = (host(split_heads(linear(x), attn.kv_heads)) for linear in (attn.wk, attn.wv))
    turned = rotate(Tensor(k), *(table[:T] for table in attn.angles))
    np.testing.assert_allclose(host(cache.rows[0]), host(turned), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(host(cache.rows[1]), v)


@pytest.mark.parametrize(
    ("one", "two"), [("q-k=v", "qkv"), ("q=k=v", "q=k-v"), ("q-gqa-2", "gqa-2"), ("q-mqa", "mqa")]
)
def test_raw_is_two_streams_with_one_projection(one, two, backend, rng):
    """And its gradient is the sum of what the two projections get."""
    x, mask = inputs(rng), causal(T)
    shared, apart = attention(one), attention(two)
    apart.load_state_dict(
        shared.state_dict() | {f"wv.{name}": p for name, p in shared.wk.state_dict().items()}
    )
    y, z = shared(x, mask), apart(x, mask)
    np.testing.assert_allclose(host(y), host(z), rtol=0, atol=1e-13)
    cotangent = backends.upload(rng.standard_normal(x.shape))
    y.backward(cotangent)
    z.backward(cotangent)
    together = host(apart.wk.weight.grad) + host(apart.wv.weight.grad)
    np.testing.assert_allclose(host(shared.wk.weight.grad), together, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        host(shared.wo.weight.grad), host(apart.wo.weight.grad), rtol=0, atol=1e-11
    )


def test_unrotate_leaves_a_token_alone_as_it_is(rng):
    """One token sees itself only: turned and turned back, its output is wo(wk(x)), wherever it
    stands.
    """
    attn = attention("q-k=v", "unrotate")
    x = inputs(rng, 1)
    for shift in (0, 5, 30):
        np.testing.assert_allclose(host(attn(x)), host(attn.wo(attn.wk(x))), rtol=0, atol=1e-13)
        shift_tables(attn, shift)


def test_table_by_hand():
    cos, sin = rope_table(5, 4, "float64")
    np.testing.assert_allclose(host(cos), np.cos(np.outer(np.arange(5), [1, 0.01])))
    np.testing.assert_allclose(host(sin), np.sin(np.outer(np.arange(5), [1, 0.01])))


@pytest.mark.parametrize("changes", [{"rope_value": "rotated"}, {"n_head": 16}])
def test_refused(changes):
    with pytest.raises(UsageError, match=r"unknown rope_value|must be even"):
        gpt("q-k=v", position="rope", **changes)
