# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Is K already V?"
# question = "Do the keys and the values of a trained model hold the same thing?"
# needs = [
#   "training step", "Adam", "seed", "reverse task", "positions", "query", "key", "value", "scores",
#   "pattern", "heads", "qkv", "q-k=v",
# ]
# teaches = ["basis", "principal angles", "overlap", "cross-R²"]
# minutes = 20
# budget_s = 5
# exercise = "alike"
# uses = [
#   "minqkv.Tagger", "minqkv.TaggerConfig", "minqkv.no_grad", "minqkv.optim.Adam", "minqkv.trace",
#   "minqkv.train_step", "minqkv.analysis.diagnose.cosine", "minqkv.analysis.diagnose.cross_r2",
#   "minqkv.analysis.diagnose.diagnose", "minqkv.analysis.diagnose.overlap",
#   "minqkv.analysis.diagnose.principal_angles", "minqkv.tasks.synthetic.Synthetic",
#   "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# In `q-k=v` one matrix makes both keys and values. Why can that work at all? Perhaps a model with
# three matrices learns keys and values that are alike anyway, and sharing just saves a copy.
#
# We train a `qkv` model and look. It is like that of lesson 07, but a little larger: one block with
# four heads of eight numbers. It has to write eight digits backwards.

# %% A model with three matrices
import numpy as np

import minqkv as mq
from minqkv import train
from minqkv.analysis import diagnose
from minqkv.analysis.diagnose import cosine
from minqkv.optim import Adam
from minqkv.tasks.synthetic import Synthetic
from minqkv.teach import compare, predict, say, show, source, table

task = Synthetic("reverse", seq_len=8)
size = {"vocab_size": 10, "block_size": 8, "position": "learned"}
size |= {"n_layer": 1, "n_head": 4, "n_embd": 32, "dtype": "float64"}
test, answers = task.draw(0, "test", 200)  # (n, T) each


def learn(seed):
    model = mq.Tagger(mq.TaggerConfig(**size), seed)
    optimizer = Adam(model.parameters(), lr=5e-3)
    x, y = task.draw(seed, "train", 250 * 32)
    for batch in zip(np.split(x, 250), np.split(y, 250), strict=True):
        mq.train_step(model, optimizer, *batch)
    return model


model = learn(seed=0)
right = train.evaluate(model, test, answers)["accuracy"]
say(f"Of the digits of new sequences, it gets {right:.1%} right.")

# %% [markdown]
# First we take its matrices apart by heads. `wq`, `wk` and `wv` become (H, C + 1, d), where the
# last row is the bias, and `wo` becomes (H, d, C).
#
# The first look is the cosine of `wk` and `wv`, as in lesson 08: each is taken as one long row of
# numbers. It is 1 if the two are the same up to a factor, and near 0 for random matrices.


# %% The cosines
def heads_of(model):
    state, found = model.state_dict(), []
    for name in ("wq", "wk", "wv"):
        both = state[f"{at}{name}.weight"], state[f"{at}{name}.bias"]
        both = np.vstack(both)  # (C + 1, H · d)
        found.append(both.reshape(33, 4, 8).swapaxes(0, 1))
    out = state[f"{at}wo.weight"]  # (H · d, C)
    return *found, out.reshape(4, 8, 32)


def cosines(wk, wv):
    pairs = zip(wk[:, :-1], wv[:, :-1], strict=True)  # without biases
    return [cosine(*pair) for pair in pairs]


at, heads = "blocks.0.attn.", [f"head {i}" for i in range(4)]
wq, wk, wv, wo = heads_of(model)  # three (H, C + 1, d), one (H, d, C)
predict("Is one of the four cosines above one half?", max(cosines(wk, wv)) > 0.5)
show("cosine of wk and wv", np.array(cosines(wk, wv)), columns=heads)
say("By this number, `wk` and `wv` are unrelated. But is it the right number?")

