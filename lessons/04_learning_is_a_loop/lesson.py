# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Learning is a loop"
# question = "A model starts by guessing. What makes it guess less, step by step?"
# needs = ["gradient", "accumulation", "Tensor", "softmax", "cross-entropy"]
# teaches = ["loss", "training step", "learning rate", "SGD", "Adam", "seed"]
# minutes = 20
# budget_s = 4
# exercise = "adam"
# uses = [
#   "minqkv.train_step", "minqkv.optim.SGD", "minqkv.optim.Adam", "minqkv.nn.Embedding",
#   "minqkv.functional.embedding",
# ]
# ///

# %% [markdown]
# We have gradients. This lesson puts them to work, on the smallest model there is: a table. It
# looks at one digit, and the row of that digit holds a score for each possible answer.
# `F.embedding(ids, w)` picks the rows.
#
# The task is called `sub`: the answer to a digit is the largest digit minus that digit. The table
# knows nothing yet: all its scores are zero. One number says how wrong that is, the **loss**: here
# the cross-entropy of lesson 03, averaged over all digits.

# %% One number to make small
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.optim import SGD, Adam
from minqkv.tasks.synthetic import Synthetic
from minqkv.teach import compare, curve, heat, predict, say, show, source, table

digits = ["0", "1", "2", "3"]
sub = Synthetic("sub", seq_len=4, alphabet=4)
ids, targets = sub.encode(np.array([[3, 1, 0, 2]]))  # (1, 4) each
w = mq.Tensor(np.zeros((4, 4)), requires_grad=True)  # (4, 4): seen, answer
loss = F.cross_entropy(F.embedding(ids, w), targets)  # (1, 4, 4) -> a number
show("digits", ids, digits=0)
show("answers", targets, digits=0)
predict("Equal scores give each of four answers the same share. What is the loss?", loss.item())
guessing = float(np.log(4))
compare("loss of the table", loss.item(), "log(4)", guessing, tolerance=1e-6)
say(f"{round(guessing, 3)} is the loss of guessing. Remember this number during the lesson.")

# %% [markdown]
# The gradient says how the loss grows with each score. We know it from lesson 03: the shares, minus
# one at the right answer, divided by the number of digits.

# %% Which way is up
loss.backward()
slope = backend.to_host(w.grad)  # (4, 4), as w
show("gradient of w", slope, rows=digits, columns=digits, digits=4)
say(
    "Raising the score of a right answer lowers the loss: its gradient is negative. All others are "
    "positive."
)

# %% [markdown]
# The gradient points uphill, so we walk the other way. How far? The gradient does not say: it is a
# slope, and holds only where we are. We choose a number, the **learning rate**, and multiply the
# gradient by it. This is gradient descent; with data drawn at random it is called **SGD**,
# stochastic gradient descent.

# %% One step down
lr = 8.0
w.data -= lr * w.grad
after = F.cross_entropy(F.embedding(ids, w), targets).item()
predict(
    f"The learning rate is {lr:g}. What is the score of a right answer now?", float(w.numpy()[3, 0])
)
show("w", w, rows=digits, columns=digits, digits=2)
say(f"the loss was {round(loss.item(), 3)} and is {round(after, 3)}")

# %% [markdown]
# A training step is four lines: forget the old gradient, measure how wrong the model is, ask which
# way is up, move. Learning means repeating them. Everything else in training is about doing these
# four well.
#
# The package has the same step as `mq.train_step`, for any model and any optimiser. There a table
# is `nn.Embedding`.

# %% The loop
w = mq.Tensor(np.zeros((4, 4)), requires_grad=True)


def step(w, ids, targets, lr):
    w.zero_grad()  # forget
    loss = F.cross_entropy(F.embedding(ids, w), targets)  # measure
    loss.backward()  # ask
    w.data -= lr * w.grad  # move
    return loss.item()


losses = [step(w, ids, targets, lr) for _ in range(30)]

model = mq.nn.Embedding(4, 4)
model.load_state_dict({"weight": np.zeros((4, 4))})  # zeros, as w
sgd = SGD(model.parameters(), lr=lr)
again = []
for _ in range(30):  # clip=None: gradients as they are, however long
    again.append(mq.train_step(model, sgd, ids, targets, clip=None))
curve("loss of the table", {"by hand": losses})
compare("losses by hand", np.array(losses), "mq.train_step", np.array(again), tolerance=1e-5)

# %% [markdown]
# The first of the four lines is the one that people forget. In lesson 01 a value that was used
# twice got the sum of two gradients. `backward` adds for that reason, and it cannot know that a new
# step has begun: without `zero_grad` the gradients of all steps so far pile up.
#
# Take a number that starts at ten, a loss with slope 1 everywhere, and the learning rate 1. Three
# steps.

