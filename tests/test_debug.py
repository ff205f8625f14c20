"""`MINQKV_DEBUG=1` names the culprit, and lets what is right pass."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from toys import fresh_gpt, gradients

from minqkv import tensor

HEAD = """
import numpy as np, minqkv as mq
from minqkv import Tensor, functional as F
from minqkv.tensor import make
x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
"""


def debug(code, **env):
    """Run code in a process of its own with MINQKV_DEBUG=1; returns (exit status, stderr)."""
    command = [sys.executable, "-W", "ignore", "-c", HEAD + textwrap.dedent(code)]
    environment = os.environ | {"MINQKV_DEBUG": "1"} | env
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


DEBUG = {
    "a NaN forward": ("""
        def deep(x):
            return F.log(x - 5)
        deep(x).sum().backward()""",
        ["FloatingPointError", "first NaN in log (forward)", "in deep"]),
    "a NaN backward": ("""
        def deep(x):
            return make(x.data * 1, (x,), lambda g, wanted: (g * np.nan,))
        deep(x).sum().backward()""",
        ["FloatingPointError", "first NaN in deep (backward, gradient 0)", "in deep"]),
    "a gradient of the wrong shape": ("""
        def shapeless(x):
            return make(x.data * 1, (x,), lambda g, wanted: (g.sum(),))
        shapeless(x).sum().backward()""",
        ["backward of shapeless", "gradient 0 is () float64, its input (2,) float64"]),
    "a gradient of the wrong dtype": ("""
        def narrow(x):
            return make(x.data * 1, (x,), lambda g, wanted: (g.astype("float32"),))
        narrow(x).sum().backward()""", ["backward of narrow", "gradient 0 is (2,) float32"]),
    "an error in backward": ("""
        def broken(x):
            return make(x.data * 1, (x,), lambda g, wanted: 1 / 0)
        def caller(x):
            return broken(x)
        caller(x).sum().backward()""",
        ["backward of broken: division by zero", "its forward ran here", "in caller"]),
    "writing to an output": ("""
        y = x.exp()
        y.data[0] = 1""", ["ValueError", "read-only"]),
    "writing to an input": ("""
        y = x.exp()
        x.data *= 2""", ["ValueError", "read-only"]),
    "a step between forward and backward": ("""
        model = mq.GPT(mq.GPTConfig(5, 4, 1, 1, 4, recompute=True))
        optimizer = mq.AdamW(model.parameters())
        ids = np.array([[1, 2], [3, 4]])
        first, second = (F.cross_entropy(model(ids), ids) for _ in range(2))
        first.backward()
        optimizer.step()
        second.backward()""", ["has changed since the forward pass", "its forward ran"]),
    "a constant that was changed": ("""
        a = np.ones(2)
        y = (x * a).sum()
        a[0] = 0
        y.backward()""", ["backward of mul", "has changed since the forward pass"]),
    "ids that were changed": ("""
        ids = np.array([[0, 1]])
        y = F.embedding(ids, x.reshape(2, 1)).sum()
        ids[:] = 0
        y.backward()""", ["backward of embedding", "has changed since the forward pass"]),
    "a mask that was changed": ("""
        q, mask = x.reshape(1, 1, 2, 1), np.tri(2, dtype=bool)
        y = F.scaled_dot_product_attention(q, q, q, mask).sum()
        mask[:] = True
        y.backward()""", ["scaled_dot_product_attention", "has changed since the forward pass"]),
    "an array behind a view": ("""
        base = np.arange(6.0)
        w = Tensor(base[::2], requires_grad=True)
        y = (w * w).sum()
        base += 1
        y.backward()""", ["backward of mul", "has changed since the forward pass"]),
    "too few gradients": ("""
        def forgetful(x, y):
            return make(x.data * y.data, (x, y), lambda g, wanted: (g,))
        forgetful(x, x).sum().backward()""", ["forgetful", "zip()"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def complaints():
    """Name -> traceback of each of the programs above, all run in one process."""
    programs = {name: HEAD + textwrap.dedent(code) for name, (code, _) in DEBUG.items()}
    status, stderr = debug(f"""
        import json, sys, traceback
        found = {{}}
        for name, code in {programs!r}.items():
            try:
                exec(code, {{}})
            except Exception:
                found[name] = traceback.format_exc()
        sys.stderr.write(json.dumps(found))
    """)
    assert status == 0, stderr
    return json.loads(stderr)


@pytest.mark.parametrize("name", DEBUG)
def test_debug_names_the_culprit(name, complaints):
    for words in DEBUG[name][1]:
        assert words in complaints[name]


def test_debug_lets_what_is_right_pass_and_unlocks_it():
    status, stderr = debug("""
        from minqkv.train import train_step
        for backend in ("numpy",):
            for variant in ("qkv", "q=k=v+", "q-gqa-2"):
                for position in ("learned", "rope"):
                    changes = {"variant": variant, "position": position, "dropout": 0.1}
                    model = mq.GPT(mq.GPTConfig(5, 8, 2, 4, 16, **changes))
                    optimizer = mq.AdamW(model.parameters())
                    for _ in range(2):
                        train_step(model, optimizer, np.zeros((2, 4), int), np.ones((2, 4), int))
        w = Tensor(np.ones(2, "float32"), requires_grad=True)
        (w * x).sum().backward()  # of two dtypes
        assert w.grad.dtype == "float32"
        x.zero_grad()
        (x + w).sum().backward()  # what no gradient depends on may change
        base = np.arange(2.0)
        y = Tensor(base[:], requires_grad=True) + 1
        base += 1
        y.sum().backward()
        y = x.reshape(2, 1).transpose()[0] * x
        y.sum().backward()
        x.data *= 2
        y.data *= 2
    """)
    assert (status, stderr) == (0, "")


def test_debug_off_by_default():
    status, stderr = debug(
        "x.exp().data[0] = 1; assert F.log(x - 5).requires_grad", MINQKV_DEBUG="0"
    )
    assert (status, stderr) == (0, "")


def test_debug_changes_no_result(monkeypatch):
    expected = gradients(fresh_gpt("q=k=v+"))
    monkeypatch.setattr(tensor, "DEBUG", True)
    for name, g in gradients(fresh_gpt("q=k=v+")).items():
        np.testing.assert_array_equal(g, expected[name], err_msg=name)
