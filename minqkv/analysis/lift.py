"""A trained qkv model, rewritten as an equivalent q-k=v model of twice the head width.

Put K and V side by side into the shared row, [K V], and let the queries be zero where V is, and the
output projection zero where K is. Scores, pattern and output equal those of qkv, and a token takes
as many bytes in the cache. So at equal bytes, K = V can represent all that qkv can. Where a q-k=v
model of that width did worse after training, training did not find what the model could represent.
"""

import math
from dataclasses import replace

import numpy as np

from ..models import GPT
from ..runtime.errors import UsageError
from ..variants import POSITIONS, layered_name


def lift(model: GPT) -> GPT:
    """A GPT with K = V in every layer that computes the same as `model`, whose K and V are
    separate. Grouped heads stay grouped. Thin keys are allowed: a row has room for them and for
    full values.

    With rotary positions, rows are stored unturned ("raw"). There pair i of a head of width D turns
    at the frequency base^(-2i/D), so pair j of a key of width d finds its frequency at i = jD/d.
    Raises UsageError where that is not a whole number, or the variant has no such twin.
    """
    cfg = model.config
    widths = {(spec.widths(cfg.head_dim)[0], cfg.head_dim) for spec in cfg.specs}
    if len(widths) > 1 or not all(_can_be_lifted(spec) for spec in cfg.specs):
        raise UsageError(f"{cfg.variant} has no twin with K = V: queries, K and V must be separate")
    ((d_qk, d_v),) = widths
    shared = [replace(spec, streams=1, key_width=None) for spec in cfg.specs]
    size = {"variant": layered_name(shared), "head_dim": d_qk + d_v, "rope_value": "raw"}
    twin, state = GPT(replace(cfg, **size)), model.state_dict()
    places = _places(d_qk, d_v, POSITIONS[cfg.position].turns)
    for i in range(cfg.n_layer):
        _lift_attention(state, f"blocks.{i}.attn.", cfg, d_qk, d_v, *places)
    twin.load_state_dict(state)
    return twin.eval()


def _can_be_lifted(spec):
    return spec.own_query and spec.streams == 2 and not spec.plus


def _places(d_qk, d_v, rope):
    """Indices of K, and of V, in a row of width d_qk + d_v."""
    width = d_qk + d_v
    keys = np.arange(d_qk)
    if rope:
        if width % d_qk:
            why = f"a row of width {width} lacks the frequencies of keys of width {d_qk}"
            raise UsageError(f"rotary positions: {why}")
        first = np.arange(d_qk // 2) * (width // d_qk)
        keys = np.concatenate([first, first + width // 2])
    return keys, np.setdiff1d(np.arange(width), keys)


def _lift_attention(state, prefix, cfg, d_qk, d_v, keys, values):
    """Replace the projections of one layer, weights (C, heads · width) and biases."""
    width = d_qk + d_v

    def spread(array, source, places):
        """(..., heads · source) -> (..., heads, width), zeros except for `places`."""
        heads = array.reshape(*array.shape[:-1], -1, source)
        out = np.zeros((*heads.shape[:-1], width), array.dtype)
        out[..., places] = heads
        return out

    for name in ("weight", "bias") if cfg.bias else ("weight",):
        wq, wk, wv = (state.pop(f"{prefix}{part}.{name}") for part in ("wq", "wk", "wv"))
        q = spread(wq, d_qk, keys) * math.sqrt(width / d_qk)  # the twin divides by √width
        row = spread(wk, d_qk, keys) + spread(wv, d_v, values)
        state[f"{prefix}wq.{name}"] = q.reshape(*q.shape[:-2], -1)
        state[f"{prefix}wk.{name}"] = row.reshape(*row.shape[:-2], -1)
    out = spread(state[f"{prefix}wo.weight"].T, d_v, values)  # (C, H, width)
    state[f"{prefix}wo.weight"] = out.reshape(cfg.n_embd, -1).T  # (H · width, C)
