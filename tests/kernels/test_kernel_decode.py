"""decode.cu against the readable code: on the way from a layer's cache to its answer, for every
form of stored rows, and alone for what NumPy cannot store.
"""

import sys
from contextlib import contextmanager

import numpy as np
import on_cpu
import pytest

import minqkv as mq
from minqkv import backend, kernels
from minqkv.attention import Attention
from minqkv.cache import LayerCache
from minqkv.caches.int8 import Int8Layer, Int8RingLayer
from minqkv.caches.ring import RingLayer
from minqkv.designs.layers import Sink
from minqkv.kernels import decode
from minqkv.nn import Init
from minqkv.runtime.backend import GpuBackend
from minqkv.tensor import Tensor

ROPE = {"position": "rope"}
BACKEND = "strict"


@pytest.fixture
def device(device, monkeypatch):
    """The test runs on the stand-in for CuPy, and with `-m gpu` on a real GPU."""
    monkeypatch.setattr(sys.modules[__name__], "BACKEND", device.name)


@contextmanager
def launched():
    """`with launched() as names: ...`: the functions launched since."""
    names, launch = [], GpuBackend.launch

    def listen(self, file, function, *args):
        names.append(function)
        return launch(self, file, function, *args)

    GpuBackend.launch = listen
    try:
        yield names
    finally:
        GpuBackend.launch = launch


def answers(kernels, variant="q-k=v", n=450, head_dim=16, heads=4, dtype="float32", kind=LayerCache,
            layer=Attention, lengths=None, mask=None, scale=3.0, seed=0, window=None, sinks=0,
            off=0, room=5, **options):  # fmt: skip
    """What a layer says of one more token (B, 1, C) after n - 1 in its cache, as a NumPy array.

    `scale` is about the largest score of a query; `off` moves all buffers by some bytes; there is
    `room` for more tokens; `lengths` are those of the sequences, where they differ, and `mask`
    hides keys.
    """
    rng = np.random.default_rng(seed)
    with backend.use_backend(BACKEND) as current, mq.no_grad():
        current.kernels = kernels
        attention = layer(variant, 8, heads, n + room, Init(seed=3), head_dim=head_dim, **options)
        for p in attention.parameters():
            p.data = p.data + current.upload(rng.standard_normal(p.shape, "f4") * scale**0.5 / 4)
        attention.window, attention.sinks = window, sinks
        stored = attention.spec.rows(heads, head_dim, attention.d_rope)
        more = {"window": window, "sinks": sinks} if issubclass(kind, RingLayer) else {}
        cache = kind(2, stored, n + room, dtype, **more)
        for i, buffer in enumerate(cache.buffers):
            whole = current.xp.full(buffer.nbytes + off, 0x7F, "uint8")  # unused slots: garbage
            cache.buffers[i] = whole[off:].view(buffer.dtype).reshape(buffer.shape)
        past = [rng.standard_normal((2, h, n - 1, width), dtype="f4") for h, width in stored]
        pad = None if lengths is None else n - np.array(lengths)
        if n > 1:
            at = cache.next(n - 1, pad)
            cache.append(*[current.upload(rows) for rows in past], at=at)
        x = Tensor(current.upload(rng.standard_normal((2, 1, 8), dtype="f4")))
        mask = mask if mask is None else current.upload(mask)
        return current.to_host(attention(x, mask, cache, cache.next(1)).data)


def check(launches=("decode", "join"), tolerance=3e-5, **case):
    """The kernel and the readable code agree, and the kernel has been launched."""
    with launched() as names:
        ours = answers(True, **case)
    assert [name for name in names if name in ("decode", "join")] == [*launches], case
    expected = answers(False, **case)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, expected, 0, tolerance * abs(expected).max())


