"""The five tasks: targets computed by hand, splits apart, the same digits for all, ids checked on
every backend.
"""

import numpy as np
import pytest
from toys import tagger

from minqkv.functional import cross_entropy
from minqkv.runtime.errors import UsageError
from minqkv.tasks.rules import FORMS, RULES, SPLITS
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
