"""softmax.cu against float64 and, inside attention, against the readable code and its gradients."""

import tracemalloc

import numpy as np
import on_cpu
import pytest
import strict

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.kernels import softmax
from minqkv.runtime import tracing
from minqkv.tensor import Tensor

# ---- the two functions alone


def drawn(rng, *shape, size=3.0):
    return (size * rng.standard_normal(shape)).astype("f4")


def weighed(scores, bias=None, mask=None):
    """In float64: the weights, and 1 over their sums."""
    s = scores.astype("f8") + (0 if bias is None else bias)
    s = np.where(True if mask is None else mask, s, -np.inf)
    weights = np.exp(s - np.maximum(s.max(-1, keepdims=True), -3e38))
    total = weights.sum(-1, keepdims=True)
    return weights, 1 / np.where(total == 0, 1, total)


class Direct:
    """A backend that launches on NumPy arrays."""

    xp, kernels = np, True

    def __init__(self, seed=0, threads=None):
        self.seed, self.threads = seed, threads

    def empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype)

    def launch(self, file, function, grid, block, args, constants):
        if self.threads:
            block, constants = (self.threads,), constants | {"THREADS": self.threads}
        on_cpu.run(file, function, grid, block, args, constants, seed=self.seed)
        return True


def check_rows(scores, bias=None, mask=None, seed=0, threads=None, close=1e-6):
    """Both functions agree with float64."""
    gpu, rng = Direct(seed, threads), np.random.default_rng(seed)
    weights, inv_sums = weighed(scores, bias, mask)
    ours = scores.copy()
    with np.errstate(over="ignore"):
        sums = softmax.weigh(gpu, ours, bias, mask)
    np.testing.assert_allclose(ours, weights, 2e-5, close)
    np.testing.assert_allclose(sums, inv_sums, 2e-5)
    d = drawn(rng, *scores.shape).astype(scores.dtype)
    expected = weights * (d.astype("f8") - inv_sums * (weights * d).sum(-1, keepdims=True))
    assert softmax.unweigh(gpu, d, ours, sums) is d
    np.testing.assert_allclose(d, expected, 1e-4, 10 * close)


def rows_of(n, seed=0, size=3.0, **more):
    """Rows of n scores, with a bias and a mask that are views into longer arrays."""
    rng = np.random.default_rng((n, seed))
    B, H, T = rng.integers(2, 4, 3)
    shape = ((), (B, 1, T), (1, H, 1))[seed % 3]
    bias = drawn(rng, *shape, n + 3)[..., 2:-1]
    mask = rng.random((B, 1, T, n + 5))[..., 1:-4] < 0.7
    check_rows(drawn(rng, B, H, T, n, size=size), bias, mask[seed % B :][:1], seed, **more)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 63, 255, 256, 257, 300])
def test_row_lengths(n):
    for seed in range(3):
        rows_of(n, seed)


@pytest.mark.parametrize("threads", [32, 64, 128])
def test_what_is_not_held_is_read_again(threads):
    for n in (8 * threads - 1, 8 * threads, 8 * threads + 1, 11 * threads + 5):
        rows_of(n, threads=threads)


@pytest.mark.parametrize(("n", "threads"), [(9000, 1024), (50_304, 128), (100_000, 128)])
def test_long_rows(n, threads):
    rng = np.random.default_rng(n)
    check_rows(drawn(rng, 1, 1, 1, n), drawn(rng, n), rng.random((1, n)) < 0.9, 0, threads)
    assert softmax.threads(n) == 1024


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_threads_does_not_matter(seed):
    scores = drawn(np.random.default_rng(0), 1, 2, 2, 700)
    found = []
    for each in (seed, seed + 10):
        ours = scores.copy()
        sums = softmax.weigh(Direct(each, 64), ours, None, None)
        d = scores[..., ::-1].copy()
        found.append([ours, sums, softmax.unweigh(Direct(each, 64), d, ours, sums)])
    for a, b in zip(*found, strict=True):
        assert (a == b).all()


def check_extremes(threads=32):
    """Scores that overflow exp, wherever they are; rows that see nothing; scores all -∞."""
    rng, n = np.random.default_rng(0), 10 * threads + 3
    for low, high in ((-1e4, 1e4), (-1e4, -0.9e4), (0.9e4, 1e4), (-3e38, 3e38)):
        check_rows(rng.uniform(low, high, (1, 2, 2, n)).astype("f4"), threads=threads)
    places = [0, 1, threads - 1, threads, 8 * threads - 1, 8 * threads, 8 * threads + 1, n - 1]
    scores = drawn(rng, 1, 1, len(places), n)
    scores[0, 0, range(len(places)), places] = 1e4
    check_rows(scores, threads=threads)
    mask = np.zeros((2, 1, 2, n), bool)
    mask[1, :, 1, n - 1] = True
    check_rows(drawn(rng, 2, 2, 2, n), None, mask, threads=threads)
    check_rows(np.full((1, 1, 2, n), -np.inf, "f4"), threads=threads)


