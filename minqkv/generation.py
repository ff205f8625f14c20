"""Generation: one token after another, with the cache or by computing the whole prefix again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .cache import KVCache
from .caches import branches
from .models.gpt import GPT, LAST
from .models.recorded import recorded
from .runtime import backend
from .runtime.claims import decoding
from .runtime.errors import UsageError
from .runtime.fields import check_types
from .runtime.rng import stream
from .tensor import no_grad


@dataclass(frozen=True)
class Sampling:
    """How new tokens are chosen.

    `temperature` 0 is greedy. Otherwise a token is drawn from softmax(logits / temperature), over
    the `top_k` likeliest tokens (None: all), and of these over the fewest whose probabilities add
    up to `top_p` (None: all; "nucleus sampling"). A row that has drawn the token `end` is finished.
    Each prompt is continued `samples` times.

    **Random numbers.** Row r draws its token i with the numbers r·V to (r + 1)·V - 1 of the stream
    (seed, i), where V is the size of the vocabulary. So equal prompts in a batch are continued
    differently, and what a row draws depends on its number, not on the other rows. Rows are
    numbered from `first_row`: a single prompt with first_row=r gives what it would give as row r.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    end: int | None = None
    samples: int = 1
    first_row: int = 0

    def __post_init__(self):
        check_types(self)
        if not 0 <= self.temperature < math.inf:
            why = f"temperature {self.temperature} must be finite and not negative"
            raise UsageError(why, "0 is greedy, 1 draws from what the model predicts")
        for name, least in (("top_k", 1), ("seed", 0), ("samples", 1), ("first_row", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is a probability above 0 and at most 1, not {self.top_p}")

    def choose(self, logits: np.ndarray, i: int) -> np.ndarray:
        """Token i of each row, (B,), from its logits (B, V)."""
        rng = stream(self.seed, "generate", i)
        rng.bit_generator.advance(self.first_row * logits.shape[1])  # a draw takes one number
        return pick(logits, self.temperature, self.top_k, rng, self.top_p)


def generate(
    model: GPT,
    ids: Sequence,
    max_new_tokens: int,
    temperature: float = 0.0,
    *,
    use_cache: bool = True,
    cache: KVCache | None = None,
    **sampling,
) -> np.ndarray:
    """Continue a batch of prompts: (B, T + new) integers, T the length of the longest prompt.

    Shorter prompts are padded on the left, with -1. With n samples of each prompt there are B·n
    rows: n of the first prompt, then n of the second. `new` is `max_new_tokens`, or less where all
    rows have drawn the end token. Arguments and errors: see `iter_tokens`.
    """
    samples = Sampling(temperature, **sampling).samples
    options = {"use_cache": use_cache, "cache": cache, **sampling}
    new = list(iter_tokens(model, ids, max_new_tokens, temperature, **options))
    ids, pad = _as_batch(ids)
    if pad is not None:
        ids = np.where(np.arange(ids.shape[1]) < pad[:, None], -1, ids)  # (B, T)
    rows = np.repeat(ids, samples, axis=0)  # (B·n, T)
    return np.concatenate([rows, *[token[:, None] for token in new]], axis=1)


def iter_tokens(
    model: GPT,
    ids: Sequence,
    max_new_tokens: int,
    temperature: float = 0.0,
    *,
    use_cache: bool = True,
    cache: KVCache | None = None,
    **sampling,
) -> Iterator[np.ndarray]:
    """A generator of new tokens (B,), one for each prompt, as they are chosen.

    `ids` are B sequences of ids, which may differ in length; `sampling` are fields of Sampling.
    Every row gives what it would give alone. With `samples` n each prompt is read once, and tokens
    are (B·n,). A finished row gives `end` again; when all rows are finished, generation stops.

    With `use_cache`, prompts are read in one piece, then one token at a time. Without it, the whole
    sequence is computed again at every step. Pass a `cache`, a `model.new_cache(B·n)`, to look at
    it during or after generation; if it holds something already, `ids` continue that. For several
    samples, `caches.branches(model.new_cache(B), n)` stores each prompt once.

    With a cache, there may be more tokens than the model's block_size, unless positions are
    learned.

    Raises UsageError, before the first token, for an empty prompt, for ids out of range, and for
    more tokens than the model or the cache has positions.
    """
    how = Sampling(temperature, **sampling)
    ids, pad = _as_batch(ids)
    held, n_rows = 0 if cache is None else len(cache), len(ids) * how.samples
    if held and not use_cache:
        raise UsageError(f"the cache holds {held} positions, but use_cache is false")
    bound = _positions(model.config, use_cache, cache)
    _check(model.config, held + ids.shape[1], max_new_tokens, how.end, *bound)
    if cache is not None and cache.batch != n_rows:
        why = f"the cache has room for {cache.batch} sequences, but {n_rows} are generated"
        raise UsageError(why, f"model.new_cache({n_rows})")
    if use_cache and cache is None:
        capacity = max(1, ids.shape[1] + max_new_tokens - 1)
        cache = branches(model.new_cache(len(ids), capacity), how.samples)
    return _tokens(model, ids, pad, max_new_tokens, how, cache if use_cache else None)


def _tokens(model, prompts, pad, max_new_tokens, how, cache):
    rows = np.repeat(np.arange(len(prompts)), how.samples)  # (B·n,): the prompt of each row
    ids, unread = prompts[rows], prompts
    finished = np.zeros(len(rows), bool)
    for i in range(max_new_tokens):
        with decoding(model), no_grad():
            if cache is None:
                padding = None if pad is None else pad[rows]
                logits = model(ids, pad=padding, at=LAST)  # (B·n, 1, V)
            elif i == 0:
                logits = _read(model, unread, pad, rows, cache)  # (B·n, 1, V)
                next_token = recorded(model, cache) or partial(model, cache=cache)
            else:
                logits = next_token(unread)  # (B·n, 1, V)
        new = how.choose(backend.to_host(logits.data[:, -1]), i)  # (B·n,)
        if how.end is not None:
            new = np.where(finished, how.end, new)
            finished |= new == how.end
        yield new
        if finished.all():
            return
        unread = new[:, None]  # (B·n, 1)
        if cache is None:
            ids = np.concatenate([ids, unread], axis=1)  # (B·n, T + i + 1)


def _read(model, prompts, pad, rows, cache):
    """Logits of the prompts, for each row; several samples of a prompt read it once."""
    if len(rows) == len(prompts):
        return model(prompts, cache=cache, pad=pad, at=LAST)
    once = cache.once(len(rows) // len(prompts))  # of B sequences
    logits = model(prompts, cache=once, pad=pad, at=LAST)  # (B, 1, V)
    cache.spread(once)
    return logits[rows]


def pick(
    logits: np.ndarray,
    temperature: float,
    top_k: int | None,
    rng: np.random.Generator,
    top_p: float | None = None,
) -> np.ndarray:
    """One id for each row of logits (B, V): the largest, or a draw by the Gumbel trick."""
    if temperature == 0:
        return logits.argmax(axis=-1)
    with np.errstate(over="ignore"):  # a tiny temperature: all but the largest become -inf
        logits = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        unlikely = np.argpartition(logits, -top_k, axis=-1)[:, :-top_k]  # (B, V - k)
        np.put_along_axis(logits, unlikely, -np.inf, axis=-1)
    if top_p is not None and top_p < 1:
        logits = nucleus(logits, top_p)
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


def nucleus(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Logits (B, V), and -inf outside the fewest tokens whose probability reaches `top_p`."""
    order = (-logits).argsort(axis=-1, kind="stable")  # (B, V): the likeliest first
    falling = np.take_along_axis(logits, order, axis=-1)  # (B, V)
    p = np.exp(falling - falling[:, :1])
    p /= p.sum(axis=-1, keepdims=True)
    missing = p.cumsum(axis=-1) - p < top_p  # those before it do not reach top_p: it is needed
    kept = np.full_like(logits, -np.inf)
    np.put_along_axis(kept, order, np.where(missing, falling, -np.inf), axis=-1)
    return kept


def compare_cache(
    model: GPT, ids: Sequence, max_new_tokens: int, options: dict | None = None, **sampling
) -> dict:
    """Decode with and without the cache; for each: ids, new tokens per row, seconds, tokens/s, and
    bytes in the cache.

    `options` are for `model.new_cache`. Tokens after the end of a row are counted too.
    """
    report, samples = {}, Sampling(**sampling).samples
    generate(model, ids, 1, **sampling)  # a warm-up: the first call takes longer
    for name, use_cache in (("cached", True), ("uncached", False)):
        cache = branches(model.new_cache(len(ids), **options or {}), samples) if use_cache else None
        began = time.perf_counter()
        out = generate(model, ids, max_new_tokens, use_cache=use_cache, cache=cache, **sampling)
        seconds = time.perf_counter() - began
        n_new = out.shape[1] - max(map(len, ids))
        report[name] = {
            "ids": out,
            "new_tokens": n_new,
            "seconds": seconds,
            "tokens_per_second": len(out) * n_new / seconds,
            "cache_bytes": cache.nbytes if cache else 0,
        }
    return report


def _as_batch(ids):
    """Prompts as ids (B, T), padded on the left with 0, and the padding of each row, (B,); None if
    all have the same length.
    """
    rows = [np.asarray(row) for row in ids]
    if any(row.ndim != 1 for row in rows):
        raise UsageError("prompts are a batch of sequences of ids: [[1, 2, 3]], not [1, 2, 3]")
    if not rows or any(not len(row) for row in rows):
        raise UsageError("the prompt is empty", "give at least one token")
    for row in rows:
        if row.dtype.kind not in "iu":
            raise UsageError(f"prompts are integers, not {row.dtype}")
    lengths = np.array([len(row) for row in rows])  # (B,)
    batch = np.zeros((len(rows), lengths.max()), np.int64)
    for padded, row in zip(batch, rows, strict=True):
        padded[-len(row) :] = row
    pad = lengths.max() - lengths
    return batch, pad if pad.any() else None


def _positions(cfg, use_cache, cache):
    """The number of positions, and the words for what limits it."""
    bounds = [(math.inf, "")]
    if cfg.bounded or not use_cache:
        bounds.append((cfg.block_size, "this model has"))
    if cache is not None:
        bounds.append((cache.capacity, "the cache has"))
    return min(bounds, key=lambda bound: bound[0])


def _check(cfg, length, max_new_tokens, end, n, whose):
    if max_new_tokens < 0:
        raise UsageError(f"max_new_tokens {max_new_tokens} must not be negative")
    if end is not None and not 0 <= end < cfg.vocab_size:
        raise UsageError(f"the end token {end} is outside 0..{cfg.vocab_size - 1}")
    if length > n:
        why = f"the prompt has {length} tokens, but {whose} {n} positions"
        raise UsageError(why, "give a shorter prompt")
    left = n + 1 - length  # the last token is never read
    if max_new_tokens > left:
        asked = f"{length} tokens and {max_new_tokens} new ones"
        why = f"{asked}, but {whose} {n} positions"
        raise UsageError(why, f"ask for at most {left} new tokens")
