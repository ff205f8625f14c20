"""Every operation, small and fused, on every backend: its backward is the transpose of its forward,
whatever the shapes; it leaves its inputs and its output alone; float32 stays float32; and each
fused one equals its twin in reference.py. Then attention: in blocks of queries, patterns kept or
computed again, and what it allocates.

`OPS` and `FUSED` are the two tables that most of this runs over. A fused case takes the module
(functional or reference) first.
"""

import inspect
import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from toys import NOT_OPERATIONS, host

from minqkv import Tensor, gradcheck, reference, tensor
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.attention import causal_mask, rope_table
from minqkv.runtime.errors import UsageError

IDS = np.array([[0, 4, 4], [6, 0, 1]])


def device(values, dtype=None):
    return backends.upload(np.asarray(values), dtype)


# name -> (function, shapes of its inputs); "positive" in the name asks for inputs in 0.5 .. 2
OPS = {
    "neg": (F.neg, [(3, 4)]),
    "exp": (F.exp, [(3, 4)]),
    "tanh": (F.tanh, [(3, 4)]),
    "log positive": (F.log, [(3, 4)]),
    "sqrt positive": (F.sqrt, [(3, 4)]),
    "pow 3": (lambda x: x**3, [(3, 4)]),
    "pow 0.5 positive": (lambda x: x**0.5, [(3, 4)]),
    "pow -2 positive": (lambda x: F.pow(x, -2), [(3, 4)]),
    "number first": (lambda x: 2 - x, [(3,)]),
    "number divided positive": (lambda x: 2 / x, [(3,)]),
    "numbers after": (lambda x: (x * 2 + 1 - 0.5) / 3, [(2, 3)]),
    "a scalar": (lambda x: x * x + x, [()]),
    "matmul": (F.matmul, [(3, 4), (4, 2)]),
    "matmul batched": (F.matmul, [(2, 3, 4), (2, 4, 5)]),
    "matmul one matrix for all": (F.matmul, [(2, 3, 4), (4, 5)]),
    "matmul broadcast left": (F.matmul, [(3, 4), (2, 2, 4, 5)]),
    "matmul broadcast both": (F.matmul, [(2, 1, 3, 4), (3, 4, 2)]),
    "matmul inner 1": (F.matmul, [(3, 1), (1, 2)]),
    "reshape": (lambda x: x.reshape(2, -1), [(3, 4)]),
    "reshape tuple": (lambda x: F.reshape(x, (12,)), [(3, 4)]),
    "reshape to scalar": (lambda x: x.reshape(()), [(1, 1)]),
    "transpose": (lambda x: x.transpose(), [(2, 3, 4)]),
    "transpose cycle": (lambda x: x.transpose(2, 0, 1), [(2, 3, 4)]),
    "transpose negative": (lambda x: x.transpose(0, -1, 1), [(3, 3, 3)]),
    "getitem int": (lambda x: x[1], [(3, 4)]),
    "getitem negative": (lambda x: x[-1, 0], [(3, 4)]),
    "getitem slices": (lambda x: x[1:, ::2], [(3, 5)]),
    "getitem backwards": (lambda x: x[::-1], [(3, 2)]),
    "getitem new axis": (lambda x: x[:, None, ..., 0], [(3, 4, 2)]),
    "getitem array": (lambda x: x[np.array([0, 2, 2, -1])], [(3, 4)]),
    "getitem list": (lambda x: x[[2, 2]], [(3, 4)]),
    "getitem array of two axes": (lambda x: x[IDS % 3], [(3, 2)]),
    "getitem two arrays": (lambda x: x[np.array([0, 2, 0]), np.array([1, 1, 1])], [(3, 4)]),
    "getitem slice, array": (lambda x: x[:, np.array([0, 0, 1])], [(3, 2, 2)]),
    "concat": (lambda x, y: F.concat([x, y]), [(2, 3), (4, 3)]),
    "concat last": (lambda x, y, z: F.concat([x, y, z], axis=-1), [(2, 3), (2, 1), (2, 2)]),
    "where": (lambda x, y: F.where(device([True, False, True]), x, y), [(2, 3), (2, 3)]),
    "where broadcast": (lambda x, y: F.where(device([[True], [False]]), x, y), [(1, 3), ()]),
    "where number": (lambda x: F.where(device([True, False, True]), x, -1.0), [(2, 3)]),
    "product of itself": (lambda x: x * x, [(3, 4)]),
    "matmul of itself": (lambda x: x @ x, [(3, 3)]),
    "all uses of one": (lambda x: x / x + x - x * x, [(3,)]),
    "concat of itself": (lambda x: F.concat([x, x, x]) * 2, [(2, 2)]),
    "diamond": (lambda x: (lambda y: y.tanh() * y.exp() + y)(x * 2), [(3, 2)]),
    "diamonds": (lambda x: (lambda y: (lambda z: z * z + y)(y + y.tanh()))(x + x), [(3,)]),
    "reused after reshape": (lambda x: x.reshape(6) * (x + x).reshape(6), [(2, 3)]),
}
AXES = [
    (None, False),
    (None, True),
    (0, False),
    (-1, True),
    (1, False),
    ((0, 2), False),
    ((-1, 0), True),
    ((), False),
]
for _axis, _kept in AXES:
    for _op in (F.sum, F.mean, F.max):
        if _axis != () or _op is F.sum:
            OPS[f"{_op.__name__} {_axis} {_kept}"] = (
                partial(_op, axis=_axis, keepdims=_kept),
                [(2, 3, 4)],
            )

