"""Logits, loss, every gradient and ten training steps of small models against numbers that PyTorch
computed once (make_golden.py), on every backend. PyTorch itself is not needed here."""

import numpy as np
import pytest
from make_golden import CASES, CLIP, DECAY, GOLDEN, IDS, LR, STEPS, TARGETS, build

from minqkv import AdamW
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.train import train_step


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def test_the_file_is_small_and_complete(golden):
    assert GOLDEN.stat().st_size < 60_000
    assert {name.split("/")[0] for name in golden} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(backend, golden, case):
    model = build(*CASES[case])
    logits = model(IDS)
    np.testing.assert_allclose(logits.numpy(), golden[f"{case}/logits"], rtol=1e-10, atol=1e-10)
    loss = F.cross_entropy(logits, TARGETS)
    np.testing.assert_allclose(loss.item(), golden[f"{case}/loss"], rtol=1e-10)
    loss.backward()
    stored, start = golden[f"{case}/gradients"], 0
    for name, p in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        expected = stored[start : start + p.size].reshape(p.shape)
        np.testing.assert_allclose(
            backends.to_host(p.grad), expected, rtol=1e-10, atol=1e-10, err_msg=name
        )
        start += p.size
    assert start == len(stored)


@pytest.mark.parametrize("case", CASES)
def test_ten_steps(backend, golden, case):
    model = build(*CASES[case])
    optimizer = AdamW(model.parameters(), LR, weight_decay=DECAY)
    losses = [train_step(model, optimizer, IDS, TARGETS, CLIP) for _ in range(STEPS)]
    np.testing.assert_allclose(losses, golden[f"{case}/losses"], rtol=0, atol=1e-9)
    assert losses[-1] < losses[0]
