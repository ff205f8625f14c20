"""Training: the same bits however often it is killed, a run folder that is never half written,
refusals that say why.
"""

import errno
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
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from commands import run, start, wait_until

from minqkv import runs
from minqkv.runs import RunConfig, config_from, configure, load_config, load_run, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import Diverged, EnvironmentFault, UsageError
from minqkv.tasks.rules import SPLITS
from minqkv.tasks.synthetic import TRAINING

SIZE = {"seq_len": 6, "n_embd": 16, "n_layer": 1, "n_head": 2, "steps": 120}
SMALL = configure("reverse", "q-k=v", **SIZE)
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
    "dropout": (configure("reverse", "q-k=v", protocol="2023", **SIZE), ("--protocol", "2023")),
    "causal": (configure("reverse", "q-k=v", form="causal", **SIZE), ("--form", "causal")),
    "watched": (SMALL.change(watch=25), ("--set", "watch=25")),
}


def losses(folder):
    """Steps and losses of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def checkpoint(folder, name="checkpoint.npz"):
    """Meta and arrays of a run folder's checkpoint."""
    return files.read_arrays(folder / name, "minqkv checkpoint")


def assert_same_arrays(a, b):
    """Two checkpoints with the same bits."""
    (meta_a, arrays_a), (meta_b, arrays_b) = a, b
    assert meta_a == meta_b
    assert arrays_a.keys() == arrays_b.keys()
    for name, array in arrays_a.items():
        assert array.tobytes() == arrays_b[name].tobytes(), name


def assert_same_run(a, b):
    """The same bits in parameters and optimiser, and the same metrics, each step once."""
    for name in ("checkpoint.npz", "best.npz"):
        assert (a / name).exists() == (b / name).exists()
        if (a / name).exists():
            assert_same_arrays(checkpoint(a, name), checkpoint(b, name))
    assert losses(a) == losses(b)
    assert [step for step, _ in losses(a)] == list(range(checkpoint(a)[0]["step"]))
    result_a, result_b = (files.read_json(folder / "result.json") for folder in (a, b))
    for result in (result_a, result_b):
        assert result.pop("seconds") > 0
        assert len(result.pop("check")) == 8  # of the seconds, too
    assert result_a == result_b


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

    def progress(step):
        if step.done == steps:
            raise Stopped

    with pytest.raises(Stopped):
        train_run(config, folder, progress=progress)
    return folder


class Stopped(BaseException):
    """What a crash does to the code it hits."""


# ---- killed and resumed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
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
    few = replace(TRAINING["2026"], n_train=640)
    monkeypatch.setitem(TRAINING, "2026", few)  # the moments are the same with fewer examples
    config, plain = SMALL.change(steps=5, n_test=100), tmp_path / "plain"
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
    assert load_run(folder)[1].recipe.steps == 20000


def test_a_signal_between_a_save_and_the_end_of_its_step_is_heard_a_step_later(tmp_path):
    def progress(step):
        if step.done == 5:
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
    with pytest.raises(EnvironmentFault, match="has 0 lines, but the checkpoint is from step 24"):
        train_run(SMALL, begun, resume=True)


