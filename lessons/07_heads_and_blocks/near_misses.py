"""Near misses 07: splits and merges that put numbers where they do not belong, each with what it
does wrong.
"""

import numpy as np


def split__reshape_only(x, n_head):
    """split reshapes straight to (H, T, d): that moves no number, so a head gets whole tokens.
    Transpose as well.
    """
    T, C = x.shape
    return x.reshape(n_head, T, C // n_head)


def split__not_transposed(x, n_head):
    """split stops at (T, H, d): bring the heads to the front with transpose(1, 0, 2)."""
    T, C = x.shape
    return x.reshape(T, n_head, C // n_head)


def split__interleaved(x, n_head):
    """split deals the columns out like cards, every H-th to the same head; each head gets
    neighbouring columns.
    """
    T, C = x.shape
    return x.reshape(T, C // n_head, n_head).transpose(2, 0, 1)


def split__takes_heads_for_width(x, n_head):
    """split takes n_head for the head width: it is the number of heads."""
    T, C = x.shape
    return x.reshape(T, C // n_head, n_head).transpose(1, 0, 2)


def split__columns_first(x, n_head):
    """In each head, split has columns where tokens belong: the shape is (H, T, d), not (H, d,
    T).
    """
    T, C = x.shape
    return x.reshape(T, n_head, C // n_head).transpose(1, 2, 0)


def split__columns_read_as_tokens(x, n_head):
    """split transposes x first and then reshapes: that mixes tokens and columns. Reshape first,
    then transpose.
    """
    T, C = x.shape
    return x.T.reshape(n_head, T, C // n_head)


def split__everything_to_each(x, n_head):
    """split repeats all columns for each head; a head gets its own group of d columns."""
    return np.repeat(x[None], n_head, axis=0)


def split__one_head(x, n_head):
    """split returns the first head only; all of them are asked for, stacked along a first axis."""
    return x[:, : x.shape[1] // n_head]


def split__list_of_heads(x, n_head):
    """split returns a list of heads, as np.split does; np.stack makes one array (H, T, d) of it."""
    return np.split(x, n_head, axis=1)


def split__heads_in_reverse(x, n_head):
    """split numbers the heads from the right; head 0 gets the first columns."""
    T, C = x.shape
    return x.reshape(T, n_head, C // n_head).transpose(1, 0, 2)[::-1]


def merge__reshape_only(z):
    """merge reshapes without transposing back: a row then holds several tokens of one head. Bring
    the tokens to the front.
    """
    H, T, d = z.shape
    return z.reshape(T, H * d)


def merge__not_reshaped(z):
    """merge stops at (T, H, d): one reshape more, to (T, C), puts the heads side by side."""
    return z.transpose(1, 0, 2)


def merge__interleaved(z):
    """merge takes one column of each head in turn; all columns of head 0 come first, then those of
    head 1.
    """
    H, T, d = z.shape
    return z.transpose(1, 2, 0).reshape(T, H * d)


def merge__all_axes_reversed(z):
    """merge reverses all axes (z.T), columns before tokens: exchange the first two only,
    transpose(1, 0, 2).
    """
    H, T, d = z.shape
    return z.T.reshape(T, H * d)


def merge__columns_first(z):
    """merge returns the array on its side: one row per token, (T, C), not (C, T)."""
    H, T, d = z.shape
    return z.transpose(1, 0, 2).reshape(T, H * d).T


def merge__stacked_below(z):
    """merge lays the heads below one another; they belong side by side (axis=1 in
    np.concatenate).
    """
    return np.concatenate(list(z), axis=0)


def merge__summed(z):
    """merge adds the heads up; they stay apart, side by side in the columns."""
    return z.sum(axis=0)


def merge__averaged(z):
    """merge averages the heads; they stay apart, side by side in the columns."""
    return z.mean(axis=0)


def merge__heads_in_reverse(z):
    """merge puts the last head leftmost; head 0 comes first."""
    return np.concatenate(list(z[::-1]), axis=1)
