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
from itertools import groupby, islice, repeat
from operator import add, itemgetter

import numpy as np
from numpy.typing import ArrayLike

from ..runtime.errors import EnvironmentFault, UsageError, unknown
from ..runtime.files import opened, read_sealed
from .rules import TOKENIZERS

BATCH = 65_536  # words that are encoded at once, so that a long text makes no long list
CACHED = 1_000_000  # words whose tokens are remembered
MOST = sys.maxunicode + 1  # ids of a BPE: there is no chr() for more
LONGEST = 1_024  # bytes of a token: in a damaged file, each merge could double them

Progress = Callable[[int, int], None]


class Tokenizer:
    """What all tokenizers share: `name`, `vocab_size`, `end`, and `pieces`, where `pieces[id]` are
    the bytes that a token stands for. `learns` is what one is made from: all "characters" of a
    text, a "sample" of it, or nothing.
    """

    fields = ()  # what `as_json` keeps: the arguments of __init__
    learns = None

    def __init__(self, pieces: Iterable[bytes]):
        self.pieces = [*pieces, b""]
        self.vocab_size = len(self.pieces)
        self.end = self.vocab_size - 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @classmethod
    def is_called(cls, name: str) -> bool:
        """Whether `make` makes one of this class by that name."""
        return name == cls.kind

    @classmethod
    def made(cls, name: str, text: bytes, progress: Progress | None = None) -> "Tokenizer":
        """The one of this name, from what it `learns`; see `make`."""
        return cls()

    def encode(self, data: bytes) -> np.ndarray:
        """Bytes -> ids (T,) of type `dtype`: uint16, or uint32 for more than 65,536 ids. `Chars`
        raises UsageError for a character without an id.
        """
        raise NotImplementedError

    def decode(self, ids: ArrayLike) -> bytes:
        """Ids (T,) -> bytes; nothing for `end`. Raises UsageError for an id that does not exist."""
        ids = np.asarray(ids).astype(np.int64).ravel()
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UsageError(f"no token {wrong}: the ids of {self.name} are 0 to {self.end}")
        return b"".join(map(self.pieces.__getitem__, ids.tolist()))

    def as_json(self) -> dict:
        """A value for a JSON file, from which `from_json` makes an equal tokenizer."""
        return {"kind": self.kind} | {name: getattr(self, name) for name in self.fields}

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}, {self.vocab_size:,} tokens>"


class Chars(Tokenizer):
    """A token for each of the given characters. The text must be UTF-8."""

    name = kind = "chars"
    fields = ("characters",)
    learns = "characters"

    def __init__(self, characters: str):
        if not isinstance(characters, str) or not re.fullmatch("[^\ud800-\udfff]+", characters):
            raise UsageError("its characters are missing, or are not text")
        if len(set(characters)) < len(characters):
            raise UsageError("a character is listed twice")
        super().__init__(character.encode() for character in characters)
        self.characters = characters
        self.ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(cls, data: bytes) -> "Chars":
        """The characters of a text, in the order of Unicode."""
        return cls("".join(sorted(set(_utf8(data)))))

    @classmethod
    def made(cls, name, text, progress=None):
        return cls.train(text)

    def encode(self, data):
        text = _utf8(data)
        try:
            return np.fromiter(map(self.ids.__getitem__, text), self.dtype, len(text))
        except KeyError as error:
            (character,) = error.args
        what = f"character {text.index(character) + 1:,} of the text, {character!r}"
        raise UsageError(
            f"{what}, is none of the {self.end:,} that this tokenizer knows",
            "leave it out; a model trained with --tokenizer bytes accepts any text",
        )


def _utf8(data):
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        what = f"byte {error.start:,} is 0x{data[error.start]:02x}"
        hint = "use --tokenizer bytes, which accepts any file"
        raise UsageError(f"the text is not UTF-8: {what}", hint) from error


class Bytes(Tokenizer):
    """A token for each of the 256 bytes: takes any file, needs no training."""

    name = kind = "bytes"

    def __init__(self):
        super().__init__(bytes([byte]) for byte in range(256))

    def encode(self, data):
        return np.frombuffer(data, np.uint8).astype(self.dtype)


