"""Small models for the tests, with parameters large enough that every path through them matters."""

import numpy as np

from minqkv import backend
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig
from minqkv.runtime.rng import stream
from minqkv.tensor import Tensor

TEN = (
    "qkv",
    "q=k-v",
    "q-k=v",
    "q=k=v",
    "q=k-v+",
    "q=k=v+",
    "gqa-2",
    "mqa",
    "q-gqa-2",
    "q-mqa",
)  # with four heads
SMALL = {
    "vocab_size": 11,
    "block_size": 12,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "dtype": "float64",
}


def gpt(variant, **changes):
    """A decoder of four heads, in float64 unless asked otherwise, scrambled."""
    return scramble(GPT(GPTConfig(variant=variant, **SMALL | {"d_ff": 24} | changes)))


def tagger(variant, **changes):
    """An encoder like it."""
    return scramble(Tagger(TaggerConfig(variant=variant, **SMALL | changes)))


def scramble(module, std=0.4):
    """Every parameter normal with this deviation, norms around 1: a fresh model's attention is too
    even to tell a mistake.
    """
    for name, p in module.named_parameters():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        p.data[...] = backend.upload(
            centre + std * stream(7, name).standard_normal(p.shape), p.dtype
        )
    return module.eval()


def host(x):
    """A Tensor or an array of any backend as a NumPy array of its own."""
    return np.array(backend.to_host(x.data if isinstance(x, Tensor) else x))
