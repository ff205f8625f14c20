"""Check 15: `patchify` and `unpatchify` against the package's."""

from minqkv import models

TOLERANCE = 0

HINTS = (
    "Split each side of the image into two axes: which row of patches, and which row of pixels in "
    "a patch; and likewise for the columns. Then the axes only have to be put in another order.",
    "images.reshape(B, rows, size, columns, size, C) has the axes: row of patches, row in a patch, "
    "column of patches, column in a patch. In the result, the two that say which patch come first, "
    "and then the two that say which pixel.",
    "x = images.reshape(B, rows, size, columns, size, C).transpose(0, 1, 3, 2, 4, 5), then reshape "
    "to (B, rows * columns, size * size * C). On the way back: reshape to (B, rows, columns, size, "
    "size, C), the same transpose, and reshape to (B, height, width, C).",
)

EXPLANATION = """
Yours is what the package does (`patchify` and `unpatchify` in minqkv/models/vit.py), except that it
also refuses patches that do not fill the image.

A reshape never moves a number: it only divides the same row of numbers into different axes. All the
work is in the transpose, which exchanges two axes. Exchanging them again undoes it, so the way back
has the same transpose, between two other reshapes.

Cutting into patches and multiplying by a matrix, with one and the same matrix for all patches, is
also a convolution whose stride is the size of its kernel. Other programs write it in that form.
"""


def cases(rng):
    """Images (B, height, width, C), the size of a patch, and patches of other such images."""
    B, rows, columns, size, C = (int(n) for n in rng.permutation([1, 2, 3, 4, 5]))
    size, C = (size, C) if size > 1 else (C, size)  # patches of one pixel would hide mistakes
    images = rng.standard_normal((B, rows * size, columns * size, C))
    return images, size, rng.standard_normal((B, rows * columns, size * size * C))


def use(learner, images, size, patches):
    """Both ways, each with its own numbers."""
    cut = learner.patchify(images, size)
    return {"cut": cut, "put back": learner.unpatchify(patches, size, *images.shape[1:3])}


def reference(images, size, patches):
    """The package's."""
    cut = models.patchify(images, size)
    return {"cut": cut, "put back": models.unpatchify(patches, size, *images.shape[1:3])}
