"""Sets: what a set is made of, embeddings that know nothing of the test, scores by hand, what a
permutation does to every variant, and the commands.
"""

import json
import math

import numpy as np
import pytest
from pictures import blobs, real, write_idx
from toys import EVERY, host, scramble
from trained import same_bits_after_a_kill, same_gradients_in_parts

import minqkv as mq
from minqkv.models import ViT
from minqkv.runs import configure, train_run
from minqkv.runtime import parallel
from minqkv.runtime.errors import UsageError
from minqkv.study.execute import estimate_seconds
from minqkv.tasks import embeddings, images
from minqkv.tasks.embeddings import WIDTH, embedded, halves
from minqkv.tasks.rules import SPLITS
from minqkv.tasks.sets import Sets
from minqkv.tensor import Tensor

SMALL = {"set_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 16, "n_test": 50, "n_validation": 20}
EVEN = [name for name in EVERY if not name.endswith("+")]  # without a bias for each place


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing downloaded, and nothing kept from the test before."""
    monkeypatch.setenv("MINQKV_CACHE", str(tmp_path / "cache"))
    images._kept.clear()
    embeddings._kept.clear()


@pytest.fixture
def digits(tmp_path):
    """A folder like MNIST's: 400 images of four classes, and 60 for the test."""
    write_idx(tmp_path / "digits", *blobs(400))
    write_idx(tmp_path / "digits", *blobs(60, seed=1), "t10k")
    return str(tmp_path / "digits")


@pytest.fixture
def task(digits):
    return Sets("sets", data=digits, **SMALL)


def known(task, split):
    """Bytes of an embedded image -> its class."""
    elements = embedded(task.images, task.n_train).by_class[split]
    return {row.tobytes(): i for i, rows in enumerate(elements) for row in rows}


# ---- examples


@pytest.mark.parametrize("split", SPLITS)
def test_all_are_of_one_class_but_one(task, split):
    x, y = task.draw(3, split, 200)
    classes = known(task, split)
    assert (x.shape, x.dtype, y.shape) == ((200, 4, WIDTH), "float32", (200,))
    for rows, place in zip(x, y, strict=True):
        found = [classes[row.tobytes()] for row in rows]
        odd = found.pop(place)
        assert len(set(found)) == 1
        assert odd not in found
        assert len({row.tobytes() for row in rows}) == 4  # no image twice


def test_places_and_classes_are_even(task):
    x, y = task.draw(0, "test", 4000)
    np.testing.assert_allclose(np.bincount(y) / 4000, 0.25, atol=0.03)
    classes = known(task, "test")
    found = np.array([[classes[row.tobytes()] for row in rows] for rows in x])  # (n, 4)
    odd = found[np.arange(4000), y]
    rest = found[np.arange(4000), (y + 1) % 4]
    pairs = np.bincount(4 * rest + odd, minlength=16).reshape(4, 4) / 4000
    np.testing.assert_allclose(pairs, (1 - np.eye(4)) / 12, atol=0.02)


def test_no_two_streams_are_the_same(task):
    drawn = [task.draw(seed, split, 20) for seed in (0, 1) for split in SPLITS]
    drawn += [task.batch(seed, step, 20) for seed in (0, 1) for step in (0, 1)]
    assert len({y.tobytes() for _, y in drawn}) == 10
    x, y = task.batch(1, 1, 20)
    np.testing.assert_array_equal(x, drawn[-1][0])
    np.testing.assert_array_equal(y, drawn[-1][1])


def test_the_default_needs_no_files():
    found = Sets("sets")
    assert not images._kept  # nothing is drawn or trained before it is needed
    assert not embeddings._kept
    assert (found.chance, found.position, found.n_train) == (0.1, "none", 8000)
    found.check_data()
    x, _ = found.batch(0, 0, 5)
    assert x.shape == (5, 10, WIDTH)
    assert found.title() == "sets: shapes, 8,000 training images  d 64  L 2  H 4"
    assert "names 6" in found.about_data()  # about 60 %
    assert embedded(found.images, 8000).accuracy == pytest.approx(0.6, abs=0.06)


def test_mnist_is_easier():
    found = Sets("sets", data=real("mnist"))
    found.check_data()
    assert embedded(found.images, found.n_train).accuracy > 0.9


# ---- embeddings


def test_halves_share_nothing():
    one, other = halves(101)
    assert sorted([*one, *other]) == list(range(101))
    assert abs(len(one) - len(other)) == 1


def test_embeddings_know_nothing_of_other_splits(task):
    """With other validation and test images, the training images become the same numbers."""
    before = embedded(task.images, task.n_train).by_class["train"]
    for split in ("validation", "test"):
        pixels, labels = task.images.splits[split]
        task.images.splits[split] = 255 - pixels, labels[::-1]
    embeddings._kept.clear()
    after = embedded(task.images, task.n_train).by_class
    np.testing.assert_array_equal(after["train"], before)
    assert abs(after["train"].mean()) < 1e-5
    assert after["train"].std() == pytest.approx(1, abs=1e-5)


def test_images_of_sets_are_not_those_that_trained_the_network(task, monkeypatch):
    """With wrong labels of the other half, the network becomes the same; and it is trained once."""
    seen, others = halves(task.n_train)
    pixels, labels = task.images.splits["train"]
    trained, real_trained = [], embeddings._trained

    def noted(*args):
        trained.append(real_trained(*args))
        return trained[-1]

    monkeypatch.setattr(embeddings, "_trained", noted)
    task.batch(0, 0, 4)
    task.draw(0, "test", 4)
    assert len(trained) == 1
    there = np.bincount(labels[others], minlength=4)
    assert embedded(task.images, task.n_train).by_class["train"].shape == (4, there.min(), WIDTH)
    labels = labels.copy()
    labels[others] = np.roll(labels[others], 1)
    task.images.splits["train"] = pixels, labels
    embeddings._kept.clear()
    task.batch(0, 0, 4)
    one, two = (network.state_dict() for network in trained)
    for name, array in one.items():
        np.testing.assert_array_equal(two[name], array)
    assert not set(seen) & set(others)


def test_embeddings_do_not_depend_on_the_cores_nor_on_who_asks(task):
    before = embedded(task.images, task.n_train).by_class
    embeddings._kept.clear()
    with mq.no_grad():
        after = embedded(task.images, task.n_train).by_class
    np.testing.assert_array_equal(after["test"], before["test"])
    embeddings._kept.clear()
    try:
        parallel.set_threads(2)
        after = embedded(task.images, task.n_train).by_class
    finally:
        parallel.set_threads(1)
    for split in SPLITS:
        np.testing.assert_array_equal(after[split], before[split])


def test_embeddings_on_every_backend(task, backend):
    x, _ = task.draw(0, "test", 5)
    assert isinstance(x, np.ndarray)
    assert embedded(task.images, task.n_train).accuracy > 0.9


# ---- scores


class Scripted:
    """A model in disguise, which scores every image by its distance from the mean of the others."""

    training = False

    def __call__(self, x):
        score = np.zeros(x.shape[:2])
        for i, rows in enumerate(x):
            for j, row in enumerate(rows):
                others = np.delete(rows, j, axis=0).mean(axis=0)
                score[i, j] = math.dist(row, others)
        return Tensor(score.astype("float32"))


def test_a_score_by_hand(task):
    """Three sets on a line: the model is right on the first two."""
    x = np.zeros((3, 4, WIDTH), "float32")
    x[0, :, 0] = [1, 1, 9, 1]
    x[1, :, 0] = [0, 5, 5, 5]
    x[2, :, 0] = [2, 3, 2, 2]
    y = np.array([2, 0, 3])
    found = task.predict(Scripted(), x, y)
    assert found["predictions"].tolist() == [2, 0, 1]
    assert found["accuracy"] == pytest.approx(2 / 3)
    thirds = [8 / 3, 8 / 3, 8, 8 / 3], [5, 5 / 3, 5 / 3, 5 / 3], [1 / 3, 1, 1 / 3, 1 / 3]
    losses = [
        math.log(sum(map(math.exp, row))) - row[right] for row, right in zip(thirds, y, strict=True)
    ]
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert task.loss(Scripted(), x, y).item() == pytest.approx(found["loss"], rel=1e-6)
    assert task.weight(y) == 3


def test_mistakes(task):
    x = np.zeros((2, 4, WIDTH), "float32")
    x[0, :, 0] = [1, 1, 9, 1]
    first, second = task.mistakes(x, np.array([2, 0]), np.array([1, 0]))
    assert first == {"place": [0, 1, 2, 3], "distance": [2.0, 2.0, 6.0, 2.0], "expected": [2],
                     "predicted": [1]}  # fmt: skip
    assert second["expected"] == second["predicted"] == [0]


@pytest.mark.parametrize("variant", EVERY)
def test_gradients_through_its_loss(variant, task):
    """Of every parameter, in float64."""
    cfg = Sets("sets", data=task.data, **SMALL | {"n_head": 4}).config(variant)
    model = scramble(ViT(type(cfg)(**vars(cfg) | {"dtype": "float64"})))
    x, y = task.draw(0, "test", 3)
    assert mq.gradcheck(lambda *_: task.loss(model, x, y), *model.parameters()) < 1e-6
    model.zero_grad()
    task.loss(model, x, y).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


# ---- the order means nothing


def both_ways(task, variant, n=30):
    """Scores of sets, and of the same sets permuted, each on the host in the first order."""
    model = scramble(ViT(task.config(variant)))
    x, _ = task.draw(0, "test", n)
    order = np.random.default_rng(5).permuted(np.tile(np.arange(4), (n, 1)), axis=1)  # (n, 4)
    rows = np.arange(n)[:, None]
    plain, permuted = host(model(x)), host(model(x[rows, order]))
    return plain, permuted[rows, order.argsort(axis=1)], np.abs(plain).max()


@pytest.mark.parametrize("variant", [*EVEN, "q=k-v+temperature", "q=k=v+temperature"])
def test_a_permuted_set_has_permuted_scores(variant, task):
    """Up to rounding: sums over the set are taken in another order."""
    task = Sets("sets", data=task.data, **SMALL | {"n_head": 4})
    plain, permuted, largest = both_ways(task, variant)
    np.testing.assert_allclose(permuted, plain, rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize("variant", ["q=k-v+", "q=k=v+", "q=k-v+bias", "q=k=v+bias"])
def test_the_bias_of_plus_belongs_to_places(variant, task):
    plain, permuted, largest = both_ways(task, variant)
    assert np.abs(plain - permuted).max() > 0.01 * largest


def test_so_do_positions(task):
    task = Sets("sets", data=task.data, **SMALL, position="learned")
    plain, permuted, largest = both_ways(task, "qkv")
    assert np.abs(plain - permuted).max() > 0.01 * largest


# ---- bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"set_size": 2}, "set_size 2 must be at least 3"),
        ({"set_size": 30}, "the validation split has 7 images of 3; a set takes 30"),
        ({"n_train": 1}, "n_train 1 must be at least 2"),
        ({"n_train": 20}, "the train split has . images of ., besides those that train"),
        ({"n_train": 500}, "n_train 500, but there are 360 training images"),
        ({"n_validation": 0}, "n_validation 0"),
        ({"position": "here"}, "unknown position scheme 'here'"),
    ],
)
def test_fields_that_cannot_be(fields, says, digits):
    def build():
        task = Sets("sets", data=digits, **SMALL | fields)
        task.config("qkv")
        task.check_data()

    with pytest.raises(UsageError, match=says):
        build()


