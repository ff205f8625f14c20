# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Two projections, or one"
# question = "What is lost when one matrix does the work of two, or of three?"
# needs = [
#   "accumulation", "gradient check", "softmax", "Adam", "attention", "qkv", "heads", "parameters",
# ]
# teaches = [
#   "tied gradient", "reversibility", "curl", "gauge freedom", "temperature", "column bias",
#   "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+",
# ]
# minutes = 20
# budget_s = 5
# exercise = "tied_gradient"
# uses = [
#   "minqkv.Attention", "minqkv.Tensor", "minqkv.VariantSpec", "minqkv.trace",
#   "minqkv.analysis.diagnose.cycle_curl", "minqkv.reference.literal_plus", "minqkv.optim.Adam",
#   "minqkv.nn.Init", "minqkv.attention.sinusoids",
# ]
# ///

# %% [markdown]
# In lesson 06 a token had a query, a key and a value, made by three matrices. Do we need three? The
# key and the value could be the same row. So could the query and the key.
#
# Each way to share has a name, from the paper that this package is about. In a name `-` separates
# and `=` shares; the hyphen is not a minus sign. A **projection** is the product with one of these
# matrices. So `q-k=v` means: one projection for queries, and one for keys and values together. In
# the formulas α is one over the square root of d.

# %% Four ways to share
import numpy as np

import minqkv as mq
from minqkv import backend, reference
from minqkv.analysis.diagnose import cycle_curl
from minqkv.attention import sinusoids
from minqkv.nn import Init
from minqkv.optim import Adam
from minqkv.teach import compare, curve, heat, memory, predict, say, show, source, table

start = Init(8, "float64", "uniform")  # seed, dtype, scheme
rows = []
for name in ("qkv", "q-k=v", "q=k-v", "q=k=v"):
    layer = mq.Attention(name, 4, 1, 3, start, bias=False)  # C 4, one head
    matrices = [w for w in ("wq", "wk", "wv", "wo") if hasattr(layer, w)]
    formula = mq.VariantSpec.parse(name).formula
    rows.append([name, formula, " ".join(matrices), layer.n_params])
predict(
    "A layer of `qkv` has four matrices of shape (4, 4). How many numbers are in one of `q=k=v`?",
    layer.n_params,
)
table("one head, no bias", ["variant", "output, before wo", "matrices", "numbers"], rows)
say("A shared matrix exists once, and goes by the name wk.")

# %% [markdown]
# Take the three tokens of lesson 06, with its `wq` and `wk`, and let each layer show what it uses
# as q, k and v: the arrays themselves, not copies. There is no mask in this lesson: every token
# sees every other.
#
# Look for two names that mean the same piece of memory.

# %% One array, two names
tokens, features = ["cat", "sat", "it"], ["noun", "verb", "pron", "one"]
x = np.array([[2.0, 0, 0, 1], [0, 2, 0, 1], [0, 0, 2, 1]])  # (T, C)
wq = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
wk, wo = np.diag([1.0, 1, 1, 0]), np.eye(4)  # (C, d)


def run(name, **weights):
    layer = mq.Attention(name, 4, 1, 3, start, bias=False)
    layer.load_state_dict({f"{w}.weight": weights[w] for w in weights})
    return layer, layer(mq.Tensor(x[None]))  # out (1, T, C)


used = {"q-k=v": {}, "q=k-v": {}}
with mq.trace() as t:
    t.record = used["q-k=v"].__setitem__  # no copies
    run("q-k=v", wq=wq, wk=wk, wo=wo)
    t.record = used["q=k-v"].__setitem__
    run("q=k-v", wk=wk, wv=wq, wo=wo)
say("in the layer of q-k=v:")
memory(**{role: used["q-k=v"][role] for role in "qkv"})
say("in the layer of q=k-v:")
memory(**{role: used["q=k-v"][role] for role in "qkv"})

# %% [markdown]
# In `q-k=v` nothing was copied, and nothing has to be kept equal: `v` **is** `k`. When keys and
# values must be remembered for later (lesson 10), there is one array to remember, not two.
#
# What does the layer lose by this? Compare it with a layer of `qkv` that has the same `wq` and
# `wk`, and the `wv` of lesson 06.

