"""Check 09: `bytes_per_token` and `saved` against the bytes of real caches."""

import minqkv as mq

TOLERANCE = 1e-9

HINTS = (
    "Count what is kept for one token: the numbers of one head, times heads, streams and "
    "layers, times the bytes of a number.",
    "A head has n_embd // n_head numbers, however few heads are kept. For `saved`, divide by what "
    "`qkv` keeps: most of it cancels, and two streams of n_head heads remain.",
    "kept = n_head if kv_heads is None else kv_heads; then n_layer * streams * kept * (n_embd // "
    "n_head) * itemsize, and 1 - streams * kept / (2 * n_head).",
)

EXPLANATION = """
The package has your two lines, in `VariantSpec.cache_bytes_per_token` and `VariantSpec.reduction`.
The reference did not use them: it built a model of each kind, let it read the tokens, and divided
`cache.nbytes` by their number. `nbytes` adds up the arrays themselves, so it would reveal a cache
that kept anything more. That is why your code was so much faster.

Two kinds of bytes are left out. A cache is allocated for its whole capacity before it is full
(`capacity_nbytes`). And a batch keeps the same amount again for every further sequence.
"""


def cases(rng):
    """Tokens (B, T) that the reference's model reads, its size, and the variant."""
    n_head = int(rng.choice([4, 6, 8, 12]))
    heads = [h for h in range(1, n_head) if n_head % h == 0]
    kv_heads = None if rng.random() < 0.3 else int(rng.choice(heads))
    batch, length, n_layer = (int(n) for n in rng.permutation([2, 3, 4, 5])[:3])
    n_embd = n_head * int(rng.choice([3, 5, 7]))
    ids = rng.integers(0, 10, (batch, length))
    streams, itemsize = int(rng.integers(1, 3)), int(rng.choice([2, 4, 8]))
    return ids, n_layer, n_head, n_embd, kv_heads, streams, itemsize


def use(learner, ids, n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """The learner needs no tokens: bytes per token are the same for all."""
    per_token = learner.bytes_per_token(n_layer, n_head, n_embd, kv_heads, streams, itemsize)
    return {"bytes_per_token": per_token, "saved": learner.saved(n_head, kv_heads, streams)}


def reference(ids, n_layer, n_head, n_embd, kv_heads, streams, itemsize):
    """Real models read the ids; their caches are asked."""
    size = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    size |= {"vocab_size": 10, "block_size": 8, "d_ff": 4}
    nbytes = []
    for spec in (mq.VariantSpec(streams=streams, kv_heads=kv_heads), mq.VariantSpec()):
        model = mq.GPT(mq.GPTConfig(**size, variant=spec.name))
        cache = model.new_cache(batch=len(ids), dtype=f"float{8 * itemsize}")
        model(ids, cache=cache)
        nbytes.append(cache.nbytes)
    return {"bytes_per_token": nbytes[0] // ids.size, "saved": 1 - nbytes[0] / nbytes[1]}
