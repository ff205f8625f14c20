"""`minqkv variants`, `tasks`, `gradcheck`, `doctor`, `completion`."""

import os
import shutil
import sys
from dataclasses import fields, replace

import click

from ..designs.models import MODELS
from ..runtime.errors import Exit, UsageError
from ..variants import VARIANTS
from .options import LENGTH, Known, Listed, computes, cores, either, print_json, reports

DTYPES = {"bf16": 2, "fp16": 2, "float16": 2, "float32": 4, "fp32": 4, "float64": 8}


def model_options(command):
    """--config and sizes, or --model; `asked_model` reads them."""
    for name, kind, about in reversed(SIZES):
        command = click.option(name, type=kind, help=f"{about}, instead of the configuration's.")(
            command
        )
    command = click.option(
        "--model",
        type=Known(MODELS),
        help=f"A model in use, by its published sizes, instead of --config: {either(MODELS)}.",
    )(command)
    return click.option(
        "--config",
        type=Known(("300m", "1.2b")),
        help="The model's size: 300m, 1.2b, or a JSON file with the fields of GPTConfig.  "
        "[default: 300m]",
    )(command)


SIZES = (
    ("--n-layer", int, "Number of layers"),
    ("--n-head", int, "Number of heads"),
    ("--n-embd", int, "Width d"),
    ("--vocab-size", int, "Vocabulary"),
    ("--block-size", LENGTH, "Positions"),
)


def asked_model(config, model, dims):
    """(its name, a GPTConfig or a Published) of the model that was asked for."""
    from ..designs.models import published
    from ..models import PRESETS, GPTConfig

    if model is not None:
        for name, value in ({"config": config} | dims).items():
            if value is not None:
                why = f"--model has published sizes: --{name.replace('_', '-')} does not apply"
                raise UsageError(why, "leave it out")
        return model, published(model)
    config = "300m" if config is None else config
    if config.lower() in PRESETS:
        base = PRESETS[config.lower()]
    elif os.path.exists(config):
        base = _read_config(config)
    else:
        raise UsageError(
            f"no configuration {config!r}", f"use {', '.join(PRESETS)}, or the path of a JSON file"
        )
    values = {f.name: getattr(base, f.name) for f in fields(base)} | {
        name: value for name, value in dims.items() if value is not None
    }
    if dims["n_embd"] is not None:
        values["d_ff"] = None
    if dims["n_embd"] is not None or dims["n_head"] is not None:
        values["head_dim"] = None
    return config, GPTConfig(**values)


