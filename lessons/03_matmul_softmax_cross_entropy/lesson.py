# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Matmul, softmax, cross-entropy"
# question = "How does a gradient get back through a softmax, and who checks it?"
# needs = ["gradient", "Tensor", "cotangent"]
# teaches = ["matmul", "softmax", "cross-entropy", "vector-Jacobian product", "gradient check"]
# minutes = 20
# budget_s = 4
# exercise = ["softmax", "softmax_vjp"]
# uses = [
#   "minqkv.Tensor", "minqkv.gradcheck", "minqkv.functional.softmax",
#   "minqkv.functional.cross_entropy",
# ]
# ///

# %% [markdown]
# In the first two lessons a gradient went back through one number, or through an array entry by
# entry. A matrix product and a softmax are different: there every output depends on many inputs.
# Nearly everything a text model computes consists of these two, with one number at the end, the
# cross-entropy.
#
# Take a row of three numbers times a matrix. Three inputs, two outputs: that makes six slopes, one
# for each pair. Written as an array, a row for each output and a column for each input, they are
# called the **Jacobian**. We find it in the plainest way: nudge one input at a time, and see how
# far each output moves.

# %% A slope for each pair
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.teach import compare, predict, say, show, source, table
from minqkv.tensor import make

x = np.float64([[1, 2, 3]])  # (1, 3)
w = np.float64([[1, 0], [2, -1], [0, 4]])  # (3, 2)
jacobian = np.zeros((2, 3))
for i in range(3):
    nudge = np.zeros((1, 3))
    nudge[0, i] = 0.001
    jacobian[:, i] = ((x + nudge) @ w - x @ w)[0] / 0.001
show("w", w, rows=["x0", "x1", "x2"], columns=["y0", "y1"], digits=0)
show("jacobian", jacobian.round(6), rows=["y0", "y1"], columns=["x0", "x1", "x2"], digits=0)
compare("jacobian", jacobian, "w.T", w.T)
say(
    "y0 grows twice as fast as x1, because that is the weight between them. For a matrix product "
    "the slopes are w itself."
)

# %% [markdown]
# Backward never builds that array. It starts with one number for each output: the gradient of `y`,
# which says how fast the final result grows with that output. That is the cotangent of lesson 02;
# here we call it `u`. It must end with one number for each input. An input collects from every
# output: the cotangent of the output, times the slope between the two.
#
#     gradient of x = cotangent @ Jacobian
#
# That is a **vector-Jacobian product**: the `vjp` that lesson 01 called by hand. An operation only
# has to compute this product, and for a matrix product that is `u @ w.T`: no nudges, and no
# Jacobian. Here `y0` counts once, and `y1` ten times.

# %% One vector in, one vector out
u = np.float64([[1, 10]])  # (1, 2), a cotangent
tx = mq.Tensor(x, requires_grad=True)
y = tx @ mq.Tensor(w)  # (1, 2)
y.backward(mq.Tensor(u))
show("w", w, rows=["x0", "x1", "x2"], columns=["y0", "y1"], digits=0)
show("u", u, columns=["y0", "y1"], digits=0)
predict("What is the gradient of x1? Both outputs send something.", tx.grad[0, 1])
show("gradient of x", tx.grad, columns=["x0", "x1", "x2"], digits=0)
compare("u @ jacobian", u @ jacobian, "gradient of x", tx.grad, tolerance=1e-8)
sizes = (6, 64, 4096)
rows = [[f"{n:,}", f"{n:,}", f"{n * n:,}"] for n in sizes]
table("how many numbers", ["inputs and outputs", "cotangent", "Jacobian"], rows)
say(
    "A Jacobian has a number for each pair. At the sizes of a real model it would never fit into "
    "memory."
)

