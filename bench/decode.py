"""Decoding one token with a cache, against eager PyTorch with a preallocated one: `python -m
bench.decode`.

The cache is filled with random contents up to the context, the last position is decoded, and the
cache is trimmed again. PyTorch is the quickest of {SDPA, attention written out}, in inference mode,
on the same contents; the logits must agree. Our own qkv runs in the same rounds, so that a
variant's gain over it is measured in pairs. Then without a cache, the whole prefix at every token,
to show the growth. With `--against FOLDER`, another version of minqkv takes its turn instead.
"""

from pathlib import Path

import numpy as np

import minqkv as mq

from . import against
from .caches import decoding, filled
from .common import (
    VARIANTS,
    chosen,
    exponent,
    geometric_mean,
    interleaved,
    load_torch,
    median,
    progress,
    quickest,
    ratio,
    run,
    spread,
    table,
)
from .sizes import Size

V, WIDTH, HEADS, LAYERS = 96, 256, 8, 4
CONTEXTS, BATCHES, PREFIXES = (256, 1024, 4096, 16384), (1, 16), (64, 128, 256, 512)
TOLERANCE = 1e-3  # of logits, relative to the largest
ITEMSIZE = 4


def add_arguments(parser):
    """Some of the cells; the bound on memory."""
    chosen(parser, "contexts", CONTEXTS, int)
    chosen(parser, "batches", BATCHES, int)
    chosen(parser, "variants", VARIANTS)
    against.add_argument(parser)
    parser.add_argument(
        "--memory",
        type=float,
        default=_memory_bound(),
        metavar="GiB",
        help="skip what needs larger caches (default: half of what is available, 8 at most)",
    )


def measure(options):
    """Rows of one (context, batch, variant) each, cached; then of one variant each, uncached."""
    rounds = options.rounds or (2 if options.quick else 7)
    timing = {"least": 0, "rest": 0} if options.quick else {}
    options.partial = bool(options.contexts or options.batches or options.variants)
    contexts, batches, variants, prefixes = CONTEXTS, BATCHES, VARIANTS, PREFIXES
    if options.quick:
        contexts, batches, prefixes = (64, 128), (1,), (16, 32)
        variants = ("qkv", "q-k=v", "q=k=v+", "mqa")
    contexts, batches = options.contexts or contexts, options.batches or batches
    if options.against:
        variants = options.variants or ("qkv", "q-k=v")
        return compare(contexts, batches, variants, options, rounds, timing)
    variants = options.variants or variants
    torch_gpt = load_torch(options)
    rows = []
    for batch in batches:
        for context in contexts:
            for variant in variants:
                progress(f"decode: {batch} x {context} {variant}")
                size = Size(V, context, WIDTH, LAYERS, HEADS, batch)
                rows.append(cell(size, variant, torch_gpt, options, rounds, timing))
    uncached = [without_cache(variant, prefixes, rounds, timing) for variant in variants]
    summary = summarise(rows)
    show(rows, uncached, summary)
    return rows + uncached, summary


def compare(contexts, batches, variants, options, rounds, timing):
    """With --against: rows of one (context, batch, variant) each, for two versions."""
    rows, groups = [], {}
    for batch in batches:
        for variant in variants:
            group = groups.setdefault(f"batch {batch}, {variant}", [])
            for context in contexts:
                progress(f"decode: {batch} x {context} {variant}")
                size = Size(V, context, WIDTH, LAYERS, HEADS, batch)
                row = {"context": context, "batch": batch, "variant": variant}
                sides = 2 if options.without_torch else 3
                if too_large := too_much(options, sides * cache_bytes(size, variant)):
                    rows.append({"kind": "decode", **row, "skipped": too_large})
                    continue
                row |= against.measure("decode", size, variant, options, rounds, timing, TOLERANCE)
                rows.append(row)
                group.append(row)
    summary = against.summarise(groups, options, [row for row in rows if "skipped" not in row])
    labels = {"variant": "variant", "context": "context", "batch": "batch"}
    against.show("Decoding a token, batch and all", labels, "µs", 1e6, rows, summary)
    return rows, summary


def cache_bytes(size, variant):
    """Bytes of a full cache."""
    cfg = size.config(variant)
    spec = mq.VariantSpec.parse(cfg.variant)
    return spec.cache_bytes_per_token(cfg, ITEMSIZE) * size.B * size.T


def too_much(options, needed):
    """Why a cell is skipped, or None."""
    if needed <= options.memory * 2**30:
        return None
    return f"the caches of this comparison take {needed / 2**30:.1f} GiB"


def cell(size, variant, torch_gpt, options, rounds, timing):
    """Time one token of one model at one context; a row that says why where it cannot be done."""
    row = {"kind": "cached", "context": size.T, "batch": size.B, "variant": variant}
    row["cache_bytes"] = cache_bytes(size, variant)
    row["written_per_token"] = row["cache_bytes"] // (size.B * size.T)
    needed = row["cache_bytes"] * (2 if torch_gpt else 1)
    needed += 0 if variant == "qkv" else cache_bytes(size, "qkv")
    if too_large := too_much(options, needed):
        return {**row, "skipped": too_large}

    model = mq.GPT(size.config(variant)).eval()
    cache = filled(model, size)
    candidates = {"minqkv": decoding(model, cache, size)}
    row["parameter_bytes"] = sum(
        p.data.nbytes for name, p in model.named_parameters() if name != "wpe.weight"
    )
    row["read_per_token"] = (row["parameter_bytes"] + row["cache_bytes"]) / size.B
    if variant != "qkv":
        plain = mq.GPT(size.config()).eval()
        candidates["minqkv, qkv"] = decoding(plain, filled(plain, size), size)
    if torch_gpt:
        candidates |= torch_gpt.all_decoding(model, size)
    agree(candidates)
    samples = interleaved(candidates, rounds, **timing)
    assert cache.nbytes == row["cache_bytes"] // size.T * (size.T - 1), (
        "the bytes of the cache are not what the formula says"
    )
    return row | results(samples, size.B, row["parameter_bytes"] + row["cache_bytes"])


