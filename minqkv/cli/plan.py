"""`minqkv plan`: which variant, cache and number type fit a machine, and what they cost."""

from pathlib import Path

import click

from ..caches import KINDS
from ..runtime.errors import UsageError
from ..variants import VARIANTS
from .info import DTYPES, SIZES, asked_model, model_options
from .options import LENGTH, SIZE, Known, Listed, computes, either, print_json

_HELP = {
    "names": "Variants to compare; of --model, instead of its own design.  "
    "[default: qkv, q-k=v, mqa, q-mqa, and gqa and q-gqa with H/4 KV heads]",
    "caches": f"{either(KINDS)}.  [default: plain and int8; with --window, also rings]",
    "dtypes": f"Numbers in a plain cache or a ring: {either(DTYPES)}.  [default: bf16]",
    "context": "Tokens of each sequence; 32k is 32,768, and 1M 1,048,576.",
    "batch": "Number of sequences.",
    "memory": "Show what fits into this much: 8GB is 8·10⁹ bytes, 8GiB 8·2³⁰.",
    "bandwidth": "Of this memory, for the speed: 100GB/s.",
    "weights": "Bytes of all weights.  [default: two for each, as in bf16]",
    "deployment": "Show the authors' advice for devices, with our figures beside it.",
    "study": "Show which arms of a study no other arm beats in quality and bytes.",
    "svg": "With --study: also save a figure as an SVG file.",
}


def _option(flag, name, **about):
    return click.option(flag, name, help=_HELP[name], **about)


@click.command()
@model_options
@_option("--variants", "names", type=Listed(Known(VARIANTS)))
@_option("--cache", "caches", type=Listed(Known(KINDS)))
@_option("--dtype", "dtypes", type=Listed(click.Choice(list(DTYPES))))
@click.option("--window", type=LENGTH, help="Positions that a ring keeps.")
@_option("--context", "context", type=LENGTH, default="32k", show_default=True)
@_option("--batch", "batch", type=click.IntRange(1, 10**9), default=1, show_default=True)
@_option("--memory", "memory", type=SIZE)
@_option("--bandwidth", "bandwidth", type=SIZE)
@_option("--weights", "weights", type=SIZE)
@_option("--deployment", "deployment", is_flag=True)
@_option("--study", "study", type=click.Path(path_type=Path), metavar="DIR")
@_option("--svg", "svg", type=click.Path(dir_okay=False))
@computes
@click.pass_context
def plan(ctx, study, deployment, svg, as_json, config, model, context, batch, **asked):
    """Which variant and cache fit your machine, and at what cost.

    Bytes of weights and cache, the longest context and the largest batch that fit --memory, and a
    bound on the speed by --bandwidth. Beside them is the measured cost in quality, or "not
    measured".
    """
    sizes = {name[2:].replace("-", "_") for name, *_ in SIZES}
    dims = {name: asked.pop(name) for name in sizes}
    if study:
        _only(ctx, "--study", {"study", "svg"})
        _study(study, svg, as_json)
        return
    if svg:
        raise UsageError("--svg draws a study", "--study DIR")
    if deployment:
        _only(ctx, "--deployment", {"deployment", "config", "context", "batch", *sizes})
    name, cfg = asked_model(config, model, dims)
    if deployment:
        _deployment(name, cfg, context, batch, as_json)
    else:
        _plan(name, cfg, context, batch, as_json, **asked)


def _only(ctx, flag, known):
    """Refuse typed options that do not go with `flag`."""
    for option in ctx.command.params:
        typed = ctx.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
        if typed and option.name not in known | {"as_json"}:
            raise UsageError(f"{option.opts[0]} does not apply to {flag}", "leave one of them out")


def _plan(
    name, cfg, context, batch, as_json, names, caches, dtypes, window, memory, bandwidth, weights
):  # fmt: skip
    from ..analysis.plan import check_memory, options, positions
    from ..study.quality import plan as planned

    caches = caches or ("plain", "int8", *(["ring", "int8-ring"] if window else []))
    if dtypes and all(KINDS[cache].rounds for cache in caches if cache in KINDS):
        raise UsageError(f"--dtype does not apply to {', '.join(caches)}", "leave it out")
    types = {dtype: DTYPES[dtype] for dtype in dtypes or ("bf16",)}
    found = options(cfg, names, caches, types, window, weights)
    if memory is not None:
        check_memory(found, memory)
    report = {"model": name} | planned(found, context, batch, memory, bandwidth)
    if as_json:
        print_json(report)
        return
    from ..render.plan import plan_table

    plan_table(report, positions(cfg), weights is not None)


def _deployment(name, cfg, context, batch, as_json):
    from ..analysis.plan import positions
    from ..study.quality import deployment

    report = {"model": name} | deployment(cfg, context, batch, {"bf16": DTYPES["bf16"]})
    if as_json:
        print_json(report)
        return
    from ..render.plan import deployment_table

    deployment_table(report, positions(cfg))


def _study(folder, svg, as_json):
    from ..render.plan import frontier_figure, frontier_tables
    from ..render.study import groups
    from ..runtime.files import write_text
    from ..study.quality import as_data
    from ..study.stored import read_study

    cells = read_study(folder).cells
    if not cells:
        raise UsageError(f"{folder}: this study has no tables yet", "repeat its command")
    if svg:
        write_text(svg, frontier_figure(cells))
    if as_json:
        print_json([as_data(title, found) for title, _, found in groups(cells)])
    else:
        frontier_tables(cells)


COMMANDS = (plan,)
