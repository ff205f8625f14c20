# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "A model that writes"
# question = "What does it take to write a text, one character after another?"
# needs = [
#   "cross-entropy", "loss", "training step", "seed", "softmax", "positions", "temperature",
#   "q-k=v", "qkv", "cache", "cache bytes", "decode", "perplexity",
# ]
# teaches = ["tokenizer", "pairs", "language model", "sampling", "top-p"]
# minutes = 20
# budget_s = 5
# exercise = "top_p"
# uses = [
#   "minqkv.KVCache", "minqkv.VariantSpec", "minqkv.functional.cross_entropy", "minqkv.generate",
#   "minqkv.generation.iter_tokens", "minqkv.generation.nucleus", "minqkv.generation.pick",
#   "minqkv.no_grad",
#   "minqkv.runs.configure", "minqkv.runs.train_run", "minqkv.tasks.downloads.place",
#   "minqkv.tasks.text.Text", "minqkv.tasks.tokenizers.Chars", "minqkv.train.fit",
# ]
# ///

# %% [markdown]
# So far our models have learned small tasks that we made up. In this lesson you train a model on
# real text, and then it writes.
#
# A model reads numbers, so the text must become numbers first. That is the work of a **tokenizer**.
# The simplest one gives each character that occurs in the text a number, its **id**, in
# the order of Unicode. One more id marks the end of a document.
#
# The text is built in: source files and lessons of this package. If you have fetched tiny
# Shakespeare (`minqkv data fetch shakespeare`), that is used instead. A **task** holds the text and
# says how a model is trained on it.

# %% A text is numbers
import numpy as np

import minqkv as mq
from minqkv import backend, generation, runs, train
from minqkv import functional as F
from minqkv.tasks import downloads, tokenizers
from minqkv.tasks.text import Text
from minqkv.teach import cache_step, compare, curve, predict, say, show, source, table, trained

fetched = downloads.place("shakespeare").exists()
name = "shakespeare" if fetched else ""  # "": the built-in text
options = {"text": name, "threads": 2, "split": "validation"}
config = runs.configure("text", "q-k=v", **options)
task = config.task
text = task.corpus.tokens("train")[:]  # (n,)
V = task.vocab_size


def spelled(ids):
    names = [ascii(task.decode([i]))[1:-1] for i in ids]  # a line break: \n
    return [name if name != " " else "space" for name in names]


a = task.prompt("a")[0]
say(f"{len(text):,} tokens to learn from, and {V} different ones.")
show("ids", text[:10], columns=spelled(text[:10]), digits=0)
predict(f"The id of `a` is {a}. What is the id of `c`?", task.prompt("c")[0])
back = task.decode(text[:40])
say(f"And back: {back!a}")

# %% [markdown]
# What is there to learn? One example is **one pair of characters**: the one that was read, and the
# one that comes next. The first is the input, the second the target.
#
# A window of the text holds many pairs. Its inputs are all tokens but the last, and its targets are
# the same tokens shifted by one. With a causal mask the model predicts all targets at once, and
# each prediction may use its input and everything to the left of it.

# %% One pair, and many
window = text[:9]
x, y = window[:-1], window[1:]  # (T,) each
predict("A window has nine tokens. How many pairs is that?", len(x))
rows = zip(map(str, range(len(x))), spelled(x), spelled(y), strict=True)
table("one window", ["position", "read", "next"], rows)
x, y = task.batch(config.seed, 0, config.recipe.batch)  # (B, T), of step 0
predict(
    f"A step takes {len(x)} windows, each with {x.shape[1]} inputs. How many predictions does "
    "the model learn from?",
    y.size,
)
compare("inputs, from the second one on", x[:, 1:], "targets, up to the last but one", y[:, :-1])

# %% [markdown]
# How good is a model that has learned nothing? It gives each of V tokens the probability 1/V, so
# its loss is log V, and its perplexity is V (lesson 12: the number of equal choices).
#
# A fresh model is not exactly like that, because its weights are random. But they are small.

# %% Before it has learned anything
equal = mq.Tensor(backend.upload(np.zeros((1, 1, V))))  # (B, T, V)
nothing = F.cross_entropy(equal, np.zeros((1, 1), int)).item()
fresh = config.build()
with mq.no_grad():
    start = F.cross_entropy(fresh(x), y).item()
compare("loss of a model that knows nothing", nothing, "log V", np.log(V))
predict(
    f"V is {V}. About how large is the loss of a fresh model? (log V, by hand)",
    start,
    tolerance=0.2,
)
table(
    "before training",
    ["", "loss", "perplexity"],
    [["knows nothing", nothing, np.exp(nothing)], ["fresh model", start, np.exp(start)]],
)

