"""`minqkv train` and `generate`: tokens are printed as they come, and --threads is obeyed."""

import io
import json
import os
import signal
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from commands import start

from minqkv import backend, generation
from minqkv.runs import configure, load_config, train_run
from minqkv.runtime.parallel import set_threads

SIZE = {"seq_len": 4, "n_embd": 8, "n_layer": 1, "n_head": 2, "steps": 2}
FLAGS = [part for name, n in SIZE.items() for part in (f"--{name.replace('_', '-')}", n)]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """The folder of a small run in causal form."""
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    train_run(configure("reverse", form="causal", **SIZE), folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread_afterwards():
    yield
    set_threads(1)


def test_one_answer_is_printed_token_by_token(gpt, cli, monkeypatch):
    """What has reached the pipe each time the next token is asked for: everything so far."""
    pipe, reached = io.BytesIO(), []

    def tokens(model, ids, count, **options):
        for token in (7, 0, 9):
            reached.append(pipe.getvalue().decode())
            yield np.array([token])

    monkeypatch.setattr(generation, "iter_tokens", tokens)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="utf-8"))
        assert cli("generate", gpt, "1 2 3 4")[0] == 0
        assert reached == ["1 2 3 4 |", "1 2 3 4 | 7", "1 2 3 4 | 7 0"]
        assert pipe.getvalue() == b"1 2 3 4 | 7 0 9\n"


def test_the_same_answers_however_they_are_printed(gpt, cli, monkeypatch):
    one = cli("generate", gpt, "1 2 3 4")[1]
    as_json = json.loads(cli("generate", gpt, "1 2 3 4", "--json")[1])
    assert [row.keys() for row in as_json] == [{"prompt", "output", "text", "cache_bytes", "graph"}]
    assert one == f"1 2 3 4 | {' '.join(map(str, as_json[0]['output']))}\n"
    lines = cli("generate", gpt, "1 2 3 4", "--no-cache")[1]
    assert lines == one


def test_a_separator_in_an_answer_is_printed_as_one(gpt, cli, monkeypatch):
    def tokens(*args, **options):
        yield from (np.array([token]) for token in (7, 10))

    monkeypatch.setattr(generation, "iter_tokens", tokens)
    assert cli("generate", gpt, "1 2 3 4")[1] == "1 2 3 4 | 7 |\n"


