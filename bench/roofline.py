"""What a GPU can do at most: `python -m bench.roofline --gpu H200`.

For each variant of a model, the least time of a decoded token and of a training step, and of the
kernels they are made of: by the bytes that are moved, and by the operations. Nothing is measured.
With --results, the committed figures of bench.gpu are shown beside their bounds. Figures of GPUs
are data with sources, in gpus.toml; bounds.py says what is counted.
"""

import argparse
import sys
import tomllib
from argparse import ArgumentTypeError
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import click

from minqkv.analysis.plan import positions, usual
from minqkv.cli.info import SIZES, asked_model
from minqkv.cli.options import LENGTH, print_json
from minqkv.models import PRESETS, GPTConfig
from minqkv.render.console import say, stdout, table
from minqkv.runtime.errors import MinqkvError, UsageError
from minqkv.runtime.files import read_json
from minqkv.runtime.version import code_version

from .bounds import ITEMSIZE, Work, gpu, gpu_of, shares, step, token, whole_step
from .common import RESULTS, command, per_cent, write_result

UNITS = dict.fromkeys(("ops", "step", "decode"), "ms") | {"ceilings": "GB/s or TFLOP/s"}


def main():
    options = parse()
    try:
        results(options) if options.results else bounds(options)
    except MinqkvError as error:
        hint = f"; {error.hint}" if error.hint else ""
        print(f"bench.roofline: {error}{hint}", file=sys.stderr)
        sys.exit(error.code)


def bounds(options):
    """Compute, write and print all bounds that were asked for."""
    report = computed(options)
    if options.out:
        path = options.out / f"{report['config']}-{report['gpu']['name'].lower()}.json"
        write_result(path, {k: v for k, v in report.items() if k != "rows"}, report["rows"])
    print_json(report) if options.json else show(report)


def results(options):
    """Print the committed files of bench.gpu, each figure as a share of its bound."""
    found = read_results(RESULTS)
    print_json(found) if options.json else show_results(found)


def parse(words=None):
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gpu", help="a card of bench/gpus.toml: H200, H100, A100, 4090 or T4")
    what.add_argument(
        "--results", action="store_true", help="the files of bench.gpu, beside their bounds"
    )
    parser.add_argument("--variant", nargs="+", help="default: qkv, q-k=v, and with fewer KV heads")
    parser.add_argument(
        "--config", default="300m", help="300m, 1.2b, or a JSON file (default: %(default)s)"
    )
    parser.add_argument(
        "--context", type=_length, default="32k", help="of decoding, in tokens (default: 32k)"
    )
    parser.add_argument(
        "--batch", type=_length, default=8, help="sequences, in decoding and training (default: 8)"
    )
    parser.add_argument(
        "--dtype", choices=ITEMSIZE, default="bf16", help="of weights, cache and activations"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="folder: also write a JSON file there")
    return parser.parse_args(words)


def _length(text):
    try:
        return LENGTH.convert(text, None, None)
    except click.BadParameter as error:
        raise ArgumentTypeError(error.message) from error


def configuration(name):
    """(name, GPTConfig) of a model, with the dropout of its recipe if it has one."""
    name, cfg = asked_model(name, None, {flag[2:].replace("-", "_"): None for flag, *_ in SIZES})
    if name.lower() in PRESETS:
        recipe = (files("minqkv.configs") / f"{name.lower()}.toml").read_text("utf-8")
        cfg = replace(cfg, dropout=tomllib.loads(recipe)["set"]["dropout"])
    if cfg.window is not None:
        raise UsageError(f"{name}: a window is not counted here", "leave it out")
    return Path(name).stem, cfg


# ---- bounds


def computed(options):
    """All bounds, as data."""
    card = gpu(options.gpu)
    card.check(options.dtype)
    name, cfg = configuration(options.config)
    names = options.variant or usual(cfg)
    variants = list({c.variant: c for c in (replace(cfg, variant=v) for v in names)}.values())
    base = replace(cfg, variant="qkv")
    asked = options.context, options.batch, options.dtype
    sizes = {key: getattr(cfg, key) for key in (*GPTConfig.sizes, "d_ff", "position", "dropout")}
    rows = [of_token(each, base, card, *asked) for each in variants]
    rows += [of_step(each, base, card, *asked[1:]) for each in variants]
    rows += [row for each in variants for row in of_kernels(each, card, *asked)]
    return {
        "part": "roofline",
        "command": command("roofline"),
        "versions": {"minqkv": code_version()},
        "measured": False,
        "config": name,
        "sizes": sizes,
        "positions": positions(cfg),
        "gpu": vars(card),
        "dtype": options.dtype,
        "context": options.context,
        "batch": options.batch,
        "rows": rows,
    }