# %% Forgetting to forget
ends = {}
for forget in (True, False):
    p = mq.Tensor(np.array([10.0]), requires_grad=True)
    for _ in range(3):
        if forget:
            p.zero_grad()
        p.sum().backward()  # a slope of one
        p.data -= 1.0 * p.grad
    ends[forget] = float(p.numpy()[0])
say(f"with zero_grad the number ends at {ends[True]:g}")
predict("Where does it end without?", ends[False])
say(
    "Without it the steps grow by one each time. Nothing fails, and the loss even falls: that is "
    "why it is hard to see."
)

# %% [markdown]
# Now the length of a step. Here is a valley with two directions, one flat and one steep. Each has a
# number `p` and a curvature `c`, and the loss is the sum of `c * p * p / 2`. So the slope is
# `c * p`, and a step of descent multiplies `p` by `1 - lr * c`.

# %% A valley
c = np.array([1.0, 100.0])  # (2,): flat, steep


def descend(optimiser, steps, **settings):
    p = mq.nn.Parameter(np.array([1.0, 1.0]))  # (2,), the start
    opt, path = optimiser([p], **settings), [p.numpy().copy()]
    for _ in range(steps):
        opt.zero_grad()
        (p * p * mq.Tensor(c / 2)).sum().backward()
        opt.step()
        path.append(p.numpy().copy())
    return np.array(path)  # (steps + 1, 2)


paths = {rate: descend(SGD, 20, lr=rate) for rate in (0.01, 0.02, 0.03)}
show("curvature", c, columns=["flat", "steep"], digits=0)
table(
    "after 20 steps of SGD",
    ["lr", "flat", "steep"],
    [[str(rate), *paths[rate][-1]] for rate in paths],
)
say(
    f"With lr {max(paths)} each step multiplies the steep number by {paths[0.03][1, 1].round(6):g}."
)
say(
    "A rate that suits the steep direction crawls in the flat one; a larger one swings from side "
    "to side in the steep direction."
)

# %% [markdown]
# **Adam** fixes this with two running averages for every single parameter. The first, `m`, averages
# the gradients:
#
#     m = beta1 * m + (1 - beta1) * g
#
# With the usual `beta1` that is nine tenths of the old average and one tenth of the new gradient.
# Gradients that point the same way at each step stay; those that go back and forth cancel.
#
# But `m` starts at zero, so at first it is far too small. After t steps the weights given to
# gradients add up to `1 - beta1**t`; dividing by that makes it an average again.

# %% The first average
p = mq.nn.Parameter(np.zeros(2))
adam = Adam([p], lr=0.1)
slopes = [(4.0, 4.0), (4.0, -4.0)] * 3  # steady and zigzag
seen = []
for t, slope in enumerate(slopes, start=1):
    adam.zero_grad()
    (p * mq.Tensor(np.array(slope))).sum().backward()
    adam.step()
    m = backend.to_host(adam.m).copy()  # (2,), the package's own
    fixed = m / (1 - adam.betas[0] ** t)
    seen.append([str(t), m[0], fixed[0], f"{slope[1]:+g}", m[1], fixed[1]])
predict(
    f"The gradient is {slopes[0][0]:g} at every step. What is m after the first?", float(seen[0][1])
)
table("a steady gradient, and a zigzag", ["t", "m", "corrected", "zigzag", "m", "corrected"], seen)

# %% [markdown]
# The second average, `v`, is of the squares of the gradients, over a longer time: it records how
# large they usually are, not which way they point. It is corrected in the same way, with its own
# `beta2`:
#
#     v = beta2 * v + (1 - beta2) * g * g
#
# With both of them corrected, the step is
#
#     w = w - lr * m / (sqrt(v) + eps)
#
# The square root turns a mean of squares into a typical size, and dividing by it takes the size out
# of the step. A tiny `eps` keeps a gradient that was always zero from becoming 0 / 0.

# %% The second average
slope = np.array([0.001, 1.0, 1000.0, 0.0])
p = mq.nn.Parameter(np.zeros(4))
adam = Adam([p], lr=0.1)
(p * mq.Tensor(slope)).sum().backward()
adam.step()
moved = abs(p.numpy())  # (4,), from zero
ratio = float(np.round(moved[2] / moved[0], 3))
predict(
    f"How many times as long is the step for a gradient of {slope[2]:g} as for {slope[0]:g}?", ratio
)
table(
    "the first step of Adam",
    ["gradient", "step"],
    [[f"{g:g}", float(s)] for g, s in zip(slope, moved, strict=True)],
)
say("The first step has the length of the learning rate, in every direction that has a slope.")

# %% [markdown]
# Back to the valley, where SGD has a single rate for both directions. At a rate of two divided by
# the steep curvature or more, the steep number no longer shrinks. We take two divided by the sum of
# the curvatures, just below that: no single rate does better.

