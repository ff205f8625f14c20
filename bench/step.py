"""A full training step, `mq.train_step`, against eager PyTorch in its best configuration, and
against the products it is made of: `python -m bench.step`.

Same weights, same data, same threads, interleaved in one run; the losses of ten steps must agree to
1e-4. The ratio is taken to the quickest of {SDPA, written-out attention} x {fused, default AdamW}.
The step's matrix products are timed alone, by NumPy's BLAS on the same threads and by PyTorch's:
what a step could cost at best, and how much of a difference between the two comes with the BLAS.
Every variant at S4; and at S1 and S3 what one would otherwise teach with: the same model on the
composed twins (small operations on arrays, as in DeZero), and a scalar engine (as micrograd),
extrapolated from the cost of one multiply-accumulate. With `--against FOLDER`, another version of
minqkv takes its turn instead.
"""

import minqkv as mq

from . import against, products
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
)
from .scalar import seconds_per_mac
from .sizes import SIZES
from .swap import Swap, twins, used

STEPS, TOLERANCE = 10, 1e-4
TAUGHT_SIZES = ("S1", "S3")
TAUGHT = (
    "linear",
    "embedding",
    "layer_norm",
    "gelu",
    "scaled_dot_product_attention",
    "cross_entropy",
)  # what a GPT calls


def add_arguments(parser):
    """Some sizes, some variants, another version."""
    chosen(parser, "sizes", list(SIZES))
    chosen(parser, "variants", VARIANTS)
    against.add_argument(parser)


def measure(options):
    """Rows of one (size, variant) each, and the means."""
    options.partial = bool(options.sizes or options.variants)
    rounds = options.rounds or (2 if options.quick else 11)
    timing = {"least": 0, "rest": 0} if options.quick else {}
    if options.against:
        return compare(options, rounds, timing)
    torch_gpt = load_torch(options)
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
        rows.append(cell(name, variant, torch_gpt, rounds, timing))
        if name in TAUGHT_SIZES:
            macs = SIZES[name].flops(variant) / 6  # a multiply-accumulate, with backward
            rows[-1]["scalar_seconds"] = mac * macs
    summary = summarise(rows)
    show(rows, summary)
    return rows, summary


def compare(options, rounds, timing):
    """With --against: rows of one (size, variant) each, for two versions."""
    sizes = options.sizes or (["S1"] if options.quick else list(SIZES))
    rows, groups = [], {}
    for variant in options.variants or ["qkv"]:
        groups[variant] = []
        for name in sizes:
            progress(f"step: {name} {variant}")
            size = SIZES[name]
            row = against.measure("step", size, variant, options, rounds, timing, TOLERANCE)
            groups[variant].append({"size": name, "V T d L H B": size, **row})
        rows += groups[variant]
    summary = against.summarise(groups, options, rows)
    labels = {"size": "size", "variant": "variant"}
    against.show("Training step", labels, "ms", 1e3, rows, summary)
    return rows, summary


