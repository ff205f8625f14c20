"""elementwise.cu against the readable code, and against what Philox is known to give."""

import numpy as np
import on_cpu
import pytest

import minqkv as mq
from minqkv import backend, optim
from minqkv import functional as F
from minqkv.kernels import elementwise
from minqkv.nn import Dropout, Init, Parameter, one_step
from minqkv.runtime.rng import first_row, stream
from minqkv.tensor import Tensor, recomputed

SIZES = (1, 2, 255, 257, 2000)
EXTREME = np.float32([0, -0.0, 1e-30, 1e4, -1e4, 1e6, -1e6, 3e38, -3e38, np.inf, -np.inf, np.nan])


def numbers(n, seed=0, offset=1):
    """n float32 numbers, not aligned to more than they must be."""
    return np.random.default_rng(seed).standard_normal(n + offset, dtype="f4")[offset:]


def on_device(function, *arrays, kernels=True):
    """function of Tensors, on the stand-in; its results as NumPy arrays, and what was launched."""
    with backend.use_backend("strict") as current, on_cpu.recording() as calls:
        current.kernels = kernels
        found = function(*[Tensor(backend.upload(array), requires_grad=True) for array in arrays])
        found = [None if array is None else backend.to_host(array) for array in found]
    return found, [call[2] for call in calls]


# ---- GELU


def gelu_and_slope(x):
    """Both, by autograd."""
    y = F.gelu(x)
    y.backward(backend.xp.ones(x.shape, "float32"))
    with mq.no_grad():
        alone = F.gelu(x)
    return y.data, x.grad, alone.data


def check_gelu(sizes=SIZES):
    """Kernel and readable code give the same numbers, with and without a gradient."""
    for x in (EXTREME, *[4 * numbers(n, n) for n in sizes]):
        (y, slope, alone), calls = on_device(gelu_and_slope, x)
        expected, none = on_device(gelu_and_slope, x, kernels=False)
        assert (calls, none) == (["gelu"] * 2, [])
        assert np.array_equal(y, alone, equal_nan=True)
        for ours, theirs in zip((y, slope), expected, strict=False):
            np.testing.assert_allclose(ours, theirs, 1e-5, 4e-6)


def test_gelu():
    check_gelu()


def test_gelu_of_a_strided_array():
    def run(x):
        return gelu_and_slope(x.reshape(6, 4)[::2, ::-1])[::2]

    x = numbers(24)
    for ours, theirs in zip(*(on_device(run, x, kernels=k)[0] for k in (True, False)), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-5, 4e-6)


def test_gelu_many_numbers_for_each_thread():
    """Few blocks: a thread has several numbers, in any order of threads."""
    x = numbers(3000)
    for seed in range(3):
        y, slope = (np.full(3000, np.nan, "f4") for _ in range(2))
        args = [x, y, slope, np.int64(3000)]
        on_cpu.run("elementwise", "gelu", (2,), (256,), args, seed=seed)
        np.testing.assert_allclose(y, F.gelu(Tensor(x)).data, 1e-5, 4e-6)


# ---- a step of Adam


def moved(shapes, gradients, max_norm, kernels, decay=0.1, dtype="float32", kind=optim.AdamW):
    """Norms, parameters, m and v after steps with these flat gradients."""
    with backend.use_backend("strict") as current, on_cpu.recording() as calls:
        current.kernels = kernels
        start = [Init(1, dtype, name=str(i)).normal(shape, 1.0) for i, shape in enumerate(shapes)]
        more = {} if kind is optim.SGD else {"weight_decay": decay, "betas": (0.9, 0.95)}
        found, ours = [], kind([Parameter(p.data) for p in start], lr=0.01, **more)
        for flat in gradients:
            begin = 0
            for p in ours.parameters:
                p.zero_grad()
                part = flat[begin : begin + p.size].reshape(p.shape)
                p.add_gradient(backend.upload(part.astype(dtype)))
                begin += p.size
            with np.errstate(all="ignore"):
                norm = ours.step(max_norm)
            found.append([0.0 if norm is None else float(norm)])
        kept = [ours.data, *[getattr(ours, name) for name in ours.slots]]
        return [np.ravel(found), *map(backend.to_host, kept)], [call[2] for call in calls]


