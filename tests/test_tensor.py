"""The rules of the engine: one pass in order without recursion, gradients that add up and never
alias, a graph freed as it is used, no node nobody needs, a debug mode that names the culprit,
traces, one wait per training step; then modules, starts keyed by name, dropout keyed by step,
optimisers and schedules against their formulas."""

import contextlib
import gc
import math
import os
import subprocess
import sys
import textwrap
import tracemalloc
import weakref

import numpy as np
import pytest
import strict

import minqkv as mq
from minqkv import Tensor, nn, no_grad, optim, tensor
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.runtime.errors import UsageError
from minqkv.runtime.tracing import trace
from minqkv.tensor import Node, make
from minqkv.train import train_step

VARIANTS = ["qkv", "q=k-v", "q-k=v", "q=k=v", "q=k=v+", "gqa-2", "q-mqa"]
IDS = np.array([[1, 4, 0, 2, 2], [3, 3, 1, 0, 4]])


def host(x):
    return backends.to_host(x.data if isinstance(x, Tensor) else x)


def ones(*shape, dtype="float64"):
    return Tensor(backends.xp.ones(shape, dtype), requires_grad=True)


def gpt(variant="qkv", seed=0, **kwargs):
    return mq.GPT(
        mq.GPTConfig(5, 8, n_layer=2, n_head=4, n_embd=16, variant=variant, **kwargs), seed
    )


def tagger(variant="qkv", seed=0, **kwargs):
    return mq.Tagger(
        mq.TaggerConfig(5, 8, n_layer=2, n_head=4, n_embd=16, variant=variant, **kwargs), seed
    )


def loss_of(model):
    return F.cross_entropy(model(IDS), IDS)


