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
from minqkv.train import evaluate, fit

steps, length, *threads = map(int, sys.argv[1:])
if threads:
    mq.set_threads(*threads)
began = time.monotonic()
run = configure("sort", seq_len=length, steps=steps)
model = run.build()
task, recipe = run.task, run.recipe
optimizer = Adam(model.parameters(), recipe.lr)


def batch(step):
    """The inputs and targets of a step."""
    return task.batch(0, step, recipe.batch)


for _ in fit(model, optimizer, batch, run.schedule(), steps, recipe.clip):
    pass
score = evaluate(model, *task.draw(0, "test", task.n_test))
print(json.dumps({"seconds": time.monotonic() - began, "loss": score["loss"]}))
