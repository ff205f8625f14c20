"""Other kinds of cache: read in blocks, int8, branches, files; what rounding does; check-cache."""

import json
import zipfile
from itertools import product

import numpy as np
import pytest
from toys import EVERY, gpt, host

from minqkv import backend as backends
from minqkv import caches, online
from minqkv.analysis.laws import LAWS, SINKS, WINDOW, Case, laws, schemes
from minqkv.analysis.quantised import USES, rounded, rounding_errors
from minqkv.cache import KVCache, LayerCache
from minqkv.caches import BranchCache, Int8Cache, Int8RingCache, RingCache, saved
from minqkv.caches import int8 as int8_module
from minqkv.caches.branch import BranchLayer
from minqkv.caches.int8 import Int8Layer
from minqkv.functional import cross_entropy
from minqkv.runtime import parallel
from minqkv.runtime.backend import Backend
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.files import read_arrays, write_arrays
from minqkv.tensor import Tensor, no_grad

KINDS = {  # name -> kind, window, sinks, options
    "float16": (KVCache, None, 0, {"dtype": "float16"}),
    "float16 ring": (RingCache, WINDOW, SINKS, {"dtype": "float16"}),
    "int8": (Int8Cache, None, 0, {}),
    "int8, window": (Int8Cache, WINDOW, SINKS, {}),
    "int8 ring": (Int8RingCache, WINDOW, SINKS, {}),
}
pytestmark = pytest.mark.usefixtures("nothing_is_clean")
grow = KVCache.grow
FEW = ["qkv", "q=k=v+", "q-gqa-2", "thin-2"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Small blocks, so that the caches of the tests have several."""
    monkeypatch.setattr(online, "BLOCK", 5)


def broken(case, names=LAWS):
    """Law -> error or fault, for the laws that are broken at 1e-10."""
    found = ((law, fault or error) for law, error, fault in laws(case) if law in names)
    return {law: what for law, what in found if isinstance(what, str) or not what <= 1e-10}


def model_of(variant="qkv", position="learned", **changes):
    """A model in float64 with four heads and 24 positions."""
    return gpt(variant, position=position, block_size=24, **changes)


# ---- laws


@pytest.mark.parametrize("variant", FEW)
@pytest.mark.parametrize("name", KINDS)
def test_every_law(name, variant, small_blocks):
    kind, window, sinks, options = KINDS[name]
    position, value = schemes(variant)[-1]
    assert broken(Case(kind, variant, position, value, window, sinks, options=options)) == {}


@pytest.mark.parametrize("variant", EVERY)
def test_any_chunking_of_every_variant_and_position(variant, small_blocks):
    for name in ("float16", "int8, window", "int8 ring"):
        kind, window, sinks, options = KINDS[name]
        for position, value in schemes(variant):
            case = Case(kind, variant, position, value, window, sinks, options=options)
            for chunks in ([24], [7, 1, 1, 9, 6]):
                cache = case.cache()
                assert max(case.read(cache, n) for n in chunks) < 1e-10


@pytest.mark.parametrize("name", ["float16", "int8 ring"])
def test_chunks_and_rows_on_every_backend(name, backend, small_blocks):
    kind, window, sinks, options = KINDS[name]
    case = Case(kind, "q=k=v+", "rope", "raw", window, sinks, options=options)
    for law in ("rows of a batch", "bytes", "clone"):
        assert LAWS[law](case, 15) < 1e-10


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_sequences_shared_out_to_cores(name, monkeypatch, small_blocks):
    kind, _, _, options = KINDS[name]
    case = Case(kind, "q-k=v", "rope", options=options)
    cache, shares = case.cache(), []
    monkeypatch.setattr(backends, "LARGE_CACHE", 0)
    monkeypatch.setattr(KVCache, "grow", lambda cache, n: (shares.append(n), grow(cache, n)))
    parallel.set_threads(2)
    try:
        assert max(case.read(cache, n) for n in (9, 1, 3, 1)) < 1e-10
    finally:
        parallel.set_threads(1)
    assert shares == [9, 1, 3, 1]


# ---- reading in blocks


def whole_and_in_blocks(model, q, rows, at, mask, step):
    """The same queries, answered by attention at once, and in blocks."""
    attention = model.blocks[0].attn
    asked = slice(17, 19)
    whole = host(attention.attend(Tensor(q), [Tensor(row) for row in rows], at, mask, asked))
    found = online.in_blocks(
        attention, q, lambda piece: [row[:, :, piece] for row in rows], at, mask, asked,
        rows[0].shape[2], step,
    )  # fmt: skip
    return whole, host(online.answer(found))


@pytest.mark.parametrize("variant", EVERY)
def test_blocks_are_the_whole(variant, backend, rng):
    """Rows of different length, a mask that leaves some blocks empty, and large scores."""
    for position, value in schemes(variant):
        model = model_of(variant, position, rope_value=value)
        spec = model.config.specs[0]
        shapes = [(3, heads, 19, width) for heads, width in spec.stored(model.config)]
        rows = [backends.upload(20 * rng.standard_normal(shape)) for shape in shapes]
        q = backends.upload(rng.standard_normal((3, 4, 2, shapes[0][-1])))
        seen = np.arange(19) <= np.array([[2, 3], [17, 18], [9, 10]])[:, None, :, None]
        seen[1, :, :, 4:11] = False
        keys = np.where(seen.any(axis=2)[:, 0], np.arange(19), -1)  # (B, S)
        for at, mask in ((slice(0, 19), None), (keys, backends.upload(seen))):
            for step in (1, 4, 18, 19):
                whole, found = whole_and_in_blocks(model, q, rows, at, mask, step)
                np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_a_merge_must_rescale(monkeypatch, small_blocks):
    """Each part is scaled by the largest score so far."""

    def sums_only(a, b):
        return a[0] + b[0], a[1] + b[1], backends.xp.maximum(a[2], b[2])

    case = Case(KVCache, options={"dtype": "float16"})
    monkeypatch.setattr(online, "merge", sums_only)
    assert "any chunking" in broken(case, ["any chunking"])


def test_float16_is_never_converted_whole_for_one_token(monkeypatch, rng):
    """Nor is anything converted in blocks where it fits into one, or while a trace looks on."""
    model, sizes = model_of(), []
    ids = rng.integers(0, 11, (1, 24))
    cache = model.new_cache(dtype="float16")
    model(ids[:, :20], cache=cache)
    unpack = LayerCache.unpack

    def spy(stored, dtype):
        sizes.append(stored[0].shape[2])
        return unpack(stored, dtype)

    monkeypatch.setattr(LayerCache, "unpack", staticmethod(spy))
    monkeypatch.setattr(online, "BLOCK", 8)
    model(ids[:, 20:21], cache=cache)
    assert sizes == [8, 8, 5] * 2
    monkeypatch.setattr(online, "BLOCK", 1024)
    sizes.clear()
    model(ids[:, 21:22], cache=cache)
    assert sizes == [22] * 2


def test_half_precision_is_converted_as_numpy_does(rng):
    every = np.arange(1 << 16, dtype="uint16").view("float16")
    finite = every[np.isfinite(every)]
    for part in (finite, every, every[:0], finite.reshape(2, -1)[:, ::3]):
        found = Backend().converted(part, "float32")
        assert found.dtype == "float32"
        np.testing.assert_array_equal(found, part.astype("float32"))
        assert np.array_equal(np.signbit(found), np.signbit(part.astype("float32")))


# ---- int8


def test_int8_is_within_half_a_scale(backend, rng):
    rows = rng.standard_normal((2, 3, 40, 8)) * 10.0 ** rng.integers(-30, 30, (2, 3, 40, 1))
    rows[0, 0, 0], rows[0, 0, 1] = 0, 1e-42  # no scale, no NaN
    whole, scale = (host(a) for a in int8_module.rounded(backends.upload(rows)))
    assert (whole.dtype, scale.dtype, scale.shape) == ("int8", "float32", (2, 3, 40, 1))
    given = Int8Layer.pack([backends.upload(rows)], "float64")
    (back,) = (host(a) for a in Int8Layer.unpack(given, "float64"))
    assert (np.abs(back - rows) <= scale / 2 * (1 + 1e-6) + 1e-36).all()
    assert (np.abs(whole).max(axis=-1) == 127).sum() == 2 * 3 * 40 - 2
    assert not back[0, 0, :2].any()
    assert not scale[0, 0, :2].any()


def test_one_scale_for_all_heads_breaks_the_bound(monkeypatch, rng):
    rows = rng.standard_normal((1, 3, 10, 8)) * np.array([1, 10, 100.0])[:, None, None]

    def error_over_bound():
        (back,) = Int8Layer.unpack(Int8Layer.pack([rows], "float64"), "float64")
        scale = np.abs(rows).max(axis=-1, keepdims=True) / 127
        return (np.abs(back - rows) / (scale / 2)).max()

    assert error_over_bound() < 1 + 1e-6
    right = int8_module.rounded

    def shared(row):
        together = row.swapaxes(1, 2).reshape(1, 10, 24)
        whole, scale = right(together)
        return whole.reshape(1, 10, 3, 8).swapaxes(1, 2), scale[:, None].repeat(3, 1)

    monkeypatch.setattr(int8_module, "rounded", shared)
    assert error_over_bound() > 10


@pytest.mark.parametrize("variant", EVERY)
def test_int8_bytes(variant, rng):
    model = model_of(variant)
    spec = model.config.specs[0]
    cache = model.new_cache(2, 10, kind=Int8Cache)
    model(rng.integers(0, 11, (2, 7)), cache=cache, pad=[0, 3])
    per_token = 2 * sum(heads * (width + 4) for heads, width in spec.stored(model.config))
    assert cache.nbytes == (7 + 4) * per_token
    assert cache.capacity_nbytes == 20 * per_token
    assert cache.capacity_nbytes == sum(b.nbytes for layer in cache.layers for b in layer.buffers)
    names = {buffer.dtype.name for layer in cache.layers for buffer in layer.buffers}
    assert names == {"int8", "float32"}


# ---- what rounding does


def test_rounding_errors_by_hand(rng):
    """Of keys alone, values alone and both, against models whose reading is replaced."""
    for variant in ("qkv", "q-k=v"):
        model = model_of(variant, "rope")
        ids, y = rng.integers(0, 11, (5, 9)), rng.integers(0, 11, (5, 9))
        y[0, 3:], y[4] = -100, -100
        rows = {row["rounded"]: row for row in rounding_errors(model, ids, y, Int8Cache, batch=2)}
        assert list(rows) == ["nothing", *USES]
        with no_grad():
            exact = model(ids)
            for name, (keys, values) in USES.items():
                with rounded(model, Int8Cache, None, keys, values):
                    found = model(ids)
                away = np.abs(found.data - exact.data)[y != -100]
                expected = np.exp(cross_entropy(found, y, -100).item())
                assert rows[name]["perplexity"] == pytest.approx(expected, rel=1e-12)
                assert rows[name]["largest"] == pytest.approx(away.max(), rel=1e-12)
                assert rows[name]["mean"] == pytest.approx(away.mean(), rel=1e-12)
                assert 0 < rows[name]["mean"] < rows[name]["largest"] < 0.5
        assert rows["nothing"]["largest"] == rows["nothing"]["mean"] == 0
        assert len({row["largest"] for row in rows.values()}) == 4
        assert np.array_equal(model(ids).data, exact.data)  # all is as before


def test_both_uses_are_what_the_cache_does(rng, small_blocks):
    model, ids = model_of("q-k=v"), rng.integers(0, 11, (2, 20))
    with rounded(model, Int8Cache):
        expected = host(model(ids))
    cache = model.new_cache(2, kind=Int8Cache)
    found = np.concatenate(
        [host(model(ids[:, i : i + 4], cache=cache)) for i in range(0, 20, 4)], 1
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert np.abs(expected - host(model(ids))).max() > 1e-4


def test_half_precision_and_none(rng):
    """An exact cache changes nothing; one in half precision less than one of 8 bits."""
    model, ids = model_of("q-k=v"), rng.integers(0, 11, (2, 20))
    means = []
    for name in ("plain", "float16", "int8"):
        _, *rows = rounding_errors(model, ids, ids, **caches.options(name))
        means.append(max(row["mean"] for row in rows))
    assert means[0] == 0 < means[1] < means[2] / 4


def test_nothing_to_score_is_refused():
    with pytest.raises(UsageError, match="every target is ignored"):
        rounding_errors(model_of(), np.zeros((1, 3), int), np.full((1, 3), -100))


# ---- branches


def branched(case, start, n=2):
    """A cache of the first `start` tokens, n branches of it, and their rows of the case."""
    cache = case.cache()
    case.read(cache, start)
    return cache, BranchCache(cache, n), np.repeat(np.arange(3), n)


@pytest.mark.parametrize("variant", EVERY)
def test_branches_are_a_full_cache(variant):
    """Of prompts of equal length and not; with and without a window; exact and rounded."""
    choices = product(schemes(variant)[::2], ((None, 0), (WINDOW, SINKS)), (KVCache, Int8Cache))
    for (position, value), (window, sinks), kind in choices:
        case = Case(kind, variant, position, value, window, sinks)
        for start in (6, [5, 3, 7]):
            _, cache, rows = branched(case, start)
            assert cache.batch == 6
            for counts in (1, 3, [1, 0, 2, 1, 3, 0], 1):
                assert case.read(cache, counts, rows) < 1e-10


def test_branches_are_independent(backend):
    case = Case(KVCache, "q-gqa-2", "rope")
    original, cache, rows = branched(case, [5, 3, 7], 3)
    case.read(original, 2, wrong=True)  # the prefix is a copy
    original.trim(0)
    case.read(original, 4, wrong=True)
    assert case.read(cache, 3, rows) < 1e-10
    cache.trim([6, 7, 8, 4, 3, 6, 9, 8, 10])
    assert case.read(cache, [2, 0, 1, 1, 1, 1, 2, 0, 1], rows) < 1e-10
    twin = cache.clone()
    case.read(cache, 1, rows, wrong=True)
    assert case.read(twin, 2, rows) < 1e-10
    single = BranchCache(twin_of_one(case), 3)
    case.read(single, [1, 2, 0], [0, 0, 0])
    beams = single.clone([2, 0, 0, 1])
    case.read(single, 1, [0, 0, 0], wrong=True)
    assert beams.lengths.tolist() == [5, 6, 6, 7]
    assert case.read(beams, 2, [0, 0, 0, 0]) < 1e-10
    assert beams.layers[0].prefix is single.layers[0].prefix


def twin_of_one(case):
    cache = case.cache(batch=1)
    case.read(cache, 5, [0])
    return cache


def test_the_prefix_is_stored_once(rng):
    model = model_of("q-k=v")
    cache = model.new_cache(2)
    model(rng.integers(0, 11, (2, 7)), cache=cache, pad=[0, 2])
    per_token = 2 * 16 * 8  # layers, numbers, bytes
    for n in (1, 4):
        twin = BranchCache(cache, n, capacity=10)
        assert twin.nbytes == cache.nbytes == (7 + 5) * per_token
        model(rng.integers(0, 11, (2 * n, 3)), cache=twin)
        assert twin.nbytes == (7 + 5 + 2 * n * 3) * per_token
        assert twin.capacity_nbytes == (2 * 7 + 2 * n * (10 - 5)) * per_token
        arrays = [
            array
            for layer in twin.layers
            for array in (*layer.buffers, *layer.prefix.buffers)
        ]  # fmt: skip
        assert twin.capacity_nbytes == sum(array.nbytes for array in arrays)


def test_the_prefix_is_read_in_one_product(monkeypatch, rng):
    model, seen = model_of(), []
    cache = model.new_cache(1)
    model(rng.integers(0, 11, (1, 7)), cache=cache)
    twin = BranchCache(cache, 5)
    part = online.part

    def spy(attention, q, rows, at, mask, asked):
        seen.append((q.shape, rows[0].shape))
        return part(attention, q, rows, at, mask, asked)

    monkeypatch.setattr(online, "part", spy)
    model(rng.integers(0, 11, (5, 2)), cache=twin)
    assert sorted(seen[:2]) == [((1, 4, 10, 4), (1, 4, 7, 4)), ((5, 4, 2, 4), (5, 4, 2, 4))]


def test_what_branches_refuse(rng):
    model = model_of()
    cache = model.new_cache(2)
    model(rng.integers(0, 11, (2, 4)), cache=cache, pad=[0, 1])
    twin = BranchCache(cache, 2, capacity=6)
    model(rng.integers(0, 11, (4, 1)), cache=twin)
    before = twin.lengths.tolist(), twin.nbytes
    for n in (3, 2, [4, 4, 3, 2], -1):
        with pytest.raises(UsageError, match="shared prefix"):
            twin.trim(n)
    for n in ([6, 5, 4, 4], "5", 4.5):
        with pytest.raises(UsageError):
            twin.trim(n)
    with pytest.raises(UsageError, match="6 positions; 7 are needed"):
        model(rng.integers(0, 11, (4, 2)), cache=twin)
    with pytest.raises(UsageError, match="cloned all together"):
        twin.clone([0, 1])
    with pytest.raises(UsageError, match="cannot have branches"):
        BranchCache(twin, 2)
    with pytest.raises(UsageError, match="cannot have branches"):
        BranchCache(model_of(window=3).new_cache(kind=RingCache), 2)
    for n in (0, 1.5):
        with pytest.raises(UsageError, match="branches of a sequence must be"):
            BranchCache(cache, n)
    for capacity in (3, -1):
        with pytest.raises(UsageError, match="less than the prefix of 4"):
            BranchCache(cache, 2, capacity)
    assert (twin.lengths.tolist(), twin.nbytes) == before
    model(rng.integers(0, 11, (4, 1)), cache=twin)


@pytest.mark.parametrize("kind", [KVCache, Int8Cache])
def test_a_prefix_goes_on_until_branches_begin(kind):
    """It is empty at first, then read in two pieces, of other lengths in each sequence."""
    case = Case(kind, "q-gqa-2", "rope")
    rows = np.repeat(np.arange(3), 2)
    cache = BranchCache(case.cache(), 2)
    assert (len(cache), cache.nbytes) == (0, 0)
    for counts in ([3, 0, 5], [4, 2, 1]):
        once = cache.once(2)
        assert type(once) is kind
        assert case.read(once, counts) < 1e-10
        cache.spread(once)
    assert cache.lengths.tolist() == [7, 7, 2, 2, 6, 6]
    assert cache.nbytes == once.nbytes == cache.row_nbytes[::2].sum()
    assert case.read(cache, [1, 2, 0, 4, 1, 1], rows) < 1e-10
    with pytest.raises(UsageError, match="only before they begin"):
        cache.once(2)
    with pytest.raises(UsageError, match="only before they begin"):
        BranchCache(once, 2).once(3)


@pytest.mark.parametrize("name", caches.KINDS)
def test_branches_if_the_kind_can_have_them(name, rng):
    model = model_of("q-k=v", window=WINDOW, sinks=SINKS)
    cache = model.new_cache(2, **caches.options(name))
    model(rng.integers(0, 11, (2, 9)), cache=cache)
    assert caches.branches(cache, 1) is cache
    several = caches.branches(cache, 3)
    assert isinstance(several, BranchCache) != isinstance(cache, RingCache)
    assert (several.batch, several.lengths.tolist()) == (6, [9] * 6)
    assert several.nbytes == cache.nbytes * (3 if isinstance(cache, RingCache) else 1)


def test_an_interrupted_step_leaves_branches_as_they_were(rng, monkeypatch):
    case = Case(KVCache, "qkv")
    _, cache, rows = branched(case, 5)
    case.read(cache, 2, rows)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(case.model.blocks[1].attn.wo, "forward", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            case.model(np.zeros((6, 3), int), cache=cache)
    assert cache.lengths.tolist() == [7] * 6
    assert case.read(cache, 3, rows) < 1e-10


def test_tails_that_are_shared_are_noticed(monkeypatch):
    """A mutant: branches of a prompt write into one tail."""
    write = BranchLayer.write

    def shared(self, rows, at):
        write(self, rows, at)
        for buffer in self.buffers:
            buffer[1::2] = buffer[::2]

    case = Case(KVCache, "qkv")
    _, cache, rows = branched(case, 6)
    monkeypatch.setattr(BranchLayer, "write", shared)
    case.read(cache, 2, rows)
    cache.trim([7, 8, 8, 7, 7, 8])  # other tokens in the branches of a prompt
    assert max(case.read(cache, 1, rows) for _ in range(2)) > 1e-3


# ---- files

SAVED = {  # name -> options of new_cache
    name: caches.options(name) for name in caches.KINDS
} | {"float16 ring": {"kind": RingCache, "dtype": "float16"}}


def read_some(model, cache, rng):
    """Prompts of different length, and more turns of a ring than one, for two sequences."""
    model(rng.integers(0, 11, (2, 9)), cache=cache, pad=[0, 2])
    for _ in range(4):
        model(rng.integers(0, 11, (2, 1)), cache=cache)
    model(rng.integers(0, 11, (2, 3)), cache=cache, pad=[0, 1])
    return cache


@pytest.mark.parametrize("name", SAVED)
def test_saved_and_loaded_is_the_same(name, backend, rng, tmp_path):
    """A loaded cache has the same bits, and so does what follows. Trimmed rows are not saved."""
    path = tmp_path / "prompt"
    for variant, position in (("q-gqa-2", "rope"), ("q=k-v+", "learned")):
        model = model_of(variant, position, window=WINDOW, sinks=SINKS)
        cache = read_some(model, model.new_cache(2, **SAVED[name]), rng)
        model(rng.integers(0, 11, (2, 1)), cache=cache)
        cache.trim(cache.lengths - 1)
        caches.save(cache, path, model)
        for capacity in (None, 17, 24):
            twin = caches.load(path, model, capacity=capacity)
            assert type(twin) is type(cache)
            assert twin.capacity == (capacity or 24)
            assert twin.dtype == cache.dtype
            assert twin.lengths.tolist() == cache.lengths.tolist() == [16, 13]
            assert twin.nbytes == cache.nbytes
            for n in (1, 0):
                ids = rng.integers(0, 11, (2, 1 + n))
                mine, theirs = cache.clone(), twin
                pad = [n, 0] if n else None
                found = [host(model(ids[:, : 1 + n], cache=c, pad=pad)) for c in (mine, theirs)]
                np.testing.assert_array_equal(*found)
                theirs.trim([16, 13])
    _, arrays = read_arrays(path, saved.KIND)
    used = 4 + 2 if "ring" in name else 16
    assert {array.shape[2] for array in arrays.values() if array.ndim == 4} == {used}
    for key, array in arrays.items():
        if array.ndim == 4:  # nothing of what was forgotten
            assert not array[np.broadcast_to(arrays["held"][:, None] < 0, array.shape[:3])].any(), (
                key
            )


def test_a_prompt_for_many(rng, tmp_path):
    model = model_of("q-k=v")
    cache, ids = model.new_cache(1), rng.integers(0, 11, (1, 6))
    model(ids[:, :5], cache=cache)
    caches.save(cache, tmp_path / "a", model)
    many = caches.load(tmp_path / "a", model, batch=3, capacity=8)
    assert (many.batch, many.capacity, many.lengths.tolist()) == (3, 8, [5, 5, 5])
    found = host(model(ids[:, 5:].repeat(3, 0), cache=many))
    np.testing.assert_allclose(found[2], host(model(ids))[0, 5:], rtol=0, atol=1e-10)
    caches.save(many, tmp_path / "b", model)
    with pytest.raises(UsageError, match="holds 3 sequences"):
        caches.load(tmp_path / "b", model, batch=2)
    assert caches.load(tmp_path / "b", model, capacity=2).capacity == 6


@pytest.mark.parametrize("name", ["plain", "ring"])
def test_a_file_of_more_positions_than_block_size(name, rng, tmp_path):
    model = model_of("q-k=v", "rope", window=WINDOW, sinks=SINKS)
    cache, ids = model.new_cache(1, 60, **SAVED[name]), rng.integers(0, 11, (1, 60))
    model(ids[:, :45], cache=cache)
    caches.save(cache, tmp_path / "a", model)
    assert caches.load(tmp_path / "a", model).capacity == 45
    twin = caches.load(tmp_path / "a", model, room=15)
    assert twin.capacity == 60
    found, expected = (host(model(ids[:, 45:], cache=c)) for c in (twin, cache))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    edited(tmp_path / "a", put(1, "lengths", np.array([46 if name == "plain" else 1 << 40])))
    with pytest.raises(EnvironmentFault, match="is damaged"):
        caches.load(tmp_path / "a", model)


def test_what_cannot_be_saved(rng, tmp_path):
    model = model_of()
    cache = model.new_cache(1)
    with pytest.raises(UsageError, match="empty"):
        caches.save(cache, tmp_path / "a", model)
    model([[1, 2]], cache=cache)
    own = model.new_cache(1, kind=type("Own", (KVCache,), {}))
    model([[1]], cache=own)
    for other in (own, BranchCache(cache, 2)):
        with pytest.raises(UsageError, match="cannot be saved"):
            caches.save(other, tmp_path / "a", model)
    with pytest.raises(UsageError, match="a different model"):
        caches.save(cache, tmp_path / "a", model_of("q-k=v"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(EnvironmentFault, match="cannot write"):
        caches.save(cache, tmp_path, model)


def test_a_load_that_forgets_lengths_is_noticed(monkeypatch, rng, tmp_path):
    """A mutant: every sequence is taken to be as long as the longest."""
    model, ids = model_of(), rng.integers(0, 11, (2, 1))
    cache = read_some(model, model.new_cache(2), rng)
    caches.save(cache, tmp_path / "a", model)
    expected = host(model(ids, cache=cache))
    assert np.array_equal(host(model(ids, cache=caches.load(tmp_path / "a", model))), expected)
    monkeypatch.setattr(saved, "agreed", lambda lengths: int(lengths.max()))
    monkeypatch.setattr(LayerCache, "held", np.array([[*range(16)], [*range(13), -1, -1, -1]]))
    wrong = host(model(ids, cache=caches.load(tmp_path / "a", model)))
    assert np.array_equal(wrong[0], expected[0])
    assert np.abs(wrong[1] - expected[1]).max() > 0.1


@pytest.fixture
def file(rng, tmp_path):
    """(path of a saved ring, its model)."""
    model = model_of(window=WINDOW, sinks=SINKS)
    caches.save(read_some(model, model.new_cache(2, kind=RingCache), rng), tmp_path / "a", model)
    return tmp_path / "a", model


def test_another_model_is_refused(file):
    path, model = file
    caches.load(path, model)
    changed = model_of(window=WINDOW, sinks=SINKS)
    changed.blocks[0].attn.wk.weight.data[0, 0] += 1e-12
    for other in (changed, model_of(window=WINDOW + 1, sinks=SINKS), model_of("q-k=v")):
        with pytest.raises(EnvironmentFault, match="another model"):
            caches.load(path, other)


def test_a_file_that_unpacks_to_more_than_its_size_is_not_unpacked(rng, tmp_path):
    model, path = model_of(), tmp_path / "a"
    cache = model.new_cache(1)
    model([[1, 2]], cache=cache)
    caches.save(cache, path, model)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("9.0.npy", bytes(1 << 20))
    with pytest.raises(EnvironmentFault, match="unpacks to more than its own size"):
        caches.load(path, model)


def edited(path, change):
    """Write the file again, its (about, arrays) changed."""
    about, arrays = read_arrays(path, saved.KIND)
    change(about, arrays)
    write_arrays(path, saved.KIND, about, arrays)


def put(where, key, value):
    """A change of the file: an item of its dict 0 or 1 is replaced; None removes it."""

    def change(*parts):
        if value is None:
            del parts[where][key]
        else:
            parts[where][key] = value(parts[where][key]) if callable(value) else value

    return change


def first(value):
    """A change of an array: its first number."""

    def change(array):
        array = array.copy()
        array.flat[0] = value
        return array

    return change


HOSTILE = {
    "another version": put(0, "version", 2),
    "no version": put(0, "version", None),
    "an unknown class": put(0, "class", "BranchCache"),
    "a class that is none": put(0, "class", ["KVCache"]),
    "no class": put(0, "class", None),
    "another class": put(0, "class", "KVCache"),
    "a dtype of integers": put(0, "dtype", "int8"),
    "another dtype": put(0, "dtype", "float32"),
    "a dtype that is none": put(0, "dtype", {"a": 1}),
    "options of another kind": put(0, "options", {"colour": 3}),
    "no options": put(0, "options", 7),
    "another window": put(0, "options", {"window": 5, "sinks": SINKS}),
    "a window and rows that overflow": lambda about, arrays: (
        about.update(options={"window": 10**30, "sinks": SINKS}),
        arrays.update(
            {
                key: np.zeros((2, 4, 16, 4)) if array.ndim == 4 else array
                for key, array in arrays.items()
            },
            held=np.where(np.arange(16) < arrays["lengths"][:, None], np.arange(16), -1),
        ),
    ),
    "an absurd window": put(0, "options", {"window": 10**30, "sinks": SINKS}),
    "a window of text": put(0, "options", {"window": "4", "sinks": SINKS}),
    "no lengths": put(1, "lengths", None),
    "negative lengths": put(1, "lengths", np.array([16, -1])),
    "absurd lengths": put(1, "lengths", np.array([16, 1 << 60])),
    "lengths of floats": put(1, "lengths", np.array([16.0, 13.0])),
    "other lengths": put(1, "lengths", np.array([16, 12])),
    "lengths of a larger batch": put(1, "lengths", np.full(1 << 20, 16)),
    "one length": put(1, "lengths", np.array(16)),
    "no lengths at all": put(1, "lengths", np.zeros(0, np.int64)),
    "a position of another slot": put(1, "held", first(1)),
    "a position ahead": put(1, "held", first(24)),
    "a position below -1": put(1, "held", first(-2)),
    "a forgotten position": put(1, "held", first(-1)),
    "positions of fewer slots": put(1, "held", lambda a: a[:, :-1]),
    "positions of floats": put(1, "held", lambda a: a.astype(float)),
    "a missing array": put(1, "1.0", None),
    "fewer sequences": put(1, "0.1", lambda a: a[:1]),
    "fewer heads": put(1, "0.1", lambda a: a[:, :1]),
    "wider rows": put(1, "0.1", lambda a: np.concatenate([a, a], 3)),
    "single precision": put(1, "0.1", lambda a: a.astype("float32")),
    "bytes": put(1, "0.1", lambda a: a.astype("S8")),
    "not a number": put(1, "0.1", first(np.nan)),
    "infinity": put(1, "0.1", first(np.inf)),
    "a layer too many": lambda about, arrays: arrays.update({"2.0": arrays["1.0"]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, file):
    path, model = file
    edited(path, HOSTILE[name])
    with pytest.raises(EnvironmentFault) as caught:
        caches.load(path, model)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_cut_short_or_flipped(file, rng):
    path, model = file
    whole = path.read_bytes()
    expected = [host(row) for layer in caches.load(path, model).layers for row in layer.rows]
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(EnvironmentFault):
            caches.load(path, model)
    for at in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found = [host(row) for layer in caches.load(path, model).layers for row in layer.rows]
        except EnvironmentFault:
            continue
        for mine, theirs in zip(found, expected, strict=True):  # a byte that nobody reads
            np.testing.assert_array_equal(mine, theirs)


def test_files_that_are_something_else(file, tmp_path):
    path, model = file
    with pytest.raises(EnvironmentFault, match="does not exist"):
        caches.load(tmp_path / "b", model)
    with pytest.raises(EnvironmentFault, match="plain file"):
        caches.load(tmp_path, model)
    write_arrays(path, "checkpoint", {}, {"a": np.ones(3)})
    with pytest.raises(EnvironmentFault, match="is a checkpoint, not a prompt cache"):
        caches.load(path, model)


# ---- the command line


def test_names_of_kinds():
    assert caches.options("plain") == {"kind": KVCache, "dtype": None}
    assert caches.options("float16") == {"kind": KVCache, "dtype": "float16"}
    assert caches.options("ring", window=3) == {"kind": RingCache, "dtype": None, "window": 3}
    assert caches.options("int8-ring") == {"kind": Int8RingCache, "dtype": None}
    with pytest.raises(UsageError, match="unknown cache 'rink'") as caught:
        caches.options("rink")
    assert "ring" in caught.value.hint
    with pytest.raises(AttributeError, match="no attribute"):
        caches.nothing  # noqa: B018


OWN = """
import sys
from minqkv import KVCache
from minqkv.cache import LayerCache

class Good(KVCache):
    pass

class Lazy(LayerCache):
    def trim(self, n):
        raise OSError("of my own\\nand more")

class Quitting(LayerCache):
    def write(self, rows, at):
        sys.exit(0)

class Forgets(LayerCache):
    def write(self, rows, at):
        super().write([row * 0.999 for row in rows], at)

class Infinite(LayerCache):
    def write(self, rows, at):
        super().write([row / 0 for row in rows], at)

class Overflows(KVCache):
    layer_kind = Infinite

class Raises(KVCache):
    layer_kind = Lazy

class Quits(KVCache):
    layer_kind = Quitting

class Wrong(KVCache):
    layer_kind = Forgets

class Other(KVCache):
    layer_kind = dict

class Needs(KVCache):
    def __init__(self, colour):
        pass

class Alone:
    pass

def function():
    pass
"""


@pytest.fixture
def own(cli, monkeypatch, tmp_path):
    """check-cache for a class of the module above, of one variant: (code, stdout, stderr)."""
    (tmp_path / "own_caches.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name, *args: cli("check-cache", f"own_caches:{name}", "--variants", "mqa", *args)


def test_check_cache(own, monkeypatch):
    monkeypatch.setattr("minqkv.analysis.laws.POSITIONS", ["learned"])
    code, out, _ = own("Good")
    assert code == 0
    assert out.count("ok") == len(LAWS)
    code, out, _ = own("Wrong", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 1
    assert list(rows) == [*LAWS]
    assert not rows["any chunking"]["ok"]
    assert rows["bytes"]["ok"]
    assert 1e-10 < rows["any chunking"]["error"] < 1
    assert rows["any chunking"]["found"].startswith("mqa, learned: logits differ by")
    assert own("Wrong", "--bound", "10")[0] == 0


@pytest.mark.parametrize(
    ("name", "says"), [("Raises", "OSError: of my own"), ("Quits", "SystemExit: 0")]
)
def test_exceptions_of_the_user_are_findings(name, says, own):
    code, out, err = own(name)
    assert code == 1
    assert f"mqa, learned: {says}" in out
    assert "and more" not in out
    assert "bug in minqkv" not in out + err


@pytest.mark.filterwarnings("error")
def test_what_a_wrong_cache_computes_is_no_warning(own):
    code, out, _ = own("Overflows")
    assert code == 1
    assert "Warning" not in out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Alone", "own_caches:Alone is not a cache"),
        ("function", "is not a cache"),
        ("Nothing", "unknown class of own_caches 'Nothing'"),
        ("Other", "lacks attend, next, trim, take, lengths, nbytes, pack, unpack"),
        ("Needs", "cannot be made: TypeError: "),
        ("", "a cache of your own is MODULE:CLASS"),
    ],
)
def test_classes_that_do_not_fit(name, says, own):
    code, out, err = own(name)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_variants_of_check_cache(own):
    assert own("Good", "--variants", "mqa,gqa-3")[0] == 2
    assert own("Good", "--bound", "-1")[0] == 2
