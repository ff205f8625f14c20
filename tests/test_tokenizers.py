"""Tokenizers: what is encoded comes back, byte pairs equal a naive implementation, damaged files
are refused; and `minqkv tokenize`.
"""

import json
import os
import random
import re
import signal
import sys
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from commands import run, start
from rich.cells import cell_len

from minqkv.render.layout import Page
from minqkv.render.text import lay_out, legible
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.tasks import tokenizers
from minqkv.tasks.rules import TOKENIZERS
from minqkv.tasks.tokenizers import BPE, GPT2, WORD, Bytes, Chars, bpe_size, from_json, make

ENGLISH = b"the cat sat on the mat, and the other cat sat on that hat.\n" * 3
# Where GPT-2's pattern is easily got wrong: contractions, several blanks, numbers that are no
# digits, separators, symbols, marks, letters of other scripts.
TRICKY = (
    "I'll  we're 'tis x's 'S \n\n  a\t\tb\r\n 12\u00bd\u00b2 \u2167\u0663\u3007 _a_b\x1c\x1d \x85z"
    "\u00a0q \u3000\u00e9t\u00e9 e\u0301 \u4f60\u597d\U0001f600\u200b \u0e01\u0e33 'll'd $$ \x00"
)


def naive_merge(ids, pair, new):
    """The pair replaced from the left, one token after another."""
    out = []
    for i in ids:
        out.append(i)
        if tuple(out[-2:]) == pair:
            out[-2:] = [new]
    return out


def naive_train(words, vocab_size):
    """Byte-pair encoding with every pair counted afresh for each merge."""
    words, merges = [list(word) for word in words], []
    while len(merges) < vocab_size - 257:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [naive_merge(word, best, 256 + len(merges)) for word in words]
        merges.append(list(best))
    return merges


def naive_encode(words, merges, order=bytes(range(256))):
    """In each word, all merges in their order, each of them everywhere."""
    ids = []
    for word in words:
        word = [order.index(byte) for byte in word]
        for k, pair in enumerate(merges):
            word = naive_merge(word, tuple(pair), 256 + k)
        ids += word
    return ids


def words_of(cls, data):
    """The words as bytes; those of GPT-2 are strings."""
    words = cls.words(data)
    return [w if isinstance(w, bytes) else w.encode("utf-8", "surrogateescape") for w in words]


def texts(kind, count=12):
    """Short random texts; "few" has a small alphabet, so that pairs repeat and overlap."""
    draw = random.Random(0)
    for _ in range(count):
        n = draw.randrange(300)
        if kind == "few":
            yield bytes(draw.choice(b"aab c\n'1") for _ in range(n))
        elif kind == "bytes":
            yield draw.randbytes(n)
        else:
            points = (draw.choice((0x7F, 0x7FF, 0xFFFF, 0x10FFFF)) for _ in range(n))
            codes = (draw.randint(0, point) for point in points)
            yield "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000).encode()


# ---- what is encoded comes back


@pytest.mark.parametrize("kind", ["few", "bytes", "unicode"])
@pytest.mark.parametrize("tokenizer", [Bytes(), BPE.train(ENGLISH, 300), GPT2.train(ENGLISH, 300)])
def test_any_bytes_come_back(tokenizer, kind):
    for data in texts(kind):
        ids = tokenizer.encode(data)
        assert ids.dtype == np.uint16
        assert ids.ndim == 1
        assert tokenizer.decode(ids) == data
        assert not (ids == tokenizer.end).any()
    assert tokenizer.encode(b"").shape == (0,)
    assert tokenizer.decode([]) == b""


def test_any_characters_come_back():
    for data in filter(None, texts("unicode")):
        tokenizer = Chars.train(data)
        ids = tokenizer.encode(data)
        assert (ids.dtype, ids.shape) == (np.uint16, (len(data.decode()),))
        assert tokenizer.decode(ids) == data
        assert ids.max() < tokenizer.end == len(set(data.decode()))


def test_the_end_is_the_last_id_and_decodes_to_nothing():
    for tokenizer in (Chars("ab"), Bytes(), BPE.train(ENGLISH, 300)):
        assert tokenizer.end == tokenizer.vocab_size - 1
        assert tokenizer.decode([tokenizer.end, 0, tokenizer.end]) == tokenizer.pieces[0]
        assert repr(tokenizer).endswith(f" {tokenizer.name}, {tokenizer.vocab_size} tokens>")


