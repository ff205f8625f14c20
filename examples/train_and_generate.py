"""Train a small decoder to reverse six digits, then let it answer a token at a time.

    python examples/train_and_generate.py [variant] [steps]

A sequence reads `digits | answer`; the separator is one more token, after the digits 0 to 9.
"""

import sys

import minqkv as mq
from minqkv.generation import iter_tokens
from minqkv.optim import warmup_cosine
from minqkv.tasks.synthetic import Synthetic

variant = sys.argv[1] if len(sys.argv) > 1 else "q-k=v"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 150

mq.set_threads(2)  # the cores to use
task = Synthetic("reverse", seq_len=6, form="causal")
config = mq.GPTConfig(
    task.vocab_size, task.block_size, n_layer=2, n_head=4, n_embd=64, variant=variant
)
model = mq.GPT(config, seed=0)
optimizer = mq.AdamW(model.parameters())
schedule = warmup_cosine(3e-3, warmup=20, total=steps)  # step -> learning rate
xs, ys = task.draw(seed=0, split="train", n=steps * 32)
for step in range(steps):
    optimizer.lr = schedule(step)
    rows = slice(32 * step, 32 * (step + 1))
    loss = mq.train_step(model, optimizer, xs[rows], ys[rows])
    if step % 30 == 29:
        print(f"step {step + 1}: loss {loss:.4f}")

prompt = [3, 1, 4, 1, 5, 9]
cache = model.new_cache()
print(*prompt, end=" |", flush=True)
for token in iter_tokens(model, [[*prompt, task.alphabet]], len(prompt), cache=cache):
    print(f" {token[0]}", end="", flush=True)
print(f"\nthe cache holds {len(cache)} positions in {cache.nbytes:,} bytes ({variant})")
