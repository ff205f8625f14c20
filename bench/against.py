"""`--against FOLDER`: this version beside that of another checkout, and PyTorch, in one run.

Each side is a process (bench.side), so that the two packages of one name never meet. The processes
stay up and are timed in turn, so noise that hits all of them cancels in the ratios.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .common import ROOT, geometric_mean, interleaved, median, quickest, ratio, spread, table

BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LEGEND = """\
now: this version; before: that of FOLDER; on as many threads (0.1.0: processes). Times are medians.
A ratio is the median over the rounds [its quartiles] of two times of the same round."""


def add_argument(parser):
    """The option."""
    parser.add_argument(
        "--against",
        type=_checkout,
        metavar="FOLDER",
        help="measure against the version in this checkout, for instance one made by "
        "`git worktree add FOLDER v0.1.0`",
    )


def _checkout(text):
    if not (Path(text) / "minqkv/__init__.py").exists():
        raise argparse.ArgumentTypeError(f"there is no minqkv/__init__.py in {text}")
    return Path(text).resolve()


class Side:
    """A process that holds candidates and times them when asked. Close it at the end."""

    def __init__(self, folder, task):
        # With OMP_NUM_THREADS as NumPy's BLAS finds it. Versions up to 0.1.0 share work among
        # processes, each of which needs one thread; later ones lower the number where they need to.
        blas = 1 if (Path(folder) / "minqkv/workers.py").exists() else task["threads"]
        env = {name: value for name, value in os.environ.items() if name not in BLAS}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.side", str(folder), json.dumps(task)],
            cwd=ROOT,
            env={**env, "OMP_NUM_THREADS": str(blas)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def ready(self):
        """Wait for its models; its {"version", "results"}."""
        return self._answer()

    def seconds(self, name, calls):
        """Seconds a call of one candidate, averaged over `calls`."""
        print(json.dumps([name, calls]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side of the comparison ended: exit {self.process.wait()}")
        return json.loads(line)

    def close(self):
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def measure(kind, size, variant, options, rounds, timing, tolerance):
    """One row: medians in seconds of "now", "before" and PyTorch, their ratios, all samples.

    All sides must agree on what they compute to `tolerance` of the largest number.
    """
    task = {"kind": kind, "size": size, "variant": variant, "threads": options.threads}
    wanted = {"now": (ROOT, "minqkv"), "before": (options.against, "minqkv")}
    if find_spec("torch") and not options.without_torch:
        wanted["torch"] = ROOT, "torch"
    candidates, results = {}, {}
    with ExitStack() as stack:
        for side, (folder, engine) in wanted.items():
            process = Side(folder, {**task, "engine": engine})
            stack.callback(process.close)
            said = process.ready()
            if side == "before":
                version = said["version"]
            for name, numbers in said["results"].items():
                name_here = name if engine == "torch" else side
                candidates[name_here] = partial(process.seconds, name)
                results[name_here] = numbers
        _agree(results, tolerance)
        samples = interleaved(
            candidates, rounds, timer=lambda candidate, calls: candidate(calls), **timing
        )
    row = {"kind": kind, "variant": variant, "before_version": version}
    row["over_before"] = ratio(samples, "now", "before")
    if "torch" in wanted:
        row["best_torch"] = quickest(
            samples, [name for name in samples if name.startswith("torch")]
        )
        row["ratio"] = ratio(samples, "now", row["best_torch"])
        row["before_ratio"] = ratio(samples, "before", row["best_torch"])
    seconds = {name: float(f"{median(samples, name):.4g}") for name in samples}
    return row | {"median_seconds": seconds, "samples": samples}


def _agree(results, tolerance):
    now = np.array(results["now"])
    for name, numbers in results.items():
        apart = np.abs(np.array(numbers) - now).max() / np.abs(now).max()
        assert apart < tolerance, f"{name}: results differ from ours by {apart:.1e} of the largest"


def summarise(groups, options, rows):
    """Geometric means of the ratios of each group, {name: rows}; what `before` was."""
    git = ["git", "-C", str(options.against), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    versions = sorted({row["before_version"] for row in rows})
    summary = {"before": {"version": ", ".join(versions), "commit": commit}}
    titles = {
        "over_before": "now / before",
        "ratio": "now / PyTorch",
        "before_ratio": "before / PyTorch",
    }
    for group, members in groups.items():
        for key, title in titles.items():
            ratios = [row[key][0] for row in members if key in row]
            if ratios:
                summary[f"{group}: {title}, geometric mean"] = geometric_mean(ratios)
    return summary


def show(title, labels, unit, scale, rows, summary):
    """The table. `labels`: name of a column -> key of a row; `scale`: units in a second."""
    lines = []
    for row in rows:
        line = [str(row[key]) for key in labels.values()]
        if "skipped" in row:
            lines.append([*line, "skipped:", row["skipped"]])
            continue
        times = row["median_seconds"]
        line += [f"{times[name] * scale:.1f}" for name in ("now", "before")]
        line.append(spread(row["over_before"]))
        if "ratio" in row:
            best = row["best_torch"]
            line += [f"{times[best] * scale:.1f}", best.removeprefix("torch ")]
            line += [spread(row["ratio"]), spread(row["before_ratio"])]
        lines.append(line)
    columns = [*labels, f"now {unit}", f"before {unit}", "now / before", f"PyTorch {unit}"]
    columns += ["its best", "now / PyTorch", "before / PyTorch"]
    means = [f"{name}: {value:.3f}" for name, value in summary.items() if "mean" in name]
    before = summary["before"]
    note = "\n".join([*means, f"before: version {before['version']}, commit {before['commit']}"])
    table(title, columns, lines, note, LEGEND)
