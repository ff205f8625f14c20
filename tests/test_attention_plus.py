"""The paper's "+" as written and what the softmax leaves of it are one function, with one set of
gradients.
"""

import numpy as np
import pytest
from toys import host, scramble, tagger

from minqkv import backend as backends
from minqkv import reference, tensor
from minqkv.attention import Attention, causal_mask, sinusoids
from minqkv.functional import split_heads
from minqkv.models import GPTConfig, Tagger, TaggerConfig
from minqkv.nn import Init
from minqkv.optim import Adam
from minqkv.runtime.errors import UsageError
from minqkv.tensor import Tensor, no_grad

T, D, H = 7, 16, 4
PLUS = ("q=k-v+", "q=k=v+")
LAYOUTS = {
    "2023": (6, 4, 6),
    "2026": (5, 5, 5),
}  # row channels, column channels, width of the frequencies


def attention(spec, channels=(5, 5, 5)):
    return scramble(Attention(spec, D, H, T, Init(dtype="float64"), plus_channels=channels))


def literal(attn, x, b, channels, mask=None):
    """The forward of `attn` with the "+" as a convolution over the scores and all m channels, in
    small operations.
    """
    rows, columns, width = channels
    k = split_heads(attn.wk(x), H)  # (B, H, T, d_h)
    v = split_heads(attn.wv(x), H) if attn.spec.streams == 2 else k
    scores = k @ k.transpose(0, 1, 3, 2) * (D // H) ** -0.5  # (B, H, T, T)
    row, column = (backends.upload(sinusoids(T, n, width, "float64")) for n in (rows, columns))
    scores = reference.literal_plus(scores, attn.plus.weight, b, row, column)
    scores = scores if mask is None else tensor.where(mask, scores, -np.inf)
    return attn.wo((reference.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape))


def inputs(rng, causal):
    x = Tensor(backends.upload(rng.standard_normal((3, T, D))))
    steps = backends.xp.arange(T)
    return x, causal_mask(steps, steps) if causal else None


def close(a, b, atol=1e-11):
    np.testing.assert_allclose(host(a), host(b), rtol=0, atol=atol)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])
