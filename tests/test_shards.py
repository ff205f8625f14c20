"""Shards on worker processes give the losses and gradients of the whole batch, to rounding, and the same bits each time."""

import gc
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from commands import wait_until

from minqkv import shards
from minqkv.errors import EnvironmentFault, UsageError
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig
from minqkv.optim import AdamW
from minqkv.train import train_step

pytestmark = pytest.mark.skipif(not shards.CAN_FORK, reason="this system has no safe fork: batches stay whole")


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


def test_a_forked_child_can_train():
    shards.set_threads(2)
    model, x = MODELS["qkv"](), np.zeros((4, 6), int)
    shards.loss_and_gradients(model, x, x)
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends the child
        os._exit(0 if np.isfinite(shards.loss_and_gradients(model, x, x)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def trained(model):
    x = np.zeros((4, 6), int)
    return shards.loss_and_gradients(model, x, x)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_are_forked_once_and_end_when_no_longer_wanted():
    shards.set_threads(3)
    model = MODELS["qkv"]()
    losses = [trained(model) for _ in range(3)]
    crew = shards._crews[model]
    pids = crew.pids
    assert len(set(losses)) == 1
    assert len(pids) == 2
    assert trained(model) == losses[0]
    assert shards._crews[model] is crew
    shards.set_threads(2)
    assert not any(map(alive, pids))
    trained(model)
    assert len(shards._crews[model].pids) == 1


def test_each_model_has_a_crew_that_knows_its_class():
    shards.set_threads(2)
    first, second = MODELS["qkv"](), MODELS["rope and groups"]()
    alone = trained(first), trained(second)
    assert (trained(first), trained(second)) == alone

    def doubled(self, ids):
        return GPT.forward(self, ids) * 2

    class Doubled(GPT):
        forward = doubled

    globals()["Doubled"] = Doubled
    Doubled.__qualname__ = "Doubled"
    sharper = Doubled(first.config)
    whole = trained(sharper)
    shards.set_threads(1)
    assert trained(sharper) == pytest.approx(whole, rel=1e-12)
    assert whole != pytest.approx(alone[0], rel=1e-3)


def test_crews_are_few_and_end_with_their_models():
    shards.set_threads(2)
    models = [MODELS["qkv"]() for _ in range(shards.MOST + 1)]
    for model in models:
        trained(model)
    assert list(shards._crews) == models[1:]
    pids = [crew.pids[0] for crew in shards._crews.values()]
    del models[1:], model
    gc.collect()
    assert not any(map(alive, pids))
    assert not shards._crews


def test_parameters_replaced_or_left_out():
    shards.set_threads(2)
    model = MODELS["qkv"]()
    trained(model)
    model.wte.weight = type(model.wte.weight)(model.wte.weight.data * 2)
    last = model.blocks.pop()
    sharded, grads = trained(model), [p.grad.copy() for p in model.blocks[0].parameters()]
    assert all(p.grad is not None for p in last.parameters())  # of the step before
    shards.set_threads(1)
    assert trained(model) == pytest.approx(sharded, rel=1e-12)
    assert all(np.isfinite(g).all() for g in grads)


def test_a_model_that_cannot_be_sent():
    shards.set_threads(2)
    model = MODELS["qkv"]()
    model.mlp_hook = lambda x: x
    with pytest.raises(UsageError, match="cannot be sent") as caught:
        trained(model)
    assert "set_threads(1)" in caught.value.hint


def test_a_worker_that_was_killed():
    shards.set_threads(2)
    model = MODELS["qkv"]()
    loss = trained(model)
    model.zero_grad()
    os.kill(shards._crews[model].pids[0], signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="worker process"):
        trained(model)
    model.zero_grad()
    assert trained(model) == loss  # by a new crew


def test_an_interrupted_step_leaves_no_stale_answer(monkeypatch):
    shards.set_threads(2)
    model = MODELS["qkv"]()
    loss = trained(model)
    whole = shards._loss

    def interrupted(*args):
        raise KeyboardInterrupt

    pids = shards._crews[model].pids
    monkeypatch.setattr(shards, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(model)
    assert not any(map(alive, pids))
    monkeypatch.setattr(shards, "_loss", whole)
    assert trained(model) == loss


def test_workers_end_with_a_parent_that_was_killed():
    program = """
        import os, signal, numpy as np
        from minqkv import GPT, GPTConfig, shards
        shards.SMALLEST = 1
        shards.set_threads(3)
        x = np.zeros((6, 6), int)
        model = GPT(GPTConfig(7, 6, 1, 2, 16))
        shards.loss_and_gradients(model, x, x)
        print(*shards._crews[model].pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    wait_until(lambda: not any(map(running, pids)))


def running(pid):
    """Not ended, and not waiting for somebody to take note of its end."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