# %% [markdown]
# Recall gauge freedom from lesson 08: many weights, one model. In each head, let A and B be any
# matrices (d, d) that have an inverse.
#
#     wq, wk  →  wq A⁻ᵀ, wk A     the scores stay
#     wv, wo  →  wv B, B⁻¹ wo     the output stays
#
# (A⁻ᵀ is the inverse of A, transposed.) The numbers of a key are coordinates. With A they are
# written in another **basis**, and the queries with them. B does the same for the values.
#
# We rewrite the trained model with random A and B.


# %% The same model in another basis
def written(wq, wk, wv, wo):
    state = model.state_dict()
    for name, w in {"wq": wq, "wk": wk, "wv": wv}.items():
        both = w.swapaxes(0, 1).reshape(33, 32)  # (C + 1, H · d)
        state[f"{at}{name}.weight"] = both[:-1]
        state[f"{at}{name}.bias"] = both[-1]
    state[f"{at}wo.weight"] = wo.reshape(32, 32)
    twin = mq.Tagger(mq.TaggerConfig(**size))
    twin.load_state_dict(state)
    return twin


def rewritten(A, B):
    to_queries = np.linalg.inv(A).swapaxes(1, 2)
    return wq @ to_queries, wk @ A, wv @ B, np.linalg.inv(B) @ wo


A, B = np.random.default_rng(18).standard_normal((2, 4, 8, 8))
other = rewritten(A, B)
with mq.no_grad():
    before, after = model(test), written(*other)(test)  # (n, T, V)
same = np.allclose(before.numpy(), after.numpy())
predict("Does the rewritten model give the same answers?", same)
compare("answers as trained", before, "answers rewritten", after, 1e-7)
both = np.array([cosines(wk, wv), cosines(*other[1:3])])
show("cosine of wk and wv", both, rows=["trained", "random"], columns=heads)

# %% [markdown]
# The model is the same, and its cosines are not. How far can we push them? Choose A such that `wk`
# A comes as near to `wv` as it can. That is least squares, which `np.linalg.lstsq` solves. Then
# take −A, for the opposite.

# %% At will
one = np.tile(np.eye(8), (4, 1, 1))  # (H, d, d), B changes nothing
pairs = zip(wk[:, :-1], wv[:, :-1], strict=True)
fits = [np.linalg.lstsq(k, v, rcond=None)[0] for k, v in pairs]
near = np.array(fits)  # (H, d, d)
ways = {"trained": (one, one), "random": (A, B)}
ways |= {"towards": (near, one), "away": (-near, one)}
found, given = {}, []
for name, bases in ways.items():
    weights = rewritten(*bases)
    found[name] = cosines(*weights[1:3])
    with mq.no_grad():
        given.append(written(*weights)(test).numpy())  # (n, T, V)
models = 1 + sum(not np.allclose(given[0], each) for each in given[1:])
predict("These are four sets of weights. How many different models are they?", models)
table("cosine of wk and wv", ["", *heads], [[n, *c] for n, c in found.items()])
compare("answers as trained", given[0], "answers, wk away from wv", given[3], 1e-7)
say("The cosine describes how the model is written down, and not the model.")

# %% [markdown]
# A number that describes the model must stay in any basis. For queries and keys there is one: they
# only meet in the scores, and there A cancels.
#
#     (wq A⁻ᵀ) (wk A)ᵀ  =  wq A⁻ᵀ Aᵀ wkᵀ  =  wq wkᵀ
#
# This product is (C, C). Its **singular values** say how strongly it acts, direction by direction.
# Since `wq` and `wk` have only d columns, it cannot act in every direction.

# %% What stays: a product
product = wq[0, :-1] @ wk[0, :-1].T  # (C, C), of head 0
again = other[0][0, :-1] @ other[1][0, :-1].T
sizes = np.linalg.svd(product, compute_uv=False)  # (C,)
counted = int((sizes > 1e-9 * sizes[0]).sum())
predict(f"The product of head 0 has {len(sizes)} singular values. How many are not 0?", counted)
show("the largest of them", sizes[:counted], digits=2)
compare("the product as trained", product, "the product rewritten", again, 1e-7)

