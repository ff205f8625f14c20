"""Writes what minqkv 0.1.0 kept and computed, for test_compat.py. Runs under 0.1.0: see README.md.

`CASES`, `PROMPTS` and `decode` use public names only, so the test runs them under today's code.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZE = {"seq_len": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "threads": 1}
SIZE |= {"steps": 60, "lr": 0.01, "seed": 3}
RUNS = {  # dropout, post-norm and the "+"; a decoder with one stored stream, turned as it is read
    "encoder": {"task": "sort", "variant": "q=k-v+", "protocol": "2023", **SIZE},
    "causal": {"task": "reverse", "variant": "q-k=v", "form": "causal", "position": "rope", **SIZE},
}
STOP = 33  # steps of the run that is not finished; its last checkpoint is of step 30
STUDY = ["study", "--tasks", "reverse,copy", "--variants", "qkv,q-k=v", "--seeds", "2"]
STUDY += ["--seq-len", "4", "--n-embd", "8", "--n-layer", "1", "--n-head", "2", "--steps", "8"]

VARIANTS = ("qkv", "q=k-v", "q-k=v", "q=k=v", "q=k=v+", "gqa-2", "mqa", "q-gqa-2", "q-mqa")
POSITIONS = (("learned", "raw"), ("none", "raw"), ("rope", "raw"), ("rope", "unrotate"))
CASES = [(variant, *position) for variant in VARIANTS for position in POSITIONS]
PROMPTS = np.array([[1, 5, 0, 2], [9, 9, 3, 7]])
NEW = 8  # tokens after each prompt


def model_of(variant, position, rope_value, dtype):
    """A decoder whose parameters come from a formula, so that no generator has to stay the same."""
    import minqkv as mq

    size = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 16}
    chosen = {"variant": variant, "position": position, "rope_value": rope_value, "dtype": dtype}
    model = mq.GPT(mq.GPTConfig(**size, **chosen))
    for name, p in model.named_parameters():
        phase = sum(i * ord(letter) for i, letter in enumerate(name, 1)) % 1000
        k = np.arange(p.data.size).reshape(p.data.shape)
        wave = 0.5 * np.sin(phase + 1.7 * k + 0.013 * k * k)
        p.data[...] = 1 + wave if ".ln_" in f".{name}" and name.endswith("weight") else wave
    return model.eval()


def decode(variant, position, rope_value, dtype):
    """(logits (B, NEW, V) that decoding chose by, greedy tokens (B, NEW), drawn tokens (B, NEW))"""
    import minqkv as mq

    model, length = model_of(variant, position, rope_value, dtype), PROMPTS.shape[1]
    drawing = {"temperature": 1.5, "top_k": 6, "seed": 1}
    greedy, drawn = (mq.generate(model, PROMPTS, NEW, **how)[:, length:] for how in ({}, drawing))
    cache, unread, logits = model.new_cache(len(PROMPTS)), PROMPTS, []
    for i in range(NEW):
        logits.append(model(unread, cache=cache).data[:, -1])
        unread = greedy[:, i : i + 1]
    return np.stack(logits, axis=1), greedy, drawn


def answers(folder):
    """What the finished decoder says to PROMPTS, made as long as it was trained on."""
    import minqkv as mq

    model, config = mq.load_run(folder)
    ids = [[*row, *row, config.alphabet] for row in PROMPTS]
    return mq.generate(model, ids, config.seq_len)[:, config.seq_len + 1 :]


def main():
    import minqkv
    from minqkv.runs import train_run
    from minqkv.train import RunConfig

    assert minqkv.__version__ == "0.1.0"
    for name in ("encoder", "encoder-stopped", "causal", "study"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    for name, fields in RUNS.items():
        train_run(RunConfig(**fields), HERE / name)

    def stop(step, *_):
        if step == STOP:
            raise KeyboardInterrupt

    try:
        train_run(RunConfig(**RUNS["encoder"]), HERE / "encoder-stopped", progress=stop)
    except KeyboardInterrupt:
        print("stopped after", STOP, "steps")
    command = [sys.executable, "-m", "minqkv", *STUDY, "--jobs", "1", "--out", "study"]
    subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    for picture in (HERE / "study").glob("*.svg"):
        picture.unlink()

    found = {"answers": answers(HERE / "causal")}
    for dtype in ("float64", "float32"):
        results = [np.stack(part) for part in zip(*[decode(*c, dtype) for c in CASES], strict=True)]
        for what, array in zip(("logits", "greedy", "drawn"), results, strict=True):
            found[f"{what} {dtype}"] = array if what == "logits" else array.astype(np.int8)
    np.savez_compressed(HERE / "decoding.npz", **found)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
