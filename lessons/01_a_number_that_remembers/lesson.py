# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "A number that remembers"
# question = "How can a result tell how strongly each of its inputs affects it?"
# needs = []
# teaches = ["gradient", "accumulation", "backward order"]
# minutes = 20
# budget_s = 4
# exercise = "Number"
# uses = ["minqkv.Tensor", "minqkv.trace", "minqkv.runtime.tracing.probe", "minqkv.gradcheck"]
# ///

# %% [markdown]
# A program makes one number `y` out of three others. Change one of the three a little: how far does
# `y` move for each unit of that change? The answer is a slope, called the **gradient** of `y` with
# respect to that number. A model that learns needs this for each of its numbers, because it says
# which way to change them.
#
# The simplest way to find a slope is to nudge one number, run the program again, and look at the
# difference.

# %% Nudging
import minqkv as mq  # for the steps to come
from minqkv.runtime.tracing import probe
from minqkv.teach import compare, predict, say, source, table


def f(a, b, c):
    return a * b + c


here = {"a": 3.0, "b": 4.0, "c": 5.0}
slopes = {}
for name in here:
    nudged = {**here, name: here[name] + 0.5}
    slopes[name] = (f(**nudged) - f(**here)) / 0.5

predict(
    f"`y` is {f(**here):g} now. How far does it move if `a` grows by one, to {here['a'] + 1:g}?",
    slopes["a"],
)
table(
    "by nudging", ["input", "value", "slope"], [[name, here[name], slopes[name]] for name in here]
)
say(f"That took {len(here) + 1} runs of f: one to start from, and one for each input.")
say("A model has millions of such inputs. Millions of runs for one step of learning are too many.")

# %% [markdown]
# One run gives all the slopes, if each number remembers how it was made. In this package such a
# number is a `Tensor`. It holds its `data`, and a `node` that knows its `parents`: the nodes it was
# made from. (From lesson 02 on the data is an array. Here it is always a single number.)
#
# `requires_grad=True` marks the numbers whose gradient we want. Python's `*` and `+` do the rest:
# between Tensors they make a new Tensor, and its node.


# %% Remembering
def leaves():
    """a, b and c, fresh."""
    return [mq.Tensor(x, requires_grad=True) for x in here.values()]


a, b, c = leaves()
p = a * b
y = p + c

numbers = {"a": a, "b": b, "c": c, "p": p, "y": y}
names = {tensor.node: name for name, tensor in numbers.items()}
made_from = {}
for name, tensor in numbers.items():
    parents = [names[node] for node in tensor.node.parents]
    made_from[name] = " and ".join(parents) or "nothing"

predict(
    "Which numbers does `y` itself remember?",
    made_from["y"],
    ["a and b and c", "p and c", "a and b", "p"],
)
table(
    "what each number remembers",
    ["number", "value", "made from"],
    [[name, numbers[name].item(), made_from[name]] for name in numbers],
)
say(
    "Each number remembers only one step back. Following these steps leads to the inputs, which "
    "were made from nothing."
)

# %% [markdown]
# Now go back from the end. `y` grows just as fast as itself, so its own gradient is 1. Then each
# operation passes its gradient on to the numbers it was made from, by its own rule.
#
# - When one part of a sum moves, the sum moves just as far. Both parts receive the gradient of the
#   sum unchanged.
# - A product `a * b` moves `b` times as far as `a` does. So `a` receives the gradient of the
#   product times `b`, and `b` receives it times `a`: each factor gets the other one.
#
# `backward` works from `y` to the inputs, and stores in each input's `grad` what has arrived there.

# %% Handing back
y.backward()

predict("What is the gradient of `b`?", b.grad.item())
by_backward = [numbers[name].grad.item() for name in here]
table(
    "the same slopes, computed two ways",
    ["input", "nudging", "backward"],
    list(zip(here, slopes.values(), by_backward, strict=True)),
)
compare("by nudging", list(slopes.values()), "by backward", by_backward)
say("One run forward and one back, however many inputs there are.")

# %% [markdown]
# Along a longer path the factors multiply. In `y = (a * b) * c` the product `p = a * b` is in the
# middle: `p` receives the gradient of `y`, times `c`, and passes that on to `a`, times `b`.
#
# `mq.trace` records what passes through the package while it runs, and `probe` gives a name to a
# number we want to follow. That lets us see the gradient of `p`, which `backward` throws away once
# it has been used.

# %% A longer path
a, b, c = leaves()
with mq.trace() as t:
    p = a * b
    y = p * c
    probe("p", p)
    y.backward()

