# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "A cache that does not grow"
# question = "Can a model go on reading forever with a cache of fixed size?"
# needs = [
#   "causal mask", "attention", "pattern", "softmax", "loss", "training step", "cache", "decode",
#   "cache bytes", "rope", "q-k=v", "one buffer", "language model",
# ]
# teaches = ["window", "ring", "sinks", "int8"]
# minutes = 20
# budget_s = 4
# exercise = "positions"
# uses = [
#   "minqkv.AdamW", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.attention.causal_mask",
#   "minqkv.caches.Int8Cache", "minqkv.caches.RingCache", "minqkv.caches.options",
#   "minqkv.functional.cross_entropy",
#   "minqkv.functional.scaled_dot_product_attention", "minqkv.train_step", "minqkv.trace",
#   "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# A conversation can go on without end, but memory is limited. In lesson 10 each token that was read
# added its rows to the cache, and nothing was ever removed. With one array for keys and values, a
# token adds less. But the number of tokens still grows.
#
# This lesson shows two ways to keep less: fewer positions, and fewer bytes for each number.
#
# We begin with positions. With a **window** of w, a token sees only itself and the w − 1 tokens
# before it. In training this is one more mask. Together with the causal mask it leaves a band along
# the diagonal.

# %% A window is a mask
import numpy as np

import minqkv as mq
from minqkv import backend, caches, train
from minqkv import functional as F
from minqkv.attention import causal_mask
from minqkv.caches import Int8Cache, RingCache
from minqkv.caches.int8 import rounded
from minqkv.caches.ring import RingLayer
from minqkv.teach import compare, curve, predict, say, show, source, table

w = 3
places = backend.xp.arange(8)
band = causal_mask(places, places, window=w)  # (T, S)
band = backend.to_host(band)

i = 6
predict(f"The window is {w}. How many keys does the query at position {i} see?", int(band[i].sum()))
predict(f"Which is the first position that the query at {i} sees?", int(band[i].argmax()))
predict("And how many keys does the query at position 1 see?", int(band[1].sum()))
show("who sees whom", band.astype(int), rows=[f"q {p}" for p in range(8)])

# %% [markdown]
# Here are the tunes of lesson 10 again: three notes that repeat forever. To know the next note, a
# model must look at the note three places before it. A window of three tokens just reaches it.
#
# The model has two layers and rotary positions, and the window is a field of its configuration.


# %% A model with a window
size = {"vocab_size": 10, "block_size": 64, "n_layer": 2, "n_head": 2}
size |= {"n_embd": 16, "position": "rope", "dtype": "float64"}


def learn(config, texts, steps):
    model = mq.GPT(config, seed=0)
    optimizer = mq.AdamW(model.parameters(), lr=2e-2)
    rng = np.random.default_rng(10)
    for _ in range(steps):
        loss = mq.train_step(model, optimizer, *texts(rng))
    return model, loss