FORMS = {
    "K and V": {"variant": "qkv"},
    "one row": {},
    "Q = K": {"variant": "q=k-v"},
    "thin keys": {"variant": "thin-16", "head_dim": 32},
    "groups": {"variant": "gqa-2", "heads": 8},
    "three of a group": {"variant": "q-gqa-2", "heads": 6},
    "more of a group than a block takes": {"variant": "q-gqa-2", "heads": 32},
    "one head": {"variant": "q-mqa", "heads": 8},
    "turned before": {"variant": "gqa-2", **ROPE},
    "turned late": ROPE,
    "turned late, in part": {**ROPE, "d_rope": 6, "variant": "q-gqa-2"},
    "turned back": {**ROPE, "rope_value": "unrotate"},
    "gains": {"norm": True},
    "gains, turned late": {"norm": True, **ROPE},
    "gains of keys": {"norm": True, "variant": "gqa-2", **ROPE},
    "a row beside": {"variant": "gta-2", **ROPE},
    "latent": {"variant": "mla", **ROPE},
    "latent groups": {"variant": "gla-2", **ROPE},
    "latent, no positions": {"variant": "mla"},
    "temperature and bias": {"variant": "q=k=v+"},
    "temperature": {"variant": "q=k-v+temperature"},
    "bias": {"variant": "q=k=v+bias"},
    "rates of distance": {"position": "alibi", "variant": "gqa-2"},
    "learned distances": {"position": "relative", "variant": "gqa-2", "ahead": False},
    "a sink": {"layer": Sink, "variant": "q-mqa", **ROPE, "rope_value": "unrotate"},
}
KINDS = {
    "plain": {},
    "float16": {"dtype": "float16"},
    "int8": {"kind": Int8Layer},
    "ring": {"kind": RingLayer, "window": 200, "sinks": 3},
    "int8 ring": {"kind": Int8RingLayer, "window": 200, "sinks": 0},
    "window": {"window": 200, "sinks": 3},
    "lengths": {"lengths": [450, 170]},
    "lengths in a ring": {"kind": RingLayer, "window": 200, "lengths": [90, 450]},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(form, device):
    check(**FORMS[form])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["K and V", "turned late", "a row beside", "temperature and bias"])
def test_kinds_of_cache(form, kind, device):
    check(**FORMS[form], **KINDS[kind])


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 127, 128, 129, 300])
def test_lengths_that_fill_no_tile_or_span(n, device):
    check(variant="qkv", n=n, seed=n)
    check(**ROPE, n=n, seed=n)


@pytest.mark.parametrize("head_dim", [20, 64, 128, 160, 256])
def test_head_widths(head_dim, device):
    check(variant="qkv", head_dim=head_dim)
    if head_dim > 100:
        check(**ROPE, variant="q-gqa-2", head_dim=head_dim)


def test_hundred_thousand_positions(device):
    check(variant="q-mqa", n=100_000, heads=2)


@pytest.mark.parametrize("scale", [1e-30, 300, 1e15])
def test_extreme_scores(scale, device):
    """All equal, one far above the others, and far beyond what exp can take."""
    check(variant="gqa-2", scale=scale, n=200)
    check(layer=Sink, variant="q-mqa", scale=scale, n=200)


def spans():
    """More spans than `join` has lanes in a warp, whose largest scores are far apart."""
    check(variant="mqa", n=5000, heads=2, scale=1e6)


def test_many_spans(device):
    spans()


def test_masked_rows(device):
    """Whole tiles that nobody sees, and a query that sees nothing: zeros."""
    for seen in (slice(70, 100), slice(0, 1), slice(199, 200)):
        mask = np.zeros((1, 200), bool)
        mask[:, seen] = True
        check(mask=mask, n=200)
    assert not answers(True, mask=np.zeros((1, 200), bool), n=200, bias=False).any()


def test_tiles_that_nobody_sees_are_not_read():
    """They hold what is not a number, which would otherwise come into every answer."""
    with backend.use_backend("strict") as current, mq.no_grad():
        attention, n = Attention("mqa", 8, 4, 256, Init(seed=3), head_dim=16), 256
        rows = [np.ones((1, 1, n, 16), "f4") for _ in range(2)]
        seen = np.zeros((1, n), bool)
        seen[0, 32:64] = seen[0, 200] = True
        for array in rows:
            array[:, :, ~np.repeat(seen.reshape(-1, 32).any(1), 32)] = np.nan
        rows, mask = [current.upload(array) for array in rows], current.upload(seen)
        q = current.upload(np.ones((1, 4, 1, 16), "f4"))
        z = current.decode(attention, q, rows, slice(0, n), mask, slice(n - 1, n))
        assert (current.to_host(z) == 1).all()