# %% Keys that equal values
wv = np.diag([1.0, 1, 0, 1])
with mq.trace() as t:
    run("qkv", wq=wq, wk=wk, wv=wv, wo=wo)
    run("q-k=v", wq=wq, wk=wk, wo=wo)
three, two = (a[0, 0] for a in t.all("pattern"))  # (T, T) each
z3, z2 = (a[0, 0] for a in t.all("z"))  # (T, d)
k = t["k"][0, 0]  # (T, d)
predict(
    "Do the patterns (who looks at whom) of the two layers differ?", not np.allclose(three, two)
)
heat("pattern", two, rows=tokens, columns=tokens)
compare("pattern of qkv", three, "pattern of q-k=v", two)
show("z of qkv: pattern @ v", z3, rows=tokens, columns=features)
show("z of q-k=v: pattern @ k", z2, rows=tokens, columns=features)
compare("pattern @ k", two @ k, "z in the layer", z2)
say("Who looks at whom is unchanged. But a token now hands over exactly what it is found by.")

# %% [markdown]
# How does such a matrix learn? It is used twice, and in lesson 01 we met a number used twice.
#
# First keep the uses apart: a layer of `qkv` whose `wk` and `wv` hold equal numbers, but are two
# matrices. It computes what `q-k=v` computes. We ask for one number of its output, the noun column
# of `it`, and go backward from there.

# %% Two uses, two gradients
apart, out = run("qkv", wq=wq, wk=wk, wv=wk, wo=wo)  # two equal matrices
tied, out_tied = run("q-k=v", wq=wq, wk=wk, wo=wo)  # one
out[0, 2, 0].backward()
as_key = mq.Tensor(apart.wk.weight.grad).numpy()  # (C, d)
as_value = mq.Tensor(apart.wv.weight.grad).numpy()
compare("out of two equal matrices", out, "out of one", out_tied)
say(
    f"`it` gives `cat` the weight {round(two[2, 0], 3)}, and the noun column of `cat` in `x` is "
    f"{int(x[0, 0])}."
)
predict("So what does the value gradient hold in row noun, column noun?", float(as_value[0, 0]))
show("gradient of wv: used as a value", as_value, rows=features, columns=features)
show("gradient of wk: used as a key", as_key, rows=features, columns=features)
say(
    "The value path changes what is handed over; the key path changes who is attended to. The two "
    "gradients look quite different."
)

# %% [markdown]
# Now the one matrix of `q-k=v`, with the same number of its output. It has one gradient.
#
# Whatever you guess, a difference quotient gives the answer: move one entry of the matrix a little
# up and a little down, and see how much the output moves.

# %% One matrix, one gradient
out_tied[0, 2, 0].backward()
gradient = mq.Tensor(tied.wk.weight.grad).numpy()  # (C, d)
guesses = {
    "the value's alone": as_value,
    "their average": (as_key + as_value) / 2,
    "their sum": as_key + as_value,
    "the larger one, entry by entry": np.maximum(as_key, as_value),
}
right = next(g for g in guesses if np.allclose(guesses[g], gradient))

nudge = np.zeros((4, 4))
nudge[0, 0] = 1e-4  # row noun, column noun
_, up = run("q-k=v", wq=wq, wk=wk + nudge, wo=wo)
_, down = run("q-k=v", wq=wq, wk=wk - nudge, wo=wo)
quotient = (up[0, 2, 0].item() - down[0, 2, 0].item()) / (2 * 1e-4)
predict("How does the gradient of the shared matrix relate to the two?", right, list(guesses))
rows = {"as a key": as_key[0, 0], "as a value": as_value[0, 0]}
rows |= {"sum": sum(rows.values()), "difference quotient": quotient}
table("row noun, column noun", ["", "slope"], list(rows.items()))
compare("sum of the two", as_key + as_value, "gradient of the one", gradient)
say("Each use sends its gradient back, and they add up: accumulation again.")

# %% [markdown]
# Now the other sharing, `q=k-v`: one matrix makes queries and keys. We take another `wk`, so that
# the keys overlap.

