"""Every kind of cache: time and bytes of a token, for bench.lm.

A cache of T - 16 random positions is copied, and the next 16 tokens are decoded onto the copy: this
is timed, the copying is not. All kinds take turns with PyTorch, which decodes the same tokens onto
its own preallocated float32 cache; its logits must equal those of the plain cache. Branches are
several continuations of a plain cache, decoded together; their times are per token and branch.
"""

from functools import partial

import numpy as np

import minqkv as mq
from minqkv.caches import KINDS, BranchCache, options

from .caches import filled, new_ids
from .common import (
    interleaved,
    load_torch,
    median,
    progress,
    quickest,
    ratio,
    seconds,
    spread,
    table,
)
from .sizes import Size

V, WIDTH, HEADS, LAYERS = 96, 256, 8, 4
CONTEXTS, VARIANTS = (256, 2048), ("qkv", "q-k=v", "q-mqa")
STRETCH = 16  # tokens
RING = {"window": 128, "sinks": 4}
BRANCHES = 4
TOLERANCE = 1e-3  # of logits, relative to the largest


def filled_caches(model, size):
    """{name: a filled cache of that kind, with room for a stretch}, and branches of the plain one.

    All but the branches are for one sequence.
    """
    short = size._replace(T=size.T - STRETCH + 1)  # `filled` leaves the last position free
    wanted = {kind: options(kind, **(RING if KINDS[kind].windowed else {})) for kind in KINDS}
    found = {kind: filled(model, short, size.T, **made) for kind, made in wanted.items()}
    return {**found, f"{BRANCHES} branches": BranchCache(found["plain"], BRANCHES)}


def measure(given, rounds, timing):
    """A row for each (variant, context, kind)."""
    torch_gpt = load_torch(given)
    contexts, variants = ((32,), ("q-k=v",)) if given.quick else (CONTEXTS, VARIANTS)
    rows = []
    for variant in variants:
        for context in contexts:
            progress(f"lm: caches of {variant} at {context}")
            size = Size(V, context, WIDTH, LAYERS, HEADS, 1)
            rows += cell(size, variant, torch_gpt, rounds, timing)
    show(rows)
    return rows, {}


def cell(size, variant, torch_gpt, rounds, timing):
    """All kinds of one variant at one context."""
    model, names = mq.GPT(size.config(variant)).eval(), []
    caches = filled_caches(model, size)
    candidates = {name: partial(ours, model, cache, size) for name, cache in caches.items()}
    if torch_gpt:
        theirs = torch_gpt.all_stretches(model, size, STRETCH)
        candidates |= {
            name: lambda decode=decode: (decode, STRETCH) for name, decode in theirs.items()
        }
        agree(candidates["plain"]()[0], theirs)
        names = list(theirs)
    timing = {"least": 0.02 / STRETCH} | timing  # of a token, so that a sample takes 20 ms
    samples = interleaved(candidates, rounds, timer=stretches, **timing)
    best = quickest(samples, names) if names else None
    return [row(size, variant, name, cache, samples, best) for name, cache in caches.items()]


def ours(model, cache, size):
    """(function, tokens): one that decodes tokens onto a copy of a cache and returns the last
    logits, and how many tokens they are, of all sequences.
    """
    copy, ids = cache.clone(), np.repeat(new_ids(size), cache.batch, axis=0)

    def decode():
        for _ in range(STRETCH):
            logits = model(ids, cache=copy).data[:, -1]
            logits.argmax(-1)
        return logits

    return decode, STRETCH * cache.batch


def stretches(candidate, calls):
    """Seconds per token, for a candidate that gives (function, tokens); the function is timed."""
    times = []
    for _ in range(calls):
        decode, tokens = candidate()
        times.append(seconds(decode) / tokens)
    return sum(times) / calls


def agree(plain, theirs):
    """The last logits, all of the same tokens."""
    expected = plain()
    for name, decode in theirs.items():
        apart = np.abs(decode().numpy() - expected).max() / np.abs(expected).max()
        assert apart < TOLERANCE, f"{name}: logits differ by {apart:.1e} of the largest"


def row(size, variant, name, cache, samples, best):
    """One kind: its bytes, counted and by formula, and its time beside PyTorch's."""
    layer = cache.layers[-1]
    slots = layer.used + (layer.prefix.used if isinstance(cache, BranchCache) else 0)
    formula = sum(cache.bytes_per_token(stored, cache.dtype) for stored in cache.stored)
    found = {"kind": "caches", "variant": variant, "context": size.T, "cache": name}
    found |= {"positions": len(cache), "slots": slots, "cache_bytes": cache.nbytes}
    found |= {"bytes_per_slot": cache.nbytes / slots, "formula": formula}
    found["us_per_token"] = round(1e6 * median(samples, name), 1)
    mine = {name: samples[name]}
    if best:
        mine[best] = samples[best]
        found |= {"best_torch": best, "ratio": ratio(samples, best, name)}
        found["torch_us_per_token"] = round(1e6 * median(samples, best), 1)
    return found | {"over_plain": ratio(samples, name, "plain"), "samples": mine}


TIMES = """\
µs per token, batch 1; / PyTorch: PyTorch's time over minqkv's, with its own
  float32 cache; / plain: the time over that of minqkv's plain float32 cache
A ratio is the median over the rounds [its quartiles]."""
BYTES = f"""\
kB: the whole cache; bytes: per token that it keeps, in all layers
A ring keeps the last {RING["window"]} tokens and the first {RING["sinks"]};
  branches keep what they share once"""


def show(rows):
    """Two tables: of times and of bytes."""
    times, sizes = [], []
    for r in rows:
        name, theirs = [f"{r['variant']} {r['context']}", r["cache"]], ("", "")
        if "ratio" in r:
            theirs = f"{r['torch_us_per_token']:.0f}", spread(r["ratio"])
        times.append([*name, f"{r['us_per_token']:.0f}", *theirs, f"{r['over_plain'][0]:.2f}"])
        figures = r["positions"], r["slots"], f"{r['cache_bytes'] / 1e3:,.1f}"
        sizes.append([*name, *figures, f"{r['bytes_per_slot']:g}", r["formula"]])
    columns = ["", "cache", "minqkv", "PyTorch", "/ PyTorch", "/ plain"]
    table("Decoding", columns, times, legend=TIMES)
    columns = ["", "cache", "read", "kept", "kB", "bytes", "by formula"]
    table("Caches", columns, sizes, legend=BYTES)
