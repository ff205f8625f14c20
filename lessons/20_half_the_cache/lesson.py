# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Why half the cache is twice the speed"
# question = "Half the cache is half the memory. When is it also twice the speed?"
# needs = [
#   "softmax", "scores", "scale", "attention", "KV heads", "cache bytes", "qkv", "q-k=v", "cache",
#   "prefill", "decode", "one buffer", "language model",
# ]
# teaches = ["arithmetic intensity", "roofline", "running softmax"]
# minutes = 20
# budget_s = 3
# exercise = "running"
# uses = [
#   "minqkv.Attention", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.Tensor", "minqkv.VariantSpec",
#   "minqkv.cache.LayerCache", "minqkv.kernels.decode.decode", "minqkv.models.PRESETS",
#   "minqkv.nn.Init", "minqkv.online.answer", "minqkv.online.merge", "minqkv.online.part",
#   "minqkv.trace", "minqkv.use_backend", "minqkv.variants.macs",
# ]
# ///

# %% [markdown]
# With `q-k=v` the cache takes half the memory. Is a decode step then twice as fast? Lesson 11 left
# that open. Here we find out what decides the speed of a step, and how the cache must be read.
#
# Weights and cache lie in the memory of the GPU. Each step has to bring them from there to the chip
# that computes. So we first ask how many bytes that is.
#
# The model is a small GPT with two layers, without positions to keep the count short. It has read a
# thousand tokens.

# %% What a step reads
import numpy as np

import minqkv as mq
from minqkv import backend, online
from minqkv.cache import LayerCache
from minqkv.kernels.decode import decode
from minqkv.models import PRESETS
from minqkv.teach import compare, predict, roofline, say, show, source, table
from minqkv.variants import macs

size = {"block_size": 1000, "n_layer": 2, "n_head": 4, "n_embd": 32}
size |= {"position": "none", "bias": False}
ids = np.random.default_rng(20).integers(0, 64, (1, 1000))  # (B, T)
ready, held = {}, {}
for name in ("qkv", "q-k=v"):
    model = mq.GPT(mq.GPTConfig(64, variant=name, **size), seed=0)
    cache = model.new_cache()
    model(ids, cache=cache)
    weights = sum(w.data.nbytes for w in model.parameters())
    ready[name], held[name] = (model, cache), (weights, cache.nbytes)

both = ["weights", "cache"]
say(f"Its width is {size['n_embd']}, and a number takes {cache.dtype.itemsize} bytes.")
more = both[np.argmax(held["qkv"])]
predict("Which has more bytes in `qkv`: the weights, or the cache?", more, both)
table("bytes", ["", *both], [[name, *each] for name, each in held.items()])
say("However long the text, the weights stay the same. The cache grows with every token.")

# %% [markdown]
# And how much is computed? As in lesson 11 we record the products of one step, this time all of
# them. Each one multiplies by an array: a matrix of weights, or something from the cache. We add up
# the bytes of these arrays, and the multiply-accumulates. (What is not a product, such as a layer
# norm, is left out.)
#
# A multiply-accumulate is two operations. Operations divided by bytes are called the **arithmetic
# intensity**.


# %% What a step computes
def recorded(model, ids, cache):
    found = {name: np.zeros(2, int) for name in both}  # bytes, MACs
    with mq.use_backend(backend.current.name):
        bmm = backend.bmm

        def listen(a, b):
            out = bmm(a, b)
            kind = "weights" if b.ndim == 2 else "cache"
            found[kind] += b.nbytes, out.size * a.shape[-1]
            return out

        backend.bmm = listen  # the end of the `with` takes it back
        backend.gemv = lambda *args: None  # no kernel for weights
        model(ids, cache=cache)
    return found


model, cache = ready["qkv"]
cache.trim(999)  # the last token comes again
qkv = recorded(model, ids[:, -1:], cache)
total = qkv["weights"] + qkv["cache"]  # (2,): bytes, MACs

n, m = model.config.n_embd, model.config.d_ff
predict(f"One token goes through a matrix ({n}, {m}). How many multiply-accumulates?", n * m)
predict(
    "So a weight is used once. It takes four bytes, and a multiply-accumulate is two operations. "
    "How many operations per byte?",
    float(2 * qkv["weights"][1] / qkv["weights"][0]),
)
parts = {**qkv, "both": total}.items()
rows = [[name, *n, 2 * n[1] / n[0]] for name, n in parts]
table("one step of qkv", ["", "bytes", "MACs", "operations per byte"], rows)
compare(
    "MACs recorded",
    total[1],
    "MACs of the last token, by formula",
    macs(model.config, 1000, causal=True) - macs(model.config, 999, causal=True),
)
say("A cached number is used once, too: a key for a score, a value for the mix.")

