"""Tokens decoded by several processes are those of one, to rounding, whatever happens to the cache
in between.
"""

import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from test_cache import SCHEMES, T, decode, prefill_then_tokens, token_by_token, trim_and_redo
from test_shards import alive, two_workers_end_with
from toys import TEN, gpt, host

from minqkv import reading
from minqkv import reference as composed
from minqkv.models import GPT
from minqkv.nn import Module
from minqkv.runtime import parallel as shards
from minqkv.runtime import parallel as workers
from minqkv.runtime.errors import EnvironmentFault
from minqkv.runtime.tracing import trace
from minqkv.tensor import Tensor

forks = pytest.mark.skipif(
    not workers.CAN_FORK, reason="this system has no safe fork: one process decodes"
)


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
    v, bias = (
        k if one_stream else rng.standard_normal(k.shape),
        size * rng.standard_normal(11) if with_bias else None,
    )
    whole = composed.scaled_dot_product_attention(
        *map(Tensor, (q, k, v)), scale=1.0, bias=bias if bias is None else Tensor(bias)
    )
    for cuts in ([0, 11], [0, 5, 11], [0, 1, 2, 10, 11]):
        parts = []
        for start, stop in itertools.pairwise(cuts):
            keys = k[:, :, start:stop]
            values = keys if one_stream else v[:, :, start:stop]
            parts.append(
                reading.part(
                    q.reshape(2, 2, 2, 8), keys, values, bias if bias is None else bias[start:stop]
                )
            )
        found = reading.join(parts).reshape(q.shape)
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
    assert asked == [(-1, 0, 0)] * 2 + [
        (0, 0, 3),
        (0, 3, 6),
        (1, 0, 3),
        (1, 3, 6),
    ]  # of ten positions


