# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Changing a trained model"
# question = "A model has three matrices. Can it go on with two, without training?"
# needs = [
#   "training step", "Adam", "seed", "reverse task", "softmax", "query", "key", "value", "scores",
#   "pattern", "heads", "qkv", "q-k=v", "cache bytes", "basis", "cross-R²",
# ]
# teaches = ["keep_k", "keep_v", "average", "Procrustes", "refit-q"]
# minutes = 20
# budget_s = 4
# exercise = "refit"
# uses = [
#   "minqkv.Tagger", "minqkv.TaggerConfig", "minqkv.no_grad", "minqkv.optim.Adam", "minqkv.trace",
#   "minqkv.train_step", "minqkv.analysis.convert.convert", "minqkv.tasks.synthetic.Synthetic",
#   "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# A `qkv` model is trained, and it works. You would like its cache to store one array instead of
# two. Must you train a `q-k=v` model from the start?
#
# In this lesson we change a trained `qkv` model into `q-k=v`, in five ways. A score right after the
# change, before any further training, is called **zero-shot**. Each time, say what you expect
# before you see it.
#
# First the model. As in lesson 18, it writes eight digits backwards.

# %% A trained model
import numpy as np

import minqkv as mq
from minqkv import train
from minqkv.analysis import convert
from minqkv.analysis.diagnose import cross_r2
from minqkv.optim import Adam
from minqkv.tasks.synthetic import Synthetic
from minqkv.teach import compare, predict, say, show, source, table

task = Synthetic("reverse", seq_len=8)
size = {"vocab_size": 10, "block_size": 8, "position": "learned"}
size |= {"n_layer": 1, "n_head": 4, "n_embd": 32, "dtype": "float64"}
test, answers = task.draw(0, "test", 500)  # (n, T) each
x, y = task.draw(0, "train", 250 * 32)
model = mq.Tagger(mq.TaggerConfig(**size), seed=0)
optimizer = Adam(model.parameters(), lr=5e-3)
for batch in zip(np.split(x, 250), np.split(y, 250), strict=True):
    mq.train_step(model, optimizer, *batch)


def score(model):
    return train.evaluate(model, test, answers)["accuracy"]


table("digits right", ["", "share"], [["a guess", 1 / 10], ["trained qkv", score(model)]])

# %% [markdown]
# As in lesson 18 we take the matrices apart by heads: `wq`, `wk` and `wv` are (H, C + 1, d), with
# the bias as the last row, and `wo` is (H, d, C).
#
# `tied` builds the new model. It takes queries, one matrix for both keys and values, and `wo`. All
# other weights stay as they are.


# %% Two matrices instead of three
def heads_of(state):
    found = []
    for name in ("wq", "wk", "wv"):
        both = state[f"{at}{name}.weight"], state[f"{at}{name}.bias"]
        both = np.vstack(both)  # (C + 1, H · d)
        found.append(both.reshape(33, 4, 8).swapaxes(0, 1))
    return *found, state[f"{at}wo.weight"].reshape(4, 8, 32)


def tied(wq, w, wo):
    state = {n: a for n, a in model.state_dict().items() if ".wv." not in n}
    for name, part in {"wq": wq, "wk": w}.items():
        both = part.swapaxes(0, 1).reshape(33, 32)  # (C + 1, H · d)
        state[f"{at}{name}.weight"] = both[:-1]
        state[f"{at}{name}.bias"] = both[-1]
    twin = mq.Tagger(mq.TaggerConfig(**size, variant="q-k=v"))
    twin.load_state_dict(state | {f"{at}wo.weight": wo.reshape(32, 32)})
    return twin


at = "blocks.0.attn."
wq, wk, wv, wo = heads_of(model.state_dict())
keep_k = tied(wq, wk, wo)
specs = [each.blocks[0].attn.spec for each in (model, keep_k)]
stored = [sum(h * d for h, d in spec.rows(4, 8)) for spec in specs]
predict(
    f"With its four heads of eight numbers, `qkv` stores {stored[0]} numbers for a token. How many "
    "does the new model store?",
    stored[1],
)

# %% [markdown]
# The first way: drop `wv`, and let the keys serve as values.


# %% Keep K
def pattern_of(model):
    with mq.no_grad(), mq.trace() as t:
        model(test)
    return t[f"{at}pattern"]  # (n, H, T, T)


few = ["few", "some", "most"]


def guess(share):
    return few[int(share > 1 / 4) + int(share > 3 / 4)]


patterns = {"qkv": pattern_of(model), "keep_k": pattern_of(keep_k)}
found = {"keep_k": score(keep_k)}
moved = not np.allclose(patterns["qkv"], patterns["keep_k"])
predict("Does any head look elsewhere than before?", moved)
compare("pattern of qkv", patterns["qkv"], "pattern of keep_k", patterns["keep_k"])
predict(
    "How many digits do you expect to be right? (Few: below a quarter; most: above three "
    "quarters.)",
    guess(found["keep_k"]),
    few,
)
say(f"It is {found['keep_k']:.1%}.")
say("Heads look where they should. But they bring keys, and `wo` expects values.")

