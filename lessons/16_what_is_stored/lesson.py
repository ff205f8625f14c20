# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "What is stored, and how it is read"
# question = "What do models in use store for each token, and how is it read?"
# needs = [
#   "attention", "heads", "KV heads", "cache bytes", "q-gqa-N", "q-mqa", "cache", "decode", "rope",
#   "one buffer",
# ]
# teaches = ["store", "read", "gain", "back-rotation", "gta-N"]
# minutes = 18
# budget_s = 3
# exercise = "answer"
# uses = [
#   "minqkv.Attention", "minqkv.Tensor", "minqkv.cache.LayerCache", "minqkv.nn.Init",
#   "minqkv.shipped_layer", "minqkv.load_layer", "minqkv.attention.causal_mask",
#   "minqkv.functional.rms_norm", "minqkv.functional.rotate", "minqkv.variants.SHIPPED",
# ]
# ///

# %% [markdown]
# Lesson 10 stored a key and a value for each token. Lesson 11 stored one row that was both, in
# three ways. Here are four designs side by side: `qkv`, and three that store one row. Two of the
# three are from models in use.
#
# All layers of this lesson have four heads of four numbers. Rotary positions turn one half of a
# head: the last two columns turn, the first two do not. (Many models turn only a part of each
# head.) The two columns are one pair, which turns by one radian per position.
#
# We begin with `qkv`. A text has five tokens. Keys are turned and then stored, and values are
# stored as they are.

# %% Four heads of four numbers
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.attention import causal_mask
from minqkv.cache import LayerCache
from minqkv.designs.layers import Sink
from minqkv.teach import compare, memory, predict, say, show, source, table
from minqkv.variants import SHIPPED

init = mq.nn.Init(16, "float64", "uniform")
options = {"position": "rope", "head_dim": 4, "d_rope": 2}
options |= {"n_embd": 6, "n_head": 4, "block_size": 16}
options |= {"bias": False, "init": init}
x = np.random.default_rng(16).standard_normal((1, 5, 6))
x, at = mq.Tensor(x), slice(0, 5)  # (B, T, C), and positions
steps = backend.xp.arange(5)
mask = causal_mask(steps, steps)  # (T, T)

layer = mq.Attention("qkv", **options)
rows = layer.store(x, at)  # two arrays (B, H, T, d)
one = sum(row.numpy()[0, :, 0].size for row in rows)
predict("Four heads of four numbers: how many numbers does `qkv` store for each token?", one)
show("stored keys, head 0", rows[0].numpy()[0, 0])

# %% [markdown]
# In every design an attention layer does the same four things:
#
# - **store**: what is kept for a new token?
# - **query**: what does the token look for?
# - **read**: which keys and values are made from what is kept?
# - **answer**: what is done to the mix of the values?
#
# In this package these are four short methods of one class, and a design is a choice in each of
# them. Between `read` and `answer` comes the attention of lesson 06, which is the same in all four
# designs. We call the methods of `qkv` one after another.

# %% Four methods
q = layer.query(x, rows, at)  # (B, H, T, d)
k, v = layer.read(rows, at)  # (B, H, T, d) each
z = F.scaled_dot_product_attention(q, k, v, mask)  # (B, H, T, d)
z = layer.answer(z, at)  # (B, H, T, d)
out = layer.wo(F.merge_heads(z))  # (B, T, C)

predict("Does `read` of `qkv` make new arrays?", k is not rows[0])
memory(stored_keys=rows[0], stored_values=rows[1], keys=k, values=v)
compare("the four methods", out, "the layer", layer(x, mask))
say("With qkv, `read` returns what is stored, and `answer` returns the mix unchanged.")

# %% [markdown]
# The next two designs bring stored rows and queries to a common size. They divide a row by the
# square root of the mean of its squares, so that its mean square becomes 1. Then no score is large
# just because a row is long. This is called **RMS norm**. (The norm of lesson 07 also subtracted
# the mean.)
#
# A key is then multiplied by a **gain**: a learned factor for each column. Whether the value gets
# the gain too depends on what is stored.

# %% Rows of one size
row = np.array([1.0, 5.0, 5.0, 7.0])  # (d,)
mean_square = (row**2).mean()
scaled = row / np.sqrt(mean_square)  # (d,)
gain = np.array([2.0, 1.0, 1.0, 0.5])  # (d,)

