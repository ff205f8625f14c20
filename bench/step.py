"""A full training step, `mq.train_step`, against eager PyTorch, same weights and data: `python -m bench.step [--threads N]`.

Both interleaved in one run; the losses of ten steps must agree.
"""

import argparse
import statistics

from .common import interleaved, ratio, set_threads, write

SIZES = [(10, 64, 64, 2, 4, 128), (96, 128, 128, 4, 4, 16)]  # V, T, d, L, H, B


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    set_threads(args.threads)

    import numpy as np
    import torch

    import minqkv as mq

    from . import torch_gpt

    torch.set_num_threads(args.threads)
    mq.tame_allocator()
    rows = []
    for V, T, d, L, H, B in SIZES:
        rng = np.random.default_rng(0)
        ids, targets = rng.integers(0, V, (2, B, T))
        t_ids, t_targets = torch.from_numpy(ids), torch.from_numpy(targets)
        mine = mq.GPT(mq.GPTConfig(V, T, L, H, d))
        candidates, losses = {}, {}
        for name, fused in (("torch, AdamW fused", True), ("torch, AdamW default", False)):
            theirs = torch_gpt.GPT(V, T, d, L, H).load(mine)
            step = _torch_step(torch_gpt, theirs, torch_gpt.adamw(theirs, fused), t_ids, t_targets)
            losses[name], candidates[name] = [step() for _ in range(10)], step
        optimizer = mq.AdamW(mine.parameters(), lr=1e-3)
        candidates["minqkv"] = lambda model=mine, opt=optimizer, x=ids, y=targets: mq.train_step(model, opt, x, y)
        losses["minqkv"] = [candidates["minqkv"]() for _ in range(10)]
        apart = max(abs(a - b) for a, b in zip(losses["minqkv"], losses["torch, AdamW fused"], strict=True))
        assert apart < 1e-4, f"losses differ by {apart}"
        samples = interleaved(candidates, args.rounds)
        best = min(("torch, AdamW fused", "torch, AdamW default"), key=lambda name: statistics.median(samples[name]))
        row = {"V T d L H B": [V, T, d, L, H, B], "losses_differ_by": apart, "best_torch": best}
        row["ratio"] = ratio(samples, "minqkv", best)
        rows.append({**row, "median_ms": {n: 1e3 * statistics.median(s) for n, s in samples.items()}, "samples": samples})
        print(row, {name: f"{ms:.1f} ms" for name, ms in rows[-1]["median_ms"].items()}, sep="\n  ")
    write("step", f"step-{args.threads}-thread", args.threads, rows)


def _torch_step(module, model, optimizer, ids, targets):
    return lambda: module.train_step(model, optimizer, ids, targets)


if __name__ == "__main__":
    main()
