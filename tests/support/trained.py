"""What holds for training on any task: whether it is cut into parts, or killed on the way."""

import numpy as np
import pytest
from toys import host

from minqkv import optim
from minqkv.runs import train_run
from minqkv.runtime import parallel
from minqkv.train import loss_and_gradients


class Killed(Exception):
    """The end of a run, before its time."""


def same_bits_after_a_kill(config, folder, after, between=lambda: None):
    """A run that is killed after so many steps and then resumed ends with the bits of a whole one.

    `between` is called before it is resumed.
    """
    expected = train_run(config)[0].state_dict()

    def kill(step):
        if step.done == after:
            raise Killed

    with pytest.raises(Killed):
        train_run(config, folder, progress=kill)
    between()
    found = train_run(config, folder, resume=True)[0].state_dict()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def same_gradients_in_parts(task, monkeypatch):
    """Two threads, or three parts, give the loss and the gradients of one piece, to rounding."""
    monkeypatch.setattr(parallel, "SMALLEST", 1)
    x, y = task.batch(0, 0, 24)
    found = []
    try:
        for threads, accumulate in ((1, 1), (2, 1), (1, 3)):
            parallel.set_threads(threads)
            model = task.model("q-k=v", 0)
            optim.Adam(model.parameters())
            loss = loss_and_gradients(model, x, y, task.loss, task.weight, accumulate)
            found.append((loss, [host(p.grad) for p in model.parameters()]))
    finally:
        parallel.set_threads(1)
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for one, two in zip(found[0][1], grads, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