# %% Queries that equal keys
wk = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
with mq.trace() as t:
    run("q=k-v", wk=wk, wv=wv, wo=wo)
k, scores, pattern = (t[name][0, 0] for name in ("k", "scores", "pattern"))
show("k", k, rows=tokens, columns=features, digits=0)
predict(
    "k is also q. What is the score of `sat` for `cat`? (d is four, so halve the dot product.)",
    float(scores[1, 0]),
)
predict("And of `cat` for `sat`?", float(scores[0, 1]))
show("scores", scores, rows=tokens, columns=tokens, digits=1)
compare("scores", scores, "scores transposed", scores.T)
predict("Then is the pattern symmetric too?", bool(np.allclose(pattern, pattern.T)))
heat("pattern", pattern, rows=tokens, columns=tokens)

# %% [markdown]
# It is not: each row is divided by its own sum. But part of the symmetry is left. Read the pattern
# as the rules of a random walk: from the token of a row, step to the token of a column, with the
# probability given there.
#
# Let many walkers start, `w[i]` of them at token i, where `w[i]` is the sum that softmax divided
# row i by. How many then go from i to j in one step?
#
#     w[i] · pattern[i, j] = exp(scores[i, j])

# %% A walk that could run backwards
w = np.exp(scores).sum(axis=1)  # (T,), what softmax divided each row by
flow = w[:, None] * pattern  # (T, T)
show("walkers from row to column", flow, rows=tokens, columns=tokens, digits=1)
compare("walkers there", flow, "walkers back", flow.T)
say("As many go from i to j as from j to i: a film of the walk, shown backwards, looks the same.")
predict("Where is a walker found most often?", tokens[int(w.argmax())], tokens)
late = np.linalg.matrix_power(pattern, 1000)  # (T, T), a thousand steps
show("after a thousand steps", late, rows=tokens, columns=tokens)
compare("w / w.sum()", np.tile(w / w.sum(), (3, 1)), "a thousand steps, from anywhere", late)

# %% [markdown]
# Such a walk is called **reversible**. It has no sense of rotation: going around `cat`, `sat`, `it`
# is as likely as going around the other way. With a separate matrix for queries the two can differ.
# The **curl** is the logarithm of how much more likely one way is than the other. Take logs: around
# a cycle the row sums cancel, so the curl depends on the scores alone. It is our test for a
# direction: a pattern can look lopsided and still have no curl.
#
# (Under a causal mask there is no way back to compare with; take the scores from before the mask.)

# %% Around the cycle
with mq.trace() as t:
    run("qkv", wq=wq, wk=wk, wv=wv, wo=wo)
patterns = {"q=k-v": pattern, "qkv": t["pattern"][0, 0]}  # (T, T) each
rows = []
for name, p in patterns.items():
    there = p[0, 1] * p[1, 2] * p[2, 0]
    back = p[0, 2] * p[2, 1] * p[1, 0]
    curl = cycle_curl(np.log(p))  # the largest over all cycles of three
    shown = f"{there:.5f}", f"{back:.5f}"
    rows.append([name, *shown, abs(np.log(there / back)), curl])
predict("Is there curl in `q=k-v`?", bool(cycle_curl(np.log(pattern)) > 1e-9))
table("cat, sat, it, cat", ["variant", "around", "other way", "log ratio", "cycle_curl"], rows)

# %% [markdown]
# Why measure scores at all? One could take a trained layer of `qkv`, compute the cosine of `wq` and
# `wk` or of `wk` and `wv` (each as one long row of numbers), and share where it is near one. The
# paper itself reports such cosines.
#
# But queries and keys only meet in `q @ k.T`. Multiply `wq` by any invertible matrix A and `wk` by
# the inverse of A, transposed: the scores stay the same. Likewise multiply `wv` by B and `wo` by
# the inverse of B: the output stays the same. This is called **gauge freedom**: many weights, one
# layer. Below, `wq` and `wk` start out alike, and then an A is chosen that turns `wk` into `wv`.


# %% The cosine of two matrices
def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


