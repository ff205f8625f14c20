"""Batches ahead of the step: the same numbers, uploaded while the step before them computes."""

import threading

import numpy as np
import pytest
import strict

import minqkv as mq
from minqkv import backend
from minqkv.models import ViT, ViTConfig
from minqkv.runtime import prefetch
from minqkv.runtime.errors import UsageError
from minqkv.runtime.rng import stream
from minqkv.train import IGNORE, fit, token_loss, train_step

STEPS = 4


def ids(step, ignored=False):
    """A batch of a decoder: inputs and targets (6, 5)."""
    x = stream(0, "test", step).integers(0, 11, (6, 6))
    return x[:, :-1], np.where(x[:, 1:] > 8, IGNORE, x[:, 1:]) if ignored else x[:, 1:]


def vectors(step):
    """A batch of an encoder of vectors."""
    rng = stream(0, "test", step)
    return rng.standard_normal((6, 5, 3)).astype("float32"), rng.integers(0, 4, 6)


def fresh(batch):
    if batch is vectors:
        return ViT(ViTConfig(3, 5, 4, 1, 2, 8))
    return mq.GPT(mq.GPTConfig(11, 5, 1, 2, 8, dropout=0.1))


def trained(batch, accumulate=1, loop=True):
    """Losses and weights after a few steps, by `fit` or by single steps."""
    model = fresh(batch)
    optimizer = mq.AdamW(model.parameters())
    if loop:
        steps = fit(model, optimizer, batch, lambda s: 0.01, STEPS, accumulate=accumulate)
        losses = [loss for _, loss in steps]
    else:
        losses = []
        for step in range(STEPS):
            optimizer.lr = 0.01
            losses.append(train_step(model, optimizer, *batch(step), accumulate=accumulate))
    return losses, backend.to_host(optimizer.data).tobytes()


BATCHES = {"ids": ids, "ignored targets": lambda step: ids(step, True), "vectors": vectors}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_same_bits(batch, accumulate, backend):
    assert trained(batch, accumulate) == trained(batch, accumulate, loop=False)


@pytest.fixture
def uploads(monkeypatch):
    """Shapes of what is uploaded by the thread that computes."""
    seen, upload = [], strict.Stream.upload

    def noted(self, host):
        if self is strict.get_current_stream() and threading.current_thread() is main:
            seen.append(host.shape)
        return upload(self, host)

    main = threading.current_thread()
    monkeypatch.setattr(strict.Stream, "upload", noted)
    return seen


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("batch", [ids, vectors])
def test_a_step_uploads_nothing_of_its_batch(batch, accumulate, uploads):
    with backend.use_backend("strict"):
        model = fresh(batch).eval()  # without dropout masks
        model.train = lambda step: None
        optimizer, more = mq.AdamW(model.parameters()), {"accumulate": accumulate}
        uploads.clear()
        x, y = batch(0)
        train_step(model, optimizer, x, y, **more)
        assert len(uploads) == 2 * accumulate
        uploads.clear()
        for _ in fit(model, optimizer, batch, lambda step: 0.01, STEPS, **more):
            pass
        assert uploads == []


def test_the_next_batch_is_made_while_a_step_computes():
    """Else the loss of a step would wait for ever for the batch of the next."""
    made = [threading.Event() for _ in range(STEPS)]

    def batch(step):
        made[step].set()
        return ids(step)

    def loss(model, x, y):
        step = next(i for i in range(STEPS) if (ids(i)[0][: len(x)] == x).all())
        assert made[min(step + 1, STEPS - 1)].wait(60)
        assert step + 2 >= STEPS or not made[step + 2].is_set()  # one ahead, no more
        return token_loss(model, x, y)

    with backend.use_backend("strict"):
        model = fresh(ids)
        optimizer = mq.AdamW(model.parameters())
        assert len(list(fit(model, optimizer, batch, lambda s: 0.01, STEPS, loss=loss))) == STEPS


def test_computing_waits_for_the_copy_and_a_copy_for_what_was_computed(monkeypatch):
    with backend.use_backend("strict") as gpu:
        right = trained(vectors)
        assert gpu.beside.waited == STEPS
        waits = strict.Stream.wait_event
        monkeypatch.setattr(
            strict.Stream, "wait_event", lambda s, e: waits(s, e) if s is gpu.beside else None
        )
        assert trained(vectors) != right  # of garbage


def test_a_task_may_use_its_arrays_again(backend):
    x, y = np.empty((6, 5), int), np.empty((6, 5), int)

    def batch(step):
        x[...], y[...] = ids(step)
        return x, y

    assert trained(batch)[0] == trained(ids)[0]


def test_a_batch_on_its_way_cannot_be_changed():
    with backend.use_backend("strict") as gpu:
        for x, _ in gpu.ahead([ids(0)]):
            with pytest.raises(ValueError, match="read-only"):
                x[0, 0] = 1


def test_what_is_found_on_the_device():
    """Parts of a batch that are in one piece, as numbers of its own type; copies each time."""
    with backend.use_backend("strict") as gpu:
        for x, y in gpu.ahead([vectors(0)]):
            for part in (x, x[1:3], x[2:].reshape(-1, 3), y, y[5:]):
                one, two = (prefetch.found(gpu, part, None) for _ in range(2))
                np.testing.assert_array_equal(gpu.to_host(one), part)
                assert not strict.shares_memory(one, two)
            for other in (x[:, 1:], x.T, x.copy(), y[:0], x.view("int32"), x.tolist()):
                assert prefetch.found(gpu, other, None) is None
            assert prefetch.found(gpu, x, "float64") is None
            assert gpu.upload(x, "float64").dtype == "float64"
        assert gpu.early == []


def test_an_error_of_a_batch_ends_the_loop_at_its_step(backend):
    def batch(step):
        if step == 2:
            raise UsageError("no such batch")
        return ids(step)

    model, done = fresh(ids), []
    steps = fit(model, mq.AdamW(model.parameters()), batch, lambda s: 0.01, STEPS)
    with pytest.raises(UsageError, match="no such batch"):
        done.extend(step for step, _ in steps)
    assert done == [0, 1]
    assert backend.on_host or backend.early == []
    assert not any("minqkv-ahead" in thread.name for thread in threading.enumerate())


def test_the_state_of_the_caller_counts(backend):
    """NumPy's error state, say, is that of the thread that trains."""

    def batch(step):
        np.float32(1) / np.float32(0)
        return ids(step)

    model = fresh(ids)
    with np.errstate(divide="ignore"):
        assert len(list(fit(model, mq.AdamW(model.parameters()), batch, lambda s: 0.01, 2))) == 2


def test_the_host_needs_no_second_thread():
    batches = iter([ids(0)])
    assert backend.ahead(batches) is batches
