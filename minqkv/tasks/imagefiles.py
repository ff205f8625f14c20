"""Images in the files they are published in: IDX, and CIFAR's binary format.

    IDX      MNIST, Fashion-MNIST and their like: a file of images, one of labels; plain or .gz
    CIFAR    10 or 100 classes: records of labels and three planes of 32 × 32; .bin or .tar.gz

CIFAR is also published as pickled Python objects. Those are never read, for a pickle can run code.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import EnvironmentFault, UsageError
from .bounded import MOST_BYTES, members, source

MOST_SIDE = 1024  # pixels


@dataclass(frozen=True)
class Found:
    """Images and labels as they were found: part ("train", "validation" or "test") -> images
    (n, height, width, C), uint8, and labels (n,), integers below len(classes).
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, ...]


def check_size(n: int, height: int, width: int, channels: int) -> int:
    """The number of bytes of n images. Raises ValueError for none, or for too large ones."""
    if n < 1 or min(height, width) < 1:
        raise ValueError("it contains no images")
    if max(height, width) > MOST_SIDE:
        raise ValueError(
            f"images of {height} × {width} pixels; at most {MOST_SIDE} a side are read"
        )
    if n * height * width * channels > MOST_BYTES:
        what = f"{n:,} images of {height} × {width}"
        raise ValueError(f"{what} are too many: at most {MOST_BYTES:,} bytes are read")
    return n * height * width * channels


# ---- IDX

IDX = re.compile(r"(?P<part>.+?)[-.](?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")


def idx(folder: Path) -> Found | None:
    """The images of a folder with IDX files: train-images-idx3-ubyte and so on. None if there are
    no such files. Raises EnvironmentFault for files that cannot be used, and UsageError for those
    of several sets.
    """
    pairs, sets = {}, {}
    for path in sorted(folder.iterdir()):  # a plain file comes before the same one with .gz
        if name := IDX.fullmatch(path.name):
            part = "train" if name["part"].endswith("train") else "test"  # t10k, emnist-...-test
            pairs.setdefault(part, {}).setdefault(name["kind"], path)
            sets.setdefault(part, {})[name["part"]] = None
    if not pairs:
        return None
    parts = {}
    for part, pair in pairs.items():
        if len(sets[part]) > 1:
            why = f"{folder} contains several sets of {part} images: {', '.join(sets[part])}"
            raise UsageError(why, "name a folder with one of them")
        if len(pair) < 2:
            (there,) = pair.values()
            (missing,) = {"images", "labels"} - pair.keys()
            raise EnvironmentFault(f"{there} has no matching file of {missing}", AGAIN)
        images, labels = read_idx(pair["images"], 3), read_idx(pair["labels"], 1)
        if len(images) != len(labels):
            what = f"{len(images):,} images, but {len(labels):,} labels"
            raise EnvironmentFault(f"{pair['images']} has {what} in {pair['labels'].name}", AGAIN)
        parts[part] = images[..., None], labels.astype(np.int64)  # (n, height, width, 1), (n,)
    known = parts.get("train", parts.get("test"))[1]
    n = _number_of_classes(known, pairs)
    for part, (_, labels) in parts.items():
        if labels.max() >= n:
            path = pairs[part]["labels"]
            raise EnvironmentFault(
                f"{path}: label {labels.max()} is out of range 0..{n - 1}", AGAIN
            )
    return Found(parts, tuple(map(str, range(n))))


