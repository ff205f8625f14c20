"""Exercise 01: a number that remembers. Check it with `minqkv lesson check 1`."""

import itertools

_made = itertools.count()


class Number:
    """A number that remembers how it was made, so that `backward` can find the gradients of its
    inputs.

    `+` is there already. Write `*` in the same way, then `backward`. Nothing else needs to change.

    The check makes inputs a, b, c ... of the numbers in `x` and runs a small random program such as
    "p = a * b; y = p + a". Then it calls y.backward(), and compares y and the gradients of the
    inputs with the package's.
    """

    def __init__(self, value, parents=(), slopes=()):
        self.value = value
        self.parents = parents  # the Numbers it was made from; an input has none
        self.slopes = slopes  # for each parent: how fast this number grows as the parent grows
        self.grad = 0.0  # what has arrived so far
        self.serial = next(_made)  # a Number made later has a larger one

    def __add__(self, other):
        return Number(self.value + other.value, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        """The product of two Numbers, a Number with its parents and their slopes."""
        raise NotImplementedError

    def backward(self):
        """For each Number that led to this one, store in its `grad` how fast this one grows with
        it.

        A Number used twice, by two others or twice by one, adds up what it receives. In some of the
        cases y is then doubled sixty times, y = y + y: following every path would take forever.
        """
        raise NotImplementedError
