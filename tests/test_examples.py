"""Each example runs, as a script, and shows what it promises."""

import json
import re
import shutil
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
    "own_cache.py": r"KVCache +(\[.*\]), 4096 bytes\nConcatenating \1, 4096 bytes\n",
    "recurrence.py": r"both forms agree to 1e-10: True\n[^$]*1000 tokens: .* state 2,176\n",
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
    own = path.name in ("own_task.py", "own_cache.py")
    assert len(path.read_text("utf-8").splitlines()) <= (75 if own else 40)
    elsewhere = ("own_task.py", "check_torch.py")  # in test_vectors.py
    assert path.name in elsewhere or any(line.split()[0] == path.name for line in SHOWN)


def test_a_cache_of_your_own(tmp_path):
    """The command that the file names, for one variant."""
    line = (FOLDER / "own_cache.py").read_text("utf-8").split("minqkv ")[1].split("\n")[0]
    args = [*line.split()[:3], "q-k=v"]
    assert args == ["check-cache", "own_cache:Concatenating", "--variants", "q-k=v"]
    shutil.copy(FOLDER / "own_cache.py", tmp_path)
    command = [sys.executable, "-m", "minqkv", *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"any chunking +\d.\de-1\d +1e-10 +ok", done.stdout)
    assert "broken" not in done.stdout


def test_a_task_of_your_own(tmp_path):
    """The commands that the file names, from outside the package, but shorter."""
    text = (FOLDER / "own_task.py").read_text("utf-8").split('"""')[1]
    lines = [line.split() for line in text.splitlines() if line.startswith("    minqkv")]
    assert [line[1] for line in lines] == ["train", "eval", "study"]
    shutil.copy(FOLDER / "own_task.py", tmp_path)
    outputs = []
    for line in lines:
        args = [str(tmp_path / "run") if part == "/tmp/addition" else part for part in line[1:]]
        args = ["20" if part == "500" else part for part in args]
        args += ["--jobs", "1"] if args[0] == "study" else []
        command = [sys.executable, "-m", "minqkv", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert re.match(r"own_task:Addition with q-k=v: test exact 0\.\d{4} after 20", outputs[0])
    assert "test split: exact 0." in outputs[1]
    assert re.search(r"own_task:Addition +d 64 .*\n +exact", outputs[2])
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert 0 <= result["exact"] <= result["accuracy"] <= 1
