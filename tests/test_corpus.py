"""Corpora: what counts as a document, splits by content, token shards, damage, full disks."""

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from itertools import chain, pairwise

import numpy as np
import pytest
from commands import ROOT

from minqkv.runtime import files
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.tasks import corpus, documents, downloads, shards, tokenizers
from minqkv.tasks.corpus import Corpus, cut, find, prepare, split_of
from minqkv.tasks.documents import Documents
from minqkv.tasks.rules import SPLITS

POEM = "".join(f"line {i}: to be, or not to be\n" for i in range(100))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own; the working folder is empty."""
    monkeypatch.setenv("MINQKV_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    corpus._verified.cache_clear()
    return tmp_path / "cache"


def write(name, content):
    """A file in the working folder; gives its name."""
    path = corpus.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def jsonl(name, texts):
    return write(name, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def texts(made, split):
    """The documents of a split, decoded."""
    tokens, ends = made.tokens(split), made.documents(split)
    found = [tokens[start:stop] for start, stop in pairwise(ends)]
    assert all(ids[-1] == made.tokenizer.end for ids in found)
    return [made.tokenizer.decode(ids[:-1]) for ids in found]


def put_together(made):
    """The documents of a corpus whose documents were cut."""
    parts = [texts(made, split) for split in SPLITS]
    return [b"".join(three) for three in zip(*parts, strict=True)]


# ---- the built-in corpus


def test_the_built_in_corpus_is_frozen():
    """Results depend on it. If it must change, it gets another name."""
    digest = hashlib.sha256(documents.BUILT_IN.read_bytes()).hexdigest()
    assert digest == "725c48fb7307a34c1c9bd8f44da0465be396119f07dac8efaad2e147f2a6ffe3"


def test_an_installed_package_has_the_built_in_corpus(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    built = tmp_path / "lib" / "minqkv" / "tasks" / "builtin.jsonl"
    assert built.read_bytes() == documents.BUILT_IN.read_bytes()


def test_the_built_in_corpus_needs_no_file():
    made = prepare("")
    counts = {split: made.splits[split]["bytes"] for split in SPLITS}
    assert (made.label, counts["train"] + counts["validation"]) == ("builtin", 278_636)
    total = sum(counts.values())
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(counts[split] / total - share) < 0.01
    assert texts(made, "train")[0].startswith(b"# /// script")


# ---- splits


def contents(n):
    return [f"document {i}\n".encode() for i in range(n)]


def test_a_document_among_many_goes_by_its_content():
    found = [split_of(content) for content in contents(5000)]
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(found.count(split) / 5000 - share) < 0.02


def test_duplicates_share_a_split_and_new_documents_move_no_other():
    some = [content.decode() for content in contents(40)]
    more = some[::2] + [f"new {i}\n" for i in range(30)] + some
    before = prepare(jsonl("some.jsonl", some), "bytes")
    after = prepare(jsonl("more.jsonl", more), "bytes")
    for split in SPLITS:
        wanted = [text.encode() for text in some if split_of(text.encode()) == split]
        assert texts(before, split) == wanted
        assert {*wanted} <= {*texts(after, split)}
        others = {text for other in SPLITS if other != split for text in texts(after, other)}
        assert not {*texts(after, split)} & others


@pytest.mark.parametrize("n", [1, 2, 29, 30])
def test_few_documents_are_cut_many_are_not(n):
    made = prepare(jsonl("few.jsonl", [f"{i}\n{POEM}" for i in range(n)]), "bytes")
    whole = [f"{i}\n{POEM}".encode() for i in range(n)]
    if n < corpus.MANY:
        assert put_together(made) == whole
    else:
        assert sorted(chain(*(texts(made, split) for split in SPLITS))) == sorted(whole)


def test_many_documents_are_cut_where_a_split_would_get_none():
    kept = [content for content in contents(100) if split_of(content) != "test"][:50]
    made = prepare(jsonl("kept.jsonl", [content.decode() for content in kept]), "bytes")
    assert put_together(made) == kept


@pytest.mark.parametrize("text", [POEM, POEM.replace("\n", "\r\n"), "e" * 999, "äöüß€𝄞" * 99])
def test_a_cut_is_at_a_line_break_or_between_two_characters(text):
    content = text.encode()
    parts = [*cut(content).values()]
    assert b"".join(parts) == content
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) / len(content) - share) <= 0.03
        part.decode()
    assert all(part.endswith(b"\n") for part in parts) == ("\n" in text)


@pytest.mark.parametrize("content", [b"", b"a", b"\n\n\n", "€".encode(), bytes([0x80]) * 99])
def test_anything_can_be_cut(content):
    assert b"".join(cut(content).values()) == content


def test_random_bytes_can_be_cut(rng):
    for n in range(200):
        content = rng.bytes(n)
        assert b"".join(cut(content).values()) == content


# ---- tokenizers


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe-300"])
def test_tokens_give_the_text_back(tokenizer):
    made = prepare(write("poem.txt", POEM), tokenizer)
    assert b"".join(b"".join(texts(made, split)) for split in SPLITS) == POEM.encode()
    assert made.n_bytes("train") == len(b"".join(texts(made, "train")))
    assert len(made.tokens("train")) == made.splits["train"]["tokens"]
    assert made.tokens("train")[:].dtype == np.uint16
    assert made.documents("train").dtype == np.int64


@pytest.fixture
def sampled(monkeypatch):
    """What `make` was given."""
    seen, make = [], tokenizers.make

    def spy(name, sample, progress=None):
        seen.append(sample)
        return make("bytes", sample, progress)

    monkeypatch.setattr(tokenizers, "make", spy)
    return seen


def test_a_tokenizer_learns_from_the_training_split_alone(sampled, monkeypatch):
    for limit in (1 << 20, 1000):
        monkeypatch.setattr(corpus, "SAMPLE_BYTES", limit)
        made = prepare(
            jsonl(f"{limit}.jsonl", [f"{i}{limit}\n{POEM}" for i in range(3)]), "bpe-300"
        )
        assert sampled.pop() == b"".join(texts(made, "train"))[:limit]


def test_characters_come_from_the_whole_text(sampled):
    prepare(write("poem.txt", POEM + "Ω"), "chars")
    assert sampled == ["".join(sorted({*POEM, "Ω"})).encode()]


def test_a_saved_tokenizer():
    first = prepare(write("poem.txt", POEM), "chars")
    again = prepare(write("less.txt", POEM[:999]), str(first.folder / "tokenizer.json"))
    assert again.tokenizer.as_json() == first.tokenizer.as_json()
    assert again.digest != first.digest


# ---- what is kept


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe-300"])
def test_prepared_once_found_again(name, cache, monkeypatch):
    first = prepare(write("my poem (1).txt", POEM), name)
    assert first.folder == cache.resolve() / "texts" / f"my-poem-1-{first.digest}"
    assert re.fullmatch(r"[0-9a-f]{12}", first.digest)
    assert "train" in repr(first)
    monkeypatch.setattr(corpus, "_write", None)  # what is found is not made again
    for again in (
        prepare("my poem (1).txt", name),
        prepare(str(first.folder)),
        find(first.digest),
    ):
        assert again.folder == first.folder


def test_a_label_does_not_depend_on_what_was_prepared_before(cache):
    first, second = prepare(write("one.txt", POEM)), prepare(write("two.txt", POEM))
    assert (first.label, second.label) == ("one", "two")
    assert first.digest == second.digest


def test_a_corpus_is_verified_once(monkeypatch):
    first = prepare(write("poem.txt", POEM), "bytes")
    monkeypatch.setattr(shards, "read", None)
    assert find(first.digest) is prepare("poem.txt", "bytes") is first


def test_the_digest_covers_tokenizer_tokens_and_documents():
    made = [
        prepare(jsonl("a.jsonl", ["one\n" * 20, "two\n" * 20]), "bytes"),
        prepare(jsonl("a.jsonl", ["one\n" * 20, "two\n" * 20]), "chars"),
        prepare(jsonl("b.jsonl", ["one\n" * 20, "two\n" * 20, "two\n" * 20]), "bytes"),
        prepare(jsonl("c.jsonl", ["two\n" * 20, "one\n" * 20]), "bytes"),
        prepare(jsonl("d.jsonl", ["one\n" * 20 + "two\n" * 20]), "bytes"),
    ]
    assert len({each.digest for each in made}) == 5


def test_the_cache_folder(monkeypatch, tmp_path):
    assert downloads.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("MINQKV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert downloads.cache_root() == corpus.Path("/x/minqkv")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert downloads.cache_root() == corpus.Path("/h/.cache/minqkv")


def test_what_is_missing_says_how_to_get_it():
    with pytest.raises(EnvironmentFault, match="0123456789ab is not in") as caught:
        find("0123456789ab")
    assert "minqkv data prepare" in caught.value.hint
    with pytest.raises(EnvironmentFault, match="shakespeare is not downloaded") as caught:
        prepare("shakespeare")
    assert "minqkv data fetch shakespeare" in caught.value.hint


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="unknown split 'tset'"):
        prepare(write("poem.txt", POEM)).tokens("tset")


@pytest.mark.parametrize("name", ["bytes", "bpe-300"])
def test_progress_rises_to_the_end(name):
    seen = []
    prepare(jsonl("a.jsonl", [f"{i}\n{POEM}" for i in range(5)]), name, lambda *n: seen.append(n))
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == (100, 100)


# ---- sources


def test_a_folder_in_order(tmp_path):
    write("f/b/two.txt", "two")
    write("f/a.txt", "one")
    write("f/c.jsonl", '{"text": "three"}\n\n{"text": "four", "id": 4}\n')
    write("f/empty.txt", "")
    write("f/picture.png", b"\x89PNG\0")
    write("f/.hidden", "no")
    write("f/.git/config", "no")
    write("outside/secret.txt", "no")
    os.mkfifo("f/pipe")
    os.symlink("a.txt", "f/again.txt")
    os.symlink("../outside/secret.txt", "f/secret.txt")
    os.symlink("../outside", "f/outside")
    os.symlink("nowhere", "f/nowhere")
    os.symlink("loop", "f/loop")
    found = Documents("f")
    wanted = [b"one", b"one", b"two", b"three", b"four"]
    assert [content for _, content in found] == wanted
    assert [content for _, content in found] == wanted  # a second pass
    assert found.left_out == {"hidden": 2, "linked": 4, "binary": 1, "empty": 1, "special": 1}
    assert Documents("f/").label == Documents("f/b/..").label == "f"


def test_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(POEM.encode())))
    made = prepare("-", "bytes")
    assert (made.label, made.digest) == ("stdin", prepare(write("a.txt", POEM), "bytes").digest)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\0b" * 99, "binary"), (b"x" * 2000, "more than"), (b"", "stdin has 0 bytes of text")],
)
def test_stdin_that_is_no_text(content, message, monkeypatch):
    monkeypatch.setattr(documents, "STDIN_BYTES", 1000)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises((EnvironmentFault, UsageError), match=message):
        prepare("-")


def test_a_byte_order_mark_is_no_text():
    bom = b"\xef\xbb\xbf"
    write("a.txt", bom + POEM.encode())
    write("b.jsonl", bom + json.dumps({"text": POEM}).encode())
    assert [c for name in ("a.txt", "b.jsonl") for _, c in Documents(name)] == [POEM.encode()] * 2


GOOD = b'{"text": "good"}\n'
WRONG = [  # name, content, tokenizer, error, message
    ("empty.txt", b"", "bytes", UsageError, "empty.txt has 0 bytes of text (1 empty left out)"),
    ("bom.txt", b"\xef\xbb\xbf", "bytes", UsageError, "0 bytes of text (1 empty left out)"),
    ("tiny.txt", b"hi\n", "bytes", UsageError, "3 bytes of text: nothing would be left for valid"),
    ("one.txt", b"x", "bytes", UsageError, "nothing would be left for train and validation"),
    ("z.png", b"\x89PNG\0" * 99, "bytes", UsageError, "0 bytes of text (1 binary left out)"),
    ("l.txt", b"abc\n\xe9t\xe9\n" * 9, "chars", EnvironmentFault,
        "l.txt is not UTF-8: byte 4 is 0xe9"),
    ("empty.jsonl", b"\n\n", "bytes", UsageError, "0 bytes of text"),
    ("a.jsonl", GOOD + b"{broken\n", "bytes", EnvironmentFault, "a.jsonl, line 2: not valid JSON"),
    ("b.jsonl", GOOD + b"[1]\n", "bytes", EnvironmentFault, 'line 2: there is no string "text"'),
    ("c.jsonl", GOOD + b'{"txt": ""}\n', "bytes", EnvironmentFault, "line 2: there is no string"),
    ("d.jsonl", GOOD + b'{"text": 1}\n', "bytes", EnvironmentFault, "line 2: there is no string"),
    ("e.jsonl", b'{"text": "\xe9"}\n', "bytes", EnvironmentFault, "line 1: not valid JSON"),
    ("f.jsonl", b'{"text": "\\ud800"}', "bytes", EnvironmentFault, "line 1: not valid JSON"),
    ("g.jsonl", GOOD + b"[" * 99999, "bytes", EnvironmentFault, "line 2: not valid JSON"),
    ("h.jsonl", GOOD + b"\0\n", "bytes", EnvironmentFault, "line 2: not valid JSON"),
    ("i.jsonl", b"9" * 9999, "bytes", EnvironmentFault, "line 1: not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "tokenizer", "error", "message"), WRONG)
def test_hostile_files(name, content, tokenizer, error, message, cache):
    with pytest.raises(error, match=re.escape(message)) as caught:
        prepare(write(name, content), tokenizer)
    assert "\n" not in str(caught.value)
    assert not corpus.folders()


def test_a_wrong_tokenizer_is_refused_before_the_text_is_read(monkeypatch):
    monkeypatch.setattr(corpus, "Documents", None)
    for name in ("char", "bpe-9", "gpt2"):
        with pytest.raises(UsageError, match=name):
            prepare("", name)


@pytest.mark.parametrize("source", ["nowhere", "a\0b", "x" * 9999, "shakespear"])
def test_no_such_source(source):
    with pytest.raises(UsageError, match="there is no file or folder"):
        prepare(source)


def test_a_fifo_is_not_waited_for():
    os.mkfifo("pipe")
    with pytest.raises(EnvironmentFault, match="cannot read pipe: it is not a plain file"):
        prepare("pipe")


def test_no_permission(monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    write("a.txt", POEM)
    write("a.jsonl", "{}")
    monkeypatch.setattr(files, "opened", denied)
    for name in ("a.txt", "a.jsonl"):
        with pytest.raises(EnvironmentFault, match=f"cannot read {name}: Permission denied"):
            prepare(name)


def test_a_text_that_changes_meanwhile(monkeypatch, cache):
    def meddling(folder, text, *rest):
        write("a.txt", POEM + "more")
        return honest(folder, text, *rest)

    honest = corpus._write
    monkeypatch.setattr(corpus, "_write", meddling)
    with pytest.raises(EnvironmentFault, match="changed while it was read"):
        prepare(write("a.txt", POEM), "bytes")
    assert not corpus.folders()
    assert not corpus.unfinished()


# ---- token shards


@pytest.fixture
def several(monkeypatch):
    """A corpus in shards of 64 tokens, and the documents of its training split."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 64)
    rng = random.Random(0)
    pieces = ["x" * rng.choice((1, 5, 63, 64, 65, 300)) + f" {i}\n" for i in range(40)]
    made = prepare(jsonl("several.jsonl", pieces), "bytes")
    return made, [p.encode() for p in pieces if split_of(p.encode()) == "train"]


