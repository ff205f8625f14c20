# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Heads and blocks"
# question = "Why several small attentions, and what surrounds them in a model?"
# needs = [
#   "attention", "pattern", "weighted average", "positions", "reverse task", "accumulation",
#   "training step", "Adam", "seed",
# ]
# teaches = ["heads", "split", "merge", "residual", "layer norm", "MLP", "block", "parameters"]
# minutes = 18
# budget_s = 5
# exercise = ["split", "merge"]
# uses = [
#   "minqkv.Attention", "minqkv.Tensor", "minqkv.trace", "minqkv.Tagger", "minqkv.TaggerConfig",
#   "minqkv.GPT", "minqkv.GPTConfig", "minqkv.VariantSpec", "minqkv.train_step",
#   "minqkv.nn.LayerNorm", "minqkv.nn.Init", "minqkv.optim.Adam", "minqkv.models.Block",
#   "minqkv.tasks.synthetic.Synthetic", "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# The attention of lesson 06 gives each token one weighted average. What if a token needs two things
# at once: the digit at its mirrored place, say, and the one just before it?
#
# It can give half its weight to each. Then it has both digits, mixed; here are two one-hot rows,
# and the same two in the other order.

# %% One average is not enough
import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.models import Block
from minqkv.optim import Adam
from minqkv.tasks.synthetic import Synthetic
from minqkv.teach import compare, curve, heat, predict, say, show, source, table
from minqkv.train import evaluate

half = np.array([[0.5, 0.5]])  # (1, S), the weights of one token
rows = np.eye(4)[[3, 1]]  # (S, V), a 3 and a 1
turned = rows[::-1]
predict(
    "Is `half @ turned` the same as `half @ rows`?",
    bool(np.array_equal(half @ rows, half @ turned)),
)
show("half @ rows", half @ rows, digits=1)
first, second = np.eye(2)[:, None] @ rows  # (1, V) each
apart = np.hstack([first, second])  # (1, 2V)
show("two averages, side by side", apart, digits=0)
say(
    "One average says which digits there were, not where each came from. Two averages, kept "
    "apart, say both."
)

# %% [markdown]
# So we want several attentions side by side: **heads**. They need not be separate layers. The
# columns of q, k and v are cut into equal groups, and each head gets one group. The scores of a
# head are dot products over its own columns only, and d in the scale is the number of columns of
# one head.
#
# To cut, a row of C columns becomes H rows of d columns, with H times d equal to C. Then the heads
# go to the front, so that each is a matrix like the ones of lesson 06. In this array the tens digit
# is the token, the units digit the column.

# %% Split
x = np.float64(10 * np.arange(4)[:, None] + np.arange(6))  # (T, C)
show("x", x, digits=0)
grouped = x.reshape(4, 2, 3)  # (T, C) -> (T, H, d)
heads = grouped.transpose(1, 0, 2)  # (T, H, d) -> (H, T, d)
predict("Which number comes first in head 1?", int(heads[1, 0, 0]))
show("heads", heads, digits=0)
compare("split by hand", heads, "split_heads", F.split_heads(mq.Tensor(x[None]), 2).numpy()[0])

# %% [markdown]
# Why not reshape to (H, T, d) at once? It is shorter, it has the right shape, and no error is
# raised. But a reshape keeps the numbers in their order and only moves the borders between rows: it
# never moves one number past another.

