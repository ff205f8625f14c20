"""Check 18: whether `alike` keeps its promises, in other bases and for spaces that are known."""

from types import SimpleNamespace

import numpy as np

from minqkv.analysis import diagnose

TOLERANCE = 1e-9

HINTS = (
    "A number computed from the entries of wk changes with A. What does not change is the space "
    "that the columns of wk span. Find something that depends on that space alone.",
    "np.linalg.qr(wk)[0] has orthonormal columns that span the same space. Two such bases of one "
    "space still differ by a turn, so do not compare their columns one by one. The singular values "
    "of k.T @ v are the same for all of them.",
    "k, v = np.linalg.qr(wk)[0], np.linalg.qr(wv)[0]; then "
    "cosines = np.linalg.svd(k.T @ v, compute_uv=False). Return the mean of their squares. Do not "
    "take the largest one alone, nor their product.",
)

EXPLANATION = """
Your number depends on two spaces and not on the matrices. The package takes the mean of the squared
cosines of the principal angles (`principal_angles` and `overlap` in minqkv/analysis/diagnose.py).
Other choices are as good: the sum of the cosines, for one.

The sum of the squared cosines is also the sum of the squared entries of k.T @ v, so no singular
values are needed. The package finds its bases by a singular value decomposition instead of `qr`. So
it can leave out directions that a matrix of less than full rank does not read.

A number that stays is not yet a number that means something: it has to be compared with chance.
"""


def cases(rng):
    """Weights (C, d) of keys and values, and two other bases (d, d)."""
    d = int(rng.integers(2, 4))
    C = 2 * d + int(rng.integers(0, 4))
    wk, wv = rng.standard_normal((2, C, d))
    a, b = (_turn(rng, d) @ np.diag(rng.uniform(0.5, 3, d)) @ _turn(rng, d) for _ in range(2))
    return wk, wv, a, b


def _turn(rng, d):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def use(learner, wk, wv, a, b):
    """What becomes of the number."""

    def number(k, v):
        found = np.asarray(learner.alike(k.copy(), v.copy()))
        if found.shape or found.dtype.kind not in "fiu":
            raise TypeError(f"alike returns {found.dtype} of shape {found.shape}, not one number")
        if not np.isfinite(found):
            raise ValueError(f"alike returns {found} for some weights")
        return float(found)

    def order(**numbers):
        text, last = "", None
        for name, each in numbers.items():
            if text:
                same = abs(each - last) <= 1e-6
                text += " = " if same else " < " if each > last else " > "
            text, last = text + name, each
        return text

    before, turn = number(wk, wv), np.linalg.qr(a)[0]
    bases = {
        "3 * wk": (3 * wk, wv),
        "wk turned": (wk @ turn, wv),
        "wk @ A": (wk @ a, wv),
        "3 * wv": (wk, 3 * wv),
        "wv turned": (wk, wv @ turn),
        "wv @ B": (wk, wv @ b),
    }
    after = {name: number(*pair) for name, pair in bases.items()}
    stays = [name for name in bases if abs(after[name] - before) <= 1e-6 * (1 + abs(before))]
    full, half, near, far, none = (number(wk, v) for v in _values(wk, b))
    return {
        "stays for": ", ".join(stays),
        "in common": order(none=none, half=half, all=full),
        "angles": order(right=none, wide=far, narrow=near),
    }


def _values(wk, b):
    """Values (C, d) that read what the keys read; half of it; and directions at angles of 30, 60
    and 90 degrees to it.
    """
    d = wk.shape[1]
    basis = np.linalg.qr(wk, mode="complete")[0]  # (C, C)
    shared, apart = basis[:, :d], basis[:, d : 2 * d]
    halves = np.radians(np.where(np.arange(d) < d // 2, 0.0, 90.0))  # (d,)
    for angle in (0.0, halves, np.pi / 6, np.pi / 3, np.pi / 2):
        yield (shared * np.cos(angle) + apart * np.sin(angle)) @ b


def reference(wk, wv, a, b):
    """The package's overlap keeps them all."""

    def alike(k, v):
        return diagnose.overlap(diagnose.principal_angles(k, v))

    return use(SimpleNamespace(alike=alike), wk, wv, a, b)
