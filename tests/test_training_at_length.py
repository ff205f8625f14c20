"""Between the first step and the last: batches in parts, blocks computed again, the best model,
what a caller is told, kills on real text, and what a run needs before it starts.
"""

import gc
import io
import itertools
import json
import math
import os
import random
import resource
import signal
import subprocess
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import strict
from commands import run, start, wait_until
from toys import EVERY, IDS, fresh_gpt, host

import minqkv as mq
from minqkv import runs
from minqkv.analysis import needs
from minqkv.render import training as shown
from minqkv.runs import RunConfig, Step, configure, load_run, read_metrics, train_run
from minqkv.runtime import backend, files, parallel
from minqkv.runtime.errors import Diverged, EnvironmentFault, UsageError
from minqkv.tasks import corpus, shards
from minqkv.tasks.synthetic import TRAINING, Synthetic
from minqkv.tasks.text import Text
from minqkv.tensor import Tensor, no_grad, recomputed
from minqkv.train import IGNORE, loss_and_gradients, train_step

SIZE = {"seq_len": 6, "n_embd": 16, "n_layer": 1, "n_head": 2}
WATCHED = configure("reverse", "q-k=v", **SIZE, steps=40, watch=5, lr=0.01, n_test=100)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Checkpoints at tenths of a run alone, however slow the machine is."""
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY_SECONDS", math.inf)


@pytest.fixture
def two_threads(monkeypatch):
    """Shards, however small the batch."""
    monkeypatch.setattr(parallel, "SMALLEST", 1)
    mq.set_threads(2)
    yield
    mq.set_threads(1)


# ---- a batch in parts


def gradients(model, x, y, accumulate=1):
    """(loss, gradient of each parameter)."""
    loss = loss_and_gradients(model.train(3), x, y, accumulate=accumulate)
    return loss, [host(p.grad) for p in model.parameters()]


def uneven(rng):
    """A batch of 7: all targets of the first rows count, of the later ones ever fewer, of the last
    two none.
    """
    x, y = rng.integers(0, 5, (2, 7, 5))
    y[np.arange(5) >= 5 - np.arange(7)[:, None]] = IGNORE
    y[5:] = IGNORE
    return x, y


def assert_close(found, expected, atol=1e-12):
    """The same loss and gradients, but for rounding; by default in float64."""
    assert found[0] == pytest.approx(expected[0], rel=1e-13)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(accumulate, recompute, backend, rng):
    """With the dropout masks of the whole; the loss is the mean over all targets that count."""
    made = {"dtype": "float64", "dropout": 0.3, "recompute": recompute}
    x, y = uneven(rng)
    whole = gradients(fresh_gpt("q=k=v+", **made), x, y)
    assert_close(gradients(fresh_gpt("q=k=v+", **made), x, y, accumulate), whole)
    other = gradients(fresh_gpt("q=k=v+", **made | {"dropout": 0.0}), x, y)
    assert abs(other[0] - whole[0]) > 1e-6  # the masks matter


@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_are_cut_into_shards(accumulate, two_threads, rng):
    made = {"dtype": "float64", "dropout": 0.3}
    x, y = uneven(rng)
    found = gradients(fresh_gpt(**made), x, y, accumulate)
    mq.set_threads(1)
    assert_close(found, gradients(fresh_gpt(**made), x, y))


def test_a_step_in_parts_is_one_step(rng):
    """The optimiser moves once, by the clipped gradient of all."""
    x, y = uneven(rng)
    models = [fresh_gpt(dtype="float64", dropout=0.1) for _ in range(2)]
    optimizers = [mq.AdamW(model.parameters(), lr=0.01) for model in models]
    for _ in range(3):
        for model, optimizer, accumulate in zip(models, optimizers, (1, 4), strict=True):
            train_step(model, optimizer, x, y, clip=0.1, accumulate=accumulate)
    assert [optimizer.steps for optimizer in optimizers] == [3, 3]
    np.testing.assert_allclose(optimizers[0].data, optimizers[1].data, rtol=0, atol=1e-12)


def test_more_parts_than_sequences(rng):
    x, y = rng.integers(0, 5, (2, 3, 5))
    made = {"dtype": "float64"}
    assert_close(gradients(fresh_gpt(**made), x, y, 8), gradients(fresh_gpt(**made), x, y))


# ---- blocks that are computed again


def same_bits(a, b):
    """Whether two results of `gradients` are the same to the bit."""
    pairs = zip(a[1], b[1], strict=True)
    return a[0] == b[0] and all(x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", [*EVERY, "qkv/q-k=v"])
def test_recomputation_keeps_every_bit(variant, dtype, hardware, rng):
    """Of every gradient, that of the tied embedding included, with dropout on.

    On a GPU, atomics add up the gradient of an embedding in an order that differs from run to run.
    """
    x, y = rng.integers(0, 5, (2, 4, 5))
    made = {"dtype": dtype, "dropout": 0.2, "position": "rope"}
    plain = gradients(fresh_gpt(variant, **made), x, y, 2)
    found = gradients(fresh_gpt(variant, **made, recompute=True), x, y, 2)
    if hardware.name == "cupy":
        assert_close(found, plain, 1e-6 if dtype == "float32" else 1e-12)
    else:
        assert same_bits(plain, found)


def test_recomputation_in_shards_keeps_every_bit(two_threads, rng):
    x, y = rng.integers(0, 5, (2, 4, 5))
    plain = gradients(fresh_gpt(dropout=0.2), x, y)
    assert same_bits(plain, gradients(fresh_gpt(dropout=0.2, recompute=True), x, y))
    mq.set_threads(1)
    assert not same_bits(plain, gradients(fresh_gpt(dropout=0.2, recompute=True), x, y))


def test_a_whole_run_keeps_every_bit(monkeypatch):
    config = configure("reverse", form="causal", **SIZE, steps=3)
    model, one = train_run(config)
    real = Synthetic.config
    monkeypatch.setattr(
        Synthetic, "config", lambda self, variant: replace(real(self, variant), recompute=True)
    )
    twin, two = train_run(config)
    assert twin.config.recompute
    assert one["loss"] == two["loss"]
    assert_weights(twin, model.state_dict())


def counted(calls):
    """x², and a note of each call: whether there was a graph."""

    def square(x):
        y = x * x
        calls.append(y.requires_grad)
        return y

    return square


def test_a_function_is_called_again_only_for_its_gradient(leaf):
    calls, x = [], leaf(3)
    y = recomputed(counted(calls), x)
    assert calls == [False]
    y.sum().backward()
    assert calls == [False, True]
    np.testing.assert_array_equal(x.grad, 2 * x.data)
    with no_grad():
        recomputed(counted(calls), x)
    recomputed(counted(calls), Tensor(x.data))
    assert calls == [False, True, False, False]


def test_parameters_inside_an_input_without_a_gradient_learn(leaf):
    w, x = leaf(3), Tensor(np.ones(3))
    recomputed(lambda x: x * w, x).sum().backward()
    np.testing.assert_array_equal(w.grad, np.ones(3))


def test_one_within_another(leaf):
    x, w = leaf(3), leaf(3)
    recomputed(lambda x: recomputed(lambda x: x.exp() * w, x) * w, x).sum().backward()
    np.testing.assert_allclose(w.grad, 2 * w.data * np.exp(x.data))
    np.testing.assert_allclose(x.grad, w.data**2 * np.exp(x.data))


def test_it_sees_the_context_of_the_first_time(leaf):
    """A part of a batch has its own dropout masks, also where backward runs outside."""
    from minqkv.runtime.rng import first_row

    seen, x = [], leaf(3)

    def noting(x):
        seen.append(first_row.get())
        return x * 2.0

    before = first_row.set(7)
    y = recomputed(noting, x)
    first_row.reset(before)
    y.sum().backward()
    assert seen == [7, 7]
    assert first_row.get() == 0


def test_a_second_backward_is_refused(rng):
    x = rng.integers(0, 5, (2, 5))
    loss = mq.functional.cross_entropy(fresh_gpt(recompute=True)(x), x)
    loss.backward()
    with pytest.raises(RuntimeError, match="already used and freed"):
        loss.backward()


def test_recomputation_leaves_no_cycle(rng):
    x = rng.integers(0, 5, (2, 5))
    model = fresh_gpt(recompute=True, dropout=0.1)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for run_backward in (True, False):
            loss = mq.functional.cross_entropy(model(x), x)
            if run_backward:
                loss.backward()
                model.zero_grad()
            del loss
        assert gc.collect() == 0
        assert len(gc.get_objects()) < before + 50
    finally:
        gc.enable()


def test_a_trace_sees_each_array_once(rng):
    x = rng.integers(0, 5, (2, 5))
    found = []
    for recompute in (False, True):
        model = fresh_gpt(recompute=recompute, dropout=0.1)
        with mq.trace() as t:
            found.append((gradients(model, x, x), {name: t.all(name) for name in t}))
    (plain, seen), (again, seen_again) = found
    assert same_bits(plain, again)
    assert seen.keys() == seen_again.keys()
    assert "blocks.1.attn.grad.scores" in seen
    for name, arrays in seen.items():
        assert [a.tobytes() for a in arrays] == [a.tobytes() for a in seen_again[name]], name


def test_debugging_names_the_operation_inside():
    code = """
