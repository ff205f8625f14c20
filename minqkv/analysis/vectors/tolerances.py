"""How far an implementation may be from the vectors, in each dtype.

The plain implementation that sets the tolerances is this package in float32, or in float64 with
inputs that are off by one epsilon of float32, if that differs more. For float64 and float16, its
difference is scaled by the ratio of the epsilons. But the scores, pattern and z of kernels are
really computed in float16, with sums in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...runtime import backend
from ...runtime.rng import stream
from ...tensor import Tensor, make
from .case import Case
from .computed import mixed_with, results, seen

DTYPES = ("float64", "float32", "float16")
FLOOR = {"float64": 8, "float32": 8, "float16": 2}  # machine epsilons of the largest number
EPS = float(np.finfo("float32").eps)
SEVERAL = 4  # roundings in the two sums whose difference is the gradient of a softmax
NEAR = 4  # computations from inputs that differ by rounding


def tolerances(case: Case, task: str, given: dict, right: dict) -> dict[str, dict[str, float]]:
    """Name of an array in `right` -> dtype -> how far from it an implementation may be."""
    plain = [results(case, task, given, case.layer("float32", task))]
    plain += [_near(case, task, given, i) for i in range(NEAR)]
    half = plain_float16(case, given) if case.level == "kernel" else {}
    sums = _of_sums(case, given) if case.only else {}
    found = {}
    for name, array in right.items():
        if array.dtype == np.float64:
            error = max(float(abs(array - other[name]).max()) for other in plain)
            found[name] = _tolerance(array, error, half.get(name), task, sums.get(name))
    return found


def _tolerance(right, error, half, task, sums):
    """dtype -> how far from the float64 array an implementation may be. A plain one has this
    `error` in float32, and in float16 gives the array `half`, if there is one. `sums`: what long
    sums may differ by, in epsilons.
    """
    most, found = abs(right).max(), {}
    for dtype in DTYPES:
        eps = float(np.finfo(dtype).eps)
        plainly = error * eps / EPS
        floor = FLOOR[dtype] * eps * most
        if dtype == "float16" and half is not None:
            plainly = abs(right - half).max()
        elif sums is not None:
            floor = eps * sums
        elif task == "int8" and dtype == "float32":  # a number on the edge of two integers
            floor = most / 127
        found[dtype] = float(f"{2 * plainly + floor:.3g}")
    return found


def _of_sums(case, given):
    """How far any order of long sums, and a scale before or after them, may move each array, in
    epsilons. The rounding errors of n terms grow like √n times the sum of the terms' sizes.
    """
    layer = case.layer()
    exact = results(replace(case, only=()), "forward", given, layer, grads=False)
    q, k, v = (abs(exact[name]) for name in "qkv")
    group = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])  # (H,): the stored head of each
    scores = (q @ k[:, group].swapaxes(-1, -2)).max() / layer.root * q.shape[-1] ** 0.5
    share = 2 * scores + 2 * k.shape[2] ** 0.5  # of the softmax, its sum, and the sum of the values
    z = (exact["pattern"] @ v[:, group]).max()
    return {"scores": scores, "pattern": share * exact["pattern"].max(), "z": share * z}


def plain_float16(case: Case, given: dict, product: Callable = np.matmul) -> dict[str, np.ndarray]:
    """Scores, pattern and z of a kernel, each rounded once to float16: products and sums are in
    float32, unless another `product` of matrices is given.
    """

    def half(array):
        return array.astype("float16").astype("float32")

    layer = case.layer("float32")
    exact = results(replace(case, only=()), "forward", given, layer)
    q, k, v = (half(exact[name]) for name in "qkv")
    group = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])  # (H,): the stored head of each
    scores = product(q, k[:, group].swapaxes(-1, -2))  # (B, H, T, S)
    scores = half(scores / np.float32(layer.root))
    plus = half(scores + (exact["plus"] - exact["scores"] if "plus" in exact else 0))
    asked = np.arange(case.length) + case.past
    mask = seen(case, layer, asked, np.arange(k.shape[2]), given.get("segments"))
    shown = np.where(mask, plus, np.float32(-1e30))
    e = np.where(mask, np.exp(shown - shown.max(-1, keepdims=True)), np.float32(0))
    pattern = half(e / np.maximum(e.sum(-1, keepdims=True), np.float32(1e-30)))
    z = Tensor(half(product(pattern, v[:, group])))  # (B, H, T, d_v)
    z = half(layer.answer(z, slice(case.past, k.shape[2])).data)
    return {"q": q, "k": k, "v": v, "scores": scores, "plus": plus, "pattern": pattern, "z": z}


def _near(case, task, given, i):
    """What comes out if everything given is off by up to one epsilon of float32, and so is the
    pattern: how much rounding must change it, in any order of the sums.
    """
    rng = stream(i, "vectors", "near")

    def off(array, by=1.0):
        return array * (1 + EPS * by * rng.uniform(-1, 1, array.shape))

    def rounded(scores):
        """A softmax whose gradient comes from other roundings, so that what cancels in it leaves a
        remainder. Some compute the pattern again from the logarithm of a row's sum, which has
        the rounding error of the scores.
        """
        x = scores.data
        top = x.max(-1, keepdims=True, initial=-1e30)  # (B, H, T, 1)
        e = np.exp(x - top)
        y = e / np.maximum(e.sum(-1, keepdims=True), 1e-30)
        size = abs(np.where(top > -1e30, top, 0))
        y, other = off(y, 1 + size), off(y, SEVERAL + size)

        def vjp(g, wanted):
            return (y * (g - (g * other).sum(-1, keepdims=True)),)

        return make(y, (scores,), vjp)

    layer = case.layer(task=task)
    if layer.sink is None and (case.level == "kernel" or task == "forward"):
        layer.mix = mixed_with(rounded, layer)
    for p in layer.parameters():
        p.data[...] = backend.upload(off(backend.to_host(p.data)))
    moved = {n: off(a) if a.dtype.kind == "f" else a for n, a in given.items()}
    return results(case, task, moved, layer)
