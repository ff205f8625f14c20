"""A long cache read in parts, on one thread or several, gives the tokens of one pass."""

import itertools
import threading

import numpy as np
import pytest
from toys import TEN, gpt, host

from minqkv import reference
from minqkv.runtime import backend, parallel, split_k
from minqkv.runtime.tracing import trace
from minqkv.tensor import Tensor

LENGTH = 12
SCHEMES = {
    "learned": {},
    "rope raw": {"position": "rope"},
    "rope unrotate": {"position": "rope", "rope_value": "unrotate"},
}


@pytest.fixture
def eager(monkeypatch):
    """Parts for every cache, however short."""
    monkeypatch.setattr(split_k, "LEAST", 1)
    monkeypatch.setattr(split_k, "PIECE", 512)
    monkeypatch.setattr(backend, "LONG", 1)
    yield
    parallel.set_threads(1)


@pytest.fixture
def parts(monkeypatch):
    """The numbers of positions in each part that was read, call by call."""
    seen, unfinished = [], split_k.unfinished

    def noting(q, k, v, bias=None):
        seen.append(k.shape[2])
        return unfinished(q, k, v, bias)

    monkeypatch.setattr(split_k, "unfinished", noting)
    return seen


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("one_stream", [False, True], ids=["K, V", "K = V"])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_parts_joined_are_the_whole(size, one_stream, with_bias, rng):
    q, k = size * rng.standard_normal((2, 4, 1, 8)), rng.standard_normal((2, 2, 11, 8))
    v = k if one_stream else rng.standard_normal((2, 2, 11, 5))  # values of a width of their own
    bias = size * rng.standard_normal(11) if with_bias else None
    whole = reference.scaled_dot_product_attention(
        *map(Tensor, (q, k, v)), scale=1.0, bias=None if bias is None else Tensor(bias)
    )
    for cuts in ([0, 11], [0, 5, 11], [0, 1, 2, 10, 11]):
        rows, found = q.reshape(2, 2, 2, 8), []
        for a, b in itertools.pairwise(cuts):
            some_bias = None if bias is None else bias[a:b]
            found.append(split_k.unfinished(rows, k[:, :, a:b], v[:, :, a:b], some_bias))
        joined = split_k.join(found).reshape(whole.shape)
        np.testing.assert_allclose(joined, whole.data, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variant", TEN)
def test_cached_is_uncached_in_parts(variant, scheme, threads, rng, parts):
    parallel.set_threads(threads)
    model = gpt(variant, **SCHEMES[scheme])
    ids = rng.integers(0, 11, (2, LENGTH))
    cache, logits = model.new_cache(2), []
    for step in [4, 1, 1, 2, *[1] * 4]:
        start = len(cache)
        logits.append(host(model(ids[:, start : start + step], cache=cache)))
    np.testing.assert_allclose(np.concatenate(logits, axis=1), host(model(ids)), rtol=0, atol=1e-10)
    assert bool(parts) == (threads > 1 or (len(cache.stored) == 1 and scheme != "rope raw"))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "q=k-v+"])
def test_bits_depend_on_the_number_of_threads_alone(variant, rng):
    ids, found = rng.integers(0, 11, (2, LENGTH)), {}
    for threads in (2, 3, 2, 3):
        parallel.set_threads(threads)
        model = gpt(variant, dtype="float32")
        cache = model.new_cache(2)
        model(ids[:, :-1], cache=cache)
        found.setdefault(threads, []).append(host(model(ids[:, -1:], cache=cache)))
    for first, again in found.values():
        np.testing.assert_array_equal(first, again)


