"""Solution 02: the mirror of broadcasting."""


def unbroadcast(g, shape):
    """Sum over the axes that were added in front, then over those that were stretched."""
    added = g.ndim - len(shape)
    g = g.sum(axis=tuple(range(added)))  # now both have the same number of axes
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=stretched, keepdims=True)  # (*shape)
