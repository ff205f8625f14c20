# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "The table, with error bars"
# question = "When is a small difference between two models more than luck?"
# needs = ["seed", "loss", "training step", "cross-entropy", "reverse task", "qkv", "q-k=v", "q=k=v", "q=k-v+"]
# teaches = ["paired seeds", "interval", "perplexity"]
# minutes = 20
# budget_s = 5
# exercise = ["perplexity", "paired"]
# uses = [
#   "minqkv.AdamW", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.train_step", "minqkv.published.synthetic_2026",
#   "minqkv.rng.stream", "minqkv.stats.estimate", "minqkv.stats.paired", "minqkv.stats.spread", "minqkv.stats.t_quantile",
#   "minqkv.study.SOLVED", "minqkv.study.unresolved", "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# You know the variants now, and what each of them saves. What does it cost? Someone trains two models, and one of them
# ends with a slightly lower loss. Is it the better one?
#
# To find out we need something quick to learn. Below is a small language of six symbols: which one comes next depends,
# by chance, on the one before. A document ends after a while, and what is left of its row is filled with the number 6,
# the end sign. That is called **padding**.

# %% A small language
import numpy as np

import minqkv as mq
from minqkv.published import synthetic_2026
from minqkv.rng import stream
from minqkv.stats import estimate, paired, spread, t_quantile
from minqkv.study import SOLVED, unresolved
from minqkv.teach import compare, predict, say, show, source, table
from minqkv.train import evaluate

END = 6


def documents(seed, split, n):
    odds = stream(seed, "language").dirichlet(np.full(6, 0.3), 6)  # (6, 6)
    upto = odds.cumsum(axis=1)
    rng = stream(seed, "documents", split)
    ids = rng.integers(0, 6, (n, 13))  # (n, T + 1)
    for t in range(1, 13):
        drawn = rng.random((n, 1)) > upto[ids[:, t - 1]]  # (n, 6)
        ids[:, t] = drawn.sum(axis=1).clip(max=5)
    length = rng.integers(3, 13, (n, 1))  # symbols before the end sign
    return np.where(np.arange(13) < length, ids, END)


show("four documents", documents(0, "test", 4), digits=0)

# %% [markdown]
# Now a tiny model for it, a decoder with one layer, and eighty steps of training. A **seed** decides everything that is
# left to chance: the language, the documents, and where the weights start. (Numbers are float64 here, so that your
# machine finds what others find.)
#
# `train` keeps each model it has made. `score` takes the mean loss on documents that the model has not read.

# %% A model for it
size = {"vocab_size": 7, "block_size": 12, "n_layer": 1, "n_head": 2}
size |= {"n_embd": 16, "dtype": "float64"}


trained = {}


def train(variant, seed):
    if (variant, seed) not in trained:
        config = mq.GPTConfig(**size, variant=variant)
        model = trained[variant, seed] = mq.GPT(config, seed=seed)
        optimizer = mq.AdamW(model.parameters(), lr=0.01)
        ids = documents(seed, "train", 32 * 80)
        for rows in np.split(ids, 80):  # (32, T + 1) each
            mq.train_step(model, optimizer, rows[:, :-1], rows[:, 1:])
    return trained[variant, seed]


def score(variant, seed, ignore=END):
    ids = documents(seed, "test", 400)
    x, y = ids[:, :-1], ids[:, 1:]  # (n, T) each: what is read, what comes
    y = np.where(x == ignore, -100, y)
    return evaluate(train(variant, seed), x, y)["loss"]


table(
    "parameters", ["variant", "numbers"], [[v, str(mq.GPT(mq.GPTConfig(**size, variant=v)).n_params)] for v in ("qkv", "q-k=v")]
)

# %% [markdown]
# We train each variant once, and score it. Lower is better.

