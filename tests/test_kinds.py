"""Faults of the engine, the models and the caches that were found by use: several instances of each
kind."""

import asyncio
import copy
import json
import math
import pickle
import threading
from collections import OrderedDict
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from toys import IDS, fresh_gpt

import minqkv as mq
from minqkv import Tensor, nn, no_grad, reference
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.analysis.quantised import rounded
from minqkv.attention import Attention, Plus
from minqkv.cache import KVCache
from minqkv.caches.branch import BranchCache
from minqkv.caches.int8 import Int8Cache
from minqkv.caches.ring import RingCache
from minqkv.generation import Sampling, generate, iter_tokens
from minqkv.models import GPT, GPTConfig, TaggerConfig, ViTConfig
from minqkv.optim import SGD, Adam, AdamW
from minqkv.runtime import parallel
from minqkv.runtime.errors import UsageError
from minqkv.runtime.tracing import trace
from minqkv.tasks.synthetic import Synthetic
from minqkv.train import evaluate, fit, loss_and_gradients, token_loss, train_step

INF, TARGETS = math.inf, np.roll(IDS, -1, axis=1)


def leaf(values, dtype="float64"):
    return Tensor(np.array(values, dtype), requires_grad=True)


def losses(model, optimizer, n=3):
    return [train_step(model, optimizer, IDS, TARGETS) for _ in range(n)]


# ---- copies that share a flat buffer


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "deepcopy of a copy": lambda pair: copy.deepcopy(copy.deepcopy(pair)),
    "shallow copy of the optimiser": lambda pair: (pair[0], copy.copy(pair[1])),
}


@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
@pytest.mark.parametrize("kind", COPIES)
def test_copies_train_like_the_original(kind, make):
    model = fresh_gpt("q-k=v", dropout=0.1)
    optimizer = make(model.parameters())
    losses(model, optimizer, 1)
    before = model.state_dict()
    twin, twins = COPIES[kind]((model, optimizer))
    found = losses(twin, twins)
    assert len(set(found)) == 3
    if twin is not model:
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
        assert losses(model, optimizer) == found


def test_two_optimisers_of_one_model_are_copied_together():
    model = fresh_gpt()
    halves = [AdamW(model.parameters()[:4]), SGD(model.parameters()[4:], lr=1.0)]
    twin, *halves = copy.deepcopy((model, *halves))
    before = twin.state_dict()
    loss_and_gradients(twin, IDS, TARGETS)
    for half in halves:
        half.step()
    assert not [n for n, a in twin.state_dict().items() if np.array_equal(a, before[n])]


def test_an_optimiser_of_another_model_is_refused():
    model = fresh_gpt()
    optimizer = AdamW(model.parameters())
    for lost in (copy.deepcopy(optimizer), AdamW(copy.deepcopy(model).parameters())):
        with pytest.raises(UsageError, match="moves no parameter of this model"):
            train_step(model, lost, IDS, TARGETS)
    twin = copy.deepcopy((model, optimizer))[1]
    twin.parameters[0].data = twin.parameters[0].data.copy()
    with pytest.raises(RuntimeError, match="replaced"):
        copy.deepcopy(twin).step()


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, pickle.dumps])
def test_the_result_of_an_operation_is_not_copied(how):
    x = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match="only leaves can be copied"):
        how((x * x).sum().node)
    twin = copy.deepcopy(x)
    (twin * twin).sum().backward()
    assert (twin.grad.tolist(), x.grad) == ([2, 4], None)


@pytest.mark.parametrize("kind", [KVCache, RingCache, Int8Cache, BranchCache])
def test_copies_of_a_cache_are_independent(kind):
    model = fresh_gpt()
    options = {"window": 4} if kind is RingCache else {}
    plain = model.new_cache(2, kind=KVCache if kind is BranchCache else kind, **options)
    model(IDS, cache=plain)
    cache = BranchCache(plain, 1) if kind is BranchCache else plain
    twins = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
    expected = model(IDS[:, :2], cache=cache).data
    for twin in twins:
        assert len(twin) == 5
        np.testing.assert_array_equal(model(IDS[:, :2], cache=twin).data, expected)


# ---- a mask that is not boolean