@pytest.mark.parametrize("wrong", [-1, 257, 2**40])
def test_an_id_out_of_range(wrong):
    with pytest.raises(UsageError, match=f"no token {wrong}: the ids of bytes are 0 to 256"):
        Bytes().decode([0, wrong])


def test_more_than_65536_ids_take_four_bytes():
    characters = "".join(chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000)
    for count, kind in ((2**16 - 1, np.uint16), (2**16, np.uint32)):
        tokenizer = Chars(characters[:count])
        ids = tokenizer.encode(characters[:count].encode())
        assert ids.dtype == kind
        np.testing.assert_array_equal(ids, np.arange(count))
        assert tokenizer.decode(ids).decode() == characters[:count]


def test_ids_of_a_bpe_that_are_surrogates_as_characters():
    """Inside, a token is chr(id); from 0xD800 on, these are halves of surrogate pairs."""
    capitals = [[a, b] for a in range(65, 91) for b in range(65, 91)]
    others = [[a, b] for a in range(128) for b in range(256) if [a, b] not in capitals]
    others += [[a, b] for a in range(128, 256) for b in range(256)]
    tokenizer = BPE(others[: 0xD800 - 256] + capitals)
    data = bytes(byte for pair in capitals for byte in (*pair, 10))
    ids = tokenizer.encode(data)
    np.testing.assert_array_equal(ids[::2], 0xD800 + np.arange(26 * 26))
    assert tokenizer.decode(ids) == data


def test_characters_are_in_the_order_of_unicode():
    tokenizer = Chars.train("ba\né".encode())
    assert tokenizer.encode("\nabé".encode()).tolist() == [0, 1, 2, 3]


def test_what_chars_refuses():
    with pytest.raises(UsageError, match="not UTF-8: byte 2 is 0xff") as error:
        Chars.train(b"ab\xffc")
    assert "--tokenizer bytes" in error.value.hint
    with pytest.raises(UsageError, match=r"character 3 of the text, '\\n', is none of the 2"):
        Chars("ab").encode(b"ba\nb\n")


# ---- byte pairs


def test_merges_by_hand():
    """ "ab" occurs five times and is token 256. Then 256 256 occurs twice, 256 "c" once."""
    tokenizer = BPE.train(b"abab.abab.abc", 400)
    assert tokenizer.merges == [[97, 98], [256, 256]]
    assert tokenizer.name == "bpe-259"
    assert tokenizer.encode(b"abababc").tolist() == [257, 256, 99]
    assert tokenizer.pieces[256:] == [b"ab", b"abab", b""]


def test_of_equally_frequent_pairs_the_lower_ids_are_merged_first():
    assert BPE.train(b"zy.zy.xw.xw.", 258).merges == [[ord("x"), ord("w")]]


@pytest.mark.parametrize("kind", ["few", "bytes", "unicode"])
@pytest.mark.parametrize("cls", [BPE, GPT2])
def test_training_and_encoding_equal_the_naive_ones(cls, kind):
    for data in texts(kind):
        words = words_of(cls, data)
        assert b"".join(words) == data
        tokenizer = cls.train(data, 290)
        naive = naive_train([[cls.order.index(byte) for byte in word] for word in words], 290)
        assert tokenizer.merges == naive
        other = next(texts(kind, 1)) + data[::-1]
        expected = naive_encode(words_of(cls, other), naive, cls.order)
        assert tokenizer.encode(other).tolist() == expected


def test_training_twice_gives_the_same():
    first, second = (BPE.train(ENGLISH, 300).as_json() for _ in range(2))
    assert first == second


def test_words_are_short_and_keep_their_space():
    words = [match[0] for match in WORD.finditer(b"The  cat's 12th\n\n hat\xc3\xa9." + 200 * b"x")]
    assert words[:9] == [b"The", b" ", b" cat", b"'", b"s", b" 12", b"th", b"\n\n", b" hat\xc3\xa9"]
    for data in (b"x" * 1000, b" " * 1000, b"1" * 1000, b"\xff" * 1000, b"-" * 1000):
        assert max(len(match[0]) for match in WORD.finditer(data)) <= 64


def test_long_words_and_many_batches(monkeypatch):
    """A text that takes several batches and empties the memory of words gives the same ids."""
    data = b"".join(texts("few", 200))
    tokenizer = BPE.train(data, 300)
    whole = tokenizer.encode(data)
    monkeypatch.setattr(tokenizers, "BATCH", 7)
    monkeypatch.setattr(tokenizers, "CACHED", 3)
    np.testing.assert_array_equal(BPE(tokenizer.merges).encode(data), whole)


