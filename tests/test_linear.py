"""Linear attention with Q = K = V: the parallel form is the recurrence, in any chunks, and both are
what a plain loop computes; a state of constant size; what `study` trains.
"""

import re
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT
from toys import host, scramble

from minqkv import GPT, GPTConfig, KVCache, Tensor, generate, gradcheck, trace
from minqkv import backend as backends
from minqkv.analysis.laws import LAWS, Case, laws
from minqkv.attention import causal_mask
from minqkv.cache import LayerCache
from minqkv.caches import RingCache, branches
from minqkv.caches import save as save_cache
from minqkv.designs.linear import (
    ADDED,
    FORMULA,
    LinearAttention,
    LinearGPT,
    StateCache,
    StateLayer,
    phi,
    recurrence,
    state_space,
)
from minqkv.nn import Init
from minqkv.runs import configure, load_run, train_run
from minqkv.runtime.errors import UsageError
from minqkv.study.execute import run_one
from minqkv.study.summary import summarise

DECAYS = [1.0, 0.7, 0.05]
pytestmark = pytest.mark.usefixtures("nothing_is_clean")


def layer(decay=1.0, dtype="float64", n_head=2, head_dim=3):
    """A small one, scrambled."""
    return scramble(LinearAttention(8, n_head, 12, Init(0, dtype), True, head_dim, decay))


def model(decay=1.0, **changes):
    """A decoder of two layers with heads of width 4, scrambled."""
    size = {"n_layer": 2, "n_head": 4, "n_embd": 16, "dtype": "float64", "position": "none"}
    cfg = GPTConfig(11, 12, variant="q=k=v", d_ff=24, **size | changes)
    return scramble(LinearGPT(cfg, 0, decay))


def by_a_loop(z, decay, seen):
    """The definition for one head: z (T, d), and whether i sees j, (T, T)."""
    f = np.where(z > 0, z + 1, np.exp(z))
    out = np.zeros_like(z)
    for i in range(len(z)):
        above, below = 0.0, 0.0
        for j in range(len(z)):
            if seen[i, j]:
                weight = decay ** abs(i - j) * (f[i] @ f[j])
                above, below = above + weight * z[j], below + weight
        out[i] = above / below
    return out


def rows_of(attention, x):
    """z (B, H, T, d), by the weights alone."""
    state = attention.state_dict()
    z = x @ state["wk.weight"] + state["wk.bias"]
    return z.reshape(*x.shape[:2], attention.n_head, -1).swapaxes(1, 2)


def projected(attention, y):
    """Answers (B, H, T, d) -> (B, T, C)."""
    state, (B, H, T, d) = attention.state_dict(), y.shape
    merged = y.swapaxes(1, 2).reshape(B, T, H * d)
    return merged @ state["wo.weight"] + state["wo.bias"]


# ---- the function


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("what", ["causal", "all", "some"])
def test_both_forms_are_the_definition(what, decay, backend, rng):
    attention, x = layer(decay), rng.standard_normal((2, 7, 8))
    seen = {"causal": np.tri(7, dtype=bool), "all": np.ones((7, 7), bool)}
    seen["some"] = rng.random((7, 7)) < 0.4
    seen["some"] |= np.eye(7, dtype=bool)
    mask = None if what == "all" else backends.upload(seen[what])
    z = rows_of(attention, x)
    due = [[by_a_loop(head, decay, seen[what]) for head in rows] for rows in z]
    x = Tensor(backends.upload(x))
    found = host(attention(x, mask))
    np.testing.assert_allclose(found, projected(attention, np.array(due)), rtol=0, atol=1e-12)
    if what == "causal":
        cache = StateLayer(2, [(2, 3)], 12, "float64")
        np.testing.assert_allclose(host(attention(x, cache=cache)), found, rtol=0, atol=1e-12)