SHAPES = [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 3), ()),
    ((2, 3, 4), (3, 1)),
    ((1,), (5,)), ((2, 1, 3), (4, 1)), ((1, 1), (2, 3)), ((2, 3, 4), (1, 1, 1)),
    ((1, 2), (3, 1, 2)), ((), ()), ((0, 3), (3,)),
]  # fmt: skip
for _op in (F.add, F.sub, F.mul, F.div):
    for _a, _b in SHAPES:
        OPS[f"{_op.__name__} {_a} {_b} positive"] = (_op, [_a, _b])


def turned(m, x):
    cos, sin = rope_table(x.shape[-2], x.shape[-1], x.dtype)
    return m.rotate(x, cos, sin)


def turned_apart(m, x):
    cos, sin = (table[device([[0, 3, 1], [2, 2, 4]])] for table in rope_table(5, 4, x.dtype))
    return m.rotate(x, cos[:, None], sin[:, None])  # (B, 1, T, 2) each


def turned_in_part(m, x):
    return m.rotate(x, *rope_table(x.shape[-2], 4, x.dtype))


def causal(n_queries, n_keys):
    keys = backends.xp.arange(n_keys)
    return causal_mask(keys[n_keys - n_queries :], keys)


def attend(m, q, k, v, temperature=None, bias=None, mask=False, scale=None):
    mask = causal(q.shape[2], k.shape[2]) if mask else None
    return m.scaled_dot_product_attention(
        q, k, v, mask, scale=scale, temperature=temperature, bias=bias
    )


def rows_differ(m, q, k, v, temperature, bias):
    at = device([[-1, 0, 1], [0, 1, 2]])  # (B, T): the first row is padded on its left
    mask = causal_mask(at, at, window=2)  # (B, 1, T, T)
    return m.scaled_dot_product_attention(q, k, v, mask, temperature=temperature, bias=bias)


def some_ignored(m, x):
    return m.cross_entropy(x, [[1, -100, 0], [-100, 4, 4]])


