"""Check 01: gradients of random programs, by the learner's `Number` and the package's Tensor."""

import numpy as np

import minqkv as mq

TOLERANCE = 1e-9

HINTS = (
    "`*` is one line, like `+`: only the slopes differ. How far does `a * b` move when `a` "
    "moves by one? By `b`. For `backward` you need three things: all Numbers that led here, an "
    "order, and a loop that adds.",
    "To collect: keep a set of what you have seen and a stack of whose parents to look at; put a "
    "parent on the stack only if it is new. To order: `sorted(seen, key=lambda n: n.serial, "
    "reverse=True)`, the youngest first.",
    "Set `self.grad = 1.0`. Then for each `number` in that order, and for each `parent, slope` of "
    "`zip(number.parents, number.slopes)`: `parent.grad += slope * number.grad`.",
)

EXPLANATION = """
What you wrote is the heart of the package: collect what can be reached, find an order, add up. If
you ordered them by visiting the parents first, that is right as well; but a recursion runs out of
Python's stack after about a thousand Numbers in a row. A serial number needs no recursion. Two more
things differ.

You keep each slope as a number. The package keeps, for each operation, a function from the gradient
of the result to the gradients of its inputs. For arrays that is needed: the slopes of a large
product would be a table far larger than the arrays themselves, and the function never writes it
down.

You also keep `grad` in every Number, and every Number for as long as the result exists. The package
keeps only the gradient of an input, and releases everything else as soon as it has been used.
"""


ENDS, ENDLESS = "ends", "does not end: it goes down every path again"


def cases(rng):
    """Values of inputs, a program of products and sums that makes y, how often to double y."""
    n = int(rng.integers(2, 6))
    names, lines = list("abcde"[:n]), []
    for name in "pqrstuvw"[: n + 1]:
        left, right = (names[int(i)] for i in rng.integers(len(names), size=2))
        operation = "*" if len(lines) % 3 == 1 else "+*"[int(rng.integers(2))]
        lines.append(f"{name} = {left} {operation} {right}")
        names.append(name)
    last = [names[int(i)] for i in rng.permutation(len(names) - 1)[:2]]
    lines.append(f"y = {names[-1]} * {last[0]} + {names[-1]} + {last[1]}")
    x = rng.permutation([2.0, 3.0, 4.0, 5.0, 6.0, 7.0])[:n] * rng.choice([-1.0, 1.0], n)
    return x, "; ".join(lines), 60 if n == 5 else 0


def reference(x, program, doublings):
    """The same program with the package's Tensors. x holds the inputs a, b, c ..."""
    inputs = {
        name: mq.Tensor(value, dtype="float64", requires_grad=True)
        for name, value in zip("abcde", x, strict=False)
    }
    y = _run(program, doublings, inputs)
    y.backward()
    grads = [0.0 if leaf.grad is None else mq.Tensor(leaf.grad).item() for leaf in inputs.values()]
    return {"y": y.item(), "backward": ENDS, "gradients": np.array(grads)}


def use(learner, x, program, doublings):
    """Run the program with the learner's Numbers, then backward."""
    _watch(learner.Number)
    if not isinstance(learner.Number(2.0) * learner.Number(3.0), learner.Number):
        raise TypeError(
            "the product of two Numbers is not a Number: is there a `return` in __mul__?"
        )
    inputs = {name: learner.Number(float(value)) for name, value in zip("abcde", x, strict=False)}
    y = _run(program, doublings, inputs)
    learner.Number.looks = 0
    try:
        y.backward()
    except _Endless:
        return {"y": float(y.value), "backward": ENDLESS, "gradients": np.zeros(len(x))}
    return {
        "y": float(y.value),
        "backward": ENDS,
        "gradients": np.array([float(leaf.grad) for leaf in inputs.values()]),
    }


def _run(program, doublings, inputs):
    names = dict(inputs)
    exec(program, {}, names)
    y = names["y"]
    for _ in range(doublings):
        y = y + y
    return y


class _Endless(BaseException):
    pass


def _watch(cls):
    """Count how often `parents` is looked at, to stop a walk along every path before it takes a
    lifetime.
    """
    if hasattr(cls, "parents"):
        return

    def get(self):
        cls.looks += 1
        if cls.looks > 20_000:  # in a graph of some seventy Numbers
            raise _Endless
        return vars(self)["parents"]

    cls.looks = 0
    cls.parents = property(get, lambda self, parents: vars(self).__setitem__("parents", parents))
