"""Near misses 02: sums that are almost the mirror of broadcasting, each with what it does wrong."""

import numpy as np


def _added(g, shape):
    return tuple(range(g.ndim - len(shape)))


def _stretched(shape):
    return tuple(i for i, n in enumerate(shape) if n == 1)


def unbroadcast__keeps_the_added_axes(g, shape):
    """The axes that were added in front are still there, with length 1: sum over them without
    keepdims.
    """
    g = g.sum(axis=_added(g, shape), keepdims=True)
    return g.sum(axis=tuple(i + g.ndim - len(shape) for i in _stretched(shape)), keepdims=True)


def unbroadcast__drops_the_stretched_axes(g, shape):
    """The axes that have length 1 in `shape` are gone, and have to stay: sum with keepdims=True,
    and squeeze nothing.
    """
    return g.sum(axis=_added(g, shape)).sum(axis=_stretched(shape))


def unbroadcast__only_added(g, shape):
    """You undo the axes added in front, but not the stretched ones: where `shape` has a 1, g must
    be summed as well.
    """
    return np.asarray(g.sum(axis=_added(g, shape)))


def unbroadcast__only_stretched(g, shape):
    """You undo the stretched axes, but the axes that were added in front are still there, at full
    length.
    """
    return g.sum(axis=tuple(i + g.ndim - len(shape) for i in _stretched(shape)), keepdims=True)


def unbroadcast__one_added_axis(g, shape):
    """You sum over one added axis; there can be several in front, g.ndim - len(shape) of them."""
    g = g.sum(axis=0) if g.ndim > len(shape) else g
    return g.sum(axis=tuple(i + g.ndim - len(shape) for i in _stretched(shape)), keepdims=True)


def unbroadcast__one_or_the_other(g, shape):
    """You undo the added axes or else the stretched ones; where there are both, both have to be
    undone, one after the other.
    """
    if g.ndim > len(shape):
        return np.asarray(g.sum(axis=_added(g, shape)))
    return g.sum(axis=_stretched(shape), keepdims=True)


def unbroadcast__by_their_lengths(g, shape):
    """You look for lengths that `shape` lacks; two axes can be equally long. Compare axes by
    position.
    """
    return np.resize(g.sum(axis=tuple(i for i, n in enumerate(g.shape) if n not in shape)), shape)


def unbroadcast__aligned_left(g, shape):
    """You take the missing axes to be the last ones of g; shapes are lined up at the right, so they
    are the first.
    """
    g = g.sum(axis=tuple(range(len(shape), g.ndim)))
    return g.sum(axis=_stretched(shape), keepdims=True)


def unbroadcast__axes_not_shifted(g, shape):
    """You look for the 1s in `shape`, but sum over those axes of g while g still has more axes in
    front, so the axis numbers differ.
    """
    g = g.sum(axis=_stretched(shape), keepdims=True)
    return g.sum(axis=_added(g, shape))


def unbroadcast__mean(g, shape):
    """You average; a number used several times adds up what it receives (sum, not mean)."""
    return np.asarray(g.mean(axis=_added(g, shape))).mean(axis=_stretched(shape), keepdims=True)


def unbroadcast__mean_of_added(g, shape):
    """You average over the added axes (the rows of a batch, say) and sum over the others; both have
    to be summed.
    """
    return np.asarray(g.mean(axis=_added(g, shape))).sum(axis=_stretched(shape), keepdims=True)


def unbroadcast__mean_of_stretched(g, shape):
    """You sum over the added axes and average over the stretched ones; both have to be summed."""
    return np.asarray(g.sum(axis=_added(g, shape))).mean(axis=_stretched(shape), keepdims=True)


def unbroadcast__first_copy(g, shape):
    """You take one of the copies; each of them received a gradient, and the sum of all is
    wanted.
    """
    g = g[(0,) * (g.ndim - len(shape))]
    return np.asarray(g)[tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)].copy()


def unbroadcast__all_but_the_last(g, shape):
    """You sum over all axes but the last: right for a row that was added, and for nothing else."""
    return g.sum(axis=tuple(range(g.ndim - 1)))


def unbroadcast__first_axis(g, shape):
    """You sum over the first axis, whatever `shape` is: compare it with g.shape to see which axes
    to sum over.
    """
    return np.asarray(g.sum(axis=0))


def unbroadcast__everything(g, shape):
    """You sum over the whole of g and fill `shape` with it: sum only over the axes that were added
    or stretched.
    """
    return np.full(shape, g.sum())


def unbroadcast__kept_axes(g, shape):
    """You sum over the axes that have to stay, and keep those that were stretched: it is the other
    way round.
    """
    g = g.sum(axis=_added(g, shape))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n != 1), keepdims=True)


def unbroadcast__unchanged(g, shape):
    """You return g as it is: its axes that were added or stretched have to be summed over."""
    return g


def unbroadcast__reshaped(g, shape):
    """You fill `shape` with the first numbers of g: they have to be summed, a reshape or a cut does
    not add.
    """
    return np.resize(g, shape)
