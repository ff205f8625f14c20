# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Why look at other tokens"
# question = "A token knows only itself. How can it use what is elsewhere?"
# needs = ["broadcasting", "matmul", "softmax", "cross-entropy", "loss", "training step"]
# teaches = ["token", "one-hot", "reverse task", "weighted average", "positions"]
# minutes = 15
# budget_s = 4
# exercise = "mix"
# uses = [
#   "minqkv.Tagger", "minqkv.TaggerConfig", "minqkv.Tensor", "minqkv.functional.softmax",
#   "minqkv.functional.scaled_dot_product_attention", "minqkv.nn.Parameter", "minqkv.optim.SGD",
#   "minqkv.models.Positions", "minqkv.tasks.synthetic.Synthetic",
# ]
# ///

# %% [markdown]
# Read a row of digits, write it backwards. For us that is easy. A model that looks at one digit at
# a time cannot do it: lesson 04 ended there. This lesson finds out what is missing, and adds the
# smallest thing that supplies it.
#
# What is in one place of a sequence is called a **token**; here each token is one digit. The
# package draws such tasks. Ours has four places, five digits (the smallest is 0), and an answer for
# each place.
#
# In the comments beside the code, `T` is the number of tokens, `V` the number of different digits,
# and `N` the number of sequences.

# %% A row backwards
import numpy as np

import minqkv as mq
from minqkv.models import Positions
from minqkv.optim import SGD
from minqkv.tasks.synthetic import Synthetic
from minqkv.teach import compare, curve, heat, predict, say, show, source, table

task = Synthetic("reverse", seq_len=4, alphabet=5)
x, y = task.encode(np.array([[3, 1, 4, 1]]))  # (1, T) each
places = ["place 0", "place 1", "place 2", "place 3"]
show("x", x, columns=places)
show("y", y, columns=places)

# %% [markdown]
# How often can a rule be right if it sees only its own digit and place? There are few enough
# sequences to try all of them: five digits in each of four places.
#
# `best_share` gives the upper limit. It groups all tokens by what they know, and in each group
# takes the most frequent answer. No rule, however it was trained, gets more of them right.

# %% One token alone
every = np.indices((5, 5, 5, 5)).reshape(4, -1).T  # (N, T), each one once
answers = task.encode(every)[1]  # (N, T)


def best_share(known, answer):  # (M, what is known), (M,)
    group = np.unique(known, axis=0, return_inverse=True)[1].reshape(-1)
    counts = np.zeros((group.max() + 1, 5))
    np.add.at(counts, (group, answer), 1)
    return counts.max(axis=1).sum() / len(answer)


itself = np.stack([np.indices(every.shape)[1], every], axis=-1)  # (N, T, 2)
alone = best_share(itself.reshape(-1, 2), answers.reshape(-1))
predict(
    "Five digits, all equally likely. What share of the answers does the best such rule get right?",
    float(alone),
)
right = round(alone * answers.size)
say(f"Of {answers.size:,} answers it gets {right:,}, as many as a blind guess.")

# %% [markdown]
# So a token needs something from the others. What could they hand over? Not the digits as numbers:
# mixing numbers gives other numbers, which no token has sent.
#
# Instead a digit becomes a row with a single one, in the column of that digit, and zeros elsewhere.
# This is called **one-hot**. A mix of such rows still says what went into it.

# %% Digits as rows
a, b = x[0, :2]
say(
    f"Half of {a} and half of {b}, as numbers, is {(a + b) // 2}: a digit that does not occur in "
    "the sequence."
)
rows = np.eye(5)[x[0]]  # (T, V), V: number of digits
digits = ["0", "1", "2", "3", "4"]
show("rows", rows, rows=places, columns=digits, digits=0)
show("half of row 0, half of row 1", (rows[0] + rows[1]) / 2, columns=digits, digits=1)

# %% [markdown]
# The first idea: give every token the average of all rows. It has the right shape, works for any
# length, and tells each token something about all the others. How far does it get us? Give the best
# rule all three: place, digit and average.

# %% Everything at once
average = rows.mean(axis=0)  # (V,)
show("average", average, columns=digits, digits=2)
other = np.eye(5)[[1, 1, 4, 3]].mean(axis=0)  # (V,)
same = bool(np.array_equal(average, other))
predict("Another sequence, `(1, 1, 4, 3)`. Is its average the same?", same)
say(
    "The same digits in another order: the average cannot tell them apart, but their answers "
    "differ."
)

