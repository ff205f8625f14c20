"""Exercise 04: a step of Adam. Check it with `minqkv lesson check 4`."""

import numpy as np  # noqa: F401


def adam(w, g, state, lr, beta1, beta2, eps):
    """One step of Adam: the parameters w (n,) after it, a new array (n,).

    g (n,) is their gradient. `state` is a dict for your own use, empty before the first step; you
    get it back at the next one. Keep in it what Adam remembers: two averages, and how many steps
    have been made. Both averages are corrected for their start at zero; eps is added to the square
    root. Leave w and g as they are.
    """
    raise NotImplementedError
