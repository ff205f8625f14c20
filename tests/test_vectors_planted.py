"""`minqkv vectors check`, seen from outside: attention written from docs/vectors.md alone is right,
a known mistake made in it is named, and an unknown one is never given a name.

Nothing here looks into the check. A mistake is a subclass of Right that overrides one method, and
gradients follow, because every array remembers what it was computed from.
"""

from functools import cache
from itertools import count

import numpy as np
import pytest
from commands import ROOT
from remembered import predictions_once

from minqkv.analysis.vectors import files
from minqkv.analysis.vectors.case import Sizes
from minqkv.analysis.vectors.cases import cases
from minqkv.analysis.vectors.causes import named
from minqkv.analysis.vectors.compare import check
from minqkv.analysis.vectors.files import export, load

# ---- arrays that remember what they were computed from


class Value:
    """An array, and for each of its sources the function that takes a gradient back."""

    ages = count()

    def __init__(self, data, *sources):
        self.data, self.sources, self.age = data, sources, next(self.ages)

    def __add__(self, other):
        """The same shape on both sides, or an array without gradient."""
        if not isinstance(other, Value):
            return Value(self.data + other, (self, lambda g: g))
        return Value(self.data + other.data, (self, lambda g: g), (other, lambda g: g))

    def times(self, factor):
        """A factor without gradient, that does not change the shape."""
        return Value(self.data * factor, (self, lambda g: g * factor))

    def moved(self, there, back):
        """What only moves or drops numbers: `back` takes a gradient to where they came from."""
        return Value(there(self.data), (self, back))

    def reshaped(self, *shape):
        return Value(self.data.reshape(shape), (self, lambda g: g.reshape(self.data.shape)))


def product(subscripts, *factors):
    """einsum of values and arrays. Each letter of a factor is in another factor or the result."""
    inputs, out = subscripts.split("->")
    names, data = inputs.split(","), [f.data if isinstance(f, Value) else f for f in factors]

    def back(n):
        others = [i for i in range(len(factors)) if i != n]
        turned = ",".join([out, *(names[i] for i in others)]) + "->" + names[n]
        return lambda g: np.einsum(turned, g, *(data[i] for i in others))

    sources = [(f, back(n)) for n, f in enumerate(factors) if isinstance(f, Value)]
    return Value(np.einsum(subscripts, *data), *sources)


def gradients(value, grad):
    """Gradients by the age of a value."""
    found, grads = {}, {value.age: grad}
    todo = [value]
    while todo:
        last = todo.pop()
        found[last.age] = last
        todo += [source for source, _ in last.sources if source.age not in found]
    for age in sorted(found, reverse=True):
        for source, back in found[age].sources:
            grads[source.age] = grads.get(source.age, 0) + back(grads[age])
    return grads


# ---- attention as docs/vectors.md describes it


