"""Near misses 15: cuts in the wrong order, each with what it does wrong."""

import numpy as np


def _apart(images, size):
    """(B, rows of patches, size, columns of patches, size, C)."""
    B, height, width, C = images.shape
    return images.reshape(B, height // size, size, width // size, size, C)


def _together(x, size, height, width):
    """(B, rows, columns, size, size, C) of patches, whatever the order of their numbers."""
    return x.reshape(len(x), height // size, width // size, size, size, -1)


def patchify__only_reshapes(images, size):
    """You only reshape. That cuts the image into runs of pixels along its rows, not into squares:
    the axes have to be put in another order.
    """
    B, height, width, C = images.shape
    return images.reshape(B, height * width // size**2, size * size * C)


def patchify__from_top_to_bottom(images, size):
    """Your patches come from top to bottom. They come from left to right, row below row."""
    x = _apart(images, size).transpose(0, 3, 1, 2, 4, 5)  # (B, columns, rows, size, size, C)
    return x.reshape(len(x), -1, size * size * images.shape[-1])


def patchify__pixels_from_top_to_bottom(images, size):
    """Within a patch, your pixels come from top to bottom: the patch is transposed. They come from
    left to right, row below row.
    """
    x = _apart(images, size).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(len(x), -1, size * size * images.shape[-1])


def patchify__channels_first(images, size):
    """You write a patch channel after channel. The C numbers of a pixel stay together."""
    x = _apart(images, size).transpose(0, 1, 3, 5, 2, 4)  # (B, rows, columns, C, size, size)
    return x.reshape(len(x), -1, size * size * images.shape[-1])


def patchify__a_patch_for_each_channel(images, size):
    """You make a patch of each channel. One patch holds all C numbers of its pixels."""
    x = _apart(images, size).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(len(x), -1, size * size)


def patchify__sides_exchanged(images, size):
    """You exchange height and width when you split the axes. With square images nobody would
    notice.
    """
    B, height, width, C = images.shape
    x = images.reshape(B, width // size, size, height // size, size, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


def patchify__size_as_number(images, size):
    """You cut each side into `size` parts. `size` is how many pixels a side of a patch has."""
    B, height, width, C = images.shape
    x = images.reshape(B, size, height // size, size, width // size, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, size * size, -1)


def patchify__far_apart(images, size):
    """Your patches take every `size`-th pixel. The pixels of a patch are neighbours."""
    B = len(images)
    found = [images[:, i::size, j::size].reshape(B, -1) for i in range(size) for j in range(size)]
    return np.stack(found, axis=1)


def patchify__overlapping(images, size):
    """Your patches overlap: you move on by one pixel. Move on by `size`."""
    B, height, width, _ = images.shape
    starts = [(i, j) for i in range(height - size + 1) for j in range(width - size + 1)]
    found = [images[:, i : i + size, j : j + size].reshape(B, -1) for i, j in starts]
    return np.stack(found, axis=1)


def patchify__not_flat(images, size):
    """Your patches are squares still. A token is one row: flatten each patch."""
    x = _apart(images, size).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), -1, size, size, images.shape[-1])


def patchify__rows_and_columns_kept(images, size):
    """You keep rows and columns of patches as two axes. The model reads one sequence of N patches:
    join them.
    """
    B, height, width, C = images.shape
    x = _apart(images, size).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, height // size, width // size, size * size * C)


def patchify__batch_second(images, size):
    """The axis of patches comes first in your result. The batch comes first."""
    x = _apart(images, size).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), -1, size * size * images.shape[-1]).swapaxes(0, 1)


def unpatchify__only_reshapes(patches, size, height, width):
    """You only reshape on the way back. Then each patch becomes a run of pixels: exchange the axes
    again.
    """
    return patches.reshape(len(patches), height, width, -1)


def unpatchify__from_top_to_bottom(patches, size, height, width):
    """You put the patches back from top to bottom. They come from left to right, row below row."""
    B = len(patches)
    x = patches.reshape(B, width // size, height // size, size, size, -1)
    return x.transpose(0, 2, 3, 1, 4, 5).reshape(B, height, width, -1)


def unpatchify__pixels_from_top_to_bottom(patches, size, height, width):
    """You transpose each patch when you put it back. Its pixels come from left to right, row below
    row.
    """
    x = _together(patches, size, height, width).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(len(x), height, width, -1)


def unpatchify__channels_first(patches, size, height, width):
    """You read a patch channel after channel. The C numbers of a pixel are beside one another."""
    B, rows, columns = len(patches), height // size, width // size
    x = patches.reshape(B, rows, columns, -1, size, size).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(B, height, width, -1)


def unpatchify__sides_exchanged(patches, size, height, width):
    """You exchange height and width on the way back. With square images nobody would notice."""
    B = len(patches)
    x = patches.reshape(B, width // size, height // size, size, size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, height, width, -1)


def unpatchify__transposed(patches, size, height, width):
    """Your images lie on their side: rows became columns. The result is (B, height, width, C)."""
    x = _together(patches, size, height, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), height, width, -1).swapaxes(1, 2)


def unpatchify__no_channels(patches, size, height, width):
    """You leave out the axis of channels by joining it with the width. It stays, even where C is 1:
    the result is (B, height, width, C).
    """
    x = _together(patches, size, height, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), height, -1)
