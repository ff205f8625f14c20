"""Recall: both tasks by hand, what knowing and guessing score, and logits only where they are asked
for.
"""

import numpy as np
import pytest
from toys import host

from minqkv import optim
from minqkv.functional import cross_entropy
from minqkv.runs import configure
from minqkv.runtime import parallel
from minqkv.runtime.errors import UsageError
from minqkv.tasks.recall import Recall
from minqkv.tasks.rules import RECALL, SPLITS
from minqkv.tensor import Tensor
from minqkv.train import IGNORE, evaluate, loss_and_gradients, token_loss, train_step

TINY = {"pairs": 3, "keys": 5, "n_embd": 16}


def task(name, **changes):
    """A small one: 3 pairs of 5 keys."""
    return Recall(name, **TINY | changes)


def read(x, y, name, P):
    """keys (n, P), values, the keys that are asked for, and the answers, of inputs and targets."""
    if name == "pairs":
        keys, values, asked = x[:, :P, 0], x[:, :P, 1], x[:, P:, 0]
    else:
        keys, values, asked = x[:, : 2 * P : 2], x[:, 1 : 2 * P : 2], x[:, 2 * P :]
    return keys, values, asked, y[:, -P:]


class Scripted:
    """A generator whose `random` gives rows that sort into the orders one wants."""

    def __init__(self, *orders):
        self.orders = list(orders)

    def random(self, shape):
        rows = np.argsort(np.array(self.orders.pop(0)), axis=1) / 10.0
        assert rows.shape == shape
        return rows


def scripted():
    """Two sequences of 2 pairs among 3 keys: the draws of keys, of values, and of the order."""
    keys, values = [[2, 0, 1], [1, 2, 0]], [[0, 2, 1], [1, 0, 2]]
    return Scripted(keys, values, [[1, 0], [0, 1]])


def test_pairs_by_hand():
    """3 keys 0 .. 2, values 3 .. 5, 6 for no value. First 2+3 and 0+5, then 0, 2."""
    x, y = task("pairs", pairs=2, keys=3).examples(scripted(), 2)
    assert x.tolist() == [
        [[2, 3], [0, 5], [0, 6], [2, 6]],
        [[1, 4], [2, 3], [1, 6], [2, 6]],
    ]
    assert y.tolist() == [[IGNORE, IGNORE, 5, 3], [IGNORE, IGNORE, 4, 3]]


def test_mqar_by_hand():
    x, y = task("mqar", pairs=2, keys=3).examples(scripted(), 2)
    assert x.tolist() == [[2, 3, 0, 5, 0, 2], [1, 4, 2, 3, 1, 2]]
    assert y.tolist() == [[IGNORE] * 4 + [5, 3], [IGNORE] * 4 + [4, 3]]


@pytest.mark.parametrize("name", RECALL)
@pytest.mark.parametrize(("P", "keys"), [(2, 2), (3, 5), (8, 64)])
def test_what_a_sequence_is_made_of(name, P, keys, rng):
    made = task(name, pairs=P, keys=keys)
    x, y = made.examples(rng, 200)
    shown, values, asked, answers = read(x, y, name, P)
    assert x.shape == ((200, 2 * P, 2) if name == "pairs" else (200, 3 * P))
    assert y.shape == x.shape[:2]
    assert x.dtype.kind == y.dtype.kind == "i"
    for i in range(200):
        of = dict(zip(shown[i].tolist(), values[i].tolist(), strict=True))
        assert len(of) == len(set(of.values())) == P  # all different
        assert sorted(asked[i]) == sorted(of)
        assert answers[i].tolist() == [of[key] for key in asked[i].tolist()]
    assert 0 <= shown.min() <= shown.max() < keys <= values.min() <= values.max() < 2 * keys
    assert (y[:, :-P] == IGNORE).all()
    if name == "pairs":
        assert (x[:, P:, 1] == 2 * keys).all()
    cfg = made.config("qkv")
    assert x.max() < cfg.vocab_size == 2 * keys + (name == "pairs")
    assert x.shape[1] == cfg.block_size
    assert cfg.d_ff == 0