predict(
    f"The mean of the squares of (1, 5, 5, 7) is {mean_square:g}. What becomes of the last number?",
    float(scaled[-1]),
)
show("row", row, digits=1)
show("scaled", scaled, digits=1)
show("with the gain", scaled * gain, digits=1)
compare("scaled by hand", scaled, "the package", F.rms_norm(mq.Tensor(row)), 1e-6)

# %% [markdown]
# The first of the three is from the larger models of Gemma 4, where it is used in the layers that
# see the whole text. (The other layers have a window, as in lesson 14.) There are a few KV heads,
# and one row is kept for each: `q-gqa-N` of lesson 09.
#
# The **value** is stored: the scaled row, without the gain and not turned. The key is made from it
# at each read: the row is multiplied by the gain, and its last columns are turned by its position.
# This is the raw form of lesson 11.
#
# We make the keys by hand.


# %% Gemma 4: the value is stored
def turn(rows, positions):
    """The last two of four columns turn: (..., T, 4) by (T,)."""
    cos = np.cos(positions)[:, None]  # (T, 1)
    sin = np.sin(positions)[:, None]
    still, a, b = rows[..., :2], rows[..., 2:3], rows[..., 3:]
    pair = a * cos - b * sin, b * cos + a * sin  # (..., T, 1) each
    return np.concatenate([still, *pair], axis=-1)


gemma = mq.Attention("q-gqa-2", norm=True, **options)
state = gemma.state_dict()
gemma.load_state_dict(state | {"k_gain": gain})
rows = gemma.store(x, at)  # one array (B, h, T, d)
k, v = gemma.read(rows, at)  # (B, h, T, d) each
stored = rows[0].numpy()
keys = turn(stored * gain, np.arange(5))  # (B, h, T, d)

same = np.tile(stored[0, 0, 0], (2, 1))  # (2, d), one row at two places
differ = abs(np.diff(turn(same * gain, np.arange(1, 3)), axis=0)) > 1e-9
predict(
    "The same row is stored at positions 1 and 2. In how many of four columns do the keys differ?",
    int(differ.sum()),
)
show("stored, KV head 0", stored[0, 0])
show("keys, KV head 0", k.numpy()[0, 0])
compare("keys by hand", keys, "keys in the layer", k)
memory(stored=rows[0], values=v, keys=k)
say("The keys are made for one step and then thrown away. Only the values are kept.")

# %% [markdown]
# The second is from DeepSeek-V4. All heads share one row: `q-mqa`. It is stored as a **key**, with
# the gain and turned. Reading makes nothing new: the stored array is both the keys and the values.
# This is the unrotate form.
#
# Lesson 11 showed the trap: turned rows are mixed. Let us look at the mix before anything is done
# about it. The layer reads the same text twice. First the text begins at position 0, then seven
# places later.

# %% DeepSeek-V4: the key is stored
deepseek = mq.Attention("q-mqa", norm=True, rope_value="unrotate", **options)
mixed, patterns = {}, {}
for start in (0, 7):
    there = slice(start, start + 5)
    rows = deepseek.store(x, there)  # one array (B, 1, T, d)
    q = deepseek.query(x, rows, there)  # (B, H, T, d)
    with mq.trace() as t:
        z = deepseek.attend(q, rows, there, mask)  # (B, H, T, d)
    mixed[start], patterns[start] = z.numpy(), t["pattern"]
k, v = deepseek.read(rows, there)  # (B, 1, T, d) each

moved = (abs(mixed[0] - mixed[7]) > 1e-9).any(axis=(0, 1, 2))  # (d,)
names = {"all four": [1, 1, 1, 1], "the first two": [1, 1, 0, 0]}
names |= {"the last two": [0, 0, 1, 1], "none": [0, 0, 0, 0]}
(which,) = [name for name in names if (moved == names[name]).all()]
compare("weights of the text at 0", patterns[0], "weights at 7", patterns[7])
predict("The weights are the same. Which columns of the mix change?", which, list(names))
show("mix of head 0, at 0", mixed[0][0, 0])
show("mix of head 0, at 7", mixed[7][0, 0])
memory(stored=rows[0], keys=k, values=v)

