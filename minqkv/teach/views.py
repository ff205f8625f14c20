"""The views of `minqkv trace`: one attention call, a decode, a backward, on any variant, as events.

A small untrained GPT of one layer. The arrays shown are those that its real forward, decode and
backward computed.
"""

import math

import numpy as np

from ..functional import cross_entropy
from ..models import GPT, GPTConfig
from ..runtime.errors import UsageError
from ..runtime.shown import counted
from ..runtime.tracing import trace
from ..tensor import Tensor
from ..variants import VariantSpec
from .events import cache_step, heat, memory, say, show

_AXES = {
    "q": "queries",
    "k": "keys",
    "v": "values",
    "z": "mixed values, a row per query",
    "out": "output of the layer",
    "scores": "q kᵀ, scaled, before the mask",
    "plus": "scores with the bias added",
    "pattern": "weights, a row per query",
    "cache.k": "stored keys",
    "cache.v": "stored values",
    "cache.r": "what turns, stored once for all heads",
}


def build(variant, position, rope_value, n_head, n_embd, tokens, seed):
    """(model, ids (1, T)) for these tokens. Weights are drawn larger than for training, so that
    patterns are not flat.
    """
    if not tokens or min(tokens) < 0:
        raise UsageError("tokens are whole numbers from 0", "for instance: --tokens 3,1,4,1")
    config = GPTConfig(
        max(tokens) + 1, max(8, len(tokens)), 1, n_head, n_embd, variant, position, rope_value
    )
    model = GPT(config, seed)
    for name, p in model.named_parameters():
        if ".attn.w" in name and name.endswith("weight"):
            p.data *= 0.7 / (0.02 * n_embd**0.5)
    return model, np.array([tokens])


def forward(model, ids, digits=3):
    """Every array of one attention call, in the order it is computed."""
    _headline(model)
    with trace() as t:
        model(ids)
    arrays = _of_layer(t)
    _draw(arrays, ids[0], digits)
    layer, spec = model.blocks[0].attn, VariantSpec.parse(model.config.variant)
    if spec.streams == 1:
        say(f"one projection, {layer.wk.weight.size} numbers, makes keys and values")
        if np.array_equal(arrays["k"], arrays["v"]):
            say("v is k, number by number")
        elif spec.apart:
            say("v is the stored row, and so is a part of k; what turns in k is beside the row")
        else:
            say("v is the unturned k: rotary positions turn only what is compared")
    if not spec.own_query:
        scores = arrays.get("plus", arrays["scores"])
        difference = abs(scores - scores.swapaxes(-1, -2)).max()
        say(f"Q = K: scores before the mask and their transpose differ by {difference:.1e} at most")


def _headline(model):
    spec, n_head = VariantSpec.parse(model.config.variant), model.config.n_head
    heads = f"{counted(n_head, 'head')}, {spec.stored_heads(n_head)} stored"
    say(f"{spec.name}: {spec.formula}, {heads}")


def _of_layer(t, prefix=""):
    """Arrays that the layer traced, by their names in it, of the batch's only row."""
    return {name.rpartition("attn.")[2]: t[name][0] for name in t if f".attn.{prefix}" in name}


def _draw(arrays, tokens, digits, first=0):
    keys = [f"{i}:{token}" for i, token in enumerate(tokens)]
    for name, array in arrays.items():
        base = name.removeprefix("grad.")
        title = f"{name}: {_AXES.get(base, base)}"
        if base != name:  # gradients are small: all in one power of ten
            what = base if base == "scores" else _AXES.get(base, base).partition(",")[0]
            array = np.asarray(array, np.float64)
            power = math.floor(math.log10(abs(array).max() or 1))
            array, title = (
                array / 10.0**power,
                f"{name}: gradient of the {what}, in units of 1e{power}",
            )
        if base in ("scores", "plus", "pattern"):
            seen = np.arange(array.shape[-1]) <= first + np.arange(array.shape[-2])[:, None]
            draw = heat if name == "pattern" else show
            rows, columns = keys[first : first + array.shape[-2]], keys[: array.shape[-1]]
            draw(title, array, rows=rows, columns=columns, mask=seen, digits=digits)
        else:
            rows = keys if array.shape[-2] == len(keys) else keys[first:]
            show(title, array, rows=rows, digits=digits)


def decode(model, ids, digits=3):
    """Token by token: what is written, what is read, which memory it is, and the bytes beside the
    formula.
    """
    _headline(model)
    cache = model.new_cache(1, ids.shape[1])
    apart = VariantSpec.parse(model.config.variant).apart and len(cache.stored[0]) == 2
    whole = model(ids).numpy()  # (1, T, V)
    for i in range(ids.shape[1]):
        with trace() as t:
            logits = model(ids[:, i : i + 1], cache=cache).numpy()  # (1, 1, V)
        cache_step(cache, model.config)
        arrays = _of_layer(t)
        streams = ("cache.k", "cache.r" if apart else "cache.v")[: len(cache.stored[0])]
        drawn = {name: arrays[name] for name in ("q", *streams, "pattern")}
        _draw(drawn, ids[0, : i + 1], digits, first=i)
        difference = abs(logits[:, 0] - whole[:, i]).max()
        say(f"largest difference to the same position without a cache: {difference:.1e}")
    rows = cache.layers[0].rows
    first, second = ("rows", "turned") if apart else ("keys", "values")
    memory(**{first: rows[0], second: rows[-1]})


def backward(model, ids, digits=3):
    """Backward: the gradient of each array of the attention call, then of each weight."""
    _headline(model)
    targets = np.roll(ids, -1, axis=1)
    with trace() as t:
        loss = cross_entropy(model(ids), targets)
        loss.backward()
    target = "the next token; for the last token, the first"
    say(f"loss {loss.item():.4f} (target: {target})")
    _draw(_of_layer(t, "grad."), ids[0], digits)
    for name, p in model.blocks[0].attn.named_parameters():
        if p.grad is not None:
            norm = float(np.sqrt((Tensor(p.grad).numpy().astype(np.float64) ** 2).sum()))
            say(f"grad of {name}, {tuple(p.shape)}: norm {norm:.3g}")


def pattern(name, model, ids):
    """(title, array (H, T, T), labels of the tokens) for a heat map of a view: the weights, the
    weights of decoding token by token, or their gradient. NaN where a key comes after its query.
    """
    T, cache = ids.shape[1], model.new_cache(1, ids.shape[1])
    rows = np.full((model.config.n_head, T, T), np.nan)
    with trace() as t:
        if name == "decode":
            for i in range(T):
                model(ids[:, i : i + 1], cache=cache)
                rows[:, i, : i + 1] = _of_layer(t)["pattern"][:, 0]
        else:
            cross_entropy(model(ids), np.roll(ids, -1, axis=1)).backward()
            found = _of_layer(t)["pattern"]
            found = _of_layer(t, "grad.")["grad.pattern"] if name == "backward" else found
            rows = np.where(np.tri(T, dtype=bool), found, np.nan)
    what = {"decode": "weights, token by token", "backward": "gradient of the weights"}
    title = f"{model.config.variant}: {what.get(name, 'attention weights')}, a row per query"
    return title, rows, [f"{i}:{token}" for i, token in enumerate(ids[0].tolist())]


VIEWS = {"forward": forward, "decode": decode, "backward": backward}
