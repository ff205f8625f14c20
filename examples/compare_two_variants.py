"""Compare two variants on a task: the same seeds for both, differences paired by seed.

    python examples/compare_two_variants.py [variant] [baseline] [task]

`minqkv study` does this for whole tables, keeps every run, and uses all cores.
"""

import sys

import minqkv as mq
from minqkv.runs import configure, train_run
from minqkv.study import stats

given = sys.argv[1:]
variant, baseline, task = given + ["q-k=v", "qkv", "sort"][len(given) :]
SIZE = {"seq_len": 8, "n_embd": 32, "n_layer": 1, "n_head": 4, "lr": 5e-3, "steps": 50}


def accuracies(name):
    """Seed -> token accuracy on the test split."""
    scores = {}
    for seed in range(3):
        _, result = train_run(configure(task, name, seed=seed, **SIZE))
        scores[seed] = result["accuracy"]
    return scores


found = {name: accuracies(name) for name in (variant, baseline)}
for name, scores in found.items():
    mean = stats.estimate(list(scores.values()))
    each = " ".join(f"{value:.3f}" for value in scores.values())
    saved = mq.VariantSpec.parse(name).reduction(SIZE["n_head"])
    print(f"{name:8} {mean.mean:.3f} ± {mean.half:.3f} ({each}), {saved:.0%} of the cache saved")

difference = stats.paired(found[variant], found[baseline])
print(f"{variant} - {baseline}: {difference.mean:+.3f} ± {difference.half:.3f} (95 % interval)")
if not difference.clear_of_zero:
    print(
        f"not distinguishable from zero with {difference.n} seeds; that does not prove it is zero"
    )
