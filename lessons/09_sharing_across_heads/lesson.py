# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Sharing across heads"
# question = "Does every head need its own keys and values?"
# needs = ["heads", "parameters", "tied gradient", "qkv", "q-k=v"]
# teaches = ["KV heads", "cache bytes", "gqa-N", "mqa", "q-gqa-N", "q-mqa", "thin-N"]
# minutes = 15
# budget_s = 4
# exercise = ["bytes_per_token", "saved"]
# uses = [
#   "minqkv.Attention", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.KVCache", "minqkv.Tensor",
#   "minqkv.VariantSpec", "minqkv.trace", "minqkv.functional.scaled_dot_product_attention",
#   "minqkv.models.PRESETS",
# ]
# ///

# %% [markdown]
# In lesson 07 every head had its own queries, keys and values. In lesson 08 keys and values
# became one. There is another way to keep fewer of them: heads may share with one another.
#
# Why keep fewer? A model that writes makes one token at a time, and each new token looks at all
# those before it. Their keys and values no longer change, because no token sees what comes after
# it. So the model keeps them, in its **cache**. Lesson 10 uses it step by step; here we only count
# its bytes.
#
# Below, a model with two layers reads three tokens. Each layer has four heads, and a head has two
# numbers.

# %% What is kept
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv.models import PRESETS
from minqkv.teach import compare, memory, predict, say, show, source, table

size = {"n_layer": 2, "n_head": 4, "n_embd": 8}
size |= {"vocab_size": 10, "block_size": 16}
model = mq.GPT(mq.GPTConfig(**size))  # qkv, in float32
cache = model.new_cache()
with mq.trace() as t:
    model([[3, 1, 4]], cache=cache)
kept = t["blocks.0.attn.cache.k"]  # (B, H, T, d_h)
by_token = kept[0].transpose(1, 0, 2).reshape(3, 8)  # (T, H·d_h)
heads = [f"head{i}" for i in range(4)]
labels = [x for name in heads for x in (name, "")]
show("keys of layer 0 in the cache", by_token, rows=["3", "1", "4"], columns=labels, digits=2)
predict(
    "Keys and values, in both layers, four bytes per number: how many bytes does the cache hold?",
    cache.nbytes,
)
say(f"For each further token it grows by {cache.nbytes // len(cache)} bytes.")

# %% [markdown]
# The queries are not kept: a query is used once, by its own token. So there may be many query heads
# (H) and few heads that are kept (h).
#
# - **gqa**, grouped-query attention: the query heads form h groups, and a group reads the same keys
#   and values. `gqa-2` keeps two heads.
# - **mqa**, multi-query attention: one head is kept, and all queries read it.
#
# A kept head is called a **KV head**. Only `wk` and `wv` change: they have h·d_h columns, where
# `wq` has H·d_h.

# %% Narrower projections
one = {"n_embd": 8, "n_head": 4, "block_size": 16, "bias": False}
layers = {name: mq.Attention(name, **one) for name in ("qkv", "gqa-2", "mqa")}
rows = []
for name, layer in layers.items():
    weights = layer.state_dict()
    shapes = [weights[f"{w}.weight"].shape for w in ("wq", "wk", "wv")]
    rows.append([name, *map(str, shapes)])
columns = layers["gqa-2"].wk.weight.shape[1]
predict(
    "Four query heads of two numbers, two KV heads: how many columns does `wk` have in `gqa-2`?",
    columns,
)
table("shapes", ["variant", "wq", "wk", "wv"], rows)

# %% [markdown]
# Which query head reads which KV head? Neighbouring query heads share one. With G = H/h query heads
# in a group,
#
#     query head i reads KV head ⌊i / G⌋
#
# To see it in the layer, we mark the values: KV head 0 always hands over zeros, KV head 1 always
# ones. An average of ones is one, so what a query head returns shows which KV head it has read.