@pytest.mark.parametrize(("dtype", "off"), [("float32", 4), ("float32", 8), ("float16", 2)])
def test_views_that_begin_anywhere(dtype, off):
    check(off=off, dtype=dtype)
    with on_cpu.recording() as calls:
        answers(True, off=off, dtype=dtype)
    flags = next(call[1] for call in calls if call[2] == "decode")
    assert f"-DVECTOR={off // np.dtype(dtype).itemsize}" in flags


def test_orders_of_threads(monkeypatch):
    expected = None
    for seed in range(8):
        monkeypatch.setattr(on_cpu, "SEED", seed)
        found = answers(True, **FORMS["turned late"], n=100)
        expected = found if expected is None else expected
        assert np.array_equal(found, expected)


def test_random_cases(rng, device):
    for seed in range(12):
        form = FORMS[rng.choice([*FORMS])]
        kind = KINDS[rng.choice([*KINDS])]
        check(**{**form, **kind, "seed": seed, "scale": 10 ** rng.uniform(-1, 2)})


def check_addresses(forms=("K and V",)):
    """Nothing is read or written outside of the arrays, nor at an address that is not aligned."""
    with on_cpu.recording() as calls:
        for form in forms:
            answers(True, **FORMS[form], n=33)
    on_cpu.sanitised(calls)


def check_positions():
    """Slots that are not in use have positions below 0, of which there are no angles."""
    with on_cpu.recording() as calls:
        answers(True, **FORMS["turned late"], **KINDS["lengths in a ring"])
    on_cpu.sanitised(calls)


def test_nothing_is_touched_outside():
    check_positions()
    check_addresses(["K and V", "a row beside", "temperature and bias"])
    with on_cpu.recording() as calls:
        answers(True, **FORMS["gains, turned late"], **KINDS["int8 ring"])
    on_cpu.sanitised(calls)


# ---- what NumPy has no type for


def to_bfloat(x):
    """float32 as bfloat16, in the bits of uint16: cut off, so that they are exact."""
    return (x.view("u4") >> 16).astype("u2")


def from_bfloat(x):
    """The other way."""
    return (x.astype("u4") << 16).view("f4")


def direct(q, k, start):
    """The answers of decode.cu to queries (1, H, d) from rows (n, d), bfloat16, that are key and
    value for all of them; `start(function, grid, args, constants)` launches.
    """
    (_, heads, d), n = q.shape, len(k)
    sizes = {"WIDTH": d, "VALUE": d, "BESIDE": 0, "ASKED": d, "FORM": decode.SAME, "TURN": 0}
    constants = {"STORED": "__nv_bfloat16", **sizes, "GROUP": heads, "ROWS": 32, "VECTOR": 8}
    mixed, answer = np.full((1, heads, 2, d), np.nan, "f4"), np.full((1, heads, d), np.nan, "f4")
    totals, peaks = np.full((2, 1, heads, 2), np.nan, "f4")
    args = [q, 0.3, None, k, *[None] * 11, *[0] * 4, mixed, totals, peaks, None, n, 64, n, 1, heads]
    start("decode", (2, 1, 1), args, constants)
    start("join", (heads, 1), [mixed, totals, peaks, None, answer, 2, heads], constants)
    return answer


@pytest.fixture
def small(rng):
    """Queries (1, 4, 32), and rows (70, 32) in bfloat16."""
    return rng.standard_normal((1, 4, 32), "f4"), to_bfloat(rng.standard_normal((70, 32), "f4"))


