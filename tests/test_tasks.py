"""The five tasks of the paper: targets computed by hand, splits apart, the same digits for all, ids
checked on every backend; and what every task has, one's own included.
"""

import json
import math
from dataclasses import FrozenInstanceError, asdict, dataclass, replace

import numpy as np
import pytest
from toys import tagger

from minqkv import GPTConfig, Task
from minqkv.functional import cross_entropy
from minqkv.runs import configure, train_run
from minqkv.runtime.errors import UsageError
from minqkv.tasks.base import Recipe
from minqkv.tasks.recall import Recall
from minqkv.tasks.registry import CLASSES, blaming, check_class, field_names, task_class
from minqkv.tasks.rules import FORMS, IMAGES, RECALL, RULES, SPLITS, TEXT
from minqkv.tasks.rules import TASKS as TASKS_BY_NAME
from minqkv.tasks.synthetic import Synthetic
from minqkv.train import IGNORE

TASKS = ("reverse", "sort", "sub", "swap", "copy")
X = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
Y = {
    "reverse": [[9, 5, 1, 4, 1, 3], [8, 5, 3, 5, 6, 2]],
    "sort": [[1, 1, 3, 4, 5, 9], [2, 3, 5, 5, 6, 8]],
    "sub": [[6, 8, 5, 8, 4, 0], [7, 3, 4, 6, 4, 1]],
    "swap": [[1, 5, 9, 3, 1, 4], [3, 5, 8, 2, 6, 5]],
    "copy": X,
}


@pytest.mark.parametrize("name", TASKS)
def test_rules(name):
    x, y = Synthetic(name, 6).encode(X)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y[name])
    assert list(TASKS) == list(RULES)
    assert RULES[name].about
    assert y.dtype.kind == "i"


@pytest.mark.parametrize("name", TASKS)
def test_causal_form(name):
    """x | y without its last digit, the separator being one past the digits; asked for y only, one
    place early.
    """
    task = Synthetic(name, 6, form="causal")
    inputs, targets = task.encode(X)
    assert task.vocab_size == 11
    assert inputs.shape == targets.shape == (2, 12) == (2, task.block_size)
    np.testing.assert_array_equal(inputs[:, :6], X)
    assert (inputs[:, 6] == 10).all()
    np.testing.assert_array_equal(inputs[:, 7:], np.array(Y[name])[:, :-1])
    assert (targets[:, :6] == IGNORE).all()
    np.testing.assert_array_equal(targets[:, 6:], Y[name])
    np.testing.assert_array_equal(
        inputs[:, 7:], targets[:, 6:-1]
    )  # a decoder's target is its next input


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_digits_for_every_task_and_form(split, form):
    drawn = {name: Synthetic(name, 8, form=form).draw(3, split, 50) for name in TASKS}
    digits = drawn["copy"][0][:, :8]
    for name, (inputs, targets) in drawn.items():
        np.testing.assert_array_equal(inputs[:, :8], digits)
        np.testing.assert_array_equal(
            Synthetic(name, 8, form=form).encode(digits), (inputs, targets)
        )
    assert digits.dtype == "int64"
    np.testing.assert_array_equal(digits, Synthetic("copy", 8).draw(3, split, 50)[0])


def test_streams_are_keyed_by_all_that_matters():
    """No two of these share a stream, or even a row."""
    keys = [
        (seed, split, length, alphabet)
        for seed in (0, 1)
        for split in SPLITS
        for length in (12, 14)
        for alphabet in (9, 10)
    ]
    rows = [
        Synthetic("copy", length, alphabet).draw(seed, split, 30)[0][:, :12]
        for seed, split, length, alphabet in keys
    ]
    assert len(np.unique(np.concatenate(rows), axis=0)) == 30 * len(keys)
    again = Synthetic("copy", 12, 9).draw(0, "train", 30)[0]
    np.testing.assert_array_equal(again, rows[0])
    five, ten = (Synthetic("copy", 12, alphabet).draw(0, "train", 100)[0] for alphabet in (5, 10))
    assert (ten // 2 == five).mean() < 0.3  # one stream would give one digit at two resolutions


def test_digits_are_uniform():
    x, _ = Synthetic("copy", 20, 5).draw(0, "train", 2000)
    assert (x.min(), x.max()) == (0, 4)
    np.testing.assert_allclose(np.bincount(x.ravel()) / x.size, 0.2, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(x.T), np.eye(20), atol=0.1)


def test_smaller_alphabets():
    _, y = Synthetic("sub", 3, 4).encode(np.array([[0, 1, 3]]))
    np.testing.assert_array_equal(y, [[3, 2, 0]])
    assert Synthetic("sub", 3, 4, "causal").vocab_size == 5


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (("swap", 7), "must be even, not 7", "--seq-len 8"),
        (("swap", 7, 10, "causal"), "must be even", "--seq-len 8"),
        (("revers",), "unknown task 'revers'", "reverse"),
        (("sort", 8, 10, "decoder"), "unknown form", "encoder"),
        (("sort", 0), "at least 1", None),
        (("sort", 8, 1), "at least 2", None),
    ],
)
def test_refused_tasks(arguments, says, hint):
    with pytest.raises(UsageError, match=says) as caught:
        Synthetic(*arguments)
    assert hint is None or hint in caught.value.hint
    Synthetic("reverse", 7)  # an odd length is fine elsewhere