# %% [markdown]
# The other way round: drop `wk`, and let the values serve as keys. Now `wo` gets values again. But
# the queries have learned to find keys.

# %% Keep V
keep_v = tied(wq, wv, wo)
found["keep_v"] = score(keep_v)
patterns["keep_v"] = pattern_of(keep_v)
there = {}  # the weight of each place on its mirrored place
for name, pattern in patterns.items():
    mirrored = pattern[..., ::-1].diagonal(0, 2, 3)  # (n, H, T)
    there[name] = mirrored.mean(axis=(0, 2))  # (H,)
predict("How many digits do you expect to be right?", guess(found["keep_v"]), few)
say(f"It is {found['keep_v']:.1%}.")
heads = [f"head {i}" for i in range(4)]
show("weight on the right place", np.array([*there.values()]), rows=[*there], columns=heads)

# %% [markdown]
# One of them has the right patterns, the other one the right values. The mean of the two matrices
# might keep something of both.
#
# But remember lesson 18: one model can be written in many bases. So we do it twice: as training
# left the matrices, and after the bases of keys and values have been turned at random.


# %% The mean
def average(wq, wk, wv, wo):
    return tied(wq, (wk + wv) / 2, wo)


def rewritten(A, B):
    to_queries = np.linalg.inv(A).swapaxes(1, 2)
    return wq @ to_queries, wk @ A, wv @ B, np.linalg.inv(B) @ wo


found["average"] = score(average(wq, wk, wv, wo))
rng = np.random.default_rng(19)
turns = np.linalg.qr(rng.standard_normal((2, 4, 8, 8)))[0]  # (2, H, d, d)
again = score(average(*rewritten(*turns)))
predict("How many digits do you expect to be right, as trained?", guess(found["average"]), few)
same = abs(again - found["average"]) < 0.02
predict("The same model in turned bases: does its mean get about the same score?", same)
rows = [["as trained", found["average"]], ["turned", again]]
table("digits right, average", ["basis", "share"], rows)
say("In which basis training ends is a matter of chance, and so is the score of the mean.")

# %% [markdown]
# The first number of a key and the first number of a value have nothing to do with each other. So
# choose another basis for the values before the mean is taken: one in which each value comes as
# near as possible to the key of the same token.
#
# If a basis may only be turned, this is called the **Procrustes** problem, after a host in a Greek
# myth who made all guests fit his bed. Its solution for rows `a`, to be turned towards `b`, is
#
#     u, s, vt  =  svd(aᵀ b)
#     R         =  u vt
#
# Do it by hand for three tokens, whose values and keys are points in a plane. To check R, we also
# try every angle in whole degrees.

# %% Turn one towards the other
values = np.array([[1.0, 0], [0, 1], [-1, -1]])  # (n, d)
keys = np.array([[0.0, 1], [-1, 0], [1, -1]])  # (n, d)


def turn(a, b):
    u, _, vt = np.linalg.svd(a.T @ b)
    return u @ vt


apart = []
for angle in np.radians(np.arange(360)):
    c, s = np.cos(angle), np.sin(angle)
    turned = values @ np.array([[c, s], [-s, c]])  # (n, d)
    apart.append(((turned - keys) ** 2).sum())
R = turn(values, keys)

show("values", values, digits=0)
show("keys", keys, digits=0)
predict("By how many degrees must the values be turned, anticlockwise?", int(np.argmin(apart)))
show("R", R.round(6) + 0.0, digits=0)
compare("values R", values @ R, "keys", keys)

# %% [markdown]
# Now each head of the model, with its keys and values on some training sequences. Both are centred:
# their mean is subtracted. R also gets a factor, so that values become as large as keys.
#
# Then `wv` becomes `wv` R, and `wo` becomes R⁻¹ `wo`. This is still the same model. Only then comes
# the mean.


# %% Procrustes
def fit(a, b):
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return turn(a, b) * np.linalg.norm(b) / np.linalg.norm(a)


def procrustes(wq, wk, wv, wo, K, V):
    R = [fit(values, keys) for values, keys in zip(V, K, strict=True)]
    R = np.array(R)  # (H, d, d)
    return average(wq, wk, wv @ R, np.linalg.inv(R) @ wo)


examples = x[-256:]
with mq.no_grad(), mq.trace() as t:
    model(examples)
K, V = (t[at + name].swapaxes(0, 1) for name in "kv")  # (H, n, T, d)
K, V = K.reshape(4, -1, 8), V.reshape(4, -1, 8)  # (H, n · T, d)
by_hand = procrustes(wq, wk, wv, wo, K, V)
found["procrustes"] = score(by_hand)
package = convert.convert(model, "q-k=v", "procrustes", [examples])
with mq.no_grad():
    both = by_hand(test), package(test)  # (n, T, V) each
predict("How many digits do you expect to be right?", guess(found["procrustes"]), few)
say(f"It is {found['procrustes']:.1%}.")
compare("answers by hand", both[0], "the package", both[1], 1e-6)