def test_shards_are_one_array(several):
    made, wanted = several
    tokens = made.tokens("train")
    assert texts(made, "train") == wanted
    sizes = [len(shard) for shard in tokens.shards]
    assert set(sizes[:-1]) == {64}
    assert len(sizes) > 10
    whole = np.concatenate(tokens.shards)
    assert len(tokens) == len(whole) == made.splits["train"]["tokens"]
    np.testing.assert_array_equal(np.asarray(tokens), whole)
    marks = [0, 1, 63, 64, 65, 127, 128, 200, len(whole) - 1, len(whole), len(whole) + 9, -3, None]
    for start in marks:
        for stop in marks:
            np.testing.assert_array_equal(tokens[start:stop], whole[start:stop])
    with pytest.raises(IndexError, match="without a step"):
        tokens[::2]


def test_no_more_than_a_shard_waits_in_memory(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 64)
    writer = shards.Writer(corpus.Path(), "train", 257, bytes(32))
    for n in (1, 70, 3, 300, 63, 1, 1):
        writer.add(np.zeros(n, np.uint16))
        assert sum(map(len, writer.pending)) < 64
    assert len(writer.checksums) == len(os.listdir()) == 439 // 64
    assert writer.close()["tokens"] == 439


def test_windows(several, rng):
    tokens = several[0].tokens("train")
    whole = np.asarray(tokens).astype(np.int64)
    for n in (1, 63, 64, 65, 200):
        starts = np.append(rng.integers(0, len(whole) - n, 50), [0, len(whole) - n])
        found = tokens.windows(starts, n)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, [whole[start : start + n] for start in starts])
    assert tokens.windows([], 7).shape == (0, 7)
    for start in (-1, len(whole) - 6):
        with pytest.raises(IndexError, match="must lie within"):
            tokens.windows([start], 7)


