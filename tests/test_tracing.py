"""A trace shows the arrays of the real forward and backward, and changes nothing."""

import numpy as np
import pytest
from toys import FRESH, IDS, fresh_gpt, gradients, loss_of

from minqkv import Tensor
from minqkv import functional as F
from minqkv.runtime.tracing import trace


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("variant", FRESH)
def test_trace_names(variant, position):
    model = fresh_gpt(variant, position=position)
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
    model = fresh_gpt()
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
    fresh_gpt()(IDS)
    assert not list(t)
