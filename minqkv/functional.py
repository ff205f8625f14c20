"""The public face of the operations: `minqkv.functional`, usually imported as F. Small ones from ops, fused ones from fused."""

# isort: skip_file
# ruff: noqa: F401
# fmt: off
from .ops import add, concat, div, exp, getitem, log, matmul, max, mean, mul
from .ops import neg, pow, reshape, sqrt, sub, sum, tanh, transpose, where
from .fused import cross_entropy, dropout, embedding, gelu, layer_norm, linear, merge_heads
from .fused import relu, rotate, scaled_dot_product_attention, softmax, split_heads
