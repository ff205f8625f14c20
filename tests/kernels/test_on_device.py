"""All kernels at once, against the readable code on the same device. With `-m gpu`, that is a real
GPU: the one place where softmax.cu, rows.cu, elementwise.cu, gemv.cu and graphs are compared there.
"""

import numpy as np
import pytest

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.models.recorded import recorded
from minqkv.runtime.backend import GpuBackend, use_precision
from minqkv.tensor import Tensor
from minqkv.train import train_step

TRAINED = {"weigh", "gradient", "norm_forward", "norm_backward", "columns", "loss_forward"}
TRAINED |= {"loss_backward", "gelu", "squares", "adamw"}
DESIGNS = {
    "qkv": {"variant": "qkv"},
    "one row": {"variant": "q-k=v", "position": "rope"},
    "one head": {"variant": "q-mqa", "position": "rope"},
}


@pytest.fixture
def launched(device, monkeypatch):
    """The names of functions that have been launched."""
    names, launch = set(), GpuBackend.launch

    def listen(self, file, function, *args):
        names.add(function)
        return launch(self, file, function, *args)

    monkeypatch.setattr(GpuBackend, "launch", listen)
    return names


def decoder(**design):
    sizes = {"vocab_size": 97, "block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 32}
    return mq.GPT(mq.GPTConfig(**sizes | design))


def trained(**design):
    """Losses of two steps, and the weights after them."""
    model, ids = decoder(**design), np.random.default_rng(0).integers(0, 97, (2, 19))
    optimizer = mq.AdamW(model.parameters(), lr=1e-2, eps=1e-4)  # eps: noise does not count
    targets = np.where(ids % 5, ids, -100)[:, 1:]
    losses = [train_step(model, optimizer, ids[:, :-1], targets, clip=0.5) for _ in range(2)]
    return np.array(losses), backend.to_host(optimizer.data)


def decoded(graphs, batch=2, **design):
    """Logits (tokens, B, V) of given tokens, after a prompt."""
    model, ids = decoder(**design), np.random.default_rng(1).integers(0, 97, (batch, 14))
    cache = model.new_cache(batch)
    with mq.no_grad():
        model(ids[:, :10], cache=cache)
        one = recorded(model, cache) if graphs else None
        one = one or (lambda ids: model(ids, cache=cache))
        return np.array([one(ids[:, i : i + 1]).numpy()[:, 0] for i in range(10, 14)])


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, 0, tolerance * abs(theirs).max())


@pytest.mark.parametrize("name", DESIGNS)
def test_training(device, launched, name):
    losses, weights = trained(**DESIGNS[name])
    assert launched == TRAINED
    device.kernels = False
    others, there = trained(**DESIGNS[name])
    assert launched == TRAINED
    close(losses, others, 1e-5)
    close(weights, there, 1e-4)


@pytest.mark.parametrize("name", DESIGNS)
def test_decoding_and_graphs(device, launched, name):
    singly, before = decoded(False, **DESIGNS[name]), device.graphs
    assert launched >= {"decode", "join"}
    assert launched & {"across", "along"}
    together = decoded(True, **DESIGNS[name])
    assert device.graphs == before + 1
    device.kernels = False
    readable = decoded(False, **DESIGNS[name])
    close(singly, readable, 1e-4)
    close(together, readable, 1e-4)


def test_dropout_is_drawn_again(device, launched):
    x = Tensor(backend.xp.ones((50, 40), "float32"), requires_grad=True)
    found = []
    for _ in range(2):
        x.zero_grad()
        y = F.dropout(x, 0.3, np.random.default_rng(5))
        y.backward(backend.xp.ones(y.shape, "float32"))
        found += [y.numpy(), backend.to_host(x.grad)]
    assert launched == {"dropout"}
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    assert 0.25 < (found[0] == 0).mean() < 0.35


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-5), ("tf32", 3e-3), ("bf16", 2e-2)])
def test_precisions(device, name, tolerance):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype="f4") for shape in ((3, 1, 70, 64), (2, 64, 50)))
    exact = a.astype("f8") @ b
    use_precision(name)
    try:
        found = backend.to_host(backend.bmm(backend.upload(a), backend.upload(b)))
    finally:
        use_precision("fp32")
    close(found, exact, tolerance)
    rounded = name != "fp32"
    assert (abs(found - exact).max() > 1e-4 * abs(exact).max()) == rounded