def test_who_reads_what(rng, monkeypatch, parts):
    """Parts pay from LEAST bytes on; rows that are key and value come in pieces of PIECE bytes."""
    monkeypatch.setattr(backend, "LONG", 1)
    k, v, q = *rng.standard_normal((2, 1, 2, 40, 8)), rng.standard_normal((1, 4, 1, 8))
    monkeypatch.setattr(split_k, "LEAST", 2 * k.nbytes)
    assert split_k.attend(backend.current, q, k, v) is None  # one thread, one pass
    try:
        parallel.set_threads(3)
        whole = split_k.attend(backend.current, q, k, v)
        assert sorted(parts) == [13, 13, 14]
        parts.clear()
        monkeypatch.setattr(split_k, "LEAST", 2 * k.nbytes + 1)
        assert split_k.attend(backend.current, q, k, v) is None
        assert not parts
        monkeypatch.setattr(split_k, "PIECE", k.nbytes // 4)
        split_k.attend(backend.current, q, k, k)
        assert parts == [10] * 4
    finally:
        parallel.set_threads(1)
    np.testing.assert_allclose(
        whole,
        reference.scaled_dot_product_attention(*map(Tensor, (q, k, v)), scale=1.0).data,
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.usefixtures("eager")
def test_only_a_token_that_is_decoded_is_read_in_parts(rng, parts):
    parallel.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, LENGTH))
    cache = model.new_cache()
    model(ids[:, :5], cache=cache)  # a text that is read
    model(ids[:, :1])  # a text of one token, whose gradient may be wanted
    assert not parts
    with trace() as seen:  # a trace shows every step
        model(ids[:, 5:6], cache=cache)
    assert not parts
    assert seen["blocks.0.attn.pattern"].shape == (1, 4, 1, 6)
    model(ids[:, 6:7], cache=cache)
    assert sorted(parts) == [3, 3, 4, 4]  # of seven positions, in two layers


@pytest.mark.usefixtures("eager")
def test_unturned_keys_are_turned_first(rng, parts):
    parallel.set_threads(2)
    model, ids = gpt("q-k=v", position="rope"), rng.integers(0, 11, (1, LENGTH))
    cache = model.new_cache()
    model(ids[:, :-1], cache=cache)
    last = host(model(ids[:, -1:], cache=cache))
    assert parts
    np.testing.assert_allclose(last, host(model(ids))[:, -1:], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_cache_of_another_dtype(dtype, rng, parts):
    ids, found = rng.integers(0, 11, (1, LENGTH)), []
    for threads in (1, 3):
        parallel.set_threads(threads)
        model = gpt("qkv", dtype="float32")
        cache = model.new_cache(dtype=dtype)
        model(ids[:, :-1], cache=cache)
        found.append(host(model(ids[:, -1:], cache=cache)))
        assert found[-1].dtype == "float32"
    assert parts
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_that_is_wanted_is_there(frozen, rng, parts):
    """Attention of one token by hand, with a cache and a graph."""
    parallel.set_threads(2)
    attn = gpt("qkv").blocks[0].attn
    cache = gpt("qkv").new_cache().layers[0]
    x = Tensor(rng.standard_normal((1, 6, 16)))
    if frozen:
        for p in attn.parameters():
            p.node = None
    attn(x, None, cache)
    out = attn(Tensor(x.data[:, :1]), None, cache)
    assert bool(parts) == frozen
    if not frozen:
        out.backward(np.ones(out.shape))
        assert np.abs(attn.wq.weight.grad).max() > 0


@pytest.mark.usefixtures("eager")
def test_an_interrupted_token_leaves_nothing_behind(rng, monkeypatch):
    parallel.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, LENGTH))
    cache = model.new_cache()
    model(ids[:, :-1], cache=cache)
    expected = host(model(ids[:, -1:], cache=cache))
    cache.trim(LENGTH - 1)
    calls, join = itertools.count(), split_k.join

    def interrupted(found):
        if next(calls) == 1:  # in the second layer
            raise KeyboardInterrupt
        return join(found)

    monkeypatch.setattr(split_k, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(ids[:, -1:], cache=cache)
    assert [len(layer) for layer in cache.layers] == [LENGTH - 1] * 2
    np.testing.assert_array_equal(host(model(ids[:, -1:], cache=cache)), expected)


@pytest.mark.usefixtures("eager")
def test_threads_decode_while_another_changes_their_number(rng):
    model, ids = gpt("qkv"), rng.integers(0, 11, (4, 1, LENGTH))
    alone, faults = [host(model(row)) for row in ids], []

    def decode(i):
        try:
            for _ in range(5):
                cache = model.new_cache()
                logits = [host(model(ids[i][:, j : j + 1], cache=cache)) for j in range(LENGTH)]
                np.testing.assert_allclose(
                    np.concatenate(logits, axis=1), alone[i], rtol=0, atol=1e-10
                )
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=decode, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for n in (2, 1, 3, 2, 1) * 4:
        parallel.set_threads(n)
    for thread in threads:
        thread.join()
    assert not faults