@pytest.mark.parametrize("name", RECALL)
def test_draws_are_even(name, rng):
    """Each key, value and place as often as any other, independently."""
    P, keys, n = 3, 5, 6000
    shown, values, asked, _ = read(*task(name).examples(rng, n), name, P)
    for column in (*shown.T, *(values - keys).T):
        np.testing.assert_allclose(np.bincount(column, minlength=keys) / n, 1 / keys, atol=0.025)
    pairs = np.bincount(shown[:, 0] * keys + values[:, 0] - keys, minlength=keys**2)
    np.testing.assert_allclose(pairs / n, 1 / keys**2, atol=0.012)
    places = (asked[:, :1] == shown).mean(axis=0)  # of the key that is asked for first
    np.testing.assert_allclose(places, 1 / P, atol=0.025)


# ---- what solvers score


class Solver:
    """A model in disguise: `answer(keys, values, asked)` names the id for each asked key (n, P)."""

    training = False

    def __init__(self, made, answer):
        self.made, self.answer = made, answer

    def __call__(self, ids, cache=None, at=None):
        P, name = self.made.pairs, self.made.name
        keys, values, asked, _ = read(ids, np.zeros((1, P)), name, P)
        best = self.answer(keys, values, asked)
        found = np.zeros((*ids.shape[:2], 2 * self.made.keys + 1), "float32")
        np.put_along_axis(found[:, -P:], best[..., None], 1.0, axis=2)
        return Tensor(found if at is None else found[at])


def score(made, answer, n=2000):
    """Accuracy on n test examples, along the way of every model."""
    return made.predict(Solver(made, answer), *made.draw(0, "test", n))["accuracy"]


@pytest.mark.parametrize("name", RECALL)
@pytest.mark.parametrize(("P", "keys"), [(2, 2), (4, 32), (8, 64)])
def test_who_knows_the_rule_scores_one_and_who_guesses_scores_chance(name, P, keys, rng):
    made = task(name, pairs=P, keys=keys)

    def knows(shown, values, asked):
        place = (asked[:, :, None] == shown[:, None, :]).argmax(axis=2)
        return np.take_along_axis(values, place, axis=1)

    def guesses_one_that_was_shown(shown, values, asked):
        return np.take_along_axis(values, rng.integers(0, P, asked.shape), axis=1)

    def guesses_any(shown, values, asked):
        return keys + rng.integers(0, keys, asked.shape)

    assert score(made, knows) == 1.0
    for answer, share in ((guesses_one_that_was_shown, 1 / P), (guesses_any, 1 / keys)):
        four_sigma = 4 * (share * (1 - share) / (2000 * P)) ** 0.5
        assert score(made, answer) == pytest.approx(share, abs=four_sigma)
    assert made.chance == 1 / keys


def test_a_solver_that_answers_the_last_value_is_found_out():
    """The first value shown, whatever is asked, is right once in P, too: values do not repeat."""
    made = task("mqar", pairs=4, keys=8)
    found = score(made, lambda shown, values, asked: np.repeat(values[:, :1], 4, axis=1))
    assert found == 1 / 4


# ---- streams, and batches


@pytest.mark.parametrize("name", RECALL)
def test_no_two_streams_are_the_same(name):
    made = task(name, pairs=8, keys=32)
    drawn = [made.draw(seed, split, 20)[0] for seed in (0, 1) for split in SPLITS]
    drawn += [made.batch(seed, step, 20)[0] for seed in (0, 1) for step in (3, 7, 11)]
    rows = np.concatenate([x.reshape(20, -1) for x in drawn])
    assert len(np.unique(rows, axis=0)) == len(rows) == 12 * 20
    again = task(name, pairs=8, keys=32)
    np.testing.assert_array_equal(again.batch(1, 7, 20)[0], made.batch(1, 7, 20)[0])
    np.testing.assert_array_equal(again.draw(1, "test", 20)[1], made.draw(1, "test", 20)[1])
    np.testing.assert_array_equal(made.draw(1, "test", 20)[0], drawn[5])


