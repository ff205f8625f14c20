"""Exercise 15: patches and back. Check it with `minqkv lesson check 15`."""

import numpy as np  # noqa: F401


def patchify(images, size):
    """Cut images into patches.

    images is (B, height, width, C). A patch is a square of `size` by `size` pixels, and both sides
    of the images are multiples of `size`. Patches come from left to right, one row of patches after
    another. Within a patch the pixels come in the same order: from left to right, row by row. The C
    numbers of a pixel stay together.

    Return an array (B, N, size · size · C), where N is the number of patches in an image.
    """
    raise NotImplementedError


def unpatchify(patches, size, height, width):
    """Put patches back: the inverse of `patchify`.

    patches is (B, N, size · size · C), in the order in which `patchify` gives them. Return the
    images, an array (B, height, width, C).
    """
    raise NotImplementedError