CONDITIONS = {
    "integers": np.array([1, 0]),
    "other integers": np.array([-3, 0]),
    "uint8": np.array([1, 0], "uint8"),
    "a list": [True, False],
    "objects of Python, in a tuple": (1, 0),
    "read-only": np.broadcast_to(np.array([True, False]), (1, 2)),
    "negative stride": np.array([False, True])[::-1],
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_a_mask(name):
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = F.where(CONDITIONS[name], a, b)
    y.sum().backward()
    assert y.data.reshape(-1).tolist() == [1, 4]
    assert (a.grad.tolist(), b.grad.tolist()) == ([1, 0], [0, 1])


@pytest.mark.parametrize(
    "mask", [np.array([0.0, -INF]), leaf([1.0, 0.0]), ["yes", "no"], [None, 1]]
)
def test_what_is_no_condition_is_refused(mask):
    with pytest.raises((TypeError, ValueError)):
        F.where(mask, leaf([1.0, 2.0]), leaf([3.0, 4.0]))


@pytest.mark.parametrize(
    "mask",
    [
        np.tri(3, dtype=int),
        np.triu(np.full((3, 3), -INF), 1),
        np.tri(3),
        [[1, 0, 0]] * 3,
        leaf([1.0]),
    ],
    ids=["int", "additive", "float", "lists", "Tensor"],
)
def test_attention_refuses_other_masks(mask):
    x = leaf(np.ones((1, 1, 3, 2)))
    with pytest.raises(UsageError, match="a mask is boolean"):
        F.scaled_dot_product_attention(x, x, x, mask)
    with pytest.raises(UsageError, match="a mask is boolean"):
        Attention("q-k=v", 4, 2, 8)(np.ones((1, 3, 4), "float32"), mask)


def test_positions_of_logits_may_be_given_as_numbers():
    model, at = fresh_gpt(), np.array([[0, 1, 0, 0, 1], [0, 0, 0, 0, 1]])
    expected = model(IDS, at=at.astype(bool)).data
    for given in (at, at.tolist(), at.astype("uint8")):
        np.testing.assert_array_equal(model(IDS, at=given).data, expected)


# ---- a gradient of another dtype than its leaf


def ones(*shape):
    return np.ones(shape)


MIXED = {  # of a float32 leaf (2,) and float64
    "mul": lambda w: w * ones(2),
    "add": lambda w: w + ones(2),
    "rsub": lambda w: ones(3, 2) - w,
    "div": lambda w: ones(2) / w,
    "where": lambda w: F.where([True, False], w, ones(2)),
    "matmul": lambda w: w.reshape(1, 2) @ ones(2, 2),
    "matmul from the left": lambda w: ones(2, 2) @ w.reshape(2, 1),
    "concat": lambda w: F.concat([w, Tensor(ones(2))]),
    "linear": lambda w: F.linear(ones(3, 2), w.reshape(2, 1)),
    "bias": lambda w: F.linear(ones(3, 2), ones(2, 2), w),
    "layer_norm": lambda w: F.layer_norm(Tensor([[1.0, 3.0]], dtype="float64"), w, w),
    "attention": lambda w: F.scaled_dot_product_attention(
        w.reshape(1, 1, 1, 2), ones(1, 1, 2, 2), ones(1, 1, 2, 2)
    ),
    "bias of attention": lambda w: F.scaled_dot_product_attention(
        ones(1, 1, 2, 2), ones(1, 1, 2, 2), ones(1, 1, 2, 2), bias=w
    ),
    "used twice": lambda w: w * ones(2) + w,
    "integers": lambda w: w * np.array([1, 2**40]),
    "booleans": lambda w: w * np.array([True, False]),
    "a Fraction": lambda w: w * Fraction(1, 2),
    "longdouble": lambda w: w * np.longdouble(2),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_gradient_has_the_dtype_of_its_leaf(name):
    w = leaf([1.0, 2.0], "float32")
    for _ in range(2):  # a second gradient is added to the first
        y = MIXED[name](w)
        assert y.dtype in ("float32", "float64")
        y.sum().backward()
        assert w.grad.dtype == "float32"
        assert w.grad.shape == (2,)


def test_cotangents_and_added_gradients_are_converted():
    w = nn.Parameter(np.ones(2, "float32"))
    (w * 2).backward(np.ones(2))
    (w * 2).backward(np.ones(2, int))
    w.add_gradient(np.ones(2))
    assert (w.grad.tolist(), w.grad.dtype) == ([5, 5], "float32")
    w.zero_grad()
    w.add_gradient(np.ones(2))
    assert w.grad.dtype == "float32"
    with pytest.raises(TypeError):
        (w * 2).backward([1, 1])


@pytest.mark.parametrize(
    "data",
    [
        np.ones(2, "float16"), np.ones(2, "longdouble"), np.ones(2, complex), [1j], ["1.5"],
        np.ones(2, object), np.array("2020", "M8[D]"), np.ma.array([1.0, 2.0], mask=[True, False]),
        Tensor([1.0, 2.0]),
    ],
    ids=lambda data: f"{type(data).__name__} {getattr(data, 'dtype', '')}",
)  # fmt: skip
def test_what_a_tensor_cannot_hold_is_refused(data):
    with pytest.raises(TypeError):
        Tensor(data)
    with pytest.raises(TypeError):
        Tensor([1, 2], dtype="int64")


def test_arrays_of_other_layouts_are_taken():
    base = np.arange(6.0).reshape(2, 3)
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in (base.astype(">f8"), base.view(np.matrix), base[::-1, ::-1][::-1, ::-1], frozen):
        x = Tensor(array, requires_grad=True)
        (x * x).sum().backward()
        assert (type(x.data), x.data.dtype.isnative) == (np.ndarray, True)
        np.testing.assert_array_equal(x.grad, 2 * base)
    for function in (F.gelu, F.relu, F.exp):
        np.testing.assert_array_equal(function(Tensor(base.T)).data, function(Tensor(base)).data.T)


# ---- masking by multiplication


def test_an_infinity_elsewhere_is_no_nan():
    x = leaf([-INF, 1.0, INF, -2.0])
    y = F.relu(x)
    y.backward(np.array([INF, INF, 1, -INF]))
    assert (y.data.tolist(), x.grad.tolist()) == ([0, 1, INF, 0], [0, INF, 1, 0])
    for module in (F, reference):  # what is no number stays that, as in PyTorch
        assert np.isnan(module.relu(leaf([math.nan])).data).all()
    x = leaf([[1.0, 5.0], [2.0, 2.0]])
    x.max(axis=1).backward(np.array([INF, 1.0]))
    assert x.grad.tolist() == [[0, INF], [0.5, 0.5]]
    w = leaf(np.ones((3, 2)))
    F.embedding([0, 2], w).backward(np.array([[INF, 1], [1, 1]]))
    assert w.grad.tolist() == [[INF, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize("module", [F, reference])
def test_what_is_dropped_is_zero(module):
    x = leaf(np.full(64, INF))
    y = module.dropout(x, 0.5, np.random.default_rng(0))
    y.backward(np.full(64, INF))
    assert set(y.data.tolist()) == set(x.grad.tolist()) == {0, INF}
    np.testing.assert_array_equal(y.data, x.grad)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_far_out(dtype):
    x = leaf([-INF, -1e30, -1e4, 1e4, 1e30, INF], dtype)
    y = F.gelu(x)
    y.sum().backward()
    np.testing.assert_array_equal(y.data, np.array([0, 0, 0, 1e4, 1e30, INF], dtype))
    assert x.grad.tolist() == [0, 0, 0, 1, 1, 1]


# ---- an index NumPy would refuse


TOO_MANY = [
    ([0, 1], [1, 2], [0, 0]), ([0, 1], 1, 2), (0, [1], 0), (slice(None), [0], [0]),
    ((0, 1), (1, 2), (0, 0)), 3, (0, 4), (slice(None),) * 3, 1.0, (..., ...), ([0, 1, 2], [0, 1]),
]  # fmt: skip


@pytest.mark.parametrize("index", TOO_MANY, ids=repr)
def test_an_index_that_numpy_refuses(index):
    with pytest.raises(IndexError):
        np.ones((3, 4))[index]
    with pytest.raises(IndexError):
        leaf(np.ones((3, 4)))[index]


def test_an_index_out_of_range_is_named_as_given():
    for index, says in (([-4], "-4"), ([3], "3"), (np.array([2**63], "uint64"), str(2**63))):
        with pytest.raises(UsageError, match=f"id {says} is outside 0..2"):
            leaf(np.ones((3, 4)))[index]


@pytest.mark.parametrize(
    "index",
    [[], ([],), (0, []), ((0, 0), (1, 1)), (0, (1, 1)), np.array([0, 0, 2], "uint64"), [-1, -3, -1],
     np.array([[0, 1], [1, 1]], "int8"), (slice(None, None, -1), [0, 0]), range(2), np.int8(-1),
     (np.array([2, 2], ">i4"), slice(1, 3)), np.array(1)],
    ids=repr,
)  # fmt: skip
def test_an_index_that_numpy_takes(index):
    """Elements taken twice add their gradients, however the index is written."""
    x, expected = leaf(np.arange(12.0).reshape(3, 4)), np.zeros((3, 4))
    y = x[index]
    np.testing.assert_array_equal(y.data, x.data[index])
    y.sum().backward()
    np.add.at(expected, index, 1.0)
    np.testing.assert_array_equal(x.grad, expected)


# ---- arrays as operands


A = np.array([[1.0, 2.0], [3.0, 5.0]])
OPERANDS = {
    "Tensor @ array": (lambda t, c: t @ c, (2, 2)),
    "array @ Tensor": (lambda t, c: c @ t, (2, 2)),
    "weight": (lambda t, c: F.linear(t, c), (2, 2)),
    "input": (lambda t, c: F.linear(c, t), (2, 2)),
    "bias": (lambda t, c: F.linear(t, t, c[0]), (2, 2)),
    "layer_norm": (lambda t, c: F.layer_norm(t, c[0], c[1]), (2, 2)),
    "layer_norm of an array": (lambda t, c: F.layer_norm(c, t[0], t[1]), (2, 2)),
    "concat": (lambda t, c: F.concat([c, t]) * 2, (2, 2)),
    "attention": (
        lambda t, c: F.scaled_dot_product_attention(
            t.reshape(1, 1, 2, 2), c.reshape(1, 1, 2, 2), c.reshape(1, 1, 2, 2)), (2, 2)),
    "embedding": (lambda t, c: F.embedding([1, 0], c) * t, (2, 2)),
    "softmax": (lambda t, c: F.softmax(c) * t, (2, 2)),
    "cross_entropy": (lambda t, c: F.cross_entropy(c, [0, 1]) * t, (2, 2)),
    "small ones": (lambda t, c: F.exp(c) * F.tanh(c) * F.sqrt(c) * F.neg(c) * F.log(c) * t, (2, 2)),
    "shapes": (lambda t, c: F.transpose(c) * F.reshape(c, 2, 2) * F.getitem(c, 0) * t, (2, 2)),
    "reductions": (lambda t, c: (F.sum(c) + F.mean(c) + F.max(c) + F.pow(c, 2)) * t, (2, 2)),
    "activations": (lambda t, c: F.relu(c) * F.gelu(c) * t, (2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERANDS)
def test_an_array_is_a_constant(name):
    function, shape = OPERANDS[name]
    results = []
    for constant in (A, Tensor(A)):
        t = leaf(np.arange(4.0).reshape(shape) + 1)
        y = function(t, constant)
        y.sum().backward()
        results.append((y.data, t.grad))
    for mine, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_what_is_no_operand_is_refused_in_the_forward():
    t = leaf(A)
    for wrong in ([[1, 2], [3, 4]], None, "1", 1j, A.astype(complex), A.astype(object)):
        for function in (
            F.softmax,
            F.sum,
            lambda x: F.linear(t, x),
            lambda x: t @ x,
            lambda x: t * x,
        ):
            with pytest.raises(TypeError):
                function(wrong)
    with pytest.raises(UsageError):
        t @ 2.0


STRETCHED = {
    "bias": lambda: F.linear(leaf(ones(3, 2)), leaf(ones(2, 4)), leaf(ones(1))),
    "weight of a norm": lambda: F.layer_norm(leaf(A), leaf(ones(1)), leaf(ones(2))),
    "bias of a norm": lambda: F.layer_norm(leaf(A), leaf(ones(2)), leaf(1.0)),
    "temperature per head": lambda: attend(temperature=leaf(ones(2, 1, 1))),
    "bias per head": lambda: attend(bias=leaf(ones(2, 1, 3))),
    "bias of one key": lambda: attend(bias=leaf(ones(1))),
    "angles of one position": lambda: F.rotate(leaf(ones(1, 1, 3, 4)), ones(1, 2), ones(1, 2)),
    "more angles than pairs": lambda: F.rotate(leaf(ones(1, 1, 3, 3)), ones(3, 2), ones(3, 2)),
}


def attend(mask=None, **options):
    x = leaf(np.ones((1, 2, 3, 2)))
    return F.scaled_dot_product_attention(x, x, x, mask, **options)


@pytest.mark.parametrize("name", STRETCHED)
def test_what_would_be_stretched_is_refused(name):
    """Its gradient would have another shape than it has."""
    with pytest.raises(UsageError):
        STRETCHED[name]()


def test_of_nothing():
    assert np.isnan(F.mean(leaf(ones(0, 3))).data)
    assert F.linear(leaf(ones(0, 3)), leaf(ones(3, 2))).shape == (0, 2)
    x = leaf(3.0)
    (x.sum(0) + x.sum(-1)).backward()
    assert x.grad == 2


# ---- a row that sees nothing


def blind(T, S, *rows):
    mask = np.tri(T, S, S - T, dtype=bool)
    mask[list(rows)] = False
    return mask


BLIND = {
    "one of three": blind(3, 3, 1),
    "all": np.zeros((3, 3), bool),
    "of a warm cache": blind(2, 5, 0),
    "of one sequence": np.stack([blind(3, 3), blind(3, 3, 0, 2)])[:, None],
}


@pytest.mark.parametrize("large", [1, 100], ids=["bounded", "shifted"])
@pytest.mark.parametrize("block", [1, 128])
@pytest.mark.parametrize("keep", [0, 1 << 18], ids=["computed again", "kept"])
@pytest.mark.parametrize("name", BLIND)
def test_a_row_that_sees_nothing_is_answered_by_zeros(name, keep, block, large, rng, monkeypatch):
    monkeypatch.setattr(F, "BLOCK", block)
    monkeypatch.setattr(F, "KEEP", keep)
    mask = BLIND[name]
    T, S = mask.shape[-2:]
    shapes = (2, 4, T, 3), (2, 2, S, 3), (2, 2, S, 5), (), (S,)
    values, results = [rng.standard_normal(s) * large for s in shapes], []
    for module in (F, reference):
        q, k, v, t, b = inputs = [leaf(value) for value in values]
        out = module.scaled_dot_product_attention(q, k, v, mask, temperature=t, bias=b)
        (out * out).sum().backward()
        results.append([out.data, *(x.grad for x in inputs)])
        rows = np.broadcast_to(~mask.any(-1)[..., None], out.shape)
        assert not out.data[rows].any()
        assert not q.grad[np.broadcast_to(rows[..., :1], q.shape)].any()
    for mine, twin in zip(*results, strict=True):
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine, twin, atol=1e-9 * large**2)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_that_sees_nothing_of_a_long_cache(dtype, monkeypatch, rng):
    monkeypatch.setattr("minqkv.online.BLOCK", 4)  # float16: the online softmax
    attention = Attention("q-k=v", 8, 2, 32, nn.Init(1))
    cache = KVCache([[(2, 4)]], 1, 32, dtype).layers[0]
    x = Tensor(rng.standard_normal((1, 12, 8)).astype("float32"))
    with no_grad():
        attention(x[:, :9], cache=cache)
        mask = np.ones((3, 12), bool)
        mask[1] = False
        q, rows = (
            attention.query(x[:, 9:], (), slice(9, 12)),
            attention.store(x[:, 9:], slice(9, 12)),
        )
        z = cache.attend(attention, q, rows, slice(9, 12), mask).data
    assert not z[:, :, 1].any()
    assert np.isfinite(z).all()


def test_a_bias_that_hides_everything():
    bias = leaf(np.full(3, -INF))
    out = attend(bias=bias)
    out.sum().backward()
    assert not out.data.any()
    assert bias.grad.tolist() == [0, 0, 0]


# ---- tables read past their end


def rope(**options):
    return Attention("qkv", 8, 2, 8, position="rope", **options)


def x_of(n):
    return Tensor(np.ones((1, n, 8), "float32"))


@pytest.mark.parametrize(
    ("n", "at"),
    [(9, None), (3, slice(7, 10)), (1, slice(8, 9)), (3, slice(-4, -1)), (2, slice(7, 9)),
     (2, np.array([[7, 8]])), (2, np.array([[-3, 0]])), (1, slice(20, 21))],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rope", "plus", "learned", "sinusoidal"])
def test_tables_are_not_read_past_their_end(kind, n, at):
    scheme = kind if kind in ("learned", "sinusoidal") else "none"
    model = GPT(GPTConfig(11, 8, 1, 2, 8, position=scheme))
    read = {
        "rope": lambda x, at: rope()(x, at=at),
        "plus": lambda x, at: Plus("bias", 8)(slice(0, n) if at is None else at),
    }.get(kind, model.wpe)
    with pytest.raises(UsageError, match="positions"):
        read(x_of(n), at)
    read(x_of(2), np.array([[-1, 7]]))  # the last, and padding


def test_attention_alone_stops_at_its_last_position():
    attention = rope()
    cache = KVCache([[(2, 4), (2, 4)]], 1, 20).layers[0]
    attention(x_of(7), cache=cache)
    with pytest.raises(UsageError, match="positions 7 to 9"):
        attention(x_of(3), cache=cache)
    assert len(cache) == 7
    attention.reach(10)
    assert attention(x_of(3), cache=cache).shape == (1, 3, 8)


@pytest.mark.parametrize(
    "at", [slice(5, 8), slice(3, 6), slice(0, 3), np.array([[4, 6, 7]])], ids=repr
)
@pytest.mark.parametrize("kind", [KVCache, RingCache, Int8Cache])
def test_a_cache_has_no_gaps(kind, at):
    """What nobody has written would be read as keys."""
    options = {"window": 6} if kind is RingCache else {}
    cache = kind([[(2, 4), (2, 4)]], 1, 20, **options).layers[0]
    attention = Attention("qkv", 8, 2, 32)
    attention(x_of(4), cache=cache)
    with pytest.raises(UsageError, match="next positions"):
        attention(x_of(3), cache=cache, at=at)
    assert len(cache) == 4


# ---- a value changed between forward and backward: see test_debug.py


@pytest.mark.parametrize(
    "change", [lambda m: m.train(4), lambda m: evaluate(m, IDS, TARGETS), lambda m: m(IDS)]
)
def test_recomputed_blocks_have_the_masks_of_the_forward(change):
    found = []
    for recompute in (False, True):
        model = fresh_gpt(dropout=0.5, recompute=recompute).train(3)
        for call in (model, model.forward):
            loss = F.cross_entropy(call(IDS), TARGETS)
            change(model)
            loss.backward()
        found.append([p.grad for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, again)


def test_recomputed_blocks_notice_another_mode():
    model = fresh_gpt(dropout=0.5, recompute=True)
    loss = token_loss(model, IDS, TARGETS)
    model.eval()
    with pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()


# ---- sums that overflow though the answer does not


@pytest.mark.parametrize("size", [1e19, 1e20, -1e30])
@pytest.mark.parametrize("make", [Adam, AdamW])
def test_one_large_gradient_does_not_freeze_adam(make, size):
    p = nn.Parameter(np.ones(2, "float32"))
    optimizer, before = make([p], lr=0.1), 1.0
    for g in (size, *[math.copysign(1, size)] * 3):
        p.zero_grad()
        p.add_gradient(np.array([g, 1], "float32"))
        optimizer.step()
        assert abs(p.data[0] - before) > 0.01
        before = p.data[0]
    assert np.isfinite(optimizer.v).all()
    p = nn.Parameter(np.ones(1, "float32"))
    p.add_gradient(np.array([size], "float32"))
    make([p], lr=0.1).step()
    np.testing.assert_allclose(p.data, 1 - math.copysign(0.1, size), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e20), ("float32", -1e38), ("float64", 1e200)]
)
def test_clipping_does_not_overflow(backend, dtype, size):
    p = nn.Parameter(backends.upload(np.ones(2, dtype)))
    p.add_gradient(backends.upload(np.array([3 * size, 0], dtype)))
    norm = SGD([p], lr=1.0).step(max_norm=1.0)
    np.testing.assert_allclose(backends.to_host(norm), 3 * abs(size), rtol=1e-6)
    np.testing.assert_allclose(backends.to_host(p.data), [1 - np.sign(size), 1], atol=1e-6)


def test_many_large_gradients_do_not_overflow_their_norm():
    p = nn.Parameter(np.zeros(10_000, "float32"))
    p.add_gradient(np.full(10_000, 1e18, "float32"))
    assert SGD([p], lr=1.0).step(max_norm=1.0) == pytest.approx(1e20)
    np.testing.assert_allclose(p.data, -0.01, rtol=1e-5)


# ---- a batch that counts for nothing


def test_parts_that_count_for_nothing():
    x, y = np.repeat(IDS, 2, axis=0), np.repeat(TARGETS, 2, axis=0)
    y[1:] = -100
    model = fresh_gpt()
    expected = evaluate(model, x, y)["loss"]
    for batch in (1, 2, 3):
        assert evaluate(model, x, y, batch)["loss"] == pytest.approx(expected, abs=1e-6)
    assert evaluate(model, x.tolist(), y.tolist())["loss"] == expected
    sparse = token_loss(model, x.tolist(), y.tolist(), sparse=True)
    assert sparse.item() == pytest.approx(expected, abs=1e-6)
    for parts in (1, 2, 4, 7):  # of which some are empty
        assert loss_and_gradients(model, x, y, accumulate=parts) == pytest.approx(
            expected, abs=1e-6
        )
    before = model.state_dict()
    with pytest.raises(UsageError, match="every target is ignored"):
        train_step(model, AdamW(model.parameters(), weight_decay=0.5), x[1:], y[1:])
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


# ---- decorators on generators


def generator():
    yield leaf(1.0)


async def coroutine():
    return leaf(1.0)


async def asynchronous():
    yield leaf(1.0)


@pytest.mark.parametrize("decorate", [no_grad, trace, lambda: mq.backend.use_backend("numpy")])
@pytest.mark.parametrize("function", [generator, coroutine, asynchronous])
def test_a_decorator_refuses_what_runs_later(decorate, function):
    with pytest.raises(TypeError, match="runs after its call"):
        decorate()(function)


def test_decorators_of_functions():
    @no_grad()
    def wanted(n):
        """Doc."""
        return (leaf(1.0) * 2).requires_grad, n and wanted(n - 1)

    assert wanted(1) == (False, (False, 0))
    assert (wanted.__name__, wanted.__doc__) == ("wanted", "Doc.")
    assert (leaf(1.0) * 2).requires_grad
    with pytest.raises(TypeError, match="positional"):
        no_grad(wanted)

    async def inside():
        with no_grad():
            await asyncio.sleep(0)
            return (leaf(1.0) * 2).requires_grad

    async def both():
        task = asyncio.create_task(inside())
        await asyncio.sleep(0)
        return (leaf(1.0) * 2).requires_grad, await task

    assert asyncio.run(both()) == (True, False)
    model = fresh_gpt()
    tokens = iter_tokens(model, IDS, 3)
    next(tokens)
    assert token_loss(model, IDS, TARGETS).requires_grad


# ---- hooks of one thread seen by another


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_trace_is_of_its_thread():
    model = fresh_gpt()
    name = "blocks.0.attn.q"
    with trace() as t:
        in_a_thread(lambda: gradients_of(model))
        assert list(t) == []
        with trace() as inner:
            model(IDS)
        assert (name in inner, name in t) == (True, False)
        assert in_a_thread(traced) == 1
        model(IDS)
    assert len(t.all(name)) == 1


def gradients_of(model):
    loss_and_gradients(model, IDS, TARGETS)


def traced():
    with trace() as t:
        fresh_gpt()(IDS)
    return len(t.all("blocks.0.attn.q"))


def test_rounding_is_of_its_thread():
    model = fresh_gpt()
    exact = model(IDS).data
    with rounded(model, Int8Cache):
        assert not np.array_equal(model(IDS).data, exact)
        np.testing.assert_array_equal(in_a_thread(lambda: model(IDS).data), exact)
    np.testing.assert_array_equal(model(IDS).data, exact)


def test_a_trace_records_all_batches_of_an_evaluation(monkeypatch):
    """One after the other: the names of two threads would be mixed."""
    model, x = fresh_gpt(), np.repeat(IDS, 4, axis=0)
    mq.set_threads(2)
    try:
        with monkeypatch.context() as patch, trace() as t:
            patch.setattr(parallel, "_pool", "asked for nothing")
            evaluate(model, x, np.roll(x, -1, axis=1), batch=2)
    finally:
        mq.set_threads(1)
    assert {name.rpartition(".")[0] for name in t} == {f"blocks.{i}.attn" for i in (0, 1)}
    assert len(t.all("blocks.0.attn.q")) == 4


# ---- own loops


def own_loop(model, steps):
    optimizer, found = SGD(model.parameters(), lr=1e-9), []
    for _ in range(steps):
        loss = token_loss(model, IDS, TARGETS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_own_loops_have_a_new_mask_in_each_step():
    found = own_loop(fresh_gpt(dropout=0.5), 6)  # train() is how a model begins
    assert len(set(found)) == 6
    assert own_loop(fresh_gpt(dropout=0.5).train(), 6) == found
    assert own_loop(fresh_gpt(dropout=0.5).train(2), 4) == pytest.approx(found[2:], abs=1e-6)
    model, again = fresh_gpt(dropout=0.5), []
    for _ in range(3):  # as many scripts write it
        again += own_loop(model.train(), 2)
        evaluate(model.eval(), IDS, TARGETS)
        generate(model, IDS, 2)
    assert again == pytest.approx(found, abs=1e-6)
    assert model.step == 6


@pytest.mark.parametrize("threads", [1, 2])
def test_own_loops_of_gradients(threads, monkeypatch):
    monkeypatch.setattr("minqkv.runtime.parallel.SMALLEST", 1)
    mq.set_threads(threads)
    try:
        found = []
        for parts in (1, 2):  # of one step: the same masks, whatever the number of parts
            model = fresh_gpt(dropout=0.5)
            found.append(
                [loss_and_gradients(model, IDS, TARGETS, accumulate=parts) for _ in range(3)]
            )
    finally:
        mq.set_threads(1)
    assert len(set(found[0])) == 3
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_step_that_fails_is_made_again():
    model = fresh_gpt(dropout=0.5).train(5)
    with pytest.raises(UsageError):
        model(IDS * 100)
    assert model.step == 5
    drop = nn.Dropout(0.5)
    x = np.ones((4, 8), "float32")
    assert not np.array_equal(drop(x).data, drop(x).data)
    assert (drop.step, nn.Dropout(0.5).forward(Tensor(x)).shape) == (2, (4, 8))


def test_training_does_not_depend_on_what_ran_before():
    found = []
    for warm in (0, 3):
        model = fresh_gpt(dropout=0.5)
        optimizer = AdamW(model.parameters())
        for _ in range(warm):
            model(IDS)
        steps = fit(model, optimizer, lambda step: (IDS, TARGETS), lambda step: 1e-2, 3)
        found.append([loss for _, loss in steps])
    assert found[0] == found[1]


# ---- numbers of NumPy in a config


N = np.int64


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPTConfig(N(11), np.array(12), N(1), np.uint8(2), np.int32(8), np.str_("q-k=v"),
                          bias=np.bool_(False), dropout=np.float32(0.5), window=N(4), sinks=N(1)),
        lambda: GPTConfig(IDS.max() + 1, 8, 1, 2, 8, d_ff=N(3), head_dim=N(4), recompute=np.True_),
        lambda: TaggerConfig(N(9), N(8), N(1), N(2), N(8), "q=k-v+", n_class=IDS.max() + 1,
                             plus_start=np.float64(0.5), hide_self=np.False_),
        lambda: ViTConfig(N(3), N(4), N(2), N(1), N(2), np.uint16(8)),
        lambda: Sampling(np.float32(0.5), np.uint8(2), np.float64(0.5), np.uint64(3), N(4), N(2)),
        lambda: mq.VariantSpec(kv_heads=N(2), key_width=np.uint8(4)),
        lambda: Synthetic("sort", seq_len=N(4), n_embd=np.int32(16), n_test=N(10)),
    ],
)  # fmt: skip
def test_numbers_of_numpy_are_taken(make):
    config = make()
    assert not any(hasattr(value, "dtype") for value in vars(config).values())
    json.dumps(asdict(config))


@pytest.mark.parametrize("value", [True, "8", 8.0, np.float64(8), np.array([8]), 1j, math.nan])
def test_what_is_no_size_is_refused_by_all_configs(value):
    for make in (
        lambda: GPTConfig(11, value, 1, 2, 8),
        lambda: GPTConfig(11, 8, 1, 2, 8, d_ff=value),
        lambda: GPTConfig(11, 8, 1, 2, 8, window=value),
        lambda: TaggerConfig(11, 8, 1, 2, value),
        lambda: ViTConfig(3, 4, value, 1, 2, 8),
        lambda: Sampling(top_k=value),
        lambda: Sampling(end=value),
        lambda: mq.VariantSpec(kv_heads=value),
        lambda: KVCache([[(2, 4)]], value, 8),
        lambda: KVCache([[(2, 4)]], 1, value),
        lambda: BranchCache(KVCache([[(2, 4)]], 1, 8), value),
        lambda: RingCache([[(2, 4)]], 1, 8, window=value),
        lambda: Attention("qkv", 8, 2, 8, head_dim=value),
    ):
        with pytest.raises(UsageError):
            make()


def test_a_small_unsigned_number_does_not_wrap():
    model = fresh_gpt()
    expected = generate(model, IDS, 3, 1.0, top_k=5, seed=1, first_row=200)
    given = generate(
        model,
        IDS,
        np.uint8(3),
        np.float32(1),
        top_k=np.uint8(5),
        first_row=np.uint8(200),
        seed=N(1),
    )
    np.testing.assert_array_equal(given, expected)
    for kind in ("uint8", "int8", ">i4", "uint64"):
        found = evaluate(model, IDS.astype(kind), TARGETS.astype(kind))
        assert found["loss"] == evaluate(model, IDS, TARGETS)["loss"]


def test_caches_take_numbers_of_numpy(tmp_path):
    model = fresh_gpt(position="rope")
    cache = model.new_cache(N(2), np.int16(12), kind=RingCache, window=N(4), sinks=np.uint8(1))
    model(IDS, cache=cache)
    mq.caches.save(cache, tmp_path / "ring", model)
    assert len(mq.caches.load(tmp_path / "ring", model)) == 5
    assert BranchCache(model.new_cache(), N(2), N(12)).batch == 2
    assert Attention("qkv", 8, 2, 8, window=N(3), head_dim=N(4)).window == 3


# ---- modules nobody finds


class Holds(nn.Module):
    """A module with parts in all sorts of containers."""

    def __init__(self, **parts):
        vars(self).update(parts)


def lin():
    return nn.Linear(2, 2)


def par():
    return nn.Parameter(np.ones(2, "float32"))


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"a": (lin(), par())}, ["a.1", "a.0.weight", "a.0.bias"]),
        ({"a": {"x": lin(), 2: par()}}, ["a.2", "a.x.weight", "a.x.bias"]),
        ({"a": [[par()], {"b": [lin()]}]}, ["a.0.0", "a.1.b.0.weight", "a.1.b.0.bias"]),
        ({"a": OrderedDict(x=(par(),))}, ["a.x.0"]),
        ({"a": [par(), par()], "b": par()}, ["a.0", "a.1", "b"]),
        ({"a": [1, "text", None, (), {}], "b": np.ones(2)}, []),
    ],
)
def test_parts_in_containers_are_found(parts, names):
    model = Holds(**parts)
    assert list(dict(model.named_parameters())) == names
    assert list(model.state_dict()) == names
    model.load_state_dict({name: a * 0 + 7 for name, a in model.state_dict().items()})
    assert all((p.data == 7).all() for p in model.parameters())
    assert model.n_params == sum(p.size for p in model.parameters())
    model.eval()
    assert not any(module.training for _, module in model.named_modules())