# %% [markdown]
# Before we train a model with attention, let us see how far we get without it. A model that looks
# at only **one** character needs no more than a table: how often did each character follow each
# other one? This needs no gradient: we count.
#
# Here is a corner of that table. The row is the character that was read, the column the next one.

# %% Counting pairs
counts = np.zeros((V, V))  # row: what is read, column: what comes next
np.add.at(counts, (text[:-1], text[1:]), 1)
few = task.prompt("aehty ")
corner = counts[np.ix_(few, few)]  # (6, 6)
names = spelled(few)
likely = spelled(counts[task.prompt("t")[0]].argsort()[::-1][:4])
predict("Which character comes most often after `t` in this text?", likely[0], sorted(likely))
show("counts", corner, rows=names, columns=names, digits=0)
say(f"After `t`, the most frequent ones are: {', '.join(likely)}.")

# %% [markdown]
# A count divided by the sum of its row is a probability. The mean loss of this table, on the same
# text that was counted, is called the **conditional entropy** of the next character:
#
#     − Σ p(a, b) · log p(b | a)
#
# On that text, no model that looks at only one character can have a lower loss. We try two others.
# One ignores what was read and knows only how often each character occurs. The other is the table
# with one added to each count.


# %% The conditional entropy
def loss_of(table, pairs):
    p = table / table.sum(axis=1, keepdims=True).clip(1)  # (V, V)
    total = (pairs * np.log(p, out=np.zeros_like(p), where=p > 0)).sum()
    return -total / pairs.sum()


single = np.tile(counts.sum(axis=0), (V, 1))  # (V, V), all rows the same
tables = {"single characters": single, "pairs": counts}
tables["pairs, plus one"] = counts + 1
entropy = loss_of(counts, counts)
predict(
    f"Without any knowledge there are {V} choices. About how many are left, as a perplexity, when "
    "one character is known?",
    float(np.exp(entropy)),
    tolerance=4,
)
losses = {name: loss_of(t, counts) for name, t in tables.items()}
rows = [[name, loss, np.exp(loss)] for name, loss in losses.items()]
table("on the text that was counted", ["table", "loss", "perplexity"], rows)

# %% [markdown]
# What matters is the loss on a text that was not counted. Some of its pairs may never occur in the
# old one. The table gives them the probability 0, and a single such pair makes the loss infinite.
#
# So we add a small amount to every count. We choose the amount that is best on the new text, which
# gives the table a slight advantage. This is the loss that our model has to beat.

# %% A text it has not read
x, y = task.draw(config.seed, "validation")  # (n, T) each
unseen = int((counts[x, y] == 0).sum())
predict(
    f"There are {y.size:,} pairs in these windows. Does each of them occur in the training text?",
    unseen == 0,
)
say(f"Pairs that never occur there: {unseen:,}.")
found = []
for added in (1, 0.3, 0.1, 0.03, 0.01):
    p = counts + added  # (V, V)
    p /= p.sum(axis=1, keepdims=True)
    found.append((float(-np.log(p[x, y]).mean()), added, p))
line, added, p_pairs = min(found, key=lambda row: row[0])
rows = [[f"{amount:g}", loss, np.exp(loss)] for loss, amount, _ in found]
table("on a text that was not counted", ["added", "loss", "perplexity"], rows)
say(f"The loss to beat: {line:.3f}.")

# %% [markdown]
# Now the model: three blocks with a causal mask, each with four heads. It is called `nano`, and its
# attention is `q-k=v`: one array for keys and values.
#
# Training takes a few minutes. Watch the loss go down. Now and then you see a sample of what the
# model writes, and its perplexity on text that it is not trained on. You may press Ctrl-C: a
# checkpoint is saved, and training continues from there when you come back to this lesson.

# %% Training
n_steps, per_step = config.recipe.steps, config.recipe.batch * task.seq_len
predict(
    f"It takes {n_steps:,} steps of {per_step:,} tokens each. About how many times the length of "
    "the training text is that?",
    n_steps * per_step / len(text),
    tolerance=0.6,
)
model, losses, result, folder = trained("nano", config)
parts = [part.mean() for part in np.array_split(losses, 40) if len(part)]
say(f"{result['params']:,} parameters, {len(losses):,} steps.")
say(
    "This was a short training, and it was not stored."
    if folder is None
    else f"It is stored in {folder}."
)
both = {"model": parts, "table of pairs": [line] * len(parts)}
curve("loss while it trains", both, x="part of the training")

