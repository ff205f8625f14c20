"""Images: an encoder reads patches and says what is shown (paper, section 4.2).

Training images are cropped at random, from a frame a few pixels wider, and may be mirrored: what
happens to which image depends on the seed and the step alone. Pixels are scaled by the mean and the
deviation of each channel over the training images.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..models import ViTConfig, patchify, unpatchify
from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.rng import stream
from . import imagesets, shapes
from .base import Recipe, Task, check_split

LARGEST = 1 << 21  # numbers of an array in a forward pass that scores: 8 MiB of float32
RAMP = " .:-=+*#%@"  # from dark to light
SIZES = ("height", "width", "channels", "n_class", "n_train")
_of_shapes = (shapes.SIDE, shapes.SIDE, 1, len(shapes.SHAPES), 8 * shapes.N // 10)
GENERATED = {  # what is known of the shapes before they are drawn
    "digest": shapes.VERSION, **dict(zip(SIZES, _of_shapes, strict=True))
}  # fmt: skip
_kept = {}  # (data, digest) -> the ImageSet that this process read last


@dataclass(frozen=True)
class OfImages(Task):
    """What tasks have in common whose examples come from a set of images.

    `data` is the argument of `imagesets.load`. A task made from it alone reads the images; from
    then on `digest` identifies them, and their sizes are known. `n_train` training images are used,
    all of them unless given.
    """

    data: str = ""
    digest: str | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    n_class: int | None = None
    n_train: int | None = None

    solved = None
    learned = None
    one_each = ("data",)
    n_steps: ClassVar[int]  # unless told otherwise

    def __post_init__(self):
        super().__post_init__()
        if any(getattr(self, name) is None for name in GENERATED):
            self._complete(**(_identity(_read(self.data), self.data) if self.data else GENERATED))
        self._at_least(1, *SIZES)

    def _complete(self, **defaults):
        """Set fields that were not given."""
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _at_least(self, least, *names):
        """Raise UsageError for a field below `least`."""
        for name in names:
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)} must be at least {least}")

    @classmethod
    def prepared(cls, given, progress=None):
        """If `data` is given: read the images, and add what identifies them."""
        data = given.get("data")
        if not isinstance(data, str | None):  # --set data=7
            raise UsageError(f"data must be str, not {data!r}", f"--data {data}")
        return _identity(_read(data, progress), data) | given if data else given

    @property
    def images(self) -> imagesets.ImageSet:
        """The images. Raises EnvironmentFault if they no longer belong to this task."""
        if (self.data, self.digest) not in _kept:
            found = _read(self.data).digest
            if found != self.digest:
                why = f"the images in {self.data} are not those this run was trained on"
                cure = "restore them, or train again in another folder"
                raise EnvironmentFault(f"{why}: their digest is {found}, not {self.digest}", cure)
        return _kept[self.data, self.digest]

    def title(self, without=()):
        """With the name of the data."""
        size = super().title((*without, "data", "digest", *SIZES, "n_validation"))
        images = f"{Path(self.data).name or 'shapes'}, {self.n_train:,} training images"
        return size.replace(self.name, f"{self.name}: {images}", 1)

    @property
    def data_bytes(self):
        """Those of all splits, a byte for each number."""
        return sum(images.nbytes for images, _ in self.images.splits.values())

    def about_data(self):
        """Where the images and their splits come from."""
        return self.images.about

    def recipe(self, steps=None):
        """Adam at the paper's rate, with a warm-up of a twentieth of the steps."""
        steps = steps or self.n_steps
        twentieth, tenth = max(1, steps // 20), max(1, steps // 10)
        return Recipe(steps, warmup=twentieth, clip=1.0, watch=tenth)

    def check_data(self):
        """The images are there, belong to this task, and are enough."""
        there, *shape = self.images.splits["train"][0].shape
        if shape != [self.height, self.width, self.channels]:
            raise UsageError(f"these images have {' × '.join(map(str, shape))} numbers each")
        if self.n_train > there:
            raise UsageError(f"n_train {self.n_train:,}, but there are {there:,} training images")


@dataclass(frozen=True)
class Images(OfImages):
    """Examples are images, cut into squares of `patch` pixels; targets are their classes.

    Of the validation and test images, at most `n_validation` and `n_test` are scored. `crop` is the
    width of the frame of black pixels in which an image is shifted, an eighth of its side unless
    given; `flip` mirrors half of the images, by default those in colour. `pool`: see
    models.vit.POOLS.
    """

    patch: int | None = None
    crop: int | None = None
    flip: bool | None = None
    pool: str = "class"
    n_validation: int = 1000
    _: KW_ONLY
    n_test: int = 10_000

    unit = "images"
    n_steps = 1500

    def __post_init__(self):
        super().__post_init__()
        sides = self.height, self.width
        self._complete(crop=min(sides) // 8, flip=self.channels == 3)
        self._at_least(1, "n_validation")
        self._at_least(0, "crop")
        if self.crop > min(sides):
            raise UsageError(f"crop {self.crop:,} is more than the image's side of {min(sides)}")
        quarter = max(1, min(sides) // 4)
        fits = [size for size in range(1, quarter + 1) if not any(side % size for side in sides)]
        self._complete(patch=fits[-1])
        patchify(np.empty((0, *sides, 1)), self.patch)  # raises if the patches do not fit

    def title(self, without=()):
        """With the name of the data, and the size of the patches."""
        size = super().title((*without, "patch", "crop", "flip"))
        patches = self.height * self.width // self.patch**2
        squares = f"{patches} patches of {self.patch} × {self.patch}"
        return size.replace("training images", f"training images, {squares}", 1)

    @property
    def chance(self):
        """Guessing among all classes."""
        return 1 / self.n_class

    def config(self, variant):
        """A ViT of these sizes."""
        names = ("n_class", "n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value")
        size = {name: getattr(self, name) for name in (*names, "pool")}
        size["n_in"] = self.patch**2 * self.channels
        size["n_token"] = self.height * self.width // self.patch**2
        return ViTConfig(**size, variant=variant)

    def examples(self, rng, n):
        """n random training images, cropped and mirrored."""
        return self._augmented(rng, rng.integers(0, self.n_train, n))

    def batch(self, seed, step, size):
        """A part of the training images, which are shuffled again in each epoch."""
        size = min(size, self.n_train)
        epoch, i = divmod(step, self.n_train // size)
        rows = _order(seed, epoch, self.n_train)[i * size : (i + 1) * size]
        return self._augmented(stream(seed, "data", "train", self.name, step), rows)

    def _augmented(self, rng, rows):
        """Training images, shifted and mirrored at random, as patches; and their classes."""
        images, labels = (array[rows] for array in self.images.splits["train"])
        if self.crop:
            images = shifted(images, rng.integers(0, 2 * self.crop + 1, (2, len(rows))), self.crop)
        if self.flip:
            mirrored = rng.random(len(rows)) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return self.tokens(images), labels

    def tokens(self, images: np.ndarray) -> np.ndarray:
        """Images (n, height, width, C), uint8, as scaled patches (n, N, n_in), float32."""
        mean, deviation = self._scale
        x = patchify(images, self.patch)  # (n, N, n_in)
        x = x.reshape(*x.shape[:2], -1, self.channels).astype("float32")  # (n, N, pixels, C)
        x -= mean
        x /= deviation
        return x.reshape(*x.shape[:2], -1)  # (n, N, n_in)

    @property
    def _scale(self):
        return self.images.scale(self.n_train)

    def n_scored(self, split):
        """How many images are scored: fewer of the validation split, which is scored often."""
        most = self.n_validation if split == "validation" else self.n_test
        return min(most, len(self.images.splits[check_split(split)][0]))

    def draw(self, seed, split, n=None):
        """The images of a split, or the first n of them, neither cropped nor mirrored.

        They do not depend on the seed: all models are scored on the same images.
        """
        images, labels = (
            a[: n or self.n_scored(split)] for a in self.images.splits[check_split(split)]
        )
        return self.tokens(images), labels

    @property
    def at_once(self):
        """Images whose largest array has no more than LARGEST numbers: what is inside an MLP, or
        scores.
        """
        tokens = self.config("qkv").block_size
        widest = max(4 * self.n_embd, self.n_head * tokens)
        return max(1, min(500, LARGEST // (tokens * widest)))

    def mistakes(self, x, y, predicted):
        """For each image: its place in the split, and the names of the two classes."""
        names = self.images.classes
        return [
            {"image": [i], "expected": [names[right]], "predicted": [names[found]]}
            for i, (right, found) in enumerate(zip(y, predicted, strict=True))
        ]

    def picture(self, row):
        """An image as lines of characters, two rows of pixels in a line."""
        mean, deviation = self._scale
        pixels = row.reshape(1, len(row), -1, self.channels) * deviation + mean
        pixels = pixels.reshape(1, len(row), -1)  # (1, N, n_in)
        return in_characters(unpatchify(pixels, self.patch, self.height, self.width)[0])


def in_characters(image: np.ndarray) -> list[str]:
    """An image (height, width, C) of numbers from 0 to 255 as lines of characters, two rows of
    pixels in a line.
    """
    height, width, _ = image.shape
    step = -(-width // 64)  # of larger images, every second column, or third ...
    image = image[: height // (2 * step) * 2 * step, ::step].mean(axis=-1)  # (rows, columns)
    lines = image.reshape(-1, 2 * step, image.shape[1]).mean(axis=1)  # (lines, columns)
    shades = np.clip(lines * len(RAMP) / 256, 0, len(RAMP) - 1).astype(int)
    return ["".join(RAMP[shade] for shade in line).rstrip() for line in shades]


def shifted(images: np.ndarray, corners: np.ndarray, frame: int) -> np.ndarray:
    """Parts of images (n, height, width, C) in a black frame of this width, of the images' own
    size. `corners` (2, n): the row and the column in which each part begins; `frame` for both gives
    the image itself.
    """
    n, height, width, _ = images.shape
    sides = (frame, frame)
    framed = np.pad(images, ((0, 0), sides, sides, (0, 0)))  # (n, height + 2 frame, ..., C)
    rows, columns = (
        corner[:, None] + np.arange(side)
        for corner, side in zip(corners, (height, width), strict=True)
    )  # (n, height), (n, width)
    return framed[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _read(data, progress=None):
    """The images, kept for the tasks of this process."""
    found = imagesets.load(data, progress)
    _kept.clear()
    _kept[data, found.digest] = found
    return found


def _identity(found, data):
    """The fields of a task that identify its images."""
    images, _ = found.splits["train"]
    n, *shape = images.shape
    sizes = dict(zip(SIZES, (*shape, len(found.classes), n), strict=True))
    return {"data": data, "digest": found.digest, **sizes}


@lru_cache(maxsize=2)
def _order(seed, epoch, n):
    return stream(seed, "order", epoch).permutation(n)
