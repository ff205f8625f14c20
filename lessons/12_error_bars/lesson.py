# /// script
# requires-python = ">=3.11"
# dependencies = ["minqkv"]
#
# [tool.minqkv.lesson]
# title = "The table, with error bars"
# question = "When is a small difference between two models more than chance?"
# needs = [
#   "seed", "loss", "training step", "cross-entropy", "reverse task", "qkv", "q-k=v", "q=k=v",
#   "q=k-v+",
# ]
# teaches = ["paired seeds", "interval", "perplexity"]
# minutes = 20
# budget_s = 5
# exercise = ["perplexity", "paired"]
# uses = [
#   "minqkv.AdamW", "minqkv.GPT", "minqkv.GPTConfig", "minqkv.train_step",
#   "minqkv.study.published.synthetic_2026", "minqkv.runtime.rng.stream",
#   "minqkv.study.stats.estimate", "minqkv.study.stats.paired", "minqkv.study.stats.spread",
#   "minqkv.study.stats.t_quantile", "minqkv.tasks.base.Task",
#   "minqkv.study.summary.unresolved", "minqkv.train.evaluate",
# ]
# ///

# %% [markdown]
# You know the variants now, and what each of them saves. What do they cost? Someone trains two
# models, and one of them ends with a slightly lower loss. Is it the better one?
#
# To find out we need something quick to learn. Below is a small language of six symbols: the odds
# of the next one depend on the one before. A document ends after a while, and what is left of its
# row is filled with an end sign. That is called **padding**.

# %% A small language
import numpy as np

import minqkv as mq
from minqkv import train
from minqkv.runtime.rng import stream
from minqkv.study import published, stats
from minqkv.study.summary import unresolved
from minqkv.tasks.base import Task
from minqkv.teach import compare, predict, say, show, source, table

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
# Now a tiny model for it, a GPT like that of lesson 10 with one layer, and eighty steps of
# training. A **seed** decides everything that is left to chance: the language, the documents, and
# where the weights start. (Numbers are float64 here, so that your machine gets the same results as
# others.)
#
# `trained` keeps each model it has made, so that none is trained twice.

# %% A model for it
variants = ("qkv", "q-k=v")
size = {"vocab_size": 7, "block_size": 12, "n_layer": 1, "n_head": 2}
size |= {"n_embd": 16, "dtype": "float64"}


models = {}


def trained(variant, seed):
    if (variant, seed) not in models:
        config = mq.GPTConfig(**size, variant=variant)
        model = models[variant, seed] = mq.GPT(config, seed=seed)
        optimizer = mq.AdamW(model.parameters(), lr=0.01)
        ids = documents(seed, "train", 32 * 80)
        for rows in np.split(ids, 80):  # (32, T + 1) each
            mq.train_step(model, optimizer, rows[:, :-1], rows[:, 1:])
    return models[variant, seed]


fewer = trained("qkv", 0).n_params - trained("q-k=v", 0).n_params
d = size["n_embd"]
predict(
    f"`q-k=v` has no matrix (d, d) for its values, and no bias (d,). With d = {d}, how many "
    "numbers fewer is that?",
    fewer,
)

# %% [markdown]
# We train each variant once, and `score` returns its mean loss on documents that it has not read.
# Lower is better. Targets that come after an end sign do not count; more on that soon.


# %% One run each
def score(variant, seed, ignore=END):
    ids = documents(seed, "test", 200)
    x, y = ids[:, :-1], ids[:, 1:]  # (n, T) each: what is read, what comes
    y = np.where(x == ignore, -100, y)  # -100: not counted
    return train.evaluate(trained(variant, seed), x, y)["loss"]


first = {"qkv": score("qkv", 0), "q-k=v": score("q-k=v", 1)}
table("one run each", ["variant", "loss"], [[name, loss] for name, loss in first.items()])
second = {"qkv": score("qkv", 1), "q-k=v": score("q-k=v", 0)}
ahead = [min(losses, key=losses.get) for losses in (first, second)]
predict(
    "We run both again, with other seeds. Will the same variant be ahead?", ahead[0] == ahead[1]
)
table("one more run each", ["variant", "loss"], [[name, loss] for name, loss in second.items()])