def test_a_mask_for_each_sequence(rng):
    """Padding on the left: the rest is as without it, and distances count real tokens."""
    attention, x = layer(0.7), rng.standard_normal((2, 5, 8))
    at = np.array([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
    found = host(attention(Tensor(x), causal_mask(at, at), at=at))
    alone = host(attention(Tensor(x[:1, 2:]), np.tri(3, dtype=bool)))
    np.testing.assert_allclose(found[:1, 2:], alone, rtol=0, atol=1e-12)
    alone = host(attention(Tensor(x[1:]), np.tri(5, dtype=bool)))
    np.testing.assert_allclose(found[1:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_are_those_of_the_function(decay, backend, rng):
    attention = layer(decay)
    x = Tensor(backends.upload(rng.standard_normal((2, 5, 8))), requires_grad=True)
    mask = backends.upload(np.tri(5, dtype=bool))
    assert gradcheck(lambda x, *_: attention(x, mask), x, *attention.parameters()) < 1e-6


def test_a_decay_of_numpy_leaves_the_dtype(backend):
    twin = model(np.float64(0.9), dtype="float32")
    cache = twin.new_cache(1)
    assert twin(np.array([[1, 2, 3]]), cache=cache).dtype == "float32"
    assert {layer.buffers[0].dtype.name for layer in cache.layers} == {"float32"}


def test_phi():
    """Positive and increasing; at 0, where the two halves meet, its slope is 1."""
    x = Tensor(np.array([-50.0, -1.0, 0.0, 2.0, 800.0]), requires_grad=True)
    y = phi(x)
    np.testing.assert_allclose(host(y), [np.exp(-50), np.exp(-1), 1, 3, 801], rtol=1e-15)
    y.sum().backward()
    np.testing.assert_allclose(x.grad, [np.exp(-50), np.exp(-1), 1, 1, 1], rtol=1e-15)


def test_the_normaliser_fades_too(rng):
    """An average of equal tokens is that token. In the paper's formula, where the normaliser does
    not fade, weights add up to less than 1.
    """
    z = np.ones((1, 1, 6, 3))
    y, state = recurrence(Tensor(z), np.zeros((1, 1, 3, 4)), 0.5)
    np.testing.assert_allclose(y, z, rtol=1e-15)
    f = host(phi(Tensor(z[0, 0])))  # (6, 3)
    as_printed = f[-1] @ state[0, 0, :, :3] / (f[-1] @ f.sum(0))
    np.testing.assert_allclose(as_printed, (2 - 0.5**5) / 6, rtol=1e-12)


# ---- the state


class Linear(Case):
    """Models with linear attention."""

    decay = 1.0

    @classmethod
    def build(cls, cfg, seed):
        return LinearGPT(cfg, seed, cls.decay)


@pytest.mark.parametrize("position", ADDED)
@pytest.mark.parametrize("decay", DECAYS)
def test_laws(decay, position, monkeypatch):
    """All hold but one: bytes are not a number for each token."""
    monkeypatch.setattr(Linear, "decay", decay)
    found = {
        law: (error, fault) for law, error, fault in laws(Linear(StateCache, "q=k=v", position))
    }
    assert found.keys() == LAWS.keys()
    assert "by formula 0" in found.pop("bytes")[1]
    for law, (error, fault) in found.items():
        assert fault is None, law
        assert error < 1e-10, law


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 40, 300])
def test_bytes_do_not_depend_on_the_length(n, dtype, rng):
    """H · d · (d + 1) numbers for each sequence and layer, as many as the arrays have."""
    decoder = model(dtype=dtype)
    cache = decoder.new_cache(3, 300)
    for ids in np.array_split(rng.integers(0, 11, (3, n)), max(1, n // 100), axis=1):
        decoder(ids, cache=cache)
    due = 3 * 2 * 4 * 4 * 5 * np.dtype(dtype).itemsize
    arrays = [array for held in cache.layers for array in held.buffers]
    assert cache.nbytes == sum(array.nbytes for array in arrays) == due
    assert cache.row_nbytes.tolist() == [due // 3] * 3
    assert {array.dtype.name for array in arrays} == {dtype}
    both = {id(a): a.nbytes for held in cache.layers for a in (held.buffers[0], held.last[0])}
    assert cache.capacity_nbytes == sum(both.values()) == 2 * due
    assert cache.bytes_per_token([(4, 4)], dtype) == 0
    assert f"{due:,} of {2 * due:,} bytes; a token stores nothing of its own" in repr(cache)


def test_an_empty_cache_uses_nothing():
    cache = model().new_cache(2)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_trim_undoes_one_step_or_all(rng):
    decoder, ids = model(0.9), rng.integers(0, 11, (2, 9))
    cache = decoder.new_cache(2)
    for piece in (ids[:, :4], ids[:, 4:7], ids[:, 7:]):
        decoder(piece, cache=cache)
    states = [held.buffers[0] for held in cache.layers]
    with pytest.raises(UsageError, match=r"trim\(4\): a state is a sum"):
        cache.trim(4)
    assert all(held.buffers[0] is state for held, state in zip(cache.layers, states, strict=True))
    cache.trim([9, 7])  # of each sequence another length
    found = host(decoder(ids[:, 7:8], cache=cache, pad=[0, 0]))
    due = host(decoder(np.array([[*ids[1, :8]]])))
    np.testing.assert_allclose(found[1, -1], due[0, -1], rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="only the last step"):
        cache.trim(7)
    cache.trim(0)
    np.testing.assert_allclose(
        host(decoder(ids, cache=cache)), host(decoder(ids)), rtol=0, atol=1e-12
    )


def test_generation(rng):
    """Greedy, sampled, several samples of a prompt, prompts of different length: as without the
    cache. Without a table of positions, beyond block_size too.
    """
    decoder, prompts = model(0.8), [[1, 2, 3], [4], [5, 6]]
    for options in ({}, {"temperature": 1.0, "samples": 2}):
        found = [generate(decoder, prompts, 6, use_cache=use, **options) for use in (True, False)]
        np.testing.assert_array_equal(*found)
    cache = decoder.new_cache(1, 50)
    assert generate(decoder, [[1, 2]], 40, cache=cache).shape == (1, 42)
    assert len(cache) == 41
    copies = branches(decoder.new_cache(2), 3)
    assert (type(copies), copies.batch) == (StateCache, 6)


def test_rows_in_a_plain_cache_give_the_same(rng):
    """The parallel form reads a cache that grows as softmax does."""
    attention, x = layer(0.7), rng.standard_normal((2, 7, 8))
    caches = LayerCache(2, [(2, 3)], 12, "float64"), StateLayer(2, [(2, 3)], 12, "float64")
    for piece in (slice(0, 3), slice(3, 4), slice(4, 7)):
        rows, state = (host(attention(Tensor(x[:, piece]), cache=cache)) for cache in caches)
        np.testing.assert_allclose(rows, state, rtol=0, atol=1e-12)


def test_numpy_and_strict_agree(rng):
    ids, found = rng.integers(0, 11, (2, 6)), []
    for kind in ("numpy", "strict"):
        with backends.use_backend(kind):
            decoder = model(0.8)
            cache = decoder.new_cache(2)
            found.append([host(decoder(ids[:, i : i + 3], cache=cache, pad=p))
                          for i, p in ((0, [1, 0]), (3, None))])  # fmt: skip
            cache.trim(cache.lengths - 3)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12)


def test_a_trace_has_the_pattern_and_the_state(rng):
    decoder, ids = model(), rng.integers(0, 11, (1, 5))
    with trace() as t:
        decoder(ids)
        decoder(ids, cache=decoder.new_cache())
    pattern = t["blocks.1.attn.pattern"]
    np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-12)
    assert (np.triu(pattern, 1) == 0).all()
    assert t["blocks.1.attn.cache.state"].shape == (1, 4, 4, 5)


# ---- the state-space model


@pytest.mark.parametrize("decay", DECAYS)
def test_the_matrices_give_the_answers(decay, rng):
    """Step by step, and unrolled into one lower triangular matrix: C_i A^(i-j) B_j."""
    attention, x = layer(decay), rng.standard_normal((2, 6, 8))
    A, B, C, u = state_space(attention, Tensor(x))
    assert [m.shape for m in (A, B, C, u)] == [(3, 3), (2, 2, 6, 3, 1), (2, 2, 6, 1, 3),
                                               (2, 2, 6, 1, 4)]  # fmt: skip
    np.testing.assert_array_equal(A, decay * np.eye(3))
    np.testing.assert_array_equal(C, B.swapaxes(-1, -2))  # with Q = K
    S, y = np.zeros((2, 2, 3, 4)), np.zeros((2, 2, 6, 4))
    for t in range(6):
        S = A @ S + B[:, :, t] @ u[:, :, t]
        y[:, :, t] = (C[:, :, t] @ S)[:, :, 0]
    due = host(attention(Tensor(x), np.tri(6, dtype=bool)))
    found = projected(attention, y[..., :3] / y[..., 3:])
    np.testing.assert_allclose(found, due, rtol=0, atol=1e-10)
    M = np.zeros((2, 2, 6, 6))
    for i in range(6):
        for j in range(i + 1):
            M[:, :, i, j] = (C[:, :, i] @ np.linalg.matrix_power(A, i - j) @ B[:, :, j])[..., 0, 0]
    np.testing.assert_allclose(M @ u[..., 0, :], y, rtol=1e-12)


def test_the_page_shows_what_the_example_prints():
    command = [sys.executable, ROOT / "examples" / "recurrence.py"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    page = (ROOT / "docs" / "recurrence.md").read_text("utf-8")
    assert f"```\n{done.stdout}```" in page


# ---- models


def test_it_starts_as_its_twin_with_softmax():
    cfg = GPTConfig(11, 8, 2, 2, 16, "q=k=v", bias=False, head_dim=4)
    due, found = GPT(cfg, 3).state_dict(), LinearGPT(cfg, 3).state_dict()
    assert list(found) == list(due)
    for name, array in due.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "changes",
    [{"variant": "qkv"}, {"variant": "q-k=v"}, {"variant": "q=k=v+"}, {"position": "rope"},
     {"position": "alibi"}, {"position": "relative"}, {"window": 4}, {"norm": True}],
)  # fmt: skip
def test_what_it_is_not_for(changes):
    with pytest.raises(UsageError, match="linear attention is for q=k=v"):
        LinearGPT(GPTConfig(**{"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2,
                               "n_embd": 16, "variant": "q=k=v"} | changes))  # fmt: skip


@pytest.mark.parametrize("decay", [0, -0.5, 1.5, float("nan")])
def test_a_decay_is_a_share(decay):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        layer(decay)


def test_other_caches_are_refused(tmp_path, rng):
    decoder, ids = model(), rng.integers(0, 11, (1, 3))
    for options in ({"kind": KVCache}, {"kind": RingCache, "window": 4}, {"dtype": "float32"}):
        with pytest.raises(UsageError, match="linear attention cannot use a"):
            decoder(ids, cache=decoder.new_cache(**options))
    softmax = GPT(decoder.config)
    with pytest.raises(UsageError, match="a state is for linear attention"):
        softmax(ids, cache=softmax.new_cache(kind=StateCache))
    x = Tensor(np.ones((1, 3, 8)))
    with pytest.raises(UsageError, match="cannot hide parts of it"):
        layer()(x, np.tri(3, dtype=bool), StateLayer(1, [(2, 3)], 8, "float64"))
    cache = decoder.new_cache()
    decoder(ids, cache=cache)
    with pytest.raises(UsageError, match="a StateCache cannot be saved"):
        save_cache(cache, tmp_path / "cache", decoder)


# ---- what study trains

TINY = {"pairs": 3, "keys": 5, "n_embd": 16, "position": "learned", "attention": "linear"}


@pytest.mark.parametrize("task", ["pairs", "mqar"])
def test_study_trains_one(task):
    """The loss falls, no other form of the model is scored, and bytes are those of the state."""
    record = run_one(configure(task, "q=k=v", steps=60, warmup=1, watch=0, **TINY))
    assert record["losses"][-1] < record["losses"][0]
    assert (record["diverged"], record["lifted"], record["slim"]) == (None, None, None)
    layers, length = (1, 6) if task == "pairs" else (2, 9)
    due = layers * 16 * 17 * 4 // length
    assert record["cache_bytes_per_token"] == record["cache_bytes_per_token_formula"] == due
    softmax = run_one(configure(task, "q=k=v", steps=1, watch=0, **TINY | {"attention": "softmax"}))
    assert softmax["cache_bytes_per_token"] == layers * 16 * 4
    assert softmax["params"] == record["params"]


def test_a_table_shows_what_it_computes():
    for attention, found in (("linear", FORMULA), ("softmax", "softmax(αKKᵀ)K")):
        config = configure("pairs", "q=k=v", steps=1, watch=0, **TINY | {"attention": attention})
        ((row,),) = [cell.rows for cell in summarise([run_one(config)])]
        assert row.formula == found


def test_a_run_is_read_back(tmp_path):
    config = configure("pairs", "q=k=v", steps=2, watch=0, **TINY)
    trained, _ = train_run(config, tmp_path / "run")
    found, same = load_run(tmp_path / "run")
    assert (type(found), same) == (LinearGPT, config)
    ids = np.array([[0, 1, 2]])
    np.testing.assert_array_equal(host(found(ids)), host(trained.eval()(ids)))


@pytest.mark.parametrize(
    ("variant", "changes", "why"),
    [("qkv", {}, "linear attention is for q=k=v"),
     ("q=k=v", {"position": "rope"}, "linear attention is for q=k=v"),
     ("q=k=v", {"attention": "linar"}, "unknown attention 'linar'")],
)  # fmt: skip
def test_what_cannot_be_trained(variant, changes, why):
    with pytest.raises(UsageError, match=re.escape(why)):
        configure("pairs", variant, **TINY | changes)
