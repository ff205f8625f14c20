# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "From numbers to arrays"
# question = "One row was added to every row of a table. What is its gradient?"
# needs = ["gradient", "accumulation"]
# teaches = ["broadcasting", "unbroadcast", "Tensor", "cotangent"]
# minutes = 20
# budget_s = 4
# exercise = "unbroadcast"
# uses = ["minqkv.Tensor", "minqkv.tensor.unbroadcast"]
# ///

# %% [markdown]
# Lesson 01 kept one number in each Tensor. A model of a million numbers would be a million nodes,
# and Python would spend all its time on nodes. So from now on a Tensor holds an array, and one node
# represents all of its entries.
#
# The rules stay as they are, entry by entry. In a product each entry gets the matching entry of the
# other factor. The gradient of an array is an array of the same shape: one slope for each entry.

# %% One slope per entry
import numpy as np

import minqkv as mq
from minqkv.teach import compare, memory, predict, say, show, source, table

x_data = np.float32([[1, 2, 3], [4, 5, 6]])
w_data = np.float32([[2, 0, 1], [1, 3, 5]])

x = mq.Tensor(x_data, requires_grad=True)  # (2, 3)
w = mq.Tensor(w_data, requires_grad=True)  # (2, 3)
y = (x * w).sum()  # one number
y.backward()

show("x", x, digits=0)
show("w", w, digits=0)
predict(
    "`y` adds up all six products. What is the gradient of the last entry of `w`?",
    float(x_data[1, 2]),
)
show("gradient of w", w.grad, digits=0)
compare("gradient of w", w.grad, "x", x)

# %% [markdown]
# `y` was a single number, and so its gradient could start at 1. What if the result is an array?
# Then we must say how much each entry counts. This array of weights has the shape of the result,
# and is called the **cotangent**. We will write `g` for it.
#
# This is nothing new. Running back from an array with the cotangent `g` is the same as running back
# from the single number `(y * g).sum()`. Inside a graph every operation is in this position: the
# gradient that reaches its result is its `g`.

# %% Starting from an array
g_data = np.float32([[1, 2, 3], [4, 0, 5]])
g = mq.Tensor(g_data)

w = mq.Tensor(w_data, requires_grad=True)
y = x * w  # (2, 3)
try:
    y.backward()
except RuntimeError as error:
    message = str(error)
y.backward(g)

again = mq.Tensor(w_data, requires_grad=True)
(x * again * g).sum().backward()

say(f"Without g it is refused: {message}")
show("g", g, digits=0)
predict("What is the gradient of the last entry of `w` now?", float(x_data[1, 2] * g_data[1, 2]))
show("gradient of w", w.grad, digits=0)
compare("from y with g", w.grad, "from (y * g).sum()", again.grad)

# %% [markdown]
# Arrays of different shapes can be combined as well, if the smaller one can be **broadcast**:
# repeated until it fits. NumPy lines the two shapes up at their right ends, and then goes from
# right to left.
#
# - Where the two lengths are the same, they fit.
# - Where one of them is 1, that axis is stretched to the length of the other.
# - Where one shape has run out of axes, an axis is added in front, and stretched.
# - Anything else is an error.

# %% Shapes that fit


def together(a, b):
    try:
        return str(np.broadcast_shapes(a, b))
    except ValueError:
        return "an error"


one = (2, 3)
rows = []
for other in ((3,), (2, 1), (), (2,), (4, 1, 3)):
    rows.append([str(one), str(other), together(one, other)])

predict("Shapes (2, 3) and (2,): what comes out?", rows[3][2], ["(2, 3)", "(2, 2)", "an error"])
predict("And (2, 3) with (4, 1, 3)?", rows[4][2], ["(4, 2, 3)", "(4, 3, 3)", "(2, 3)", "an error"])
table("broadcasting", ["one", "other", "together"], rows)

# %% [markdown]
# What does stretching cost? `np.broadcast_to` shows what NumPy does when it broadcasts. It makes a
# **view**: an array that has no memory of its own, and reads the memory of another array in its own
# way.
#
# This is worth a look, because it shows what broadcasting really is: one number, **used several
# times**.

# %% One number, several uses
b_data = np.float32([10, 20, 30])  # (3,)
stretched = np.broadcast_to(b_data, (2, 3))

