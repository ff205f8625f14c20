"""Corpora: a text as tokens in three splits, prepared once and identified by its content.

**The splits** are 80 % for training, 10 % for validation and 10 % for the test, by content. With
`MANY` documents or more, the split of a document follows from a hash of its content: duplicates are
never in two splits, and adding documents later does not move the others. With fewer documents, or
if a split would be empty, each document is cut into three parts, for training, validation and test
in this order. The cuts are after a line break near 80 % and 90 % of its bytes or, if there is none,
between two UTF-8 characters. Each part then counts as a document.

**The tokens** of a split are its documents one after the other; each ends with the tokenizer's end
token. A document must fit into memory; a corpus need not.

**On disk**, a corpus is a folder `texts/<label>-<digest>` in cache_root(), with corpus.json,
tokenizer.json, and for each split its token shards and document offsets (shards.py). It is made
under another name and renamed at the end, so it is either complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..runtime import files
from ..runtime.errors import EnvironmentFault, UsageError
from . import shards, tokenizers
from .base import check_split
from .documents import Documents
from .downloads import cache_root
from .rules import SPLITS

KIND, FORMAT = "corpus", 1
MANY = 30  # documents
SAMPLE_BYTES = 2 << 20  # of the training split: what a BPE tokenizer is trained on
ABOUT = {"label": str, "digest": str, "tokenizer": str, "splits": dict, "left_out": dict}
OPEN = 8  # corpora that a process keeps open, so that each is verified once


class Corpus:
    """A prepared text, opened and verified.

    `label` names the source; `digest` (12 hex digits) covers the tokenizer, all tokens and all
    document offsets; `splits` has for each split the counts of documents, tokens and bytes.

    Raises EnvironmentFault if there is no corpus in the folder, or a damaged one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        found = about(self.folder)
        place = self.folder / "tokenizer.json"
        table = files.read_json(place, shards.HINT.format(self.folder))
        stamp = _sha256(table)
        try:
            self.label, self.digest, self.splits = (
                found[name] for name in ("label", "digest", "splits")
            )
            if self.digest != _digest(stamp, self.splits):
                raise ValueError("its digest differs")
            self.tokenizer = tokenizers.from_json(table, str(place))
            stamp = (self.tokenizer.vocab_size, stamp.digest())
            self._arrays = {
                split: shards.read_split(self.folder, split, self.splits[split], stamp)
                for split in SPLITS
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"{self.folder} is damaged: {error}"
            raise EnvironmentFault(why, shards.HINT.format(self.folder)) from error

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {self.splits[split]['tokens']:,}" for split in SPLITS)
        return f"Corpus({self.label}-{self.digest}, {self.tokenizer.name}, tokens: {sizes})"

    def tokens(self, split: str) -> shards.Tokens:
        """The tokens of a split, (n,), memory-mapped."""
        return self._arrays[check_split(split)][0]

    def documents(self, split: str) -> np.ndarray:
        """Where documents begin and end: document i is tokens(split)[o[i] : o[i + 1]]. (n + 1,)
        int64.
        """
        return self._arrays[check_split(split)][1]

    def n_bytes(self, split: str) -> int:
        """The length of a split's text in bytes; end tokens have none."""
        return self.splits[check_split(split)]["bytes"]


def prepare(
    source: str, tokenizer: str = "chars", progress: Callable[[int, int], None] | None = None
) -> Corpus:
    """The corpus of a text. It is prepared unless it exists already.

    `source` is a file, a folder, "-" (stdin), the name of a download, "" (the built-in corpus), or
    a prepared folder, which keeps its tokenizer. `tokenizer` is a name for tokenizers.make.
    `progress(done, total)` reports the work done, in per cent.

    Raises UsageError if there is no such source or its text is too short for three splits, and
    EnvironmentFault if something cannot be read, is not text, or cannot be written.
    """
    if source and os.path.exists(os.path.join(source, "corpus.json")):
        return _opened(Path(source).resolve())
    progress = progress or (lambda done, total: None)
    learns = getattr(tokenizers.class_of(tokenizer), "learns", None)  # FILE.json has no class
    made = None if learns else tokenizers.make(tokenizer, b"")
    text = Divided(Documents(source))
    key = [FORMAT, text.label, text.digest, tokenizer if learns else made.as_json()]
    key = _sha256(key).hexdigest()
    if folder := _saying("key", key):
        return _opened(folder)
    trained = 50 if learns == "sample" else 0  # per cent of the work
    if learns:
        sample = text.sample() if learns == "sample" else text.characters()
        made = tokenizers.make(tokenizer, sample, lambda n, of: progress(trained * n // of, 100))
    with _new_folder() as folder:
        rest = 100 - trained
        splits = _write(folder, text, made, lambda n, of: progress(trained + rest * n // of, 100))
        digest = _digest(_sha256(made.as_json()), splits)
        shards.save(folder / "tokenizer.json", _canonical(made.as_json()))
        summary = {
            "kind": KIND, "format": FORMAT, "label": text.label, "digest": digest,
            "tokenizer": made.name, "splits": splits, "left_out": text.left_out, "key": key,
        }  # fmt: skip
        summary = json.dumps(files.sealed(summary), indent=1)
        shards.save(folder / "corpus.json", summary.encode())
        return _opened(_renamed(folder, f"{text.label}-{digest}"))


def find(digest: str) -> Corpus:
    """The prepared corpus with this digest. Raises EnvironmentFault if it is missing or damaged.

    What corpus.json says counts, not the name of the folder, which may have been changed.
    """
    if folder := _saying("digest", digest):
        return _opened(folder)
    for folder in _kept():
        if folder.name.endswith(f"-{digest}"):
            about(folder)  # says what is wrong with it
    raise EnvironmentFault(
        f"the corpus {digest} is not in {cache_root() / 'texts'}",
        "prepare the same text again: minqkv data prepare SOURCE --tokenizer NAME",
    )


def is_prepared(digest: str | None, label: str | None) -> bool:
    """Whether the corpus with this digest is there, under this label."""
    folder = digest and _saying("digest", digest)
    return bool(folder) and about(folder)["label"] == label


def folders() -> list[Path]:
    """The folders of all prepared corpora, sorted."""
    named = (path for path in _kept() if not path.name.startswith("."))
    return sorted(path.resolve() for path in named if os.path.lexists(path / "corpus.json"))


def unfinished() -> list[Path]:
    """Folders of corpora that are being prepared, or whose process was killed."""
    return [path for path in _kept() if path.name.startswith(".new-")]


def _kept():
    """All that is in the folder of prepared texts, sorted. Raises EnvironmentFault where it cannot
    be read.
    """
    try:
        return sorted((cache_root() / "texts").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise EnvironmentFault(f"cannot read {error.filename}: {error.strerror}") from error


def about(folder: Path) -> dict:
    """The contents of corpus.json; nothing else is read. Raises EnvironmentFault if it is missing,
    damaged, or of another kind.
    """
    try:
        found = files.read_sealed(folder / "corpus.json")
    except EnvironmentFault as error:
        if isinstance(error.__cause__, OSError) and (folder / "corpus.json").exists():
            raise  # it may be whole
        raise EnvironmentFault(str(error), shards.HINT.format(folder)) from error
    if (found.get("kind"), found.get("format")) != (KIND, FORMAT):
        why = f"{folder} is not a corpus of format {FORMAT}"
        raise EnvironmentFault(why, "name the text itself: minqkv data prepare SOURCE")
    for name, kind in ABOUT.items():
        if not isinstance(found.get(name), kind):
            why = f"{folder} is damaged: its {name} is {found.get(name)!r}"
            raise EnvironmentFault(why, shards.HINT.format(folder))
    return found


# ---- the splits


def split_of(content: bytes) -> str:
    """The split of one document among many."""
    share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def cut(content: bytes) -> dict[str, bytes]:
    """The parts of one document among few: split -> part. A part may be empty."""
    first, second = (_near(content, len(content) * tenths // 10) for tenths in (8, 9))
    parts = (content[:first], content[first:second], content[second:])
    return dict(zip(SPLITS, parts, strict=True))


def _near(content, at):
    """Where to cut: after the last line break in the 2.5 % before `at`; if there is none, at `at`,
    but not inside a UTF-8 character.
    """
    if line := content.rfind(b"\n", at - len(content) // 40, at) + 1:
        return line
    starts = (p for p in range(at, max(0, at - 4), -1) if content[p] & 0xC0 != 0x80)
    return next(starts, at)


class Divided:
    """The documents of a source, each with its split. They are read once to survey them, and again
    by each method. `digest` covers all of them.

    Raises UsageError if a split would be empty.
    """

    def __init__(self, documents: Documents):
        self.documents, self.label = documents, documents.label
        n, digest, hashed, parts = 0, hashlib.sha256(), Counter(), Counter()
        for _, content in documents:
            n += 1
            digest.update(hashlib.sha256(content).digest())
            hashed[split_of(content)] += len(content)
            parts.update({split: len(part) for split, part in cut(content).items()})
        self.left_out = documents.left_out
        self.digest, self.n_bytes = digest.hexdigest(), parts.total()
        self.whole = n >= MANY and all(hashed[split] for split in SPLITS)
        sizes = hashed if self.whole else parts
        if empty := [split for split in SPLITS if not sizes[split]]:
            what = f"{documents.name} has {self.n_bytes} bytes of text"
            if self.left_out:
                what += f" ({', '.join(f'{n} {why}' for why, n in self.left_out.items())} left out)"
            why = f"{what}: nothing would be left for {' and '.join(empty)}"
            raise UsageError(why, "choose a longer text; for training, 100 kB or more")

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """(split, text) of each document or part of one. Raises EnvironmentFault at the end if the
        source has changed meanwhile.
        """
        digest = hashlib.sha256()
        for _, content in self.documents:
            digest.update(hashlib.sha256(content).digest())
            pieces = {split_of(content): content} if self.whole else cut(content)
            yield from ((split, part) for split, part in pieces.items() if part)
        if digest.hexdigest() != self.digest:
            raise EnvironmentFault("the text changed while it was read", "prepare it again")

    def sample(self) -> bytes:
        """The beginning of the training split, to train a tokenizer on. With merges learned from
        the test split as well, that split would need fewer tokens than a new text.
        """
        found = bytearray()
        for split, part in self.parts():
            if split == "train":
                found += part[: SAMPLE_BYTES - len(found)]
            if len(found) == SAMPLE_BYTES:
                break
        return bytes(found)

    def characters(self) -> bytes:
        """Each character of the whole text, once. The test split may be included: the list does not
        say how often a character occurs. Raises EnvironmentFault if a document is not UTF-8.
        """
        found = set()
        for name, content in self.documents:
            try:
                found.update(content.decode("utf-8"))
            except UnicodeDecodeError as error:
                why = f"{name} is not UTF-8: byte {error.start} is {content[error.start]:#04x}"
                hint = "choose one that accepts any text: --tokenizer bytes or bpe-1024"
                raise EnvironmentFault(why, hint) from error
        return "".join(sorted(found)).encode("utf-8")


# ---- the folder


def _write(folder, text, tokenizer, progress):
    """Write all shards, one document at a time; returns counts and checksums of each split."""
    stamp = (tokenizer.vocab_size, _sha256(tokenizer.as_json()).digest())
    writers = {split: shards.Writer(folder, split, *stamp) for split in SPLITS}
    n_bytes = dict.fromkeys(SPLITS, 0)
    for split, part in text.parts():
        ids = tokenizer.encode(part)
        writers[split].add(np.append(ids, ids.dtype.type(tokenizer.end)))
        n_bytes[split] += len(part)
        progress(sum(n_bytes.values()), text.n_bytes)
    return {split: writer.close() | {"bytes": n_bytes[split]} for split, writer in writers.items()}


@contextmanager
def _new_folder():
    """A folder for work in progress, beside the corpora; removed at the end if it still exists."""
    texts = cache_root() / "texts"
    folder = texts / f".new-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:  # errors of reading have become EnvironmentFaults
        why = f"cannot write to {texts}: {error.strerror or error}"
        hint = "free some space, or set MINQKV_CACHE to another folder"
        raise EnvironmentFault(why, hint) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _renamed(folder, name):
    """Give a finished folder its name."""
    final = folder.with_name(name)
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        # another process has prepared the same text meanwhile: the name contains the digest
    return final.resolve()


def _saying(name, value):
    """The folder of a corpus with this value in its corpus.json, or None."""
    for folder in folders():
        with suppress(EnvironmentFault):  # damage to another one does not matter here
            if about(folder).get(name) == value:
                return folder
    return None


def _opened(folder):
    return _verified(folder, str(about(folder).get("digest")))


@lru_cache(OPEN)
def _verified(folder, digest):
    return Corpus(folder)


def _canonical(value):
    return json.dumps(value, sort_keys=True).encode()


def _sha256(value):
    return hashlib.sha256(_canonical(value))


def _digest(tokenizer, splits):
    """The digest of a corpus: checksums of all files are in `splits`."""
    return _sha256([FORMAT, tokenizer.hexdigest(), splits]).hexdigest()[:12]
