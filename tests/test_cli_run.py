"""`minqkv train` and `generate`: tokens are printed as they come, and --threads is obeyed."""

import io
import json
import os
import sys

import numpy as np
import pytest
from commands import start

from minqkv import backend, generation
from minqkv.runs import RunConfig, load_config, train_run
from minqkv.runtime.parallel import set_threads

SIZE = {"seq_len": 4, "n_embd": 8, "n_layer": 1, "n_head": 2, "steps": 2}
FLAGS = [part for name, n in SIZE.items() for part in (f"--{name.replace('_', '-')}", n)]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """The folder of a small run in causal form."""
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    train_run(RunConfig("reverse", form="causal", **SIZE), folder)
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
    assert [row.keys() for row in as_json] == [{"prompt", "output"}]
    assert one == f"1 2 3 4 | {' '.join(map(str, as_json[0]['output']))}\n"
    lines = cli("generate", gpt, "1 2 3 4", "--no-cache")[1]
    assert lines == one


def test_a_separator_in_an_answer_is_printed_as_one(gpt, cli, monkeypatch):
    def tokens(*args, **options):
        yield from (np.array([token]) for token in (7, 10))

    monkeypatch.setattr(generation, "iter_tokens", tokens)
    assert cli("generate", gpt, "1 2 3 4")[1] == "1 2 3 4 | 7 |\n"


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
