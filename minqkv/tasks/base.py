"""What a task is: examples, a model that fits them, a loss, and a score.

All that `train`, `eval`, `study` and `generate` know of a task is in this class. A task of your own
is a frozen dataclass derived from it, named on the command line: `--task MODULE:CLASS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, fields
from typing import ClassVar

import numpy as np

from ..models import MODELS, GPTConfig, TaggerConfig, ViTConfig
from ..nn import Module
from ..runtime.errors import UsageError, unknown
from ..runtime.fields import check_types
from ..runtime.rng import stream
from ..tensor import Tensor
from ..train import IGNORE, counted_targets, evaluate, token_loss
from .rules import SPLITS

SHORT = {  # fields of a title, in this order
    "seq_len": "T", "pairs": "P", "keys": "keys", "n_embd": "d", "n_layer": "L", "n_head": "H",
    "head_dim": "d_h",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: by Adam, whose rate rises for `warmup` steps and falls to `floor`·lr.

    `clip` bounds the norm of the gradient; `restart`: see optim.warmup_cosine. `weight_decay` is
    as in AdamW. A batch is computed in `accumulate` parts, which need less memory than the whole.
    """

    steps: int
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 5
    clip: float = 5.0
    restart: bool = True
    watch: int = 0  # score the validation split every so many steps; 0: never
    floor: float = 0.0
    weight_decay: float = 0.0
    beta2: float = 0.999
    accumulate: int = 1

    def __post_init__(self):
        check_types(self)
        least = {"steps": 1, "batch": 1, "warmup": 0, "watch": 0, "accumulate": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UsageError(f"{name} {getattr(self, name)} must be at least {smallest}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name)} must be above 0 and finite")
        for name, most in (("floor", 1), ("weight_decay", math.inf), ("beta2", 1)):
            if not 0 <= getattr(self, name) < most:
                raise UsageError(f"{name} {getattr(self, name)} must be in [0, {most})")


@dataclass(frozen=True)
class Task(ABC):
    """One task, and the size of the model that learns it.

    A subclass gives `examples` and `config`; the rest has defaults that it may replace. `name` is
    what --task selects it by. `metric` is what a study compares, and `better` says whether higher
    or lower is better. A run counts as solved when it scores `solved` or better, and as having
    learned the task when its validation score first reaches `learned` (None: no threshold). A score
    lies within `limits`. With `sparse`, logits are computed only where a target counts. With
    `answers`, predictions are right or wrong, and an example with a wrong one is a mistake. With
    `relative`, a study compares ratios of scores, not differences. A study takes one value of each
    field in `one_each`, from which `prepared` makes others. With `language`, examples are texts,
    and a study shows the speed of training. `unit` is what examples are called.
    """

    name: str = ""
    _: KW_ONLY
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    head_dim: int | None = None
    position: str = "learned"
    rope_value: str = "raw"
    n_test: int = 500

    metric: ClassVar[str] = "accuracy"
    better: ClassVar[str] = "higher"
    solved: ClassVar[float | None] = 0.99
    learned: ClassVar[float | None] = 0.9
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sparse: ClassVar[bool] = False
    answers: ClassVar[bool] = True
    relative: ClassVar[bool] = False
    one_each: ClassVar[tuple[str, ...]] = ()
    language: ClassVar[bool] = False
    unit: ClassVar[str] = "sequences"

    def __post_init__(self):
        check_types(self)
        if self.n_test < 1:
            raise UsageError(f"n_test {self.n_test} must be at least 1")

    @abstractmethod
    def examples(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n inputs and targets, (n, T) integers each; IGNORE where nothing is asked. For a ViT,
        inputs are vectors (n, N, n_in), and targets (n,) or (n, N).
        """

    @abstractmethod
    def config(self, variant: str) -> GPTConfig | TaggerConfig | ViTConfig:
        """The configuration of the model with this variant of attention."""

    @classmethod
    def prepared(cls, given: dict, progress: Callable[[int, int], None] | None = None) -> dict:
        """The settings of a new task, as typed, completed by what must be read or prepared first.
        `progress(done, total)` is called meanwhile.
        """
        return given

    @property
    def data_bytes(self) -> int:
        """Bytes of data that a run keeps in memory."""
        return 0

    def about_data(self) -> str | None:
        """A sentence on where the examples come from; None for a task that makes them."""
        return None

    def check_data(self) -> None:  # noqa: B027 - most tasks make their data
        """Refuse data that a run could not train or be scored on, before anything is written."""

    @property
    def chance(self) -> float:
        """The score of guessing; NaN where that is not known."""
        return math.nan

    def recipe(self, steps: int | None = None) -> Recipe:
        """The default recipe, for this many steps (None: the task's own number)."""
        return Recipe(steps or 1000)

    def model(self, variant: str, seed: int) -> Module:
        """A fresh model."""
        cfg = self.config(variant)
        for kind, model in MODELS.items():
            if isinstance(cfg, kind):
                return model(cfg, seed)
        kinds = " or ".join(kind.__name__ for kind in MODELS)
        raise UsageError(f"{self.name}: config gives {cfg!r}, not a {kinds}")

    def draw(self, seed: int, split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n examples of a split. Splits never share a stream."""
        return self.examples(stream(seed, "data", check_split(split), self.name), n)

    def batch(self, seed: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """What a step trains on, from these three numbers alone: new examples each time."""
        return self.examples(stream(seed, "data", "train", self.name, step), size)

    def loss(self, model: Module, x: np.ndarray, y: np.ndarray) -> Tensor:
        """The mean loss of a batch; `weight` says how much it counts beside that of another."""
        return token_loss(model, x, y, self.sparse)

    def weight(self, y: np.ndarray) -> float:
        """How much these targets count: shards, batches and ranks are combined by it."""
        return counted_targets(y)

    def predict(self, model: Module, x: np.ndarray, y: np.ndarray) -> dict:
        """Score a model on examples: the metric, the loss, and the predictions (n, T)."""
        return evaluate(model, x, y, self.at_once, self.sparse)

    @property
    def at_once(self) -> int:
        """How many examples are scored at a time: the memory that scoring takes grows with it."""
        return 500

    def n_scored(self, split: str) -> int:
        """How many examples of a split are scored."""
        return self.n_test

    def score(self, model: Module, split: str, seed: int) -> dict:
        """The metric, and further figures, on one split of this seed."""
        found = self.predict(model, *self.draw(seed, split, self.n_scored(split)))
        return {name: value for name, value in found.items() if name != "predictions"}

    # ---- for people to read

    def sample(self, model: Module, seed: int) -> str | None:
        """A text written by the model, shown during training; None if this task has none."""
        return None

    def title(self, without: tuple[str, ...] = ()) -> str:
        """The name and the size as a heading, without some fields and without defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in without}
        parts = [f"{short} {values[name]}" for name, short in SHORT.items() if values.get(name)]
        for field in fields(self):
            if field.name in values.keys() - SHORT.keys() - {"name", "n_test"}:
                usual = field.default is None or values[field.name] == field.default
                parts += [] if usual else [f"{field.name} {values[field.name]}"]
        return "  ".join([self.name, *parts])

    def mistakes(self, x: np.ndarray, y: np.ndarray, predicted: np.ndarray) -> list[dict]:
        """For each example: the input, and what was expected and predicted, as lists of ids."""
        return [
            {
                "input": self.shown(row).tolist(),
                "expected": answer[answer != IGNORE].tolist(),
                "predicted": found[answer != IGNORE].tolist(),
            }
            for row, answer, found in zip(x, y, predicted, strict=True)
        ]

    def picture(self, row: np.ndarray) -> list[str] | None:
        """An input as lines of text, shown with a mistake; None where `mistakes` says all."""
        return None

    def shown(self, row: np.ndarray) -> np.ndarray:
        """The part of an input that is shown with a mistake."""
        return row

    def padded_score(self, model: Module, split: str) -> dict:
        """Perplexity with the padding masked and with it counted; see Text. Raises UsageError if
        examples are not padded.
        """
        raise UsageError(f"{self.name} has no padding: all its examples have the same length")

    # ---- for a decoder that answers

    def prompt(self, text: str) -> list[int]:
        """A prompt as ids. Raises UsageError if nothing can be generated from it."""
        why = "its model answers at given positions and generates nothing"
        raise UsageError(f"{self.name}: {why}", "score it: minqkv eval RUN --wrong 5")

    def remark(self, prompts: list[list[int]]) -> str | None:
        """A note for the user if prompts are unlike those of training, else None."""
        return None

    def decode(self, ids: list[int]) -> str:
        """Ids as text."""
        return " ".join(map(str, ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of an answer in pieces, each as soon as its ids are known. Joined, they continue
        the decoded prompt.
        """
        return (f" {self.decode([i])}" for i in ids)

    def example(self) -> str:
        """A prompt as an example."""
        return ""

    @property
    def n_answer(self) -> int | None:
        """How many tokens answer a prompt; None: up to the end token, or as many as fit."""
        return 1

    @property
    def end(self) -> int | None:
        """The token that ends an answer early; None: there is no such token."""
        return None


def check_split(split: str) -> str:
    """The name of a split. Raises UsageError for another."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return split