show("b, stretched", stretched, digits=0)
predict(
    f"From one column to the next NumPy moves on by {stretched.strides[1]} bytes, the length of a "
    "float32. "
    "By how many does it move from one row to the next?",
    stretched.strides[0],
)
memory(b=b_data, stretched=stretched)
say("It does not move at all: it reads the same row again.")

# %% [markdown]
# And a number used several times adds up what it receives from each use, as in lesson 01. That
# answers the question at the top. In `y = x + b` each entry of `b` is used once in every row. Its
# gradient is the sum, over the rows, of what arrives there.
#
# To be sure, we also do the same with single numbers, as in lesson 01: three of them, used twice
# each.

# %% The mirror
b = mq.Tensor(b_data, requires_grad=True)  # (3,)
y = x + b  # (2, 3)
y.backward(g)

numbers = [mq.Tensor(n, requires_grad=True) for n in b_data]
total = 0.0
for i in range(2):
    for j in range(3):
        y_ij = numbers[j] + x_data[i, j]
        total = total + y_ij * g_data[i, j]
total.backward()

show("g", g, digits=0)
predict("What is the gradient of the first entry of `b`?", float(g_data.sum(axis=0)[0]))
show("gradient of b", b.grad, digits=0)
compare("b as an array", b.grad, "as three numbers", [number.grad.item() for number in numbers])
compare("b as an array", b.grad, "g.sum(axis=0)", g_data.sum(axis=0))

# %% [markdown]
# A gradient must have the shape of what it belongs to. For `b` the axis that was added in front
# disappears again when it is summed over. An axis of length 1 was there before, and has to stay: it
# is summed over with `keepdims=True`.
#
# A column `c` of shape (2, 1) is stretched from one column to three when it is added to `x`. Each
# of its entries is used three times, all in one row. So the sum runs along that row.

# %% A column
c = mq.Tensor([[10], [20]], requires_grad=True)  # (2, 1)
(x + c).backward(g)
right = g_data.sum(axis=1, keepdims=True)  # (2, 1)

predict(
    "What shape does the gradient of `c` have?",
    str(right.shape),
    ["(2,)", "(1, 2)", "(2, 1)", "(2, 3)"],
)
show("gradient of c", c.grad, digits=0)
compare("gradient of c", c.grad, "g.sum(axis=1, keepdims=True)", right)
say(
    f"Without keepdims it would be {g_data.sum(axis=1).shape}. And c minus that would no "
    "longer be a column; NumPy silently makes it "
    f"{(c.numpy() - g_data.sum(axis=1)).shape}."
)

# %% [markdown]
# Now both in one: `h` of shape (3, 1) is added to an array of shape (2, 3, 4). One axis is added in
# front and one is stretched. Undo them in turn: first sum over the added axes, after which both
# shapes have the same number of axes, then over the stretched ones.
#
# A single number, of shape (), is the extreme case: every axis is added, so its gradient is the sum
# of all of `g`.
#
# With a cotangent of ones the sum counts how often each entry was used.

# %% Both at once
z = mq.Tensor(np.zeros((2, 3, 4)))
h = mq.Tensor(np.zeros((3, 1)), requires_grad=True)
(z + h).backward(mq.Tensor(np.ones((2, 3, 4))))
uses = h.grad

g3_data = np.arange(24.0).reshape(2, 3, 4)
h.zero_grad()
(z + h).backward(mq.Tensor(g3_data))
front = g3_data.sum(axis=0)  # (3, 4)
both = front.sum(axis=1, keepdims=True)  # (3, 1)

