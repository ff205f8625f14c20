"""Exercise 04: a step of Adam. Check it with `minqkv lesson check 4`."""

import numpy as np  # noqa: F401


def adam(w, g, state, lr, beta1, beta2, eps):
    """One step of Adam. Return where the parameters w (n,) go, a new array (n,), when their
    gradient is g (n,).

    `state` is a dict of yours, empty before the first step; it is handed back to you at the next
    one. Keep in it what Adam remembers: two averages, and how many steps were made. Both averages
    are mended for their start at zero; eps is added to the root. Leave w and g as they are.
    """
    raise NotImplementedError
