"""The stand-in for CuPy refuses what CuPy refuses, allows what it allows, and runs every operation
of the package.
"""

import copy
import itertools
import math
import operator
import pickle

import numpy as np
import pytest
import strict
from strict import StrictArray, count_syncs, count_uploads, shares_memory, xp
from toys import NOT_OPERATIONS

from minqkv import backend, tensor
from minqkv import functional as F
from minqkv.tensor import DEBUG, Tensor

strict.register()


@pytest.fixture
def x():
    """(3, 4) float32 on the device."""
    return xp.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))


def host(a):
    assert isinstance(a, StrictArray)
    return xp.asnumpy(a)


HOST = np.ones((3, 4), np.float32)

REFUSED = {
    # implicit conversion, in both directions
    "asarray": (TypeError, lambda x: np.asarray(x)),
    "asarray of a list": (TypeError, lambda x: np.asarray([x, x])),
    "numpy ufunc": (TypeError, lambda x: np.exp(x)),
    "numpy function": (TypeError, lambda x: np.sum(x)),
    "numpy out": (TypeError, lambda x: np.add(HOST, HOST, out=x)),
    "store into numpy": (TypeError, lambda x: HOST.copy().__setitem__(..., x)),
    "index numpy": ((TypeError, IndexError), lambda x: HOST[x.astype("int64")]),
    # mixing with NumPy arrays
    "host right": (TypeError, lambda x: x + HOST),
    "host left": (TypeError, lambda x: HOST * x),
    "host in place": (TypeError, lambda x: operator.iadd(x, HOST)),
    "host matmul": (TypeError, lambda x: x @ HOST.T),
    "host matmul left": (TypeError, lambda x: HOST.T @ x),
    "host compared": (TypeError, lambda x: x == HOST),
    "0-d host": (TypeError, lambda x: x + np.array(1.0)),
    "list": (TypeError, lambda x: x[0] + [1, 2, 3, 4]),
    "host to ufunc": (TypeError, lambda x: xp.add(x, HOST)),
    "host to function": (TypeError, lambda x: xp.sum(HOST)),
    "host in a list": (TypeError, lambda x: xp.concatenate([x, HOST])),
    "host out": (TypeError, lambda x: xp.exp(x, out=HOST.copy())),
    "host out of a method": (TypeError, lambda x: x.sum(0, out=np.zeros(4, np.float32))),
    "host keyword": (TypeError, lambda x: xp.where(x > 0, x=x, y=HOST)),
    "host assigned": (TypeError, lambda x: x.__setitem__(..., HOST)),
    "host to bmm": (TypeError, lambda x: strict.StrictBackend().bmm(x, HOST.T)),
    "host to add.at": (TypeError, lambda x: xp.add.at(x, xp.arange(3), HOST)),
    "list to ufunc": (TypeError, lambda x: xp.exp([1.0])),
    # names and keywords that CuPy does not have
    "errstate": (AttributeError, lambda x: xp.errstate),
    "vecdot": (AttributeError, lambda x: xp.vecdot),
    "setflags": (AttributeError, lambda x: x.setflags),
    "ufunc where": (TypeError, lambda x: xp.exp(x, where=x > 0)),
    "sum where": (TypeError, lambda x: xp.sum(x, where=x > 0)),
    "sum initial": (TypeError, lambda x: x.sum(initial=1.0)),
    "max initial": (TypeError, lambda x: x.max(initial=1.0)),
    "clip min": (TypeError, lambda x: xp.clip(x, min=0)),
    "take mode": (TypeError, lambda x: xp.take(x, xp.arange(2), mode="clip")),
    "take mode, method": (TypeError, lambda x: x.take(xp.arange(2), mode="clip")),
    "zeros device": (TypeError, lambda x: xp.zeros(3, device="cpu")),
    "ufunc order": (TypeError, lambda x: xp.exp(x, order="C")),
    "too many by position": (TypeError, lambda x: xp.zeros(3, "f4", "C", None)),
    "too many for a method": (TypeError, lambda x: x.astype("f4", "C", None, None, True, 1)),
    "method where": (TypeError, lambda x: x.mean(where=x > 0)),
    "ufunc by name": (TypeError, lambda x: xp.exp(x=x)),
    "out of another shape": (ValueError, lambda x: xp.exp(x, out=xp.zeros((3, 5)))),
    "out that cannot hold it": (TypeError, lambda x: xp.exp(x, out=xp.zeros((3, 4), "int32"))),
    "where without the other": (ValueError, lambda x: xp.where(x > 0, x)),
    # indices
    "host index": (TypeError, lambda x: x[np.array([0, 1])]),
    "host mask": (TypeError, lambda x: x[HOST > 0]),
    "list index": (TypeError, lambda x: x[[0, 1]]),
    "host index in a tuple": (TypeError, lambda x: x[:, np.array([0])]),
    "host index assigned": (TypeError, lambda x: x.__setitem__(np.array([0, 1]), 0.0)),
    "host index in add.at": (TypeError, lambda x: xp.add.at(x, np.array([0, 1]), 1.0)),
    "host index in take": (TypeError, lambda x: xp.take(x, np.array([0, 1]))),
    "int out of range": (IndexError, lambda x: x[3]),
    "float index": (IndexError, lambda x: x[x]),
    "duplicates": (ValueError, lambda x: x.__setitem__(xp.asarray([1, 1]), 0.0)),
    "duplicates after wrapping": (ValueError, lambda x: x.__setitem__(xp.asarray([0, 3]), 0.0)),
    "overlap": (ValueError, lambda x: x.__setitem__(slice(1, None), x[:-1])),
    "duplicate pairs": (
        ValueError,
        lambda x: x.__setitem__((xp.asarray([0, 1, 0]), xp.asarray([2, 2, 2])), 0.0),
    ),
    "duplicates by broadcasting": (
        ValueError,
        lambda x: x.__setitem__((xp.asarray([[0], [0]]), xp.arange(4)), 0.0),
    ),
    # what is slow or missing there
    "@ of three axes": (TypeError, lambda x: x[None] @ x.T[None]),
    "@ of three axes and two": (TypeError, lambda x: x[None] @ x.T),
    "matmul of three axes": (TypeError, lambda x: xp.matmul(x[None], x.T[None])),
    "exp.at": (NotImplementedError, lambda x: xp.exp.at(x, xp.arange(2), 1.0)),
    "add.at on int16": (TypeError, lambda x: xp.add.at(x.astype("int16"), xp.arange(2), 1)),
    "add.at on bool": (TypeError, lambda x: xp.add.at(x > 0, xp.arange(2), True)),
    "hash": (TypeError, lambda x: {x}),
    "truth of many": (ValueError, lambda x: bool(x)),
    "len of 0-d": (TypeError, lambda x: len(x.sum())),
    "iteration over 0-d": (TypeError, lambda x: list(x.sum())),
    "0-d as a Python index": (TypeError, lambda x: range(x.sum())),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(x, case):
    error, attempt = REFUSED[case]
    before = host(x)
    with pytest.raises(error):
        attempt(x)
    assert (host(x) == before).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [("errstate", "cupy"), ("random", "not modelled"), ("no_such_name", "cupy")],
)
def test_missing_names_say_so(name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(xp, name)


# what is allowed, as a function of (array module, array, ids): the same source runs on NumPy and on
# strict
ALLOWED = {
    "operators": lambda m, a, i: (2 * a + 1 - a / 3) ** 2 // 2 % 5,
    "reflected": lambda m, a, i: 1 / (2 - a) - (3 ** (a % 3)),
    "comparisons": lambda m, a, i: (a > 1) & ~(a <= 5) | (a == 2) ^ (a != 3),
    "integers": lambda m, a, i: (i << 2) >> 1,
    "numpy scalars": lambda m, a, i: np.float32(2) * a + a * np.float32(3),
    "matmul": lambda m, a, i: a.T @ a,
    "matmul with a vector": lambda m, a, i: a @ a[0],
    "dot": lambda m, a, i: a[0] @ a[1],
    "reductions": lambda m, a, i: [
        a.sum(),
        a.max(axis=0),
        a.mean(-1, keepdims=True),
        m.argmax(a, axis=1),
        a.any(),
        a.var(),
    ],
    "functions": lambda m, a, i: [
        m.exp(a),
        m.where(a > 2, a, 0.0),
        m.maximum(a, 3),
        m.clip(a, 1, 5),
        m.tril(a),
        m.cumsum(a, 1),
    ],
    "shapes": lambda m, a, i: [
        a.reshape(2, 6),
        a.reshape(-1),
        a.transpose(1, 0),
        a.swapaxes(0, 1),
        a[..., None],
        a.T,
        a.ravel(),
    ],
    "lists": lambda m, a, i: m.split(m.concatenate([a, a], axis=1), [1, 3], axis=1),
    "stack": lambda m, a, i: m.stack([a, a]),
    "divmod": lambda m, a, i: divmod(a, 3),
    "einsum": lambda m, a, i: m.einsum("ij,kj->ik", a, a),
    "creation": lambda m, a, i: [
        m.zeros((2, 3), m.float32),
        m.ones_like(a),
        m.arange(5),
        m.full(3, 2.0),
        m.eye(3),
        m.empty((0, 3)),
    ],
    "equality of arrays": lambda m, a, i: [
        m.asarray(m.array_equal(a, a)),
        m.asarray(m.allclose(a, a + 1)),
    ],
    "unique": lambda m, a, i: m.unique(i, return_counts=True),
    "nonzero": lambda m, a, i: (a > 3).nonzero(),
    "where of one": lambda m, a, i: m.where(a > 3),
    "astype": lambda m, a, i: [
        a.astype("float64"),
        a.astype(m.int32, copy=False),
        m.asarray(a, dtype=m.float16),
    ],
    "promotion": lambda m, a, i: [
        a * 2.5,
        a.astype("float16") + 1,
        a.sum() * 2.0,
        a + a.astype("float64"),
    ],
    "silent division by zero": lambda m, a, i: [a / 0.0, m.log(a * 0), m.exp(a * 1000)],
    "get int": lambda m, a, i: [a[0], a[1, 2], a[-1, ...], a[None, 1]],
    "get slice": lambda m, a, i: [a[1:], a[:, ::-1], a[..., :2], a[1:1]],
    "get ids": lambda m, a, i: [
        a[i],
        a[:, i],
        a[i, i],
        a[..., i],
        a[i[:, None], i],
        a[1, i],
        a[None, i],
        a[i[0]],
    ],
    "get mask": lambda m, a, i: [a[a > 4], a[:, a[0] > 1], a[a[:, 0] > 3, 1:]],
    "take": lambda m, a, i: [
        m.take(a, i, axis=0),
        a.take(i, axis=1),
        m.take_along_axis(a, a.astype("int64") % 4, 1),
    ],
    "shape": lambda m, a, i: m.zeros((*a.shape, len(a), a.ndim, a.size)),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed_and_as_numpy(x, case):
    ids = np.array([0, 2, 1])
    with np.errstate(all="ignore"):
        expected = ALLOWED[case](np, host(x), ids)
    got = ALLOWED[case](xp, x, xp.asarray(ids))
    several = isinstance(expected, (list, tuple))
    for mine, theirs in zip(
        got if several else [got], expected if several else [expected], strict=True
    ):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(host(mine), theirs)


# assignments and in-place operations, run on both
CHANGES = {
    "int": lambda m, a, i: a.__setitem__(0, 9.0),
    "slice": lambda m, a, i: a.__setitem__((slice(1, None), 2), a[0, :2]),
    "ids": lambda m, a, i: a.__setitem__(i, a + 1),
    "pairs": lambda m, a, i: a.__setitem__((i, i), 7.0),
    "same row, other columns": lambda m, a, i: a.__setitem__((i * 0, i), 7.0),
    "minus at pairs": lambda m, a, i: a.__setitem__((i, i), a[i, i] - 1),
    "mask": lambda m, a, i: a.__setitem__(a > 4, -math.inf),
    "mask and slice": lambda m, a, i: a.__setitem__((slice(None), a[0] > 1), 0.0),
    "mask and array": lambda m, a, i: a.__setitem__(a > 4, a[a > 4] * 2),
    "empty ids": lambda m, a, i: a.__setitem__(i[:0], 1.0),
    "iadd": lambda m, a, i: operator.iadd(a, 2),
    "imul by a row": lambda m, a, i: operator.imul(a, a[0].copy()),
    "slice iadd": lambda m, a, i: operator.iadd(a[1:], 1),
    "onto itself": lambda m, a, i: a.__setitem__(slice(None), a[:]),
    "overlap of columns": lambda m, a, i: a.__setitem__((slice(None), slice(1, 4)), a[:, :3]),
    "overlap of reversed rows": lambda m, a, i: a.__setitem__(slice(None), a[::-1]),
    "overlap in place": lambda m, a, i: operator.iadd(a[1:], a[:-1]),
    "out": lambda m, a, i: m.tanh(a, out=a),
    "sum out": lambda m, a, i: m.sum(a, axis=0, out=a[0]),
    "add.at": lambda m, a, i: m.add.at(a, i * 0, a + 1),
    "add.at pairs": lambda m, a, i: m.add.at(a, (i, i * 0), 2.0),
    "sort": lambda m, a, i: (-a).sort(),
    "fill": lambda m, a, i: a.fill(3),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_as_numpy(x, case):
    expected, ids = host(x), np.array([0, 2, 1])
    CHANGES[case](np, expected, ids)
    CHANGES[case](xp, x, xp.asarray(ids))
    np.testing.assert_array_equal(host(x), expected)


def test_promotion_is_that_of_numpy():
    """CuPy takes the first types of a ufunc that can hold its arguments."""
    dtypes, compared = "?bBilefd", 0
    for name, about in strict.SURFACE["names"].items():
        own = getattr(np, name, None)
        if about["kind"] != "ufunc" or not isinstance(own, np.ufunc):
            continue
        types = [type.split("->") for type in about["types"].split()]
        for given in itertools.product(map(np.dtype, dtypes), repeat=own.nin):
            try:
                expected = own.resolve_dtypes((*given, *[None] * own.nout))[own.nin :]
            except TypeError:  # bool - bool, for instance
                continue
            fitting = (out for ins, out in types if all(map(np.can_cast, given, ins)))
            assert tuple(map(np.dtype, next(fitting))) == expected, (name, given)
            compared += 1
    assert compared > 1000


def test_in_place_dtypes_as_numpy(x):
    x += xp.ones((3, 4))  # float64 into float32
    assert x.dtype == "float32"
    with pytest.raises(TypeError):
        operator.iadd(x.astype("int32"), 0.5)


def test_out_of_range_ids_wrap_silently(x):
    ids = xp.asarray([3, -4])
    for got in (x[ids], x.take(ids, axis=0), xp.take(x, ids, axis=0)):
        np.testing.assert_array_equal(host(got), host(x)[[0, 2]])
    np.testing.assert_array_equal(host(x[..., xp.asarray([5])]), host(x)[:, [1]])
    mask = xp.asarray([True, False, True])
    np.testing.assert_array_equal(host(x[mask, xp.asarray([4, 5])]), host(x)[[0, 2], [0, 1]])
    x[xp.asarray([4])] = 0.0
    assert float(x[1].sum()) == 0
    xp.add.at(x, xp.asarray([7]), 1.0)
    assert float(x[1].sum()) == 4


@pytest.mark.parametrize(
    "dtype", ["int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
)
def test_add_at_adds_duplicates(dtype):
    out = xp.zeros(2, dtype)
    xp.add.at(out, xp.asarray([0, 0, 1]), xp.ones(3, dtype))
    assert out.tolist() == [2, 1]


def test_results_stay_on_the_device(x):
    total = x.sum()
    assert isinstance(total, StrictArray)
    assert total.shape == ()
    assert isinstance(x[0, 0], StrictArray)
    assert all(isinstance(part, StrictArray) for part in xp.split(x, 2, axis=1))
    assert isinstance(xp.array_equal(x, x), StrictArray)
    assert xp.float32 is np.float32
    assert xp.newaxis is None


def test_identity_and_aliasing(x):
    same = x
    x += 1
    x *= x
    assert x is same
    assert xp.exp(x, out=x) is x
    assert xp.asarray(x) is x
    assert x.astype("float32", copy=False) is x
    for view in (
        x[1:],
        x[0],
        x[0, 0],
        x.T,
        x.reshape(-1),
        x[:, None],
        xp.split(x, 2, axis=1)[1],
        x.base or x,
    ):
        assert shares_memory(view, x)
    for other in (
        x.copy(),
        copy.copy(x),
        copy.deepcopy(x),
        x + 0,
        x[xp.arange(2)],
        xp.array(x),
        x[x > -1],
    ):
        assert not shares_memory(other, x)
    x[0, 0] = 5
    corner = x[0, 0]
    corner += 1  # a 0-d view, as in CuPy
    assert float(x[0, 0]) == 6
    assert shares_memory(x[1:].base, x)
    assert (x.strides, x.nbytes, x.itemsize) == ((16, 4), 48, 4)


def test_results_are_in_c_order(x):
    """Where NumPy lays a result out as its arguments are, CuPy does not."""
    for result in (
        x.T + 1,
        -x.T,
        x.T > 1,
        xp.exp(x.T),
        xp.where(x.T > 1, x.T, 0),
        x.T[xp.arange(2)],
    ):
        assert result.strides[-1] == result.itemsize
    for result in (x.T, x.T.astype("float64"), xp.zeros_like(x.T), xp.array(x.T)):
        assert result.strides[0] == result.itemsize
    turned = x.T
    turned += 1
    assert turned.strides[0] == turned.itemsize


def test_upload_and_download_copy():
    source = np.zeros(3, np.float32)
    device = xp.asarray(source)
    source[0] = 1
    assert host(device)[0] == 0
    with backend.use_backend("strict"):
        downloaded = backend.to_host(device)
    downloaded[1] = 1
    assert host(device)[1] == 0


SYNCS = {
    "item": (1, lambda x: x.sum().item()),
    "float": (1, lambda x: float(x[0, 0])),
    "int": (1, lambda x: int(x[0, 0])),
    "bool": (1, lambda x: bool((x > 1).any())),
    "if": (1, lambda x: 1 if (x >= 0).all() else 0),
    "tolist": (1, lambda x: x.tolist()),
    "repr": (1, lambda x: repr(x)),
    "f-string": (1, lambda x: f"{x.sum():.2f}"),
    "str": (1, lambda x: str(x)),
    "asnumpy": (1, lambda x: xp.asnumpy(x)),
    "get": (1, lambda x: x.get()),
    "mask read": (1, lambda x: x[x > 1]),
    "mask assigned": (1, lambda x: x.__setitem__(x > 1, 0.0)),
    "nonzero": (1, lambda x: xp.flatnonzero(x)),
    "bincount": (2, lambda x: xp.bincount(xp.arange(3), minlength=5)),
    "pickle": (1, lambda x: pickle.dumps(x)),
    "equality": (0, lambda x: xp.array_equal(x, x)),
    "len and shape": (0, lambda x: (len(x), x.shape, x.dtype, x.ndim, x.size)),
    "arithmetic": (0, lambda x: (x @ x.T + 1).max(axis=0)[1:].sum()),
    "upload": (0, lambda x: xp.asarray(HOST)),
    "ids": (0, lambda x: x[xp.arange(2)]),
    "iteration": (0, lambda x: [row.sum() for row in x]),
}


UPLOADS = {
    "array": (1, lambda x: xp.asarray(HOST)),
    "list": (1, lambda x: xp.array([1, 2])),
    "number": (0, lambda x: xp.asarray(2.0)),
    "device array": (0, lambda x: xp.array(x)),
    "made there": (0, lambda x: xp.arange(5) + xp.full(5, 2.0)),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_uploads_are_counted(x, case):
    expected, action = UPLOADS[case]
    with count_uploads() as uploads:
        action(x)
    assert uploads() == expected


def test_operators_are_those_of_cupy():
    own = {name for name in vars(StrictArray) if name.startswith("__") and name not in dir(object)}
    ours = {"__module__", "__weakref__", "__getattr__"}
    assert own - ours <= set(strict.SURFACE["special"])


@pytest.mark.parametrize("case", SYNCS)
def test_host_synchronisations_are_counted(x, case):
    expected, action = SYNCS[case]
    with count_syncs() as syncs:
        action(x)
    assert syncs() == expected


def test_backend_describes_itself_and_multiplies_batches(x):
    with backend.use_backend("strict") as current:
        assert current.name == "strict"
        assert "CuPy 14" in current.describe()
        product = backend.bmm(x[None], x.T[None])
    np.testing.assert_array_equal(host(product)[0], host(x) @ host(x).T)


# every operation of the package: name -> (function of Tensors, shapes of its inputs)
TARGETS = np.array([[1, -100, 4], [0, 2, 2]])
CAUSAL = np.tril(np.ones((3, 3), bool))
ANGLES = np.linspace(0, 1, 6).reshape(3, 2)


def attention(mask=None, temperature=False, bias=False):
    def run(q, k, v, *more):
        more = list(more)
        t = more.pop(0) if temperature else None
        b = more.pop(0) if bias else None
        allowed = None if mask is None else backend.upload(mask)
        return F.scaled_dot_product_attention(q, k, v, allowed, temperature=t, bias=b)

    return run


OPERATIONS = {
    "add": (tensor.add, (2, 3), (3,)),
    "add a number": (lambda a: 1 + a, (2, 3)),
    "sub": (tensor.sub, (2, 3), (2, 1)),
    "mul": (tensor.mul, (2, 3), (3,)),
    "mul by a NumPy scalar": (lambda a: a * np.float64(2), (2, 3)),
    "div": (tensor.div, (2, 3), (1, 3)),
    "div a number": (lambda a: 2 / a, (2, 3)),
    "neg": (tensor.neg, (2, 3)),
    "pow": (lambda a: a**3, (2, 3)),
    "exp": (tensor.exp, (2, 3)),
    "log": (tensor.log, (2, 3)),
    "tanh": (tensor.tanh, (2, 3)),
    "sqrt": (tensor.sqrt, (2, 3)),
    "matmul": (tensor.matmul, (2, 3), (3, 4)),
    "matmul of batches": (tensor.matmul, (2, 1, 3, 4), (5, 4, 2)),
    "sum": (lambda a: a.sum(), (2, 3)),
    "sum of axes": (lambda a: a.sum((0, -1), keepdims=True), (2, 3, 4)),
    "mean": (lambda a: a.mean(-1), (2, 3)),
    "max": (lambda a: a.max(-1), (2, 3)),
    "max of all": (lambda a: a.max(), (2, 3)),
    "reshape": (lambda a: a.reshape(3, -1), (2, 3)),
    "transpose": (lambda a: a.transpose(1, 0, 2), (2, 3, 4)),
    "getitem slice": (lambda a: a[:, 1:], (2, 3)),
    "getitem int": (lambda a: a[1, 2], (2, 3)),
    "getitem ids": (lambda a: a[np.array([1, 0, -1])], (2, 3)),
    "getitem pairs": (lambda a: a[np.array([0, 1, 0]), np.array([2, 2, 2])], (2, 3)),
    "getitem slice and ids": (lambda a: a[:, np.array([0, 0, 1])], (2, 3)),
    "concat": (lambda a, b: tensor.concat([a, b], axis=1), (2, 3), (2, 1)),
    "where": (lambda a, b: tensor.where(backend.upload(CAUSAL), a, b), (3, 3), (3,)),
    "where a number": (lambda a: tensor.where(backend.upload(CAUSAL), a, -math.inf).exp(), (3, 3)),
    "linear": (F.linear, (2, 3, 4), (4, 5), (5,)),
    "linear without bias": (F.linear, (2, 4), (4, 5)),
    "embedding": (lambda w: F.embedding(np.array([[1, 1, 0], [4, 0, 1]]), w), (5, 3)),
    "layer_norm": (F.layer_norm, (2, 3, 4), (4,), (4,)),
    "rms_norm": (F.rms_norm, (2, 3, 4)),
    "relu": (F.relu, (2, 3)),
    "gelu": (F.gelu, (2, 3)),
    "softmax": (F.softmax, (2, 3, 4)),
    "dropout": (lambda a: F.dropout(a, 0.4, np.random.default_rng(0)), (2, 30)),
    "split_heads": (lambda a: F.split_heads(a, 2), (2, 3, 4)),
    "merge_heads": (lambda a: F.merge_heads(a), (2, 3, 4, 5)),
    "rotate": (
        lambda a: F.rotate(a, *map(backend.upload, (np.cos(ANGLES), np.sin(ANGLES)))),
        (2, 3, 4),
    ),
    "rotate some channels": (
        lambda a: F.rotate(a, *map(backend.upload, (np.cos(ANGLES), np.sin(ANGLES)))),
        (2, 3, 7),
    ),
    "attention": (attention(), (2, 4, 3, 5), (2, 4, 3, 5), (2, 4, 3, 5)),
    "attention, masked and grouped": (attention(CAUSAL), (2, 4, 3, 5), (2, 2, 3, 5), (2, 2, 3, 5)),
    "attention, K = V": (lambda q, k: attention(CAUSAL)(q, k, k), (2, 4, 3, 5), (2, 1, 3, 5)),
    "attention plus": (
        attention(CAUSAL, True, True),
        (2, 4, 3, 5),
        (2, 4, 3, 5),
        (2, 4, 3, 5),
        (),
        (3,),
    ),
    "cross_entropy": (lambda a: F.cross_entropy(a, TARGETS), (2, 3, 5)),
    "cross_entropy of all": (lambda a: F.cross_entropy(a, abs(TARGETS) % 5), (2, 3, 5)),
}


def run_operation(name, backend_name, dtype):
    """Output and gradients, on the host, and how often the operation made the host wait for the
    device.
    """
    function, *shapes = OPERATIONS[name]
    rng = np.random.default_rng(0)
    inputs = [rng.uniform(0.5, 2.0, shape).astype(dtype) for shape in shapes]
    with backend.use_backend(backend_name):
        tensors = [Tensor(backend.upload(a), requires_grad=True) for a in inputs]
        with count_syncs() as syncs:
            out = function(*tensors)
            out.backward(backend.upload(rng.standard_normal(out.shape).astype(dtype)))
        waits = syncs()
        return [np.array(backend.to_host(a)) for a in (out.data, *(t.grad for t in tensors))], waits


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_strict_as_on_numpy(name):
    expected, _ = run_operation(name, "numpy", "float64")
    got, waits = run_operation(name, "strict", "float64")
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)
    assert waits == 0 or DEBUG  # MINQKV_DEBUG=1 looks for NaN on the host


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_keeps_float32_on_strict(name):
    got, _ = run_operation(name, "strict", "float32")
    assert {a.dtype.name for a in got} == {"float32"}


def test_every_operation_is_listed():
    covered = {name.split()[0].strip(",") for name in OPERATIONS}
    covered |= NOT_OPERATIONS | {"scaled_dot_product_attention"}  # listed as "attention"
    public = {
        name
        for module in (tensor, F)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert public <= covered, public - covered