@pytest.mark.parametrize("channels", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("spec", PLUS)
def test_literal_is_reduced(spec, channels, causal, backend, rng):
    attn = attention(spec, channels)
    x, mask = inputs(rng, causal)
    b = Tensor(backends.upload(np.array(0.7)), requires_grad=True)
    cotangent = backends.upload(rng.standard_normal(x.shape))
    gradients = []
    for y in (attn(x, mask), literal(attn, x, b, channels, mask)):
        attn.zero_grad()
        y.backward(cotangent)
        gradients.append({name: host(p.grad) for name, p in attn.named_parameters()})
        close(y, attn(x, mask))
    reduced, full = gradients
    assert reduced.keys() == full.keys()
    for name in reduced:
        close(reduced[name], full[name])
    w = full["plus.weight"]
    rows = channels[0]
    assert (
        np.ptp(w[:rows]) < 1e-11
    )  # the row half cancels: all its weights move s = Σw and nothing else
    assert np.ptp(w[rows:]) > 1e-3
    assert abs(w[0]) > 1e-3
    assert np.ptp(reduced["plus.weight"][:rows]) == 0
    assert abs(host(b.grad)) < 1e-11


@pytest.mark.parametrize("channels", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("spec", PLUS)
def test_ten_steps_of_adam_agree(spec, channels, rng):
    """With b left where it is: Adam would turn the rounding in its gradient into steps."""
    x, _ = inputs(rng, False)
    target = Tensor(rng.standard_normal(x.shape))
    twins = attention(spec, channels), attention(spec, channels)
    start = twins[0].state_dict()
    b = Tensor(0.3, dtype="float64")
    forwards = (lambda: twins[0](x)), (lambda: literal(twins[1], x, b, channels))
    optimizers = [Adam(twin.parameters(), lr=0.01) for twin in twins]
    for _ in range(10):
        losses = []
        for forward, optimizer in zip(forwards, optimizers, strict=True):
            optimizer.zero_grad()
            error = forward() - target
            loss = (error * error).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 1e-10
    for name, value in twins[0].state_dict().items():
        close(value, twins[1].state_dict()[name], atol=1e-8)
    moved = twins[0].plus.weight.data - start["plus.weight"]
    assert abs(moved.sum()) > 0.03  # ten weights move s together, ten times as fast as one would


@pytest.mark.parametrize("sharing", ["q=k-v", "q=k=v"])
@no_grad()
def test_ablations_are_halves_of_the_whole(sharing, backend, rng):
    """`temperature` is "+" without its columns; `bias` is "+" with weights that sum to one."""
    x, mask = inputs(rng, True)
    full, temperature, bias, none = (
        attention(sharing + plus) for plus in ("+", "+temperature", "+bias", "")
    )
    weight = host(full.plus.weight)
    assert np.array_equal(weight, host(bias.plus.weight))
    assert [host(a) is not None and a.size for a in full.plus(slice(0, T))] == [1, T]
    assert [a is None for a in temperature.plus(slice(0, T))] == [False, True]
    assert [a is None for a in bias.plus(slice(0, T))] == [True, False]
    whole = host(full(x, mask))
    for half in (temperature, bias, none):
        assert np.abs(host(half(x, mask)) - whole).max() > 1e-2

    summing_to_one = weight.copy()
    summing_to_one[0] += 1 - weight.sum()  # a row weight: it counts for s alone
    for half in (full, bias):
        half.plus.weight.data[...] = backends.upload(summing_to_one)
    close(full(x, mask), bias(x, mask))

    full.plus.weight.data[...] = backends.upload(weight)
    full.plus.columns.data[...] = 0.0
    close(full(x, mask), temperature(x, mask))
    temperature.plus.weight.data[...] = 1 / weight.size
    close(temperature(x, mask), none(x, mask))


@pytest.mark.parametrize("start", [-1.0, 1.0, 0.5])
def test_plus_start_sets_the_temperature(start):
    model = Tagger(
        TaggerConfig(10, 8, 2, 2, 8, variant="q=k=v+", plus_start=start, dtype="float64")
    )
    for block in model.blocks:
        np.testing.assert_allclose(host(block.attn.plus.weight), start / 10)
        assert block.attn.plus(slice(0, 8))[0].item() == pytest.approx(start)


@pytest.mark.parametrize("config", [GPTConfig, TaggerConfig])
@pytest.mark.parametrize("variant", ["qkv", "q=k=v", "mqa"])
def test_plus_start_needs_a_plus(config, variant):
    with pytest.raises(UsageError, match="plus_start"):
        config(10, 8, 1, 2, 8, variant=variant, plus_start=-1.0)


def test_the_start_differs_between_layers_and_protocols():
    """2026: w ~ 0.02·N, so s starts near 0. 2023: uniform in ±√(6/(m+1))."""
    weights = {}
    for protocol in LAYOUTS:
        model = Tagger(
            TaggerConfig(10, 8, 40, 1, 2, variant="q=k-v+", protocol=protocol, dtype="float64")
        )
        weights[protocol] = np.stack(
            [host(block.attn.plus.weight) for block in model.blocks]
        )  # (40, 10)
        assert len(np.unique(weights[protocol])) == 400
    assert weights["2026"].std() == pytest.approx(0.02, rel=0.15)
    bound = (6 / 11) ** 0.5
    assert 0.97 * bound < np.abs(weights["2023"]).max() < bound
    assert weights["2023"].std() == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("protocol", "rows", "columns", "width"), [("2023", 6, 4, 6), ("2026", 5, 5, 5)]
)
def test_channel_layout(protocol, rows, columns, width, backend):
    model = tagger("q=k-v+", protocol=protocol)
    plus = model.blocks[1].attn.plus
    assert model.config.position == {"2023": "sinusoidal", "2026": "learned"}[protocol]
    j = np.arange(12)
    by_hand = [
        (np.cos if c % 2 else np.sin)(j * 10000.0 ** (-2 * (c // 2) / width))
        for c in range(columns)
    ]
    close(plus.columns, np.stack(by_hand, axis=1), atol=1e-15)
    w = np.arange(1.0, 11.0)
    plus.weight.data[...] = backends.upload(w)
    temperature, bias = plus(slice(0, 9))
    assert temperature.item() == 55
    close(bias, host(plus.columns)[:9] @ w[rows:])
    assert not plus.columns.requires_grad
