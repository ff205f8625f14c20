"""What the engine itself costs: `python -m bench.engine`.

Overhead: microseconds of an operation on tiny arrays, where the arithmetic is free. Backward over
forward, and the rest of a step. The share of products: FLOP/s of the whole step over the rate of
the machine's sgemm, and the same products on their own over the step, both in the same rounds. And
a profile of a step by operation. All of it on one thread.
"""

import numpy as np

import minqkv as mq
from minqkv import functional as F

from .clock import by_operation
from .common import difference, interleaved, median, progress, ratio, run, spread, table
from .products import alone, sgemm
from .sizes import SIZES

IDS = np.array([0, 3])
TINY = {  # name: (operation, shapes of its inputs, the same in bare NumPy where that is one line)
    "add": (F.add, [(2, 4), (2, 4)], np.add),
    "mul": (F.mul, [(2, 4), (2, 4)], np.multiply),
    "matmul": (F.matmul, [(2, 4), (4, 4)], np.matmul),
    "sum": (F.sum, [(2, 4)], np.sum),
    "exp": (F.exp, [(2, 4)], np.exp),
    "reshape": (lambda x: F.reshape(x, 4, 2), [(2, 4)], lambda x: x.reshape(4, 2)),
    "transpose": (F.transpose, [(2, 4)], np.transpose),
    "getitem": (lambda x: x[:1], [(2, 4)], lambda x: x[:1]),
    "linear": (F.linear, [(2, 4), (4, 4), (4,)], lambda x, w, b: x @ w + b),
    "embedding": (lambda w: F.embedding(IDS, w), [(4, 4)], lambda w: w[IDS]),
    "layer_norm": (F.layer_norm, [(2, 4), (4,), (4,)], None),
    "gelu": (F.gelu, [(2, 4)], None),
    "softmax": (F.softmax, [(2, 4)], None),
    "attention": (F.scaled_dot_product_attention, [(1, 1, 2, 4)] * 3, None),
    "cross_entropy": (lambda x: F.cross_entropy(x, IDS), [(2, 4)], None),
}
CHAIN = 200


def measure(options):
    """Rows of four kinds: "operation", "chain", "step", "profile"."""
    rounds = options.rounds or (2 if options.quick else 9)
    tiny = {"least": 0.0005 if options.quick else 0.005, "rest": 0}
    timing = {"least": 0, "rest": 0} if options.quick else {}
    sizes = ["S1"] if options.quick else list(SIZES)
    rows = [
        operation(name, rounds, tiny) for name in (list(TINY)[::5] if options.quick else TINY)
    ] + [chain(rounds, tiny)]
    for name in sizes:
        progress(f"engine: {name}")
        rows.append(step(name, rounds, timing))
    for name in sizes if options.quick else ("S1", "S4", "S5"):
        operations = by_operation(SIZES[name], "qkv", 1 if options.quick else 10)
        rows.append({"kind": "profile", "size": name, "operations": operations})
    summary = {
        f"{row['size']}: products alone over step": row["products_over_step"][0]
        for row in rows
        if row["kind"] == "step"
    }
    show(rows)
    return rows, summary


