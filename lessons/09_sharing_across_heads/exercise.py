"""Exercise 09: how many bytes a cache takes. Check it with `minqkv lesson check 9`."""


def bytes_per_token(n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """The bytes by which the cache of one sequence grows with each token.

    The model has n_layer layers, n_head query heads and rows of n_embd numbers. kv_heads heads are
    kept in each layer, or all of them where kv_heads is None. streams is 2 where keys and values
    are separate and 1 where they are one. A number has itemsize bytes. Return a number.

    (When the check shows a case, it also shows `ids`: the tokens that its model has read. You do
    not need them.)
    """
    raise NotImplementedError


def saved(n_head, kv_heads, streams):
    """The share of the cache of `qkv` that is saved: 0 where nothing is, 0.5 where half of it is.

    `qkv` keeps all n_head heads and two streams, in a model that is otherwise the same. Return a
    number.
    """
    raise NotImplementedError