def test_progress_counts_merges():
    seen = []
    BPE.train(ENGLISH, 260, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupt_while_training_is_just_that():
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BPE.train(ENGLISH, 300, interrupt)


# ---- GPT-2's vocabulary


def gpt2_file(path, merges, version="#version: 0.2\n"):
    """A file of merges as GPT-2's; merges are pairs of bytes."""

    def spelled(piece):
        return "".join(GPT2.letters[GPT2.order.index(byte)] for byte in piece)

    lines = "".join(f"{spelled(left)} {spelled(right)}\n" for left, right in merges)
    path.write_text(version + lines, "utf-8")
    return path


def test_the_bytes_are_in_the_order_of_gpt2():
    """The figures are GPT-2's: "!" is token 0, "A" 32, a line break 198, a space 220."""
    tokenizer = GPT2([])
    assert tokenizer.encode(b"!A\n \x00\xff\xad").tolist() == [0, 32, 198, 220, 188, 187, 255]
    assert [GPT2.letters[i] for i in (198, 220, 188)] == ["Ċ", "Ġ", "Ā"]
    assert sorted(GPT2.order) == list(range(256))


def test_a_file_of_merges(tmp_path):
    pairs = [(b" ", b"t"), (b"h", b"e"), (b" t", b"he"), (b"\xc3", b"\xa9"), (b"\n", b"\n")]
    for version in ("#version: 0.2\n", ""):
        tokenizer = make(f"gpt2:{gpt2_file(tmp_path / 'merges.txt', pairs, version)}", b"")
        assert tokenizer.name == "gpt2"
        assert tokenizer.pieces[256:] == [b" t", b"he", b" the", "é".encode(), b"\n\n", b""]
        data = " the théé\n\n\nthe end".encode()
        expected = naive_encode(words_of(GPT2, data), tokenizer.merges, GPT2.order)
        assert tokenizer.encode(data).tolist() == expected
        assert tokenizer.encode(b" the").tolist() == [258]


def test_a_merge_of_hash_signs_is_no_comment(tmp_path):
    path = gpt2_file(tmp_path / "merges.txt", [(b"#", b"#")], version="")
    assert GPT2.from_merges(path).pieces[256] == b"##"


def test_the_words_of_gpt2():
    r"""\p{L}, \p{N} and \s are spelled out for `re`; here they are looked up in Unicode's tables.
    A word is of one kind only.
    """
    kinds = {"L": [], "N": [], "blank": [], "symbol": []}
    for c in map(chr, range(sys.maxunicode + 1)):
        kind = unicodedata.category(c)[0]
        blank = c.isspace() and c not in "\x1c\x1d\x1e\x1f"
        if not "\ud800" <= c <= "\udfff":
            kinds[kind if kind in "LN" else "blank" if blank else "symbol"].append(c.encode())
    for kind, characters in kinds.items():
        assert words_of(GPT2, b"".join(characters)) == [b"".join(characters)], kind
    kinds["blank"].remove(b" ")  # which would belong to the word after it
    mixed = [c for four in zip(*kinds.values(), strict=False) for c in four]
    assert words_of(GPT2, b"".join(mixed)) == mixed


def test_tricky_words_of_gpt2():
    words = list(GPT2.words(TRICKY.encode()))
    assert "".join(words) == TRICKY
    assert words[:14] == [
        "I", "'ll", " ", " we", "'re", " '", "tis", " x", "'s", " '", "S", " \n\n ", " a", "\t",
    ]  # fmt: skip
    for word in ("\t", " 12½²", " Ⅷ٣〇", " _", "\x1c\x1d", "\x85", "\u00a0", " e", "\u0301"):
        assert word in words


GPT2_FAULTS = {
    "empty": b"",
    "only a version": b"#version: 0.2\n",
    "three tokens in a line": b"#version: 0.2\na b c\n",
    "one token in a line": b"#version: 0.2\nab\n",
    "a token that comes later": b"ab c\na b\n",
    "a space that is not spelled": "a \u00a0\n".encode(),
    "a merge twice": b"a b\na b\n",
    "not UTF-8": b"\xff\xfe\x00",
    "a page of the web": b"<!DOCTYPE html>\n<html>\n",
}


@pytest.mark.parametrize("fault", GPT2_FAULTS)
def test_faulty_files_of_merges(fault, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(GPT2_FAULTS[fault])
    with pytest.raises(EnvironmentFault, match=re.escape(str(path))) as error:
        GPT2.from_merges(str(path))
    assert "\n" not in str(error.value)


# ---- by name, and from a file


@pytest.mark.parametrize(
    "tokenizer",
    [Chars("a\né"), Bytes(), BPE([]), BPE.train(ENGLISH, 300), GPT2.train(ENGLISH, 300)],
    ids=lambda tokenizer: tokenizer.name,
)
def test_json_and_back(tokenizer):
    same = from_json(json.loads(json.dumps(tokenizer.as_json())))
    assert type(same) is type(tokenizer)
    assert (same.name, same.pieces, same.end) == (tokenizer.name, tokenizer.pieces, tokenizer.end)
    assert same.as_json() == tokenizer.as_json()
    data = b"a\na" if same.name == "chars" else ENGLISH
    np.testing.assert_array_equal(same.encode(data), tokenizer.encode(data))


HOSTILE = [
    {},
    {"kind": None},
    {"kind": ["bpe"]},
    {"kind": "wordpiece", "merges": []},
    {"kind": "chars"},
    {"kind": "chars", "characters": ""},
    {"kind": "chars", "characters": "aba"},
    {"kind": "chars", "characters": "\ud800"},
    {"kind": "chars", "characters": ["a", "b"]},
    {"kind": "chars", "characters": 7},
    {"kind": "bpe"},
    {"kind": "bpe", "merges": {"97": 98}},
    {"kind": "bpe", "merges": "ab"},
    {"kind": "bpe", "merges": ["ab"]},
    {"kind": "bpe", "merges": [[97]]},
    {"kind": "bpe", "merges": [[97, 98, 99]]},
    {"kind": "bpe", "merges": [[97, "98"]]},
    {"kind": "bpe", "merges": [[97, 98.0]]},
    {"kind": "bpe", "merges": [[97, True]]},
    {"kind": "bpe", "merges": [[97, None]]},
    {"kind": "bpe", "merges": [[97, -1]]},
    {"kind": "bpe", "merges": [[97, 256]]},
    {"kind": "bpe", "merges": [[97, 257], [97, 98]]},
    {"kind": "bpe", "merges": [[97, 10**300]]},
    {"kind": "bpe", "merges": [[97, 98], [97, 98]]},
    {"kind": "bpe", "merges": [[97, 97], *([i, i] for i in range(256, 400))]},  # 2^145 bytes
    {"kind": "gpt2", "merges": [[97, 256]]},
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json(value):
    said = r"^(there is no tokenizer in x\.json|the tokenizer in x\.json is damaged)"
    with pytest.raises(EnvironmentFault, match=said) as error:
        from_json(value, "x.json")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 120


def test_by_name(tmp_path):
    assert make("chars", b"abc").vocab_size == 4
    assert make("bytes", b"").name == "bytes"
    assert make("bpe-258", ENGLISH).name == "bpe-258"
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(make("bpe-270", ENGLISH).as_json()))
    assert make(str(path), b"").name == "bpe-270"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("char", "unknown tokenizer 'char'"),
        ("bpe", "unknown tokenizer 'bpe'"),
        ("bpe-x", "unknown tokenizer 'bpe-x'"),
        ("bpe-١٠٢٤", "unknown tokenizer"),
        ("bpe-256", "bpe-256: N must be from 257"),
        ("bpe-1114113", "to 1,114,112"),
        ("gpt2", "gpt2 needs a file of merges"),
        ("gpt2:", "gpt2 needs a file of merges"),
        ("", "unknown tokenizer ''"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        make(name, ENGLISH)
    assert error.value.hint


def test_each_class_is_in_the_help_and_says_what_it_learns_from():
    found = [tokenizers.class_of(name) for name in TOKENIZERS]
    assert found == [*tokenizers.CLASSES, None]  # None: FILE.json
    learns = {cls.kind: cls.learns for cls in tokenizers.CLASSES}
    assert learns == {"chars": "characters", "bytes": None, "bpe": "sample", "gpt2": None}


def test_the_size_in_a_name():
    assert [bpe_size(name) for name in ("bpe-1024", "bytes", "bpe-")] == [1024, None, None]


# ---- how tokens are shown


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" the", " the"),
        (b"\n\t\r", "\\n\\t\\r"),
        (b"\\n", "\\\\n"),
        (b"\x00\x1b[31m\x7f", "\\x00\\x1b[31m\\x7f"),
        (b"[bold]", "[bold]"),
        ("é漢".encode(), "é漢"),
        ("漢".encode()[:2], "\\xe6\\xbc"),
        (b"a\xff", "a\\xff"),
        ("\u200b\u0301\u202e\x85".encode(), "\\u200b\\u0301\\u202e\\u0085"),
        ("\U000e0001".encode(), "\\U000e0001"),
    ],
)
def test_what_cannot_be_seen_is_an_escape(piece, shown):
    assert legible(piece, Page()) == shown


