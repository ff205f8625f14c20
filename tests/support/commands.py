"""`python -m minqkv` as a child process, the way a user runs it."""

import atexit
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0  # when a test gives up on something that should have happened: no test is timed
_OURS = (  # what would change the output
    "COLUMNS", "NO_COLOR", "FORCE_COLOR", "MINQKV_BACKEND", "PYTHONIOENCODING",
)  # fmt: skip


def start(*args, env=None, **options):
    """A Popen of the command; stdin is empty, stdout and stderr are pipes of text unless told
    otherwise.
    """
    base = {name: value for name, value in os.environ.items() if name not in _OURS}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
    } | options
    command = [sys.executable, "-m", "minqkv", *map(str, args)]
    child = subprocess.Popen(command, env={**base, "PYTHONPATH": paths, **(env or {})}, **options)
    atexit.register(child.kill)  # where a test failed; a no-op for one that has ended
    return child


def run(*args, env=None, **options):
    """(exit code, stdout, stderr) of the command."""
    with start(*args, env=env, **options) as child:
        out, err = child.communicate(timeout=PATIENCE_S)
    return child.returncode, out, err


def wait_until(condition, seconds=PATIENCE_S):
    """Poll until `condition()` is true; fails the test when it never is."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)