# %% [markdown]
# So one run says little. Before we run more of them, two questions about the number itself.
#
# Losses on text are usually reported as **perplexity**, the exponential of the mean loss. A model
# that chooses among four symbols with equal chances, again and again, has perplexity four. It is
# the number of equally likely choices that would leave you as uncertain as the model is.
#
# Say a model gave these probabilities to the three symbols that came: a half, a quarter and an
# eighth.

# %% What a perplexity is
p = np.array([1 / 2, 1 / 4, 1 / 8])
losses = -np.log(p)  # (3,), as cross-entropy counts them
show("p", p)
show("losses", losses)
predict("On average these are two halvings. What is the perplexity?", float(np.exp(losses.mean())))
ratio = np.log(1.03)
higher, percent = f"{ratio:.4f}", f"{np.exp(ratio) - 1:.1%}"
say(f"A loss that is {higher} higher means a perplexity that is {percent} higher.")
say(
    "A small difference of losses is nearly equal to the relative difference of the "
    "perplexities. So we use losses."
)

# %% [markdown]
# The second question: which predictions are counted? After the first end sign there is nothing left
# to predict but more end signs. `score` above leaves them out, by a target that the loss ignores.
# That is the **masked** loss.
#
# It is easy to forget this. The paper's models were scored with the padding (section 5). (Training
# reads the padding in either case here, as it did there.)

# %% What is counted
ids = documents(0, "test", 200)
x, y = ids[:, :-1], ids[:, 1:]  # (n, T) each
share = f"{(x == END).mean():.1%}"
say(f"{share} of the targets are padding.")
losses = np.array([[score(v, 0), score(v, 0, None)] for v in variants])
sides = ["lower", "the same", "higher"]
side = sides[int(np.sign(losses[0, 1] - losses[0, 0])) + 1]
predict("With the padding counted, how does the perplexity change?", side, sides)
rows = [[v, *np.exp(losses[i])] for i, v in enumerate(variants)]
apart = np.expm1(losses[1] - losses[0])  # (2,), masked and padded
rows.append(["apart by", *(f"{part:.2%}" for part in apart)])
table("perplexity, seed 0", ["variant", "masked", "padded"], rows)
only = np.where(x == END, y, -100)
rest = round(train.evaluate(trained("qkv", 0), x, only)["loss"], 3)
say(
    f"The padding alone has a loss of {rest}. Add easy questions to an exam, and the marks improve."
)
say(
    "The models also look more alike. And how much padding there is depends on the documents, not "
    "on the model."
)

# %% [markdown]
# Back to the two variants. We train each with six seeds.

# %% Six seeds
seeds = range(6)
runs = [[score(name, seed) for seed in seeds] for name in variants]
losses = np.array(runs)  # (2, 6)
labels = [f"seed {seed}" for seed in seeds]
ahead = int((losses[0] < losses[1]).sum())
predict("For how many of the six seeds does `qkv` have the lower loss?", ahead)
show("masked loss", losses, rows=variants, columns=labels)
spreads = [stats.spread(row) for row in runs]
rows = zip(variants, losses.mean(axis=1), spreads, strict=True)
table("over seeds", ["variant", "mean", "spread"], list(rows))
between = abs(losses[1].mean() - losses[0].mean())
times, between = round(spreads[0] / between), round(between, 4)
say(f"The means differ by {between}. The spread over seeds is {times} times that.")

# %% [markdown]
# Look down the columns. Where one variant finds a seed easy, so does the other: some languages are
# simply more predictable. An effect of the seed on both tells us nothing about our question.
#
# Here the seeds are **paired**: with the same seed both variants read the same documents in the
# same order, and each parameter that both have starts from the same numbers. For that the package
# draws a parameter's start from a separate stream, keyed by the seed and the parameter's name.
#
# So subtract, seed by seed. What both have in common is gone; what is left is the difference
# between the variants, and the chance effects that they do not share.

