"""Solution 07: split into heads, and merge them."""


def split(x, n_head):
    """(T, C) -> (H, T, d)."""
    T, C = x.shape
    return x.reshape(T, n_head, C // n_head).transpose(1, 0, 2)  # (T, H, d) -> (H, T, d)


def merge(z):
    """(H, T, d) -> (T, C)."""
    H, T, d = z.shape
    return z.transpose(1, 0, 2).reshape(T, H * d)  # (T, H, d) -> (T, C)
