"""What bench.claims trains, and what it measures of a trained model."""

import numpy as np

from minqkv.analysis.convert import convert
from minqkv.analysis.converted import BATCHES
from minqkv.analysis.diagnose import circuits, cosine, cross_r2, diagnose, effective_rank
from minqkv.analysis.quantised import rounding_errors
from minqkv.attention import sinusoids
from minqkv.caches import options
from minqkv.functional import softmax
from minqkv.models import GPT
from minqkv.reference import literal_plus
from minqkv.runs import configure
from minqkv.runtime.tracing import trace
from minqkv.tensor import Tensor, no_grad
from minqkv.train import fit

from . import common

EXAMPLES = 64  # of the validation split, that a trained model is looked at on
SHIFT = 16  # positions
METHODS = ("keep_k", "keep_v", "avg", "procrustes", "refit-q")
NEVER = "turned, never turned back"  # what no layer of the package does

TEXT = {"task": "text", "text": "shakespeare", "n_layer": 2, "n_embd": 64, "n_test": 500,
        "steps": 1000, "watch": 0}  # fmt: skip
ROPE = TEXT | {"position": "rope"}
FAST = {"lr": 6e-3}  # at which every variant learns reverse: docs/positions.md
REVERSE, SORT = {"task": "reverse"}, {"task": "sort", "lr": 3e-3}
SIGNED = {"position": "learned+relative"}
ARMS = {
    "text qkv": TEXT | {"variant": "qkv"},
    "text q-k=v": TEXT | {"variant": "q-k=v"},
    "text q=k-v": TEXT | {"variant": "q=k-v"},
    "text q-k=v raw": ROPE | {"variant": "q-k=v"},
    "text q-k=v unrotate": ROPE | {"variant": "q-k=v", "rope_value": "unrotate"},
    f"text q-k=v {NEVER}": ROPE | {"variant": "q-k=v", "rope_value": "unrotate"},
    "text q=k-v rope": ROPE | {"variant": "q=k-v"},
    "reverse qkv": REVERSE | FAST | {"variant": "qkv"},
    "reverse q=k-v": REVERSE | FAST | {"variant": "q=k-v"},
    "reverse q=k=v": REVERSE | FAST | {"variant": "q=k=v"},
    "reverse q=k=v+": REVERSE | FAST | {"variant": "q=k=v+"},
    "reverse q=k-v signed": REVERSE | FAST | SIGNED | {"variant": "q=k-v"},
    "sort qkv": SORT | {"variant": "qkv"},
    "sort q=k-v": SORT | {"variant": "q=k-v"},
    "sort q=k-v+": SORT | {"variant": "q=k-v+"},
    "slow q=k=v": REVERSE | {"variant": "q=k=v"},
    "slow q=k=v+": REVERSE | {"variant": "q=k=v+"},
    "slow q=k=v from -1": REVERSE | {"variant": "q=k=v+", "plus_start": -1.0},
    "slow q=k=v diagonal hidden": REVERSE | {"variant": "q=k=v", "hide_self": True},
}


def train(name, seed):
    """(config, model before training, trained model)."""
    config = configure(**ARMS[name], seed=seed)
    start, model = config.build().eval(), config.build()
    if name.endswith(NEVER):
        for block in model.blocks:
            block.attn.turn_back = False
    task, recipe, optimizer = config.task, config.recipe, config.optimizer(model)
    loop = fit(
        model, optimizer, lambda step: task.batch(seed, step, recipe.batch), config.schedule(),
        recipe.steps, recipe.clip, 0, task.loss, task.weight, recipe.accumulate,
    )  # fmt: skip
    for _ in loop:
        pass
    return config, start, model


def measure(name, seed):
    """The row of one arm and seed."""
    common.use_threads(1)
    config, start, model = train(name, seed)
    x, y = config.task.draw(seed, "validation", EXAMPLES)[:2]
    score = config.task.score(model, "test", seed)[config.task.metric]
    row = {"arm": name, "seed": seed, "metric": config.task.metric, "score": score}
    row |= attending(model, x)
    if name in ("text qkv", "sort qkv"):
        row |= compared(model, start, x)
    if name in ("text qkv", "reverse qkv", "sort qkv"):
        row["zero_shot"] = converted(config, model)
    if name.endswith("+"):
        row["literal"] = literal(model, x[:4])
    if "rope" in ARMS[name].get("position", ""):
        row["shift"] = shifted(model, x[:8])
    if name in ("text q-k=v", "text q-k=v raw"):
        errors = rounding_errors(model, x, y, **options("int8"))
        row |= {f"rounded {e['rounded']}": e["mean"] for e in errors[1:]}
    return row


