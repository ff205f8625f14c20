# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "One cache for K and V"
# question = "Keys and values are one array: what if the keys have to turn?"
# needs = [
#   "positions", "attention", "pattern", "heads", "q-k=v", "qkv", "cache bytes", "cache", "decode",
# ]
# teaches = ["rope", "one buffer"]
# minutes = 20
# budget_s = 4
# exercise = ["raw_step", "unrotate_step"]
# uses = [
#   "minqkv.Attention", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.cache.LayerCache",
#   "minqkv.Tensor", "minqkv.use_backend", "minqkv.functional.rotate", "minqkv.nn.Init",
#   "minqkv.attention.rope_table", "minqkv.trace",
# ]
# ///

# %% [markdown]
# In lesson 08 one projection made keys and values, and the two were the same array. In lesson 10
# keys and values of the past were kept in two arrays for each layer. Put the two together: with
# `q-k=v` nothing needs to be kept twice.
#
# We let two models read the same prompt, one with `qkv` and one with `q-k=v`, and look at what they
# keep. Then one more row goes into the second cache by hand, and we look at what the layer reads
# from it.

# %% One buffer
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.attention import rope_table
from minqkv.cache import LayerCache
from minqkv.functional import scaled_dot_product_attention
from minqkv.teach import cache_step, compare, memory, predict, say, show, source, table

size = {"vocab_size": 10, "block_size": 16, "n_layer": 1}
size |= {"n_head": 2, "n_embd": 8}
prompt = np.array([[3, 1, 4, 1, 5]])  # (1, T)
caches = {}
for variant in ("qkv", "q-k=v"):
    model = mq.GPT(mq.GPTConfig(**size, variant=variant))
    caches[variant] = model.new_cache()
    model(prompt, cache=caches[variant])

two, one = caches["qkv"], caches["q-k=v"]
held = two.nbytes, one.nbytes
predict(f"With qkv the five tokens take {held[0]} bytes. And with q-k=v?", held[1])
row = backend.upload(np.ones((1, 2, 1, 4), np.float32))  # (B, h, T, d)
rows = one.layers[0].append(row)  # all that is stored so far: one array
keys, values = model.blocks[0].attn.read(rows)  # (B, h, S, d) each
cache_step(one, model.config)
memory(stored=rows[0], keys=keys, values=values)
say("The cache has no second array. The layer reads the same array as keys and as values.")

# %% [markdown]
# So far positions were rows that are added to the tokens before the first layer. Many models do
# something else: they leave the tokens alone and **turn** queries and keys by an angle that grows
# with the position, just before the two are compared. This is called rotary positions, `rope` for
# short.
#
# Two numbers are an arrow in the plane. To keep the arithmetic easy, turn it by a quarter of a
# circle for each position; this takes the arrow (x, y) to (-y, x). We use the package's own
# function.

# %% Turning an arrow
cos = backend.upload(np.array([[1.0], [0.0], [-1.0], [0.0]]))  # (T, 1), T = 4
sin = backend.upload(np.array([[0.0], [1.0], [0.0], [-1.0]]))


def turned(arrow):
    arrows = mq.Tensor(np.tile(arrow, (4, 1)))  # (T, 2)
    return F.rotate(arrows, cos, sin).numpy()


k = turned([3.0, 4.0])
predict(
    "The arrow (3, 4) is at position 1. What is its first number when it is turned?",
    float(k[1, 0]),
)
show("(3, 4) at positions 0, 1, 2 and later", k, columns=["x", "y"], digits=0)
say(
    "Turning changes no length: "
    f"{', '.join(f'{length:g}' for length in np.sqrt((k**2).sum(axis=1)))}."
)

# %% [markdown]
# Why turn? Take the same query at every position and the same key at every position, and compare
# all of them with all.
#
# The dot product of two arrows depends on their lengths and on the angle between them. Turn both by
# the same angle: the lengths stay, and so does the angle between them.

# %% Only the distance counts
q = turned([2.0, 1.0])
scores = q @ k.T  # (T, T), a row for each position of the query
predict(
    f"Query at 1, key at 0: the score is {scores[1, 0]:g}. What is it with the query at 2 and the "
    "key at 1?",
    scores[2, 1],
)
names = [f"q at {i}" for i in range(4)]
show("scores", scores, rows=names, columns=[f"k at {i}" for i in range(4)], digits=0)
say(
    "Along each diagonal the numbers are equal: the score knows how far apart the two are, and not "
    "where they are."
)

# %% [markdown]
# Turning by a quarter of a circle repeats after four positions. So real tables use smaller angles,
# and several at once: the columns of a head are taken in pairs, and each pair has a speed of its
# own. Fast pairs tell neighbours apart, slow ones tell near from far.

