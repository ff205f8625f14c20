"""Near misses 16: back-rotations that are almost right, each with what it does wrong."""

import numpy as np


def _turn(z, at, d_rope, speeds=None):
    """The last d_rope columns of (..., T, d), turned forward by positions (T,)."""
    half = d_rope // 2
    speeds = 10_000.0 ** (-2 * np.arange(half) / d_rope) if speeds is None else speeds
    angle = at[:, None] * speeds  # (T, d_rope/2)
    cos, sin = np.cos(angle), np.sin(angle)
    still, a, b = np.split(z, [z.shape[-1] - d_rope, z.shape[-1] - half], axis=-1)
    return np.concatenate([still, a * cos - b * sin, b * cos + a * sin], axis=-1)


def answer__not_turned_back(z, at, d_rope):
    """You return the mix as it is. Its last columns then depend on where the text begins."""
    return z.copy()


def answer__forward(z, at, d_rope):
    """You turn forward once more. Turning back is turning by the negative angle."""
    return _turn(z, at, d_rope)


def answer__twice(z, at, d_rope):
    """You turn back twice as far as you should: once by the position is enough."""
    return _turn(z, -2 * at, d_rope)


def answer__counted_from_the_first(z, at, d_rope):
    """You count positions from the first row of z. They are in `at`: the text may begin later."""
    return _turn(z, -np.arange(len(at)), d_rope)


def answer__by_the_first_position(z, at, d_rope):
    """You turn all rows back by the position of the first one. Each row has its own query, and its
    own position.
    """
    return _turn(z, -np.full(len(at), at[0]), d_rope)


def answer__by_the_last_position(z, at, d_rope):
    """You turn all rows back by the last position. Each row has its own query, and its own
    position.
    """
    return _turn(z, -np.full(len(at), at[-1]), d_rope)


def answer__one_too_far(z, at, d_rope):
    """You turn back by the position plus one: the first position of a text is 0."""
    return _turn(z, -at - 1, d_rope)


def answer__in_reverse_order(z, at, d_rope):
    """You use the positions in reverse order: row t of z has its query at at[t]."""
    return _turn(z, -at[::-1], d_rope)


def answer__all_columns(z, at, d_rope):
    """You turn all d columns. Only the last d_rope had been turned."""
    return _turn(z, -at, z.shape[-1])


def answer__first_columns(z, at, d_rope):
    """You turn the first d_rope columns. The last ones had been turned."""
    turned = _turn(z[..., :d_rope], -at, d_rope)
    return np.concatenate([turned, z[..., d_rope:]], axis=-1)


def answer__neighbours(z, at, d_rope):
    """Your pairs are neighbouring columns. A pair is a column of the first half of the d_rope
    columns, and the matching one of the second half.
    """
    order = np.r_[0:d_rope:2, 1:d_rope:2]
    last = z[..., -d_rope:]
    out = z.copy()
    out[..., z.shape[-1] - d_rope + order] = _turn(last[..., order], -at, d_rope)
    return out


def answer__speeds_of_the_whole_row(z, at, d_rope):
    """Your angles come from d, the columns of a whole row. Divide by d_rope in the exponent."""
    half = d_rope // 2
    return _turn(z, -at, d_rope, 10_000.0 ** (-2 * np.arange(half) / z.shape[-1]))


def answer__speeds_too_close(z, at, d_rope):
    """Your exponent is -i / d_rope; it is -2 * i / d_rope."""
    return _turn(z, -at, d_rope, 10_000.0 ** (-np.arange(d_rope // 2) / d_rope))


def answer__one_speed(z, at, d_rope):
    """You turn all pairs by the same angle. Each pair has its own speed."""
    return _turn(z, -at, d_rope, np.ones(d_rope // 2))


def answer__fastest_last(z, at, d_rope):
    """Your exponent has no minus sign, so that later pairs turn faster. They turn more slowly."""
    return _turn(z, -at, d_rope, 10_000.0 ** (2 * np.arange(d_rope // 2) / d_rope))


def answer__new_first_number(z, at, d_rope):
    """You overwrite the first number of a pair and then use the new one for the second. Compute
    both from the old pair.
    """
    half = d_rope // 2
    angle = -at[:, None] * 10_000.0 ** (-2 * np.arange(half) / d_rope)
    still, a, b = np.split(z, [-d_rope, -half], axis=-1)
    a = a * np.cos(angle) - b * np.sin(angle)
    b = b * np.cos(angle) + a * np.sin(angle)
    return np.concatenate([still, a, b], axis=-1)


def answer__mirrored(z, at, d_rope):
    """Both of your sines have the same sign, which is not a turn. One is added and one is
    subtracted.
    """
    half = d_rope // 2
    angle = at[:, None] * 10_000.0 ** (-2 * np.arange(half) / d_rope)
    cos, sin = np.cos(angle), np.sin(angle)
    still, a, b = np.split(z, [-d_rope, -half], axis=-1)
    return np.concatenate([still, a * cos + b * sin, b * cos + a * sin], axis=-1)