def attending(model, x):
    """How the heads of a model attend: the largest and the least asymmetry and curl of their
    scores before the mask, and the mean share of queries whose own key has the highest score. Of
    an encoder, also how far the pattern of each layer is from symmetric: the least of the layers.
    """
    found = [head for layer in diagnose(model, x) for head in layer["heads"]]
    most = {n: max(head[n] for head in found) for n in ("asymmetry", "curl")}
    least = {f"least {n}": min(head[n] for head in found) for n in ("asymmetry", "curl")}
    most |= least | {"own": float(np.mean([head["diagonal"] for head in found]))}
    if isinstance(model, GPT):
        return most
    with no_grad(), trace() as t:
        model(x[:8])
    maps = [t[n].astype(np.float64) for n in t if n.endswith(".pattern")]  # (B, H, T, T) each
    uneven = [abs(a - a.swapaxes(-1, -2)).max() for a in maps]
    return most | {"map asymmetry": float(min(uneven))}


def compared(model, start, x):
    """W_K with W_V in a qkv model, after training and before: means over layers and heads."""
    row = {}
    for when, one in (("", model), (" at start", start)):
        layers = diagnose(one, x)
        heads = [head for layer in layers for head in layer["heads"]]
        for n in ("overlap", "v_from_k", "k_from_v", "cka"):
            row[n + when] = float(np.mean([head[n] for head in heads]))
        row[f"k_from_q{when}"] = float(np.mean(keys_from_queries(one, x)))
        weights = [
            [block.attn.state_dict()[f"w{n}.weight"].astype(np.float64) for n in "qkv"]
            for block in one.blocks
        ]  # of each layer three (C, C)
        for i, n in enumerate("qkv"):
            ranks = [effective_rank(np.linalg.svd(w[i], compute_uv=False)) for w in weights]
            row[f"rank {n}{when}"] = float(np.mean(ranks)) / model.config.n_embd
        for a, b in ("kv", "qk", "qv"):
            pair = ["qkv".index(n) for n in (a, b)]
            cosines = [cosine(*(w[i] for i in pair)) for w in weights]
            row[f"cos {a}{b}{when}"] = float(np.mean(cosines))
    return row | gauges(model)


def keys_from_queries(model, x):
    """Cross-R² of the keys of each head from its queries."""
    with no_grad(), trace() as t:
        model(x)
    names = [block.attn.name for block in model.blocks]
    pairs = [
        (t[f"{n}.q"][:, i], t[f"{n}.k"][:, i]) for n in names for i in range(t[f"{n}.q"].shape[1])
    ]
    return [cross_r2(q, k) for q, k in pairs]  # (B, T, d_h) each


def gauges(model):
    """The mean cosine of W_K and W_V over heads, in the rotated bases that make it largest and
    smallest. No rotation of a head changes what it computes.
    """
    best = [
        np.linalg.svd(k.T @ v, compute_uv=False).sum() / (np.linalg.norm(k) * np.linalg.norm(v))
        for block in model.blocks
        for k, v in zip(*circuits(block.attn)[1:3], strict=True)
    ]
    return {"cos largest": float(np.mean(best)), "cos smallest": -float(np.mean(best))}


def converted(config, model):
    """Score at once, by method, of a qkv model as q-k=v, on the test split."""
    batches = [config.task.batch(config.seed, config.recipe.steps + i, config.recipe.batch)[0]
               for i in range(BATCHES)]  # fmt: skip
    return {
        method: config.task.score(convert(model, "q-k=v", method, batches), "test", config.seed)[
            config.task.metric
        ]
        for method in METHODS
    }


def literal(model, x):
    """The largest difference between the pattern of a "+" and the softmax of its literal form."""
    with no_grad(), trace() as t:
        model(x)
    worst = 0.0
    for block in model.blocks:
        attn, plus = block.attn, block.attn.plus
        weight, pattern = plus.weight.numpy().astype(np.float64), t[f"{attn.name}.pattern"]
        scores = t[f"{attn.name}.scores"] / weight.sum()  # they are traced times s
        channels = sinusoids(x.shape[1], plus.m_row, plus.width, "float64")  # (T, m_row)
        columns = plus.columns.numpy()[: x.shape[1]].astype(np.float64)  # (T, m_col)
        found = literal_plus(Tensor(scores), Tensor(weight), 0.0, channels, columns)
        worst = max(worst, float(abs(softmax(found).numpy() - pattern).max()))
    return worst


def shifted(model, x):
    """How far logits move, as a share of the largest, if all positions are SHIFT higher."""
    with no_grad():
        here = model(x).numpy()
        for block in model.blocks:
            block.attn.reach(x.shape[1] + SHIFT)
            block.attn.turn = _later(block.attn.turn)
        there = model(x).numpy()
    for block in model.blocks:
        del block.attn.turn
    return float(abs(here - there).max() / abs(here).max())


def _later(turn):
    return lambda x, at, back=False: turn(x, slice(at.start + SHIFT, at.stop + SHIFT), back)