crowd = np.eye(5)[every].mean(axis=1, keepdims=True)  # (N, 1, V)
crowd = np.broadcast_to(crowd, (*every.shape, 5))  # (N, T, V)
informed = np.concatenate([itself, crowd], axis=-1)  # (N, T, 2 + V)
helped = best_share(informed.reshape(-1, 7), answers.reshape(-1))
table(
    "right answers of the best rule",
    ["it knows", "share"],
    [["itself", alone], ["and the average", helped]],
)
say(
    "Better than nothing: it knows which digits there are. It still has to guess which of them is "
    "its own."
)

# %% [markdown]
# The second idea: let some tokens count more than others. A **weighted average** has a weight for
# each row; the weights are not negative and add up to one. It is a single product: the row of
# weights times all the rows.
#
#     w @ rows    (T,) times (T, V) gives (V,)
#
# Equal weights give the average from before. All the weight on one row gives that row. Other
# weights give something in between.

# %% Some more than others
w = np.array([0.5, 0.25, 0.0, 0.25])  # (T,)
predict(
    "The rows stand for `(3, 1, 4, 1)`. What is in column 1 of `w @ rows`?",
    float((w @ rows)[1]),
)
show("w @ rows", w @ rows, columns=digits, digits=2)
compare("np.full(4, 1 / 4) @ rows", np.full(4, 0.25) @ rows, "the average", average)
compare("np.eye(4)[2] @ rows", np.eye(4)[2] @ rows, "row 2", rows[2])

# %% [markdown]
# Each token needs its own weights, so we give each a row of them. All weighted averages together
# are then one matrix product.
#
#     weights @ rows    (T, T) times (T, V) gives (T, V)
#
# Row by row: who looks. Column by column: who is looked at.

# %% A row of weights for each
weights = np.eye(4)[::-1]  # (T, T)
heat("weights", weights, rows=places, columns=places, digits=0)
show("weights @ rows", weights @ rows, rows=places, columns=digits, digits=0)
compare("weights @ rows", weights @ rows, "the answers as rows", np.eye(5)[y[0]])
found = (weights @ np.eye(5)[every]).argmax(axis=-1)  # (N, T, V) -> (N, T)
hits = int((found == answers).sum())
say(
    f"On all sequences: {hits:,} of {answers.size:,} answers right, by one product of two matrices."
)

# %% [markdown]
# A warning, in the spirit of lesson 03. The weights of this task are symmetric: if you confuse rows
# and columns, you still get everything right. So try another set, where each token looks at the one
# before it (the first, having none, looks at itself).

# %% Who looks at whom
before = np.eye(4, k=-1)  # (T, T)
before[0, 0] = 1
predict("Which digit of `(3, 1, 4, 1)` arrives at place 1?", int((before @ rows)[1].argmax()))
heat("before", before, rows=places, columns=places, digits=0)
show("before @ rows", before @ rows, rows=places, columns=digits, digits=0)
compare("weights.T @ rows", weights.T @ rows, "weights @ rows", weights @ rows)
compare("before.T @ rows", before.T @ rows, "before @ rows", before @ rows, same=False)
say(
    "An example that is too regular lets a wrong line pass. The check of your exercise uses "
    "nothing regular."
)

# %% [markdown]
# How do we find the weights? By following a gradient. But numbers that are moved a little at each
# step do not stay positive with a sum of one. So we keep a free number for each pair, a **score**,
# and let softmax turn each row of scores into weights. (Simply picking the place with the largest
# score does not work: a small change of a score would change nothing, and the gradient would be
# zero.)
#
# Say the score of the right place is s, and the others are 0. At s = 0 the weights are equal; as s
# grows, nearly all of the weight moves to one place. How large must it be?

# %% Weights from scores
softmax = mq.functional.softmax
asked = np.eye(5)[answers]  # (N, T, V)
lines = []
for s in (0.0, 0.5, 1.0, np.log(3), 1.2, 3.0):
    soft = softmax(mq.Tensor(s * np.eye(4)[::-1])).numpy()  # (T, T)
    mixed = soft @ np.eye(5)[every]  # (N, T, V)
    wrong = (mixed * (1 - asked)).max(axis=-1)  # (N, T), best wrong digit
    leads = (mixed * asked).sum(axis=-1) > wrong + 1e-9
    lines.append([f"{s:.3f}", soft[0, 3], soft[0, 0], leads.mean()])
