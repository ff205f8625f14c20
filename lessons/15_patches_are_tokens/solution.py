"""Solution 15: patches and back."""


def patchify(images, size):
    """(B, height, width, C) -> (B, N, size · size · C)."""
    B, height, width, C = images.shape
    rows, columns = height // size, width // size  # of patches
    x = images.reshape(B, rows, size, columns, size, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, rows, columns, size, size, C)
    return x.reshape(B, rows * columns, size * size * C)


def unpatchify(patches, size, height, width):
    """(B, N, size · size · C) -> (B, height, width, C)."""
    rows, columns = height // size, width // size  # of patches
    x = patches.reshape(len(patches), rows, columns, size, size, -1)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, rows, size, columns, size, C)
    return x.reshape(len(patches), height, width, -1)