# %% The valley again
with_sgd = descend(SGD, 60, lr=2 / c.sum())  # (61, 2)
with_adam = descend(Adam, 60, lr=0.1)  # (61, 2)
lead = np.round(abs(with_adam[10, 0]) - abs(with_adam[10, 1]), 5)
answers = {1: "the steep one", -1: "the flat one", 0: "both at the same pace"}
predict(
    "Which number comes down first under Adam?", answers[int(np.sign(lead))], list(answers.values())
)
heights = {"SGD": with_sgd**2 @ c / 2, "Adam": with_adam**2 @ c / 2}
curve("height above the bottom", heights, log=True)
compare("flat under Adam", with_adam[:, 0], "steep under Adam", with_adam[:, 1], tolerance=1e-5)
say(f"A slope {c[1]:g} times as steep makes both m and √v {c[1]:g} times as large, so it cancels.")
say(
    "It cancels exactly because this valley lies along the two axes: Adam rescales each number, "
    "and cannot rotate."
)
say("Near the end it swings past the bottom and back: m remembers where it was going.")

# %% [markdown]
# What is random in training? The numbers a model starts with, and the examples it is shown. Both
# are drawn from a generator, and a **seed** says where the generator begins. On one machine the
# same seed gives the same run, bit for bit; another seed gives another run of the same experiment.

# %% A seed
runs = {}


def train(task, seed, steps=100):
    ids, targets = task.draw(seed, "train", 1000)  # (1000, 4) each
    model = mq.nn.Embedding(4, 4, mq.nn.Init(seed), std=1.0)  # (4, 4), random
    opt = Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        losses.append(mq.train_step(model, opt, ids, targets, clip=None))
    return losses, F.softmax(model.weight.detach())  # (steps,), (4, 4)


for seed in (0, 1, 2):
    runs[seed] = train(sub, seed)[0]
again, _ = train(sub, 0)
table("loss on sub", ["seed", "first", "last"], [[str(s), runs[s][0], runs[s][-1]] for s in runs])
compare("losses of seed 0", np.array(runs[0]), "seed 0 again", np.array(again), tolerance=0)
compare("losses of seed 0", np.array(runs[0]), "seed 1", np.array(runs[1]), same=False)
say(
    "If you compare two ideas with one run each, you may be comparing two seeds. Lesson 12 shows "
    "what to do about it."
)

# %% [markdown]
# The table has learned `sub`. Now another task, `reverse`: write the sequence backwards. The answer
# at each place is the digit at the mirrored place. The digits are drawn independently of each
# other.
#
# The loop, the model, the optimiser and the data stay the same. Only the answers change.

# %% The same loop, another task
reverse = Synthetic("reverse", seq_len=4, alphabet=4)
ids, targets = reverse.draw(0, "train", 1000)  # (1000, 4) each
one, mirrored = reverse.encode(np.array([[3, 1, 0, 2]]))  # (1, 4) each
show("digits", one, digits=0)
show("answers", mirrored, digits=0)
on_sub, sub_table = train(sub, 0)
on_reverse, reverse_table = train(reverse, 0)
predict("At which loss does the table level off on reverse?", on_reverse[-1])
curve("loss", {"sub": on_sub, "reverse": on_reverse})
say(f"the loss of guessing: {round(guessing, 3)}, the last on reverse: {round(on_reverse[-1], 3)}")
heat("shares after sub", sub_table, rows=digits, columns=digits)
heat("shares after reverse", reverse_table, rows=digits, columns=digits)

# %% [markdown]
# Would a larger model help, or more steps? Any model that looks at one digit alone gives the same
# shares each time it sees that digit, so it is no better than a table. And the best table can be
# found by counting: for each digit, how often each answer came with it in the examples. (Knowing
# the place would not help either: the mirrored digit was drawn without regard to it.)
#
# The answer is in the sequence, but not in the digit itself. So the model must look at other
# digits. That is lesson 05.
#
# The optimiser is worth writing once in your life: the exercise asks for one step of `adam`, with
# its memory.

# %% What one token cannot know
counts = np.zeros((4, 4))
np.add.at(counts, (ids.reshape(-1), targets.reshape(-1)), 1)  # seen, answer
shares = counts / counts.sum(axis=1, keepdims=True)  # (4, 4)
best = -(counts * np.log(shares)).sum() / counts.sum()
heat("counted shares", shares, rows=digits, columns=digits)
say(
    f"the best table: {round(best, 4)}; guessing: {round(guessing, 4)}. Chance made some answers a "
    "little more frequent."
)
compare("loss after training", on_reverse[-1], "best table", best, tolerance=1e-3)
compare("shares after training", reverse_table, "counted shares", shares, tolerance=2e-2)
source(mq.train_step)
source(Adam._update, at="m += g")
source(Adam._update, at="beta2**self.steps")
source(SGD.update, at="self.data -=")
