"""What `mq.set_threads(n)` alone does for a user's script: `python -m bench.threads`.

The same training run four ways, in separate processes, in turn, with no variable for BLAS in
the environment unless said: by the command line; by a plain script (bench.plain) that calls
`mq.set_threads(n)` and nothing else; by that script with OMP_NUM_THREADS=1 besides, which should
change nothing; and by the script without the call. All must reach the same test loss.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .against import BLAS
from .common import ROOT, median, progress, ratio, run, spread, table

ALONE = "script, set_threads"


def measure(options):
    """A single row."""
    rounds = options.rounds or (1 if options.quick else 5)
    steps, length = (2, 8) if options.quick else (40, 64)
    n = options.threads
    script = [sys.executable, "-m", "bench.plain", str(steps), str(length)]
    ways = {
        "minqkv train": None,
        ALONE: ([*script, str(n)], {}),
        "script, set_threads, OMP_NUM_THREADS=1": ([*script, str(n)], {"OMP_NUM_THREADS": "1"}),
        "script without set_threads": (script, {}),
    }
    samples, losses = {name: [] for name in ways}, {}
    for i in range(rounds):
        progress(f"threads: round {i + 1} of {rounds}")
        for name, way in ways.items():
            said = train(steps, length, n) if way is None else child(*way)
            samples[name].append(round(said["seconds"], 4))
            losses[name] = said["loss"]
    apart = max(losses.values()) - min(losses.values())
    assert apart < 1e-3, f"the test losses differ: {losses}"
    row = {"steps": steps, "length": length, "samples": samples, "losses": losses}
    row["median_seconds"] = {name: round(median(samples, name), 3) for name in samples}
    row["over_command_line"] = {name: ratio(samples, name, "minqkv train") for name in samples}
    show(row, n)
    return [row], {"script over command line": row["over_command_line"][ALONE][0]}


def train(steps, length, threads):
    """{"seconds", "loss"} of the command line."""
    words = ["--task", "sort", "--seq-len", length, "--steps", steps, "--threads", threads]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minqkv", "train", *words, "--json"]
        return child([*map(str, command), "--out", str(Path(folder) / "run")], {})


def child(command, environment):
    """What a command prints as JSON."""
    env = {name: value for name, value in os.environ.items() if name not in BLAS} | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def show(row, n):
    """The table."""
    lines = [
        [name, f"{row['median_seconds'][name]:.2f}", spread(row["over_command_line"][name])]
        for name in row["samples"]
    ]
    columns = ["way", "seconds", "over the command line"]
    note = f"{row['steps']} steps on sequences of {row['length']}, the data and the test included"
    table(f"The same training run with {n} threads", columns, lines, note)


if __name__ == "__main__":
    run("threads", __doc__, measure)
