"""Images in a folder for each class, as TinyImageNet has them.

    DIR/train/CLASS/*.png                          or DIR/train/CLASS/images/*.JPEG
    DIR/val/CLASS/*.png, DIR/test/CLASS/*.png      or DIR/val/images/*.JPEG and val_annotations.txt
    DIR/CLASS/*.png                                without any split

PPM and PGM files (binary: P5, P6) are read here; PNG and JPEG need Pillow: `pip install
'minqkv[images]'`. All images must have the same size. They are grey if all of them are, else RGB.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..runtime.errors import EnvironmentFault
from .bounded import source
from .imagefiles import AGAIN, MOST_SIDE, Found, check_size

PLAIN = (".pgm", ".ppm")
PILLOW = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")  # that Pillow may read
HEADER = re.compile(rb"(P[56])\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})\s")
HEADER_BYTES = 1000  # at most, comments included
FILE_BYTES = 1 << 26  # at most, of val_annotations.txt, or of a PNG or JPEG file


def folders(
    root: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Found | None:
    """The images in the folders of their classes. None if there are no images in such folders.
    `progress(done, total)` counts them. Raises EnvironmentFault for files that cannot be used.
    """
    top = root / "train" if (root / "train").is_dir() else root
    train = _by_class(top)
    if not train:
        return None
    classes = sorted(train)
    listed = {"train": [(path, name) for name in classes for path in train[name]]}
    if top != root:
        for part, folder in (("test", root / "test"), ("validation", root / "val")):
            if found := _labelled(folder, set(classes)):
                listed[part] = found
    if "test" not in listed and "validation" in listed:  # TinyImageNet's test split has no labels
        listed["test"] = listed.pop("validation")
    images = _decoded([path for found in listed.values() for path, _ in found], progress)
    parts, start, number = {}, 0, {name: i for i, name in enumerate(classes)}
    for part, found in listed.items():
        labels = np.array([number[name] for _, name in found], np.int64)  # (n,)
        parts[part] = images[start : start + len(found)], labels
        start += len(found)
    return Found(parts, tuple(classes))


def _by_class(top):
    """Class -> paths of its images, in its folder or in a folder `images` there."""
    found = {}
    for folder in _entries(top):
        if folder.is_dir():
            below = [Path(folder.path), Path(folder.path, "images")]
            paths = [Path(e.path) for place in below for e in _entries(place) if _is_image(e)]
            if paths:
                found[folder.name] = paths
    return found


def _entries(folder):
    """The contents of a folder, sorted, without hidden files; empty if it is not a folder."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if e.name[0] != "."), key=lambda e: e.name)
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError as error:
        raise EnvironmentFault(f"cannot read {folder}: {error.strerror}") from error


def _is_image(entry):
    return entry.is_file() and entry.name.lower().endswith((*PLAIN, *PILLOW))


def _labelled(folder, classes):
    """(path, class) of each image of a further part; nothing if it has no labels. Raises
    EnvironmentFault for a class that has no training images.
    """
    if (folder / "val_annotations.txt").is_file():
        return _annotated(folder, folder / "val_annotations.txt", classes)
    found = _by_class(folder)
    if not found.keys() & classes:
        return []
    if strange := sorted(found.keys() - classes):
        what = f"class {strange[0]} in {folder} has no training images"
        raise EnvironmentFault(what, AGAIN)
    return [(path, name) for name in sorted(found) for path in found[name]]


def _annotated(folder, listing, classes):
    """By a file whose lines begin with the name of an image and its class, between tabs."""
    with source(listing) as file:
        text = file.whole(FILE_BYTES).decode("utf-8")
        rows = [line.split("\t") for line in text.splitlines() if line]
        for i, row in enumerate(rows, 1):
            if len(row) < 2 or row[1] not in classes or not _is_name(row[0]):
                raise ValueError(f"line {i} is not the name of an image and its class")
    return [(folder / "images" / row[0], row[1]) for row in rows]


def _is_name(text):
    """Whether a text is the name of an image, not a path to somewhere else."""
    return text == os.path.basename(text) and text.lower().endswith((*PLAIN, *PILLOW))


# ---- pixels


def _decoded(paths, progress):
    """The images of files as one array (n, height, width, C)."""
    images, grey = None, True
    for i, path in enumerate(paths):
        found = read_image(path)  # (height, width, C)
        if images is None:
            shape = found.shape[:2]
            _check_total(paths, shape)
            images = np.empty((len(paths), *shape, 3), np.uint8)
        if found.shape[:2] != shape:
            sizes = " × ".join(map(str, found.shape[:2])), " × ".join(map(str, shape))
            why = f"{path} is {sizes[0]} pixels, but {paths[0]} is {sizes[1]}"
            raise EnvironmentFault(why, "scale all images to the same size")
        images[i] = found  # a grey one three times
        grey &= found.shape[2] == 1
        progress(i + 1, len(paths))
    return images[..., :1].copy() if grey else images


def _check_total(paths, shape):
    try:
        check_size(len(paths), *shape, 3)
    except ValueError as error:
        raise EnvironmentFault(f"cannot use {paths[0].parent}: {error}", AGAIN) from error


def read_image(path: Path) -> np.ndarray:
    """A file as an array (height, width, C), uint8; C is 1 or 3. Raises EnvironmentFault."""
    with source(path) as file:
        if path.suffix.lower() in PLAIN:
            return _plain(file)
        return _by_pillow(io.BytesIO(file.whole(FILE_BYTES)), path.name)


def _plain(file):
    """A binary PGM or PPM file."""
    start = file.read(HEADER_BYTES)
    header = HEADER.match(start)
    if not header:
        raise ValueError("it is not a binary PGM or PPM file (P5 or P6)")
    width, height, largest = (int(number) for number in header.groups()[1:])
    channels = 1 if header[1] == b"P5" else 3
    if largest != 255:
        raise ValueError(f"its largest value is {largest}; only 255 is read")
    n = check_size(1, height, width, channels)
    content = start[header.end() :]
    content += file.exactly(n - len(content)) if n > len(content) else b""
    if len(content) > n or file.read(1):
        raise ValueError("it is longer than its header says")
    return np.frombuffer(content, np.uint8).reshape(height, width, channels)


def _by_pillow(file, name):
    """A PNG or JPEG file. Its header is read first: a huge image is never unpacked."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        why = f"{name} needs Pillow, which is not installed"
        cure = "pip install -e '.[images]' in the clone, or convert the images to PPM"
        raise EnvironmentFault(why, cure) from error
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if max(width, height) > MOST_SIDE:
                raise ValueError(f"{height} × {width} pixels; at most {MOST_SIDE} a side are read")
            grey = image.mode in ("1", "L", "LA", "I;16")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))  # (height, width[, 3])
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"it is far too large; at most {MOST_SIDE} pixels a side are read"
        ) from error
    except (UnidentifiedImageError, SyntaxError) as error:  # the latter for a broken PNG
        raise ValueError("it is not a PNG or JPEG file, or it is damaged") from error
    return pixels.reshape(height, width, -1)
