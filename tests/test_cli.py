"""The command line: one clear line and the right exit code, tables that cut no number, pipes,
terminals, completion.
"""

import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from commands import ROOT, run, start

from minqkv.runs import configure, train_run

COMMANDS = (
    "completion",
    "convert",
    "data",
    "doctor",
    "eval",
    "generate",
    "gradcheck",
    "learn",
    "lesson",
    "plan",
    "study",
    "tasks",
    "tokenize",
    "trace",
    "train",
    "variants",
)
SMALL = ("--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2, "--steps", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two small runs: `tagger`, an encoder, and `gpt`, in causal form."""
    folder = tmp_path_factory.mktemp("runs")
    for name, form in (("tagger", "encoder"), ("gpt", "causal")):
        train_run(
            configure("reverse", form=form, seq_len=4, n_embd=8, n_layer=1, n_head=2, steps=2),
            folder / name,
        )
    return folder


def said(err):
    """Messages with their line breaks undone."""
    return " ".join(err.split())


# ---- wrong input

WRONG = [
    (("trian",), 2, "no command 'trian'; did you mean train"),
    (("train", "--taks", "copy"), 2, "--taks"),
    (("train",), 2, "train needs a task"),
    (("train", "--task", "revers"), 2, "unknown task 'revers' did you mean reverse?"),
    (("train", "--task", "copy", "--variant", "q-k=w"), 2, "unknown variant 'q-k=w' did you mean"),
    (("train", "--task", "copy", "--variant", "kv"), 2, "two meanings"),
    (("train", "--task", "copy", "--variant", "qkv+"), 2, "here they already do"),
    (("train", "--task", "copy", "--variant", "gqa-3"), 2, "KV heads that fit: 1, 2, 4"),
    (("train", "--task", "copy", "--variant", "gqa"), 2, "how many KV heads?"),
    (("train", "--task", "copy", "--protocol", "2025"), 2, "unknown protocol '2025' did you mean"),
    (("train", "--task", "copy", "--form", "casual"), 2, "did you mean causal?"),
    (("train", "--task", "copy", "--form", "casual", "--protocol", "x"), 2, "unknown"),
    (("train", "--task", "copy", "--form", "causal", "--protocol", "x"), 2, "unknown protocol"),
    (("train", "--task", "copy", "--form", "causal", "--set", "hide_self=true"), 2, "for encoders"),
    (("train", "--task", "copy", "--position", "sinusodial"), 2, "did you mean sinusoidal?"),
    (("train", "--task", "copy", "--position", "rope", "--n-head", 64), 2, "must be even"),
    (("train", "--task", "copy", "--rope-value", "cooked"), 2, "known: raw, unrotate"),
    (("train", "--task", "copy", "--backend", "nunpy"), 2,
        "unknown backend 'nunpy' did you mean numpy"),
    (("train", "--task", "copy", "--n-embd", 30), 2, "n_embd 30 is not divisible by n_head 4"),
    (("train", "--task", "copy", "--n-head", 0), 2, "n_head must be"),
    (("train", "--task", "copy", "--n-layer", -1), 2, "n_layer must be"),
    (("train", "--task", "copy", "--n-embd", "wide"), 2, "'wide' is not a valid integer"),
    (("train", "--task", "swap", "--seq-len", 5), 2, "must be even, not 5 --seq-len 6"),
    (("train", "--task", "copy", "--seq-len", 0), 2, "0 is not in the range"),
    (("train", "--task", "copy", "--alphabet", 1), 2, "alphabet 1"),
    (("train", "--task", "copy", "--seed", -1), 2, "seed -1"),
    (("train", "--task", "copy", "--steps", 0), 2, "steps 0"),
    (("train", "--task", "copy", "--lr", 0), 2, "lr 0.0"),
    (("train", "--task", "copy", "--set", "plus_start=1"), 2, 'and qkv has none'),
    (("train", "--task", "copy", "--set", "hide_self=true", "--seq-len", 1), 2,
        "two tokens or more"),
    (("train", "--task", "copy", "--set", "hide_self"), 2, "a name and a value are needed"),
    (("train", "--task", "copy", "--set", "plus_strat=1"), 2, "did you mean plus_start"),
    (("train", "--task", "copy", "--pairs", 3), 2, "unknown setting of task copy 'pairs'"),
    (("train", "--task", "mqar", "--seq-len", 3), 2, "unknown setting of task mqar 'seq_len'"),
    (("train", "--task", "pairs", "--pairs", 99), 2, "pairs 99 must be 2 to keys 64"),
    (("train", "--task", "copy", "--head-dim", 0), 2, "head_dim must be"),
    (("train", "--task", "copy", "--n-embd", 30), 2, "--head-dim"),
    (("train", "--task", "copy", "--variant", "qkv/mqa/qkv"), 2,
        "names 3 layers, but the model has 2 --n-layer 3"),
    (("train", "--task", "copy", "--variant", "thin"), 2, "how wide are its keys?"),
    (("train", "--task", "nothere:Mine"), 2, "cannot import nothere"),
    (("train", "--task", "os:Mine"), 2, "unknown class of os 'Mine'"),
    (("train", "--task", "os:PathLike"), 2, "os:PathLike is not a task"),
    (("train", "--config", "nowhere.toml"), 3, "cannot read nowhere.toml"),
    (("train", "--resume", "--out", "RUNS/gpt", "--task", "copy"), 2,
        "task is reverse there, copy here"),
    (("train", "--task", "copy", "--seq-len", 10**12), 2, "at most 2,147,483,647"),
    (("eval",), 2, "Missing argument 'RUN'"),
    (("eval", "nowhere"), 3, "there is no run in nowhere"),
    (("eval", "RUNS"), 3, "there is no run in"),
    (("eval", "RUNS/tagger/config.json"), 3, "config.json is a file"),
    (("eval", "RUNS/tagger", "--split", "tset"), 2, "unknown split 'tset' did you mean test?"),
    (("eval", "RUNS/tagger", "--n", 0), 2, "0 is not in the range"),
    (("eval", "RUNS/tagger", "--wrong", -1), 2, "-1 is not in the range"),
    (("generate", "nowhere", "1"), 3, "there is no run in nowhere"),
    (("generate", "RUNS/tagger", "1 2 3 4"), 2, "an encoder labels tokens"),
    (("generate", "RUNS/gpt"), 2, "the prompt is empty"),
    (("generate", "RUNS/gpt", " "), 2, "the prompt is empty"),
    (("generate", "RUNS/gpt", "1 2 x"), 2, "is not made of digits"),
    (("generate", "RUNS/gpt", "1 2 10"), 2, "outside 0..9"),
    (("generate", "RUNS/gpt", "--", "-1 2"), 2, "is not made of digits"),
    (("generate", "RUNS/gpt", "12345"), 2,
        "but this model has 8 positions ask for at most 3 new tokens"),
    (("generate", "RUNS/gpt", "1234", "--max-new-tokens", 6), 2, "ask for at most 4 new tokens"),
    (("generate", "RUNS/gpt", "1234567890123"), 2, "but this model has 8 positions"),
    (("generate", "RUNS/gpt", "1", "--temperature", -1), 2, "is not in the range"),
    (("generate", "RUNS/gpt", "1", "--top-k", 0), 2, "0 is not in the range"),
    (("variants", "--config", "300n"), 2, "no configuration '300n'"),
    (("variants", "--config", "RUNS"), 3, "it is not a plain file"),
    (("variants", "--config", "RUNS/tagger/config.json"), 2, "unexpected keyword"),
    (("variants", "--config", "RUNS/tagger/metrics.jsonl"), 3, "is not valid JSON"),
    (("variants", "--n-head", 7), 2, "n_embd 1024 is not divisible by n_head 7"),
    (("variants", "--n-layer", 0), 2, "n_layer must be"),
    (("variants", "--variants", "gqa-5"), 2, "KV heads that fit: 1, 2, 4, 8, 16"),
    (("variants", "--dtype", "bf61"), 2, "'bf61' is not one of"),
    (("variants", "--context", 0), 2, "0 is not in the range"),
    (("tasks", "--seq-len", 0), 2, "0 is not in the range"),
    (("completion", "tcsh"), 2, "'tcsh' is not one of"),
    (("study", "--preset", "quik"), 2, "'quik' is not one of"),
    (("study", "--protocol", "2024"), 2, "unknown protocol '2024' did you mean"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "code", "message"),
    WRONG,
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_input(args, code, message, runs, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    found, out, err = cli(*[str(arg).replace("RUNS", str(runs)) for arg in args])
    assert (found, out) == (code, ""), err
    assert message in said(err)
    assert "Traceback" not in err
    assert "Error: \n" not in err
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_no_gpu(cli):
    pytest.importorskip("numpy")
    try:
        import cupy  # noqa: F401
    except ImportError:
        code, _, err = cli("train", "--task", "copy", "--backend", "cupy")
        assert code == 3
        assert "needs CuPy" in err
        assert "'.[cuda13]'" in err
    else:
        pytest.skip("CuPy is installed")


def test_prompts_on_stdin(runs, cli, monkeypatch):
    for text, code, message in (
        ("1 2 3 4\n1 2 3\n", 0, "not trained on other lengths"),
        ("\n\n", 2, "the prompt is empty"),
        ("1 2 3 4\none\n", 2, "'one' is not made of digits"),
        ("1 2 3 4\n\n4,3,2,1\n0000", 0, ""),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        found, out, err = cli("generate", runs / "gpt")
        assert found == code
        assert message in said(err)
    assert [line.split(" | ")[0] for line in out.splitlines()] == ["1 2 3 4", "4 3 2 1", "0 0 0 0"]
    assert all(re.fullmatch(r"(\d+ ){3}\d+", line.split(" | ")[1]) for line in out.splitlines())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe1"), encoding="utf-8"))
    found, _, err = cli("generate", runs / "gpt")
    assert found == 2
    assert "not text" in err


def test_a_traceback_only_where_asked_for(runs, cli):
    for args in (("eval", "nowhere"), ("train", "--task", "revers"), ("variants", "--n-head", 7)):
        code, _, err = cli(*args)
        code_asked, _, err_asked = cli(*args, "--traceback")
        assert code == code_asked
        assert "Traceback" not in err
        assert "Traceback (most recent call last)" in err_asked
        assert err_asked.endswith(err)


def test_a_bug_is_called_one(cli, monkeypatch):
    monkeypatch.setattr("minqkv.runtime.doctor.examine", lambda: 1 / 0)
    code, out, err = cli("doctor")
    assert (code, out) == (1, "")
    assert "unexpected ZeroDivisionError" in err
    assert "Traceback" not in err
    assert "Traceback" in cli("doctor", "--traceback")[2]


def test_the_environment_is_left_alone(cli):
    """How many threads BLAS uses is said at run time."""
    before = dict(os.environ)
    assert cli("train", "--task", "copy", *SMALL)[0] == cli("doctor")[0] == 0
    assert dict(os.environ) == before


# ---- --help, --json, --version


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_of_every_command(command, cli, capsys):
    code, out, err = cli(*filter(None, [command]), "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: minqkv")
    for name in COMMANDS if command is None else ():
        (line,) = re.findall(rf"^  {name} .*$", out, re.M)
        assert not line.endswith("..."), line  # a summary that fits 80 columns


def test_help_imports_neither_numpy_nor_rich():
    code = f"""
import sys
from minqkv.cli import run_cli
assert [run_cli([name, "--help"]) for name in {COMMANDS}] == {[0] * len(COMMANDS)}
print("loaded:", [m for m in ("numpy", "rich", "cupy") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.endswith("loaded: []\n"), done.stderr


def test_no_command_says_where_you_are(tmp_path):
    code, out, err = run(cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "Next:   minqkv learn" in out
    assert max(map(len, out.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


def test_version(cli):
    from minqkv import __version__

    assert cli("--version")[:2] == (0, f"minqkv, version {__version__}\n")


JSON = {
    "variants": ((), {"name", "params", "macs", "cache_bytes_per_token", "reduction", "formula"}),
    "tasks": ((), {"name", "about", "input", "target"}),
    "gradcheck": ((), {"name", "error", "ok"}),
    "doctor": ((), {"minqkv", "python", "BLAS", "backend", "GPU", "terminal"}),
    "train": (
        ("--task", "copy", *SMALL),
        {"task", "variant", "seed", "accuracy", "loss", "steps", "params", "seconds", "out"},
    ),
    "eval": (
        ("RUNS/tagger", "--wrong", 2),
        {"accuracy", "loss", "split", "sequences", "sequences_wrong", "wrong"},
    ),
    "eval ": (("RUNS/gpt",), {"accuracy", "masked_perplexity"}),
    "convert": (("RUNS/gpt", "--to", "mqa"), {"metric", "scores", "methods", "bytes_per_token"}),
    "generate": (("RUNS/gpt", "1 2 3 4"), {"prompt", "output"}),
    "generate ": (("RUNS/gpt", "1234", "--compare"), {"cached", "uncached"}),
    "study": (
        ("--tasks", "copy", "--variants", "qkv", "--seeds", 1, *SMALL),
        {"versions", "hyper_parameters", "command", "runs"},
    ),
    "data": (("prepare", "builtin"), {"label", "digest", "splits"}),
    "tokenize": ((Path(__file__), "--tokenizer", "bpe-300"), {"tokens", "vocab_size"}),
    "study ": (("--dry-run", *SMALL), {"runs", "recorded", "seconds", "jobs", "out"}),
}


@pytest.mark.parametrize("command", JSON)
def test_json_of_every_command(command, runs, cli):
    args, keys = JSON[command]
    code, out, _ = cli(
        command.strip(), *[str(arg).replace("RUNS", str(runs)) for arg in args], "--json"
    )
    assert code == 0
    value = json.loads(out, parse_constant=pytest.fail)
    assert (value[0] if isinstance(value, list) else value).keys() >= keys


# ---- figures

PAPER = {  # the paper: parameters, bytes per token in bf16, share saved
    "300m": {
        "qkv": (305_534_976, 81_920, 0), "q=k-v": (284_542_976, 81_920, 0),
        "q-k=v": (284_542_976, 40_960, 0.5),
        "q=k=v": (263_550_976, 40_960, 0.5), "gqa-4": (274.0e6, 20_480, 0.75),
        "mqa": (266.2e6, 5_120, 0.9375),
        "q-gqa-4": (268.8e6, 10_240, 0.875), "q-mqa": (264.9e6, 2_560, 0.96875),
    },
    "1.2b": {
        "qkv": (1215.1e6, 180_224, 0), "q-k=v": (1122.8e6, 90_112, 0.5),
        "gqa-8": (1076.6e6, 45_056, 0.75),
        "mqa": (1036.2e6, 5_632, 0.96875), "q-gqa-8": (1053.5e6, 22_528, 0.875),
        "q-mqa": (1033.3e6, 2_816, 0.984375),
    },
}  # fmt: skip


@pytest.mark.parametrize("config", PAPER)
def test_variants_gives_the_figures_of_the_paper(config, cli):
    code, out, _ = cli("variants", "--config", config, "--json")
    found = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert len(found) == 14  # all but gta, whose positions are rotary
    thin = found["thin-32"]  # half of d_h: keys half as wide, values as they are
    assert (thin["reduction"], found["q-k=v"]["params"] > thin["params"]) == (0.25, False)
    for name, (params, per_token, saved) in PAPER[config].items():
        row = found[name]
        assert row["params"] == (
            params if isinstance(params, int) else pytest.approx(params, abs=5e4)
        )
        assert (row["cache_bytes_per_token"], row["reduction"]) == (per_token, saved)
        assert row["cache_bytes_at_context"] == per_token * 32768
        assert row["macs"] > row["macs_causal"]


def test_variants_under_rotary_positions(cli, tmp_path):
    """With GTA, which has none of the other positions. Its row is tied, but for what turns."""
    path = tmp_path / "cfg.json"
    sizes = {"vocab_size": 100, "block_size": 32, "n_layer": 3, "n_head": 8, "n_embd": 64}
    path.write_text(json.dumps(sizes | {"position": "rope", "d_rope": 4}))
    code, out, _ = cli("variants", "--config", str(path), "--json")
    found = {row["name"]: row["cache_bytes_per_token"] for row in json.loads(out)}
    assert code == 0
    assert found["gta-2"] == 3 * 2 * (2 * 8 + 4)
    assert found["mla"] == 3 * 2 * (4 * 8 + 4)
    assert len(found) == 15


def test_variants_of_any_dimensions(cli, tmp_path):
    fields = {
        "vocab_size": 100,
        "block_size": 32,
        "n_layer": 3,
        "n_head": 6,
        "n_embd": 48,
        "d_ff": 100,
    }
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    flags = [
        part
        for name, value in fields.items()
        if name != "d_ff"
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    (qkv,) = json.loads(
        cli("variants", "--config", "mine.json", "--variants", "MHA", "--dtype", "fp32", "--json")[
            1
        ]
    )
    assert qkv["cache_bytes_per_token"] == 3 * 2 * 48 * 4
    assert qkv["params"] == 3 * (4 * 48 * 49 + 2 * 48 * 100 + 148 + 4 * 48) + 2 * 48 + 132 * 48
    assert (
        json.loads(cli("variants", *flags, "--variants", "qkv", "--json")[1])[0]["params"]
        > qkv["params"]
    )  # d_ff 192 again
    for heads in (1, 2, 7, 9, 14):  # the default groups fit any number of heads
        assert cli("variants", "--n-head", heads, "--n-embd", 16 * heads)[0] == 0


# ---- terminals

SHOWN = {
    "variants": ("variants",),
    "1.2b": ("variants", "--config", "1.2b", "--context", 1_000_000),
    "tasks": ("tasks", "--seq-len", 12),
    "study": (
        "study",
        "--tasks",
        "reverse,sort",
        "--seeds",
        2,
        "--jobs",
        1,
        *SMALL,
        "--out",
        "STUDY",
    ),
    "eval": ("eval", "RUNS/tagger", "--wrong", 2),
    "compare": ("generate", "RUNS/gpt", "1234", "--compare"),
    "doctor": ("doctor",),
    "help": ("study", "--help"),
}


@pytest.fixture(scope="module")
def shown(runs, tmp_path_factory):
    """shown(name) -> that command's arguments."""
    study = tmp_path_factory.mktemp("study")
    return lambda name: [
        str(arg).replace("RUNS", str(runs)).replace("STUDY", str(study)) for arg in SHOWN[name]
    ]


@pytest.mark.parametrize("name", SHOWN)
def test_no_width_cuts_anything(name, shown, cli, monkeypatch):
    numbers = {}
    for width in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = cli(*shown(name))
        assert code == 0
        assert "…" not in out
        if name not in ("help", "compare", "doctor"):  # a help wraps its text; a time changes
            numbers[width] = set(re.findall(r"\d[\d.,]*\d|\d", out))
            assert numbers[width] == numbers[40], width
        if name in ("variants", "1.2b", "study"):
            assert max(map(len, out.splitlines())) <= max(width, 60)
    if name == "variants":
        for row in json.loads(cli("variants", "--json")[1]):
            assert f"{row['params']:,}" in out
            assert f"{row['cache_bytes_per_token']:,} B" in out


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_encoding_stops_anything(name, encoding, shown, cli, monkeypatch):
    for width in (40, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        raw = {stream: io.BytesIO() for stream in ("stdout", "stderr")}
        with monkeypatch.context() as patch:
            for stream, data in raw.items():
                patch.setattr(
                    sys, stream, io.TextIOWrapper(data, encoding=encoding, write_through=True)
                )
            code, *_ = cli(*shown(name))
            assert code == 0
            assert raw["stdout"].getvalue().decode(encoding)


def test_what_an_encoding_lacks_is_spelled_out(cli, monkeypatch):
    """A number must not lose its sign."""
    data = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii", write_through=True))
        cli("variants")
        bars = {line.rfind("|") for line in data.getvalue().decode().splitlines() if "|" in line}
        assert len(bars) == 1  # formulas are spelled out, and columns stay aligned
        print("−.51 ± .28, 漢")
        assert data.getvalue().decode().splitlines()[-1] == "-.51 +/- .28, ?"


def test_json_survives_any_encoding(cli, monkeypatch):
    data = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii", write_through=True))
        cli("variants", "--json")
        assert json.loads(data.getvalue())[0]["formula"] == "softmax(αQKᵀ)V"


def in_terminal(*args, columns=60, **env):
    """(exit code, what was printed) of the command in a pseudo-terminal of this width."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = start(*args, stdin=side, stdout=side, stderr=side, env=env, encoding=None)
    os.close(side)
    printed = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # Linux's way of saying that nobody writes any more
            break
        if not part:
            break
        printed += part
    os.close(main)
    return child.wait(120), printed.decode()


def test_terminals(tmp_path):
    for env in ({"TERM": "xterm-256color"}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}):
        args = (
            "study",
            "--tasks",
            "copy",
            "--variants",
            "qkv,mqa",
            "--seeds",
            2,
            "--jobs",
            1,
            *SMALL,
        )
        code, printed = in_terminal(*args, "--out", tmp_path / env["TERM"], **env)
        assert code == 0, printed
        assert "Traceback" not in printed
        assert "…" not in printed
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed)
        assert "minus qkv" in text
        assert "95 % interval" in text
        report = text[text.index("copy  T 4") : text.index("kept in")]
        assert max(map(len, report.splitlines())) <= 60
        if env["TERM"] == "dumb":
            assert "\x1b" not in printed


def test_progress_goes_to_stderr_only(tmp_path):
    code, out, err = run(
        "train", "--task", "copy", *SMALL[:-1], 20, "--out", tmp_path / "run", "--json"
    )
    assert code == 0
    assert json.loads(out)["steps"] == 20
    needs, *tenths = err.splitlines()
    assert "parameters; training needs about" in needs
    assert [line.split()[1] for line in tenths] == [f"{n}/20" for n in range(2, 21, 2)]


# ---- pipes


@pytest.mark.parametrize(
    "args",
    [
        ("variants",),
        ("variants", "--json"),
        ("--help",),
        ("tasks",),
        ("doctor",),
        ("completion", "zsh"),
    ],
)
def test_a_broken_pipe_ends_quietly(args):
    child = start(*args)
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(120) == 0
    child.stderr.close()


def test_a_task_without_an_example_of_this_length(cli):
    """It is listed all the same, and the plan of an ablation names its arms."""
    (line,) = re.findall(r"^swap .*", cli("tasks", "--seq-len", 7)[1], re.M)
    assert line.count("even lengths only") == 2
    assert json.loads(cli("tasks", "--seq-len", 7, "--json")[1])[3]["input"] is None
    plan = cli("study", "--preset", "quick-2026", "--ablate", "plus", "--dry-run")[1]
    assert "q=k=v (diagonal masked)" in plan


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("args", [("variants",), ("variants", "--json"), ("--help",)])
def test_stdout_on_a_full_disk(args):
    with open("/dev/full", "w") as full:
        code, _, err = run(*args, stdout=full)
    assert code == 3
    assert "minqkv: output: No space left on device" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed, runs):
    gpt = shlex.quote(str(runs / "gpt"))
    commands = {"tasks": 0, f"generate {gpt} 1234": 0, "tasks --json": 0}
    commands |= {"tasks --seq-len 0": 2, f"generate {gpt}": 2}
    for args, code in commands.items():
        done = subprocess.run(
            ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m minqkv {args} {closed}"],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_says_so_in_one_line(cli, monkeypatch):
    monkeypatch.setattr(
        "minqkv.runtime.doctor.examine", lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    code, out, err = cli("doctor")
    assert (code, out) == (130, "")
    assert err.strip() == "minqkv: interrupted"


# ---- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, cli):
    code, out, err = cli("completion", shell)
    assert (code, err) == (0, "")
    assert "_MINQKV_COMPLETE" in out


def test_completion_completes():
    env = {"_MINQKV_COMPLETE": "bash_complete", "COMP_WORDS": "minqkv tr", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['minqkv']; from minqkv.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout) == (0, "plain,trace\nplain,train\n"), done.stderr