# %% [markdown]
# A GPU has two limits. Its memory delivers so many bytes per second: the **bandwidth**. Its units
# compute so many operations per second: the **rate**. Both work at the same time, so any work takes
# at least
#
#     max( bytes / bandwidth,  operations / rate )
#
# seconds. The longer of the two times **binds**.
#
# Imagine a very slow card: it reads one byte per second, and computes a hundred operations per
# second.


# %% Two limits
def least(nbytes, operations, bandwidth, rate):
    return max(nbytes / bandwidth, operations / rate)


work = {"nbytes": 8, "operations": 200}
before = least(**work, bandwidth=1, rate=100)
after = least(**work, bandwidth=1, rate=200)
predict(
    f"Some work reads {work['nbytes']} bytes and takes {work['operations']} operations. How many "
    "seconds does it take, at least?",
    before,
)
predict("The card gets units that are twice as fast. How many seconds now?", after)
say("The bytes bind. Only with fewer bytes can this work become faster.")

# %% [markdown]
# Now a real card. How many operations per second can it reach? As long as the bytes bind, it is the
# intensity times the bandwidth. Beyond that, it is the rate. Drawn on two logarithmic axes, this
# looks like a roof, and so it is called a **roofline**.

# %% The roof
card = {"bandwidth": 4800e9, "rate": 66.9e12}  # per second
title = "NVIDIA H200 SXM, float32"
corner = card["rate"] / card["bandwidth"]
points = {"a step of qkv": 2 * total[1] / total[0]}

say(
    f"{title}, by its data sheet: {card['bandwidth'] / 1e12:g} trillion bytes per second, "
    f"{card['rate'] / 1e12:g} trillion operations per second."
)
predict("At how many operations per byte is the corner of the roof?", corner, tolerance=0.1)
roofline(title, **card, points=points)
share = points["a step of qkv"] / corner
say(f"However it is programmed, this step keeps at most {share:.1%} of the units busy.")

# %% [markdown]
# What helps is to use each number more often, once it has been read. Many tokens at once do that:
# in a prefill, all tokens of a prompt go through a matrix together.
#
# Several texts can also be decoded together, each with one new token in the same step. Each text
# has a cache of its own.


# %% Many tokens at once
cache = model.new_cache(batch=8)
texts = np.tile(ids, (8, 1))  # (B, T)
model(texts[:, :-1], cache=cache)
eight = recorded(model, texts[:, -1:], cache)
long = recorded(model, ids, model.new_cache())
work = macs(model.config, 1000, causal=True) - long["weights"][1]
long["cache"] = np.array([held["qkv"][1], work])  # each row read once
prompt = long["weights"] + long["cache"]  # (2,): bytes, MACs

steps = {"one token": qkv, "eight texts": eight, "a prompt": long}
uses = {}
for name, found in steps.items():
    uses[name] = [4 * work / nbytes for nbytes, work in found.values()]

predict("Eight texts, one new token each: how often is a weight used?", uses["eight texts"][0])
predict("And how often is a cached number used?", uses["eight texts"][1])
say("Decoding more texts together helps with the weights. It does not help with the cache.")
table("uses of a number that is read", ["", *both], [[name, *n] for name, n in uses.items()])
say("(In a prompt, a stored row is used by its own token and by all tokens after it.)")
binds = "operations" if 2 * prompt[1] / prompt[0] > corner else "bytes"
predict("What binds when a prompt is read?", binds, ["bytes", "operations"])
say("A prompt can keep the units of a GPU busy. In decoding, most of them wait for the memory.")

# %% [markdown]
# So what helps with the cache? Fewer KV heads do: several heads then use the same key. And so does
# `q-k=v`, where a row is key and value. Each of its numbers is used twice, for the score and for
# the mix.
#
# Suppose for now that a program reads each row once, for both uses.

# %% One row, two uses
model, cache = ready["q-k=v"]
cache.trim(999)
shared = recorded(model, ids[:, -1:], cache)
stored = cache.nbytes
once = shared["weights"] + (stored, shared["cache"][1])  # (2,): bytes, MACs
points["a step of q-k=v"] = 2 * once[1] / once[0]
points["a prompt"] = 2 * prompt[1] / prompt[0]
times = [least(nbytes, 2 * work, **card) for nbytes, work in (total, once)]