# %% [markdown]
# In training, the loss may also fall because the model learns that text by heart. So we measure it
# on the text that the model has not read, with the same targets as for the table. Each target
# counts, because no window is padded. (If each document had its own row, there would be
# padding, and lesson 12 showed why it must not count.)
#
# There is one more number. Perplexity is per token, and tokenizers split a text into different
# tokens. To compare models with different tokenizers, divide the total loss, in bits, by the number
# of bytes of the text. This is called **bits per byte**.

# %% Better than the table?
score = train.evaluate(model, x, y)["loss"]
compare("the loss measured here", score, "the one kept by the run", result["loss"], 1e-5)
predict("On the text it has not read: is the model's loss below the table's?", bool(score < line))
found = {"knows nothing": nothing, "table of pairs": line, "model": score}
rows = [[name, loss, np.exp(loss)] for name, loss in found.items()]
table("on a text that was not read", ["", "loss", "perplexity"], rows)
bits = f"{result['bits_per_byte']:.3f}"
say(f"The model needs {bits} bits per byte. The plain file takes {8}.")

# %% [markdown]
# Where does the difference come from? The model can look further back than one character. But not
# everywhere: at the first position of a window it sees one character, just like the table. So we
# compare the losses at each position.

# %% What it gains from looking back
with mq.no_grad():
    logits = model(x).numpy()  # (n, T, V)
logits -= logits.max(axis=-1, keepdims=True)
total = np.exp(logits).sum(axis=-1)  # (n, T)
right = y[..., None].astype(int)  # (n, T, 1)
right = np.take_along_axis(logits, right, axis=-1)[..., 0]  # (n, T)
by_position = (np.log(total) - right).mean(axis=0)  # (T,)
by_pairs = -np.log(p_pairs[x, y]).mean(axis=0)  # (T,), of the same targets
sides = ["at the first position", "at the last position"]
gain = by_pairs - by_position  # (T,)
predict(
    "At the first position of the windows: is the model's loss below the table's?",
    bool(by_position[0] < by_pairs[0]),
)
predict(
    "Where is the model's loss further below the table's?",
    sides[int(gain[-8:].mean() > gain[0])],
    sides,
)
curve("loss by position", {"model": by_position, "table of pairs": by_pairs}, x="position")
rows = [["first", by_pairs[0], by_position[0]]]
rows += [["last eight", by_pairs[-8:].mean(), by_position[-8:].mean()]]
table("by position", ["position", "table", "model"], rows)
compare("mean over all positions", by_position.mean(), "the loss", score, 1e-4)

# %% [markdown]
# To write, the model reads a beginning, the prompt. Its scores for the next token become
# probabilities, one token is drawn, and then it is read as well (lesson 10).
#
# Before the softmax the scores may be divided by a number, the **temperature**. Above 1, the
# probabilities move closer together. Below 1, they move apart. At 0 the likeliest token is always
# taken: nothing is left to chance.


# %% Temperature
def chances(scores, temperature):
    e = np.exp((scores - scores.max()) / temperature)  # (V,)
    return e / e.sum()


prompt = task.prompt(task.example())
with mq.no_grad():
    scores = model([prompt]).numpy()[0, -1].astype(np.float64)  # (V,)
temperatures = (0.01, 0.7, 1.0, 1.3)
p = np.array([chances(scores, t) for t in temperatures])  # (4, V)
best = p[2].argsort()[::-1][:6]
predict(
    f"Is the likeliest token more likely at {temperatures[3]} than at {temperatures[2]}?",
    bool(p[3].max() > p[2].max()),
)
show("p", p[:, best], rows=[f"{t:g}" for t in temperatures], columns=spelled(best))
choices = np.exp(-(p * np.log(p.clip(1e-300))).sum(axis=1))  # (4,)
say(f"The prompt: {task.decode(prompt)!a}")
rows = [[f"{t:g}", c] for t, c in zip(temperatures, choices, strict=True)]
table("the number of equal choices", ["temperature", "choices"], rows)

# %% [markdown]
# Now it writes. At each temperature it continues the same prompt eight times, with different random
# draws. One of the eight texts is shown; a line break is written as `\n`.
#
# Then we look at the words of all eight: what share of them occurs in the training text, and how
# many different words there are.


# %% What it writes
def words(text):
    return "".join(c if c.isalpha() else " " for c in text).split()


known = set(words(task.decode(text)))
new = task.seq_len + 1 - len(prompt)  # as much as there are positions for
written, rows = {}, []
for t in (0, 0.7, 1.3):
    out = mq.generate(model, [prompt] * 8, new, temperature=t)  # (8, T)
    written[t] = [task.decode(ids[len(prompt) :]) for ids in out]
    found = [word for each in written[t] for word in words(each)]
    share = sum(word in known for word in found) / max(1, len(found))
    different = len(set(written[t]))
    rows.append([f"{t:g}", f"{share:.0%}", len(set(found)), different])