# %% Seed by seed
configs = [mq.GPTConfig(**size, variant=name) for name in variants]
ours, theirs = (mq.GPT(cfg, seed=0).state_dict() for cfg in configs)
common = [name for name in ours if name in theirs]
same = sum(np.array_equal(ours[name], theirs[name]) for name in common)
say(f"{same} of {len(common)} common parameters start equal, to the last bit.")

differences = losses[1] - losses[0]  # (6,), q-k=v minus qkv
spreads.append(stats.spread(list(differences)))
choices = ["wider", "narrower"]
narrower = choices[int(spreads[2] < spreads[0])]
predict(
    "Are the six differences spread wider than the six losses of `qkv`, or narrower?",
    narrower,
    choices,
)
show("q-k=v minus qkv", differences, columns=labels, digits=4)
rows = zip([*variants, "difference"], spreads, strict=True)
table("spread over seeds", ["of", "spread"], list(rows))

# %% [markdown]
# How far may the mean of a few differences be from the mean of many? An **interval** says. We do
# one by hand, with three of the authors' own runs: the task of sorting, in one size, `qkv` and
# `q=k-v+`.
#
#     mean ± t · s / √n
#
# where s is the spread of single differences, with n − 1 in the denominator, because the mean was
# estimated from the same numbers. Divided by √n it is the spread of a mean of n. The next step
# shows what the factor t is for.

# %% An interval by hand
runs, cell = published.synthetic_2026(), (16, 64, 2, 2)  # T, d, layers, heads
pair = [runs[name, "sort", *cell] for name in ("qkv", "q=k-v+")]
accuracies = np.array(pair)  # (2, 3)
d = accuracies[1] - accuracies[0]  # (3,)
show("accuracies", accuracies, rows=["qkv", "q=k-v+"], columns=labels[:3])
show("differences", d, columns=labels[:3])
predict("What is the mean of the three differences?", float(d.mean()), tolerance=0.002)
s = np.sqrt(((d - d.mean()) ** 2).sum() / 2)
sem = s / np.sqrt(3)  # the spread of a mean
half = stats.t_quantile(2) * sem
rows = [["mean", d.mean()], ["s", s], ["s / √n", sem]]
rows += [["t for n = 3", stats.t_quantile(2)], ["t · s / √n", half]]
table("step by step", ["", "value"], rows)
predict("All three are above zero. Does the interval exclude zero?", bool(abs(d.mean()) > half))
e = stats.paired(dict(enumerate(pair[1])), dict(enumerate(pair[0])))
compare(
    "by hand", np.array([d.mean(), half]), "the package", np.array([e.mean, e.half]), tolerance=1e-8
)

# %% [markdown]
# Why such a large t? Because s was estimated from few numbers. By chance three of them may lie
# close together, and then the interval is far too narrow.
#
# We can watch it. Draw many sets of n numbers around zero, so that there is no effect to find, and
# count how often an interval excludes zero. It should be one time in twenty.

# %% Why Student's t
rng = np.random.default_rng(12)
normal = stats.t_quantile(10_000)  # practically the normal quantile
rows = []
for n in (3, 6, 20):
    draws = rng.standard_normal((20_000, n))
    sem = draws.std(axis=1, ddof=1) / np.sqrt(n)  # (20_000,)
    away = abs(draws.mean(axis=1)) / sem
    t = stats.t_quantile(n - 1)
    alarms = [100 * (away > factor).mean() for factor in (normal, t)]
    rows.append([str(n), normal, alarms[0], t, alarms[1]])
factor, alarms = round(normal, 2), float(rows[0][2])
predict(
    f"Three seeds, and the factor {factor} of a normal distribution: what percentage are false "
    "alarms?",
    alarms,
    tolerance=3,
)
table("nothing to find", ["n", "normal", "alarms, %", "t", "with t, %"], rows)
say("Student's t is larger where n is small, by exactly as much as is needed.")

