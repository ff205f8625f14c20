"""The text task: windows, documents and padding, perplexity, and how its settings are completed."""

import math
import shutil
import tomllib
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from minqkv import AdamW, Tensor, backend
from minqkv.analysis.needs import seconds_per_step
from minqkv.models import PRESETS
from minqkv.runs import configure, train_run
from minqkv.runtime.errors import UsageError
from minqkv.tasks import corpus
from minqkv.tasks.text import Text
from minqkv.train import IGNORE, train_step

SIZE = {"n_layer": 1, "n_head": 2, "n_embd": 16}
LINES = "".join(f"line {i}: the quick brown fox {i * i} jumps\n" for i in range(400))


@pytest.fixture
def one(tmp_path):
    """A text of one document."""
    path = tmp_path / "one.txt"
    path.write_text(LINES)
    return str(path)


@pytest.fixture
def many(tmp_path):
    """A folder of 200 documents, 1 to 40 characters long."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03}.txt").write_text(f"{i:03} " + "abcdefghij" * (i % 4) + "x" * (i % 7))
    return str(folder)


def uniform(task):
    """A model of this task that gives every token the same probability."""
    model = task.model("qkv", 0)
    model.ln_f.weight.data[...] = 0
    return model


# ---- what is drawn


def test_a_window_and_its_targets_are_neighbours_in_the_text(one):
    task = Text("text", one, seq_len=20, **SIZE)
    tokens = task.corpus.tokens("train")
    stream = tokens[0 : len(tokens)].tolist()
    x, y = task.batch(3, 7, 50)
    assert x.shape == y.shape == (50, 20)
    assert (x[:, 1:] == y[:, :-1]).all()
    text = bytes(task.corpus.tokenizer.decode(stream))
    for row in x:
        assert task.corpus.tokenizer.decode(row) in text
    again = task.batch(3, 7, 50)
    assert (again[0] == x).all()
    assert (task.batch(3, 8, 50)[0] != x).any()
    assert (task.batch(4, 7, 50)[0] != x).any()


def test_a_window_may_begin_at_any_token(one):
    task = Text("text", one, seq_len=2, **SIZE)
    tokens = task.corpus.tokens("train")
    pairs = {tuple(row) for step in range(20) for row in task.batch(0, step, 5000)[0]}
    stream = tokens[0 : len(tokens)].tolist()
    assert pairs == set(pairwise(stream[:-1]))


def test_scored_windows_cover_the_split_once_and_do_not_depend_on_the_seed(one):
    task = Text("text", one, seq_len=16, **SIZE)
    tokens = task.corpus.tokens("test")
    x, y = task.draw(0, "test")
    n = (len(tokens) - 1) // 16
    assert x.shape == (n, 16)
    assert x.ravel().tolist() == tokens[0 : n * 16].tolist()
    assert y.ravel().tolist() == tokens[1 : n * 16 + 1].tolist()
    assert (task.draw(9, "test")[0] == x).all()
    few, _ = task.draw(0, "test", 5)
    places = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in few]
    assert len(few) == 5
    assert places == sorted(set(places))
    assert places[-1] >= n * 3 // 5  # spread over the split


def test_a_text_shorter_than_a_window_is_refused(one):
    with pytest.raises(UsageError, match="too few for a window of 5000") as caught:
        Text("text", one, seq_len=5000, **SIZE).draw(0, "test")
    assert "--seq-len" in caught.value.hint


@pytest.mark.parametrize("name", ["nano", "small"])
def test_the_schedule_of_a_configuration_follows_from_its_steps(name, cli):
    flags = ("--config", name, "--steps", 100, "--tokenizer", "bytes", "--show-config")
    code, out, _ = cli("train", *flags)
    found = tomllib.loads(out)
    assert (code, found["steps"]) == (0, 100)
    assert (found["set"]["warmup"], found["set"]["watch"]) == (5, 10)


@pytest.mark.parametrize("name", PRESETS)
def test_the_papers_configurations_are_its_models(name, cli):
    found = tomllib.loads(
        cli("train", "--config", name, "--tokenizer", "bytes", "--show-config")[1]
    )
    cfg = PRESETS[name]
    assert found["set"]["vocab_size"] == cfg.vocab_size
    assert found["seq-len"] == cfg.block_size
    assert [found[f"n-{size}"] for size in ("layer", "head", "embd")] == [
        cfg.n_layer, cfg.n_head, cfg.n_embd
    ]  # fmt: skip


@pytest.mark.parametrize(("seq_len", "split"), [(1900, "validation"), (14_000, "train")])
def test_a_split_shorter_than_a_window_is_refused_before_anything_is_written(
    seq_len, split, one, tmp_path
):
    config = configure("text", text=one, seq_len=seq_len, steps=1, **SIZE)
    for refused in (lambda: train_run(config, tmp_path / "run"), lambda: seconds_per_step(config)):
        with pytest.raises(
            UsageError, match=f"the {split} split .* too few for a window"
        ) as caught:
            refused()
        assert "--seq-len" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_shown_without_its_text(one, tmp_path):
    config = configure("text", text=one, seq_len=8, steps=1, n_test=3, **SIZE)
    _, result = train_run(config, tmp_path / "run")
    shutil.rmtree(config.task.corpus.folder)
    found = train_run(config, tmp_path / "run", resume=True)[1]
    assert found["perplexity"] == result["perplexity"]


def test_documents_in_rows_are_padded_and_the_padding_does_not_count(many):
    task = Text("text", many, seq_len=12, padded=True, **SIZE)
    found, end = task.corpus, task.corpus.tokenizer.end
    tokens, ends = found.tokens("validation"), found.documents("validation")
    x, y = task.draw(0, "validation")
    assert len(x) == len(ends) - 1
    assert (y == IGNORE).any()
    for row, targets, start, stop in zip(x, y, ends[:-1], ends[1:], strict=True):
        document = tokens[int(start) : int(stop)].tolist()  # with its end token
        n = min(len(document), 13)
        assert row.tolist()[: n - 1] == document[: n - 1]
        assert (row[n - 1 :][1:] == end).all()
        assert targets[: n - 1].tolist() == document[1:n]
        assert (targets[n - 1 :] == IGNORE).all()


# ---- scores


def test_perplexity_of_a_uniform_model_is_the_vocabulary(one, many):
    for text, padded in ((one, False), (many, True)):
        task = Text("text", text, seq_len=12, padded=padded, **SIZE)
        score = task.score(uniform(task), "test", 0)
        assert score["perplexity"] == pytest.approx(task.vocab_size, rel=1e-6)
        assert score["perplexity"] == pytest.approx(task.chance, rel=1e-6)


def test_perplexity_masked_and_padded_by_hand_on_four_tokens():
    """Two documents in rows of two: four targets, one of them padding."""
    task = configure("text", seq_len=2, **SIZE).task
    model = uniform(task)
    V = task.vocab_size
    logits = np.zeros((2, 2, V), "float32")
    logits[0, 0, 5], logits[0, 1, 6], logits[1, 0, 7], logits[1, 1, V - 1] = 1.0, 2.0, 3.0, 9.0
    model.forward = lambda x, **more: backend_tensor(logits[: len(x)])
    y = np.array([[5, 6], [7, IGNORE]])
    p = [math.exp(s) / (math.exp(s) + V - 1) for s in (1.0, 2.0, 3.0, 9.0)]
    masked = (p[0] * p[1] * p[2]) ** (-1 / 3)
    padded = (p[0] * p[1] * p[2] * p[3]) ** (-1 / 4)
    assert padded < masked
    x = np.zeros((2, 2), int)
    assert task.predict(model, x, y)["perplexity"] == pytest.approx(masked, rel=1e-6)
    y[1, 1] = V - 1
    assert task.predict(model, x, y)["perplexity"] == pytest.approx(padded, rel=1e-6)


def backend_tensor(array):
    return Tensor(backend.upload(array))


def test_padding_flatters_a_model_that_was_trained_on_it(many):
    """And spoils the score of one that was not."""
    task = Text("text", many, seq_len=40, padded=True, **SIZE)
    for masked in (False, True):
        model = task.model("qkv", 0)
        optimizer = AdamW(model.parameters(), 1e-2)
        for step in range(30):
            x, y = task.batch(0, step, 8)
            end = task.corpus.tokenizer.end
            train_step(model, optimizer, x, y if masked else np.where(y == IGNORE, end, y))
        score = task.padded_score(model, "test")
        assert score["masked"] == pytest.approx(task.score(model, "test", 0)["perplexity"])
        assert score["padding"] > 0.3
        assert (score["padded"] > 1.2 * score["masked"]) == masked
        assert (score["padded"] < 0.8 * score["masked"]) != masked


def test_the_mean_is_over_tokens_not_over_documents(many):
    task = Text("text", many, seq_len=40, padded=True, **SIZE)
    model = task.model("qkv", 0)
    model.wte.weight.data *= 40  # so that documents differ in their loss
    x, y = task.draw(0, "test")
    parts = [task.predict(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    counts = (y != IGNORE).sum(axis=1)
    losses = np.array([part["loss"] for part in parts])
    mean = (losses * counts).sum() / counts.sum()
    assert abs(losses.mean() - mean) > 1e-3  # the two means differ here
    assert task.predict(model, x, y)["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe-300"])
def test_bits_per_byte_compare_tokenizers(many, tokenizer):
    """Of a uniform model: log2 of the vocabulary for each token, over the bytes of the targets."""
    task = Text("text", many, tokenizer, seq_len=12, padded=True, **SIZE)
    _, y = task.draw(0, "test")
    counted = y[y != IGNORE]
    n_bytes = len(task.corpus.tokenizer.decode(counted))
    bits = len(counted) * math.log2(task.vocab_size) / n_bytes
    score = task.score(uniform(task), "test", 0)
    assert score["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_the_built_in_corpus_is_learned():
    """In 400 steps a tiny model does better than one that knows how often characters occur: 2.80
    against 3.36.
    """
    config = configure("text", n_layer=1, n_embd=48, n_head=2, seq_len=32, steps=400, lr=1e-2)
    task, model = config.task, config.build()
    optimizer, schedule = config.optimizer(model), config.schedule()
    for step in range(400):
        optimizer.lr = schedule(step)
        train_step(model, optimizer, *task.batch(0, step, 16), config.recipe.clip)
    tokens = task.corpus.tokens("train")
    counts = np.bincount(tokens[0 : len(tokens)], minlength=task.vocab_size)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    assert entropy == pytest.approx(3.36, abs=0.01)
    assert task.score(model, "validation", 0)["loss"] < 2.9


# ---- settings


def test_a_task_knows_its_text_by_the_digest(one):
    task = Text("text", one, **SIZE)
    assert (task.text, task.digest) == ("one", corpus.prepare(one).digest)
    assert Text(**asdict(task)) == task
    bigger = Text("text", one, vocab_size=100, **SIZE)
    assert bigger.config("qkv").vocab_size == 100
    assert bigger.draw(0, "test", 3)[0].shape == (3, 64)
    with pytest.raises(UsageError, match="more than a vocabulary of 5"):
        Text("text", one, vocab_size=5, **SIZE).draw(0, "test")


def test_typed_settings_are_completed(one):
    given = Text.prepared({"text": one, "tokenizer": "bytes", "n_layer": 1})
    assert given["vocab_size"] == 257
    assert (given["text"], given["tokenizer"], given["n_layer"]) == ("one", "bytes", 1)
    assert Text.prepared(given) == given  # as --show-config prints it
    assert Text.prepared({"n_layer": 1}) == {"n_layer": 1}
    assert Text.prepared({"text": one, "vocab_size": 100})["vocab_size"] == 100
    assert Text.prepared({**given, "text": ""})["text"] == "builtin"  # the digest is another text's


@pytest.mark.parametrize("given", [{"text": 7}, {"tokenizer": 1e9}, {"text": True}])
def test_a_text_or_tokenizer_that_is_a_number_is_refused(given):
    (name,) = given
    with pytest.raises(UsageError, match=f"{name} must be str"):
        Text.prepared(given)


def test_sizes_are_checked(one):
    for wrong in ({"seq_len": 0}, {"n_validation": 0}, {"dropout": 1.0}):
        with pytest.raises(UsageError):
            Text("text", one, **SIZE, **wrong).config("qkv")


def test_the_validation_split_is_scored_on_fewer_rows(one):
    task = Text("text", one, seq_len=4, n_validation=7, n_test=50, **SIZE)
    assert len(task.draw(0, "validation")[0]) == 7
    assert len(task.draw(0, "test")[0]) == 50
    model, drawn = uniform(task), []
    model.forward = lambda x, **more: drawn.append(len(x)) or type(model).forward(model, x)
    task.score(model, "validation", 0)
    task.score(model, "test", 0)
    assert drawn == [7, 50]
