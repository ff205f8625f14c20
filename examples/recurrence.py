"""Linear attention with Q = K = V as a state-space model, and the bytes of its state.

    python examples/recurrence.py

The projections are the identity, so z = x. docs/recurrence.md explains the numbers.
"""

import numpy as np

import minqkv as mq
from minqkv.designs.linear import LinearAttention, LinearGPT, state_space

layer = LinearAttention(2, 1, 3, mq.nn.Init(dtype="float64"), bias=False, decay=0.5)
layer.wk.weight.data[...] = layer.wo.weight.data[...] = np.eye(2)
x = mq.Tensor(np.array([[[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]]]))  # three tokens

np.set_printoptions(precision=3, suppress=True)
A, B, C, u = state_space(layer, x)
S, answers = np.zeros((2, 3)), []
print("A =", A.tolist())
for t in range(3):
    S = A @ S + B[0, 0, t] @ u[0, 0, t]
    y = C[0, 0, t] @ S  # (1, 3)
    answers.append(y[0, :2] / y[0, 2])
    print(f"t = {t + 1}: B = C' = {B[0, 0, t, :, 0]}  u = {u[0, 0, t, 0]}  y = {y[0]}")
    print(f"       S = {S[0]}")
    print(f"           {S[1]}  answer {answers[t]}")
with mq.trace() as trace:
    parallel = layer(x, np.tri(3, dtype=bool)).numpy()[0]  # (3, 2)
print("parallel form, its pattern:", *trace["pattern"][0, 0], sep="\n")
print("both forms agree to 1e-10:", np.abs(parallel - answers).max() < 1e-10)

size = {"n_layer": 1, "n_head": 2, "n_embd": 32, "variant": "q=k=v", "position": "none"}
for tokens in (1, 17, 1000):
    found = []
    for kind in (mq.GPT, LinearGPT):
        model = kind(mq.GPTConfig(11, 16, **size))
        model(np.zeros((1, tokens), int), cache=(cache := model.new_cache(1, tokens)))
        found.append(f"{cache.nbytes:,}")
    print(f"{tokens:4} tokens: rows {found[0]} bytes, state {found[1]}")
