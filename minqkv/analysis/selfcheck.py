"""Checks that every backward is the transpose of its forward: `minqkv gradcheck`."""

from collections.abc import Iterator

import numpy as np

from .. import functional
from ..attention import Attention
from ..checking import GradcheckError, gradcheck
from ..models import GPT, GPTConfig
from ..nn import Init
from ..runtime import backend
from ..runtime.rng import stream
from ..tensor import Tensor
from ..variants import variant_names


def checks(seed: int = 0) -> Iterator[tuple[str, float | None, str | None]]:
    """Yields (name, relative error or None, fault or None) for operations, each variant's
    Attention, and a GPT.
    """
    for name, function, inputs in _cases(seed):
        try:
            yield name, gradcheck(function, *inputs, seed=seed), None
        except GradcheckError as error:
            yield name, None, str(error)


def _cases(seed):
    rng = stream(seed, "selfcheck")

    def t(*shape, positive=False):
        array = rng.standard_normal(shape)
        return Tensor(backend.upload(abs(array) + 0.5 if positive else array), requires_grad=True)

    f = functional
    for name in ("add", "sub", "mul"):
        yield name, getattr(f, name), (t(3, 4), t(4))
    yield "div", f.div, (t(3, 4), t(4, positive=True))
    for name in ("neg", "exp", "tanh", "softmax", "gelu", "relu"):
        yield name, getattr(f, name), (t(3, 4),)
    for name in ("log", "sqrt"):
        yield name, getattr(f, name), (t(3, 4, positive=True),)
    yield "pow", lambda x: f.pow(x, 3), (t(3, 4),)
    yield "matmul", f.matmul, (t(2, 3, 4), t(4, 5))
    yield "sum", lambda x: f.sum(x, 1), (t(3, 4),)
    yield "mean", lambda x: f.mean(x, 0), (t(3, 4),)
    yield "max", lambda x: f.max(x, -1), (t(3, 4),)
    yield "reshape", lambda x: f.reshape(x, 2, 6), (t(3, 4),)
    yield "transpose", f.transpose, (t(3, 4),)
    yield "getitem", lambda x: x[np.array([2, 0, 2])], (t(3, 4),)
    yield "concat", lambda a, b: f.concat([a, b], 1), (t(3, 4), t(3, 2))
    yield (
        "where",
        lambda a, b: f.where(backend.upload(np.eye(3, 4, dtype=bool)), a, b),
        (t(3, 4), t(3, 4)),
    )
    yield "linear", f.linear, (t(2, 3, 4), t(4, 5), t(5))
    yield "embedding", lambda w: f.embedding(np.array([[2, 0], [2, 1]]), w), (t(3, 4),)
    yield "layer_norm", f.layer_norm, (t(3, 4), t(4), t(4))
    yield "rms_norm", f.rms_norm, (t(3, 4),)
    yield "dropout", lambda x: f.dropout(x, 0.5, stream(seed, "mask")), (t(3, 4),)
    angles = backend.upload(rng.uniform(0, 6, (3, 2)))
    yield (
        "rotate",
        lambda x: f.rotate(x, backend.xp.cos(angles), backend.xp.sin(angles)),
        (t(2, 3, 5),),
    )
    yield "split_heads", lambda x: f.split_heads(x, 2), (t(2, 3, 4),)
    yield "merge_heads", f.merge_heads, (t(2, 3, 4, 2),)
    yield "cross_entropy", lambda x: f.cross_entropy(x, np.array([1, -100, 3])), (t(3, 4),)
    mask = backend.upload(np.tri(5, dtype=bool))

    def attention(q, k, v, temperature, bias):
        return f.scaled_dot_product_attention(q, k, v, mask, temperature=temperature, bias=bias)

    yield "attention, grouped", attention, (t(2, 4, 5, 3), t(2, 2, 5, 3), t(2, 2, 5, 3), t(), t(5))
    yield (
        "attention(x, x, x)",
        lambda x: f.scaled_dot_product_attention(x, x, x, mask),
        (t(2, 4, 5, 3),),
    )
    for name in variant_names(groups=2):
        layer = Attention(name, 8, 4, 5, Init(seed, "float64", "uniform"), position="rope")
        yield (
            f"Attention {name}",
            lambda x, *_, layer=layer: layer(x, mask),
            (t(2, 5, 8), *layer.parameters()),
        )
    model = GPT(GPTConfig(7, 5, 2, 2, 8, "q-k=v", dtype="float64"), seed)
    ids = rng.integers(0, 7, (2, 5))
    yield "a whole GPT, q-k=v", lambda *_: model(ids), tuple(model.parameters())
