"""PyTorch in float64 as the judge, to 1e-10: each fused operation, every variant under every
position scheme inside a whole GPT, the Tagger in both protocols, forward and every gradient; then
ten optimiser steps, and clipping."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as tF  # noqa: E402
import torch_twin as twin  # noqa: E402
from toys import DESIGNS, EVERY, POSITIONS  # noqa: E402

from minqkv import GPT, GPTConfig, Tagger, TaggerConfig, Tensor, optim  # noqa: E402
from minqkv import functional as F  # noqa: E402
from minqkv.attention import causal_mask, rope_table  # noqa: E402
from minqkv.nn import Parameter  # noqa: E402
from minqkv.train import train_step  # noqa: E402

torch.set_num_threads(1)
IDS = np.array([[0, 4, 4, 2, 6], [6, 0, 1, 1, 3]])
CAUSAL = np.tril(np.ones((3, 3), bool))
WINDOW = causal_mask(np.arange(3), np.arange(3), window=2)
APART = causal_mask(np.array([[0, 1, 2], [-1, 0, 1]]), np.arange(3), window=2)  # (B, 1, T, T)


def close(mine, theirs, name=""):
    np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-10, atol=1e-10, err_msg=name)


def grouped(q, k, v, **kwargs):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return tF.scaled_dot_product_attention(q, k, v, **kwargs)


def attend_plus(q, k, v, t, b):
    return (
        (t * 0.5 * q @ k.transpose(-1, -2) + b).masked_fill(~torch.tensor(CAUSAL), -torch.inf)
    ).softmax(-1) @ v


def sdpa(*args, **kwargs):
    return F.scaled_dot_product_attention(*args, **kwargs)


QKV = [(2, 4, 3, 4)] * 3
FUSED = {
    "linear": (F.linear, lambda x, w, b: tF.linear(x, w.T, b), [(2, 3, 4), (4, 5), (5,)]),
    "linear, no bias": (F.linear, lambda x, w: tF.linear(x, w.T), [(2, 3, 4), (4, 5)]),
    "embedding": (lambda w: F.embedding(IDS, w), lambda w: tF.embedding(torch.tensor(IDS), w),
        [(7, 3)]),
    "layer_norm": (F.layer_norm, lambda x, w, b: tF.layer_norm(x, (6,), w, b),
        [(2, 3, 6), (6,), (6,)]),
    "rms_norm": (F.rms_norm, lambda x: tF.rms_norm(x, (6,), eps=1e-6), [(2, 3, 6)]),
    "relu": (F.relu, tF.relu, [(3, 4)]),
    "gelu": (F.gelu, lambda x: tF.gelu(x, approximate="tanh"), [(30, 4)]),
    "softmax": (F.softmax, lambda x: x.softmax(-1), [(2, 3, 4)]),
    "rotate": (lambda x: F.rotate(x, *rope_table(5, 6, "float64")), twin.turn, [(2, 3, 5, 6)]),
    "split_heads": (lambda x: F.split_heads(x, 3),
        lambda x: x.unflatten(-1, (3, -1)).transpose(1, 2), [(2, 5, 6)]),
    "merge_heads": (F.merge_heads, lambda x: x.transpose(1, 2).flatten(2), [(2, 3, 5, 2)]),
    "attention": (sdpa, grouped, QKV),
    "attention, causal": (lambda *x: sdpa(*x, CAUSAL), lambda *x: grouped(*x, is_causal=True), QKV),
    "attention, groups": (lambda *x: sdpa(*x, CAUSAL), lambda *x: grouped(*x, is_causal=True),
        [QKV[0], *[(2, 2, 3, 4)] * 2]),
    "attention, warm": (sdpa, grouped, [(2, 4, 1, 4), (2, 1, 6, 4), (2, 1, 6, 4)]),
    "attention, wide values": (sdpa, grouped, [(2, 4, 3, 4), (2, 2, 6, 4), (2, 2, 6, 7)]),
    "attention, thin keys": (lambda *x: sdpa(*x, CAUSAL), lambda *x: grouped(*x, is_causal=True),
        [(2, 4, 3, 2), (2, 4, 3, 2), (2, 4, 3, 5)]),
    "attention, window": (lambda *x: sdpa(*x, WINDOW),
        lambda *x: grouped(*x, attn_mask=torch.tensor(WINDOW)), QKV),
    "attention, rows differ": (lambda *x: sdpa(*x, APART),
        lambda *x: grouped(*x, attn_mask=torch.tensor(APART)), QKV),
    "attention, scale": (lambda *x: sdpa(*x, scale=0.3), lambda *x: grouped(*x, scale=0.3), QKV),
    "attention, one for all": (lambda x: sdpa(x, x, x), lambda x: grouped(x, x, x), QKV[:1]),
    "attention, plus": (lambda q, k, v, t, b: sdpa(q, k, v, CAUSAL, temperature=t, bias=b),
        attend_plus, [*QKV, (), (3,)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, IDS), lambda x: twin.loss(x, torch.tensor(IDS)),
        [(2, 5, 7)]),
    "cross_entropy, ignored": (
        lambda x: F.cross_entropy(x, np.where(IDS == 0, -100, IDS)),
        lambda x: twin.loss(x, torch.tensor(np.where(IDS == 0, -100, IDS))),
        [(2, 5, 7)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_operations(rng, name):
    mine, theirs, shapes = FUSED[name]
    arrays = [np.asarray(rng.standard_normal(shape) * 2) for shape in shapes]
    xs = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = mine(*xs), theirs(*ts)
    close(out.data, expected)
    g = rng.standard_normal(out.shape)
    out.backward(np.asarray(g))
    expected.backward(torch.tensor(g))
    for x, t in zip(xs, ts, strict=True):
        close(x.grad, t.grad)


def loud(model, rng):
    """Random parameters, all of them: fresh biases are zero and fresh weights small, and hide
    mistakes.
    """
    model.load_state_dict(
        {name: a + 0.3 * rng.standard_normal(a.shape) for name, a in model.state_dict().items()}
    )
    return model.eval()


def compare(model, forward, ids, targets):
    """Logits, loss and every gradient of `model` against `forward(parameters, ids)`."""
    p = twin.parameters(model.state_dict())
    logits, expected = model(ids), forward(p, torch.tensor(ids))
    close(logits.data, expected, "logits")
    loss, expected = F.cross_entropy(logits, targets), twin.loss(expected, torch.tensor(targets))
    close(loss.data, expected, "loss")
    loss.backward()
    expected.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, p[name].grad, name)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS, ids="-".join)
@pytest.mark.parametrize("variant", EVERY)
def test_gpt(rng, variant, position, rope_value):
    shape = {"vocab_size": 7, "block_size": 6, "n_layer": 2, "n_head": 4, "n_embd": 16, "d_ff": 24}
    model = loud(
        GPT(
            GPTConfig(
                **shape, variant=variant, position=position, rope_value=rope_value, dtype="float64"
            )
        ),
        rng,
    )
    compare(
        model,
        lambda p, ids: twin.gpt(p, ids, variant, 4, position, rope_value),
        IDS,
        np.where(IDS == 6, -100, IDS[:, ::-1]),
    )


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS, ids="-".join)
@pytest.mark.parametrize("name", [name for name in DESIGNS if name not in EVERY])
def test_what_the_name_of_a_variant_does_not_say(rng, name, position, rope_value):
    """Heads of a width of their own, thin keys, a variant for each layer, no MLP, and two ids for
    each token.
    """
    shape = {"vocab_size": 7, "block_size": 6, "n_layer": 2, "n_head": 4, "n_embd": 16, "d_ff": 24}
    shape |= {"position": position, "rope_value": rope_value, "dtype": "float64"}
    model = loud(GPT(GPTConfig(**shape | DESIGNS[name])), rng)
    pairs = np.stack([IDS, IDS[::-1]], axis=2)  # (B, T, 2)
    for ids in (IDS, pairs):
        model.zero_grad()
        compare(
            model,
            lambda p, ids: twin.gpt(p, ids, DESIGNS[name]["variant"], 4, position, rope_value),
            ids,
            np.where(IDS == 6, -100, IDS[:, ::-1]),
        )


@pytest.mark.parametrize("head_dim", [2, 6])
@pytest.mark.parametrize("variant", EVERY)
def test_every_variant_with_wider_and_narrower_heads(rng, variant, head_dim):
    model = loud(
        GPT(GPTConfig(7, 6, 1, 4, 16, variant=variant, head_dim=head_dim, dtype="float64")), rng
    )
    compare(model, lambda p, ids: twin.gpt(p, ids, variant, 4), IDS, IDS)


@pytest.mark.parametrize("sinks", [0, 1])
@pytest.mark.parametrize(("position", "rope_value"), POSITIONS, ids="-".join)
def test_gpt_with_a_window(rng, position, rope_value, sinks):
    where = {"position": position, "rope_value": rope_value}
    cfg = GPTConfig(7, 6, 2, 4, 16, "q=k=v+", **where, window=2, sinks=sinks, dtype="float64")
    window = {"window": 2, "sinks": sinks}
    compare(
        loud(GPT(cfg), rng),
        lambda p, ids: twin.gpt(p, ids, "q=k=v+", 4, position, rope_value, **window),
        IDS,
        IDS,
    )


def test_gpt_without_biases(rng):
    model = loud(GPT(GPTConfig(7, 5, 2, 4, 16, bias=False, dtype="float64")), rng)
    assert not any(name.endswith("bias") and "ln" not in name for name in model.state_dict())
    compare(model, lambda p, ids: twin.gpt(p, ids, "qkv", 4), IDS, IDS)


@pytest.mark.parametrize("hide_self", [False, True], ids=["all seen", "self hidden"])
@pytest.mark.parametrize("protocol", ["2023", "2026"])
@pytest.mark.parametrize("variant", EVERY)
def test_tagger(rng, variant, protocol, hide_self):
    config = TaggerConfig(
        7,
        6,
        2,
        4,
        16,
        variant=variant,
        protocol=protocol,
        hide_self=hide_self,
        n_class=8,
        dtype="float64",
    )
    model = loud(Tagger(config), rng)
    compare(
        model,
        lambda p, ids: twin.tagger(p, ids, variant, 4, protocol, hide_self),
        IDS,
        IDS[:, ::-1] + 1,
    )


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "q=k=v+", "q-gqa-2"])
def test_ten_steps_track_pytorch(rng, variant, kind):
    """From the same start, losses to 1e-9, gradients clipped, and the parameters at the end."""
    model = GPT(GPTConfig(7, 5, 1, 4, 16, variant=variant, dtype="float64"))
    p = twin.parameters(model.state_dict())
    batches = [(rng.integers(0, 7, (4, 5)), rng.integers(0, 7, (4, 5))) for _ in range(10)]
    mine, theirs = {
        "AdamW": (
            lambda ps: optim.AdamW(ps, 1e-2, weight_decay=0.1),
            lambda ps: twin.adamw(ps, 1e-2, 0.1),
        ),
        "Adam": (lambda ps: optim.Adam(ps, 1e-2), lambda ps: torch.optim.Adam(ps, lr=1e-2)),
        "SGD": (
            lambda ps: optim.SGD(ps, 0.1, 0.9),
            lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        ),
    }[kind]
    expected = twin.train(p, lambda p, ids: twin.gpt(p, ids, variant, 4), batches, theirs, clip=0.5)
    optimizer = mine(model.parameters())
    losses = [train_step(model, optimizer, x, y, clip=0.5) for x, y in batches]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    assert losses[-1] != losses[0]
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.data, p[name].detach().numpy(), rtol=0, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
def test_clip_grad_norm(rng, max_norm):
    arrays = [rng.standard_normal(shape) for shape in ((3, 4), (5,), (2, 2, 2))]
    mine = [Parameter(np.zeros(a.shape)) for a in arrays]
    optimizer = optim.SGD(mine, lr=1.0)
    theirs = [torch.zeros(a.shape, dtype=torch.float64, requires_grad=True) for a in arrays]
    for x, t, a in zip(mine, theirs, arrays, strict=True):
        x.backward(a)
        t.grad = torch.tensor(a)
    close(optimizer.step(max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for x, t in zip(mine, theirs, strict=True):
        close(-x.data, t.grad)  # a step of rate 1 from zero