SHAPES = [(7,), (16, 31), (300,), (1, 1)]  # 497 of 804 numbers are decayed
N = 804


def check_adamw(bounds=(None, 0.5, 1e6), steps=3, shapes=SHAPES, **more):
    """The same parameters, moments and norms."""
    size = sum(int(np.prod(shape)) for shape in shapes)
    gradients = [numbers(size, 5 + i) * 10.0 ** (2 * i - 3) for i in range(steps)]
    for max_norm in bounds:
        ours, calls = moved(shapes, gradients, max_norm, True, **more)
        theirs, _ = moved(shapes, gradients, max_norm, False, **more)
        one = ["adamw"] if max_norm is None else ["squares", "adamw"]
        assert calls == steps * one
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, 2e-5, 1e-7)


def test_adamw():
    check_adamw()
    check_adamw(decay=0.0, bounds=(1.0,))
    check_adamw(shapes=[(1,)], bounds=(1.0, None))
    check_adamw(shapes=[(1, 1)], bounds=(1.0,))


def test_an_update_of_your_own_is_used():
    class Still(mq.AdamW):
        def update(self, g):
            """Nothing moves."""

    (norms, data, *_), calls = moved(SHAPES, [numbers(N, 5)], 1.0, True, kind=Still)
    start, _ = moved(SHAPES, [], 1.0, True)
    assert np.array_equal(data, start[1])
    assert norms[0] > 1
    assert calls == []


def test_adamw_has_as_many_sums_as_blocks(monkeypatch):
    monkeypatch.setattr(elementwise, "BLOCKS", 2)
    check_adamw(bounds=(0.5,), steps=1)


def test_adamw_extreme_gradients():
    """Squares that a float cannot hold, zeros, and numbers next to the smallest."""
    for size in (3e38, 1e30, 1e20, 1e-8, 0.0, 1e-40):
        gradient = np.where(np.arange(N) % 7, 0, np.float32(size))
        for max_norm in (None, 1.0, 1e-7):
            ours, _ = moved(SHAPES, [gradient], max_norm, True)
            theirs, _ = moved(SHAPES, [gradient], max_norm, False)
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, 2e-5, 1e-12)


def test_adamw_what_is_not_a_number_spreads_as_in_the_readable_code():
    gradient = np.where(np.arange(N) == 3, np.float32(np.nan), 1)
    for max_norm in (None, 1.0):
        ours, _ = moved(SHAPES, [gradient], max_norm, True)
        theirs, _ = moved(SHAPES, [gradient], max_norm, False)
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(np.isnan(a), np.isnan(b))


def check_norm(n=5000, blocks=3):
    """A few blocks, threads in another order each time, sums that start as garbage."""
    g = numbers(n)
    for seed in range(3):
        sums, norm = np.full(blocks, np.nan), np.full((), np.nan, "f4")
        on_cpu.run("elementwise", "squares", (blocks,), (256,), [g, sums, np.int64(n)], seed=seed)
        data, m, v = (np.zeros(n, "f4") for _ in range(3))
        args = [data, m, v, g, np.int64(n), np.int64(0), 1.0, sums, blocks, 2.0, norm]
        args += [0.9, 0.1, 0.99, 0.01, 1.0, 1e-8, 1e-3]
        on_cpu.run("elementwise", "adamw", (2,), (256,), args, seed=seed)
        length = np.sqrt((g.astype("f8") ** 2).sum())
        np.testing.assert_allclose(norm, length, 1e-6)
        np.testing.assert_allclose(m, 0.1 * g * 2 / length, 1e-5, 1e-12)


def test_the_norm_of_many_blocks():
    check_norm()
    check_norm(n=70_000, blocks=300)