def gradients(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: host(p.grad) for name, p in model.named_parameters()}


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

        def __init__(self, parents=(), vjp=None):
            log["made"] += vjp is not None
            super().__init__(
                parents, vjp and (lambda g: (log["run"].append(vjp.__qualname__), vjp(g))[1])
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
    quiet = make(y.data * 1, (y,), lambda g: (None,))
    (y + quiet + y).sum().backward()
    np.testing.assert_array_equal(x.grad, [6, 6])
    x.zero_grad()
    y = x * 3
    before, loud = make(y.data * 1, (y,), lambda g: (None,)), y * 1
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
@pytest.mark.parametrize("build", [gpt, tagger], ids=["gpt", "tagger"])
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

    def count(g):
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

    def vjp(g):
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
        cells = [c.cell_contents for c in getattr(node.vjp, "__closure__", None) or ()]
        cells += [c.cell_contents for f in cells if isinstance(f, list) for pull in f if callable(pull)
                  for c in pull.__closure__ or ()]  # fmt: skip
        captured += [type(c).__name__ for c in cells]
        stack += [p for p in node.parents if p is not None]
    assert "Tensor" not in captured
    assert len(captured) > 20
    out.backward()


# --- no node, and no gradient, that nobody needs


def test_no_node_without_need(backend, calls):
    model = gpt("q=k=v+")
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
        grads = out.node.vjp(backends.xp.ones((3, 3), "float64"))
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


# --- MINQKV_DEBUG=1


def debug(code, **env):
    """Run code in a process of its own with MINQKV_DEBUG=1; returns (exit status, stderr)."""
    head = """
        import numpy as np, minqkv as mq
        from minqkv import Tensor, functional as F
        from minqkv.tensor import make
        x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    """
    environment = os.environ | {"MINQKV_DEBUG": "1"} | env
    code = textwrap.dedent(head) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


DEBUG = {
    "a NaN forward": ("""
        def deep(x):
            return F.log(x - 5)
        deep(x).sum().backward()""", ["FloatingPointError", "first NaN in log (forward)", "in deep"]),
    "a NaN backward": ("""
        def deep(x):
            return make(x.data * 1, (x,), lambda g: (g * np.nan,))
        deep(x).sum().backward()""", ["FloatingPointError", "first NaN in deep (backward, gradient 0)", "in deep"]),
    "a gradient of the wrong shape": ("""
        def shapeless(x):
            return make(x.data * 1, (x,), lambda g: (g.sum(),))
        shapeless(x).sum().backward()""", ["backward of shapeless", "gradient 0 is () float64, its input (2,) float64"]),
    "a gradient of the wrong dtype": ("""
        def narrow(x):
            return make(x.data * 1, (x,), lambda g: (g.astype("float32"),))
        narrow(x).sum().backward()""", ["backward of narrow", "gradient 0 is (2,) float32"]),
    "an error in backward": ("""
        def broken(x):
            return make(x.data * 1, (x,), lambda g: 1 / 0)
        def caller(x):
            return broken(x)
        caller(x).sum().backward()""", ["backward of broken: division by zero", "its forward ran here", "in caller"]),
    "writing to an output": ("""
        y = x.exp()
        y.data[0] = 1""", ["ValueError", "read-only"]),
    "writing to an input": ("""
        y = x.exp()
        x.data *= 2""", ["ValueError", "read-only"]),
    "too few gradients": ("""
        def forgetful(x, y):
            return make(x.data * y.data, (x, y), lambda g: (g,))
        forgetful(x, x).sum().backward()""", ["forgetful", "zip()"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DEBUG)
def test_debug_names_the_culprit(name):
    code, expected = DEBUG[name]
    status, stderr = debug(code)
    assert status == 1
    for words in expected:
        assert words in stderr


def test_debug_lets_what_is_right_pass_and_unlocks_it():
    status, stderr = debug("""
        from minqkv.train import train_step
        for backend in ("numpy",):
            for variant in ("qkv", "q=k=v+", "q-gqa-2"):
                for position in ("learned", "rope"):
                    model = mq.GPT(mq.GPTConfig(5, 8, 2, 4, 16, variant=variant, position=position, dropout=0.1))
                    optimizer = mq.AdamW(model.parameters())
                    for _ in range(2):
                        train_step(model, optimizer, np.zeros((2, 4), int), np.ones((2, 4), int))
        y = x.reshape(2, 1).transpose()[0] * x
        y.sum().backward()
        x.data *= 2
        y.data *= 2
    """)
    assert (status, stderr) == (0, "")


def test_debug_off_by_default():
    status, stderr = debug(
        "x.exp().data[0] = 1; assert F.log(x - 5).requires_grad", MINQKV_DEBUG="0"
    )
    assert (status, stderr) == (0, "")


def test_debug_changes_no_result(monkeypatch):
    expected = gradients(gpt("q=k=v+"))
    monkeypatch.setattr(tensor, "DEBUG", True)
    for name, g in gradients(gpt("q=k=v+")).items():
        np.testing.assert_array_equal(g, expected[name], err_msg=name)


# --- trace


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_trace_names(variant, position):
    model = gpt(variant, position=position)
    plain, plain_loss = gradients(model), loss_of(model).item()
    names = {"q", "k", "v", "scores", "pattern", "z", "out"} | (
        {"plus"} if "+" in variant else set()
    )
    backward = {f"grad.{name}" for name in ("q", "k", "v", "scores", "pattern", "z", "out")}
    model.zero_grad()
    with trace() as t:
        loss = loss_of(model)
        assert set(t) == {f"blocks.{i}.attn.{name}" for i in (0, 1) for name in names}
        loss.backward()
    assert set(t) == {f"blocks.{i}.attn.{name}" for i in (0, 1) for name in names | backward}
    assert loss.item() == plain_loss
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.grad, plain[name], err_msg=name)
    at = "blocks.1.attn."
    assert t[at + "q"].shape == t[at + "z"].shape == t[at + "grad.q"].shape == (2, 4, 5, 4)
    stored = model.blocks[0].attn.kv_heads
    assert t[at + "k"].shape == t[at + "v"].shape == t[at + "grad.k"].shape == (2, stored, 5, 4)
    assert (
        t[at + "scores"].shape
        == t[at + "pattern"].shape
        == t[at + "grad.pattern"].shape
        == (2, 4, 5, 5)
    )
    np.testing.assert_allclose(t[at + "pattern"].sum(-1), 1, rtol=1e-5)
    assert not np.triu(t[at + "pattern"], 1).any()
    if position == "learned":
        assert ("=v" in variant or variant == "q-mqa") == np.array_equal(t[at + "k"], t[at + "v"])
        assert variant.startswith("q=k") == np.array_equal(t[at + "q"], t[at + "k"])
    assert len(t.all(at + "q")) == 1


def test_trace_holds_copies_and_nests(backend):
    model = gpt()
    with trace() as outer:
        model(IDS)
        with trace() as inner:
            model(IDS)
            model(IDS)
        name = "blocks.0.attn.scores"
        assert (len(outer.all(name)), len(inner.all(name))) == (1, 2)
        assert outer.all("no such name") == []
        assert name in outer
    assert isinstance(outer[name], np.ndarray)
    scores = outer[name].copy()
    for p in model.parameters():
        p.data *= 2
    model(IDS)
    np.testing.assert_array_equal(outer[name], scores)
    assert len(outer.all(name)) == 1


def test_the_traced_gradient_is_the_right_one(leaf):
    """grad.pattern, grad.scores and grad.q as read from a trace, against the same by small
    operations.
    """
    q, k, v = (leaf(1, 1, 3, 4) for _ in range(3))
    with trace() as t:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    scores = (q @ k.transpose(0, 1, 3, 2) * 0.5).numpy()
    np.testing.assert_allclose(t["scores"], scores)
    s = Tensor(scores, requires_grad=True)
    (F.softmax(s) @ v).sum().backward()
    np.testing.assert_allclose(t["grad.scores"], s.grad, atol=1e-12)
    p = Tensor(F.softmax(s).numpy(), requires_grad=True)
    (p @ v).sum().backward()
    np.testing.assert_allclose(t["grad.pattern"], p.grad, atol=1e-12)


def test_trace_is_off_after_an_error():
    with pytest.raises(ZeroDivisionError), trace() as t:
        _ = 1 / 0
    gpt()(IDS)
    assert not list(t)


# --- waiting for the device


@pytest.mark.parametrize("variant", [*VARIANTS, "q=k-v+"])
@pytest.mark.parametrize(
    ("build", "kwargs"),
    [
        (gpt, {"position": "rope", "dropout": 0.1}),
        (gpt, {}),
        (tagger, {"hide_self": True}),
        (tagger, {"protocol": "2023"}),
    ],
    ids=["gpt, rope", "gpt", "tagger 2026", "tagger 2023"],
)
def test_one_wait_per_training_step(build, kwargs, variant):
    with backends.use_backend("strict"):
        model = build(variant, **kwargs)
        optimizer = mq.AdamW(model.parameters())
        train_step(model, optimizer, IDS, IDS)
        some = np.where(IDS == 2, -100, IDS)
        with strict.count_syncs() as syncs:
            train_step(model, optimizer, IDS, some)
            assert syncs() == 1


def test_numpy_and_strict_agree():
    """Same seed, same loss and gradients on both: the strict backend runs the GPU's code."""
    for build in (gpt, tagger):
        results = []
        for name in ("numpy", "strict"):
            with backends.use_backend(name):
                results.append(gradients(build("q=k=v+", dtype="float64")))
        for name, g in results[0].items():
            np.testing.assert_allclose(g, results[1][name], atol=1e-12, err_msg=name)


# --- modules and state


def test_state_dict_round_trip(backend):
    model, other = gpt("gqa-2", seed=1), gpt("gqa-2", seed=2)
    state = model.state_dict()
    assert all(isinstance(a, np.ndarray) for a in state.values())
    assert list(state) == [name for name, _ in model.named_parameters()]
    other.load_state_dict(state)
    np.testing.assert_array_equal(host(model(IDS)), host(other(IDS)))
    state["ln_f.bias"] += 1  # a copy: the models do not notice
    assert not host(model.ln_f.bias.data).any()
    assert model.n_params == sum(a.size for a in state.values())
    optimizer = optim.SGD(other.parameters())
    other.load_state_dict(state)  # into the optimiser's buffer, which stays the one in use
    assert float(host(optimizer.data).sum()) == pytest.approx(
        sum(float(a.sum()) for a in state.values()), abs=1e-3
    )


def test_state_names():
    names = set(gpt().state_dict())
    block = {f"{part}.{kind}" for part in ("ln_1", "attn.wq", "attn.wk", "attn.wv", "attn.wo", "ln_2", "mlp.fc", "mlp.proj")
             for kind in ("weight", "bias")}  # fmt: skip
    assert names == {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"} | {
        f"blocks.{i}.{n}" for i in (0, 1) for n in block
    }
    without = {
        v: {n.split(".")[3] for n in set(gpt(v).state_dict()) if ".attn." in n} for v in VARIANTS
    }
    assert without == {
        "qkv": {"wq", "wk", "wv", "wo"}, "q=k-v": {"wk", "wv", "wo"}, "q-k=v": {"wq", "wk", "wo"}, "q=k=v": {"wk", "wo"},
        "q=k=v+": {"wk", "wo", "plus"}, "gqa-2": {"wq", "wk", "wv", "wo"}, "q-mqa": {"wq", "wk", "wo"},
    }  # fmt: skip
    assert "wpe.weight" not in gpt(position="rope").state_dict()


def test_load_state_dict_names_every_fault_and_changes_nothing():
    model = gpt()
    state, before = model.state_dict(), model.state_dict()
    state["wte.weight"] = state["wte.weight"].T + 1
    state["blocks.0.attn.wq.weight"] += 1
    state["typo"] = state.pop("ln_f.bias")
    with pytest.raises(UsageError) as caught:
        model.load_state_dict(state)
    for words in ("ln_f.bias is missing", "typo is unknown", "wte.weight is (16, 5), not (5, 16)"):
        assert words in str(caught.value)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_train_and_eval_reach_every_module():
    model = tagger(protocol="2023")
    modules, stack = [], [model]
    while stack:
        modules.append(stack.pop())
        stack += [child for _, child in modules[-1].children()]
    drops = [m for m in modules if isinstance(m, nn.Dropout)]
    assert len(drops) == 2 * 3 + 1
    assert model.train(7) is model
    assert all(m.training for m in modules)
    assert {d.step for d in drops} == {7}
    assert not any(m.training for m in [model.eval(), *modules])
    assert len({d.name for d in drops}) == len(drops)


# --- randomness keyed by name and step


@pytest.mark.parametrize("build", [gpt, tagger], ids=["gpt", "tagger"])
def test_variants_share_the_start_of_what_they_share(build):
    base = build("qkv").state_dict()
    for variant in VARIANTS[1:]:
        shared = 0
        for name, array in build(variant).state_dict().items():
            if name in base and base[name].shape == array.shape:
                np.testing.assert_array_equal(array, base[name], err_msg=name)
                shared += 1
        assert shared >= len(base) - 8
    other = build("qkv", seed=1).state_dict()
    assert all(not np.array_equal(other[n], a) for n, a in base.items() if np.ptp(a))


def test_names_seeds_and_schemes_of_the_start():
    init = nn.Init(3)
    assert (init / "a" / "b").name == "a.b"
    a, b = (init / "a").weight(64, 64), (init / "b").weight(64, 64)
    assert not np.allclose(a.data, b.data)
    np.testing.assert_array_equal(a.data, (nn.Init(3) / "a").weight(64, 64).data)
    assert a.data.std() == pytest.approx(0.02, rel=0.05)
    uniform = nn.Init(3, "float64", "uniform", "u")
    assert 0.24 < np.abs(uniform.weight(16, 64).data).max() <= 0.25
    assert 0.2 < np.abs(uniform.bias(16, 64).data).max() <= 0.25
    xavier = init.using("xavier") / "x"
    bound = math.sqrt(6 / (64 + 192))
    assert 0.98 * bound < np.abs(xavier.weight(64, 64, fused=192).data).max() <= bound
    assert not xavier.bias(64, 64).data.any()
    assert a.dtype == "float32"
    assert uniform.weight(2, 2).dtype == "float64"
    assert a.requires_grad


def test_dropout_depends_on_seed_name_and_step_alone(backend):
    def mask(seed=0, name="a", step=0, rate=0.5, calls=1):
        module = nn.Dropout(rate, nn.Init(seed, name=name)).train(step)
        return [host(module(ones(40))) for _ in range(calls)][-1]

    first = mask()
    assert set(np.unique(first)) == {0, 2}
    np.testing.assert_array_equal(first, mask(calls=3))  # not on how often it was called
    for other in (mask(seed=1), mask(name="b"), mask(step=1)):
        assert not np.array_equal(first, other)
    np.testing.assert_array_equal(mask(rate=0.0), np.ones(40))
    x = ones(3)
    assert nn.Dropout(0.9).eval()(x) is x
    assert np.mean(mask(rate=0.2) > 0) == pytest.approx(0.8, abs=0.2)


# --- optimisers and schedules


def by_hand(kind, p, grads, lr=0.1, momentum=0.9, betas=(0.8, 0.95), eps=1e-3, decay=0.1):
    """One parameter moved by the textbook's formulas, an update a line."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if kind == "SGD":
            m = momentum * m + g
            p = p - lr * m
            continue
        if kind == "AdamW" and p.ndim >= 2:
            p = p - lr * decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


OPTIMIZERS = {
    "SGD": lambda ps: optim.SGD(ps, 0.1, momentum=0.9),
    "Adam": lambda ps: optim.Adam(ps, 0.1, (0.8, 0.95), 1e-3),
    "AdamW": lambda ps: optim.AdamW(ps, 0.1, (0.8, 0.95), 1e-3, 0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimisers_follow_their_formulas(backend, rng, kind):
    """Vectors and a scalar among matrices, given in mixed order; and a state carried over to
    another optimiser.
    """
    starts = [rng.standard_normal(shape) for shape in ((3,), (2, 3), (), (4, 2), (1,))]
    grads = [[rng.standard_normal(s.shape) for s in starts] for _ in range(5)]
    parameters = [nn.Parameter(backends.upload(s.copy())) for s in starts]
    optimizer = OPTIMIZERS[kind](parameters)
    for step, gs in enumerate(grads):
        if step == 3:
            state, optimizer = optimizer.state_dict(), OPTIMIZERS[kind](parameters)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        for p, g in zip(parameters, gs, strict=True):
            p.backward(backends.upload(g))
        optimizer.step()
        for p, g in zip(parameters, gs, strict=True):
            np.testing.assert_array_equal(host(p.grad), g)  # a step leaves the gradients alone
    assert optimizer.steps == 5
    for i, (p, start) in enumerate(zip(parameters, starts, strict=True)):
        np.testing.assert_allclose(
            host(p), by_hand(kind, start, [gs[i] for gs in grads]), rtol=1e-12
        )
        assert p.shape == start.shape


def test_a_parameter_without_gradient_counts_as_zero():
    moved, still = nn.Parameter(np.ones(2)), nn.Parameter(np.ones((2, 2)))
    optimizer = optim.AdamW([moved, still], lr=0.1, weight_decay=0.5)
    moved.backward(np.ones(2))
    optimizer.step()
    np.testing.assert_allclose(moved.data, 0.9, rtol=1e-6)
    np.testing.assert_allclose(still.data, 0.95)


def test_optimiser_errors():
    with pytest.raises(UsageError, match="one dtype"):
        optim.Adam([nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2, np.float32))])
    with pytest.raises(UsageError, match="parameters"):
        optim.Adam([])
    small, large = optim.Adam([nn.Parameter(np.ones(2))]), optim.Adam([nn.Parameter(np.ones(3))])
    for state in (large.state_dict(), {"steps": 1}):
        with pytest.raises(UsageError, match="does not fit"):
            small.load_state_dict(state)


@pytest.mark.parametrize("max_norm", [0.5, 13.0, 100.0])
def test_clipping(backend, max_norm):
    a, b, without = (
        nn.Parameter(backends.upload(np.zeros(shape))) for shape in ((2, 2), (1,), (3,))
    )
    optimizer = optim.SGD([a, b, without], lr=1.0)
    a.backward(backends.upload(np.array([[3.0, 0], [0, 4]])))
    b.backward(backends.upload(np.array([12.0])))
    norm = optimizer.step(max_norm)
    assert float(host(norm)) == pytest.approx(13)
    scale = min(1, max_norm / (13 + 1e-6))
    np.testing.assert_allclose(host(a.data), -scale * np.array([[3, 0], [0, 4]]))
    np.testing.assert_allclose(host(b.data), [-scale * 12])
    np.testing.assert_array_equal(
        host(b.grad), [12]
    )  # what a parameter holds is not what it moves by
    assert not host(without.data).any()


@pytest.mark.parametrize("bound", [0, -1.0, math.nan])
def test_a_bound_that_is_none(bound):
    optimizer = optim.SGD([nn.Parameter(np.ones(2))])
    with pytest.raises(UsageError, match="positive"):
        optimizer.step(bound)
    assert optimizer.steps == 0


def test_schedules():
    assert {optim.constant(0.3)(step) for step in (0, 10, 1000)} == {0.3}
    new = optim.warmup_cosine(1e-3, 7, 158)  # protocol 2026: (step + 1) / 7, then a cosine to 0
    for s in range(7):
        assert new(s) == pytest.approx(1e-3 * (s + 1) / 7)
    for s in (7, 20, 157):
        assert new(s) == pytest.approx(1e-3 * (1 + math.cos(math.pi * (s - 7) / 151)) / 2)
    assert new(158) == new(500) == 0
    old = optim.warmup_cosine(
        1e-3, 5, 780, restart=False
    )  # protocol 2023: step / 5 times a cosine over all steps
    assert old(0) == 0
    for s in (1, 4, 5, 390, 779):
        assert old(s) == pytest.approx(1e-3 * min(1, s / 5) * (1 + math.cos(math.pi * s / 780)) / 2)
    floor = optim.warmup_cosine(1.0, 2, 10, floor=0.1)
    assert floor(10) == floor(50) == pytest.approx(0.1)
    assert floor(6) == pytest.approx(0.55)
    assert optim.warmup_cosine(1.0, 0, 10)(0) == 1.0