QKV = [(2, 4, 3, 2)] * 3
GQA = [(2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2)]
WARM = [(1, 4, 2, 6), (1, 1, 5, 6), (1, 1, 5, 6)]  # one stored head, and more keys than queries
FUSED = {
    "linear": (lambda m, x, w, b: m.linear(x, w, b), [(2, 3, 4), (4, 5), (5,)]),
    "linear, no bias": (lambda m, x, w: m.linear(x, w), [(3, 4), (4, 5)]),
    "linear, tied": (lambda m, w: m.linear(w, w.transpose()), [(3, 4)]),
    "embedding": (lambda m, w: m.embedding(IDS, w), [(7, 3)]),
    "embedding, large vocabulary": (lambda m, w: m.embedding(IDS * 90, w), [(600, 2)]),
    "layer_norm": (lambda m, x, w, b: m.layer_norm(x, w, b), [(2, 3, 6), (6,), (6,)]),
    "layer_norm, eps": (lambda m, x, w, b: m.layer_norm(x, w, b, eps=0.5), [(3, 6), (6,), (6,)]),
    "rms_norm": (lambda m, x: m.rms_norm(x), [(2, 3, 6)]),
    "rms_norm, eps": (lambda m, x: m.rms_norm(x, eps=0.5), [(3, 6)]),
    "relu": (lambda m, x: m.relu(x), [(3, 4)]),
    "gelu": (lambda m, x: m.gelu(x * 3), [(3, 4)]),
    "softmax": (lambda m, x: m.softmax(x), [(2, 3, 4)]),
    "softmax of itself": (lambda m, x: m.softmax(x) * x, [(3, 4)]),
    "dropout": (lambda m, x: m.dropout(x, 0.3, np.random.default_rng(1)), [(5, 4)]),
    "rotate": (turned, [(2, 1, 3, 4)]),
    "rotate, some channels": (turned_in_part, [(2, 1, 3, 7)]),
    "rotate, rows differ": (turned_apart, [(2, 3, 3, 4)]),
    "split_heads": (lambda m, x: m.split_heads(x, 3), [(2, 5, 6)]),
    "merge_heads": (lambda m, x: m.merge_heads(x), [(2, 3, 5, 2)]),
    "attention": (attend, QKV),
    "attention, causal": (partial(attend, mask=True), QKV),
    "attention, scale": (partial(attend, scale=0.3, mask=True), QKV),
    "attention, groups": (partial(attend, mask=True), GQA),
    "attention, one head, warm": (partial(attend, mask=True), WARM),
    "attention, temperature": (lambda m, q, k, v, t: attend(m, q, k, v, t, mask=True), [*QKV, ()]),
    "attention, bias": (lambda m, q, k, v, b: attend(m, q, k, v, None, b, mask=True), [*QKV, (3,)]),
    "attention, plus": (lambda m, q, k, v, t, b: attend(m, q, k, v, t, b), [*QKV, (), (3,)]),
    "attention, plus, groups, scale": (
        lambda m, q, k, v, t, b: attend(m, q, k, v, t, b, mask=True, scale=0.7),
        [*WARM, (), (5,)],
    ),
    "attention, rows differ": (rows_differ, [*GQA, (), (2, 1, 1, 3)]),
    "attention, wide values": (partial(attend, mask=True), [*GQA[:2], (2, 2, 3, 5)]),
    "attention, q = k": (lambda m, k, v: attend(m, k, k, v), QKV[:2]),
    "attention, k = v": (lambda m, q, k: attend(m, q, k, k, mask=True), GQA[:2]),
    "attention, q = k = v": (lambda m, x: attend(m, x, x, x, mask=True), QKV[:1]),
    "attention, x thrice, plus": (
        lambda m, x, t, b: attend(m, x, x, x, t, b),
        [*QKV[:1], (), (3,)],
    ),
    "cross_entropy": (lambda m, x: m.cross_entropy(x, IDS), [(2, 3, 7)]),
    "cross_entropy, ignored": (some_ignored, [(2, 3, 5)]),
    "cross_entropy, one left": (
        lambda m, x: m.cross_entropy(x, [9, 9, 2], ignore_index=9),
        [(3, 4)],
    ),
}
ALL = OPS | {name: (partial(function, F), shapes) for name, (function, shapes) in FUSED.items()}


def inputs(leaf, name, dtype="float64"):
    return [leaf(*shape, dtype=dtype, positive="positive" in name) for shape in ALL[name][1]]


def public_functions(module, own=True):
    """Names of the operations in a module."""
    return {
        name
        for name, f in vars(module).items()
        if inspect.isfunction(f) and not name.startswith("_") and name not in NOT_OPERATIONS
        if f.__module__ == module.__name__ or not own
    }


def test_the_tables_cover_every_operation():
    small = {name.split()[0] for name in OPS}
    assert small >= public_functions(tensor)
    tried = {
        name.split(",")[0].split()[0].replace("attention", "scaled_dot_product_attention")
        for name in FUSED
    }
    assert tried == public_functions(F)
    assert tried <= set(vars(reference))
    assert tried | public_functions(tensor) == public_functions(F, own=False)


@pytest.mark.parametrize("name", ALL)
def test_backward_is_the_transpose_of_forward(backend, leaf, name):
    gradcheck(ALL[name][0], *inputs(leaf, name))


@pytest.mark.parametrize("name", ALL)
def test_arrays_are_left_alone(backend, leaf, rng, name):
    """Neither an input, nor the output, nor the cotangent is written to; the gradient has its
    input's shape.
    """
    xs = inputs(leaf, name)
    out = ALL[name][0](*xs)
    g = device(rng.standard_normal(out.shape))
    watched = [x.data for x in xs] + [out.data, g]
    before = [host(a).copy() for a in watched]
    out.backward(g)
    for array, old in zip(watched, before, strict=True):
        np.testing.assert_array_equal(host(array), old)
    for x in xs:
        assert isinstance(x.grad, backends.ndarray)
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("name", ALL)
def test_float32_stays_float32(backend, leaf, name):
    xs = inputs(leaf, name, "float32")
    out = ALL[name][0](*xs)
    assert isinstance(out.data, backends.ndarray)
    assert out.dtype == "float32"
    out.backward(backends.xp.ones(out.shape, "float32"))
    assert [x.grad.dtype.name for x in xs] == ["float32"] * len(xs)