predict(
    "A cached number takes four bytes and is used twice. How many operations per byte?",
    float(2 * shared["cache"][1] / stored),
)
compare("MACs with the cache in q-k=v", shared["cache"][1], "in qkv", qkv["cache"][1])
roofline(title, **card, points=points)
say(f"Almost the same work, with fewer bytes: at most {times[0] / times[1]:.2f} times as fast.")
say("It would be twice as fast if the cache were all that is read.")

# %% [markdown]
# Does a program read each row once? Usually it makes two products: the query with all keys, then
# the weights of the softmax with all values. In `q-k=v`, keys and values are the same array. Our
# recorded step did just that.

# %% Two products
read = shared["cache"][0]
predict(f"The cache holds {stored:,} bytes. How many do the two products read?", read)
rows = [["qkv", held["qkv"][1], qkv["cache"][0]], ["q-k=v", stored, read]]
table("bytes of the cache", ["", "in memory", "read"], rows)
say("Half the memory, but as many bytes are read as in `qkv`. Only the weights are fewer.")
say(
    "A chip also has a small, fast memory. If the whole cache fits into it, the second read is "
    "cheap. A long cache does not fit."
)

# %% [markdown]
# Why two products? A row is mixed with its weight, and that depends on all scores: on the largest
# one, so that no exponential overflows, and on the sum of all exponentials. When both are known,
# the first row has long left the chip.
#
# But the division can wait until the end. And if a larger score comes, what was added up so far can
# be corrected. Keep three things: the largest score so far (**peak**), the sum of exponentials
# (**total**) and the sum of rows, each times its exponential (**mix**). For each row, with score s:
#
#     new    =  max(peak, s)
#     total  =  total · exp(peak − new)  +  exp(s − new)
#     mix    =  mix · exp(peak − new)    +  exp(s − new) · row
#     peak   =  new
#
# At the end, mix / total is the answer. This is a **running softmax**, also called online softmax.
# Do it by hand for rows of one number, and scores whose exponentials are easy.

# %% A running softmax
rows = np.array([6.0, 2.0, 4.0])
exponentials = np.array([1.0, 2.0, 1.0])  # exp(score)

peak, total, mix, steps = -np.inf, 0.0, 0.0, []
for s, row in zip(np.log(exponentials), rows, strict=True):
    new = max(peak, s)
    shrink, weight = np.exp(peak - new), np.exp(s - new)
    total = total * shrink + weight
    mix = mix * shrink + weight * row
    peak = new
    steps.append([shrink, weight, total, mix])
weighted = exponentials @ rows / exponentials.sum()

show("rows", rows, digits=0)
show("exp(score)", exponentials, digits=0)
say(f"After the first row, total is {steps[0][2]:g} and mix is {steps[0][3]:g}.")
predict("The second score is larger. What is total after the second row?", steps[1][2])
predict("And mix, after the second row?", steps[1][3])
predict("What is the answer, after the third row?", mix / total)
show("after each row", np.array(steps), columns=["shrink", "weight", "total", "mix"])
compare("in one pass", mix / total, "with all weights first", weighted)

# %% [markdown]
# Now a layer of `q-k=v`, with one head of two numbers. It has read four tokens, and then comes a
# fifth, whose query is compared with all five stored rows.

# %% Five rows
layer = mq.Attention("q-k=v", 2, 1, 8, mq.nn.Init(20, "float64", "uniform"))
cache = LayerCache(1, layer.spec.rows(1, 2), 8, "float64")
x = mq.Tensor(np.random.default_rng(51).standard_normal((1, 5, 2)))
layer(x[:, :4], cache=cache)
with mq.trace() as t:
    layer(x[:, 4:], cache=cache)  # a decode step
scores = t["scores"][0, 0, 0]  # (S,)
peaks = np.maximum.accumulate(scores)  # (S,)

names = [f"row {i}" for i in range(5)]
show("stored", t["cache.k"][0, 0], rows=names)
show("scores", scores, columns=names)
rises = int((np.diff(peaks) > 0).sum())
predict("A pass begins with row 0. How often after that must total and mix shrink?", rises)

# %% [markdown]
# The package has a running softmax for long caches: `online.part` makes mix, total and peak from
# some rows, and `online.merge` combines two such parts. We give it one row after another, and write
# down which row is read when.


# %% Row by row
def read(piece):
    order.extend(range(piece.start, piece.stop))
    return (stored[:, :, piece],)  # (B, h, rows, d)


def part(piece):
    return online.part(layer, q, read(piece), piece, None, slice(4, 5))


