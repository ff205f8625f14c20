# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "Patches are tokens"
# question = "A model reads tokens. How can it read an image?"
# needs = [
#   "matmul", "cross-entropy", "loss", "training step", "seed", "positions", "attention", "pattern",
#   "causal mask", "heads", "block", "parameters", "q-k=v",
# ]
# teaches = ["patches", "class token", "attention map"]
# minutes = 18
# budget_s = 6
# exercise = ["patchify", "unpatchify"]
# uses = [
#   "minqkv.AdamW", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.Tensor", "minqkv.no_grad",
#   "minqkv.trace", "minqkv.train_step", "minqkv.functional.concat", "minqkv.models.Block",
#   "minqkv.models.ViT", "minqkv.models.ViTConfig", "minqkv.models.patchify",
#   "minqkv.models.unpatchify", "minqkv.tasks.images.Images", "minqkv.tasks.shapes.draw",
#   "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# Our models have read digits and characters. Attention itself needs neither: it works on rows of
# numbers, one row for each token. So what would the tokens of an **image** be?
#
# An image is already an array. A grey one has one number for each pixel, from 0 for black to 1 for
# white. A batch of images is (B, height, width, C): C is 1 for grey, and three for colour.
#
# The package can draw images of shapes. Size, place, angle and shade are random, and there are
# stripes and noise. We take four kinds of shape and halve the images, so that they fit the screen.
# `covered` is the share of each pixel that the shape covers.

# %% An image is numbers
import numpy as np

import minqkv as mq
from minqkv import backend, train
from minqkv import functional as F
from minqkv.models import Block, ViT, ViTConfig, patchify, unpatchify
from minqkv.tasks import shapes
from minqkv.tasks.images import Images
from minqkv.teach import compare, curve, heat, predict, say, show, source, table

kinds = ["disc", "ring", "cross", "bars"]


pixels, shape, inside = shapes.draw(np.random.default_rng(15), 4000)
names = np.array(list(shapes.SHAPES))[shape]  # (n,)
mine = np.isin(names, kinds)


def halved(array):
    return array[mine].reshape(-1, 16, 2, 16, 2).mean((2, 4))[..., None]


images, covered = halved(pixels / 255), halved(inside)  # (B, 16, 16, 1)
y = np.array([kinds.index(name) for name in names[mine]])  # (B,)
crosses = (y == kinds.index("cross")) & (images.mean((1, 2, 3)) < 0.4)
here = int(np.flatnonzero(crosses)[0])  # the first before a dark background
heat("a cross", images[here, ..., 0], digits=0)
predict(
    f"It has {images.shape[1]} rows of {images.shape[2]} pixels. If every pixel were a token, how "
    "many weights would the pattern of one head have?",
    images[here].size ** 2,
)

# %% [markdown]
# A pattern has a weight for each pair of tokens, so a token for each pixel is expensive. Even a
# small photograph has a hundred times as many pixels, which makes ten thousand times as many pairs.
# And a single pixel says very little.
#
# So we cut the image into squares, the **patches**, and make each patch a token. Patches are taken
# from left to right and from top to bottom, like words on a page. The pixels in a patch are written
# out in the same order, as one row of numbers.

# %% Cutting
tiny = np.arange(24).reshape(1, 4, 6, 1)  # (B, height, width, C)
P = 2  # pixels of a side
by_hand = []
for top in range(0, 4, P):
    for left in range(0, 6, P):
        square = tiny[0, top : top + P, left : left + P]  # (P, P, C)
        by_hand.append(square.reshape(-1))  # (P·P·C,)
by_hand = np.array([by_hand])  # (B, N, P·P·C)

show("tiny", tiny[0, ..., 0], digits=0)
predict("How many patches of two by two pixels does it have?", by_hand.shape[1])
predict("Which numbers are in patch 1? (We count from 0.)", str(by_hand[0, 1].tolist())[1:-1])
show("patches", by_hand[0], rows=[f"patch {i}" for i in range(len(by_hand[0]))], digits=0)
compare("by hand", by_hand, "the package", patchify(tiny, P))

# %% [markdown]
# Nothing is lost: `unpatchify` puts the patches back. No number was changed, only the order in
# which they are written.
#
# How large should a patch be? An image with a side of S pixels has (S/P)² patches of P·P numbers
# each. With small patches there are many tokens, and the pattern grows with the square of their
# number. With large patches there are few tokens, and each has to say more.

