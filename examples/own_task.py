"""A task of your own: adding two numbers, digit by digit, with a score for whole answers.

    cd examples
    minqkv train --task own_task:Addition --variant q-k=v --steps 500 --out /tmp/addition
    minqkv eval /tmp/addition --task own_task:Addition --wrong 3
    minqkv study --tasks own_task:Addition --variants qkv,q-k=v --seeds 3 --steps 500

A task is a frozen dataclass derived from minqkv.Task. It says what examples are and which model
learns them; the loss, the score and the training recipe have defaults, some of which are replaced
here. Its fields can be set: `--n-layer 3 --set digits=3`.
"""

from dataclasses import dataclass

import numpy as np

from minqkv import GPTConfig, Task
from minqkv.tasks.base import Recipe
from minqkv.train import IGNORE

PLUS, EQUALS = 10, 11  # after the ids of the ten digits


@dataclass(frozen=True)
class Addition(Task):
    """12 + 39 = 15 (51, written last digit first): the loss is on the answer alone."""

    digits: int = 2

    metric = "exact"  # what a study compares: the share of sums in which every digit is right
    solved = 0.99

    def examples(self, rng, n):
        """n sums: inputs and targets, both (n, T)."""
        a, b = rng.integers(0, 10**self.digits, (2, n))
        answer = _digits(a + b, self.digits + 1)[:, ::-1]  # carries come before their use
        plus, equals = (np.full((n, 1), sign) for sign in (PLUS, EQUALS))
        asked = np.concatenate([_digits(a, self.digits), plus, _digits(b, self.digits), equals], 1)
        whole = np.concatenate([asked, answer], axis=1)
        targets = whole[:, 1:].copy()
        targets[:, : asked.shape[1] - 1] = IGNORE
        return whole[:, :-1], targets

    def config(self, variant):
        """A GPT with room for both numbers, two signs and the answer."""
        size = {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd}
        return GPTConfig(12, 3 * self.digits + 3, variant=variant, **size)

    def recipe(self, steps=None):
        """More examples per step and a higher rate than the default."""
        return Recipe(steps or 2000, batch=256, lr=3e-3, warmup=50, clip=1.0)

    def predict(self, model, x, y):
        """Token accuracy and loss, and the metric above."""
        found = super().predict(model, x, y)
        wrong = (found["predictions"] != y) & (y != IGNORE)
        return {"exact": float(1 - wrong.any(axis=1).mean()), **found}


def _digits(numbers, width):
    """(n,) -> (n, width), the first digit first."""
    return numbers[:, None] // 10 ** np.arange(width)[::-1] % 10