def test_refused_split():
    with pytest.raises(UsageError, match="unknown split 'tests'") as caught:
        Synthetic("sort").draw(0, "tests", 1)
    assert "test" in caught.value.hint


@pytest.mark.parametrize("target", [11, -1, -99])
def test_targets_out_of_range(target, backend):
    logits = tagger("qkv")([[0, 10]])
    with pytest.raises(UsageError, match=f"id {target} is outside 0..10"):
        cross_entropy(logits, [[0, target]])
    assert cross_entropy(logits, [[0, IGNORE]]).item() > 0


# ---- what every task has


@pytest.mark.parametrize("name", TASKS_BY_NAME)
def test_every_task_is_a_frozen_value_that_can_be_stored(name):
    task = configure(name).task
    assert isinstance(task, task_class(name))
    assert task == replace(task)
    assert hash(task) == hash(configure(name).task)
    values = asdict(task)
    assert json.loads(json.dumps(values)) == values
    assert type(task)(**values) == task
    assert set(field_names(type(task))) == values.keys() - {"name"}
    with pytest.raises(FrozenInstanceError):
        task.n_layer = 9
    if task.better == "lower":  # perplexity: that of guessing is the size of the vocabulary
        assert task.solved is None
        assert task.chance > task.limits[0] == 1
        return
    assert 0 < task.chance < (task.solved or 1) <= 1


@pytest.mark.parametrize("name", TASKS_BY_NAME)
def test_a_task_is_scored_on_its_own_split(name):
    task = configure(name, n_layer=1, n_test=20).task
    model = task.model("q-k=v", 0)
    score = {split: task.score(model, split, 0) for split in SPLITS}
    assert len({found["loss"] for found in score.values()}) == 3
    x, y = task.draw(0, "test", 20)
    found = task.predict(model, x, y)
    assert found.pop("predictions").shape == y.shape
    assert found == score["test"]
    with pytest.raises(UsageError, match="unknown split 'tests'"):
        task.score(model, "tests", 0)


def test_names_of_tasks():
    assert list(TASKS_BY_NAME) == [*RULES, *RECALL, *TEXT, *IMAGES] == list(CLASSES)
    assert (task_class("sort"), task_class("mqar")) == (Synthetic, Recall)
    with pytest.raises(UsageError, match="unknown task 'paris'") as caught:
        task_class("paris")
    assert "pairs" in caught.value.hint
    with pytest.raises(UsageError, match="my:Mine is a task of your own") as caught:
        task_class("my:Mine")
    assert caught.value.hint == "name it: --task my:Mine"
    with pytest.raises(UsageError, match="unknown task 'pairs'"):
        Synthetic("pairs")


def test_the_causal_form_adds_a_perplexity():
    task = configure("copy", form="causal", seq_len=4, n_test=50).task
    score = task.score(task.model("qkv", 0), "test", 0)
    assert score["masked_perplexity"] == math.exp(score["loss"])
    assert "masked_perplexity" not in configure("copy", n_test=5).task.score(
        configure("copy").build(), "test", 0
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"steps": 9, "batch": 0}, "batch 0 must be at least 1"),
        ({"steps": 9, "warmup": -1}, "warmup -1 must be at least 0"),
        ({"steps": 9, "watch": -1}, "watch -1 must be at least 0"),
        ({"steps": 9, "lr": math.nan}, "lr nan must be above 0 and finite"),
        ({"steps": 9, "clip": 0.0}, "clip 0.0 must be above 0 and finite"),
        ({"steps": 9, "restart": 1}, "restart must be true or false, not 1"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"steps": 9, "lr": "1"}, "lr must be a number, not '1'"),
    ],
)
def test_refused_recipes(given, says):
    with pytest.raises(UsageError, match=says):
        Recipe(**given)


# ---- a task of one's own


@dataclass(frozen=True)
class Mine(Task):
    """The next digit of five."""

    symbols: int = 5

    def examples(self, rng, n):
        x = rng.integers(0, self.symbols, (n, 4))
        return x, (x + 1) % self.symbols

    def config(self, variant):
        return GPTConfig(self.symbols, 4, self.n_layer, self.n_head, self.n_embd, variant)


def mine(**methods):
    """A class like it, with other methods or fields, as a task my:Mine ready to train."""
    own = dataclass(frozen=True)(type("Mine", (Mine,), methods))
    return configure("my:Mine", own=own, n_embd=8, n_layer=1, n_test=50, steps=3)


def test_defaults_are_enough():
    config = mine()
    model, result = train_run(config)
    assert result["steps"] == 3
    assert 0 <= result["accuracy"] <= 1
    assert model.config.vocab_size == 5
    batches = [config.task.batch(0, step, 9)[0].tobytes() for step in range(3)]
    assert len(set(batches)) == 3
    assert math.isnan(config.task.chance)
    assert train_run(config)[1]["loss"] == result["loss"]