class Right:
    """function(given, about) for kernels, and for layers without norms and latent rows."""

    def __call__(self, given, about):
        self.about, self.dtype = about, np.float32
        if about["apart"] or about["norm"] or about["task"] == "int8":
            return None
        if about["dtype"] != "float16":  # which is computed in float32
            self.dtype = np.dtype(about["dtype"])
        self.segments = given.get("segments")
        numbers = {n: a.astype(self.dtype) for n, a in given.items() if n != "segments"}
        self.given = {n: Value(a) for n, a in numbers.items() if not n.startswith("grad.")}
        self.one_row, self.own_query = about["one_row"], about["own_query"]
        if about["task"] != "forward":
            return self.decode()
        found = self.kernel() if about["level"] == "kernel" else self.layer()
        last = "z" if about["level"] == "kernel" else "out"
        grads = gradients(found[last], numbers[f"grad.{last}"])
        results = {n: value.data for n, value in found.items()}
        results |= {f"grad.{n}": grads[v.age] for n, v in self.given.items() if v.age in grads}
        return {n: a.astype(about["dtype"]) for n, a in results.items()}

    def kernel(self):
        q, k = self.given["q"], self.given["k"]  # (B, H, T, d), (B, h, S, d)
        i = np.arange(q.data.shape[2]) + self.about["past"]
        j = np.arange(k.data.shape[2])
        rows = self.store(k, self.given.get("v"), j)
        key, value = self.read(*rows, j)
        return self.attend(self.turn_query(q, i), key, value, i, j)

    def layer(self):
        x = self.given["x"]  # (B, T, C)
        at = np.arange(x.data.shape[1])
        h = self.placed(x, at)
        rows = self.store(*self.projected(h), at)
        key, value = self.read(*rows, at)
        found = self.attend(self.query(h, rows, at), key, value, at, at)
        out = self.linear(self.merged(found["z"]), "wo")  # (B, T, C)
        return ({} if h is x else {"h": h}) | found | {"out": out}

    def placed(self, x, at):
        """x and what the scheme adds to it."""
        if "learned" in self.about["position"]:
            table = self.given["positions"]
            chosen = np.eye(len(table.data), dtype=self.dtype)[at]  # (T, rows)
            batch = np.ones(len(x.data), self.dtype)
            return x + product("nc,tn,b->btc", table, chosen, batch)
        if self.about["position"] == "sinusoidal":
            return x + sinusoids(at, x.data.shape[2]).astype(self.dtype)
        return x

    def linear(self, x, name):
        y = product("btc,cd->btd", x, self.given[f"{name}.weight"])
        bias = self.given.get(f"{name}.bias")
        if bias is None:
            return y
        return y + product("d,bt->btd", bias, np.ones(y.data.shape[:2], self.dtype))

    def split(self, x, heads):
        B, T, width = x.data.shape
        x = x.reshaped(B, T, heads, width // heads)
        return x.moved(heads_first, heads_first)  # (B, h, T, d)

    def merged(self, z):
        B, H, T, d = z.data.shape
        return z.moved(heads_first, heads_first).reshaped(B, T, H * d)

    def projected(self, h):
        """The rows of new tokens: keys, and values unless one row is both."""
        heads = self.about["kv_heads"]
        v = None if self.one_row else self.split(self.linear(h, "wv"), heads)
        return self.split(self.linear(h, "wk"), heads), v

    def query(self, h, rows, at):
        if not self.own_query:
            return self.read(*rows, at)[0]
        return self.turn_query(self.split(self.linear(h, "wq"), self.about["n_head"]), at)

    def raw(self):
        return self.one_row and self.about["rope_value"] == "raw"

    def store(self, k, v, at):
        return (k if self.raw() else self.turn_key(k, at)), v

    def read(self, k, v, at):
        """Key and value of stored rows."""
        if self.raw():
            return self.turn_key(k, at), k
        return k, (k if self.one_row else v)

    def attend(self, q, key, value, i, j):
        """Queries at positions i, keys at positions j; every array from q to z."""
        reads = self.stored_head()[:, None] == np.arange(self.about["kv_heads"])  # (H, h)
        reads = reads.astype(self.dtype)
        k, v = (product("bgsc,hg->bhsc", rows, reads) for rows in (key, value))  # (B, H, S, d)
        scores = self.dots(q, k).times(self.scale())  # (B, H, T, S)
        if self.about["plus"]:
            weight = self.given["plus.weight"]
            s = product("m,m->", weight, np.ones_like(weight.data))  # their sum
            scores = product("bhts,->bhts", scores, s)
        plus = self.shifted(scores, i, j)
        pattern = self.softmax(plus, self.mask(i, j))
        z = self.turn_back(self.mixed(pattern, v), i)
        found = {"q": q, "k": key, "v": value, "scores": scores, "pattern": pattern, "z": z}
        return found if plus is scores else found | {"plus": plus}

    def dots(self, q, k):
        return product("bhtc,bhsc->bhts", q, k)

    def mixed(self, pattern, v):
        return product("bhts,bhsc->bhtc", pattern, v)

    def scale(self):
        return self.about["scale"]

    def stored_head(self):
        """Of each query head, the stored head that it reads, (H,)."""
        return np.arange(self.about["n_head"]) * self.about["kv_heads"] // self.about["n_head"]

    def shifted(self, scores, i, j):
        """Scores, and what depends on the distance or on the key."""
        B, H, T, S = scores.data.shape
        if self.about["plus"]:
            weight = self.given["plus.weight"]
            columns = np.zeros((S, len(weight.data)), self.dtype)
            columns[:, 5:] = sinusoids(j, len(weight.data) - 5)  # the first five cancel in softmax
            g = product("m,sm->s", weight, columns)
            scores = scores + product("s,bht->bhts", g, np.ones((B, H, T), self.dtype))
        if self.about["position"] == "alibi":
            scores = scores + self.fall(i[:, None] - j).astype(self.dtype)
        if "relative" in self.about["position"]:
            table = self.given["distance.weight"]  # (distances, H)
            away = np.clip(i[:, None] - j, 0, len(table.data) - 1)  # (T, S)
            chosen = np.eye(len(table.data), dtype=self.dtype)[away]  # (T, S, distances)
            scores = scores + product("nh,tsn,b->bhts", table, chosen, np.ones(B, self.dtype))
        return scores

    def fall(self, distance):
        """ALiBi: (T, S) -> (H, T, S)."""
        return -self.slopes()[:, None, None] * abs(distance)

    def slopes(self):
        H = self.about["n_head"]
        n = 2 ** int(np.log2(H))  # of other numbers, the heads left over lie between the first
        return 2.0 ** (-8 / n * np.r_[1 : n + 1, np.arange(H - n) + 0.5])

    def mask(self, i, j):
        """(T, S), or (B, 1, T, S) if texts are packed."""
        seen = self.seen(i[:, None], j[None])
        if self.segments is not None:
            text = self.segments
            seen = seen & ((text[:, :, None] == text[:, None]) & (text[:, :, None] >= 0))[:, None]
        return seen

    def seen(self, i, j):
        seen = (j <= i) | (not self.about["causal"])
        if self.about["window"]:
            seen = seen & ((j > i - self.about["window"]) | (j < self.about["sinks"]))
        return seen

    def softmax(self, scores, seen, axis=-1):
        hidden = np.where(seen, scores.data, -np.inf)
        top = hidden.max(axis, keepdims=True)
        grown = np.exp(hidden - np.where(np.isfinite(top), top, 0))
        total = grown.sum(axis, keepdims=True)
        p = grown / np.where(total == 0, 1, total)  # what sees nothing gives zeros
        return Value(p, (scores, lambda g: p * (g - (g * p).sum(axis, keepdims=True))))

    # Rotary positions

    def pairs(self, m):
        """Which of the channels that turn are pairs."""
        halves = self.about["pairing"] == "halves"
        i = np.arange(m)
        return (i, i + m) if halves else (2 * i, 2 * i + 1)

    def angles(self, at, m):
        return at[:, None] * self.about["rope_base"] ** (-np.arange(m) / m)  # (T, m)

    def turned(self, x, at, times=1):
        """x (B, h, T, d) turned `times` times, -1 to turn back."""
        m, d = self.about["d_rope"] // 2, x.data.shape[-1]
        if not m:
            return x
        a, b = (d - 2 * m + channels for channels in self.pairs(m))
        angle = self.angles(at, m) * times
        turn = np.tile(np.eye(d), (len(at), 1, 1))  # (T, d, d)
        turn[:, a, a] = turn[:, b, b] = np.cos(angle)
        turn[:, a, b], turn[:, b, a] = np.sin(angle), -np.sin(angle)
        return product("bhtc,tcd->bhtd", x, turn.astype(self.dtype))

    def turn_query(self, q, at):
        return self.turned(q, at)

    def turn_key(self, k, at):
        return self.turned(k, at)

    def turn_back(self, z, at):
        unrotate = self.one_row and self.about["rope_value"] == "unrotate"
        return self.turned(z, at, -1) if unrotate else z

    # Token by token

    def decode(self):
        x = self.given["x"].data  # (B, T, C)
        B, T, _ = x.shape
        slots = T if self.about["task"] == "plain" else self.slots()
        held, caches, kept = np.full(slots, -1), {}, {}
        for t in range(T):
            at = np.array([t])
            h = self.placed(Value(x[:, t : t + 1]), at)
            rows = self.store(*self.projected(h), at)
            q = self.query(h, rows, at)
            if not caches:
                shapes = [(B, r.data.shape[1], slots, r.data.shape[3]) for r in rows if r]
                caches = {n: np.zeros(s, self.dtype) for n, s in zip("kv", shapes, strict=False)}
            for name, row in zip("kv", rows, strict=True):
                if row:
                    caches[name][:, :, self.slot(t)] = row.data[:, :, 0]
            held[self.slot(t)] = t
            z = self.step(q, caches, held, at)
            kept.setdefault("out", []).append(self.linear(self.merged(z), "wo").data[:, 0])
            for name, cache_ in caches.items():
                kept.setdefault(f"cache.{name}", []).append(cache_.copy())
            kept.setdefault("cache.bytes", []).append(self.bytes(caches, (held >= 0).sum()))
        kept = {n: np.stack(arrays) for n, arrays in kept.items()}
        return kept | {"out": kept["out"].swapaxes(0, 1)}  # (B, T, C)

    def step(self, q, caches, held, at):
        used = held >= 0
        rows = [Value(caches[n][:, :, used]) if n in caches else None for n in "kv"]
        key, value = self.read(*rows, held[used])
        return self.attend(q, key, value, at, held[used])["z"]

    def slots(self):
        return self.about["window"] + self.about["sinks"]

    def slot(self, p):
        s, w = self.about["sinks"], self.about["window"]
        return p if self.about["task"] == "plain" or p < s else s + (p - s) % w

    def bytes(self, caches, used):
        return sum(c[:, :, 0].size * c.itemsize for c in caches.values()) * int(used)


def heads_first(x):
    """(B, T, h, d) -> (B, h, T, d), and back."""
    return x.swapaxes(1, 2)


def sinusoids(at, channels):
    """(T,) -> (T, channels): sin and cos in turn, pair c at the frequency 10000^(-2c/channels)."""
    c = np.arange(channels)
    angle = at[:, None] * 10000.0 ** (-2 * (c // 2) / channels)
    return np.where(c % 2, np.cos(angle), np.sin(angle))


# ---- the check, on few sizes that the other tests do not use


@pytest.fixture(scope="module", autouse=True)
def once():
    """What known mistakes give is computed once, not for every mistake."""
    with predictions_once():
        yield


SIZES = {
    "6/3/10": Sizes(n_head=6, kv_heads=3, head_dim=10, length=7, seed=3),
    "8/4/12": Sizes(n_head=8, kv_heads=4, head_dim=12, length=6, seed=11),
    "10/5/6": Sizes(n_head=10, kv_heads=5, head_dim=6, n_embd=7, length=9, seed=5),
}
FEW = "q=k-v/rope", "q-k=v/rope", "qkv/alibi"  # how the names of layers begin
FEW += "gqa-3/rope", "gqa-4/rope", "gqa-5/rope"


WHOLE = "6/3/10"  # where all layers are written; at the other sizes, only what is needed


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The tasks of a size, by its name."""

    @cache
    def made(size):
        folder = tmp_path_factory.mktemp("vectors")
        with pytest.MonkeyPatch.context() as patch:
            if size != WHOLE:
                patch.setattr(files, "cases", few)
            export(folder, SIZES[size])
            return load(folder)

    return made


def few(sizes):
    return [case for case in cases(sizes) if case.name.startswith(("kernel", *FEW))]


def differing(tasks, function, dtypes):
    rows = named(tasks, list(check(tasks, dtypes, function)))
    assert all(row["state"] in ("ok", "differs", "not done") for row in rows), rows
    assert any(row["state"] != "not done" for row in rows)
    return [row for row in rows if row["state"] == "differs"]


def causes(tasks, mistake, dtypes=("float64",), layers=FEW):
    """Of each row that differs, its cause. The mistake is made in all kernels, and in a few layers:
    enough to see it, and soon done.
    """
    tasks = [t for t in tasks if t.about["case"].startswith(("kernel", *layers))]
    rows = differing(tasks, mistake(), dtypes)
    assert rows, "the mistake changes nothing"
    return {(row["case"], row["task"], row["array"]): row["cause"] for row in rows}


@pytest.mark.parametrize("size", SIZES)
def test_what_the_page_describes_is_right(tasks, size):
    rows = differing(tasks(size), Right(), ("float64", "float32", "float16"))
    assert not rows, [(row["case"], row["dtype"], row["text"]) for row in rows]


# ---- known mistakes, each made in more than one way


def mistake(**methods):
    return type("Mistake", (Right,), methods)


def decoding(**methods):
    """A mistake that is made only token by token."""

    def chosen(name, wrong):
        right = getattr(Right, name)
        return lambda a, *args: (right if a.about["task"] == "forward" else wrong)(a, *args)

    return mistake(**{name: chosen(name, wrong) for name, wrong in methods.items()})


def by_width(a):
    return 1 / a.about["query_width"]


def scaled_twice(a, q, k):
    return Right.dots(a, q.times(a.scale()), k)


def mod(a):
    return np.arange(a.about["n_head"]) % a.about["kv_heads"]


def tiled(a):
    return np.tile(np.arange(a.about["kv_heads"]), a.about["n_head"] // a.about["kv_heads"])


def over(axis):
    return lambda a, scores, seen: Right.softmax(a, scores, seen, axis)


def within(a, i, j):
    """What a window leaves, before the causal mask."""
    window, sinks = a.about["window"], a.about["sinks"]
    return (j > i - window) | (j < sinks) if window else np.full(np.broadcast(i, j).shape, True)


def ahead(n, window_too=False):
    """A causal mask that ends n keys later."""

    def seen(a, i, j):
        if not a.about["causal"]:
            return Right.seen(a, i, j)
        return (j <= i + n) & within(a, i + n * window_too, j)

    return seen


def window_of(more, sinks=0):
    """A window or a number of sinks that is too large or too small."""

    def seen(a, i, j):
        about = a.about
        a.about = about | {"sinks": max(0, about["sinks"] + sinks)}
        a.about |= {"window": about["window"] and about["window"] + more}
        seen = Right.seen(a, i, j)
        a.about = about
        return seen

    return seen


def upper_left(a, i, j):
    """Queries and keys counted from 0, whatever their positions are."""
    return Right.seen(a, np.arange(i.size)[:, None], np.arange(j.size))


def upper_left_in_a_window(a, i, j):
    """np.tril, and a window that knows the positions."""
    seen = np.tril(np.ones((i.size, j.size), bool)) | (not a.about["causal"])
    return seen & within(a, i, j)


def stored_after(a, q, caches, held, at):
    """The new row is stored when its query has already read the cache."""
    old = held != at[0]
    if (held[old] < 0).all():
        B, H = q.data.shape[:2]
        return Value(np.zeros((B, H, 1, a.about["head_dim"]), a.dtype))
    return Right.step(a, q, {n: c[:, :, old] for n, c in caches.items()}, held[old], at)


def turn_key(times):
    return lambda a, k, at: a.turned(k, at, times)


def turn_both(times):
    return {"turn_key": turn_key(times), "turn_query": turn_key(times)}


def twice_one_by_one(a, x, at):
    return a.turned(a.turned(x, at), at)


def turned_when_read(a, k, v, at):
    """A row that was stored turned is turned once more."""
    if a.raw():
        return twice_one_by_one(a, k, at), k
    return a.turned(k, at), (a.turned(k, at) if a.one_row else v)


def other_pairs(a, m):
    i = np.arange(m)
    return (2 * i, 2 * i + 1) if a.about["pairing"] == "halves" else (i, i + m)


def permuted(a, x, at, times=1):
    """Channels put in the order of the other pairing, turned, and put back."""
    d, n = x.data.shape[-1], a.about["d_rope"]
    shape = (n // 2, 2) if a.about["pairing"] == "halves" else (2, n // 2)
    order = np.r_[: d - n, np.arange(d - n, d).reshape(shape).T.ravel()]
    back = np.argsort(order)
    x = x.moved(lambda x: x[..., order], lambda g: g[..., back])
    x = Right.turned(a, x, at, times)
    return x.moved(lambda x: x[..., back], lambda g: g[..., order])


def key_as_value(a, k, v, at):
    key, value = Right.read(a, k, v, at)
    return key, (key if a.raw() else value)


def never(a):
    return False


def not_back(a, z, at):
    return z


def doubled(a, caches, used):
    return Right.bytes(a, caches, used) * (1 + a.one_row)


def with_a_buffer(a):
    found = Right.decode(a)
    if not a.one_row:
        return found
    return found | {"cache.v": found["cache.k"], "cache.bytes": 2 * found["cache.bytes"]}


def in_float16(a, left, right):
    """(..., n), (n, ...): one term after the other, each sum rounded to float16."""
    total = 0
    for c in range(left.shape[-1]):
        total = np.float16(total + left[..., c, None] * right[..., c, None, :])
    return total.astype(a.dtype)


def scores_in_float16(a, q, k):
    right = Right.dots(a, q, k)
    return Value(in_float16(a, q.data, k.data.swapaxes(2, 3)), *right.sources)


def values_in_float16(a, pattern, v):
    right = Right.mixed(a, pattern, v)
    return Value(in_float16(a, pattern.data, v.data), *right.sources)


KNOWN = {
    "scaled by d": {
        "1 / width": mistake(scale=by_width),
        "queries and scores": mistake(dots=scaled_twice),
        "decoding": decoding(scale=by_width),
    },
    "head map i mod g": {
        "mod": mistake(stored_head=mod),
        "decoding": decoding(stored_head=tiled),
    },
    "softmax over the wrong axis": {
        "queries": mistake(softmax=over(-2)),
        "decoding": decoding(softmax=over(-2)),
    },
    "mask off by one": {
        "window one short": mistake(seen=window_of(-1)),
        "window one long": mistake(seen=window_of(1)),
        "window one short while decoding": decoding(seen=window_of(-1)),
        "one ahead": mistake(seen=ahead(1)),
        "one ahead, the window too": mistake(seen=ahead(1, True)),
        "itself hidden": mistake(seen=ahead(-1)),
    },
    "mask from the upper left": {
        "indices": mistake(seen=upper_left),
        "tril and a window": mistake(seen=upper_left_in_a_window),
        "decoding": decoding(seen=upper_left),
    },
    "current token missing": {
        "stored after": mistake(step=stored_after),
        "strict while decoding": decoding(seen=ahead(-1)),
    },
    "rotated twice": {
        "key": mistake(turn_key=turn_key(2)),
        "query": mistake(turn_query=turn_key(2)),
        "both": mistake(**turn_both(2)),
        "one by one": mistake(turn_key=twice_one_by_one),
        "decoding": decoding(turn_key=turn_key(2)),
        "stored and read": decoding(read=turned_when_read),
    },
    "pairing swapped": {
        "pairs": mistake(pairs=other_pairs),
        "channels": mistake(turned=permuted),
        "decoding": decoding(pairs=other_pairs),
    },
    "rotated key used as value": {
        "read": mistake(read=key_as_value),
        "stored": mistake(raw=never),
        "decoding": decoding(read=key_as_value),
        "stored while decoding": decoding(raw=never),
    },
    "back-rotation missing": {
        "always": mistake(turn_back=not_back),
        "decoding": decoding(turn_back=not_back),
    },
    "a V buffer for K = V": {
        "counted": mistake(bytes=doubled),
        "returned": mistake(decode=with_a_buffer),
    },
    "float16 accumulation": {
        "scores": mistake(dots=scores_in_float16),
        "values": mistake(mixed=values_in_float16),
        "both": mistake(dots=scores_in_float16, mixed=values_in_float16),
    },
}


def test_every_name_of_the_page_is_planted():
    page = (ROOT / "docs/vectors.md").read_text("utf-8")
    known = page.split("These are known:")[1].split("Your function runs")[0]
    for name in KNOWN:
        assert name in known
    assert known.count(",") + known.count("\n- ") >= len(KNOWN)


WAYS = [(name, way) for name, ways in KNOWN.items() for way in ways]


@pytest.mark.parametrize(
    ("name", "way", "size"),
    [(*way, size) for i, way in enumerate(WAYS) for n, size in enumerate(SIZES) if n != i % 3],
)
def test_a_known_mistake_is_named_and_no_other_is(tasks, name, way, size):
    """Each at two of the sizes."""
    dtypes = ("float16",) if name == "float16 accumulation" else ("float64",)
    found = causes(tasks(size), KNOWN[name][way], dtypes)
    assert {name} == set(found.values()) - {None}, found


# ---- unknown mistakes: none may be given a name


def sharper(a, scores, seen):
    return Right.softmax(a, scores.times(np.log(2)), seen)


def pattern_by(numbers):
    """Another function of scores and mask in place of the softmax."""

    def softmax(a, scores, seen):
        p = numbers(scores.data, seen).astype(a.dtype)
        return Value(p, (scores, lambda g: p * (g - (g * p).sum(-1, keepdims=True))))

    return softmax


def grown(scores):
    return np.exp(scores - scores.max(-1, keepdims=True))


def hidden_later(scores, seen):
    return grown(scores) / grown(scores).sum(-1, keepdims=True) * seen


def hidden_by_zero(scores, seen):
    return hidden_later(np.where(seen, scores, 0), 1)


def no_gradient_of_the_sum(a, scores, seen):
    pattern = Right.softmax(a, scores, seen)
    return Value(pattern.data, (scores, lambda g: pattern.data * g))


def frequencies(of):
    """`of(a, m)`: the frequency of each of m pairs."""
    return lambda a, at, m: at[:, None] * of(a, m)


def base(number):
    return frequencies(lambda a, m: number ** (-np.arange(m) / m))


def off(n, turn="turn_key"):
    """Positions that are n too far when keys, queries or answers turn."""
    right = getattr(Right, turn)
    return lambda a, x, at: right(a, x, np.asarray(at) + n)


def first_channels(a, x, at, times=1):
    n = a.about["d_rope"]
    x = x.moved(lambda x: np.roll(x, -n, -1), lambda g: np.roll(g, n, -1))
    x = Right.turned(a, x, at, times)
    return x.moved(lambda x: np.roll(x, n, -1), lambda g: np.roll(g, -n, -1))


def turned_on(times):
    """Answers turned from where they are, instead of back."""
    return lambda a, z, at: z if Right.turn_back(a, z, at) is z else a.turned(z, at, times)


def values_of(n):
    """The values n positions later."""

    def mixed(a, pattern, v):
        v = v.moved(lambda v: np.roll(v, -n, 2), lambda g: np.roll(g, n, 2))
        return Right.mixed(a, pattern, v)

    return mixed


def without_head(n):
    def mixed(a, pattern, v):
        z = Right.mixed(a, pattern, v)
        heads = np.arange(z.data.shape[1]) != n % z.data.shape[1]
        return z.times(heads[:, None, None].astype(a.dtype))

    return mixed


def next_head(a, pattern, v):
    z = Right.mixed(a, pattern, v)
    return z.moved(lambda z: np.roll(z, 1, 1), lambda g: np.roll(g, -1, 1))


def dropout(a, pattern, v):
    kept = np.random.default_rng(0).random(pattern.data.shape) < 0.9
    return Right.mixed(a, pattern.times((kept / 0.9).astype(a.dtype)), v)


def channels_before_heads(a, z):
    B, H, T, d = z.data.shape
    z = z.moved(lambda z: z.transpose(0, 2, 3, 1), lambda g: g.transpose(0, 3, 1, 2))
    return z.reshaped(B, T, d * H)


def texts_ignored(a, i, j):
    return a.seen(i[:, None], j)


def without_gradient_of(name):
    """Zeros, where a gradient was forgotten."""

    def call(a, given, about):
        found = Right.__call__(a, given, about)
        return found and found | {n: 0 * found[n] for n in found if n == f"grad.{name}"}

    return call


def value_without_gradient(a, k, v, at):
    key, value = Right.read(a, k, v, at)
    return key, (Value(value.data) if a.one_row else value)


def unused_slots_too(a, q, caches, held, at):
    return Right.step(a, q, caches, np.where(held < 0, 0, held), at)


def slots_as_positions(a, q, caches, held, at):
    where = np.where(held < 0, -1, np.arange(len(held)))
    return Right.step(a, q, caches, where, np.array([where.max()]))


def slot_modulo_all(a, p):
    return p % (a.about["window"] + a.about["sinks"]) if a.about["task"] == "ring" else p


def times_bytes(number):
    return lambda a, caches, used: Right.bytes(a, caches, used) * number // 8


def keys_as_values_stored(a):
    found = Right.decode(a)
    return found | {n: found["cache.k"] for n in found if n == "cache.v"}


def capped(a, q, k):
    scores = Right.dots(a, q, k)
    flat = np.tanh(scores.data / 4)
    return Value(4 * flat, (scores, lambda g: g * (1 - flat**2)))


def scale_by(number):
    return lambda a: number(a.about["query_width"], a.about["n_head"])


UNKNOWN = {
    "scale 1": mistake(scale=lambda a: 1.0),
    "scale of all heads": mistake(scale=scale_by(lambda d, H: (d * H) ** -0.5)),
    "scale by d + 1": mistake(scale=scale_by(lambda d, H: 1 / (d + 1))),
    "scores capped": mistake(dots=capped),
    "base 2": mistake(softmax=sharper),
    "softmax, then the mask": mistake(softmax=pattern_by(hidden_later)),
    "masked with 0": mistake(softmax=pattern_by(hidden_by_zero)),
    "softmax gradient": mistake(softmax=no_gradient_of_the_sum),
    "two ahead": mistake(seen=ahead(2)),
    "two hidden": mistake(seen=ahead(-2)),
    "no mask": mistake(seen=within),
    "only itself": mistake(seen=lambda a, i, j: (j == i) | (not a.about["causal"])),
    "no sinks": mistake(seen=window_of(0, -9)),
    "packed texts see each other": mistake(mask=texts_ignored),
    "three times, the key": mistake(turn_key=turn_key(3)),
    "three times, both": mistake(**turn_both(3)),
    "three times while decoding": decoding(turn_key=turn_key(3)),
    "the other way": mistake(**turn_both(-1)),
    "key not turned": mistake(turn_key=turn_key(0)),
    "rope base 100": mistake(angles=base(100.0)),
    "first channels": mistake(turned=first_channels),
    "key one further": mistake(turn_key=off(1)),
    "query one further": mistake(turn_query=off(1, "turn_query")),
    "query one back while decoding": decoding(turn_query=off(-1, "turn_query")),
    "answer turned on": mistake(turn_back=turned_on(1)),
    "answer turned back twice": mistake(turn_back=turned_on(-2)),
    "value of the next position": mistake(mixed=values_of(1)),
    "first head missing": mistake(mixed=without_head(0)),
    "heads moved by one": mistake(mixed=next_head),
    "channels before heads": mistake(merged=channels_before_heads),
    "dropout": mistake(mixed=dropout),
    "all read the first stored head": mistake(stored_head=lambda a: 0 * mod(a)),
    "stored heads backwards": mistake(stored_head=lambda a: Right.stored_head(a)[::-1]),
    "slopes 1/4, 1/16": mistake(slopes=lambda a: 0.25 ** np.arange(1, a.about["n_head"] + 1)),
    "slopes backwards": mistake(slopes=lambda a: Right.slopes(a)[::-1]),
    "slopes upwards": mistake(slopes=lambda a: -Right.slopes(a)),
    "no gradient of v": mistake(__call__=without_gradient_of("v")),
    "no gradient of x": mistake(__call__=without_gradient_of("x")),
    "K = V, one gradient": mistake(read=value_without_gradient),
    "unused slots read": mistake(step=unused_slots_too),
    "slots taken for positions": mistake(step=slots_as_positions),
    "slots modulo all": mistake(slot=slot_modulo_all),
    "bytes of float32": mistake(bytes=times_bytes(4)),
    "three arrays": mistake(bytes=times_bytes(12)),
    "keys stored as values": mistake(decode=keys_as_values_stored),
}


@pytest.mark.parametrize("way", UNKNOWN)
def test_an_unknown_mistake_is_not_named(tasks, way):
    size = list(SIZES)[list(UNKNOWN).index(way) % len(SIZES)]
    found = causes(tasks(size), UNKNOWN[way], layers=("q=k-v/rope", "q-k=v/rope/unrotate"))
    assert set(found.values()) == {None}, {at: cause for at, cause in found.items() if cause}
