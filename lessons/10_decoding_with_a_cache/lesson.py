# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Decoding with a cache"
# question = "Must a model read the whole text again for every token it adds?"
# needs = [
#   "training step", "seed", "gradient", "positions", "attention", "causal mask", "block", "heads",
#   "cache bytes",
# ]
# teaches = ["cache", "prefill", "decode"]
# minutes = 18
# budget_s = 5
# exercise = "step"
# uses = [
#   "minqkv.GPT", "minqkv.GPTConfig", "minqkv.AdamW", "minqkv.KVCache", "minqkv.VariantSpec",
#   "minqkv.generate", "minqkv.no_grad", "minqkv.train_step", "minqkv.trace",
# ]
# ///

# %% [markdown]
# A text is written one token at a time. The model reads the text so far and gives scores for the
# next token; the best one is added at the end, and the model reads again. This lesson is about that
# "again".
#
# To see at once when something goes wrong, we need a model that has learned something. Here is a
# small GPT: two blocks like those of lesson 07, but with the causal mask, and `qkv` attention. It
# is trained on tunes of three notes that repeat forever. A note is a digit. To know the next one,
# the model must look back at the note three places before.
#
# (`AdamW` is the Adam of lesson 04; it also makes each matrix a little smaller at each step.)

# %% A model that continues a tune
import numpy as np

import minqkv as mq
from minqkv import backend, generation
from minqkv.cache import LayerCache
from minqkv.teach import cache_step, compare, memory, predict, say, show, source, table

size = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
config = mq.GPTConfig(vocab_size=10, **size, dtype="float64")
model = mq.GPT(config, seed=0)
optimizer = mq.AdamW(model.parameters(), lr=2e-2)
rng = np.random.default_rng(10)
for _ in range(150):
    tunes = np.tile(rng.integers(0, 10, (32, 3)), 5)[:, :13]  # (B, T + 1)
    targets = tunes[:, 1:].copy()  # (B, T)
    targets[:, :2] = -100  # not counted: the first notes cannot be known
    loss = mq.train_step(model, optimizer, tunes[:, :-1], targets)

prompt = np.array([[3, 1, 4, 3]])  # (1, T)
text = mq.generate(model, prompt, 6, use_cache=False)  # (1, T + 6)
say(f"The loss ended at {round(loss, 4)}. The prompt is {' '.join(map(str, prompt[0]))}.")
predict("Which note does the model add first?", int(text[0, 4]))
show("prompt and what the model adds", text)

# %% [markdown]
# A model that has read some tokens returns a row of scores after each of them: its **logits**. The
# scores for the next token are the last row. All the other rows were computed on the way to it.
#
# Let the model read four tokens, then the same four and a fifth. Each layer makes a row of `k` for
# each token. The causal mask stops a token from looking at what comes after it. So what can the
# fifth token change about the first four?

# %% What stays the same
read = {}
for n in (4, 5):
    with mq.trace() as t:
        model(text[:, :n])
    read[n] = [t[f"blocks.{i}.attn.k"] for i in (0, 1)]  # (B, H, n, d) each

old, new = read[4][1], read[5][1][:, :, :4]  # (1, 2, 4, 8), the upper layer
changed = int((abs(new - old) > 1e-9).any(axis=(0, 1, 3)).sum())
predict(
    "How many of the first four rows of `k` change in the upper layer when a fifth token is read?",
    changed,
)
compare("k of four tokens, lower layer", read[4][0], "its rows among five", read[5][0][:, :, :4])
compare("k of four tokens, upper layer", old, "its rows among five", new)
say(
    "The mask applies in every layer, so no row of any layer depends on what comes after it: "
    "rows of the past are final."
)

# %% [markdown]
# So without a cache the model computes rows that it has computed before, and gets the same numbers.
# How many?
#
# The trace shows this: each call of the model records the `q` of its layers, and `q` has a row for
# each token that was read. The last token that is added is never read, because nothing comes after
# it.

# %% Count the rows
with mq.trace() as t:
    mq.generate(model, prompt, 6, use_cache=False)
without = [q.shape[2] for q in t.all("blocks.0.attn.q")]  # rows in each call
with mq.trace() as t:
    mq.generate(model, prompt, 6)  # the cache is used unless told otherwise
cached = [q.shape[2] for q in t.all("blocks.0.attn.q")]

predict(
    "The prompt has four tokens and six are added. How many rows are computed in all, without a "
    "cache?",
    sum(without),
)
predict("And how many if each token is read just once?", sum(cached))
rows = zip(map(str, range(6)), without, cached, strict=True)
table(
    "rows computed in each layer",
    ["call", "without", "cached"],
    [*rows, ["all", sum(without), sum(cached)]],
)
say("Without a cache the count grows with the square of the length; with a cache it is the length.")

# %% [markdown]
# What must we keep of a token so that it need not be read again? It had a query, a key and a value
# in each layer.
#
# The gradient tells us: send one back from the scores for the next token alone, and see which rows
# of `q`, `k` and `v` it reaches. A row without a gradient had no effect. We look at the upper
# layer, where no other attention comes in between.