# %% A reshape moves nothing
short = x.reshape(2, 4, 3)  # (T, C) -> (H, T, d), or so it looks
predict(
    "Head 0 should hold all four tokens. How many does it hold now?", len(np.unique(short[0] // 10))
)
show("short", short, digits=0)
compare("reshape alone", short, "reshape and transpose", heads, same=False)

# %% [markdown]
# Now two heads at work, in one real layer. A row holds a digit and a place, both one-hot, as at the
# end of lesson 05. The weights are set by hand: the first four columns of q are for head 0, which
# looks for the mirrored place, and the last four for head 1, which looks for the place before. Both
# hand over the digit. There is no mask: these tokens may look ahead.

# %% Two questions at once
digits = np.array([3, 1, 2, 1])
places = ["place 0", "place 1", "place 2", "place 3"]
x = np.hstack([np.eye(4)[digits], np.eye(4)])  # (T, C), digit and place
same, none, flip = np.eye(4), np.zeros((4, 4)), np.eye(4)[::-1]
before = np.eye(4, k=-1)  # row i: what place i looks for
before[0, 0] = 1
wq = np.block([[none, none], [20 * flip, 20 * before]])  # (C, H·d)
wk = np.block([[none, none], [same, same]])
wv = np.block([[same, same], [none, none]])
layer = mq.Attention("qkv", n_embd=8, n_head=2, block_size=4, bias=False)
weights = {"wq": wq, "wk": wk, "wv": wv, "wo": np.eye(8)}
layer.load_state_dict({f"{name}.weight": w for name, w in weights.items()})
with mq.trace() as t:
    out = layer(mq.Tensor(np.float32(x[None])))  # (1, T, C)
heat("pattern", t["pattern"][0], rows=places, columns=places, digits=2)

# %% [markdown]
# Each head has mixed its own columns of v. To go on, the heads are put side by side again, so that
# a token's numbers are in one row. This **merge** is split backwards: first the tokens come back to
# the front, then the last two axes become one.
#
# Columns `m0` to `m3` are what head 0 has found, at the mirrored place; `b0` to `b3` are from head
# 1, at the place before.

# %% Merge
z = t["z"][0]  # (H, T, d)
merged = z.transpose(1, 0, 2).reshape(4, 8)  # (T, H, d), then (T, C)
labels = ["m0", "m1", "m2", "m3", "b0", "b1", "b2", "b3"]
show("merged", merged, rows=places, columns=labels, digits=0)
result = out.numpy()[0]  # (T, C)
compare("merged", merged, "what the layer returns (its wo is the identity)", result, tolerance=1e-6)
hasty = z.reshape(4, 8)  # without bringing the tokens back first
compare("z.reshape(4, 8)", hasty, "merged", merged, same=False)
show("z.reshape(4, 8)", hasty, rows=places, digits=0)
say(
    "Its first row is what head 0 found for place 0 and for place 1: a token has received another "
    "token's answer."
)

# %% [markdown]
# Look again at `merged`: place 0 knows two other digits now, but has lost its own. The solution is
# a **residual**: add what the layer found to what came in. Each layer then only has to say what
# should change, and `wo`, its last matrix, decides in which columns.
#
# There is a second benefit, in the backward pass. In `x + layer(x)` the array `x` is used twice, so
# its gradient is a sum, as in lesson 01: what comes through the layer, plus the incoming gradient
# unchanged.

# %% Add, do not replace
inits = [mq.nn.Init(seed, "float64", "uniform") for seed in range(16)]
layers = [mq.Attention("qkv", 8, 2, 4, init) for init in inits]
start, g = np.random.default_rng(7).standard_normal((2, 1, 4, 8))  # (1, T, C)


def gradient(depth, residual):
    h = leaf = mq.Tensor(start, requires_grad=True)
    for layer in layers[:depth]:
        h = h + layer(h) if residual else layer(h)
    h.backward(mq.Tensor(g))
    return mq.Tensor(leaf.grad).numpy()


compare(
    "gradient with a residual",
    gradient(1, True),
    "g plus the gradient without",
    g + gradient(1, False),
)
lines = []
for n in (1, 2, 4, 8, 16):
    sizes = [abs(gradient(n, kind)).mean() for kind in (False, True)]
    lines.append([str(n), *(f"{size:.1e}" for size in sizes)])
table("mean size of the gradient at the start", ["layers", "without", "with"], lines)
say(
    "Without residuals almost nothing arrives, and the first layers hardly learn. Each sum gives "
    "a path around its layer."
)

# %% [markdown]
# When every layer adds something, the size of a row drifts from layer to layer. **Layer norm**
# gives each row, on its own, a mean of 0 and a variance of 1 before a layer reads it: subtract the
# mean, divide by the square root of the variance. A learned scale and shift for each column follow;
# they start at 1 and 0. (The package also adds a very small number to the variance, so that a row
# of equal numbers is not divided by zero.)

# %% Layer norm
row = np.array([[1.0, 1.0, 5.0, 5.0]])  # (1, C)
centred = row - row.mean(axis=-1, keepdims=True)
by_hand = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True))
norm = mq.nn.LayerNorm(4, mq.nn.Init(dtype="float64"))
normal = norm(mq.Tensor(row)).numpy()
predict("The row is (1, 1, 5, 5). What is its last number after layer norm?", float(by_hand[0, -1]))
show("by hand", by_hand, digits=1)
compare("by hand", by_hand, "LayerNorm", normal, tolerance=1e-5)
compare(
    "a row ten times as large",
    norm(mq.Tensor(10 * row)).numpy(),
    "the row itself",
    normal,
    tolerance=1e-5,
)

# %% [markdown]
# One part is missing. Attention moves numbers from token to token, but all it does with them is
# average. An **MLP** (multi-layer perceptron) works out what to make of them: a matrix, a function
# that is not linear, and a second matrix. It takes each token separately.
#
# A **block** is these two, each with a norm before it and a residual around it. That is two lines.

# %% A block
sizes = {"vocab_size": 5, "block_size": 6, "n_embd": 16, "n_head": 2}
cfg = mq.TaggerConfig(**sizes, n_layer=1, dtype="float64")
block = mq.Tagger(cfg, seed=0).blocks[0]
x = np.random.default_rng(7).standard_normal((1, 6, 16))  # (B, T, C)
h = mq.Tensor(x)
h = h + block.attn(block.ln_1(h))  # (B, T, C)
h = h + block.mlp(block.ln_2(h))  # (B, T, C)
compare("the two lines", h, "block(x)", block(mq.Tensor(x)))

changed = x.copy()
changed[0, 0] += np.arange(16)  # another first token
moved = {}
for name, part in {"attn": block.attn, "mlp": block.mlp}.items():
    difference = part(mq.Tensor(x)).numpy() - part(mq.Tensor(changed)).numpy()
    moved[name] = int((abs(difference[0]).max(axis=-1) > 0).sum())
