"""The synthetic tasks (paper, section 4.1): digits in, digits out, every target computable by hand.

What each task asks is a rule (rules.py). As tagging (form "encoder"): x of T digits, a label for
each digit. In causal form: `x | y` for a decoder, the loss on y only.
"""

from dataclasses import dataclass

import numpy as np

from ..runtime.errors import UsageError, unknown
from ..runtime.rng import stream
from ..train import IGNORE
from .base import Recipe
from .rules import FORMS, RULES, SPLITS

RECIPES = {  # by protocol: the years of the paper and of its predecessor
    "2023": Recipe(50_000, 10_000, 128, 2, True, 1e-3, 5.0, 0, False),
    "2026": Recipe(10_000, 2_000, 128, 2, False, 1e-3, 5.0, 0.05, True),
}


@dataclass(frozen=True)
class Synthetic:
    """One task at one length over the digits 0 .. alphabet-1."""

    name: str
    seq_len: int = 16
    alphabet: int = 10
    form: str = "encoder"

    def __post_init__(self):
        if self.name not in RULES:
            raise unknown("task", self.name, RULES)
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)
        if self.seq_len < 1 or self.alphabet < 2:
            raise UsageError(
                f"length {self.seq_len} must be at least 1 and alphabet {self.alphabet} at least 2"
            )
        if (why := RULES[self.name].even) and self.seq_len % 2:
            raise UsageError(
                f"{self.name} {why}: the length must be even, not {self.seq_len}",
                f"--seq-len {self.seq_len + 1}",
            )

    @property
    def vocab_size(self):
        """Input ids: the digits, and in causal form the separator, whose id is `alphabet`."""
        return self.alphabet + (self.form == "causal")

    @property
    def block_size(self):
        """Tokens the model reads at once: x, or x | y without the last digit."""
        return self.seq_len if self.form == "encoder" else 2 * self.seq_len

    def draw(self, seed, split, n):
        """Inputs and targets, both (n, block_size) int64; IGNORE where nothing is asked. Splits
        never share a stream.

        The digits depend on (seed, split, length, alphabet) alone: all tasks and variants of a seed
        see the same ones.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        x = stream(seed, "data", split, self.seq_len, self.alphabet).integers(
            0, self.alphabet, (n, self.seq_len)
        )  # (n, T)
        return self.encode(x)

    def encode(self, x):
        """Digits (n, T) -> inputs and targets (n, block_size)."""
        y = RULES[self.name].target(x, self.alphabet)  # (n, T)
        if self.form == "encoder":
            return x, y
        separator = np.full((len(x), 1), self.alphabet)
        inputs = np.concatenate([x, separator, y[:, :-1]], axis=1)  # (n, 2T)
        ignored = np.full((len(x), self.seq_len), IGNORE)
        return inputs, np.concatenate([ignored, y], axis=1)  # (n, 2T)
