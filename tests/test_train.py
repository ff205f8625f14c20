"""A training step: its one wait for the device, its dropout masks, and what it refuses."""

import numpy as np
import pytest
import strict
from toys import FRESH, IDS, fresh_gpt, fresh_tagger, host

import minqkv as mq
from minqkv import backend as backends
from minqkv.functional import cross_entropy
from minqkv.runtime.errors import Diverged, UsageError
from minqkv.train import (
    IGNORE,
    counted_targets,
    evaluate,
    fit,
    loss_and_gradients,
    token_loss,
    train_step,
)


@pytest.mark.parametrize("variant", [*FRESH, "q=k-v+"])
@pytest.mark.parametrize(
    ("build", "kwargs"),
    [
        (fresh_gpt, {"position": "rope", "dropout": 0.1}),
        (fresh_gpt, {}),
        (fresh_tagger, {"hide_self": True}),
        (fresh_tagger, {"protocol": "2023"}),
    ],
    ids=["gpt, rope", "gpt", "tagger 2026", "tagger 2023"],
)
def test_one_wait_per_training_step(build, kwargs, variant):
    with backends.use_backend("strict"):
        model = build(variant, **kwargs)
        optimizer = mq.AdamW(model.parameters())
        train_step(model, optimizer, IDS, IDS)
        some = np.where(IDS == 2, -100, IDS)
        with strict.count_syncs() as syncs:
            train_step(model, optimizer, IDS, some)
            assert syncs() == 1


def test_train_step_draws_new_dropout_masks_each_step(backend, rng):
    model = mq.GPT(
        mq.GPTConfig(7, 5, 1, 2, 8, dropout=0.5)
    ).eval()  # train_step switches it on by itself
    optimizer, ids = mq.AdamW(model.parameters(), lr=0.0), rng.integers(0, 7, (4, 5))
    assert len({train_step(model, optimizer, ids, ids) for _ in range(4)}) == 4


def test_an_optimiser_that_lost_its_parameters_says_so(backend, rng):
    model = mq.GPT(mq.GPTConfig(7, 5, 1, 2, 8))
    first, ids = mq.AdamW(model.parameters()), rng.integers(0, 7, (4, 5))
    mq.AdamW(model.parameters())
    with pytest.raises(RuntimeError, match="another optimiser"):
        train_step(model, first, ids, ids)


def test_the_loop_yields_every_step():
    """`fit` is train_step, at the rate of the schedule, on the batch of the step."""
    x = np.arange(30).reshape(6, 5) % 5
    seen, losses = [], []
    model, twin = (fresh_gpt(dropout=0.1) for _ in range(2))
    optimizer, other = (mq.AdamW(m.parameters()) for m in (model, twin))

    def batch(step):
        seen.append(step)
        return x[step % 6 :], x[step % 6 :]

    steps = fit(model, optimizer, batch, lambda step: 0.01 / (step + 1), 5)
    assert seen == []
    for step, loss in steps:
        assert seen == list(range(step + 1))  # a step is made when it is asked for
        assert optimizer.lr == 0.01 / (step + 1)
        losses.append(loss)
    for step in range(5):
        other.lr = 0.01 / (step + 1)
        assert train_step(twin, other, *batch(step)) == losses[step]
    assert not model.training
    rest = fit(model, optimizer, batch, lambda step: 0.0, 7, start=5)
    assert [step for step, _ in rest] == [5, 6]


def test_the_loop_names_the_step_at_which_it_diverged():
    model, x = fresh_gpt(), np.zeros((2, 5), int)
    steps = fit(model, mq.AdamW(model.parameters()), lambda step: (x, x), lambda step: 1e-3, 9)
    next(steps)
    model.wte.weight.data[...] = np.nan
    with pytest.raises(Diverged, match="step 1 is nan"):
        next(steps)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_evaluation_weighs_batches_by_the_targets_that_count(size, backend):
    model, x = fresh_tagger(), np.arange(55).reshape(11, 5) * 7 % 5
    y = np.where(np.arange(5) > np.arange(11)[:, None] % 4, IGNORE, x)  # 1 to 4 in a row count
    y[-1, -1] = (x[-1, -1] + 1) % 5
    score, logits = evaluate(model, x, y, size), model(x)
    predicted, counted = host(logits).argmax(-1), y != IGNORE
    np.testing.assert_array_equal(score["predictions"], predicted)
    assert score["accuracy"] == (predicted == y)[counted].mean()
    assert score["loss"] == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_loss_of_ones_own_is_used_and_weighed(sparse, backend, rng):
    """`loss` gives a mean, `weight` says what it counts: the loop only passes them on."""
    x, y, seen = rng.integers(0, 5, (4, 5)), rng.integers(0, 5, (4, 5)), []

    def twice(model, x, y):
        return token_loss(model, x, y, sparse) * 2.0

    def weight(y):
        seen.append(y.shape)
        return len(y)

    found = []
    for loss in (twice, token_loss):
        model = fresh_gpt("q-k=v")
        optimizer = mq.AdamW(model.parameters())
        value = loss_and_gradients(model, x, y, loss, weight)
        found.append((value, [host(p.grad) for p in optimizer.parameters]))
    (double, many), (single, few) = found
    assert double == pytest.approx(2 * single, rel=1e-6)
    for a, b in zip(many, few, strict=True):
        np.testing.assert_allclose(a, 2 * b, rtol=1e-4, atol=1e-6)
    assert set(seen) == {(4, 5)}
    model, twin = fresh_gpt(), fresh_gpt()
    first, second = (mq.AdamW(m.parameters(), lr=0.1) for m in (model, twin))
    steps = fit(model, first, lambda _: (x, y), lambda _: 0.1, 2, 1.0, 0, twice, weight)
    expected = [train_step(twin, second, x, y, 1.0, twice, weight) for _ in range(2)]
    assert [loss for _, loss in steps] == expected


def test_what_counts_is_what_is_asked(rng):
    y = np.array([[1, IGNORE, 2], [IGNORE, IGNORE, IGNORE]])
    assert counted_targets(y) == 2
    model, x = fresh_gpt(), rng.integers(0, 5, (2, 3))
    assert token_loss(model, x, y).item() == pytest.approx(
        token_loss(model, x, y, sparse=True).item(), rel=1e-6
    )
    with pytest.raises(UsageError, match="every target is ignored"):
        loss_and_gradients(model, x, y, weight=lambda _: 0)


def test_targets_may_be_fewer_than_inputs():
    """A label for each sequence, or two ids for each target, fit by what comes first."""
    model, ids = fresh_gpt(), np.zeros((3, 4), int)

    def of_the_first(model, x, y):
        return cross_entropy(model(x)[:, 0], y)

    assert loss_and_gradients(model, ids, np.array([1, 2, 3]), of_the_first, len) > 0
    pairs = np.zeros((3, 4, 2), int)
    assert loss_and_gradients(model, pairs, ids) > 0
    with pytest.raises(UsageError, match=r"targets \(3, 4, 2\) do not fit inputs \(3, 4\)"):
        loss_and_gradients(model, ids, pairs)


def test_what_does_not_fit_is_refused():
    model = fresh_gpt()
    optimizer = mq.AdamW(model.parameters())
    with pytest.raises(UsageError, match=r"targets \(1, 2\) do not fit inputs \(1, 3\)"):
        train_step(model, optimizer, [[1, 2, 3]], [[1, 2]])
    with pytest.raises(UsageError, match="every target is ignored"):
        train_step(model, optimizer, [[1, 2]], [[IGNORE, IGNORE]])
    assert optimizer.steps == 0