def test_extreme_scores():
    check_extremes()
    check_extremes(64)


def test_what_is_not_a_number_stays_so():
    for bad in (np.nan, np.inf):
        scores = np.zeros((1, 1, 2, 40), "f4")
        scores[0, 0, 0, 35] = bad
        sums = softmax.weigh(Direct(), scores, None, None)
        assert np.isnan(sums[0, 0, 0]).all()
        assert sums[0, 0, 1] == np.float32(1 / 40)


def test_half_precision():
    rng = np.random.default_rng(0)
    check_rows(drawn(rng, 2, 1, 2, 70).astype("f2"), drawn(rng, 70), close=1e-3)


def test_bfloat16():
    """NumPy lacks it: here it is the upper half of a float32, as an integer."""
    scores = drawn(np.random.default_rng(0), 3, 70)
    short, sums = (scores.view("u4") >> 16).astype("u2"), np.full(3, np.nan, "f4")
    rounded = (short.astype("u4") << 16).view("f4")
    args = (short, sums, None, None, *[np.int64(0)] * 5, 70, 1, 3)
    constants = {"NUMBER": "__nv_bfloat16", "THREADS": 32}
    on_cpu.run("softmax", "weigh", (3,), (32,), args, constants)
    weights, inv_sums = weighed(rounded)
    np.testing.assert_allclose((short.astype("u4") << 16).view("f4"), weights, 2**-8)
    np.testing.assert_allclose(sums, inv_sums[:, 0], 1e-5)


def test_what_does_not_fit_is_left_to_the_readable_code():
    x, row = np.ones((1, 1, 4, 6), "f4"), np.ones(6, "f4")
    mask = np.ones((6, 4), bool).T
    for case in (
        (x.astype("f8"), row, None),
        (x, row.astype("f8"), None),
        (x, None, mask),
        (x[..., ::2], None, None),
    ):
        assert softmax.weigh(Direct(), *case) is None
    assert softmax.unweigh(Direct(), x.astype("f8"), x, x) is None
    assert softmax.unweigh(Direct(), x, x, x.astype("f8")) is None
    assert (x == 1).all()


# ---- inside attention


def attention(
    where, q, k, v, g, mask=None, bias=None, temperature=None, causal=False, kernels=True
):
    """The answers and all gradients, as NumPy arrays; on the host in float64. The host does not
    wait, and nothing that is given changes.
    """
    dtype = "f8" if where == "numpy" else "f4"
    with backend.use_backend(where) as current:
        current.kernels = kernels and where == "strict"
        given = (q, k, v, temperature, bias)
        leaves = [
            None if x is None else Tensor(backend.upload(x, dtype), requires_grad=True)
            for x in given
        ]
        mask = None if mask is None else backend.upload(mask)
        t, b = leaves[3:]
        g = backend.upload(g, dtype)
        with strict.count_syncs() as syncs:
            out = F.scaled_dot_product_attention(
                *leaves[:3], mask, temperature=t, bias=b, causal=causal
            )
            watched = [out.data, g, *(leaf.data for leaf in leaves if leaf is not None)]
            before = [x.copy() for x in watched]
            out.backward(g)
        assert syncs() == 0 or tracing.active() is not None
        for a, b in zip(watched, before, strict=True):
            np.testing.assert_array_equal(backend.to_host(a), backend.to_host(b))
        found = [out.data, *(leaf.grad for leaf in leaves if leaf is not None)]
        return [backend.to_host(x) for x in found]


def case(kind, plus, seed, size=1.0):
    """Random shapes, a mask of some kind, and what is added to the scores."""
    rng = np.random.default_rng((seed, len(kind), len(plus)))
    B, h, G, d, d_v = rng.integers(1, 4, 5)
    T = int(rng.integers(1, 40))
    S = T + (3 if kind == "warm" else 0)
    H, i, j = h * G, np.arange(T)[:, None], np.arange(S)
    packed = np.sort(rng.integers(0, 3, (B, 1, T)))  # several texts in one sequence
    mask = {
        "none": None,
        "causal": j <= i,
        "warm": j <= i + 3,
        "packed": (packed[..., None] == packed[..., None, :]) & (j[:T] <= i),
        "some see nothing": (j <= i) & (i % 3 > 0),
    }[kind]
    bias = {
        "": None,
        "temperature": None,
        "plus": (S,),
        "rows differ": (B, 1, 1, S),
        "distance": (1, H, T, S),
        "all": (B, H, T, S),
    }[plus]
    sizes = (B, H, T, d), (B, h, S, d), (B, h, S, d_v), (B, H, T, d_v)
    given = [drawn(rng, *shape, size=size) for shape in sizes]
    more = {"mask": mask, "bias": None if bias is None else drawn(rng, *bias)}
    more["temperature"] = np.float32(1.3) if plus in ("temperature", "plus") else None
    return given, more


