"""Segmentation: what covers a patch, scores by hand, gradients, and the commands."""

import json

import numpy as np
import pytest
from toys import EVERY, scramble
from trained import same_bits_after_a_kill, same_gradients_in_parts

import minqkv as mq
from minqkv.models import ViT, unpatchify
from minqkv.runs import configure, train_run
from minqkv.runtime.errors import UsageError
from minqkv.runtime.rng import stream
from minqkv.study.execute import estimate_seconds
from minqkv.tasks import shapes
from minqkv.tasks.rules import SPLITS
from minqkv.tasks.segment import NAMES, Segment, mean_iou
from minqkv.tensor import Tensor

SMALL = {"patch": 8, "n_layer": 1, "n_head": 2, "n_embd": 16, "n_test": 20, "n_validation": 10}


@pytest.fixture
def task():
    return Segment("segment", **SMALL)


# ---- examples


def test_what_covers_a_patch(task):
    """Counted pixel by pixel."""
    pixels, shape, inside = shapes.draw(stream(7, "images"), 6)
    x, y = task.examples(stream(7, "images"), 6)
    assert (x.shape, x.dtype, y.shape) == ((6, 16, 64), "float32", (6, 16))
    assert len(NAMES) == 11
    for image in range(6):
        for patch in range(16):
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            covered = sum(
                bool(inside[image, i, j])
                for i in range(top, top + 8)
                for j in range(left, left + 8)
            )
            expected = list(shapes.SHAPES)[shape[image]] if covered >= 32 else "background"
            assert NAMES[y[image, patch]] == expected
    back = unpatchify(x, 8, 32, 32)
    np.testing.assert_allclose(64 * (back + 2), pixels, atol=1e-4)
    assert -2 <= x.min() < x.max() <= 2


def test_chance_is_always_saying_background():
    for patch in (4, 8):
        task = Segment("segment", patch=patch)
        _, y = task.draw(0, "test", 500)
        assert task.chance == pytest.approx((y == 0).mean(), abs=0.02)
        assert 0.7 < task.chance < 0.95
        assert set(np.unique(y)) == set(range(11))


def test_no_two_streams_are_the_same(task):
    drawn = [task.draw(seed, split, 5)[0] for seed in (0, 1) for split in SPLITS]
    drawn += [task.batch(seed, step, 5)[0] for seed in (0, 1) for step in (0, 1)]
    assert len({x.tobytes() for x in drawn}) == 10
    np.testing.assert_array_equal(task.batch(1, 1, 5)[0], drawn[-1])


# ---- scores


def test_mean_iou_by_hand():
    """Class 0: 2 of 4. Class 1: 1 of 3. Class 3: 0 of 1. Class 2 does not occur."""
    right = np.array([[0, 0, 0], [1, 1, 0]])
    found = np.array([[0, 0, 1], [1, 3, 1]])
    assert mean_iou(found, right) == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert mean_iou(right, right) == 1


def test_a_score_by_hand(task):
    """A model that always says "ring", and is sure of it."""

    class Ring:
        training = False

        def __call__(self, x):
            logits = np.zeros((*x.shape[:2], len(NAMES)), "float32")
            logits[..., NAMES.index("ring")] = 5
            return Tensor(logits)

    x = np.zeros((2, 3, 64), "float32")
    y = np.array([[0, 2, 2], [2, 0, 1]])
    assert NAMES[2] == "ring"
    found = task.predict(Ring(), x, y)
    assert found["predictions"].tolist() == [[2, 2, 2], [2, 2, 2]]
    assert found["accuracy"] == 0.5
    assert found["mean_iou"] == pytest.approx((0 + 0 + 3 / 6) / 3)
    total = np.log(np.exp(5) + 10)
    assert found["loss"] == pytest.approx(total - 5 / 2, rel=1e-6)
    assert task.loss(Ring(), x, y).item() == pytest.approx(found["loss"], rel=1e-6)
    assert task.weight(y) == 6