def test_a_part_with_two_names_is_one():
    shared, weight = lin(), par()
    model = Holds(a=shared, b=[shared], c=weight, d={"e": weight})
    assert list(dict(model.named_parameters())) == ["c", "a.weight", "a.bias"]
    SGD(model.parameters())
    model.up = model  # a circle
    assert len(model.parameters()) == 3
    assert not model.eval().a.training


@pytest.mark.parametrize(
    "parts",
    [
        {"a": {lin()}},
        {"a": [frozenset([par()])]},
        {"a": {1: par(), "1": par()}},
        {"a": {"b.c": par(), "b": {"c": par()}}},
    ],
)
def test_parts_without_a_name_of_their_own_are_refused(parts):
    for use in (Holds(**parts).parameters, Holds(**parts).state_dict):
        with pytest.raises(UsageError, match=r"is a set|two parameters are named"):
            use()


def test_a_model_of_tuples_trains():
    class Pair(nn.Module):
        def __init__(self):
            self.parts = {"in": nn.Embedding(11, 8), "out": (nn.Linear(8, 11, nn.Init(1)),)}

        def forward(self, ids):
            return self.parts["out"][0](F.gelu(self.parts["in"](ids)))

    model = Pair()
    found = losses(model, AdamW(model.parameters(), lr=0.1), 5)
    assert found[-1] < found[0] - 0.5


