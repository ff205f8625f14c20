"""Shards on worker processes give the losses and gradients of the whole batch, to rounding, and the
same bits each time.
"""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from commands import wait_until

from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig
from minqkv.optim import AdamW
from minqkv.runtime import parallel as shards
from minqkv.runtime import parallel as workers
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.train import train_step

pytestmark = pytest.mark.skipif(
    not workers.CAN_FORK, reason="this system has no safe fork: batches stay whole"
)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SMALLEST", 1)
    yield
    workers.set_threads(1)


def steps(threads, make, ignored=slice(0, 0)):
    workers.set_threads(threads)
    model = make()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    x, y = np.random.default_rng(0).integers(0, 7, (2, 7, 6))
    y[ignored] = -100
    return [train_step(model, optimizer, x, y) for _ in range(5)], model.state_dict()


MODELS = {
    "qkv": lambda: GPT(GPTConfig(7, 6, 2, 4, 16, "qkv", dtype="float64")),
    "dropout": lambda: GPT(GPTConfig(7, 6, 2, 4, 16, "q-k=v", dropout=0.3, dtype="float64")),
    "rope and groups": lambda: GPT(
        GPTConfig(7, 6, 1, 4, 16, "q-gqa-2", position="rope", dtype="float64")
    ),
    "tagger": lambda: Tagger(
        TaggerConfig(7, 6, 1, 2, 16, "q=k=v+", protocol="2023", dtype="float64")
    ),
}


@pytest.mark.parametrize(
    "ignored", [slice(0, 0), slice(2, 5)], ids=["all count", "a shard without targets"]
)
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
    workers.set_threads(2)
    model, x = MODELS["qkv"](), np.random.default_rng(0).integers(0, 7, (4, 6))
    shards.loss_and_gradients(model, x, x)
    once = [p.grad.copy() for p in model.parameters()]
    shards.loss_and_gradients(model, x, x)
    for p, g in zip(model.parameters(), once, strict=True):
        np.testing.assert_allclose(p.grad, 2 * g, rtol=1e-12)


def test_no_threads_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        workers.set_threads(0)


