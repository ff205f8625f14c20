"""Solution 01: a number that remembers."""

import itertools

_made = itertools.count()


class Number:
    """A number, the Numbers it was made from, and how fast it grows with each of them."""

    def __init__(self, value, parents=(), slopes=()):
        self.value = value
        self.parents = parents
        self.slopes = slopes
        self.grad = 0.0
        self.serial = next(_made)

    def __add__(self, other):
        return Number(self.value + other.value, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return Number(self.value * other.value, (self, other), (other.value, self.value))

    def backward(self):
        """Collect what leads here, then run each Number once, the youngest first."""
        seen, stack = {self}, [self]
        while stack:
            for parent in stack.pop().parents:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        self.grad = 1.0
        for number in sorted(seen, key=lambda number: number.serial, reverse=True):
            for parent, slope in zip(number.parents, number.slopes, strict=True):
                parent.grad += slope * number.grad
