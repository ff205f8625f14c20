"""The synthetic tasks (paper, section 4.1): digits in, digits out, every target computable by hand.

What each task asks is a rule (rules.py). As tagging (form "encoder"): x of T digits, a label for
each digit. In causal form: `x | y` for a decoder, the loss on y only.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache

import numpy as np

from ..models import PROTOCOLS, GPTConfig, TaggerConfig
from ..runtime.errors import UsageError, unknown
from ..runtime.rng import stream
from ..train import IGNORE
from .base import Recipe, Task, check_split
from .rules import FORMS, RULES

_PI = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8)  # digits for an example


@dataclass(frozen=True)
class Training:
    """What the paper of a year trains on, and how (paper, section 4.1)."""

    n_train: int
    n_test: int
    drop_last: bool  # leave out the incomplete batch at the end of an epoch
    recipe: Recipe
    warmup_share: float | None  # of all steps; None: a fixed number

    def steps_per_epoch(self, batch: int) -> int:
        """Batches in one pass over the training examples."""
        whole, rest = divmod(self.n_train, batch)
        return whole + (rest > 0 and not self.drop_last)


TRAINING = {  # the years of the paper and of its predecessor
    "2023": Training(50_000, 10_000, True, Recipe(780, restart=False), None),
    "2026": Training(10_000, 2_000, False, Recipe(158, warmup=7), 0.05),
}


@dataclass(frozen=True)
class Synthetic(Task):
    """One task at one length over the digits 0 .. alphabet-1."""

    seq_len: int = 16
    alphabet: int = 10
    form: str = "encoder"
    _: KW_ONLY
    protocol: str = "2026"
    _: KW_ONLY
    position: str | None = None
    plus_start: float | None = None
    hide_self: bool = False
    n_test: int | None = None

    def __post_init__(self):
        if self.name not in RULES:
            raise unknown("task", self.name, RULES)
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)
        if self.protocol not in TRAINING:
            raise unknown("protocol", self.protocol, TRAINING)
        if self.n_test is None:
            object.__setattr__(self, "n_test", TRAINING[self.protocol].n_test)
        if self.position is None:
            default = "learned" if self.form == "causal" else PROTOCOLS[self.protocol].position
            object.__setattr__(self, "position", default)
        super().__post_init__()
        if self.seq_len < 1 or self.alphabet < 2:
            found = f"length {self.seq_len} and alphabet {self.alphabet}"
            raise UsageError(f"{found}: the length must be at least 1, the alphabet at least 2")
        if (why := RULES[self.name].even) and self.seq_len % 2:
            cure = f"--seq-len {self.seq_len + 1}"
            raise UsageError(
                f"{self.name} {why}: the length must be even, not {self.seq_len}", cure
            )
        if self.form == "causal" and self.protocol != "2026":
            why = f"protocol {self.protocol} has no decoder"
            raise UsageError(f"{why}; the causal form trains by protocol 2026")
        if self.form == "causal" and self.hide_self:
            why = "the first token of a decoder would see nothing"
            raise UsageError(f"hide_self is for encoders: {why}")

    def title(self, without=()):
        """With the form and the protocol."""
        size = super().title((*without, "form", "protocol", "position", "plus_start", "hide_self"))
        return f"{size}  {self.form}, protocol {self.protocol}"

    @property
    def vocab_size(self):
        """Input ids: the digits, and in causal form the separator, whose id is `alphabet`."""
        return self.alphabet + (self.form == "causal")

    @property
    def block_size(self):
        """Tokens the model reads at once: x, or x | y without the last digit."""
        return self.seq_len if self.form == "encoder" else 2 * self.seq_len

    @property
    def chance(self):
        """Guessing among all digits."""
        return 1 / self.alphabet

    def config(self, variant):
        """A Tagger's configuration, or in causal form a GPT's."""
        names = ("n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value", "plus_start")
        shared = {name: getattr(self, name) for name in names}
        shared |= {"vocab_size": self.vocab_size, "block_size": self.block_size}
        if self.form == "causal":
            return GPTConfig(**shared, variant=variant)
        own = {"protocol": self.protocol, "hide_self": self.hide_self}
        return TaggerConfig(**shared, variant=variant, **own)

    def recipe(self, steps=None):
        """The protocol's; its warm-up may be a share of the steps."""
        protocol = TRAINING[self.protocol]
        steps = protocol.recipe.steps if steps is None else steps
        warmup = protocol.recipe.warmup
        if protocol.warmup_share:
            warmup = max(1, int(protocol.warmup_share * steps))
        return replace(protocol.recipe, steps=steps, warmup=warmup)

    def draw(self, seed, split, n):
        """Inputs and targets, both (n, block_size) int64; IGNORE where nothing is asked.

        The digits depend on (seed, split, length, alphabet) alone: all tasks and variants of a seed
        see the same ones.
        """
        return self.examples(
            stream(seed, "data", check_split(split), self.seq_len, self.alphabet), n
        )

    def examples(self, rng, n):
        """Random digits, and their answers."""
        return self.encode(rng.integers(0, self.alphabet, (n, self.seq_len)))

    def batch(self, seed, step, size):
        """A part of the training examples, shuffled again in each epoch by a permutation of (seed,
        epoch) alone.
        """
        epoch, i = divmod(step, TRAINING[self.protocol].steps_per_epoch(size))
        x, y = _training_examples(self, seed)
        rows = _order(seed, epoch, len(x))[i * size : (i + 1) * size]
        return x[rows], y[rows]

    @property
    def n_answer(self):
        """Digits of an answer."""
        return self.seq_len

    def prompt(self, text):
        """ "3 1 4", "3,1,4" or (with at most ten digits) "314" -> [3, 1, 4, separator]."""
        if self.form != "causal":
            cure = f"minqkv train --task {self.name} --form causal; for this one: minqkv eval RUN"
            raise UsageError("an encoder labels tokens and generates nothing", cure)
        parts = text.replace(",", " ").split()
        if not parts:
            raise UsageError("the prompt is empty", f'minqkv generate RUN "{self.example()}"')
        if len(parts) == 1 and self.alphabet <= 10:
            parts = list(parts[0])
        if not all(part.isdecimal() for part in parts):
            cure = 'separate numbers by spaces: "3 1 4 1 5"'
            raise UsageError(f"the prompt {text!r} is not made of digits", cure)
        digits = [int(part) for part in parts]
        if any(digit >= self.alphabet for digit in digits):
            raise UsageError(f"the prompt {text!r} has digits outside 0..{self.alphabet - 1}")
        return [*digits, self.alphabet]

    def remark(self, prompts):
        """A note on lengths other than that of training."""
        if all(len(prompt) == self.seq_len + 1 for prompt in prompts):
            return None
        return f"this run was trained on {self.seq_len} digits; it was not trained on other lengths"

    def decode(self, ids):
        """Digits, and the separator as "|"."""
        return " ".join("|" if i == self.alphabet else str(i) for i in ids)

    def example(self):
        """A prompt as long as in training."""
        return self.decode(_PI[i % len(_PI)] % self.alphabet for i in range(self.seq_len))

    def predict(self, model, x, y):
        """In causal form also the perplexity over the answers alone."""
        found = super().predict(model, x, y)
        if self.form == "causal":
            found["masked_perplexity"] = math.exp(found["loss"])
        return found

    def shown(self, row):
        """The digits alone, in causal form too."""
        return row[: self.seq_len]

    def encode(self, x):
        """Digits (n, T) -> inputs and targets (n, block_size)."""
        y = RULES[self.name].target(x, self.alphabet)  # (n, T)
        if self.form == "encoder":
            return x, y
        separator = np.full((len(x), 1), self.alphabet)
        inputs = np.concatenate([x, separator, y[:, :-1]], axis=1)  # (n, 2T)
        ignored = np.full((len(x), self.seq_len), IGNORE)
        return inputs, np.concatenate([ignored, y], axis=1)  # (n, 2T)


@lru_cache(maxsize=2)
def _training_examples(task, seed):
    return task.draw(seed, "train", TRAINING[task.protocol].n_train)


@lru_cache(maxsize=2)
def _order(seed, epoch, n):
    return stream(seed, "order", epoch).permutation(n)
