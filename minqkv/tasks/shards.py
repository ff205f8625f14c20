"""Token shards: files of integers with a header and a checksum, read through a memory map.

A file is a header of 72 bytes, then the integers, little-endian. The header: magic, format version,
bytes per integer (2, 4, or 8 for document offsets), vocabulary size, count, the first 16 bytes of
the tokenizer's SHA-256, and the SHA-256 of the integers.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from pathlib import Path

import numpy as np

from ..runtime import files
from ..runtime.errors import EnvironmentFault

HEADER = struct.Struct("<8sHHIQ16s32s")
MAGIC, VERSION = b"mqkvtoks", 1
SHARD_TOKENS = 1 << 24  # in all shards of a split but the last: 32 MiB of uint16
HINT = "move {} elsewhere, and prepare the text again: minqkv data prepare SOURCE"


class Tokens:
    """The tokens of a split: one array of n integers in several files, which may be larger than
    memory. Read it in windows: `tokens[start:stop]` and `windows(starts, n)`.
    """

    def __init__(self, shards: list[np.ndarray]):
        self.shards, self.size = shards, len(shards[0])  # all but the last have the same size
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return self.size * (len(self.shards) - 1) + len(self.shards[-1])

    def __getitem__(self, key: slice) -> np.ndarray:
        """The tokens of a slice without a step; a view of the file if one shard holds them all."""
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise IndexError("tokens are read in slices without a step: tokens[start:stop]")
        if stop <= start:
            return self.shards[0][:0]
        parts = [
            self.shards[k][max(0, start - k * self.size) : stop - k * self.size]
            for k in range(start // self.size, (stop - 1) // self.size + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self[:], dtype)

    def windows(self, starts: np.ndarray, n: int) -> np.ndarray:
        """The n tokens from each start: (len(starts), n) int64. Raises IndexError if a window does
        not lie within the tokens.
        """
        if len(starts) and not 0 <= min(starts) <= max(starts) <= len(self) - n:
            raise IndexError(f"windows of {n} tokens must lie within the {len(self)} tokens")
        rows = [self[int(start) : int(start) + n] for start in starts]
        return np.array(rows, np.int64).reshape(len(starts), n)


class Writer:
    """Writes the tokens and document offsets of one split, shard by shard, so that no more than
    one shard is in memory.
    """

    def __init__(self, folder: Path, split: str, vocab_size: int, tokenizer: bytes):
        self.folder, self.split, self.stamp = folder, split, (vocab_size, tokenizer)
        self.checksums, self.offsets = [], array("q", [0])
        self.pending, self.n_pending = [], 0

    def add(self, tokens: np.ndarray) -> None:
        """One more document."""
        self.offsets.append(self.offsets[-1] + len(tokens))
        self.pending.append(tokens)
        self.n_pending += len(tokens)
        if self.n_pending >= SHARD_TOKENS:
            self._flush(SHARD_TOKENS)

    def close(self) -> dict:
        """Write what is left; returns the counts, and the checksums of the files."""
        self._flush(1)
        offsets = write(_offsets(self.folder, self.split), np.array(self.offsets), *self.stamp)
        return {
            "documents": len(self.offsets) - 1,
            "tokens": self.offsets[-1],
            "shards": self.checksums,
            "offsets": offsets,
        }

    def _flush(self, least):
        """Write shards while at least this many tokens are pending."""
        tokens = np.concatenate(self.pending)
        while len(tokens) >= least:
            path = _shard(self.folder, self.split, len(self.checksums))
            self.checksums.append(write(path, tokens[:SHARD_TOKENS], *self.stamp))
            tokens = tokens[SHARD_TOKENS:]
        self.pending, self.n_pending = [tokens], len(tokens)


def _shard(folder, split, k):
    return folder / f"{split}-{k:05d}.tokens"


def _offsets(folder, split):
    return folder / f"{split}.documents"


def write(path: Path, values: np.ndarray, vocab_size: int, tokenizer: bytes) -> str:
    """Write one file; returns the checksum of its values, as hex digits. May raise OSError."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    checksum, size = hashlib.sha256(data), values.dtype.itemsize
    head = (MAGIC, VERSION, size, vocab_size, len(values), tokenizer[:16], checksum.digest())
    save(path, HEADER.pack(*head), data)
    return checksum.hexdigest()


def save(path: Path, *parts: bytes) -> None:
    """Write a file into a folder that is still being made, so the write need not be atomic. May
    raise OSError.
    """
    with open(path, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, checksum: str, vocab_size: int, tokenizer: bytes) -> np.ndarray:
    """The values of a file, (n,), memory-mapped, after its checksum has been verified.

    Verifying takes one to two seconds per GB. Raises EnvironmentFault if the file is missing,
    truncated, damaged, or from another tokenizer or vocabulary.
    """
    again = HINT.format(path.parent)
    try:
        with files.opened(path) as file:
            head = file.read(HEADER.size)
            if len(head) < HEADER.size or not head.startswith(MAGIC):
                raise EnvironmentFault(f"{path} is not a file of tokens", again)
            _, version, size, vocabulary, count, made_by, wanted = HEADER.unpack(head)
            if version != VERSION:
                raise EnvironmentFault(f"{path} has format {version}, not {VERSION}", again)
            if (vocabulary, made_by) != (vocab_size, tokenizer[:16]):
                raise EnvironmentFault(f"{path} was made with another tokenizer", again)
            whole = HEADER.size + count * size == os.fstat(file.fileno()).st_size
            if not whole or size not in (2, 4, 8):
                raise EnvironmentFault(f"{path} is cut short", again)
            found = hashlib.file_digest(file, "sha256")
        if found.digest() != wanted or found.hexdigest() != checksum:
            raise EnvironmentFault(f"{path} is damaged: its checksum differs", again)
        kind = {2: "<u2", 4: "<u4", 8: "<i8"}[size]
        return np.memmap(path, kind, "r", HEADER.size, (count,)).view(np.ndarray)
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error


def read_split(
    folder: Path, split: str, found: dict, stamp: tuple[int, bytes]
) -> tuple[Tokens, np.ndarray]:
    """The tokens of a split and its document offsets (n + 1,) int64, verified. `found` is the
    result of Writer.close; `stamp` is the vocabulary size and the digest of the tokenizer.
    """
    parts = [read(_shard(folder, split, k), c, *stamp) for k, c in enumerate(found["shards"])]
    return Tokens(parts), read(_offsets(folder, split), found["offsets"], *stamp)
