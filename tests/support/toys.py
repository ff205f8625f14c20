"""Small models for the tests: scrambled, so that every path through them matters, or fresh."""

import numpy as np

from minqkv import backend, variants
from minqkv.functional import cross_entropy
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig, ViT, ViTConfig
from minqkv.runtime.rng import stream
from minqkv.tensor import Tensor
from minqkv.variants import NAMES, variant_names

# With four heads, of which two are stored; keys of width 2 where thin.
EVERY = variant_names(2, among=NAMES)
DESIGNS = {name: {"variant": name} for name in EVERY} | {  # and what a name alone does not say
    "shared in one layer": {"variant": "qkv/q-k=v"},
    "thin keys, then one row": {"variant": "thin-2/q-mqa"},
    "wide heads": {"variant": "qkv", "head_dim": 6},
    "narrow heads": {"variant": "q-k=v", "head_dim": 2},
    "no MLP": {"variant": "q-k=v", "d_ff": 0},
    "all of it": {"variant": "thin-6/q-gqa-2", "head_dim": 4, "d_ff": 0},
}
SHIPPED = {  # designs of models that ship
    "gqa-2-thin-6": {"variant": "gqa-2-thin-6"},
    "gta-2": {"variant": "gta-2", "position": "rope"},
    "gla-2": {"variant": "gla-2", "position": "rope", "d_rope": 6},
    "mla": {"variant": "mla"},
    "mla, rope, norms": {"variant": "mla", "position": "rope", "norm": True, "rope_base": 50.0},
    "norms": {"variant": "gqa-2", "position": "rope", "norm": True},
    "norms, raw": {"variant": "q-gqa-2", "position": "rope", "norm": True, "d_rope": 2},
    "norms, unrotate": {"variant": "q-mqa", "position": "rope", "norm": True, "d_rope": 2,
                        "rope_value": "unrotate", "head_dim": 6},
    "norms, q=k=v+": {"variant": "q=k=v+", "norm": True},
    "half turns": {"variant": "qkv/gta-4", "position": "rope", "head_dim": 6, "d_rope": 4},
}  # fmt: skip
POSITIONS = [  # a scheme, and what K = V does under rotary ones
    (name, value)
    for name in variants.POSITIONS
    for value in [*variants.ROPE_VALUES][: None if name == "rope" else 1]
]
FRESH = ["qkv", "q=k-v", "q-k=v", "q=k=v", "q=k=v+", "gqa-2", "q-mqa"]  # one of each kind
# What tensor.py holds beside operations.
NOT_OPERATIONS = {"Node", "Tensor", "array_of", "grad_wanted", "make", "no_grad", "recomputed"} | {
    "unbroadcast"
}
IDS = np.array([[1, 4, 0, 2, 2], [3, 3, 1, 0, 4]])
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


def design(name, **changes):
    """A decoder like it, one of DESIGNS or SHIPPED."""
    return gpt(**(DESIGNS | SHIPPED)[name] | changes)


def tagger(variant, **changes):
    """An encoder like it."""
    return scramble(Tagger(TaggerConfig(variant=variant, **SMALL | changes)))


def vit(variant, **changes):
    """An encoder of up to five vectors of six numbers, likewise: of three classes, unless it
    chooses one of the vectors.
    """
    size = {"n_in": 6, "n_token": 5, "n_layer": 2, "n_head": 4, "n_embd": 16}
    size["n_class"] = 1 if changes.get("pool") == "choice" else 3
    return scramble(ViT(ViTConfig(variant=variant, **size | {"dtype": "float64"} | changes)))


def fresh_gpt(variant="qkv", seed=0, **changes):
    """A decoder for IDS as it starts, in float32 unless asked otherwise."""
    return GPT(GPTConfig(5, 8, 2, 4, 16, variant=variant, **changes), seed)


def fresh_tagger(variant="qkv", seed=0, **changes):
    """An encoder like it."""
    return Tagger(TaggerConfig(5, 8, 2, 4, 16, variant=variant, **changes), seed)


def loss_of(model):
    """Of labelling each of IDS with itself."""
    return cross_entropy(model(IDS), IDS)


def gradients(model):
    """Name -> gradient of that loss, on the host."""
    model.zero_grad()
    loss_of(model).backward()
    return {name: host(p.grad) for name, p in model.named_parameters()}


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


def ones(*shape, dtype="float64"):
    """A leaf of ones."""
    return Tensor(backend.xp.ones(shape, dtype), requires_grad=True)