# %% Few large tokens, or many small ones
rows = []
for size in (1, 2, 4, 8, 16):
    x = patchify(images[:1], size)  # (B, N, size·size)
    back = unpatchify(x, size, 16, 16)  # (B, 16, 16, 1)
    N, numbers = x.shape[1:]
    rows.append([f"{size} × {size}", N, numbers, N * N])
P = 4
x = patchify(images, P)  # (B, N, P·P)
predict(f"In patches of {P} by {P} pixels, how many tokens is one of our images?", x.shape[1])
table("one image", ["patch", "tokens", "numbers each", "weights of a pattern"], rows)
compare("cut and put back", unpatchify(x, P, 16, 16), "the images", images)

# %% [markdown]
# A token enters a model as a row of `n_embd` numbers. For a digit, that row was looked up in a
# table (lesson 05), which amounts to a one-hot row times a matrix. A patch is not one-hot. But a
# row times a matrix works for any row:
#
#     tokens = x @ W + b
#
# So the rest of the model need not know that it reads an image. We scale the pixels first, so that
# their mean is 0 and their standard deviation is 1.

# %% A patch becomes a token
n_train = len(x) - 300  # the other images are for the test
mean, deviation = x[:n_train].mean(), x[:n_train].std()
x = (x - mean) / deviation  # (B, N, P·P)
size = {"n_in": P * P, "n_token": x.shape[1], "n_class": len(kinds)}
size |= {"n_layer": 2, "n_head": 2, "n_embd": 32}
size |= {"variant": "q-k=v", "dtype": "float64"}
model = ViT(ViTConfig(**size))
W = model.embed.weight.numpy()  # (P·P, n_embd)
b = model.embed.bias.numpy()  # (n_embd,)
one = x[here : here + 1]  # (1, N, P·P)
tokens = model.embed(mq.Tensor(backend.upload(one)))  # (1, N, n_embd)
predict(
    f"A patch has {P * P} numbers, a token {W.shape[1]}. How many weights does `W` have?",
    W.size,
)
say(f"One image becomes {tokens.shape[1]} tokens of {tokens.shape[2]} numbers.")
compare("x @ W + b", one @ W + b, "the package", tokens.numpy(), tolerance=1e-9)

# %% [markdown]
# Is that enough? Attention takes weighted averages, and an average does not depend on the order of
# its terms. So for a model without positions, an image is a bag of patches.
#
# We shuffle the patches of the image. Two fresh models read the image and the shuffled one: the
# first has no positions, the second has a learned row for each place, as our text models had.
# Both answer from the mean of all tokens.

# %% A bag of patches
order = np.random.default_rng(0).permutation(x.shape[1])  # (N,)
shuffled = one[:, order]  # (1, N, P·P)
found = {}
for position in ("none", "learned"):
    reader = ViT(ViTConfig(**size, pool="mean", position=position))
    with mq.no_grad():
        found[position] = [reader(x).numpy() for x in (one, shuffled)]

mixed = unpatchify(shuffled * deviation + mean, P, 16, 16)
heat("the same patches", mixed[0, ..., 0], digits=0)
a, b = found["none"]  # (1, n_class) each
predict("Can the model without positions tell the two apart?", bool(abs(a - b).max() > 1e-9))
compare("without positions: the image", a, "the shuffled one", b)
a, b = found["learned"]
compare("with positions: the image", a, "the shuffled one", b, same=False)

# %% [markdown]
# We want one answer for the whole image, but there is a row for each patch. Which one should we
# read? The mean of all rows is one way. Another way is to put one more token before the patches,
# the **class token**. It shows no part of the image: it is a learned row, the same for all images.
# But it can look at all the patches, and collect what is needed. The answer is read from its row
# alone.
#
# Below is the whole model, written out. There is no causal mask, because all patches are there from
# the start: every token may look at every other.

# %% One more token
zeros = mq.Tensor(backend.upload(np.zeros((1, 1, size["n_embd"]))))
with mq.no_grad(), mq.trace() as t:
    h = F.concat([model.cls + zeros, tokens], axis=1)  # (1, 1 + N, n_embd)
    h = model.wpe(h)  # positions are added
    for block in model.blocks:
        h = block(h)  # (1, 1 + N, n_embd)
    by_hand = model.head(model.ln_f(h[:, 0]))  # (1, n_class)