# %% [markdown]
# Usually both factors are arrays, and both need a gradient. Follow one number: the element (i, k)
# of `a` meets the element (k, j) of `b` on its way to the element (i, j) of the product, for each
# j. So it collects, over all j, what arrives at (i, j) times `b` at (k, j): that is `g @ b.T`. The
# same for `b` gives `a.T @ g`.
#
# There is nothing to memorise. The gradient of an array has the shape of that array, and where all
# sizes differ, as they do here, there is only one way to put the pieces together.

# %% Matmul, both ways
left = np.float64([[1, 2, 0], [0, 1, 3]])  # (2, 3)
right = np.float64([[1, 0, 2, 1], [2, 1, 0, 0], [0, 1, 1, 0]])  # (3, 4)
g = np.float64([[1, 0, 0, 0], [0, 0, 10, 0]])  # (2, 4), the shape of a @ b
a = mq.Tensor(left, requires_grad=True)
b = mq.Tensor(right, requires_grad=True)
product = a @ b
product.backward(mq.Tensor(g))
show("a", a, digits=0)
show("b", b, digits=0)
show("g", g, digits=0)
show("gradient of a", a.grad, digits=0)
show("gradient of b", b.grad, digits=0)
compare("g @ b.T", g @ right.T, "gradient of a", a.grad)
compare("a.T @ g", left.T @ g, "gradient of b", b.grad)

# %% [markdown]
# Now the second operation. Scores can be any numbers; a model has to turn them into shares that are
# positive and add up to one. **Softmax** takes the exponential of each (that makes them positive)
# and divides by their sum.
#
# Our scores are logarithms of whole numbers, so that the exponentials can be read off.

# %% Scores into shares
counts = np.array([[2.0, 3.0, 5.0]])
scores = np.log(counts)  # (1, 3)
e = np.exp(scores)  # (1, 3), the counts again
y = e / e.sum(axis=-1, keepdims=True)  # (1, 3) / (1, 1)
show("exp(scores)", e, digits=0)
show("y", y)
compare("by hand", y, "F.softmax", F.softmax(mq.Tensor(scores)))
more = np.exp(scores + 1)  # each exponential grows by the same factor
predict("Add 1 to every score. Do the shares change?", not np.allclose(more / more.sum(), y))
say("A factor common to all cancels in the division: only differences between scores matter.")

# %% [markdown]
# So it should make no difference if every score is a thousand larger. On paper it makes none. But a
# float has a largest value: in float64 it has about three hundred digits, and the exponential of a
# thousand has more. (NumPy would warn; `errstate` keeps it quiet.)

# %% Overflow
far = scores + 1000  # (1, 3)
with np.errstate(over="ignore", invalid="ignore"):
    e = np.exp(far)  # (1, 3)
    naive = e / e.sum(axis=-1, keepdims=True)
answers = {str(0 * y): "zeros", str(y): "as before", str(y * np.nan): "nan"}
predict(
    "What does the naive softmax make of these scores?",
    answers[str(naive)],
    list(answers.values()),
)
show("exp(far)", e)
show("naive", naive)
shifted = np.exp(far - far.max(axis=-1, keepdims=True))  # (1, 3), 1 at most
stable = shifted / shifted.sum(axis=-1, keepdims=True)
show("stable", stable)
compare("stable", stable, "F.softmax", F.softmax(mq.Tensor(far)))
say(
    "Each row is shifted by its own maximum. That cancels, and nothing is left that could overflow."
)

# %% [markdown]
# How do shares move when a score does? Raise one score: its own share grows, and the others must
# shrink, because the sum stays one. So every output depends on every input, and the Jacobian is
# full.
#
# We can read it out of the package. With a cotangent that is 1 at one output and 0 elsewhere,
# backward returns the row of that output.

# %% Everyone else pays
rows = []
for i in range(3):
    s = mq.Tensor(scores, requires_grad=True)
    one = np.eye(3)[i : i + 1]  # (1, 3), a cotangent
    F.softmax(s).backward(mq.Tensor(one))
    rows.append(backend.to_host(s.grad)[0])