def test_a_long_time_without_a_checkpoint_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY_SECONDS", -1)
    assert checkpoint(stop_after(SMALL, tmp_path / "run", 5))[0]["step"] == 5


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    train_run(
        SMALL.change(steps=2), progress=lambda *_: seen.append(signal.getsignal(signal.SIGTERM))
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
    assert "there is already a run in run" in err
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
        "--set",
        "hide_self=true",
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
    assert load_config(tmp_path / "runs" / "reverse-q-k=v-s0").task.n_embd == 16


def test_resume_where_there_is_no_run(cli):
    code, _, err = cli("train", "--resume", "--out", "nowhere")
    assert code == 2
    assert "there is no run to continue in nowhere" in err
    assert (
        cli("train", "--resume", *FLAGS, "--steps", 2, "--out", "new")[0] == 0
    )  # with a task it may as well begin


def test_a_checkpoint_without_its_configuration_is_not_built_upon(begun):
    (begun / "config.json").unlink()
    with pytest.raises(UsageError, match="there is already a run in"):
        train_run(SMALL, begun)
    with pytest.raises(EnvironmentFault, match=r"no config\.json"):
        train_run(SMALL, begun, resume=True)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"steps": 0}, {"seed": -1}],
)
def test_impossible_numbers_are_refused(change):
    with pytest.raises(UsageError, match=str(next(iter(change.values())))):
        SMALL.change(**change)


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
        lambda f: train_run(SMALL.change(n_embd=8, steps=1), f.parent / "other")
        and shutil.copy(f.parent / "other" / "checkpoint.npz", f),
        "belong to different configurations"),
    "of a stranger's making": (
        lambda f: files.write_arrays(
            f / "checkpoint.npz", "minqkv checkpoint", {}, {"a": np.ones(3)}),
        "belong to different configurations"),
    "of this run, but of other arrays": (
        lambda f: files.write_arrays(f / "checkpoint.npz", "minqkv checkpoint",
            checkpoint(f)[0], {"model/a": np.ones(3)}),
        "from another model"),
    "without its steps": (
        lambda f: files.write_arrays(f / "checkpoint.npz", "minqkv checkpoint",
            {"config": SMALL.hash}, checkpoint(f)[1]),
        "from another model"),
    "a folder": (lambda f: (f / "checkpoint.npz").unlink() or (f / "checkpoint.npz").mkdir(),
        "checkpoint.npz: it is not a plain file"),
    "a FIFO": (lambda f: (f / "checkpoint.npz").unlink() or os.mkfifo(f / "checkpoint.npz"),
        "checkpoint.npz: it is not a plain file"),
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
        assert "delete" not in err
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
    "an unknown task": {"task": {"name": "revers"}},
    "an unknown protocol": {"task": {"protocol": "2030"}},
    "a list for a name": {"task": {"protocol": [1]}},
    "a word for a number": {"task": {"n_embd": "wide"}},
    "a fraction of a layer": {"task": {"n_layer": 1.5}},
    "heads that do not divide": {"task": {"n_head": 3}},
    "a word for a rate": {"recipe": {"lr": "fast"}},
    "a setting that is none": {"recipe": {"momentum": 0.9}},
    "a part that is no object": {"recipe": 3},
    "numbers that are true": {"seed": True},
}


def _merged(values, changes):
    """Nested dictionaries, the second into a copy of the first."""
    if not (isinstance(values, dict) and isinstance(changes, dict)):
        return changes
    return {**values, **{name: _merged(values.get(name), new) for name, new in changes.items()}}