@forks
def test_short_caches_and_small_models_are_read_by_one(asked, rng, monkeypatch):
    """One layer's positions are worth workers from LEAST bytes on, and so are a model's weights,
    for reading ahead.
    """
    workers.set_threads(2)
    model, ids = gpt("q-k=v", n_layer=1, block_size=T), rng.integers(0, 11, (2, T))
    per_position, weights = 2 * 16 * 8, 16 * (4 * 16 + 2 * 24) * 8
    try:
        for least, sent in ((weights + 1, []), (weights, [(-1, 0, 0)]), (per_position * T + 1, [(-1, 0, 0)]),
                            (per_position * T, [(-1, 0, 0), (0, 0, T // 2)])):  # fmt: skip
            monkeypatch.setattr(reading, "LEAST", least)
            monkeypatch.setattr(reading, "REACH", weights)
            cache = model.new_cache(2)
            decode(model, cache, ids[:, :-1], [T - 1])
            asked.clear()
            decode(model, cache, ids[:, -1:], [1])
            assert asked == sent
        model.config = replace(model.config, d_ff=1)  # the weights too small, the cache long enough
        monkeypatch.setattr(reading, "LEAST", per_position * (T - 1))
        cache = model.new_cache(2)
        decode(model, cache, ids[:, :-1], [T - 1])
        asked.clear()
        decode(model, cache, ids[:, -1:], [1])
        assert (0, 0, T // 2) in asked
    finally:
        workers.set_threads(1)


@forks
@pytest.mark.usefixtures("eager")
def test_unturned_keys_are_turned_by_the_decoder(asked, rng):
    workers.set_threads(2)
    model = gpt("q-k=v", position="rope", rope_value="raw")
    decode(model, model.new_cache(), rng.integers(0, 11, (1, T)), [T - 1, 1])
    assert {layer for layer, _, _ in asked} == {-1}


@forks
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("variant", ["q-k=v", "q=k-v+"])
def test_bits_depend_on_the_number_of_threads_alone(variant, rng):
    """Whoever reads a part, its numbers are the same: workers, or this process where there are
    none.
    """
    ids, model, found = rng.integers(0, 11, (2, T)), gpt(variant, dtype="float32"), []
    for can_fork in (True, True, False):
        workers.set_threads(2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "CAN_FORK", can_fork)
            found.append(prefill_then_tokens(model, ids, rng))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


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
    assert list(crews.values()) == [0, 1, 3, 7, 15, 31]  # fewer and fewer
    assert shares == [(n + 1) // 2 for n in range(40)]
    known = workers.crew_of(cache)
    cache.trim(5)
    changed = (ids + 1) % 11
    changed[:, :5] = ids[:, :5]
    expected = host(model(changed))
    np.testing.assert_allclose(
        decode(model, cache, changed[:, 5:], [20] + [1] * 15), expected[:, 5:], rtol=0, atol=1e-10
    )
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
    np.testing.assert_allclose(
        decode(model, cache, ids, [T - 1, 1]), host(model(ids)), rtol=0, atol=1e-10
    )
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
        np.testing.assert_allclose(
            decode(model, which, rows[:, 8:], [1] * (T - 8)), expected[:, 8:], rtol=0, atol=1e-10
        )
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
    np.testing.assert_allclose(
        decode(model, cache, ids[:, 10:], [1, 1]), expected[:, 10:], rtol=0, atol=1e-10
    )


@forks
@pytest.mark.usefixtures("eager")
def test_an_interrupted_token_leaves_no_stale_answer(rng, monkeypatch):
    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    cache = model.new_cache()
    decode(model, cache, ids[:, :10], [9, 1])
    with monkeypatch.context() as patch:
        patch.setattr(
            workers.Crew, "answers", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            decode(model, cache, (ids[:, 10:11] + 1) % 11, [1])
    expected = host(model(ids))
    np.testing.assert_allclose(
        decode(model, cache, ids[:, 10:], [1, 1]), expected[:, 10:], rtol=0, atol=1e-10
    )


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
@pytest.mark.usefixtures("eager")
def test_another_model_on_the_same_cache(rng):
    workers.set_threads(2)
    first, ids = gpt("qkv", dtype="float32"), rng.integers(0, 11, (1, T))
    cache = first.new_cache(dtype="float64")
    decode(first, cache, ids, [T - 1, 1])
    crew = workers.crew_of(cache)
    wide = gpt("qkv", dtype="float64")
    alone = wide.new_cache()
    cache.trim(T - 1)
    for mine, theirs in zip(cache.keys + cache.values, alone.keys + alone.values, strict=True):
        theirs[...] = mine
    alone.filled = [T - 1] * 2
    found = decode(wide, cache, ids[:, -1:], [1])
    assert workers.crew_of(cache) is not crew
    workers.set_threads(1)
    np.testing.assert_allclose(found, decode(wide, alone, ids[:, -1:], [1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_that_is_wanted_is_there(frozen, rng):
    """One token and a cache, outside of no_grad: what is computed for the new token alone has a
    graph, as for several.
    """
    block = gpt("q=k-v+").blocks[0].attn
    if frozen:
        for linear in (block.wk, block.wv):
            linear.weight, linear.bias = linear.weight.detach(), linear.bias.detach()
    x = Tensor(rng.standard_normal((1, 1, 16)), requires_grad=not frozen)
    cache = gpt("q=k-v+").new_cache()
    cache.append(0, *rng.standard_normal((2, 1, 4, 5, 4)))
    cache.filled = [5, 5]
    out = block(x, cache=cache)
    out.sum().backward()
    assert np.abs(block.plus.weight.grad).max() > 0


@forks
@pytest.mark.usefixtures("eager")
def test_a_worker_of_a_real_crew_reads_ahead(rng, monkeypatch):
    """It notes each chunk in memory that is shared; what goes wrong there concerns nobody."""
    workers.set_threads(2)
    seen = workers.shared((2,), np.int64)

    def rest(self, line):
        seen[0] += 1
        if seen[0] > 3:
            raise KeyError("no such weights")
        self.find_weights()
        seen[1] = len(self.chunks)

    monkeypatch.setattr(reading.Reader, "rest", rest)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    np.testing.assert_allclose(
        token_by_token(model, ids, rng), host(model(ids)), rtol=0, atol=1e-10
    )
    assert seen[0] > 3
    assert seen[1] == 2 * (2 * 6 + 1)


@forks
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("freeze", [False, True], ids=["wrapped", "frozen"])
def test_an_output_projection_of_another_make(freeze, rng):
    class Wrapped(Module):
        def __init__(self, base):
            self.base = base

        def forward(self, x):
            return self.base(x)

    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    for block in model.blocks:
        if freeze:
            block.attn.wo.weight = block.attn.wo.weight.detach()
        else:
            block.attn.wo = Wrapped(block.attn.wo)
    np.testing.assert_allclose(
        token_by_token(model, ids, rng), host(model(ids)), rtol=0, atol=1e-10
    )


@forks
@pytest.mark.usefixtures("eager")
def test_a_model_that_decodes_while_it_is_trained(rng, monkeypatch):
    """A forward that asks a teacher, token by token: no lock is held meanwhile that the teacher
    needs.
    """
    monkeypatch.setattr(shards, "SMALLEST", 1)
    workers.set_threads(2)
    teacher, ids = gpt("mqa"), rng.integers(0, 11, (4, T))

    class Student(GPT):
        def forward(self, ids, cache=None):
            token_by_token(teacher, ids[:1], None)
            return super().forward(ids, cache)

    globals()["Student"] = Student
    Student.__qualname__ = "Student"
    losses = []
    for threads in (2, 1):
        workers.set_threads(threads)
        losses.append(shards.loss_and_gradients(Student(teacher.config), ids, ids))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@forks
@pytest.mark.usefixtures("eager")
def test_threads_decode_while_another_changes_their_number(rng):
    model, ids, wrong = gpt("qkv"), rng.integers(0, 11, (1, T)), []
    expected, until = host(model(ids)), time.perf_counter() + 2

    def run():
        try:
            while time.perf_counter() < until:
                np.testing.assert_allclose(
                    token_by_token(model, ids, None), expected, rtol=0, atol=1e-10
                )
        except BaseException as error:
            wrong.append(error)

    decoders = [threading.Thread(target=run) for _ in range(2)]
    for thread in decoders:
        thread.start()
    n = 0
    while time.perf_counter() < until:
        workers.set_threads(1 + n % 3)
        n += 1
        time.sleep(0.02)
    for thread in decoders:
        thread.join()
    assert not wrong


@forks
@pytest.mark.usefixtures("eager")
def test_the_fifth_cache_is_read_by_one_and_nobody_is_forked_for_every_token(rng, monkeypatch):
    workers.set_threads(2)
    model, ids, forks = gpt("q-k=v"), rng.integers(0, 11, (1, T)), []
    made, fork = [model.new_cache() for _ in range(workers.MOST + 1)], os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork())
    rows = [[] for _ in made]
    for n in range(T):
        for cache, row in zip(made, rows, strict=True):
            row.append(decode(model, cache, ids[:, n : n + 1], [1]))
    assert len(forks) == workers.MOST * 4  # at 1, 2, 4 and 8 positions
    for row in rows:
        np.testing.assert_allclose(
            np.concatenate(row, axis=1), host(model(ids)), rtol=0, atol=1e-10
        )
        assert all((a == b).all() for a, b in zip(row, rows[0], strict=True))  # to the bit
    monkeypatch.setattr(workers, "RECENT", 0.0)
    made[-1].trim(5)
    decode(model, made[-1], ids[:, 5:6], [1])
    assert workers.crew_of(made[-1])
    assert not workers.crew_of(made[0])


@forks
@pytest.mark.usefixtures("eager")
def test_a_crew_that_is_dismissed_as_it_is_hired(rng, monkeypatch):
    """Another Python thread may change the number of threads between finding a crew and locking it."""
    workers.set_threads(2)
    model, ids, hired = gpt("qkv"), rng.integers(0, 11, (1, T)), []
    find = workers._hire

    def dismissed_once(*args):
        hired.append(find(*args))
        if len(hired) == 1:
            workers.set_threads(2)
        return hired[-1]

    monkeypatch.setattr(workers, "_hire", dismissed_once)
    cache = model.new_cache()
    np.testing.assert_allclose(
        decode(model, cache, ids, [T - 1, 1]), host(model(ids)), rtol=0, atol=1e-10
    )
    assert len(hired) == 2
    assert [crew.end.alive for crew in hired] == [False, True]


@forks
@pytest.mark.usefixtures("eager")
def test_a_crew_hired_in_the_moment_of_an_interrupt_is_like_any_other(rng, monkeypatch):
    workers.set_threads(2)
    model, ids, fork = gpt("qkv"), rng.integers(0, 11, (1, T)), os.fork
    caches = [model.new_cache() for _ in range(workers.MOST + 1)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", lambda: signal.raise_signal(signal.SIGINT) or fork())
        with pytest.raises(KeyboardInterrupt):
            decode(model, caches[0], ids[:, :1], [1])
    for cache in caches:
        np.testing.assert_allclose(
            decode(model, cache, ids, [T - 1, 1]), host(model(ids)), rtol=0, atol=1e-10
        )


@forks
@pytest.mark.usefixtures("eager")
def test_what_the_parent_closes_is_closed(rng):
    """Workers live as long as their cache; they must not keep other people's pipes open."""
    workers.set_threads(2)
    model, ids = gpt("qkv"), rng.integers(0, 11, (1, T))
    inbox, outbox = os.pipe()
    cache = model.new_cache()
    decode(model, cache, ids, [T - 1, 1])
    assert workers.crew_of(cache)
    os.close(outbox)
    assert os.read(inbox, 1) == b""
    os.close(inbox)


@forks
def test_a_question_is_never_hidden_behind_another():
    here, there = workers._line()
    try:
        here.send((1, "x" * 100))
        here.send((2,))
        assert there.receive() == (1, "x" * 100)
        assert there.news.poll(0)
        assert there.receive() == (2,)
        assert not there.news.poll(0)
    finally:
        here.close()
        with pytest.raises(EOFError):
            there.receive()
        there.close()


class Line:
    """The end of a line at which a question arrives after `calls` looks."""

    def __init__(self, calls):
        self.news, self.calls = self, calls

    def poll(self, timeout):
        self.calls -= 1
        return self.calls <= 0


def test_what_is_read_ahead(monkeypatch):
    """Matrices in the order of their use, from where the decoder is, shared by the workers, up to a
    bound, until asked.
    """
    model = gpt("qkv", n_layer=2)
    read = []

    class Chunk:
        def __init__(self, array):
            self.first = array[0]

        def max(self):
            read.append(self.first)

    split = np.array_split
    monkeypatch.setattr(np, "array_split", lambda a, n: [Chunk(part) for part in split(a, n)])
    matrices, state = (
        ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "mlp.fc", "mlp.proj"),
        model.state_dict(),
    )
    order = [state[f"blocks.{b}.{matrix}.weight"].flat[0] for b in range(2) for matrix in matrices]

    def found(layer, calls=99, i=0, n=1):
        read.clear()
        reader = reading.Reader(i, n, model, None, None, None, None)
        assert reader(layer, 0, 0, False) is None
        reader.rest(Line(calls))
        return list(read)

    order.append(state["wte.weight"].flat[0])  # the head
    assert found(-1) == order * 2  # and again: the next token
    assert found(0) == (order * 2)[3:]  # the output projection comes right after the attention
    assert found(1) == (order * 2)[9:]
    assert found(-1, calls=2) == order[:2]
    assert found(-1, i=0, n=2) == (order * 2)[::2]
    assert found(-1, i=1, n=2) == (order * 2)[1::2]
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


@forks
@pytest.mark.slow
def test_interrupts_at_any_moment():
    """Ctrl-C to the whole group, again and again, while tokens are decoded: the numbers stay right,
    nobody is left over.
    """
    program = """
        import contextlib, os, random, signal, threading, time
        import numpy as np
        from minqkv import GPT, GPTConfig, no_grad, reading
        from minqkv.runtime import parallel as workers
        reading.LEAST = 1
        me, random_delay = os.getpid(), random.Random(0)
        model = GPT(GPTConfig(7, 24, 2, 4, 16, dtype="float64"))
        ids = np.random.default_rng(0).integers(0, 7, (1, 24))
        with no_grad():
            expected = model(ids).data
        wrong = missed = 0

        def shoot(delay):
            time.sleep(delay)
            os.killpg(0, signal.SIGINT)

        for trial in range(100):
            killer = threading.Thread(target=shoot, args=(random_delay.random() * 0.03,))
            try:
                killer.start()
                until, cache = time.perf_counter() + 0.2, model.new_cache()
                while time.perf_counter() < until:
                    workers.set_threads(2 + trial % 2)
                    cache.trim(0)
                    for n in range(24):
                        logits = model(ids[:, n : n + 1], cache=cache).data
                        wrong += not np.allclose(logits[0, 0], expected[0, n], rtol=0, atol=1e-10)
                missed += 1
            except KeyboardInterrupt:
                if os.getpid() != me:
                    os._exit(1)
            killer.join()
        workers.set_threads(1)
        del cache
        states = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it just ended
                states.append(open(f"/proc/{pid}/stat").read().split())
        print(wrong, missed, sum(int(state[3]) == me for state in states if state[3].isdigit()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100,
                          check=False, start_new_session=True)  # fmt: skip
    assert done.stdout.split() == ["0", "0", "0"], done.stderr[-2000:]


@forks
def test_workers_end_with_a_decoder_that_was_killed():
    program = """
        import os, signal
        from minqkv import GPT, GPTConfig, reading
        from minqkv.runtime import parallel as workers
        reading.LEAST = 1
        workers.set_threads(3)
        model = GPT(GPTConfig(7, 6, 1, 2, 16))
        cache = model.new_cache()
        for n in range(6):
            model([[n]], cache=cache)
        print(*workers.crew_of(cache).pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    two_workers_end_with(program)


@forks
@pytest.mark.usefixtures("eager")
def test_an_interrupt_while_workers_are_ended_is_not_lost(rng, monkeypatch):
    workers.set_threads(2)
    model = gpt("qkv")
    cache = model.new_cache()
    decode(model, cache, rng.integers(0, 11, (1, T)), [T - 1, 1])
    kill = os.kill
    monkeypatch.setattr(
        os, "kill", lambda pid, number: (kill(os.getpid(), signal.SIGINT), kill(pid, number))
    )
    with pytest.raises(KeyboardInterrupt):
        workers.set_threads(1)
