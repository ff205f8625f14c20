"""Images with labels in three splits, identified by their content.

What is published as test images is the test split. A validation split is taken from the training
images, a tenth of them. If there is a single part, it is divided into 80 % for training, 10 % for
validation and 10 % for the test. Which images go where follows from a hash of each image alone, so
equal images are never in two splits; training images that are also test images are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.files import printable
from . import downloads
from .imagefiles import AGAIN, cifar, idx
from .imagefolders import folders
from .rules import SPLITS
from .shapes import VERSION, shapes


@dataclass(frozen=True)
class ImageSet:
    """split -> images (n, height, width, C), uint8, and labels (n,); the names of the classes; and
    a sentence on where the splits come from. `known` is the digest of generated images, whose last
    bits may differ between machines.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, ...]
    about: str
    known: str | None = None
    scales: dict = field(default_factory=dict)  # what `scale` has found

    @cached_property
    def digest(self) -> str:
        """12 hex digits that cover all images, labels and names of classes."""
        if self.known:
            return self.known
        found = hashlib.sha256(repr(self.classes).encode())
        for split in SPLITS:
            images, labels = self.splits[split]
            found.update(repr((split, images.shape)).encode())
            found.update(images)
            found.update(labels.astype("<i8"))
        return found.hexdigest()[:12]

    def scale(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel over the first n training images: (C,) each,
        float32, in units of a pixel's 0..255. From sums of integers, so the same everywhere.
        """
        if n not in self.scales:
            images = self.splits["train"][0][:n]
            sums = squares = 0
            for part in np.array_split(images, math.ceil(len(images) / 1000)):
                sums = sums + part.sum(axis=(0, 1, 2), dtype=np.int64)  # (C,)
                squares = squares + np.square(part, dtype=np.uint16).sum((0, 1, 2), dtype=np.int64)
            mean = sums / images[..., 0].size
            variance = np.maximum(squares / images[..., 0].size - mean**2, 1.0)  # where all is even
            self.scales[n] = mean.astype("float32"), np.sqrt(variance).astype("float32")
        return self.scales[n]


def load(data: str, progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """The images of a folder, of a download ("mnist"), or, for "", the generated shapes.

    Raises UsageError if there is no such folder, or nothing in it that could be read, and
    EnvironmentFault for files that cannot be used.
    """
    if not data:
        images, labels, classes = shapes()
        found = _divided({"train": (images, labels)}, classes, "generated shapes")
        return replace(found, known=VERSION)
    folder = located(data)
    try:
        found = [f for f in (idx(folder), cifar(folder)) if f]
        if not found and (f := folders(folder, progress or (lambda done, total: None))):
            found = [f]
    except PermissionError as error:
        raise EnvironmentFault(f"cannot read {folder}: {error.strerror}") from error
    if not found:
        why = f"there are no images in {data} that can be read"
        raise UsageError(f"{why} ({LAYOUTS})", "to download some: minqkv data fetch mnist")
    if len(found) > 1:
        why = f"{data} contains both IDX files and CIFAR files"
        raise UsageError(why, "name a folder with one of them")
    return _divided(found[0].parts, found[0].classes, folder.resolve().name)


LAYOUTS = "IDX files, CIFAR's binary files, or a folder for each class with PNG, JPEG or PPM files"


def located(data: str) -> Path:
    """The folder that `data` names: a path or, if there is none, a download. Raises UsageError."""
    folder = Path(data)
    if folder.is_dir():
        return folder
    if data in downloads.IMAGES:
        if not downloads.is_complete(data):
            why = f"{data} is not fully downloaded, and there is no folder of that name here"
            raise UsageError(why, f"minqkv data fetch {data}")
        return downloads.place(data)
    if folder.exists():
        raise UsageError(f"{data} is not a folder", "--data is the folder with the files")
    known = ", ".join(downloads.IMAGES)
    raise UsageError(f"there is no folder {data!r}", f"--data takes a folder, or {known}")


def _divided(parts, classes, name):
    """An ImageSet from parts, by content."""
    sizes = {" × ".join(map(str, images.shape[1:3])) for images, _ in parts.values()}
    if len(sizes) > 1:
        what = f"training and test images of {name} differ in size"
        raise EnvironmentFault(f"{what}: {', '.join(sorted(sizes))}", AGAIN)
    if len(parts) == 1:
        ((part, whole),) = parts.items()
        cut = _cut(whole, (0.8, 0.9, 1.0))
        kind = f"{len(whole[0]):,} {'test ' if part == 'test' else ''}images"
        origin = f"all {kind}, divided by content"
        splits = dict(zip(SPLITS, cut, strict=True))
    else:
        splits, left_out = _without_tested(parts)
        origin = "the published test images are the test split"
        if "validation" not in splits:
            cut = _cut(splits["train"], (0.9, 1.0))
            splits["train"], splits["validation"] = cut
            origin += ", and a tenth of the training images is for validation"
        if left_out:
            origin += f"; {left_out:,} training images that are also test images are left out"
    for split in SPLITS:
        if not len(splits[split][0]):
            total = sum(len(images) for images, _ in parts.values())
            raise UsageError(f"{total} images are too few: the {split} split would be empty", AGAIN)
    counts = ", ".join(f"{len(splits[split][0]):,} {split}" for split in SPLITS)
    name, *classes = map(printable, (name, *classes))
    return ImageSet(splits, tuple(classes), f"{name}: {counts} ({origin})")


def _keys(images):
    """A hash of each image, as an array of strings of bytes (n,)."""
    return np.array([hashlib.blake2b(image, digest_size=16).hexdigest() for image in images])


def _cut(part, ends):
    """Images and labels in the order of their hashes, cut at these shares; equal images stay
    together.
    """
    images, labels = part
    keys = _keys(images)
    order = np.argsort(keys, kind="stable")
    keys, n = keys[order], len(order)
    cuts = [0]
    for end in ends:
        i = max(cuts[-1], round(end * n))
        while 0 < i < n and keys[i] == keys[i - 1]:
            i += 1
        cuts.append(i)
    places = [order[a:b] for a, b in pairwise(cuts)]
    return [(images[at], labels[at]) for at in places]


def _without_tested(parts):
    """Parts without the images of a later one: (parts, how many were left out)."""
    seen, found, left_out = np.array([], "U32"), {}, 0
    for part in ("test", "validation", "train"):
        if part in parts:
            images, labels = parts[part]
            keys = _keys(images)
            new = ~np.isin(keys, seen)  # (n,)
            seen = np.concatenate([seen, keys])
            left_out += int((~new).sum())
            found[part] = images[new], labels[new]
    return found, left_out