def test_other_optimisers_and_types_take_the_readable_code():
    gradient = [numbers(N)]
    assert moved(SHAPES, gradient, 1.0, True, kind=optim.SGD)[1] == []
    assert moved(SHAPES, gradient, 1.0, True, dtype="float64")[1] == []


# ---- dropout


def philox(key, counters):
    """Philox4x32-10 of a 64-bit key and 128-bit counters (n, 4), in NumPy: (n, 4)."""
    c = [np.asarray(column, np.uint64) for column in np.transpose(counters)]
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = (np.uint64(factor) * x for factor, x in ((0xD2511F53, c[0]), (0xCD9E8D57, c[2])))
        ten = np.uint64(32), np.uint64(0xFFFFFFFF)
        c = [b >> ten[0] ^ c[1] ^ np.uint64(low), b & ten[1],
             a >> ten[0] ^ c[3] ^ np.uint64(high), a & ten[1]]  # fmt: skip
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1)


def test_this_philox_is_the_published_one():
    """Its authors' known answers (Random123, kat_vectors)."""
    pi = 0x299F31D0_A4093822, [[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]]
    for (key, counter), answer in (
        ((0, [[0] * 4]), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**64 - 1, [[2**32 - 1] * 4]), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        assert philox(key, counter)[0].tolist() == list(answer)


def check_dropout(sizes=SIZES, begins=(0, 1, 2, 7, 2**34 - 2), rate=0.3):
    """Number i of a key is kept if part i % 4 of Philox's answer to i / 4 is large enough."""
    key, least = 0x123456789ABCDEF0, int(rate * 2**32)
    for n in sizes:
        for begin in begins:
            x, y = numbers(n), np.full(n, np.nan, "f4")
            args = [x, y, np.int64(n), np.uint64(key), np.int64(begin), np.uint32(least), 2.0]
            on_cpu.run("elementwise", "dropout", (2,), (256,), args, seed=n)
            at = np.arange(begin, begin + n)
            counters = [[i // 4 % 2**32, i // 4 >> 32, 0, 0] for i in at.tolist()]
            kept = philox(key, counters)[np.arange(n), at % 4] >= least
            assert (y == np.where(kept, x * 2, 0)).all()


def test_dropout_draws_by_the_counter():
    check_dropout()
    check_dropout(sizes=(5,), begins=(3,), rate=0.0)


def check_least():
    """A number that is just large enough is kept: at a rate of 0, all are."""
    key, x, y = 5, np.ones(4, "f4"), np.full(4, np.nan, "f4")
    drawn = philox(key, [[0] * 4])[0]
    args = [x, y, np.int64(4), np.uint64(key), np.int64(0), np.uint32(drawn[2]), 1.0]
    on_cpu.run("elementwise", "dropout", (1,), (256,), args)
    assert (y == (drawn >= drawn[2])).all()


def test_the_least_that_is_kept():
    check_least()


def dropped(x, rate=0.25, seed=4):
    """Dropout and its gradient."""
    y = F.dropout(x, rate, np.random.default_rng(seed))
    y.backward(backend.xp.ones(x.shape, "float32"))
    return y.data, x.grad


def check_mask():
    """Forward and backward drop the same; the rest is scaled; the mask is the key's alone."""
    x = numbers(4000)
    (y, slope), calls = on_device(dropped, x)
    assert calls == ["dropout", "dropout"]
    kept = slope != 0
    assert abs(kept.mean() - 0.75) < 0.03
    assert np.allclose(slope[kept], 4 / 3)
    assert np.allclose(y, x * slope)
    again, _ = on_device(dropped, x)
    assert (again[1] == slope).all()
    other, _ = on_device(lambda x: dropped(x, seed=5), x)
    assert 0.2 < ((other[1] != 0) != kept).mean() < 0.55


def test_dropout():
    check_mask()


def test_dropout_of_strided_arrays():
    """The array and its gradient, as if they were copied first."""

    def run(x):
        rows = x.reshape(6, 4)
        y = F.dropout(F.transpose(rows), 0.5, np.random.default_rng(1))
        y.backward(rows.data.T)  # so that the gradient is what is returned
        return y.data, x.grad.reshape(6, 4).T

    x = numbers(24)
    (y, grad), calls = on_device(run, x)
    (expected, _), _ = on_device(lambda x: dropped(x, 0.5, 1), x.reshape(6, 4).T.copy())
    assert calls == ["dropout"] * 2
    assert (y == expected).all()
    assert (grad == y).all()


def test_float64_takes_the_readable_code():
    def run(x):
        return F.gelu(x).data, F.dropout(x, 0.5, np.random.default_rng(1)).data

    found, calls = on_device(run, np.ones(5))
    assert calls == []
    assert {array.dtype.name for array in found} == {"float64"}


def test_what_is_dropped_is_zero_whatever_it_was():
    (y, _), _ = on_device(dropped, np.full(64, np.inf, "f4"))
    assert set(y.tolist()) == {0.0, np.inf}


def test_a_call_takes_a_key_of_its_own():
    def twice(x):
        rng = np.random.default_rng(0)
        return F.dropout(x, 0.5, rng).data, F.dropout(x, 0.5, rng).data

    (first, second), _ = on_device(twice, np.ones(1000, "f4"))
    assert 0.4 < (first != second).mean() < 0.6


def test_a_row_has_its_mask_wherever_the_batch_begins():
    """As several machines need it, each of which has some rows of the batch."""

    def run(x, begin):
        token = first_row.set(begin)
        try:
            return (Dropout(0.5, Init(3, name="drop"))(x).data,)
        finally:
            first_row.reset(token)

    x = np.ones((6, 5, 3), "f4")
    (whole,), _ = on_device(lambda x: run(x, 0), x)
    (end,), _ = on_device(lambda x: run(x, 2), x[2:])
    assert (whole[2:] == end).all()
    assert not (whole[:4] == end).all()


def test_seed_name_and_step_each_change_the_mask():
    found = set()
    for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)):
        seed, *rest = key

        def run(x, seed=seed, rest=rest):
            return (F.dropout(x, 0.5, stream(seed, "dropout", *rest)).data,)

        found.add(on_device(run, np.ones(64, "f4"))[0][0].tobytes())
    assert len(found) == 4


def test_a_recomputed_block_has_the_same_mask():
    def run(x, again):
        layer = Dropout(0.5, Init(3, name="drop"))
        with one_step(layer):
            y = recomputed(layer, x) if again else layer(x)
        y.backward(backend.xp.ones(x.shape, "float32"))
        return y.data, x.grad

    x = np.ones((4, 50), "f4")
    plain, _ = on_device(lambda x: run(x, False), x)
    again, calls = on_device(lambda x: run(x, True), x)
    assert calls == ["dropout"] * 3
    assert all((a == b).all() for a, b in zip(plain, again, strict=True))
    assert (plain[0] == plain[1]).all()


def trained(steps, kernels=True):
    """Losses of a model with dropout; after `steps[0]` it is saved and loaded into another."""
    with backend.use_backend("strict") as current:
        current.kernels = kernels
        x = np.arange(12).reshape(2, 6) % 5
        states, losses = None, []
        for n in steps:
            model = mq.GPT(mq.GPTConfig(5, 6, 1, 2, 8, dropout=0.4))
            adam = optim.AdamW(model.parameters(), lr=1e-2)
            if states:
                model.load_state_dict(states[0])
                adam.load_state_dict(states[1])
            losses += [mq.train_step(model, adam, x, (x + 1) % 5) for _ in range(n)]
            states = model.state_dict(), adam.state_dict()
        return losses, states[0]


def test_a_resumed_run_has_the_same_masks():
    whole, resumed = trained([4]), trained([2, 2])
    assert whole[0] == resumed[0]
    assert all((whole[1][name] == resumed[1][name]).all() for name in whole[1])
    assert whole[0] != trained([4], kernels=False)[0]  # the host's masks are others


# ---- addresses, and planted faults


def check_addresses():
    """All of it under the address sanitiser."""
    with on_cpu.recording() as calls:
        check_gelu((1, 257))
        check_adamw(bounds=(1.0,), steps=1)
        check_dropout((1, 2, 257), (0, 3))
    assert calls
    on_cpu.sanitised(calls)


def test_nothing_is_read_or_written_outside():
    check_addresses()


def quick_gelu():
    check_gelu((257,))


def quick_adamw():
    check_adamw(bounds=(0.5,))
    test_adamw_what_is_not_a_number_spreads_as_in_the_readable_code()


def quick_step():
    check_adamw(bounds=(0.5,), steps=2)


def quick_dropout():
    check_dropout((8,), (1,))


def far_dropout():
    check_dropout((8,), (2**34 - 2,))


FAULTS = [  # (old text, new text, the check that notices it)
    ("return x < low ? low : x > high ? high : x;", "return fminf(fmaxf(x, low), high);",
     quick_gelu),
    ("y[i] = phi * (x[i] < -1e4f ? -1e4f : x[i]);", "y[i] = phi * x[i];", quick_gelu),
    ("2 * c) * (1 - phi) * phi * in + phi", "2 * c) * (1 - phi) * phi * in", quick_gelu),
    ("  double sum = 0;\n  for (long long i", "  double sum;\n  for (long long i", check_norm),
    ("sum += double(g[i]) * g[i]", "sum += g[i] * g[i]", test_adamw_extreme_gradients),
    ("/ 32];\n  for (int step = 16;", "/ 32];\n  for (int step = 8;", check_norm),
    ("parts[threadIdx.x / 32] = x;\n  __syncthreads();", "parts[threadIdx.x / 32] = x;",
     check_norm),
    ("i < n_sums; i += THREADS", "i + 1 < n_sums; i += THREADS", check_norm),
    ("scale = scale > 1 ? 1 : scale;", "scale = fminf(scale, 1);", quick_adamw),
    ("i < n_decayed ?", "i <= n_decayed ?", quick_adamw),
    ("m[i] * beta1 + slope * fresh1", "m[i] * beta1 + g[i] * fresh1", quick_adamw),
    ("float slope = within(g[i] * scale, -most, most)", "float slope = g[i] * scale",
     test_adamw_extreme_gradients),
    ("round < 10", "round < 9", quick_dropout),
    ("unsigned(counter >> 32), 0, 0", "0, 0, 0", check_dropout),
    ("drawn[part] >= least", "drawn[part] > 2 * least", quick_dropout),
    ("if (i >= 0 && i < n) y", "if (i < n) y", check_addresses),
    ("4 * j < skipped + n", "4 * j < n", quick_dropout),
    ("i += STRIDE) sum", "i += THREADS) sum", check_norm),
    ("i < n; i += STRIDE) {\n    float slope", "i < n; i += THREADS) {\n    float slope",
     check_norm),
    ("    double sum = 0;\n    for (int i", "    double sum;\n    for (int i", check_norm),
    ("*norm = before", "*norm = before * scale", quick_step),
    ("(before + 1e-6f)", "before", test_adamw_extreme_gradients),
    ("sqrtf(spread) * unbias + eps", "sqrtf(spread * unbias * unbias + eps)", quick_step),
    ("i < n_decayed ? data[i] * decay : data[i]", "data[i] * decay", quick_step),
    ("m[i] * beta1", "m[i] * beta2", quick_step),
    (">= least", "> least", check_least),
    ("unsigned(key >> 32)", "0", quick_dropout),
    ("begin / 4 + j", "j", far_dropout),
    ("4 * j + part - skipped", "4 * j + part", quick_dropout),
    ("* phi * in + phi", "* phi * x[i] + phi", quick_gelu),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[new or old for old, new, _ in FAULTS])
def test_a_planted_fault_is_noticed(fault):
    assert not on_cpu.survives("elementwise", *fault)
