"""A cache changes what is computed, never what comes out; and its bytes are those of the arrays it
holds.
"""

import numpy as np
import pytest
from toys import DESIGNS, POSITIONS, design, gpt, host

from minqkv import attention
from minqkv import backend as backends
from minqkv.attention import Attention
from minqkv.cache import KVCache, LayerCache
from minqkv.runtime.errors import UsageError
from minqkv.runtime.tracing import trace
from minqkv.tensor import Tensor
from minqkv.variants import cache_bytes_per_token

T = 12
SCHEMES = {f"{name} {value}": {"position": name, "rope_value": value} for name, value in POSITIONS}


def decode(model, cache, ids, chunks):
    """Logits (B, T, V) of ids read through the cache in chunks of these lengths."""
    ends = np.cumsum(chunks)
    return np.concatenate(
        [
            host(model(ids[:, end - n : end], cache=cache))
            for n, end in zip(chunks, ends, strict=True)
        ],
        axis=1,
    )


def widths(spec, model):
    """The width of each array that a layer of this variant stores."""
    d = model.config.head_dim
    return [spec.key_width or d, d][: spec.streams]


def random_chunks(rng, n):
    cuts = np.sort(rng.choice(np.arange(1, n), size=rng.integers(1, n - 1), replace=False))
    return np.diff([0, *cuts, n]).tolist()


def token_by_token(model, ids, rng):
    return decode(model, model.new_cache(len(ids)), ids, [1] * T)


def one_prefill(model, ids, rng):
    return decode(model, model.new_cache(len(ids)), ids, [T])