# %% What must be kept
with mq.trace() as t:
    logits = model(text[:, :5])  # (1, 5, V)
    g = np.zeros(logits.shape)
    g[:, -1] = np.random.default_rng(1).standard_normal(10)  # the last row
    logits.backward(backend.upload(g))
reached = {}
for name in "qkv":
    grad = t[f"blocks.1.attn.grad.{name}"]  # (B, H, T, d)
    reached[name] = (grad != 0).any(axis=(0, 1, 3))  # (T,)

options = ["q, k and v", "k and v", "q alone"]
kept = " and ".join(name for name in "qkv" if reached[name][:-1].any())
predict("Which rows of the earlier tokens affect the next one?", kept, options)
show("reached", np.array([reached[name] for name in "qkv"]).astype(int), rows=list("qkv"))
say(
    "An old query has had its answer. Old keys and values are needed again by each new query: "
    "they are the cache."
)

# %% [markdown]
# The package keeps them in a `KVCache`: for each layer an array of keys and one of values, with
# room for as many positions as were asked for, allocated once.
#
# Reading the prompt into it is called **prefill**. All its tokens go through at once, as in
# training, and each layer writes its rows into the cache on the way.

# %% Prefill
cache = model.new_cache(capacity=12)
logits = model(prompt, cache=cache).numpy()  # (1, 4, V)

keys = cache.layers[0].buffers[0]
say(f"One layer's keys lie in an array of shape {keys.shape}: sequences, heads, positions, d.")
say(f"A number takes {keys.dtype.itemsize} bytes.")
predict(
    "There are two layers, with keys and values for four tokens so far. How many bytes is that?",
    cache.nbytes,
)
say(
    f"{len(cache)} positions in use: {cache.nbytes:,} bytes. Allocated for {cache.capacity}: "
    f"{cache.capacity_nbytes:,}."
)
compare("logits of the prefill", logits, "logits without a cache", model(prompt).numpy())

# %% [markdown]
# Then comes **decode**: one new token at a time. It makes one query, one key and one value in each
# layer. Key and value are written after the others, and the query is compared with all stored keys,
# including its own.
#
# At each step we also let the model read everything again, without a cache, and compare the scores.

# %% Decode
one, all_again, steps = [], [], []
for n in range(4, 9):
    every, new = text[:, : n + 1], text[:, n : n + 1]  # (1, n + 1), (1, 1)
    all_again.append(model(every).numpy()[0, -1])  # (V,)
    one.append(model(new, cache=cache).numpy()[0, -1])  # (V,)
    says = int(one[-1].argmax()), int(all_again[-1].argmax())
    steps.append([str(n), int(text[0, n]), *says, len(cache)])

heads = ["position", "note", "next", "again", "stored"]
table("each note read, and the next one with the cache and without", heads, steps)
compare(
    "scores with the cache, all five steps",
    np.array(one),
    "scores of reading all again",
    np.array(all_again),
)
say("The cache changes what is computed, not what comes out.")

# %% [markdown]
# Now the bytes. A step writes one position and reads all of them: every stored key for the scores,
# every stored value for the mix. We decode once more, from the very first token, and look at the
# arrays after each step.


# %% What a step writes and reads
def decode(cache, after):
    for n in range(5):
        model(text[:, n : n + 1], cache=cache)
        after(cache)


short, sizes = model.new_cache(), []
decode(short, lambda cache: sizes.append(cache.nbytes))
ledger = mq.VariantSpec.parse("qkv")
written = ledger.cache_bytes_per_token(config, itemsize=8)

predict(
    f"Each step writes {written} bytes. How many times that does the fifth step read?",
    sizes[4] // written,
)
short = model.new_cache()  # once more, with a line for each step
decode(short, lambda cache: cache_step(cache, config))
say("However long the text, a step adds one token and computes one row in each layer.")
say("What grows is the number of bytes it reads. That is why lesson 09 counted them.")

# %% [markdown]
# A cache promises to continue exactly where the model stopped. That promise can be broken in small
# ways. First: positions.
#
# The embedding of a token gets the row of its position added. A new token comes to the model alone,
# as an array of length one. If the model counts from the start of its input, the token gets
# position 0. The package adds the length of the cache. Here is its forward, written out, so that we
# can give it wrong positions.


# %% Positions go on counting
def forward(ids, cache, start, mask=None):
    with mq.no_grad():  # remember nothing for a backward
        at = slice(start, start + len(ids[0]))  # positions of the new tokens
        x = model.wpe(model.wte(ids), at)  # (1, T, C)
        for block, layer in zip(model.blocks, cache.layers, strict=True):
            x = block(x, mask, layer)  # a layer has its own cache
        logits = model.ln_f(x) @ model.wte.weight.transpose(1, 0)  # (1, T, V)
    return logits.numpy()


