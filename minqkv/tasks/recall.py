"""Recall: a key is shown with a value, and asked for later. One stored row must then be an address
and a content at once, which is what K = V asks of it.

Two tasks for a decoder without an MLP, after the multi-query associative recall of Arora et al.
(2023, arXiv 2312.04927). In both, P pairs are shown, then their keys in a new order; the target at
each key is its value. Keys and values of a sequence are all different, so guessing one of the
values that were shown is right once in P times.

    pairs   k₁+v₁ k₂+v₂ ... | k₂ k₁ ...   key and value in one token: one layer can solve it
    mqar    k₁ v₁ k₂ v₂ ... | k₂ k₁ ...   one after the other: the first layer must bind neighbours
"""

from dataclasses import KW_ONLY, dataclass

import numpy as np

from ..designs.linear import LinearGPT, check_config
from ..models import GPT, GPTConfig
from ..runtime.errors import UsageError, unknown
from ..runtime.rng import stream
from ..train import IGNORE
from .base import Recipe, Task
from .rules import RECALL

SIZES = {  # defaults; d has room for all keys and values, so that only the cache is narrow
    "pairs": {"keys": 64, "n_layer": 1, "n_embd": 128, "position": "learned"},
    "mqar": {"keys": 32, "n_layer": 2, "n_embd": 64, "position": "rope"},
}
STEPS = {"pairs": 800, "mqar": 3000}
MODELS = {"softmax": GPT, "linear": LinearGPT}  # by their attention


@dataclass(frozen=True)
class Recall(Task):
    """P pairs of `keys` keys and as many values. Keys are ids 0 .. keys-1, values follow.

    `attention` is "softmax" or "linear" (designs/linear.py), the latter for Q = K = V alone.
    """

    pairs: int = 8
    keys: int | None = None
    _: KW_ONLY
    n_layer: int | None = None
    n_embd: int | None = None
    position: str | None = None
    n_head: int = 1
    d_rope: int | None = None
    attention: str = "softmax"

    sparse = True

    def __post_init__(self):
        if self.name not in RECALL:
            raise unknown("task", self.name, RECALL)
        if self.attention not in MODELS:
            raise unknown("attention", self.attention, MODELS)
        for field, value in SIZES[self.name].items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        super().__post_init__()
        if not 2 <= self.pairs <= self.keys:
            why = "the keys of a sequence all differ, and so do its values"
            raise UsageError(f"pairs {self.pairs} must be 2 to keys {self.keys}: {why}")

    @property
    def chance(self):
        """Guessing among all values. A model that knows which values were shown, but not whose they
        are, scores 1 / pairs.
        """
        return 1 / self.keys

    def config(self, variant):
        """A GPT without an MLP. In `pairs` a last id stands for "no value"."""
        names = ("n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value", "d_rope")
        size = {name: getattr(self, name) for name in names}
        size["vocab_size"] = 2 * self.keys + (self.name == "pairs")
        size["block_size"] = (2 if self.name == "pairs" else 3) * self.pairs
        cfg = GPTConfig(**size, variant=variant, d_ff=0)
        if self.attention == "linear":
            check_config(cfg)
        return cfg

    def model(self, variant, seed):
        """A fresh GPT with this attention."""
        return MODELS[self.attention](self.config(variant), seed)

    def recipe(self, steps=None):
        """A warm-up of a fixed number of steps: a share would change with their total."""
        steps = steps or STEPS[self.name]
        return Recipe(steps, batch=64, lr=3e-3, warmup=200, clip=1.0, watch=50)

    def examples(self, rng, n, pairs=None):
        """n inputs and targets with `pairs` pairs (P unless given)."""
        P = pairs or self.pairs
        keys = _distinct(rng, n, self.keys, P)  # (n, P)
        values = self.keys + _distinct(rng, n, self.keys, P)  # (n, P)
        order = _distinct(rng, n, P, P)  # (n, P)
        asked, answers = (np.take_along_axis(a, order, axis=1) for a in (keys, values))
        if self.name == "pairs":
            no_value = np.full((n, P), 2 * self.keys)
            shown = np.stack([keys, values], axis=2)  # (n, P, 2): two ids, summed as embeddings
            x = np.concatenate([shown, np.stack([asked, no_value], axis=2)], axis=1)  # (n, 2P, 2)
        else:
            shown = np.stack([keys, values], axis=2).reshape(n, 2 * P)  # k v k v ...
            x = np.concatenate([shown, asked], axis=1)  # (n, 3P)
        y = np.full(x.shape[:2], IGNORE)
        y[:, -P:] = answers
        return x, y

    def batch(self, seed, step, size):
        """In `mqar`, batches alternate between 2, 4, ... P pairs: short sequences are learned
        first, and help runs that are stuck at guessing.
        """
        rng = stream(seed, "data", "train", self.name, step)
        turns = [*range(2, self.pairs, 2), self.pairs]
        return self.examples(rng, size, turns[step % len(turns)] if self.name == "mqar" else None)


def _distinct(rng, n, limit, k):
    """(n, k): in each row, k different numbers below `limit`."""
    return rng.random((n, limit)).argsort(axis=1)[:, :k]
