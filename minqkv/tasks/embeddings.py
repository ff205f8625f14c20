"""Images as a few numbers each: the hidden layer of a small network that was trained to name their
classes.
"""

from __future__ import annotations

import math
from contextvars import Context
from dataclasses import dataclass

import numpy as np

from ..functional import cross_entropy, relu
from ..nn import Init, Linear, Module
from ..optim import warmup_cosine
from ..runtime import backend
from ..runtime.blas import blas_threads
from ..runtime.rng import stream
from ..tensor import Tensor, no_grad
from .imagesets import ImageSet
from .rules import SPLITS

WIDTH = 64  # numbers that an image becomes
STEPS, BATCH, RATE = 300, 128, 0.2  # gradient descent
NORM = 32.0  # of the pixels of an image, on average: then one rate suits images of any size
_kept = {}  # (digest, n) -> the Embedded that this process made last


@dataclass(frozen=True)
class Embedded:
    """Split -> its images by class, (classes, images, WIDTH): as many of each class as there are of
    the rarest. `accuracy`: of the network on the validation images.
    """

    by_class: dict[str, np.ndarray]
    accuracy: float


class Network(Module):
    """A network with one hidden layer, which names the class of an image."""

    def __init__(self, n_in: int, n_class: int):
        init = Init(0, "float32", "uniform")
        self.hidden = Linear(n_in, WIDTH, init / "hidden")
        self.head = Linear(WIDTH, n_class, init / "head")

    def features(self, x: np.ndarray) -> Tensor:
        """What images become: their pixels (n, n_in) -> (n, WIDTH)."""
        return relu(self.hidden(Tensor(backend.upload(x))))

    def forward(self, x: np.ndarray) -> Tensor:
        """Logits for the pixels of images, (n, n_in) -> (n, n_class)."""
        return self.head(self.features(x))


def halves(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n training images in two halves, as places: those that train the network, and those
    that are embedded.
    """
    order = stream(0, "halves").permutation(n)
    return order[: n // 2], order[n // 2 :]


def embedded(images: ImageSet, n: int) -> Embedded:
    """The embedded images of each split; of the first n training images, the half that the network
    has not seen. The network always starts from the same weights, so they depend on the images
    alone, up to rounding. Takes a second or two, and is kept.
    """
    if (images.digest, n) not in _kept:
        _kept.clear()
        with blas_threads(1):  # the same bits, however many cores there are
            # In a separate context, with gradients: the caller may have turned them off.
            _kept[images.digest, n] = Context().run(_embedded, images, n)
    return _kept[images.digest, n]


def _embedded(images, n):
    seen, others = halves(n)
    mean, deviation = images.scale(n)

    def flat(pixels):
        x = (pixels - mean) / deviation  # (n, height, width, C)
        x = x.reshape(len(x), -1)  # (n, n_in)
        return x * np.float32(NORM / math.sqrt(x.shape[1]))

    def in_parts(function, split, rows):
        """What a function makes of these images, a thousand at a time, on the host."""
        pixels, parts = images.splits[split][0], np.array_split(rows, math.ceil(len(rows) / 1000))
        with no_grad():
            found = [function(flat(pixels[part])).data for part in parts]
        return np.concatenate([backend.to_host(part) for part in found])

    network = _trained(flat, *images.splits["train"], seen, len(images.classes))
    found = {}
    for split in SPLITS:
        labels = images.splits[split][1]
        rows = others if split == "train" else np.arange(len(labels))
        features = in_parts(network.features, split, rows)  # (n, WIDTH)
        found[split] = _by_class(features, labels[rows], len(images.classes))
    centre, spread = found["train"].mean(), found["train"].std()
    scaled = {split: (features - centre) / spread for split, features in found.items()}
    labels = images.splits["validation"][1]
    answers = in_parts(network, "validation", np.arange(len(labels))).argmax(axis=1)  # (n,)
    return Embedded(scaled, float((answers == labels).mean()))


def _trained(flat, pixels, labels, seen, n_class):
    """A network that has learned the images at the places `seen`, by plain gradient descent: an
    Optimizer would share it among the ranks of a run.
    """
    network, rate = Network(pixels[0].size, n_class), warmup_cosine(RATE, 10, STEPS)
    for step in range(STEPS):
        rows = seen[stream(0, "network", step).integers(0, len(seen), BATCH)]
        network.zero_grad()
        cross_entropy(network(flat(pixels[rows])), labels[rows]).backward()
        for p in network.parameters():
            p.data -= rate(step) * p.grad
    return network


def _by_class(features, labels, n_class):
    """(n, WIDTH) -> (n_class, images, WIDTH), the first of each class."""
    least = np.bincount(labels, minlength=n_class).min()
    rows = [np.flatnonzero(labels == i)[:least] for i in range(n_class)]
    return features[np.array(rows, int)]
