"""What known mistakes give in a task, computed once for all tests of a file."""

from contextlib import contextmanager

import pytest

from minqkv.analysis.vectors import causes


@contextmanager
def predictions_once():
    """Within it, `causes.named` computes each known mistake once for each task."""
    compute, known = causes.predictions, {}

    def predictions(task, names=None, grads=False):
        for key in ((id(task), True), (id(task), grads)):
            if key in known:
                break
        else:
            known[key] = task, [*compute(task, grads=grads)]  # the task is kept, so its id is, too
        return [found for found in known[key][1] if names is None or found[0] in names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causes, "predictions", predictions)
        yield
