"""The README keeps its word: it is short, its links lead somewhere, its Python runs, its commands
and files exist, and what it says of the results is what they hold.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES += tuple(
    f"docs/{name}.md"
    for name in (
        *("results", "recall", "images", "designs", "designs-study", "diagnose", "plan"),
        *("positions", "recurrence", "convert", "vectors", "claims", "roofline"),
    )
)
TREE = re.search(r"```\n(minqkv/\n.*?)```", README, re.S)[1].splitlines()


def test_length():
    assert len(README.splitlines()) <= 130
    for page in PAGES:
        lines = (ROOT / page).read_text("utf-8").splitlines()
        long = [line for line in lines if len(line) > 100 and not line.startswith("|")]
        assert long == [], page


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_python():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for code in blocks:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|bin/)minqkv ([a-z-]+)", README))))
def test_commands(command, cli):
    assert cli(command, "--help")[0] == 0


def test_every_command_is_there(cli):
    listed = re.findall(r"^  ([\w-]+)  ", cli("--help")[1].split("Commands:\n")[1], re.M)
    assert len(listed) > 8
    for command in listed:
        assert f"minqkv {command}" in README


def test_the_line_that_runs_the_tests():
    """CI takes it from here: one line, from venv to pytest, in which pip says what it does."""
    (line,) = re.findall(r"^python3 -m venv .*pytest$", README, re.M)
    assert "pip install -e '.[test]'" in line
    assert not re.search(r"pip install .*-q", README)


def tree():
    """(path, comment) of each entry of the file tree; a folder's path ends with a slash."""
    entries = re.sub(r"\n {20}", " ", "\n".join(TREE)).splitlines()  # a long comment: more lines
    for entry in entries:
        names, _, comment = entry.strip().partition("  ")
        folder = "" if entry[0] != " " else "minqkv/"
        for name in names.split():
            yield folder + name, comment.strip()


def test_files_of_the_tree():
    for path, comment in tree():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
        assert comment or path == "minqkv/"


def test_the_tree_names_every_file():
    """Files of the book on a line of their own, others in their folder's entry."""
    lines = dict(tree())
    for path in sorted((ROOT / "minqkv").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        folder = f"minqkv/{path.relative_to(ROOT / 'minqkv').parts[0]}/"
        told = ("minqkv/teach/", "minqkv/render/", "minqkv/cli/")  # as a whole
        if path.parent.name == "vectors":  # its entry stands in the one of analysis/
            assert "vectors/ (" in lines[folder]
            continue
        if path.name.startswith("__") or folder in told or place in lines:
            continue
        assert path.stem in re.findall(r"\w+", lines[folder]), place


def test_where_things_are():
    """Each name in the table of questions is defined in the file beside it."""
    rows = re.findall(r"^\| .*\? \| (.*) in \[.*\]\((.*)\) \|$", README, re.M)
    assert len(rows) == 7
    for names, path in rows:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        defined = {getattr(node, "name", None) for node in ast.walk(tree)}
        defined |= {target.id for node in tree.body if isinstance(node, ast.Assign)
                    for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
        for name in re.findall(r"`([\w.]+)`", names):
            assert set(name.strip(".").split(".")) <= defined, name


def test_the_summary_of_the_results():
    """q-k=v stores a half and q-mqa an eighth; neither differs from qkv beyond its interval."""
    path = ROOT / "bench/results/study-quick/results.json"
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        rows = {row["arm"]: row for row in cell["rows"]}
        assert all(len(row["by_seed"]) == 3 for row in rows.values())
        for name, share in (("q-k=v", 2), ("q-mqa", 8)):
            assert rows[name]["cache_measured"] * share == rows["qkv"]["cache_measured"]
            assert abs(rows[name]["to_qkv"]["mean"]) <= rows[name]["to_qkv"]["half"]
    for words in ("halves the cache", "an eighth of it", "with 3 seeds"):
        assert words in " ".join(README.split())


def test_the_version_is_the_same_everywhere():
    from minqkv import __version__

    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