def operation(name, rounds, timing):
    """One operation on tiny arrays: without a graph, with one, and with backward to its leaves."""
    function, shapes, bare = TINY[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    leaves = [mq.Tensor(array, requires_grad=True) for array in arrays]
    cotangent = np.ones(function(*leaves).shape, np.float32)

    def no_graph():
        with mq.no_grad():
            function(*leaves)

    def backward():
        for leaf in leaves:
            leaf.zero_grad()
        function(*leaves).backward(cotangent)

    candidates = {
        "no graph": no_graph,
        "forward": lambda: function(*leaves),
        "forward and backward": backward,
    }
    candidates |= {"numpy": lambda: bare(*arrays)} if bare else {}
    samples = interleaved(candidates, rounds, **timing)
    micros = {candidate: round(1e6 * median(samples, candidate), 3) for candidate in samples}
    micros["backward"] = round(1e6 * difference(samples, "forward and backward", "forward"), 3)
    return {"kind": "operation", "operation": name, "us": micros, "samples": samples}


def chain(rounds, timing):
    """Microseconds a node in a chain of additions, one leaf at its start: the bare cost of the
    graph.
    """
    leaf = mq.Tensor(np.ones(1, np.float32), requires_grad=True)

    def forward():
        x = leaf
        for _ in range(CHAIN):
            x = x + 1.0
        return x

    def backward():
        leaf.zero_grad()
        forward().backward()

    samples = interleaved({"forward": forward, "forward and backward": backward}, rounds, **timing)
    micros = {name: round(1e6 * median(samples, name) / CHAIN, 3) for name in samples}
    micros["backward"] = round(
        1e6 * difference(samples, "forward and backward", "forward") / CHAIN, 3
    )
    return {"kind": "chain", "nodes": CHAIN, "us": micros, "samples": samples}


def step(name, rounds, timing):
    """Forward, backward and the whole step of one size, beside the products on their own and the
    machine's sgemm.
    """
    size = SIZES[name]
    model, _, ids, targets = size.training()

    def forward():
        return F.cross_entropy(model(ids), targets)

    def backward():
        model.zero_grad()
        forward().backward()

    square, flop = sgemm()
    candidates = {"forward": forward, "forward and backward": backward, "step": size.step()}
    candidates |= {"products alone": alone(size), "sgemm": square}
    samples = interleaved(candidates, rounds, **timing)
    row = {
        "kind": "step",
        "size": name,
        "V T d L H B": size,
        "ms": {c: 1e3 * median(samples, c) for c in samples},
    }
    both_over_forward = ratio(samples, "forward and backward", "forward")
    row["backward_over_forward"] = [round(r - 1, 4) for r in both_over_forward]
    row["products_over_step"] = ratio(samples, "products alone", "step")
    row["gflops"], row["sgemm_gflops"] = (
        size.flops() / median(samples, "step") / 1e9,
        flop / median(samples, "sgemm") / 1e9,
    )
    rates = [s / t for s, t in zip(samples["sgemm"], samples["step"], strict=True)]
    row["share_of_sgemm"] = float(np.median(rates)) * size.flops() / flop
    return row | {"samples": samples}


def show(rows):
    """The tables."""
    lines = []
    for row in rows:
        if row["kind"] in ("operation", "chain"):
            us = row["us"]
            name = row.get("operation", f"a node of a chain of {CHAIN}")
            shown = (
                f"{us[key]:.2f}" if key in us else ""
                for key in ("numpy", "no graph", "forward", "backward")
            )
            lines.append([name, *shown])
    columns = ["operation", "bare NumPy", "without a graph", "forward", "backward"]
    table(
        "Overhead: µs on tiny arrays",
        columns,
        lines,
        "backward includes giving each leaf its own gradient array",
    )
    lines = []
    for row in rows:
        if row["kind"] == "step":
            ms = [
                f"{row['ms'][key]:.2f}"
                for key in ("forward", "forward and backward", "step", "products alone")
            ]
            rates = (
                f"{row['gflops']:.0f}",
                f"{row['sgemm_gflops']:.0f}",
                f"{100 * row['share_of_sgemm']:.0f} %",
            )
            shares = spread(row["backward_over_forward"]), spread(row["products_over_step"])
            lines.append([row["size"], *ms, *shares, *rates])
    columns = ["size", "forward", "+ backward", "step", "products", "backward/forward"]
    columns += ["products/step", "GFLOP/s", "sgemm", "of sgemm"]
    table(
        "Training step, ms",
        columns,
        lines,
        "GFLOP/s: products of the step, full T x T scores, over the time of all of it",
    )
    for row in rows:
        if row["kind"] == "profile":
            lines = [
                [
                    f"{part['operation']} {part['phase']}".strip(),
                    f"{part['ms']:.3f}",
                    part["calls"],
                    f"{100 * part['share']:.1f} %",
                ]
                for part in row["operations"][:20]
            ]
            table(
                f"Where a step of {row['size']} goes",
                ["operation", "ms a step", "calls", "share"],
                lines,
            )


if __name__ == "__main__":
    run("engine", __doc__, measure, one_thread=True)