@pytest.mark.parametrize(
    "number",
    [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2)],
    ids=lambda n: type(n).__name__,
)
def test_a_number_does_not_change_the_dtype(backend, leaf, number):
    """NumPy 2 would make float32 * np.float64(2) a float64 array."""
    uses = [
        lambda x: x + number,
        lambda x: number - x,
        lambda x: x * number,
        lambda x: number * x,
        lambda x: x / number,
        lambda x: number / x,
        lambda x: x**number,
        lambda x: F.where(x.data > 1, x, number),
        lambda x: F.mul(x, number),
        lambda x: attend(
            F, x.reshape(1, 1, 2, 3), x.reshape(1, 1, 2, 3), x.reshape(1, 1, 2, 3), scale=number
        ),
        lambda x: F.layer_norm(x, x[0], x[1], eps=number),
        lambda x: F.rms_norm(x, eps=number),
        lambda x: F.dropout(x, number / 8, np.random.default_rng(0)),
    ]
    for use in uses:
        x = leaf(2, 3, dtype="float32", positive=True)
        out = use(x)
        assert out.dtype == "float32"
        out.backward(backends.xp.ones(out.shape, "float32"))
        assert x.grad.dtype == "float32"


@pytest.mark.parametrize("name", FUSED)
def test_fused_equals_its_twin(backend, leaf, rng, name):
    """Forward and every gradient, for one random cotangent, to 1e-10."""
    function, xs, results = FUSED[name][0], inputs(leaf, name), []
    g = None
    for module in (F, reference):
        for x in xs:
            x.zero_grad()
        out = function(module, *xs)
        g = rng.standard_normal(out.shape) if g is None else g
        out.backward(device(g))
        results.append([host(out), *(host(x.grad) for x in xs)])
    for mine, twin in zip(*results, strict=True):
        np.testing.assert_allclose(mine, twin, rtol=0, atol=1e-10)


def test_softmax_and_attention_do_not_overflow(backend):
    x = Tensor(device([[1e4, 1e4 - 1.0, -1e4]]), requires_grad=True)
    np.testing.assert_allclose(
        host(F.softmax(x)), [[1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0]], atol=1e-12
    )
    assert math.isclose(
        F.cross_entropy(x, [2]).item(), 2e4 + math.log(1 + math.exp(-1)), rel_tol=1e-12
    )
    q = Tensor(device(np.full((1, 1, 2, 2), 1e3)))
    np.testing.assert_allclose(host(attend(F, q, q, q, mask=True)), host(q))


