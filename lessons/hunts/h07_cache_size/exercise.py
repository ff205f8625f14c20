"""Hunt h7. Check your repair with `minqkv lesson check h7`."""


def cache_bytes(config, tokens):
    """Bytes of a KV cache of float32 numbers for so many tokens, a whole
    number.

    `config` is a dict, as a model's config.json: n_layer, n_embd, n_head,
    n_kv_head (heads of keys and values), head_dim (the width of a head).
    """
    width = config["n_embd"]  # of keys, and of values
    per_token = 2 * config["n_layer"] * width
    return per_token * tokens * 4
