"""Check 01: gradients of random little programs, by the learner's `Number` and by the package's Tensor."""

import numpy as np

import minqkv as mq

TOLERANCE = 1e-9

HINTS = (
    "`*` is one line, like `+`: only the slopes differ. How far does a * b move when a moves? By the other factor. For "
    "`backward` you need three things: all Numbers that led here, an order, and a loop that adds.",
    "To collect: keep a set of what you have seen and a stack of whose parents to look at; put a parent on the stack only if "
    "it is new. To order: sorted(seen, key=lambda n: n.serial, reverse=True), the youngest first.",
    "Set self.grad = 1.0. Then for each number in that order, and for each (parent, slope) of "
    "zip(number.parents, number.slopes): parent.grad += slope * number.grad.",
)

EXPLANATION = """
Your loop is the loop of the package: collect what can be reached, the youngest first, add up. Two things differ.

You keep each slope as a number. The package keeps, for each operation, a function from the gradient of the result to the
gradients of its inputs. For arrays that is needed: the slopes of a large product would be a table far larger than the
arrays themselves, and the function never writes it down.

And you keep `grad` in every Number, and every Number as long as the result lives. The package keeps the gradient of an
input only, and lets go of everything else as soon as it has been used.
"""


ENDLESS = (
    "backward looked at `parents` a hundred thousand times, in a graph of some seventy Numbers: it follows every path anew. "
    "Each Number has to be run once, when its gradient is complete"
)


def cases(rng):
    """The values of some inputs, and a program of products and sums that makes y out of them."""
    n = int(rng.integers(2, 6))
    names, lines = list("abcde"[:n]), []
    for name in "pqrstuvw"[: n + 1]:
        left, right = (names[int(i)] for i in rng.integers(len(names), size=2))
        operation = "*" if len(lines) % 3 == 1 else "+*"[int(rng.integers(2))]
        lines.append(f"{name} = {left} {operation} {right}")
        names.append(name)
    last = [names[int(i)] for i in rng.permutation(len(names) - 1)[:2]]
    lines.append(f"y = {names[-1]} * {last[0]} + {names[-1]} + {last[1]}")
    if n == 5:
        lines += ["y = y + y"] * 60
    x = rng.permutation([2.0, 3.0, 4.0, 5.0, 6.0, 7.0])[:n] * rng.choice([-1.0, 1.0], n)
    return x, "; ".join(lines)


def reference(x, program):
    """The same program with the package's Tensors. x holds the inputs a, b, c ..."""
    inputs = {name: mq.Tensor(value, dtype="float64", requires_grad=True) for name, value in zip("abcde", x, strict=False)}
    y = _run(program, inputs)
    y.backward()
    grads = [0.0 if leaf.grad is None else mq.Tensor(leaf.grad).item() for leaf in inputs.values()]
    return {"y": y.item(), "gradients": np.array(grads)}


def use(learner, x, program):
    """Run the program with the learner's Numbers, then backward."""
    _watch(learner.Number)
    inputs = {name: learner.Number(float(value)) for name, value in zip("abcde", x, strict=False)}
    y = _run(program, inputs)
    if not isinstance(y, learner.Number):
        raise TypeError("a sum or product of two Numbers must be a Number: is there a `return` in __mul__?")
    learner.Number.looks = 0
    y.backward()
    return {"y": float(y.value), "gradients": np.array([float(leaf.grad) for leaf in inputs.values()])}


def _run(program, inputs):
    names = dict(inputs)
    exec(program, {}, names)
    return names["y"]


def _watch(cls):
    """Count how often `parents` is looked at, to stop a recursion along every path before it takes a lifetime."""
    if hasattr(cls, "parents"):
        return

    def get(self):
        cls.looks += 1
        if cls.looks > 100_000:
            raise RecursionError(ENDLESS)
        return vars(self)["parents"]

    cls.looks = 0
    cls.parents = property(get, lambda self, parents: vars(self).__setitem__("parents", parents))
