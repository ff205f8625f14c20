"""Threads: shards of a batch give the losses and gradients of the whole batch, to rounding, and the same bits each time."""

import os
import signal

import numpy as np
import pytest

from minqkv import shards
from minqkv.errors import UsageError
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig
from minqkv.optim import AdamW
from minqkv.train import train_step


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SMALLEST", 1)
    yield
    shards.set_threads(1)


def steps(threads, make, ignored=slice(0, 0)):
    shards.set_threads(threads)
    model = make()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    x, y = np.random.default_rng(0).integers(0, 7, (2, 7, 6))
    y[ignored] = -100
    return [train_step(model, optimizer, x, y) for _ in range(5)], model.state_dict()


MODELS = {
    "qkv": lambda: GPT(GPTConfig(7, 6, 2, 4, 16, "qkv", dtype="float64")),
    "dropout": lambda: GPT(GPTConfig(7, 6, 2, 4, 16, "q-k=v", dropout=0.3, dtype="float64")),
    "rope and groups": lambda: GPT(GPTConfig(7, 6, 1, 4, 16, "q-gqa-2", position="rope", dtype="float64")),
    "tagger": lambda: Tagger(TaggerConfig(7, 6, 1, 2, 16, "q=k=v+", protocol="2023", dtype="float64")),
}


@pytest.mark.parametrize("ignored", [slice(0, 0), slice(2, 5)], ids=["all count", "a shard without targets"])
@pytest.mark.parametrize("name", MODELS)
def test_shards_agree_with_the_whole(name, ignored):
    whole, state = steps(1, MODELS[name], ignored)
    for threads in (2, 3, 7):
        losses, sharded = steps(threads, MODELS[name], ignored)
        np.testing.assert_allclose(losses, whole, rtol=1e-12)
        for key in state:
            np.testing.assert_allclose(sharded[key], state[key], rtol=1e-7, atol=1e-9, err_msg=key)


def test_the_same_number_of_threads_gives_the_same_bits():
    (first, a), (again, b) = (steps(2, lambda: GPT(GPTConfig(7, 6, 2, 4, 16))) for _ in range(2))
    assert first == again
    assert all((a[key] == b[key]).all() for key in a)


def test_gradients_add_up_over_calls():
    shards.set_threads(2)
    model, x = MODELS["qkv"](), np.random.default_rng(0).integers(0, 7, (4, 6))
    shards.loss_and_gradients(model, x, x)
    once = [p.grad.copy() for p in model.parameters()]
    shards.loss_and_gradients(model, x, x)
    for p, g in zip(model.parameters(), once, strict=True):
        np.testing.assert_allclose(p.grad, 2 * g, rtol=1e-12)


def test_no_threads_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        shards.set_threads(0)


def test_a_shard_is_the_model_as_it_is():
    shards.set_threads(2)
    model, x = MODELS["dropout"](), np.random.default_rng(0).integers(0, 7, (4, 6))
    optimizer = AdamW(model.parameters(), lr=0.0)
    assert len({train_step(model, optimizer, x, x) for _ in range(3)}) == 3
    for block in model.blocks:
        block.drop_1.rate = block.drop_2.rate = 0.0
    plain = train_step(model, optimizer, x, x)
    shards.set_threads(1)
    assert train_step(model, optimizer, x, x) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_does_not_fit_is_refused_whole_or_in_shards(threads):
    shards.set_threads(threads)
    model, x = MODELS["qkv"](), np.zeros((4, 6), int)
    for y, message in ((np.zeros((8, 6), int), "do not fit"), (np.full((4, 6), -100), "every target is ignored"),
                       (np.full((4, 6), 7), "outside 0..6")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            shards.loss_and_gradients(model, x, y)
    assert np.isfinite(shards.loss_and_gradients(model, x, x))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_train():
    shards.set_threads(2)
    model, x = MODELS["qkv"](), np.zeros((4, 6), int)
    shards.loss_and_gradients(model, x, x)
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends the child
        os._exit(0 if np.isfinite(shards.loss_and_gradients(model, x, x)) else 1)
    assert os.waitpid(child, 0)[1] == 0
