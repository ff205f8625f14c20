"""Text as numbers, and back: characters, bytes, and pairs of bytes.

A tokenizer turns bytes into ids and ids into the same bytes. Each id stands for a piece of text;
the last id, `end`, stands for the end of a document and is never the result of `encode`.
"""

import functools
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, islice, repeat
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike

from ..runtime.errors import EnvironmentFault, UsageError, unknown
from ..runtime.files import opened, read_json

NAMES = ("chars", "bytes", "bpe-1024", "gpt2:PATH", "FILE.json")
BATCH = (
    65_536  # words that are encoded at once: the text may be long, the list of words stays short
)
CACHED = 1_000_000  # words whose ids are remembered
LONGEST = 1_024  # bytes of a token: in a damaged file, each merge could double them

Progress = Callable[[int, int], None]


class Tokenizer:
    """What all tokenizers share. `pieces[id]` are the bytes that a token stands for."""

    def __init__(self, pieces: Iterable[bytes]):
        self.pieces = [*pieces, b""]
        self.vocab_size = len(self.pieces)
        self.end = self.vocab_size - 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decode(self, ids: ArrayLike) -> bytes:
        """Ids (T,) -> bytes; nothing for `end`. Raises UsageError for an id that does not exist."""
        ids = np.asarray(ids).astype(np.int64).ravel()
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UsageError(f"no token {wrong}: the ids of {self.name} are 0 to {self.end}")
        return b"".join(map(self.pieces.__getitem__, ids.tolist()))

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}, {self.vocab_size:,} tokens>"


class Chars(Tokenizer):
    """A token for each of the given characters. The text must be UTF-8."""

    name = kind = "chars"

    def __init__(self, characters: str):
        if not isinstance(characters, str) or not characters:
            raise UsageError("there are no characters")
        self.ids = {character: i for i, character in enumerate(characters)}
        if len(self.ids) < len(characters):
            raise UsageError("a character is listed twice")
        try:
            super().__init__(character.encode() for character in characters)
        except UnicodeEncodeError as error:
            raise UsageError("half of a surrogate pair is no character") from error

    @classmethod
    def train(cls, data: bytes) -> "Chars":
        """The characters of a text, in the order of Unicode."""
        return cls("".join(sorted(set(cls.text(data)))))

    @staticmethod
    def text(data: bytes) -> str:
        """UTF-8 as a string. Raises UsageError for other bytes."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            what = f"byte {error.start:,} is 0x{data[error.start]:02x}"
            raise UsageError(
                f"the text is not UTF-8: {what}", "use --tokenizer bytes, which takes any file"
            ) from error

    def encode(self, data: bytes) -> np.ndarray:
        """Bytes -> ids (T,). Raises UsageError for a character that has no id."""
        text = self.text(data)
        try:
            return np.fromiter(map(self.ids.__getitem__, text), self.dtype, len(text))
        except KeyError as error:
            (character,) = error.args
            where = f"number {text.index(character) + 1:,} of the text"
            known = f"none of the {len(self.ids):,} characters that this tokenizer knows"
            raise UsageError(
                f"{character!r}, character {where}, is {known}",
                "leave it out, or use a tokenizer that takes any text: --tokenizer bytes",
            ) from error

    def as_json(self) -> dict:
        """What `from_json` needs."""
        return {"kind": self.kind, "characters": "".join(self.ids)}


class Bytes(Tokenizer):
    """A token for each of the 256 bytes: takes any file, needs no training."""

    name = kind = "bytes"

    def __init__(self):
        super().__init__(bytes([byte]) for byte in range(256))

    def encode(self, data: bytes) -> np.ndarray:
        """Bytes -> ids (T,)."""
        return np.frombuffer(data, np.uint8).astype(self.dtype)

    def as_json(self) -> dict:
        """What `from_json` needs."""
        return {"kind": self.kind}


def merge(ids: list, pair: tuple, new: int) -> list:
    """Replace each occurrence of a pair, from the left.

    >>> merge([1, 2, 3, 1, 2], (1, 2), 256)
    [256, 3, 256]
    """
    merged, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and ids[i + 1 : i + 2] == [pair[1]]:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


# A text is first cut into words, and no token spans two of them: "dog", "dog." and "dog!" share
# "dog". A space belongs to the word after it, so that " the" is one token. A longer word is cut:
# the time that a word takes grows with the square of its length.
WORD = re.compile(
    rb"""[ ]?[A-Za-z\x80-\xff]{1,63}        # letters; from 0x80: what UTF-8 makes of all others
    | [ ]?[0-9]{1,63}                       # digits
    | [ ]?[^\sA-Za-z0-9\x80-\xff]{1,63}     # punctuation
    | \s{1,64}(?!\S)                        # blanks, without the last one before a word
    | \s                                    # that one, where it is no space: a new line, a tab""",
    re.VERBOSE,
)