jacobian = np.array(rows)  # (3, 3)
names = ["y0", "y1", "y2"]
show("y", y, columns=names)
show("jacobian", jacobian, rows=names, columns=["s0", "s1", "s2"])
compare("diag(y) - outer(y, y)", np.diag(y[0]) - np.outer(y[0], y[0]), "jacobian", jacobian)

# %% [markdown]
# Why these numbers? Nudge one score: its exponential grows in proportion, and the sum of all grows
# by its share `y` of that. So every share loses its size times `y`, and the one that was raised
# also gains `y`: y (1 - y) on the diagonal, minus the product of two shares elsewhere. Multiply a
# cotangent `g` by that array: the gain gives `g * y`, and the losses together subtract `y` times
# the sum of `g * y`. Again no Jacobian is needed:
#
#     gradient of the scores = y * (g - sum(g * y))
#
# Read it from the inside. The sum is a **weighted average** of `g`: the shares are the weights. A
# score gains in proportion to how far its own `g` lies above that average, and a small share moves
# little.

# %% Above the average
g = np.array([[10.0, 0.0, 0.0]])  # (1, 3)
average = (g * y).sum(axis=-1, keepdims=True)  # (1, 1), one for each row
gradient = y * (g - average)  # (1, 3)
show("y", y)
show("g", g, digits=0)
say(f"the average of g, weighted by y: {round(average.item(), 6):g}")
predict("What is the gradient of the first score?", float(gradient[0, 0]))
show("gradient", gradient)
s = mq.Tensor(scores, requires_grad=True)
F.softmax(s).backward(mq.Tensor(g))
compare("y * (g - average)", gradient, "in the package", s.grad)

# %% [markdown]
# Suppose you wrote that backward. How would you test it? The usual way is to add up the outputs,
# call `backward`, and compare with what nudges say. Adding up means sending a cotangent of ones.

# %% The usual test
s = mq.Tensor(scores, requires_grad=True)
F.softmax(s).sum().backward()
found = backend.to_host(s.grad)  # (1, 3)
answers = {"one": 1, "its share": y, "zero": 0}
same = [name for name, value in answers.items() if np.allclose(found, value)]
predict(
    "Every output gets a cotangent of one. What is the gradient of a score?", same[0], list(answers)
)
show("gradient", found)
say("The shares add up to one, whatever the scores: their sum has no slope at all.")

# %% [markdown]
# So a test with ones expects zeros from every softmax, and a backward that returns nothing but
# zeros passes it. Here is a small test bench for backward functions. It takes a direction `v`, and
# compares two numbers that must agree:
#
# - nudge the scores along `v`, see how the outputs move, and weigh that by `u`;
# - send `u` backward, and weigh what comes out by `v`.
#
# The first time `u` is all ones, the second time random. The last backward on the bench knows only
# the diagonal of the Jacobian.


# %% A test that zeros pass
def exact(u):
    return y * (u - (u * y).sum(axis=-1, keepdims=True))


results = {
    "right": exact,
    "zeros": lambda u: 0 * u,
    "minus": lambda u: -exact(u),
    "doubled": lambda u: 2 * exact(u),
    "diagonal": lambda u: u * y * (1 - y),
}
v, drawn = np.random.default_rng(14).standard_normal((2, 1, 3))
ahead, behind = (F.softmax(mq.Tensor(scores + d * v)) for d in (1e-6, -1e-6))
moved = (ahead.numpy() - behind.numpy()) / 2e-6  # (1, 3), the shares along v
rows, ones = [], np.ones((1, 3))
for name, back in results.items():
    errors = [(u * moved - back(u) * v).sum() for u in (ones, drawn)]
    rows.append([name, *abs(np.round(errors, 6))])
passed = sum(row[1] == 0 for row in rows)
predict(f"How many of these {len(rows)} pass with ones: {', '.join(results)}?", passed)
table("error of each backward", ["backward", "ones", "random"], rows)
say(
    "With ones, every multiple of the right backward passes, even zero times it and minus one "
    "times it. With random numbers only the right one passes."
)