# %% [markdown]
# Back to our two models. The same six seeds of each can be read in two ways: as two independent
# samples, or seed by seed. For independent samples the squares of the two spreads add up.
#
# Take a difference of three percent in perplexity, which is about what the paper reports for
# `q-k=v` against `qkv`. It trained each of its models once.

# %% When three percent is noise
n, three = len(seeds), np.log(1.03)
both = np.hypot(spreads[0], spreads[1])
independent = stats.t_quantile(2 * n - 2) * both / np.sqrt(n)
pairs = stats.estimate(list(differences))
predict(
    "Six runs of each, as two independent samples: is three percent more than the half width?",
    bool(three > independent),
)
predict("And paired by seed?", bool(three > pairs.half))
halves = [f"± {np.expm1(half):.1%}" for half in (independent, pairs.half)]
rows = [["one run each", "unknown"], ["independent", halves[0]]]
rows.append(["paired", halves[1]])
table("half width, relative to the perplexity", ["read as", "half width"], rows)

many = 2
while stats.t_quantile(2 * many - 2) * both / np.sqrt(many) > three:
    many += 1
say(
    f"As independent samples, it would take about {many} runs of each. One run each gives no "
    "interval at all."
)
clear = f"{'' if pairs.clear_of_zero else 'not '}distinguishable from zero"
ours = f"{pairs.mean:+.4f} ± {pairs.half:.4f}"
say(f"Our own difference in the loss, paired: {ours}, {clear}.")

# %% [markdown]
# Back to the authors' runs, all six variants. Pairing is not magic: three pairs may still tell us
# less than we would like.
#
# Two more habits. When a run either finds the trick or does not, a mean describes no run at all:
# count how many **solved** it, k of n. And an interval that contains zero does not prove that there
# is no difference; it only says that these seeds cannot show one.

# %% The authors' runs
baseline = dict(enumerate(runs["qkv", "sort", *cell]))
rows, clear = [], 0
for name in ("qkv", "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+"):
    sort, reverse = (runs[name, x, *cell] for x in ("sort", "reverse"))
    e = stats.paired(dict(enumerate(sort)), baseline)
    clear += e.clear_of_zero and name != "qkv"
    difference = "" if name == "qkv" else f"{e.mean:+.3f} ± {e.half:.3f}"
    solved = f"{sum(x >= Task.solved for x in reverse)} of {len(reverse)}"
    means = [f"{np.mean(x):.3f}" for x in (sort, reverse)]
    rows.append([name, means[0], difference, means[1], solved])
each = ", ".join(f"{x:.3f}" for x in runs["q=k=v+", "reverse", *cell])
predict(
    "Five variants against `qkv` on sorting, three seeds: how many differences are distinguishable "
    "from zero?",
    clear,
)
table("sort, and reverse", ["variant", "sort", "to qkv", "reverse", "solved"], rows)
say(
    f"Solved means an accuracy of {Task.solved} or more. On reverse, the runs of q=k=v+ reach "
    f"{each}: none of them is near their mean."
)
say(
    "An interval misses about one time in twenty. In a table of twenty differences, expect one "
    "that is distinguishable from zero by chance."
)

# %% [markdown]
# You have followed a gradient from one number to a cache that holds keys and values in one array,
# and you know how to ask whether it was worth it. Three lessons are left: a model that writes, a
# cache that does not grow, and a model that reads images.
#
# In the exercise you write `perplexity`, with the mask, and `paired`. Then ask a question of your
# own:
#
#     minqkv study
#
# trains some variants with the same seeds, in a few minutes, and prints such tables: every seed,
# intervals of the differences, the bytes of real caches, and a line on what these seeds cannot
# show. `minqkv study --help` says how to choose variants, tasks, sizes and seeds.

# %% Where it is done
source(stats.paired)
source(stats.estimate, at="t_quantile")
source(stats.t_quantile.__wrapped__)
source(train.evaluate, at="IGNORE")
source(unresolved)