import numpy as np, minqkv as mq
from minqkv.train import loss_and_gradients
model = mq.GPT(mq.GPTConfig(5, 8, 1, 2, 8, recompute=True))
ids = np.zeros((2, 4), int)
loss_and_gradients(model, ids, ids)
model.blocks[0].mlp.fc.weight.data[...] = np.nan
loss_and_gradients(model, ids, ids)
"""
    environment = os.environ | {"MINQKV_DEBUG": "1"}
    done = subprocess.run(
        [os.sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8"
    )
    assert "first NaN in linear (forward)" in done.stderr


def test_recomputation_waits_for_the_device_no_more_often():
    with backend.use_backend("strict"):
        model = fresh_gpt(recompute=True, dropout=0.1)
        optimizer = mq.AdamW(model.parameters())
        train_step(model, optimizer, IDS, IDS)
        with strict.count_syncs() as syncs:
            train_step(model, optimizer, IDS, IDS)
            assert syncs() == 1


def test_recomputation_needs_less_memory():
    """Of six layers about one is held. The peak is what NumPy allocates, temporaries included."""
    ids, peaks = np.zeros((4, 64), int), []
    for recompute in (False, True):
        model = mq.GPT(mq.GPTConfig(7, 64, 6, 2, 32, recompute=recompute))
        loss_and_gradients(model, ids, ids)  # the gradients are there
        tracemalloc.start()
        loss_and_gradients(model, ids, ids)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 0.4 * peaks[0]


def test_recompute_is_true_or_false():
    with pytest.raises(UsageError, match="recompute must be true or false, not 1"):
        mq.GPTConfig(5, 8, 1, 2, 8, recompute=1)


# ---- the best model


def weights_by_step(config, folder=None):
    """(weights after each step, result) of a run."""
    seen = {}
    _, result = train_run(
        config, folder, progress=lambda step: seen.update({step.done: step.model.state_dict()})
    )
    return seen, result


def assert_weights(model, expected):
    """The same weights, to the bit."""
    for name, array in model.state_dict().items():
        assert array.tobytes() == expected[name].tobytes(), name


SCORES = {5: 0.3, 10: 0.5, 15: 0.4, 20: 0.5, 25: 0.6, 30: 0.2, 35: math.nan, 40: 0.6}


@pytest.fixture
def overfitting(monkeypatch):
    """Validation scores are made up, by the number of steps; gives the splits that are scored."""
    asked, real = [], Synthetic.score

    def score(self, model, split, seed):
        asked.append(split)
        found = real(self, model, split, seed)
        made_up = {self.metric: SCORES[model.step + 1]} if split == "validation" else {}
        return found | made_up

    monkeypatch.setattr(Synthetic, "score", score)
    return asked


def test_the_best_is_kept_beside_the_last(overfitting, tmp_path):
    folder = tmp_path / "run"
    weights, result = weights_by_step(WATCHED, folder)
    assert result["best"] == 25  # the first of equals; NaN never is
    assert_weights(load_run(folder, best=True)[0], weights[25])
    assert_weights(load_run(folder)[0], weights[40])
    meta, arrays = files.read_arrays(folder / "best.npz", "minqkv checkpoint")
    assert meta["step"] == 25
    assert meta["metrics"] == read_metrics(folder)[24]["check"]
    assert not any(name.startswith("optimizer") for name in arrays)
    assert overfitting == ["validation"] * 8 + ["test"]  # which is scored once


def test_lower_may_be_better():
    curve = [(1, 3.0), (2, 2.0), (3, math.inf), (4, 2.0)]

    class Lower:
        better = "lower"

    assert runs._best(Lower, curve) == 2
    assert runs._best(WATCHED.task, curve) == 1
    assert runs._best(Lower, curve[2:3]) is None


def test_a_run_that_watches_nothing_has_no_best(tmp_path):
    config = WATCHED.change(watch=0, steps=3)
    _, result = train_run(config, tmp_path / "run")
    assert "best" not in result
    assert not (tmp_path / "run" / "best.npz").exists()
    with pytest.raises(UsageError, match="no validation score, so no best model"):
        load_run(tmp_path / "run", best=True)


class Stopped(BaseException):
    """Stands for a crash: ends the code at this point."""


def crash_at(n, real):
    """os.replace and os.fsync, of which the n-th call never happens."""
    calls = itertools.count(1)

    def crash(name, *args):
        if next(calls) == n:
            raise Stopped
        real[name](*args)

    return {name: partial(crash, name) for name in real}


@pytest.mark.slow
def test_the_best_is_right_after_a_crash_between_any_two_writes(overfitting, tmp_path, monkeypatch):
    """Whichever write is the last: the best up to the checkpoint can be loaded, and the run ends as
    if nothing had happened.
    """
    few = replace(TRAINING["2026"], n_train=640)
    monkeypatch.setitem(TRAINING, "2026", few)  # the moments are the same with fewer examples
    config = WATCHED.change(steps=20, n_test=20)
    weights, result = weights_by_step(config, tmp_path / "plain")
    assert result["best"] == 10
    real = {"replace": os.replace, "fsync": lambda file: None}  # a disk takes its time
    seen = set()
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patch:
            for name, function in crash_at(n, real).items():
                patch.setattr(os, name, function)
            with suppress(Stopped):
                train_run(config, folder)
                break
        if (folder / "checkpoint.npz").exists():
            last = files.read_arrays(folder / "checkpoint.npz", "minqkv checkpoint")[0]["step"]
            curve = [point for point in result["curve"] if point[0] <= last]
            if curve:
                best = runs._best(config.task, curve)
                assert_weights(load_run(folder, best=True)[0], weights[best])
                seen.add((last, best))
        assert_same_end(tmp_path / "plain", train_run(config, folder, resume=True) and folder)
    assert n > 30
    assert seen >= {(5, 5), (6, 5), (8, 5), (10, 10), (12, 10), (20, 10)}


def assert_same_end(a, b):
    """The same bits in all files of two runs, but for the seconds."""
    names = sorted(path.name for path in a.iterdir() if path.name != "curves.svg")
    assert names == sorted(path.name for path in b.iterdir() if path.name != "curves.svg")
    for name in ("checkpoint.npz", "best.npz"):
        (meta, arrays), (other, found) = (
            files.read_arrays(folder / name, "minqkv checkpoint") for folder in (a, b)
        )
        assert meta == other
        assert arrays.keys() == found.keys()
        for key, array in arrays.items():
            assert array.tobytes() == found[key].tobytes(), (name, key)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    results = [files.read_json(folder / "result.json") for folder in (a, b)]
    for result in results:
        assert result.pop("seconds") > 0
        assert len(result.pop("check")) == 8  # of the seconds, too
    assert results[0] == results[1]


def stopped_after(config, folder, steps):
    """A folder whose run crashed after so many steps."""

    def progress(step):
        if step.done == steps:
            raise Stopped

    with pytest.raises(Stopped):
        train_run(config, folder, progress=progress)
    return folder


CHANGES = {
    "of another step": {"step": 24},
    "of another run": {"config": "0" * 16},
    "of other metrics": {"metrics": "0" * 8},
}


@pytest.mark.parametrize("damage", ["missing", "cut short", *CHANGES])
def test_a_best_that_is_not_that_of_this_run_is_refused(damage, overfitting, tmp_path):
    folder = tmp_path / "run"
    train_run(WATCHED, folder)
    best = folder / "best.npz"
    meta, arrays = files.read_arrays(best, "minqkv checkpoint")
    if damage == "missing":
        best.unlink()
    elif damage == "cut short":
        best.write_bytes(best.read_bytes()[:-100])
    else:
        files.write_arrays(best, "minqkv checkpoint", meta | CHANGES[damage], arrays)
    with pytest.raises(EnvironmentFault, match=r"best\.npz"):
        load_run(folder, best=True)
    assert load_run(folder)


def test_a_lost_best_comes_back_on_resume_if_the_checkpoint_is_it(tmp_path):
    folder = stopped_after(WATCHED, tmp_path / "run", 5)
    (folder / "best.npz").unlink()
    load_run(folder, best=True)
    with pytest.raises(Stopped):
        train_run(WATCHED, folder, resume=True, progress=_stop)
    assert files.read_arrays(folder / "best.npz", "minqkv checkpoint")[0]["step"] == 5


def _stop(step):
    raise Stopped


def test_divergence_leaves_checkpoint_and_best_as_they_were(tmp_path):
    folder, before = tmp_path / "run", {}

    def progress(step):
        if step.done == 12:
            for name in ("checkpoint.npz", "best.npz"):
                before[name] = (folder / name).read_bytes()
            step.model.embed.weight.data[...] = np.nan

    with pytest.raises(Diverged, match="step 12 is nan"):
        train_run(WATCHED, folder, progress=progress)
    assert before
    for name, content in before.items():
        assert (folder / name).read_bytes() == content
    assert load_run(folder, best=True)


# ---- what a caller is told


def test_each_step_is_told():
    told = []
    _, result = train_run(WATCHED.change(steps=12), progress=told.append)
    assert [step.done for step in told] == list(range(1, 13))
    assert {(step.steps, step.tokens) for step in told} == {(12, 128 * 6)}
    watched = [(step.done, step.validation) for step in told if step.validation is not None]
    assert watched == result["curve"]
    assert told[-1].model.n_params == result["params"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small text in several token shards: the settings of a run on it. Children find it, too."""
    folder = tmp_path_factory.mktemp("text")
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is", "question"], k=1500)
    (folder / "words.txt").write_text(" ".join(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINQKV_CACHE", str(folder / "cache"))
        patch.setattr(shards, "SHARD_TOKENS", 500)
        found = corpus.prepare(str(folder / "words.txt"))
        assert len(found.tokens("train").shards) > 3
        yield {"text": str(folder / "words.txt")}


SHORT = {"seq_len": 32, "n_layer": 1, "n_head": 2, "n_embd": 64, "n_validation": 8, "n_test": 8}


def test_watching_a_model_write_changes_nothing(text):
    config, written = configure("text", **text, **SHORT, dropout=0.1, steps=6, watch=2), []

    def progress(step):
        written.append(config.task.sample(step.model, 0))
        assert config.task.sample(step.model, 0) == written[-1]

    _, plain = train_run(config)
    _, seen = train_run(config, progress=progress)
    assert plain | {"seconds": 0} == seen | {"seconds": 0}
    start = config.task.decode(config.task.corpus.tokens("validation")[:8])
    assert all(text.startswith(start) and 20 < len(text) <= 33 for text in written)
    assert len(set(written)) > 1
    assert WATCHED.task.sample(WATCHED.build(), 0) is None


def test_a_long_window_gives_eighty_characters(text):
    config = configure("text", **text, **SHORT | {"seq_len": 120})
    assert 60 < len(config.task.sample(config.build(), 0)) <= 80  # an end has no character


# ---- killed on real text


def _wait_for_lines(child, path, n):
    """Wait until this child, not an earlier one, has written more than n lines, or has ended."""
    before = path.stat().st_mtime_ns if path.exists() else 0

    def there():
        return path.exists() and path.stat().st_mtime_ns > before and _lines(path) > n

    wait_until(lambda: child.poll() is not None or there())


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_run_on_text_survives_kills_at_random_moments(text, tmp_path):
    """With batches in parts, two threads, several token shards, blocks computed again and a best:
    nothing but the seconds differs from an undisturbed run.
    """
    more = {**SHORT, **text, "batch": 64, "accumulate": 2, "watch": 4, "dropout": 0.1}
    more |= {"recompute": "true", "n_validation": 4, "lr": 0.01}
    flags = [f"--set={name}={value}" for name, value in more.items()]
    command = ["train", "--task", "text", *flags, "--steps", 30, "--threads", 2, "--out"]
    assert run(*command, tmp_path / "plain")[0] == 0
    model, config = load_run(tmp_path / "plain")
    assert model.n_params * config.task.seq_len * 32 // parallel.SMALLEST >= 2  # shards
    rng, folder, kills = random.Random(12), tmp_path / "run", 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for attempt in range(40):
        begun = (folder / "config.json").exists()
        again = ("train", "--resume", "--threads", 2, "--out")
        child = start(*(again if begun else command), folder, **quiet)
        if kills == 6:
            assert child.wait() == 0
            break
        done = _lines(folder / "metrics.jsonl")
        if attempt % 3:  # into training and saving; else into the start
            _wait_for_lines(child, folder / "metrics.jsonl", done // 2 + rng.randrange(8))
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        if child.wait() == 0:  # it was faster
            break
        kills += 1
    assert kills
    assert_same_end(tmp_path / "plain", folder)
    best = files.read_json(folder / "result.json")["best"]
    assert files.read_arrays(folder / "best.npz", "minqkv checkpoint")[0]["step"] == best


# ---- what it looks like


class Terminal:
    """What the live view prints on a terminal of this width."""

    def __init__(self, monkeypatch, width, terminal=True):
        from rich.console import Console

        self.console = Console(
            width=width, force_terminal=terminal, record=True, file=io.StringIO(),
            color_system=None, highlight=False,
        )  # fmt: skip
        for module in (shown, shown.progress.__wrapped__.__globals__):
            patched = module if isinstance(module, dict) else vars(module)
            monkeypatch.setitem(patched, "stderr", lambda: self.console)

    @property
    def lines(self):
        """All lines so far, without escape codes."""
        return self.console.export_text(styles=False).splitlines()


def a_step(done, validation=None, model=None):
    """One of forty, of a quarter of a second."""
    return Step(done, 40, 1000, 0.25, 2.34567, validation, model)


@pytest.mark.parametrize("width", [60, 80])
def test_the_live_view_fits(width, monkeypatch):
    terminal = Terminal(monkeypatch, width)
    with shown.live(WATCHED) as progress:
        for done in range(1, 41):
            progress(a_step(done, 0.5 if done % 5 == 0 else None))
    lines = [line.rstrip() for line in terminal.lines]
    assert max(map(len, lines)) <= width
    bar, note = lines[-2:]
    assert bar.startswith("train ")
    assert "40/40" in bar
    assert bar.endswith("left")
    assert note.startswith("loss 2.3457  accuracy 0.5")
    assert "…" not in "".join(lines)


def test_samples_stand_above_the_bar(monkeypatch):
    terminal = Terminal(monkeypatch, 60)
    monkeypatch.setattr(Synthetic, "sample", lambda self, model, seed: "to be\x1b or\nnot")
    with shown.live(WATCHED) as progress:
        for done in range(1, 41):
            progress(a_step(done, 0.5 if done % 5 == 0 else None))
    text = "\n".join(line.rstrip() for line in terminal.lines)
    assert "step 5 writes:\nto be· or\nnot\n" in text
    assert text.count("writes:") == 8  # whenever there is a score
    assert "\x1b" not in text


def test_a_line_for_each_tenth_elsewhere(monkeypatch):
    terminal = Terminal(monkeypatch, 40, terminal=False)
    wrote = "to be\x1b or\nnot, é\\ " + 40 * "x"
    monkeypatch.setattr(Synthetic, "sample", lambda self, model, seed: wrote)
    with shown.live(WATCHED) as progress:
        for done in range(21, 41):  # resumed
            progress(a_step(done, 0.5 if done % 10 == 0 else None))
    printed = terminal.lines
    lines = [line for line in printed if not line.startswith(" ")]
    assert [line.split()[1] for line in lines] == [f"{n}/40" for n in (24, 28, 32, 36, 40)]
    assert "accuracy" not in lines[1]
    assert "loss 2.3457  accuracy 0.5000  " in lines[2]
    assert all("tokens/s" in line and " left" in line for line in lines)
    samples = [line for line in printed if line.startswith(" ")]
    written = r" writes: to be\x1b or\nnot, é\ " + 40 * "x"
    assert samples == [f"    step {n}{written}" for n in (30, 40)]


def test_speed_is_that_of_training_alone(monkeypatch):
    """However long scores and samples take: 1,000 tokens in a quarter of a second."""
    terminal = Terminal(monkeypatch, 200, terminal=False)
    monkeypatch.setattr(Synthetic, "sample", lambda *args: time.sleep(0.01))
    with shown.live(WATCHED) as progress:
        for done in range(1, 41):
            progress(a_step(done, 0.5))
    lines = terminal.lines
    assert len(lines) == 10
    assert all("  4,000 tokens/s  " in line for line in lines)


def test_a_step_is_told_without_scores_and_without_what_the_caller_does(monkeypatch):
    """By a clock that only these move."""
    now, seen, score, batch = 0.0, [], Synthetic.score, Synthetic.batch

    def later(seconds, function, *args):
        nonlocal now
        now += seconds
        return function(*args)

    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Synthetic, "batch", lambda *args: later(1, batch, *args))
    monkeypatch.setattr(Synthetic, "score", lambda *args: later(100, score, *args))
    config = configure("reverse", **SIZE, steps=4, watch=1, n_test=10)
    train_run(config, progress=lambda step: later(10_000, seen.append, step.seconds))
    assert seen == [1.0] * 4


def test_a_line_of_a_log_is_never_broken(monkeypatch):
    terminal = Terminal(monkeypatch, 40, terminal=False)
    with shown.live(WATCHED) as progress:
        for done in range(1, 41):
            progress(a_step(done, 0.5))
    lengths = [len(line) for line in terminal.lines]
    assert len(lengths) == 10
    assert min(lengths) > 60


def test_the_loss_is_averaged_in_parts():
    metrics = [{"loss": float(i)} for i in range(1, 11)]
    assert shown.averaged(metrics, 4) == [(2, 1.5), (5, 4.0), (7, 6.5), (10, 9.0)]
    assert shown.averaged(metrics[:2], 4) == [(1, 1.0), (2, 2.0)]
    picture = shown.loss_curve(metrics * 30)
    assert max(map(len, picture.splitlines())) <= 60
    assert "starts at" in picture
    assert len(shown.loss_curve(metrics[:1]).splitlines()) > 8


def test_curves_of_a_run(cli, tmp_path):
    flags = ["--seq-len", 6, "--n-embd", 16, "--n-layer", 1, "--n-head", 2, "--threads", 1]
    args = ("train", "--task", "reverse", *flags, "--steps", 10, "--out", "run")
    code, out, err = cli(*args, "--set", "watch=5")
    assert code == 0
    assert "best validation accuracy" in out
    assert "|" not in out  # the picture is for a terminal
    assert "parameters; training needs about" in err.splitlines()[0]
    svg = (tmp_path / "run" / "curves.svg").read_text()
    assert "training loss" in svg
    assert "validation accuracy" in svg
    before = (tmp_path / "run" / "curves.svg").stat().st_mtime_ns
    code, out, err = cli("train", "--resume", "--out", "run")
    assert (code, err) == (0, "")
    assert (tmp_path / "run" / "curves.svg").stat().st_mtime_ns == before
    assert cli(*args[:-1], "unwatched")[0] == 0
    assert "validation" not in (tmp_path / "unwatched" / "curves.svg").read_text()


# ---- what a run needs


KINDS = [
    {"task": "copy"},
    {"task": "copy", "protocol": "2023", "variant": "q=k=v+"},
    {"task": "sort", "form": "causal", "variant": "qkv/q-k=v"},
    {"task": "mqar", "variant": "thin-2", "n_head": 4},
]


@pytest.mark.parametrize("heads", [{}, {"n_head": 1}, {"n_layer": 1, "n_embd": 16}], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, {"task": "text", "n_test": 100}], ids=str)
def test_scoring_takes_what_is_said(kind, heads):
    """No more, and not far less: the splits are scored as at the end of a run."""
    config = configure(**{**kind, **heads, "variant": "qkv"}, watch=10)
    found, model = needs.needs(config).scoring, config.build()
    config.task.score(model, "test", 0)
    tracemalloc.start()
    for split in ("validation", "test"):
        config.task.score(model, split, 0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.7 * found < most <= found


def test_a_run_that_fits_can_be_scored(monkeypatch):
    """Many examples at a time may take more than a step; one thread takes less than two."""
    two = replace(configure("copy", batch=1, n_test=2000), threads=2)
    one = needs.needs(replace(two, threads=1))
    assert one.scoring > 2 * one.activations
    assert one.total == one.fixed - one.saving + one.scoring
    assert needs.needs(two).scoring > 1.8 * one.scoring
    monkeypatch.setattr(needs, "available", lambda: one.total)
    needs.check_memory(replace(two, threads=1))
    with pytest.raises(EnvironmentFault, match=r"; scoring .*\)") as error:
        needs.check_memory(two)
    assert error.value.hint == "it fits with --threads 1"
    monkeypatch.setattr(needs, "available", lambda: one.total - 1)
    with pytest.raises(EnvironmentFault) as error:
        needs.check_memory(two)
    assert error.value.hint == "it fits with --threads 1 --set n_test=50"
    needs.check_memory(two.change(threads=1, n_test=50))


def test_any_array_of_a_text_may_be_the_largest():
    """Of logits, of an MLP, of the scores of a block of queries; one row at least."""
    task = Text("text", digest="0" * 12, vocab_size=66)
    assert task.at_once == 2**21 // (64 * 512)
    assert replace(task, vocab_size=4096).at_once == 2**21 // (64 * 4096)
    assert replace(task, n_head=32).at_once == 2**21 // (64 * 32 * 64)
    assert replace(task, n_head=32, seq_len=256).at_once == 2**21 // (256 * 32 * 128)
    assert replace(task, seq_len=100_000).at_once == 1
    assert replace(task, seq_len=1).at_once == 500


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_parameters_are_counted_without_a_model(kind):
    config = configure(**kind)
    found = needs.needs(config)
    assert found.parameters == config.build().n_params
    assert found.weights == 4 * found.parameters
    assert found.total >= found.fixed > 5 * found.weights


def large(n_layer=20, n_head=16, n_embd=1024, **recipe):
    """A run of the paper's 300M model, or another."""
    task = Text(
        "text", digest="0" * 12, vocab_size=50304, seq_len=2048, n_layer=n_layer, n_head=n_head,
        n_embd=n_embd,
    )  # fmt: skip
    return RunConfig(task, "qkv", replace(task.recipe(), **{"batch": 16} | recipe))


def test_large_models_are_not_built(monkeypatch):
    monkeypatch.setattr(RunConfig, "build", lambda self: pytest.fail("builds the model"))
    tracemalloc.start()
    sizes = [needs.needs(large(*size)) for size in ((20, 16, 1024), (22, 32, 2048))]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert [found.parameters for found in sizes] == [305_534_976, pytest.approx(1215.1e6, abs=5e4)]
    assert needs.run_seconds(large()) > 3600


def test_parts_recomputation_and_ranks_need_less():
    whole = needs.needs(large())
    parts = needs.needs(large(accumulate=16))
    again = needs.needs(large().change(recompute=True))
    shared = needs.needs(large(), ranks=4)
    assert parts.activations == pytest.approx(whole.activations / 16, rel=0.01)
    assert again.activations < whole.activations / 2
    assert shared.activations == pytest.approx(whole.activations / 4, rel=0.01)
    assert whole.gradients == parts.gradients == 2 * whole.weights
    two = needs.needs(replace(large(accumulate=8), threads=2))  # a shard, the other, the sum, flat
    assert two.gradients == 4 * two.weights


@pytest.mark.parametrize(
    ("gib", "cure"),
    [
        (60, None),
        (20, "--set accumulate=4"),
        (14.5, "--set accumulate=8"),
        (2, "the model itself is too large"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_with_what_would(gib, cure, monkeypatch):
    monkeypatch.setattr(needs, "available", lambda: gib * 2**30)
    if cure is None:
        assert needs.check_memory(large()) == needs.needs(large())
        return
    with pytest.raises(
        EnvironmentFault, match=r"needs about 52\.1 GiB of memory \(weights"
    ) as error:
        needs.check_memory(large())
    assert cure in error.value.hint


def test_the_cure_may_be_to_recompute(monkeypatch):
    config = large(2, 2, 64, batch=1).change(seq_len=100_000, vocab_size=66)
    free = needs.needs(config.change(recompute=True)).total
    monkeypatch.setattr(needs, "available", lambda: free)
    with pytest.raises(EnvironmentFault) as error:
        needs.check_memory(config)
    assert error.value.hint == "it fits with --recompute"
    monkeypatch.setattr(needs, "available", lambda: free - 1)
    with pytest.raises(EnvironmentFault) as error:
        needs.check_memory(config)
    assert "--seq-len" in error.value.hint


def test_a_run_that_cannot_fit_writes_nothing(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "available", lambda: 10 * 2**20)
    small = ("--set", "n_test=50", "--steps", 3, "--threads", 1)
    code, out, err = cli("train", "--task", "copy", *small, "--out", "run")
    assert (code, out) == (3, "")
    said = " ".join(err.split())
    assert "but only 10 MiB is free" in said or "but only 10.0 MiB is free" in said
    assert "it fits with --set accumulate=" in said
    assert not (tmp_path / "run").exists()


def test_a_limit_of_the_address_space_counts(tmp_path):
    limit = 3 * 2**30
    code, out, err = run(
        "train", "--task", "copy", "--n-embd", 2048, "--n-layer", 8, "--threads", 1,
        "--out", tmp_path / "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert (code, out) == (3, "")
    assert "this run needs about" in err
    assert not (tmp_path / "run").exists()


def _group(folder, limit, used, cached, version):
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_limit_memory(version, tmp_path):
    """Each group above counts; one without a limit does not."""
    top = tmp_path / "cgroup" / "memory" if version == 1 else tmp_path / "cgroup"
    _group(top / "user" / "job", 1000, 700, 200, version)
    _group(top / "user", 900, 800, 50, version)
    _group(top, "max", 5, 0, version)
    (tmp_path / "self").mkdir()
    kinds = "4:cpu,memory" if version == 1 else "0:"
    (tmp_path / "self" / "cgroup").write_text(f"9:pids:/\n{kinds}:/user/job\n")
    found = needs.of_control_groups(tmp_path, tmp_path / "cgroup")
    assert found == [500, 150]
    assert needs.of_control_groups(tmp_path / "none", tmp_path) == []


def test_this_machine_has_memory():
    assert 2**20 < needs.available() < 2**50
    assert 2**20 < needs.peak_memory() < 2**50


def test_short_runs_are_not_timed(monkeypatch):
    monkeypatch.setattr(needs, "seconds_per_step", lambda *_: pytest.fail("measures"))
    assert needs.run_seconds(WATCHED) is None


def test_longer_runs_are_timed_with_fewer_sequences_where_steps_are_long(monkeypatch):
    seen = []
    monkeypatch.setattr(needs, "seconds_per_step", lambda c, n: seen.append(c) or 2.0)
    config = configure("copy", steps=10**6, batch=64, accumulate=4)
    assert needs.run_seconds(config) == 2.0 * 10**6
    monkeypatch.setattr(needs, "TIMED", 2 * 6 * needs.needs(config).parameters * 16)
    found = needs.run_seconds(config)
    assert found == 2.0 * 10**6 * 64 / seen[-1].recipe.batch
    assert (seen[0].recipe.batch, seen[0].recipe.accumulate) == (64, 1)
    assert 1 <= seen[-1].recipe.batch < 4


def test_a_step_is_timed():
    assert 0 < needs.seconds_per_step(WATCHED, 1) < 100


def test_what_is_said_is_one_line(cli):
    args = ("train", "--task", "copy", "--steps", 2, "--threads", 1)
    _, _, err = cli(*args, "--out", "run", "--json")
    line = err.splitlines()[0]
    assert line.startswith("102,474 parameters; training needs about 26 MiB (weights 0.4 MiB, ")
    assert json.dumps(line)
    assert "and" in shown.needs_line(needs.needs(WATCHED), 95).rpartition(")")[2]