def test_an_array_that_ends_with_a_whole_shard(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 8)
    made = prepare(write("a.txt", "x" * 79), "bytes")  # cut at 63: 64 tokens with the end
    assert [len(shard) for shard in made.tokens("train").shards] == [8] * 8
    assert len(made.tokens("train")[64:]) == len(made.tokens("train")[9:3]) == 0


def test_many_ids_take_four_bytes(tmp_path):
    values = np.array([70_000, 1, 0], np.uint32)
    checksum = shards.write(tmp_path / "a", values, 70_001, bytes(32))
    found = shards.read(tmp_path / "a", checksum, 70_001, bytes(32))
    assert found.dtype == np.uint32
    assert found.tolist() == values.tolist()


# ---- damage


def damaged(folder, message):
    """The corpus is refused by one line that says what to do."""
    with pytest.raises(EnvironmentFault, match=message) as caught:
        Corpus(folder)
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_byte_of_a_shard_counts():
    folder = prepare(write("a.txt", POEM[:100]), "bytes").folder
    for name in ("validation-00000.tokens", "train.documents"):
        path = folder / name
        good = path.read_bytes()
        for place in range(len(good)):
            flipped = bytearray(good)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            assert f"move {folder} elsewhere" in damaged(folder, name).hint
        for size in (0, 1, shards.HEADER.size, len(good) - 1):
            path.write_bytes(good[:size])
            damaged(folder, name)
        path.write_bytes(good + b"x")
        damaged(folder, name)
        path.write_bytes(good)
    path.unlink()
    damaged(folder, "cannot read .*train.documents: No such file")


