# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "A cache that does not grow"
# question = "Can a model go on reading for ever with a cache of fixed size?"
# needs = [
#   "causal mask", "attention", "pattern", "softmax", "loss", "training step", "cache", "decode",
#   "cache bytes", "rope", "q-k=v", "one buffer", "language model",
# ]
# teaches = ["window", "ring", "sinks", "int8"]
# minutes = 20
# budget_s = 8
# exercise = "positions"
# uses = [
#   "minqkv.AdamW", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.attention.causal_mask",
#   "minqkv.caches.Int8Cache", "minqkv.caches.RingCache", "minqkv.functional.cross_entropy",
#   "minqkv.functional.scaled_dot_product_attention", "minqkv.train_step", "minqkv.trace",
#   "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# A conversation has no fixed end, but memory has. In lesson 10 each token that was read added its
# rows to the cache, and nothing was ever removed. Sharing keys and values makes a row smaller; the
# number of rows still grows.
#
# This lesson shows two ways to keep less: fewer positions, and fewer bytes for each number.

# %% What grows
import numpy as np

import minqkv as mq
from minqkv import backend, train
from minqkv import functional as F
from minqkv.attention import causal_mask
from minqkv.caches import Int8Cache, RingCache
from minqkv.caches.int8 import rounded
from minqkv.caches.ring import RingLayer
from minqkv.teach import compare, curve, predict, say, show, source, table

size = {"vocab_size": 10, "block_size": 64, "n_layer": 2}
size |= {"n_head": 2, "n_embd": 16, "position": "rope", "dtype": "float64"}
model = mq.GPT(mq.GPTConfig(**size))
cache, held = model.new_cache(), {}
for n in (8, 16, 32, 64):
    model(np.zeros((1, n - len(cache)), int), cache=cache)  # up to n tokens
    held[n] = cache.nbytes

predict(f"After 8 tokens the cache holds {held[8]:,} bytes. And after 16?", held[16])
table("a cache that grows", ["tokens", "bytes"], [[str(n), size] for n, size in held.items()])

# %% [markdown]
# The first idea: let a token look back only a little. With a **window** of w it sees itself and the
# w − 1 tokens before it. In training this is a mask, as the causal mask is one. The two together
# are a band along the diagonal.

# %% A window is a mask
places = backend.xp.arange(8)
band = causal_mask(places, places, window=3)  # (T, S)
band = backend.to_host(band)

predict("The window is 3. How many keys does the query at position 6 see?", int(band[6].sum()))
show("who sees whom", band.astype(int), rows=[f"q {i}" for i in range(8)])
predict("And the query at position 1?", int(band[1].sum()))
seen = int(band[6].argmax())
predict("Which is the first position that the query at 6 sees?", seen)

# %% [markdown]
# Here are the tunes of lesson 10 again: three notes that repeat for ever. To know the next note one
# must look at the note three places before it, and that is still inside a window of 3.
#
# The model has two layers, rotary positions, and this window. A window is a field of its
# configuration.


# %% A model with a window
def trained(config, tunes_of, steps):
    model = mq.GPT(config, seed=0)
    optimizer = mq.AdamW(model.parameters(), lr=2e-2)
    rng = np.random.default_rng(10)
    for _ in range(steps):
        loss = mq.train_step(model, optimizer, *tunes_of(rng))
    return model, loss