# %% One run each
first = {"qkv": score("qkv", 0), "q-k=v": score("q-k=v", 1)}
table("one run each", ["variant", "loss"], [[name, loss] for name, loss in first.items()])
second = {"qkv": score("qkv", 1), "q-k=v": score("q-k=v", 0)}
ahead = [min(losses, key=losses.get) for losses in (first, second)]
predict("We run both once more, with other seeds. Will the same variant be ahead?", ahead[0] == ahead[1])
table("one more run each", ["variant", "loss"], [[name, loss] for name, loss in second.items()])

# %% [markdown]
# So one run says little. Before we run more of them, two questions about the number itself.
#
# Losses of language models are reported as **perplexity**, the exponential of the mean loss. A model that chooses among
# four symbols with equal chances, again and again, has perplexity four. It is the number of choices that would leave
# one as uncertain as the model is.
#
# Say a model gave these probabilities to the three symbols that came: one halved once, twice, three times.

# %% What a perplexity is
p = np.array([1 / 2, 1 / 4, 1 / 8])
losses = -np.log(p)  # (3,), as cross-entropy counts them
show("p", p)
show("losses", losses)
predict("On average these are two halvings. What is the perplexity?", float(np.exp(losses.mean())))
ratio = float(np.log(1.03))
say(f"A loss that is higher by {ratio:.4f} means a perplexity that is higher by {np.exp(ratio) - 1:.1%}:")
say("for small differences, a difference of losses is nearly a ratio of perplexities. So we stay with losses below.")

# %% [markdown]
# The second question: which predictions are counted? After the first end sign there is nothing left to predict but more
# end signs. `score` above leaves them out, by the target -100, which the loss ignores. That is the **masked** loss.
#
# One may also forget it. The paper's language models were scored with the padding (section 5). (Training reads the
# padding in either case here, as it did there.)

# %% What is counted
ids = documents(0, "test", 400)
x, y = ids[:, :-1], ids[:, 1:]  # (n, T) each
say(f"{(x == END).mean():.1%} of the targets are padding.")
losses = np.array([[score(v, 0), score(v, 0, None)] for v in ("qkv", "q-k=v")])
sides = ["lower", "the same", "higher"]
side = sides[int(np.sign(losses[0, 1] - losses[0, 0])) + 1]
predict("With the padding counted, what becomes of the perplexity?", side, sides)
rows = [[v, *np.exp(row)] for v, row in zip(("qkv", "q-k=v"), losses, strict=True)]
rows.append(["apart by", *(f"{part:.2%}" for part in np.expm1(losses[1] - losses[0]))])
table("perplexity, seed 0", ["variant", "masked", "padded"], rows)
rest = evaluate(train("qkv", 0), x, np.where(x == END, y, -100))["loss"]
say(f"The padding by itself has a loss of {rest:.3f}. Whoever adds easy questions to an exam gets better marks.")
say("The models also look more alike. And how much padding there is depends on the documents, not on the model.")

# %% [markdown]
# Back to the two variants. We train each with six seeds.

# %% Six seeds
variants, seeds = ("qkv", "q-k=v"), range(6)
losses = np.array([[score(name, s) for s in seeds] for name in variants])  # (2, 6)
labels = [f"seed {s}" for s in seeds]
show("masked loss", losses, rows=variants, columns=labels)
predict("With how many of the six seeds is `qkv` the lower of the two?", int((losses[0] < losses[1]).sum()))
rows = [[name, row.mean(), spread(list(row))] for name, row in zip(variants, losses, strict=True)]
table("over seeds", ["variant", "mean", "spread"], rows)
between = abs(losses[1].mean() - losses[0].mean())
say(f"The means differ by {between:.4f}. The seeds of one variant are spread {rows[0][2] / between:.0f} times as wide.")

# %% [markdown]
# Look down the columns. Where one variant finds a seed easy, so does the other: some languages are simply more
# predictable. What a seed does to both has nothing to do with the question we asked.
#
# Here the seeds are **paired**: with the same seed both variants read the same documents in the same order, and each
# parameter that both have starts from the same numbers. For that the package draws a parameter's start from a stream of
# its own, keyed by the seed and the parameter's name.