@pytest.mark.parametrize("broken", ["nan", ["a", "b"], np.array([1j, 2j]), np.array(["x", "y"])])
def test_a_state_that_does_not_fit_changes_nothing(broken):
    model = Holds(a=par(), b=par())
    optimizer = Adam(model.parameters())
    for state in ({"a": np.zeros(2), "b": broken}, {"b": np.zeros(2), "a": broken}):
        with pytest.raises((UsageError, TypeError, ValueError)):
            model.load_state_dict(state)
    good = optimizer.state_dict()
    for wrong in (
        good | {"v": broken},
        good | {"steps": 1.5},
        good | {"steps": -1},
        good | {"steps": "7"},
    ):
        with pytest.raises((UsageError, TypeError, ValueError)):
            optimizer.load_state_dict({**wrong, "m": np.ones(4)})
    assert all((p.data == 1).all() for p in model.parameters())
    assert (optimizer.steps, optimizer.m.any()) == (0, False)


# ---- caches


@pytest.mark.parametrize("kind", [KVCache, RingCache, Int8Cache])
@pytest.mark.parametrize(
    "dtype",
    ["int8", "int32", "uint8", "bool", "complex64", "object", "S4", "M8[s]", "longdouble", ">f4",
     "bfloat16", "no such", int, float, np.complex128, np.dtype(">f8")],
)  # fmt: skip
def test_a_dtype_that_cannot_hold_keys_is_refused_by_every_kind(dtype, kind):
    options = {"window": 4} if kind is RingCache else {}
    with pytest.raises(UsageError, match="floating-point"):
        fresh_gpt().new_cache(dtype=dtype, kind=kind, **options)
    for good in (np.float16, np.dtype("float64"), "float32"):
        assert kind([[(2, 4)]], 1, 8, good, **options).dtype == good


