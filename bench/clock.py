"""Where the time of a step goes, by operation: the package's own functions with a clock around
each, forward and backward.
"""

from collections import defaultdict
from time import perf_counter

import minqkv as mq
from minqkv import functional, optim, tensor

from .swap import Swap, functions

NO_OPERATIONS = {"make", "grad_wanted", "no_grad", "unbroadcast"}  # the graph's own, in tensor.py


class Clock:
    """Seconds and calls by name. Of nested operations each counts its own part only."""

    def __init__(self):
        self.seconds, self.calls = defaultdict(float), defaultdict(int)
        self.stack = []  # of the operations that run: seconds spent in others inside each

    def around(self, name, function):
        """The same function, timed under `name`."""

        def timed(*args, **kwargs):
            self.stack.append(0.0)
            began = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = perf_counter() - began
                own = took - self.stack.pop()
                if self.stack:
                    self.stack[-1] += took
                self.seconds[name] += own
                self.calls[name] += 1

        return timed

    def swap(self):
        """Operations, their vjps, clipping and the optimiser, all with the clock around them."""
        clocked = {
            function: self.around((name, "forward"), function)
            for module in (tensor, functional)
            for name, function in functions(module).items()
            if name not in NO_OPERATIONS
        }
        clocked[optim.clip] = self.around(("clip", "step"), optim.clip)

        def make(data, inputs, vjp):
            return original(data, inputs, vjp and self._pull(vjp))

        original = tensor.make
        return Swap({**clocked, original: make})

    def _pull(self, vjp):
        name = vjp.__qualname__.partition(".")[0]
        timed = self.around((name, "backward"), vjp)
        timed.__qualname__ = vjp.__qualname__
        return timed


def by_operation(size, variant, steps):
    """[{"operation", "phase", "ms", "calls", "share"}] a training step, largest first; "(the rest)"
    is what no clock saw.
    """
    clock = Clock()
    swap = clock.swap()
    with swap:
        model, optimizer, ids, targets = size.training(variant)
        optimizer.step = clock.around((type(optimizer).__name__, "step"), optimizer.step)
        mq.train_step(model, optimizer, ids, targets)
        clock.seconds.clear()
        clock.calls.clear()
        began = perf_counter()
        for _ in range(steps):
            mq.train_step(model, optimizer, ids, targets)
        total = perf_counter() - began
    clock.seconds["(the rest)", ""] = total - sum(clock.seconds.values())
    rows = [
        {
            "operation": name,
            "phase": phase,
            "ms": 1e3 * s / steps,
            "calls": clock.calls[name, phase] // steps,
            "share": s / total,
        }
        for (name, phase), s in clock.seconds.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])