def test_a_shard_is_the_model_as_it_is():
    workers.set_threads(2)
    model, x = MODELS["dropout"](), np.random.default_rng(0).integers(0, 7, (4, 6))
    optimizer = AdamW(model.parameters(), lr=0.0)
    assert len({train_step(model, optimizer, x, x) for _ in range(3)}) == 3
    for block in model.blocks:
        block.drop_1.rate = block.drop_2.rate = 0.0
    plain = train_step(model, optimizer, x, x)
    workers.set_threads(1)
    assert train_step(model, optimizer, x, x) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_does_not_fit_is_refused_whole_or_in_shards(threads):
    workers.set_threads(threads)
    model, x = MODELS["qkv"](), np.zeros((4, 6), int)
    for y, message in ((np.zeros((8, 6), int), "do not fit"), (np.full((4, 6), -100), "every target is ignored"),
                       (np.full((4, 6), 7), "outside 0..6")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            shards.loss_and_gradients(model, x, y)
    assert np.isfinite(shards.loss_and_gradients(model, x, x))


def test_a_forked_child_can_train():
    workers.set_threads(2)
    model, x = MODELS["qkv"](), np.zeros((4, 6), int)
    shards.loss_and_gradients(model, x, x)
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends the child
        if workers._crews:
            os._exit(2)
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
    workers.set_threads(3)
    model = MODELS["qkv"]()
    losses = [trained(model) for _ in range(3)]
    crew = workers._crews[model]
    pids = crew.pids
    assert len(set(losses)) == 1
    assert len(pids) == 2
    assert trained(model) == losses[0]
    assert workers._crews[model] is crew
    workers.set_threads(2)
    assert not any(map(alive, pids))
    trained(model)
    assert len(workers._crews[model].pids) == 1


def test_each_model_has_a_crew_that_knows_its_class():
    workers.set_threads(2)
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
    workers.set_threads(1)
    assert trained(sharper) == pytest.approx(whole, rel=1e-12)
    assert whole != pytest.approx(alone[0], rel=1e-3)


def test_crews_are_few_and_end_with_their_models():
    workers.set_threads(2)
    models = [MODELS["qkv"]() for _ in range(workers.MOST + 1)]
    for model in models:
        trained(model)
    assert list(workers._crews) == models[1:]
    pids = [crew.pids[0] for crew in workers._crews.values()]
    del models[1:], model
    gc.collect()
    assert not any(map(alive, pids))
    assert not workers._crews


def test_parameters_replaced_or_left_out():
    workers.set_threads(2)
    model = MODELS["qkv"]()
    trained(model)
    model.wte.weight = type(model.wte.weight)(model.wte.weight.data * 2)
    last = model.blocks.pop()
    sharded, grads = trained(model), [p.grad.copy() for p in model.blocks[0].parameters()]
    assert all(p.grad is not None for p in last.parameters())  # of the step before
    workers.set_threads(1)
    assert trained(model) == pytest.approx(sharded, rel=1e-12)
    assert all(np.isfinite(g).all() for g in grads)


def test_a_model_that_cannot_be_sent():
    workers.set_threads(2)
    model = MODELS["qkv"]()
    model.mlp_hook = lambda x: x
    with pytest.raises(UsageError, match="cannot be sent") as caught:
        trained(model)
    assert "set_threads(1)" in caught.value.hint


def test_a_worker_that_was_killed():
    workers.set_threads(2)
    model = MODELS["qkv"]()
    loss = trained(model)
    model.zero_grad()
    os.kill(workers._crews[model].pids[0], signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="worker process"):
        trained(model)
    model.zero_grad()
    assert trained(model) == loss  # by a new crew


def test_an_interrupted_step_leaves_no_stale_answer(monkeypatch):
    workers.set_threads(2)
    model = MODELS["qkv"]()
    loss = trained(model)
    whole = shards._loss

    def interrupted(*args):
        raise KeyboardInterrupt

    pids = workers._crews[model].pids
    monkeypatch.setattr(shards, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(model)
    monkeypatch.setattr(shards, "_loss", whole)
    model.zero_grad()
    assert trained(model) == loss
    assert not any(map(alive, pids))  # what they answered nobody has read, and nobody will


def test_a_stop_for_the_whole_group_is_the_parents_to_answer():
    workers.set_threads(3)
    model = MODELS["qkv"]()
    loss = trained(model)
    pids = workers._crews[model].pids
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert trained(model) == loss
    assert workers._crews[model].pids == pids


def test_a_fork_that_fails_leaves_nobody_behind(monkeypatch):
    workers.set_threads(3)
    forked, fork = [], os.fork

    def once():
        if forked:
            raise BlockingIOError("no more processes")
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", once)
    model = MODELS["qkv"]()
    with pytest.raises(EnvironmentFault, match="no more processes"):
        trained(model)
    assert not any(map(alive, forked))
    assert model not in workers._crews


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [(ValueError("seven"), ValueError, "seven"), (UsageError("eight", "a cure"), UsageError, "eight"),
     (TwoArguments(1, 2), RuntimeError, "TwoArguments: 1 and 2"), (EOFError("a file ended"), EOFError, "a file ended"),
     (ValueError(lambda: None), RuntimeError, "lambda")],
)  # fmt: skip
def test_errors_come_home_from_a_worker(error, kind, says, monkeypatch):
    workers.set_threads(2)
    model, parent, whole = MODELS["qkv"](), os.getpid(), shards._loss

    def failing(*args):
        if os.getpid() != parent:
            raise error
        return whole(*args)

    monkeypatch.setattr(shards, "_loss", failing)
    with pytest.raises(kind, match=says) as caught:
        trained(model)
    if kind is ValueError:
        assert "in failing" in caught.value.__notes__[0]
    monkeypatch.setattr(shards, "_loss", whole)
    workers.set_threads(2)  # workers know the code of the moment they were forked
    assert np.isfinite(trained(model))


def test_set_threads_again_makes_workers_see_new_code(monkeypatch):
    workers.set_threads(2)
    model = MODELS["qkv"]()
    trained(model)
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda self, ids: forward(self, ids) * 3)
    workers.set_threads(2)
    sharded = trained(model)
    workers.set_threads(1)
    assert trained(model) == pytest.approx(sharded, rel=1e-12)


