"""What the package asks of CuPy: each call on device arrays, with the names of its arguments.

    python tests/support/device_calls.py    # writes tests/data/cupy_calls.txt again

`written` reads the calls of `xp.…` in the source. `used` runs the package on the stand-in for CuPy,
which sees methods of arrays, operators and indices too. Both hold them against cupy_surface.json.
An argument by position stands there as a name, one by keyword with `=`.
"""

import ast
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "kernels"))  # where it is run as a script

import strict
from toys import DESIGNS, SHIPPED

from minqkv import backend, reference, variants
from minqkv.analysis.diagnose import diagnose
from minqkv.analysis.quantised import rounding_errors
from minqkv.analysis.selfcheck import checks
from minqkv.cache import KVCache
from minqkv.caches import KINDS, branches, options
from minqkv.designs.layers import shipped_layer
from minqkv.designs.linear import LinearGPT
from minqkv.generation import iter_tokens
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig, ViT, ViTConfig
from minqkv.models.vit import POOLS
from minqkv.optim import SGD, AdamW
from minqkv.tensor import Tensor
from minqkv.train import evaluate, train_step

ROOT = Path(__file__).parents[2]
MODULES = "xp", "cupy"  # what an array module is called in the source


# ---- what is written in the source


def written(source):
    """The calls of `xp.…` in a source, as lines. Raises AttributeError, TypeError for what CuPy
    does not have, or does not take; the message begins with the number of the line.
    """
    tree = ast.parse(source)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        path = dotted(node)
        if path and id(node) not in inner and not path[0].startswith("_"):
            try:
                found.add(checked(path, called.get(id(node))))
            except (AttributeError, TypeError) as error:
                raise type(error)(f"line {node.lineno}: {error}") from None
    return found


def dotted(node):
    """["add", "at"] for the node `backend.xp.add.at`; None if it is nothing of an array module."""
    path = []
    while isinstance(node, ast.Attribute):
        if node.attr in MODULES and path:
            return path
        path.insert(0, node.attr)
        node = node.value
    return path if path and isinstance(node, ast.Name) and node.id in MODULES else None


def checked(path, call):
    """One line of the list."""
    about, name = strict.SURFACE["names"].get(path[0]), f"xp.{'.'.join(path)}"
    if about is None:
        raise AttributeError(f"CuPy has no {path[0]}")
    if about["kind"] == "ufunc" and path[1:] == ["at"]:
        if about["at"] is None:
            raise AttributeError(f"CuPy has no {path[0]}.at")
        about = {"sig": "a, indices, b="}
    elif len(path) > 1:  # in a module inside CuPy, of which names are known
        if path[-1] not in strict.SURFACE["modules"].get(".".join(path[:-1]), ()):
            raise AttributeError(f"CuPy has no {'.'.join(path)}, or its list does not say so")
        about = {"sig": None}
    if call is None:
        return name
    keywords = tuple(keyword.arg for keyword in call.keywords)
    if None in keywords or any(isinstance(arg, ast.Starred) for arg in call.args):
        raise TypeError(f"{name}: arguments in * or ** cannot be checked")
    return strict.call(name, about["sig"], len(call.args), keywords)


def written_in(*folders):
    """All calls in the Python files of these folders."""
    found = set()
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        try:
            found |= written(path.read_text("utf-8"))
        except (AttributeError, TypeError) as error:
            raise type(error)(f"{path.relative_to(ROOT)}, {error}") from None
    return found


# ---- what runs: training steps and decoding, of each kind

IDS = np.random.default_rng(0).integers(0, 11, (4, 8))
SOME = np.where(np.arange(8) < 2, -100, IDS)  # targets of which some do not count
PROMPTS = {"equal": [[1, 2, 3], [4, 5, 6]], "ragged": [[1, 2, 3], [4, 5]]}


def gpt(n_layer=2, **changes):
    """A decoder of four heads."""
    sizes = {"vocab_size": 11, "block_size": 24, "n_head": 4, "n_embd": 16, "n_layer": n_layer}
    return GPT(GPTConfig(**sizes | changes))


def tagger(**changes):
    """An encoder that labels tokens."""
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 4, "n_embd": 16}
    return Tagger(TaggerConfig(**sizes | changes))