def _refused_everywhere(cli, folder, says=""):
    for command in (("eval", folder), ("train", "--resume", "--out", folder)):
        code, out, err = cli(*command)
        assert (code, out) == (3, ""), err
        assert says in " ".join(err.split())
        assert "Traceback" not in err
        assert "delete" not in err


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_that_is_none(what, begun, cli):
    text = CONFIGS[what]
    (begun / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    _refused_everywhere(cli, begun, "config.json")


@pytest.mark.parametrize("what", CHANGES)
def test_a_configuration_of_another_version(what, begun, cli):
    """As it was written, but not what this version can read; then changed by hand."""
    stored = files.read_sealed(begun / "config.json")
    values = _merged(stored["config"], CHANGES[what])
    other = {"version": "0.0.9", "hash": runs.hash_of(values), "config": values}
    files.write_json(begun / "config.json", files.sealed(stored | other))
    _refused_everywhere(cli, begun, "cannot be read by this version of minqkv")
    assert "it was written by 0.0.9" in cli("eval", begun)[2]
    files.write_json(begun / "config.json", files.sealed(stored | {"config": values}))
    _refused_everywhere(cli, begun, "was changed after it was written, or comes from a newer")


@pytest.mark.parametrize("form", [1, 3, "2", None])
def test_a_folder_of_another_format(form, begun, cli):
    stored = files.read_sealed(begun / "config.json")
    files.write_json(begun / "config.json", files.sealed(stored | {"format": form}))
    _refused_everywhere(cli, begun, "comes from a newer version of minqkv")


def test_a_configuration_comes_back_as_it_was(begun):
    for config, _ in KINDS.values():
        assert config_from(json.loads(json.dumps(asdict(config)))) == config
        assert config_from(asdict(config)).hash == config.hash
    assert load_config(begun) == SMALL
    assert load_config(begun).hash == SMALL.hash == files.read_json(begun / "config.json")["hash"]
    hashes = [SMALL.change(**change).hash for change in ({"seed": 1}, {"n_embd": 8}, {"lr": 0.5})]
    assert len({SMALL.hash, *hashes}) == 4


# ---- files of one run, bound together


def flipped(content, rng, n):
    """n copies, in each of which one bit is another."""
    for place in rng.choices(range(len(content)), k=n):
        yield (
            content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        )


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(whole("encoder"), tmp_path / "ended")


def test_a_bit_of_the_configuration_cannot_change(begun):
    path, whole = begun / "config.json", (begun / "config.json").read_bytes()
    stored, refused = files.read_sealed(path), 0
    for content in flipped(whole, random.Random(0), 600):
        path.write_bytes(content)
        try:
            assert load_config(begun) == SMALL
            assert json.loads(content).items() >= stored.items()  # a blank, or the key "check"
        except EnvironmentFault:
            refused += 1
    assert refused > 550
    stored["config"]["seed"] = 4
    files.write_json(path, stored)
    with pytest.raises(EnvironmentFault, match="was changed after it was written"):
        train_run(SMALL.change(seed=4), begun, resume=True)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Folders of finished runs that differ from SMALL by what their name says."""
    folder = tmp_path_factory.mktemp("strangers")
    for name, change in (("seed", {"seed": 1}), ("lr", {"lr": 2e-3})):
        train_run(SMALL.change(**change), folder / name)
    return folder


@pytest.mark.parametrize("other", ["seed", "lr"])
@pytest.mark.parametrize("name", ["config.json", "checkpoint.npz", "metrics.jsonl", "result.json"])
def test_files_of_another_run_are_refused(name, other, ended, strangers, cli):
    """The models fit each other: nothing but what binds the files can tell them apart."""
    if name == "metrics.jsonl":
        (ended / "result.json").unlink()  # of a finished run only the score and weights are read
    shutil.copy(strangers / other / name, ended)
    before = {path.name: path.read_bytes() for path in ended.iterdir()}
    code, out, err = cli("train", "--resume", "--out", ended)
    assert (code, out) == (3, "")
    says = {
        "config.json": "and the config.json next to it belong to different",
        "checkpoint.npz": "and the config.json next to it belong to different",
        "metrics.jsonl": "is good up to step 0; line 1 is damaged, or of another run",
        "result.json": "result.json was changed, or belongs to a different run",
    }[name]
    assert says in " ".join(err.split())
    assert "delete" not in err
    assert {path.name: path.read_bytes() for path in ended.iterdir()} == before
    if name in ("config.json", "checkpoint.npz"):
        assert cli("eval", ended)[0] == 3


def test_a_checkpoint_of_the_same_configuration_but_another_run(begun, whole):
    """As on two machines, whose losses differ in the last bit: both files are good, but not
    together.
    """
    path = begun / "metrics.jsonl"
    folder = runs.RunFolder(begun, SMALL, resume=True)
    folder.check = runs._first_check(SMALL.hash)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("")
    with folder:
        for line in lines:
            del line["check"]
            folder.record(line | {"loss": line["loss"] + 1e-7})
    with pytest.raises(EnvironmentFault, match=r"were written by different runs"):
        train_run(SMALL, begun, resume=True)


def _foreign(lines):
    return [*lines[:5], b'{"step": 5, "loss": 1.0, "lr": 0.1}\n', *lines[6:]]


DAMAGE = {  # to the lines of the metrics, and the line that is named, if one is
    "one missing": (lambda lines: lines[:3] + lines[4:], 4),
    "the first missing": (lambda lines: lines[1:], 1),
    "two exchanged": (lambda lines: [*lines[:7], lines[8], lines[7], *lines[9:]], 8),
    "one twice": (lambda lines: [*lines[:7], lines[6], *lines[7:]], 8),
    "one that does not belong": (_foreign, 6),
    "one in between": (lambda lines: [*lines[:5], b"{}\n", *lines[5:]], 6),
    "a blank one": (lambda lines: [*lines[:5], b"\n", *lines[5:]], 6),
    "a torn one": (lambda lines: [*lines[:9], lines[9][:20]], 10),
    "no objects": (lambda lines: [b"3\n"] * 30, 1),
    "a deep one": (lambda lines: [b"[" * 100_000 + b"\n", *lines], 1),
    "too few": (lambda lines: lines[:20], None),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_metrics_are_refused(what, begun, cli):
    change, number = DAMAGE[what]
    path, checkpoint = begun / "metrics.jsonl", (begun / "checkpoint.npz").read_bytes()
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(True))))
    before = path.read_bytes()
    code, out, err = cli("train", "--resume", "--out", begun)
    said = " ".join(err.split())
    assert (code, out) == (3, "")
    if number:
        assert f"is good up to step {number - 1}; line {number} is damaged" in said
    else:
        assert "has 20 lines, but the checkpoint is from step 24" in said
    assert "delete" not in said
    assert path.read_bytes() == before
    assert (begun / "checkpoint.npz").read_bytes() == checkpoint


def test_a_bit_of_the_metrics_cannot_change(begun, monkeypatch):
    """Of the lines that the checkpoint has seen; what follows them is written again."""
    path, real = begun / "metrics.jsonl", files.replacing
    lines = path.read_bytes().splitlines(True)
    whole, seen = b"".join(lines[:24]), [json.loads(line) for line in lines[:24]]
    model = SMALL.build()
    monkeypatch.setattr(files, "replacing", lambda *_: real(begun / "copy"))
    refused = 0
    for content in flipped(whole, random.Random(0), 400):
        path.write_bytes(content)
        try:
            runs.RunFolder(begun, SMALL, resume=True).restore(model, None)
            assert [json.loads(line) for line in content.splitlines()] == seen
        except EnvironmentFault:
            refused += 1
    assert refused > 390


def test_a_bit_of_the_result_cannot_change(ended):
    path = ended / "result.json"
    whole, refused = path.read_bytes(), 0
    for content in flipped(whole, random.Random(0), 100):
        path.write_bytes(content)
        try:
            train_run(SMALL, ended, resume=True)
            assert json.loads(content) == json.loads(whole)
        except EnvironmentFault:
            refused += 1
    assert refused > 95


# ---- two processes, and folders that go away


def test_two_processes_on_one_folder(tmp_path, cli):
    """The second is refused and names the first; once that one is dead, the folder is free."""
    folder = tmp_path / "run"
    child = start("train", *FLAGS, "--steps", 20000, "--out", folder, stderr=subprocess.DEVNULL)
    _wait_for_steps(child, folder, 2500)  # there is a checkpoint after a tenth
    code, out, err = cli("train", "--resume", "--out", folder)
    assert (code, out) == (3, "")
    assert f"this run is locked by pid {child.pid} on" in " ".join(err.split())
    assert cli("eval", folder)[0] == 0  # to read is allowed
    child.send_signal(signal.SIGKILL)
    child.wait()
    done, seen = checkpoint(folder)[0]["step"], []

    def progress(step):
        seen.append(step.done)
        if step.done == done + 3:
            raise Stopped

    with pytest.raises(Stopped):
        train_run(load_config(folder), folder, resume=True, progress=progress)
    assert seen == [done + 1, done + 2, done + 3]
    assert not (folder / ".lock").exists()


def test_a_folder_that_is_in_use_is_refused_before_anything_changes(begun):
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    with runs.locked(begun), pytest.raises(EnvironmentFault, match="this run is locked by pid"):
        train_run(SMALL, begun, resume=True)
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == before


@pytest.mark.parametrize("how", ["removed", "emptied", "moved"])
def test_a_folder_that_goes_away_is_noticed_at_the_next_save(how, tmp_path):
    folder, steps = tmp_path / "run", []

    def progress(step):
        steps.append(step.done)
        if step.done == 5 and how == "moved":
            folder.rename(tmp_path / "elsewhere")
        elif step.done == 5:
            shutil.rmtree(folder)
            if how == "emptied":
                folder.mkdir()

    with pytest.raises(EnvironmentFault, match="was removed, emptied or moved while the run was"):
        train_run(SMALL, folder, progress=progress)
    assert steps[-1] == 11  # the first save is due after 12
    assert not folder.exists() or not [*folder.iterdir()]


def test_a_finished_run_is_shown_without_the_right_to_write(ended, cli, monkeypatch):
    """Permissions do not bind root, so nothing may even try."""
    accuracy = files.read_json(ended / "result.json")["accuracy"]
    before = {path.name: path.stat().st_mtime_ns for path in ended.iterdir()}
    for name in ("replacing", "make_folder"):
        monkeypatch.setattr(files, name, lambda path, *_: pytest.fail(f"writes {path}"))
    monkeypatch.setattr(runs, "locked", lambda path: pytest.fail(f"locks {path}"))
    ended.chmod(0o500)
    try:
        code, out, _ = cli("train", "--resume", "--out", ended)
    finally:
        ended.chmod(0o700)
    assert code == 0
    assert f"accuracy {accuracy:.4f} after 120 steps" in " ".join(out.split())
    assert {path.name: path.stat().st_mtime_ns for path in ended.iterdir()} == before


def _denied(path, *args, real=open, **kwargs):
    if str(path).endswith("checkpoint.npz"):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return real(path, *args, **kwargs)


def test_a_file_that_may_not_be_read_is_not_called_corrupt(begun, cli, monkeypatch):
    monkeypatch.setattr("builtins.open", _denied)
    _refused_everywhere(cli, begun, "checkpoint.npz: Permission denied")
    assert "corrupt" not in cli("eval", begun)[2]


def test_too_little_memory_is_not_called_a_corrupt_file(begun, cli, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError("Unable to allocate 1 GiB")

    monkeypatch.setattr(np, "load", full)
    _refused_everywhere(cli, begun, "out of memory: Unable to allocate 1 GiB")
    assert "corrupt" not in cli("eval", begun)[2]


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
        assert "free some space" in err
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
    assert "cannot write file/run: Not a directory" in " ".join(err.split())


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
        train_run(SMALL.change(lr=1e30, steps=steps))


# ---- what a run depends on


def test_the_seed_decides_and_nothing_else():
    config = SMALL.change(steps=20)
    (a, result_a), (b, result_b), (c, _) = (
        train_run(config),
        train_run(config),
        train_run(config.change(seed=1)),
    )
    states = [model.state_dict() for model in (a, b, c)]
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])
    assert (result_a["accuracy"], result_a["loss"]) == (result_b["accuracy"], result_b["loss"])


@pytest.mark.parametrize("protocol", TRAINING)
def test_a_batch_depends_on_its_step_alone(protocol):
    task = configure("copy", protocol=protocol, seq_len=12).task
    per_epoch = TRAINING[protocol].steps_per_epoch(128)

    def rows(step, seed=3):
        return [row.tobytes() for row in task.batch(seed, step, 128)[0]]

    epochs = [[rows(e * per_epoch + i) for i in range(per_epoch)] for e in range(2)]
    for step in (per_epoch, 0, 2 * per_epoch - 1, 5):  # in any order
        assert rows(step) == epochs[step // per_epoch][step % per_epoch]
    first, second = ([row for batch in epoch for row in batch] for epoch in epochs)
    x, _ = task.draw(3, "train", TRAINING[protocol].n_train)
    examples, kept = {row.tobytes() for row in x}, 390 * 128 if protocol == "2023" else 10_000
    assert len(first) == len(set(first)) == len(second) == kept  # the ragged end as it has it
    assert set(first) <= examples >= set(second)
    assert first != second
    assert not set(rows(0, seed=4)) & examples


def test_what_is_left_to_the_protocol_is_filled_in():
    full = configure("reverse", "Q≠K=V", protocol="2023")
    found = (full.variant, full.task.position, full.recipe.steps, full.recipe.lr, full.task.n_test)
    assert found == ("q-k=v", "sinusoidal", 780, 1e-3, 10_000)
    assert full.change() == full
    assert configure("reverse", "q-k=v", protocol="2023", steps=3, lr=0.5) == full.change(
        steps=3, lr=0.5
    )
    assert configure("reverse", form="causal").task.position == "learned"
    assert configure("reverse", steps=None, lr=None, head_dim=None) == configure("reverse")


def test_values_go_where_they_belong():
    config = configure(
        "sort", "gqa-2", seq_len=8, n_layer=3, lr=0.5, batch=7, seed=5, split="train"
    )
    assert (config.task.seq_len, config.task.n_layer) == (8, 3)
    assert (config.recipe.lr, config.recipe.batch) == (0.5, 7)
    assert (config.seed, config.split, config.threads) == (5, "train", 1)
    changed = config.change(seq_len=4, batch=9, seed=6, variant="mqa")
    assert (changed.task.seq_len, changed.recipe.batch, changed.seed) == (4, 9, 6)
    assert (changed.variant, changed.task.n_layer, changed.recipe.lr) == ("mqa", 3, 0.5)
    for call in (lambda **given: configure("sort", **given), config.change):
        with pytest.raises(UsageError, match="unknown setting of task sort 'n_layers'") as caught:
            call(n_layers=2)
        assert "n_layer" in caught.value.hint
    with pytest.raises(UsageError, match="unknown setting of task sort 'pairs'"):
        config.change(pairs=2)


def test_a_warm_up_that_is_a_share_follows_the_steps():
    short, long = configure("sort"), configure("sort").change(steps=2000)
    assert (short.recipe.warmup, long.recipe.warmup) == (7, 100)
    assert long == configure("sort", steps=2000)
    assert configure("sort", steps=2000, warmup=3).recipe.warmup == 3
    assert configure("pairs").change(steps=99).recipe.warmup == 200


def test_what_follows_from_the_steps_unless_given():
    """Warm-up and watch are those of the task's own recipe for so many steps."""
    text = {"digest": "0" * 12, "vocab_size": 66}
    config = configure("text", **text, steps=2500)
    for steps in (100, 2500):
        found = config.change(steps=steps)
        assert found == configure("text", **text, steps=steps)
        assert (found.recipe.warmup, found.recipe.watch) == (steps // 20, steps // 10)
    assert config.change(steps=100, watch=7).recipe.watch == 7
    given = config.change(watch=3, warmup=9)
    assert given.change(steps=2500) == given
    assert (given.change(steps=100).recipe.watch, given.change(steps=100).recipe.warmup) == (3, 9)


WRONG_TYPES = [
    {"seq_len": 4.0},
    {"n_layer": True},
    {"lr": "fast"},
    {"position": 3},
    {"hide_self": 1},
    {"steps": 2.5},
    {"seed": "0"},
    {"threads": 0},
    {"split": "tests"},
    {"batch": 0},
    {"clip": math.nan},
    {"n_test": 0},
]


@pytest.mark.parametrize("given", WRONG_TYPES, ids=str)
def test_values_of_another_type_are_refused(given):
    (name,) = given
    with pytest.raises(UsageError, match=name):
        configure("copy", **given)
    with pytest.raises(UsageError, match=name):
        SMALL.change(**given)


def test_what_was_watched_is_in_the_result(whole):
    folder = whole("watched")
    result = files.read_json(folder / "result.json")
    assert [step for step, _ in result["curve"]] == [25, 50, 75, 100]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    watched = [[line["step"] + 1, line["validation"]] for line in lines if "validation" in line]
    assert result["curve"] == watched
    assert result["reached"] is None  # .9 is far for this model
    assert losses(folder) == losses(whole("encoder"))  # to look changes nothing
    model, config = load_run(folder)
    last = config.task.score(model, "validation", 0)
    assert last["accuracy"] != config.task.score(model, "test", 0)["accuracy"]


def test_reached_is_the_first_score_that_is_good_enough():
    curve = [(10, 0.2), (20, 0.9), (30, 0.8), (40, 1.0)]
    assert runs._reached(SMALL.task, curve) == 20
    assert runs._reached(SMALL.task, curve[:1]) is None

    class Lower:
        better, learned = "lower", 0.5

    assert runs._reached(Lower, curve) == 10
    Lower.learned = None
    assert runs._reached(Lower, curve) is None


def test_the_split_decides_what_a_run_is_scored_on():
    found = {split: train_run(SMALL.change(steps=9, split=split))[1] for split in SPLITS}
    assert len({result["loss"] for result in found.values()}) == 3
    assert SMALL.split == "test"


def test_the_learning_rate_is_that_of_the_paper():
    new, old = (configure("reverse", protocol=year) for year in ("2026", "2023"))
    assert (new.recipe.steps, old.recipe.steps) == (158, 780)
    for config in (new, old):
        rate = config.schedule()
        for step in range(config.recipe.steps):
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_metrics_that_are_a_fifo_are_not_waited_for(begun):
    config = load_config(begun)
    (begun / "metrics.jsonl").unlink()
    os.mkfifo(begun / "metrics.jsonl")
    with pytest.raises(EnvironmentFault, match="not a plain file"):
        train_run(config, begun, resume=True)


def test_a_finished_run_without_its_checkpoint_keeps_its_result(tmp_path):
    config = configure("sort", seq_len=4, n_embd=8, n_layer=1, n_head=2, steps=2)
    train_run(config, tmp_path)
    kept = (tmp_path / "result.json").read_bytes()
    (tmp_path / "checkpoint.npz").unlink()
    with pytest.raises(
        EnvironmentFault, match="does not exist, though this run has ended"
    ) as error:
        train_run(config, tmp_path, resume=True)
    assert "--resume" not in error.value.hint
    assert (tmp_path / "result.json").read_bytes() == kept


def test_a_link_is_followed_and_permissions_are_kept(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_plain_file_is_written_to_not_replaced(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_text(fifo, "hello")
        assert os.read(reader, 100) == b"hello"
    finally:
        os.close(reader)
    assert fifo.is_fifo()
    with pytest.raises(EnvironmentFault, match="directory"):
        files.write_text(tmp_path, "hello")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]