class BPE(Tokenizer):
    """Byte-pair encoding (Sennrich et al., 2016; on bytes: Radford et al., 2019).

    The first 256 tokens are the bytes. Each merge (left id, right id) then makes a new token of two
    older ones; merge k has the id 256 + k.
    """

    kind = "bpe"
    order = bytes(range(256))  # the bytes in the order of their ids

    def __init__(self, merges: list):
        if not isinstance(merges, list):
            raise UsageError("there is no list of merges")
        pieces, self.merged = [bytes([byte]) for byte in self.order], {}
        for k, pair in enumerate(merges):
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
                raise UsageError(f"merge {k} is not a pair")
            if not all(type(i) is int and 0 <= i < len(pieces) for i in pair):
                raise UsageError(f"merge {k} is not made of two ids from 0 to {len(pieces) - 1}")
            if tuple(pair) in self.merged:
                raise UsageError(f"merge {k} repeats an earlier one")
            self.merged[tuple(pair)] = len(pieces)
            pieces.append(pieces[pair[0]] + pieces[pair[1]])
            if len(pieces[-1]) > LONGEST:
                raise UsageError(f"merge {k} makes a token of more than {LONGEST:,} bytes")
        super().__init__(pieces)
        self._pairs = list(self.merged)
        self._ids = dict(zip(self.order, range(256), strict=True))
        self._known = {}

    @property
    def name(self):
        """ "bpe-1024"; where the text had fewer pairs to merge, the smaller number."""
        return f"bpe-{self.vocab_size}"

    @classmethod
    def train(cls, data: bytes, vocab_size: int, progress: Progress | None = None) -> "BPE":
        """Merge the pair that is most frequent in the text, the one with the lower ids where
        several are, until there are `vocab_size` tokens or no pair occurs twice.

        Words are counted once and stored once. A merge changes only words that contain the pair;
        counts change by what these words lose and gain. `progress(done, total)` after each merge.
        """
        frequency = Counter(cls.words(data))
        words, times = [list(word) for word in frequency], list(frequency.values())
        counts, places = Counter(), defaultdict(set)  # of a pair; which words contain it
        for i, word in enumerate(words):
            for pair in zip(word, word[1:]):
                counts[pair] += times[i]
                places[pair].add(i)
        heap = [(-count, pair) for pair, count in counts.items()]
        heapify(heap)
        merges, total = [], vocab_size - 257
        while heap and len(merges) < total:
            count, pair = heappop(heap)
            if -count != counts[pair]:
                continue  # the count has changed since: a newer entry is in the heap
            if -count < 2:
                break
            change = _replace(pair, 256 + len(merges), words, times, places)
            for other, difference in change.items():
                if difference:
                    counts[other] += difference
                    heappush(heap, (-counts[other], other))
            merges.append(pair)
            if progress:
                progress(len(merges), total)
        return cls(merges)

    @staticmethod
    def words(data: bytes) -> Iterator:
        """The words of a text, one after another; together they are the text."""
        return map(itemgetter(0), WORD.finditer(data))

    def encode(self, data: bytes) -> np.ndarray:
        """Bytes -> ids (T,). Each distinct word is encoded once."""
        words, encoded = self.words(data), [np.empty(0, self.dtype)]
        while batch := list(islice(words, BATCH)):
            if len(self._known) > CACHED:
                self._known = {}
            known = self._known
            for word in set(batch) - known.keys():
                known[word] = self._encode_word(word)
            ids = chain.from_iterable(map(known.__getitem__, batch))
            encoded.append(np.fromiter(ids, self.dtype))
        return np.concatenate(encoded)

    def _encode_word(self, word):
        """Merge as in training: of the pairs in the word, the one that was learned first."""
        ids = [self._ids[byte] for byte in word]
        while True:
            new = min(map(self.merged.get, zip(ids, ids[1:]), repeat(self.end)), default=self.end)
            if new == self.end:
                return ids
            ids = merge(ids, self._pairs[new - 256], new)

    def as_json(self) -> dict:
        """What `from_json` needs."""
        return {"kind": self.kind, "merges": [list(pair) for pair in self.merged]}


def _replace(pair, new, words, times, places):
    """Merge a pair in the words that contain it. Returns what that changes in the count of each
    pair, and notes in `places` where new pairs are.
    """
    change = Counter()
    for i in places.pop(pair):
        old, words[i] = words[i], merge(words[i], pair, new)
        for lost in zip(old, old[1:]):
            change[lost] -= times[i]
        for gained in zip(words[i], words[i][1:]):
            change[gained] += times[i]
            places[gained].add(i)
    return change


# ---- GPT-2's own vocabulary