def test_images_of_a_single_class(tmp_path):
    pixels, _ = blobs(50)
    write_idx(tmp_path, pixels, np.zeros(50))
    with pytest.raises(UsageError, match="n_class 1 must be at least 2"):
        Sets("sets", data=str(tmp_path))


def test_a_class_that_is_rare_in_the_test(tmp_path):
    write_idx(tmp_path, *blobs(400))
    pixels, labels = blobs(60, seed=1)
    write_idx(tmp_path, pixels[labels != 2], labels[labels != 2], "t10k")
    with pytest.raises(UsageError, match="the test split has 0 images of 2; a set takes 4"):
        Sets("sets", data=str(tmp_path), **SMALL).check_data()


# ---- runs


def run_of(digits, **given):
    return configure("sets", "q-k=v", data=digits, **SMALL | {"steps": 6, "batch": 12} | given)


def test_it_learns(digits):
    _, result = train_run(run_of(digits, steps=150, batch=32, lr=5e-3))
    assert result["accuracy"] > 0.9
    assert result["curve"][-1][1] > 0.9


def test_shards_and_parts_change_nothing_but_rounding(task, monkeypatch):
    same_gradients_in_parts(task, monkeypatch)


def test_a_killed_run_ends_with_the_same_bits(digits, tmp_path):
    """Another process would compute the embeddings again."""
    between = embeddings._kept.clear
    same_bits_after_a_kill(run_of(digits), tmp_path / "run", 4, between)