def about(work, card, dtype):
    """The bound of some work, as data."""
    bound = card.bound(work, dtype)
    return {
        "bytes": work.nbytes,
        "operations": work.products + work.others,
        "bytes_ms": 1e3 * bound.bytes_s,
        "operations_ms": 1e3 * bound.operations_s,
        "fp32_units_ms": 1e3 * card.bound(work, "fp32").operations_s,
        "ms": 1e3 * bound.seconds,
        "binds": bound.binds,
        "intensity": bound.intensity,
    }


def of_token(cfg, base, card, context, batch, dtype):
    """A decoded token of this variant, its rows of K = V read once; and read twice."""

    def bound(cfg, reads):
        parts = token(cfg, context, batch, dtype, reads)
        found = about(sum(parts.values(), Work(0)), card, dtype)
        found["tokens_per_second"] = 1e3 * batch / found["ms"]
        return found | {"weights_bytes": parts["gemv products"].nbytes}

    once, twice, qkv = bound(cfg, 1), bound(cfg, 2), bound(base, 1)
    over = {n: each["tokens_per_second"] / qkv["tokens_per_second"]
            for n, each in (("once", once), ("twice", twice))}  # fmt: skip
    row = {"kind": "token", "variant": cfg.variant, **once, "over_qkv": over["once"]}
    row |= {"cache_bytes": once["bytes"] - once["weights_bytes"]}
    row |= {"fits": once["bytes"] <= card.memory}
    more = {key: twice[key] for key in ("bytes", "ms", "tokens_per_second")}
    return row | {"read_twice": more | {"over_qkv": over["twice"]}}


def of_step(cfg, base, card, batch, dtype):
    """A training step of this variant; and one kernel of it after another."""

    def bound(cfg):
        found = about(whole_step(cfg, batch, dtype), card, dtype)
        kernels = step(cfg, batch, dtype).values()
        found["kernels_ms"] = sum(1e3 * card.bound(work, dtype).seconds for work in kernels)
        tokens = 1e3 * batch * cfg.block_size
        return found | {
            "tokens_per_second": tokens / found["ms"],
            "kernels_tokens_per_second": tokens / found["kernels_ms"],
        }

    found, key = bound(cfg), "kernels_tokens_per_second"
    over = found[key] / bound(base)[key]
    return {"kind": "step", "variant": cfg.variant, **found, "kernels_over_qkv": over}


def of_kernels(cfg, card, context, batch, dtype):
    """Each kernel of a token and of a step: all its calls together."""
    once, twice = (token(cfg, context, batch, dtype, reads) for reads in (1, 2))
    if twice != once:
        once["decode attention, K = V read twice"] = twice["decode attention"]
    for of, works in (("token", once), ("step", step(cfg, batch, dtype))):
        for name, work in works.items():
            row = {"kind": "kernel", "of": of, "variant": cfg.variant, "kernel": name}
            yield row | about(work, card, dtype)


# ---- tables


def show(report):
    """The tables of a report."""
    console, card, rows = stdout(), report["gpu"], report["rows"]
    kinds = {kind: [r for r in rows if r["kind"] == kind] for kind in ("token", "step", "kernel")}
    first = kinds["token"][0]["variant"]
    rates = ", ".join(f"{name} {rate / 1e12:g}" for name, rate in card["rates"].items())
    say(console, f"{card['title']}: {card['memory'] / 1e9:g} GB, {card['bandwidth'] / 1e9:,g} GB/s")
    say(console, f"TFLOP/s, dense: {rates}")
    say(console, f"Model {report['config']}, {report['dtype']}; batch {report['batch']:,}.")
    say(console, "Nothing here is measured: these are the least times that are possible.")
    console.print()
    _tokens(console, report, kinds["token"])
    _steps(console, report, kinds["step"])
    for of, what in (("token", "a decoded token"), ("step", "a training step")):
        found = [r for r in kinds["kernel"] if (r["of"], r["variant"]) == (of, first)]
        _kernels(console, f"Kernels of {what} of {first}, all calls together", found)
    for line in NOTES:
        say(console, line)
    if report["positions"] is not None and report["context"] > report["positions"]:
        least = f"This model has {report['positions']:,} learned positions; it cannot read more."
        say(console, f"{least} With rotary positions it could, at the same bytes.")
    if late := [r["variant"] for r in kinds["token"] if not r["fits"]]:
        say(console, f"Weights and cache do not fit into the memory: {', '.join(late)}.")


