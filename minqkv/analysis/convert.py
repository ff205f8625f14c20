"""A trained model, rewritten as another variant.

Some of it is exact: what was shared can be copied, and Slim finds V from K. The rest is lossy, and
how much is lost depends on the bases. A head computes the same in every basis: for any A and B that
have an inverse,

    W_Q, W_K  ->  W_Q A⁻ᵀ, W_K A   leaves all scores,
    W_V, W_O  ->  W_V B, B⁻¹ W_O   leaves all answers.

So heads, or K and V of one head, are aligned before they are averaged. A rotation and a factor take
the activations of one, on some examples, nearest to those of the other (Procrustes; for heads see
arXiv 2412.20677). The result does not depend on how bases are rotated or scaled. That of "refit-q"
depends on no basis at all.

With rotary positions, A must commute with every turn. So the keys of different heads are aligned
only by turning each pair of channels. Values never turn, so B is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..attention import Attention
from ..designs.layers import slimmed
from ..models import GPT, MODELS
from ..nn import Module
from ..runtime import backend
from ..runtime.errors import UsageError
from ..tensor import no_grad
from ..variants import VariantSpec, layer_specs, variant_names

SLIM = "slim"  # not a variant: qkv, storing only K
FLOOR = 1e-9  # the least variance of a direction, as a share of the largest
TINY = 1e-30  # for a head that is zero
LEAST = 1e-3  # the least correlation of a fit, so that it has an inverse


def convert(model: Module, to: str, method: str, examples: Iterable[np.ndarray] = ()) -> Module:
    """`model` as the variant `to`, or as "slim", by one of `methods`; it is not changed.

    `examples` are batches of inputs, for the methods ON_EXAMPLES: more tokens in all than a head is
    wide. Raises UsageError.
    """
    known, examples = methods(model, to), list(examples)
    if method not in known:
        why = f"{model.config.variant} does not become {to} by {method}"
        raise UsageError(why, f"choose from {', '.join(known)}")
    if method in ON_EXAMPLES and not examples:
        raise UsageError(f"{method} aligns activations, so it needs examples", "give some batches")
    if to == SLIM:
        return slimmed(model)
    twin, state = type(model)(replace(model.config, variant=to, rope_value="raw")), {}
    inputs = _inputs(model, examples) if method in ON_EXAMPLES else [None] * len(twin.blocks)
    for i, (x, old, new) in enumerate(zip(inputs, model.blocks, twin.blocks, strict=True)):
        if new.attn.spec != old.attn.spec:
            layer = Layer(old.attn)
            METHODS[method](layer, x, new.attn.kv_heads)
            state |= {f"blocks.{i}.attn.{name}": a for name, a in layer.state().items()}
    state, wanted = model.state_dict() | state, dict(twin.named_parameters())
    twin.load_state_dict({name: array for name, array in state.items() if name in wanted})
    return twin.eval()


def methods(model: Module, to: str) -> tuple[str, ...]:
    """The methods by which a model becomes the variant `to`. Raises UsageError if there are none,
    and names the variants that it can become.
    """
    if type(model) not in MODELS.values():
        known = ", ".join(kind.__name__ for kind in MODELS.values())
        raise UsageError(f"a {type(model).__name__} cannot be converted; only: {known}")
    cfg, found = model.config, _methods(model, to)
    if found:
        return found
    if to == SLIM and not isinstance(model, GPT):
        why = "this run is an encoder: it has no cache, in which K alone could be stored"
        raise UsageError(why, "train a decoder: --form causal, or --task text")
    groups = [g for g in range(1, cfg.n_head + 1) if cfg.n_head % g == 0]
    names = [layer_specs(n, 1, cfg.n_head)[0].name for g in groups for n in variant_names(g)]
    can = [name for name in [*dict.fromkeys(names), SLIM] if _methods(model, name)]
    can = ", ".join(can) or "no other variant; docs/convert.md says why"
    raise UsageError(f"{cfg.variant} cannot become {to}", f"it can become: {can}")


def _methods(model, to):
    """The methods; none where it is impossible."""
    cfg = model.config
    if to == SLIM:
        return (SLIM,) if isinstance(model, GPT) and cfg.variant == "qkv" else ()
    new = layer_specs(to, cfg.n_layer, cfg.n_head)
    found = {_between(*pair, cfg) for pair in zip(cfg.specs, new, strict=True) if len({*pair}) > 1}
    return found.pop() if len(found) == 1 else ()


def _between(old, new, cfg):
    """The methods for one layer, from one VariantSpec to another."""
    turned = cfg.position == "rope" and cfg.rope_value == "unrotate"
    turned = turned and any(spec.streams == 1 for spec in cfg.specs)
    shared = ("own_query", "streams", "kv_heads")
    plain = all(s == VariantSpec(**{name: vars(s)[name] for name in shared}) for s in (old, new))
    if cfg.norm or turned or not plain:  # each fixes a basis, or is something that qkv lacks
        return ()
    heads, left = (s.stored_heads(cfg.n_head) for s in (old, new))
    if new.own_query >= old.own_query and new.streams >= old.streams and left % heads == 0:
        return ("copy",)
    if not (old.own_query and new.own_query and old.streams == 2):
        return ()
    if new.streams == 1:
        return ("keep_k", "keep_v", "avg", "procrustes", "refit-q") if left == heads else ()
    return ("pool", "align") if heads % left == 0 else ()


# ---- one layer


class Layer:
    """The projections of a layer head by head, in float64: q (H, C + 1, d), k and v (h, C + 1, d),
    o (H, d, C), and the bias of the output, b (C,). The last row of q, k and v is the bias. What is
    shared is there several times.
    """

    def __init__(self, attn: Attention):
        state = attn.state_dict()

        def heads(name, n):
            weight = state[f"{name}.weight"]
            bias = state.get(f"{name}.bias", np.zeros(weight.shape[1]))
            both = np.vstack([weight, bias]).astype("float64")  # (C + 1, n · d)
            return both.reshape(len(both), n, -1).swapaxes(0, 1)  # (n, C + 1, d)

        self.turning, self.biased = attn.d_rope, "wk.bias" in state
        self.k = heads("wk", attn.kv_heads)
        self.v = heads("wv" if attn.spec.streams == 2 else "wk", attn.kv_heads)
        self.q = heads("wq" if attn.spec.own_query else "wk", attn.n_head)
        self.o = state["wo.weight"].astype("float64").reshape(attn.n_head, -1, self.q.shape[1] - 1)
        self.b = state.get("wo.bias", np.zeros(self.o.shape[2])).astype("float64")

    def readers(self, g: int) -> range:
        """The query heads that read stored head g."""
        each = len(self.q) // len(self.k)
        return range(g * each, (g + 1) * each)

    def turn_keys(self, g: int, a: np.ndarray) -> None:
        """Another basis for the keys of head g, and so for its queries: scores stay."""
        self.k[g] = self.k[g] @ a
        for i in self.readers(g):
            self.q[i] = np.linalg.solve(a, self.q[i].T).T  # q A⁻ᵀ

    def turn_values(self, g: int, b: np.ndarray) -> None:
        """Another basis for the values of head g: answers stay."""
        self.v[g] = self.v[g] @ b
        for i in self.readers(g):
            self.o[i] = np.linalg.solve(b, self.o[i])

    def state(self) -> dict[str, np.ndarray]:
        """All of it as parameters of an attention, which may have fewer of them."""
        found = {"wo.weight": self.o.reshape(-1, self.o.shape[2]), "wo.bias": self.b}
        for name, heads in (("wq", self.q), ("wk", self.k), ("wv", self.v)):
            both = heads.swapaxes(0, 1).reshape(heads.shape[1], -1)  # (C + 1, n · d)
            found |= {f"{name}.weight": both[:-1], f"{name}.bias": both[-1]}
        return found


class Seen:
    """A projection that keeps its inputs (n, C), with a last column of ones for the bias."""

    def __init__(self, linear):
        self.linear, self.seen = linear, []

    def __call__(self, x):
        rows = backend.to_host(x.data).reshape(-1, x.shape[-1]).astype("float64")  # (B · T, C)
        self.seen.append(np.hstack([rows, np.ones((len(rows), 1))]))
        return self.linear(x)


def _inputs(model, examples):
    """What each attention layer projects, (n, C + 1), when the model reads these examples."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    for block in copy.eval().blocks:
        block.attn.wk = Seen(block.attn.wk)
    with no_grad():
        for x in examples:
            copy(x)
    return [np.concatenate(block.attn.wk.seen) for block in copy.blocks]


