"""The rules of the engine: one pass in order without recursion, gradients that add up and never
alias, a graph freed as it is used, no node nobody needs; and Tensor itself."""

import contextlib
import gc
import math
import tracemalloc
import weakref

import numpy as np
import pytest
from toys import IDS, fresh_gpt, fresh_tagger, host, ones

from minqkv import Tensor, no_grad, tensor
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.tensor import Node, make, unbroadcast


def nodes_alive():
    return sum(type(thing) is Node for thing in gc.get_objects())


@pytest.fixture
def no_collector():
    """What is freed here is freed by reference counts alone: a cycle would stay."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def calls(monkeypatch):
    """The vjps run, by name, and the nodes made, in order."""
    log = {"made": 0, "run": []}

    class Counted(Node):
        __slots__ = ()

        def __init__(self, dtype, parents=(), vjp=None):
            log["made"] += vjp is not None
            super().__init__(
                dtype,
                parents,
                vjp and (lambda *a: (log["run"].append(vjp.__qualname__), vjp(*a))[1]),
            )

    monkeypatch.setattr(tensor, "Node", Counted)
    return log


# --- one pass, in order, without recursion


def test_every_node_runs_once(backend, calls):
    """200 residual sublayers: 2^200 paths, and as many vjps as nodes."""
    x = h = ones(2)
    for _ in range(200):
        h = h + h.tanh() * 0.1
    h.sum().backward()
    assert len(calls["run"]) == calls["made"] == 601
    assert calls["run"][0].startswith("sum")
    slope, value = 1.0, 1.0
    for _ in range(200):
        slope *= 1 + 0.1 * (1 - math.tanh(value) ** 2)
        value += 0.1 * math.tanh(value)
    np.testing.assert_allclose(host(x.grad), [slope] * 2)


def test_a_deep_chain_needs_no_recursion(no_collector):
    before = nodes_alive()
    for backward in (True, False):  # without backward the chain is freed as it was made
        x = h = ones(2)
        for _ in range(20_000):
            h = h + 1
        if backward:
            h.sum().backward()
            np.testing.assert_array_equal(x.grad, [1, 1])
        del h, x
        assert nodes_alive() == before


def test_a_part_the_loss_does_not_use_is_not_run(calls):
    x = ones(2)
    aside = x.exp()
    (x * 2).sum().backward()
    assert len(calls["run"]) == 2
    aside.sum().backward()
    np.testing.assert_allclose(x.grad, 2 + math.e)


# --- gradients add up and never alias

SHARING = {
    "sum of two": lambda a, b: a + b,
    "and doubled": lambda a, b: (a + b) + (b + a),
    "concat": lambda a, b: F.concat([a, b]),
    "reshapes": lambda a, b: a.reshape(4) + b.reshape(4),
    "transposes": lambda a, b: a.transpose() + b.transpose(),
    "full sums": lambda a, b: a.sum() + b.sum(),
    "one full sum": lambda a, b: (a + b).sum(),
    "chosen": lambda a, b: (a + b)[0],
    "three uses": lambda a, b: a + a + a + b,
}


@pytest.mark.parametrize("name", SHARING)
def test_no_two_gradients_share_memory(backend, name):
    a, b = ones(2, 2), ones(2, 2)
    out = SHARING[name](a, b)
    g = backends.xp.ones(out.shape, "float64")
    out.backward(g)
    expected = host(a.grad).copy()
    kept = host(b.grad).copy()
    b.grad[...] = 7  # as clipping or an optimiser might
    g[...] = 9
    np.testing.assert_array_equal(host(a.grad), expected)
    np.testing.assert_array_equal(host(b.grad), [[7, 7], [7, 7]])
    SHARING[name](a, b).backward(
        backends.xp.ones(out.shape, "float64")
    )  # a second backward adds to both
    np.testing.assert_allclose(host(a.grad), 2 * expected)
    np.testing.assert_allclose(host(b.grad), 7 + kept)


def test_gradients_accumulate_until_forgotten(backend, leaf):
    x = leaf(3)
    for n in (1, 2, 3):
        (x * x).sum().backward()
        np.testing.assert_allclose(host(x.grad), 2 * n * host(x))
    x.zero_grad()
    assert x.grad is None
    (x * x).sum().backward()
    np.testing.assert_allclose(host(x.grad), 2 * host(x))


def test_a_leaf_is_its_own_graph(backend):
    x = ones(3)
    g = backends.xp.ones(3, "float64")
    x.backward(g)
    g[...] = 5
    np.testing.assert_array_equal(host(x.grad), [1, 1, 1])
    x.backward(g)
    np.testing.assert_array_equal(host(x.grad), [6, 6, 6])


def test_an_op_may_give_no_gradient_to_an_input():
    """None from a vjp adds nothing, whatever was there before."""
    x = ones(2)
    y = x * 3
    quiet = make(y.data * 1, (y,), lambda g, wanted: (None,))
    (y + quiet + y).sum().backward()
    np.testing.assert_array_equal(x.grad, [6, 6])
    x.zero_grad()
    y = x * 3
    before, loud = make(y.data * 1, (y,), lambda g, wanted: (None,)), y * 1
    (before + loud).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_the_cotangent(backend):
    x = ones(2, 3)
    y = x * 2
    with pytest.raises(RuntimeError, match="cotangent"):
        y.backward()
    with pytest.raises(RuntimeError, match="shape"):
        y.backward(backends.xp.ones((3, 2), "float64"))
    y.backward(Tensor(backends.xp.ones((2, 3), "float64")))
    np.testing.assert_array_equal(host(x.grad), np.full((2, 3), 2))
    single = ones(1, 1)
    (single * 4).backward()  # one number needs none
    assert host(single.grad).item() == 4
    x = ones(2, dtype="float32")
    (x * 2).backward(backends.xp.ones(2, "float64"))
    assert x.grad.dtype == "float32"


def test_backward_outside_any_graph(backend):
    for x in (Tensor([1.0]), ones(1).detach(), (ones(1) * 2).detach() * 3):
        with pytest.raises(RuntimeError, match="requires a gradient"):
            x.backward()


# --- the graph is freed as it is used


def test_a_second_backward_is_an_error(backend):
    x = ones(2)
    y = (x * x).exp()
    loss = y.sum()
    loss.backward()
    first = host(x.grad).copy()
    for again in (loss, y.sum(), (y * 2 + y).sum()):
        with pytest.raises(RuntimeError, match="already used and freed"):
            again.backward()
    np.testing.assert_array_equal(host(x.grad), first)


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("build", [fresh_gpt, fresh_tagger], ids=["gpt", "tagger"])
def test_a_step_leaves_nothing_behind(no_collector, build, backward):
    before = nodes_alive()
    model = build("q-k=v")
    x = np.zeros((128, 8), int)  # one activation is 64 KB
    tracemalloc.start()
    try:
        for turn in range(3):
            loss = F.cross_entropy(model(x), x)
            if backward:
                loss.backward()
            model.zero_grad()
            del loss
            if turn == 0:
                memory = tracemalloc.get_traced_memory()[0]
        assert nodes_alive() - before == len(model.parameters())
        assert tracemalloc.get_traced_memory()[0] - memory < 32_000
    finally:
        tracemalloc.stop()
    assert not any(isinstance(thing, (Node, Tensor)) for thing in _cycles())


def _cycles():
    """What only the collector could have freed."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found, gc.garbage[:] = gc.garbage[:], []
    return found