# %% The same seed
starts = [mq.GPT(mq.GPTConfig(**size, variant=v), seed=0).state_dict() for v in variants]
common = [name for name in starts[0] if name in starts[1]]
only = [name for name in starts[0] if name not in starts[1]]
differ = sum(not np.array_equal(starts[0][name], starts[1][name]) for name in common)
predict("How many of the parameters that both have start differently?", differ)
say(f"{len(common)} are shared, down to the last bit; `qkv` alone has {' and '.join(only)}.")

# %% [markdown]
# So subtract, seed by seed. What both have in common is gone, and what is left is the difference between the variants,
# with the luck that is not shared.

# %% Differences
differences = losses[1] - losses[0]  # (6,), q-k=v minus qkv
spreads = [spread(list(row)) for row in (*losses, differences)]
choices = ["wider", "narrower"]
predict("Are the six differences spread wider than the six losses of `qkv`, or narrower?",
        choices[int(spreads[2] < spreads[0])], choices)  # fmt: skip
show("q-k=v minus qkv", differences, columns=labels, digits=4)
table("spread over seeds", ["of", "spread"], list(zip([*variants, "difference"], spreads, strict=True)))

# %% [markdown]
# How far may the mean of a few differences be from what many would give? That is what an **interval** says. We do one
# by hand, with three of the authors' own runs: the task of sorting, in one size, `qkv` and `q=k-v+`.
#
#     mean ± t · s / √n
#
# where s is the spread of single differences, with n − 1 below the fraction because the mean was taken from the same
# numbers. Divided by √n it is the spread of a mean of n. The factor t comes in the next step.

# %% An interval by hand
cell = (16, 64, 2, 2)  # T, d, layers, heads
runs = {name: synthetic_2026()[name, "sort", *cell] for name in ("qkv", "q=k-v+")}
d = np.array(runs["q=k-v+"]) - np.array(runs["qkv"])  # (3,)
show("accuracies", np.array(list(runs.values())), rows=list(runs), columns=labels[:3])
show("differences", d, columns=labels[:3])
predict("What is the mean of the three differences?", float(d.mean()), tolerance=0.002)
s = np.sqrt(((d - d.mean()) ** 2).sum() / 2)
half = t_quantile(2) * s / np.sqrt(3)
table("step by step", ["", "value"], [["mean", d.mean()], ["s", s], ["s / √n", s / np.sqrt(3)],
      ["t for n = 3", t_quantile(2)], ["t · s / √n", half]])  # fmt: skip
predict("All three are above zero. Does the interval leave zero out?", bool(abs(d.mean()) > half))
package = paired(*(dict(enumerate(runs[name])) for name in ("q=k-v+", "qkv")))
compare("by hand", np.array([d.mean(), half]), "the package", np.array([package.mean, package.half]), tolerance=1e-8)

# %% [markdown]
# Why such a large t? Because s was guessed from few numbers, too. By luck three of them may lie close together, and
# then the interval is far too narrow.
#
# We can watch it. Draw many sets of n numbers around zero, so that there is nothing to find, and count how often an
# interval of 95 percent leaves zero out. It should be one time in twenty.

# %% Why Student's t
rng = np.random.default_rng(12)
normal = t_quantile(10_000)  # with that many numbers, t is what a normal distribution has
alarms = []
for n in (3, 6, 20):
    draws = rng.standard_normal((20_000, n))
    away = abs(draws.mean(axis=1)) / (draws.std(axis=1, ddof=1) / np.sqrt(n))
    alarms.append([f"{n}", normal, (away > normal).mean(), t_quantile(n - 1), (away > t_quantile(n - 1)).mean()])
