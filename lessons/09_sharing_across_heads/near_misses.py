"""Near misses 09: ledgers that are almost right, each with what it does wrong."""


def _kept(n_head, kv_heads):
    return n_head if kv_heads is None else kv_heads


def _right(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    return n_layer * streams * _kept(n_head, kv_heads) * (n_embd // n_head) * itemsize


def bytes_per_token__no_streams(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count the keys only: where streams is 2, the values are kept as well."""
    return _right(n_layer, n_head, n_embd, kv_heads, 1, itemsize)


def bytes_per_token__always_two_streams(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You always count keys and values: with K = V there is one stream, and no second array."""
    return _right(n_layer, n_head, n_embd, kv_heads, 2, itemsize)


def bytes_per_token__one_stream_more(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count one stream too many, perhaps for the queries. A query is used once and never
    kept.
    """
    return _right(n_layer, n_head, n_embd, kv_heads, streams + 1, itemsize)


def bytes_per_token__with_queries(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You also count the queries of all n_head heads. A query is used once, by its own token, and
    never kept.
    """
    return n_layer * (n_embd + streams * _kept(n_head, kv_heads) * (n_embd // n_head)) * itemsize


def bytes_per_token__streams_divide(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You divide by streams: two streams are two arrays, so they multiply."""
    return _right(n_layer, n_head, n_embd, kv_heads, 1, itemsize) / streams


def bytes_per_token__query_heads(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count n_embd numbers a stream, those of all query heads. What is kept: kv_heads heads of
    n_embd / n_head numbers.
    """
    return n_layer * streams * n_embd * itemsize


def bytes_per_token__head_as_wide_as_model(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You give each kept head n_embd numbers; a head has n_embd / n_head of them."""
    return n_layer * streams * _kept(n_head, kv_heads) * n_embd * itemsize


def bytes_per_token__groups(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count n_head / kv_heads heads: that is the size of a group, G. What is kept: kv_heads
    heads.
    """
    return n_layer * streams * (n_head // _kept(n_head, kv_heads)) * (n_embd // n_head) * itemsize


def bytes_per_token__none_is_one(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You take None for one KV head. It means that every head keeps its own: n_head of them."""
    return _right(n_layer, n_head, n_embd, kv_heads or 1, streams, itemsize)


def bytes_per_token__no_layers(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count one layer: each of the n_layer layers keeps its own keys and values."""
    return _right(1, n_head, n_embd, kv_heads, streams, itemsize)


def bytes_per_token__no_itemsize(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count numbers, not bytes: each has itemsize bytes."""
    return _right(n_layer, n_head, n_embd, kv_heads, streams, 1)


def bytes_per_token__bits(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count bits: itemsize is in bytes already."""
    return 8 * _right(n_layer, n_head, n_embd, kv_heads, streams, itemsize)


def bytes_per_token__always_four_bytes(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """You count four bytes per number, as in float32; itemsize says how many it has here."""
    return _right(n_layer, n_head, n_embd, kv_heads, streams, 4)


def saved__left(n_head, kv_heads, streams):
    """`saved` returns what is left; what is saved is one minus that."""
    return streams * _kept(n_head, kv_heads) / (2 * n_head)


def saved__percent(n_head, kv_heads, streams):
    """`saved` returns a percentage; it should be a share, between 0 and 1."""
    return 100 * (1 - streams * _kept(n_head, kv_heads) / (2 * n_head))


def saved__no_streams(n_head, kv_heads, streams):
    """`saved` forgets the streams: where keys and values are one, half is saved before any head is
    shared.
    """
    return 1 - _kept(n_head, kv_heads) / n_head


def saved__no_heads(n_head, kv_heads, streams):
    """`saved` looks at the streams only: fewer KV heads save as well."""
    return 1 - streams / 2


def saved__against_one_stream(n_head, kv_heads, streams):
    """`saved` compares with n_head heads of one stream; `qkv` keeps two."""
    return 1 - streams * _kept(n_head, kv_heads) / n_head


def saved__adds(n_head, kv_heads, streams):
    """`saved` adds the two savings. They multiply: the second one saves a part of what the first
    one leaves.
    """
    return (1 - streams / 2) + (1 - _kept(n_head, kv_heads) / n_head)


def saved__factor(n_head, kv_heads, streams):
    """`saved` returns how many times smaller the cache is. Return the share that is saved: one
    minus what is left.
    """
    return 2 * n_head / (streams * _kept(n_head, kv_heads))


def saved__none_is_one(n_head, kv_heads, streams):
    """`saved` takes None for one KV head. It means that every head keeps its own: n_head of
    them.
    """
    return 1 - streams * (kv_heads or 1) / (2 * n_head)