def test_prompts_of_different_length_are_one_batch(gpt, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2 3 4\n5 6\n"))
    code, out, err = cli("generate", gpt)
    assert code == 0
    assert "this run was trained on 4 digits; it was not trained on other lengths" in err
    assert out == cli("generate", gpt, "1 2 3 4")[1] + cli("generate", gpt, "5 6")[1]
    assert "note" not in cli("generate", gpt, "1 2 3 4")[2]


def test_the_example_of_a_prompt_is_as_long_as_the_run(gpt, cli):
    assert '"3 1 4 1"' in cli("generate", gpt, " ")[2]


def test_encoder_and_decoder_have_folders_of_their_own(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ("--seq-len", 4, "--n-embd", 8, "--n-layer", 1, "--n-head", 2, "--steps", 2)
    for form in ("encoder", "causal"):
        assert cli("train", "--task", "sort", "--variant", "q-k=v", "--form", form, *size)[0] == 0
    assert cli("generate", "runs/sort-q-k=v-s0", "3 1 4 1")[0] == 2
    assert cli("generate", "runs/sort-q-k=v-causal-s0", "3 1 4 1")[0] == 0


def test_a_refused_prompt_prints_nothing(gpt, cli):
    code, out, err = cli("generate", gpt, "1 2 3 4", "--max-new-tokens", 9)
    assert (code, out) == (2, "")
    assert "ask for at most" in err


def test_a_broken_pipe_ends_generation_quietly(gpt):
    child = start("generate", gpt, "1 2 3 4")
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(60) == 0
    child.stderr.close()


@pytest.mark.parametrize("n", [1, 2])
def test_threads(n, gpt, cli):
    assert cli("train", "--task", "copy", *FLAGS, "--threads", n, "--out", "run")[0] == 0
    assert backend.Backend.threads == n == load_config("run").threads
    set_threads(3)
    assert cli("generate", gpt, "1 2 3 4", "--threads", n)[0] == 0
    assert backend.Backend.threads == n
    code, out, err = cli("generate", gpt, "1 2 3 4", "--threads", 0)
    assert (code, out) == (2, "")
    assert "at least one" in err


def test_no_environment_variable_is_set(cli, monkeypatch):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    report = json.loads(cli("doctor", "--json")[1])
    assert not [name for name in names if name in os.environ or name in report["threads"]]
    assert any(name.startswith("BLAS") and n >= 1 for name, n in report["threads"].items())
    assert set(report["packages"]) == {"numpy", "click", "rich", "threadpoolctl"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert json.loads(cli("doctor", "--json")[1])["threads"]["OMP_NUM_THREADS"] == "5"


# ---- flags from a file

FILE = """
task = "sort"
n-head = 2
n_embd = 8
seq-len = 4
lr = 2e-3
steps = 3
[set]
hide_self = true
watch = 2
"""


@pytest.fixture
def toml(cli, tmp_path):
    """toml(text) -> a file of flags in the folder in which commands run."""

    def write(text, name="flags.toml"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_file_gives_flags(mark, toml, cli):
    path = toml(mark + FILE.encode())
    assert cli("train", "--config", path, "--out", "run")[0] == 0
    config = load_config("run")
    assert (config.task.name, config.task.n_head, config.task.n_embd) == ("sort", 2, 8)
    assert (config.recipe.lr, config.recipe.steps, config.recipe.watch) == (2e-3, 3, 2)
    assert config.task.hide_self
    typed = ("--n-head", 4, "--set", "watch=1", "--task", "copy")
    assert cli("train", *typed, "--config", path, "--out", "typed")[0] == 0
    config = load_config("typed")
    assert (config.task.name, config.task.n_head, config.recipe.watch) == ("copy", 4, 1)
    assert (config.task.n_embd, config.task.hide_self) == (8, True)  # what was not typed stays


def test_a_typed_flag_wins_over_a_set_value_of_a_file(toml, cli):
    path = toml("task = 'sort'\n[set]\nn_head = 2\nlr = 0.5\nwatch = 3")
    shown = cli("train", "--config", path, "--n-head", 8, "--show-config")[1]
    assert "n-head = 8\n" in shown
    assert "lr = 0.5\n" in shown
    assert "watch = 3\n" in shown


SHOWN = {
    "plain": ("--task", "sort"),
    "every kind of value": ("--task", "sort", "--lr", "1e-5", "--set", "hide_self=true"),
    "causal": ("--task", "copy", "--form", "causal", "--position", "rope", "--head-dim", 6),
    "plus": ("--task", "copy", "--variant", "q=k-v+/qkv", "--set", "plus_start=-1.5"),
    "recall": ("--task", "mqar", "--pairs", 4, "--set", "watch=7"),
    "scored elsewhere": ("--task", "sub", "--set", "split=validation", "--seed", 3),
}


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_shown_can_be_read_again(what, toml, cli, tmp_path):
    code, shown, err = cli("train", *SHOWN[what], "--threads", 1, "--show-config")
    assert (code, err) == (0, "")
    path = toml(shown)
    assert cli("train", "--config", path, "--show-config")[:2] == (0, shown)
    assert [p.name for p in tmp_path.iterdir()] == [path]  # it shows, and begins nothing
    flags = ("--set", "n_test=5", "--steps", 1)
    for out, given in (("a", SHOWN[what]), ("b", ("--config", path))):
        assert cli("train", *given, *flags, "--threads", 1, "--out", out)[0] == 0
    a, b = load_config("a"), load_config("b")
    assert replace(a, recipe=b.recipe) == b
    warmup = {"warmup": 0}  # shown as a number; with other steps a share is another
    assert asdict(a.recipe) | warmup == asdict(b.recipe) | warmup


REFUSED = {
    "a key that is none": ("n-haed = 2", 2, "unknown key in flags.toml: 'n-haed' did you mean n-h"),
    "a key of [set]": (
        "[set]\nwacth = 2",
        2,
        "unknown setting of task sort 'wacth' did you mean w",
    ),
    "itself": ("config = 'flags.toml'", 2, "unknown key in flags.toml: 'config'"),
    "where to compute": ("backend = 'numpy'", 2, "unknown key in flags.toml: 'backend'"),
    "a word": ("n-head = 'two'", 2, "'two' is not a valid integer"),
    "half a step": ("steps = 2.5", 2, "'2.5' is not a valid integer"),
    "a list": ("n-head = [2, 4]", 2, "n-head in flags.toml cannot be [2, 4]"),
    "true": ("n-head = true", 2, "n-head in flags.toml cannot be True"),
    "a table": ("[task]\nname = 'sort'", 2, "task in flags.toml cannot be {'name': 'sort'}"),
    "a date": ("seed = 2020-01-01", 2, "seed in flags.toml cannot be datetime.date"),
    "no table": ("set = 3", 2, "set in flags.toml cannot be 3"),
    "no TOML": ("n-head = ", 2, "flags.toml is not valid TOML"),
    "JSON": ('{"n-head": 2}', 2, "flags.toml is not valid TOML"),
    "not UTF-8": (b"\x80\x81", 2, "flags.toml is not valid TOML"),
    "not finite": ("lr = nan", 2, "lr nan must be above 0 and finite"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_does_not_fit(what, toml, cli, tmp_path):
    text, expected, says = REFUSED[what]
    code, out, err = cli("train", "--config", toml(text), "--task", "sort")
    assert (code, out) == (expected, "")
    assert says in " ".join(err.split())
    assert "unexpected" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["flags.toml"]


@pytest.mark.parametrize(
    ("seeds", "shown"), [("3", [0, 1, 2]), ("[3]", [3]), ("[3, 5]", [3, 5]), ('"3,"', [3])]
)
def test_lists_of_a_study(seeds, shown, toml, cli):
    path = toml(f"tasks = ['sort']\nsteps = 3\nseeds = {seeds}")
    code, text, _ = cli("study", "--config", path, "--show-config")
    assert code == 0
    assert f"seeds = {shown}\n" in text
    assert cli("study", "--config", toml(text), "--show-config")[1] == text


# ---- a task of one's own

MINE = """
from dataclasses import dataclass
from pathlib import Path

from minqkv import GPTConfig, Task

Path("imported").touch()


@dataclass(frozen=True)
class Mine(Task):
    symbols: int = 5

    def examples(self, rng, n):
        x = rng.integers(0, self.symbols, (n, 4))
        return x, (x + 1) % self.symbols

    def config(self, variant):
        return GPTConfig(self.symbols, 4, self.n_layer, self.n_head, self.n_embd, variant)


@dataclass(frozen=True)
class Long(Mine):
    def examples(self, rng, n):
        return (rng.integers(0, 5, (n, 9)),) * 2


@dataclass(frozen=True)
class Sideways(Mine):
    better = "more"


@dataclass(frozen=True)
class Late(Mine):
    def predict(self, model, x, y):
        if len(x) > 2 and self.symbols == 6:
            raise RuntimeError("too many")
        found = super().predict(model, x, y)
        return found | ({"accuracy": 7.1} if len(x) > 2 else {})


class Bare(Mine):
    pass


@dataclass(frozen=True)
class Lacking(Task):
    pass
"""
OWN = ("--n-layer", 1, "--n-embd", 8, "--set", "n_test=20", "--threads", 1)


@pytest.fixture
def my(cli, tmp_path, monkeypatch):
    """my.py in the folder in which commands run, never imported by another test."""
    (tmp_path / "my.py").write_text(MINE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my", None)
    yield tmp_path
    sys.modules.pop("my", None)


def test_a_task_of_ones_own(my, cli):
    sets = ("--set", "symbols=7", "--steps", 20)
    code, out, err = cli("train", "--task", "my:Mine", *OWN, *sets)
    assert code == 0, err
    folder = my / "runs" / "my.Mine-qkv-s0"
    assert "my:Mine with qkv: test accuracy" in out
    code, out, err = cli("eval", folder, "--task", "my:Mine", "--wrong", 1, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["sequences"], found["tokens"]) == (20, 80)
    assert found["accuracy"] == json.loads((folder / "result.json").read_text())["accuracy"]
    assert cli("train", "--resume", "--out", folder, "--task", "my:Mine")[0] == 0
    code, shown, _ = cli("train", "--task", "my:Mine", *OWN, *sets, "--show-config")
    (my / "mine.toml").write_text(shown)
    assert cli("train", "--config", "mine.toml", "--show-config")[1] == shown
    code, out, err = cli("generate", folder, "1 2", "--task", "my:Mine")
    assert (code, out) == (2, "")
    assert "generates nothing" in err


def test_a_folder_never_imports_code(my, cli):
    assert cli("train", "--task", "my:Mine", *OWN, "--steps", 2, "--out", "run")[0] == 0
    sys.modules.pop("my")
    (my / "imported").unlink()
    for command in (("eval", "run"), ("train", "--resume", "--out", "run"), ("generate", "run")):
        code, out, err = cli(*command)
        assert (code, out) == (2, "")
        assert "my:Mine is a task of your own name it: --task my:Mine" in " ".join(err.split())
    assert not (my / "imported").exists()
    assert "my" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my:Long", "my:Long: 9 tokens, but this model has 4 positions"),
        ("my:Sideways", "my:Sideways: better must be higher or lower, not 'more'"),
        ("../my:Mine", "a task of your own is MODULE:CLASS, not ../my:Mine"),
        ("my:Bare", "my:Bare must be a frozen dataclass"),
        ("my:Lacking", "my:Lacking lacks config and examples"),
        ("my:Path", "my:Path is not a task"),
        ("my:Mien", "unknown class of my 'Mien' did you mean Mine"),
        ("yours:Mine", "cannot import yours: No module named 'yours'"),
        ("broken:Mine", "broken raised ZeroDivisionError: division by zero"),
        ("torn:Mine", "torn raised SyntaxError"),
        (":Mine", "MODULE:CLASS"),
        ("my:", "MODULE:CLASS"),
    ],
)
def test_tasks_that_are_none(name, says, my, cli):
    (my / "broken.py").write_text("1 / 0")
    (my / "torn.py").write_text("def")
    code, out, err = cli("train", "--task", name, "--steps", 2, "--out", "run")
    assert (code, out) == (2, ""), err
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert not (my / "run").exists()


def test_the_hint_after_an_interrupt_names_the_class(my, cli, monkeypatch):
    from minqkv.tasks.base import Task

    def score(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return {"accuracy": 0.5}

    monkeypatch.setattr(Task, "score", score)
    given = ("--steps", 3, "--set", "watch=1", "--out", "a run")
    code, _, err = cli("train", "--task", "my:Mine", *OWN, *given)
    assert code == 130
    assert "minqkv train --resume --out 'a run' --task my:Mine" in " ".join(err.split())


@pytest.mark.parametrize(
    ("symbols", "says"),
    [
        (5, "my:Late: accuracy 7.1 is outside its limits, 0.0 to 1.0"),
        (6, "my:Late raised RuntimeError: too many"),
    ],
)
def test_a_task_of_ones_own_that_fails_when_it_is_scored(symbols, says, my, cli):
    sets = (*OWN, "--set", f"symbols={symbols}", "--steps", 2, "--out", "late")
    code, out, err = cli("train", "--task", "my:Late", *sets)
    assert (code, out) == (2, "")
    assert says in err
    assert not (my / "late" / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--set", "task=sort"), "--set task=sort: it has its own flag use --task"),
        (("--set", "equal-bytes=a"), "it has its own flag use --equal-bytes"),
        (("--set", f"n_test={10**20}"), f"n_test {10**20} is too large at most 2,147,483,647"),
        (("--head-dim", 10**20), f"head_dim {10**20} is too large"),
        (("--set", f"batch={10**20}"), f"batch {10**20} is too large"),
    ],
)
def test_settings_that_cannot_be(flags, says, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("train", "--task", "sort", *FLAGS, *flags, "--out", "run")
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resume = 3", "resume in x.toml cannot be 3"),
        ("show-config = true", "unknown key in x.toml: 'show-config'"),
        ("a = " + "[" * 5000, "x.toml is not valid TOML"),
    ],
)
def test_flags_in_a_file_that_cannot_be(text, says, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(text)
    code, out, err = cli("train", "--task", "sort", "--config", "x.toml", "--out", "run")
    assert (code, out) == (2, "")
    assert says in err
    assert "mean show-config" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_of_flags_is_not_waited_for(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("x.toml")
    assert "it is not a plain file" in cli("train", "--task", "sort", "--config", "x.toml")[2]
