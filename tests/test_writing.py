"""Runs of a text: `minqkv generate` writes, `minqkv eval` scores them, and a cache is drawn as it
grows.
"""

import io
import json
import os
import re
import signal
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run, start
from rich.console import Console
from toys import DESIGNS, design

from minqkv import GPT, GPTConfig, generation, runs
from minqkv.analysis import needs
from minqkv.caches import KINDS, branches, load, options
from minqkv.generation import generate, iter_tokens
from minqkv.render.cache import Watch, formula_bytes
from minqkv.runs import configure, load_run, train_run
from minqkv.runtime.errors import UsageError
from minqkv.runtime.parallel import set_threads
from minqkv.tasks.synthetic import Synthetic
from minqkv.tasks.text import Text

SIZE = {"seq_len": 24, "n_layer": 1, "n_head": 2, "n_embd": 16, "steps": 3, "n_test": 20}
END = 256  # of bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on texts: "bytes", "chars" and "rope" on one document, "many" on many short ones;
    "digits".
    """
    folder = tmp_path_factory.mktemp("writing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINQKV_CACHE", str(folder / "cache"))
        (folder / "one.txt").write_text("der Fluß – 漢字 – fließt\n" * 60, encoding="utf-8")
        (folder / "many").mkdir()
        for i in range(100):
            (folder / "many" / f"{i}.txt").write_text("abc " * (i % 5 + 1) + str(i))
        for name, source in (("bytes", "one.txt"), ("chars", "one.txt"), ("many", "many")):
            tokenizer = "bytes" if name == "bytes" else "chars"
            given = {**SIZE, "text": str(folder / source), "tokenizer": tokenizer}
            train_run(configure("text", "q-k=v", padded=name == "many", **given), folder / name)
        rotary = {**SIZE, "text": str(folder / "one.txt"), "position": "rope", "window": 4}
        train_run(configure("text", "q-k=v", **rotary), folder / "rope")
        digits = {**SIZE, "seq_len": 4}
        train_run(configure("reverse", form="causal", **digits), folder / "digits")
        yield folder


@pytest.fixture(autouse=True)
def _one_thread_afterwards():
    yield
    set_threads(1)


@pytest.fixture
def fake(monkeypatch):
    """fake(b"text") makes this what the next generation yields, a byte at a time, in one row.
    Returns a list that is filled with what was asked for.
    """

    def set_tokens(*columns, then=None):
        asked = []

        def tokens(model, ids, count, **options):
            asked.append({"ids": ids, "count": count, **options})
            for column in columns:
                yield np.array(column)
            if then:
                then()

        monkeypatch.setattr(generation, "iter_tokens", tokens)
        return asked

    return set_tokens


def columns(data):
    return [[byte] for byte in data]


# ---- text as it is made


def test_a_character_of_several_bytes_appears_when_it_is_complete(folder, cli, monkeypatch, fake):
    pipe, reached, data = io.BytesIO(), [], "ß漢\U0001f600.".encode()

    def tokens(*args, **options):
        for byte in data:
            reached.append(pipe.getvalue().decode())
            yield np.array([byte])

    monkeypatch.setattr(generation, "iter_tokens", tokens)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="utf-8"))
        assert cli("generate", folder / "bytes", "Flu")[0] == 0
        shown = [*["Flu"] * 2, *["Fluß"] * 3, *["Fluß漢"] * 4, "Fluß漢\U0001f600"]
        assert reached == shown
        assert pipe.getvalue().decode() == "Fluß漢\U0001f600.\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xe6\xbcb", "a\ufffdb"),
        (b"a\xe6\xbc", "a\ufffd"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\xe6\xbc\xa2" * 2, "漢漢"),
        (b"", ""),
    ],
)
def test_what_is_no_character_is_marked(data, text, folder, cli, fake):
    fake(*columns(data))
    assert cli("generate", folder / "bytes", "x")[1] == f"x{text}\n"
    task = load_run(folder / "bytes")[1].task
    assert "".join(task.pieces(data)) == task.decode(data) == text


def test_a_token_that_the_tokenizer_leaves_unused(folder):
    task = load_run(folder / "bytes")[1].task
    assert task.decode([97, 300, 98]) == "".join(task.pieces([97, 300, 98])) == "a\ufffdb"


def test_text_is_the_same_however_it_is_made_and_printed(folder, cli):
    command = ("generate", folder / "bytes", "der ", "--temperature", 1, "--seed", 3)
    code, text, err = cli(*command)
    assert (code, err) == (0, "")
    assert text.startswith("der ")
    assert cli(*command)[1] == text
    assert cli(*command, "--no-cache")[1] == text
    (row,) = json.loads(cli(*command, "--json")[1])
    assert row["text"] + "\n" == text
    assert bytes(row["prompt"]) == b"der "
    assert cli(*command[:-1], 4)[1] != text


def test_a_text_goes_on_to_its_end_or_as_long_as_it_fits(folder, cli, fake):
    asked = fake([97], [END])
    code, out, _ = cli("generate", folder / "bytes", "der ")
    assert (code, out) == (0, "der a\n")
    (row,) = json.loads(cli("generate", folder / "bytes", "der ", "--json", "--no-cache")[1])
    assert (row["output"], row["text"]) == ([97, END], "der a")
    assert {call["count"] for call in asked} == {24 + 1 - 4}
    assert {call["end"] for call in asked} == {END}
    cli("generate", folder / "bytes", "der ", "--max-new-tokens", 3)
    assert asked[-1]["count"] == 3


def test_all_positions_are_used(folder, cli):
    (row,) = json.loads(cli("generate", folder / "bytes", "der ", "--json")[1])
    assert len(row["output"]) == 21 or row["output"][-1] == END
    (row,) = json.loads(cli("generate", folder / "bytes", "x" * 24, "--json")[1])
    assert len(row["output"]) == 1


@pytest.mark.parametrize("given", [("",), ()])
def test_an_empty_prompt_begins_a_document(given, folder, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    (row,) = json.loads(cli("generate", folder / "bytes", *given, "--json")[1])
    assert row["prompt"] == [END]


# ---- several prompts, several samples


def test_each_line_of_stdin_is_a_prompt(folder, cli, monkeypatch):
    lines = "der Fluß\n\nx\n"
    for extra in ((), ("--temperature", 1)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        rows = json.loads(cli("generate", folder / "bytes", *extra, "--json")[1])
        assert [bytes(row["prompt"]).decode() for row in rows] == ["der Fluß", "x"]
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code, text, err = cli("generate", folder / "bytes", *extra)
        assert (code, err) == (0, "")
        assert text == f"--- 1 of 2\n{rows[0]['text']}\n\n--- 2 of 2\n{rows[1]['text']}\n"


def test_samples(folder, cli):
    command = ("generate", folder / "bytes", "der ", "--samples", 4, "--temperature", 1, "--json")
    rows = json.loads(cli(*command)[1])
    assert len(rows) == 4
    assert len({row["text"] for row in rows}) == 4
    assert json.loads(cli(*command, "--no-cache")[1]) == [{**r, "cache_bytes": 0} for r in rows]
    model, _ = load_run(folder / "bytes")
    for r, row in enumerate(rows):
        how = {"temperature": 1.0, "first_row": r, "end": END}
        alone = [int(token[0]) for token in iter_tokens(model, [list(b"der ")], 21, **how)]
        assert row["output"] == alone
    narrow = json.loads(cli(*command, "--top-p", 1e-6)[1])
    assert len({row["text"] for row in narrow}) == 1


def test_bytes_of_a_row(folder, cli):
    of_a_token = {"plain": 16 * 4, "float16": 16 * 2, "int8": 16 + 2 * 4}  # two heads of width 8
    for kind, n in of_a_token.items():
        command = ("generate", folder / "bytes", "der ", "--cache", kind, "--json")
        (row,) = json.loads(cli(*command, "--max-new-tokens", 5)[1])
        assert row["cache_bytes"] == (4 + 5 - 1) * n


def test_a_ring_stops_growing(folder, cli):
    given = ("--cache", "ring", "--window", 5, "--sinks", 1, "--max-new-tokens", 15)
    code, out, err = cli("generate", folder / "bytes", "der ", "--show-cache", *given)
    assert (code, out[:4]) == (0, "der ")
    n = [line.split()[0] for line in err.splitlines() if line.endswith(" 384 B  2.25 KiB")]
    assert n == ["18"], err
    assert "6 of 6" in err
    assert "now 384 B for 18 tokens, as the formula says" in err
    (row,) = json.loads(cli("generate", folder / "bytes", "der ", "--json", *given)[1])
    assert row["cache_bytes"] == 6 * 16 * 4
    wide = ("--cache", "ring", "--window", 24)
    assert (
        cli("generate", folder / "bytes", "der ", *wide)[1]
        == (cli("generate", folder / "bytes", "der ")[1])
    )
    compare = ("generate", folder / "bytes", "der ", "--compare", *given)
    found = json.loads(cli(*compare, "--json")[1])
    same = found["cached"]["ids"] == found["uncached"]["ids"]
    says = "both give the same tokens" if same else "the tokens differ: --cache ring is not exact"
    assert says in cli(*compare)[1]


def test_compare(folder, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("der Fluß\nx\n"))
    given = ("--temperature", 1, "--samples", 2, "--max-new-tokens", 5, "--compare")
    code, out, _ = cli("generate", folder / "bytes", *given)
    assert code == 0
    assert re.search("4 sequences, [1-5] new tokens each", out)
    assert "both give the same tokens" in out


# ---- ends that come early


@pytest.mark.parametrize("n", [1, 2])
def test_an_interrupt_keeps_what_is_written(n, folder, cli, fake, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\ny\n" if n == 2 else "x\n"))
    data = [[byte] * n for byte in b"abc"]
    fake(*data, then=lambda: os.kill(os.getpid(), signal.SIGINT))
    code, out, err = cli("generate", folder / "bytes")
    assert code == 130
    assert out == ("xabc\n" if n == 1 else "--- 1 of 2\nxabc\n\n--- 2 of 2\nyabc\n")
    assert err.strip() == "minqkv: interrupted"


def test_an_interrupt_still_draws_the_cache(folder, cli, monkeypatch):
    def tokens(*args, **options):
        yield from islice(iter_tokens(*args, **options), 4)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(generation, "iter_tokens", tokens)
    code, out, err = cli("generate", folder / "bytes", "x", "--show-cache")
    assert code == 130
    assert len(out.encode()) >= 1 + 4 + 1  # the prompt, four bytes or marks, the end of the line
    assert "3 tokens written" in err
    assert "for 4 tokens, as the formula says" in err
    assert err.endswith("minqkv: interrupted\n")


def test_a_closed_pipe_ends_quietly(folder):
    child = start("generate", folder / "bytes", "der ", "--samples", 3, "--temperature", 1)
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(60) == 0
    child.stderr.close()


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Terminal, io.TextIOWrapper])
def test_a_terminal_gets_no_control_characters(kind, folder, cli, fake, monkeypatch):
    fake(*columns(b"a\x1b[2J\r\tb\nc"))
    pipe = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", kind(pipe, encoding="utf-8"))
        assert cli("generate", folder / "bytes", "x")[0] == 0
        shown = "xa\ufffd[2J\ufffd\tb\nc\n" if kind is Terminal else "xa\x1b[2J\r\tb\nc\n"
        assert pipe.getvalue().decode() == shown


# ---- bad input


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("chars", ("der Flüß",), "character 7 of the text, 'ü', is none of the 15 that"),
        ("chars", ("\udcff",), "the text is not UTF-8: byte 0 is 0xff"),
        ("chars", ("ü",), "leave it out, or train on a text with --tokenizer bytes"),
        ("chars", ("\ud83d",), "half of a surrogate pair"),
        ("bytes", ("x" * 25,), "the prompt has 25 tokens, but this model has 24 positions"),
        ("bytes", ("x" * 20, "--max-new-tokens", 9), "ask for at most 5 new tokens"),
        ("bytes", ("x", "--top-p", 0), "0.0 is not in the range"),
        ("bytes", ("x", "--top-p", 1.5), "1.5 is not in the range"),
        ("bytes", ("x", "--top-p", 0.5), "--top-p has no effect"),
        ("bytes", ("x", "--top-k", 5), "--top-k has no effect"),
        ("bytes", ("x", "--samples", 2), "--samples has no effect"),
        ("bytes", ("x", "--samples", 0), "0 is not in the range"),
        ("bytes", ("x", "--samples", 2**63, "--temperature", 1), "is not in the range"),
        ("bytes", ("x", "--cache", "ring", "--window", 2**63), "is not in the range from 1 to"),
        ("bytes", ("x", "--cache", "ring", "--window", 4, "--sinks", 2**63), "sinks must be a"),
        ("bytes", ("x", "--temperature", "nan"), "temperature nan must be finite"),
        ("bytes", ("x", "--cache", "plane"), "unknown cache 'plane' did you mean plain?"),
        ("bytes", ("x", "--no-cache", "--show-cache"), "--show-cache and --no-cache cannot"),
        ("bytes", ("x", "--no-cache", "--compare"), "--compare and --no-cache cannot"),
        (
            "bytes",
            ("x", "--no-cache", "--cache", "float16"),
            "--cache float16 and --no-cache cannot",
        ),
        ("bytes", ("x", "--compare", "--show-cache"), "leave out --show-cache"),
        ("bytes", ("x", "--cache", "ring"), "without a window, so the ring needs one for example"),
        ("bytes", ("x", "--window", 8), "--window and --sinks are for a ring cache --cache ring"),
        ("bytes", ("x", "--cache", "ring", "--window", 0), "0 is not in the range"),
        ("digits", ("",), 'the prompt is empty minqkv generate RUN "3 1 4 1"'),
    ],
)
def test_refused(name, args, says, folder, cli):
    code, out, err = cli("generate", folder / name, *args)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert len(err.splitlines()) <= 2 or "Usage" in err


def test_a_cache_that_does_not_fit_into_the_memory(folder, cli, monkeypatch):
    monkeypatch.setattr(needs, "available", lambda: 10_000_000)
    draws = ("--samples", 4000, "--temperature", 1, "--max-new-tokens", 1)
    code, out, err = cli("generate", folder / "bytes", "x", *draws)
    assert (code, out) == (3, "")
    # positions, rows of a token, numbers, bytes; and the logits of one position
    size = 4000 * (24 * 1 * 16 * 4 + 257 * 4)
    assert f"4,000 sequences need about {size / 2**20:.1f} MiB of memory, but 9.5 MiB are" in err
    assert cli("generate", folder / "bytes", "x", "--cache", "ring", "--window", 1, *draws)[0] == 0
    code, _, err = cli("generate", folder / "rope", "d", "--max-new-tokens", 10**9)
    assert (code, "1 sequence needs about 59.6 GiB of memory" in err) == (3, True), err


def test_eval_refuses_a_cache_without_a_name(folder, cli):
    code, _, err = cli("eval", folder / "bytes", "--cache", "")
    assert (code, "only the rounding of float16 and int8" in err) == (2, True)


def test_bytes_that_are_no_text_are_a_prompt_of_bytes(folder, cli):
    (row,) = json.loads(cli("generate", folder / "bytes", "a\udcff", "--json")[1])
    assert row["prompt"] == [97, 255]


def test_a_corpus_that_is_gone(folder, tmp_path):
    code, out, err = run("generate", folder / "bytes", "x", env={"MINQKV_CACHE": str(tmp_path)})
    assert (code, out) == (3, "")
    assert "minqkv data prepare" in err


# ---- what the cache holds


def test_the_text_stays_whole_beside_the_cache(folder, cli):
    command = ("generate", folder / "bytes", "der ", "--temperature", 1)
    code, out, err = cli(*command, "--show-cache")
    assert (code, out) == (0, cli(*command)[1])
    assert "4 tokens read" in err
    (row,) = json.loads(cli(*command, "--json")[1])
    n = 4 + len(row["output"]) - 1
    assert f"{n} of 24" in err
    assert f"for {n} tokens, as the formula says" in err
    assert json.loads(cli(*command, "--json", "--show-cache")[1]) == [row]


def test_the_cache_is_drawn_in_sixty_columns_of_a_pipe(folder):
    code, _, err = run(
        *("generate", folder / "bytes", "der ", "--show-cache", "--max-new-tokens", 12),
        env={"COLUMNS": "60", "NO_COLOR": "1"},
    )
    assert code == 0
    assert max(map(len, err.splitlines())) <= 60
    assert "\x1b" not in err
    for expected in (
        r"4 tokens read in [\d.,]+ ms, [\d,]+ tokens/s",
        r"11 tokens written in [\d.,]+ ms, [\d,]+ tokens/s",
        r"(?m)^ +4 +█+░+ +256 B +512 B$",
        r"(?m)^ +15 +█{12}░{12} +960 B +1.875 KiB$",
        r"(?m)^ +1 +q-k=v +█+░+ +4 of 24 +256 B$",
        r"(?m)^ +1 +q-k=v +█+░+ +15 of 24 +960 B$",
        r"saved 50.0 %; allocated 1.5 KiB",
    ):
        assert re.search(expected, err), (expected, err)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DESIGNS)
def test_bytes_on_the_screen_are_those_of_the_arrays(name, kind, capsys):
    model = design(name, window=3, sinks=1)
    cache = model.new_cache(4, **options(kind))
    watch = Watch(cache, model.config, 5)
    how = {"temperature": 1.0, "samples": 2, "cache": cache}
    for _ in watch.follow(iter_tokens(model, [[1], [2, 3, 4, 5]], 6, **how)):
        held = sum(
            buffer[b, :, : min(n, buffer.shape[2])].nbytes
            for layer in cache.layers
            for buffer in layer.buffers
            for b, n in enumerate(cache.lengths)
        )
        assert formula_bytes(cache) == cache.nbytes == held
    assert [n for n, _ in watch.growth] == [10, 14, 18, 22, 26, 30]
    assert (watch.growth[-1][1] == watch.growth[-2][1]) == kind.endswith("ring")
    watch.show_all()
    shown = capsys.readouterr().err
    assert "for 30 tokens, as the formula says" in shown
    assert "5 tokens read" in shown
    assert "20 tokens written" in shown


@pytest.mark.parametrize("torn", [True, False])
def test_a_line_on_the_terminal_while_tokens_come(torn, monkeypatch):
    """Redrawn in place, and erased at the end; none if the text goes to the terminal, too."""
    screen, model = io.StringIO(), design("q-k=v")
    monkeypatch.setattr(
        "minqkv.render.cache.stderr",
        lambda: Console(file=screen, force_terminal=True, width=50, color_system=None),
    )
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: torn))
    cache = model.new_cache(1)
    watch = Watch(cache, model.config, 2)
    for i, _ in enumerate(watch.follow(iter_tokens(model, [[1, 2]], 4, cache=cache))):
        lines = screen.getvalue().split("\r\x1b[2K")
        assert len(lines) == (1 if torn else i + 1)
        assert "\n" not in screen.getvalue()
        if i and not torn:
            assert lines[-1].startswith(f"{2 + i} tokens  █")
            assert lines[-1].count("█") == lines[-1].count("░") == 2 + i
            assert len(lines[-1]) < 50
    watch.show_all()
    *before, last = screen.getvalue().split("\r\x1b[2K")
    assert last.startswith("\n2 tokens read")
    assert len(before) == (0 if torn else 4)


@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_a_prompt_of_several_samples_is_counted_once(kind, capsys):
    model = design("q-k=v")
    cache = branches(model.new_cache(1, **options(kind)), 3)
    watch = Watch(cache, model.config, 4)
    list(watch.follow(iter_tokens(model, [[2, 3, 4, 5]], 6, 1.0, samples=3, cache=cache)))
    per_token = 2 * 16 * 8 if kind == "plain" else 2 * (16 + 4 * 4)
    assert formula_bytes(cache) == cache.nbytes == (4 + 3 * 5) * per_token
    assert cache.row_nbytes.tolist() == [9 * per_token, 5 * per_token, 5 * per_token]
    watch.show_all()
    shown = capsys.readouterr().err
    assert f"19 of {4 + 3 * 8}" in shown
    assert "for 27 tokens, as the formula says" in shown


def test_the_samples_of_a_command_share_their_prompt(folder, cli, monkeypatch):
    monkeypatch.setattr(Text, "end", None)
    command = ("generate", folder / "bytes", "der ", "--temperature", 1, "--max-new-tokens", 6)
    rows = json.loads(cli(*command, "--samples", 3, "--json")[1])
    (row,) = json.loads(cli(*command, "--json")[1])
    assert row["output"] == rows[0]["output"]
    n = [found["cache_bytes"] / row["cache_bytes"] for found in rows]
    assert n == [1, 5 / 9, 5 / 9]
    err = cli(*command, "--samples", 3, "--show-cache")[2]
    assert "for 27 tokens, as the formula says" in err
    assert re.search(r"q-k=v .* 19 of 64 ", err)


def test_a_cache_that_is_not_as_the_formula_says_is_told(capsys, monkeypatch):
    model = design("qkv")
    cache = model.new_cache(1)
    watch = Watch(cache, model.config, 1)
    list(watch.follow(iter_tokens(model, [[1]], 3, cache=cache)))
    monkeypatch.setattr(type(cache), "nbytes", 5)
    watch.show_all()
    assert "now 5 B for 3 tokens, formula: " in capsys.readouterr().err


# ---- eval


def test_a_text_is_scored_by_perplexity(folder, cli):
    code, out, err = cli("eval", folder / "bytes")
    assert (code, err) == (0, "")
    found = json.loads(cli("eval", folder / "bytes", "--json")[1])
    assert f"test split: perplexity {found['perplexity']:.4f} on {found['tokens']:,} tokens" in out
    for line in (
        f"bits per byte {found['bits_per_byte']:.4f}",
        f"accuracy {found['accuracy']:.4f}",
        f"loss {found['loss']:.4f}",
    ):
        assert line in out
    assert "mistake" not in out
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert not found.keys() & {"wrong", "sequences_wrong"}
    code, out, err = cli("eval", folder / "bytes", "--wrong", 2)
    assert (code, out) == (2, "")
    assert "no answers that are right or wrong" in err


def test_the_padded_perplexity_beside_the_masked_one(folder, cli, monkeypatch):
    code, out, _ = cli("eval", folder / "many", "--show-padded")
    assert code == 0
    found = json.loads(cli("eval", folder / "many", "--show-padded", "--json")[1])
    padded = found["padded"]
    assert f"perplexity, masked {padded['masked']:.4f}" in out
    assert f"perplexity, padded {padded['padded']:.4f}" in out
    assert f"{100 * padded['padding']:.1f} % of them are padding" in out
    assert padded["masked"] == pytest.approx(found["perplexity"])  # it was trained on padded rows
    score = {"padding": 0.5, "masked": 9.0}
    for value, says in ((4.0, "makes a model look better"), (16.0, "was not trained")):
        monkeypatch.setattr(Text, "padded_score", lambda *_, v=value: score | {"padded": v})
        out = " ".join(cli("eval", folder / "many", "--show-padded")[1].split())
        assert says in out
        assert "Report the masked one." in out


def test_where_nothing_is_padded(folder, cli):
    code, out, _ = cli("eval", folder / "bytes", "--show-padded")
    assert code == 0
    assert "many short documents has padding: a folder, or a .jsonl" in " ".join(out.split())
    assert "masked" not in out
    code, out, err = cli("eval", folder / "digits", "--show-padded")
    assert (code, out) == (2, "")
    assert "reverse has no padding" in err


@pytest.mark.parametrize("command", [("eval",), ("generate", "x")])
def test_the_best_checkpoint(command, folder, cli, monkeypatch):
    asked, load = [], runs.load_run

    def spy(path, own=None, **options):
        asked.append(options)
        return load(path, own)

    monkeypatch.setattr(runs, "load_run", spy)
    name, *rest = command
    assert cli(name, folder / "bytes", *rest)[0] == 0
    assert cli(name, folder / "bytes", *rest, "--best")[0] == 0
    assert asked == [{}, {"best": True}]


def test_the_best_of_a_run_that_kept_one(folder, cli):
    last, best = (
        json.loads(cli("eval", folder / "many", "--split", "validation", "--json", *more)[1])
        for more in ((), ("--best",))
    )
    assert best["perplexity"] <= last["perplexity"]
    assert cli("generate", folder / "many", "abc", "--best")[0] == 0


# ---- what a task says of generation


def test_remarks_come_from_the_task(folder):
    task = Synthetic("reverse", 4, form="causal")
    assert task.remark([task.prompt("1 2 3 4")] * 2) is None
    assert "trained on 4 digits" in task.remark([task.prompt("1 2 3 4"), task.prompt("1")])
    assert load_run(folder / "bytes")[1].task.remark([[1], [2, 3]]) is None
    with pytest.raises(UsageError, match="the prompt is empty"):
        task.prompt(" , ")


# ---- prompts in files


def test_a_prompt_is_read_once_and_continued_from_a_file(cli, folder):
    """What follows a saved prompt is what follows the whole text, for one sample or for several."""
    run = folder / "chars"
    draws = ("--temperature", 1, "--seed", 3, "--max-new-tokens", 8)
    code, out, _ = cli("generate", run, "de", "--save-cache", "de.npz", *draws)
    assert code == 0
    assert out.startswith("de")
    for samples in (1, 3):
        options = (*draws, "--samples", samples, "--json")
        whole = json.loads(cli("generate", run, "der F", *options)[1])
        rest = json.loads(cli("generate", run, "r F", "--load-cache", "de.npz", *options)[1])
        assert [row["output"] for row in rest] == [row["output"] for row in whole]
        assert [row["cache_bytes"] for row in rest] == [row["cache_bytes"] for row in whole]


def test_a_text_goes_on_after_block_size(cli, folder, monkeypatch):
    """Through a ring, whose bytes do not grow, also from a file. Not with learned positions."""
    monkeypatch.setattr(Text, "end", None)
    rest = ("--temperature", 1, "--seed", 2, "--json")
    ring = ("--cache", "ring", "--max-new-tokens", 100)
    code, out, _ = cli("generate", folder / "rope", "der F", *ring, *rest, "--save-cache", "p")
    assert code == 0
    (row,) = json.loads(out)
    assert len(row["output"]) == 100
    (plain,) = json.loads(cli("generate", folder / "rope", "der F", *ring[2:], *rest)[1])
    assert plain["output"] == row["output"]
    assert row["cache_bytes"] == 4 / (5 + 99) * plain["cache_bytes"]
    code, out, err = cli("generate", folder / "rope", "lie", "--load-cache", "p", *ring[2:], *rest)
    assert (code, len(json.loads(out)[0]["output"])) == (0, 100), err
    for args in (ring[2:], (*ring, "--window", 4)):
        code, out, err = cli("generate", folder / "chars", "der F", *args)
        assert (code, out) == (2, "")
        assert "but this model has 24 positions" in err
    code, _, err = cli("generate", folder / "rope", "d", "--no-cache", "--max-new-tokens", 100)
    assert (code, "but this model has 24 positions" in err) == (2, True)


@pytest.mark.parametrize("kind", ["plain", "int8", "ring"])
def test_a_prompt_of_several_samples_is_saved_once(cli, folder, kind):
    command = ("generate", folder / "rope", "der F", "--temperature", 1, "--cache", kind)
    assert cli(*command, "--save-cache", "one")[0] == 0
    assert cli(*command, "--save-cache", "three", "--samples", 3)[0] == 0
    model, _ = load_run(folder / "rope")
    one, three = (load(path, model) for path in ("one", "three"))
    assert (type(three), three.batch, len(three)) == (type(one), 1, 5)
    for mine, theirs in zip(one.layers, three.layers, strict=True):
        for a, b in zip(mine.rows, theirs.rows, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["float16", "int8", "ring"])
def test_a_file_knows_its_kind_of_cache(cli, folder, kind):
    run, window = folder / "chars", ("--window", 4) if kind == "ring" else ()
    draws = ("--temperature", 1, "--max-new-tokens", 6, "--json")
    assert cli("generate", run, "de", "--save-cache", "p", "--cache", kind, *window, *draws)[0] == 0
    whole = json.loads(cli("generate", run, "derF", "--cache", kind, *window, *draws)[1])
    rest = json.loads(cli("generate", run, "rF", "--load-cache", "p", *draws)[1])
    assert rest[0]["output"] == whole[0]["output"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--load-cache", "de.npz"), "needs a PROMPT that continues the saved text"),
        (("--save-cache", "x.npz"), "needs a PROMPT to read into the cache"),
        (("d", "--save-cache", "x.npz", "--no-cache"), "cannot be combined"),
        (("d", "--load-cache", "x.npz", "--compare"), "cannot be combined"),
        (("d", "--load-cache", "x.npz", "--cache", "int8"), "already determines the kind"),
        (("d", "--load-cache", "none.npz"), "none.npz does not exist"),
        (("d", "--load-cache", __file__), "corrupt, truncated or not a prompt cache"),
    ],
)
def test_files_of_prompts_that_are_refused(cli, folder, args, says):
    code, out, err = cli("generate", folder / "chars", *args)
    assert (code, out) == (3 if "npz does" in says or "corrupt" in says else 2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_cache_that_holds_something_is_continued(rng):
    model = GPT(GPTConfig(7, 16, 1, 2, 8, variant="q-k=v", dtype="float64"), seed=1)
    cache = model.new_cache(1)
    model([[1, 2, 3]], cache=cache)
    rest = generate(model, [[4, 5]], 6, 1.0, cache=cache, seed=5)
    assert (
        rest[0, 2:].tolist() == generate(model, [[1, 2, 3, 4, 5]], 6, 1.0, seed=5)[0, 5:].tolist()
    )
    with pytest.raises(UsageError, match="holds 10 positions, but use_cache is false"):
        generate(model, [[1]], 1, cache=cache, use_cache=False)
    with pytest.raises(UsageError, match="16 positions"):
        generate(model, [[1]], 7, cache=cache)


# ---- what rounding does


def test_eval_shows_what_rounding_does(cli, folder):
    code, out, _ = cli("eval", folder / "chars", "--cache", "int8", "--n", 5, "--json")
    assert code == 0
    rows = json.loads(out)["rounding"]
    assert [row["rounded"] for row in rows] == ["nothing", "keys", "values", "keys and values"]
    assert rows[0]["largest"] == 0 < rows[3]["largest"]
    text = cli("eval", folder / "chars", "--cache", "float16", "--n", 5)[1]
    assert "Effect of rounding to float16" in text
    code, _, err = cli("eval", folder / "chars", "--cache", "ring")
    assert code == 2
    assert "only the rounding of float16 and int8" in err
