"""Attention, every variant of it, in one forward. What differs is which projections exist and what is used as k and v.

With K = V the same array *is* k and v: in training, where the gradients of its two uses add up, and in the cache.
"""

from . import backend, reading, tracing
from .errors import UsageError, unknown
from .functional import merge_heads, rotate, scaled_dot_product_attention, split_heads
from .nn import Init, Linear, Module
from .positions import SCHEMES, rope_table, sinusoids
from .tensor import Tensor
from .variants import VariantSpec

ROPE_VALUES = ("raw", "unrotate")


class Plus(Module):
    """What the softmax leaves of the paper's "+": a temperature s = Σw and a bias g_j = Σ_c w_c P_jc per key position.

    The literal form (composed.literal_plus; paper, section 3.3) adds a row part and a constant too; both are equal for
    all keys of a query and cancel. All m weights stay parameters: under Adam, s = Σw moves m steps at once.
    `channels` is (row channels, column channels, width that sets the frequencies).
    """

    def __init__(self, kind, block_size, init=None, channels=(5, 5, 5), start=None):
        init = init or Init()
        self.kind, (self.m_row, m_column, width) = kind, channels
        m = self.m_row + m_column
        self.columns = Tensor(backend.upload(sinusoids(block_size, m_column, width, init.dtype)))  # (block_size, m_column)
        weight = init / "weight"
        if start is not None:
            self.weight = weight.constant((m,), start / m)
        elif init.scheme == "xavier":
            self.weight = weight.uniform((m,), (6 / (m + 1)) ** 0.5)
        else:
            self.weight = weight.normal((m,), 0.02)

    def forward(self, n_keys):
        """(temperature (), bias (n_keys,)); None for the half an ablation leaves out."""
        temperature = None if self.kind == "bias" else self.weight.sum()
        if self.kind == "temperature":
            return temperature, None
        column_weights = self.weight[self.m_row :].reshape(-1, 1)  # (m_column, 1)
        return temperature, (self.columns[:n_keys] @ column_weights).reshape(n_keys)


class Attention(Module):
    """Multi-head attention of any VariantSpec (paper, section 3): (B, T, C) -> (B, T, C).

    `block_size` bounds positions ("rope" and "+" tables). `rope_value`, for K = V under rotary positions: "raw" stores
    unrotated keys and turns them when read; "unrotate" stores turned keys and turns the output back.
    """

    def __init__(self, spec, n_embd, n_head, block_size, init=None, *, bias=True, position="none", rope_value="raw",
                 plus_channels=(5, 5, 5), plus_start=None):  # fmt: skip
        init = init or Init()
        spec = VariantSpec.parse(spec).for_heads(n_head)
        if n_embd % n_head:
            raise UsageError(f"n_embd {n_embd} is not divisible by n_head {n_head}")
        if rope_value not in ROPE_VALUES:
            raise unknown("rope_value", rope_value, ROPE_VALUES)
        if position not in SCHEMES:
            raise unknown("position scheme", position, SCHEMES)
        self.spec, self.name, self.n_head, self.kv_heads = spec, init.name, n_head, spec.stored_heads(n_head)
        d_head, rope = n_embd // n_head, position == "rope"
        if rope and d_head % 2:
            raise UsageError(f"rotary positions turn pairs: d_head {d_head} = n_embd / n_head must be even")
        stored = self.kv_heads * d_head
        fused = (n_embd if spec.own_query else 0) + spec.streams * stored  # all of them as one matrix: xavier's bound
        if spec.own_query:
            self.wq = Linear(n_embd, n_embd, init / "wq", bias, fused)
        self.wk = Linear(n_embd, stored, init / "wk", bias, fused)  # K, and what shares its projection
        if spec.streams == 2:
            self.wv = Linear(n_embd, stored, init / "wv", bias, fused)
        self.wo = Linear(n_embd, n_embd, init / "wo", bias)
        if spec.plus:
            self.plus = Plus(spec.plus, block_size, init / "plus", plus_channels, plus_start)
        self.angles = rope_table(block_size, d_head, init.dtype) if rope else None
        self.turn_late = rope and spec.streams == 1 and rope_value == "raw"
        self.turn_back = rope and spec.streams == 1 and rope_value == "unrotate"

    def forward(self, x, mask=None, cache=None, layer=0):
        """`mask` (T, S) booleans, True where a key may be seen. With a `cache`, its keys come before those of x."""
        with tracing.scope(self.name):
            start = len(cache) if cache is not None else 0  # absolute position of x[:, 0]
            k = split_heads(self.wk(x), self.kv_heads)  # (B, h, T, d_h)
            q = split_heads(self.wq(x), self.n_head) if self.spec.own_query else k  # (B, H, T, d_h)
            v = split_heads(self.wv(x), self.kv_heads) if self.spec.streams == 2 else k  # (B, h, T, d_h)
            if self.angles:
                turned = k if self.turn_late else self.turn(k, start)
                q = turned if q is k and not self.turn_late else self.turn(q, start)
                k, v = turned, turned if v is k else v
            if cache is not None:
                k, v = self.remember(cache, layer, k, v)  # (B, h, S, d_h)
            if self.turn_late:
                k = self.turn(k, 0)  # a temporary; v stays raw
            for name, value in (("q", q), ("k", k), ("v", v)):
                tracing.probe(name, value)
            temperature, bias = self.plus(k.shape[2]) if self.spec.plus else (None, None)
            alone = x.shape[1] == 1 and mask is None and not self.turn_late  # a token that sees all that is stored
            if alone and reading.possible(cache, q, temperature, bias):
                z = reading.attend(q, k, v, cache, layer, temperature, bias)  # (B, H, 1, d_h)
            else:
                z = scaled_dot_product_attention(q, k, v, mask, temperature=temperature, bias=bias)  # (B, H, T, d_h)
            if self.turn_back:
                z = self.turn(z, start, back=True)
            tracing.probe("z", z)
            out = self.wo(merge_heads(z))  # (B, T, C)
            tracing.probe("out", out)
            return out

    def turn(self, x, start, back=False):
        """Rotary positions start, start + 1, ... on (B, h, T, d_h)."""
        cos, sin = (table[start : start + x.shape[2]] for table in self.angles)  # (T, d_h/2)
        return rotate(x, cos, -sin if back else sin)

    def remember(self, cache, layer, k, v):
        """Append to the cache; return all it holds, as one Tensor twice where k and v are one."""
        keys, values = cache.append(layer, k.data, None if v is k else v.data)
        tracing.probe("cache.k", keys)
        tracing.probe("cache.v", values)
        stored = Tensor(keys.astype(k.dtype, copy=False))
        return stored, stored if values is keys else Tensor(values.astype(k.dtype, copy=False))