def check_attention(kind, plus, seed, size=1.0, most=2e-5):
    given, more = case(kind, plus, seed, size)
    with on_cpu.recording() as calls:
        ours = attention("strict", *given, **more)
    assert [call[2] for call in calls if call[2] != "columns"] == ["weigh", "gradient"]
    for a, b in zip(ours, attention("numpy", *given, **more), strict=True):
        assert a.dtype == "float32"
        np.testing.assert_allclose(a, b, 0, most * max(1, abs(b).max()))
    return calls


KINDS = ("none", "causal", "warm", "packed", "some see nothing")
PLUS = ("", "temperature", "plus", "rows differ", "distance", "all")


@pytest.mark.parametrize("plus", PLUS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_readable_code_agrees(kind, plus):
    for seed in range(3):
        check_attention(kind, plus, seed)


def test_large_scores_in_attention():
    """Scores of hundreds, whose products are rounded as those of the readable code are. Gradients
    of keys are sums of products of three numbers that reach 45, so some 5e-3 are rounding.
    """
    for kind in KINDS:
        given, more = case(kind, "rows differ", 1, 15)
        ours, readable = (attention("strict", *given, **more, kernels=on) for on in (True, False))
        for a, b in zip(ours, readable, strict=True):
            np.testing.assert_allclose(a, b, 0, 1e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_a_long_sequence(causal, monkeypatch):
    """Under a causal mask, later blocks of keys are skipped, and nobody asks the device."""
    monkeypatch.setattr(F, "BLOCK", 16)
    monkeypatch.setattr(F, "KEEP", 0)
    rng = np.random.default_rng(0)
    given = [drawn(rng, 1, n, 40, 4, size=1) for n in (2, 1, 1, 2)]
    more = {"mask": np.tri(40, dtype=bool), "bias": drawn(rng, 40), "causal": causal}
    with on_cpu.recording() as calls:
        ours = attention("strict", *given, **more)
    lengths = [call[5][-3].item() for call in calls if call[2] == "weigh"]
    ends = [16, 32, 40] if causal else [40, 40, 40]
    assert lengths == ends + ends[::-1]  # backward computes the weights again
    for a, b in zip(ours, attention("numpy", *given, **more), strict=True):
        np.testing.assert_allclose(a, b, 0, 3e-5)


def test_a_decoder_promises_that_it_is_causal(monkeypatch):
    monkeypatch.setattr(F, "BLOCK", 4)
    ids = np.random.default_rng(0).integers(0, 7, (2, 10))
    losses = []
    for where in ("strict", "numpy"):
        with backend.use_backend(where), on_cpu.recording() as calls:
            model = mq.GPT(mq.GPTConfig(7, 10, 1, 2, 8, "q=k-v+"))
            loss = F.cross_entropy(model(ids), ids)
            loss.backward()
            losses.append([loss.item(), *(p.grad.sum().item() for p in model.parameters())])
            lengths = [call[5][-3].item() for call in calls if call[2] == "weigh"]
            assert lengths == ([4, 8, 10] if where == "strict" else [])
    np.testing.assert_allclose(*losses, 1e-4, 1e-5)


def test_no_array_holds_the_scores_of_all_heads_and_positions(monkeypatch):
    monkeypatch.setattr(F, "BLOCK", 16)
    monkeypatch.setattr(F, "KEEP", 0)
    rng, T = np.random.default_rng(0), 256
    given = [drawn(rng, 1, 4, T, 4) for _ in range(4)]
    mask = np.tri(T, dtype=bool)
    attention("strict", *given, mask, causal=True)  # what is built and loaded once
    tracemalloc.start()
    attention("strict", *given, mask, causal=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * (4 * T * T * 4)  # bytes of all scores; inputs and copies are a third


def test_a_trace_shows_the_same():
    """It shows scores before and after what is added, so forward is the readable code's."""
    given, more = case("causal", "plus", 0)
    with mq.trace():
        shown = attention("strict", *given, **more)
    for a, b in zip(shown, attention("strict", *given, **more), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)


def test_the_gradient_is_the_transpose_of_the_derivative():
    """⟨u, J v⟩, by differences in float64, and ⟨Jᵀ u, v⟩ of the kernel."""
    rng = np.random.default_rng(0)
    for kind, plus in (("causal", "plus"), ("packed", "distance"), ("none", "temperature")):
        (*given, u), more = case(kind, plus, 5)
        names = [name for name in ("temperature", "bias") if more[name] is not None]
        point = [np.asarray(x, "f8") for x in (*given, *(more[name] for name in names))]
        step = [rng.standard_normal(x.shape) for x in point]
        ends = []
        for eps in (1e-5, -1e-5):
            q, k, v, *rest = (x + eps * dx for x, dx in zip(point, step, strict=True))
            moved = more | dict(zip(names, rest, strict=True))
            ends.append(attention("numpy", q, k, v, u, **moved)[0])
        along = ((ends[0] - ends[1]) / 2e-5 * u).sum()
        grads = attention("strict", *given, u, **more)[1:]
        terms = [(g.astype("f8") * dx).sum() for g, dx in zip(grads, step, strict=True)]
        assert abs(sum(terms) - along) < 1e-5 * sum(map(abs, terms))


def check_addresses():
    """Nothing is read or written outside."""
    with on_cpu.recording() as calls:
        for n in (1, 33, 600):
            rows_of(n, threads=64)
    on_cpu.sanitised(calls)


def test_addresses():
    check_addresses()


# ---- planted faults


def one():
    """A check that notices many of them: two sequences, three heads, three queries."""
    rows_of(700, 4, threads=64)


def quick():
    """The checks that notice them all."""
    for n in (1, 63, 700):
        for seed in range(3):
            rows_of(n, seed, threads=64)
    check_extremes(64)


TAIL = "for (int c = first + HELD * THREADS; c < n; c += THREADS) "
FAULTS = [  # (old text, new text), and the check that notices it if that is not `quick`
    ("if (c >= n ||", "if (c > n ||"),
    ("b * mask_b + t * mask_t", "b * mask_b + h * mask_t"),
    ("bias += b * bias_b + h", "bias += h"),
    ("row / queries % heads", "row % heads"),
    ("!mask[c])) return -INFINITY", "!mask[c])) return LOWEST"),
    ("peak = fmaxf(peak, held[i]);", ""),
    (TAIL + "peak", TAIL + "if (0) peak"),
    ("peak = block_max(peak);", "peak = warp_max(peak);"),
    ("peak = LOWEST, sum = 0;", "peak = -INFINITY, sum = 0;"),
    ("peak = LOWEST, sum = 0;", "peak = LOWEST, sum;"),
    ("sum = block_sum(sum);", "sum = warp_sum(sum);"),
    ("__syncthreads();\n  x = warp_max", "x = warp_max"),
    ("1 / (sum == 0 ? 1 : sum)", "1 / sum"),
    ("    sum += weight;\n  }\n  sum", "  }\n  sum"),
    ("block_sum(shared) * inv_sums[row]", "block_sum(shared)"),
    ("shared += as_float(weights[c])", "shared = as_float(weights[c])"),
    ("weight[i] * (held[i] - shared)", "weight[i] * held[i]"),
    ("d += row * n, weights += row * n", "d += row * n, weights += row"),
    ("d += row * n,", "d += row * (n - 1),", one),
    ("+ t * bias_t", "+ t * bias_h", one),
    ("mask += b * mask_b + t", "mask += t", check_extremes),
    ("bias ? bias[c] : 0", "bias ? bias[first] : 0", one),
    ("!mask[c])) return", "!mask[first])) return", one),
    ("score(first + i * THREADS)", "score(first + i * 32)", one),
    ("expf(held[i] - peak)", "expf(peak - held[i])", one),
    ("expf(score(c) - peak)", "expf(as_float(scores[c]) - peak)", one),
    ("if (c < n) store(&scores", "store(&scores"),
    ("inv_sums[row] = 1", "inv_sums[t] = 1", one),
    ("held[HELD], shared = 0", "held[HELD], shared", one),
    ("threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : -INFINITY",
     "of_warp[threadIdx.x % 32]", check_extremes),
    ("peak = LOWEST, sum = 0;", "peak = 0, sum = 0;", check_extremes),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[new or old for old, new, *_ in FAULTS])
def test_a_planted_fault_is_noticed(fault):
    assert not on_cpu.survives("softmax", *(*fault, quick)[:3])
