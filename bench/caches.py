"""Filled caches, and a function that decodes one token onto them: what decode, memory and scale
measure.
"""

from functools import partial

import numpy as np

import minqkv as mq


def contents(model, size, block=64):
    """(keys, values) of all positions but the last, random, in blocks of positions.

    Each (B, h, block, d_h), on the host.
    """
    rng = np.random.default_rng(0)
    heads = mq.VariantSpec.parse(model.config.variant).stored_heads(size.H)
    for start in range(0, size.T - 1, block):
        shape = size.B, heads, min(block, size.T - 1 - start), size.d // size.H
        yield (
            rng.standard_normal(shape, dtype=np.float32),
            rng.standard_normal(shape, dtype=np.float32),
        )


def new_ids(size):
    """(B, 1) ids of the last position."""
    return np.random.default_rng(1).integers(0, size.V, (size.B, 1))


def filled(model, size, capacity=None, **options):
    """A cache with the same contents in every layer. It is one position short of full, unless it is
    given a larger capacity. `options` are passed to `new_cache`.
    """
    cache = model.new_cache(size.B, capacity or size.T, **options)
    if hasattr(cache, "layers"):
        append = [layer.append for layer in cache.layers]
    else:  # 0.1.0, for `--against`
        append = [partial(cache.append, layer) for layer in range(size.L)]
    streams = mq.VariantSpec.parse(model.config.variant).streams
    for block in contents(model, size):
        rows = [mq.backend.upload(array) for array in block[:streams]]
        for add in append:
            add(*rows)
    return cache


def decoding(model, cache, size, token=None):
    """A function without arguments that decodes one token onto a filled cache and forgets it again.

    It returns the likeliest ids (B,), on the host, and the logits (B, V). `token` is called with
    ids (B, 1) in place of the model.
    """
    ids, before = new_ids(size), len(cache)
    token = token or partial(model, cache=cache)

    def step():
        logits = token(ids).data[:, -1]
        cache.trim(before)
        return mq.backend.to_host(logits.argmax(-1)), logits

    return step
