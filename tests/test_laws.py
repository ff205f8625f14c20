"""The laws of caches hold for every kind, variant and position scheme, and a cache that breaks one
is caught.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from toys import EVERY, gpt, host

from minqkv import attention
from minqkv.analysis.laws import LAWS, SINKS, WINDOW, Case, check, laws, schemes
from minqkv.cache import KVCache, LayerCache
from minqkv.caches import BranchCache, Int8Cache, RingCache
from minqkv.caches.branch import BranchLayer
from minqkv.caches.ring import RingLayer
from minqkv.runtime.errors import UsageError
from minqkv.tensor import Tensor
from minqkv.variants import POSITIONS

pytestmark = pytest.mark.usefixtures("nothing_is_clean")
KINDS = {  # kind, window, sinks
    "plain": (KVCache, None, 0),
    "plain, window": (KVCache, WINDOW, SINKS),
    "ring": (RingCache, WINDOW, SINKS),
}


def broken(
    kind, variant="qkv", position="learned", rope_value="raw", window=None, sinks=0, make=Case
):
    """Law -> error or fault, for the laws that are broken at 1e-10."""
    case = make(kind, variant, position, rope_value, window, sinks)
    return {law: fault or error for law, error, fault in laws(case) if fault or not error <= 1e-10}


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("name", KINDS)
def test_laws(name, variant):
    kind, window, sinks = KINDS[name]
    for position, value in schemes(variant):
        assert broken(kind, variant, position, value, window, sinks) == {}, (position, value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("variant", ["qkv/q-k=v", "q-k=v/mqa"])
def test_laws_of_layers_that_differ(name, variant):
    kind, window, sinks = KINDS[name]
    assert broken(kind, variant, "rope", "unrotate", window, sinks) == {}


class Branches(Case):
    """Sequences that are branches of one prompt, whose first tokens are stored once."""

    shared = 5

    def new(self, start, batch, **options):
        prompt = super().new(0, 1, **options)
        if start:
            self.read(prompt, start, [0])
        return BranchCache(prompt, batch)

    def parts(self, cache):
        own = cache.lengths - cache.layers[-1].start
        return [
            [(layer.prefix, layer.prefix.lengths), (layer, own)] for layer in cache.layers
        ]  # fmt: skip


@pytest.mark.parametrize("variant", EVERY)
def test_laws_of_branches(variant):
    """Of plain caches, with and without a window, and of int8."""
    for position, value in schemes(variant):
        assert broken(KVCache, variant, position, value, make=Branches) == {}, (position, value)
    for kind in (KVCache, Int8Cache):
        assert broken(kind, variant, position, value, WINDOW, SINKS, Branches) == {}, kind


def test_laws_of_branches_on_every_backend(backend):
    assert broken(KVCache, "q=k=v+", "rope", "raw", make=Branches) == {}


class BlindToWhatIsShared(BranchLayer):
    """Branches see only their own tails."""

    def _shared(self, attention, q, at):
        mixed, total, peak = super()._shared(attention, q, at)
        return 0 * mixed, 0 * total, peak - np.inf


class CountedForAll(BranchLayer):
    """Counts the prefix once for each branch."""

    @property
    def slots(self):
        return self.lengths


class OneTail(BranchLayer):
    """All branches write to one tail."""

    def write(self, rows, at):
        super().write(rows, at)
        for buffer in self.buffers:
            buffer[...] = buffer[:1]


@pytest.mark.parametrize(
    ("mutant", "law"),
    [(BlindToWhatIsShared, "any chunking"), (CountedForAll, "bytes"), (OneTail, "rows of a batch")],
)
def test_branches_that_break_a_law_are_caught(mutant, law, monkeypatch):
    monkeypatch.setattr("minqkv.caches.branch.BranchLayer", mutant)
    assert law in broken(KVCache, "q-k=v", "rope", make=Branches)


@pytest.mark.parametrize("window", [1, 2, 5, 30])
@pytest.mark.parametrize("sinks", [0, 1, 5])
def test_rings_of_other_sizes(window, sinks):
    """Without sinks; of one token; longer than the text."""
    case = Case(RingCache, "q-k=v", "rope", "raw", window, sinks)
    slots = min(window + sinks, 24)
    assert case.cache().layers[0].buffers[0].shape[2] == slots
    for law in set(LAWS) - {"bytes"}:  # counts on a text longer than the ring
        assert max(LAWS[law](case, start) for start in (0, 15)) < 1e-10, law


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("variant", ["qkv", "q=k=v+"])
def test_laws_on_every_backend(name, variant, backend):
    kind, window, sinks = KINDS[name]
    assert broken(kind, variant, "rope", "raw", window, sinks) == {}


def test_check_says_all_that_was_asked():
    rows = []
    for row in check(RingCache):
        rows.append(row)
        if len(rows) == 2 * len(LAWS):
            break
    assert [row["name"] for row in rows] == [*LAWS] * 2
    assert [row["position"] for row in rows[:: len(LAWS)]] == ["learned", "sinusoidal"]
    assert {row["variant"] for row in rows} == {"qkv"}
    assert all(row["ok"] and row["fault"] is None and row["error"] <= row["bound"] for row in rows)


def test_what_is_no_cache_is_refused():
    for kind in (LayerCache, KVCache([[(1, 2)]], 1, 4), int):
        with pytest.raises(UsageError, match="a cache is a class derived from"):
            next(check(kind))


# ---- caches that break a law


class WithoutItself(LayerCache):
    """The current token is left out of its own attention."""

    def attend(self, attention, q, rows, at, mask=None):
        z = super().attend(attention, q, rows, at, mask)
        if q.data.shape[2] > 1 or len(self) == 1 or not isinstance(at, slice):
            return z
        old = [Tensor(row[:, :, :-1]) for row in self.rows]
        return attention.attend(q, old, slice(0, len(self) - 1), asked=at)


class ZeroAtTheStart(LayerCache):
    """Position 0 is stored as zeros."""

    def write(self, rows, slots):
        super().write(rows, slots)
        for buffer in self.buffers:
            buffer[:, :, 0] = 0


class Late(LayerCache):
    """Stores and answers at the right positions, but gives the model positions late by one."""

    def attend(self, attention, q, rows, at, mask=None):
        return super().attend(attention, q, rows, super().next(q.data.shape[2]), mask)

    def next(self, n, pad=None):
        at = super().next(n, pad)
        late = isinstance(at, slice) and at.start > 0
        return slice(at.start - 1, at.stop - 1) if late else at


class BlindToPadding(LayerCache):
    """What is stored on the left of a shorter sequence counts as its first tokens."""

    def next(self, n, pad=None):
        return super().next(n)


class Mixed(LayerCache):
    """Rows of sequence 0 are stored for sequence 1, too."""

    def write(self, rows, slots):
        super().write(rows, slots)
        for buffer in self.buffers:
            buffer[1:2] = buffer[:1]


class Single(LayerCache):
    """Stores float32 in a float64 buffer."""

    def write(self, rows, slots):
        super().write([row.astype("float32") for row in rows], slots)


class Shared(LayerCache):
    """A clone of all rows shares the memory."""

    def take(self, other, rows):
        super().take(other, rows)
        if list(rows) == [0, 1, 2]:
            self.buffers = other.buffers


class TrimsAll(LayerCache):
    """Trims all sequences to the shortest."""

    def trim(self, n):
        self.ends = int(np.min(n))


class Miscounted(LayerCache):
    """Counts every sequence as the longest."""

    @property
    def nbytes(self):
        return sum(row.nbytes for row in self.rows)


class Unturned(RingLayer):
    """After a turn, takes slots for positions."""

    @property
    def positions(self):
        return np.arange(self.used)


class Forgetful(RingLayer):
    """Does not keep what several tokens replace."""

    def write(self, rows, at):
        super().write(rows, at)
        self.lost = None


class Hasty(RingLayer):
    """Stores several tokens before their queries are answered."""

    def _beside(self, arrays):
        if len(self) > 6:
            for buffer, new in zip(self.buffers, arrays, strict=True):
                buffer[:, :, -1:] = new[:, :, -1:]
        return super()._beside(arrays)


class RingOfAll(RingLayer):
    """Counts the positions read, not those kept."""

    @property
    def nbytes(self):
        return int(self.lengths.sum()) * sum(buffer[0, :, 0].nbytes for buffer in self.buffers)


CAUGHT = {  # mutant -> a law that must notice
    WithoutItself: "any chunking",
    ZeroAtTheStart: "any chunking",
    Late: "any chunking",
    BlindToPadding: "any chunking",
    Mixed: "rows of a batch",
    Single: "any chunking",
    Shared: "clone",
    TrimsAll: "trim",
    Miscounted: "bytes",
    Unturned: "any chunking",
    Forgetful: "trim",
    Hasty: "any chunking",
    RingOfAll: "bytes",
}


@pytest.mark.parametrize("mutant", CAUGHT)
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_cache_that_breaks_a_law_is_caught(mutant, position):
    ring = issubclass(mutant, RingLayer)
    kind = type("Mutant", (RingCache if ring else KVCache,), {"layer_kind": mutant})
    window, sinks = (WINDOW, SINKS) if ring else (None, 0)
    found = broken(kind, "q-k=v", position, "raw", window, sinks)
    assert CAUGHT[mutant] in found, found


def test_a_mistake_is_told_with_what_was_found():
    kind = type("Mutant", (KVCache,), {"layer_kind": Miscounted})
    fault = {law: fault for law, _, fault in laws(Case(kind))}["bytes"]
    assert fault.startswith("Broken: ")
    assert "bytes" in fault


# ---- rings


def test_a_ring_imposes_its_window_on_a_model_without_one(backend, rng):
    whole = gpt("gqa-2", position="rope")
    windowed = gpt("gqa-2", position="rope", window=3, sinks=1)
    ids = rng.integers(0, 11, (2, 12))
    cache = whole.new_cache(2, kind=RingCache, window=3, sinks=1)
    found = [host(whole(ids[:, i:j], cache=cache)) for i, j in ((0, 7), (7, 8), (8, 12))]
    expected = host(windowed(ids))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=0, atol=1e-10)
    assert np.abs(expected - host(whole(ids))).max() > 0.1
    plain = host(windowed(ids, cache=windowed.new_cache(2)))
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-10)


def test_where_the_rows_of_a_ring_lie(backend):
    """Window 3, one sink, by hand."""
    model = gpt("qkv", window=3, sinks=1)
    cache = model.new_cache(1, kind=RingCache)
    held = []
    for _ in range(6):
        model([[1]], cache=cache)
        held.append(host(cache.positions).tolist())
    assert held == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 4, 2, 3], [0, 4, 5, 3]]
    model([[1, 1]], cache=cache)
    assert host(cache.positions).tolist() == [0, 7, 5, 6]
    cache.trim([6])
    assert host(cache.positions).tolist() == [0, 4, 5, 3]
    assert cache.nbytes == cache.capacity_nbytes == 2 * 4 * 2 * 16 * 8


def test_a_ring_says_what_it_has_forgotten(backend):
    model = gpt("qkv", window=3)
    cache = model.new_cache(1, kind=RingCache)
    for _ in range(6):
        model([[1]], cache=cache)
    before = host(cache.positions).tolist()
    with pytest.raises(UsageError, match="keeps a window of 3 positions"):
        cache.trim(4)
    assert (len(cache), host(cache.positions).tolist()) == (6, before)
    cache.trim(5)
    cache.trim(0)
    assert cache.nbytes == 0


def test_a_ring_without_a_window_is_refused():
    with pytest.raises(UsageError, match="a ring needs a window"):
        gpt("qkv").new_cache(kind=RingCache)
    with pytest.raises(UsageError, match="window must be"):
        gpt("qkv").new_cache(kind=RingCache, window=0)
    model, x = gpt("qkv", window=3), Tensor(np.ones((1, 1, 16)))
    layer = model.new_cache(1, kind=RingCache).layers[0]
    with pytest.raises(UsageError, match="own mask"):
        model.blocks[0].attn(x, np.ones((1, 1), bool), layer)


def test_a_ring_does_not_grow(rng):
    model = gpt("q-k=v", block_size=40, window=4, sinks=2)
    cache = model.new_cache(2, kind=RingCache)
    arrays = [buffer for layer in cache.layers for buffer in layer.buffers]
    full = cache.capacity_nbytes
    for n in (3, 9, 1, 1, 20):
        model(rng.integers(0, 11, (2, n)), cache=cache)
        assert cache.nbytes <= full == cache.capacity_nbytes
    now = [buffer for layer in cache.layers for buffer in layer.buffers]
    assert all(a is b for a, b in zip(arrays, now, strict=True))


# ---- more positions than the model was trained on


LEARNED = {name for name, s in POSITIONS.items() if s.added == "table" or s.distance == "learned"}
BEYOND = [(position, value) for position, value in schemes("q-k=v") if position not in LEARNED]


@pytest.mark.parametrize(("position", "value"), BEYOND)
@pytest.mark.parametrize("variant", ["q=k-v+", "q-k=v", "q=k=v+"])
def test_a_ring_goes_on_after_block_size(variant, position, value, backend, rng):
    """Many turns later, it gives what a longer model gives. Sequences differ in length, too."""
    about = {"position": position, "rope_value": value, "window": 3, "sinks": 1}
    short, long = gpt(variant, **about), gpt(variant, **about, block_size=70)
    tables = [host(table) for table in positions_of(short)]
    ids = rng.integers(0, 11, (2, 70))
    expected = host(long(ids))
    for kind in (RingCache, KVCache):
        cache, found = short.new_cache(2, capacity=70, kind=kind), []
        for i, j in ((0, 5), (5, 20), (20, 21), *((k, k + 1) for k in range(21, 50)), (50, 70)):
            found.append(host(short(ids[:, i:j], cache=cache)))
        np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=0, atol=1e-10)
        with pytest.raises(UsageError, match="the cache holds 70 positions; 71 are needed"):
            short(ids[:, :1], cache=cache)
        uneven = short.new_cache(2, capacity=70, kind=kind)
        for _ in range(4):
            short(ids[:, :15], cache=uneven, pad=[0, 2])
        assert uneven.lengths.tolist() == [60, 52]
        ends = long.new_cache(1, capacity=70)
        for _ in range(4):
            long(ids[1:, 2:15], cache=ends)
        np.testing.assert_allclose(
            host(short(ids[:, 60:61], cache=uneven))[1], host(long(ids[1:, 60:61], cache=ends))[0],
            rtol=0, atol=1e-10,
        )  # fmt: skip
    for table, longer in zip(tables, positions_of(short), strict=True):
        assert len(longer) >= 70
        np.testing.assert_array_equal(host(longer)[:12], table)


def positions_of(model):
    """All tables of positions of a model."""
    wpe, attention = model.wpe.weight, model.blocks[1].attn
    columns = [attention.plus.columns] if attention.spec.plus else []
    return [*([] if wpe is None else [wpe]), *columns, *(attention.angles or ())]


def test_tables_that_go_on_wrongly_are_noticed(monkeypatch):
    """A mutant: new rows are late by one."""
    ids = np.arange(30)[None] % 11
    expected = host(gpt("qkv", position="rope", block_size=30)(ids))

    def error():
        model = gpt("qkv", position="rope")
        return np.abs(host(model(ids, cache=model.new_cache(capacity=30))) - expected).max()

    assert error() < 1e-10
    right = attention.lengthened
    monkeypatch.setattr(
        attention,
        "lengthened",
        lambda tables, end, make: right(tables, end, lambda n: [t[1:] for t in make(n + 1)]),
    )
    assert error() > 1e-3


def test_several_threads_may_go_on_at_once(rng):
    """A table that another thread has made longer is never replaced by a shorter one."""
    ids = rng.integers(0, 11, (1, 400))
    expected = host(gpt("q=k=v+", position="rope", block_size=400)(ids))
    for _ in range(5):
        model = gpt("q=k=v+", position="rope")

        def decode(n, model=model):
            return host(model(ids[:, :n], cache=model.new_cache(capacity=400)))

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(decode, [400, 13, 200, 30, 390, 60, 100, 25]):
                n = found.shape[1]
                np.testing.assert_allclose(found, expected[:, :n], rtol=0, atol=1e-10)


def test_learned_positions_end():
    model = gpt("qkv", window=3)
    cache = model.new_cache(capacity=40, kind=RingCache)
    model([[1] * 12], cache=cache)
    with pytest.raises(UsageError, match="13 tokens, but this model has 12 positions"):
        model([[1]], cache=cache)
    assert len(cache) == 12
    with pytest.raises(UsageError, match="13 tokens, but this model has 12 positions"):
        gpt("qkv", position="rope")([[1] * 13])