predict("How often is each entry of `h` used?", z.size // h.size)
show("uses of each entry", uses, digits=0)
show("gradient of h", h.grad, digits=0)
compare("summed in turn", both, "gradient of h", h.grad)

# %% [markdown]
# Many wrong gradients have the right shape, and then no error is raised. Take a square, with as
# many rows as columns, and four candidates for the gradient of a row `b` that is added to it.
# Nudging tells which one is right: raise an entry of `b` by one, and see how far `(y * g).sum()`
# moves.

# %% The right shape proves nothing
names = ["g.sum(axis=0)", "g.sum(axis=1)", "g.mean(axis=0)", "g[0]"]


def candidates(g):
    return [g.sum(axis=0), g.sum(axis=1), g.mean(axis=0), g[0]]


def nudged(g):
    y = np.arange(9.0).reshape(3, 3) + b_data  # (3, 3)
    before = (y * g).sum()
    return [((y + step) * g).sum() - before for step in np.eye(3)]


def right(g):
    return [np.allclose(row, nudged(g)) for row in candidates(g)]


g_square = np.float64([[1, 2, 3], [4, 0, 5], [2, 2, 1]])
show("g", g_square, digits=0)
predict(
    "How many of the four have the shape of `b`?",
    sum(row.shape == (3,) for row in candidates(g_square)),
)
rows = [nudged(g_square), *candidates(g_square)]
table(
    "gradients of b",
    ["", "b[0]", "b[1]", "b[2]"],
    [[name, *row] for name, row in zip(["nudging", *names], rows, strict=True)],
)
predict(
    "Now a `g` of ones instead. How many of the four agree with nudging then?",
    sum(right(np.ones((3, 3)))),
)
say(
    "A square and a g of ones hide mistakes. A good check uses lengths that all differ and a "
    "random g: so do the exercises."
)

# %% [markdown]
# In a product the rule of lesson 01 comes first. Let a row `s` scale each row of `x`. Each of its
# uses receives `g` times the entry of `x` it was multiplied with; **then** these are added up.
# Summing first and multiplying afterwards gives something else.

# %% Multiply, then sum
s = mq.Tensor([1, 1, 1], requires_grad=True)  # (3,)
(x * s).backward(g)
right = (g_data * x_data).sum(axis=0)  # (3,)
wrong = g_data.sum(axis=0) * x_data.sum(axis=0)  # (3,)

show("x", x, digits=0)
show("g", g, digits=0)
predict("What is the gradient of the first entry of `s`?", float(right[0]))
show("gradient of s", s.grad, digits=0)
compare("multiply, then sum", right, "gradient of s", s.grad)
compare("sum, then multiply", wrong, "gradient of s", s.grad, same=False)

# %% [markdown]
# If stretching turns into a sum on the way back, what does a sum turn into? Each entry that is
# summed over is used once, and all of them count the same: each receives the gradient of the sum.
# So the gradient is stretched.
#
# The two are mirror images: where one of them runs forward, the other runs backward. So each can be
# checked with the other.

# %% The mirror of a sum
x = mq.Tensor(x_data, requires_grad=True)
row = mq.Tensor([7, 8, 9])  # (3,)
x.sum(axis=0).backward(row)  # (2, 3) to (3,), and back

predict(
    "Which number is in the second row, first column of the gradient of `x`?",
    float(row.numpy()[0]),
)
show("gradient of x", x.grad, digits=0)
stretched = np.broadcast_to(row.numpy(), (2, 3))
compare("gradient of x", x.grad, "the row, stretched", stretched)

# %% [markdown]
# One trap has nothing to do with shapes. The numbers of a model are float32, four bytes each, and
# an array divided by a Python number keeps its type. But what if the number comes from NumPy, as a
# square root will in lesson 06?

# %% A number of the wrong type
half = x_data / 2.0
rooted = x_data / np.sqrt(4)  # the same numbers
in_tensor = mq.Tensor(x_data) / np.sqrt(4)

predict("`x_data` is float32. What type is `rooted`?", str(rooted.dtype), ["float32", "float64"])
results = {"half": half, "rooted": rooted, "in a Tensor": in_tensor.data}
table(
    "types",
    ["result", "type", "bytes"],
    [[name, str(array.dtype), array.nbytes] for name, array in results.items()],
)
say(
    "The root is a NumPy number of type float64, and that wins over float32: here, and in "
    "everything computed from it."
)
say(
    "The package turns such a number back into a Python number first, so that a Tensor keeps its "
    "type."
)

# %% [markdown]
# That is all there is to arrays: the rules of single numbers, and a sum wherever one number was
# used many times. The package has one function for that sum, `unbroadcast`, and every operation
# that broadcasts calls it on the way back.
#
# It is short, and easy to get almost right. Write it yourself: the exercise asks for `unbroadcast`.

# %% Where it is done
source(mq.tensor.unbroadcast)
source(mq.Tensor.__mul__, at="unbroadcast(g * y")
source(mq.Tensor.sum, at="broadcast_to")
source(mq.tensor._operands, at="_number(value)")
