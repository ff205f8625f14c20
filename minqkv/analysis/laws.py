"""The laws that every cache obeys, checked on tiny models: this package's caches, or your own.

A cache changes what is computed, never what comes out. So each law reads the same tokens through
the cache in some way, and compares the logits with those of the model without a cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from ..cache import KVCache
from ..models import GPT, GPTConfig
from ..runtime import backend
from ..runtime.errors import UsageError
from ..runtime.rng import stream
from ..variants import POSITIONS, ROPE_VALUES, VariantSpec, variant_names
from .quantised import rounded

LENGTH, WINDOW, SINKS = 24, 4, 2
TURNS = SINKS + 3 * WINDOW + 1  # after this many positions, a ring has gone round three times


class Broken(Exception):
    """A law that does not hold, with what was found."""


NEEDED = ("attend", "next", "trim", "take", "lengths", "nbytes", "pack", "unpack")  # of a layer


def check_class(name: str, kind) -> type[KVCache]:
    """A user's class, checked. Raises UsageError that says what it lacks."""
    cure = "derive it from minqkv.KVCache, as examples/own_cache.py does"
    if not isinstance(kind, type) or not issubclass(kind, KVCache):
        raise UsageError(f"{name} is not a cache", cure)
    missing = [part for part in NEEDED if not hasattr(kind.layer_kind, part)]
    if missing:
        why = f"{name}: the class of its layers lacks {', '.join(missing)}"
        raise UsageError(why, "derive layer_kind from minqkv.cache.LayerCache")
    try:
        Case(kind).cache()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name} cannot be made: {told(error)}", cure) from error
    return kind