def go_on(start_of, mask_of=lambda n: None):
    cache, ids = model.new_cache(), prompt[0].tolist()
    scores = model(prompt, cache=cache).numpy()[0, -1]  # (V,)
    while len(ids) < 10:
        ids.append(int(scores.argmax()))
        n = len(cache)
        scores = forward([ids[-1:]], cache, start_of(n), mask_of(n))[0, -1]
    return ids


right, restarted = go_on(lambda n: n), go_on(lambda n: 0)
predict(
    "Does the tune still continue correctly if each new token gets position 0?",
    restarted == right,
)
show("counting on, and restarting at 0", np.array([right, restarted]), rows=["right", "restart"])

# %% [markdown]
# Second: the mask. A single new token may see everything, so a decode step needs none. But several
# tokens may come at once when the cache already holds some, for example when someone adds a
# sentence to a conversation. Then the mask has a row for each new token and a column for each key,
# stored ones first: it is not square.
#
# The rule is still that of lesson 06, in terms of absolute positions: a key may be seen if its
# position is not after the query's. A triangle that starts in the upper left corner ignores that
# the queries do not start at 0.

# %% A chunk on a warm cache
cache.trim(4)  # back to the prompt
mask = cache.mask(3)  # (3, 4 + 3)
corner = np.tril(np.ones((3, 7), bool))  # (3, 7), from the upper left corner

predict(
    "Four positions are stored, three tokens come. How many keys may the first of them see?",
    int(mask[0].sum()),
)
names = [f"new {i}" for i in (4, 5, 6)]
show("cache.mask", backend.to_host(mask).astype(int), rows=names)
show("from the corner", corner.astype(int), rows=names)
whole = model(text[:, :7]).numpy()[:, 4:]  # (1, 3, V)
good = forward(text[:, 4:7], cache, 4, mask)
cache.trim(4)
bad = forward(text[:, 4:7], cache, 4, backend.upload(corner))
compare("three tokens at once", good, "reading everything", whole)
compare("with the mask from the corner", bad, "reading everything", whole, same=False)
say("With the mask from the corner a new token does not even see itself.")

# %% [markdown]
# Third: the order within a step. The new key and value must be written **before** the query looks.
# If a step attends first and appends afterwards, the token is missing from its own attention. Seen
# from the query, that is a mask that hides the last column.
#
# The next note depends on the note three places before, and hardly on the newest token itself. What
# will you hear?


# %% Append, then attend
def but_itself(n):
    return backend.upload(np.arange(n + 1)[None] < n)  # (1, n + 1)


blind = go_on(lambda n: n, but_itself)
predict("Does the tune come out the same if no new token sees itself?", blind == right)
show("seeing itself, and not", np.array([right, blind]), rows=["right", "blind"])
cache.trim(4)
unseen = forward(text[:, 4:5], cache, 4, but_itself(4))
compare(
    "scores of a token that misses itself", unseen, "reading everything", whole[:, :1], same=False
)
say(
    "Notes are a coarse test: the scores can be wrong while the largest stays the same. So "
    "caches are tested on the scores themselves."
)

# %% [markdown]
# A cache can also go back. `trim` keeps the first positions and forgets the rest: to try another
# continuation, or to take back tokens that were only guessed. Nothing is erased. The cache counts
# fewer positions as stored, and new rows overwrite the old ones.

# %% Going back
cache.trim(4)
model(text[:, 4:9], cache=cache)
before = cache.nbytes, cache.capacity_nbytes
cache.trim(4)
after = cache.nbytes, cache.capacity_nbytes
other = np.array([[7, 7]])  # (1, 2), another continuation
resumed = model(other, cache=cache).numpy()  # (1, 2, V)
whole = np.concatenate([prompt, other], axis=1)  # (1, 6)
fresh = model(whole).numpy()[:, 4:]  # (1, 2, V)

predict(
    "How many bytes are freed when the cache goes back from nine positions to four?",
    before[1] - after[1],
)
table(
    "bytes",
    ["", "nine", "four"],
    [["in use", before[0], after[0]], ["allocated", before[1], after[1]]],
)
compare("another continuation on the old cache", resumed, "a fresh start", fresh)

# %% [markdown]
# `generate` is all of this: one prefill, then single tokens. It gives the same text either way.
#
# In the package the promise is kept in four places: where positions start, where rows are written,
# what the mask compares, and what happens when a step is interrupted. (The cache is then trimmed to
# its length before the step.)
#
# In the exercise you write the step of one layer yourself: `step` takes one token or several, and a
# cache to continue from.

# %% Where it is done
cache = model.new_cache()
with_cache = mq.generate(model, prompt, 6, cache=cache)
predict(
    "Four tokens were read and six added. How many positions does the cache hold now?", len(cache)
)
compare("text with the cache", with_cache, "text without", text)
keys, values = cache.layers[0].rows
memory(keys=keys, values=values)
say("Keys and values are two arrays here. Lesson 11 makes them one.")
source(mq.GPT.forward, at="cache.next(")
source(LayerCache.write, at="buffer[:, :, slots] = row")
source(LayerCache.mask)
source(mq.GPT.forward, at="cache.trim(before)")
source(generation._tokens, at="next_token(unread)")
