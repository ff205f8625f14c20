"""Decoding with a cache against recomputing the prefix, to 256 positions: `python -m bench.decode`.

Every variant on one thread; time, bytes of the cache, and the ratio, interleaved in one run.
"""

import argparse
import statistics

from .common import interleaved, ratio, set_threads, write

VARIANTS = ("qkv", "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+", "gqa-2", "mqa", "q-gqa-2", "q-mqa")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--positions", type=int, default=256)
    args = parser.parse_args()
    set_threads(args.threads)

    import numpy as np

    import minqkv as mq

    mq.tame_allocator()
    prompt, rows = np.zeros((1, 1), int), []
    new = args.positions - 1
    for variant in VARIANTS:
        model = mq.GPT(mq.GPTConfig(96, args.positions, 4, 8, 256, variant))
        cache = model.new_cache()
        mq.generate(model, prompt, new, cache=cache)
        candidates = {
            "cached": lambda model=model: mq.generate(model, prompt, new),
            "uncached": lambda model=model: mq.generate(model, prompt, new, use_cache=False),
        }
        samples = interleaved(candidates, args.rounds, warmup=1)
        micros = {name: 1e6 * statistics.median(s) / new for name, s in samples.items()}
        row = {"variant": variant, "us_per_token": micros, "uncached_over_cached": ratio(samples, "uncached", "cached")}
        rows.append({**row, "cache_bytes": cache.nbytes, "positions": args.positions, "samples": samples})
        print(f"{variant:8} cached {micros['cached']:7.0f} µs/token  uncached {micros['uncached']:7.0f}  "
              f"ratio {row['uncached_over_cached']:.2f}  cache {cache.nbytes:,} B")  # fmt: skip
    write("decode", f"decode-{args.threads}-thread", args.threads, rows)


if __name__ == "__main__":
    main()
