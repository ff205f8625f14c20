"""Near misses h7: repairs that are not."""


def _bytes(config, tokens, width):
    return 2 * config["n_layer"] * width * tokens * 4


def cache_bytes__heads_of_queries(config, tokens):
    """You count the heads of queries: only the heads of keys and values are stored."""
    return _bytes(config, tokens, config["n_head"] * config["head_dim"])


def cache_bytes__width_by_division(config, tokens):
    """You count the right heads, but take n_embd // n_head for their width. The model says its own:
    head_dim.
    """
    return _bytes(config, tokens, config["n_kv_head"] * (config["n_embd"] // config["n_head"]))


def cache_bytes__keys_only(config, tokens):
    """You count one array: keys and values are two."""
    return _bytes(config, tokens, config["n_kv_head"] * config["head_dim"]) // 2