# A text is first cut into words, and no token spans two of them: "dog", "dog." and "dog!" share
# "dog". A space belongs to the word after it, so that " the" is one token. Longer words are cut,
# because the time for a word grows with the square of its length.
WORD = re.compile(
    rb"""[ ]?[A-Za-z\x80-\xff]{1,63}      # letters, and all bytes that are not ASCII
    | [ ]?[0-9]{1,63}                     # digits
    | [ ]?[^\sA-Za-z0-9\x80-\xff]{1,63}   # punctuation
    | \s{1,64}(?!\S)                      # white space, but for the last before a word
    | \s                                  # the last, if it is no space: a line break, a tab""",
    re.VERBOSE,
)


class BPE(Tokenizer):
    """Byte-pair encoding (Sennrich et al., 2016; on bytes: Radford et al., 2019).

    The first 256 tokens are the bytes. Each merge (left id, right id) then makes a new token of two
    older ones; merge k has the id 256 + k.

    Inside, a word is a string with one character, chr(id), for each of its tokens. So two
    neighbours are a string as well, and to merge them is `str.replace`.
    """

    kind = "bpe"
    fields = ("merges",)
    learns = "sample"
    order = bytes(range(256))  # the bytes in the order of their ids

    def __init__(self, merges: list):
        if not isinstance(merges, list) or len(merges) > MOST - 257:
            raise UsageError(f"its merges are not a list of at most {MOST - 257:,}")
        self.merges, self._pairs, self._new = merges, [], {}  # id - 256 -> pair; pair -> token
        pieces = [bytes([byte]) for byte in self.order]
        for k, merge in enumerate(merges):
            pair = _pair(merge, len(pieces))
            if pair is None or pair in self._new:
                raise UsageError(f"merge {k} is not a new pair of ids below {len(pieces)}")
            self._pairs.append(pair)
            self._new[pair] = chr(len(pieces))
            pieces.append(pieces[merge[0]] + pieces[merge[1]])
            if len(pieces[-1]) > LONGEST:
                raise UsageError(f"merge {k} makes a token of more than {LONGEST:,} bytes")
        super().__init__(pieces)
        self._known = {}  # word -> its tokens

    @property
    def name(self) -> str:
        """ "bpe-1024"; with a smaller number if the text had fewer pairs to merge."""
        return f"bpe-{self.vocab_size}"

    @classmethod
    def is_called(cls, name):
        return bpe_size(name) is not None

    @classmethod
    def made(cls, name, text, progress=None):
        return cls.train(text, bpe_size(name), progress)

    @classmethod
    def train(cls, data: bytes, vocab_size: int, progress: Progress | None = None) -> "BPE":
        """Merge the most frequent pair of the text, again and again, until there are `vocab_size`
        tokens or no pair occurs twice. Of equally frequent pairs, the one with lower ids is taken.

        Distinct words are stored once and counted. A merge changes only the words that contain the
        pair, so only their pairs are counted again. `progress(done, total)` after each merge.
        """
        frequency = Counter(cls.words(data))
        words, times = [cls._bytes(word) for word in frequency], list(frequency.values())
        counts, places = defaultdict(int), defaultdict(set)  # of each pair; words that contain it
        for i, word in enumerate(words):
            for pair in pairs(word):
                counts[pair] += times[i]
                places[pair].add(i)
        heap = [(-count, pair) for pair, count in counts.items()]
        heapify(heap)
        merges, total = [], vocab_size - 257
        while heap and len(merges) < total:
            count, pair = heappop(heap)
            if -count != counts[pair]:
                continue  # an old entry: the heap has a newer one, or the pair is gone
            if -count < 2:
                break
            change = _replace(pair, chr(256 + len(merges)), words, times, places)
            for other, difference in change.items():
                if difference:
                    counts[other] += difference
                    heappush(heap, (-counts[other], other))
            merges.append([ord(token) for token in pair])
            if progress:
                progress(len(merges), total)
        return cls(merges)

    @staticmethod
    def words(data: bytes) -> Iterator:
        """The words of a text, one after another; together they are the text."""
        return map(itemgetter(0), WORD.finditer(data))

    def encode(self, data):
        """As every tokenizer; each distinct word is encoded once."""
        words, encoded = self.words(data), [np.empty(0, self.dtype)]
        while batch := list(islice(words, BATCH)):
            if len(self._known) > CACHED:
                self._known = {}
            known = self._known
            for word in set(batch) - known.keys():
                known[word] = self._encode_word(word)
            tokens = "".join(map(known.__getitem__, batch)).encode("utf-32-le", "surrogatepass")
            encoded.append(np.frombuffer(tokens, "<u4").astype(self.dtype))
        return np.concatenate(encoded)

    @classmethod
    def _bytes(cls, word):
        """A word before any merge: a token for each of its bytes."""
        return "".join(chr(cls.order.index(byte)) for byte in word)

    def _encode_word(self, word):
        """Merge in the order of training: first the pair that was learned first."""
        tokens, none = self._bytes(word), chr(self.end)
        while True:
            new = min(map(self._new.get, pairs(tokens), repeat(none)), default=none)
            if new == none:
                return tokens
            tokens = tokens.replace(self._pairs[ord(new) - 256], new)