predict(
    "We change the first of six tokens. How many rows of the MLP's result change?", moved["mlp"]
)
table("rows that change", ["part", "rows"], [[name, n] for name, n in moved.items()])

# %% [markdown]
# How many numbers does such a model learn? You can count them by hand: C columns, an MLP of width
# f, V digits, P places. A matrix comes with a row of biases, a norm with a scale and a shift.
#
# - attention: four matrices (C, C), each with C biases
# - MLP: a matrix (C, f) with f biases, one (f, C) with C
# - norms: two in a block, and one at the end
# - a row for each digit, and one for each place
#
# Heads do not appear in this list: the matrices are as large as before, but their columns are read
# in groups.
#
# The package has this as a formula, for every variant of attention. It is written for `GPT`, the
# model of lesson 10, which is made of the same blocks and uses the rows of the digits again for its
# answers.

# %% Parameters, counted
C, f, V, P = 16, 64, 5, 6
parts = {
    "attention": 4 * (C * C + C),
    "MLP": C * f + f + f * C + C,
    "norms": 3 * 2 * C,
    "digits, places": V * C + P * C,
}
sizes = {"vocab_size": V, "block_size": P, "n_embd": C, "d_ff": f}
lines = []
for n in (1, 2, 4, 8):
    cfg = mq.GPTConfig(**sizes, n_layer=1, n_head=n)
    formula = mq.VariantSpec.parse("qkv").params(cfg)
    lines.append([str(n), C // n, formula, mq.GPT(cfg).n_params])
predict("How many numbers does the attention have, with sixteen columns?", parts["attention"])
by_hand = [*parts.items(), ("sum", sum(parts.values()))]
table("by hand", ["part", "numbers"], by_hand)
table("by formula, and in the model", ["heads", "columns each", "formula", "model"], lines)
compare("by hand", sum(parts.values()), "counted in the model", mq.GPT(cfg).n_params)

# %% [markdown]
# We now have everything for a model: rows for digits and places, one block, a last norm, and a
# matrix that makes a score for each digit. The package calls it `Tagger`, since it gives each token
# a tag. No mask: every token sees every other.
#
# It gets six digits and has to write them backwards. We test it on every sequence; it has never
# seen most of them. Nobody sets a weight by hand now.

# %% The first model that solves it
task = Synthetic("reverse", seq_len=6, alphabet=5)
every = np.indices((5,) * 6).reshape(6, -1).T  # (N, T), each sequence once
sizes = {"vocab_size": 5, "block_size": 6, "n_embd": 16, "n_head": 2}


def train(seed, position="learned"):
    kinds = {"position": position, "dtype": "float64"}
    model = mq.Tagger(mq.TaggerConfig(**sizes, **kinds, n_layer=1), seed)
    optimizer = Adam(model.parameters(), lr=5e-3)
    x, y = task.draw(seed, "train", 200 * 32)  # (200 * 32, T) each
    batches = zip(np.split(x, 200), np.split(y, 200), strict=True)
    losses = [mq.train_step(model, optimizer, *batch) for batch in batches]
    return model, losses, evaluate(model, *task.encode(every))["accuracy"]


model, losses, right = train(seed=0)
_, blind_losses, blind = train(seed=0, position="none")
predict("And the same model without positions: does it solve the task too?", bool(blind > 0.95))
curve("loss", {"with positions": losses, "without": blind_losses})
table("right answers", ["model", "share"], [["with positions", right], ["without", blind]])
new = len(every) - len(np.unique(task.draw(0, "train", 6400)[0], axis=0))
say(
    f"Of {len(every):,} sequences {new:,} did not occur in training: it has learned the rule, not "
    "the list."
)

# %% [markdown]
# Did it find what lesson 05 wrote down by hand? Look at both heads, averaged over many sequences.


# %% What it has learned
def heads_of(model):
    with mq.trace() as t:
        model(every[::50])
    return t["blocks.0.attn.pattern"].mean(axis=0)  # (H, T, T), over N


pattern = heads_of(model)
heat("pattern", pattern, digits=2)
runs = [(model, right), *(train(seed)[::2] for seed in (1, 2))]
lines = []
for seed, (run, share) in enumerate(runs):
    mirrored = [head[:, ::-1].diagonal().mean() for head in heads_of(run)]
    lines.append([str(seed), share, *mirrored])
table("weight on the mirrored place", ["seed", "right", "head 0", "head 1"], lines)
say(
    "Nobody tells the heads who does what. With another seed they divide the work differently, "
    "and still solve the task."
)

# %% [markdown]
# From the next lesson on we ask which of the matrices in there are needed at all, and the answers
# will hold for any number of heads and blocks.
#
# First write the two functions yourself: the exercise asks for `split` and `merge`.

# %% Where it is done
source(F.split_heads)
source(F.merge_heads)
source(Block.forward, at="self.attn(self.ln_1(x)")
source(mq.VariantSpec.params)