def test_what_the_terminal_cannot_print_is_an_escape():
    assert legible("aé漢😀".encode(), Page(encoding="ascii")) == "a\\u00e9\\u6f22\\U0001f600"


def test_lines_fit_and_only_long_tokens_are_cut():
    tokens = [
        ("abc|", False),
        ("defg|", False),
        ("\\n|", True),
        ("0123456789ab|", False),
        ("z|", False),
    ]
    lines = ["".join(text for text, _ in line) for line in lay_out(tokens, 10)]
    assert lines == ["abc|defg|", "\\n|", "0123456789", "ab|z|"]


# ---- the command line


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(ENGLISH + "naïve [b]漢字[/b] a|b \\ \xff\n\n".encode() + b"\xff\x1b[31m")
    return path


def test_counts(text, cli):
    code, out, _ = cli("tokenize", text, "--tokenizer", "bpe-270")
    data = text.read_bytes()
    count = len(BPE.train(data, 270).encode(data))
    assert code == 0
    said = " ".join(out.split())
    assert f": {len(data)} bytes, {count} tokens, {round(len(data) / count, 3)} bytes per" in said
    assert said.endswith("Tokenizer bpe-270, vocabulary 270.")


def test_json(text, cli, tmp_path):
    _, out, _ = cli(
        "tokenize", text, "--tokenizer", "bytes", "--json", "--save", tmp_path / "t.json"
    )
    size = len(text.read_bytes())
    assert json.loads(out) == {
        "file": str(text), "bytes": size, "tokens": size, "bytes_per_token": 1.0,
        "tokenizer": "bytes", "vocab_size": 257, "saved": str(tmp_path / "t.json"),
    }  # fmt: skip
    _, out, _ = cli("tokenize", text, "--tokenizer", "bytes", "--json", "--show")
    assert bytes(json.loads(out)["ids"]) == text.read_bytes()


