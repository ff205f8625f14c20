"""Generation: one token after another, with the cache or by computing the whole prefix again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np

from .cache import KVCache
from .models.gpt import GPT
from .runtime import backend
from .runtime.claims import decoding
from .runtime.errors import UsageError
from .runtime.rng import stream
from .tensor import no_grad


def generate(
    model: GPT,
    ids: Sequence,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    use_cache: bool = True,
    seed: int = 0,
    cache: KVCache | None = None,
) -> np.ndarray:
    """Continue ids (B, T), a batch of prompts of equal length: (B, T + max_new_tokens) integers.

    The prompt, then all that `iter_tokens` yields; it takes the same arguments and raises the same
    errors.
    """
    new = iter_tokens(model, ids, max_new_tokens, temperature, top_k, use_cache, seed, cache)
    return np.concatenate([_as_batch(ids), *[token[:, None] for token in new]], axis=1)


def iter_tokens(
    model: GPT,
    ids: Sequence,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    use_cache: bool = True,
    seed: int = 0,
    cache: KVCache | None = None,
) -> Iterator[np.ndarray]:
    """A generator of new ids (B,), one for each prompt in ids (B, T), as they are chosen.

    `temperature` 0 is greedy; otherwise tokens are drawn from softmax(logits / temperature) over
    the `top_k` likeliest (None: all), token i with the stream (seed, i). With `use_cache` the
    prompt is read once and then a token at a time; without, the whole prefix is computed again at
    every step. `cache` is an empty `model.new_cache`, given to look at it meanwhile or afterwards.
    Raises UsageError, before the first token, on an empty or ragged prompt, ids out of range, or
    more tokens than the model has positions.
    """
    ids = _as_batch(ids)
    _check(ids.shape[1], max_new_tokens, temperature, top_k, model.config.block_size)
    if cache is not None and len(cache):
        why = f"generation starts from an empty cache; this one holds {len(cache)} positions"
        raise UsageError(why, "cache.trim(0)")
    if use_cache and cache is None:
        cache = model.new_cache(len(ids), max(1, ids.shape[1] + max_new_tokens - 1))
    return _tokens(
        model, ids, max_new_tokens, temperature, top_k, seed, cache if use_cache else None
    )


def _tokens(model, ids, max_new_tokens, temperature, top_k, seed, cache):
    unread = ids
    for i in range(max_new_tokens):
        with decoding(model), no_grad():
            logits = model(ids) if cache is None else model(unread, cache=cache)  # (B, T, V)
        last = backend.to_host(logits.data[:, -1])  # (B, V)
        new = pick(last, temperature, top_k, stream(seed, "generate", i))  # (B,)
        yield new
        unread = new[:, None]  # (B, 1)
        ids = np.concatenate([ids, unread], axis=1)  # (B, T + i + 1)


def pick(
    logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator
) -> np.ndarray:
    """One id for each row of logits (B, V): the largest, or a draw by the Gumbel trick."""
    if temperature == 0:
        return logits.argmax(axis=-1)
    with np.errstate(over="ignore"):  # a tiny temperature: all but the largest become -inf
        logits = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        unlikely = np.argpartition(logits, -top_k, axis=-1)[:, :-top_k]  # (B, V - k)
        np.put_along_axis(logits, unlikely, -np.inf, axis=-1)
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


def compare_cache(model: GPT, ids: Sequence, max_new_tokens: int, **kwargs) -> dict:
    """Decode with and without the cache: for each ids, seconds, tokens/s, and live cache bytes."""
    report = {}
    generate(model, ids, 1, **kwargs)  # the first call pays for what the later ones share
    for name, use_cache in (("cached", True), ("uncached", False)):
        cache = model.new_cache(len(ids)) if use_cache else None
        began = time.perf_counter()
        out = generate(model, ids, max_new_tokens, use_cache=use_cache, cache=cache, **kwargs)
        seconds = time.perf_counter() - began
        report[name] = {
            "ids": out,
            "seconds": seconds,
            "tokens_per_second": len(ids) * max_new_tokens / seconds,
            "cache_bytes": cache.nbytes if cache else 0,
        }
    return report


def _as_batch(ids):
    rows = [np.asarray(row) for row in ids]
    if any(row.ndim != 1 for row in rows):
        raise UsageError("prompts are a batch of sequences of ids: [[1, 2, 3]], not [1, 2, 3]")
    if not rows or any(not len(row) for row in rows):
        raise UsageError("the prompt is empty", "give at least one token")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise UsageError(f"prompts of one batch must be equally long, not {lengths}")
    ids = np.stack(rows)
    if ids.dtype.kind not in "iu":
        raise UsageError(f"prompts are integers, not {ids.dtype}")
    return ids.astype(np.int64)


def _check(length, max_new_tokens, temperature, top_k, block_size):
    if max_new_tokens < 0 or not 0 <= temperature < math.inf:
        values = f"max_new_tokens {max_new_tokens} and temperature {temperature}"
        raise UsageError(f"{values} must be finite and not negative")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, not {top_k}")
    left = block_size + 1 - length  # the last token is never read
    if max_new_tokens > left:
        hint = f"ask for at most {left} new tokens" if left > 0 else "give a shorter prompt"
        asked = f"{length} tokens and {max_new_tokens} new ones"
        raise UsageError(f"{asked}, but this model has {block_size} positions", hint)