class GPT2(BPE):
    """Byte-pair encoding with GPT-2's merges, from a file that the user has.

    The ids are GPT-2's: its 256 bytes in an order of their own, 50,000 merges, `end` = 50,256.
    They can differ in two cases. A character that Unicode has added, or moved to another class,
    since GPT-2 counts here as what this Python says that it is. And bytes that are not UTF-8, which
    GPT-2 does not take, are symbols here.
    """

    name = kind = "gpt2"
    printable = (*range(33, 127), *range(161, 173), *range(174, 256))
    order = bytes([*printable, *sorted(set(range(256)).difference(printable))])
    # In GPT-2's file, a byte is a visible character: itself, or one from 256 on.
    letters = "".join(map(chr, (*printable, *range(256, 512 - len(printable)))))

    @classmethod
    def from_merges(cls, path: str) -> "GPT2":
        """Read merges.txt, which is also called vocab.bpe. Raises EnvironmentFault for a file that
        cannot be read or holds something else.
        """
        try:
            with opened(path) as file:
                lines = file.read().decode().split("\n")
        except OSError as error:
            raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise EnvironmentFault(f"{path} is not UTF-8, so not GPT-2's merges") from error
        ids, merges = {letter: i for i, letter in enumerate(cls.letters)}, []
        for number, line in enumerate(lines, 1):
            pair = line.split()
            if not pair or (number == 1 and pair[0] == "#version:"):
                continue
            if len(pair) != 2 or not ids.keys() >= set(pair):
                what = f"{path}, line {number}: not two tokens of the lines before"
                raise EnvironmentFault(what, "give GPT-2's merges.txt, or vocab.bpe")
            ids["".join(pair)] = 256 + len(merges)
            merges.append([ids[piece] for piece in pair])
        return from_json({"kind": cls.kind, "merges": merges}, path)

    @staticmethod
    def words(data: bytes) -> Iterator:
        """The words of a text by GPT-2's pattern. They may be of any length."""
        text = data.decode("utf-8", "surrogateescape")  # a wrong byte: half of a surrogate pair
        found = map(itemgetter(0), _gpt2_words().finditer(text))
        return (word.encode("utf-8", "surrogateescape") for word in found)


@functools.cache
def _gpt2_words():
    r"""GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

    `re` has neither \p{L}, a letter, nor \p{N}, a number, but its \w is a letter, a number or "_".
    And its \s has four separators, 0x1c to 0x1f, that GPT-2's has not.
    """
    every = map(chr, range(sys.maxunicode + 1))
    number = "".join(c for c in every if c.isnumeric() and not c.isalpha())  # \p{N}
    letter = rf"[^\W_{number}]"
    symbol = r"(?:[^\w\s]|[_\x1c-\x1f])"
    blank, no_blank = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?{letter}+| ?[{number}]+| ?{symbol}+"
        rf"|{blank}+(?!{no_blank})|{blank}+"
    )


# ---- by name, and from a file


def make(name: str, sample: bytes, progress: Progress | None = None) -> Tokenizer:
    """A tokenizer by name: "chars" (those of the sample), "bytes", "bpe-1024" (that many tokens,
    trained on the sample), "gpt2:PATH" (merges.txt), or the file of a saved one.

    Raises UsageError for another name, EnvironmentFault for a file that does not fit.
    """
    if name == Chars.kind:
        return Chars.train(sample)
    if name == Bytes.kind:
        return Bytes()
    if size := bpe_size(name):
        return BPE.train(sample, size, progress)
    if name.startswith("gpt2:"):
        return GPT2.from_merges(os.path.expanduser(name.removeprefix("gpt2:")))
    if name.endswith(".json") or os.path.isfile(name):
        return from_json(read_json(name), name)
    raise unknown("tokenizer", name, NAMES)


def bpe_size(name: str) -> int | None:
    """The N of "bpe-N", None for any other name. Raises UsageError where N is too small."""
    found = re.fullmatch("bpe-([0-9]{1,9})", name)
    if found and int(found[1]) < 257:
        why = "256 bytes and the end of a document take 257 tokens"
        raise UsageError(f"{name} is too small: {why}", "--tokenizer bpe-1024")
    return int(found[1]) if found else None


def from_json(value: dict, source: str = "the file") -> Tokenizer:
    """The tokenizer that gave `value` by `as_json`. Raises EnvironmentFault for anything else."""
    kinds = {
        "chars": lambda: Chars(value.get("characters")),
        "bytes": Bytes,
        "bpe": lambda: BPE(value.get("merges")),
        "gpt2": lambda: GPT2(value.get("merges")),
    }
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        how = "save one with: minqkv tokenize FILE --save FILE.json"
        raise EnvironmentFault(f"{source} holds no tokenizer", how)
    try:
        return kinds[kind]()
    except UsageError as error:
        raise EnvironmentFault(f"{source} holds a damaged tokenizer: {error}") from error
