"""What every benchmark shares: options, interleaved timing, medians of pairwise ratios, tables, a
JSON file with all samples.
"""

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path

import threadpoolctl
from rich.console import Console
from rich.table import Table

PARTS = ("step", "decode", "memory", "engine", "scale", "threads", "lm")
# Not from the package: a side of --against imports this beside an older version of it.
VARIANTS = (
    "qkv", "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+", "gqa-2", "mqa", "q-gqa-2", "q-mqa",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
ENVIRONMENT = 3  # the exit code of the command line for something that is not installed


class NotInstalled(Exception):
    """PyTorch is needed for a comparison and is not here."""


def chosen(parser, name, known, kind=str):
    """An option that limits a run to some of `known`; such a run writes a file only with --out."""
    parser.add_argument(
        f"--{name}",
        nargs="+",
        type=kind,
        choices=known,
        metavar=name.upper(),
        help=f"only these, of {', '.join(map(str, known))}; writes a file only with --out",
    )


def parse(doc, add_arguments=None):
    """The options all parts take, and the part's own."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument(
        "--threads", type=_positive, default=cores(), help="for both sides (default: all cores)"
    )
    parser.add_argument("--rounds", type=_positive, help="samples of each candidate")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of seconds; writes a file only with --out"
    )
    parser.add_argument(
        "--without-torch", action="store_true", help="leave the comparison with PyTorch out"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON file (default: bench/results)"
    )
    if add_arguments:
        add_arguments(parser)
    return parser.parse_args()


def cores():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _positive(text):
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count}: there must be at least one")
    return count


def run(part, doc, measure, add_arguments=None, one_thread=False):
    """A part as a command: `measure(options)` -> (rows, summary), both for JSON.

    `one_thread`: whatever --threads says, for a part that looks inside a step, where several
    threads would be counted on top of each other. Exits 3 without PyTorch where it is needed.
    """
    options = parse(doc, add_arguments)
    if one_thread:
        options.threads = 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        progress(
            f"bench.{part}: other work is running (load {load:.1f}); "
            "timings over several threads suffer most"
        )
    use_threads(options.threads)
    try:
        rows, summary = measure(options)
        summary["load_at_start"] = round(load, 2)
    except NotInstalled as error:
        print(f"bench.{part}: {error}", file=sys.stderr)
        sys.exit(ENVIRONMENT)
    except KeyboardInterrupt:
        sys.exit(130)
    if options.out or not (options.quick or getattr(options, "partial", False)):
        compared = "-against" if getattr(options, "against", None) else ""
        write(options.out or RESULTS, part, compared, options, rows, summary)


def use_threads(n):
    """n threads for minqkv, and at most n for NumPy's BLAS where minqkv leaves it alone.

    PyTorch in the same process gains from the allocator that `set_threads` tames, as well.
    """
    import minqkv

    threadpoolctl.threadpool_limits(n, "blas")
    minqkv.set_threads(n)


def load_torch(options):
    """The module bench.torch_gpt, with PyTorch on as many threads as we have; None under
    --without-torch.
    """
    if options.without_torch:
        return None
    try:
        import torch
    except ImportError as error:
        raise NotInstalled(
            "PyTorch is not installed: `pip install torch`, or leave it out with --without-torch"
        ) from error
    torch.set_num_threads(options.threads)
    from . import torch_gpt

    return torch_gpt


def seconds(function, calls=1):
    """Seconds a call, averaged over `calls`."""
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls


def interleaved(candidates, rounds, least=0.02, rest=0.03, timer=seconds):
    """Seconds a call of each of the named functions, measured in turn, A B A B ...: name -> one
    sample a round.

    A sample is the mean of as many calls as fill `least` seconds, by `timer(function, calls)`.
    Before it: `rest` seconds in which the other side's idle threads stop spinning, and, unless
    calls are long, one call that is not timed and warms the caches again.
    """
    calls = {}
    for name, function in candidates.items():
        timer(function, 1)
        once = timer(function, 1)
        calls[name] = max(1, round(least / once)), once < least
    samples = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            count, settle = calls[name]
            time.sleep(rest)
            if settle:
                timer(function, 1)
            samples[name].append(round(timer(function, count), 9))
    return samples


def median(samples, name):
    """The median sample of one candidate."""
    return statistics.median(samples[name])


def quickest(samples, names):
    """The name with the smallest median."""
    return min(names, key=lambda name: median(samples, name))


def ratio(samples, a, b):
    """(median, lower, upper quartile) over the rounds of a's time over b's: noise that hits both
    cancels.
    """
    ratios = [x / y for x, y in zip(samples[a], samples[b], strict=True)]
    quartiles = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    return [round(q, 4) for q in (quartiles[1], quartiles[0], quartiles[2])]


def difference(samples, a, b):
    """The median over the rounds of a's time minus b's."""
    return statistics.median(x - y for x, y in zip(samples[a], samples[b], strict=True))


def spread(three):
    """A ratio as text: median [lower–upper quartile]."""
    return f"{three[0]:.2f} [{three[1]:.2f}–{three[2]:.2f}]"


def per_cent(share):
    """A share as text, to three digits: 66.5 %."""
    return f"{100 * share:.3g} %"


def geometric_mean(values):
    """Of positive numbers, the right mean of ratios; None of none."""
    values = list(values)
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def exponent(xs, ys):
    """The slope of log y over log x by least squares: y grows as x to this power."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def table(title, columns, rows, note=None, legend=None):
    """Print rows (lists of text or numbers), the first column left-aligned; `legend` above them
    says what the columns are.
    """
    console = Console(width=None if sys.stdout.isatty() else 150)
    grid = Table(title=None if legend else title, title_justify="left", title_style="bold")
    if legend:
        console.print(title, style="bold italic", highlight=False)
        console.print(legend, style="dim", highlight=False, markup=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    console.print(grid)
    if note:
        console.print(note, style="dim", highlight=False, markup=False)


def progress(text):
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine():
    """Hardware, versions, and what decides the speed of a product."""
    from minqkv.runtime.version import code_version

    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    total = re.search(r"MemTotal:\s*(\d+)", meminfo.read_text()) if meminfo.exists() else None
    info = {
        "date": date.today().isoformat(),
        "cpu": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "memory_GiB": round(int(total[1]) / 2**20, 1) if total else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in ("numpy", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            info[package] = importlib.metadata.version(package)
    return info | {
        "minqkv": code_version(),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
        "blas_kernels": blas_kernels(),
    }


def blas_kernels():
    """The processor OpenBLAS chose its kernels for, where NumPy's BLAS is a bundled OpenBLAS on
    Linux; else None.
    """
    maps = Path("/proc/self/maps")
    library = re.search(r"\S*scipy_openblas64\S*\.so", maps.read_text()) if maps.exists() else None
    name = (
        getattr(ctypes.CDLL(library[0]), "scipy_openblas_get_corename64_", None)
        if library
        else None
    )
    if name is None:
        return None
    name.restype = ctypes.c_char_p
    return name().decode()


def write(folder, part, compared, options, rows, summary):
    """The file <part><compared>-<threads>t[-pinned].json."""
    pinned = "-pinned" if os.environ.get("OPENBLAS_CORETYPE") else ""
    path = folder / f"{part}{compared}-{options.threads}t{pinned}.json"
    head = {"part": part, "command": command(part), "threads": options.threads}
    head |= {"quick": options.quick, "machine": machine(), "summary": summary}
    write_result(path, head, rows)
    print(f"written to {path if options.out else path.relative_to(ROOT)}")


def command(part):
    """The command as typed, but for folders of this machine: FOLDER after --against, no --out."""
    words = []
    for word in sys.argv[1:]:
        words += word.split("=", 1) if word.startswith("--") else [word]  # not the "=" of q-k=v
    if "--against" in words:
        words[words.index("--against") + 1] = "FOLDER"
    if "--out" in words:
        at = words.index("--out")
        words[at : at + 2] = []
    return " ".join(["python -m", f"bench.{part}", shlex.join(words)]).strip()


def write_result(path, head, rows):
    """A JSON file, whole or not at all; a row of the table is a line of the file."""
    from minqkv.runtime.files import write_text

    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(head, ensure_ascii=False, indent=1)
    write_text(path, f'{head[:-2]},\n "rows": [\n{lines}\n]}}\n')