# %% [markdown]
# Why do random vectors find the mistake? A mistake is a difference between two matrices, with `u`
# on one side of it and `v` on the other. If the difference is not zero, only special vectors give
# zero. For many mistakes in a softmax, a vector of ones is one of these; random vectors almost
# never are.
#
# This is a **gradient check**, and `mq.gradcheck` is the package's. It wants float64: in float32
# the difference of two nudged results would be mostly rounding error. We give it the real softmax,
# and one whose backward is lazy. (`make` takes a result, its inputs, and the backward: it is how
# each operation of the package ends.)


# %% The gradient check
def lazy_softmax(x):
    y = F.softmax(x).data
    return make(y, (x,), lambda g, wanted: (0 * g,))


s = mq.Tensor(scores, requires_grad=True)
error = mq.gradcheck(F.softmax, s)  # returns the error it found
try:
    mq.gradcheck(lazy_softmax, s)
    verdict = "passes"
except AssertionError as complaint:
    verdict = f"fails: {complaint}"
say(f"F.softmax passes, with an error of {np.round(error, 12)}")
say(f"lazy_softmax {verdict}")
say(
    "In that message J is the Jacobian, and ⟨a, b⟩ multiplies a and b entry by entry and adds up: "
    "the test bench from before."
)

# %% [markdown]
# The third operation turns shares into one number that says how wrong they are. **Cross-entropy**
# looks at the share of the right answer, and takes minus its logarithm: nothing for a share of one,
# more and more as the share shrinks. Over several rows it is the mean.
#
# Softmax and logarithm together have a backward that is simpler than either: the shares, minus one
# at the right answer, divided by the number of rows.

# %% One number for being wrong
logits = np.log([[2.0, 3.0, 5.0], [2.0, 1.0, 1.0]])  # (2, 3)
targets = np.array([2, 1])  # the right answers, a column for each row
s = mq.Tensor(logits, requires_grad=True)
loss = F.cross_entropy(s, targets)  # a single number
loss.backward()
shares = F.softmax(s.detach()).numpy()  # (2, 3)
show("shares", shares, columns=["0", "1", "2"])
show("targets", targets, digits=0)
by_hand = -np.log(shares[[0, 1], targets]).mean()  # a number
compare("by hand", by_hand, "F.cross_entropy", loss)
say(f"the loss is {round(loss.item(), 4)}")
predict("What is the gradient of the score of column 2 in the first row?", s.grad[0, 2])
show("gradient", s.grad, columns=["0", "1", "2"])
compare(
    "shares, minus one at the right answer, halved",
    (shares - np.eye(3)[targets]) / 2,
    "gradient",
    s.grad,
)

# %% [markdown]
# One trap is left. A share can be so small that float64 calls it zero, and the logarithm of zero is
# minus infinity. So the package never takes the logarithm of a share: minus the logarithm of the
# softmax is the logarithm of the sum of exponentials, minus the score of the right answer, and that
# stays finite.
#
# The real lines are short. Now write the two that matter most: the exercise asks for `softmax` and
# its vector-Jacobian product, and it will be tested with large scores and with random cotangents.

# %% Where it is done
lost = np.array([[0.0, 1000.0]])  # (1, 2), and the right answer is the first
with np.errstate(divide="ignore"):
    careless = -np.log(F.softmax(mq.Tensor(lost)).numpy()[0, 0])
careful = F.cross_entropy(mq.Tensor(lost), np.array([0])).item()
say(f"minus the logarithm of the share: {careless}; from the scores: {careful}")
source(mq.tensor.matmul, at="unbroadcast(backend.bmm(g")
source(F.softmax, at=".max(axis=-1")
source(F.softmax, at="dx = g -")
source(F.cross_entropy, at="p[index] -= 1")
source(mq.gradcheck, at="rng.standard_normal(out")