pattern = t["blocks.0.attn.pattern"]  # (1, H, 1 + N, 1 + N)
predict("How many tokens do the blocks see?", h.shape[1])
predict("Does the first patch look at the last one?", bool(pattern[0, 0, 1, -1] > 0))
compare("written out", by_hand.numpy(), "the package", model(one).numpy())

# %% [markdown]
# `block` is the block of lesson 07, and its attention is the one of lesson 06. Nothing in it was
# made for images. To see that, we compare its parameters with those of a GPT of the same size.

# %% The same block
same = ("n_layer", "n_head", "n_embd", "variant")
alike = {name: size[name] for name in same}
gpt = mq.GPT(mq.GPTConfig(vocab_size=10, block_size=17, **alike))


def in_blocks(model):
    shapes = {name: a.shape for name, a in model.state_dict().items()}
    return {name: shapes[name] for name in shapes if "blocks" in name}


parts = ("embed", "cls", "wpe", "blocks", "ln_f", "head")
counts = dict.fromkeys(parts, 0)
for name, array in model.state_dict().items():
    counts[name.split(".")[0]] += array.size
predict(
    "Do the blocks of the two models have parameters of the same names and shapes?",
    in_blocks(model) == in_blocks(gpt),
)
what = ["patches to tokens", "class token", "positions", "attention, MLP"]
what += ["last norm", "answer"]
rows = list(zip(parts, counts.values(), what, strict=True))
table("parameters", ["part", "numbers", "what for"], rows)
share = counts["blocks"] / model.n_params
say(f"{model.n_params:,} parameters, {share:.0%} of them in the blocks.")

# %% [markdown]
# Now it learns. A step takes a few images at random, and the loss is the cross-entropy of the right
# kind of shape: the same training step as ever. Some images are kept aside for the test.

# %% Training
rng = np.random.default_rng(1)
optimizer, losses, steps = mq.AdamW(model.parameters(), lr=5e-3), [], 250
for step in range(steps):
    optimizer.lr = 5e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
    rows = rng.integers(0, n_train, 32)
    losses.append(mq.train_step(model, optimizer, x[rows], y[rows]))
test, answers = x[n_train:], y[n_train:]  # (300, N, P·P), (300,)
score = train.evaluate(model, test, answers)
guess = 1 / len(kinds)
predict(
    f"A guess is right on {guess:.0%} of new images. On about which share is the model right?",
    score["accuracy"],
    tolerance=0.1,
)
curve("loss", {"model": losses, "guessing": [float(-np.log(guess))] * steps})
confused = np.zeros((4, 4), int)  # row: the right answer, column: the model's
np.add.at(confused, (answers, score["predictions"]), 1)
show("new images", confused, rows=kinds, columns=kinds, digits=0)
say(f"Right on {score['accuracy']:.1%} of {len(test)} images.")

# %% [markdown]
# What does the class token look at? Its row of the pattern has a weight for each patch. Written in
# the order of the patches, these weights are a small picture, called an **attention map**. The
# weights come from the trained model, on an image that it was not trained on.
#
# One weight is left out: that of the class token on itself. For comparison we also show the share
# of each patch that the shape covers.

# %% Where the class token looks
right = crosses[n_train:] & (score["predictions"] == answers)  # (300,)
seen = int(np.flatnonzero(right)[0])
with mq.no_grad(), mq.trace() as t:
    model(test)
rows = [t[f"blocks.{layer}.attn.pattern"][:, :, 0, 1:] for layer in (0, 1)]
maps = np.array(rows).swapaxes(1, 2)  # (layers, H, 300, N)
shares = patchify(covered[n_train:], P).mean(axis=-1)  # (300, N)
last = maps[1, :, seen].reshape(2, 4, 4)  # (H, 4, 4), of the last layer
heat("the image", images[n_train + seen, ..., 0], digits=0)
even = 1 / (1 + x.shape[1])
predict("If it looked at all tokens equally, how large would each weight be?", even)
heat("covered by the shape", shares[seen].reshape(4, 4), digits=2)
for head in range(2):
    heat(f"head {head} of the last layer", last[head], digits=2)