# %% [markdown]
# Keys and values never meet in a product. So what stays of `wk` alone, whatever A is? The columns
# of `wk` A are mixed from the columns of `wk`. So they span the same **space**: the directions of a
# token that the keys read.
#
# How far apart are two spaces? Look for the two directions, one in each, that are closest. Theirs
# is the first **principal angle**. Then look for the closest two that are orthogonal to the first
# ones, and so on. The cosines of these angles are the singular values of `k.T @ v`, where `k` and
# `v` are orthonormal bases of the two, which `np.linalg.qr` makes.
#
# Try it by hand for tokens of three numbers. Keys read the first two, values the last two.

# %% What stays: a space
k = np.array([[1.0, 0], [0, 1], [0, 0]])  # (C, d)
v = np.array([[0.0, 0], [1, 0], [0, 1]])  # (C, d)
k2 = k @ np.array([[1.0, 2], [1, -1]])  # keys in another basis


def angles(k, v):
    k, v = np.linalg.qr(k)[0], np.linalg.qr(v)[0]  # (C, d) each
    cosines = np.linalg.svd(k.T @ v, compute_uv=False)  # (d,)
    return np.degrees(np.arccos(cosines.clip(max=1)))


first, second = angles(k, v).round(6)
predict("What is the first principal angle, in degrees?", first)
predict("And the second?", second)
rows = [["k and v", cosine(k, v), first, second]]
rows += [["k2 and v", cosine(k2, v), *angles(k2, v).round(6)]]
table("in degrees", ["", "cosine", "first", "second"], rows)
compare("angles by hand", angles(k, v), "the package", diagnose.principal_angles(k, v))
say("In another basis the cosine changes, and the angles stay.")

# %% [markdown]
# Now the heads of the model. For one number per head, take the mean of the squared cosines. This is
# the **overlap**: 0 if keys and values read orthogonal directions, 1 if they read the same ones.
#
# What is a large overlap? Random spaces overlap too. A random direction of C numbers has, on
# average, the share d/C of its squared length in a space of d directions. So that is the overlap by
# chance. Single draws differ, so we draw many.


# %% Against chance
def overlaps(wk, wv):
    pairs = zip(wk, wv, strict=True)
    each = [np.cos(np.radians(angles(k, v))) for k, v in pairs]
    return (np.array(each) ** 2).mean(axis=1)  # (H,)


both = list(zip(wk[:, :-1], wv[:, :-1], strict=True))
found = overlaps(wk[:, :-1], wv[:, :-1])  # (H,)
again = overlaps(other[1][:, :-1], other[2][:, :-1])
drawn = np.random.default_rng(0).standard_normal((2, 500, 32, 8))
chance = overlaps(*drawn)  # (500,)
high = np.quantile(chance, 0.95)
C, d = drawn.shape[2:]
predict(f"Heads read {d} directions of {C}. How large is the overlap by chance?", d / C)
show("angles in degrees", np.array([angles(*p) for p in both]), rows=heads, digits=0)
show("overlap", found, columns=heads)
compare("overlap as trained", found, "overlap rewritten", again, 1e-7)
say(f"Random matrices: {chance.mean():.3f} on average, and one in twenty is above {high:.3f}.")
say(f"Of the {len(found)} heads, {(found > high).sum()} are above that.")

# %% [markdown]
# So keys and values read no more in common than by chance. But tokens do not fill all directions
# equally. So ask the tokens as well: can a value be computed from the key of the same token?
#
# We fit a matrix and a constant by least squares to half of the sequences, and judge them on the
# other half. **Cross-R²**, or R² for short, is the share of the variance of the values that is
# explained: 1 if all of it is, and 0 if the mean would do as well.
#
# Keys and values are made of the same tokens, so each says something about the other in any model.
# For comparison we take the same model before training.


# %% Ask the tokens
def explained(a, b):  # (n, T, d) each
    a = np.concatenate([a, np.ones((*a.shape[:2], 1))], axis=-1)
    a, new = a[::2].reshape(-1, 9), a[1::2].reshape(-1, 9)
    b, right = b[::2].reshape(-1, 8), b[1::2].reshape(-1, 8)
    missed = right - new @ np.linalg.lstsq(a, b, rcond=None)[0]
    return 1 - (missed**2).sum() / ((right - right.mean(axis=0)) ** 2).sum()