def test_bfloat16(small):
    def start(function, grid, args, constants):
        on_cpu.run("decode", function, grid, (128,), args, constants)

    q, k = small[0][0], from_bfloat(small[1])
    weights = np.exp(q @ k.T * 0.3)  # (heads, n)
    expected = weights @ k / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(direct(*small, start)[0], expected, 1e-5, 1e-6)


def test_each_row_is_read_once(small):
    """For both its uses, and for all queries: loads are counted."""
    read, struct = "Stored read = inside ?", "struct __align__(sizeof(STORED)"
    text = on_cpu.source("decode").replace(read, f"reads += inside; {read}")
    text = text.replace(struct, f"static int reads;\n{struct}")
    text += '\nextern "C" int counted() { return reads; }\n'
    library = None

    def start(function, grid, args, constants):
        nonlocal library
        module = on_cpu.Module(text, kernels.options(constants))
        module.get_function(function)(grid, (128,), [kernels.argument(x) for x in args])
        library = module.library

    direct(*small, start)
    assert library.counted() * 8 == small[1].size


# ---- when the readable code runs


class Reader(Attention):
    """Reads its rows in a way of its own."""

    def read(self, rows, at=None):
        """Keys and values, doubled."""
        k, v = super().read(rows, at)
        return k * 2.0, v


