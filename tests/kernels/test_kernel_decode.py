"""decode.cu against the readable code: alone, and on the way from `--backend strict` to a token."""

import numpy as np
import on_cpu
import pytest

import minqkv as mq
from minqkv import backend
from minqkv.cache import LayerCache
from minqkv.nn import Init
from minqkv.tensor import Tensor

DESIGNS = ("qkv", "q-k=v", "gqa-2", "mqa", "q-mqa")


def layer(variant, head_dim=16, heads=4, **more):
    """An attention layer and its cache of 2 sequences, on the backend in use. Its weights are so
    large that some scores far exceed others.
    """
    attention = mq.Attention(variant, 8, heads, 512, Init(seed=3), head_dim=head_dim, **more)
    for p in attention.parameters():
        p.data *= 40
    stored = [(n, width) for n, width in attention.spec.rows(heads, head_dim, 0)]
    return attention, LayerCache(2, stored, 512)


def answers(variant, lengths, kernels, seed=0, **more):
    """What a layer says of one token after another, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    with backend.use_backend("strict") as current, mq.no_grad():
        current.kernels = kernels
        attention, cache = layer(variant, **more)
        found, begun = [], 0
        for n in lengths:
            past = rng.standard_normal((2, n - 1 - begun, 8), dtype="f4")
            if past.size:
                attention(Tensor(backend.upload(past)), cache=cache)
            x = rng.standard_normal((2, 1, 8), dtype="f4")
            found.append(backend.to_host(attention(Tensor(backend.upload(x)), cache=cache).data))
            begun = n
        return np.concatenate(found)


def check(variants=DESIGNS, lengths=(1, 2, 31, 64, 65, 200), **more):
    """The kernel and the readable code agree; the kernel has been used."""
    for variant in variants:
        with on_cpu.recording() as calls:
            ours = answers(variant, lengths, True, **more)
        assert len(calls) == 2 * len(lengths), variant
        np.testing.assert_allclose(ours, answers(variant, lengths, False, **more), 2e-5, 2e-5)


def test_the_readable_code_agrees():
    check()


@pytest.mark.parametrize("head_dim", [32, 48, 128, 256])
def test_head_widths(head_dim):
    check(["gqa-2"], (1, 33, 130), head_dim=head_dim)


def check_addresses(variants=("gqa-2", "q-mqa")):
    """The same, under the address sanitiser."""
    with on_cpu.recording() as calls:
        for variant in variants:
            answers(variant, (1, 33, 100), True)
    on_cpu.sanitised(calls)


def test_nothing_is_read_or_written_outside():
    check_addresses()


def quick():
    """The checks that must notice a fault, in a second or two."""
    check(["gqa-2"], (70, 200))
    check(["gqa-2"], (70,), heads=32)


FAULTS = [  # (old text, new text), and the check that notices it if that is not `quick`
    ("t < GROUP) peak[t] = LOWEST, total[t] = 0", "t < GROUP) peak[t] = LOWEST"),
    ("start + r < end ? as_float(keys", "start + r <= end ? as_float(keys", check_addresses),
    ("start + row < end ? score : -INFINITY", "start + row <= end ? score : -INFINITY"),
    ("total[g] * old + warp_sum(w)", "total[g] + warp_sum(w)"),
    ("mix[g][i] *= shrink[g];", ""),
    ("head = blockIdx.y / chunks", "head = blockIdx.y % heads"),
    ("__syncthreads();                                // the last tile has been used", ""),
    ("end = min(begin + span, n)", "end = min(begin + span, n) / ROWS * ROWS"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[new or old for old, new, *_ in FAULTS])
def test_a_planted_fault_is_noticed(fault):
    old, new, notices = (*fault, quick)[:3]
    assert not on_cpu.survives("decode", old, new, notices)