def prefill_then_tokens(model, ids, rng):
    return decode(model, model.new_cache(len(ids)), ids, [T // 2] + [1] * (T - T // 2))


def in_random_chunks(model, ids, rng):
    return decode(model, model.new_cache(len(ids)), ids, random_chunks(rng, T))


def trim_and_redo(model, ids, rng):
    """Read the first tokens, then a wrong continuation to the end, forget it, and go on in the
    right one.
    """
    cache, kept = model.new_cache(len(ids)), int(rng.integers(1, T - 1))
    head = decode(model, cache, ids[:, :kept], [kept])
    decode(
        model,
        cache,
        (ids[:, kept:] + 1) % 11,
        random_chunks(rng, T - kept) if T - kept > 2 else [T - kept],
    )
    cache.trim(kept)
    return np.concatenate([head, decode(model, cache, ids[:, kept:], [T - kept - 1, 1])], axis=1)


READS = [in_random_chunks, trim_and_redo, token_by_token, one_prefill, prefill_then_tokens]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DESIGNS)
def test_cached_is_uncached(name, scheme, backend, rng):
    model, ids = design(name, **SCHEMES[scheme]), rng.integers(0, 11, (3, T))
    expected = host(model(ids))
    assert np.ptp(expected) > 1  # the comparison is of numbers that matter
    for read in READS:
        rows = 1 if read is token_by_token else 3
        found = read(model, ids[:rows], rng)
        np.testing.assert_allclose(
            found, expected[:rows], rtol=0, atol=1e-10, err_msg=read.__name__
        )


@pytest.mark.parametrize("name", DESIGNS)
def test_an_upper_left_mask_would_be_noticed(name, monkeypatch, rng):
    """The usual mistake: a triangle that starts in the upper left corner, on a cache that is not
    empty.
    """
    model, ids = design(name), rng.integers(0, 11, (2, T))
    right = decode(model, model.new_cache(2), ids, [5, 4, 3])

    def upper_left(cache, at, window, sinks):
        return backends.upload(np.tri(at.stop - at.start, at.stop, dtype=bool))

    monkeypatch.setattr(LayerCache, "mask", upper_left)
    wrong = decode(model, model.new_cache(2), ids, [5, 4, 3])
    assert np.abs(wrong[:, :5] - right[:, :5]).max() < 1e-10
    assert np.abs(wrong[:, 5:] - right[:, 5:]).max() > 0.1


def test_mask_and_positions(backend):
    cache = KVCache([[(1, 2), (1, 2)]], 1, 9)
    np.testing.assert_array_equal(host(cache.mask(3)), np.tri(3, dtype=bool))
    cache.layers[0].append(*[backends.xp.zeros((1, 1, 4, 2))] * 2)
    np.testing.assert_array_equal(host(cache.positions), [0, 1, 2, 3])
    expected = [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(host(cache.mask(3)), np.array(expected, bool))
    assert host(cache.mask(1)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", DESIGNS)
def test_bytes(name, dtype, backend, rng):
    """Formula = nbytes = the arrays that attention really read, counted once where keys and values
    are one.
    """
    model, itemsize = design(name), np.dtype(dtype).itemsize
    per_token = cache_bytes_per_token(model.config, itemsize)
    cache = model.new_cache(3, capacity=10, dtype=dtype)
    assert (cache.nbytes, cache.capacity_nbytes) == (0, 3 * 10 * per_token)
    for n in (4, 1, 1):
        with trace() as t:
            model(rng.integers(0, 11, (3, n)), cache=cache)
        assert cache.nbytes == 3 * len(cache) * per_token
        names = [
            f"blocks.{layer}.attn.cache.{stream}"
            for layer, spec in enumerate(model.config.specs)
            for stream in "kv"[: spec.streams]
        ]
        assert cache.nbytes == sum(t[name].nbytes for name in names)
        assert {t[name].dtype.name for name in names} == {dtype}
    assert len(cache) == 6
    assert (
        cache.capacity_nbytes
        == 3 * 10 * per_token
        == sum(buffer.nbytes for layer in cache.layers for buffer in layer.buffers)
    )


@pytest.mark.parametrize("name", DESIGNS)
def test_k_equals_v_is_one_buffer(name, backend, rng):
    model = design(name)
    cache = model.new_cache(2, capacity=6)
    for spec, layer, block in zip(model.config.specs, cache.layers, model.blocks, strict=True):
        shapes = [(2, spec.stored_heads(4), 3, width) for width in widths(spec, model)]
        new = [backends.upload(rng.standard_normal(shape)) for shape in shapes]
        rows = layer.append(*new)
        assert len(rows) == len(layer.buffers) == spec.streams
        for i, (row, given, buffer) in enumerate(zip(rows, new, layer.buffers, strict=True)):
            np.testing.assert_array_equal(host(row), host(given))
            buffer[:, :, :3] = 7.0 + i  # a view shows what is written there, a copy would not
        assert [np.unique(host(row)).tolist() for row in rows] == [[7.0], [8.0]][: spec.streams]
        k, v = block.attn.read(rows)
        assert k is rows[0]
        assert (v is k) == (spec.streams == 1)


@pytest.mark.parametrize("name", DESIGNS)
def test_attention_reads_one_array_as_keys_and_values(name, monkeypatch, backend, rng):
    model, same = design(name), []

    def spied(middle):
        return lambda q, k, v, *args, **kwargs: (
            same.append(k.data is v.data) or middle(q, k, v, *args, **kwargs)
        )

    middle = attention.scaled_dot_product_attention
    monkeypatch.setattr(attention, "scaled_dot_product_attention", spied(middle))
    decode(model, model.new_cache(), rng.integers(0, 11, (1, 3)), [2, 1])
    model([[1, 2]])
    assert same == [spec.streams == 1 for spec in model.config.specs] * 3


@pytest.mark.parametrize("name", DESIGNS)
def test_the_trace_shows_the_cache(name, backend, rng):
    model = design(name)
    cache = model.new_cache(2)
    with trace() as t:
        decode(model, cache, rng.integers(0, 11, (2, 5)), [3, 1, 1])
    for layer, spec in enumerate(model.config.specs):
        k, v = (t.all(f"blocks.{layer}.attn.cache.{name}") for name in "kv")
        for arrays, width in zip((k, v), widths(spec, model), strict=False):
            h = spec.stored_heads(4)
            assert [a.shape for a in arrays] == [(2, h, n, width) for n in (3, 4, 5)]
        np.testing.assert_array_equal(k[-1], host(cache.layers[layer].rows[0]))
        assert np.array_equal(k[-1], v[-1]) == (spec.streams == 1)
        if spec.streams == 2:
            np.testing.assert_array_equal(v[-1], host(cache.layers[layer].rows[1]))


@pytest.mark.parametrize("name", DESIGNS)
def test_half_precision_cache_approximates(name, backend, rng):
    model, ids = design(name), rng.integers(0, 11, (2, T))
    exact = host(model(ids))
    halved = decode(model, model.new_cache(2, dtype="float16"), ids, [1] * T)
    assert halved.dtype == exact.dtype
    assert 1e-8 < np.abs(halved - exact).max() < 0.05 * np.ptp(exact)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DESIGNS)
def test_float32_stays_float32(name, scheme, backend, rng):
    model, ids = design(name, dtype="float32", **SCHEMES[scheme]), rng.integers(0, 11, (2, 7))
    cache = model.new_cache(2)
    with trace() as t:
        logits = decode(model, cache, ids, [5, 1, 1])
    assert {(name, array.dtype.name) for name in t for array in t.all(name)} == {
        (name, "float32") for name in t
    }
    assert logits.dtype == cache.layers[0].rows[0].dtype == "float32"
    np.testing.assert_allclose(logits, host(model(ids)), rtol=0, atol=1e-3)


def test_no_graph_while_decoding(backend):
    model = gpt("q-k=v")
    assert model([[1, 2]]).requires_grad
    assert not model([[1, 2]], cache=model.new_cache()).requires_grad
    assert model([[1, 2]]).requires_grad


@pytest.mark.parametrize("name", ["qkv", "q=k=v+", "q-gqa-2", "shared in one layer", "all of it"])
def test_clone(name, backend, rng):
    model, ids = design(name), rng.integers(0, 11, (3, T))
    cache = model.new_cache(3)
    decode(model, cache, ids[:, :6], [6])
    expected = host(model(ids))[:, 6:]
    twin, beams = cache.clone(), cache.clone([2, 0, 2, 1])
    decode(model, cache, (ids[:, 6:] + 1) % 11, [6])  # neither notices what becomes of the original
    cache.trim(0)
    assert (len(twin), len(beams)) == (6, 6)
    assert beams.nbytes * 3 == twin.nbytes * 4
    assert [len(layer.rows) for layer in beams.layers] == [
        spec.streams for spec in model.config.specs
    ]
    rest = decode(model, beams, ids[[2, 0, 2, 1], 6:], [2, 4])
    np.testing.assert_allclose(rest, expected[[2, 0, 2, 1]], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        decode(model, twin, ids[:, 6:], [1] * 6), expected, rtol=0, atol=1e-10
    )
    for rows in ([3], [-1], [0.5]):
        with pytest.raises(UsageError, match="clone"):
            twin.clone(rows)


def fail_once(monkeypatch, module):
    """The next forward of this module raises, the ones after it work."""

    def broken(*args, **kwargs):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "forward", broken, raising=False)


@pytest.mark.parametrize(
    "where",
    [
        "blocks.0.attn.wo",
        "blocks.0.mlp",
        "blocks.1.ln_1",
        "blocks.1.attn.wk",
        "blocks.1.mlp",
        "ln_f",
    ],
)
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "q-mqa"])
@pytest.mark.parametrize("n_new", [1, 4])
def test_an_interrupted_step_leaves_nothing_behind(
    variant, where, n_new, monkeypatch, backend, rng
):
    """Lower layers have stored the new keys, upper ones have not; the same step again must come out
    right.
    """
    model, ids = gpt(variant), rng.integers(0, 11, (2, T))
    cache = model.new_cache(2, capacity=6 + n_new)
    decode(model, cache, ids[:, :6], [6])
    module = model
    for part in where.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    fail_once(monkeypatch, module)
    with pytest.raises(KeyboardInterrupt):
        model(ids[:, 6 : 6 + n_new], cache=cache)
    assert len(cache) == 6
    again = host(model(ids[:, 6 : 6 + n_new], cache=cache))
    np.testing.assert_allclose(again, host(model(ids))[:, 6 : 6 + n_new], rtol=0, atol=1e-10)