def results(samples, batch, bytes_read):
    """Medians and ratios of one cell."""
    row = {
        "us_per_token": {name: round(1e6 * median(samples, name) / batch, 2) for name in samples}
    }
    row["GB_per_second"] = bytes_read / median(samples, "minqkv") / 1e9
    if "torch sdpa" in samples:
        row["best_torch"] = quickest(samples, ("torch sdpa", "torch written"))
        row["ratio"] = ratio(samples, "minqkv", row["best_torch"])
    if "minqkv, qkv" in samples:
        row["over_qkv"] = ratio(samples, "minqkv", "minqkv, qkv")
    return row | {"samples": samples}


def agree(candidates):
    """Both engines must give the same logits for the same contents."""
    ours = candidates["minqkv"]()[1]
    for name, step in candidates.items():
        if name.startswith("torch"):
            apart = np.abs(step()[1].numpy() - ours).max() / np.abs(ours).max()
            assert apart < TOLERANCE, f"{name}: logits differ by {apart:.1e} of the largest"


def without_cache(variant, prefixes, rounds, timing):
    """Time one token by recomputing the whole prefix, batch 1, and fit how it grows."""
    progress(f"decode: without a cache, {variant}")
    model = mq.GPT(Size(V, max(prefixes), WIDTH, LAYERS, HEADS, 1).config(variant)).eval()
    ids = np.random.default_rng(0).integers(0, V, (1, max(prefixes)))

    def recompute(n):
        with mq.no_grad():
            return model(ids[:, :n]).data[:, -1].argmax(-1)

    samples = interleaved({str(n): lambda n=n: recompute(n) for n in prefixes}, rounds, **timing)
    micros = {name: 1e6 * median(samples, name) for name in samples}
    growth = exponent(prefixes, list(micros.values()))
    return {
        "kind": "uncached",
        "variant": variant,
        "us_per_token": micros,
        "exponent": growth,
        "samples": samples,
    }


def summarise(rows):
    """Geometric means over contexts; what K = V gains over our own qkv where the cache is long."""
    summary = {}
    for batch in sorted({row["batch"] for row in rows}):
        for variant in ("qkv", "q-k=v", "q-mqa"):
            ratios = [
                r["ratio"][0]
                for r in rows
                if (r["batch"], r["variant"]) == (batch, variant) and "ratio" in r
            ]
            if ratios:
                summary[f"batch {batch}, {variant}: over PyTorch, geometric mean"] = geometric_mean(
                    ratios
                )
    for row in rows:
        if row["variant"] == "q-k=v" and row["context"] >= 4096 and "over_qkv" in row:
            summary[f"batch {row['batch']}, {row['context']}: q-k=v over our qkv"] = row[
                "over_qkv"
            ][0]
    return summary


def show(rows, uncached, summary):
    """The tables."""
    lines = []
    for row in rows:
        line = [row["variant"], row["context"], row["batch"]]
        if "skipped" in row:
            lines.append([*line, "skipped:", row["skipped"]])
            continue
        us = row["us_per_token"]
        theirs = ("", "", "")
        if "ratio" in row:
            theirs = (
                f"{us[row['best_torch']]:.0f}",
                row["best_torch"].removeprefix("torch "),
                spread(row["ratio"]),
            )
        over = spread(row["over_qkv"]) if "over_qkv" in row else ""
        megabytes = f"{row['read_per_token'] / 1e6:.2f}", f"{row['written_per_token'] / 1e3:.2f}"
        lines.append(
            [*line, f"{us['minqkv']:.0f}", *theirs, over, *megabytes, f"{row['GB_per_second']:.1f}"]
        )
    columns = ["variant", "context", "batch", "minqkv µs", "PyTorch µs", "its best", "ratio"]
    columns += ["over our qkv", "MB read", "kB written", "GB/s"]
    note = (
        "µs and bytes a token; read: each parameter and each cached number once, "
        "shared by the batch (positions: one row)"
    )
    table(
        "Decoding with a cache",
        columns,
        lines,
        "\n".join([*(f"{k}: {v:.3f}" for k, v in summary.items()), note]),
    )
    prefixes = list(uncached[0]["us_per_token"])
    lines = [
        [r["variant"], *(f"{us:.0f}" for us in r["us_per_token"].values()), f"{r['exponent']:.2f}"]
        for r in uncached
    ]
    table("Without a cache, µs a token", ["variant", *prefixes, "grows as n to the"], lines)


def _memory_bound():
    meminfo = Path("/proc/meminfo")
    fields = (
        dict(line.split(":") for line in meminfo.read_text().splitlines())
        if meminfo.exists()
        else {}
    )
    available = int(fields["MemAvailable"].split()[0]) / 2**20 if "MemAvailable" in fields else 4
    return round(min(8, available / 2), 1)


if __name__ == "__main__":
    run("decode", __doc__, measure, add_arguments)
