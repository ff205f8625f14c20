"""Solution 09: what a cache weighs."""


def bytes_per_token(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """Layers, streams, kept heads, numbers of a head, bytes of a number: their product."""
    d_head = n_embd // n_head
    kept = n_head if kv_heads is None else kv_heads
    return n_layer * streams * kept * d_head * itemsize


def saved(n_head, kv_heads, streams):
    """One minus what is left; layers, d_head and bytes of a number are equal in both and cancel."""
    kept = n_head if kv_heads is None else kv_heads
    return 1 - streams * kept / (2 * n_head)