# ---- the methods: each changes a Layer, in view of its inputs x, so that it has `heads` KV heads


def _copy(layer, x, heads):
    """What was shared, several times. Exact."""
    each = heads // len(layer.k)
    layer.k, layer.v = layer.k.repeat(each, axis=0), layer.v.repeat(each, axis=0)


def _keep_k(layer, x, heads):
    """Values are the keys."""


def _keep_v(layer, x, heads):
    """Keys are the values."""
    layer.k = layer.v


def _avg(layer, x, heads):
    """The mean of the two projections, in the bases that training found."""
    layer.k = (layer.k + layer.v) / 2


def _procrustes(layer, x, heads):
    """The mean, after the values of each head are aligned with its keys."""
    for g in range(len(layer.k)):
        layer.turn_values(g, _rotation(_centred(x @ layer.v[g]), _centred(x @ layer.k[g])))
    _avg(layer, x, heads)


def _refit_q(layer, x, heads):
    """Keep V, and let queries look for values: K ≈ V M + c, so q·k ≈ (q Mᵀ)·v; c adds the same to
    all scores of a query. M does not commute with turns. So under rope the rows are V M + c; W_O
    undoes M, and its bias undoes c.
    """
    centred = _centred if layer.biased else np.asarray
    for g in range(len(layer.k)):
        keys, values = x @ layer.k[g], x @ layer.v[g]  # (n, d)
        m = _fit(centred(values), centred(keys))
        if not layer.turning:
            for i in layer.readers(g):
                layer.q[i] = layer.q[i] @ m.T
            continue
        layer.turn_values(g, m)
        if layer.biased:
            c = (keys - values @ m).mean(axis=0)
            layer.v[g, -1] += c
            layer.b -= sum(c @ layer.o[i] for i in layer.readers(g))
    layer.k = layer.v