# %% Who reads whom
marked = mq.Attention("gqa-2", **one)
state = marked.state_dict()
state["wv.weight"][:] = 0
state["wv.weight"][0] = [0, 0, 1, 1]  # KV head 0, KV head 1
marked.load_state_dict(state)
with mq.trace() as t:
    marked(mq.Tensor(np.ones((1, 3, 8), np.float32)))
reads = t["z"][0, :, -1, 0]  # (H,), of the last token
predict("We count from 0. Which KV head does query head 2 read?", round(float(reads[2])))
show("KV head that is read", reads, columns=heads, digits=0)
say(
    "Other programs assign KV heads in turn, i mod h. Weights made for one rule are wrong under "
    "the other."
)

# %% [markdown]
# So `gqa-2` is a `qkv` in which neighbouring heads happen to have the same `wk` and `wv`. We can
# build such a `qkv`: copy each KV head's columns once for every query head of its group, and
# compare.

# %% The same as tying neighbours
rng = np.random.default_rng(9)
narrow, wide = mq.Attention("gqa-2", **one), mq.Attention("qkv", **one)
state = narrow.state_dict()
for name, w in state.items():
    state[name] = np.float32(rng.standard_normal(w.shape))
narrow.load_state_dict(state)
for name in ("wk.weight", "wv.weight"):
    columns = state[name].reshape(8, 2, 2)  # (C, h, d_h)
    state[name] = np.repeat(columns, 2, axis=1).reshape(8, 8)  # (C, H·d_h)
wide.load_state_dict(state)

# an input, and a gradient of the output: (B, T, C) each
x, g = np.float32(rng.standard_normal((2, 1, 3, 8)))
traces = {}
for name, layer in (("gqa-2", narrow), ("qkv", wide)):
    with mq.trace() as traces[name]:
        layer(mq.Tensor(x)).backward(mq.Tensor(g))
compare(
    "out of gqa-2",
    traces["gqa-2"]["out"],
    "out of the tied qkv",
    traces["qkv"]["out"],
    tolerance=1e-4,
)

# %% [markdown]
# In lesson 08 a matrix with two uses got two gradients, and they added up. A KV head has G uses,
# one for each query head of its group. We went backward as well, so the trace has the gradients of
# the keys.

# %% A sum over the group
each = traces["qkv"]["grad.k"]  # (B, H, T, d_h), one for every query head
shared = traces["gqa-2"]["grad.k"]  # (B, h, T, d_h)
show("gradient of the last key, per query head", each[0, :, -1], rows=heads)
pair = float(each[0, 0, -1, 0] + each[0, 1, -1, 0])
predict(
    "In `gqa-2`, what is the first number of the gradient of the last key of KV head 0?",
    pair,
    tolerance=0.01,
)
show("gradient of the last key, per KV head", shared[0, :, -1], rows=["KV 0", "KV 1"])
groups = each.reshape(1, 2, 2, 3, 2)  # (B, h, G, T, d_h)
groups = groups.sum(axis=2)  # (B, h, T, d_h)
compare("sum over each group", groups, "gradient in gqa-2", shared, tolerance=1e-4)

# %% [markdown]
# The obvious way to compute it is to repeat each KV head G times, and go on as before. But then the
# memory saved in the cache is used again at every step, for copies.
#
# This is not needed. All queries of a group meet the same keys, so they can be **more rows of one
# product**: G heads with T queries each are one head with G·T queries.
#
#     (B, H, T, d_h)  becomes  (B, h, G·T, d_h)
#
# with the same numbers in the same order.

