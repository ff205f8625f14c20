"""Sets: an encoder without positions finds the odd one out (paper, section 4: set anomaly).

All images of a set are of one class, except one. The encoder does not see pixels: each image has
become a few numbers, by a small network that has learned the classes from other images
(embeddings.py).

The order of a set means nothing, and a model without positions does not know it: permuted images
give permuted scores. The "+" is the exception, since its bias belongs to places in the sequence. It
cannot help here, because the odd one is in a random place, but its scores depend on the order.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np

from ..models import ViTConfig
from ..runtime.errors import UsageError
from ..runtime.rng import stream
from .base import check_split
from .embeddings import WIDTH, embedded, halves
from .images import OfImages
from .rules import SPLITS

SMALLEST = 3  # images of a set: of two, neither is the odd one


@dataclass(frozen=True)
class Sets(OfImages):
    """Examples are sets of `set_size` images, WIDTH numbers each, in random order; the target is
    the place of the odd one.

    Half of the `n_train` training images train the network that embeds them, and the other half
    makes the sets to train on. Sets of other splits are made of the images of those splits.
    """

    set_size: int = 10
    n_validation: int = 500
    _: KW_ONLY
    position: str = "none"
    n_test: int = 2000

    unit = "sets"
    n_steps = 2500

    def __post_init__(self):
        super().__post_init__()
        self._at_least(SMALLEST, "set_size")
        self._at_least(2, "n_class", "n_train")
        self._at_least(1, "n_validation")

    @property
    def chance(self):
        """Guessing among all places."""
        return 1 / self.set_size

    def about_data(self):
        """Where the images come from, and how well the network that embeds them knows them."""
        known = f"{embedded(self.images, self.n_train).accuracy:.0%} of the validation images"
        return f"{super().about_data()}; the network that embeds them names {known} right"

    def config(self, variant):
        """A ViT that chooses one of its tokens."""
        names = ("n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value")
        size = {name: getattr(self, name) for name in names}
        size |= {"n_in": WIDTH, "n_token": self.set_size, "n_class": 1, "pool": "choice"}
        return ViTConfig(**size, variant=variant)

    def check_data(self):
        """Each split has enough images of each class."""
        super().check_data()
        there = {}  # images of a class in a split -> which class, and which split
        for split in SPLITS:
            labels = self.images.splits[split][1]
            labels = labels[halves(self.n_train)[1]] if split == "train" else labels
            counts = np.bincount(labels, minlength=self.n_class)  # (n_class,)
            there[int(counts.min())] = self.images.classes[int(counts.argmin())], split
        least = min(there)
        if least < self.set_size:
            name, split = there[least]
            why = f"the {split} split has {least} images of {name}"
            why += ", besides those that train the network" if split == "train" else ""
            cure = f"--set set_size={least}" if least >= SMALLEST else "use more images"
            raise UsageError(f"{why}; a set takes {self.set_size}", cure)

    def examples(self, rng, n):
        """n sets of training images."""
        return self._sets(rng, n, "train")

    def draw(self, seed, split, n):
        """n sets of the images of a split."""
        return self._sets(stream(seed, "data", check_split(split), self.name), n, split)

    def _sets(self, rng, n, split):
        elements = embedded(self.images, self.n_train).by_class[split]  # (classes, images, WIDTH)
        classes, images, _ = elements.shape
        most = rng.integers(0, classes, n)  # (n,), the class of all but one
        other = (most + rng.integers(1, classes, n)) % classes  # (n,)
        places = rng.integers(0, self.set_size, n)  # (n,), of the odd one
        odd = np.arange(self.set_size) == places[:, None]  # (n, set_size)
        which = np.where(odd, other[:, None], most[:, None])  # (n, set_size)
        picked = rng.random((n, images)).argsort(axis=1)[:, : self.set_size]  # no image twice
        return elements[which, picked], places  # (n, set_size, WIDTH), (n,)

    def n_scored(self, split):
        """How many sets are scored: fewer of the validation split, which is scored often."""
        return self.n_validation if split == "validation" else self.n_test

    def mistakes(self, x, y, predicted):
        """For each set: how far each image is from the mean of all, and where the odd one is."""
        distances = np.linalg.norm(x - x.mean(axis=1, keepdims=True), axis=-1)  # (n, set_size)
        return [
            {
                "place": list(range(self.set_size)),
                "distance": [round(value, 1) for value in row.tolist()],
                "expected": [int(right)],
                "predicted": [int(found)],
            }
            for row, right, found in zip(distances, y, predicted, strict=True)
        ]