def test_both_tasks_have_streams_of_their_own():
    pairs, mqar = (task(name, pairs=8, keys=32).draw(0, "test", 50) for name in RECALL)
    assert not (read(*pairs, "pairs", 8)[0] == read(*mqar, "mqar", 8)[0]).all(axis=1).any()


@pytest.mark.parametrize(
    ("P", "turns"), [(2, [2]), (3, [2, 3]), (4, [2, 4]), (7, [2, 4, 6, 7]), (8, [2, 4, 6, 8])]
)
def test_mqar_takes_turns_and_never_leaves_out_its_own_length(P, turns):
    made = task("mqar", pairs=P, keys=8)
    lengths = [made.batch(0, step, 4)[0].shape[1] for step in range(2 * len(turns))]
    assert lengths == [3 * turn for turn in turns * 2]
    for step, turn in enumerate(turns):
        x, y = made.batch(0, step, 4)
        shown, values, asked, answers = read(x, y, "mqar", turn)
        assert (np.sort(shown) == np.sort(asked)).all()
        assert (np.sort(values) == np.sort(answers)).all()
    assert task("pairs", pairs=4, keys=8).batch(0, 5, 4)[0].shape == (4, 8, 2)
    assert made.draw(0, "validation", 4)[0].shape == (4, 3 * P)  # scored at full length


# ---- logits only where they are asked for


@pytest.mark.parametrize("name", RECALL)
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "qkv/q-k=v"])
def test_sparse_is_dense(name, variant, backend):
    """The loss, every gradient, the predictions and the score."""
    made = task(name, n_layer=2)
    x, y = made.draw(0, "test", 7)
    model, twin = (made.model(variant, 0) for _ in range(2))
    sparse, dense = made.loss(model, x, y), cross_entropy(twin(x), y, IGNORE)
    assert sparse.item() == pytest.approx(dense.item(), rel=1e-6)
    assert token_loss(twin, x, y).item() == dense.item()
    sparse.backward()
    dense.backward()
    for (path, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(
            host(p.grad), host(other.grad), rtol=1e-4, atol=1e-6, err_msg=path
        )
    found, expected = made.predict(model, x, y), evaluate(model, x, y)
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    at = y != IGNORE
    np.testing.assert_array_equal(found["predictions"][at], expected["predictions"][at])
    assert (found["predictions"][~at] == IGNORE).all()


def test_logits_are_computed_nowhere_else(monkeypatch):
    made, sizes = task("pairs"), []
    model = made.model("qkv", 0)
    real = model._logits

    def logits(x, at):
        found = real(x, at)
        sizes.append(found.shape)
        return found

    monkeypatch.setattr(model, "_logits", logits)
    x, y = made.draw(0, "test", 7)
    made.loss(model, x, y)
    made.predict(model, x, y)
    assert sizes == [(7 * 3, model.config.vocab_size)] * 2


def test_a_batch_in_which_nothing_is_asked_counts_for_nothing():
    made = task("mqar")
    model, (x, y) = made.model("qkv", 0), made.draw(0, "test", 6)
    y = np.where(np.arange(6)[:, None] < 4, y, IGNORE)
    whole = evaluate(model, x[:4], y[:4], sparse=True)
    found = evaluate(model, x, y, batch=2, sparse=True)
    assert found["accuracy"] == whole["accuracy"]
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    with pytest.raises(UsageError, match="every target is ignored"):
        evaluate(model, x[4:], y[4:], sparse=True)
    with pytest.raises(UsageError, match="every target is ignored"):
        loss_and_gradients(model, x[4:], y[4:], made.loss, made.weight)


# ---- training


@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "mqa", "thin-4"])
@pytest.mark.parametrize("name", RECALL)
def test_they_learn_on_every_backend(name, variant, backend):
    made = task(name, head_dim=8)
    model = made.model(variant, 0)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    before = made.score(model, "validation", 0)["loss"]
    for step in range(4):
        train_step(model, optimizer, *made.batch(0, step, 16), 1.0, made.loss, made.weight)
    assert made.score(model, "validation", 0)["loss"] < before


