# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "One row, many lenses"
# question = "All heads read one stored row. Can each see something different in it?"
# needs = [
#   "softmax", "attention", "scale", "heads", "KV heads", "cache bytes", "q-mqa", "cache", "decode",
#   "prefill", "rope", "store", "read", "gta-N",
# ]
# teaches = ["latent row", "absorb", "mla", "gla-N"]
# minutes = 20
# budget_s = 3
# exercise = "absorb"
# uses = [
#   "minqkv.Attention", "minqkv.Tensor", "minqkv.trace", "minqkv.cache.LayerCache",
#   "minqkv.nn.Init", "minqkv.shipped_layer", "minqkv.load_layer", "minqkv.use_backend",
#   "minqkv.functional.scaled_dot_product_attention", "minqkv.variants.SHIPPED",
# ]
# ///

# %% [markdown]
# With `q-mqa` one row is stored for each token, and all heads read it. No variant of lesson 09
# stores less. What do the heads lose?
#
# To see it at once, let a text have a single token. Every head can only look at that token's row,
# with weight 1. We show what the heads return, before `wo`.

# %% All heads see the same
import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.attention import causal_mask
from minqkv.cache import LayerCache
from minqkv.designs.layers import LowRank
from minqkv.teach import compare, memory, predict, say, show, source, table
from minqkv.variants import SHIPPED

size = {"n_embd": 6, "n_head": 4, "block_size": 16, "head_dim": 2}
size |= {"bias": False, "init": mq.nn.Init(17, "float64", "uniform")}
x = np.random.default_rng(17).standard_normal((1, 5, 6))
x, token = mq.Tensor(x), mq.Tensor(x[:, :1])  # (B, T, C), (B, 1, C)


def answers(layer):
    with mq.trace() as t:
        layer(token)
    return t["z"][0, :, 0]  # (H, d_h)


found = answers(mq.Attention("q-mqa", **size))
heads = [f"head {i}" for i in range(4)]
predict(
    "One token, and `q-mqa`. Do all four heads return the same numbers?",
    bool(np.allclose(found, found[0])),
)
show("what the heads return", found, rows=heads)
say("Heads can differ in where they look. What they see there is the same for all.")

# %% [markdown]
# Think of people who look at one picture through lenses of different colours: each sees something
# different in it. We give each head lenses for the stored row c. Head i has two matrices, one to
# make its key and one to make its value:
#
#     k_i = c U_i
#     v_i = c W_i
#
# The row may be wider than a head, so that there is more to see in it. Such a row is called
# **latent**: it is neither a key nor a value, and both are made from it.
#
# This is MLA, "multi-head latent attention". In the package it is `mla`. Its row is as wide as four
# heads, and it is scaled to mean square 1, as in lesson 16. The layer stores W as `out_of`, and U
# as `into`, with its two axes swapped. Three steps from here we see why.

# %% Two matrices for each head
mla = mq.Attention("mla", **size)  # without positions, for now
c = mla.store(x, slice(0, 5))[0].numpy()  # (B, 1, T, d_c)
U = mla.into.numpy().swapaxes(1, 2)  # (H, d_c, d_h)
W = mla.out_of.numpy()  # (H, d_c, d_h)

found = answers(mla)
predict(
    "One token, and `mla`. Do all four heads return the same numbers?",
    bool(np.allclose(found, found[0])),
)
show("what the heads return", found, rows=heads)
shapes = {"c": c.shape, "U": U.shape, "W": W.shape}
table("shapes", ["array", "shape"], [[name, str(shapes[name])] for name in shapes])

# %% [markdown]
# The obvious way to compute it is to make all keys and values, and then do ordinary attention with
# four heads. That is called the **naive** form. It is `qkv`, except that keys and values are made
# from the stored row instead of from the token.
#
# Only the row has to be stored. But at each decode step, the keys and values of all stored tokens
# must be made again before they can be used.

# %% The naive form
q = F.split_heads(mla.wq(x), 4).numpy()  # (B, H, T, d_h)
K, V = c @ U, c @ W  # (B, H, T, d_h) each
steps = backend.xp.arange(5)
mask = causal_mask(steps, steps)  # (T, T)
arrays = (mq.Tensor(backend.upload(a)) for a in (q, K, V))
naive = F.scaled_dot_product_attention(*arrays, mask)  # (B, H, T, d_h)

with mq.trace() as t:
    mla(x, mask)
made = K[0, :, 0].size + V[0, :, 0].size
predict("Four heads, keys and values of two numbers: how many numbers are made for a token?", made)
predict("And how many numbers are stored?", c.shape[-1])
compare("the naive form", naive, "what the heads return in the layer", t["z"])

