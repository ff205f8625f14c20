"""Training: the same bits however often it is killed, a run folder that is never half written,
refusals that say why.
"""

import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from commands import run, start, wait_until

from minqkv import runs
from minqkv.runs import RunConfig, load_config, load_run, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import Diverged, EnvironmentFault, UsageError
from minqkv.tasks.base import Batches
from minqkv.tasks.synthetic import RECIPES

SMALL = RunConfig("reverse", "q-k=v", seq_len=6, n_embd=16, n_layer=1, n_head=2, steps=120)
FLAGS = (
    "--task",
    "reverse",
    "--variant",
    "q-k=v",
    "--seq-len",
    6,
    "--n-embd",
    16,
    "--n-layer",
    1,
    "--n-head",
    2,
    "--threads",
    1,
)
KINDS = {
    "encoder": (SMALL, ()),
    "dropout": (replace(SMALL, protocol="2023", position=None), ("--protocol", "2023")),
    "causal": (replace(SMALL, form="causal"), ("--form", "causal")),
}


def losses(folder):
    """Steps and losses of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def checkpoint(folder):
    """Meta and arrays of a run folder's checkpoint."""
    return files.read_arrays(folder / "checkpoint.npz", "minqkv checkpoint")


def assert_same_run(a, b):
    """The same bits in parameters and optimiser, and the same metrics, each step once."""
    (meta_a, arrays_a), (meta_b, arrays_b) = checkpoint(a), checkpoint(b)
    assert meta_a == meta_b
    assert arrays_a.keys() == arrays_b.keys()
    for name, array in arrays_a.items():
        assert array.tobytes() == arrays_b[name].tobytes(), name
    assert losses(a) == losses(b)
    assert [step for step, _ in losses(a)] == list(range(meta_a["step"]))
    result_a, result_b = (files.read_json(folder / "result.json") for folder in (a, b))
    assert {**result_a, "seconds": 0} == {**result_b, "seconds": 0}