predict(
    "Take the s whose exponential is three; the exponential of 0 is 1. What weight does the "
    "right place get?",
    lines[3][1],
)
table(
    "s for the right place, 0 for the others",
    ["s", "right place", "the others", "right leads"],
    lines,
)
say(
    "Beyond a weight of one half the right digit leads in every sequence: even three equal rivals "
    "cannot outweigh it."
)

# %% [markdown]
# Now let a gradient find them. All scores start at zero. A weighted average of one-hot rows is
# itself a probability for each digit, so the loss is the cross-entropy of lesson 03: minus the
# logarithm of what the right digit has received.


# %% Learned, not set
def learn(name, steps=60):
    scores = mq.nn.Parameter(np.zeros((4, 4)))  # (T, T)
    optimizer = SGD([scores], lr=3)
    answers = Synthetic(name, 4, 5).encode(every)[1]  # (N, T)
    asked, shown = mq.Tensor(np.eye(5)[answers]), mq.Tensor(np.eye(5)[every])
    losses = []
    for _ in range(steps):
        mixed = softmax(scores) @ shown  # (T, T) @ (N, T, V)
        loss = -(mixed * asked).sum(axis=-1).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return softmax(scores).numpy(), losses


learned, losses = learn("reverse")
curve("loss", {"reverse": losses})
heat("learned weights", learned, rows=places, columns=places)

# %% [markdown]
# The same loop learns any task in which the place to look at is always the same. In `swap` the
# second half comes first. In `sort` the digits come in ascending order: the smallest at place 0.
#
# (The loop uses SGD for a reason. In one of these tasks every gradient is zero except for rounding,
# and Adam, which divides a gradient by its own size, would turn that rounding into steps.)

# %% What a fixed table cannot do
swapped, swap_losses = learn("swap")
heat("learned for swap", swapped, rows=places, columns=places)
sorting, sort_losses = learn("sort")
predict("In `sort`, which weight does place 0 give to place 1?", float(sorting[0, 1]))
heat("learned for sort", sorting, rows=places, columns=places)
curves = {"reverse": losses, "swap": swap_losses, "sort": sort_losses}
table(
    "loss",
    ["task", "at the start", "at the end"],
    [[name, c[0], c[-1]] for name, c in curves.items()],
)
say(
    "The smallest digit is equally often in each place: no place deserves more weight, and "
    "nothing moves."
)

# %% [markdown]
# To sort, a token has to choose its weights after seeing the digits. So weights must be worked out
# from the rows, again for each sequence. But then a row must hold all that matters, and something
# is missing: the two 1s in `(3, 1, 4, 1)` have equal rows, so whatever is worked out from them is
# equal as well, but their answers differ.
#
# The solution is to write the **position** into the row. The package keeps a row for each place and
# adds it to the token's own. Here the position has its own columns, `at 0` and so on; in a trained
# model its numbers are learned.

# %% Where a token is
sizes = {"vocab_size": 5, "block_size": 4, "n_embd": 9}
cfg = mq.TaggerConfig(**sizes, n_layer=1, n_head=1)
wpe = mq.Tagger(cfg).wpe  # the part of a model that adds positions
stand = np.hstack([np.zeros((4, 5)), np.eye(4)])  # (T, V + T)
wpe.load_state_dict({"weight": np.float32(stand)})
wide = np.float32(np.hstack([rows, np.zeros((4, 4))]))  # (T, V + T)
placed = wpe(mq.Tensor(wide[None])).numpy()[0]  # (T, V + T)
compare("row 1", wide[1], "row 3, without positions", wide[3])
compare("row 1", placed[1], "row 3, with positions", placed[3], same=False)
columns = [*digits, "at 0", "at 1", "at 2", "at 3"]
show("rows and positions", placed, rows=places, columns=columns, digits=0)

# %% [markdown]
# That is all the machinery there is: rows that know what and where they are, scores, softmax, one
# product. How a token works out its scores from its own row and the rows of others is the next
# lesson.
#
# First write the middle yourself: the exercise asks for `mix`, which takes scores and rows.

# %% Where it is done
source(Synthetic.encode, at="RULES")
source(mq.functional.softmax)
source(mq.functional.scaled_dot_product_attention, at="call.mix(")
source(Positions.forward, at="x + self.weight")
