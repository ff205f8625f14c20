"""The cost of training a language model, and of writing with it: `python -m bench.lm`.

Training: tokens/s of the configurations nano and small (minqkv/configs), for the training step of
`minqkv train`, against eager PyTorch with the same weights, data, dropout and AdamW. Without
dropout, the losses of the first steps must agree. Caches: bench.kinds. Tokenizers:
bench.tokenizers. Recomputation: time and peak memory of a step on long sequences, with and without
it, and the memory that `minqkv train` estimates.
"""

import tomllib
from dataclasses import replace
from importlib.resources import files

import numpy as np

from minqkv.analysis.needs import needs
from minqkv.runs import configure
from minqkv.train import train_step

from . import kinds, memory, products, tokenizers
from .common import (
    chosen,
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

VOCABULARIES = {"nano": 66, "small": 1024}  # the characters of tiny Shakespeare; byte pairs
STEPS, TOLERANCE = 3, 1e-4  # of losses without dropout
LONG = {"seq_len": 1024, "n_embd": 256, "n_layer": 6, "n_head": 8, "batch": 4}
QUICK = {"seq_len": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "batch": 4}
CONSECUTIVE = {"least": 0.3, "rest": 0.3}  # a sample of training: steps in a row, as in a run
LIMIT_SECONDS = 300  # for a measurement of memory


def add_arguments(parser):
    """Which sections, and the text for the tokenizers. Two threads unless given."""
    chosen(parser, "sections", SECTIONS)
    tokenizers.add_arguments(parser)
    parser.set_defaults(threads=2)


def measure(options):
    """Rows of all sections, each with its table."""
    options.partial = bool(options.sections or options.text)
    rounds = options.rounds or (2 if options.quick else 9)
    timing = {"least": 0, "rest": 0} if options.quick else {}
    rows, summary = [], {}
    for name in options.sections or SECTIONS:
        more, found = SECTIONS[name](options, rounds, timing)
        rows += more
        summary |= found
    return rows, summary


# ---- training


def training(options, rounds, timing):
    """A row for each configuration."""
    torch_gpt = load_torch(options)
    changes = {"nano": QUICK} if options.quick else {name: {} for name in VOCABULARIES}
    configs = {name: configuration(name, options.threads, **c) for name, c in changes.items()}
    timing = CONSECUTIVE | timing
    rows = [train_row(name, config, torch_gpt, rounds, timing) for name, config in configs.items()]
    show_training(rows)
    return rows, {f"{row['configuration']}: tokens/s": row["tokens_per_second"] for row in rows}


def train_row(name, config, torch_gpt, rounds, timing):
    """Time a step of one configuration in both engines, and its matrix products alone."""
    progress(f"lm: training {name}")
    agree(config, torch_gpt)
    size = size_of(config)
    candidates = {**steps(config, torch_gpt), "products": products.alone(size)}
    if torch_gpt:
        candidates["torch products"] = products.alone_in_torch(size)
    samples = interleaved(candidates, rounds, **timing)
    row = {"kind": "training", "configuration": name, "V T d L H B": size}
    row |= {"dropout": config.task.dropout, "tokens_per_second": {}}
    for engine in samples.keys() - {"products", "torch products"}:
        row["tokens_per_second"][engine] = round(size.B * size.T / median(samples, engine))
    row["step_over_products"] = ratio(samples, "minqkv", "products")
    if torch_gpt:
        row["best_torch"] = quickest(samples, torch_gpt.CONFIGURATIONS)
        row["ratio"] = ratio(samples, row["best_torch"], "minqkv")
        row["blas_ratio"] = ratio(samples, "torch products", "products")
    return row | {"samples": samples}


def configuration(name, threads, **changes):
    """The RunConfig of `minqkv train --config NAME`, changed; its text need not exist."""
    values = tomllib.loads((files("minqkv.configs") / f"{name}.toml").read_text("utf-8"))
    values |= values.pop("set")
    values = {key.replace("-", "_"): value for key, value in values.items()}
    values |= {"digest": "0" * 12, "vocab_size": VOCABULARIES[name], "threads": threads}
    return configure(values.pop("task"), **values | changes)


def size_of(config):
    """Its Size."""
    cfg, batch = config.task.config(config.variant), config.recipe.batch
    return Size(cfg.vocab_size, cfg.block_size, cfg.n_embd, cfg.n_layer, cfg.n_head, batch)


def steps(config, torch_gpt=None):
    """{engine: a function that does one training step of a new model and returns the loss}."""
    task, recipe, model = config.task, config.recipe, config.build()
    batch, optimizer = size_of(config).batch(), config.optimizer(model)
    settings = {"lr": recipe.lr, "betas": optimizer.betas, "weight_decay": recipe.weight_decay}
    found = {}
    if torch_gpt:  # first: it copies the weights, which the step changes
        found = torch_gpt.all_training(model, *batch, **settings)

    def step():
        return train_step(model, optimizer, *batch, recipe.clip, task.loss, task.weight)

    return {"minqkv": step, **found}


def agree(config, torch_gpt):
    """Without dropout, all engines must have the same losses."""
    exact = steps(replace(config, task=replace(config.task, dropout=0.0)), torch_gpt)
    losses = {engine: [step() for _ in range(STEPS)] for engine, step in exact.items()}
    for engine, found in losses.items():
        apart = np.abs(np.subtract(found, losses["minqkv"])).max()
        assert apart < TOLERANCE, f"{engine}: losses differ by {apart:.1e}"


TRAINING = """\
tokens/s; / PyTorch: minqkv's over those of PyTorch's best of {SDPA,
  written-out attention} x {fused, default AdamW}
BLAS: the same ratio for the matrix products of a step alone
/ products: the time of minqkv's step over that of its products
A ratio is the median over the rounds [its quartiles]."""


def show_training(rows):
    """The table."""
    lines = []
    for row in rows:
        speed, theirs = row["tokens_per_second"], ("", "", "")
        if "ratio" in row:
            best = f"{speed[row['best_torch']]:,}"
            theirs = best, spread(row["ratio"]), f"{row['blas_ratio'][0]:.2f}"
        over = f"{row['step_over_products'][0]:.2f}"
        lines.append([row["configuration"], f"{speed['minqkv']:,}", *theirs, over])
    columns = ["", "minqkv", "PyTorch", "/ PyTorch", "BLAS", "/ products"]
    table("Training", columns, lines, legend=TRAINING)


# ---- recomputation


def recomputation(options, rounds, timing):
    """Two rows: a step on long sequences that keeps its activations, and one that does not."""
    changes = {"dropout": 0.0, **(QUICK if options.quick else LONG)}
    configs = [
        configuration("small", options.threads, recompute=recompute, **changes)
        for recompute in (False, True)
    ]
    progress("lm: a step with and without recomputation")
    candidates = {str(config.task.recompute): steps(config)["minqkv"] for config in configs}
    samples = interleaved(candidates, rounds, **timing)
    rows = [memory_row(config, samples[str(config.task.recompute)]) for config in configs]
    time = ratio(samples, "True", "False")
    peak = rows[1]["traced"] / rows[0]["traced"]
    show_recomputation(rows, time)
    return rows, {"recomputed: time": time, "recomputed: peak memory": peak}


def memory_row(config, samples):
    """Peak bytes above the weights, in a separate process, and by formula."""
    size, recompute = size_of(config), config.task.recompute
    task = {"kind": "step", "size": size, "variant": config.variant, "recompute": recompute}
    task |= {"threads": config.threads, "limit_GiB": None, "engine": "minqkv"}
    found, formula = memory.child(task, LIMIT_SECONDS), needs(config)
    row = {"kind": "recomputation", "V T d L H B": size, "recompute": recompute}
    row |= {name: found.get(name) for name in ("traced", "resident")}
    row["formula"] = formula.gradients + formula.moments + formula.activations
    return row | {"activations": formula.activations, "samples": {"minqkv": samples}}


RECOMPUTATION = """\
MB above the weights, at the peak; formula: gradients, moments, activations
traced: what NumPy asked for, temporaries included; resident: of the process"""


def show_recomputation(rows, time):
    """The table."""
    lines = []
    for row in rows:
        figures = row["formula"], row["activations"], row["traced"], row["resident"]
        figures = [f"{figure / 1e6:,.1f}" if figure else "failed" for figure in figures]
        seconds = median(row["samples"], "minqkv")
        lines.append(["yes" if row["recompute"] else "no", *figures, f"{seconds:.2f}"])
    size = rows[0]["V T d L H B"]
    title = f"A step at T {size.T}, d {size.d}, L {size.L}, B {size.B}"
    columns = ["recomputed", "formula", "activations", "traced", "resident", "seconds"]
    note = f"time of a step, recomputed over not: {spread(time)}"
    table(title, columns, lines, note, RECOMPUTATION)


SECTIONS = {
    "training": training,
    "caches": kinds.measure,
    "tokenizers": lambda options, *_: tokenizers.measure(options),
    "recomputation": recomputation,
}


if __name__ == "__main__":
    run("lm", __doc__, measure, add_arguments)