# %% The real speeds
cos, sin = rope_table(16, 8, "float64")  # (16, 4) each: 16 positions, d = 8
speed = np.arctan2(backend.to_host(sin)[1], backend.to_host(cos)[1])  # (4,)

axis = mq.Tensor(np.eye(8)[:1])  # (1, 8), all in column 0
moved = F.rotate(axis, cos[1:2], sin[1:2]).numpy()[0]  # (8,), at position 1
with_zero = np.flatnonzero(abs(moved) > 1e-9).tolist()

two = f"{speed[0]:g} and {speed[1]:g}"
predict(
    f"The first two of four pairs turn by {two} radians per position. And the third?",
    float(speed[2]),
    tolerance=1e-6,
)
show("radians per position", speed)
say(
    f"Column 0 turns with column {with_zero[1]}: a pair is a column of the first half and the "
    "matching one of the second."
)

# %% [markdown]
# Now a whole layer. It has one head with d = 2, so its queries, keys and values are arrows; `wk`,
# `wv` and `wo` are the identity, to keep the numbers readable. `at` lets it read a text that begins
# at some position: filler goes into the cache first, and a mask hides it.
#
# In the `qkv` layer queries and keys turn, values do not: they are not compared with anything.


# %% The same text, somewhere else
def make(variant, d=2, **options):
    options |= {"init": mq.nn.Init(dtype="float64"), "bias": False}
    options |= {"position": "rope", "head_dim": d}
    layer = mq.Attention(variant, 2, 1, 16, **options)
    state = {n: np.eye(*w.shape) for n, w in layer.state_dict().items()}
    state["wq.weight"] = np.tile([[1.0, 1.0], [0.0, 1.0]], d // 2)
    layer.load_state_dict(state)
    return layer


def new_cache(layer):
    rows = layer.spec.rows(1, len(layer.wo.weight), layer.d_rope)
    return LayerCache(1, rows, 16, "float64")  # rows: (heads, d) each


def at(start, layer, x):
    cache = new_cache(layer)
    if start:
        layer(mq.Tensor(np.ones((1, start, 2))), cache=cache)  # filler
    own = backend.xp.arange(start + len(x)) >= start
    seen = cache.mask(len(x)) & own  # (T, start + T), filler hidden
    return layer(mq.Tensor(x[None]), seen, cache).numpy()[0]  # (T, 2)


x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (T, 2)
usual = make("qkv")
here, later = at(0, usual, x), at(5, usual, x)
predict(
    "A text begins at position 0, then five places later. Does the layer give the same answers?",
    bool(np.allclose(here, later)),
)
show("answers", here, columns=["x", "y"])
compare("answers at 0", here, "answers five places later", later)

# %% [markdown]
# Now the trap. With K = V there is one array. It is natural to turn the key, store it, and use what
# is stored for both purposes. The scores are right. But now the arrows that are mixed are turned as
# well.
#
# Let a text have a single token, the arrow (3, 4). It sees only itself, with weight 1, so its
# answer is its own value. We put it at four positions, one after another. To get this layer we must
# break one of the package's layers: `turn_back` is a fix explained two steps later.

# %% The trap
naive = make("q-k=v", rope_value="unrotate")
naive.turn_back = False

token = np.array([[3.0, 4.0]])  # (1, 2)
answers, proper = (
    np.concatenate([at(start, layer, token) for start in range(4)])  # (4, 2)
    for layer in (naive, usual)
)

predict("Is the answer the same wherever the token is?", bool(np.allclose(answers, answers[0])))
show("one array, nothing undone", answers, rows=[f"at {i}" for i in range(4)], columns=["x", "y"])
show("two arrays", proper, rows=[f"at {i}" for i in range(4)], columns=["x", "y"])
compare("a longer text at 0", at(0, naive, x), "the same text at 5", at(5, naive, x), same=False)
say(
    "Turned values depend on where they are. A few places later the same text gets different "
    "answers, and no error is raised."
)

# %% [markdown]
# First fix: store the key **raw**, not turned. When the cache is read, a turned copy is made for
# the comparison and then thrown away, while the raw array is mixed. At every step, each key is
# again turned by its own position.
#
# Does that give what two arrays would give? Our `qkv` layer has the same matrix in `wk` and `wv`,
# so we can compare. Here five rows of filler come before the text; only its own rows are shown.

# %% Fix one: store it raw
raw = make("q-k=v", rope_value="raw")
with mq.trace() as t:
    at(5, raw, x)
stored, compared, mixed = (t[name][0, 0] for name in ("cache.k", "k", "v"))
candidates = {"the keys that are compared": compared}  # (8, 2), as the others
candidates["the values that are mixed"] = mixed
found = [name for name in candidates if np.allclose(candidates[name], stored)]

predict("Which array of this step holds the same numbers as the cache?", found[0], list(candidates))
show("stored", stored[5:], rows=["5", "6", "7"], columns=["x", "y"])
show("compared", compared[5:], rows=["5", "6", "7"], columns=["x", "y"])
compare("raw at 0", at(0, raw, x), "raw at 5", at(5, raw, x))
compare("raw", at(5, raw, x), "two arrays with equal weights", at(5, usual, x))

# %% [markdown]
# Second fix: store the key turned, mix what is stored, and turn the **answer** back, by the
# position of the query. Write R_j for the turn at position j, and p for the weights of one query,
# at position i:
#
#     R_i⁻¹ Σ p_j R_j k_j  =  Σ p_j R_(j−i) k_j
#
# Turning by j and then back by i is turning by the distance between them. So the answer mixes
# values that are turned relative to the query's position.

# %% Fix two: turn the answer back
back = make("q-k=v", rope_value="unrotate")

predict(
    "Is the answer now the same, wherever the text begins?",
    bool(np.allclose(at(0, back, x), at(5, back, x))),
)
compare("unrotate at 0", at(0, back, x), "unrotate at 5", at(5, back, x))
compare("a token alone, at 3", at(3, back, token), "its value", token)
show("raw", at(0, raw, x), columns=["x", "y"])
show("unrotate", at(0, back, x), columns=["x", "y"])
compare("raw", at(0, raw, x), "unrotate", at(0, back, x), same=False)
say(
    "Both are correct, but they are two different functions: a model must be decoded with the "
    "one it was trained with."
)

# %% [markdown]
# Third fix: never turn the row, and keep what turns **apart**. Another matrix, `wr`, makes a small
# row, which is stored beside the first one. The small row turns, and so do the last columns of the
# query, which it is compared with. It is never mixed.
#
# - The value is the whole row.
# - The key is the row with its last columns replaced by the small row.
#
# So a score is a sum of two parts: one from the columns that never turn, and one from the columns
# that do, which depends on the distance. In the package this is `gta-N`, where N is the number of
# KV heads. However many there are, they all use the same small row.
#
# Here the head has four numbers, and `wk` makes the row (x, y, 0, 0) from a token (x, y). The small
# row is (x, y), turned.

# %% Fix three: a small row beside
apart = make("gta-1", d=4, d_rope=2)
held, names = {}, ["the row", "the small row"]
for start in (0, 5):
    with mq.trace() as t:
        at(start, apart, x)
    arrays = [t[name][0, 0, start:] for name in ("cache.k", "cache.r")]
    held[start] = dict(zip(names, arrays, strict=True))  # (T, 4), (T, 2)
keys, values = (t[name][0, 0, 5:] for name in "kv")  # (T, 4) each
pairs = {name: (held[0][name], held[5][name]) for name in names}
moved = [name for name in names if not np.allclose(*pairs[name])]

predict("The text moves five places. Which of the two stored rows changes?", moved[0], names)
show("the row, at 5", held[5]["the row"], rows=["5", "6", "7"])
show("the small row, at 5", held[5]["the small row"], rows=["5", "6", "7"])
show("keys", keys, rows=["5", "6", "7"])
compare("values", values, "the row", held[5]["the row"])
compare("apart at 0", at(0, apart, x), "apart at 5", at(5, apart, x))

# %% [markdown]
# What does each cost? We count the rows that are turned in one decode step, by recording the calls
# of the layer's own `turn`, with seven positions stored before it. Then we put all forms in one
# table, with the bytes that a position takes. For the table, every head has four numbers.


# %% What each costs
def cost(layer):
    same = np.allclose(at(0, layer, x), at(5, layer, x))
    rows, turn = [], layer.turn

    def listen(x, *args, **kwargs):
        rows.append(x.shape[2])
        return turn(x, *args, **kwargs)

    cache = new_cache(layer)
    layer(mq.Tensor(np.ones((1, 7, 2))), cache=cache)  # what was before
    layer.turn = listen
    layer(mq.Tensor(token[None]), cache=cache)  # (1, 1, 2)
    kept = sum(row.nbytes for row in cache.rows)
    return kept // len(cache), sum(rows), "yes" if same else "no"


forms = {"two arrays": make("qkv", d=4)}
for form in ("naive", "raw", "unrotate"):
    value = "raw" if form == "raw" else "unrotate"
    forms[form] = make("q-k=v", d=4, rope_value=value)
forms["naive"].turn_back = False
forms["apart"] = apart
costs = {name: cost(layer) for name, layer in forms.items()}
predict("How many rows does the step turn in the raw form?", costs["raw"][1])
predict("And in the unrotate form?", costs["unrotate"][1])
predict(
    f"A row of four numbers takes {costs['raw'][0]} bytes. What does the third fix store for a "
    "position, in bytes?",
    costs["apart"][0],
)
table(
    "costs",
    ["form", "bytes per position", "rows turned", "same when moved"],
    [[name, *costs[name]] for name in forms],
)

# %% [markdown]
# So `raw` turns every stored key again at every step. `unrotate` turns three rows, however long the
# text is: the query, the new key and the answer. The third fix turns only the query and the new
# small row, but it stores more: half a row here, and relatively less where many heads share the
# small row. One form is missing from the table: store the turned key and also the
# raw value. It is correct and cheap, but then there are two arrays again, and K = V has saved a
# matrix of weights but no cache.
#
# Lesson 10 required that a cache changes no result. Here is the whole GPT with each of the three
# fixes: reading token by token, and reading everything at once.

# %% Step by step in a model
options = {"position": "rope", "dtype": "float64"}
fixes = {"raw": {"variant": "q-k=v", "rope_value": "raw"}}
fixes["unrotate"] = {"variant": "q-k=v", "rope_value": "unrotate"}
fixes["apart"] = {"variant": "gta-2"}
caches, done = {}, {}
for fix, form in fixes.items():
    config = mq.GPTConfig(**size, **options, **form)
    model = mq.GPT(config, seed=1)
    whole = model(prompt).numpy()[0]  # (T, V)
    cache, rows = model.new_cache(), []
    for n in range(5):
        logits = model(prompt[:, n : n + 1], cache=cache)  # (1, 1, V)
        rows.append(logits.numpy()[0, 0])
    caches[fix], done[fix] = (cache, config), (np.array(rows), whole)

cache_step(*caches["raw"])
cache_step(*caches["unrotate"])
cache_step(*caches["apart"])
compare("raw: token by token", done["raw"][0], "all at once", done["raw"][1])
compare("unrotate: token by token", done["unrotate"][0], "all at once", done["unrotate"][1])
compare("apart: token by token", done["apart"][0], "all at once", done["apart"][1])

# %% [markdown]
# All of this runs on a GPU with one switch. Models and caches that are made inside
# `mq.use_backend("cupy")` live on the GPU, and with `MINQKV_BACKEND=cupy` in the environment this
# lesson runs on one too.
#
# A caveat about speed. We halved the memory that is **held**. How often is it **read**? A step in
# one layer needs some products of stacked matrices; we record those.

# %% One flag, and how often the array is read
place = backend.current.name  # "cupy", to use a GPU
products = []
with mq.use_backend(place):
    bmm = backend.bmm

    def listen(a, b):
        if b.ndim > 2:  # stacked matrices
            products.append(b.shape)
        return bmm(a, b)

    backend.bmm = listen  # the end of the `with` takes it back
    config = mq.GPTConfig(**size, variant="q-k=v")
    model = mq.GPT(config)
    cache = model.new_cache()
    model(prompt, cache=cache)
    products.clear()
    model([[9]], cache=cache)  # one token, on five stored

predict("How many of these products does the step make with the stored array?", len(products))
say(f"This ran on {place}. It was used as {products[0]} (transposed) for the scores.")
say(f"For the mix it was used as {products[1]}: the same array, as values.")
say("The two products read that one array one after the other, here and on a GPU.")
say("The second read is cheap if the array is still in the processor's cache.")

# %% [markdown]
# With `raw` and rotary positions there is one more read: the turned copy must first be made from
# the array. Reading it only once takes a GPU kernel that does both products in one pass:
# `minqkv/kernels/decode.cu`, for heads wider than the four numbers here. So the cache always holds
# half the bytes, but reading half as many needs such a kernel.
#
# All three fixes are found in models in use. In the larger models of Gemma 4, the layers that see
# the whole text make keys and values from one raw row. DeepSeek-V4 turns the answer back.
# DeepSeek-V3 keeps a small turned row beside a wide one. Lesson 16 is about the first two, and
# lesson 17 about the third.
#
# In the exercise you write the first two fixes: `raw_step` and `unrotate_step`, each a decode step.
# `turn` is given.

# %% Where it is done
source(LayerCache.append)
source(mq.Attention.store, at="self.turn_late")
source(mq.Attention.read, at="if self.turn_late:")
source(mq.Attention.answer, at="self.turn_back")
source(mq.Attention.store, at="self.wr(x)")
source(mq.Attention.read, at="self.spec.apart")
source(F.rotate)
source(scaled_dot_product_attention)