@pytest.mark.parametrize("name", RECALL)
def test_two_threads_give_the_gradients_of_one(name, monkeypatch):
    """Up to rounding: each shard's sum, then the sum of the shards."""
    monkeypatch.setattr(parallel, "SMALLEST", 1)
    made = task(name, pairs=4, keys=8)
    x, y = made.batch(0, 1, 64)
    y[::5, -1] = IGNORE  # shards weigh differently
    y[:32, -3:] = IGNORE
    found = {}
    try:
        for threads in (1, 2):
            parallel.set_threads(threads)
            model, sizes = made.model("q-k=v", 0), []
            optim.Adam(model.parameters())

            def noted(replica, x, y, sizes=sizes):
                sizes.append(len(x))
                return made.loss(replica, x, y)

            loss = loss_and_gradients(model, x, y, noted, made.weight)
            assert sizes == [64 // threads] * threads
            found[threads] = loss, [host(p.grad) for p in model.parameters()]
    finally:
        parallel.set_threads(1)
    assert found[1][0] == pytest.approx(found[2][0], rel=1e-6)
    for one, two in zip(found[1][1], found[2][1], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


# ---- sizes


def test_what_they_are_unless_told_otherwise():
    pairs, mqar = (configure(name) for name in RECALL)
    assert (pairs.task.pairs, pairs.task.keys, pairs.task.n_layer) == (8, 64, 1)
    assert (mqar.task.pairs, mqar.task.keys, mqar.task.n_layer) == (8, 32, 2)
    assert (pairs.task.position, mqar.task.position) == ("learned", "rope")
    for config in (pairs, mqar):
        assert config.recipe.warmup == config.change(steps=50_000).recipe.warmup == 200
        cfg = config.task.config("qkv")
        assert cfg.n_embd >= 2 * config.task.keys  # room for all keys and values
        assert (cfg.n_head, cfg.d_ff) == (1, 0)
    assert configure("mqar", n_layer=3, position="none").task.n_layer == 3


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("pairs", {"pairs": 1}, "pairs 1 must be 2 to keys 5"),
        ("mqar", {"pairs": 6}, "pairs 6 must be 2 to keys 5"),
        ("pairs", {"keys": 2}, "pairs 3 must be 2 to keys 2"),
        ("pair", {}, "unknown task 'pair'"),
        ("pairs", {"pairs": 2.0}, "pairs must be a whole number"),
        ("pairs", {"n_head": 3}, "not divisible"),
        ("mqar", {"n_embd": 6, "n_head": 2, "position": "rope"}, "must be even"),
    ],
)
def test_refused_sizes(name, given, says):
    with pytest.raises(UsageError, match=says):
        Recall(name, **TINY | given).config("qkv")


def test_nothing_is_generated():
    for name in RECALL:
        with pytest.raises(UsageError, match="generates nothing") as caught:
            task(name).prompt("1 2")
        assert "minqkv eval" in caught.value.hint


def test_mistakes_are_those_at_the_asked_keys(rng):
    made = task("mqar")
    x, y = made.examples(rng, 2)
    predicted = np.where(y == IGNORE, IGNORE, y)
    predicted[1, -1] = 99
    first, second = made.mistakes(x, y, predicted)
    assert first["expected"] == first["predicted"] == y[0, -3:].tolist()
    assert second["expected"][:2] == second["predicted"][:2]
    assert (second["expected"][2], second["predicted"][2]) == (y[1, -1], 99)
    assert second["input"] == x[1].tolist()
