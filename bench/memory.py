"""Peak memory of a training step and of decoding, against PyTorch and an analytic count: `python -m
bench.memory`.

Every measurement is a separate process (bench.child). All figures are bytes above the parameters:
for a step the gradients, AdamW's two moments, what backward needs, temporaries. "Traced" is what
NumPy asked for, "resident" what the system gave. With n threads, each shard of a batch adds a copy
of the gradients. The analytic count is for a step in one shard that saves what backward needs,
once, and has no temporaries.
"""

import json
import statistics
import subprocess
import sys

import minqkv as mq

from .common import geometric_mean, load_torch, progress, run, table
from .sizes import SIZES, Size

ITEMSIZE = 4
LONG = Size(96, 4096, 128, 4, 4, 1)
DECODING = [Size(96, 4096, 256, 4, 8, batch) for batch in (1, 16)]
ATTENTIONS = ("sdpa", "written")


def add_arguments(parser):
    """The bounds on the long step."""
    parser.add_argument(
        "--limit-gib", type=float, default=8, help="memory a measurement may take (default: 8)"
    )
    parser.add_argument("--limit-seconds", type=float, default=180, help="and time (default: 180)")


def measure(options):
    """Rows of one (kind, size, variant) each."""
    torch = load_torch(options) is not None
    rounds = options.rounds or (1 if options.quick else 3)
    cells = [("step", name, size, "qkv") for name, size in SIZES.items()]
    cells += [("step", "S4", SIZES["S4"], variant) for variant in ("q-k=v", "q-mqa")]
    cells += [("step", "T = 4,096", LONG, "qkv")]
    cells += [
        ("decode", "T = 4,096", size, variant)
        for size in DECODING
        for variant in ("qkv", "q-k=v", "q-mqa")
    ]
    if options.quick:
        cells = [
            ("step", "S1", SIZES["S1"], "qkv"),
            ("decode", "T = 64", Size(96, 64, 64, 2, 4, 1), "q-k=v"),
        ]
    rows = [cell(*what, torch, rounds, options) for what in cells]
    summary = summarise(rows)
    show(rows, summary)
    return rows, summary


def cell(kind, name, size, variant, torch, rounds, options):
    """Both engines on one task, in turn."""
    progress(f"memory: {kind} {name} {variant}, batch {size.B}")
    attentions = (ATTENTIONS[:1] if options.quick else ATTENTIONS) if torch else ()
    task = {"kind": kind, "size": size, "variant": variant, "threads": options.threads}
    task["limit_GiB"] = options.limit_gib
    samples = {engine: [] for engine in ("minqkv", *attentions)}
    for _ in range(rounds):
        for engine in samples:
            samples[engine].append(child({**task, "engine": engine}, options.limit_seconds))
    row = {
        "kind": kind,
        "size": name,
        "V T d L H B": size,
        "variant": variant,
        "parameters": parameter_bytes(size, variant),
    }
    row["analytic"] = (
        step_bytes(size, variant) if kind == "step" else {"cache": cache_bytes(size, variant)}
    )
    row["resident"] = {engine: middle(answers, "resident") for engine, answers in samples.items()}
    row["traced"] = middle(samples["minqkv"], "traced")
    row["failed"] = {
        engine: a["failed"] for engine, answers in samples.items() for a in answers if "failed" in a
    }
    theirs = [row["resident"][a] for a in attentions if row["resident"][a]]
    if theirs and row["resident"]["minqkv"]:
        row["ratio"] = row["resident"]["minqkv"] / min(theirs)
    if kind == "step":
        row["scores_of_all_heads"] = (
            size.B * size.H * size.T**2 * ITEMSIZE
        )  # the T x T array of one layer
    return row | {"samples": samples}