def pairs(word: str) -> Iterator[str]:
    """All neighbours in a word: "abc" -> "ab", "bc"."""
    return map(add, word, word[1:])


def _pair(merge, below):
    """Two ids, each below a limit, as a pair; None for anything else."""
    two = isinstance(merge, (list, tuple)) and len(merge) == 2
    if not two or not all(type(token) is int and 0 <= token < below for token in merge):
        return None
    return chr(merge[0]) + chr(merge[1])


def _replace(pair, new, words, times, places):
    """Merge a pair in the words that contain it. Returns how the count of each pair changes, and
    adds to `places` the words that contain the new pairs.
    """
    change = defaultdict(int)
    for i in places.pop(pair):
        for lost in pairs(words[i]):
            change[lost] -= times[i]
        words[i] = words[i].replace(pair, new)
        for gained in pairs(words[i]):
            change[gained] += times[i]
            if new in gained:
                places[gained].add(i)
    return change


# ---- GPT-2's own vocabulary


class GPT2(BPE):
    """Byte-pair encoding with GPT-2's merges, from a file that the user supplies.

    The ids are GPT-2's: the 256 bytes in GPT-2's own order, 50,000 merges, `end` = 50,256. They
    can differ in two cases: for characters that Unicode has added or reclassified since GPT-2,
    where this Python's tables decide, and for bytes that are not UTF-8. GPT-2 does not accept
    those; here they count as symbols.
    """

    name = kind = "gpt2"
    learns = None
    printable = (*range(33, 127), *range(161, 173), *range(174, 256))
    order = bytes([*printable, *sorted(set(range(256)).difference(printable))])
    # In GPT-2's file, a byte is a visible character: itself, or one from 256 on.
    letters = "".join(map(chr, (*printable, *range(256, 512 - len(printable)))))

    @classmethod
    def is_called(cls, name):
        return name.partition(":")[0] == cls.kind

    @classmethod
    def made(cls, name, text, progress=None):
        path = name.partition(":")[2]
        if not path:
            raise UsageError("gpt2 needs a file of merges", "--tokenizer gpt2:merges.txt")
        return cls.from_merges(os.path.expanduser(path))

    @classmethod
    def from_merges(cls, path: str) -> "GPT2":
        """Read merges.txt, also called vocab.bpe. Raises EnvironmentFault for a file that
        cannot be read or holds something else.
        """
        try:
            with opened(path) as file:
                lines = file.read().decode("utf-8-sig").split("\n")  # some editors write a mark
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", "it is not UTF-8")
            raise EnvironmentFault(f"cannot read {path}: {why}") from error
        hint = "give GPT-2's merges.txt, or vocab.bpe"
        ids, merges = {letter: i for i, letter in enumerate(cls.letters)}, []
        for number, line in enumerate(lines, 1):
            pair = line.split()
            if not pair or (number == 1 and pair[0] == "#version:"):
                continue
            if len(pair) != 2 or not ids.keys() >= set(pair):
                what = f"{path}, line {number}: not two tokens of the lines before"
                raise EnvironmentFault(what, hint)
            ids["".join(pair)] = 256 + len(merges)
            merges.append([ids[piece] for piece in pair])
        if not merges:
            raise EnvironmentFault(f"there are no merges in {path}", hint)
        return from_json({"kind": cls.kind, "merges": merges}, path)

    @staticmethod
    def words(data: bytes) -> Iterator:
        """The words of a text by GPT-2's pattern, as strings. They may be of any length."""
        text = data.decode("utf-8", "surrogateescape")  # a wrong byte: half of a surrogate pair
        return map(itemgetter(0), _gpt2_words().finditer(text))

    @classmethod
    def _bytes(cls, word):
        return super()._bytes(word.encode("utf-8", "surrogateescape"))


