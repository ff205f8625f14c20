"""Small sets of images in the formats they are published in, and real ones where they are."""

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def real(name):
    """A folder of real data: in $MINQKV_DATA, or beside the clone. Skips the test without it."""
    root = Path(os.environ.get("MINQKV_DATA") or ROOT.parent / "shared" / "data")
    if not (root / name).is_dir():
        pytest.skip(f"{root / name} is absent; $MINQKV_DATA names a folder with it")
    return str(root / name)


def blobs(n, side=8, channels=1, classes=4, seed=0):
    """n images with a bright quarter, one for each of four classes, in noise: images, labels."""
    rng, half = np.random.default_rng(seed), side // 2
    images = rng.integers(0, 100, (n, side, side, channels)).astype("uint8")
    labels = np.arange(n) % classes
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label) % 4, 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 120
    return images, labels


def idx_bytes(array):
    """An array of bytes as an IDX file."""
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype("uint8").tobytes()


def write_idx(folder, images, labels, part="train", packed=False):
    """A pair of IDX files, as MNIST has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
        data = idx_bytes(np.asarray(array))
        path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)


def records(images, labels, coarse=None):
    """Images (n, 32, 32, 3) as CIFAR's records; with `coarse`, as those of CIFAR-100."""
    rows = [np.asarray(labels, "uint8")[:, None]]
    rows = rows if coarse is None else [np.asarray(coarse, "uint8")[:, None], *rows]
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*rows, planes], axis=1).tobytes()


def tar_gz(path, files, kind=tarfile.REGTYPE, **fields):
    """A .tar.gz of name -> content; `kind` and `fields` are those of all its members."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content) if kind == tarfile.REGTYPE else 0, kind
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))


def ppm(image):
    """An image (height, width, C) as a binary PGM or PPM file."""
    height, width, channels = image.shape
    return b"P%d\n# drawn\n%d %d\n255\n" % (5 + (channels == 3), width, height) + image.tobytes()


def write_folders(root, images, labels, names="abcd"):
    """A folder for each class, with a PPM or PGM file for each image."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03}.ppm").write_bytes(ppm(image))