def cell(name, variant, torch_gpt, rounds, timing):
    """Time one model: minqkv, PyTorch's four configurations, the composed twins where they are
    asked for, and the products alone.
    """
    size = SIZES[name]
    candidates = {"minqkv": size.step(variant)}
    if torch_gpt:
        candidates |= torch_gpt.all_training(mq.GPT(size.config(variant)), *size.batch())
    if name in TAUGHT_SIZES:
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
    candidates["products"] = products.alone(size, variant)
    if torch_gpt:
        candidates["torch products"] = products.alone_in_torch(size, variant)
    samples = interleaved(candidates, rounds, **timing)
    row = {
        "size": name,
        "V T d L H B": size,
        "variant": variant,
        "losses": losses["minqkv"],
        "losses_differ_by": apart,
        "gflops": size.flops(variant) / median(samples, "minqkv") / 1e9,
        "step_over_products": ratio(samples, "minqkv", "products"),
    }
    if torch_gpt:
        row["best_torch"] = quickest(samples, torch_gpt.CONFIGURATIONS)
        row["ratio"] = ratio(samples, "minqkv", row["best_torch"])
        row["blas_ratio"] = ratio(samples, "products", "torch products")
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
    """Over the sizes, with qkv: the mean of our ratio to PyTorch and its worst, the mean of the
    ratio of the two BLAS libraries, the mean step over its products; the variants at S4.
    """
    summary = {}
    of_sizes = [row for row in rows if row["variant"] == "qkv"]
    for key, name in (
        ("ratio", "geometric_mean_of_sizes"),
        ("blas_ratio", "blas_ratio_of_sizes"),
        ("step_over_products", "step_over_products_of_sizes"),
    ):
        if ratios := [row[key][0] for row in of_sizes if key in row]:
            summary[name] = geometric_mean(ratios)
    compared = [row for row in of_sizes if "ratio" in row]
    if compared:
        worst = max(compared, key=lambda row: row["ratio"][0])
        summary |= {"worst_size": worst["size"], "worst_ratio": worst["ratio"][0]}
    variants = [row["ratio"][0] for row in rows if row["size"] == "S4" and "ratio" in row]
    if variants:
        summary["geometric_mean_of_variants"] = geometric_mean(variants)
    return summary


LEGEND = """\
minqkv, PyTorch: ms a step; PyTorch's best of {SDPA, written-out attention} x {fused, default AdamW}
products: ms of the step's matrix products alone, forward and backward: NumPy's BLAS, same threads
/ PyTorch: minqkv over PyTorch; / products: minqkv over its products (aim: at most 1.4 from d 128)
BLAS: NumPy's time for these very products over PyTorch's; above 1, PyTorch's BLAS is faster here
A ratio is the median over the rounds [its quartiles] of two times of the same round."""


def show(rows, summary):
    """The tables."""
    lines = []
    for row in rows:
        ms = row["median_ms"]
        theirs, ratios = ("", ""), ("", "")
        if "ratio" in row:
            best = row["best_torch"]
            theirs = f"{ms[best]:.2f}", best.removeprefix("torch ").removesuffix(" AdamW")
            ratios = spread(row["ratio"]), spread(row["blas_ratio"])
        lines.append(
            [
                f"{row['size']} {row['variant']}",
                f"{ms['minqkv']:.2f}",
                theirs[0],
                f"{ms['products']:.2f}",
                ratios[0],
                spread(row["step_over_products"]),
                ratios[1],
                theirs[1],
                spread(row["over_qkv"]) if "over_qkv" in row else "",
                f"{row['gflops']:.1f}",
            ]
        )
    columns = ["size", "minqkv", "PyTorch", "products", "/ PyTorch", "/ products", "BLAS"]
    columns += ["PyTorch's best", "/ our qkv", "GFLOP/s"]
    means = []
    if "worst_size" in summary:
        means.append(
            f"minqkv / PyTorch: geometric mean {summary['geometric_mean_of_sizes']:.3f}, "
            f"worst {summary['worst_ratio']:.3f} ({summary['worst_size']}); "
            f"of the BLAS libraries {summary['blas_ratio_of_sizes']:.3f}"
        )
    if of_products := summary.get("step_over_products_of_sizes"):
        means.append(f"minqkv / products: geometric mean {of_products:.3f}")
    table("Training step", columns, lines, "\n".join(means), LEGEND)
    taught = [
        [
            f"{row['size']} {row['variant']}",
            f"{row['median_ms']['minqkv']:.2f}",
            f"{row['median_ms']['composed']:.1f}",
            f"{1e3 * row['scalar_seconds']:,.0f}",
        ]
        for row in rows
        if "composed" in row["median_ms"]
    ]
    note = "ms a step; scalar engine: products only, extrapolated"
    table("Small operations", ["size", "minqkv", "composed", "scalar engine"], taught, note)


if __name__ == "__main__":
    run("step", __doc__, measure, add_arguments)
