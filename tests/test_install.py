"""What `pip install -e .` leaves behind works from anywhere, even from beside the clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "import minqkv as mq; print(mq.GPT.__name__, mq.__file__)"


@pytest.fixture
def clone(tmp_path):
    """A copy of what pip needs, in a folder that has the package's own name."""
    clone = tmp_path / "minqkv"
    clone.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, clone)
    for name in ("minqkv", "lessons"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    return clone


def test_a_script_beside_the_clone_finds_the_package(clone, tmp_path):
    """The clone's folder is called minqkv, and a script's own folder comes first in the path."""
    pytest.importorskip("setuptools")
    (tmp_path / "script.py").write_text(SCRIPT)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--target", site, "-e", clone]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    # Without this interpreter's own packages (-S), but for those of NumPy's folder. addsitedir
    # reads what pip has left behind, as Python does. The script's own folder comes first.
    start = f"import runpy, site, sys; site.addsitedir({str(site)!r}); sys.path.insert(0, '.'); "
    start += f"sys.path.append({str(Path(np.__file__).parents[1])!r}); runpy.run_path('script.py')"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", start],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["GPT", str(clone / "minqkv" / "__init__.py")]


def test_the_package_is_typed(clone):
    """Type checkers look for this file."""
    assert (clone / "minqkv" / "py.typed").exists()
