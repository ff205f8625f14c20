"""Decoding: one token after another, with the cache or by recomputing the prefix each time."""

import math
import time

import numpy as np

from . import backend
from .errors import UsageError
from .rng import stream
from .tensor import no_grad


@no_grad()
def generate(model, ids, max_new_tokens, temperature=0.0, top_k=None, use_cache=True, seed=0, cache=None):
    """Continue ids (B, T), a batch of prompts of equal length; returns (B, T + max_new_tokens) host integers.

    `temperature` 0 is greedy; otherwise tokens are drawn from softmax(logits / temperature) over the `top_k` likeliest
    (all of them when None), token i of a call with the stream (seed, i). With `use_cache` the prompt is read once and
    then a token at a time; without, the whole prefix is computed again at every step. `cache` is an empty
    `model.new_cache`, given to look at it afterwards.
    Raises UsageError on an empty or ragged prompt, ids out of range, or more tokens than the model has positions.
    """
    ids = _as_batch(ids)
    batch, length = ids.shape
    if max_new_tokens < 0 or not 0 <= temperature < math.inf:
        raise UsageError(f"max_new_tokens {max_new_tokens} and temperature {temperature} must be finite and not negative")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, not {top_k}")
    if length + max_new_tokens > model.config.block_size + 1:  # the last token is never read
        left = model.config.block_size + 1 - length
        raise UsageError(
            f"{length} tokens and {max_new_tokens} new ones, but this model has {model.config.block_size} positions",
            f"ask for at most {left} new tokens" if left > 0 else "give a shorter prompt",
        )
    if cache is not None and len(cache):
        raise UsageError(f"generate starts from an empty cache; this one holds {len(cache)} positions", "cache.trim(0)")
    if use_cache and cache is None:
        cache = model.new_cache(batch, max(1, length + max_new_tokens - 1))
    training = model.training
    model.eval()
    unread = ids
    try:
        for i in range(max_new_tokens):
            logits = model(unread, cache=cache) if use_cache else model(ids)
            new = pick(backend.to_host(logits.data[:, -1]), temperature, top_k, stream(seed, "generate", i))  # (B,)
            unread = new[:, None]  # (B, 1)
            ids = np.concatenate([ids, unread], axis=1)  # (B, T + i + 1)
    finally:
        if training:
            model.train(model.step)
    return ids


def pick(logits, temperature, top_k, rng):
    """One id per row of logits (B, V): the largest, or a draw by the Gumbel trick."""
    if temperature == 0:
        return logits.argmax(axis=-1)
    with np.errstate(over="ignore"):  # a tiny temperature: all but the largest become -inf, as they should
        logits = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        unlikely = np.argpartition(logits, -top_k, axis=-1)[:, :-top_k]  # (B, V - k)
        np.put_along_axis(logits, unlikely, -np.inf, axis=-1)
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


def compare_cache(model, ids, max_new_tokens, **kwargs):
    """Decode with and without the cache; returns for each the ids, seconds, tokens/s, and the cache's live bytes."""
    report = {}
    generate(model, ids, 1, **kwargs)  # the first call pays for what the later ones share
    for name, use_cache in (("cached", True), ("uncached", False)):
        cache = model.new_cache(len(ids)) if use_cache else None
        began = time.perf_counter()
        out = generate(model, ids, max_new_tokens, use_cache=use_cache, cache=cache, **kwargs)
        seconds = time.perf_counter() - began
        rate = len(ids) * max_new_tokens / seconds
        report[name] = {"ids": out, "seconds": seconds, "tokens_per_second": rate, "cache_bytes": cache.nbytes if cache else 0}
    return report


def _as_batch(ids):
    rows = [np.asarray(row) for row in ids]
    if any(row.ndim != 1 for row in rows):
        raise UsageError("prompts are a batch of sequences of ids: [[1, 2, 3]], not [1, 2, 3]")
    if not rows or any(not len(row) for row in rows):
        raise UsageError("the prompt is empty", "give at least one token")
    if len({len(row) for row in rows}) > 1:
        raise UsageError(f"prompts of one batch must be equally long, not {sorted({len(row) for row in rows})}")
    ids = np.stack(rows)
    if ids.dtype.kind not in "iu":
        raise UsageError(f"prompts are integers, not {ids.dtype}")
    return ids.astype(np.int64)