def test_a_shard_of_another_corpus():
    a, b, c = (
        prepare(write("a.txt", POEM[:100]), "bytes").folder,
        prepare(write("b.txt", POEM[100:200]), "bytes").folder,
        prepare(write("c.txt", POEM[100:200]), "chars").folder,
    )
    shutil.copy(b / "test-00000.tokens", a)
    damaged(a, "test-00000.tokens is damaged: its checksum differs")
    shutil.copy(c / "test-00000.tokens", a)
    damaged(a, "test-00000.tokens was made with another tokenizer")


def change(value):
    """A value that differs, of the same type."""
    return value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("field", ["documents", "tokens", "bytes", "offsets", "shards"])
def test_counts_are_bound_to_the_tokens(field):
    folder = prepare(write("a.txt", POEM), "bytes").folder
    about = files.read_sealed(folder / "corpus.json")
    counts = about["splits"]["test"]
    counts[field] = (
        [change(v) for v in counts[field]] if field == "shards" else change(counts[field])
    )
    (folder / "corpus.json").write_text(json.dumps(about))
    damaged(folder, "is damaged: its digest differs")


@pytest.mark.parametrize(
    ("about", "message"),
    [("", "not valid JSON"), ("[]", "is not a JSON object"), ("{}", "is not a corpus of format 1"),
     ('{"kind": "corpus", "format": 2}', "is not a corpus of format 1"),
     ('{"kind": "corpus", "format": 1}', "is damaged"),
     ('{"kind": "corpus", "format": 1, "label": 1, "digest": [], "splits": 3}', "is damaged")],
)  # fmt: skip
def test_a_corpus_json_that_is_none(about, message):
    folder = prepare(write("a.txt", POEM), "bytes").folder
    (folder / "corpus.json").write_text(about)
    damaged(folder, message)
    corpus._verified.cache_clear()
    with pytest.raises(EnvironmentFault, match=message):
        prepare(str(folder))
    write("b.txt", POEM[1:])
    prepare("b.txt", "bytes")  # another one's damage does not matter