def test_saved_and_used_again(text, cli, tmp_path):
    saved = tmp_path / "t.json"
    code, out, _ = cli("tokenize", text, "--tokenizer", "bpe-290", "--save", saved)
    assert (code, "Saved as" in out) == (0, True)
    _, out, err = cli("tokenize", text, "--tokenizer", saved, "--json", "--show")
    assert (
        json.loads(out)["ids"]
        == BPE.train(text.read_bytes(), 290).encode(text.read_bytes()).tolist()
    )
    assert err == ""


def test_a_text_too_small_for_the_vocabulary(text, cli):
    code, out, _ = cli("tokenize", text, "--tokenizer", "bpe-9000")
    size = BPE.train(text.read_bytes(), 9000).vocab_size
    assert code == 0
    assert f"vocabulary {size}. It is not 9,000: no other pair" in " ".join(out.split())


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", ["bytes", "bpe-300"])
def test_shown_tokens_fit_and_are_all_there(width, name, text):
    """Undoing the escapes gives the tokens back, byte by byte."""
    env = {"COLUMNS": str(width), "NO_COLOR": "1"}
    code, out, _ = run("tokenize", text, "--show", "--tokenizer", name, env=env)
    assert code == 0
    assert "\x1b" not in out
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= width
    summary = next(i for i, line in enumerate(lines) if line.startswith(str(text)[:20]))
    tokens = re.findall(r"((?:[^|\\]|\\.)*)\|", "".join(lines[:summary]))
    tokenizer, data = make(name, text.read_bytes()), text.read_bytes()
    assert [unescaped(token) for token in tokens] == [
        tokenizer.pieces[i] for i in tokenizer.encode(data)
    ]