def tunes(rng, n=32, T=12):
    ids = np.tile(rng.integers(0, 10, (n, 3)), T // 3 + 1)[:, : T + 1]
    y = ids[:, 1:].copy()  # (n, T)
    y[:, :2] = -100  # the first notes cannot be known
    return ids[:, :-1], y


narrow, loss = learn(mq.GPTConfig(**size, window=w), tunes, 150)
short, long = 12, 60
x, y = tunes(np.random.default_rng(1), 50, long)  # (50, T)
score = train.evaluate(narrow, x, y)
say(f"The loss ended at {loss:.4f}, with tunes of {short} notes.")
predict(
    f"It has only seen tunes of {short} notes. Does it continue tunes of {long} notes?",
    bool(score["accuracy"] > 0.99),
)
say(f"On the longer tunes its loss is {score['loss']:.4f}.")

# %% [markdown]
# So does the model know only the last three tokens? Not quite. In the lower layer a row is made
# from three tokens. The upper layer sees three such rows, and the oldest of these has looked
# further back.
#
# We change one token at a time, and watch whether the logits of a later one change.

# %% Two layers see further
notes = x[:1, :10].copy()  # (1, T)
before = narrow(notes).numpy()[0, 9]  # (V,), logits at position 9
felt = []
for back in range(10):
    other = notes.copy()
    other[0, 9 - back] = (notes[0, 9 - back] + 1) % 10
    felt.append(bool(abs(narrow(other).numpy()[0, 9] - before).max() > 1e-9))

reach = max(back for back in range(10) if felt[back])
predict(
    "Each of two layers looks back at most two places. How many places back is the furthest token "
    "that changes the logits?",
    reach,
)
columns = [str(back) for back in range(10)]
show("changes the logits, by places back", np.array([felt]).astype(int), columns=columns)
say("Each layer adds w − 1 places. A deep model sees much further back than its window.")

# %% [markdown]
# Now the cache. If one token no longer sees a position, no later token will see it either. So its
# rows can be overwritten.
#
# That means w slots are enough. They are used in turn, as in a **ring**: position p goes to slot
# `p mod w`, the remainder when p is divided by w.

# %% A ring by hand
slots = np.full(w, -1)  # which position each slot holds; -1: none
history = []
for p in range(8):
    gone = slots[p % w]
    slots[p % w] = p
    replaces = "nothing" if gone < 0 else str(gone)
    history.append([str(p), p % w, replaces, str(slots)])
held = np.array([[p - w < key <= p for key in range(8)] for p in range(8)])

predict(f"The window is {w}. Into which slot does position {p} go?", p % w)
predict("And which position was there before?", int(gone))
table("a ring of three slots", ["position", "slot", "replaces", "slots now"], history)
compare("the last w positions", held.astype(int), "what the window shows", band.astype(int))

# %% [markdown]
# The positions in the slots are out of order. Does that matter to attention? Its output is a
# weighted sum over the keys, and a sum has no order. And a key that was turned by its position
# before it was stored (lesson 11) carries that position with it.
#
# We attend once to all keys under the mask, and once to the three rows of the ring in slot order.

# %% Out of order
rng = np.random.default_rng(14)
q, k, v = rng.standard_normal((3, 1, 1, 8, 4))  # (B, H, T, d) each
tensors = [mq.Tensor(backend.upload(array)) for array in (q, k, v)]
whole = F.scaled_dot_product_attention(*tensors, backend.upload(band))
whole = whole.numpy()[:, :, 7:]  # (1, 1, 1, d), of the query at 7
query = mq.Tensor(backend.upload(q[:, :, 7:]))  # (1, 1, 1, d)
ring = [mq.Tensor(backend.upload(array[:, :, slots])) for array in (k, v)]
by_ring = F.scaled_dot_product_attention(query, *ring)  # no mask
by_ring = by_ring.numpy()  # (1, 1, 1, d)

predict(
    f"Does the query at {p} get the same answer from the ring, without any mask?",
    bool(abs(whole - by_ring).max() < 1e-9),
)
say(f"The slots hold the positions {slots}.")
compare("all keys, masked", whole, "three slots", by_ring)

# %% [markdown]
# In the package the ring is a kind of cache: `model.new_cache(kind=RingCache)`. It takes the window
# from the model. We decode with it, and also with a cache that keeps all keys and masks them.
#
# One thing needs care. When several tokens come at once, the first of them may still see what the
# last of them will overwrite. In that case the ring attends first and stores the new rows after.

# %% The real ring
full, ring = narrow.new_cache(), narrow.new_cache(kind=RingCache)
all_kept, on_ring, where = [], [], []
for n in range(20):
    new = x[:1, n : n + 1]  # (1, 1)
    all_kept.append(narrow(new, cache=full).numpy()[0, -1])  # (V,)
    on_ring.append(narrow(new, cache=ring).numpy()[0, -1])
    where.append(ring.layers[0].at[0].copy())  # (w,), position in each slot

new = x[:1, 20:30]  # (1, 10): more than three turns at once
chunks = [narrow(new, cache=cache).numpy() for cache in (full, ring)]
n = 10
predict(f"After token {n} has been read, which position lies in slot 0?", int(where[n][0]))
labels = [f"t={n}" for n in range(6, 12)]
show("positions in the slots", np.array(where[6:12]), rows=labels)
compare("one by one, all keys kept", np.array(all_kept), "on the ring", np.array(on_ring))
compare("ten at once, all keys kept", chunks[0], "on the ring", chunks[1])

# %% [markdown]
# How many bytes does it take? The formula of lesson 09 holds, with the number of positions that are
# kept: as many as were read, but never more than w.

# %% Bytes that stop growing
sizes = {"all keys": [], "ring": []}
full, ring = narrow.new_cache(), narrow.new_cache(kind=RingCache)
for n in range(long):
    for name, cache in (("all keys", full), ("ring", ring)):
        narrow(x[:1, n : n + 1], cache=cache)
        sizes[name].append(cache.nbytes)

per_token = sizes["all keys"][0]
read = np.arange(1, long + 1)
predict(
    f"A position takes {per_token} bytes. How many bytes are in the ring after {long} tokens?",
    sizes["ring"][-1],
)
curve("bytes", sizes, x="tokens read")
compare("bytes of the ring", sizes["ring"], "the formula", per_token * np.minimum(read, w))
say(f"All keys: {sizes['all keys'][-1]:,} bytes, and growing.")

# %% [markdown]
# That model was trained with its window. What if a model is trained without one, and gets a ring
# only afterwards?
#
# Below is the same model without a window, trained on the same short tunes. It reads the long ones,
# with all keys kept and with rings of several sizes. We measure the loss on the notes up to the
# length that it was trained on, and the loss on those after it.

# %% A ring for a model without a window
wide, _ = learn(mq.GPTConfig(**size), tunes, 150)


def losses(model, cache):
    found = np.zeros(long)
    for n in range(2, long):  # the first notes cannot be known
        new = x[:, len(cache) : n + 1]  # (50, T)
        last = model(new, cache=cache)[:, -1:]  # (50, 1, V)
        found[n] = F.cross_entropy(last, y[:, n : n + 1]).item()
    return found


found = {"all keys": losses(wide, wide.new_cache(50))}
for slots in (3, 6, short):
    cache = wide.new_cache(50, kind=RingCache, window=slots)
    found[f"ring of {slots}"] = losses(wide, cache)
early = {name: each[2:short].mean() for name, each in found.items()}
late = {name: each[short:].mean() for name, each in found.items()}

names = list(found)
predict(
    f"Within the first {short} notes: is the {names[1]} as good as all keys, for this model?",
    bool(early[names[1]] < early["all keys"] + 0.01),
)
sides = [names[0], names[-1]]
predict("On the notes after them: which has the lower loss?", min(sides, key=late.get), sides)
rows = [[name, early[name], late[name]] for name in names]
table("loss", ["cache", f"first {short}", "after them"], rows)
say("The shortest ring removes keys that this model has learned to use.")
say("Without a ring, some keys are further away than any key was in training.")

# %% [markdown]
# A window forgets the beginning. Sometimes that is where the most important token is: an
# instruction, a name, the topic. So a cache may keep the first s tokens permanently, outside the
# ring. They are called **sinks**.
#
# Position p below s stays in slot p. The other positions share the w slots after these:
#
#     slot = s + (p − s) mod w
#
# A token sees itself, the w − 1 before it, and the sinks.

# %% Sinks
s = 2
layer = RingLayer(1, [(1, 4)], 64, "float64", window=w, sinks=s)
row = backend.upload(np.ones((1, 1, 1, 4)))  # (B, h, T, d)
history = []
for _ in range(10):
    layer.append(row)
    history.append(layer.at[0].copy())  # (s + w,), position in each slot
places = backend.xp.arange(10)
mask = causal_mask(places, places, window=w, sinks=s)  # (T, S)
mask = backend.to_host(mask)

p = 9
predict(
    f"The first {s} tokens are sinks, and the window is {w}. Into which slot does position {p} go?",
    s + (p - s) % w,
)
show("positions in the slots", np.array(history), rows=[f"after {p}" for p in range(10)])
predict(f"How many keys does the query at position {p} see?", int(mask[p].sum()))
show("who sees whom", mask.astype(int), rows=[f"q {p}" for p in range(10)])

# %% [markdown]
# When does a sink help? We need texts whose first token matters. Each begins with one of ten names.
# Then come digits, with a question mark now and then. At a question mark the model has to say the
# name. Nothing else is asked.
#
# Two models of one layer have a window of four tokens. One of them has a sink as well.


# %% What a sink is good for
def stories(rng, n=32, T=24):
    ids = rng.integers(0, 10, (n, T))  # digits
    ids[:, 0] = rng.integers(10, 20, n)  # the name
    asked = rng.random((n, T)) < 0.2
    asked[:, :4] = False
    asked[:, -1] = True
    ids[asked] = 20  # a question mark
    return ids, np.where(asked, ids[:, :1], -100)  # (n, T) each


small = size | {"vocab_size": 21, "n_layer": 1, "position": "none"}
small |= {"variant": "q-k=v", "window": 4}
x, y = stories(np.random.default_rng(3), 100, 48)
models, loss = {}, {}
for s in (0, 1):
    models[s], _ = learn(mq.GPTConfig(**small, sinks=s), stories, 80)
    loss[s] = train.evaluate(models[s], x, y)["loss"]
with mq.trace() as t:
    models[1](x)
pattern = t["blocks.0.attn.pattern"]  # (B, H, T, T)
b, at = np.nonzero(y != -100)
weight = pattern[b, :, at, 0].mean(axis=0)  # (H,), at question marks

guess = float(np.log(10))
predict(
    f"Guessing among ten names gives a loss of {guess:.3f}. About how large is the loss without "
    "a sink?",
    float(loss[0]),
    tolerance=0.1,
)
table("the loss at question marks", ["sinks", "loss"], [[str(s), loss[s]] for s in loss])
show("weight on position 0 at a question mark", weight, columns=["head 0", "head 1"])

# %% [markdown]
# In these texts the first token carries the answer, so the weight on it is not surprising. Large
# language models are reported to do something stranger. They put a lot of weight on the first
# tokens, whatever these are, and write badly when a ring drops them (Xiao et al., 2024, who called
# them attention sinks). Our small models do not show this: on the tunes, a ring without sinks did
# well.
#
# The second way to keep less is to use fewer bytes for each number. An **int8** is a whole number
# of one byte. Each row gets a **scale**, chosen so that the number of largest size becomes the
# largest int8. Divide the row by the scale, round, and keep the whole numbers and the scale. To
# read the row, multiply them.

# %% A number in one byte
row = np.array([0.31, -1.27, 0.842, 0.004])  # (d,)
limit = np.iinfo(np.int8).max
scale = abs(row).max() / limit
whole = np.rint(row / scale).astype(np.int8)  # (d,)
again = whole * scale  # (d,)
error = abs(again - row)
packed, scales = rounded(backend.upload(row[None]))  # (1, d), (1, 1)

say(f"The largest int8 is {limit}.")
predict("Which whole number stands for the second entry, the largest in size?", int(whole[1]))
show("row", row, digits=4)
show("whole numbers", whole)
show("and back", again, digits=4)
show("error", error, digits=4)
predict(
    f"The scale is {scale:g}. How large can the error of a number be, at most?",
    float(scale / 2),
    tolerance=1e-3,
)
say(f"The largest error here is {error.max():g}, and scale / 2 is {scale / 2:g}.")
compare("by hand", whole[None], "the package", backend.to_host(packed))

# %% [markdown]
# Each row of each head has its own scale, so one large number spoils only that row.
#
# With K = V, one row has two uses. Rounding it changes the scores, and it changes what is mixed. In
# the model with a sink we separate the two: first only the keys are rounded, then only the values,
# then both. `layer.read` is where the one array becomes keys and values.


# %% One rounding, two uses
model, layer = models[1], models[1].blocks[0].attn
read = layer.read  # the package's own


def rough(tensor):
    scale = abs(tensor.data).max(axis=-1, keepdims=True) / limit
    return mq.Tensor(backend.xp.rint(tensor.data / scale) * scale)


def logits_of(*rounded):
    def read_roughly(rows, at=None):
        keys, values = read(rows, at)
        keys = rough(keys) if "keys" in rounded else keys
        return keys, rough(values) if "values" in rounded else values

    layer.read = read_roughly
    return model(x).numpy()  # (B, T, V)


ways = ("keys", "values", "keys values")
exact, found = logits_of(), {way: logits_of(*way.split()) for way in ways}
layer.read = read
by_cache = model(x, cache=model.new_cache(len(x), kind=Int8Cache)).numpy()

error = {name: float(abs(found[name] - exact).max()) for name in found}
predict(
    "Which changes the logits more: rounded keys, or rounded values?",
    max(ways[:2], key=error.get),
    list(ways[:2]),
)
predict(
    "Is the error of both together smaller than the two errors added?",
    error[ways[2]] < error["keys"] + error["values"],
)
rows = [[way, f"{error[way]:.1e}"] for way in ways]
table("largest change of a logit", ["rounded", "change"], rows)
compare("both, by hand", found[ways[2]], "with the package's Int8Cache", by_cache, 1e-5)

# %% [markdown]
# A changed logit is not yet a wrong answer, so we measure the loss as well. And we compare all
# kinds of cache: their bytes after the same text, measured and by formula. The model computes in
# float64, and so the plain cache stores float64.
#
# The formula for one layer that keeps one array: the positions that are kept, times heads, times
# the bytes of a row. A row of d numbers takes d times the bytes of a number. In int8 it takes d
# bytes, and four more for the scale.

# %% All kinds side by side
T, H, d = x.shape[1], 2, 8
kept = 4 + 1  # a window and a sink
formulas = {"plain": T * H * d * 8, "float16": T * H * d * 2}
formulas |= {"ring": kept * H * d * 8, "int8": T * H * (d + 4)}
formulas["int8-ring"] = kept * H * (d + 4)
rows = []
for kind, formula in formulas.items():
    cache = model.new_cache(100, **caches.options(kind))
    scores = [model(x[:, n : n + 1], cache=cache).numpy() for n in range(T)]
    scores = np.concatenate(scores, axis=1)  # (100, T, V)
    loss = F.cross_entropy(mq.Tensor(backend.upload(scores)), y).item()
    rows.append([kind, cache.nbytes // 100, formula, f"{loss:.7f}"])
measured = [row[1] for row in rows]

predict(
    f"{T} tokens, {H} heads of {d} numbers, one array: how many bytes does the int8 cache take?",
    measured[3],
)
compare("bytes measured", measured, "the formula", list(formulas.values()))
table(f"after {T} tokens", ["cache", "bytes", "formula", "loss"], rows)

# %% [markdown]
# The savings multiply: fewer heads, one array for keys and values, fewer positions, fewer bytes per
# number. Each may make the model worse, and only a measurement on your model and your text shows by
# how much.
#
# In the exercise you write `positions`: which position each slot of a ring holds, given how many
# tokens were read. A ring makes its masks from this.
#
# To see a cache at work, let your model of lesson 13 write, with `--show-cache`. To see which
# variant is worth its bytes on a text: `minqkv study --preset nano`. The next lesson turns from
# text to images: the same blocks read them.

# %% Where it is done
source(causal_mask)
source(RingLayer)
source(RingLayer.write)
source(RingLayer._slots)
source(RingLayer.attend)
source(rounded)
source(Int8Cache)
