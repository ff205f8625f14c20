"""Hunt 7: `cache_bytes`, against the arrays of a live cache."""

# /// script
# [tool.minqkv.hunt]
# title = "How much memory will it take?"
# question = """
# An estimate of a cache's bytes. For the newest models it is several times too high, and \
# users are told that a model does not fit.\
# """
# exercise = "cache_bytes"
# reports = [
#   "https://github.com/KolosalAI/model-memory-calculator/issues/2",
#   "https://github.com/jranaraki/vllm-fit/issues/2",
#   "https://github.com/LMCache/LMCache/issues/688",
# ]
# source = [["minqkv.variants.VariantSpec.stored"]]
# ///

import minqkv as mq

TOLERANCE = 0

LAW = "The estimate is the number of bytes of the arrays that a decoder allocates."

HINTS = (
    "What is the shape of the keys that one layer stores of one token?",
    "Count heads of keys and values, not heads of queries. And `head_dim` is given: a model is "
    "free to choose it.",
    "Keys and values take 2 * n_kv_head * head_dim numbers for each token and layer. `n_embd` and "
    "`n_head` do not matter.",
)

EXPLANATION = """
The width of the model is the width of keys and values only in the oldest design: as many KV heads
as heads, and `head_dim` equal to `n_embd` / `n_head`. Each of the three reports is about one of
these two assumptions.

Designs that store something else need a count of their own: one array for K = V, one narrow row for
latent attention, a window's worth in layers with a window. In this package the sizes come from one
method, and a test compares them with the arrays of a live cache.
"""


def cases(rng):
    """Sizes of a model, and how many tokens are stored."""
    h, group = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    config = {
        "n_layer": int(rng.integers(1, 4)),
        "n_embd": 12 * int(rng.integers(1, 4)),
        "n_head": h * group,
        "n_kv_head": h,
        "head_dim": int(rng.integers(2, 9)),
    }
    return config, int(rng.integers(1, 6))


def reference(config, tokens):
    """The bytes of a live cache of the package."""
    sizes = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "head_dim")}
    variant = f"gqa-{config['n_kv_head']}"
    model = mq.GPT(mq.GPTConfig(2, tokens, **sizes, variant=variant, position="none"))
    return model.new_cache(1, tokens).capacity_nbytes
