"""Look at the arrays that a forward, a backward and a decoding step really compute.

    python examples/look_inside.py [variant]

`trace` records what the package itself computes: nothing is computed a second time for show.
"""

import sys

import numpy as np

import minqkv as mq
from minqkv.tasks.synthetic import Synthetic

variant = sys.argv[1] if len(sys.argv) > 1 else "q-k=v"
task = Synthetic("copy", seq_len=3, form="causal")  # digits | the same digits
model = mq.GPT(mq.GPTConfig(task.vocab_size, task.block_size, 1, 2, 16, variant=variant))
optimizer = mq.AdamW(model.parameters(), lr=1e-2)
for seed in range(100):  # so that the pattern shows something
    mq.train_step(model, optimizer, *task.draw(seed, "train", 32))

ids, targets = task.encode(np.array([[3, 1, 4]]))
with mq.trace() as t:
    mq.functional.cross_entropy(model(ids), targets).backward()
print(f"{variant}: {mq.VariantSpec.parse(variant).formula}")
for name in t:
    print(f"  {name:30} {t[name].shape}")
np.set_printoptions(precision=2, suppress=True)
print("head 0, a row of weights for each query:", t["blocks.0.attn.pattern"][0, 0], sep="\n")

cache = model.new_cache()
for token in ids[0]:
    model([[token]], cache=cache)
    seen = f"{len(cache)} position{'s' if len(cache) > 1 else ''}"
    print(f"after token {token}: {seen}, {cache.nbytes} bytes")
rows = cache.layers[0].rows  # with K = V there is one, read as keys and as values
count = "one array" if len(rows) == 1 else "two arrays"
print(f"each layer stores {count} of shape {rows[0].shape}")