def vit(pool):
    """An encoder of vectors."""
    sizes = {"n_in": 6, "n_token": 8, "n_layer": 2, "n_head": 4, "n_embd": 16, "pool": pool}
    return ViT(ViTConfig(n_class=1 if pool == "choice" else 3, **sizes))


def linear(**changes):
    """A decoder with linear attention."""
    return LinearGPT(gpt(variant="q=k=v", **changes).config, decay=0.9)


def with_layers(kind, n_layer=2):
    """A decoder whose attention is that of a model that ships."""
    sizes = {"kv_heads": 2} if "N" in variants.SHIPPED[kind]["variant"] else {}
    sizes |= {"query_rank": 4, "groups": 2, "out_rank": 4} if kind == "deepseek-v4" else {}
    small = {"head_dim": 8, "d_rope": 4} | sizes
    spec = variants.VariantSpec(True, 1, 1, apart=True, latent=1) if kind == "deepseek-v3" else None
    model = gpt(n_layer, position="rope")
    for block in model.blocks:
        block.attn = shipped_layer(kind, 16, 4, 24, spec=spec, **small)
    return model


# name -> (model, targets, uploads of a step beside inputs and targets, options of train_step)
TRAINING = {
    f"GPT, {name}": (lambda design=design: gpt(**design), IDS, 0, {})
    for name, design in (DESIGNS | SHIPPED).items()
}
TRAINING |= {
    f"GPT, {position}": (lambda position=position: gpt(position=position), IDS, 0, {})
    for position in variants.POSITIONS
}
TRAINING |= {
    "GPT, rope, unrotate": (
        lambda: gpt(variant="q-k=v", position="rope", rope_value="unrotate"), IDS, 0, {}),
    "GPT, a window": (lambda: gpt(window=4, sinks=1), IDS, 0, {}),
    "GPT, dropout": (lambda: gpt(dropout=0.1), IDS, 0, {}),
    "GPT, recomputed": (lambda: gpt(recompute=True), IDS, 0, {}),
    "GPT, recomputed dropout": (lambda: gpt(recompute=True, dropout=0.1), IDS, 0, {}),
    "GPT, in two parts": (lambda: gpt(), IDS, 2, {"accumulate": 2}),
    "GPT, in two parts, all of it": (
        lambda: gpt(dropout=0.1, recompute=True), SOME, 4, {"accumulate": 2}),
    "GPT, some targets": (lambda: gpt(), SOME, 1, {}),
    "GPT, no clipping": (lambda: gpt(), IDS, 0, {"clip": None}),
    "linear": (lambda: linear(), IDS, 0, {}),
    "tagger": (lambda: tagger(), IDS, 0, {}),
    "tagger, hiding itself": (lambda: tagger(hide_self=True, position="relative"), IDS, 0, {}),
    "tagger of 2023": (lambda: tagger(protocol="2023"), IDS, 0, {}),
}  # fmt: skip
TRAINING |= {kind: (lambda kind=kind: with_layers(kind), IDS, 0, {}) for kind in variants.SHIPPED}
TRAINING |= {f"ViT, {pool}": (lambda pool=pool: vit(pool), pool, 0, {}) for pool in POOLS}
MASKS = {  # of dropout: uploads without kernels, drawn once more where activations are recomputed
    "GPT, dropout": 4, "GPT, recomputed dropout": 8, "GPT, in two parts, all of it": 16,
    "tagger of 2023": 7,
}  # fmt: skip


def batch(targets, step):
    """Inputs and targets of a training step; for a ViT, `targets` is what it answers. No two steps
    have the same, so nothing is uploaded already.
    """
    if not isinstance(targets, str):
        return (IDS + step) % 11, np.where(targets < 0, targets, (3 * targets + step) % 11)
    x, y = np.random.default_rng(step).standard_normal((4, 8, 6)), (IDS + step) % 3
    return x, y if targets == "each" else y[:, 0]


def train(name, steps=2, optimizer=AdamW):
    """(waits, uploads) of the last of some training steps."""
    make, targets, _, how = TRAINING[name]
    model = make()
    optimizer = optimizer(model.parameters())
    for step in range(steps):
        x, y = batch(targets, step)
        with strict.count_syncs() as waits, strict.count_uploads() as uploads:
            train_step(model, optimizer, x, y, **how)
    return waits(), uploads()