# %% [markdown]
# Each row was turned by its own position j. In the mix the rows can no longer be turned back one by
# one, because they have been added up. They could be turned back before they are mixed, but then
# every stored row would have to be turned at every step.
#
# Instead `answer` turns the mix **back**, by the position i of the query. Turning a sum turns each
# of its parts. Write R_j for the turn by j, s_j for a row before it was turned, and p_j for its
# weight:
#
#     R_i⁻¹ Σ p_j R_j s_j  =  Σ p_j R_(j−i) s_j
#
# What is left is a turn by j − i, the distance. Turning the mix back is called the
# **back-rotation**. It turns one row for each head and query, however many rows are stored.

# %% The answer is turned back
by_hand, answers = {}, {}
for start in (0, 7):
    places = start + np.arange(5)  # (T,), of the queries
    by_hand[start] = turn(mixed[start], -places)  # (B, H, T, d)
    there = slice(start, start + 5)
    z = deepseek.answer(mq.Tensor(mixed[start]), there)
    answers[start] = z.numpy()

predict(
    f"The text begins at position {places[0]}. By how many positions is the mix of its third token "
    "turned back?",
    int(places[2]),
)
show("answers of head 0, at 7", answers[7][0, 0])
compare("turned back by hand", by_hand[7], "`answer` of the layer", answers[7])
compare("answers at 0", answers[0], "answers at 7", answers[7])
wrong = turn(mixed[7], -np.arange(5))  # by 0, 1, 2 ...: (B, H, T, d)
compare("turned back by 0, 1, 2 ...", wrong, "answers at 0", answers[0], same=False)
say("A mix is turned back by the position of its query.")

# %% [markdown]
# So a row that is n places before the query enters the answer turned by −n. What does that mean for
# the answer?
#
# Let every token have the same row. A query puts all its weight on one token: on itself, on the one
# before it, or on the one before that. We do this at two places of a text.

# %% What is left of the turn
row = np.array([1.0, 1.0, 1.0, 0.0])  # (d,), before it is turned
found = {}
for i in (5, 12):  # position of the query
    places = i - np.arange(3)  # (3,), of the row that it looks at
    stored = turn(np.tile(row, (3, 1)), places)  # (3, d)
    found[i] = turn(stored, np.full(3, -i))  # (3, d), the answers

names = ["itself", "1 back", "2 back"]
tells = bool(abs(found[5][0] - found[5][1]).max() > 1e-9)
predict("All rows are the same. Does the answer depend on which token is looked at?", tells)
show("answers at position 5", found[5], rows=names)
compare("answers at 5", found[5], "answers at 12", found[12])
say("The answer depends on how far away the row was, and not on where the query is.")
say("In Gemma 4's design all three answers would be the same: its values never turn.")

# %% [markdown]
# The third has been published as GTA, "grouped tied attention". It keeps what turns apart, as in
# lesson 11: a row for each KV head that never turns, and one small turned row beside them for all
# heads. Here the small row has two columns.
#
# The value is the whole row. The key is the row with its last columns replaced by the small row.

# %% GTA: a small row beside
gta = mq.Attention("gta-2", **options)
row, small = gta.store(x, at)  # (B, h, T, d), (B, 1, T, 2)
k, v = gta.read((row, small), at)  # (B, h, T, d) each
beside = np.repeat(small.numpy(), 2, axis=1)  # (B, h, T, 2)
keys = np.concatenate([row.numpy()[..., :2], beside], axis=-1)

alike = (k.numpy() == v.numpy()).all(axis=(0, 1, 2))  # (d,)
predict("In how many of its four columns is a key the same as its value?", int(alike.sum()))
show("row, KV head 0", row.numpy()[0, 0])
show("small row", small.numpy()[0, 0])
show("keys, KV head 0", k.numpy()[0, 0])
compare("keys by hand", keys, "keys in the layer", k)
memory(stored=row, values=v, keys=k)

# %% [markdown]
# Now the bytes, by hand. For each array that is stored:
#
#     heads · columns · bytes of a number
#
# Take numbers of two bytes, and the four layers that we have built. Each of them reads the five
# tokens with a cache, and we divide the bytes of the cache by five.