predict(
    f"At temperature 0, how many of the {len(written[0])} texts are different?",
    len(set(written[0])),
)
say("\n".join(f"{t:g}: {each[0]!a}" for t, each in written.items()))
heads = ["temperature", "known words", "different words", "different texts"]
table("eight texts at each temperature", heads, rows)
say("A low temperature gives more repetition. A high one gives more variety, and more mistakes.")

# %% [markdown]
# Each token that was read stays in the cache (lesson 10). This model keeps one array per layer, and
# `qkv` would keep two. We watch the bytes while it writes, and compare them with the formula of
# lesson 09 after every token.

# %% The cache while it writes
ledger, cfg = mq.VariantSpec.parse("q-k=v"), model.config
per_token = ledger.cache_bytes_per_token(cfg, itemsize=4)
both = [mq.VariantSpec.parse("qkv").stored(cfg)] * cfg.n_layer
twice = mq.KVCache(both, 1, task.seq_len).capacity_nbytes // task.seq_len
cache, sizes, lengths = model.new_cache(), [], []
for _token in generation.iter_tokens(model, [prompt], new, 0.7, cache=cache):
    sizes.append(cache.nbytes)
    lengths.append(len(cache))
try:
    mq.generate(model, [prompt], new + 1)
except ValueError as error:
    refusal = str(error)
lengths, sizes = np.array(lengths), np.array(sizes)

predict(
    f"{cfg.n_layer} layers, one array in each, {cfg.n_embd} numbers of four bytes per token: how "
    "many bytes does one token take?",
    int(sizes[0] // lengths[0]),
)
compare("bytes after each token", sizes, "the formula", per_token * lengths)
at = sorted({0, 1, 2, new // 2, new - 1})
rows = []
for n in at:
    kept = lengths[n]
    rows.append([str(n + 1), kept, sizes[n], per_token * kept, twice * kept])
table("while it writes", ["token", "stored", "bytes", "formula", "qkv"], rows)
predict(
    f"The prompt has {len(prompt)} tokens, {new} were written. How many are in the cache at the "
    "end?",
    int(lengths[-1]),
)
cache_step(cache, cfg)
say("The last token that is written is never read, so the cache does not hold it.")
say(f"One token more is refused: {refusal}.")

# %% [markdown]
# The cache is full, and the model has no further positions. Lesson 14 is about caches that do not
# grow.
#
# One thing remains, for your exercise. Even at temperature 1, most of the vocabulary has some small
# chance. Each of these tokens is unlikely, but there are many of them: sooner or later one is drawn
# and spoils a word. **Top-p** cuts off this tail. Sort the tokens, the likeliest first, add up
# their probabilities, and keep as few as are needed to reach p. Then divide by the sum of those
# kept, so that the sum is 1 again.

# %% Cutting off the tail
order = (-p[2]).argsort()  # (V,), the likeliest first, at temperature 1
falling = p[2][order]  # (V,)
reached = falling.cumsum()  # (V,)
enough = int((reached < 0.9).sum()) + 1  # the one that reaches 0.9 is kept
shown = np.array([falling[: enough + 1], reached[: enough + 1]])[:, :12]
predict(
    f"These are the chances after the same prompt. How many of {V} tokens does it take to reach "
    f"{0.9}?",
    enough,
)
show("p and its sums", shown, rows=["p", "sum"], columns=spelled(order[: shown.shape[1]]))
tail = 1 - reached[enough - 1]
say(f"The other {V - enough} tokens had a probability of {tail:.3f} together.")
say(f"The kept ones are divided by {reached[enough - 1]:.3f}.")

# %% [markdown]
# Top-p keeps few tokens where the model is sure, and many where it is not. A fixed number, as in
# `top_k`, cannot do that.
#
# In the exercise you write `top_p`, for a whole batch. Your model stays in its folder, so you can
# let it write more, with any prompt and temperature: `minqkv generate --help`.

# %% Where it is done
beginning = "ROMEO:" if fetched else "def "
temperature = temperatures[1]
command = f'minqkv generate {folder} "{beginning}"'
say(
    f"{command} --temperature {temperature}"
    if folder
    else "No model was stored, because this was a short training."
)
source(tokenizers.Chars)
source(Text.batch)
source(train.fit)
source(Text.predict, at='found["perplexity"]')
source(runs.train_run)
source(generation.pick)
source(generation.nucleus)
