"""A full training step, `mq.train_step`, against eager PyTorch in its best configuration: `python
-m bench.step`.

Same weights, same data, same threads, interleaved in one run; the losses of ten steps must agree to
1e-4. The ratio is taken to the quickest of {SDPA, written-out attention} x {fused, default AdamW}.
Every variant at S4; and at S1 and S3 what one would otherwise teach with: the same model on the
composed twins (small operations on arrays, as in DeZero), and a scalar engine (as micrograd),
extrapolated from the cost of one multiply-accumulate.
"""

import minqkv as mq

from .common import (
    VARIANTS,
    chosen,
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
)  # fmt: skip
from .scalar import seconds_per_mac
from .sizes import SIZES
from .swap import Swap, twins, used

STEPS, TOLERANCE = 10, 1e-4
TAUGHT = (
    "linear",
    "embedding",
    "layer_norm",
    "gelu",
    "scaled_dot_product_attention",
    "cross_entropy",
)  # what a GPT calls


def add_arguments(parser):
    """Some sizes, some variants."""
    chosen(parser, "sizes", list(SIZES))
    chosen(parser, "variants", VARIANTS)


def measure(options):
    """Rows of one (size, variant) each, and the means."""
    options.partial = bool(options.sizes or options.variants)
    torch_gpt = load_torch(options)
    rounds = options.rounds or (2 if options.quick else 11)
    cells = [(name, "qkv") for name in SIZES] + [("S4", variant) for variant in VARIANTS[1:]]
    cells = [("S1", "qkv"), ("S1", "q-k=v")] if options.quick else cells
    cells = [
        (s, v)
        for s, v in cells
        if s in (options.sizes or SIZES) and v in (options.variants or VARIANTS)
    ]
    mac = seconds_per_mac(500, 1) if options.quick else seconds_per_mac()
    rows = []
    for name, variant in cells:
        progress(f"step: {name} {variant}")
        rows.append(cell(name, variant, torch_gpt, rounds, options.quick))
        if name in ("S1", "S3"):
            rows[-1]["scalar_seconds"] = (
                mac * SIZES[name].flops(variant) / 6
            )  # 6 FLOP a multiply-accumulate, with backward
    summary = summarise(rows)
    show(rows, summary)
    return rows, summary


def cell(name, variant, torch_gpt, rounds, quick):
    """Time one model: minqkv, PyTorch's four configurations, the composed twins where they are
    asked for.
    """
    size = SIZES[name]
    candidates = {"minqkv": size.step(variant)}
    if torch_gpt:
        source, (ids, targets) = mq.GPT(size.config(variant)), size.batch()
        for configuration, (attention, fused) in torch_gpt.CONFIGURATIONS.items():
            candidates[configuration] = torch_gpt.training(
                torch_gpt.GPT(source, attention), fused, ids, targets
            )
    if name in ("S1", "S3"):
        candidates["composed"] = composed(size, variant)
    if variant != "qkv":
        candidates["minqkv, qkv"] = size.step()
    losses = {candidate: [step() for _ in range(STEPS)] for candidate, step in candidates.items()}
    apart = {
        c: max(abs(a - b) for a, b in zip(losses["minqkv"], ls, strict=True))
        for c, ls in losses.items()
    }
    apart.pop("minqkv, qkv", None)
    assert max(apart.values()) < TOLERANCE, f"{name} {variant}: losses differ by {apart}"
    samples = interleaved(candidates, rounds, **({"least": 0, "rest": 0} if quick else {}))
    row = {
        "size": name,
        "V T d L H B": size,
        "variant": variant,
        "losses": losses["minqkv"],
        "losses_differ_by": apart,
    }
    row["gflops"] = size.flops(variant) / median(samples, "minqkv") / 1e9
    if torch_gpt:
        row["best_torch"] = quickest(samples, torch_gpt.CONFIGURATIONS)
        row["ratio"] = ratio(samples, "minqkv", row["best_torch"])
    if "composed" in candidates:
        row["over_composed"] = ratio(samples, "minqkv", "composed")
    if variant != "qkv":
        row["over_qkv"] = ratio(samples, "minqkv", "minqkv, qkv")
    return {
        **row,
        "median_ms": {c: round(1e3 * median(samples, c), 4) for c in samples},
        "samples": samples,
    }


def composed(size, variant):
    """The same step with every fused operation replaced by its composed twin."""
    replacements = twins()
    swap = Swap(replacements)
    with swap, used([new for old, new in replacements.items() if old.__name__ in TAUGHT]):
        size.step(variant)()
    with swap:
        step = size.step(variant)

    def swapped():
        with swap:
            return step()

    return swapped


def summarise(rows):
    """Geometric mean and worst of the ratios of qkv over the sizes, and of the variants at S4."""
    sizes = {
        row["size"]: row["ratio"][0] for row in rows if row["variant"] == "qkv" and "ratio" in row
    }
    variants = {
        row["variant"]: row["ratio"][0] for row in rows if row["size"] == "S4" and "ratio" in row
    }
    if not sizes:
        return {}
    worst = max(sizes, key=sizes.get)
    summary = {
        "geometric_mean_of_sizes": geometric_mean(sizes.values()),
        "worst_size": worst,
        "worst_ratio": sizes[worst],
    }
    return summary | (
        {"geometric_mean_of_variants": geometric_mean(variants.values())} if variants else {}
    )


def show(rows, summary):
    """The table."""
    lines = []
    for row in rows:
        ms = row["median_ms"]
        lines.append([
            row["size"], row["variant"], f"{ms['minqkv']:.2f}",
            *((f"{ms[row['best_torch']]:.2f}", row["best_torch"].removeprefix("torch "), spread(row["ratio"]))
              if "ratio" in row else ("", "", "")),
            spread(row["over_qkv"]) if "over_qkv" in row else "",
            f"{ms['composed']:.1f}" if "composed" in ms else "",
            f"{1e3 * row['scalar_seconds']:,.0f}" if "scalar_seconds" in row else "", f"{row['gflops']:.1f}",
        ])  # fmt: skip
    columns = [
        "size",
        "variant",
        "minqkv ms",
        "PyTorch ms",
        "its best",
        "ratio",
        "over our qkv",
        "composed",
        "scalar",
        "GFLOP/s",
    ]
    note = "ms a step; ratios: median of pairs \\[quartiles]; scalar: products only, extrapolated"
    if summary:
        note = (f"minqkv / PyTorch over sizes: geometric mean {summary['geometric_mean_of_sizes']:.3f}, "
                f"worst {summary['worst_ratio']:.3f} ({summary['worst_size']})\n{note}")  # fmt: skip
    table("Training step", columns, lines, note)


if __name__ == "__main__":
    run("step", __doc__, measure, add_arguments)