# %% One table of bytes
designs = {"qkv": layer, "Gemma 4": gemma}
designs |= {"DeepSeek-V4": deepseek, "GTA": gta}
rows, by_hand, measured = [], {}, {}
for name, each in designs.items():
    stored = each.spec.rows(4, 4, each.d_rope)  # (heads, columns) each
    cache = LayerCache(1, stored, 8, "float16")
    each(x, cache=cache)
    by_hand[name] = 2 * sum(heads * columns for heads, columns in stored)
    measured[name] = cache.nbytes // len(cache)
    product = " + ".join(f"{heads} x {columns}" for heads, columns in stored)
    rows.append([name, product, by_hand[name], measured[name]])

predict("`qkv` has four heads, with keys and values. How many bytes per token?", measured["qkv"])
predict("Gemma 4's design, with two KV heads?", measured["Gemma 4"])
predict("DeepSeek-V4's?", measured["DeepSeek-V4"])
predict("And GTA, with two KV heads and a small row of two numbers?", measured["GTA"])
table("stored per token, 2 bytes a number", ["design", "numbers", "by hand", "cache"], rows)
compare("by hand", list(by_hand.values()), "measured", list(measured.values()))

# %% [markdown]
# A design says what has to be stored. A program may store more:
#
# - For these layers of Gemma 4, the transformers library stores the keys as well as the values.
# - For the layers of DeepSeek-V4 that have only a window, it stores the one row twice.
# - The program that was released with GTA repeats the small row for every query head.
#
# We compare what is needed with what is stored. The rows of Gemma 4 and DeepSeek-V4 are as wide as
# in the models. For GTA we choose sizes that are common in language models. For each we allocate a
# cache with room for one token and ask for its size in bytes.


# %% The design, and a program
def held(*stored):
    return LayerCache(1, list(stored), 1, "float16").capacity_nbytes


rows = []
kinds = {"gemma4-global": "Gemma 4, one KV head"}
kinds["deepseek-v4"] = "DeepSeek-V4, window"
for kind, name in kinds.items():
    row = 1, SHIPPED[kind]["head_dim"]  # heads, columns
    rows.append([name, held(row), held(row, row)])
heads, h, d, d_small = 32, 8, 128, 64
row, small = (h, d), (1, d_small)
rows.append(["gta-8", held(row, small), held(row, (heads, d_small))])
gqa = held(row, row)
rows.append(["gqa-8", gqa, gqa])

say(f"GTA: {heads} query heads, {h} KV heads of {d} numbers, small rows of {d_small}.")
predict(
    f"DeepSeek-V4's row takes {rows[1][1]:,} bytes. How many does the library store?", rows[1][2]
)
predict(
    f"With the same heads `gqa-{h}` takes {gqa:,} bytes. Does the program released with GTA take "
    "less?",
    rows[2][2] < gqa,
)
table("bytes per token and layer", ["design", "needed", "stored"], rows)
say("To know what a program stores, measure its arrays.")

# %% [markdown]
# `mq.shipped_layer` makes a layer of such a model by its name, and `mq.load_layer` reads one from a
# file of weights. We make one of Gemma 4 and compare it with ours. DeepSeek-V4 has further parts:
# its queries and its output are made in two steps each, and a head can give part of its weight to
# nothing. (That is `Sink`. It stores no token, unlike the sinks of lesson 14.) docs/designs.md says
# what is left out.
#
# In the exercise you write `answer`, the back-rotation, for any number of pairs that turn. As in
# lesson 11, each pair has a speed of its own. The check calls your function with the mix of a text
# that begins at position 0, and with the mix of the same text when it begins later.

# %% Where it is done
small = {"kv_heads": 2, "head_dim": 4, "d_rope": 2}
shipped = mq.shipped_layer("gemma4-global", 6, 4, 16, init, **small)
shipped.load_state_dict(gemma.state_dict())
ways = [
    ["qkv", "K, V", "K", "V", "the mix"],
    ["Gemma 4", "V", "V x gain, turned", "V", "the mix"],
    ["DeepSeek-V4", "K", "K", "K", "the mix, turned back"],
    ["GTA", "V, small row", "from both", "V", "the mix"],
]
compare("our layer", gemma(x, mask), "gemma4-global at this size", shipped(x, mask))
table("how it is read", ["design", "stored", "key", "value", "answer"], ways)
say("Gemma 4 and DeepSeek-V4 are models in use. GTA was published with code.")
source(mq.Attention.store)
source(mq.Attention.read)
source(mq.Attention.answer)
source(F.rms_norm)
source(F.rotate)
source(Sink)
source(mq.shipped_layer)
source(mq.load_layer)
