"""Every kind of cache: time and bytes of a token, for bench.lm.

A cache of T - 16 random positions is copied, and the next 16 tokens are decoded onto the copy: this
is timed, the copying is not. All kinds take turns with PyTorch, which decodes the same tokens onto
its own preallocated float32 cache, and whose logits must be those of the plain one.
"""

from functools import partial

import numpy as np

import minqkv as mq
from minqkv import caches as package
from minqkv.cache import KVCache

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
WINDOW, SINKS = 128, 4  # of a kind that takes them
TOLERANCE = 1e-3  # of logits, relative to the largest


def kinds():
    """{name: what `new_cache` takes}: the plain cache, at two widths, and each class of caches/."""
    found = {"float32": {}, "float16": {"dtype": "float16"}}
    for name in package.__all__:
        kind = getattr(package, name)
        if isinstance(kind, type) and issubclass(kind, KVCache):
            wanted = {"window": WINDOW, "sinks": SINKS}
            taken = {option: value for option, value in wanted.items() if option in kind.takes}
            found[name.removesuffix("Cache").lower()] = {"kind": kind, **taken}
    return found


def measure(options, rounds, timing):
    """A row for each (variant, context, kind)."""
    torch_gpt = load_torch(options)
    contexts, variants = ((32,), ("q-k=v",)) if options.quick else (CONTEXTS, VARIANTS)
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
    model, ids = mq.GPT(size.config(variant)).eval(), new_ids(size)
    start = size._replace(T=size.T - STRETCH + 1)  # `filled` leaves the last position free
    caches = {
        name: filled(model, start, capacity=size.T, **options) for name, options in kinds().items()
    }
    candidates = {name: partial(ours, model, cache, ids) for name, cache in caches.items()}
    names = []
    if torch_gpt:
        theirs = torch_gpt.all_stretches(model, start, size.T, STRETCH)
        names = list(theirs)
        candidates |= {name: lambda decode=decode: decode for name, decode in theirs.items()}
        agree(candidates["float32"](), theirs)
    samples = interleaved(candidates, rounds, timer=stretches, **timing)
    best = quickest(samples, names) if names else None
    return [row(size, variant, name, cache, samples, best) for name, cache in caches.items()]


def ours(model, cache, ids):
    """A copy of a cache, and a function that decodes tokens onto it and returns the last logits."""
    copy = cache.clone()

    def decode():
        for _ in range(STRETCH):
            logits = model(ids, cache=copy).data[:, -1]
            logits.argmax(-1)
        return logits

    return decode


def stretches(candidate, calls):
    """Seconds a token; a candidate makes a function that decodes a stretch, which is timed."""
    return sum(seconds(candidate()) for _ in range(calls)) / calls / STRETCH


def agree(plain, theirs):
    """The last logits, all of the same tokens."""
    expected = plain()
    for name, decode in theirs.items():
        apart = np.abs(decode().numpy() - expected).max() / np.abs(expected).max()
        assert apart < TOLERANCE, f"{name}: logits differ by {apart:.1e} of the largest"


def row(size, variant, name, cache, samples, best):
    """One kind: its bytes, counted and by formula, and its time beside PyTorch's."""
    slots = cache.layers[-1].used
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
    return found | {"over_float32": ratio(samples, name, "float32"), "samples": mine}


TIMES = """\
µs a token, batch 1; / PyTorch: PyTorch's time over minqkv's, with a float32
  cache of its own; / float32: over minqkv's plain cache of float32
A ratio is the median over the rounds [its quartiles]."""
BYTES = f"""\
kB: the whole cache; bytes: of each token that it keeps, in all layers
A cache with a window keeps the last {WINDOW} tokens and the first {SINKS}."""


def show(rows):
    """Two tables: of times and of bytes."""
    times, sizes = [], []
    for r in rows:
        name, theirs = [f"{r['variant']} {r['context']}", r["cache"]], ("", "")
        if "ratio" in r:
            theirs = f"{r['torch_us_per_token']:.0f}", spread(r["ratio"])
        times.append([*name, f"{r['us_per_token']:.0f}", *theirs, f"{r['over_float32'][0]:.2f}"])
        figures = r["positions"], r["slots"], f"{r['cache_bytes'] / 1e3:,.1f}"
        sizes.append([*name, *figures, f"{r['bytes_per_slot']:g}", r["formula"]])
    columns = ["", "cache", "minqkv", "PyTorch", "/ PyTorch", "/ float32"]
    table("Decoding", columns, times, legend=TIMES)
    columns = ["", "cache", "read", "kept", "kB", "bytes", "by formula"]
    table("Caches", columns, sizes, legend=BYTES)