def child(task, limit):
    """The answer of bench.child, or {"failed": why}."""
    command = [sys.executable, "-m", "bench.child", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {limit:g} s"}
    if done.returncode:
        return {"failed": f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def middle(answers, what):
    """The median of one figure, None where a measurement failed."""
    figures = [answer.get(what) for answer in answers]
    return None if None in figures else int(statistics.median(figures))


def parameter_bytes(size, variant):
    """Bytes of the parameters."""
    cfg = size.config(variant)
    return ITEMSIZE * mq.VariantSpec.parse(cfg.variant).params(cfg)


def step_bytes(size, variant):
    """{part: bytes} of a training step above its parameters, by formula."""
    spec = mq.VariantSpec.parse(size.config(variant).variant)
    stored = spec.stored_heads(size.H) * size.d // size.H  # h · d_h
    block = {
        # Each norm: the rows at mean 0 and variance 1, and the output, which is a linear's input.
        "norms": 2 * 2 * size.d,
        "projections": size.d * spec.own_query + stored * spec.streams,  # q, k, v
        "pattern": size.H * size.T,
        "mixed": size.d,  # the input of wo
        "mlp": 2 * 4 * size.d,  # GELU's derivative and its output
    }
    tokens = size.B * size.T * ITEMSIZE
    counts = {name: size.L * tokens * numbers for name, numbers in block.items()}
    counts["head"] = tokens * (2 * size.d + size.V)  # the last norm, the probabilities
    parameters = parameter_bytes(size, variant)
    return {"gradients": parameters, "moments": 2 * parameters, **counts}


def cache_bytes(size, variant):
    """L · σ · h · d_h · itemsize for every position of every sequence."""
    cfg = size.config(variant)
    return mq.VariantSpec.parse(cfg.variant).cache_bytes_per_token(cfg, ITEMSIZE) * size.T * size.B


def summarise(rows):
    """Geometric means of the ratios to PyTorch."""
    summary = {}
    for kind in ("step", "decode"):
        ratios = [
            row["ratio"]
            for row in rows
            if row["kind"] == kind and row["size"] != "T = 4,096" and "ratio" in row
        ]
        ratios = ratios or [row["ratio"] for row in rows if row["kind"] == kind and "ratio" in row]
        if ratios:
            summary[f"{kind}: over PyTorch, geometric mean"] = geometric_mean(ratios)
    for row in rows:
        if row["kind"] == "step" and row["size"] == "T = 4,096" and row["resident"]["minqkv"]:
            summary["T = 4,096 step: resident over one layer's scores"] = (
                row["resident"]["minqkv"] / row["scores_of_all_heads"]
            )
    return summary


def show(rows, summary):
    """The table."""

    def mb(figure):
        return f"{figure / 1e6:,.{1 if figure >= 1e6 else 3}f}" if figure else "failed"

    lines = []
    for row in rows:
        resident, analytic = row["resident"], sum(row["analytic"].values())
        theirs = [mb(resident[a]) if a in resident else "" for a in ATTENTIONS]
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        over = f"{row['traced'] / analytic:.2f}" if row["traced"] else ""
        line = [row["kind"], row["size"], row["V T d L H B"].B, row["variant"]]
        line += map(mb, (row["parameters"], analytic, row["traced"], resident["minqkv"]))
        lines.append([*line, *theirs, ratio, over])
    columns = ["kind", "size", "batch", "variant", "parameters", "analytic", "traced", "resident"]
    columns += ["torch sdpa", "torch written", "ratio", "traced/analytic"]
    notes = [f"{name}: {figure:.2f}" for name, figure in summary.items()]
    notes += [
        f"{row['kind']} {row['size']} {row['variant']}: {e}: {why}"
        for row in rows
        for e, why in row["failed"].items()
    ]
    table(
        "Peak memory above the parameters, MB",
        columns,
        lines,
        "\n".join([*notes, "ratio: resident, to PyTorch's smallest"]),
    )


if __name__ == "__main__":
    run("memory", __doc__, measure, add_arguments)