def numbers(part):  # (4,): peak, total, and the two of mix
    return np.concatenate([backend.to_host(a).ravel() for a in part[::-1]])


(stored,) = cache.rows  # (B, h, S, d)
q, order, found = backend.upload(t["q"]), [], []
for i in range(5):
    row = part(slice(i, i + 1))
    found.append(online.merge(found[-1], row) if found else row)
parts = np.array([numbers(each) for each in found])  # (S, 4)

columns = ["peak", "total", "mix 0", "mix 1"]
show("after each row", parts, rows=names, columns=columns)
predict("How many rows have been read, for both uses?", len(order))
listed = " ".join(map(str, order))
say(f"One pass reads rows {listed}. Two products read {listed}, and then {listed} again.")
compare("one pass", online.answer(found[-1]), "the layer", t["z"])

# %% [markdown]
# On a GPU, `minqkv/kernels/decode.cu` does this, with tiles of up to thirty-two rows. A tile is
# copied to the chip once. There its rows give the scores, as keys, and are then mixed, as values.
#
# A GPU has many multiprocessors, which all compute at the same time. So the positions are divided
# into **spans**. A block of threads makes peak, total and mix of one span, and at the end the spans
# are joined, as `merge` does. Here are two spans of our five rows.

# %% Many blocks at once
order.clear()
spans = [part(slice(0, 3)), part(slice(3, 5))]
joined = online.merge(*spans)
parts = np.array([numbers(each) for each in spans])  # (2, 4)

both = ["span 0", "span 1"]
show("two spans", parts, rows=both, columns=columns)
lower = both[int(parts[:, 0].argmin())]
predict("Total and mix of which span shrink when the two are joined?", lower, both)
show("joined", numbers(joined), columns=columns)
say(f"Rows read: {' '.join(map(str, order))}. Again, each of them once.")
compare("two spans, joined", online.answer(joined), "the layer", t["z"])

# %% [markdown]
# How near to twice the speed does a model come? That depends on how much of what it reads is cache.
# We take the paper's smaller language model at its real size, with two bytes for each number, and
# decode eight texts together. The package has formulas for the bytes, so no such model is built. We
# first compare them with our small one.
#
# The times are bounds, from bytes alone. Nothing here was measured, and real programs are slower.


# %% At the size of a model
def bytes_of(config, name, tokens, batch, itemsize):
    spec = mq.VariantSpec.parse(name)
    unread = config.block_size * config.n_embd  # the table of positions
    weights = spec.params(config) - unread * (config.position == "learned")
    row = spec.cache_bytes_per_token(config, itemsize)
    return np.array([weights * itemsize, batch * tokens * row])


config, rows = PRESETS["300m"], []
for tokens in (512, 2048, 8192, 32768, 131072):
    qkv, one = (bytes_of(config, kind, tokens, 8, 2) for kind in ready)
    two = one * (1, 2)  # the cache is read twice
    ms = [1000 * n.sum() / card["bandwidth"] for n in (qkv, one, two)]
    rows.append([f"{tokens:,}", *ms[:2], ms[0] / ms[1], ms[0] / ms[2]])

for kind, (model, _) in ready.items():
    formula = bytes_of(model.config, kind, 1000, 1, 4)
    compare(f"bytes of {kind}", np.array(held[kind]), "by formula", formula)
gains = [f"{row[3]:.1f}" for row in rows]
question = "tokens each: how many times as fast is `q-k=v`, at most?"
predict(f"Eight texts of {rows[0][0]} {question}", gains[0], gains[::2])
predict(f"Eight texts of {rows[-1][0]} {question}", gains[-1], gains[::2])
table(
    "bounds of one step on an H200",
    ["tokens", "ms qkv", "ms q-k=v", "times as fast", "with two reads"],
    rows,
)
say("The longer the texts, the nearer to twice. With two reads, hardly anything is gained.")
say(
    f"This model has {config.block_size:,} learned positions. With rotary positions it could read "
    "more, at the same bytes."
)

# %% [markdown]
# So half the cache is nearly twice the speed if three things hold: the bytes bind, most of them are
# cache, and each row is read once.
#
# With `--backend cupy`, the cache asks for the kernel. On the host there is none, and the readable
# lines make two products.
#
# In the exercise you write `running`: one query, one pass over the rows, each of them read once.
#
# That is the course. It began with one number that was used twice. It ends with one row that is
# used twice, and read once.

# %% Where it is done
source(LayerCache.read, at="backend.decode")
source(decode)
source(online.part)
source(online.merge)
source(online.answer)