OTHERS = {
    "a read of its own": {"layer": Reader},
    "narrow heads": {"head_dim": 8},
    "a width that is not a multiple of 4": {"head_dim": 18},
    "float64 rows": {"dtype": "float64"},
    "too wide": {"head_dim": 2048, "n": 5},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_readable_code_runs_where_the_kernel_does_not_fit(name):
    check((), **OTHERS[name])


def test_no_download_is_added():
    from strict import count_syncs

    def counted(kernels):
        with count_syncs() as syncs:
            answers(kernels, **FORMS["turned late"], **KINDS["ring"])
            return syncs()

    assert counted(True) == counted(False) == 1  # the test's own


def test_positions_that_have_no_angles():
    with backend.use_backend("strict"), mq.no_grad():
        attention = Attention("q-k=v", 8, 2, 4, Init(seed=3), head_dim=16, **ROPE)
        n = len(attention.angles[0])
        assert decode.usual(attention, slice(0, n))
        assert decode.usual(attention, np.array([[2, n - 1]]))
        for at in (slice(0, n + 1), np.array([[2, n]]), slice(1, n)):
            assert not decode.usual(attention, at)


def test_more_sequences_than_a_launch_has_blocks():
    """Along z there are 65,535."""
    with backend.use_backend("strict") as current, mq.no_grad():
        attention = Attention("q-mqa", 8, 2, 4, Init(seed=3), head_dim=16)
        for batch in (3, 65_536):
            q, row = (current.upload(np.ones((batch, heads, 1, 16), "f4")) for heads in (2, 1))
            z = current.decode(attention, q, [row], slice(0, 1), None, slice(0, 1))
            assert (z is None) == (batch > 3)


# ---- planted faults


def quick():
    """The checks that notice most faults, in a second."""
    check(**FORMS["turned late, in part"])
    check(variant="gqa-2", heads=32)
    check(**FORMS["a row beside"], **KINDS["lengths"])


def case(form, kind="plain", **more):
    """A single check."""
    return lambda: check(**FORMS[form], **KINDS[kind], **more)


def extremes():
    """Tiles whose largest scores are far apart, and scores that are all far below 0."""
    check(variant="gqa-2", scale=1e6)
    check(variant="gqa-2", scale=1e6, n=2)


LATE, PLUS = case("turned late"), case("temperature and bias")
WIDE = case("K and V", head_dim=160, n=40)
FAULTS = [  # (old text, new text), and the check that notices it if that is not `quick`
    # sums that nobody has set to 0, and a largest score that is not the lowest at first
    ("if (t < GROUP) peak[t] = LOWEST, total[t] = 0", "if (t < GROUP) peak[t] = LOWEST"),
    ("if (t < GROUP) peak[t] = LOWEST", "if (t < GROUP) peak[t] = 0", extremes),
    # rescaling
    ("total[g] * old + warp_sum(w)", "total[g] + warp_sum(w)"),
    ("mix[g][i] *= shrink[g];", ";"),
    ("fmaxf(peak[g], warp_max(x))", "warp_max(x)", extremes),
    ("float w = __expf(peaks[from + s] - high);", "float w = 1;"),
    # the ends of arrays, tiles and spans
    ("bool inside = start + r < end;", "bool inside = start + r <= end;", check_addresses),
    ("bool seen = slot < end &&", "bool seen = slot <= end &&"),
    ("newest ? int(*newest) + 1 : n);", "newest ? int(*newest) + 1 : n / ROWS * ROWS);"),
    ("for (int w = 0; w < WARPS; w++) z", "for (int w = 0; w < WARPS - 1; w++) z"),
    # barriers
    ("if (!__syncthreads_or(seen)) continue;", ""),
    (
        "if (!__syncthreads_or(seen)) continue;",
        "__syncthreads();",
        test_tiles_that_nobody_sees_are_not_read,
    ),
    # heads and strides
    ("head = first / (queries / heads)", "head = first % heads"),
    ("(b * heads + head) * capacity;", "(b * heads + head) * n;"),
    ("beside_scales, b * capacity", "beside_scales, b * heads * capacity"),
    ("scales[place + start + r]", "scales[start + r]", case("K and V", "int8")),
    ("bias[b * of_bias + (first + g) * of_head", "bias[b * of_bias", case("rates of distance")),
    # masks, positions, and what is added or multiplied
    ("(!mask || mask[b * of_mask + slot])", "true"),
    ("at ? max(at[b * of_at + slot], 0) : slot", "slot", case("turned late", "ring")),
    ("key[c] = x * u - y * v", "key[c] = x * u + y * v"),
    ("c - (KEY - ASKED)", "c"),
    ("scale * *temperature", "scale", case("temperature and bias")),
    ("sinks ? __expf(sink - high) : 0, z", "0, z", case("a sink")),
    # of a second hand: each of them is noticed by a single build
    ("as_float(read.x[j]) * scale", "as_float(read.x[0]) * scale", LATE),
    ("values = FORM == SAME ? keys : own;", "values = FORM != APART ? keys : own;", LATE),
    ("y * u + x * v;\n  }\n  __syncwarp();", "y * u + x * v;\n  }", LATE),
    ("at[b * of_at + slot]", "at[slot]", case("turned late", "lengths in a ring")),
    ("max(at[b * of_at + slot], 0)", "at[b * of_at + slot]", check_positions),
    ("(gains ? gains[c] : 1)", "1", case("gains, turned late")),
    ("apart_scales, place, start", "row_scales, place, start", case("K and V", "int8")),
    ("scale * *temperature : s", "scale * *temperature * *temperature : s", PLUS),
    ("(first + g) * of_head + slot]", "(first + g) * of_head + row]", PLUS),
    ("bias[b * of_bias + (first", "bias[(first", case("learned distances", "lengths")),
    ("mask[b * of_mask + slot]", "mask[slot]", case("turned late", "lengths")),
    ("CHANNELS = (VALUE + THREADS - 1) / THREADS", "CHANNELS = 1", WIDE),
    ("seen ? score[g] : -INFINITY", "seen ? score[g] : 0", LATE),
    ("shrink[g] = old;\n    }\n    __syncthreads();", "shrink[g] = old;\n    }", LATE),
    ("score[GROUP] = {}", "score[GROUP]", LATE),
    ("step = PARTS / 2; step", "step = PARTS / 4; step", LATE),
    ("s < spans; s += 32) high", "s < min(spans, 32); s += 32) high", spans),
    ("sinks[query % queries]", "sinks[query / queries]", case("a sink")),
    ("same total in every lane\n  __syncthreads();", "same total in every lane", LATE),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[new or old for old, new, *_ in FAULTS])
def test_a_planted_fault_is_noticed(fault):
    old, new, notices = (*fault, quick)[:3]
    assert not on_cpu.survives("decode", old, new, notices)