def unescaped(token):
    """The bytes of a token as --show prints it in a pipe."""

    def byte(match):
        simple = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "|": "|"}
        if match[1]:
            return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
        return chr(int(match[2], 16)) if match[2] else simple[match[3]]

    found = re.sub(r"\\(?:x(..)|u(....)|(.))", byte, token)
    return found.encode("utf-8", "surrogateescape")


def test_colours_alternate(text):
    env = {"COLUMNS": "60", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    code, out, _ = run("tokenize", text, "--show", "--tokenizer", "bytes", env=env)
    first, _, second, *_ = re.findall(r"\x1b\[([0-9;]+)m", out)
    assert code == 0
    assert out.startswith(f"\x1b[{first}mt\x1b[0m\x1b[{second}mh\x1b[0m\x1b[{first}me\x1b[0m")
    assert first != second
    assert "\x1b[31m" not in out  # of the text itself


def test_standard_input(text):
    with open(text, "rb") as stdin:
        code, out, err = run("tokenize", "-", "--tokenizer", "bytes", "--json", stdin=stdin)
    assert (code, err) == (0, "")
    assert json.loads(out)["file"] == "standard input"
    assert json.loads(out)["bytes"] == len(text.read_bytes())


def test_a_pipe_that_closes_early(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(ENGLISH * 300)
    child = start("tokenize", path, "--show", "--tokenizer", "bytes")
    child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read()
    assert (child.wait(), err) == (0, "")


WRONG = {
    "a missing file": (("nowhere.txt",), 3, "cannot read nowhere.txt: No such file"),
    "a folder": (("FOLDER",), 3, "it is not a plain file"),
    "a FIFO": (("FIFO",), 3, "it is not a plain file"),
    "an empty file": (("EMPTY",), 2, "is empty"),
    "an empty input": (("-",), 2, "standard input is empty"),
    "no file": ((), 2, "Missing argument 'FILE'"),
    "not UTF-8": (("TEXT", "--tokenizer", "chars"), 2, "use --tokenizer bytes"),
    "an unknown tokenizer": (("TEXT", "--tokenizer", "byte"), 2, "did you mean bytes?"),
    "a vocabulary too small": (("TEXT", "--tokenizer", "bpe-3"), 2, "must be from 257"),
    "no merges": (("TEXT", "--tokenizer", "gpt2:nowhere"), 3, "cannot read nowhere"),
    "merges that are none": (("TEXT", "--tokenizer", "gpt2:TEXT"), 3, "gpt2:TEXT"),
    "no saved one": (("TEXT", "--tokenizer", "nowhere.json"), 3, "cannot read nowhere.json"),
    "another JSON file": (("TEXT", "--tokenizer", "OTHER"), 3, "there is no tokenizer in"),
    "a character unknown": (("TEXT", "--tokenizer", "CHARS"), 2, "is none of the 2"),
    "a place for text": (("TEXT", "--save", "out.txt"), 2, "--save out.txt.json"),
    "a place that is not": (("TEXT", "--save", "OTHER/x.json"), 3, "cannot write"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input(what, cli, tmp_path, monkeypatch):
    args, expected, message = WRONG[what]
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(ENGLISH + (b"\xff" if what == "not UTF-8" else b""))
    (tmp_path / "other.json").write_text('{"seed": 0}')
    (tmp_path / "chars.json").write_text(json.dumps(Chars("th").as_json()))
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "empty", "text", "fifo", "other.json", "chars.json"):
        short = name.removesuffix(".json").upper()
        args = [arg.replace(short, str(tmp_path / name)) for arg in args]
        message = message.replace(short, str(tmp_path / name))
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        code, out, err = cli("tokenize", *args)
    assert (code, out) == (expected, "")
    assert message.removeprefix("gpt2:") in " ".join(err.split())
    assert "Traceback" not in err


def test_an_interrupt_leaves_nothing(tmp_path):
    """Random letters train slowly; the first tenth of the merges is reported."""
    draw = random.Random(0)
    (tmp_path / "text").write_bytes(bytes(draw.choices(b"abcdefghijklmnopqrstuvwxyz", k=300_000)))
    args = ("text", "--tokenizer", "bpe-3000", "--save", "t.json")
    child = start("tokenize", *args, cwd=tmp_path)
    while "train bpe-3000" not in (line := child.stderr.readline()):
        assert line, "it ended"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert (child.returncode, out) == (130, "")
    assert err.endswith("minqkv: interrupted\n")
    assert os.listdir(tmp_path) == ["text"]