@click.command()
@model_options
@click.option(
    "--variants",
    "names",
    type=Listed(Known(VARIANTS)),
    help="Variants to list; of --model, what it would keep with these.  "
    "[default: all, gqa with H/4 KV heads; of --model, its own]",
)
@click.option(
    "--context",
    type=LENGTH,
    default="32k",
    show_default=True,
    help="Number of tokens in the cache; 32k is 32,768, and 1M 1,048,576.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="bf16",
    show_default=True,
    help="Number type of the cache.",
)
@click.option("--svg", type=click.Path(dir_okay=False), help="Also save a figure as an SVG file.")
@reports
def variants(config, model, names, context, dtype, svg, as_json, **dims):
    """Formula, parameters, MACs and cache of each variant.

    With --model, what the layers of a model in use keep. Computed from formulas; tests compare them
    with real models and arrays.
    """
    from ..variants import cache_bytes_per_token, defined, formula, macs, params, variant_names

    config, cfg = asked_model(config, model, dims)
    if model is not None:
        _published(cfg, names, context, dtype, svg, as_json)
        return
    groups = next(g for g in range(max(1, cfg.n_head // 4), 0, -1) if cfg.n_head % g == 0)
    thin = max(2, cfg.head_dim // 4 * 2)  # even, so that rotary positions have pairs to turn
    names = names or variant_names(groups, thin, defined(cfg.position))
    configs = {c.variant: c for c in (replace(cfg, variant=name) for name in names)}
    qkv = cache_bytes_per_token(replace(cfg, variant="qkv"), DTYPES[dtype])
    rows = []
    for name, c in configs.items():
        per_token = cache_bytes_per_token(c, DTYPES[dtype])
        rows.append({
            "name": name, "formula": formula(name), "params": params(c),
            "macs": macs(c, context), "macs_causal": macs(c, context, causal=True),
            "cache_bytes_per_token": per_token, "cache_bytes_at_context": per_token * context,
            "reduction": 1 - per_token / qkv,
        })  # fmt: skip
    if svg:
        from ..render.figures import bars
        from ..runtime.files import write_text

        measures = [
            (f"cache bytes per token, {dtype}", [row["cache_bytes_per_token"] for row in rows]),
            ("parameters, millions", [row["params"] / 1e6 for row in rows]),
        ]
        title = f"What each variant stores ({config})"
        write_text(svg, bars(title, [row["name"] for row in rows], measures))
    if as_json:
        print_json(rows)
        return
    from ..render.info import variant_table

    variant_table(rows, cfg, config, context, dtype)


def _published(model, variants, context, dtype, svg, as_json):
    """`variants --model`: what its layers keep, or what they would keep with other variants."""
    models = [model, *(model.with_variant(variant) for variant in variants or ())]
    reports = [{"dtype": dtype} | each.report(context, DTYPES[dtype]) for each in models]
    rows = reports if variants else reports[0]["kinds"]
    if svg:
        from ..render.figures import bars
        from ..runtime.files import write_text

        labels = [row["variant"] or "as it is" if variants else row["kind"] for row in rows]
        measures = [
            (f"{what}, MiB", [row[key] / 2**20 for row in rows])
            for what, key in (("needed", "bytes"), ("as released", "released_bytes"))
        ]
        write_text(svg, bars(f"{model.title}: cache of {context:,} tokens", labels, measures))
    if as_json:
        print_json(rows if variants else reports[0])
        return
    from ..render.info import model_table, replaced_table

    replaced_table(reports) if variants else model_table(reports[0])


def _read_config(path):
    from ..models import GPTConfig
    from ..runtime.files import read_json

    values = read_json(path)
    try:
        return GPTConfig(**values)
    except TypeError as error:
        why = str(error).removeprefix("GPTConfig.__init__() ")
        raise UsageError(
            f"{path}: {why}", "write the fields of GPTConfig as a JSON object"
        ) from error


@click.command()
@click.option("--seq-len", type=LENGTH, default=8, show_default=True, help="Length of an example.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the example."
)
@reports
def tasks(seq_len, seed, as_json):
    """The tasks, each with an example."""
    from ..tasks.registry import field_names, task_class
    from ..tasks.rules import RULES, TASKS

    rows = []
    for name, about in TASKS.items():
        row = {"name": name, "about": about, "input": None, "target": None}
        cls = task_class(name)
        sizes = {"seq_len": seq_len, "pairs": 3, "keys": 5}
        size = {field: sizes[field] for field in field_names(cls) if field in sizes}
        if not (name in RULES and RULES[name].even and seq_len % 2):  # else there is no example
            task = cls(name, **size)
            x, y = task.draw(seed, "test", 1)
            (shown,) = task.mistakes(x, y, y)
            shown = {"input": [f"{x.shape[1]} tokens"]} | shown  # an image has no ids
            row |= {"input": shown["input"], "target": shown["expected"]}
        rows.append(row)
    if as_json:
        print_json(rows)
        return
    from ..render.info import task_table

    task_table(rows)


@click.command()
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the vectors."
)
@computes
def gradcheck(seed, as_json):
    """Check every backward against its forward.

    ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ for random vectors in float64: for operations, each variant's attention, and
    a whole model.
    """
    from ..analysis.selfcheck import checks
    from ..render.console import say, stderr

    rows, messages = [], stderr()
    for name, error, fault in checks(seed):
        rows.append({"name": name, "error": error, "ok": fault is None, "fault": fault})
        if messages.is_terminal:
            say(messages, f"{name} {'ok' if fault is None else 'FAILED'}")
    failed = [row for row in rows if not row["ok"]]
    if as_json:
        print_json(rows)
    else:
        from ..render.info import check_table

        check_table(rows)
        click.echo(f"{len(rows) - len(failed)} of {len(rows)} agree")
    return Exit.CHECK_FAILED if failed else None


@click.command()
@computes
def doctor(as_json):
    """Versions, backend, BLAS, GPU; paste this into a bug report."""
    from ..runtime.doctor import examine

    terminal = {
        "columns": shutil.get_terminal_size().columns,
        "stdout is a terminal": sys.stdout.isatty(),
    }
    terminal["encoding"] = sys.stdout.encoding
    terminal |= {name: os.environ.get(name) for name in ("TERM", "COLORTERM", "NO_COLOR")}
    report = {**examine(), "cores": cores(), "terminal": terminal}
    if as_json:
        print_json(report)
        return
    for name, value in report.items():
        text = (
            ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
            if isinstance(value, dict)
            else value
        )
        click.echo(f"{name:9} {text}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@reports
@click.pass_context
def completion(ctx, shell, as_json):
    """Print the completion script of a SHELL.

    For bash: eval "$(minqkv completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    script = kind(ctx.find_root().command, {}, "minqkv", "_MINQKV_COMPLETE").source()
    print_json({"shell": shell, "script": script}) if as_json else click.echo(script)


COMMANDS = (variants, tasks, gradcheck, doctor, completion)
