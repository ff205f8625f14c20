"""The README keeps its word: its links lead somewhere, its Python runs, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links(target):
    assert (ROOT / target).exists()


def test_python():
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|bin/)minqkv ([a-z]+)", README))))
def test_commands(command, cli):
    assert cli(command, "--help")[0] == 0
