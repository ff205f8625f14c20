"""Segmentation: an encoder says what covers each patch of an image. It is a dense task like the
paper's, on generated shapes.

A patch shows a piece of an edge or a patch of grey; only the other patches tell which shape it
belongs to.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np

from ..models import ViTConfig, patchify, unpatchify
from ..runtime.errors import UsageError
from ..runtime.rng import stream
from ..train import evaluate
from . import shapes
from .base import Recipe, Task
from .images import in_characters

NAMES = ("background", *shapes.SHAPES)  # what may cover a patch
SIGNS = ".0123456789"


@dataclass(frozen=True)
class Segment(Task):
    """Examples are generated images with one shape each, always new, cut into squares of `patch`
    pixels. The target of a patch is what covers at least half of it, a place in NAMES.
    """

    patch: int = 4
    n_validation: int = 300
    _: KW_ONLY
    n_test: int = 1000

    solved = None
    learned = None
    unit = "images"

    def __post_init__(self):
        super().__post_init__()
        if self.n_validation < 1:
            raise UsageError(f"n_validation {self.n_validation} must be at least 1")
        none = np.empty((0, shapes.SIDE, shapes.SIDE, 1))
        patchify(none, self.patch)  # raises if the patches do not fit

    @property
    def chance(self):
        """Always saying "background"."""
        return _background(self.patch)

    def config(self, variant):
        """A ViT that answers for each token."""
        names = ("n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value")
        size = {name: getattr(self, name) for name in names}
        size |= {"n_in": self.patch**2, "n_token": (shapes.SIDE // self.patch) ** 2}
        return ViTConfig(**size, n_class=len(NAMES), pool="each", variant=variant)

    def recipe(self, steps=None):
        """Adam with a warm-up of a twentieth of the steps."""
        steps = steps or 2000
        twentieth, tenth = max(1, steps // 20), max(1, steps // 10)
        return Recipe(steps, batch=32, lr=2e-3, warmup=twentieth, clip=1.0, watch=tenth)

    def examples(self, rng, n):
        """n images as patches (n, N, n_in), from -2 to 2, and what covers each, (n, N)."""
        pixels, shape, inside = shapes.draw(rng, n)
        x = patchify(pixels, self.patch).astype("float32") / 64 - 2  # (n, N, n_in)
        share = patchify(inside[..., None], self.patch).mean(axis=-1)  # (n, N)
        return x, np.where(share >= 0.5, 1 + shape[:, None], 0)

    def n_scored(self, split):
        """How many images are scored: fewer of the validation split, which is scored often."""
        return self.n_validation if split == "validation" else self.n_test

    @property
    def at_once(self):
        """A small number: an image is many tokens."""
        return 100

    def predict(self, model, x, y):
        """Accuracy over all patches; also the mean over NAMES of intersection over union."""
        found = evaluate(model, x, y, self.at_once)
        return found | {"mean_iou": mean_iou(found["predictions"], y)}

    def mistakes(self, x, y, predicted):
        """For each image: row by row, a character for each patch, and what they stand for."""
        items = []
        for right, found in zip(y, predicted, strict=True):
            seen = np.union1d(right, found)
            items.append({"meaning": [f"{SIGNS[i]}={NAMES[i]}" for i in seen]})
            for name, labels in (("expected", right), ("predicted", found)):
                rows = labels.reshape(-1, shapes.SIDE // self.patch)  # (rows, columns) of patches
                items[-1][name] = ["".join(SIGNS[i] for i in row) for row in rows]
        return items

    def picture(self, row):
        """An image as lines of characters."""
        pixels = unpatchify(64 * (row[None] + 2), self.patch, shapes.SIDE, shapes.SIDE)
        return in_characters(pixels[0])


def mean_iou(predicted: np.ndarray, right: np.ndarray) -> float:
    """Mean intersection over union: for each class, the number of places where it is right and
    predicted, over the number where it is right or predicted; then the mean over the classes that
    occur.
    """
    classes = np.union1d(predicted, right)
    both = [((predicted == i) & (right == i)).sum() for i in classes]
    either = [((predicted == i) | (right == i)).sum() for i in classes]
    return float(np.mean(np.array(both) / either))


@lru_cache(8)
def _background(patch):
    _, y = Segment("segment", patch).examples(stream(0, "background"), 1000)
    return float((y == 0).mean())
