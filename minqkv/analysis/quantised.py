"""How a cache that rounds its rows changes a model's logits and perplexity.

No cache is used. Instead, attention gets its keys, its values or both rounded as the cache would
round them. With K = V one stored row is both key and value. Here the two uses can be rounded
separately; "keys and values" is what the cache does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import numpy as np

from ..cache import KVCache
from ..functional import cross_entropy
from ..models import GPT
from ..runtime import backend
from ..runtime.claims import decoding
from ..runtime.errors import UsageError
from ..tensor import Tensor, no_grad
from ..train import IGNORE

_rounding = ContextVar("rounding", default=False)  # of this thread
USES = {"keys": (True, False), "values": (False, True), "keys and values": (True, True)}


def rounding_errors(
    model: GPT,
    ids: np.ndarray,
    targets: np.ndarray,
    kind: type[KVCache] = KVCache,
    dtype=None,
    batch: int = 8,
) -> list[dict]:
    """Rows {"rounded", "perplexity", "largest", "mean"}: nothing rounded, then each of USES.

    ids, targets (n, T); targets of -100 do not count. `largest` and `mean` are over the
    absolute differences from the exact logits, where a target counts. `kind` and `dtype` are as for
    `GPT.new_cache`, so **caches.options("int8") gives them. Raises UsageError if no target counts.
    """
    if not (targets != IGNORE).any():
        raise UsageError("rounding_errors: every target is ignored")
    sums = {name: np.zeros(3) for name in ("nothing", *USES)}  # loss, largest, sum of differences
    with decoding(model), no_grad():
        for i in range(0, len(ids), batch):
            x, y = ids[i : i + batch], targets[i : i + batch]
            if not (y != IGNORE).any():
                continue
            exact = model(x)  # (B, T, V)
            _add(sums["nothing"], exact, exact, y)
            for name, (keys, values) in USES.items():
                with rounded(model, kind, dtype, keys, values):
                    _add(sums[name], model(x), exact, y)
    counted = int((targets != IGNORE).sum())
    return [
        {"rounded": name, "perplexity": math.exp(min(loss / counted, 700.0)),
         "largest": float(largest), "mean": float(total / counted / model.config.vocab_size)}
        for name, (loss, largest, total) in sums.items()
    ]  # fmt: skip


def _add(sums, logits, exact, y):
    n, counts = int((y != IGNORE).sum()), backend.upload(y != IGNORE)
    away = backend.xp.abs(logits.data - exact.data)[counts]  # (N, V)
    sums[0] += cross_entropy(logits, y, IGNORE).item() * n
    sums[1] = max(sums[1], float(away.max()))
    sums[2] += float(away.sum(dtype="float64"))


@contextmanager
def rounded(
    model: GPT,
    kind: type[KVCache] = KVCache,
    dtype=None,
    keys: bool = True,
    values: bool = True,
) -> Iterator[None]:
    """`with`: without a cache, attention reads keys, values or both as this kind of cache, of this
    dtype, would store them, in this thread.
    """
    dtype = dtype or model.config.dtype
    with ExitStack() as stack:
        for block in model.blocks:
            stack.enter_context(_rounded(block.attn, kind.layer_kind, dtype, keys, values))
        yield


@contextmanager
def _rounded(attention, layer, dtype, keys, values):
    exact_attend, exact_read = attention.attend, attention.read

    def attend(q, rows, at, mask=None):
        if not _rounding.get():  # another thread
            return exact_attend(q, rows, at, mask)
        kept = layer.pack([row.data for row in rows], dtype)
        kept = [Tensor(row) for row in layer.unpack(kept, q.data.dtype)]

        def read(rows, at=None):
            k, _ = exact_read(kept if keys else rows, at)
            _, v = exact_read(kept if values else rows, at)
            return k, v

        twin = copy.copy(attention)
        twin.read = read
        return type(twin).attend(twin, q, rows, at, mask)

    attention.attend = attend
    token = _rounding.set(True)
    try:
        yield
    finally:
        _rounding.reset(token)
        del attention.attend