WINDOW = {"window": 5, "sinks": 2}
SAMPLING = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top-k": {"temperature": 0.8, "top_k": 3},
    "top-p": {"temperature": 0.8, "top_p": 0.5},
    "an end": {"end": 3},
}
# name -> (model of so many layers, options of its cache, options of iter_tokens)
DECODING = {
    f"{name}, {kind}": (
        lambda n=2, design=design: gpt(n, **design), kind, {})
    for name, design in (DESIGNS | SHIPPED).items() for kind in ("plain", "int8")
    if "/" not in design["variant"]
}  # fmt: skip
DECODING |= {
    f"{variant}, {position}, {kind}": (
        lambda n=2, design={"variant": variant, "position": position}: gpt(n, **design), kind, {})
    for variant in ("qkv", "q-k=v", "q=k=v+")
    for position in ("learned", "rope", "alibi", "relative")
    for kind in KINDS
}  # fmt: skip
DECODING |= {
    f"{name}, {kind}": (lambda n=2: gpt(n, variant="q-k=v", position="rope"), kind, how)
    for name, how in SAMPLING.items() for kind in ("plain", "ring")
}  # fmt: skip
DECODING |= {
    "no cache": (lambda n=2: gpt(n), None, {}),
    "three samples": (lambda n=2: gpt(n, position="rope"), "plain", {"samples": 3}),
    "three samples, int8": (lambda n=2: gpt(n, variant="q-k=v"), "int8", {"samples": 3}),
    "three samples, ring": (lambda n=2: gpt(n), "ring", {"samples": 3}),
    "linear": (lambda n=2: linear(n_layer=n), "state", {}),
}
DECODING |= {kind: (lambda n=2, kind=kind: with_layers(kind, n), "shipped", {})
             for kind in variants.SHIPPED}  # fmt: skip


def decode(name, prompts="equal", n_layer=2, tokens=8):
    """[(waits, uploads)] of each new token."""
    make, kind, how = DECODING[name]
    model, ids, counts = make(n_layer).eval(), PROMPTS[prompts], []
    cache = None if kind is None else model.new_cache(2)
    if kind == "shipped":
        layers = [block.attn for block in model.blocks]
        cache = KVCache([a.spec.rows(a.n_head, 8, a.d_rope) for a in layers], 2, 24)
    elif kind in KINDS:
        window = WINDOW if KINDS[kind].windowed else {}
        cache = branches(model.new_cache(2, 24, **options(kind, **window)), how.get("samples", 1))
    stream = iter_tokens(model, ids, tokens, use_cache=kind is not None, cache=cache, **how)
    while len(counts) < tokens:
        with strict.count_syncs() as waits, strict.count_uploads() as uploads:
            if next(stream, None) is None:
                break
        counts.append((waits(), uploads()))
    return counts


def used():
    """Calls on the stand-in, as lines, while the package computes, trains and decodes."""
    before = strict.CALLS.copy()
    strict.CALLS.clear()
    with backend.use_backend("strict"):
        list(checks())
        a = Tensor(backend.upload(np.ones((1, 2, 3, 4))))
        reference.scaled_dot_product_attention(a, a, a, backend.upload(np.tri(3, dtype=bool)))
        rounding_errors(gpt(), IDS, SOME, **options("int8"))
        diagnose(gpt(), IDS)
        assert gpt().new_cache(2, 24).capacity_nbytes
        for name in TRAINING:
            train(name, 1)
        train("GPT, qkv", optimizer=lambda parameters: SGD(parameters, momentum=0.9))
        evaluate(gpt(), IDS, SOME)
        for name in DECODING:
            for prompts in PROMPTS:
                decode(name, prompts)
    found = strict.CALLS.copy()
    strict.CALLS.update(before)
    return found


def main():
    strict.register()
    lines = sorted(written_in("minqkv") | used())
    strict.LISTED.write_text("".join(f"{line}\n" for line in lines))
    print(f"{strict.LISTED}: {len(lines)} calls")


if __name__ == "__main__":
    main()
