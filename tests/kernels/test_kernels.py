"""From `--backend` and `--no-kernels` to a launch: which code runs, and what is said of it."""

import warnings

import numpy as np
import on_cpu
import pytest

import minqkv as mq
from minqkv import backend, kernels
from minqkv.runtime.backend import GpuBackend, use_kernels


@pytest.fixture
def strict(monkeypatch):
    """The backend on the stand-in, with its kernels."""
    monkeypatch.setattr(GpuBackend, "kernels", True)
    with backend.use_backend("strict") as current:
        yield current


def launches(prompt=5):
    """How many functions of decode.cu are launched for one token."""
    model = mq.GPT(mq.GPTConfig(11, 32, 2, 2, 32))
    cache = model.new_cache()
    model([[*range(prompt)]], cache=cache)
    with on_cpu.recording() as calls:
        model([[3]], cache=cache)
    return sum(call[2] in ("decode", "join") for call in calls)


def test_a_token_is_decoded_by_kernels(strict):
    assert launches() == 2 * 2  # layers, times the two functions of decode.cu
    use_kernels(False)
    assert launches() == 0
    use_kernels(True)
    assert launches() == 4


def test_the_host_has_none():
    assert backend.current.name == "numpy"
    assert launches() == 0


def test_numbers_become_c_types():
    for value, dtype in ((3, "int32"), (True, "int32"), (0.5, "float32"), (np.int64(3), "int64")):
        assert kernels.argument(value).dtype == dtype
    assert kernels.argument(None) is None
    with pytest.raises(OverflowError):
        kernels.argument(2**31)


def test_a_kernel_that_does_not_compile_is_named_once(strict):
    old = "float4 k = "
    line = 1 + kernels.source("decode").split('"decode.cu"\n')[1].split(old)[0].count("\n")
    with on_cpu.planted("decode", old, "flaot4 k = "):
        told = rf"readable code runs.*decode\.cu:{line}:\d+"
        with pytest.warns(RuntimeWarning, match=told) as said:
            assert launches() == 0
        assert len(said) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert launches() == 0
        assert f"decode.cu:{line}:" in strict.usable()["decode"]


def test_a_host_array_is_no_argument(strict):
    with pytest.raises(TypeError, match="host array"):
        strict.launch("decode", "join", (1,), (128,), [np.zeros(4)], kernels.FILES["decode"])


def test_doctor_lists_them(strict, cli):
    assert "decode usable" in cli("doctor", "--backend", "strict")[1]
    assert "usable, but switched off" in cli("doctor", "--backend", "strict", "--no-kernels")[1]
    assert "computes on the host" in cli("doctor", "--backend", "numpy")[1]
    assert GpuBackend.kernels  # the last command was without the flag


def test_the_flag_reaches_a_command(strict, cli, tmp_path):
    small = ("--seq-len", 4, "--n-embd", 32, "--n-layer", 1, "--n-head", 2, "--steps", 1)
    assert cli("train", "--task", "copy", "--form", "causal", *small, "--out", "run")[0] == 0
    told = []
    for flags, used in (((), True), (("--no-kernels",), False)):
        with on_cpu.recording() as calls:
            code, out, err = cli("generate", "run", "1234", "--backend", "strict", *flags)
        assert (code, bool(calls)) == (0, used), err
        told.append(out)
    assert told[0] == told[1]