predict("What is the gradient of `a` now?", a.grad.item())
table(
    "y = (a * b) * c",
    ["number", "gradient", "how"],
    [
        ["y", 1.0, "where it starts"],
        ["p", t["grad.p"].item(), "that of y, times c"],
        ["a", a.grad.item(), "that of p, times b"],
        ["b", b.grad.item(), "that of p, times a"],
    ],
)

# %% [markdown]
# What if a number is used twice? In `y = a * b + a` there are two paths from `a` to `y`. To tell
# them apart, give the two uses separate names, `first` and `second`, both with the value of
# `a`.
#
# Changing `a` changes both at once, and `y` moves by what each of them causes. So the two gradients
# **add up**. This is called **accumulation**, and the course will come back to it again and again:
# whatever is used in several places gets a gradient from each of them, and its gradient is their
# sum.

# %% Used twice
a, b, c = leaves()
(a * b + a).backward()

first, b, c = leaves()
second, _, _ = leaves()
(first * b + second).backward()

predict("Two paths lead from `a` to `y = a * b + a`. What is the gradient of `a`?", a.grad.item())
table(
    "two uses",
    ["number", "gradient", "use"],
    [
        ["first", first.grad.item(), "a factor of the product"],
        ["second", second.grad.item(), "a part of the sum"],
        ["a", a.grad.item(), "both"],
    ],
)
compare("first plus second", first.grad + second.grad, "a", a.grad)
square, _, _ = leaves()
(square * square).backward()
predict(
    "The same in one operation: `y = a * a`, with the same `a`. What is its gradient?",
    square.grad.item(),
)
say(
    "Each of the two factors receives the other one. Keeping only what arrives last would lose "
    "half of it."
)

# %% [markdown]
# If gradients arrive one after another, when may a number pass its gradient on? Look at
#
#     p = a * b,    q = p * c,    r = p + q
#
# where `p` is used by `q` and by `r`. The sum `r` comes first on the way back and gives 1 to each
# of its parts. Now `p` has a gradient. Suppose it passed that on to `a` at once, and was then
# finished.
#
# The rule of an operation can be called by hand: `node.vjp(g, wanted)` takes the gradient of a
# result and returns one for each number it was made from, if it is wanted. (Lesson 03 explains the
# name.)

# %% Too early
one = mq.Tensor(1.0).data  # a gradient of 1
a, b, c = leaves()
with mq.trace() as t:
    p = a * b
    q = p * c
    r = p + q
    probe("p", p)
    early = p.node.vjp(one, (True, True))
    r.backward()

predict(
    "Once `q` has passed on its share as well, what is the gradient of `p`?", t["grad.p"].item()
)
table(
    "when p passes its gradient on",
    ["p does so", "p has", "a receives"],
    [["at once", 1.0, early[0].item()], ["after q", t["grad.p"].item(), a.grad.item()]],
)
say("A number must wait until everything that uses it has had its say.")

# %% [markdown]
# It can be done without waiting: pass on each gradient as it arrives, and again when the next one
# does. In the end all the parts reach the inputs, and add up there. As a recursion this takes only
# a few lines.
#
# The function below walks over the nodes of the package and uses their own rules. We let it count
# how often it is called.

# %% A recursion
calls = 0


def recurse(node, g, found):
    global calls
    calls += 1
    if node.vjp is None:  # an input: add up
        found[node] = found.get(node, 0) + g
        return
    wanted = [True] * len(node.parents)
    for parent, part in zip(node.parents, node.vjp(g, wanted), strict=True):
        recurse(parent, part, found)


a, b, c = leaves()
p = a * b
q = p * c
r = p + q
found = {}
recurse(r.node, one, found)
r.backward()

compare("a by recursion", found[a.node], "a by backward", a.grad)
predict(
    "The same. Six numbers are in this graph: a, b, c, p, q and r. How many calls did it take?",
    calls,
)
say(f"{calls} calls: p was called twice, by r and by q, and with it everything below it.")

# %% [markdown]
# A few extra calls do no harm. But watch what happens in a chain where each number is used twice by
# the next:
#
#     b = a + a,    c = b + b,    d = c + c,   ...
#
# The two halves of `d` both call `c`, each of these calls `b` twice, and so on. For comparison we
# probe every number, so that the trace shows how many nodes `backward` runs.

# %% Doubling
rows = []
for lines in (1, 2, 3, 6, 10, 14):
    with mq.trace() as t:
        x = mq.Tensor(1.0, requires_grad=True)
        probe("x", x)
        for _ in range(lines):
            x = x + x
            probe("x", x)
        calls = 0
        recurse(x.node, one, {})
        x.backward()
    rows.append([str(lines), calls, len(t.all("grad.x"))])