AGAIN = "get the files again, or choose another folder with --data"


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The array of an IDX file of bytes, plain or gzip, with this many axes. Raises
    EnvironmentFault.
    """
    with source(path) as file:
        head = file.exactly(4 + 4 * axes)
        if head[:4] != bytes([0, 0, 8, axes]):  # 8: unsigned bytes
            what = "images" if axes == 3 else "labels"
            raise ValueError(f"it is not an IDX file of {what}: it begins with {head[:4].hex(' ')}")
        shape = struct.unpack(f">{axes}I", head[4:])
        content = file.exactly(check_size(*shape, *[1] * (4 - axes)) if axes == 3 else shape[0])
        if file.read(1):
            raise ValueError("it is longer than its header says")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _number_of_classes(labels, pairs):
    """Labels count from 0 (or 1) without a gap, else one of them is out of range."""
    present = np.unique(labels)
    gaps = np.flatnonzero(np.diff(present) > 1)
    if len(gaps) or present[0] > 1:
        stray = present[gaps[0] + 1] if len(gaps) else present[0]
        path = pairs.get("train", pairs.get("test"))["labels"]
        why = f"label {stray} is out of range: no image has label {stray - 1}"
        raise EnvironmentFault(f"{path}: {why}", AGAIN)
    return int(present[-1]) + 1


# ---- CIFAR

SIDE = 32
PLANES = 3 * SIDE * SIDE  # bytes of an image


@dataclass(frozen=True)
class Cifar:
    """One of the two sets: what its files are called, and how a record begins."""

    n_class: int
    labels: int  # bytes of labels in a record; the last of them is the class
    train: re.Pattern
    test: str
    names: str  # the file with the names of the classes
    archive: str
    usual: tuple[str, ...] = ()  # these names, if there is no such file

    def is_wanted(self, name: str) -> bool:
        """Whether a file of this name is one of the set."""
        return bool(self.train.fullmatch(name)) or name in (self.test, self.names)

    __contains__ = is_wanted


CIFARS = (
    Cifar(10, 1, re.compile(r"data_batch_[1-5]\.bin"), "test_batch.bin", "batches.meta.txt",
          "cifar-10-binary.tar.gz", ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
          "horse", "ship", "truck")),
    Cifar(100, 2, re.compile(r"train\.bin"), "test.bin", "fine_label_names.txt",
          "cifar-100-binary.tar.gz"),
)  # fmt: skip


def cifar(folder: Path) -> Found | None:
    """The images of a folder with CIFAR's .bin files, in it or in a folder below, or with the
    archive they are published in. None if there are none. Raises EnvironmentFault for files that
    cannot be used.
    """
    below = [folder / name for name in ("cifar-10-batches-bin", "cifar-100-binary")]
    for kind in CIFARS:
        for place in (folder, *below):
            paths = sorted(place.iterdir()) if place.is_dir() else []
            if any(kind.train.fullmatch(path.name) or path.name == kind.test for path in paths):
                return _from_files(kind, [path for path in paths if path.name in kind])
        if (folder / kind.archive).exists():
            found = members(folder / kind.archive, kind)
            return _assembled(kind, found, folder / kind.archive)
    return None


def _from_files(kind, paths):
    found = {}
    for path in paths:
        with source(path) as file:
            found[path.name] = file.whole()
    return _assembled(kind, found, paths[0].parent)


def _assembled(kind, contents, place):
    """Name -> content of the files, as a Found."""
    parts = {}
    for name in sorted(contents):
        if name == kind.names:
            continue
        try:
            found = _records(contents[name], kind)
        except ValueError as error:
            raise EnvironmentFault(f"cannot use {place / name}: {error}", AGAIN) from error
        parts.setdefault("test" if name == kind.test else "train", []).append(found)
    if not parts:
        raise EnvironmentFault(f"there are no CIFAR .bin files in {place}", AGAIN)
    joined = {
        part: tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))
        for part, found in parts.items()
    }
    names = contents.get(kind.names, b"")[:PLANES].decode("utf-8", "replace").split()
    if not len(names) == len(set(names)) == kind.n_class:
        names = kind.usual or map(str, range(kind.n_class))
    return Found(joined, tuple(names))


def _records(content, kind):
    """The bytes of a file as images (n, 32, 32, 3) and labels (n,). Raises ValueError."""
    size = kind.labels + PLANES
    n, rest = divmod(len(content), size)
    if rest or not n:
        why = "it is cut short, or not in CIFAR's binary format"
        raise ValueError(f"{len(content):,} bytes are not whole records of {size:,}: {why}")
    records = np.frombuffer(content, np.uint8).reshape(n, size)
    labels = records[:, kind.labels - 1].astype(np.int64)  # (n,)
    if labels.max() >= kind.n_class:
        i = int(np.argmax(labels >= kind.n_class))
        raise ValueError(f"label {labels[i]} of image {i} is out of range 0..{kind.n_class - 1}")
    planes = records[:, kind.labels :].reshape(n, 3, SIDE, SIDE)
    return planes.transpose(0, 2, 3, 1).copy(), labels  # (n, 32, 32, 3), (n,)