def test_how_long_it_will_take(digits):
    short, long = (estimate_seconds([run_of(digits, steps=steps)], 1) for steps in (100, 10_000))
    assert 0 < short < long


COMMAND = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--steps", "4", "--set",
           "set_size=4", "--set", "n_test=50", "--set", "n_validation=20"]  # fmt: skip


def test_train_and_eval(cli, digits):
    args = ("train", "--task", "sets", "--data", digits, *COMMAND, "--variant", "q=k=v+")
    code, out, err = cli(*args)
    assert code == 0, err
    assert "the network that embeds them names" in " ".join(err.split())
    code, out, err = cli("eval", "runs/sets-q=k=v+-s0", "--wrong", "2")
    assert code == 0, err
    assert "on 50 sets" in out
    assert "of 50 sets are wrong" in out
    assert out.count("distance") == out.count("expected") == 2
    found = json.loads(cli("eval", "runs/sets-q=k=v+-s0", "--wrong", "1", "--json")[1])
    assert found["wrong"][0].keys() == {"place", "distance", "expected", "predicted"}
    code, _, err = cli("generate", "runs/sets-q=k=v+-s0", "1 2")
    assert code == 2
    assert "generates nothing" in err


def test_a_study(cli, digits):
    args = ("study", "--tasks", "sets", "--data", digits, "--variants", "qkv,q-k=v", *COMMAND)
    code, out, err = cli(*args, "--seeds", "2", "--jobs", "1", "--out", "study")
    assert code == 0, err
    assert "sets: digits, 360 training images" in out
    assert "minus qkv" in out
    assert ".942 / .789" in out  # the paper's accuracy of qkv, and that of the later run


def test_one_clear_line(cli, tmp_path):
    write_idx(tmp_path / "few", *blobs(40))
    code, _, err = cli("train", "--task", "sets", "--data", str(tmp_path / "few"))
    assert code == 2
    assert "images of" in err
    assert "a set takes 10" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