@pytest.mark.parametrize("field", corpus.ABOUT)
@pytest.mark.parametrize("wrong", [None, 3, "absent"])
def test_each_field_of_a_corpus_json_has_its_type(field, wrong):
    folder = prepare(write("a.txt", POEM), "bytes").folder
    about = files.read_sealed(folder / "corpus.json")
    about[field] = wrong
    if wrong == "absent":
        del about[field]
    (folder / "corpus.json").write_text(json.dumps(about))
    assert f"move {folder} elsewhere" in damaged(folder, f"is damaged: its {field} is").hint


def test_a_corpus_without_its_corpus_json():
    made = prepare(write("a.txt", POEM), "bytes")
    (made.folder / "corpus.json").unlink()
    with pytest.raises(EnvironmentFault, match=r"cannot read .*corpus\.json") as caught:
        prepare("a.txt", "bytes")
    assert f"move {made.folder} elsewhere" in caught.value.hint
    with pytest.raises(EnvironmentFault, match=r"cannot read .*corpus\.json"):
        find(made.digest)


def test_what_cannot_be_read_is_neither_missing_nor_to_be_deleted(monkeypatch):
    """As root, permissions are not checked: the calls are made to fail."""
    made = prepare(write("a.txt", POEM), "bytes")

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(corpus.Path, "iterdir", denied)
        for asked in (lambda: find(made.digest), corpus.folders, corpus.unfinished):
            with pytest.raises(EnvironmentFault, match=r"cannot read .*texts: Permission"):
                asked()
    monkeypatch.setattr(corpus.files, "opened", denied)
    with pytest.raises(EnvironmentFault, match="Permission denied") as caught:
        find(made.digest)
    assert "delete" not in (caught.value.hint or "")


