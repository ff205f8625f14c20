"""A cache in a file, so that a long prompt is read only once: `save` and `load`.

The file holds the positions in use, how they are stored, and a fingerprint of the model that read
them: to another model, even of the same size, the rows mean nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..cache import KVCache, agreed
from ..runtime import backend
from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.files import read_arrays, write_arrays
from . import KINDS, options

if TYPE_CHECKING:
    from ..models import GPT

KIND, VERSION = "prompt cache", 1
CLASSES = {kind.cls: options(name)["kind"] for name, kind in KINDS.items()}


def save(cache: KVCache, path, model: GPT) -> None:
    """Write what `model` has read into a cache to a file, which is either complete or absent.

    For a ring, what the last append replaced is not saved, so the loaded cache may not be able to
    undo it. Raises UsageError for an empty cache and for a class that is not one of CLASSES,
    EnvironmentFault if the file cannot be written.
    """
    name = type(cache).__name__
    if CLASSES.get(name) is not type(cache):
        raise UsageError(f"a {name} cannot be saved", f"classes that can: {', '.join(CLASSES)}")
    if not len(cache):
        raise UsageError("the cache is empty", "read a prompt first")
    if cache.stored != stored_by(model):
        raise UsageError("the cache belongs to a different model: its rows have other sizes")
    arrays = {"lengths": cache.lengths, "held": cache.layers[-1].held}  # (B,), (B, S)
    empty = backend.upload(arrays["held"] < 0)[:, None, :, None]  # (B, 1, S, 1)
    for i, layer in enumerate(cache.layers):
        for j, rows in enumerate(layer.rows):
            clean = backend.xp.where(empty, rows.dtype.type(0), rows)
            arrays[f"{i}.{j}"] = backend.to_host(clean)  # (B, heads, S, width)
    about = {"class": name, "dtype": cache.dtype.name, "options": cache.options}
    about |= {"version": VERSION, "model": fingerprint(model)}
    write_arrays(path, KIND, about, arrays)


def load(
    path, model: GPT, batch: int | None = None, capacity: int | None = None, room: int = 0
) -> KVCache:
    """The cache in a file, as if `model` had just read its text.

    `capacity` is the model's block_size unless given, and at least what the file holds and `room`
    more positions. `batch`: that many copies of a single saved sequence. Raises EnvironmentFault if
    the file is missing, damaged, or from another version or model, and UsageError if it does not
    fit `batch`.
    """
    about, arrays = _read(path, model)
    try:
        cache = _filled(about, arrays, model, capacity or model.config.block_size, room)
    except KeyError as error:
        raise EnvironmentFault(f"{path} is damaged: it lacks {error}") from error
    except (TypeError, ValueError, OverflowError) as error:  # a UsageError is a ValueError
        raise EnvironmentFault(f"{path} is damaged: {error}") from error
    if batch in (None, cache.batch):
        return cache
    if cache.batch > 1:
        raise UsageError(f"{path} holds {cache.batch} sequences; a batch of {batch} does not fit")
    return cache.clone([0] * batch)


def fingerprint(model: GPT) -> str:
    """SHA-256 of a model's configuration and weights, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), default=str).encode())
    for name, p in model.named_parameters():
        array = np.ascontiguousarray(backend.to_host(p.data))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()


def stored_by(model: GPT) -> tuple[list[tuple], ...]:
    """What a cache of this model stores of a token: (heads, width) of each array, in each layer."""
    return tuple([block.attn.spec.stored(model.config) for block in model.blocks])


def _read(path, model):
    try:
        about, arrays = read_arrays(path, KIND)
    except EnvironmentFault as error:  # without its advice, which is for runs
        raise EnvironmentFault(str(error)) from error
    if about.get("version") != VERSION:
        why = f"{path} has format {about.get('version')!r}; this program reads {VERSION}"
        raise EnvironmentFault(why, "read the prompt again, and save it")
    if about.get("model") != fingerprint(model):
        why = f"{path} was saved with another model: its configuration or weights differ"
        raise EnvironmentFault(why, "read the prompt again with this model, and save it")
    return about, arrays


def _filled(about, arrays, model, capacity, room):
    """A cache with this content. If it does not fit, NumPy and the cache classes raise errors."""
    lengths, held = arrays.pop("lengths"), arrays.pop("held")
    if lengths.dtype != np.int64 or lengths.ndim != 1 or not (lengths > 0).any():
        raise ValueError("impossible lengths")
    if lengths.min() < 0 or held.dtype != np.int64 or held.shape[:-1] != lengths.shape:
        raise ValueError("impossible positions")
    longest, slots = int(lengths.max()), held.shape[1]
    if longest > slots and about["options"]["window"] + about["options"]["sinks"] != slots:
        raise ValueError("more positions than rows, but no full ring")
    size = len(lengths), max(capacity, longest + room)
    if about["class"] not in CLASSES:
        raise ValueError(f"unknown class {about['class']!r}")
    cache = CLASSES[about["class"]](stored_by(model), *size, about["dtype"], **about["options"])
    for i, layer in enumerate(cache.layers):
        layer.ends = agreed(lengths)
        for j, rows in enumerate(layer.rows):
            rows[...] = backend.upload(_checked(arrays.pop(f"{i}.{j}"), rows))
        layer.restore(held)
    if arrays:
        raise ValueError(f"{min(arrays)} belongs to no layer")
    return cache


def _checked(array, rows):
    if array.shape != rows.shape or array.dtype != rows.dtype or not np.isfinite(array).all():
        found = f"{array.dtype} {array.shape}"
        raise ValueError(f"expected finite {rows.dtype} {rows.shape}, found {found}")
    return array
