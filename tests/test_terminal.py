"""The terminal, as people use it: signals, JSON, help, answers, pages, completion."""

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from commands import PATIENCE_S, ROOT, run, start, wait_until

from minqkv.cli import cli as commands
from minqkv.runtime import signals

SMALL = ("--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2)


def leaves(command, path=()):
    """(words, command) of all commands that do something."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, below in command.commands.items():
        yield from leaves(below, (*path, name))


LEAVES = dict(leaves(commands))


# ---- signals


def test_ctrl_c_during_the_imports_is_quiet(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    code, out, err = run("--help", env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert (code, out, err) == (130, "", "")


def training(tmp_path, ignored=(), steps=10**6):
    """A run of the command that has begun to train, in a process that ignores these signals."""

    def ignore():
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    flags = (*SMALL, "--steps", steps, "--threads", 1, "--out", tmp_path / "run")
    child = start("train", "--task", "copy", *flags, preexec_fn=ignore)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size)
    return child, metrics


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_to_stop_saves(number, tmp_path):
    child, metrics = training(tmp_path)
    child.send_signal(number)
    _, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130
    assert "continue with: minqkv train --resume" in err
    steps = len(metrics.read_text().splitlines())
    code, _, err = run("train", "--resume", "--out", metrics.parent, "--steps", steps)
    assert code == 2  # it was longer; the message says what is kept
    assert "steps" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_on_purpose_stays_ignored(number, tmp_path):
    child, metrics = training(tmp_path, ignored=[number])
    child.send_signal(number)
    size = metrics.stat().st_size
    wait_until(lambda: metrics.stat().st_size > size + 10_000 or child.poll() is not None)
    assert child.poll() is None
    child.kill()
    child.wait()
    child.stdout.close()
    child.stderr.close()


def test_which_signals_ask_to_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.stopping().keys() == {signal.SIGINT, signal.SIGTERM}
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signals.stopping()[signal.SIGHUP] == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- JSON, and help


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_takes_json(words):
    assert "--json" in [flag for p in LEAVES[words].params for flag in p.opts]


ONE_VALUE = [
    "trace forward",
    "trace decode",
    "trace backward",
    "learn",
    "lesson play 6",
    "lesson start 6",
    "lesson check 6",
    "lesson hint 6",
    "lesson list",
    "lesson hunt",
    "lesson dev readme",
    "completion bash",
    "tasks",
    "variants --context 10",
    "study --show-config",
    "train --task copy --show-config",
]


@pytest.mark.parametrize("command", ONE_VALUE)
def test_json_is_one_value(command, cli):
    _, out, _ = cli(*command.split(), "--json")
    json.loads(out, parse_constant=pytest.fail)


def test_json_has_no_nan(capsys):
    from minqkv.cli.options import print_json

    print_json({"a": [float("nan"), float("inf"), 1.5], "b": 10**20})
    value = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert value == {"a": [None, None, 1.5], "b": 10**20}


def test_help_and_diagnoses_without_docstrings(tmp_path):
    """`python -OO` drops them."""
    for words in ((), ("study",), ("lesson", "play"), ("data", "fetch")):
        usual = run(*words, "--help")
        assert usual[0] == 0
        assert run(*words, "--help", env={"PYTHONOPTIMIZE": "2"}) == usual
    code = (
        "from minqkv.teach import lessons, checks\n"
        "for lesson in lessons.course():\n"
        "    found = checks.Check(lesson).near_misses.values()\n"
        "    assert found and all(miss.diagnosis for miss in found), lesson.name\n"
        "print(__doc__, 'good')"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], capture_output=True, text=True, timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "None good\n", done.stderr


# ---- settings


@pytest.mark.parametrize("given", ["protocol=2023", "protocol='2023'", "protocol=2024"])
def test_a_setting_that_is_a_word_may_look_like_a_number(given, cli):
    code, out, err = cli("train", "--task", "copy", "--set", given, "--show-config", "--json")
    if given == "protocol=2023":
        assert json.loads(out)["protocol"] == "2023"
    else:
        assert code == 2
        assert "did you mean 202" in " ".join(err.split())


@pytest.mark.parametrize("name", ["text", "tokenizer", "data", "form", "position", "rope_value"])
def test_every_setting_that_is_a_word(name):
    from minqkv.cli.options import _set

    for value in ("7", "true", "null", "1e3", "NaN"):
        assert _set([f"{name}={value}"], listed=False) == {name: value}
        assert _set([f"{name}={value},{value}"], listed=True) == {name: (value, value)}
    assert _set(["seq-len=7"], listed=False) == {"seq_len": 7}


def test_a_word_in_a_file_stays_one(cli, tmp_path):
    (tmp_path / "flags.toml").write_text('task = "copy"\n[set]\nprotocol = "2023"\nsplit = "7"\n')
    code, _, err = cli("train", "--config", "flags.toml", "--show-config")
    assert code == 2
    assert "unknown split '7'" in err
    (tmp_path / "flags.toml").write_text('task = "copy"\n[set]\nprotocol = "2023"\n')
    code, out, _ = cli("train", "--config", "flags.toml", "--show-config")
    assert code == 0
    assert 'protocol = "2023"' in out


# ---- numbers as a person writes them, and numbers that are absurd


def test_plurals_and_large_numbers(cli):
    from minqkv.render.console import bytes_text
    from minqkv.render.study import number
    from minqkv.runtime.shown import counted, decimal

    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]
    assert [decimal(x) for x in (1.60782, 2.0176350630991888e19)] == ["1.6078", "2.02e+19"]
    assert [number(x) for x in (0.5, 12.0, 3e9)] == [".500", "12.000", "3e+09"]
    assert [decimal(x) for x in (1.0, 0.99996, 1.00002)] == ["1.0000", "0.99996", "1.00002"]
    assert [number(x) for x in (1, 0.9996, 0.9994, 0.0004)] == ["1.000", ".9996", ".999", ".000"]
    assert bytes_text(3 << 40) == "3 TiB"
    out = cli("trace", "forward", "--n-head", 1)[1]
    assert "1 head, 1 stored" in out
    flags = (*SMALL, "--steps", 1, "--threads", 1, "--out", "r")
    assert "after 1 step, kept in r" in " ".join(cli("train", "--task", "copy", *flags)[1].split())
    assert "1 sequence has" not in cli("eval", "r", "--n", 1)[1]
    assert "1 token,  " not in cli("variants", "--context", 1)[1]
    assert "prefill of 1 token." in cli("variants", "--context", 1)[1]
    assert cli("study", "--tasks", "copy", "--seeds", 1, "--variants", "qkv", "--dry-run")[1]


HUGE = 9223372036854775808


@pytest.mark.parametrize(
    "words",
    [
        ("trace", "forward", "--n-embd", HUGE),
        ("trace", "decode", "--n-head", HUGE),
        ("trace", "backward", "--tokens", HUGE),
        ("trace", "forward", "--digits", HUGE),
        ("variants", "--n-embd", HUGE, "--n-head", HUGE),
        ("variants", "--vocab-size", HUGE),
        ("variants", "--context", HUGE),
        ("train", "--task", "copy", "--n-embd", HUGE),
        ("study", "--tasks", "copy", "--seeds", HUGE),
        ("lesson", "play", "1", "--step", HUGE),
        ("lesson", "play", HUGE),
    ],
)
def test_absurd_numbers_are_usage(words, cli):
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert "unexpected" not in err


def test_absurd_sizes_of_a_model():
    import minqkv as mq

    for changes in ({"vocab_size": HUGE}, {"n_layer": 1 << 40}, {"d_ff": HUGE}):
        given = {"vocab_size": 5, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
        with pytest.raises(mq.runtime.errors.UsageError):
            mq.GPTConfig(**given | changes)


@pytest.mark.parametrize("digits", [0, 3, 9])
def test_digits_of_a_trace(digits, cli):
    out = cli("trace", "backward", "--digits", digits)[1]
    row = next(line for line in out.splitlines() if line.startswith("0:3"))
    assert {len(word.partition(".")[2]) for word in row.split()[1:]} == {digits}
    assert "in units of 1e-" in out


# ---- completion


OFFERED = {
    "train --task re": {"reverse"},
    "train --variant q-k": {"q-k=v"},
    "train --variant qkv/q-g": {"qkv/q-gqa-2"},
    "study --variants qkv,mq": {"qkv,mqa"},
    "study --tasks sort,re": {"sort,reverse"},
    "study --protocol 2": {"2023", "2026"},
    "study --lr 1": set(),
    "train --position ro": {"rope"},
    "train --rope-value u": {"unrotate"},
    "trace decode --variant thin": {"thin-2"},
    "variants --variants th": {"thin-2"},
    "check-cache a:B --variants mq": {"mqa"},
    "lesson play 15": {"15"},
    "lesson check at": {"attention_by_hand"},
    "lesson dev check 1 at": {"attention_by_hand"},
    "eval run --split v": {"validation"},
    "generate run --cache int8-": {"int8-ring"},
    "tokenize file --tokenizer by": {"bytes"},
    "data fetch cifar100": {"cifar100"},
    "data prepare x --tokenizer c": {"chars"},
    "paper --table mec": {"mechanism"},
}


@pytest.mark.parametrize("typed", OFFERED)
def test_completion_offers_values(typed):
    from click.shell_completion import ShellComplete

    *words, last = typed.split()
    complete = ShellComplete(commands, {}, "minqkv", "_MINQKV_COMPLETE")
    assert {item.value for item in complete.get_completions(words, last)} == OFFERED[typed]


def test_what_can_be_fetched_is_offered():
    from minqkv.tasks import downloads

    (argument,) = [p for p in LEAVES["data", "fetch"].params if p.name == "name"]
    assert set(argument.type.names) == {*downloads.DOWNLOADS, *downloads.IMAGES}


# ---- what a process may lack, NaN, and commands to be pasted


def test_a_working_directory_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from minqkv.cli import main; main(sys.argv[1:])"
    for words in (["lesson", "start", "1"], ["check-cache", "a:B"], ["train", "--task", "a:B"]):
        (tmp_path / "gone").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True,
            cwd=tmp_path / "gone", env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 3, words
        assert "the working directory is gone" in done.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ImportError("libopenblas.so.0: no such file", name="numpy"), "cannot be loaded: libopen"),
        (ImportError("x.so: failed to map segment from shared object", name="x"), "out of memory"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (OSError(12, "Cannot allocate memory"), "smaller size"),
        (PermissionError(13, "Permission denied", "a file"), "a file: Permission denied"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_resource_is_named(error, says, cli, monkeypatch):
    def fails():
        raise error

    monkeypatch.setattr("minqkv.cli._silence_stdout", lambda: None)
    monkeypatch.setattr("minqkv.runtime.doctor.examine", fails)
    code, _, err = cli("doctor")
    assert code == 3
    assert says in " ".join(err.split())
    assert "unexpected" not in err


def test_our_own_mistakes_are_not_blamed_on_the_environment(cli, monkeypatch):
    for error in (ImportError("x", name="minqkv.lost"), RuntimeError("x"), ValueError("x")):

        def fails(error=error):
            raise error

        monkeypatch.setattr("minqkv.runtime.doctor.examine", fails)
        code, _, err = cli("doctor")
        assert code == 1
        assert "this is a bug in minqkv" in err


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--task", "copy", "--variant", "q=k-v+", "--set", "plus_start=NaN"),
        ("train", "--task", "copy", "--variant", "q=k-v+", "--set", "plus_start=Infinity"),
        ("train", "--task", "copy", "--variant", "q=k-v+", "--set", "plus_start=-Infinity"),
        ("check-cache", "minqkv:KVCache", "--bound", "nan"),
        ("train", "--task", "copy", "--lr", "nan"),
        ("study", "--lr", "1e-3,nan", "--dry-run"),
    ],
)
def test_nan_is_refused_as_usage(words, cli, tmp_path):
    code, _, err = cli(*words)
    assert code == 2
    assert "nan" in err or "inf" in err
    assert "smaller learning rate" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["-run", "it's", "a $HOME", "~x", "!bang", "new\nline", "[1]*"])
def test_a_printed_command_reaches_its_folder(name, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    flags = (*SMALL, "--steps", 1, "--threads", 1, f"--out={name}")
    code, out, _ = cli("train", "--task", "copy", *flags)
    assert code == 0
    command = out.partition("see its mistakes: minqkv ")[2].strip()
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\0" {command}'], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert cli(*words)[0] == 0


# ---- the commonest slips


@pytest.mark.parametrize(
    ("slip", "says"),
    [
        ({"e.sum(axis=-1, keepdims=True)": "e.sum(axis=-1)"}, "each row is divided by its own sum"),
        ({", keepdims=True": ""}, "Keep the axis in both"),
        ({" / np.sqrt(q.shape[-1])": ""}, "not scaled"),
        ({"np.sqrt(q.shape[-1])": "q.shape[-1]"}, "not by its square root"),
    ],
)
def test_a_slip_in_attention_is_named(slip, says, tmp_path):
    from minqkv.teach import desk
    from minqkv.teach.lessons import course, find

    lesson = find(6, course())
    text = lesson.companion("solution").read_text("utf-8")
    for right, wrong in slip.items():
        assert right in text
        text = text.replace(right, wrong)
    (tmp_path / "mine.py").write_text(text)
    passed, events = desk.run(lesson, tmp_path / "mine.py", PATIENCE_S)
    assert not passed
    assert says in " ".join(event.get("text", "") for event in events)