question = f"With {alarms[0][0]} seeds and the factor {normal:.2f}: how many percent are false alarms?"
predict(question, float(100 * alarms[0][2]), tolerance=3)
table("nothing to find", ["n", "normal", "alarms", "t", "with t"], alarms)
say("Student's t is wide where n is small, by just as much as it must be.")

# %% [markdown]
# Back to our two models. The same six seeds of each can be read in two ways: as two heaps that have nothing to do with
# each other, or seed by seed. For two heaps the spreads of both add up, as squares.
#
# Take a difference of three percent in perplexity, which is about what the paper reports for `q-k=v` against `qkv`. It
# trained each of its language models once.

# %% When three percent is noise
n, three = len(seeds), np.log(1.03)
heaps = t_quantile(2 * n - 2) * np.sqrt((spreads[0] ** 2 + spreads[1] ** 2) / n)
pairs = estimate(list(differences))
predict("Six runs of each, as two heaps: is three percent more than the half width?", bool(three > heaps))
predict("And paired by seed?", bool(three > pairs.half))
rows = [["one run each", "unknown"], ["two heaps", f"± {np.expm1(heaps):.1%}"], ["paired", f"± {np.expm1(pairs.half):.1%}"]]
table("half width, in percent of a perplexity", ["six seeds read as", "half width"], rows)
many = next(m for m in range(2, 1000) if t_quantile(2 * m - 2) * spreads[0] * np.sqrt(2 / m) < three)
say(f"As heaps, it would take about {many} runs of each. One run each has no interval at all: it cannot say.")
say(f"Our difference, paired: {pairs.mean:+.4f} ± {pairs.half:.4f}. Clear of zero: {'yes' if pairs.clear_of_zero else 'no'}.")

# %% [markdown]
# Pairing helps where seeds do to both much the same. It is no magic: the authors' sorting runs hardly share anything,
# and three pairs there know less than we would like.
#
# Two more habits. Where a run either finds the trick or does not, a mean describes no run at all: count how many
# **solved** it, k of n. And an interval that holds zero is no proof that there is no difference; it says what these
# seeds cannot tell.

# %% The authors' runs
rows, clear = [], 0
for name in ("qkv", "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+"):
    sort, reverse = (synthetic_2026()[name, task, *cell] for task in ("sort", "reverse"))
    e = paired(dict(enumerate(sort)), dict(enumerate(synthetic_2026()["qkv", "sort", *cell])))
    clear += e.clear_of_zero and name != "qkv"
    solved = sum(accuracy >= SOLVED for accuracy in reverse)
    difference = "" if name == "qkv" else f"{e.mean:+.3f} ± {e.half:.3f}"
    rows.append([name, f"{np.mean(sort):.3f}", difference, f"{np.mean(reverse):.3f}", f"{solved} of {len(reverse)}"])
predict("Five variants against `qkv` on sorting, three seeds: how many differences are clear of zero?", clear)
table("sort, and reverse", ["variant", "sort", "to qkv", "reverse", "solved"], rows)
say(f"Solved means an accuracy of {SOLVED} or more. Look for a mean near which no run can be.")
say("An interval misses about one time in twenty. In a table of twenty differences, expect one that is clear by luck.")

# %% [markdown]
# That is the course. You have followed a gradient from one number to a cache that holds keys and values in one array,
# and you know how to ask whether it was worth it.
#
# In this last exercise you write `perplexity`, with the mask, and `paired`. Then ask a question of your own:
#
#     minqkv study
#
# trains ten variants with the same seeds, in a few minutes, and prints such a table: every seed, intervals of the
# differences, the bytes of real caches, and a line on what these seeds cannot tell. `minqkv study --help` says how to
# choose variants, tasks, sizes and seeds.

# %% Where it is done
source(paired)
source(estimate, at="t_quantile")
source(t_quantile.__wrapped__)
source(evaluate, at="IGNORE")
source(unresolved)