def test_mistakes_and_pictures(task):
    x, y = task.draw(0, "test", 2)
    found = y.copy()
    found[1, [0, 5]] = 3, 4
    first, second = task.mistakes(x, y, found)
    assert first["expected"] == first["predicted"]
    assert first["meaning"] == [".=background", f"{y[0].max() - 1}={NAMES[y[0].max()]}"]
    signs = [*"".join(second["expected"])]
    assert signs == ["." if i == 0 else str(i - 1) for i in y[1]]
    signs[0], signs[5] = "2", "3"
    assert second["predicted"] == ["".join(signs[i : i + 4]) for i in range(0, 16, 4)]
    assert {"2=square", "3=frame"} <= set(second["meaning"])
    lines = task.picture(x[0])
    assert len(lines) == 16
    assert 16 < max(map(len, lines)) <= 32


@pytest.mark.parametrize("variant", EVERY)
def test_gradients_through_its_loss(variant):
    """Of every parameter, in float64."""
    task = Segment("segment", **SMALL | {"n_head": 4})
    cfg = task.config(variant)
    model = scramble(ViT(type(cfg)(**vars(cfg) | {"dtype": "float64"})))
    x, y = task.draw(0, "test", 2)
    assert mq.gradcheck(lambda *_: task.loss(model, x, y), *model.parameters()) < 1e-6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"patch": 5}, "patches of 5 × 5 do not fill images of 32 × 32"),
        ({"patch": 0}, "do not fill"),
        ({"patch": 2.0}, "patch must be a whole number"),
        ({"n_validation": 0}, "n_validation 0 must be at least 1"),
        ({"n_test": 0}, "n_test 0 must be at least 1"),
        ({"n_head": 3}, "not divisible"),
    ],
)
def test_fields_that_cannot_be(fields, says):
    with pytest.raises(UsageError, match=says):
        Segment("segment", **SMALL | fields).config("qkv")


# ---- runs


def run_of(**given):
    return configure("segment", "q-k=v", **SMALL | {"steps": 6, "batch": 12} | given)


def test_it_learns_on_every_backend(backend):
    """What covers a patch, or not: the score of always saying "background" is left behind."""
    config = run_of(steps=60, batch=32, n_embd=32, lr=1e-2, n_test=200)
    _, result = train_run(config)
    assert result["accuracy"] > config.task.chance + 0.01
    assert 0 < result["mean_iou"] < 1


def test_shards_and_parts_change_nothing_but_rounding(task, monkeypatch):
    same_gradients_in_parts(task, monkeypatch)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    same_bits_after_a_kill(run_of(), tmp_path / "run", after=4)


def test_how_long_it_will_take():
    short, long = (estimate_seconds([run_of(steps=steps)], 1) for steps in (100, 10_000))
    assert 0 < short < long


COMMAND = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--steps", "4", "--set", "patch=8",
           "--set", "n_test=20", "--set", "n_validation=10"]  # fmt: skip


def test_train_and_eval(cli):
    code, out, err = cli("train", "--task", "segment", *COMMAND, "--variant", "q=k=v+")
    assert code == 0, err
    code, out, err = cli("eval", "runs/segment-q=k=v+-s0", "--wrong", "1")
    assert code == 0, err
    assert "on 320 tokens" in out
    assert "of 20 images have a mistake" in out
    assert "mean iou 0." in out
    assert ".=background" in out
    found = json.loads(cli("eval", "runs/segment-q=k=v+-s0", "--wrong", "1", "--json")[1])
    assert found["wrong"][0].keys() == {"meaning", "expected", "predicted"}
    assert found["tokens"] == 320


def test_a_study(cli):
    args = ("study", "--tasks", "segment", "--variants", "qkv,q-k=v", *COMMAND)
    code, out, err = cli(*args, "--seeds", "2", "--jobs", "1", "--out", "study")
    assert code == 0, err
    assert "segment" in out
    assert "minus qkv" in out


def test_one_clear_line(cli, tmp_path):
    code, _, err = cli("train", "--task", "segment", "--set", "patch=5")
    assert code == 2
    assert "patches of 5 × 5 do not fill images of 32 × 32" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