# %% Nothing is repeated
q = traces["gqa-2"]["q"]  # (B, H, T, d_h) = (1, 4, 3, 2)
k = traces["gqa-2"]["k"]  # (B, h, T, d_h) = (1, 2, 3, 2)
folded = q.reshape(1, 2, 6, 2)  # (B, h, G·T, d_h)
predict(
    "How many bytes does `np.repeat(k, 2, axis=1)` take, where `k` has twelve numbers of four "
    "bytes?",
    2 * k.nbytes,
)
memory(k=k, repeated=np.repeat(k, 2, axis=1), q=q, folded=folded)
scores = folded @ k.swapaxes(-1, -2) / np.sqrt(2)  # (B, h, G·T, T)
scores = scores.reshape(1, 4, 3, 3)  # (B, H, T, T)
compare(
    "scores of the folded queries",
    scores,
    "scores in the layer",
    traces["gqa-2"]["scores"],
    tolerance=1e-4,
)
say(
    "The layer does the same: no key or value is ever repeated, whether it is new or comes from "
    "a cache."
)

# %% [markdown]
# `gqa-N` can have from one KV head to as many as there are query heads, and both extremes have
# their own names.
#
# Two things are refused. A number of KV heads that does not divide H would leave groups of
# different sizes. And Q = K with fewer KV heads has no meaning: where the keys are the queries,
# there would be only h queries for H heads.

# %% The ends, and what is refused
asked = [f"gqa-{h}" for h in (1, 2, 4)]
names = [mq.VariantSpec.parse(name).for_heads(4).name for name in asked]
predict(
    f"A model has four heads. What other name does `{asked[2]}` have there?",
    names[2],
    ["mqa", "qkv", f"q-{asked[2]}"],
)
say(f"With four heads, {asked[0]} is {names[0]}, and {asked[2]} is {names[2]}.")
refusals = []
for name in ("gqa-3", "q=k-gqa-2"):
    try:
        mq.VariantSpec.parse(name).for_heads(4)
    except ValueError as refusal:
        refusals.append(str(refusal))
say(f"Refused: {refusals[0]}.")
say(f"Refused: {refusals[1]}.")

# %% [markdown]
# Sharing across heads and sharing K with V are independent, so they multiply. Call what a KV head
# keeps its **streams**: two where keys and values are separate, one where K = V. `q-gqa-2` has two
# KV heads and one stream: what it keeps is keys and values at once. `q-mqa` keeps a single head of
# a single stream.
#
# We put one new position into a cache of each kind, and look at what the layer reads from it.


# %% Products
def first_position(variant):
    model = mq.GPT(mq.GPTConfig(**size, variant=variant))
    cache = model.new_cache()
    new = backend.xp.zeros((1, 1, 1, 2), "float32")  # (B, h, T, d_h)
    rows = cache.layers[0].append(*[new] * len(cache.stored[0]))
    return model.blocks[0].attn.read(rows)  # keys and values


say("A position in the cache of `mqa`:")
keys, values = first_position("mqa")
memory(keys=keys, values=values)
say("A position in the cache of `q-mqa`:")
keys, values = first_position("q-mqa")
memory(keys=keys, values=values)
left = 1 - mq.VariantSpec.parse("q-mqa").reduction(4)
predict(
    "Four heads, two streams: `qkv` keeps how many times as much as `q-mqa`?",
    round(1 / left),
)

# %% [markdown]
# Now the sum. For each token the cache grows by
#
#     layers · streams · KV heads · d_h · bytes of a number
#
# where d_h = C/H for every h. We let every variant read three tokens and divide what its cache then
# holds by three.

# %% The ledger, measured
variants = ("qkv", "q-k=v", "gqa-2", "q-gqa-2", "mqa", "q-mqa")
rows, measured, formula = [], [], []
for name in variants:
    cfg = mq.GPTConfig(**size, variant=name)
    spec, model = mq.VariantSpec.parse(name), mq.GPT(cfg)
    cache = model.new_cache()
    model([[3, 1, 4]], cache=cache)
    measured.append(cache.nbytes / len(cache))
    formula.append(spec.cache_bytes_per_token(cfg, itemsize=4))
    row = [spec.streams, spec.stored_heads(4), cache.nbytes, measured[-1]]
    rows.append([name, *(f"{value:.0f}" for value in row)])