NOTES = (
    "Binds: the longer of the times for bytes and for operations. FLOP/byte: arithmetic intensity.",
    "On fp32 units: the time for operations if no tensor core computes the products.",
    "One kernel after another: the sum of the bounds of these kernels, if nothing stays in the "
    "chip's cache between two of them. A program with other kernels may be faster.",
)
TIMES = [("ms for\nbytes", "right"), ("ms for\noperations", "right")]
TIMES += [("ms on\nfp32 units", "right"), ("binds", "left"), ("FLOP\n/byte", "right")]


def _times(row):
    times = (f"{row[key]:.3f}" for key in ("bytes_ms", "operations_ms", "fp32_units_ms"))
    return [*times, row["binds"], f"{row['intensity']:,.1f}"]


def _tokens(console, report, rows):
    columns = [("variant", "left"), ("weights,\nGB", "right"), ("cache,\nGB", "right"), *TIMES]
    columns += [("tokens/s\nat most", "right"), ("over\nqkv", "right")]
    columns += [("tokens/s, K = V\nread twice", "right"), ("over\nqkv", "right")]
    lines = []
    for row in rows:
        sizes = [f"{row[key] / 1e9:.3f}" for key in ("weights_bytes", "cache_bytes")]
        line = [row["variant"], *sizes, *_times(row)]
        for each in (row, row["read_twice"]):
            line += [f"{each['tokens_per_second']:,.0f}", f"{each['over_qkv']:.2f}"]
        lines.append(line)
    title = (
        f"A decoded token of each of {report['batch']:,} sequences, {report['context']:,} tokens"
    )
    table(console, title, columns, lines)


def _steps(console, report, rows):
    columns = [("variant", "left"), *TIMES, ("tokens/s\nat most", "right")]
    columns += [("ms, one kernel\nafter another", "right"), ("tokens/s", "right")]
    columns += [("over\nqkv", "right")]
    lines = []
    for row in rows:
        line = [row["variant"], *_times(row), f"{row['tokens_per_second']:,.0f}"]
        line += [f"{row['kernels_ms']:.3f}", f"{row['kernels_tokens_per_second']:,.0f}"]
        lines.append([*line, f"{row['kernels_over_qkv']:.2f}"])
    length = report["sizes"]["block_size"]
    table(console, f"A training step of {report['batch']:,} × {length:,} tokens", columns, lines)


def _kernels(console, title, rows):
    columns = [("kernel", "left"), ("MB", "right"), ("GFLOP", "right"), *TIMES]
    lines = [
        [r["kernel"], f"{r['bytes'] / 1e6:,.1f}", f"{r['operations'] / 1e9:,.1f}", *_times(r)]
        for r in rows
    ]
    table(console, title, columns, lines)


# ---- what was measured


def show_results(found):
    """A table for each file; see read_results."""
    console = stdout()
    columns = [("measured", "left"), ("value", "right"), ("bound", "right"), ("share", "right")]
    for one in found:
        say(console, f"{one['part']}: {one['gpu']}, {one['date']}, {one['command']}")
        if one["card"] is None:
            say(console, "This card is not in bench/gpus.toml, so it has no bounds.")
            console.print()
            continue
        lines = []
        for row in one["rows"]:
            values = [_value(row[key]) for key in ("value", "bound")]
            lines.append([f"{row['case']}: {row['what']}", *values, per_cent(row["share"])])
        table(console, f"In {one['unit']}", columns, lines)
    say(console, "Both: forward and backward. Array: CuPy. Share: bound / time, or rate / rate.")


def read_results(folder):
    """Each file of bench.gpu in a folder: the card, the command, and a row for each figure that has
    a bound. Raises UsageError where there is none.
    """
    found = []
    for part, unit in UNITS.items():
        path = Path(folder) / f"gpu-{part}.json"
        if not path.exists():
            continue
        result = read_json(path)
        device, rows = result["machine"]["gpu"], []
        card = gpu_of(device)
        for row in result["rows"]:
            values = row.get("median_ms") or row.get("GB_per_second") or row.get("tflops") or {}
            for what, share in shares(part, row, card).get("of_bound", {}).items():
                bound = values[what] / share if part == "ceilings" else values[what] * share
                more = {"value": values[what], "bound": bound, "share": share}
                rows.append({"case": row["case"], "what": what, **more})
        about = {"gpu": device, "date": result["machine"]["date"], "command": result["command"]}
        title = card and card.title
        found.append({"part": f"gpu-{part}", **about, "card": title, "unit": unit, "rows": rows})
    if not found:
        raise UsageError(f"{folder}: no file of bench.gpu", "python -m bench.gpu, on a GPU")
    return found


def _value(x):
    return f"{x:,.1f}" if x >= 100 else f"{x:.3f}"


if __name__ == "__main__":
    main()