REFUSED_HALVES = {
    "trim of a float": lambda m, c: c.trim(2.0),
    "trim of floats": lambda m, c: c.trim([2, 1.5]),
    "trim of a 0-d float": lambda m, c: c.trim(np.array(2.0)),
    "trim of too few": lambda m, c: c.trim([1]),
    "trim to more": lambda m, c: c.trim([9, 1]),
    "trim of truth": lambda m, c: c.trim(True),
    "trim of text": lambda m, c: c.trim("2"),
    "trim of nothing": lambda m, c: c.trim(None),
    "trim of a matrix": lambda m, c: c.trim([[1, 2]]),
    "grow back": lambda m, c: c.grow(-1),
    "grow by half": lambda m, c: c.grow(1.5),
    "grow too much": lambda m, c: c.grow(99),
    "clone of a mask": lambda m, c: c.clone([True, False]),
    "clone of a matrix": lambda m, c: c.clone(np.array([[0]])),
    "clone of no row": lambda m, c: c.clone([2]),
    "ids out of range": lambda m, c: m(np.array([[1], [99]]), cache=c),
    "too many ids": lambda m, c: m(np.ones((2, 99), int), cache=c),
    "another batch": lambda m, c: m(IDS[:1], cache=c),
    "too much padding": lambda m, c: m(IDS, cache=c, pad=[6, 0]),
    "too long to generate": lambda m, c: generate(m, IDS, 99, cache=c),
}


@pytest.mark.parametrize("name", REFUSED_HALVES)
@pytest.mark.parametrize("kind", [KVCache, RingCache, Int8Cache, BranchCache])
def test_what_is_refused_leaves_the_cache_as_it_was(name, kind):
    model = fresh_gpt()
    cache = model.new_cache(2, kind=KVCache if kind is BranchCache else kind,
                            **({"window": 6} if kind is RingCache else {}))  # fmt: skip
    model(IDS, cache=cache)
    cache = BranchCache(cache, 1) if kind is BranchCache else cache
    expected = model(IDS[:, :1], cache=copy.deepcopy(cache)).data
    if not (name.startswith("clone") and kind is BranchCache):
        with pytest.raises(UsageError):
            REFUSED_HALVES[name](model, cache)
    assert (len(cache), cache.lengths.tolist()) == (5, [5, 5])
    np.testing.assert_array_equal(model(IDS[:, :1], cache=cache).data, expected)