def tunes(rng, n=32, T=12):
    ids = np.tile(rng.integers(0, 10, (n, 3)), T // 3 + 1)[:, : T + 1]
    y = ids[:, 1:].copy()  # (n, T)
    y[:, :2] = -100  # the first notes cannot be known
    return ids[:, :-1], y


narrow, loss = trained(mq.GPTConfig(**size, window=3), tunes, 150)
x, y = tunes(np.random.default_rng(1), 50, 60)  # (50, T), five times as long
long = train.evaluate(narrow, x, y)
say(f"The loss ended at {loss:.4f}, with tunes of {12} notes.")
right = bool(long["accuracy"] > 0.99)
predict(f"Will the model continue tunes of {x.shape[1]} notes, if it has only seen {12}?", right)
say(f"On the longer tunes its loss is {long['loss']:.4f}.")

# %% [markdown]
# So does the model know only the last three tokens? Not quite. In the lower layer a row is made
# from three tokens. The upper layer sees three such rows, and the oldest of these has looked
# further back.
#
# We change one token at a time, and watch whether the scores of a later one change.

# %% Two layers see further
notes = x[:1, :10].copy()  # (1, T)
before = narrow(notes).numpy()[0, 9]  # (V,), the scores at the last position
felt = []
for back in range(10):
    other = notes.copy()
    other[0, 9 - back] = (notes[0, 9 - back] + 1) % 10
    felt.append(bool(abs(narrow(other).numpy()[0, 9] - before).max() > 1e-9))

reach = max(back for back in range(10) if felt[back])
predict(
    "Each of two layers looks back at most two places. How many places back is the furthest token "
    "that has a say?",
    reach,
)
columns = [str(back) for back in range(10)]
show("has a say, by places back", np.array([felt]).astype(int), columns=columns)
say("Each layer adds w − 1 places. What a deep model sees is much wider than its window.")

# %% [markdown]
# Now the cache. With a window of 3 no later token will ever see position 0 again once position 3
# has come. Its rows can be overwritten.
#
# So three slots are enough, used in turn like places on a ring: position p goes to slot `p mod w`,
# the remainder of p divided by w.

# %% A ring by hand
w, slots = 3, np.full(3, -1)  # which position each slot holds; -1: none
history = []
for p in range(8):
    gone = slots[p % w]
    slots[p % w] = p
    history.append([str(p), p % w, "nothing" if gone < 0 else str(gone), str(slots)])

predict("The window is 3. Into which slot does position 7 go?", 7 % w)
predict("And which position was there before?", int(history[7][2]))
table("a ring of three", ["position", "slot", "replaces", "slots now"], history)
held = np.zeros((8, 8), bool)  # row p: what the ring holds once p is written
for p in range(8):
    held[p, max(0, p - w + 1) : p + 1] = True
compare("what the ring holds", held.astype(int), "what the window shows", band.astype(int))

# %% [markdown]
# The slots are out of order: after position 7 they hold 6, 7 and 5. Does attention mind? It is a
# sum over keys, each with its weight, and a sum has no order. A key knows its position, because it
# was turned by it before it was stored (lesson 11).
#
# We attend by hand, once to all keys under the mask, and once to the three rows of the ring as they
# lie.

# %% Out of order
rng = np.random.default_rng(14)
q, k, v = rng.standard_normal((3, 1, 1, 8, 4))  # (B, H, T, d) each
tensors = [mq.Tensor(backend.upload(array)) for array in (q, k, v)]
whole = F.scaled_dot_product_attention(*tensors, backend.upload(band))
query = mq.Tensor(backend.upload(q[:, :, 7:]))  # (1, 1, 1, d)
ring = [mq.Tensor(backend.upload(array[:, :, slots])) for array in (k, v)]
by_ring = F.scaled_dot_product_attention(query, *ring)  # no mask

same = bool(abs(whole.numpy()[:, :, 7:] - by_ring.numpy()).max() < 1e-9)
predict("Does the query at 7 get the same answer from the ring, without any mask?", same)
say(f"The slots hold the positions {slots}.")
compare("all keys, masked", whole.numpy()[:, :, 7:], "three slots", by_ring.numpy())

# %% [markdown]
# The package's ring is a kind of cache. `model.new_cache(kind=RingCache)` takes the window from the
# model. We decode beside a full cache that has the window as a mask.
#
# One thing needs care. When several tokens come at once, the first of them may still see what the
# last of them will overwrite. So the ring answers first and writes afterwards.

# %% The real ring
full, ring = narrow.new_cache(), narrow.new_cache(kind=RingCache)
one, other, where = [], [], []
for n in range(20):
    one.append(narrow(x[:1, n : n + 1], cache=full).numpy()[0, -1])  # (V,)
    other.append(narrow(x[:1, n : n + 1], cache=ring).numpy()[0, -1])
    where.append(np.pad(backend.to_host(ring.positions), (0, 3), constant_values=-1)[:3])

predict("After token 10 has been read, which position lies in slot 0?", int(where[10][0]))
labels = [f"t={n}" for n in range(6, 12)]
show("positions in the slots", np.array(where[6:12]), rows=labels)
compare("twenty steps, all keys kept", np.array(one), "twenty steps on the ring", np.array(other))
many = narrow(x[:1, 20:30], cache=ring).numpy()  # (1, 10, V), three turns at once
again = narrow(x[:1, 20:30], cache=full).numpy()
compare("ten tokens at once, all keys kept", again, "ten tokens at once on the ring", many)

# %% [markdown]
# And the bytes? The formula of lesson 09, with the number of positions that are kept: as many as
# were read, but never more than w.

# %% Bytes that stop growing
sizes = {"all kept": [], "ring": []}
full, ring = narrow.new_cache(), narrow.new_cache(kind=RingCache)
for n in range(60):
    for name, cache in (("all kept", full), ("ring", ring)):
        narrow(x[:1, n : n + 1], cache=cache)
        sizes[name].append(cache.nbytes)

per_token = sizes["all kept"][0]
read = np.arange(1, 61)
predict(
    f"A position takes {per_token} bytes. How many does the ring hold after sixty tokens?",
    sizes["ring"][-1],
)
curve("bytes", sizes, x="tokens read")
compare("bytes of the ring", sizes["ring"], "the formula", per_token * np.minimum(read, 3))
say(f"All kept: {sizes['all kept'][-1]:,} bytes, and growing.")

# %% [markdown]
# That model was trained with its window. What if one was trained without, and is read through a
# ring only later?
#
# Below is the same model without a window, trained on tunes of twelve notes. It reads tunes of
# sixty: with everything kept, and through rings of several sizes. For each we take the loss of the
# first notes, up to the length it was trained on, and that of the notes after it.

# %% A ring for a model without a window
wide, loss = trained(mq.GPTConfig(**size), tunes, 150)


def read_through(model, cache):
    """The loss at each position, (T,), reading x and y token by token."""
    found = []
    for n in range(x.shape[1]):
        logits = model(x[:, n : n + 1], cache=cache)  # (50, 1, V)
        some = n >= 2
        found.append(F.cross_entropy(logits, y[:, n : n + 1]).item() if some else 0.0)
    return np.array(found)


by_ring = {"all kept": read_through(wide, wide.new_cache(50))}
for w in (3, 6, 12):
    cache = wide.new_cache(50, kind=RingCache, window=w)
    by_ring[f"ring of {w}"] = read_through(wide, cache)

early = {name: losses[2:12].mean() for name, losses in by_ring.items()}
late = {name: losses[12:].mean() for name, losses in by_ring.items()}
predict(
    "Up to note 12, is a ring of 3 as good as all keys, for a model that was trained without?",
    bool(early["ring of 3"] < early["all kept"] + 0.01),
)
predict(
    "After note 12: which has the lower loss?",
    min(("all kept", "ring of 12"), key=late.get),
    ["all kept", "ring of 12"],
)
rows = [[name, early[name], late[name]] for name in by_ring]
table("loss", ["kept", "up to note 12", "after it"], rows)
say("A short ring takes away what the model has learned to use.")
say("All keys show it distances that it has never been trained on. The ring of 12 does neither.")

# %% [markdown]
# A window forgets the beginning. Sometimes that is where the most important token is: an
# instruction, a name, the topic. So a cache may keep the first s tokens for ever, outside of the
# ring. They are called **sinks**.
#
# Position p below s stays in slot p. All others share the ring behind them, and count from s:
#
#     slot = s + (p − s) mod w
#
# A token sees itself, the w − 1 before it, and the sinks.

# %% Sinks
w, s = 3, 2
layer = RingLayer(1, [(1, 4)], 64, "float64", window=w, sinks=s)  # one row a token
row = backend.upload(np.ones((1, 1, 1, 4)))  # (B, h, T, d)
history = []
for _ in range(10):
    layer.append(row)
    history.append(layer.at[0].copy())  # (s + w,), which position each slot holds

predict("Two sinks and a window of three. Into which slot does position 9 go?", s + (9 - s) % w)
labels = [f"after {p}" for p in range(10)]
show("positions in the slots", np.array(history), rows=labels)
places = backend.xp.arange(10)
mask = backend.to_host(causal_mask(places, places, window=w, sinks=s))  # (T, S)
predict("How many keys does the query at position 9 see?", int(mask[9].sum()))
show("who sees whom", mask.astype(int), rows=[f"q {p}" for p in range(10)])

# %% [markdown]
# Is it worth it? We need texts whose first token matters. Each begins with one of ten names. Then
# come digits, and now and then a question mark, token 20. At a question mark the model has to say
# the name. Nothing else is asked.
#
# Two models of one layer have a window of 4. One has a sink as well.


# %% What a sink is good for
def stories(rng, n=32, T=24):
    ids = rng.integers(0, 10, (n, T))
    ids[:, 0] = rng.integers(10, 20, n)  # the name
    asked = rng.random((n, T)) < 0.2
    asked[:, :4] = False
    asked[:, -1] = True
    ids[asked] = 20
    return ids, np.where(asked, ids[:, :1], -100)  # (n, T) each


small = size | {"vocab_size": 21, "n_layer": 1, "position": "none"}
small |= {"variant": "q-k=v", "window": 4}
x, y = stories(np.random.default_rng(3), 100, 48)
models, losses = {}, {}
for s in (0, 1):
    models[s], _ = trained(mq.GPTConfig(**small, sinks=s), stories, 80)
    losses[s] = train.evaluate(models[s], x, y)["loss"]
with mq.trace() as t:
    models[1](x)
pattern = t["blocks.0.attn.pattern"]  # (B, H, T, T)
b, at = np.nonzero(y != -100)
mass = pattern[b, :, at, 0].mean(axis=0)  # (H,), at question marks

guess = float(np.log(10))
predict(
    f"Guessing among ten names costs log 10 = {guess:.3f}. About what loss has the model without a "
    "sink?",
    float(losses[0]),
    tolerance=0.1,
)
table("the loss at question marks", ["sinks", "loss"], [[str(s), losses[s]] for s in losses])
show("weight on position 0 at a question mark", mass, columns=["head 0", "head 1"])

# %% [markdown]
# In these texts the first token carries the answer, so the weight on it is no surprise. Of large
# language models something stranger is reported: they put much weight on the first tokens whatever
# these say, and write badly when a ring drops them (Xiao et al., 2024). That is where the name
# comes from. Our models are too small to show it, and the ring of the tunes above did well without.
#
# The second idea is to spend fewer bytes on a number. An **int8** has one byte, and holds whole
# numbers from -127 to 127. So take a row, divide by its largest number, multiply by 127 and round.
# Keep the whole numbers, and the **scale** to come back.

# %% A number in one byte
row = np.array([0.31, -1.27, 0.842, 0.004])  # (d,)
scale = abs(row).max() / 127
whole = np.rint(row / scale).astype(np.int8)  # (d,)
again = whole * scale  # (d,)
error = abs(again - row)

predict("Which whole number stands for the second entry, the largest one?", int(whole[1]))
show("row", row, digits=4)
show("whole numbers", whole)
show("and back", again, digits=4)
show("error", error, digits=4)
predict(
    f"The scale is {scale:g}. At most how large can such an error be? (Half a step.)",
    float(scale / 2),
    tolerance=1e-3,
)
say(f"The largest error here is {error.max():g}, and scale / 2 is {scale / 2:g}.")
packed, scales = rounded(backend.upload(row[None]))  # (1, d), (1, 1), by the package
compare("by hand", whole[None], "the package", backend.to_host(packed))

# %% [markdown]
# Each row of each head has a scale of its own, so that one large number spoils only its own row.
#
# With K = V there is one row for two uses. Its rounding changes the scores, and it changes what is
# mixed. We take the two apart: the same model, once with rounded keys only, once with rounded
# values only, then with both. `layer.read` is where one array becomes keys and values.


# %% One rounding, two uses
def rough(tensor):
    row = tensor.data  # (B, h, S, d)
    scale = abs(row).max(axis=-1, keepdims=True) / 127
    return mq.Tensor(backend.xp.rint(row / scale) * scale)


model, layer = models[1], models[1].blocks[0].attn
read, found = layer.read, {}
for name in ("exact", "keys", "values", "both"):

    def read_rounded(rows, at=None, name=name):
        keys, values = read(rows, at)
        keys = rough(keys) if name in ("keys", "both") else keys
        return keys, rough(values) if name in ("values", "both") else values

    layer.read = read_rounded
    with mq.no_grad():
        found[name] = model(x).numpy()  # (B, T, V)
layer.read = read
error = {name: abs(found[name] - found["exact"]).max() for name in found}
sides = ["the keys", "the values"]
larger = sides[int(error["values"] > error["keys"])]
predict("Which rounding changes the scores of the model more?", larger, sides)
predict(
    "Is the error of both at most the sum of the two?",
    bool(error["both"] <= error["keys"] + error["values"]),
)
rows = [[name, f"{error[name]:.2e}"] for name in ("keys", "values", "both")]
table("largest change of a score", ["rounded", "change"], rows)
cache = model.new_cache(len(x), kind=Int8Cache)
packed = model(x, cache=cache).numpy()
compare("both rounded by hand", found["both"], "decoded from the package's Int8Cache", packed, 1e-5)

# %% [markdown]
# Changed scores are not yet wrong answers. So we ask for the loss as well, and put all kinds side
# by side: the bytes after the same text, measured, and by formula. Numbers are float32 here, where
# nothing else is said.
#
# The formulas, for a layer: positions that are kept × heads × (width × bytes of a number). An int8
# row adds four bytes for its scale.

# %% All kinds side by side
T, d = x.shape[1], 8  # one layer, two heads of eight numbers, one array
kept = 4 + 1  # window and sinks
kinds = {
    "float32": (model.new_cache(1, dtype="float32"), T * 2 * d * 4),
    "float16": (model.new_cache(1, dtype="float16"), T * 2 * d * 2),
    "int8": (model.new_cache(1, kind=Int8Cache), T * 2 * (d + 4)),
    "ring": (model.new_cache(1, kind=RingCache, dtype="float32"), kept * 2 * d * 4),
}
rows, measured, formulas = [], [], []
for name, (cache, formula) in kinds.items():
    last = [model(x[:1, n : n + 1], cache=cache) for n in range(T)][-1]
    loss = F.cross_entropy(last, y[:1, -1:]).item()
    rows.append([name, cache.nbytes, formula, f"{loss:.5f}"])
    measured.append(cache.nbytes)
    formulas.append(formula)
predict(
    f"{T} tokens, two heads of eight numbers, one array: how many bytes has the int8 cache?",
    measured[2],
)
compare("measured", np.array(measured), "the formula", np.array(formulas))
table(f"after {T} tokens", ["cache", "bytes", "formula", "loss of the last"], rows)

# %% [markdown]
# The ways multiply: fewer heads, one array for keys and values, fewer positions, fewer bytes. Each
# has a price, and only a measurement says what it is for your model and your text.
#
# In the exercise you write `positions`: which position each slot of a ring holds, given how many
# tokens were read. It is what a ring needs to know to make its masks.

# %% Where it is done
source(causal_mask)
source(RingLayer)
source(RingLayer.write, at="self._turned(p)")
source(RingLayer.attend)
source(rounded)
source(Int8Cache)