predict("How many calls does the recursion make for three such lines?", rows[2][1])
table("calls of the recursion, nodes run by backward", ["lines", "calls", "nodes"], rows)
say(f"With sixty lines it would be {2 ** (60 + 1) - 1:,} calls, against {60 + 1} nodes.")
say(
    "This is not an odd case. Each layer of the models to come computes x = x + f(x): its input is "
    "used twice."
)

# %% [markdown]
# So run each node **once**, after everything that uses it has been run. How do we know when that
# is? A number can only be used after it was made, so whatever uses `p` is younger than `p`.
#
# That gives the **backward order** almost for free. Each node takes a serial number `seq` when it
# is made. `backward` collects the nodes that lead to the result, sorts them, and runs the youngest
# first. No recursion, and no waiting: when it is a node's turn, its gradient is complete.

# %% An order
a, b, c = leaves()
numbers = {"a": a, "b": b, "c": c}
numbers["p"] = a * b
numbers["q"] = numbers["p"] * c
numbers["r"] = numbers["p"] + numbers["q"]
with mq.trace() as t:
    for name, tensor in numbers.items():
        probe(name, tensor)
    numbers["r"].backward()

order = [name.removeprefix("grad.") for name in t if name.startswith("grad.")]
serial = {name: numbers[name].node.seq - a.node.seq for name in numbers}

predict(
    "In which order does `backward` run the first three?",
    " ".join(order[:3]),
    ["r p q", "r q p", "p q r", "r p a"],
)
table(
    "in the order in which backward ran them",
    ["number", "serial", "gradient"],
    [[name, serial[name], t[f"grad.{name}"].item()] for name in order],
)

# %% [markdown]
# What is left afterwards? The inputs keep their `grad`. Everything else that the graph kept for the
# way back is released as soon as it has been used: in a large model that is most of the memory. So
# a graph can be run back only once.
#
# To run back again, build the graph again, from the same inputs. And since gradients add up, those
# of the second run are added to those of the first, unless you call `zero_grad` in between.
# Sometimes that is wanted. In a training loop, forgetting `zero_grad` is a classic mistake.

# %% Afterwards
a, b, c = leaves()
y = a * b
y.backward()
once = a.grad.item()
try:
    y.backward()
except RuntimeError as error:
    message = str(error)

(a * b).backward()  # the same again, as a new graph
again = a.grad.item()
a.zero_grad()

say(f"A second y.backward() is refused: {message}")
predict(
    f"The gradient of `a` was {once:g} after the first graph. What is it after the new one has run "
    "back as well?",
    again,
)
say(f"And after zero_grad: {a.grad}. There is none, until the next backward.")

# %% [markdown]
# Why believe all this? Nudging is slow, but it needs no graph: where the two agree, the backward is
# right. For `a * a * a` a nudge is no longer exact, because the slope changes along the way. We
# nudge in both directions and make the step smaller and smaller.

# %% Believing it
x = mq.Tensor(here["a"], dtype="float64", requires_grad=True)


def cube(a):
    return a * a * a


cube(x).backward()
errors = {}
for size in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-11):
    slope = (cube(here["a"] + size) - cube(here["a"] - size)) / (2 * size)
    errors[f"{size:.0e}"] = abs(slope - x.grad.item())
best = min(errors, key=errors.get)
worst = f"{mq.gradcheck(cube, x):.0e}"

predict("Which step comes closest to what `backward` says?", best, list(errors))
table(
    "nudged from both sides",
    ["step", "error of the slope"],
    [[size, f"{errors[size]:.0e}"] for size in errors],
)
say(
    "Too large a step picks up the curvature. Too small a step is lost in rounding: two nearly "
    "equal numbers are subtracted."
)
say(
    "The package checks each of its operations in this way: `mq.gradcheck` finds an error of "
    f"{worst} here."
)

# %% [markdown]
# You have now seen all of reverse mode: numbers that remember their parents, a rule for each
# operation, sums where paths meet, and an order. The rest of the course adds rules and puts arrays
# in place of numbers. The procedure stays the same.
#
# Now write one yourself: in the exercise, `Number` can add but lacks `*` and `backward`.

# %% Where it is done
source(mq.Tensor)
source(mq.Tensor.__mul__, at="make(")
source(mq.Tensor.backward, at="_run_backward")
source(mq.tensor._run_backward, at="order =")
source(mq.tensor._accumulate)