# %% [markdown]
# The last way takes no mean. It keeps the values, and changes the queries so that they find them.
# Can a key be computed from the value of the same token? Least squares finds a matrix M and a
# constant c:
#
#     k  ≈  v M + c
#
# What does the constant do? It is in every key, so it adds the same number, q · c, to every score
# of a query q. Let a query have three scores, and let that number be five.

# %% A constant drops out
scores = np.array([2.0, 1.0, 0.0])


def softmax(scores):
    e = np.exp(scores)
    return e / e.sum()


both = np.array([softmax(scores), softmax(scores + 5)])
predict("Five is added to every score. Do the weights change?", not np.allclose(*both))
show("weights", both, rows=["before", "after"])
say("Every exponential is multiplied by the same factor, and so is their sum. The factor cancels.")

# %% [markdown]
# So c drops out of the softmax. What is left of a score is
#
#     q · (v M)  =  (q Mᵀ) · v
#
# As in lesson 17, the matrix moves to the query. So `wq` becomes `wq` Mᵀ, bias included, and the
# values serve as keys. The package calls this **refit-q**.
#
# What is lost is what a key says and the value does not. R² measures it, as in lesson 18, but here
# the keys are to be explained.


# %% Refit the queries
def refit_q(wq, wk, wv, wo, K, V):
    M = []
    for keys, values in zip(K, V, strict=True):  # (n · T, d) each
        keys, values = keys - keys.mean(axis=0), values - values.mean(axis=0)
        M.append(np.linalg.lstsq(values, keys, rcond=None)[0])
    return tied(wq @ np.array(M).swapaxes(1, 2), wv, wo)


pairs = zip(V.reshape(4, -1, 8, 8), K.reshape(4, -1, 8, 8), strict=True)
r2 = [cross_r2(*pair) for pair in pairs]
by_hand = refit_q(wq, wk, wv, wo, K, V)
found["refit-q"] = score(by_hand)
package = convert.convert(model, "q-k=v", "refit-q", [examples])
with mq.no_grad():
    both = by_hand(test), package(test)  # (n, T, V) each
show("R² of the keys by the values", np.array(r2), columns=heads)
predict("How many digits do you expect to be right?", guess(found["refit-q"]), few)
say(f"It is {found['refit-q']:.1%}.")
compare("answers by hand", both[0], "the package", both[1], 1e-6)

# %% [markdown]
# Now all five in three bases: as trained, turned, and changed by any matrices A and B. The model is
# the same each time. If the score of a method changes with the basis, it depends on chance.

# %% Which score stays?
anyhow = rng.standard_normal((2, 4, 8, 8))
as_is = np.tile(np.eye(8), (2, 4, 1, 1))
shares = {name: [] for name in found}
for A, B in (as_is, turns, anyhow):
    w = rewritten(A, B)
    made = [tied(w[0], w[1], w[3]), tied(w[0], w[2], w[3]), average(*w)]
    made += [way(*w, K @ A, V @ B) for way in (procrustes, refit_q)]
    for name, each in zip(found, made, strict=True):
        shares[name].append(score(each))
spread = {name: np.ptp(each) for name, each in shares.items()}
(stays,) = [name for name in found if spread[name] < 1e-9]
predict("Which method gets the same score in all three?", stays, list(found))
rows = [[name, *each] for name, each in shares.items()]
table("digits right", ["method", "as trained", "turned", "any"], rows)
say("Procrustes gets the same score if bases are turned. Refit-q gets it in any basis.")

# %% [markdown]
# Zero-shot is only the beginning: a converted model can be trained further. We give each of the
# five twenty steps, at a third of the learning rate, and a new `q-k=v` model twenty steps as well.
#
# Which method is best depends on the model. `minqkv convert RUN --to q-k=v` tries all five on your
# own run, and with `--steps N` it trains them further. In the exercise you write `refit`, for one
# head.
#
# So one matrix is used twice, in a model that never learned to. The last lesson asks what half the
# cache is worth in time.


# %% A little training
def trained_on(model, lr):
    optimizer = Adam(model.parameters(), lr=lr)
    x, y = task.draw(1, "train", 20 * 32)
    for batch in zip(np.split(x, 20), np.split(y, 20), strict=True):
        mq.train_step(model, optimizer, *batch)
    return score(model)


w = wq, wk, wv, wo
made = [tied(wq, wk, wo), tied(wq, wv, wo), average(*w)]
made += [procrustes(*w, K, V), refit_q(*w, K, V)]
made += [mq.Tagger(mq.TaggerConfig(**size, variant="q-k=v"), seed=0)]
later = [[score(each), trained_on(each, 5e-3 / 3)] for each in made[:-1]]
later += [[score(made[-1]), trained_on(made[-1], 5e-3)]]
rows = [[n, *pair] for n, pair in zip([*found, "new"], later, strict=True)]
predict("How many digits does the new model get right after them?", guess(later[5][1]), few)
predict("And the one that was made by refit-q?", guess(later[4][1]), few)
table("digits right", ["model", "zero-shot", "20 steps"], rows)
source(convert.convert)
source(convert.METHODS["procrustes"])
source(convert.METHODS["refit-q"])
