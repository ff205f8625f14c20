"""A user's own training script, as plain as can be: `python -m bench.plain STEPS LENGTH [THREADS]`.

It does the work of `minqkv train --task sort --seq-len LENGTH --steps STEPS` and prints its seconds
and the test loss. `mq.set_threads` is all it says about cores, and without THREADS not even that.
"""

import json
import sys
import time

import minqkv as mq
from minqkv.optim import Adam
from minqkv.runs import configure
from minqkv.tasks.base import Batches
from minqkv.train import evaluate, fit

steps, length, *threads = map(int, sys.argv[1:])
if threads:
    mq.set_threads(*threads)
began = time.monotonic()
run = configure("sort", seq_len=length, steps=steps)
model = run.build()
optimizer = Adam(model.parameters(), run.lr)
batches = Batches(*run.data.draw(0, "train", run.recipe.n_train), run.recipe, seed=0)
for _ in fit(model, optimizer, batches, run.schedule(), steps, run.recipe.clip):
    pass
score = evaluate(model, *run.data.draw(0, "test", run.recipe.n_test))
print(json.dumps({"seconds": time.monotonic() - began, "loss": score["loss"]}))
