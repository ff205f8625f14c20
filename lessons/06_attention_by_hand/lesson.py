# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Attention by hand"
# question = "How does a token find out which of the earlier ones matter to it?"
# needs = ["softmax", "weighted average"]
# teaches = [
#   "query", "key", "value", "scores", "scale", "causal mask", "pattern", "attention", "qkv",
# ]
# minutes = 15
# budget_s = 4
# exercise = "attend"
# uses = [
#   "minqkv.Attention", "minqkv.Tensor", "minqkv.trace",
#   "minqkv.functional.scaled_dot_product_attention",
# ]
# ///

# %% [markdown]
# In lesson 05 a token became a weighted average of others, with weights that were the same for
# every sequence. Here it works out the weights itself, from what is in the rows.
#
# We follow three tokens, `cat sat it`, through one attention layer of the package. Its weights are
# set by hand to small whole numbers, so that you can check every array by hand. The four columns of
# `x` say how much of a noun, a verb and a pronoun a token is; the last one is the same for all.
#
# In the comments `T` is the number of tokens, `C` the number of columns of `x`, and `d` the number
# of columns of queries, keys and values.

# %% Three tokens
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv.teach import compare, heat, predict, say, show, source, table

tokens = ["cat", "sat", "it"]
features = ["noun", "verb", "pron", "one"]
x = np.float32([[2, 0, 0, 1], [0, 2, 0, 1], [0, 0, 2, 1]])  # (T, C)
show("x", x, rows=tokens, columns=features, digits=0)

# %% [markdown]
# A token plays three roles, and each role has its own row of numbers.
#
# - Its **query** says what it looks for.
# - Its **key** says what it can be found by.
# - Its **value** is what it hands over when it is found.
#
# All three are made from the same `x`, by three matrices. Look at `wq`: a pronoun looks strongly
# for nouns; a verb looks for nouns (its subject) and verbs. Query and key share their columns,
# because they will be compared.