@pytest.fixture(scope="module", autouse=True)
def no_clock():
    """Checkpoints at tenths of a run alone, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "CHECKPOINT_EVERY_SECONDS", math.inf)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(kind) -> the folder of a run nobody disturbed."""
    found = {}

    def make(kind):
        if kind not in found:
            found[kind] = tmp_path_factory.mktemp(kind) / "run"
            train_run(KINDS[kind][0], found[kind])
        return found[kind]

    return make


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run folder stopped after 30 of its 120 steps, with the checkpoint of step 24."""
    return stop_after(SMALL, tmp_path_factory.mktemp("stopped") / "run", 30)


@pytest.fixture
def begun(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "begun")


def stop_after(config, folder, steps):
    """Train into `folder`, and drop everything after this many steps."""

    def progress(step, *_):
        if step == steps:
            raise Stopped

    with pytest.raises(Stopped):
        train_run(config, folder, progress=progress)
    return folder


class Stopped(BaseException):
    """What a crash does to the code it hits."""


# ---- killed and resumed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "dropout", "causal"])
def test_killed_at_random_moments_and_resumed(kind, whole, tmp_path):
    """Which moments there are is the same for every kind; what must be restored is not."""
    rng, folder, kills = random.Random(kind), tmp_path / "run", 0
    command = ("train", *FLAGS, *KINDS[kind][1], "--steps", 120, "--out", folder)
    for attempt in range(60):
        done = checkpoint(folder)[0]["step"] if (folder / "checkpoint.npz").exists() else 0
        child = start(
            *command,
            *["--resume"] * (attempt > 0),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if kills == 6:
            assert child.wait(120) == 0
            break
        if attempt % 3:  # into training and saving; else into the start
            _wait_for_steps(child, folder, done + rng.randrange(30))
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        if child.wait() == 0:  # it was faster
            break
        kills += 1
    assert kills
    assert_same_run(whole(kind), folder)
    assert not list(folder.glob(".*"))


def _wait_for_steps(child, folder, n):
    """Until this child, not the one before it, has written more than n lines of metrics, or is
    done.
    """
    path = folder / "metrics.jsonl"
    before = path.stat().st_mtime_ns if path.exists() else 0

    def there():
        return (
            path.exists()
            and path.stat().st_mtime_ns > before
            and path.read_bytes().count(b"\n") > n
        )

    wait_until(lambda: child.poll() is not None or there())


@pytest.mark.slow
def test_a_crash_between_any_two_writes_loses_nothing(tmp_path, monkeypatch):
    few = replace(RECIPES["2026"], n_train=640, n_test=100)
    monkeypatch.setitem(RECIPES, "2026", few)  # the moments are the same with fewer examples
    config, plain = replace(SMALL, steps=5), tmp_path / "plain"
    train_run(config, plain)
    real = {"replace": os.replace, "fsync": lambda file: None}  # a disk takes its time
    for n in itertools.count(1):
        folder, calls = tmp_path / str(n), itertools.count(1)

        def crash(name, *args, calls=calls, n=n):
            if next(calls) == n:
                raise Stopped
            real[name](*args)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, partial(crash, name))
            with suppress(Stopped):
                train_run(config, folder)
                break
        train_run(config, folder, resume=True)
        assert_same_run(plain, folder)
    assert (
        n > 20
    )  # that many moments: three a checkpoint, two each for configuration, metrics and result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_signal_saves_at_the_end_of_the_step(number, tmp_path):
    folder = tmp_path / "run"
    child = start("train", *FLAGS, "--steps", 20000, "--out", folder)
    _wait_for_steps(child, folder, 10)
    child.send_signal(number)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert out == ""
    assert "minqkv: interrupted" in err
    assert f"minqkv train --resume --out {folder}" in err
    assert "Traceback" not in err
    assert checkpoint(folder)[0]["step"] == len(losses(folder)) > 10
    assert load_run(folder)[1].steps == 20000


def test_a_signal_between_a_save_and_the_end_of_its_step_is_heard_a_step_later(tmp_path):
    def progress(step, *_):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train_run(SMALL, tmp_path / "run", progress=progress)
    assert checkpoint(tmp_path / "run")[0]["step"] == len(losses(tmp_path / "run")) == 6


def test_a_signal_during_the_start_is_polite_too(tmp_path, cli, monkeypatch):
    monkeypatch.setattr(RunConfig, "build", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = cli("train", *FLAGS, "--steps", 5, "--out", "run")
    assert code == 130
    assert "interrupted" in err


def test_temporary_files_of_a_killed_process_are_swept(begun):
    (begun / ".checkpoint.npz.1.tmp").write_bytes(b"half")
    train_run(SMALL, begun, resume=True)
    assert sorted(path.name for path in begun.iterdir()) == [
        "checkpoint.npz",
        "config.json",
        "metrics.jsonl",
        "result.json",
    ]


def test_metrics_after_the_checkpoint_are_cut_and_a_torn_line_with_them(begun, whole):
    assert len(losses(begun)) == 30
    with open(begun / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    train_run(SMALL, begun, resume=True)
    assert_same_run(whole("encoder"), begun)


def test_metrics_shorter_than_the_checkpoint_are_refused(begun):
    (begun / "metrics.jsonl").write_text("")
    with pytest.raises(EnvironmentFault, match="0 lines, but the checkpoint is from step 24"):
        train_run(SMALL, begun, resume=True)


def test_a_long_time_without_a_checkpoint_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY_SECONDS", -1)
    assert checkpoint(stop_after(SMALL, tmp_path / "run", 5))[0]["step"] == 5


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    train_run(
        replace(SMALL, steps=2), progress=lambda *_: seen.append(signal.getsignal(signal.SIGTERM))
    )
    assert seen == [
        before,
        before,
    ]  # and with nothing to save, a signal is left to whoever handles it
    assert not list(tmp_path.iterdir())


# ---- what is refused, and what is resumed


def test_a_folder_with_a_run_is_refused_without_resume(cli):
    assert cli("train", *FLAGS, "--steps", 3, "--out", "run")[0] == 0
    code, out, err = cli("train", *FLAGS, "--steps", 3, "--out", "run")
    assert (code, out) == (2, "")
    assert "run already holds a run" in err
    assert "--resume" in err


def test_resuming_a_complete_run_changes_nothing(cli, tmp_path):
    assert cli("train", *FLAGS, "--steps", 3, "--out", "run")[0] == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert cli("train", "--resume", "--out", "run")[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "copy")


def test_contradicting_flags_are_listed(cli):
    assert cli("train", *FLAGS, "--steps", 3, "--out", "run")[0] == 0
    changes = (
        "--seed",
        5,
        "--steps",
        9,
        "--protocol",
        2023,
        "--lr",
        0.5,
        "--variant",
        "mqa",
        "--hide-self",
    )
    code, _, err = cli("train", "--resume", "--out", "run", *changes)
    assert code == 2
    said = " ".join(err.split())
    for part in (
        "seed is 0 there, 5 here",
        "steps is 3 there, 9 here",
        "protocol is 2026 there, 2023 here",
        "lr is 0.001 there",
        "variant is q-k=v there, mqa here",
        "hide_self is False there, True here",
    ):
        assert part in said
    assert "n_embd" not in said
    agreeing = ("--seed", 0, "--variant", "Q-K=V", "--n-embd", 16)
    assert cli("train", "--resume", "--out", "run", *agreeing)[0] == 0


def test_resume_finds_the_default_folder_without_repeating_every_flag(cli, tmp_path):
    assert cli("train", *FLAGS, "--steps", 3)[0] == 0
    assert cli("train", "--task", "reverse", "--variant", "q-k=v", "--resume")[0] == 0
    assert load_config(tmp_path / "runs" / "reverse-q-k=v-s0").n_embd == 16


def test_resume_where_there_is_no_run(cli):
    code, _, err = cli("train", "--resume", "--out", "nowhere")
    assert code == 2
    assert "nowhere holds no run" in err
    assert (
        cli("train", "--resume", *FLAGS, "--steps", 2, "--out", "new")[0] == 0
    )  # with a task it may as well begin


def test_a_checkpoint_without_its_configuration_is_not_built_upon(begun):
    (begun / "config.json").unlink()
    with pytest.raises(UsageError, match="already holds a run"):
        train_run(SMALL, begun)
    with pytest.raises(EnvironmentFault, match=r"no config\.json"):
        train_run(SMALL, begun, resume=True)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"steps": 0}, {"seed": -1}],
)
def test_impossible_numbers_are_refused(change):
    with pytest.raises(UsageError, match=str(next(iter(change.values())))):
        replace(SMALL, **change)


# ---- damaged files


def _npz(folder, **changes):
    meta, arrays = checkpoint(folder)
    files.write_arrays(
        folder / "checkpoint.npz",
        changes.pop("kind", "minqkv checkpoint"),
        {**meta, **changes},
        arrays,
    )


class Trap:
    """Unpickled, it would leave a trace."""

    def __reduce__(self):
        return os.mkdir, ("trap",)


def _pickle(folder, save):
    with open(folder / "checkpoint.npz", "wb") as file:
        save(file, np.array([Trap()], dtype=object))


CHECKPOINTS = {
    "of another kind": (lambda f: _npz(f, kind="minqkv conversion"),
        "is a minqkv conversion, not a minqkv checkpoint"),
    "empty": (lambda f: (f / "checkpoint.npz").write_bytes(b""), "corrupt, truncated"),
    "text": (lambda f: (f / "checkpoint.npz").write_text("hello"), "corrupt, truncated"),
    "a bare array": (lambda f: shutil.move(_saved(f), f / "checkpoint.npz"), "corrupt, truncated"),
    "a foreign npz": (lambda f: np.savez(f / "checkpoint.npz", a=np.ones(3)), "corrupt, truncated"),
    "a pickle in an npy": (lambda f: _pickle(f, np.save), "corrupt, truncated"),
    "a pickle in an npz": (lambda f: _pickle(f, np.savez), "corrupt, truncated"),
    "a label that is no object": (
        lambda f: np.savez(f / "checkpoint.npz", __meta__=np.frombuffer(b"[1]", np.uint8)),
        "corrupt, truncated"),
    "of another model": (
        lambda f: train_run(replace(SMALL, n_embd=8, steps=1), f.parent / "other")
        and shutil.copy(f.parent / "other" / "checkpoint.npz", f), "from another model"),
    "of a stranger's making": (
        lambda f: files.write_arrays(
            f / "checkpoint.npz", "minqkv checkpoint", {}, {"a": np.ones(3)}),
        "from another model"),
    "a folder": (lambda f: (f / "checkpoint.npz").unlink() or (f / "checkpoint.npz").mkdir(),
        "corrupt, truncated"),
    "absent": (lambda f: (f / "checkpoint.npz").unlink(), "checkpoint.npz does not exist"),
}  # fmt: skip


def _saved(folder):
    np.save(folder / "array.npy", np.ones(3))
    return folder / "array.npy"


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_checkpoint_that_is_none(what, begun, cli, tmp_path):
    damage, expected = CHECKPOINTS[what]
    damage(begun)
    for command in (("eval", begun), ("train", "--resume", "--out", begun)):
        code, out, err = cli(*command)
        if what == "absent" and command[0] == "train":
            assert code == 0  # it begins again
            continue
        assert (code, out) == (3, "")
        assert expected in " ".join(err.split())
        assert "Traceback" not in err
    assert not (tmp_path / "trap").exists()


def test_a_truncated_or_flipped_checkpoint_never_passes_for_a_whole_one(begun):
    path, rng = begun / "checkpoint.npz", random.Random(0)
    whole, model = path.read_bytes(), load_run(begun)[0]
    lengths = [*range(40), *(rng.randrange(len(whole)) for _ in range(60)), len(whole) - 1]
    directory = whole.rindex(b"PK\x01\x02", 0, len(whole) - 500)
    places = [
        rng.choice((rng.randrange(len(whole)), rng.randrange(directory, len(whole))))
        for _ in range(250)
    ]
    damaged = [whole[:n] for n in lengths]
    damaged += [
        whole[:i] + bytes([whole[i] ^ 1 << rng.randrange(8)]) + whole[i + 1 :] for i in places
    ]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            again = load_run(begun)[0]
        except EnvironmentFault:
            refused += 1
        else:  # the flip was in a field that means nothing, a date for instance
            for name, p in model.named_parameters():
                assert (p.data == dict(again.named_parameters())[name].data).all(), name
    assert refused > len(lengths) + 150


def test_numbers_read_as_another_type_are_noticed(begun):
    path = begun / "checkpoint.npz"
    content = path.read_bytes()
    assert content.count(b"'<f4'") > 10
    path.write_bytes(
        content.replace(b"'<f4'", b"'<f2'", 1)
    )  # the right shape, half of the bytes: NumPy reads it gladly
    with pytest.raises(EnvironmentFault, match="checksum"):
        load_run(begun)


CONFIGS = {
    "empty": "",
    "cut": '{"kind": "minqkv run", "conf',
    "not UTF-8": b'{"kind": "\xff"}',
    "a list": "[]",
    "too deep": "[" * 100_000,
    "of another kind": '{"kind": "minqkv study run"}',
    "without a configuration": '{"kind": "minqkv run"}',
}
CHANGES = {
    "a field more": {"dropconnect": 0.5},
    "an unknown task": {"task": "revers"},
    "an unknown protocol": {"protocol": "2030"},
    "a list for a name": {"protocol": [1]},
    "a word for a number": {"n_embd": "wide"},
    "a fraction of a layer": {"n_layer": 1.5},
    "heads that do not divide": {"n_head": 3},
    "a word for a rate": {"lr": "fast"},
}


@pytest.mark.parametrize("what", [*CONFIGS, *CHANGES, "another version"])
def test_a_configuration_that_is_none(what, begun, cli):
    stored = files.read_json(begun / "config.json")
    if what in CHANGES:
        text = json.dumps({**stored, "config": {**stored["config"], **CHANGES[what]}})
    elif what == "another version":
        del stored["config"]["rope_value"]
        text = json.dumps({**stored, "version": "0.0.9"})
    else:
        text = CONFIGS[what]
    (begun / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for command in (("eval", begun), ("train", "--resume", "--out", begun)):
        code, out, err = cli(*command)
        assert (code, out) == (3, ""), err
        assert "config.json" in err
        assert "Traceback" not in err
    if what == "another version":
        assert "0.0.9" in err


# ---- a full disk


@pytest.mark.parametrize(("limit", "name"), [(20_000, "checkpoint.npz"), (2_400, "metrics.jsonl")])
def test_a_file_that_may_not_grow(limit, name, begun, whole):
    before = checkpoint(begun)[0]
    code, out, err = run(
        "train",
        "--resume",
        "--out",
        begun,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (code, out) == (3, "")
    assert f"cannot write {begun / name}: File too large" in " ".join(err.split())
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert checkpoint(begun)[0] == before
    assert load_run(begun)
    assert not list(begun.glob(".*"))
    train_run(SMALL, begun, resume=True)
    assert_same_run(whole("encoder"), begun)


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=88k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        code, out, err = run("train", *FLAGS, "--steps", 120, "--out", disk / "run")
        assert (code, out) == (3, "")
        assert (
            f"cannot write {disk / 'run' / 'checkpoint.npz'}: No space left on device"
            in " ".join(err.split())
        )
        assert "--out" in err
        assert "Traceback" not in err
        assert "Exception ignored" not in err
        assert checkpoint(disk / "run")[0]["step"] == 12
        assert load_run(disk / "run")
        assert not list((disk / "run").glob(".*"))
        (disk / "filler").write_bytes(b"x" * 4096 * (shutil.disk_usage(disk).free // 4096))
        code, _, err = run("train", *FLAGS, "--out", disk / "another")
        assert code == 3
        assert "No space left on device" in " ".join(err.split())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = cli("train", *FLAGS, "--steps", 2, "--out", "file/run")
    assert code == 3
    assert "cannot write file/run/config.json: Not a directory" in " ".join(err.split())


# ---- divergence


@pytest.mark.parametrize(("steps", "where"), [(20, "step 1 "), (1, "the loss after step 0 is nan")])
def test_divergence_names_the_step(steps, where, cli, tmp_path):
    code, out, err = cli("train", *FLAGS, "--steps", steps, "--lr", "1e30", "--out", "run")
    assert (code, out) == (4, "")
    assert where in err
    assert "--lr" in err
    assert "Warning" not in err
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(Diverged):
        train_run(replace(SMALL, lr=1e30, steps=steps))


# ---- what a run depends on


def test_the_seed_decides_and_nothing_else():
    config = replace(SMALL, steps=20)
    (a, result_a), (b, result_b), (c, _) = (
        train_run(config),
        train_run(config),
        train_run(replace(config, seed=1)),
    )
    states = [model.state_dict() for model in (a, b, c)]
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])
    assert (result_a["accuracy"], result_a["loss"]) == (result_b["accuracy"], result_b["loss"])


@pytest.mark.parametrize("protocol", RECIPES)
def test_a_batch_depends_on_its_step_alone(protocol):
    config = RunConfig("copy", protocol=protocol, seq_len=2)
    x = np.arange(config.recipe.n_train)[:, None]
    batches, fresh = Batches(x, x, config.recipe, 3), Batches(x, x, config.recipe, 3)
    per_epoch = config.recipe.steps_per_epoch
    epochs = [
        [batches(step)[0][:, 0] for step in range(e * per_epoch, (e + 1) * per_epoch)]
        for e in range(2)
    ]
    for step in (per_epoch, 0, 2 * per_epoch - 1, 5):  # in any order
        assert (fresh(step)[0][:, 0] == epochs[step // per_epoch][step % per_epoch]).all()
    first, second = (np.concatenate(rows) for rows in epochs)
    kept = 390 * 128 if protocol == "2023" else 10_000
    assert (
        len(first) == len(set(first)) == len(second) == kept
    )  # every row once, the ragged end as the protocol has it
    assert (first != second).any()
    assert (Batches(x, x, config.recipe, 4)(0)[0] != fresh(0)[0]).any()


def test_what_is_left_to_the_protocol_is_filled_in_on_demand():
    asked = RunConfig("reverse", "Q≠K=V", protocol="2023")
    assert (asked.variant, asked.position, asked.steps, asked.lr) == ("Q≠K=V", None, None, None)
    full = asked.resolved()
    assert (full.variant, full.position, full.steps, full.lr) == ("q-k=v", "sinusoidal", 780, 1e-3)
    assert full.resolved() == full
    assert replace(asked, steps=3, lr=0.5).resolved() == replace(full, steps=3, lr=0.5)
    assert RunConfig("reverse", form="causal").resolved().position == "learned"


def test_the_learning_rate_is_that_of_the_paper():
    new, old = (RunConfig("reverse", protocol=year).resolved() for year in ("2026", "2023"))
    assert (new.steps, old.steps) == (158, 780)
    for config in (new, old):
        rate = config.schedule()
        for step in range(config.steps):
            if config is old:
                expected = 1e-3 * min(1, step / 5) * 0.5 * (1 + math.cos(math.pi * step / 780))
            elif step < 7:
                expected = 1e-3 * (step + 1) / 7
            else:
                expected = 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 7) / 151))
            assert rate(step) == pytest.approx(expected, rel=1e-12)


def test_metrics_hold_the_rate_and_the_loss_of_each_step(whole):
    folder = whole("encoder")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rate = SMALL.schedule()
    assert [line["lr"] for line in lines] == [rate(step) for step in range(120)]
    assert 2 < lines[0]["loss"] < 3