predict(
    "Two layers, heads of two numbers, four bytes each: how many bytes per token for `gqa-2`?",
    int(measured[2]),
)
table("three tokens", ["variant", "streams", "KV heads", "cache.nbytes", "B/token"], rows)
compare("measured", np.array(measured), "the formula", np.array(formula, float))

# %% [markdown]
# Now the same at the size of the paper's smaller text model (section 5), with numbers of two bytes.
# To measure a cache you need not run the model: we allocate real ones, of sixty-four positions, and
# ask the arrays for their bytes.

# %% At the size of a language model
big = PRESETS["300m"]
rows = []
for name in ("qkv", "q-k=v", "gqa-4", "q-gqa-4", "mqa", "q-mqa"):
    spec = mq.VariantSpec.parse(name)
    cache = mq.KVCache([spec.stored(big)] * big.n_layer, 1, 64, "float16")
    per_token = cache.capacity_nbytes // cache.capacity
    long = per_token * 2**15 / 2**20
    share = f"{spec.reduction(big.n_head):.1%}"
    rows.append([name, f"{per_token:,}", f"{long:,.0f} MiB", share])
q_mqa = mq.VariantSpec.parse("q-mqa")
parts = {H: round(1 / (1 - q_mqa.reduction(H))) for H in (16, 32)}
predict("This model has sixteen heads. `qkv` keeps how many times as much as `q-mqa`?", parts[16])
table(
    f"{big.n_layer} layers, {big.n_head} heads",
    ["variant", "B/token", f"{2**15:,} tokens", "saved"],
    rows,
)
predict("And a model with thirty-two heads?", parts[32])
saved = [f"{1 - 1 / part:.1%}" for part in parts.values()]
say(
    f"So {saved[0]} is saved with {16} heads and {saved[1]} with {32}. The paper prints {saved[0]} "
    "for both of its models."
)

# %% [markdown]
# Heads are not the only place to save. Keys are only compared, so they may be narrower than the
# values. These are called **thin keys**: with `thin-N`, each head keeps a key of N numbers and a
# value of full width.
#
# Does everything shrink like that? A layer also has `wq` and `wo`, an MLP, and the embedding. Those
# are the same in all variants below. And each query head still computes its own scores, so the
# products of the attention itself stay too.
#
# We count parameters and, for a prompt of two thousand tokens, the multiply-accumulates (MACs):
# products that are added to a sum.


# %% What does not shrink
def costs(name):
    spec = mq.VariantSpec.parse(name)
    cache_bytes = spec.cache_bytes_per_token(big, itemsize=2)
    return np.array([spec.params(big), spec.macs(big, n=2048), cache_bytes])


rows, share = [], {}
for name in ("qkv", "q-k=v", "gqa-4", "mqa", "q-mqa"):
    share[name] = costs(name) / costs("qkv")
    rows.append([name, *(f"{part:.1%}" for part in share[name])])
predict(
    "Does `mqa` halve the multiplications needed to read a long prompt?",
    bool(share["mqa"][1] <= 0.5),
)
table("share of qkv", ["variant", "parameters", "MACs", "cache"], rows)
tiny = mq.GPTConfig(**size, variant="mqa")
formula = mq.VariantSpec.parse("mqa").params(tiny)
compare("parameters by the formula", formula, "parameters of a real mqa", mq.GPT(tiny).n_params)
say("What shrinks is the memory that has to be read again for every token that is written.")

# %% [markdown]
# Sharing keys and values saves much memory. Whether it costs accuracy is another question, and an
# honest answer has error bars: see lesson 12.
#
# In the exercise you write this count as two functions: `bytes_per_token` and `saved`. The check
# runs a real model on some tokens and asks its cache.

# %% Where it is done
source(mq.functional._Attention.fold)
source(mq.Attention.store)
source(mq.VariantSpec.cache_bytes_per_token)
source(mq.KVCache, at="def nbytes")
