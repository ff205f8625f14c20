"""Each example runs, as a script, and shows what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SHOWN = {  # script and arguments -> what its output must match
    "train_and_generate.py": r"loss .*\n3 1 4 1 5 9 \| 9 5 1 4 1 3\n.* 12 positions in 6,144 bytes",
    "train_and_generate.py qkv 2": r"^3 1 4 1 5 9 \|( \d+){6}\n.* 12 positions in 12,288 bytes",
    "compare_two_variants.py": r"q-k=v - qkv: [+-]0\.\d+ ± 0\.\d+ \(95 % interval\)\n",
    "look_inside.py": r"pattern +\(1, 2, 6, 6\)[^$]*6 positions, 384 bytes\n.* one array",
    "look_inside.py qkv": r"6 positions, 768 bytes\n.* two arrays",
}


@pytest.mark.parametrize("line", SHOWN)
def test_it_runs(line, tmp_path):
    script, *args = line.split()
    command = [sys.executable, FOLDER / script, *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(SHOWN[line], done.stdout), done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_it_is_short_and_tried(path):
    assert len(path.read_text("utf-8").splitlines()) <= 40
    assert any(line.split()[0] == path.name for line in SHOWN)