# %% [markdown]
# Can we do without making them? First the keys. A score is the dot product of a query and a key,
# and a key is the row times a matrix. In a product of matrices, brackets may be moved:
#
#     q · (c U)  =  q (c U)ᵀ  =  q Uᵀ cᵀ  =  (q Uᵀ) · c
#
# On the left the row is made into a key. On the right the query is made into a question about the
# row. Do it by hand: q is (1, 2), c is (1, 0, 2), and U takes three numbers to two.

# %% Move the brackets
query = np.array([1, 2])  # (d_h,)
row = np.array([1, 0, 2])  # (d_c,)
matrix = np.array([[1, 0], [0, 1], [1, 1]])  # (d_c, d_h)
key = row @ matrix  # (d_h,)
asked = query @ matrix.T  # (d_c,)

show("U", matrix)
predict("What is the first number of the key, c U?", int(key[0]))
show("c U", key)
predict("What is the score, q · (c U)?", int(query @ key))
show("q Uᵀ", asked)
predict("And what is (q Uᵀ) · c?", int(asked @ row))

# %% [markdown]
# It is the same number, but there are many rows and one new query. On the left every row goes
# through the matrix. On the right only the query does, once for each head.
#
# The matrix has been **absorbed** into the query. (It could even be multiplied by `wq` in advance,
# since q is x times `wq`. The package keeps the two apart, which takes fewer multiplications where
# a row is much wider than a head.)

# %% Absorbed into the query
asked = q @ U.swapaxes(1, 2)  # (B, H, T, d_c)
scores = asked @ c.swapaxes(-1, -2)  # (B, H, T, T), not yet divided
plain = q @ K.swapaxes(-1, -2)  # (B, H, T, T)

predict(
    "A new token comes, and a hundred rows are stored. To get its scores, one head of the naive "
    "form multiplies every row by U. How many vectors does it multiply by Uᵀ in the absorbed form?",
    asked[0, 0, -1:].shape[0],
)
compare("scores against rows", scores, "scores against keys", plain)
compare("q Uᵀ", asked, "q in the layer", t["q"])
say("Queries are multiplied by Uᵀ. That is why the layer stores Uᵀ, as `into`, and not U.")

# %% [markdown]
# Now the values. A head mixes them with its weights a_j:
#
#     Σ a_j (c_j W)  =  (Σ a_j c_j) W
#
# So mix the stored rows first, and multiply the mix by the matrix: again once for each head and
# query. In `mla`, the method `answer` does this.
#
# One thing must not change: the number that the scores are divided by. They are the same scores as
# in the naive form.

# %% Absorbed into the answer
pattern = t["pattern"]  # (B, H, T, T)
mixed = pattern @ c  # (B, H, T, d_c)
z = mixed @ W  # (B, H, T, d_h)

predict(
    "Heads have two numbers and rows have eight. The scores are divided by the square root of "
    "which number?",
    round(mla.root**2),
)
compare("the absorbed form", z, "the naive form", naive)
compare("the absorbed form", z, "what the heads return in the layer", t["z"])

# %% [markdown]
# In the absorbed form no keys and no values are made. So what does the layer read from its cache?
# We give it the five tokens one by one.

# %% What is in the cache
cache = LayerCache(1, mla.spec.rows(4, 2), 16, "float64")
for n in range(5):
    with mq.trace() as t:
        mla(mq.Tensor(x.numpy()[:, n : n + 1]), cache=cache)  # (B, 1, C)
rows = [mq.Tensor(row) for row in cache.rows]  # one, (B, 1, T, d_c)
keys, values = mla.read(rows)

predict("Are the keys and the values that it reads the same array?", keys.data is values.data)
memory(stored=rows[0], keys=keys, values=values)
compare("the last token, step by step", t["z"], "all at once", naive.numpy()[:, :, -1:])
say("All heads read one row, as key and as value: in this form `mla` is a `q-mqa`.")
say("It has two things more: a wider row, and two matrices for each head.")

# %% [markdown]
# Now positions. In the naive form we could turn each key by its position. Write R_j for the matrix
# that turns a row by position j. Then the score of a query at i and a key at j is
#
#     (q R_i) · (c U R_j)  =  (q R_(i−j) Uᵀ) · c
#
# The turn is between the query and the matrix, and it depends on how far apart the two are. Can the
# matrix still be absorbed, once for all rows? We compute what a query asks of rows at four
# distances.