def told(error: BaseException) -> str:
    """An exception in one line."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}"


def check(
    kind: type[KVCache] = KVCache,
    bound: float = 1e-10,
    variants: tuple[str, ...] | None = None,
    seed: int = 0,
    **options,
) -> Iterator[dict]:
    """Rows {"name", "variant", "position", "window", "error", "bound", "ok", "fault"} for every law
    on every variant and position scheme, with and without a window, as they are found.

    Caches are made by `GPT.new_cache(kind=kind, **options)`; a kind that takes a window is checked
    only with one. The models have four heads; `variants` are all variants unless given. `error` is
    the largest difference of a logit, None if there is a `fault`.
    Raises UsageError if `kind` is not a cache class.
    """
    if not isinstance(kind, type) or not issubclass(kind, KVCache):
        raise UsageError(f"a cache is a class derived from minqkv.cache.KVCache, not {kind!r}")
    windows = [(WINDOW, SINKS)] if "window" in kind.takes else [(None, 0), (WINDOW, SINKS)]
    for variant in variants or variant_names(2):
        for position, value in schemes(variant):
            for window, sinks in windows:
                case = Case(kind, variant, position, value, window, sinks, seed, options)
                name = f"rope {value}" if position == "rope" else position
                about = {"variant": variant, "position": name, "window": window}
                for law, error, fault in laws(case):
                    ok = fault is None and bool(error <= bound)
                    yield {"name": law, **about, "error": error, "bound": bound, "ok": ok,
                           "fault": fault}  # fmt: skip


def by_law(rows: Iterable[dict]) -> list[dict]:
    """Rows of `check` as one row for each law: {"name", "cases", "broken", "error", "bound", "ok",
    "found"}, with the worst error and, if the law is broken, the first case found.
    """
    laws = {}
    for row in rows:
        start = {"name": row["name"], "cases": 0, "broken": 0, "error": None, "bound": row["bound"],
                 "ok": True, "found": None}  # fmt: skip
        total = laws.setdefault(row["name"], start)
        total["cases"] += 1
        if row["error"] is not None:
            total["error"] = max(row["error"], total["error"] or 0.0)
        if not row["ok"]:
            window = f", window {row['window']}" if row["window"] else ""
            where = f"{row['variant']}, {row['position']}{window}"
            what = row["fault"] or f"logits differ by {row['error']:.1e}"
            total["broken"], total["ok"] = total["broken"] + 1, False
            total["found"] = total["found"] or f"{where}: {what}"
    return list(laws.values())


def schemes(variant: str) -> list[tuple[str, str]]:
    """(position, rope_value) of all the models of this variant."""
    spec = VariantSpec.parse(variant)
    choice = [*ROPE_VALUES] if spec.streams == 1 and not spec.apart else ["raw"]
    positions = ["rope"] if spec.apart and not spec.latent else POSITIONS
    return [(p, value) for p in positions for value in (choice if p == "rope" else ["raw"])]


def laws(case: Case) -> Iterator[tuple[str, float | None, str | None]]:
    """(law, largest error or None, fault or None) of each law, on a new cache and on one that has
    read TURNS tokens.
    """
    for name, law in LAWS.items():
        try:
            yield name, float(max(law(case, start) for start in (0, TURNS))), None
        except (Exception, SystemExit) as fault:  # a user's code may raise anything
            yield name, None, told(fault)


class Case:
    """A tiny model in float64, three sequences, and their logits without a cache.

    A derived class can make its caches in another way, with `new` and `parts`. All sequences begin
    with the same `shared` tokens, and its caches cannot be trimmed to fewer.
    """

    shared = 0

    def __init__(self, kind, variant="qkv", position="learned", rope_value="raw", window=None,
                 sinks=0, seed=0, options=None, **fields):  # fmt: skip
        cfg = GPTConfig(11, LENGTH, 2, 4, 16, variant, position, rope_value, d_ff=24,
                        dtype="float64", window=window, sinks=sinks, **fields)  # fmt: skip
        self.kind, self.options = kind, options or {}
        self.model = scrambled(self.build(cfg, seed), seed)
        self.rng = stream(seed, "laws")
        self.ids = self.rng.integers(0, 11, (3, LENGTH))
        self.ids[:, : self.shared] = self.ids[0, : self.shared]
        self.dtype = self.options.get("dtype", "float64")
        with rounded(self.model, kind, self.dtype):  # as the cache stores its rows
            self.expected = backend.to_host(self.model(self.ids).data)  # (3, LENGTH, V)

    @staticmethod
    def build(cfg, seed):
        """The model of a configuration."""
        return GPT(cfg, seed)

    def cache(self, start=0, batch=3, **options):
        """A new cache that has read the first `start` tokens."""
        cache = self.new(min(start, self.shared), batch, **self.options | options)
        if start:
            self.read(cache, start - len(cache), np.arange(batch))
        return cache

    def new(self, start, batch, **options):
        """A cache that has read the first `start` tokens, which are at most `shared`."""
        return self.model.new_cache(batch, kind=self.kind, **options)

    def parts(self, cache):
        """For each layer, [(object with `buffers`, (B,) lengths of the sequences in them)]."""
        return [[(layer, cache.lengths)] for layer in cache.layers]

    def read(self, cache, counts, rows=(0, 1, 2), wrong=False):
        """Read the next tokens of these sequences, counts[b] of row b; returns the largest error.

        `wrong`: read other tokens instead.
        """
        done, rows = cache.lengths, np.asarray(rows)
        counts = np.broadcast_to(counts, len(rows))
        n = counts.max()
        ids, real = np.zeros((len(rows), n), int), np.arange(n) >= n - counts[:, None]
        at = done[:, None] + np.arange(n) - (n - counts[:, None])  # (B, n)
        b, t = real.nonzero()
        ids[b, t] = (self.ids[rows[b], at[b, t]] + wrong) % 11
        found = backend.to_host(self.model(ids, cache=cache, pad=n - counts).data)  # (B, n, V)
        if not np.isfinite(found).all():
            raise Broken("logits that are not finite")
        if not np.array_equal(cache.lengths, done + counts) or len(cache) != cache.lengths.max():
            raise Broken(f"lengths are {cache.lengths} after {done} and {counts} more tokens")
        return np.abs(found[b, t] - self.expected[rows[b], at[b, t]]).max()


def trim(cache, n):
    """Trim, and check the new lengths."""
    cache.trim(n)
    if not (cache.lengths == n).all():
        raise Broken(f"lengths are {cache.lengths} after trim({n})")


def scrambled(model, seed):
    """Set parameters that differ as much as those of a trained model. In a fresh model, attention
    is too even to show a mistake.
    """
    for name, p in model.named_parameters():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        values = centre + 0.4 * stream(seed, "laws", name).standard_normal(p.shape)
        p.data[...] = backend.upload(values, p.dtype)
    return model.eval()


# ---- the laws: (case, positions read before) -> largest error


def any_chunking(case, start):
    """Token by token, in one piece, or in any chunks, the last also for sequences of different
    length, padded on the left: the same logits.
    """
    left, errors = LENGTH - start, []
    cuts = np.sort(case.rng.choice(np.arange(1, left), 3, replace=False))
    for chunks in ([1] * left, [left], np.diff([0, *cuts, left])):
        cache = case.cache(start)
        errors += [case.read(cache, int(n)) for n in chunks]
    uneven = case.cache()
    errors.append(case.read(uneven, [start + 1, max(0, start - 2), start // 2]))
    errors += [case.read(uneven, np.minimum(n, LENGTH - uneven.lengths)) for n in chunks]
    return max(errors)


def trim_is_never_longer(case, start):
    """After trimming, a cache answers as if it had never been longer."""
    errors = []
    for n in (1, 3, LENGTH - start):  # back to before the last append
        cache = case.cache(start)
        case.read(cache, n, wrong=True)
        trim(cache, start)
        errors += [case.read(cache, k) for k in (2, 1, 1, LENGTH - start - 4)]
    for kept in ([0, 2, 3], [-1, 1, 0], [-5, -9, 2], [-start] * 3):  # of the last 3, for each row
        cache = case.cache(start)
        case.read(cache, 3)
        if (start + np.array(kept) < 0).any():
            continue
        with changes_nothing(cache, "trim", may_succeed=True):
            trim(cache, start + np.array(kept))
        errors += [case.read(cache, k) for k in (1, [1, 0, 2])]
        errors.append(case.read(cache, LENGTH - cache.lengths))
    return max(errors)


def rows_are_alone(case, start):
    """A sequence in a batch gives what it gives alone, and padding on its left changes nothing."""
    errors = []
    for row in range(3):
        cache = case.cache(batch=1)
        errors += [case.read(cache, n, [row]) for n in (start + 2, 1, 1, 4)]
    cache = case.cache()
    for counts in ([start + 5, start + 1, 3], 1, 1, [0, 2, 1], [1, 3, 0], 1):
        errors.append(case.read(cache, counts))
    errors.append(case.read(cache, LENGTH - cache.lengths))
    return max(errors)


def clones_are_independent(case, start):
    """Changes of a cache affect neither its clones nor its original."""
    original, order, errors = case.cache(start), [2, 0, 2, 1], []
    case.read(original, [3, 1, 2])
    twin, beams = original.clone(), original.clone(order)
    case.read(twin, 2, wrong=True)
    errors += [case.read(beams, n, order) for n in (1, 3)]
    errors += [case.read(original, n) for n in (1, 2)]
    third = original.clone()
    case.read(original, 1, wrong=True)
    trim(original, min(start, case.shared))
    case.read(original, 2, wrong=True)
    return max(*errors, case.read(beams, 1, order), *[case.read(third, n) for n in (1, 2)])


def refusals_change_nothing(case, start):
    """A call that is refused or interrupted leaves the cache as it was."""
    cache, model = case.cache(start), case.model
    errors = [case.read(cache, [1, 0, 2])]
    for n in (-1, start + 3, 1.5, "1", None, [start] * 2, [start, start, start + 9]):
        with changes_nothing(cache, f"trim({n!r})"):
            cache.trim(n)
    for ids, pad in (
        (np.zeros((3, LENGTH - start)), None),  # floats
        (np.zeros((3, LENGTH - start), int), None),  # more than there are positions
        (np.full((3, 1), 11), None),  # an id that does not exist
        (np.zeros((2, 1), int), None),  # another batch
        (np.zeros((3, 1), int), [1, 1, 1]),  # nothing but padding
        (np.zeros((3, 2), int), [0, 3, 0]),
        (np.zeros((3, 2), int), [0, 1]),
    ):
        with changes_nothing(cache, f"ids {ids.shape}, pad {pad}"):
            model(ids, cache=cache, pad=pad)
    for n in (1, 3, LENGTH - start - 2):
        for module in (model.blocks[0].mlp, model.blocks[1].attn.wo, model.ln_f):
            with changes_nothing(cache, "an interrupted step"), interrupted(module):
                model(np.zeros((3, n), int), cache=cache)
    small = case.cache(start, capacity=start + 2)
    with changes_nothing(small, "more than the capacity"):
        case.read(small, 3)
    return max(*errors, case.read(small, 2), *[case.read(cache, n) for n in (1, 3, [2, 0, 1])])


def bytes_are_counted(case, start):
    """nbytes is what the formula gives, and what the arrays hold."""
    cfg, cache = case.model.config, case.cache(start)
    per_token = [case.kind.bytes_per_token(spec.stored(cfg), case.dtype) for spec in cfg.specs]
    slots = cfg.sinks + cfg.window if "window" in case.kind.takes else LENGTH
    case.read(cache, [2, 3, 1])
    for done in (cache.lengths, start + 1):
        trim(cache, done)
        due, held = 0, 0
        for size, parts in zip(per_token, case.parts(cache), strict=True):
            used = [(part, np.minimum(n, slots)) for part, n in parts]  # n (B,)
            due += size * sum(int(n.sum()) for _, n in used)
            held += sum(bytes_in(part, n) for part, n in used)
        if not cache.nbytes == cache.row_nbytes.sum() == held == due:
            found = f"nbytes {cache.nbytes}, row_nbytes {cache.row_nbytes}"
            raise Broken(f"{found}, but arrays hold {held}, by formula {due}")
    arrays = [array for parts in case.parts(cache) for part, _ in parts for array in part.buffers]
    allocated, due = sum(array.nbytes for array in arrays), 3 * slots * sum(per_token)
    if not cache.capacity_nbytes == allocated <= due:
        found = f"capacity_nbytes {cache.capacity_nbytes}, but arrays have {allocated}"
        raise Broken(f"{found}, by formula at most {due}")
    return 0.0


def bytes_in(part, n):
    """Bytes of the first n[b] slots of each sequence b."""
    return sum(array[b, :, :m].nbytes for array in part.buffers for b, m in enumerate(n))


LAWS = {
    "any chunking": any_chunking,
    "trim": trim_is_never_longer,
    "rows of a batch": rows_are_alone,
    "clone": clones_are_independent,
    "refusals": refusals_change_nothing,
    "bytes": bytes_are_counted,
}


class Interrupted(Exception):
    """Raised to end a step early."""


@contextmanager
def interrupted(module):
    """`with`: this part of a model raises Interrupted."""

    def forward(*_):
        raise Interrupted

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def changes_nothing(cache, what, may_succeed=False):
    """`with`: the call must be refused or interrupted, and lengths and bytes must not change."""
    before = cache.lengths.tolist(), cache.nbytes, cache.capacity_nbytes
    try:
        yield
    except (UsageError, Interrupted):
        now = cache.lengths.tolist(), cache.nbytes, cache.capacity_nbytes
        if now != before:
            raise Broken(f"{what} has changed lengths and bytes: {before} to {now}") from None
        return
    if not may_succeed:
        raise Broken(f"{what} was accepted")
