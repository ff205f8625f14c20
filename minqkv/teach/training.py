"""Training of several minutes inside a lesson. The run is stored in the learner's folder, and
continued there.
"""

import os
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from .progress import WORK

STEPS = "MINQKV_LESSON_STEPS"  # environment variable: train this many steps, and keep nothing
BRIEF = 20  # that many in a lesson that is checked, or made into a page


def trained(name, config):
    """Train by a RunConfig: (model, losses of all steps, result of train_run, folder of the run).

    The folder is in minqkv-work, and its name begins with `name`. Training that was interrupted
    continues there; a finished run is loaded. With MINQKV_LESSON_STEPS no progress is shown, and
    the folder is None.
    """
    from ..render.training import live

    if steps := os.environ.get(STEPS):
        with TemporaryDirectory() as folder:
            short = config.change(steps=int(steps), watch=int(steps))  # scored at the end alone
            return *_train(short, f"{folder}/run"), None
    folder = (WORK / f"{name}-{config.hash[:6]}").as_posix()
    with live(config) as show:
        return *_train(config, folder, show), folder


def _train(config, folder, show=None):
    """(model, losses, result)."""
    from ..runs import read_run, train_run
    from ..runtime import backend
    from ..runtime.parallel import set_threads

    threads = backend.current.threads
    try:
        model, result = train_run(config, folder, True, show)
    finally:
        set_threads(threads)
    losses = [line["loss"] for line in read_run(folder)[1]]
    return model, losses, result


@contextmanager
def brief(steps=BRIEF):
    """`with`: lessons train only this many steps, so that they can be checked quickly."""
    before = os.environ.get(STEPS)
    os.environ[STEPS] = str(steps)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STEPS]
        else:
            os.environ[STEPS] = before