def test_its_loss_its_weight_and_its_metric_are_used():
    """The loss of the last token alone; what counts is that many; low is good."""
    seen = []

    def loss(self, model, x, y):
        seen.append(self.weight(y))
        return cross_entropy(model(x)[:, -1], y[:, -1])

    config = mine(
        loss=loss,
        weight=lambda self, y: len(y),
        predict=lambda self, m, x, y: {**Mine.predict(self, m, x, y), "error": 2.5},
        metric="error",
        better="lower",
        limits=(0.0, 3.0),
        learned=2.6,
    ).change(watch=1)
    result = train_run(config)[1]
    assert set(seen[1:]) == {128}
    assert result["error"] == 2.5
    assert result["reached"] == 1


def _digits(n, length=4, top=5):
    return np.arange(n * length).reshape(n, length) % top


WRONG = {
    "too long": ({"examples": lambda s, r, n: (_digits(n, 9),) * 2},
        "9 tokens, but this model has 4 positions"),
    "ids too large": ({"examples": lambda s, r, n: (_digits(n, top=7),) * 2},
        "id 5 is outside 0..4"),
    "targets too large": ({"examples": lambda s, r, n: (_digits(n), _digits(n, top=7))},
        "targets: id 5 is outside 0..4"),
    "uneven": ({"examples": lambda s, r, n: (_digits(n), _digits(n, 3))},
        r"targets \(2, 3\) do not fit inputs \(2, 4\)"),
    "only inputs": ({"examples": lambda s, r, n: _digits(n)}, "must be two arrays"),
    "lists": ({"examples": lambda s, r, n: (_digits(n).tolist(),) * 2}, "must be two arrays"),
    "three": ({"examples": lambda s, r, n: (_digits(n),) * 3}, "must be two arrays"),
    "too few": ({"examples": lambda s, r, n: (_digits(1),) * 2},
        r"two examples were asked for; their shapes are \(1, 4\) and \(1, 4\)"),
    "not ids": ({"examples": lambda s, r, n: (_digits(n) / 2,) * 2}, "must be integers"),
    "nothing asked": ({"examples": lambda s, r, n: (_digits(n), _digits(n) * 0 + IGNORE)},
        "every target is ignored"),
    "a mistake": ({"examples": lambda s, r, n: s.nothing}, "my:Mine raised AttributeError"),
    "no model": ({"config": lambda s, variant: 3},
        "config gives 3, not a GPTConfig or TaggerConfig or ViTConfig"),
    "no metric": ({"metric": "exact"}, "predict gives accuracy, loss, predictions, but no exact"),
    "no predictions": ({"predict": lambda s, m, x, y: {"accuracy": 0.5}}, "but no predictions"),
    "a word for a score": (
        {"predict": lambda s, m, x, y: {**Mine.predict(s, m, x, y), "accuracy": "good"}},
        "the accuracy must be a number, not 'good'"),
    "beyond its limits": (
        {"predict": lambda s, m, x, y: {**Mine.predict(s, m, x, y), "accuracy": 7.1}},
        "accuracy 7.1 is outside its limits, 0.0 to 1.0"),
    "predictions of another shape": (
        {"predict": lambda s, m, x, y: {**Mine.predict(s, m, x, y), "predictions": x[:, :2]}},
        r"predictions \(2, 2\) do not fit targets \(2, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_said_before_anything_is_written(what, tmp_path):
    methods, says = WRONG[what]
    with pytest.raises(UsageError, match=says) as caught:
        train_run(mine(**methods), tmp_path / "run")
    assert str(caught.value).startswith("my:Mine")
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_its_configuration_is_called_its_own():
    with pytest.raises(UsageError, match=r"my:Mine raised AttributeError: .*nothing") as caught:
        mine(config=lambda self, variant: self.nothing)
    assert "--traceback" in caught.value.hint


class NotDerived:
    """It has nothing of a task."""


@dataclass(frozen=True)
class Lacking(Task):
    """It has no `examples`."""

    def config(self, variant):
        return GPTConfig(5, 4, 1, 2, 8, variant)


class Thawed(Mine):
    """It is no dataclass of its own."""

    more: int = 3


def test_classes_that_are_no_tasks():
    assert check_class("my:Mine", Mine) is Mine
    for found, says in (
        (NotDerived, "my:X is not a task"),
        (Mine("my:Mine"), "my:X is not a task"),
        (len, "my:X is not a task"),
        (Lacking, "my:X lacks examples"),
        (Task, "my:X lacks config and examples"),
        (Thawed, "my:X must be a frozen dataclass"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            check_class("my:X", found)
        assert "examples/own_task.py" in caught.value.hint


def test_a_task_of_ones_own_that_ends_the_program_is_named():
    with pytest.raises(UsageError, match="mine:Mine raised SystemExit"), blaming("mine:Mine"):
        raise SystemExit(3)