def test_what_is_small_or_of_two_dtypes_stays_whole(monkeypatch):
    workers.set_threads(2)
    model = MODELS["qkv"]()
    model.ln_f.weight.data = model.ln_f.weight.data.astype("float32")
    trained(model)
    assert model not in workers._crews
    monkeypatch.setattr(shards, "SMALLEST", 1 << 22)
    model = MODELS["qkv"]()
    model.hook = lambda x: x  # it could not be sent, and need not
    trained(model)
    assert model not in workers._crews


def test_a_parameter_without_a_gradient_stays_without():
    workers.set_threads(2)
    model = MODELS["qkv"]()
    model.spare = type(model.wte.weight)(np.ones((2, 3)))
    model.empty = [type(model.wte.weight)(np.ones((0,))) for _ in range(2)]
    trained(model)
    assert model.spare.grad is None
    assert model.wte.weight.grad is not None


def test_a_model_that_grows_gets_a_larger_crew():
    workers.set_threads(2)
    model, other = MODELS["qkv"](), MODELS["qkv"]()
    trained(model)
    model.blocks += other.blocks
    sharded = trained(model)
    workers.set_threads(1)
    assert trained(model) == pytest.approx(sharded, rel=1e-12)


def test_where_a_model_was_placed_counts():
    model, x = MODELS["dropout"]().train(3), np.random.default_rng(0).integers(0, 7, (4, 6))
    model.place(4)
    whole = shards.loss_and_gradients(model, x, x)
    workers.set_threads(2)
    assert shards.loss_and_gradients(model, x, x) == pytest.approx(whole, rel=1e-12)


def test_two_python_threads_take_turns():
    workers.set_threads(2)
    models, found = [MODELS["qkv"]() for _ in range(2)], {0: [], 1: []}

    def run(i):
        found[i] += [trained(models[i]) for _ in range(30)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(set(losses)) for losses in found.values()} == {1}
    assert all(len(losses) == 30 for losses in found.values())


@pytest.mark.slow
def test_interrupts_at_any_moment_leave_no_zombie_and_no_second_parent():
    """Ctrl-C to the whole group, again and again, while crews come and go."""
    program = """
        import contextlib, os, random, signal, sys, threading, time
        import numpy as np
        from minqkv import GPT, GPTConfig
        from minqkv.runtime import parallel
        shards.SMALLEST = 1
        me, x = os.getpid(), np.zeros((6, 6), int)
        models = [GPT(GPTConfig(7, 6, 1, 2, 16)) for _ in range(2)]
        random.seed(0)

        def shoot(delay):
            time.sleep(delay)
            os.killpg(0, signal.SIGINT)

        for trial in range(150):
            workers.set_threads(3)
            killer = threading.Thread(target=shoot, args=(random.random() * 0.02,))
            try:
                killer.start()
                for step in range(10_000):
                    shards.loss_and_gradients(models[step % 2], x, x)
            except KeyboardInterrupt:
                if os.getpid() != me:
                    open("second-parent", "w").close()
                    os._exit(1)
            killer.join()
        workers.set_threads(1)
        states = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it just ended
                states.append(open(f"/proc/{pid}/stat").read().split())
        print(sum(int(state[3]) == me for state in states if state[3].isdigit()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100,
                          check=False, start_new_session=True)  # fmt: skip
    assert done.stdout.strip() == "0", done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_workers_end_with_a_parent_that_was_killed():
    program = """
        import os, signal, numpy as np
        from minqkv import GPT, GPTConfig
        from minqkv.runtime import parallel
        shards.SMALLEST = 1
        workers.set_threads(3)
        x = np.zeros((6, 6), int)
        model = GPT(GPTConfig(7, 6, 1, 2, 16))
        shards.loss_and_gradients(model, x, x)
        print(*workers._crews[model].pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    two_workers_end_with(program)


def two_workers_end_with(program):
    """A program that prints the numbers of its two workers, and is killed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
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