def _pool(layer, x, heads):
    """The mean of each group of heads."""
    layer.k, layer.v = (
        a.reshape(heads, -1, *a.shape[1:]).mean(axis=1)  # (h, C + 1, d) -> (heads, C + 1, d)
        for a in (layer.k, layer.v)
    )


def _align(layer, x, heads):
    """The mean, after each head is aligned with the first of its group."""
    each = len(layer.k) // heads
    for g in range(len(layer.k)):
        first = g // each * each
        keys, values = ([_centred(x @ a[i]) for i in (g, first)] for a in (layer.k, layer.v))
        layer.turn_keys(g, _rotation(*keys, layer.turning))
        layer.turn_values(g, _rotation(*values))
    _pool(layer, x, heads)


METHODS = {
    "copy": _copy,
    "keep_k": _keep_k,
    "keep_v": _keep_v,
    "avg": _avg,
    "procrustes": _procrustes,
    "refit-q": _refit_q,
    "pool": _pool,
    "align": _align,
}
ON_EXAMPLES = ("procrustes", "refit-q", "align")


def _centred(a):
    return a - a.mean(axis=0)


def _rotation(a, b, turning=0):
    """The orthogonal matrix (d, d) that takes activations a (n, d) nearest to b (Procrustes), times
    the ratio of their sizes. Of the last `turning` channels, it only turns the pairs.
    """
    still, found = a.shape[1] - turning, np.zeros((a.shape[1],) * 2)
    u, _, vt = np.linalg.svd(a[:, :still].T @ b[:, :still])
    found[:still, :still] = u @ vt
    # Pairs (i, i + turning / 2) as complex numbers, which a turn multiplies by one of length 1.
    first, second = np.split(np.arange(still, a.shape[1]), 2)
    x, y = (t[:, first] + 1j * t[:, second] for t in (a, b))  # (n, turning / 2)
    angle = np.angle((x.conj() * y).sum(axis=0))
    found[first, first] = found[second, second] = np.cos(angle)
    found[first, second], found[second, first] = np.sin(angle), -np.sin(angle)
    return found * (np.linalg.norm(b) + TINY) / (np.linalg.norm(a) + TINY)


def _fit(a, b):
    """The matrix (d, d) that takes a (n, d) to b by least squares: where both are whitened, the
    matrix of their correlations. Here these are at least LEAST, so that it has an inverse.
    """
    (_, whiten_a), (spread, whiten_b) = _spread(a), _spread(b)
    u, s, vt = np.linalg.svd((a @ whiten_a).T @ (b @ whiten_b) / len(a))
    return whiten_a @ (u * np.maximum(s, LEAST)) @ vt @ spread


def _spread(a):
    """The symmetric root of the second moments of a (n, d), and its inverse."""
    values, basis = np.linalg.eigh(a.T @ a / len(a))
    root = np.sqrt(np.maximum(values, FLOOR * values.max() + TINY))
    return basis * root @ basis.T, basis / root @ basis.T
