"""Images as a task: files of every kind and their faults, splits that share nothing, what happens
to training images, and the commands.
"""

import gzip
import hashlib
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import (
    blobs,
    idx_bytes,
    ppm,
    real,
    records,
    tar_gz,
    write_folders,
    write_idx,
)
from trained import same_bits_after_a_kill

import minqkv as mq
from minqkv.analysis.needs import needs
from minqkv.runs import configure, train_run
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.rng import stream
from minqkv.study.published import printed
from minqkv.tasks import bounded, downloads, imagefolders, images, shapes
from minqkv.tasks.images import Images, shifted
from minqkv.tasks.imagesets import load
from minqkv.tasks.rules import SPLITS

QUICK = {"n_layer": 1, "n_head": 2, "n_embd": 16, "steps": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing downloaded, and nothing kept from the test before."""
    monkeypatch.setenv("MINQKV_CACHE", str(tmp_path / "cache"))
    images._kept.clear()


@pytest.fixture
def digits(tmp_path):
    """A folder like MNIST's: 40 images and 10 for the test."""
    folder = tmp_path / "digits"
    write_idx(folder, *blobs(40), packed=True)
    write_idx(folder, *blobs(10, seed=1), "t10k", packed=True)
    return folder


def rows(images):
    """The set of images, each as its bytes."""
    return {image.tobytes() for image in images}


def everything(found):
    """Images and labels of all splits, in the order of the images' bytes."""
    pixels, labels = (np.concatenate(a) for a in zip(*found.splits.values(), strict=True))
    order = sorted(range(len(pixels)), key=lambda i: pixels[i].tobytes())
    return pixels[order], labels[order]


# ---- IDX


@pytest.mark.parametrize("packed", [False, True])
def test_idx(packed, tmp_path):
    pixels, labels = blobs(30)
    write_idx(tmp_path, pixels, labels, packed=packed)
    write_idx(tmp_path, *blobs(10, seed=1), "t10k", packed=packed)
    found = load(str(tmp_path))
    assert found.classes == ("0", "1", "2", "3")
    assert {split: len(a) for split, (a, _) in found.splits.items()} == {
        "train": 27, "validation": 3, "test": 10
    }  # fmt: skip
    assert rows(found.splits["test"][0]) == rows(blobs(10, seed=1)[0])
    known = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    for split in ("train", "validation"):
        for image, label in zip(*found.splits[split], strict=True):
            assert known[image.tobytes()] == label


def test_the_same_images_have_the_same_digest_in_any_format(tmp_path):
    pixels, labels = blobs(20, classes=2)
    write_idx(tmp_path / "plain", pixels, labels)
    write_idx(tmp_path / "packed", pixels, labels, packed=True)
    write_idx(tmp_path / "turned", pixels[::-1], labels[::-1])
    write_folders(tmp_path / "folders", pixels, labels, names="01")
    write_idx(tmp_path / "changed", pixels ^ (np.arange(20) == 7)[:, None, None, None], labels)
    names = ("plain", "packed", "turned", "folders", "changed")
    digests = [load(str(tmp_path / name)).digest for name in names]
    assert len(set(digests[:4])) == 1
    assert digests[4] != digests[0]


def spoil(path, change):
    """Change the content of a file, packed or not."""
    data = path.read_bytes()
    packed = path.suffix == ".gz"
    data = change(gzip.decompress(data) if packed else data)
    path.write_bytes(gzip.compress(data) if packed else data)


def promising(*shape):
    """A change: the header gives this shape."""
    return lambda data: (
        data[:4] + struct.pack(f">{len(shape)}I", *shape) + data[4 + 4 * len(shape) :]
    )


BAD_IDX = {
    "cut short": ("images", lambda d: d[:-1], "cut short: 2,559 bytes where 2,560 are expected"),
    "no header": ("images", lambda d: d[:7], "cut short: 7 bytes where 16"),
    "empty": ("labels", lambda d: b"", "cut short: 0 bytes where 8"),
    "too long": ("images", lambda d: d + b"x", "longer than its header says"),
    "labels too long": ("labels", lambda d: d + b"x", "longer than its header says"),
    "text": (
        "images",
        lambda d: b"<html>not found</html>",
        "not an IDX file of images: it begins with",
    ),
    "floats": ("images", lambda d: b"\0\0\x0d\x03" + d[4:], "not an IDX file of images"),
    "labels as images": ("images", lambda d: idx_bytes(np.zeros(40)), "begins with 00 00 08 01"),
    "promises more": ("images", promising(4_000, 8, 8), "cut short: 2,560 bytes where 256,000"),
    "promises everything": ("images", promising(2**32 - 1, 8, 8), "at most 2,147,483,648 bytes"),
    "many labels": ("labels", promising(2**32 - 1), "cut short"),
    "gigantic": ("images", promising(1, 2**32 - 1, 2**32 - 1), "at most 1024 a side"),
    "no images": ("images", promising(0, 8, 8), "it contains no images"),
    "no pixels": ("images", promising(40, 0, 8), "it contains no images"),
    "fewer labels": ("labels", lambda d: promising(39)(d)[:-1], "40 images, but 39 labels"),
    "a stray label": ("labels", lambda d: d[:-1] + b"\xc8", "label 200 is out of range: no image"),
    "labels from 5": ("labels", lambda d: d[:8] + bytes(5 + b for b in d[8:]), "label 5 is out of"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", BAD_IDX)
def test_damaged_idx_files(what, packed, tmp_path):
    part, change, says = BAD_IDX[what]
    write_idx(tmp_path, *blobs(40), packed=packed)
    (path,) = tmp_path.glob(f"*{part}*")
    spoil(path, change)
    check_fault(tmp_path, says, path.name.split("-")[0])


def check_fault(folder, says, name, kind=EnvironmentFault):
    """Loading is refused in one line that names a file and what to do, with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=says) as caught:
            load(str(folder))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[:-20], "ended before|cut short"),
        (lambda d: d[:100] + bytes([d[100] ^ 255]) + d[101:], "cannot use"),
        (lambda d: d[:-8] + b"\0\0\0\0" + d[-4:], "CRC check failed"),
        (lambda d: b"\x1f\x8b" + b"x" * 50, "cannot use"),
    ],
)
def test_damaged_gzip_files(change, says, tmp_path):
    write_idx(tmp_path, *blobs(40), packed=True)
    (path,) = tmp_path.glob("*images*")
    path.write_bytes(change(path.read_bytes()))
    check_fault(tmp_path, says, path.name)


def test_a_gzip_bomb(tmp_path):
    """Its header is honest: 10,000 images, all black. It unpacks to 1,000 times its size."""
    write_idx(tmp_path, *blobs(40), packed=True)
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 10_000, 28, 28)
    (path,) = tmp_path.glob("*images*")
    with gzip.open(path, "wb") as file:
        file.write(head)
        for _ in range(10):
            file.write(bytes(784_000))
    assert path.stat().st_size < 10_000
    check_fault(tmp_path, r"it unpacks to more than [\d,]+ bytes", path.name)


def test_a_bomb_called_a_png(tmp_path):
    """A part of it that Pillow would skip is 64 MB long, but packed."""
    write_folders(tmp_path, *blobs(8))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 8, 8, 8, 0, 0, 0, 0, 0)
    with gzip.open(tmp_path / "a" / "x.png", "wb") as file:
        file.write(start[:-4] + struct.pack(">I", zlib.crc32(start[12:-4])))
        file.write(struct.pack(">I4s", 64 << 20, b"zzZz"))
        for _ in range(64):
            file.write(bytes(1 << 20))
    check_fault(tmp_path, "it unpacks to more than", "x.png")


def test_files_that_are_far_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(imagefolders, "FILE_BYTES", 1000)
    tiny_image_net(tmp_path)
    listing, png = tmp_path / "val" / "val_annotations.txt", tmp_path / "train" / "n00" / "x.png"
    for path in (listing, png):
        path.write_bytes(bytes(1001))
        check_fault(tmp_path, "it holds more than 1,000 bytes", path.name)
        listing.unlink(missing_ok=True)


def test_a_file_is_missing(tmp_path):
    write_idx(tmp_path, *blobs(40))
    (path,) = tmp_path.glob("*labels*")
    path.unlink()
    check_fault(tmp_path, "has no matching file of labels", "train-images")


def test_labels_of_the_test_that_training_has_not(tmp_path):
    write_idx(tmp_path, *blobs(40))
    pixels, labels = blobs(10, seed=1)
    write_idx(tmp_path, pixels, labels + 1, "t10k")
    check_fault(tmp_path, r"label 4 is out of range 0\.\.3", "t10k-labels")


def test_test_images_of_another_size(tmp_path):
    write_idx(tmp_path, *blobs(40))
    write_idx(tmp_path, *blobs(10, side=6, seed=1), "t10k")
    check_fault(tmp_path, "images of .* differ in size: 6 × 6, 8 × 8", tmp_path.name)


def test_other_names_of_idx_files(tmp_path):
    write_idx(tmp_path, *blobs(40), "emnist-letters-train")
    write_idx(tmp_path, *blobs(10, seed=1), "emnist-letters-test")
    for path in tmp_path.iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))  # as some copies have it
    assert [len(load(str(tmp_path)).splits[split][0]) for split in SPLITS] == [36, 4, 10]
    write_idx(tmp_path, *blobs(10, seed=2), "emnist-digits-test")
    with pytest.raises(UsageError, match="several sets of test images: emnist-digits-test, emnist"):
        load(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_not_waited_for(tmp_path):
    write_idx(tmp_path, *blobs(40))
    (path,) = tmp_path.glob("*images*")
    path.unlink()
    os.mkfifo(path)
    check_fault(tmp_path, "not a plain file", path.name)


# ---- CIFAR


def cifar_files(fine=False):
    """Name -> content of the .bin files, and the images and labels of the training files."""
    pixels, labels = blobs(30, side=32, channels=3)
    held, of_held = blobs(10, side=32, channels=3, seed=1)
    if fine:
        content = records(pixels, 20 + labels, coarse=labels)
        files = {"train.bin": content, "test.bin": records(held, 20 + of_held, coarse=of_held)}
        return files, pixels, 20 + labels
    files = {"data_batch_1.bin": records(pixels[:20], labels[:20])}
    files |= {"data_batch_2.bin": records(pixels[20:], labels[20:])}
    return files | {"test_batch.bin": records(held, of_held)}, pixels, labels


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("layout", ["here", "below", "archive"])
def test_cifar(layout, fine, tmp_path):
    files, pixels, labels = cifar_files(fine)
    inside, archive = ("cifar-100-binary", "cifar-100-binary.tar.gz") if fine else (
        "cifar-10-batches-bin", "cifar-10-binary.tar.gz")  # fmt: skip
    names = {"fine_label_names.txt" if fine else "batches.meta.txt":
             "\n".join(f"kind{i}" for i in range(100 if fine else 10)).encode()}  # fmt: skip
    if layout == "archive":
        below = {f"{inside}/{name}": data for name, data in (files | names).items()}
        tar_gz(tmp_path / archive, below)
    else:
        folder = tmp_path / inside if layout == "below" else tmp_path
        folder.mkdir(exist_ok=True)
        for name, data in (files | names).items():
            (folder / name).write_bytes(data)
    found = load(str(tmp_path))
    assert found.classes == tuple(f"kind{i}" for i in range(100 if fine else 10))
    assert [len(found.splits[split][0]) for split in SPLITS] == [27, 3, 10]
    known = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    for split in ("train", "validation"):
        for image, label in zip(*found.splits[split], strict=True):
            assert known[image.tobytes()] == label


def test_names_of_cifars_classes_without_a_file(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(cifar_files()[0]["data_batch_1.bin"])
    assert load(str(tmp_path)).classes[:3] == ("airplane", "automobile", "bird")


BAD_CIFAR = {
    "cut short": (lambda d: d[:-1], "whole records of 3,073: it is cut short"),
    "empty": (lambda d: b"", "0 bytes are not whole records"),
    "a pickle": (lambda d: b"\x80\x02}q\x01(U\x0bbatch_labelq\x02", "not in CIFAR's binary format"),
    "of CIFAR-100": (lambda d: cifar_files(True)[0]["train.bin"], "not whole records of 3,073"),
    "a label too large": (lambda d: d[:3073] + b"\x0a" + d[3074:],
        r"label 10 of image 1 is out of range 0\.\.9"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CIFAR)
def test_damaged_cifar_files(what, tmp_path):
    change, says = BAD_CIFAR[what]
    files = cifar_files()[0]
    for name, data in files.items():
        (tmp_path / name).write_bytes(change(data) if name == "data_batch_2.bin" else data)
    check_fault(tmp_path, says, "data_batch_2.bin")


def test_only_the_batches_of_cifar_are_read(tmp_path):
    """Python's pickles, which are called alike, are never opened."""
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(UsageError, match=r"there are no images in .* that can be read"):
        load(str(tmp_path))


ARCHIVE = "cifar-10-binary.tar.gz"
WHOLE = {f"cifar-10-batches-bin/{name}": data for name, data in cifar_files()[0].items()}
FIRST = "cifar-10-batches-bin/data_batch_1.bin"


def many(path):
    tar_gz(path, {f"f{i}": b"" for i in range(bounded.MOST_FILES + 1)} | WHOLE)


def cut(path):
    tar_gz(path, WHOLE)
    path.write_bytes(path.read_bytes()[:-5000])


def large(path, name="cifar-10-batches-bin/data_batch_1.bin", kind=tarfile.REGTYPE):
    """A member of 60 MB of zeros, which take 60 kB."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.type = 60 << 20, kind
        archive.addfile(member, Zeros())


class Zeros:
    def read(self, n):
        return bytes(n)


def sparse(path):
    """GNU's format for files with holes, of 2 GB: nothing of it is in the archive."""
    member = tarfile.TarInfo(FIRST)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % (2 << 30)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(gzip.compress(bytes(block) + bytes(512 + 1024)))


BAD_ARCHIVES = {
    "climbs": (lambda p: tar_gz(p, {"../../data_batch_1.bin": b"x", **WHOLE}),
        "leads out of its folder: '../../data_batch_1.bin'"),
    "climbs later": (lambda p: tar_gz(p, {**WHOLE, "a/../../etc/passwd": b"x"}), "leads out of"),
    "climbs the other way": (lambda p: tar_gz(p, {"..\\data_batch_1.bin": b"x"}), "leads out of"),
    "is absolute": (lambda p: tar_gz(p, {"/tmp/data_batch_1.bin": b"x"}), "leads out of"),
    "links": (lambda p: tar_gz(p, {FIRST: b""}, tarfile.SYMTYPE, linkname="/etc/passwd"),
        "data_batch_1.bin in it is not a plain file"),
    "has a folder": (lambda p: tar_gz(p, {FIRST: b""}, tarfile.DIRTYPE), "not a plain file"),
    "has holes": (sparse, "data_batch_1.bin in it is not a plain file"),
    "twice": (lambda p: tar_gz(p, {**WHOLE, "again/data_batch_1.bin": b"x"}), "is in it twice"),
    "many files": (many, "more than 1,000 files"),
    "cut": (cut, "cannot use"),
    "bomb": (large, "unpacks to more than"),
    "bomb beside it": (lambda p: large(p, "readme.txt"), "unpacks to more than"),
    "bomb in a header": (lambda p: large(p, kind=tarfile.XHDTYPE), "unpacks to more than"),
    "text": (lambda p: p.write_bytes(b"not found"), "cannot use"),
    "empty": (lambda p: p.write_bytes(b""), "cannot use"),
    "without images": (lambda p: tar_gz(p, {"readme.txt": b"x"}), "no CIFAR .bin files in"),
    "damaged images": (lambda p: tar_gz(p, {FIRST: b"x"}), "data_batch_1.bin: 1 bytes are not"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_bad_archives(what, tmp_path):
    make, says = BAD_ARCHIVES[what]
    make(tmp_path / ARCHIVE)
    check_fault(tmp_path, says, ARCHIVE)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]  # nothing was unpacked


# ---- folders


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_for_each_class(channels, tmp_path):
    pixels, labels = blobs(20, channels=channels)
    write_folders(tmp_path, pixels, labels)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.ppm").write_text("no image")
    found = load(str(tmp_path))
    assert found.classes == tuple("abcd")
    order = sorted(range(20), key=lambda i: pixels[i].tobytes())
    np.testing.assert_array_equal(everything(found)[0], pixels[order])
    np.testing.assert_array_equal(everything(found)[1], labels[order])
    assert "all 20 images, divided by content" in found.about


def test_grey_among_coloured_images(tmp_path):
    pixels, labels = blobs(20, channels=3)
    write_folders(tmp_path, pixels, labels)
    (tmp_path / "a" / "000.ppm").write_bytes(ppm(pixels[0][..., :1]))
    shown, _ = everything(load(str(tmp_path)))
    grey = [image for image in shown if (image == image[..., :1]).all()]
    assert len(grey) == 1
    np.testing.assert_array_equal(grey[0][..., 0], pixels[0][..., 0])


def tiny_image_net(root):
    """Its layout: training images in folders, validation images in a list, test without labels."""
    pixels, labels = blobs(20)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / "train" / f"n0{label}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n0{label}_{i}.pgm").write_bytes(ppm(image))
        (folder.parent / f"n0{label}_boxes.txt").write_text("0\t0\t63\t63\n")
    held, of_held = blobs(6, seed=1)
    for part in ("val", "test"):
        (root / part / "images").mkdir(parents=True)
        for i, image in enumerate(held):
            (root / part / "images" / f"{part}_{i}.pgm").write_bytes(ppm(image))
    lines = [f"val_{i}.pgm\tn0{label}\t0\t0\t9\t9\n" for i, label in enumerate(of_held)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return held, of_held


def test_the_layout_of_tiny_image_net(tmp_path):
    held, of_held = tiny_image_net(tmp_path)
    found = load(str(tmp_path))
    assert found.classes == ("n00", "n01", "n02", "n03")
    assert [len(found.splits[split][0]) for split in SPLITS] == [18, 2, 6]
    np.testing.assert_array_equal(found.splits["test"][0], held)
    np.testing.assert_array_equal(found.splits["test"][1], of_held)


def test_published_validation_images_are_used_as_such(tmp_path):
    for part, seed, n in (("train", 0, 20), ("val", 1, 8), ("test", 2, 4)):
        write_folders(tmp_path / part, *blobs(n, seed=seed))
    found = load(str(tmp_path))
    assert [len(found.splits[split][0]) for split in SPLITS] == [20, 8, 4]
    np.testing.assert_array_equal(rows(found.splits["validation"][0]), rows(blobs(8, seed=1)[0]))


def annotations(text):
    return lambda root: (root / "val" / "val_annotations.txt").write_text(text)


BAD_TREES = {
    "another size": (
        lambda r: (r / "train" / "n02" / "images" / "n02_2.pgm").write_bytes(
            ppm(np.zeros((6, 7, 1), "uint8"))),
        "n02_2.pgm is 6 × 7 pixels, but .*n00_0.pgm is 8 × 8"),
    "cut short": (
        lambda r: (r / "train" / "n00" / "images" / "n00_0.pgm").write_bytes(b"P5 8 8 255\n123"),
        "n00_0.pgm: it is cut short"),
    "too long": (
        lambda r: (r / "train" / "n00" / "images" / "n00_0.pgm").write_bytes(
            b"P5 1 1 255\n" + bytes(2000)), "longer than its header says"),
    "gigantic": (
        lambda r: (r / "train" / "n00" / "images" / "n00_0.pgm").write_bytes(
            b"P5 999999999 999999999 255\n"), "at most 1024 a side"),
    "no pixels": (
        lambda r: (r / "train" / "n00" / "images" / "n00_0.pgm").write_bytes(b"P5 0 8 255\n"),
        "it contains no images"),
    "16 bits": (
        lambda r: (r / "train" / "n00" / "images" / "n00_0.pgm").write_bytes(b"P5 1 1 65535\nxx"),
        "its largest value is 65535"),
    "as text": (
        lambda r: (r / "train" / "n00" / "images" / "n00_0.pgm").write_bytes(b"P2 1 1 255\n7"),
        "not a binary PGM or PPM file"),
    "a strange class": (annotations("val_0.pgm\tn09\n"), "line 1 is not the name of an image and"),
    "a path": (annotations("../../train/n00/images/n00_0.pgm\tn00\n"), "line 1 is not the name"),
    "one column": (annotations("val_0.pgm\n"), "line 1 is not"),
    "an image that is not there": (annotations("val_99.pgm\tn00\n"), "No such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TREES)
def test_bad_folders(what, tmp_path):
    tiny_image_net(tmp_path)
    change, says = BAD_TREES[what]
    change(tmp_path)
    check_fault(tmp_path, says, str(tmp_path))


def test_a_class_of_the_test_that_training_has_not(tmp_path):
    write_folders(tmp_path / "train", *blobs(20))
    write_folders(tmp_path / "test", *blobs(4, seed=1), names="abcx")
    check_fault(tmp_path, "class x in .* has no training images", "test")


def test_too_many_images(tmp_path, monkeypatch):
    write_folders(tmp_path, *blobs(20))
    monkeypatch.setattr("minqkv.tasks.imagefiles.MOST_BYTES", 1000)
    check_fault(tmp_path, "20 images of 8 × 8 are too many: at most 1,000 bytes", str(tmp_path))


def test_png_and_jpeg(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels, labels = blobs(20, side=16, channels=3)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "abcd"[label]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "abcd"[label] / f"{i:02}.png")
    order = sorted(range(20), key=lambda i: pixels[i].tobytes())
    np.testing.assert_array_equal(everything(load(str(tmp_path)))[0], pixels[order])
    Image.fromarray(pixels[0]).save(tmp_path / "a" / "00.png", format="JPEG", quality=95)
    shown, _ = everything(load(str(tmp_path)))
    assert len(shown) == 20
    for content, says in (
        (b"no image", "not a PNG or JPEG file"),
        ((tmp_path / "a" / "04.png").read_bytes()[:60], "00.png"),
    ):
        (tmp_path / "a" / "00.png").write_bytes(content)
        check_fault(tmp_path, says, "00.png")
    for side, says in (
        (2000, "2000 × 2000 pixels; at most 1024 a"),
        (20_000, "it is far too large"),
    ):
        Image.new("1", (side, side)).save(tmp_path / "a" / "00.png")
        check_fault(tmp_path, says, "00.png")


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(EnvironmentFault, match="png needs Pillow, which is not") as caught:
        load(str(tmp_path))
    assert "[images]" in caught.value.hint


# ---- anything


def mutated(rng, data):
    """Bytes of a file with some of them changed, lost or repeated."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, n = int(rng.integers(0, min(len(data), 600))), int(rng.integers(1, 9))
        kind = rng.integers(0, 4)
        if kind == 0:
            data[at : at + n] = rng.bytes(n)
        elif kind == 1:
            del data[at : at + n]
        elif kind == 2:
            data[at:at] = data[at : at + n]
        else:
            del data[rng.integers(1, len(data)) :]
    return bytes(data)


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "cifar", "tar", "folders"])
def test_whatever_a_file_holds_is_read_or_refused(kind, tmp_path, rng):
    if kind.startswith("idx"):
        write_idx(tmp_path, *blobs(40), packed=kind.endswith("gz"))
    elif kind == "cifar":
        for name, data in cifar_files()[0].items():
            (tmp_path / name).write_bytes(data)
    elif kind == "tar":
        tar_gz(tmp_path / ARCHIVE, WHOLE)
        packed = (tmp_path / ARCHIVE).read_bytes()
    else:
        tiny_image_net(tmp_path)
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    refused = []
    for i in range(40):
        path = paths[i % len(paths)]
        whole = path.read_bytes()
        if kind == "tar" and i % 2:  # inside
            path.write_bytes(gzip.compress(mutated(rng, gzip.decompress(packed)), 1))
        else:
            path.write_bytes(mutated(rng, whole))
        try:
            load(str(tmp_path))
        except (EnvironmentFault, UsageError) as error:
            refused.append(str(error))
        path.write_bytes(whole)
    assert refused
    assert not [message for message in refused if "\n" in message]


# ---- what --data names


def test_a_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError, match=r"there are no images in .* that can be read \(IDX files"
    ) as caught:
        load(str(tmp_path))
    assert "minqkv data fetch" in caught.value.hint


def test_a_folder_with_two_kinds(digits):
    (digits / "test_batch.bin").write_bytes(cifar_files()[0]["test_batch.bin"])
    with pytest.raises(UsageError, match="contains both IDX files and CIFAR files"):
        load(str(digits))


def test_what_is_no_folder(tmp_path, digits):
    with pytest.raises(UsageError, match="there is no folder 'nowhere'") as caught:
        load("nowhere")
    assert "mnist, fashion, cifar10, cifar100" in caught.value.hint
    with pytest.raises(UsageError, match="is not a folder"):
        load(str(digits / "t10k-labels-idx1-ubyte.gz"))
    with pytest.raises(UsageError, match="cifar10 is not fully downloaded") as caught:
        load("cifar10")
    assert caught.value.hint == "minqkv data fetch cifar10"


def test_a_download_by_its_name(digits, monkeypatch):
    contents = {path.name: path.read_bytes() for path in digits.iterdir()}
    files = tuple(
        downloads.Download(name, "", len(content), hashlib.md5(content).hexdigest())
        for name, content in contents.items()
    )
    monkeypatch.setitem(downloads.IMAGES, "mnist", downloads.Collection("", files))
    downloads.place("mnist").parent.mkdir(parents=True)
    digits.rename(downloads.place("mnist"))
    found = load("mnist")
    assert found.about.startswith("mnist: 36 train, 4 validation, 10 test")
    first = downloads.place("mnist") / files[0].file
    first.write_bytes(bytes(files[0].n_bytes))  # the right size, but nothing of it is there
    with pytest.raises(UsageError, match="mnist is not fully downloaded") as caught:
        load("mnist")
    assert caught.value.hint == "minqkv data fetch mnist"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_cannot_be_read(digits):
    digits.chmod(0)
    with pytest.raises(EnvironmentFault, match="Permission denied"):
        load(str(digits))


# ---- splits


def test_a_single_part_is_divided(tmp_path):
    write_idx(tmp_path, *blobs(200), "t10k")
    found = load(str(tmp_path))
    assert [len(found.splits[split][0]) for split in SPLITS] == [160, 20, 20]
    assert "160 train, 20 validation, 20 test (all 200 test images" in found.about
    assert sum(len(rows(a)) for a, _ in found.splits.values()) == 200


def test_equal_images_stay_in_one_split(tmp_path):
    pixels, labels = blobs(40)
    write_idx(tmp_path, np.repeat(pixels, 5, axis=0), np.repeat(labels, 5))
    found = load(str(tmp_path))
    parts = [rows(a) for a, _ in found.splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert sum(len(a) for a, _ in found.splits.values()) == 200


def test_training_images_that_are_test_images_are_left_out(tmp_path):
    pixels, labels = blobs(40)
    held, of_held = blobs(10, seed=1)
    write_idx(tmp_path, np.concatenate([pixels, held[:3]]), np.concatenate([labels, of_held[:3]]))
    write_idx(tmp_path, held, of_held, "t10k")
    found = load(str(tmp_path))
    assert not rows(found.splits["test"][0]) & rows(found.splits["train"][0])
    assert "3 training images that are also test images are left out" in found.about
    assert [len(found.splits[split][0]) for split in SPLITS] == [36, 4, 10]


def test_too_few_images(tmp_path):
    write_idx(tmp_path, *blobs(4))
    with pytest.raises(UsageError, match="4 images are too few: the test split"):
        load(str(tmp_path))


# ---- shapes


def test_shapes():
    first, labels, inside = shapes.draw(stream(0, "a"), 300)
    assert (first.shape, first.dtype) == ((300, 32, 32, 1), "uint8")
    assert set(labels) == set(range(10))
    share = inside.mean(axis=(1, 2))
    assert 0.02 < share.min() < share.max() < 0.6
    again, *_ = shapes.draw(stream(0, "a"), 300)
    np.testing.assert_array_equal(first, again)
    assert not rows(first) & rows(shapes.draw(stream(0, "b"), 300)[0])


def test_a_shape_stands_out_from_its_background():
    pixels, _, inside = shapes.draw(stream(0, "a"), 300)
    values = pixels[..., 0].astype(float)
    on = (values * inside).sum((1, 2)) / inside.sum((1, 2))
    off = (values * ~inside).sum((1, 2)) / (~inside).sum((1, 2))
    assert (np.abs(on - off) > 20).all()


def test_the_default_needs_no_files():
    task = Images("images")
    assert (task.data, task.digest, task.n_train) == ("", shapes.VERSION, 8000)
    assert not images._kept  # nothing is drawn before it is needed
    task.check_data()
    assert [len(task.images.splits[split][0]) for split in SPLITS] == [8000, 1000, 1000]
    assert task.title().startswith("images: shapes, 8,000 training images, 16 patches of 8 × 8")


# ---- the task


def test_a_task_knows_its_images(digits):
    task = Images("images", data=str(digits))
    assert (task.height, task.width, task.channels, task.n_class) == (8, 8, 1, 4)
    assert (task.n_train, task.patch, task.crop, task.flip) == (36, 2, 1, False)
    assert task.chance == 0.25
    assert task.title() == (
        "images: digits, 36 training images, 16 patches of 2 × 2  d 64  L 2  H 4"
    )
    assert "10 test (the published test images are the test split" in task.about_data()
    cfg = task.config("q-k=v")
    assert (cfg.n_in, cfg.n_token, cfg.n_class, cfg.block_size) == (4, 16, 4, 17)


def test_patches_of_images_that_are_not_square(tmp_path):
    pixels = np.zeros((30, 12, 20, 1), "uint8")
    pixels[:, 0, 0, 0] = np.arange(30)
    write_idx(tmp_path, pixels, np.arange(30) % 2)
    task = Images("images", data=str(tmp_path))
    assert (task.patch, task.crop) == (2, 1)
    assert task.batch(0, 0, 8)[0].shape == (8, 60, 4)
    assert len(task.picture(task.draw(0, "test")[0][0])) == 6


def test_pixels_are_scaled_by_the_training_images(digits):
    task = Images("images", data=str(digits), n_train=20)
    x = task.tokens(task.images.splits["train"][0][:20])
    assert x.dtype == "float32"
    assert abs(x.mean()) < 1e-5
    assert x.std() == pytest.approx(1, abs=1e-5)
    x, y = task.draw(0, "test", 5)
    np.testing.assert_array_equal(y, task.images.splits["test"][1][:5])
    np.testing.assert_array_equal(task.draw(7, "test")[0][:5], x)  # whatever the seed


def test_images_without_contrast_are_no_division_by_zero(tmp_path):
    pixels = np.zeros((100, 8, 8, 1), "uint8")
    pixels[:, 0, 0, 0] = np.arange(100) % 3  # nearly all black
    pixels[:, 0, 1, 0] = np.arange(100)
    write_idx(
        tmp_path, pixels * 0 + np.arange(100)[:, None, None, None].astype("uint8"), np.zeros(100)
    )
    task = Images("images", data=str(tmp_path))
    assert np.isfinite(task.draw(0, "test")[0]).all()


def test_an_epoch_shows_each_training_image_once(digits):
    task = Images("images", data=str(digits), crop=0)
    whole = task.tokens(task.images.splits["train"][0])
    for epoch in (0, 1):
        seen = [task.batch(3, 3 * epoch + i, 12)[0] for i in range(3)]
        assert rows(np.concatenate(seen)) == rows(whole)
    first, second = task.batch(3, 0, 12)[0], task.batch(3, 3, 12)[0]
    assert rows(first) != rows(second)  # shuffled anew


def test_a_batch_depends_on_seed_and_step_alone(digits):
    task, again = (Images("images", data=str(digits), flip=True) for _ in range(2))
    x, y = task.batch(1, 5, 12)
    again.batch(1, 4, 12)
    np.testing.assert_array_equal(again.batch(1, 5, 12)[0], x)
    np.testing.assert_array_equal(again.batch(1, 5, 12)[1], y)
    assert (task.batch(2, 5, 12)[0] != x).any()
    assert (task.batch(1, 6, 12)[0] != x).any()


def test_a_batch_is_no_larger_than_the_training_images(digits):
    x, _ = Images("images", data=str(digits)).batch(0, 0, 1000)
    assert len(x) == 36


def test_shifted_images(rng):
    pixels = rng.integers(1, 256, (6, 5, 4, 3)).astype("uint8")
    corners = rng.integers(0, 5, (2, 6))
    found = shifted(pixels, corners, 2)
    for image, shown, top, left in zip(pixels, found, *corners, strict=True):
        for row in range(5):
            for column in range(4):
                i, j = row + top - 2, column + left - 2
                inside = 0 <= i < 5 and 0 <= j < 4
                expected = image[i, j] if inside else [0, 0, 0]
                assert shown[row, column].tolist() == list(expected)
    np.testing.assert_array_equal(shifted(pixels, np.full((2, 6), 2), 2), pixels)


def test_half_of_the_images_are_mirrored(digits):
    task = Images("images", data=str(digits), crop=0, flip=True)
    task.images.splits["train"] = tuple(np.repeat(a, 30, axis=0) for a in blobs(36))
    task = Images("images", data=str(digits), digest=task.digest, height=8, width=8, channels=1,
                  n_class=4, n_train=1080, crop=0, flip=True)  # fmt: skip
    x, _ = task.batch(0, 0, 1080)
    plain, turned = (task.tokens(a) for a in (blobs(36)[0], blobs(36)[0][:, :, ::-1]))
    mirrored = [image.tobytes() in rows(turned) for image in x]
    assert all(image.tobytes() in rows(np.concatenate([plain, turned])) for image in x)
    assert 0.4 < np.mean(mirrored) < 0.6


def test_mistakes_and_pictures(digits):
    task = Images("images", data=str(digits))
    x, y = task.draw(0, "test", 3)
    wrong = (y + 1) % 4
    found = task.mistakes(x, y, np.array([y[0], *wrong[1:]]))
    assert found[0]["expected"] == found[0]["predicted"] == [str(y[0])]
    assert found[2] == {"image": [2], "expected": [str(y[2])], "predicted": [str(wrong[2])]}
    lines = task.picture(x[0])
    assert len(lines) == 4
    assert max(map(len, lines)) <= 8
    black = np.zeros((1, 8, 8, 1), "uint8")
    white = task.tokens(black + 255)[0]
    assert task.picture(task.tokens(black)[0]) == ["", "", "", ""]
    assert task.picture(white) == ["@" * 8] * 4


def test_a_large_picture_fits_the_terminal(tmp_path):
    write_idx(tmp_path, *blobs(10, side=130))
    task = Images("images", data=str(tmp_path), patch=13)
    lines = task.picture(task.draw(0, "test")[0][0])
    assert 20 < len(lines) < 30
    assert max(map(len, lines)) <= 64


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"patch": 3}, "patches of 3 × 3 do not fill images of 8 × 8"),
        ({"patch": 0}, "do not fill"),
        ({"pool": "sum"}, "unknown pool"),
        ({"crop": -1}, "crop -1 must be at least 0"),
        ({"crop": 9}, "crop 9 is more than the image's side of 8"),
        ({"height": 0}, "height 0 must be"),
        ({"digest": "x"}, "are not those this run was trained on"),
        ({"n_train": 0}, "n_train 0"),
        ({"n_validation": 0}, "n_validation 0"),
        ({"n_train": 37}, "n_train 37, but there are 36 training images"),
        ({"height": 4}, "these images have 8 × 8 × 1 numbers"),
        ({"flip": 1}, "flip must be true or false or none"),
        ({"n_test": 0}, "n_test 0"),
    ],
)
def test_fields_that_cannot_be(fields, says, digits):
    def build():
        task = Images("images", data=str(digits), **fields)
        task.config("qkv")
        task.check_data()

    with pytest.raises((UsageError, EnvironmentFault), match=says):
        build()


def test_other_images_in_the_same_place(digits, tmp_path):
    task = Images("images", data=str(digits))
    write_idx(digits, *blobs(40, seed=9), packed=True)
    assert len(task.images.splits["train"][0]) == 36  # what this process has read
    images._kept.clear()
    with pytest.raises(EnvironmentFault, match="are not those this run was trained on"):
        task.check_data()


def test_shards_and_parts_change_nothing_but_rounding(digits):
    config = configure("images", "q-k=v", data=str(digits), **QUICK | {"steps": 3, "batch": 30})
    expected = train_run(config)[0].state_dict()
    others = [config.change(threads=2), config.change(accumulate=3)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("minqkv.runtime.parallel.SMALLEST", 1)
        found = [train_run(other)[0].state_dict() for other in others]
    mq.set_threads(1)
    for state in found:
        for name, array in expected.items():
            np.testing.assert_allclose(state[name], array, rtol=0, atol=2e-5, err_msg=name)


def test_what_a_run_needs(digits):
    config = configure("images", "qkv", data=str(digits))
    found = needs(config)
    assert found.parameters == config.build().n_params
    assert found.data == 50 * 64  # bytes of all images
    assert found.fixed >= found.data
    wide = needs(configure("images", "qkv", data=str(digits), patch=8))
    assert wide.scoring < found.scoring  # a single token


def test_it_learns(digits):
    config = configure("images", "q-k=v", data=str(digits), n_layer=1, n_embd=32, steps=60,
                       batch=36, lr=5e-3)  # fmt: skip
    _, result = train_run(config)
    assert result["accuracy"] > 0.9


# ---- the commands


def flags(**given):
    return [
        part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


SMALL = flags(n_layer=1, n_head=2, n_embd=16, steps=4)


def test_train_and_eval(cli, digits):
    code, out, err = cli(
        "train", "--task", "images", "--data", digits, *SMALL, "--variant", "q-k=v"
    )
    assert code == 0, err
    assert "digits: 36 train, 4 validation, 10 test" in err
    assert "see its mistakes: minqkv eval runs/images-q-k=v-s0 --wrong 5" in out
    code, out, err = cli("eval", "runs/images-q-k=v-s0", "--wrong", "2")
    assert code == 0, err
    assert "on 10 images" in out
    assert "of 10 images are wrong" in out
    assert out.count("expected") == 2
    assert "#" in out or "+" in out  # a picture
    found = json.loads(cli("eval", "runs/images-q-k=v-s0", "--wrong", "1", "--json")[1])
    assert found["sequences"] == 10
    assert found["wrong"][0].keys() == {"image", "expected", "predicted"}


@pytest.mark.parametrize("name", ["b\x07", "b\x9b2J", "b\u202ed", "b\nd"])
def test_a_terminal_does_not_obey_names(name, cli, tmp_path):
    """Of folders and files; what is printed and what is refused."""
    root = tmp_path / f"set {name}"
    pixels, labels = blobs(60)
    for i, (image, label) in enumerate(zip(pixels, labels % 2, strict=True)):
        folder = root / ("a", name)[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.pgm").write_bytes(ppm(image))
    said = cli("train", "--task", "images", "--data", root, *SMALL, "--out", "run")
    assert said[0] == 0
    assert "set b\ufffd" in said[2]
    said += cli("eval", "run", "--wrong", "9")
    assert "b\ufffd" in said[4]
    said += cli("report", "run")
    (folder / "0.pgm").write_bytes(b"")
    images._kept.clear()
    code, _, err = cli("eval", "run")
    assert code == 3
    assert err.count("\n") == 2
    said = "".join(text for text in (*said, err) if isinstance(text, str))
    assert not [c for c in said if not c.isprintable() and c != "\n"]


def test_a_name_that_is_not_utf_8(cli, digits):
    folder = digits.rename(digits.with_name("digits \udcff"))
    code, _, err = cli("train", "--task", "images", "--data", folder, *SMALL, "--out", "run")
    assert code == 0, err
    assert cli("train", "--resume", "--out", "run")[0] == 0
    assert cli("report", "run", "--html", "page.html")[0] == 0
    assert cli("eval", "run")[0] == 0


def test_a_run_is_resumed_with_the_same_images_only(cli, digits, tmp_path):
    args = ("train", "--task", "images", *SMALL, "--out", "run")
    assert cli(*args, "--data", digits)[0] == 0
    code, _, err = cli(*args, "--resume", "--data", digits)
    assert code == 0, err
    write_idx(digits, *blobs(40, seed=9), packed=True)
    code, _, err = cli(*args, "--resume", "--data", digits)
    assert code == 2
    assert "run contains a different run: digest is" in err
    code, _, err = cli("eval", "run")
    assert code == 3
    assert "are not those this run was trained on" in err


def test_a_killed_run_ends_with_the_same_bits(digits, tmp_path):
    config = configure("images", "q=k=v+", data=str(digits), **QUICK | {"steps": 8, "batch": 10})
    same_bits_after_a_kill(config, tmp_path / "run", after=5)


def test_settings_can_be_shown_and_read_again(cli, digits):
    args = ("train", "--task", "images", "--data", digits, "--set", "patch=4", *SMALL)
    code, out, err = cli(*args, "--show-config")
    assert code == 0, err
    assert f'data = "{digits}"' in out
    assert "patch = 4" in out
    assert 'digest = "' in out
    Path("c.toml").write_text(out, "utf-8")
    assert cli("train", "--config", "c.toml", "--show-config")[1] == out


def test_a_study(cli, digits):
    args = ("study", "--tasks", "images", "--data", digits, "--variants", "qkv,q-k=v", *SMALL)
    code, out, err = cli(*args, "--seeds", "2", "--jobs", "1", "--out", "study")
    assert code == 0, err
    assert "digits: 36 train" in err
    assert "images: digits, 36 training images" in out
    assert "minus qkv" in out
    assert "ublished" not in out  # these are not the images of the paper
    assert "perplexity" not in out
    found = json.loads(Path("study/results.json").read_text("utf-8"))
    assert {run["task"] for run in found["runs"]} == {"images"}
    code, out, err = cli(*args, "--seeds", "2", "--jobs", "1", "--out", "study")
    assert "4 of them on record" in err


def test_a_report_does_not_need_the_images(cli, digits):
    args = ("study", "--tasks", "images", "--data", digits, "--variants", "qkv,q-k=v", *SMALL)
    assert cli(*args, "--seeds", "2", "--jobs", "1", "--out", "study")[0] == 0
    digits.rename(digits.with_name("gone"))
    images._kept.clear()
    code, out, err = cli("report", "study", "--markdown")
    assert code == 0, err
    assert "36 training images" in out
    assert "minus qkv" in out


def test_the_papers_accuracies():
    found = printed()["vision"]
    for group in found.values():
        assert list(group) == ["qkv", "q=k-v", "q=k-v+", "q-k=v", "q=k=v", "q=k=v+"]
    figures = [group["q=k=v"]["paper"] for group in found.values()]
    assert figures == [".978", ".877", ".672", ".376", ".933", ".266"]
    assert list(found["tinyimagenet"]["q-k=v"]) == ["re-run"]  # the paper has none


def test_a_column_of_published_accuracies(cli, digits):
    """Of images that have the name of the paper's; sets have a table of their own."""
    digits.rename(digits.with_name("MNIST"))
    args = ("study", "--data", "MNIST", "--variants", "qkv,q-k=v,mqa", "--seeds", "1")
    code, out, err = cli(*args, *SMALL, "--tasks", "images", "--jobs", "1", "--out", "a")
    assert code == 0, err
    assert "paper / re-run" in out
    shown = {line.split("  ")[0]: line for line in reversed(out.splitlines())}
    assert ".981 / .984" in shown["qkv"]
    assert ".976 / .979" in shown["q-k=v"]
    assert " / " not in shown["mqa"]
    assert "Published: Table 2;" in out


def test_one_set_of_images_in_a_study(cli, digits):
    code, _, err = cli("study", "--tasks", "images", "--set", f"data={digits},mnist")
    assert code == 2
    assert "a study takes one data, not 2" in err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--data", "nowhere"), 2, "there is no folder 'nowhere'"),
        (("--set", "data=7"), 2, "there is no folder '7'"),
        (("--set", "patch=3"), 2, "do not fill images"),
        (("--set", "pool=sum"), 2, "unknown pool"),
        (("--set", "digset=x"), 2, "did you mean digest"),
    ],
)
def test_wrong_flags(args, code, says, cli):
    found, out, err = cli("train", "--task", "images", *args)
    assert (found, out) == (code, "")
    assert says in err
    assert "unexpected" not in err
    assert not os.path.exists("runs")


def test_the_task_is_listed_with_an_example(cli):
    rows = json.loads(cli("tasks", "--json")[1])
    (row,) = [row for row in rows if row["name"] == "images"]
    assert row["input"] == ["16 tokens"]
    assert row["target"][0] in shapes.SHAPES


# ---- real images, where they are


def test_mnist():
    task = Images("images", data=real("mnist"))
    assert [len(task.images.splits[split][0]) for split in SPLITS] == [8000, 1000, 1000]
    config = configure("images", "q-k=v", data=task.data, steps=120, lr=3e-3, n_validation=200)
    _, result = train_run(config)
    assert result["accuracy"] > 0.6  # guessing: 0.1


def test_cifar10():
    task = Images("images", data=real("cifar10"))
    n = {split: len(task.images.splits[split][0]) for split in SPLITS}
    assert n == {"train": 4500, "validation": 500, "test": 1000}
    assert len(set(task.images.splits["train"][1])) == 10
    config = configure("images", "q-k=v", data=task.data, steps=60, lr=3e-3, n_validation=100)
    _, result = train_run(config)
    assert result["accuracy"] > 0.22  # guessing: 0.1