def rows(batch=1, heads=2, n=1, d_head=4):
    return backends.xp.ones((batch, heads, n, d_head), "float32")


@pytest.mark.parametrize(
    ("streams", "given", "says"),
    [
        (2, [{}], "stores 2 arrays per token, not 1"),
        (1, [{}, {}], "stores 1 array per token, not 2"),
        (1, [{"n": 5}], "holds 4 positions; 5 are needed"),
        (2, [{"n": 5}, {"n": 5}], "holds 4 positions; 5 are needed"),
        (
            1,
            [{"heads": 1}],
            r"stores 1 x 2 heads of 4 numbers per position; \(1, 1, 1, 4\) does not",
        ),
        (1, [{"heads": 4}], "stores"),
        (1, [{"batch": 2}], "stores"),
        (1, [{"d_head": 1}], "stores"),
        (1, [{"d_head": 8}], "stores"),
        (2, [{"n": 2}, {"n": 1}], "stores"),
        (2, [{}, {"d_head": 1}], "stores"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(streams, given, says, backend):
    cache = KVCache([[(2, 4)] * streams], 1, 4)
    with pytest.raises(UsageError, match=says):
        cache.layers[0].append(*[rows(**shape) for shape in given])
    assert len(cache) == 0


def test_overflow_through_the_model(backend):
    model = gpt("q-k=v")
    cache = model.new_cache(1, capacity=4)
    model([[1, 2, 3]], cache=cache)
    with pytest.raises(UsageError, match="4 positions; 5 are needed"):
        model([[4, 5]], cache=cache)
    model([[4]], cache=cache)  # what fits still does
    assert len(cache) == 4
    longer = model.new_cache(1, capacity=20)
    model([[1] * 12], cache=longer)
    with pytest.raises(UsageError, match="13 tokens, but this model has 12 positions"):
        model([[1]], cache=longer)
    with pytest.raises(UsageError, match="13 tokens"):
        model([[1] * 13])
    with pytest.raises(UsageError, match="stores"):
        model([[1], [2]], cache=model.new_cache(1))
    with pytest.raises(UsageError, match="stores 1 array per token, not 2"):
        gpt("qkv")([[1]], cache=model.new_cache(1))


@pytest.mark.parametrize("n", [-1, 4])
def test_trim_beyond_what_is_there(n, backend):
    model = gpt("mqa")
    cache = model.new_cache()
    model([[1, 2, 3]], cache=cache)
    with pytest.raises(UsageError, match="holds 3 positions"):
        cache.trim(n)
    cache.trim(3)
    cache.trim(0)
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.parametrize("n_new", [1, 3])
def test_a_mask_can_only_hide_more(n_new, backend, rng):
    model, ids = gpt("q-k=v"), rng.integers(0, 11, (2, 4 + n_new))
    found = {}
    for hidden in (None, [], [1]):
        cache = model.new_cache(2)
        model(ids[:, :4], cache=cache)
        block, x = model.blocks[0], model.wpe(model.wte(ids[:, 4:]), slice(4, 4 + n_new))
        mask = np.ones((n_new, 4 + n_new), bool)
        mask[:, hidden or []] = False
        mask = None if hidden is None else backends.upload(mask)
        with trace() as t:
            block(x, mask, cache.layers[0])
        found[str(hidden)] = t["blocks.0.attn.pattern"]
    np.testing.assert_array_equal(found["[]"], found["None"])
    assert not found["[1]"][..., 1].any()
    visible = np.tri(n_new, 4 + n_new, 4, dtype=bool)
    assert (found["None"][..., visible] > 0).all()
    assert not found["None"][..., ~visible].any()


def test_decoding_is_evaluation(backend, rng):
    """Dropout is off while a cache is read, and as it was afterwards."""
    model, ids = gpt("q-k=v", dropout=0.5).train(3), rng.integers(0, 11, (2, T))
    found = decode(model, model.new_cache(2), ids, [5, 1, 6])
    assert (model.training, model.blocks[1].drop_2.training, model.step) == (True, True, 3)
    expected = host(model(ids))
    assert np.abs(found - expected).max() > 0.1
    np.testing.assert_allclose(found, host(model.eval()(ids)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("wrong", ["shape", "dtype", "one for all"])
@pytest.mark.parametrize("n_new", [1, 2])
def test_a_mask_that_does_not_fit_changes_nothing(n_new, wrong, rng):
    """Also where a single token needs no mask of its own."""
    attn, cache = gpt("q-k=v").blocks[0].attn, gpt("q-k=v").new_cache().layers[0]
    x = Tensor(rng.standard_normal((1, 3 + n_new, 16)))
    attn(Tensor(x.data[:, :3]), None, cache)
    mask = {
        "shape": np.ones((n_new, 3), bool),
        "dtype": np.ones((n_new, 3 + n_new)),
        "one for all": np.ones((1, 1), bool),
    }[wrong]
    with pytest.raises(UsageError, match="a mask is boolean, of shape"):
        attn(Tensor(x.data[:, 3:]), mask, cache)
    assert len(cache) == 3


def test_an_interrupt_in_a_layer_alone_changes_nothing(rng, monkeypatch):
    attn, cache = gpt("qkv").blocks[0].attn, gpt("qkv").new_cache().layers[0]
    x = Tensor(rng.standard_normal((1, 3, 16)))
    attn(x, None, cache)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Attention, "attend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attn(x, None, cache)
    assert len(cache) == 3


@pytest.mark.parametrize("n", [2.0, True, "2", None, -1, 4])
def test_trim_takes_whole_numbers_only(n):
    cache = gpt("qkv").new_cache()
    gpt("qkv")([[1, 2, 3]], cache=cache)
    with pytest.raises(UsageError, match="trim"):
        cache.trim(n)
    assert len(cache) == 3
    cache.trim(np.int64(2))
    assert len(cache) == 2


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64"])
def test_a_dtype_that_cannot_hold_keys_is_refused(dtype):
    with pytest.raises(UsageError, match="floating-point"):
        gpt("qkv").new_cache(dtype=dtype)


def test_layers_that_store_differently_are_counted_one_by_one():
    """By hand: 4 heads; thin keys of 6 beside values of 4, then 2 stored heads of one row of 4."""
    cache = design("all of it").new_cache(3, capacity=5, dtype="float32")
    shapes = [[buffer.shape for buffer in layer.buffers] for layer in cache.layers]
    assert shapes == [[(3, 4, 5, 6), (3, 4, 5, 4)], [(3, 2, 5, 4)]]
    assert cache.capacity_nbytes == 3 * 5 * 4 * (4 * 6 + 4 * 4 + 2 * 4)


@pytest.mark.parametrize(
    "stored", [[], [[]], [[(2, 4)], []], [[(0, 4)]], [[(2, 0)]], [[(2, 4)], [(2, 4), (2, -1)]]]
)
def test_a_cache_of_nothing_is_refused(stored):
    with pytest.raises(UsageError, match="must be at least 1"):
        KVCache(stored, 1, 4)
    for batch, capacity in ((0, 4), (1, 0)):
        with pytest.raises(UsageError, match="must be at least 1"):
            KVCache([[(2, 4)]], batch, capacity)


# ---- sequences of different length


@pytest.mark.parametrize("name", ["qkv", "q=k=v+", "q-gqa-2", "all of it"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_padded_prompt_is_the_prompt_alone(name, scheme, backend, rng):
    """With the cache, token by token after it, and without a cache."""
    model, pad = design(name, **SCHEMES[scheme]), [2, 0, 4]
    ids = rng.integers(0, 11, (3, 8))
    alone = [host(model(row[None, n:]))[0] for row, n in zip(ids, pad, strict=True)]
    cache = model.new_cache(3)
    found = [host(model(ids[:, :5], cache=cache, pad=pad))]
    found += [host(model(ids[:, i : i + 1], cache=cache)) for i in (5, 6, 7)]
    assert cache.lengths.tolist() == [6, 8, 4]
    for logits in (np.concatenate(found, axis=1), host(model(ids, pad=pad))):
        assert np.isfinite(logits).all()
        for row, n, expected in zip(logits, pad, alone, strict=True):
            np.testing.assert_allclose(row[n:], expected, rtol=0, atol=1e-10)


def test_bytes_of_sequences_of_different_length(backend):
    model = gpt("q-k=v")
    cache = model.new_cache(3, capacity=9, dtype="float32")
    model(np.ones((3, 5), int), cache=cache, pad=[0, 2, 4])
    per_token = cache_bytes_per_token(model.config, 4)
    assert cache.nbytes == (5 + 3 + 1) * per_token
    assert cache.capacity_nbytes == 3 * 9 * per_token
    cache.trim([5, 0, 1])
    assert (len(cache), cache.nbytes) == (5, 6 * per_token)


def test_speculation_in_a_batch(backend, rng):
    """Read a guess, keep the right part of it in each sequence, and continue."""
    model, ids = gpt("gqa-2", position="rope"), rng.integers(0, 11, (3, T))
    expected, cache = host(model(ids)), model.new_cache(3)
    model(ids[:, :4], cache=cache)
    guess, right = ids[:, 4:8].copy(), [3, 0, 4]
    for row, n in zip(guess, right, strict=True):
        row[n:] = (row[n:] + 1) % 11
    model(guess, cache=cache)
    cache.trim(4 + np.array(right))
    assert cache.lengths.tolist() == [7, 4, 8]
    then = np.stack([ids[b, 4 + n : 7 + n] for b, n in enumerate(right)])  # (3, 3)
    found = host(model(then, cache=cache))
    for b, n in enumerate(right):
        np.testing.assert_allclose(found[b], expected[b, 4 + n : 7 + n], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "pad", [1, [1], [0, 0, 0], [0, -1], [0, 3], [0.0, 1.0], [True, False], [[0, 1]], "ab"]
)
def test_padding_that_does_not_fit_is_refused(pad):
    model = gpt("qkv")
    for cache in (None, model.new_cache(2)):
        with pytest.raises(UsageError, match="pad is 2 whole numbers from 0 to 2"):
            model([[1, 2], [3, 4]], cache=cache, pad=pad)


def test_a_batch_of_padding_is_refused():
    with pytest.raises(UsageError, match="every token of this batch is padding"):
        gpt("qkv")([[1, 2], [3, 4]], pad=[2, 2])


def test_positions_end_for_the_longest_sequence():
    model = gpt("qkv")
    cache = model.new_cache(2)
    model(np.ones((2, 11), int), cache=cache, pad=[0, 5])
    with pytest.raises(UsageError, match="13 tokens, but this model has 12 positions"):
        model([[1, 1], [1, 1]], cache=cache)
    model([[1, 1], [1, 1]], cache=cache, pad=[1, 0])
    assert cache.lengths.tolist() == [12, 8]


def test_a_single_token_of_equal_rows_needs_no_mask(monkeypatch, rng):
    """Nor a copy: most of the time of decoding is spent here."""
    model, seen = gpt("q-k=v"), []
    cache = model.new_cache(2)
    model(rng.integers(0, 11, (2, 3)), cache=cache, pad=[0, 1])
    model(rng.integers(0, 11, (2, 1)), cache=cache, pad=[1, 0])  # equal again
    attend = Attention.attend

    def noting(self, q, rows, at, mask=None, asked=None):
        seen.append((mask, at, [row.data.base is not None for row in rows]))
        return attend(self, q, rows, at, mask, asked)

    monkeypatch.setattr(Attention, "attend", noting)
    model(rng.integers(0, 11, (2, 1)), cache=cache)
    assert seen == [(None, slice(0, 4), [True])] * 2


class Doubling(KVCache):
    """A user's own, with an option of its own."""

    def __init__(self, stored, batch, capacity, dtype, times=1):
        super().__init__(stored, batch, capacity * times, dtype)


def test_a_model_makes_a_cache_of_any_kind():
    cache = gpt("qkv").new_cache(2, 5, "float32", kind=Doubling, times=3)
    assert isinstance(cache, Doubling)
    assert (cache.batch, cache.capacity, cache.dtype.name) == (2, 15, "float32")