# %% The row cannot turn
angle = np.arange(4)  # (4,), one radian for each position of distance
cos, sin = np.cos(angle), np.sin(angle)
first, second = q[0, 0, -1]  # a query of head 0
turned = np.stack([first * cos - second * sin, second * cos + first * sin])
asked_at = turned.T @ U[0].T  # (4, 2) @ (2, d_c) -> (4, d_c)

names = [f"{n} away" for n in range(4)]
alike = bool(np.allclose(asked_at, asked_at[0]))
predict("Is the same thing asked of rows at different distances?", alike)
show("what is asked", asked_at, rows=names, digits=2)
say("Each distance needs a different query, so the matrix cannot be absorbed once for all rows.")

# %% [markdown]
# So what turns is kept apart, as in GTA: beside the row there is a small turned row for all heads,
# here of two numbers. Each query gets just as many additional numbers, which are turned too. A
# score is then a sum of two products:
#
#     ( (q Uᵀ) · c  +  p · r ) / √(d_h + d_r)
#
# Here r is the small row, d_r is its width, and p is the turned part of the query. In the naive
# form the query would be (q, p) and the key (c U, r). Both have d_h + d_r numbers, so that is under
# the root.

# %% A small row beside
mla = mq.Attention("mla", position="rope", d_rope=2, **size)
c, r = (row.numpy() for row in mla.store(x, slice(0, 5)))
both = F.split_heads(mla.wq(x), 4)  # (B, H, T, d_h + d_r)
both = mla.turn(both, slice(0, 5)).numpy()  # the last two columns turn
q, p = both[..., :2], both[..., 2:]  # (B, H, T, 2) each
asked = q @ mla.into.numpy()  # (B, H, T, d_c)
scores = asked @ c.swapaxes(-1, -2) + p @ r.swapaxes(-1, -2)
scores = scores / np.sqrt(2 + 2)  # (B, H, T, T)

with mq.trace() as t:
    mla(x, mask)
small = r.shape[-1]
predict("The row has eight numbers. How many are stored for a token now?", c.shape[-1] + small)
show("small rows", r[0, 0])
compare("scores by hand", scores, "scores in the layer", t["scores"])

# %% [markdown]
# GLA, "grouped latent attention", is the same with several rows. `gla-N` has N of them, and each is
# read by a group of neighbouring heads, as in lesson 09. A row of GLA is as wide as two heads.
#
# This helps when two GPUs compute half of the heads each. With `mla` both need the whole row of
# each token. With two rows, each GPU needs only the row that its heads read, and the small row.

# %% Two rows
gla = mq.Attention("gla-2", position="rope", d_rope=2, **size)
at = slice(0, 5)
row, small = gla.store(x, at)  # (B, 2, T, 2·d_h), (B, 1, T, d_r)
q = gla.query(x, (row, small), at)
before = gla.attend(q, (row, small), at, mask).numpy()
other = row.numpy().copy()
other[:, 1] += 1  # the second row of each token
other = mq.Tensor(backend.upload(other))
after = gla.attend(q, (other, small), at, mask).numpy()

changed = (abs(after - before) > 1e-9).any(axis=(0, 2, 3))  # (H,)
names = ["heads 0 and 1", "heads 2 and 3", "all four"]
which = names[2 if changed.all() else int(changed[-1])]
predict(
    "We change the second row of each token. For which heads does the mix change?", which, names
)
held = [sum(h * d for h, d in each.spec.rows(4, 2, 2)) for each in (mla, gla)]
predict(f"`mla` stores {held[0]} numbers for a token here. And `gla-2`?", held[1])

# %% [markdown]
# Which form takes fewer multiply-accumulates? In the naive form every row goes through two matrices
# of each head. In the absorbed form only the new tokens do: their queries through one matrix, and
# their mixes through the other.
#
# Then each query meets each key that it may see. For such a pair the naive form takes d_h + d_r
# products for the score and d_h for the mix. The absorbed form takes d_c + d_r and d_c.
#
# Here are both counts as functions. (`wq`, `wo` and making the rows cost the same in both forms,
# and are left out.) To check the second function, we record the products of our small layer, as in
# lesson 11. It makes one decode step: one new token, with five stored before it.


# %% Count the products
def naive_macs(rows, pairs, H, d_h, d_c, d_r):
    return H * (2 * rows * d_h * d_c + pairs * (2 * d_h + d_r))


def absorbed_macs(new, pairs, H, d_h, d_c, d_r):
    return H * (2 * new * d_h * d_c + pairs * (2 * d_c + d_r))


