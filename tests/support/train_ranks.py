"""A toy GPT trained as a run is, for the tests: `train_ranks.py FOLDER STEPS [RANK STEP HOW]`.

Alone, or on the ranks that mpiexec starts. Rank 0 keeps a checkpoint of every step in FOLDER and
continues from the one it finds there. After STEP, the RANK (or "all" of them) ends: HOW is "error",
"refuse", "kill" or "signal". With "other", that RANK has other code from the start.
"""

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np

import minqkv as mq
from minqkv.runtime import distributed, files
from minqkv.runtime.errors import MinqkvError, UsageError
from minqkv.train import fit


def batch(step):
    """Seven rows for two or three ranks; the last two count for nothing."""
    x, y = np.random.default_rng(step).integers(0, 7, (2, 7, 6))
    y[5:] = -100
    y[0, 1:] = -100
    return x, y


def end(how):
    """As this rank is asked to."""
    if how == "error":
        raise ValueError("boom")
    if how == "refuse":
        raise UsageError("refused", "by all")
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGINT)


def train(folder, steps, victim, when, how, rank):
    """All that comes of it is the checkpoint; the losses are in there, too."""
    model = mq.GPT(mq.GPTConfig(7, 6, 2, 4, 16, "q-k=v", dropout=0.3, dtype="float64"))
    optimizer, start = mq.AdamW(model.parameters(), lr=1e-2), 0
    checkpoint, losses = folder / "checkpoint.npz", []
    if checkpoint.exists() and rank == 0:
        meta, arrays = files.read_arrays(checkpoint, "toy")
        optimizer.data[...], losses = arrays["data"], arrays["losses"].tolist()
        optimizer.load_state_dict({"steps": meta["steps"], **arrays})
        start = meta["steps"]
    start = distributed.same_start(optimizer, start)
    for step, loss in fit(model, optimizer, batch, lambda step: 0.01, steps, start=start):
        losses.append(loss)
        if rank == 0:
            arrays = {"data": optimizer.data, "m": optimizer.m, "v": optimizer.v, "losses": losses}
            files.write_arrays(checkpoint, "toy", {"steps": step + 1}, arrays)
        if step == when and victim in (str(rank), "all"):
            end(how)


def main(folder, steps, victim="", when=-1, how=""):
    """Exit codes and messages as on the command line."""
    if how == "other" and os.environ["PMI_RANK"] == victim:
        distributed.code_version = lambda: "0.0-other"
    several = distributed.ranks() if "PMI_RANK" in os.environ else nullcontext()
    try:
        with several as comm:
            train(Path(folder), int(steps), victim, int(when), how, comm.rank if comm else 0)
    except MinqkvError as error:
        print(f"minqkv: {error}\n        {error.hint}", file=sys.stderr)
        sys.exit(int(error.code))


if __name__ == "__main__":
    main(*sys.argv[1:])