# %% Three matrices
wq = np.float32([[1, 0, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
wk = np.float32(np.diag([1, 1, 1, 0]))
wv = np.float32(np.diag([1, 1, 0, 1]))  # (C, d), as the other two
show("wq", wq, rows=features, columns=features, digits=0)
predict(
    "What does `it` look for? Give the noun column of its query: its row of `x`, times `wq`.",
    float(x[2] @ wq[:, 0]),
)
show("q = x @ wq", x @ wq, rows=tokens, columns=features, digits=0)

# %% [markdown]
# Now the same three matrices go into the package's own layer, and we record every array of one real
# call. From here on, what you see is what the layer computed. (Three things come later: the mask,
# heads (here there is one; lesson 07 has more), and the matrix `wo`, which changes nothing here.)
#
# The row of `it` in `k` says that it can be found as a pronoun; its row in `v` says that it has
# nothing to hand over but the last column.

# %% Inside the real layer
layer = mq.Attention("qkv", n_embd=4, n_head=1, block_size=8, bias=False)
weights = {"wq": wq, "wk": wk, "wv": wv, "wo": np.float32(np.eye(4))}
layer.load_state_dict({f"{name}.weight": weights[name] for name in weights})
seen = np.tril(np.ones((3, 3), bool))  # (T, T), True where a key is seen

with mq.trace() as t:
    out = layer(mq.Tensor(x[None]), mask=backend.upload(seen))  # (1, T, C)
q, k, v = (t[name][0, 0] for name in "qkv")  # (T, d), first sequence and head
compare("q by hand", x @ wq, "q in the layer", q)
show("k", k, rows=tokens, columns=features, digits=0)
show("v", v, rows=tokens, columns=features, digits=0)

# %% [markdown]
# How well does a key answer a query? Multiply the two rows entry by entry and add up: the dot
# product. It is large if both are large in the same columns.
#
#     q @ k.T    (T, d) times (d, T) gives (T, T)
#
# Row by row: who asks. Column by column: who is asked.

# %% A score for each pair
predict("What is the dot product of the query of `it` with the key of `cat`?", float(q[2] @ k[0]))
predict("And the query of `cat` with the key of `it`?", float(q[0] @ k[2]))
show("q @ k.T", q @ k.T, rows=tokens, columns=tokens, digits=0)
say(
    "The two differ: looking for and being found are separate things, because wq and wk are "
    "separate matrices."
)

# %% [markdown]
# Before going on, the scores are divided by the square root of d, the number of columns. Why?
#
# Take queries and keys at random, each number with mean 0 and variance 1. A dot product adds d such
# products, and variances add: its spread, the square root of the variance, grows with the square
# root of d. A softmax over scores that are far apart puts nearly all the weight on one of them, and
# then hardly any gradient gets through. The division keeps the spread at 1.

# %% Why √d
rng = np.random.default_rng(6)
rows = []
for d in (4, 64, 1024):
    q_many, k_many = rng.standard_normal((2, 2000, d))  # (2000, d) each
    dots = (q_many * k_many).sum(axis=1)  # (2000,)
    rows.append([str(d), *(y.std() for y in (dots, dots / d**0.5, dots / d))])
table("spread of random dot products", ["d", "q·k", "/ root d", "/ d"], rows)
say(
    "Divided by d itself they would shrink towards zero instead, and every pattern would be nearly "
    "flat."
)

# %% [markdown]
# Our d is four, so √d is two and the scores are halved. This is the array the layer calls
# `scores`.

# %% Scaled
scores = t["scores"][0, 0]  # (T, T)
compare("q @ k.T / np.sqrt(d)", q @ k.T / np.sqrt(4), "scores in the layer", scores, tolerance=1e-6)
show("scores", scores, rows=tokens, columns=tokens, digits=1)

# %% [markdown]
# The tasks of lesson 05 had all their digits from the start. A model that writes has to predict
# each next token from those before it, and must not see the one it predicts. So the score of each
# key that lies ahead of its query becomes minus infinity: the exponential of that is zero. The
# diagonal stays, because a token may look at itself; without it the first token would have nothing
# to look at.

# %% The mask
visible = " and ".join(np.array(tokens)[seen[1]])
predict("Which tokens can `sat` see?", visible, ["cat", "sat", "cat and sat", "cat and sat and it"])
masked = np.where(seen, scores, -np.inf)  # (T, T)
show("masked scores", masked, rows=tokens, columns=tokens, mask=seen, digits=1)

# %% [markdown]
# Softmax turns each row of scores into weights that are positive and add up to one. It treats each
# row separately: every query has a total weight of one to give away.

# %% The pattern
pattern = t["pattern"][0, 0]  # (T, T)
predict(
    "`sat` scores the same with both tokens it sees. What weight does it give to `cat`?",
    float(pattern[1, 0]),
)
heat("pattern", pattern, rows=tokens, columns=tokens, mask=seen)
e = np.exp(masked - masked.max(axis=-1, keepdims=True))  # (T, T)
compare(
    "softmax by hand",
    e / e.sum(axis=-1, keepdims=True),
    "pattern in the layer",
    pattern,
    tolerance=1e-6,
)

# %% [markdown]
# What if the mask came after the softmax? It is a common mistake, and the picture looks almost
# right: the same entries are zero.

# %% A mask that comes too late
e = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (T, T)
late = e / e.sum(axis=-1, keepdims=True) * seen  # (T, T)
predict("Do the rows of that pattern still add up to one?", bool(np.allclose(late.sum(axis=-1), 1)))
heat("masked after softmax", late, rows=tokens, columns=tokens, mask=seen)
rows = zip(tokens, pattern.sum(axis=1), late.sum(axis=1), strict=True)
table("sum of each row, mask before or after", ["token", "before", "after"], rows)
say(
    "Weight was given to the future, and then thrown away. The first token has lost the most of it."
)

# %% [markdown]
# Finally, each query takes its weighted average of the values: a row of the pattern times `v`.
#
#     z = pattern @ v    (T, T) times (T, d) gives (T, d)

# %% The mix
predict(
    "`sat` takes equal parts of `cat` and `sat`. What is in its noun column now?",
    float((pattern @ v)[1, 0]),
)
show("pattern @ v", pattern @ v, rows=tokens, columns=features)
compare("pattern @ v", pattern @ v, "z in the layer", t["z"][0, 0], tolerance=1e-6)
say(
    "`it` came in with nothing in its noun column, and leaves with nearly all that `cat` had to "
    "give."
)

# %% [markdown]
# That is attention: compare, scale, mask, normalise, mix. One more matrix, `wo`, then writes the
# result back into the model; here it is the identity. In the package the middle part is one
# function, and each of these steps is a line you can find.
#
# Now write it yourself, as one function of `x` and the three matrices: the exercise asks for
# `attend`.

# %% Where it is done
show("out", out, rows=tokens, columns=features)
source(mq.Attention.forward)
source(mq.functional.scaled_dot_product_attention)
source(mq.functional._Attention.weights, at="scores = backend.bmm")
source(mq.functional._Attention.weights, at="-math.inf")
source(mq.functional._Attention.weights, at="xp.exp(scores")
