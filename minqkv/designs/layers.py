"""Attention layers of models that ship, each part in the one place where it differs.

`Attention` calls `wq` and `wo` like any module, so a pair of projections can stand in for one. The
rest overrides one method. What is left out: compressed rows (DeepSeek-V4's CSA and HCA), YaRN, and
rows that layers share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..attention import Attention
from ..functional import concat, linear, merge_heads, rms_norm, split_heads
from ..models import GPT
from ..nn import Init, Linear, Module
from ..runtime import backend
from ..runtime.errors import UsageError, unknown
from ..tensor import Tensor
from ..variants import SHIPPED, VariantSpec


class LowRank(Module):
    """A projection through few numbers, scaled in between to mean square 1 and then by a gain:
    (..., n) -> (..., rank) -> (..., m). DeepSeek's queries.
    """

    def __init__(self, n: int, rank: int, m: int, init: Init | None = None):
        init = init or Init()
        self.down = Linear(n, rank, init / "down", bias=False)
        self.up = Linear(rank, m, init / "up", bias=False)
        self.gain = (init / "gain").constant((rank,), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(rms_norm(self.down(x)) * self.gain)


class Grouped(Module):
    """DeepSeek-V4's output: each group of heads to `rank` numbers, and all of these to m."""

    def __init__(self, n: int, groups: int, rank: int, m: int, init: Init | None = None):
        init = init or Init()
        self.weight = (init / "weight").weight(n // groups, rank, heads=groups)
        self.up = Linear(groups * rank, m, init / "up", bias=False)

    def forward(self, z: Tensor) -> Tensor:
        z = split_heads(z, len(self.weight.data)) @ self.weight  # (B, g, T, n/g) -> (B, g, T, rank)
        return self.up(merge_heads(z))


class Sink(Attention):
    """With one key more that all queries see, of a learned score for each head and of value 0: what
    a head pays to it, it spends on nothing.

    The operation in the middle stays as it is. Queries have a channel more, which holds the score,
    and so have keys: 1 in the sink, 0 elsewhere.
    """

    def __init__(self, spec, n_embd, n_head, block_size, init=None, **options):
        super().__init__(spec, n_embd, n_head, block_size, init, **options)
        self.sink = ((init or Init()) / "sink").constant((n_head, 1, 1), 0.0)

    def mix(self, q, k, v, mask, **plus):
        """Values (B, h, S, d_v), mixed with nothing."""
        (B, H, T, _), (h, S) = q.shape, k.shape[1:3]
        xp, dtype = backend.xp, q.dtype
        asked = Tensor(xp.zeros((B, H, T, 1), dtype)) + self.sink * self.root  # (B, H, T, 1)
        is_sink = xp.zeros((B, h, 1 + S, 1), dtype)
        is_sink[:, :, 0] = 1
        k, v = (concat([Tensor(xp.zeros((B, h, 1, t.shape[3]), dtype)), t], axis=2) for t in (k, v))
        k = concat([k, Tensor(is_sink)], axis=3)  # (B, h, 1 + S, d_k + 1)
        if (bias := plus.get("bias")) is not None:  # by distance; a sink is at none
            beside = Tensor(xp.zeros((*bias.shape[:-1], 1), dtype))
            plus["bias"] = concat([beside, bias], axis=-1)  # (B, H, T, 1 + S)
        if mask is not None:
            mask = xp.concatenate([xp.ones((*mask.shape[:-1], 1), bool), mask], axis=-1)
        return super().mix(concat([q, asked], axis=3), k, v, mask, **plus)


class Slim(Attention):
    """A trained layer of separate K and V that stores only K (arXiv 2503.05840): where W_K is
    square and has an inverse, V = K W_K⁻¹ W_V exactly.

    It shares the parameters of `layer`, which it does not change. It is not for training: what
    takes K to V stays as it is.
    """

    def __init__(self, layer: Attention):
        spec, state = layer.spec, layer.state_dict()
        d, rows = layer.wk.weight.shape
        if spec != VariantSpec() or layer.norm or d != rows:
            why = "keys give values back where each head has a row of K, without a norm"
            raise UsageError(f"{why}, and W_K is square: not {spec.name}, {d} x {rows}", "use qkv")
        matrix = state["wk.weight"].astype("float64")
        if np.linalg.cond(matrix) * np.finfo(layer.wk.weight.dtype).eps > 1:
            raise UsageError("W_K has no inverse, so values cannot be found from keys")
        matrix = np.linalg.solve(matrix, state["wv.weight"])  # (C, C): W_K⁻¹ W_V
        bias = state.get("wv.bias", 0) - state.get("wk.bias", np.zeros(d)) @ matrix
        vars(self).update({name: part for name, part in vars(layer).items() if name != "wv"})
        self.spec, self.turn_late = replace(spec, streams=1), layer.angles is not None
        dtype = layer.wk.weight.dtype
        self.k_to_v, self.offset = (Tensor(backend.upload(a, dtype)) for a in (matrix, bias))

    def read(self, rows, at=None):
        """Keys, and the values that they give back, (B, H, S, d_h) each."""
        k, row = super().read(rows, at)
        return k, split_heads(linear(merge_heads(row), self.k_to_v, self.offset), self.n_head)


def slimmed(model: GPT) -> GPT:
    """A copy of a trained model whose layers are Slim: it computes the same, and stores half as
    much. Raises UsageError where K does not give V back.
    """
    twin = GPT(model.config)
    twin.load_state_dict(model.state_dict())
    twin.eval()
    for block in twin.blocks:
        block.attn = Slim(block.attn)
    return twin


MEANING = {
    "kv_heads": "how many heads are stored",
    "query_rank": "the numbers that queries pass through",
    "groups": "the groups of heads in its output",
    "out_rank": "the numbers that a group passes on",
}


def shipped_layer(
    kind: str,
    n_embd: int,
    n_head: int,
    block_size: int,
    init: Init | None = None,
    *,
    spec: VariantSpec | None = None,
    kv_heads: int | None = None,
    query_rank: int | None = None,
    groups: int | None = None,
    out_rank: int | None = None,
    **options,
) -> Attention:
    """An attention layer of a model that ships, a name of variants.SHIPPED, without biases.

    Its sizes are the model's where a design fixes them, unless `options`, those of Attention, say
    otherwise. `kv_heads` is for designs that store several heads. DeepSeek's queries are of
    `query_rank`; deepseek-v4 has an output of `groups`, each of `out_rank`, and a sink. `spec`
    replaces the design's own, for a latent row of another width.
    Raises UsageError for a name or sizes that are not defined.
    """
    kind = str(kind).lower().replace("_", "-")
    if kind not in SHIPPED:
        raise unknown("layer", kind, SHIPPED)
    about = {"position": "rope"} | SHIPPED[kind] | options
    variant = about.pop("variant")
    ranks = {"query_rank", "groups", "out_rank"} if kind == "deepseek-v4" else set()
    needs = ranks | ({"kv_heads"} if "N" in variant else set())
    takes = needs | ({"query_rank"} if kind == "deepseek-v3" else set())
    sizes = {"kv_heads": kv_heads, "query_rank": query_rank, "groups": groups, "out_rank": out_rank}
    for name, size in sizes.items():
        if size is None and name in needs:
            raise UsageError(f"{kind} needs {name}: {MEANING[name]}")
        if size is not None and name not in takes:
            raise UsageError(f"{kind} has no {name}")
        if size is not None and (type(size) is not int or size < 1):
            raise UsageError(f"{name} must be a whole number of at least 1, not {size!r}")
    if groups and n_head % groups:
        raise UsageError(f"{n_head} heads do not fall into {groups} equal groups")
    init = init or Init()
    spec = spec or variant.replace("N", str(kv_heads))
    layer = (Sink if ranks else Attention)(
        spec, n_embd, n_head, block_size, init, bias=False, **about
    )
    layer.kind = kind
    if query_rank:
        layer.wq = LowRank(n_embd, query_rank, layer.wq.weight.shape[1], init / "wq")
    if groups:
        layer.wo = Grouped(layer.wo.weight.shape[0], groups, out_rank, n_embd, init / "wo")
    return layer
