"""Tokens decoded by several processes are those of one, to rounding, whatever happens to the cache in between."""

import gc
import itertools
import os
import signal

import numpy as np
import pytest
from test_cache import SCHEMES, T, decode, prefill_then_tokens, token_by_token, trim_and_redo
from test_shards import alive
from toys import TEN, gpt, host

from minqkv import composed, reading, workers
from minqkv.errors import EnvironmentFault
from minqkv.tensor import Tensor
from minqkv.tracing import trace

forks = pytest.mark.skipif(not workers.CAN_FORK, reason="this system has no safe fork: one process decodes")


@pytest.fixture
def eager(monkeypatch):
    """Workers for every cache, however small."""
    monkeypatch.setattr(reading, "LEAST", 1)
    yield
    workers.set_threads(1)


@pytest.mark.parametrize("far", [1, 1 << 19], ids=["head by head", "all heads at once"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("one_stream", [False, True], ids=["K, V", "K = V"])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_parts_joined_are_the_whole(size, one_stream, with_bias, far, rng, monkeypatch):
    monkeypatch.setattr(reading, "FAR", far)
    q, k = size * rng.standard_normal((2, 4, 1, 8)), rng.standard_normal((2, 2, 11, 8))
    v, bias = k if one_stream else rng.standard_normal(k.shape), size * rng.standard_normal(11) if with_bias else None
    whole = composed.scaled_dot_product_attention(*map(Tensor, (q, k, v)), scale=1.0, bias=bias if bias is None else Tensor(bias))
    for cuts in ([0, 11], [0, 5, 11], [0, 1, 2, 10, 11]):
        parts = []
        for start, stop in itertools.pairwise(cuts):
            keys = k[:, :, start:stop]
            values = keys if one_stream else v[:, :, start:stop]
            parts.append(reading.part(q.reshape(2, 2, 2, 8), keys, values, bias if bias is None else bias[start:stop]))
        found = reading.join(*map(np.stack, zip(*parts, strict=True))).reshape(q.shape)
        np.testing.assert_allclose(found, whole.data, rtol=0, atol=1e-12)


def test_heads_are_taken_one_by_one_where_they_are_large(rng, monkeypatch):
    keys, scaled, sizes = rng.standard_normal((2, 3, 11, 8)), rng.standard_normal((2, 3, 1, 8)), []
    bmm = reading.backend.bmm
    monkeypatch.setattr(reading.backend, "bmm", lambda a, b: sizes.append(b.size) or bmm(a, b))
    monkeypatch.setattr(reading, "FAR", keys[0, 0].nbytes)
    reading.part(scaled, keys, keys)
    assert sizes == [keys.size] * 2
    sizes.clear()
    monkeypatch.setattr(reading, "FAR", keys[0, 0].nbytes - 1)
    reading.part(scaled, keys, keys.copy())
    assert sizes == [keys.size] * 2
    sizes.clear()
    reading.part(scaled, keys, keys)
    assert sizes == [keys[0, 0].size] * 12


@forks
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("read", [token_by_token, prefill_then_tokens, trim_and_redo])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variant", TEN)
def test_cached_is_uncached_with_workers(variant, scheme, read, threads, rng):
    workers.set_threads(threads)
    model = gpt(variant, **SCHEMES[scheme])
    ids = rng.integers(0, 11, (2, T))
    np.testing.assert_allclose(read(model, ids, rng), host(model(ids)), rtol=0, atol=1e-10)


@pytest.fixture
def asked(monkeypatch):
    """Every question sent to workers: (layer, start, stop)."""
    questions, ask = [], workers.Crew.ask

    def noting(self, tuples, answered=True):
        questions.extend(question[:3] for question in tuples)
        ask(self, tuples, answered)

    monkeypatch.setattr(workers.Crew, "ask", noting)
    return questions


@forks
@pytest.mark.usefixtures("eager")
def test_who_reads_what(asked, rng):
    workers.set_threads(3)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    decode(model, cache, ids[:, :9], [9])
    assert not asked  # a text that is read is no token that is decoded
    decode(model, cache, ids[:, 9:10], [1])
    assert asked == [(-1, 0, 0)] * 2 + [(0, 0, 3), (0, 3, 6), (1, 0, 3), (1, 3, 6)]  # of ten positions


@forks
@pytest.mark.usefixtures("eager")
def test_the_same_number_of_threads_gives_the_same_bits(rng):
    ids, model = rng.integers(0, 11, (2, T)), gpt("q-k=v")
    found = []
    for _ in range(2):
        workers.set_threads(2)
        found.append(prefill_then_tokens(model, ids, rng))
    assert (found[0] == found[1]).all()


@forks
@pytest.mark.usefixtures("eager")
def test_workers_are_forked_anew_as_a_cache_grows_and_when_it_was_cut(asked, rng):
    workers.set_threads(2)
    model, ids = gpt("qkv", block_size=40), rng.integers(0, 11, (1, 40))
    cache, crews, shares = model.new_cache(), {}, []
    for n in range(40):
        asked.clear()
        decode(model, cache, ids[:, n : n + 1], [1])
        shares.append(max(stop for _, _, stop in asked))
        crews.setdefault(workers.crew_of(cache), n)
    assert list(crews.values()) == [0, 2, 6, 18]  # fewer and fewer
    assert all(0.75 * (n // 2) <= share <= (n + 1) // 2 for n, share in enumerate(shares))
    known = workers.crew_of(cache)
    cache.trim(5)
    changed = (ids + 1) % 11
    changed[:, :5] = ids[:, :5]
    expected = host(model(changed))
    np.testing.assert_allclose(decode(model, cache, changed[:, 5:], [20] + [1] * 15), expected[:, 5:], rtol=0, atol=1e-10)
    assert workers.crew_of(cache) is not known


@forks
@pytest.mark.usefixtures("eager")
def test_weights_that_change_after_the_fork_count(rng):
    """What workers read ahead is old then. Nobody uses it."""
    workers.set_threads(2)
    model, ids = gpt("q-k=v"), rng.integers(0, 11, (2, T))
    cache = model.new_cache(2)
    decode(model, cache, ids, [T - 1, 1])
    crew = workers.crew_of(cache)
    for p in model.parameters():
        p.data *= 1.5
    cache.trim(0)
    np.testing.assert_allclose(decode(model, cache, ids, [T - 1, 1]), host(model(ids)), rtol=0, atol=1e-10)
    assert workers.crew_of(cache) is not crew  # for its positions were overwritten


@forks
@pytest.mark.usefixtures("eager")
def test_a_cache_of_another_dtype(rng):
    model, ids = gpt("q-gqa-2"), rng.integers(0, 11, (2, T))
    found = []
    for threads in (1, 2):
        workers.set_threads(threads)
        found.append(decode(model, model.new_cache(2, dtype="float16"), ids, [6] + [1] * (T - 6)))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-10)


@forks
@pytest.mark.usefixtures("eager")
def test_a_clone_and_its_original_go_separate_ways(rng):
    workers.set_threads(2)
    model, ids = gpt("q=k-v"), rng.integers(0, 11, (2, T))
    cache = model.new_cache(2)
    decode(model, cache, ids[:, :8], [7, 1])
    twin = cache.clone([1, 1])
    for which, rows in ((cache, ids), (twin, ids[[1, 1]])):
        expected = host(model(rows))
        np.testing.assert_allclose(decode(model, which, rows[:, 8:], [1] * (T - 8)), expected[:, 8:], rtol=0, atol=1e-10)
    assert workers.crew_of(cache) is not workers.crew_of(twin)


@forks
@pytest.mark.usefixtures("eager")
def test_workers_end_with_their_cache(rng):
    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    decode(model, cache, ids, [T - 1, 1])
    pids = workers.crew_of(cache).pids
    assert all(map(alive, pids))
    del cache
    gc.collect()
    assert not any(map(alive, pids))


@forks
@pytest.mark.usefixtures("eager")
def test_a_worker_that_was_killed(rng):
    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    decode(model, cache, ids[:, :10], [9, 1])
    os.kill(workers.crew_of(cache).pids[0], signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="worker process was killed"):
        decode(model, cache, ids[:, 10:11], [1])
    assert len(cache) == 10
    expected = host(model(ids))
    np.testing.assert_allclose(decode(model, cache, ids[:, 10:], [1, 1]), expected[:, 10:], rtol=0, atol=1e-10)


@forks
@pytest.mark.usefixtures("eager")
def test_an_interrupted_token_leaves_no_stale_answer(rng, monkeypatch):
    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    decode(model, cache, ids[:, :10], [9, 1])
    with monkeypatch.context() as patch:
        patch.setattr(workers.Crew, "answers", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decode(model, cache, (ids[:, 10:11] + 1) % 11, [1])
    expected = host(model(ids))
    np.testing.assert_allclose(decode(model, cache, ids[:, 10:], [1, 1]), expected[:, 10:], rtol=0, atol=1e-10)


@forks
@pytest.mark.usefixtures("eager")
def test_what_is_traced_is_read_by_one(asked, rng):
    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    with trace() as t:
        decode(model, cache, ids, [1] * T)
    assert len(t.all("blocks.1.attn.pattern")) == T
    assert not asked


@forks
def test_a_small_model_has_no_workers(asked, rng):
    workers.set_threads(2)
    try:
        token_by_token(gpt("qkv"), rng.integers(0, 11, (2, T)), rng)
    finally:
        workers.set_threads(1)
    assert not asked


class Line:
    """The end of a line at which a question arrives after `calls` looks."""

    def __init__(self, calls):
        self.news, self.calls = self, calls

    def poll(self, timeout):
        self.calls -= 1
        return self.calls <= 0


def test_what_is_read_ahead(monkeypatch):
    """Matrices in the order of their use, from where the decoder is, shared by the workers, up to a bound, until asked."""
    model = gpt("qkv", n_layer=2)
    read = []

    class Chunk:
        def __init__(self, array):
            self.first = array[0]

        def max(self):
            read.append(self.first)

    split = np.array_split
    monkeypatch.setattr(np, "array_split", lambda a, n: [Chunk(part) for part in split(a, n)])
    matrices, state = ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "mlp.fc", "mlp.proj"), model.state_dict()
    order = [state[f"blocks.{b}.{matrix}.weight"].flat[0] for b in range(2) for matrix in matrices]

    def found(layer, calls=99, i=0, n=1):
        read.clear()
        reader = reading.Reader(i, n, model, None, None)
        assert reader(layer, 0, 0, False) is None
        reader.rest(Line(calls))
        return list(read)

    assert found(-1) == order
    assert found(0) == order[3:]  # the output projection comes right after the attention
    assert found(1) == order[9:]
    assert found(-1, calls=2) == order[:2]
    assert found(-1, i=0, n=2) == order[::2]
    assert found(-1, i=1, n=2) == order[1::2]
    monkeypatch.setattr(reading, "REACH", 5 * reading.CHUNK)
    assert found(-1) == order[:5]
    assert found(0) == order[3:8]
    monkeypatch.setattr(reading, "CHUNK", model.blocks[0].mlp.fc.weight.data.nbytes // 2)
    halves = [state["blocks.0.mlp.fc.weight"].flat[i] for i in (0, 16 * 24 // 2)]
    assert found(0)[2:4] == halves  # after those of attn.wo


@forks
@pytest.mark.usefixtures("eager")
def test_a_large_model_is_read_ahead_layer_by_layer(asked, rng, monkeypatch):
    workers.set_threads(2)
    monkeypatch.setattr(reading, "REACH", 1)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    decode(model, cache, ids[:, :1], [1])
    assert asked == [(-1, 0, 0), (0, 0, 0), (1, 0, 0)]