cache, counted = LayerCache(1, mla.spec.rows(4, 2, 2), 16, "float64"), []
mla(x, cache=cache)
with mq.use_backend(backend.current.name):
    bmm = backend.bmm

    def listen(a, b):
        out = bmm(a, b)
        if b.ndim > 2:  # stacked by heads
            counted.append(out.size * a.shape[-1])
        return out

    backend.bmm = listen  # the end of the `with` takes it back
    mla(token, cache=cache)
sizes = 4, 2, 8, 2  # H, d_h, d_c, d_r; one query, six rows: six pairs
step = {"naive": naive_macs(6, 6, *sizes)}
step["absorbed"] = absorbed_macs(1, 6, *sizes)

predict("Which form takes fewer MACs for this step?", min(step, key=step.get), list(step))
table("one decode step", ["form", "MACs"], [[name, step[name]] for name in step])
compare("MACs recorded", sum(counted), "MACs by the formula", step["absorbed"])

# %% [markdown]
# Now at the size of one layer of DeepSeek-V3. First a single new token, with a long text stored.
# Then the same text all at once, as in a prefill or in training. There each key and value that the
# naive form makes is used by many queries, not by one.
#
# We also count how many numbers the naive form makes for each token, and how many are stored.

# %% At the size of a model
about = SHIPPED["deepseek-v3"]
H, d_h, d_r = 128, about["head_dim"], about["d_rope"]
wide = {"H": H, "d_h": d_h, "d_c": 4 * d_h, "d_r": d_r}
n = 4096  # tokens
pairs = n * (n + 1) // 2  # each token sees itself and those before it
one = naive_macs(n, n, **wide), absorbed_macs(1, n, **wide)
whole = naive_macs(n, pairs, **wide), absorbed_macs(n, pairs, **wide)
macs = {"one token": one, "whole text": whole}
forms, fewer, rows = ["naive", "absorbed"], {}, []
for name, (a, b) in macs.items():
    fewer[name] = forms[int(b < a)]
    rows.append([name, f"{a / 1e9:,.1f}", f"{b / 1e9:,.1f}"])
made, stored = 2 * H * d_h, 4 * d_h + d_r  # numbers for each token

say(f"{H} heads of {d_h}, a row of {4 * d_h}, a small row of {d_r}, {n:,} tokens.")
predict("Which form takes fewer MACs for one new token?", fewer["one token"], forms)
predict("And for the whole text at once?", fewer["whole text"], forms)
table("multiply-accumulates, in billions", ["", *forms], rows)
say(f"The naive form makes {made:,} numbers for each token, where {stored} are stored.")
say("A program may use both: naive for a prompt, absorbed for decoding.")
say("This package always absorbs.")

# %% [markdown]
# Finally the bytes that one token takes in one layer of that size, with two bytes for each number.
# We allocate a cache of each kind and ask for its size.
#
# DeepSeek-V2 and DeepSeek-V3 are models with MLA. DeepSeek-V3 makes its queries in two steps, with
# fewer numbers in between (`LowRank`). `mq.shipped_layer` and `mq.load_layer` know its layer as
# `deepseek-v3`. GLA was published with code.
#
# In the exercise you write `absorb`: one decode step from stored rows that makes no keys and no
# values.
#
# So all heads use one row, as key and as value. The next two lessons look into a trained model: is
# its key already its value, and can it go on with one of them?

# %% Where it is done
rows, held = [], {}
for name in ("qkv", "gqa-8", "mla", "gla-2", "q-mqa"):
    kept = mq.VariantSpec.parse(name).rows(H, d_h, d_r)  # (heads, width)
    held[name] = LayerCache(1, kept, 1, "float16").capacity_nbytes
    product = " + ".join(f"{heads} x {width}" for heads, width in kept)
    share = f"{held[name] / held['qkv']:.1%}"
    rows.append([name, product, held[name], share])
small = {"init": size["init"], "head_dim": 2, "d_rope": 2}
shipped = mq.shipped_layer("deepseek-v3", 6, 4, 16, **small)
shipped.load_state_dict(mla.state_dict())

predict(f"`mla` stores {stored} numbers for each token. How many bytes?", held["mla"])
table("one token, one layer", ["variant", "numbers", "bytes", "of qkv"], rows)
compare("our layer", mla(x, mask), "deepseek-v3 at this size", shipped(x, mask))
source(mq.Attention.store, at="self.wr(x)")
source(mq.Attention.query, at="@ self.into")
source(mq.Attention.read, at="self.spec.latent")
source(mq.Attention.answer, at="@ self.out_of")
source(LowRank)
source(mq.shipped_layer)
source(mq.load_layer)