def test_activations_are_freed_during_backward():
    """When the first operation's vjp runs, nothing above it is left; and forward keeps only what a
    vjp has captured.
    """
    activations, alive = [], []
    x = ones(1000)

    def count(g, wanted):
        alive.append(sum(ref() is not None for ref in activations))
        return (g,)

    h = make(x.data.copy(), (x,), count)
    for _ in range(10):
        h = h.tanh()
        activations.append(weakref.ref(h.data))
        h = h + 1  # captures no array: its result can go at once
        activations.append(weakref.ref(h.data))
    h = h.sum()
    assert sum(ref() is not None for ref in activations) == 10
    h.backward()
    assert alive == [0]


def test_intermediate_gradients_are_freed_during_backward():
    """In a chain of ten, each vjp finds one gradient alive: its own."""
    gradients, alive = [], []

    def vjp(g, wanted):
        alive.append(sum(ref() is not None for ref in gradients))
        out = g * 2
        gradients.append(weakref.ref(out))
        return (out,)

    x = h = ones(1000)
    for _ in range(10):
        h = make(h.data * 2, (h,), vjp)
    h.backward(np.ones(1000))
    assert alive == [0] + [1] * 9
    assert x.grad[0] == 1024


def test_forward_without_a_gradient_prepares_none():
    """GELU saves its derivative for backward; where there will be none it needs less memory."""
    peaks, x = [], ones(10_000)
    for grad in (no_grad, contextlib.nullcontext):
        with grad():
            tracemalloc.start()
            F.gelu(x)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[0] < peaks[1] - 50_000


def test_a_graph_holds_no_tensor(backend):
    """Every leaf and intermediate Tensor dies with its name, while the graph lives: vjps capture
    arrays only.
    """
    w = ones(4, 4)
    x = ones(2, 3, 4)
    y = F.layer_norm(F.gelu(F.linear(x, w)), ones(4), ones(4))
    q = y.reshape(2, 1, 3, 4)
    z = F.scaled_dot_product_attention(q, q, q, None, temperature=ones(), bias=ones(3))
    out = F.cross_entropy(
        F.softmax(z.reshape(6, 4) * F.where(y.data.reshape(6, 4) > 0, 1.0, y.reshape(6, 4))),
        [0] * 6,
    )
    del x, y, q, z, w
    gc.collect()
    captured, stack = [], [out.node]
    while stack:
        node = stack.pop()
        held = [cell.cell_contents for cell in getattr(node.vjp, "__closure__", None) or ()]
        while held:  # what a list, or an object that a vjp keeps, holds counts as well
            thing = held.pop()
            captured.append(type(thing).__name__)
            held += (
                thing
                if isinstance(thing, (list, tuple))
                else getattr(thing, "__dict__", {}).values()
            )
        stack += [p for p in node.parents if p is not None]
    assert "Tensor" not in captured
    assert len(captured) > 20
    out.backward()