def seen(model):
    with mq.no_grad(), mq.trace() as t:
        model(test)
    both = (t[f"{at}{name}"] for name in "kv")  # (n, H, T, d) each
    return [a.swapaxes(0, 1) for a in both]  # (H, n, T, d) each


start, r2 = mq.Tagger(mq.TaggerConfig(**size), seed=0), {}
for name, each in {"start": start, "trained": model}.items():
    r2[name] = [explained(*p) for p in zip(*seen(each), strict=True)]
more = bool(np.mean(r2["trained"]) > np.mean(r2["start"]))
predict("After training, do keys explain more of the values than before?", more)
show("R² of the values by the keys", np.array([*r2.values()]), rows=[*r2], columns=heads)
keys, values = seen(model)
package = diagnose.cross_r2(keys[0], values[0])
compare("R² by hand", r2["trained"][0], "the package", package, 1e-6)
again = explained(keys[0] @ A[0], values[0])
compare("R² of V by K", r2["trained"][0], "the same, keys in another basis", again, 1e-7)
say("It stays in any basis of the keys. Values may only be turned, or scaled as a whole.")

# %% [markdown]
# What has training done to them? A token of this task is a digit at a place. Take the mean of all
# keys at each place: these means do not depend on the digits. Their variance, as a share of the
# variance of all keys, is the part of the keys that the place explains. Likewise for values.


# %% What keys and values are about
def about_place(a):
    """Share of the variance of a (H, n, T, d) that its place explains."""
    a = a - a.mean(axis=(1, 2), keepdims=True)
    means = a.mean(axis=1)  # (H, T, d)
    return (means**2).mean(axis=(1, 2)) / (a**2).mean(axis=(1, 2, 3))  # (H,)


share = {}
for name, each in {"start": start, "trained": model}.items():
    share[name] = [about_place(a) for a in seen(each)]
names = ["keys", "values"]
fall = np.subtract(*share.values()).mean(axis=1)  # (2,)
predict(
    "Before training, the place explains most of both. Which change more?",
    names[fall.argmax()],
    names,
)
show("place in keys", np.array([both[0] for both in share.values()]), [*share], heads)
show("place in values", np.array([both[1] for both in share.values()]), [*share], heads)
say("A head finds a place by its key, and brings the digit from there in the value.")

# %% [markdown]
# That was one seed. We train two more models, and average overlap and R² over the heads.
#
# The answer is for these models and this task. `minqkv diagnose RUN` prints such numbers for your
# own run, beside what chance or an untrained model gives. (The paper reports cosines of weights for
# its language models. Now you know what they can say.)
#
# In the exercise you write a number of your own that stays in any basis. Lesson 19 takes a model
# like this one, and makes it use one matrix for both.

# %% The answer
rows, alike = [], []
for seed in range(3):
    models = mq.Tagger(mq.TaggerConfig(**size), seed), learn(seed)
    numbers = []  # before and after training
    for each in models:
        (layer,) = diagnose.diagnose(each, test[:64])
        of = [[h["overlap"], h["v_from_k"]] for h in layer["heads"]]
        numbers.append(np.mean(of, axis=0))  # (2,)
    (_, r2_start), (shared, r2_end) = numbers
    rows.append([str(seed), shared, r2_start, r2_end])
    alike.append(shared > high or r2_end > r2_start)
predict("Three models. Is K already V in any of them?", any(alike))
table("means over heads", ["seed", "overlap", "R² at start", "R² trained"], rows)
missing = 1 - np.mean([row[3] for row in rows])
say(f"By chance, the overlap is {d / C:g}.")
say(f"In these models K is not V: {missing:.0%} of the variance of V is not in K.")
say("So `q-k=v` shares what is not the same. It has to learn rows that serve both purposes.")
source(diagnose.principal_angles)
source(diagnose.overlap)
source(diagnose.cross_r2)
source(diagnose.cosine)
source(diagnose.diagnose)
