"""Language models: what a training step, a token, and the memory of a step cost: `python -m bench.lm`.

Training: tokens/s of the configurations nano and small (minqkv/configs), by the step that `minqkv
train` makes, against eager PyTorch with the same weights, data and AdamW; without dropout, the
losses of the first steps must agree.
"""

import tomllib
from dataclasses import replace
from importlib.resources import files

import numpy as np

from minqkv.runs import configure
from minqkv.train import train_step

from . import products
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

SECTIONS = ("training",)
VOCABULARIES = {"nano": 66, "small": 1024}  # the characters of tiny Shakespeare; byte pairs
STEPS, TOLERANCE = 3, 1e-4  # of losses without dropout


def add_arguments(parser):
    """Some of the sections; two threads unless given."""
    chosen(parser, "sections", SECTIONS)
    parser.set_defaults(threads=2)


def measure(options):
    """Rows of all sections."""
    options.partial = bool(options.sections)
    rounds = options.rounds or (2 if options.quick else 9)
    timing = {"least": 0, "rest": 0} if options.quick else {}
    rows, summary = [], {}
    for section in options.sections or SECTIONS:
        rows += {"training": training}[section](options, rounds, timing)
    return rows, summary


# ---- training


def training(options, rounds, timing):
    """A row for each configuration."""
    torch_gpt = load_torch(options)
    names = ("nano",) if options.quick else VOCABULARIES
    rows = [train_row(name, torch_gpt, options.threads, rounds, timing) for name in names]
    show_training(rows)
    return rows


def train_row(name, torch_gpt, threads, rounds, timing):
    """Time a step of one configuration, of both engines, and the products alone."""
    progress(f"lm: training {name}")
    config = configuration(name, threads)
    agree(config, torch_gpt)
    size = size_of(config)
    candidates = {**steps(config, torch_gpt), "products": products.alone(size)}
    if torch_gpt:
        candidates["torch products"] = products.alone_in_torch(size)
    samples = interleaved(candidates, rounds, **timing)
    tokens = size.B * size.T
    row = {"kind": "training", "configuration": name, "V T d L H B": size}
    row["dropout"] = config.task.dropout
    row["tokens_per_second"] = {
        name: round(tokens / median(samples, name)) for name in samples if "products" not in name
    }
    row["step_over_products"] = ratio(samples, "minqkv", "products")
    if torch_gpt:
        row["best_torch"] = quickest(samples, torch_gpt.CONFIGURATIONS)
        row["ratio"] = ratio(samples, row["best_torch"], "minqkv")
        row["blas_ratio"] = ratio(samples, "torch products", "products")
    return row | {"samples": samples}


def configuration(name, threads):
    """The RunConfig of `minqkv train --config NAME`, on a text that need not exist."""
    values = tomllib.loads((files("minqkv.configs") / f"{name}.toml").read_text("utf-8"))
    values |= values.pop("set")
    values = {key.replace("-", "_"): value for key, value in values.items()}
    own = {"digest": "0" * 12, "vocab_size": VOCABULARIES[name], "threads": threads}
    return configure(values.pop("task"), **values, **own)


def size_of(config):
    """Its Size."""
    cfg, batch = config.task.config(config.variant), config.recipe.batch
    return Size(cfg.vocab_size, cfg.block_size, cfg.n_embd, cfg.n_layer, cfg.n_head, batch)


def steps(config, torch_gpt):
    """{engine: a function that does one training step of a new model and returns the loss}."""
    task, recipe, model = config.task, config.recipe, config.build()
    optimizer, batch = config.optimizer(model), size_of(config).batch()

    def step():
        return train_step(model, optimizer, *batch, recipe.clip, task.loss, task.weight)

    found = {"minqkv": step}
    if torch_gpt:
        settings = {"lr": recipe.lr, "betas": optimizer.betas, "weight_decay": recipe.weight_decay}
        found |= torch_gpt.all_training(model, *batch, **settings)
    return found


def agree(config, torch_gpt):
    """Without dropout, all engines must have the same losses."""
    exact = replace(config, task=replace(config.task, dropout=0.0))
    losses = {
        name: [step() for _ in range(STEPS)] for name, step in steps(exact, torch_gpt).items()
    }
    for name, found in losses.items():
        apart = np.abs(np.subtract(found, losses["minqkv"])).max()
        assert apart < TOLERANCE, f"{name}: losses differ by {apart:.1e}"


def show_training(rows):
    """The table."""
    lines = []
    for row in rows:
        speed = row["tokens_per_second"]
        theirs = ("", "", "")
        if "ratio" in row:
            theirs = (
                f"{speed[row['best_torch']]:,}",
                spread(row["ratio"]),
                spread(row["blas_ratio"]),
            )
        over = f"{row['step_over_products'][0]:.2f}"
        lines.append([row["configuration"], f"{speed['minqkv']:,}", *theirs, over])
    columns = ["tokens/s", "minqkv", "PyTorch", "/ PyTorch", "BLAS", "/ products"]
    table("Training", columns, lines, legend=TRAINING)


TRAINING = """\
/ PyTorch: minqkv's tokens/s over PyTorch's, the best of {SDPA, written-out
  attention} x {fused, default AdamW}: median over the rounds [quartiles]
BLAS: the same of the step's matrix products alone: NumPy's over PyTorch's
/ products: the time of minqkv's step over that of its products"""


if __name__ == "__main__":
    run("lm", __doc__, measure, add_arguments)
