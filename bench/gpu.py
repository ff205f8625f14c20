"""A day on a GPU in one command: `python -m bench.gpu`.

Runs the GPU tests; compares operations, training steps and decoded tokens with PyTorch on the same
card, what they compute and how long they take; measures what the card can do at best. For a card of
bench/gpus.toml, each time is also shown as a share of its bound (bench.roofline). Every result is
written as soon as it is there, to bench/results/gpu-<part>.json, so a run that is cut short keeps
what it has. When the time is up, what is left is left out, and said so. Exits 1 where a test
failed or two results disagree, 3 without a GPU. PyTorch is optional: without it, its columns stay
empty. With --precision tf32 or bf16 the products of both sides are in TF32, ours in bf16, and the
files have that name too.
"""

import argparse
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from minqkv.kernels.products import PRECISIONS
from minqkv.runtime import backend
from minqkv.runtime.errors import EnvironmentFault

from . import gpu_card, gpu_models, gpu_ops
from .bounds import gpu_of, shares
from .card import this_machine
from .common import (
    ENVIRONMENT,
    RESULTS,
    command,
    machine,
    per_cent,
    progress,
    spread,
    table,
    write_result,
)

PARTS = {  # name -> cases(card, left): name -> a function that measures it and returns a row
    "tests": gpu_card.test_cases,
    "ops": gpu_ops.cases,
    "step": gpu_models.step_cases,
    "decode": gpu_models.decode_cases,
    "ceilings": gpu_card.ceiling_cases,
}
LONGEST = 15  # seconds a case may take: none is begun in the last ones


def main():
    options = parse()
    try:
        card = this_machine()
    except EnvironmentFault as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        sys.exit(ENVIRONMENT)
    try:
        done = run(options.parts, card, options.out, options.minutes, options.precision)
        sys.exit(0 if done else 1)
    except KeyboardInterrupt:
        print(f"bench.gpu: interrupted; what was done is in {options.out}", file=sys.stderr)
        sys.exit(130)


def parse():
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ",".join(PARTS)
    parser.add_argument(
        "--parts", type=_parts, default=list(PARTS), help=f"in this order (default: {names})"
    )
    parser.add_argument("--minutes", type=float, default=8, help="in all (default: 8)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for the files (default: bench/results)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of products (default: fp32)"
    )
    return parser.parse_args()


def _parts(text):
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
    return parts


def run(parts, card, folder, minutes, precision="fp32", now=time.monotonic):
    """Measure these parts; returns whether all that was measured is right.

    `now` is the clock of the budget.
    """
    end = now() + 60 * minutes
    right, left_out = True, []
    with backend.use_backend(card.backend):
        for part in parts:
            with multiplying(card, precision):
                rows, late = measure(part, card, folder, lambda: end - now(), precision)
            right = right and not any("failed" in r or r.get("agrees") is False for r in rows)
            left_out += [f"{part} {case}" for case in late]
            if rows:
                show(part, rows)
    if left_out:
        progress(f"bench.gpu: the {minutes:g} minutes are over; left out: {', '.join(left_out)}")
    return right


@contextmanager
def multiplying(card, precision):
    """`with`: products in this precision; PyTorch's in TF32 unless it is "fp32"."""
    backend.use_precision(precision)
    card.tf32(precision != "fp32")
    try:
        yield
    finally:
        backend.use_precision("fp32")
        card.tf32(False)


def measure(part, card, folder, left, precision="fp32"):
    """(rows, names of the cases there was no time for) of one part, written after each case.

    `left()` is how many seconds there are. A case that fails is a row that says how.
    """
    head = {"part": f"gpu-{part}", "command": command("gpu"), "complete": False, "left_out": []}
    head |= {"precision": precision, "machine": machine() | card.description}
    path = Path(folder) / f"gpu-{part}{'' if precision == 'fp32' else f'-{precision}'}.json"
    rows = []
    cases = PARTS[part](card, left)
    for name, function in cases.items():
        if left() < LONGEST:
            head["left_out"].append(name)
            continue
        progress(f"gpu: {part} {name}")
        row = {"case": name, **attempt(function)}
        rows.append(row | shares(part, row, gpu_of(card.description["gpu"]), precision))
        card.release()
        write_result(path, head, rows)
    if rows:
        head["complete"] = not head["left_out"]
        write_result(path, head, rows)
    return rows, head["left_out"]


def attempt(function):
    """Its row; for an error, among them one of memory, a row that names it."""
    try:
        return function()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".strip()}


MODEL = ["minqkv ms", "PyTorch ms", "ratio", "of bound", "tokens/s", "differ by"]
TIMES = ["PyTorch", "ratio", "of bound"]
COLUMNS = {
    "tests": ["summary"],
    "ops": ["forward ms", *TIMES, "and backward ms", *TIMES, "differ by"],
    "step": MODEL,
    "decode": MODEL,
    "ceilings": ["", "CuPy", "PyTorch", "of the data sheet", "PyTorch"],
}


def show(part, rows):
    """The table of a part: one line a case."""
    lines = []
    for row in rows:
        text = row.get("failed") or row.get("summary")
        lines.append([row["case"], *([text] if text else figures(part, row))])
    table(f"gpu: {part}", ["case", *COLUMNS[part]], lines)


def figures(part, row):
    """The numbers of a row as text, for these columns."""
    if part == "ceilings":
        unit, rates = "GB/s", row.get("GB_per_second")
        if rates is None:
            unit, rates = "TFLOP/s", row["tflops"]
        cells = [f"{rate:.1f}" for rate in rates.values()]
        cells += [""] * (2 - len(cells))  # without PyTorch
        return [unit, *cells, *(_of_bound(row, name) for name in rates)]
    differ = f"{max(row['differ_by'].values()):.0e}" if "differ_by" in row else ""
    if part == "ops":
        names = [n for n in ("forward", "both", "step") if n in row["median_ms"]]
        cells = [c for n in names for c in _beside(row, n, f"torch {n}", f"{n}_ratio")]
        return [*cells, *[""] * (8 - len(cells)), differ]
    cells = _beside(row, "minqkv", row.get("best_torch"), "ratio")
    return [*cells, f"{row['tokens_per_second']:,}", differ]


def _beside(row, ours, theirs, ratio):
    ms = row["median_ms"]
    over = spread(row[ratio]) if ratio in row else ""
    theirs = f"{ms[theirs]:.3f}" if theirs in ms else ""
    return [f"{ms[ours]:.3f}", theirs, over, _of_bound(row, ours)]


def _of_bound(row, name):
    """A share of its bound as text; empty where there is none."""
    share = row.get("of_bound", {}).get(name)
    return "" if share is None else per_cent(share)


if __name__ == "__main__":
    main()
