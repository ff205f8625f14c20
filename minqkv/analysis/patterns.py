"""Who attends to whom: the attention patterns of a model on examples, from its own forward."""

import numpy as np

from ..attention import causal_mask
from ..models import GPT
from ..nn import Module
from ..runtime.tracing import trace
from ..tensor import no_grad

LONGEST = 20  # tokens of an example that are looked at


def patterns(model: Module, x: np.ndarray) -> dict[str, np.ndarray]:
    """Name of each layer's attention -> its weights (B, H, T, S), of at most LONGEST queries and
    keys; of a decoder, NaN where a query must not look.

    A decoder reads no more than LONGEST tokens: the others come later, and change nothing.
    """
    decoder = isinstance(model, GPT)
    with no_grad(), trace() as t:
        model(x[:, :LONGEST] if decoder else x)  # (B, T, …)
    found = {}
    for name in (name for name in t if name.endswith(".pattern")):
        weights = t[name][:, :, :LONGEST, :LONGEST]  # (B, H, T, S)
        later = np.triu(np.ones(weights.shape[-2:], bool), 1) & decoder  # (T, S)
        found[name.removesuffix(".pattern")] = np.where(later, np.nan, weights)
    return found


def visible(model: Module, T: int) -> np.ndarray:
    """(T, T): which keys each of T queries of a model may see."""
    if isinstance(model, GPT):
        return causal_mask(np.arange(T), np.arange(T), model.config.window, model.config.sinks)
    hidden = getattr(getattr(model, "config", None), "hide_self", False)
    return ~np.eye(T, dtype=bool) if hidden else np.ones((T, T), bool)
