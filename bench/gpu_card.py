"""bench.gpu, parts "tests" and "ceilings": whether the package is right on this card, and what the
card can do at best.
"""

import re
import signal
import subprocess
import sys
from functools import partial

import numpy as np

from minqkv import backend

from .common import ROOT, interleaved, median

PATIENCE = 20  # seconds in which pytest may sum up after it was interrupted


def test_cases(card, left):
    """One case: the tests that need a GPU, in at most half of the time that is left."""
    return {"pytest": lambda: tests(card.sizes.pytest, left() / 2)}


def tests(arguments, limit):
    """What `pytest -m gpu` found: its last line, the counts in it, and the failures."""
    command = [sys.executable, "-m", "pytest", "-rfE", "--tb=short", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    with subprocess.Popen(command, cwd=ROOT, **options) as child:
        try:
            out, late = child.communicate(timeout=limit)[0], False
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # then it still says how far it came
            out, late = _last_words(child), True
        except BaseException:
            child.kill()
            raise
    lines = out.rstrip().splitlines() or [""]
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])
    }
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    right = counts.get("passed", 0) > 0 and not counts.keys() & {"failed", "error"}
    row = {"arguments": arguments, "exit": child.returncode, "cut_short": late, **counts}
    row |= {"summary": lines[-1].strip("= "), "failures": failures, "agrees": right}
    return row | {"output": [] if right else lines[-60:]}


def _last_words(child):
    try:
        return child.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        return child.communicate()[0]


def ceiling_cases(card, left):
    """Copies and products, by CuPy and by PyTorch."""
    products = {
        f"product {kind}": partial(product, card, kind == "tf32") for kind in ("fp32", "tf32")
    }
    return {"copy": partial(copy, card), **products}


def copy(card):
    """GB/s of a copy within the device's memory, bytes read plus bytes written."""
    n, xp = card.sizes.copy, backend.xp
    source, target = xp.arange(n, dtype="float32"), xp.empty(n, "float32")
    candidates = {"array": lambda: xp.copyto(target, source)}
    if card.torch:
        mine = card.torch.arange(n, dtype=card.torch.float32, device=card.torch_device)
        other = card.torch.empty_like(mine)
        candidates["torch"] = lambda: other.copy_(mine)
    samples = interleaved(candidates, **card.timing())
    rates = {name: 2 * source.nbytes / median(samples, name) / 1e9 for name in samples}
    return {"bytes": source.nbytes, "GB_per_second": rates, "samples": samples}


def product(card, tf32):
    """TFLOP/s of a square float32 product of random numbers; `tf32`: inputs rounded to 10 bits."""
    n = card.sizes.product
    arrays = np.random.default_rng(0).standard_normal((2, n, n), dtype=np.float32)
    a, b = map(backend.upload, arrays)
    y = backend.xp.empty((n, n), "float32")
    candidates = {"array": lambda: backend.xp.matmul(a, b, out=y)}
    if card.torch:
        x, w = map(card.to_torch, arrays)
        z = card.torch.empty_like(x)
        candidates["torch"] = lambda: card.torch.matmul(x, w, out=z)
    card.tf32(tf32)
    try:
        samples = interleaved(candidates, **card.timing())
    finally:
        card.tf32(False)
    rates = {name: 2 * n**3 / median(samples, name) / 1e12 for name in samples}
    return {"rows": n, "tflops": rates, "samples": samples}
