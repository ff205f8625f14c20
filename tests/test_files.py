"""Files as they are found in practice: not readable, not writable, of another kind, gone, in use,
from another editor. Each is told as what it is, and what may be whole is left alone.
"""

import codecs
import errno
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from records import TINY

from minqkv import caches, runs
from minqkv.cli import generate
from minqkv.models import GPT, GPTConfig
from minqkv.optim import SGD, Adam
from minqkv.runs import configure, load_run, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import Diverged, EnvironmentFault, UsageError
from minqkv.runtime.locks import locked
from minqkv.study.execute import Records, run_study
from minqkv.study.stored import read_study
from minqkv.study.summary import as_results, write_results
from minqkv.tasks import corpus, documents, downloads, tokenizers
from minqkv.teach import training
from minqkv.teach.lessons import course
from minqkv.teach.progress import Progress
from minqkv.train import loss_and_gradients, token_loss

SMALL = configure("pairs", "q-k=v", steps=6, watch=2, **TINY)
needs_fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run."""
    train_run(SMALL, folder := tmp_path_factory.mktemp("original") / "run")
    return folder


@pytest.fixture
def ended(original, tmp_path):
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "ended")


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A finished run that differs in its seed alone."""
    train_run(SMALL.change(seed=1), folder := tmp_path_factory.mktemp("strange") / "run")
    return folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The folder of a finished study of two runs, and the arguments of its command."""
    out = tmp_path_factory.mktemp("studied") / "study"
    sets = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    command = ["study", "--tasks", "pairs", "--variants", "qkv,q-k=v", "--seeds", 1, "--steps", 2]
    command += ["--n-layer", 1, *sets, "--jobs", 1, "--out"]
    process = [sys.executable, "-m", "minqkv", *map(str, command), str(out)]
    done = subprocess.run(process, capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stderr
    return out, command


@pytest.fixture
def study(studied, tmp_path):
    """A copy of it, and the command for the copy."""
    shutil.copytree(studied[0], tmp_path / "study")
    return tmp_path / "study", [*studied[1], tmp_path / "study"]


def _env():
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": paths}


def failing(monkeypatch, name, number):
    """Let opening files of this name, for reading or writing, fail with an errno."""
    real = open

    def fail(path, *args, **kwargs):
        if not isinstance(path, int) and Path(path).name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", fail)


# ---- one fault told as another


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_record_that_cannot_be_read_is_not_run_again(number, study, monkeypatch):
    out, _ = study
    path = min((out / "runs").iterdir())
    failing(monkeypatch, path.name, number)
    (out / "results.json").unlink()
    with pytest.raises(EnvironmentFault, match=f"cannot read {path}: {os.strerror(number)}"):
        Records(out)
    with pytest.raises(EnvironmentFault, match="cannot read"):
        read_study(out)


def test_records_in_a_folder_that_cannot_be_listed_are_not_run_again(study, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(EnvironmentFault, match=r"cannot read .*runs: Permission denied"):
        Records(study[0])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_a_prepared_text_that_cannot_be_read_is_not_called_damaged(number, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 50)
    folder = corpus.prepare(str(tmp_path / "text.txt"), "bytes").folder
    for name in ("corpus.json", "tokenizer.json", "train-00000.tokens"):
        with monkeypatch.context() as patch:
            failing(patch, name, number)
            with pytest.raises(EnvironmentFault, match=os.strerror(number)) as caught:
                corpus.Corpus(folder)
        assert "again" not in (caught.value.hint or "")


def _prompt(folder):
    """A saved prompt, and its model."""
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=4))
    cache = model.new_cache(1)
    model([[3, 1, 4]], cache=cache)
    caches.save(cache, folder / "prompt.npz", model)
    return folder / "prompt.npz", model


def test_a_saved_prompt_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path, model = _prompt(tmp_path)
    failing(monkeypatch, "prompt.npz", errno.EACCES)
    with pytest.raises(EnvironmentFault, match=r"cannot read .*prompt\.npz: Permission denied"):
        caches.load(path, model)


@pytest.mark.parametrize("content", [b"hello", pickle.dumps({}), b""])
def test_nobody_is_advised_to_unpickle(content, ended):
    (ended / "checkpoint.npz").write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught:
        load_run(ended)
    assert "unsafe" not in f"{caught.value} {caught.value.hint}"


# ---- files of one run that are not bound together


@pytest.mark.parametrize("name", ["best.npz", "metrics.jsonl", "config.json", "result.json"])
def test_a_report_refuses_files_of_another_run(name, ended, strange):
    shutil.copy(strange / name, ended)
    says = {
        "best.npz": "best.npz and the config.json next to it belong",
        "metrics.jsonl": "line 1 is damaged, or of another run",
        "config.json": "checkpoint.npz and the config.json next to it belong",
        "result.json": "result.json was changed, or belongs to a different run",
    }[name]
    with pytest.raises(EnvironmentFault, match=says):
        load_run(ended, best=True) if name == "best.npz" else runs.read_run(ended)


def test_a_run_that_has_ended_is_not_shown_beside_foreign_metrics(ended, strange):
    with open(ended / "metrics.jsonl", "a") as file:
        file.write((strange / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(EnvironmentFault, match="is good up to step"):
        train_run(SMALL, ended, resume=True)


def test_an_earlier_checkpoint_of_a_run_that_has_ended(ended, tmp_path):
    """Both files are of this run, and whole."""

    def stop(step):
        if step.done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train_run(SMALL, tmp_path / "begun", progress=stop)
    weights = (ended / "checkpoint.npz").read_bytes()
    shutil.copy(tmp_path / "begun" / "checkpoint.npz", ended)
    for read in (load_run, runs.read_run):
        with pytest.raises(
            EnvironmentFault, match="is from step 4, but this run has ended"
        ) as error:
            read(ended)
    assert f"minqkv train --resume --out {ended}" in error.value.hint
    train_run(SMALL, ended, resume=True)  # as the hint says
    assert (ended / "checkpoint.npz").read_bytes() == weights


class Stopped(BaseException):
    """What a crash does to the code it hits."""


def test_the_version_of_a_run_is_bound_to_it(ended):
    text = (ended / "config.json").read_text()
    version = files.read_json(ended / "config.json")["version"]
    (ended / "config.json").write_text(text.replace(f'"{version}"', '"9.9.9"'))
    with pytest.raises(EnvironmentFault, match="was changed after it was written"):
        load_run(ended)


def test_results_of_another_study_than_the_plan_beside_them(study, tmp_path):
    out, _ = study
    config = SMALL.change(watch=0, seed=8)
    records = run_study([config], tmp_path / "other")
    write_results(out, as_results(records, "minqkv study", 1.0))
    with pytest.raises(EnvironmentFault, match=r"results\.json and the plan.json next to it"):
        read_study(out)


def test_records_whose_names_were_exchanged_are_still_told_apart(study):
    out, _ = study
    before = Records(out).found
    one, two = sorted((out / "runs").iterdir())
    one.rename(aside := one.with_name("aside"))
    two.rename(one)
    aside.rename(two)
    assert Records(out).found == before


# ---- files counted, never read


def test_copies_of_a_record_are_no_further_seeds(study):
    out, _ = study
    before = Records(out).found
    record = min((out / "runs").iterdir())
    for name in ("copy.json", "record.json.bak", ".record.json.swp"):
        shutil.copy(record, record.with_name(name))
    assert Records(out).found == before


def test_a_download_of_the_right_size_with_another_content(monkeypatch):
    wanted = downloads.Download("a.txt", "http://example.org", 5, "0" * 64)
    monkeypatch.setitem(downloads.DOWNLOADS, "a", wanted)
    path = downloads.place("a")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(5))
    assert not downloads.is_complete("a")
    path.unlink()


def test_the_losses_that_a_lesson_shows_are_those_of_its_run(tmp_path, monkeypatch):
    """A lesson reads the metrics of a run that it trained an hour ago."""
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "run")
    _, losses, _ = training._train(SMALL, folder)
    assert len(losses) == 6
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(True)
    for damaged, says in (
        ([*lines[:3], *lines[:3]], "good up to step 3; line 4"),
        (lines[:4], "has 4 lines, but the checkpoint is from step 6"),
        (["{\n", *lines[1:]], "good up to step 0; line 1"),
    ):
        path.write_text("".join(damaged))
        with pytest.raises(EnvironmentFault, match=says):
            training._train(SMALL, folder)


# ---- values believed because the file parses


def _rewrite(path, meta=(), arrays=()):
    """Change entries of a checkpoint, as somebody who knows the format could."""
    found = files.read_arrays(path, "minqkv checkpoint")
    files.write_arrays(path, "minqkv checkpoint", found[0] | dict(meta), found[1] | dict(arrays))


@pytest.mark.parametrize("step", ["6", 6.0, -1, True, None, [6], 10**30])
def test_a_step_that_is_none(step, ended):
    _rewrite(ended / "checkpoint.npz", {"step": step})
    with pytest.raises(EnvironmentFault):
        load_run(ended)
    (ended / "result.json").unlink()
    _rewrite(ended / "checkpoint.npz", {"step": 6, "optimizer_steps": step})
    with pytest.raises(EnvironmentFault):
        train_run(SMALL, ended, resume=True)


@pytest.mark.parametrize("dtype", ["S8", "bool", "complex64", "int32", "U4"])
def test_weights_that_are_no_real_numbers(dtype, ended):
    name, array = max(files.read_arrays(ended / "checkpoint.npz", "minqkv checkpoint")[1].items())
    _rewrite(ended / "checkpoint.npz", arrays={name: np.zeros(array.shape, dtype)})
    with pytest.raises(EnvironmentFault, match=f"{name} holds .*, not real numbers"):
        load_run(ended)


def test_weights_that_are_not_finite(ended):
    name, array = min(files.read_arrays(ended / "checkpoint.npz", "minqkv checkpoint")[1].items())
    _rewrite(ended / "checkpoint.npz", arrays={name: np.full_like(array, np.nan)})
    with pytest.raises(Diverged, match=r"the weights in .* are not finite"):
        load_run(ended)


@pytest.mark.parametrize("accuracy", [7.1, -0.1, "0.5", True, [1], 1e400])
def test_a_score_out_of_its_range_is_in_no_table(accuracy, study):
    out, _ = study
    results = json.loads((out / "results.json").read_text())
    del results["check"]  # as an earlier version wrote it
    results["cells"][0]["rows"][0]["by_seed"]["0"] = accuracy
    (out / "results.json").write_text(json.dumps(results))
    with pytest.raises(EnvironmentFault, match=r"results\.json is damaged"):
        read_study(out)


@pytest.mark.parametrize(
    "change",
    [{"seconds": float("nan")}, {"losses": [float("inf")]}, {"kind": "x"}, {"kind": None},
     {"score": {"accuracy": 1.0000001, "loss": 1.0}}, {"score": {"accuracy": 0.5, "loss": 1e400}}],
    ids=str,
)  # fmt: skip
def test_a_record_of_an_earlier_version_is_checked_too(change, study):
    out, _ = study
    path = min((out / "runs").iterdir())
    record = files.read_sealed(path)
    files.write_json(path, record | change)  # without a checksum
    assert (len(Records(out).found), Records(out).damaged) == (1, 1)
    files.write_json(path, record)
    assert (len(Records(out).found), Records(out).damaged) == (2, 0)


def test_a_result_of_0_1_0_is_checked_as_far_as_it_can_be(tmp_path):
    old = Path(__file__).parent / "data" / "0.1.0" / "encoder"
    out = shutil.copytree(old, tmp_path / "run")
    result = files.read_json(out / "result.json")
    for change in ({"accuracy": "1"}, {"accuracy": float("nan")}, {"steps": 59}, {"params": None}):
        files.write_json(out / "result.json", result | change)
        with pytest.raises(EnvironmentFault, match=r"result\.json was changed"):
            train_run(runs.load_config(out), out, resume=True)


# ---- a folder that goes away while in use


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_run_folder_that_goes_away_while_the_run_is_scored(how, tmp_path, monkeypatch):
    """After the last checkpoint."""
    folder, real = tmp_path / "run", runs.check_score

    def check_score(task, score):
        shutil.rmtree(folder)
        if how == "replaced":
            folder.mkdir()
        return real(task, score)

    monkeypatch.setattr(runs, "check_score", check_score)
    with pytest.raises(EnvironmentFault, match="was removed, emptied or moved while the run was"):
        train_run(SMALL, folder)
    assert not folder.exists() or not [*folder.iterdir()]


def test_a_study_folder_that_goes_away_is_noticed_at_the_next_record(tmp_path):
    out, configs = tmp_path / "study", [SMALL.change(watch=0, seed=seed) for seed in range(3)]
    ended = []

    def on_record(config, record, reused):
        ended.append(config)
        shutil.rmtree(out)

    with pytest.raises(EnvironmentFault, match="was removed, emptied or moved while the study was"):
        run_study(configs, out, on_record=on_record)
    assert len(ended) == 1
    assert not out.exists()


# ---- special files


@needs_fifos
def test_no_fifo_is_waited_for(study, tmp_path, monkeypatch):
    out, _ = study
    os.mkfifo(out / "runs" / "a.json")
    with pytest.raises(EnvironmentFault, match=r"cannot read .*a\.json: it is not a plain file"):
        Records(out)
    (out / "runs" / "a.json").unlink()
    for name in ("plan.json", "results.json"):
        (out / name).unlink()
        os.mkfifo(out / name)
        with pytest.raises(EnvironmentFault, match=f"{name}: it is not a plain file"):
            read_study(out)
        (out / name).unlink()
        shutil.copy(study[0] / "results.csv", out / name)
    wanted = downloads.Download("b.txt", "http://127.0.0.1:9/", 5, "0" * 64)
    monkeypatch.setitem(downloads.DOWNLOADS, "b", wanted)
    os.mkfifo(tmp_path / ".b.txt.part")
    with pytest.raises(EnvironmentFault, match=r"cannot write .*part: it is not a plain file"):
        downloads.fetch("b", out=tmp_path / "b.txt")


# ---- a progress file that cannot be read, and where nothing can be written

LESSON = course()[0]


@pytest.mark.parametrize("how", ["denied", "a folder", "a FIFO", "a dangling link"])
def test_a_progress_file_that_cannot_be_read_is_left_alone(how, tmp_path, monkeypatch):
    Progress(tmp_path).update(LESSON, step=3)
    path = tmp_path / ".minqkv" / "progress.json"
    whole = path.read_bytes()
    if how == "denied":
        failing(monkeypatch, path.name, errno.EACCES)
    else:
        path.unlink()
        make = {"a folder": path.mkdir, "a FIFO": lambda: os.mkfifo(path),
                "a dangling link": lambda: path.symlink_to(tmp_path / "nowhere")}[how]  # fmt: skip
        make()
    before, said = os.lstat(path), []
    progress = Progress(tmp_path, said.append)
    progress.update(LESSON, step=1)
    progress.update(LESSON, step=2)
    assert progress.seen(LESSON) == 2  # in this process it goes on
    (text,) = said
    assert text.startswith(f"progress is not kept: cannot read {path}: ")
    monkeypatch.undo()
    assert os.path.samestat(before, os.lstat(path))
    assert how != "denied" or path.read_bytes() == whole
    assert [entry.name for entry in path.parent.iterdir()] == ["progress.json"]
    assert not (tmp_path / "nowhere").exists()


def test_a_bit_of_the_progress_is_noticed_and_the_file_kept(tmp_path):
    Progress(tmp_path).update(LESSON, step=3)
    path, said = tmp_path / ".minqkv" / "progress.json", []
    text = path.read_text().replace('"step": 3', '"step": 7')
    path.write_text(text)
    assert Progress(tmp_path, said.append).seen(LESSON) == 0
    (aside,) = path.parent.glob("progress.unreadable-*")
    assert str(aside) in said[0]
    assert aside.read_text() == text


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be written: permissions do not bind root, so opening fails."""
    real = open

    def refuse(path, mode="r", *args, **kwargs):
        if set(mode) & set("wax+") and not str(path).startswith("/dev"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    for module in (os, Path):

        def mkdir(path, *args, **kwargs):
            if not os.path.isdir(path):
                raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(module, "mkdir", mkdir)


@pytest.mark.parametrize(
    ("command", "shows"),
    [("hint 1", "Hint 1"), ("solution 1 --spoil", "import"), ("list", " min"), ("reset 1", "over")],
)  # fmt: skip
def test_a_lesson_where_nothing_can_be_written(command, shows, cli, read_only):
    code, out, err = cli("lesson", *command.split())
    assert code == 0, err
    assert shows in out or command == "list"
    assert err.count("not kept") <= 1
    assert "--out" not in err


def test_a_learner_is_told_once_that_progress_is_not_kept(cli, read_only):
    _, _, err = cli("lesson", "hint", 1)
    (line,) = err.splitlines()
    assert line.startswith("minqkv: progress is not kept: cannot write ")
    assert line.endswith("Read-only file system")


def test_advice_names_no_option_that_the_command_lacks(cli, read_only, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    for command in (("tokenize", __file__, "--tokenizer", "bytes", "--save", "t.json"),
                    ("variants", "--svg", "a.svg"), ("lesson", "start", 1)):  # fmt: skip
        code, _, err = cli(*command)
        assert code == 3, command
        assert "Read-only file system" in err
        assert "--out" not in err


def test_an_account_without_a_home_folder(monkeypatch, cli):
    for name in ("MINQKV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    code, _, err = cli("data", "list")
    assert code == 3
    assert "set MINQKV_CACHE to a folder" in err


# ---- a finished run in a read-only folder


def test_a_finished_study_is_shown_where_nothing_can_be_written(study, cli, monkeypatch):
    out, command = study
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    _, shown, _ = cli(*command)

    def denied(path, **_):
        error = OSError(errno.EROFS, "Read-only file system")
        raise files.cannot_write(path, error) from error

    monkeypatch.setattr(files, "appended", denied)
    monkeypatch.setattr(files, "replacing", lambda path, *_: pytest.fail(f"writes {path}"))
    code, again, err = cli(*command)
    assert code == 0, err
    assert again == shown
    assert "nothing is written: cannot write" in err
    assert {path for path in out.rglob("*") if path.is_file()} == before.keys()
    shutil.rmtree(out / "runs")
    code, _, err = cli(*command)
    assert code == 3  # a run is missing
    assert "Read-only file system" in err


# ---- two processes on one folder, results that overwrite others


def test_a_folder_is_locked_under_all_its_names(tmp_path, ended):
    (ended / "result.json").unlink()
    (tmp_path / "link").symlink_to(ended)
    for name in (tmp_path / "link", ended / ".." / ended.name):
        with locked(ended), pytest.raises(EnvironmentFault, match="this run is locked by pid"):
            train_run(SMALL, name, resume=True)


def test_a_study_in_use_is_refused_and_a_dead_owner_is_succeeded(study, cli):
    out, command = study
    with locked(out, "study"):
        code, _, err = cli(*command)
    assert code == 3
    assert f"this study is locked by pid {os.getpid()} on {socket.gethostname()}" in err
    left = {"pid": 999_999_999, "host": socket.gethostname(), "since": "2026-01-02 03:04:05"}
    (out / ".lock").write_text(json.dumps(left))
    assert cli(*command)[0] == 0
    assert not (out / ".lock").exists()
    (out / ".lock").write_text(json.dumps(left | {"host": "elsewhere"}))
    code, _, err = cli(*command)
    assert code == 3
    assert "pid 999999999 on elsewhere since 2026-01-02 03:04:05" in err


def test_a_run_does_not_move_into_the_folder_of_a_study(study):
    out, _ = study
    before = sorted(out.iterdir())
    with pytest.raises(UsageError, match="is a study, not a run"):
        train_run(SMALL, out)
    assert sorted(out.iterdir()) == before


def test_a_study_replaces_damaged_results_but_no_others(study, cli):
    out, command = study
    path = out / "results.json"
    whole = json.loads(path.read_text())
    for content in (
        "{",
        json.dumps(whole | {"command": "x"}),
        '{"runs": [3]}',
        '{"runs": 3}',
        "[]",
    ):
        path.write_text(content)
        assert cli(*command)[0] == 0
        assert json.loads(path.read_text())["cells"] == whole["cells"]
    other = [3 if part == 2 else part for part in command]  # more steps
    code, _, err = cli(*other)
    assert code == 2
    assert "holds the tables of another grid" in err


# ---- replacing what is no plain file


def test_an_open_stream_is_written_to(tmp_path):
    reading, writing = os.pipe()
    files.write_text(f"/dev/fd/{writing}", "hello")  # as bash names >(command)
    assert os.read(reading, 100) == b"hello"
    os.close(reading)
    os.close(writing)
    with open(tmp_path / "page.html", "w") as page:
        inode = os.fstat(page.fileno()).st_ino
        files.write_text(f"/dev/fd/{page.fileno()}", "hello")
        assert (tmp_path / "page.html").stat().st_ino == inode  # the shell goes on writing to it
    assert (tmp_path / "page.html").read_text() == "hello"
    files.write_text("/dev/null", "hello")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_new_files_have_the_usual_permissions(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "new.txt", "hello")
        files.write_arrays(tmp_path / "new.npz", "x", {}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


# ---- a byte order mark


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_encoding(encoding, tmp_path):
    path = tmp_path / "t.json"
    value = files.sealed(tokenizers.make("chars", "abcä".encode()).as_json())
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
    assert tokenizers.make(str(path), b"").characters == "abcä"


def test_flags_in_any_encoding(cli, tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.toml").write_bytes('task = "copy"\nsteps = 3\n'.encode(encoding))
        code, out, err = cli("train", "--config", "a.toml", "--show-config")
        assert code == 0, err
        assert "steps = 3" in out


def test_a_mark_is_no_part_of_a_text(cli, tmp_path, monkeypatch):
    mark = codecs.BOM_UTF8
    (tmp_path / "b.txt").write_bytes(mark + b"abc abc")
    code, out, err = cli("tokenize", "b.txt", "--tokenizer", "chars", "--json")
    assert code == 0, err
    assert json.loads(out)["tokens"] == 7
    (tmp_path / "merges.txt").write_bytes(mark + b"#version: 0.2\r\nh e\r\nhe l\r\n")
    assert len(tokenizers.GPT2.from_merges(str(tmp_path / "merges.txt")).merges) == 2
    lines = mark + b'{"text": "one"}\r\n{"text": "two"}\r\n'
    (tmp_path / "b.jsonl").write_bytes(lines)
    assert len(list(documents.Documents(str(tmp_path / "b.jsonl")))) == 2


def test_a_mark_before_prompts(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff3 1 4\r\n1 1 2\r\n"))
    assert generate._lines_of_stdin() == ["3 1 4", "1 1 2"]


# ---- half a step


@pytest.mark.parametrize("make", [Adam, SGD])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_inside_a_step_waits_until_it_is_whole(make, number, monkeypatch):
    def model_and_optimizer():
        model = GPT(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4))
        optimizer = make(model.parameters(), 0.1)
        loss_and_gradients(model, np.array([[1, 2]]), np.array([[2, 3]]), token_loss)
        return model, optimizer

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def state(model, optimizer):
        return [array.tobytes() for array in model.state_dict().values()], [
            np.asarray(value).tobytes() for value in optimizer.state_dict().values()
        ]

    model, optimizer = model_and_optimizer()
    optimizer.step()
    whole = state(model, optimizer)
    model, optimizer = model_and_optimizer()
    real = optimizer.update

    def update(g):
        os.kill(os.getpid(), number)
        real(g)

    monkeypatch.setattr(optimizer, "update", update)
    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert state(model, optimizer) == whole


# ---- handles left open

COMMANDS = """
import sys
from minqkv.cli import run_cli
run, study, text = sys.argv[1:]
def call(*args, code=0):
    assert run_cli([str(arg) for arg in args]) == code, args
call("eval", run)
call("eval", "nowhere", code=3)
call("report", run, study, "--html", "page.html")
call("train", "--resume", "--out", run)
call("data", "prepare", text)
call("tokenize", text, "--save", "t.json")
call("tokenize", text, "--tokenizer", "t.json")
call("lesson", "list")
call("study", "--tasks", "copy", "--seq-len", 4, "--steps", 1, "--seeds", 1, "--variants", "qkv",
     "--jobs", 1, "--out", "s")
with open(f"{run}/checkpoint.npz", "wb") as file:
    file.write(b"PK" + bytes(100))
call("eval", run, code=3)
"""


def test_no_handle_is_left_open(ended, study, tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 50)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", COMMANDS]
    places = [ended, study[0], tmp_path / "a.txt"]
    env = _env() | {"MINQKV_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, *map(str, places)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
