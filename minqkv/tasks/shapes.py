"""Generated images for when there are no others: one of ten shapes, of any size, place, angle and
shade, before a background with stripes and noise.

They are drawn from a fixed seed, so everybody has the same ones (up to the rounding of a sine).
"""

from __future__ import annotations

import numpy as np

from ..runtime.rng import stream

SIDE = 32  # pixels
N = 10_000  # images
VERSION = "shapes-1"  # a name for these images
NOISE = 0.08  # standard deviation, where 1 is the distance from black to white
CONTRAST = (0.3, 0.7)  # between a shape and its background
RADIUS = (8.0, 13.0)  # pixels
STRIPES = 0.08  # of the background
TURN = 0.5  # radians, either way


def _star(x, y):
    return np.hypot(x, y) < 0.62 + 0.34 * np.cos(5 * np.arctan2(y, x))


SHAPES = {  # name -> whether a point is inside, for coordinates in which the shape has radius 1
    "disc": lambda x, y: np.hypot(x, y) < 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) < 0.22,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.72,
    "frame": lambda x, y: np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.55) < 0.18,
    "triangle": lambda x, y: np.maximum(0.87 * np.abs(x) + 0.5 * y, -y) < 0.5,
    "cross": lambda x, y: (
        (np.minimum(np.abs(x), np.abs(y)) < 0.24) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)
    ),
    "star": _star,
    "crescent": lambda x, y: (np.hypot(x, y) < 0.95) & (np.hypot(x - 0.5, y) > 0.7),
    "bars": lambda x, y: (np.abs(np.abs(x) - 0.55) < 0.22) & (np.abs(y) < 0.85),
    "corner": lambda x, y: (np.maximum(np.abs(x), np.abs(y)) < 0.8) & (np.minimum(x, y) < -0.3),
}


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n images (n, 32, 32, 1), uint8, with a shape each; which one, (n,), a place in SHAPES; and
    the pixels that it covers, (n, 32, 32), booleans.
    """
    labels = rng.integers(0, len(SHAPES), n)  # (n,)
    radius = rng.uniform(*RADIUS, n)  # (n,)
    centre = radius + rng.random((2, n)) * (SIDE - 2 * radius)  # (2, n): all of it is in the image
    x, y = _system(rng.uniform(-TURN, TURN, n), centre, radius)  # (n, 32, 32) each
    inside = np.empty((n, SIDE, SIDE), bool)
    for i, shape in enumerate(SHAPES.values()):
        mine = labels == i
        inside[mine] = shape(x[mine], y[mine])
    stripes, _ = _system(rng.uniform(0, 2 * np.pi, n), centre, rng.uniform(1.5, 4, n))
    shade = rng.choice([-1, 1], n) * rng.uniform(*CONTRAST, n)  # (n,)
    values = NOISE * rng.standard_normal(inside.shape, dtype=np.float32)  # (n, 32, 32)
    values += STRIPES * np.sin(stripes)
    values += np.where(inside, *(np.float32(sign * shade)[:, None, None] for sign in (0.5, -0.5)))
    pixels = np.clip(127.5 + 255 * values, 0, 255).astype(np.uint8)
    return pixels[..., None], labels, inside  # (n, 32, 32, 1), (n,), (n, 32, 32)


def _system(angle, centre, unit):
    """Coordinates of all pixels in n systems, each with an angle, a centre (row, column) and a unit
    of length: x and y, (n, 32, 32), float32.
    """
    pixel = np.arange(SIDE) + 0.5
    down, right = ((pixel - place[:, None]) / unit[:, None] for place in centre)  # (n, 32) each
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]  # (n, 1)
    parts = (cos * right, sin * down), (-sin * right, cos * down)
    return [a[:, None].astype("f4") + b[:, :, None].astype("f4") for a, b in parts]


def shapes() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The N images, their labels, and the names of the classes."""
    rng = stream(0, "shapes")
    parts = [draw(rng, 1000)[:2] for _ in range(N // 1000)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return images, labels, tuple(SHAPES)
