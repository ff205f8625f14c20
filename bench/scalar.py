"""An engine whose values are single numbers, in the style of micrograd, to say what one
multiply-accumulate costs there.
"""

from .common import seconds


class Value:
    """A number, the values it came from, and the derivative by each of them."""

    __slots__ = ("data", "grad", "local", "parents")

    def __init__(self, data, parents=(), local=()):
        self.data, self.parents, self.local, self.grad = data, parents, local, 0.0

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def backward(self):
        """Derivatives of this value by all before it."""
        order, seen, stack = [], set(), [(self, False)]
        while stack:
            value, done = stack.pop()
            if done:
                order.append(value)
            elif value not in seen:
                seen.add(value)
                stack.append((value, True))
                stack.extend((parent, False) for parent in value.parents)
        self.grad = 1.0
        for value in reversed(order):
            for parent, local in zip(value.parents, value.local, strict=True):
                parent.grad += local * value.grad


def seconds_per_mac(n=3000, rounds=5):
    """Forward and backward of one multiply-accumulate: an inner product of n numbers, the quickest
    of some runs, over n.
    """

    def inner_product():
        total = Value(0.0)
        for i in range(n):
            total = total + Value(0.5 + i) * Value(1.5)
        total.backward()

    return min(seconds(inner_product) for _ in range(rounds)) / n