on = shares >= 0.5  # (300, N): at least half of the patch
ratio = maps[..., on].mean(-1) / maps[..., ~on].mean(-1)  # (layers, H)
ends = ["the shape", "the background"]
predict(
    "Over all test images, where does head 0 of the last layer put more weight on a patch?",
    ends[int(ratio[1, 0] < 1)],
    ends,
)
show("weight on covered / on other patches", ratio, ["layer 0", "layer 1"], ["head 0", "head 1"])

# %% [markdown]
# It is tempting to read such a map as a reason: the model said "cross" because it looked there.
# That does not follow. The value of a patch with a large weight may say nothing new, and tokens
# have already exchanged information in the layers below.
#
# A direct way to ask is to hide one patch after another, by painting it with the mean grey, and to
# see how far the probability of the right answer falls.

# %% Hiding one patch
some, N = test[:100], x.shape[1]  # (100, N, P·P)


def chances(x):
    with mq.no_grad():
        p = F.softmax(model(x)).numpy()  # (100, n_class)
    return p[np.arange(100), answers[:100]]  # (100,), of the right answer


fall = np.zeros((100, N))
for i in range(N):
    hidden = some.copy()
    hidden[:, i] = 0  # the mean grey
    fall[:, i] = chances(some) - chances(hidden)
looked = maps[1, :, :100].mean(axis=0)  # (100, N), mean of the heads
same = float((looked.argmax(axis=1) == fall.argmax(axis=1)).mean())
pairs = zip(looked, fall, strict=True)
together = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
show("fall of the probability, same image", fall[seen].reshape(4, 4), digits=2)
predict(
    "On most images, is the patch with the largest weight the one that matters most when hidden?",
    same > 0.5,
)
say(f"It is so on {same:.0%} of {len(some)} images.")
say(f"Mean correlation of weight and fall, over the patches: {np.mean(together):.2f}.")
say("A map shows where a token reads. What decided the answer is another question.")

# %% [markdown]
# The blocks return a row for each token, so a model may also answer for **each patch**. Then the
# image does not just get a name: its parts are labelled. This is called segmentation. Here the
# right answer of a patch is the kind of shape that covers at least half of it, or "nothing".
#
# Only the end of the model changes: the head reads every row instead of one. A patch alone shows a
# piece of an edge, or a patch of grey. To know which shape it belongs to, it has to ask the others.

# %% An answer for each patch
on = patchify(covered, P).mean(axis=-1) >= 0.5  # (B, N)
labels = np.where(on, y[:, None] + 1, 0)  # (B, N)
each = ViT(ViTConfig(**size | {"n_class": 5}, pool="each"))
optimizer = mq.AdamW(each.parameters(), lr=5e-3)
for step in range(150):
    optimizer.lr = 5e-3 * min(1, (step + 1) / 20) * (1 - step / 150)
    rows = rng.integers(0, n_train, 32)
    mq.train_step(each, optimizer, x[rows], labels[rows])
score = train.evaluate(each, test, labels[n_train:])
nothing = float((labels[n_train:] == 0).mean())
predict('Is it right more often than always answering "nothing"?', score["accuracy"] > nothing)
names = ["nothing", *kinds]
say("   ".join(f"{i} {name}" for i, name in enumerate(names)))
show("right", labels[n_train + seen].reshape(4, 4), digits=0)
show("predicted", score["predictions"][seen].reshape(4, 4), digits=0)
rows = [["always nothing", nothing], ["model", score["accuracy"]]]
table("share of patches that are right", ["", "accuracy"], rows)

# %% [markdown]
# The same model can read other things too. Leave out the positions, and it reads a **set**: permute
# the items, and the answers are permuted with them. `minqkv tasks` lists what can be trained:
# `images` names images, `segment` labels their patches, and `sets` looks for the odd one out.
#
# Sharing projections saves this model no cache, because it has none: all tokens are there at once.
# It saves parameters. Whether it costs accuracy is a question for a table with error bars, as in
# lesson 12: `minqkv study --preset sets`, or `--preset dense`.
#
# In the exercise you write `patchify` and `unpatchify`, for a whole batch. The next two lessons
# return to the cache of a language model: what models that are in use store of a token.

# %% Where it is done
source(patchify)
source(unpatchify)
source(ViT.features)
source(Block.forward)
source(shapes.draw)
source(Images.tokens)