q0, k0, v0, o0 = np.random.default_rng(8).standard_normal((4, 4, 4))
k0 = q0 + k0 / 4  # (C, d), much like wq
a_inverse = np.linalg.solve(k0, v0).T  # so that k0 @ a_inverse.T is v0
q1, k1 = q0 @ np.linalg.inv(a_inverse), k0 @ a_inverse.T
_, drawn = run("qkv", wq=q0, wk=k0, wv=v0, wo=o0)
_, negated = run("qkv", wq=q0, wk=k0, wv=-v0, wo=-o0)  # B: minus one
_, turned = run("qkv", wq=q1, wk=k1, wv=v0, wo=o0)
_, shared = run("q-k=v", wq=q1, wk=k1, wo=o0)
same = all(np.allclose(drawn.numpy(), o.numpy()) for o in (negated, turned))
rows = [["as drawn", cosine(q0, k0), cosine(k0, v0)]]
rows += [["wv, wo negated", cosine(q0, k0), cosine(k0, -v0)]]
rows += [["wk into wv", cosine(q1, k1), cosine(k1, v0)]]
predict(
    "Three sets of weights, with different cosines. Do their layers give the same output?", same
)
table("cosines", ["weights", "wq, wk", "wk, wv"], rows)
compare("out as drawn", drawn, "out, wv and wo negated", negated)
compare("out as drawn", drawn, "out, wk turned into wv", turned)
compare("out as drawn", drawn, "out of q-k=v with the turned wq and wk", shared)
say(
    "So a cosine of weights tells us nothing. And one head of full width, whose wk can be "
    "inverted, loses nothing with K = V."
)
say(
    "Several heads do lose something: the keys and the values of a narrow head may read "
    "different parts of x."
)

# %% [markdown]
# Can some A make `wq` equal to `wk`? No: the scores would be symmetric, and A leaves them
# unchanged. So what can `q=k-v` not do? Anything with a direction: let each of three tokens look at
# the next one around the cycle, and at nothing else.
#
# Suppose each gives `p` to the next one; that leaves at most `1 - p` for the one before. But
# without curl, the three weights one way around have the same product as the three the other way.
#
# Let a layer of each kind learn it, with Adam. Where `x`, `wv` and `wo` are identities, `out` is
# the pattern itself.

# %% Look at the next one
ahead = mq.Tensor(np.roll(np.eye(3), 1, axis=1))  # (T, T)


def learn(name):
    layer = mq.Attention(name, 3, 1, 3, start, bias=False)
    fixed = {"wv.weight": np.eye(3), "wo.weight": np.eye(3)}
    layer.load_state_dict(layer.state_dict() | fixed)
    learns = [p for n, p in layer.named_parameters() if n not in fixed]
    optimizer, reached = Adam(learns, lr=0.05), []
    for _ in range(150):
        layer.zero_grad()
        pattern = layer(mq.Tensor(np.eye(3)[None]))  # (1, T, T)
        loss = -(pattern * ahead).sum(-1).log().mean()
        loss.backward()
        optimizer.step()
        reached.append(float(np.exp(-loss.item())))  # p, a geometric mean
    return layer, reached, pattern.numpy()[0]


predict(
    "What is the largest p that is possible then?",
    max(p for p in np.linspace(0, 1, 101) if p**3 <= (1 - p) ** 3),
)
(_, apart, _), (_, tied, pattern) = learn("qkv"), learn("q=k-v")
curve("what the next token gets", {"qkv": apart, "q=k-v": tied})
heat("pattern of q=k-v, learned", pattern)
say("It stays below even that bound. The best this layer can do is look at all tokens equally.")

# %% [markdown]
# The reason is a square. `(k[i] - k[j]) · (k[i] - k[j])` is never negative, so the scores of two
# tokens with themselves add up to at least twice their score with each other. On average, a token
# looks at itself at least as much as at any other.
#
# The paper gives Q = K a `+`, so that queries and keys differ again. To each score, add each of m
# fixed numbers P[i, j, c] (the channels); the first of them depend on the row i, the others on the
# column j. With one weight for each channel and a constant b, the m sums become one number:
#
#     plus[i, j] = b + the sum over all channels c of
#                  w[c] · (scores[i, j] + P[i, j, c])
#
# What does it do? To find out, take the scores of `cat sat it` and two channels of whole numbers,
# one for rows and one for columns. Change one ingredient at a time and look at the pattern.