@functools.cache
def _gpt2_words():
    r"""GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

    `re` has neither \p{L}, a letter, nor \p{N}, a number, but its \w is a letter, a number or "_",
    and its \d a decimal digit. Its \s has four separators, 0x1c to 0x1f, that GPT-2's lacks.
    """
    codes = (c for c in range(sys.maxunicode + 1) if _is_other_number(chr(c)))
    number = r"\d"
    for _, group in groupby(enumerate(codes), lambda item: item[1] - item[0]):
        run = [chr(code) for _, code in group]  # of neighbours: a range is faster than its members
        number += f"{run[0]}-{run[-1]}"
    symbol = r"(?:[^\w\s]|[_\x1c-\x1f])"
    blank, no_blank = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[^\W_{number}]+| ?[{number}]+| ?{symbol}+"
        rf"|{blank}+(?!{no_blank})|{blank}+"
    )


def _is_other_number(c):
    return c.isnumeric() and not c.isdecimal() and not c.isalpha()


# ---- by name, and from a file

CLASSES = (Chars, Bytes, BPE, GPT2)


def class_of(name: str) -> type[Tokenizer] | None:
    """The class that a name belongs to; None for others, and for "FILE.json"."""
    return next((cls for cls in CLASSES if cls.is_called(name)), None)


def make(name: str, sample: bytes, progress: Progress | None = None) -> Tokenizer:
    """A tokenizer by name: "chars" (those of the sample), "bytes", "bpe-1024" (that many tokens,
    trained on the sample), "gpt2:PATH" (merges.txt), or "FILE.json", a saved one.

    Raises UsageError for another name, EnvironmentFault for a file that does not fit.
    """
    if cls := class_of(name):
        return cls.made(name, sample, progress)
    if name.endswith(".json"):
        cure = "restore it, or save one again: minqkv tokenize FILE --save FILE.json"
        return from_json(read_sealed(name, cure), name)
    raise unknown("tokenizer", name, TOKENIZERS)


def bpe_size(name: str) -> int | None:
    """The N of "bpe-N", None for any other name. Raises UsageError for an N out of range."""
    found = re.fullmatch("bpe-([0-9]{1,9})", name)
    if found and not 257 <= int(found[1]) <= MOST:
        why = f"N must be from 257 (256 bytes and the end of a document) to {MOST:,}"
        raise UsageError(f"{name}: {why}", "--tokenizer bpe-1024")
    return int(found[1]) if found else None


def from_json(value: dict, source: str = "the file") -> Tokenizer:
    """The tokenizer that gave `value` by `as_json`. Raises EnvironmentFault for anything else."""
    kinds = {cls.kind: cls for cls in CLASSES}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        how = "save one with: minqkv tokenize FILE --save FILE.json"
        raise EnvironmentFault(f"there is no tokenizer in {source}", how)
    try:
        return kinds[kind](*map(value.get, kinds[kind].fields))
    except UsageError as error:
        raise EnvironmentFault(f"the tokenizer in {source} is damaged: {error}") from error