def test_a_corpus_is_found_by_what_it_says_not_by_the_name_of_its_folder():
    a, b = (prepare(write(f"{name}.txt", POEM * n), "bytes") for name, n in (("a", 1), ("b", 2)))
    aside = a.folder.with_name("c")
    a.folder.rename(aside)
    assert find(a.digest).folder == aside
    assert corpus.is_prepared(a.digest, "a")
    b.folder.rename(a.folder)
    assert find(a.digest).digest == a.digest
    shutil.rmtree(aside)
    with pytest.raises(EnvironmentFault, match=f"{a.digest} is not in"):
        find(a.digest)  # a folder of this name holds another text
    assert find(b.digest).digest == b.digest
    assert not corpus.is_prepared(b.digest, "a")


def test_another_tokenizer_json():
    a, b = (prepare(write("a.txt", POEM), name).folder for name in ("bytes", "chars"))
    shutil.copy(b / "tokenizer.json", a)
    damaged(a, "its digest differs")


# ---- a full disk, an interrupt, two at once


@pytest.mark.parametrize("file", range(8))
def test_a_disk_that_fills(file, monkeypatch, cache):
    """The disk may fill up at any of the files: three shards, three tables, two JSON files."""
    left = [file]

    def filling(path, *parts):
        if not left[0]:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        save(path, *parts)

    save = shards.save
    monkeypatch.setattr(shards, "save", filling)
    with pytest.raises(EnvironmentFault, match="No space left on device") as caught:
        prepare(write("a.txt", POEM), "bytes")
    assert "MINQKV_CACHE" in caught.value.hint
    assert not list((cache / "texts").iterdir())
    monkeypatch.undo()


def test_where_nothing_can_be_written(monkeypatch):
    monkeypatch.setenv("MINQKV_CACHE", write("file", "in the way"))
    with pytest.raises(EnvironmentFault, match="cannot write to"):
        prepare(write("a.txt", POEM), "bytes")


def test_an_interrupt_leaves_nothing(cache):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(write("a.txt", POEM), "bytes", interrupt)
    assert not list((cache / "texts").iterdir())


def test_another_process_was_faster(monkeypatch, cache):
    first = prepare(write("a.txt", POEM), "bytes")
    monkeypatch.setattr(corpus, "_saying", lambda *_: None)  # it began before there was one
    assert prepare("a.txt", "bytes").folder == first.folder
    assert not corpus.unfinished()