# %% A plus, as written
def with_plus(w, b, row, column):
    row, column = backend.upload(row), backend.upload(column)  # (T, m) each
    lifted = mq.Tensor(scores[None, None])  # (1, 1, T, T)
    s = reference.literal_plus(lifted, mq.Tensor(w), b, row, column)
    return reference.softmax(s).numpy()[0, 0]  # (T, T)


w, b = np.array([-2.0, 1.0]), 7.0
row, column = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [1.0], [5.0]])
plain = with_plus(w, b, row, column)
changed = {
    "another b": with_plus(w, 100.0, row, column),
    "another row channel": with_plus(w, b, row**3, column),
    "another column channel": with_plus(w, b, row, column**3),
}
moved = {name: abs(p - plain).max() for name, p in changed.items()}
predict("Which of these changes the pattern?", max(moved, key=moved.get), list(changed))
table(
    "largest change in the pattern",
    ["", "change"],
    [[name, f"{change:.3f}"] for name, change in moved.items()],
)

# %% [markdown]
# A number that is added to a whole row does not change its softmax. The constant is such a number,
# and so is what the row channels add. But their weights still count, because every channel also
# adds the score. Two things are left of the `+`:
#
#     softmax(s · scores + g)
#     s    = all w, added up
#     g[j] = the column channels of j, times their w
#
# The factor s is called a **temperature**, and g is a bias for each position of a key, a **column
# bias**. This, and not the long sum, is what the package computes in both `q=k-v+` and `q=k=v+`.

# %% What survives the softmax
s, g = w.sum(), column @ w[1:]  # a number, and (T,)
e = np.exp(s * scores + g)  # (T, T)
predict(
    "The weights of the two channels were -2 and 1. What is each score multiplied by?", float(s)
)
compare("by hand", e / e.sum(axis=1, keepdims=True), "as written", plain)

ten = np.arange(-5.0, 5.0)  # weights: five for rows, five for columns
channels = sinusoids(3, 5, dtype="float64")  # (T, 5), for either part
with mq.trace() as t:
    layer, _ = run("q=k-v+", wk=wk, wv=wv, wo=wo, plus=ten)
keys = slice(0, 3)  # their positions
temperature, bias = (part.numpy() for part in layer.plus(keys))  # (), (T,)
literal = with_plus(ten, b, channels, channels)
show("s in the layer", temperature)
show("g in the layer", bias, columns=tokens)
compare("pattern as written", literal, "pattern in the layer", t["pattern"][0, 0])

# %% [markdown]
# Multiplying symmetric scores by a number leaves them symmetric, and a bias for each key cancels
# around a cycle as row sums do. So the `+` does not bring back direction. But it can do something
# else: with s below zero, the largest score becomes the smallest, and a token's score with itself
# is among the largest.
#
# Now write the gradient of a tied weight yourself, for `q=k=v`, where one matrix has three uses.
# The exercise asks for `tied_gradient`.

# %% What it fixes, and what it does not
layer, reached, pattern = learn("q=k-v+")
rows = []
for name in ("qkv", "q-k=v", "q=k-v", "q=k=v", "q=k-v+", "q=k=v+"):
    with mq.trace() as t:
        mq.Attention(name, 4, 1, 3, start, bias=False)(mq.Tensor(x[None]))
    curl = "yes" if cycle_curl(np.log(t["pattern"])) > 1e-9 else "none"
    rows.append([name, mq.VariantSpec.parse(name).formula, curl])
predict("How much does `q=k-v+` learn to give to the next token?", reached[-1])
heat("pattern of q=k-v+, learned", pattern)
temperature, _ = layer.plus(slice(0, 3))  # ()
say(
    f"The temperature it found is {round(temperature.item(), 1)}: a token looks at both "
    "neighbours equally, and not at itself."
)
table("which can have a direction", ["variant", "output, before wo", "curl"], rows)
source(mq.Attention.read, at="with K = V, the same row twice")
source(mq.Tensor.backward)
source(cycle_curl)
source(type(layer.plus).forward)
source(reference.literal_plus)