# --- no node, and no gradient, that nobody needs


def test_no_node_without_need(backend, calls):
    model = fresh_gpt("q=k=v+")
    with no_grad():
        assert not model(IDS).requires_grad
        with no_grad():
            pass
        assert not (
            model.wte.weight * 2
        ).requires_grad  # the inner block does not switch it on again
    assert not (Tensor(backends.xp.ones(2)) * 3 + 1).requires_grad
    for p in model.parameters():
        p.node = None
    assert not model(IDS).requires_grad
    assert calls["made"] == 0
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert (ones(2) * 2).requires_grad  # switched on again after an exception

    @no_grad()
    def quiet(x):
        return x * 2

    assert not quiet(ones(2)).requires_grad


UNNEEDED = {
    "mul": lambda a, b: a * b,
    "sub": lambda a, b: a - b,
    "div": lambda a, b: a / b,
    "matmul": lambda a, b: a @ b,
    "linear": lambda a, b: F.linear(a, b),
    "where": lambda a, b: F.where(a.data > 0, a, b),
}


@pytest.mark.parametrize("name", UNNEEDED)
def test_gradients_nobody_needs_are_not_computed(backend, leaf, name):
    for wanted in (0, 1):
        pair = [leaf(3, 3), leaf(3, 3)]
        pair[1 - wanted] = pair[1 - wanted].detach()
        out = UNNEEDED[name](*pair)
        grads = out.node.vjp(
            backends.xp.ones((3, 3), "float64"), [parent is not None for parent in out.node.parents]
        )
        assert [g is not None for g in grads][:2] == [i == wanted for i in (0, 1)]


def test_attention_computes_only_the_gradients_needed(monkeypatch, leaf):
    products = []
    monkeypatch.setattr(backends, "bmm", lambda a, b: (products.append(1), np.matmul(a, b))[1])
    for wanted, n in (
        ("q", 2 + 2),
        ("k", 2 + 3),
        ("v", 2 + 3),
        ("qkv", 2 + 4),
    ):  # the gradient of q is always computed
        q, k, v = (
            leaf(1, 2, 3, 4) if name in wanted else leaf(1, 2, 3, 4).detach() for name in "qkv"
        )
        products.clear()
        F.scaled_dot_product_attention(q, k, v).sum().backward()
        assert len(products) <= n


def test_detach_stops_the_gradient(backend):
    x = ones(2)
    (x * x.detach()).sum().backward()
    np.testing.assert_array_equal(host(x.grad), [1, 1])
    assert not x.detach().requires_grad
    assert x.detach().data is x.data


# --- Tensor itself


def test_dtypes_of_new_tensors(backend):
    assert Tensor([1, 2]).dtype == "float32"
    assert Tensor(3).shape == ()
    assert Tensor(np.arange(3)).dtype == "float32"
    assert Tensor(np.ones(2)).dtype == "float64"
    assert Tensor(np.ones(2), dtype="float32").dtype == "float32"
    assert Tensor([1.5], requires_grad=True).requires_grad
    x = Tensor([[1.0, 2.0]])
    assert (len(x), x.ndim, x.size, x.shape, x.sum().item()) == (1, 2, 2, (1, 2), 3.0)
    assert isinstance(x.numpy(), np.ndarray)
    assert "requires_grad=False" in repr(x)


def test_numpy_array_times_tensor_is_a_tensor():
    out = np.ones(3, np.float32) * ones(3, dtype="float32")
    assert isinstance(out, Tensor)
    assert out.shape == (3,)
    assert isinstance(np.float64(2) * ones(3), Tensor)


def test_unbroadcast_mirrors_broadcasting(backend, rng):
    """⟨broadcast(x), g⟩ = ⟨x, unbroadcast(g)⟩."""
    for shape, full in [
        ((3,), (2, 3)),
        ((2, 1), (2, 3)),
        ((), (2, 3)),
        ((1, 1, 3), (4, 2, 3)),
        ((2, 3), (2, 3)),
    ]:
        x, g = rng.standard_normal(shape), rng.standard_normal(full)
        back = host(unbroadcast(backends.upload(g), shape))
        assert back.shape == shape
        assert math.isclose((np.broadcast_to(x, full) * g).sum(), (x * back).sum(), rel_tol=1e-12)


def test_max_shares_the_gradient_among_equals(backend):
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True, dtype="float64")
    x.max(axis=1).sum().backward()
    np.testing.assert_allclose(host(x.grad), [[0, 0.5, 0.5], [1 / 3] * 3])
