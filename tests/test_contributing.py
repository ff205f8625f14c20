"""CONTRIBUTING.md keeps its word: what it says to write is written into a copy of the repository,
and the new task, variant, position scheme, kind of cache and lesson are there for help, tables,
training and decoding.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minqkv.cli.options import either
from minqkv.models import PROTOCOLS
from minqkv.runtime.errors import UsageError
from minqkv.tasks.rules import TASKS, YEARS
from minqkv.tasks.synthetic import TRAINING
from minqkv.variants import POSITIONS, VARIANTS, VariantSpec

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SIZE = ("--seq-len", "3", "--n-embd", "8", "--n-layer", "1", "--n-head", "2", "--steps", "2")


def recipe(title):
    """The lines of the one block in the section with this title: at most ten."""
    section = TEXT.split(f"### {title}\n")[1].split("\n### ")[0]
    (block,) = re.findall(r"```(?:diff|sh)\n(.*?)```", section, re.S)
    lines = block.splitlines()
    assert 0 < len(lines) <= 10
    return lines


def apply(lines, folder):
    """Change files as a reader would: find the lines that are there, in order; cut `-`, put `+`."""
    path, text, at = None, [], 0
    for line in [*lines, None]:
        if line is None or line[0] not in " +-":  # the end, or the name of the next file
            if path:
                path.write_text("\n".join(text) + "\n", "utf-8")
            if line is None:
                return
            path, at = folder / line, 0
            text = path.read_text("utf-8").splitlines()
        elif line[0] == "+":
            text.insert(at, line[1:])
            at += 1
        else:
            at = text.index(line[1:], at)  # ValueError: the line is no longer there
            if line[0] == "-":
                del text[at]
            else:
                at += 1


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package and the lessons in which everything of CONTRIBUTING.md was added."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("minqkv", "lessons"):
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for title in ("A task", "A variant", "A position scheme", "A kind of cache"):
        apply(recipe(title), folder)
    return folder


def command(folder, *args):
    """(exit code, stdout, stderr) of `minqkv ARGS` in the copy, line breaks undone in stderr."""
    line = [sys.executable, "-m", "minqkv", *args]
    done = subprocess.run(line, cwd=folder, capture_output=True, encoding="utf-8")
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_a_task(copy):
    assert "double" in command(copy, "train", "--help")[1]
    assert "double" in command(copy, "study", "--help")[1]
    rows = {row["name"]: row for row in json.loads(command(copy, "tasks", "--json")[1])}
    assert rows["double"]["target"] == [2 * digit % 10 for digit in rows["double"]["input"]]
    assert "did you mean double?" in command(copy, "train", "--task", "dubble")[2]
    code, out, err = command(copy, "train", "--task", "double", *SIZE, "--out", "double")
    assert code == 0, err
    assert "double with qkv: test accuracy" in out
    assert command(copy, "eval", "double", "--wrong", "1")[0] == 0


def decodes(copy, out, *flags):
    """Trains a decoder and lets it answer with the cache and without: the same tokens."""
    flags = ("--task", "reverse", "--form", "causal", *flags)
    code, _, err = command(copy, "train", *flags, *SIZE, "--out", out)
    assert code == 0, err
    code, text, err = command(copy, "generate", out, "1 2 3", "--compare", "--json")
    assert code == 0, err
    found = json.loads(text)
    return found["cached"]["ids"] == found["uncached"]["ids"]


def test_a_variant(copy):
    assert "k-q=v" in " ".join(command(copy, "train", "--help")[1].split())
    rows = {row["name"]: row for row in json.loads(command(copy, "variants", "--json")[1])}
    assert rows["k-q=v"]["formula"] == "softmax(αVKᵀ)V"
    assert rows["k-q=v"]["params"] == rows["q=k-v"]["params"]
    err = command(copy, "train", "--task", "copy", "--variant", "k-q=w")[2]
    assert "did you mean k-q=v" in err
    checked = json.loads(command(copy, "gradcheck", "--json")[1])
    assert [row["ok"] for row in checked if row["name"] == "Attention k-q=v"] == [True]
    assert decodes(copy, "variant", "--variant", "k-q=v", "--position", "rope")
    assert (
        "k-q=v"
        in command(copy, "study", *SIZE, "--preset", "quick-2026", "--n-head", "4", "--dry-run")[1]
    )


def test_a_position_scheme(copy):
    assert "binary" in " ".join(command(copy, "train", "--help")[1].split())
    args = ("train", "--task", "copy", "--position", "binry")
    assert "did you mean binary?" in command(copy, *args)[2]
    assert decodes(copy, "position", "--position", "binary")
    code, _, err = command(copy, "generate", "position", "1 2 3", "--max-new-tokens", "100")
    assert (code, "ask for at most" in err) == (2, True), err  # its table is not computed further


def test_a_kind_of_cache(copy):
    assert "float64" in command(copy, "generate", "--help")[1]
    assert decodes(copy, "cache")
    args = ("generate", "cache", "1 2 3", "--cache")
    code, _, err = command(copy, *args, "float64", "--show-cache")
    assert (code, "as the formula says" in err) == (0, True), err
    assert "did you mean float64" in command(copy, *args, "flaot64")[2]


def test_a_lesson(copy):
    first, *commands = [line.split() for line in recipe("A lesson")]
    assert first[:2] == ["cp", "-r"]
    number = re.search(r"/(\d+_)", first[3])[1]
    assert not list((copy / "lessons").glob(f"{number}*"))  # a number that no lesson has
    shutil.copytree(copy / first[2], copy / first[3])
    path = copy / first[3] / "lesson.py"
    text = re.sub('# title = ".*"', '# title = "My lesson"', path.read_text("utf-8"))
    path.write_text(text, "utf-8")
    assert "My lesson" in command(copy, "lesson", "list")[1]
    assert [line[0] for line in commands] == ["minqkv", "minqkv", "python", "minqkv"]
    check, play, golden, readme = (line[1:] for line in commands)
    code, out, err = command(copy, *check)
    assert (code, err) == (0, ""), out
    assert command(copy, *play, "--no-pause")[0] == 0
    (copy / golden[0]).parent.mkdir(parents=True)
    shutil.copy(ROOT / golden[0], copy / golden[0])
    stored = path.with_name("golden.json")
    stored.unlink()
    env = {**os.environ, "PYTHONPATH": str(copy)}
    subprocess.run([sys.executable, *golden], check=True, cwd=copy, env=env)
    assert stored.exists()
    assert f"[My lesson]({number}my_lesson" in command(copy, *readme[: readme.index(">")])[1]


# ---- the registrations themselves


def test_names_are_canonical_and_apart():
    for name, fields in VARIANTS.items():
        written = name.replace("N", "2").replace("M", "6")
        spec, numbers = VariantSpec.parse(written), {"N": 2, "M": 6}
        assert spec.name == written
        assert VariantSpec(**{f: numbers.get(v, v) for f, v in fields.items()}) == spec


def test_a_combination_without_a_name_says_so(monkeypatch):
    named = {name: fields for name, fields in VARIANTS.items() if "qa" not in name}
    monkeypatch.setattr("minqkv.variants.VARIANTS", named)
    with pytest.raises(UsageError, match="has no name in"):
        _ = VariantSpec(kv_heads=2).name
    with pytest.raises(UsageError, match="unknown variant"):
        VariantSpec.parse("mqa")


def test_protocols_have_blocks_and_a_recipe():
    assert list(YEARS) == list(PROTOCOLS) == list(TRAINING)


@pytest.mark.parametrize("args", ["train", "study"])
def test_help_lists_what_is_registered(args, cli):
    code, out, _ = cli(args, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert either(TASKS) in text
    assert either(VARIANTS) in text
    assert either(POSITIONS) in text


def test_registrations_need_no_numpy():
    code = "import sys, minqkv.variants, minqkv.tasks.rules; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