REFUSED = {
    "matmul of a vector": lambda x: x @ x[0],
    "matmul that does not fit": lambda x: x @ x,
    "id too large": lambda x: F.embedding([[2]], x),
    "negative id": lambda x: F.embedding([[-1]], x),
    "float ids": lambda x: F.embedding([[0.0]], x),
    "index array too large": lambda x: x[np.array([0, 2])],
    "index array too negative": lambda x: x[np.array([-3])],
    "boolean index array": lambda x: x[np.array([True, False])],
    "index array and ellipsis": lambda x: x[..., np.array([0])],
    "device index array": lambda x: (
        x[backends.upload(np.array([0, 0]))] if backends.ndarray is not np.ndarray else x[[True]]
    ),
    "target out of range": lambda x: F.cross_entropy(x, [0, 3]),
    "target of another shape": lambda x: F.cross_entropy(x, [0]),
    "all ignored": lambda x: F.cross_entropy(x, [-100, -100]),
    "dropout of everything": lambda x: F.dropout(x, 1.0, np.random.default_rng(0)),
    "heads that do not divide": lambda x: attend(
        F, *(Tensor(backends.xp.ones((1, h, 2, 2))) for h in (3, 2, 2))
    ),
    "values of another length": lambda x: attend(
        F, *(Tensor(backends.xp.ones((1, 1, s, 2))) for s in (2, 2, 3))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(backend, leaf, name):
    with pytest.raises(UsageError):
        REFUSED[name](leaf(2, 3))


def test_refused_types(backend, leaf):
    x = leaf(2, 3)
    for wrong in (lambda: x + "1", lambda: x * [1, 2, 3], lambda: x**x, lambda: F.add(None, x)):
        with pytest.raises(TypeError):
            wrong()
    if backend.name != "numpy":
        with pytest.raises(TypeError):
            np.ones(3) * x


@pytest.mark.parametrize("keep", [0, 1 << 18], ids=["computed again", "kept"])
@pytest.mark.parametrize("block", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "mask", ["none", "causal", "warm cache", "ragged", "window", "window and sinks", "rows differ"]
)
def test_blocks_agree_with_the_twin(mask, block, keep, backend, leaf, rng, monkeypatch):
    monkeypatch.setattr(F, "BLOCK", block)
    monkeypatch.setattr(F, "KEEP", keep)
    T, S = (7, 11) if mask == "warm cache" else (7, 7)
    i, j = np.arange(T)[:, None], np.arange(S)
    seen = {
        "none": None,
        "causal": np.tri(T, dtype=bool),
        "warm cache": np.arange(S) <= np.arange(S - T, S)[:, None],
        "ragged": np.arange(S)
        <= np.array([2, 0, 4, 1, 5, 3, 3])[:, None],  # no query sees the last key
        "window": (j <= i) & (j > i - 2),
        "window and sinks": (j <= i) & ((j > i - 2) | (j < 1)),
        "rows differ": np.stack([j <= i, (j >= i) & (j < 6) | (j == 3)])[:, None],  # (2, 1, T, S)
    }[mask]
    seen = None if seen is None else backends.upload(seen)
    inputs = leaf(2, 4, T, 3), leaf(2, 2, S, 3), leaf(2, 2, S, 3), leaf()
    inputs += (leaf(2, 1, 1, S) if mask == "rows differ" else leaf(S),)

    def run(attention):
        return lambda q, k, v, t, b: attention(q, k, v, seen, temperature=t, bias=b)

    u, results = rng.standard_normal((2, 4, T, 3)), []
    for module in (F, reference):
        for x in inputs:
            x.zero_grad()
        out = run(module.scaled_dot_product_attention)(*inputs)
        out.backward(backends.upload(u))
        results.append([backends.to_host(out.data), *(backends.to_host(x.grad) for x in inputs)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert gradcheck(run(F.scaled_dot_product_attention), *inputs) < 1e-7


def test_an_empty_batch_and_a_large_bias(rng):
    q = Tensor(np.ones((0, 2, 5, 4)))
    with pytest.raises(UsageError, match="must not be empty"):
        F.scaled_dot_product_attention(q, q, q)
    q, bias = (
        Tensor(rng.standard_normal((1, 2, 5, 4)).astype("float32")),
        Tensor(np.float32([0, 500, -500, 1000, 90])),
    )
    results = [
        module.scaled_dot_product_attention(q, q, q, bias=bias).data for module in (F, reference)
    ]
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.parametrize("size", [0.1, 30.0, 3000.0], ids=["small", "large", "huge"])
def test_scores_with_and_without_a_shift(size, leaf, rng):
    """Small scores go to exp as they are, large ones after their maximum is taken off: both give
    the twin's.
    """
    q, k, v = (
        leaf(2, 2, 9, 4, dtype="float32"),
        leaf(2, 2, 9, 4, dtype="float32"),
        leaf(2, 2, 9, 4, dtype="float32"),
    )
    q.data *= size
    assert backends.bounded(q.data * 0.5, k.data) == (size == 0.1)
    g = rng.standard_normal(q.shape).astype("float32")
    results = []
    for module in (F, reference):
        for x in (q, k, v):
            x.zero_grad()
        out = module.scaled_dot_product_attention(q, k, v, np.tri(9, dtype=bool))
        out.backward(g)
        results.append([out.data, *(x.grad for x in (q, k, v))])
    for a, b in zip(*results, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1, size))


def test_a_long_sequence_never_holds_all_its_scores(leaf):
    T = 2048
    q, k, v = (leaf(1, 4, T, 8, dtype="float32") for _ in range(3))
    mask = np.tri(T, dtype=bool)
    tracemalloc.start()
    F.scaled_dot_product_attention(q, k, v, mask).backward(np.ones((1, 4, T, 8), "float32"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    block = 4 * F.BLOCK * T * 4  # bytes of one block of scores, all heads
    assert peak < 6 * block < 4 * T * T * 4


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((4, 1), bool),
        np.ones((1, 4), bool),
        np.ones((4, 3), bool),
        np.ones(4, bool),
        np.zeros((4, 4)),
        np.ones((1, 1, 4, 3), bool),
        np.ones((2, 1, 4, 4), bool),
        np.ones((1, 2, 4, 4), bool),
        np.ones((1, 4, 4), bool),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, leaf):
    q = leaf(1, 1, 4, 2)
    with pytest.raises(UsageError, match="boolean, of shape \\(4, 4\\) or"):
        F.scaled_dot_product_attention(q, q, q, mask)
