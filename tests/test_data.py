"""`minqkv data`: downloads from a server on this machine, and what the commands print."""

import hashlib
import json
import os
import re
import resource
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import PATIENCE_S, run, start

from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.locks import locked
from minqkv.tasks import corpus, downloads
from minqkv.tasks.downloads import Collection, Download, fetch

TEXT = b"".join(b"line %d: to be, or not to be\n" % i for i in range(5000))
PARTS = {"one.gz": TEXT[:40_000], "two.gz": TEXT[40_000:50_000]}  # of a set of images
COUNTED = ("documents", "tokens", "bytes")


class Handler(BaseHTTPRequestHandler):
    """Each path is answered in its own way."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        name = self.path.strip("/")
        if name in PARTS:
            self.ranges(PARTS[name])
        else:
            getattr(self, name)()

    def ranges(self, whole=TEXT):
        """As most servers do: what was asked for, or all of it."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(whole):
            self.answer(416)
            return
        extent = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        about = [("Content-Range", extent)] if start else []
        rest = whole[start:]
        self.answer(206 if start else 200, *about, ("Content-Length", len(rest)), body=rest)

    def answer(self, code, *headers, body=b""):
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def good(self):
        self.answer(200, ("Content-Length", len(TEXT)), body=TEXT)

    def unannounced(self):
        self.answer(200, body=TEXT)

    def moved(self):
        self.answer(302, ("Location", "/good"))

    def missing(self):
        self.answer(404)

    def other(self):
        self.answer(200, body=TEXT[:-1] + b"X")

    def cut(self):
        self.answer(200, ("Content-Length", len(TEXT)), body=TEXT[:70_000])

    def loop(self):
        self.answer(302, ("Location", "/loop"))

    def local(self):
        self.answer(302, ("Location", "file:///etc/passwd"))

    def endless(self):
        self.answer(200)
        try:
            while True:
                self.wfile.write(TEXT)
        except OSError:
            self.server.hung_up.set()

    def silent(self):
        self.answer(200, ("Content-Length", len(TEXT)), body=b"a few bytes")
        self.server.over.wait(PATIENCE_S)

    def nonsense(self):
        self.wfile.write(b"what?\r\n\r\n")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.over, server.hung_up, server.asked = threading.Event(), threading.Event(), []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and no proxy on the way."""
    monkeypatch.setenv("MINQKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    corpus._verified.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def text(monkeypatch, server):
    """The server's text is the one called shakespeare."""
    found = Download(
        "tinyshakespeare.txt",
        f"{server.url}/good",
        len(TEXT),
        hashlib.sha256(TEXT).hexdigest(),
        "A text",
    )
    monkeypatch.setitem(downloads.DOWNLOADS, "shakespeare", found)
    return found


@pytest.fixture
def digits(monkeypatch, server):
    """A set of images of two files, called mnist."""
    sums = {name: hashlib.md5(data, usedforsecurity=False) for name, data in PARTS.items()}
    two = tuple(
        Download(name, f"{server.url}/{name}", len(data), sums[name].hexdigest())
        for name, data in PARTS.items()
    )
    monkeypatch.setitem(downloads.IMAGES, "mnist", Collection("Digits", two))
    server.asked.clear()
    return two


def left(folder):
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def kept(folder):
    """The bytes of the part file below a folder; it is all that is there."""
    (part,) = left(folder)
    assert (part.name[0], part.suffix) == (".", ".part")
    return part.read_bytes()


# ---- downloads


@pytest.mark.parametrize("path", ["good", "unannounced", "moved"])
def test_a_download(path, server, text, cache):
    seen = []
    found = fetch("shakespeare", f"{server.url}/{path}", None, lambda *now: seen.append(now))
    assert found == cache / "downloads" / "tinyshakespeare.txt"
    assert found.read_bytes() == TEXT
    assert left(cache) == [found]
    assert seen == sorted(seen)
    assert seen[-1] == (len(TEXT), len(TEXT))


def test_what_is_there_is_not_downloaded_again(server, text, tmp_path):
    out = tmp_path / "plays.txt"
    assert fetch("shakespeare", None, out) == out
    assert fetch("shakespeare", f"{server.url}/missing", out) == out
    out.write_bytes(TEXT[:-1] + b"X")  # damaged meanwhile
    fetch("shakespeare", None, out)
    assert out.read_bytes() == TEXT


FAULTS = {
    "missing": "Not Found",
    "other": "it is not the expected file: its SHA-256 differs",
    "cut": "it ended after 70,000 of",
    "loop": "redirect error",
    "local": "not allowed",
    "endless": "it is longer than the",
    "nonsense": "",
    "silent": "timed out",
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_download_that_fails(path, server, text, cache):
    timeout = 0.2 if path == "silent" else PATIENCE_S
    url = f"{server.url}/{path}"
    with pytest.raises(
        EnvironmentFault, match=f"cannot download {url}: .*{FAULTS[path]}"
    ) as caught:
        fetch("shakespeare", url, timeout=timeout)
    assert "\n" not in str(caught.value)
    assert f"download {text.url} " in caught.value.hint
    assert "--text FILE" in caught.value.hint
    arrived = {"cut": TEXT[:70_000], "silent": b"a few bytes"}
    if path in arrived:  # the next download goes on from there
        assert kept(cache) == arrived[path]
    else:
        assert not left(cache)


def test_an_endless_download_is_hung_up(server, text):
    server.hung_up.clear()
    with pytest.raises(EnvironmentFault):
        fetch("shakespeare", f"{server.url}/endless")
    assert server.hung_up.wait(PATIENCE_S)


def test_a_server_that_keeps_us_waiting(server, text, monkeypatch, cache):
    """A server that sends a few bytes now and then is too slow, even if each comes in time."""
    monkeypatch.setattr(downloads, "PATIENCE", 0)
    monkeypatch.setattr(downloads, "SLOWEST", 1e12)
    with pytest.raises(EnvironmentFault, match="only 11 bytes came in 0 s"):
        fetch("shakespeare", f"{server.url}/silent", timeout=PATIENCE_S)
    assert kept(cache) == b"a few bytes"


def test_nobody_answers(text, cache):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}/good"
    with pytest.raises(EnvironmentFault, match="Connection refused"):
        fetch("shakespeare", url)
    assert not left(cache)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "plays.txt"])
def test_not_a_web_address(url):
    with pytest.raises(UsageError, match="is not a web address"):
        fetch("shakespeare", url)


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a b/", "https://a:b/"])
def test_a_malformed_address(url, cache):
    with pytest.raises(EnvironmentFault, match="cannot download"):
        fetch("shakespeare", url)
    assert not left(cache)


def test_an_interrupted_download_leaves_what_has_arrived(text, cache):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("shakespeare", progress=interrupt)
    assert TEXT.startswith(kept(cache))


# ---- going on after an interruption


def interrupted(server, cache):
    """The beginning of the text has arrived."""
    with pytest.raises(EnvironmentFault, match="it ended after 70,000"):
        fetch("shakespeare", f"{server.url}/cut")
    server.asked.clear()
    return cache / "downloads" / "tinyshakespeare.txt"


def test_a_download_goes_on_where_it_ended(server, text, cache):
    found, seen = interrupted(server, cache), []
    fetch("shakespeare", f"{server.url}/ranges", None, lambda *now: seen.append(now))
    assert server.asked == [("/ranges", "bytes=70000-")]
    assert seen[0][0] > 70_000
    assert found.read_bytes() == TEXT
    assert left(cache) == [found]


@pytest.mark.parametrize("path", ["good", "moved", "unannounced"])
def test_a_server_that_cannot_go_on_begins_again(path, server, text, cache):
    found = interrupted(server, cache)
    fetch("shakespeare", f"{server.url}/{path}")
    assert server.asked[0] == (f"/{path}", "bytes=70000-")
    assert found.read_bytes() == TEXT


def test_a_part_of_another_file_is_thrown_away(server, text, cache):
    found = interrupted(server, cache)
    part = found.with_name(f".{found.name}.part")
    part.write_bytes(b"X" * 70_000)
    fetch("shakespeare", f"{server.url}/ranges")
    assert server.asked == [("/ranges", "bytes=70000-"), ("/ranges", None)]
    assert found.read_bytes() == TEXT
    assert left(cache) == [found]


@pytest.mark.parametrize("content", [TEXT, TEXT + b"more"])
def test_a_part_that_is_complete_or_too_long(content, server, text, cache):
    found = interrupted(server, cache)
    found.with_name(f".{found.name}.part").write_bytes(content)
    fetch("shakespeare", f"{server.url}/ranges")
    assert server.asked == ([] if content == TEXT else [("/ranges", None)])
    assert found.read_bytes() == TEXT


@pytest.mark.parametrize("make", [os.mkfifo, lambda part: part.symlink_to("precious")])
def test_a_part_that_is_no_plain_file(make, text, cache):
    """In a folder where others may write: no FIFO is waited for, and no link is followed."""
    part = cache / "downloads" / ".tinyshakespeare.txt.part"
    part.parent.mkdir(parents=True)
    part.with_name("precious").write_text("as it was")
    make(part)
    with pytest.raises(EnvironmentFault, match=r"part: it is not a plain file"):
        fetch("shakespeare")
    assert part.with_name("precious").read_text() == "as it was"


def test_a_server_whose_file_has_become_shorter(server, text, cache):
    """It answers 416: it has no such range."""
    found = interrupted(server, cache)
    found.with_name(f".{found.name}.part").write_bytes(b"X" * (len(TEXT) - 1))
    whole, handler = Handler.ranges, lambda self: whole(self, TEXT[:100_000])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Handler, "ranges", handler)
        with pytest.raises(EnvironmentFault, match="it ended after 100,000 of"):
            fetch("shakespeare", f"{server.url}/ranges")
    assert [ask for _, ask in server.asked] == [f"bytes={len(TEXT) - 1}-", None]
    assert kept(cache) == TEXT[:100_000]


def test_two_downloads_of_the_same(server, text, cache):
    (cache / "downloads").mkdir(parents=True)
    with (
        locked(cache / "downloads", "download"),
        pytest.raises(EnvironmentFault, match="this download is locked"),
    ):
        fetch("shakespeare")


# ---- sets of images: several files


def test_the_files_of_a_set(server, digits, cache):
    seen = []
    folder = fetch("mnist", progress=lambda *now: seen.append(now))
    assert folder == cache / "downloads" / "mnist"
    assert {path.name: path.read_bytes() for path in left(cache)} == PARTS
    assert seen == sorted(seen)
    assert seen[-1] == (50_000, 50_000)
    assert downloads.is_complete("mnist")
    fetch("mnist")
    assert [path for path, _ in server.asked] == ["/one.gz", "/two.gz"]  # not again


def test_a_set_whose_second_file_fails_keeps_the_first(server, digits, cache, monkeypatch):
    bad = replace(digits[1], url=f"{server.url}/missing")
    broken = Collection("Digits", (digits[0], bad))
    with monkeypatch.context() as patched:
        patched.setitem(downloads.IMAGES, "mnist", broken)
        with pytest.raises(EnvironmentFault, match="missing: Not Found") as caught:
            fetch("mnist")
    assert f"put it into {cache / 'downloads' / 'mnist'}" in caught.value.hint
    assert not downloads.is_complete("mnist")
    server.asked.clear()
    fetch("mnist")
    assert [path for path, _ in server.asked] == ["/two.gz"]


def test_another_address_is_for_a_single_file(digits):
    with pytest.raises(UsageError, match="mnist has 2 files, and --url is the address of one"):
        fetch("mnist", "http://localhost/mnist")


def test_a_wrong_md5(server, digits, monkeypatch, cache):
    wrong = replace(digits[0], checksum="0" * 32)
    monkeypatch.setitem(downloads.IMAGES, "mnist", Collection("Digits", (wrong,)))
    with pytest.raises(EnvironmentFault, match="not the expected file: its MD5 differs"):
        fetch("mnist")
    assert not left(cache)


def test_the_published_files():
    """Each has an address that ends in its name, a size and a checksum; nothing is there twice."""
    every = [file for name in downloads.IMAGES for file in downloads.collection(name).files]
    assert len({(f.checksum, f.url) for f in every}) == len(every) == 10
    for file in every:
        assert file.url.endswith("/" + file.file)
        assert re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", file.checksum)
        assert file.n_bytes > 4000


def test_where_a_download_cannot_be_written(text, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        fetch("shakespeare", out=tmp_path / "file" / "plays.txt")


def test_a_download_is_a_source(text):
    fetch("shakespeare")
    made = corpus.prepare("shakespeare", "bytes")
    assert made.label == "tinyshakespeare"
    assert sum(made.n_bytes(split) for split in corpus.SPLITS) == len(TEXT)
    downloads.place("shakespeare").write_bytes(b"damaged")
    with pytest.raises(EnvironmentFault, match="not downloaded"):
        corpus.prepare("shakespeare", "bytes")


# ---- the commands


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_bytes(TEXT)
    return path


def test_fetch(cli, text, cache):
    code, out, err = cli("data", "fetch", "shakespeare")
    path = cache / "downloads" / "tinyshakespeare.txt"
    assert (code, out) == (0, f"A text\n{len(TEXT):,} bytes, SHA-256 as expected: {path}\n")
    assert "shakespeare, bytes" in err
    code, out, _ = cli("data", "fetch", "shakespeare", "--out", "plays.txt", "--json")
    assert json.loads(out) == {
        "name": "shakespeare",
        "path": "plays.txt",
        "bytes": len(TEXT),
        "sha256": text.checksum,
    }
    assert Path("plays.txt").read_bytes() == TEXT


def test_fetch_that_fails(cli, server, text):
    code, out, err = cli("data", "fetch", "shakespeare", "--url", f"{server.url}/missing")
    assert (code, out) == (3, "")
    message, hint = err.splitlines()
    assert message == f"minqkv: cannot download {server.url}/missing: Not Found"
    assert "--text FILE" in hint
    code, out, err = cli("data", "fetch", "shakespear")
    assert (code, out) == (2, "")
    assert "did you mean shakespeare?" in err


def test_fetch_images(cli, digits, cache):
    code, out, err = cli("data", "fetch", "mnist")
    folder = cache / "downloads" / "mnist"
    assert (code, out) == (0, f"Digits\n50,000 bytes, MD5 as expected: {folder}\n")
    assert "mnist, bytes" in err
    found = json.loads(cli("data", "fetch", "mnist", "--out", "here", "--json")[1])
    sums = {file.file: {"md5": file.checksum} for file in digits}
    assert found == {"name": "mnist", "path": "here", "bytes": 50_000, "files": sums}
    assert Path("here", "two.gz").read_bytes() == PARTS["two.gz"]
    out = cli("data", "list")[1]
    assert f"downloaded: mnist, 48.8281 KiB, {folder}" in out
    assert "available with `minqkv data fetch`: shakespeare, fashion, cifar10, cifar100" in out


def test_prepare(cli, poem):
    code, out, _ = cli("data", "prepare", poem, "--tokenizer", "bytes")
    made = corpus.prepare(str(poem), "bytes")
    assert code == 0
    assert f"poem  digest {made.digest}  tokenizer bytes  vocabulary" in out
    for split in corpus.SPLITS:
        (line,) = [line for line in out.splitlines() if line.startswith(split)]
        wanted = [f"{made.splits[split][unit]:,}" for unit in COUNTED]
        assert line.split() == [split, *wanted]
    assert out.splitlines()[-1] == str(made.folder)


def test_prepare_as_json(cli, poem):
    row = json.loads(cli("data", "prepare", poem.parent, "--tokenizer", "bytes", "--json")[1])
    made = corpus.find(row["digest"])
    assert row["folder"] == str(made.folder)
    assert (row["tokenizer"], row["left_out"]) == ("bytes", {})
    for split in corpus.SPLITS:
        assert row["splits"][split] == {unit: made.splits[split][unit] for unit in COUNTED}
    assert row["bytes_on_disk"] == sum(path.stat().st_size for path in left(made.folder))


def test_what_was_left_out_is_said(cli, poem):
    (poem.parent / ".hidden").write_text("no")
    (poem.parent / "empty.txt").write_text("")
    out = cli("data", "prepare", poem.parent, "--tokenizer", "bytes")[1]
    assert "left out: 1 hidden, 1 empty" in out


def test_prepare_the_built_in_corpus_and_stdin(poem):
    code, out, _ = run("data", "prepare", "--json")
    assert (code, json.loads(out)["label"]) == (0, "builtin")
    with open(poem, "rb") as file:
        code, out, _ = run("data", "prepare", "-", "--json", stdin=file)
    assert (code, json.loads(out)["label"]) == (0, "stdin")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("nowhere.txt",), 2, "there is no file or folder 'nowhere.txt'"),
        (("empty.txt",), 2, "empty.txt has 0 bytes of text"),
        (("poem.txt", "--tokenizer", "chars1"), 2, "chars1"),
        (("poem.txt", "--tokenizer", "nowhere.json"), 3, "nowhere.json"),
        (("shakespeare",), 3, "minqkv data fetch shakespeare"),
    ],
)
def test_wrong_input(args, code, message, cli, poem):
    (poem.parent / "empty.txt").write_text("")
    got, out, err = cli("data", "prepare", *args)
    assert (got, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert "unexpected" not in err


def test_list(cli, text, poem, cache):
    out = cli("data", "list")[1]
    assert out.startswith(
        "available with `minqkv data fetch`: shakespeare, mnist, fashion, cifar10"
    )
    assert out.endswith(f"nothing is stored in {cache} yet\n")
    assert json.loads(cli("data", "list", "--json")[1]) == {
        "corpora": [],
        "downloads": [],
        "faults": [],
    }
    fetch("shakespeare")
    made = corpus.prepare(str(poem), "bytes")
    broken = corpus.prepare("", "bytes").folder
    (broken / "corpus.json").write_text("{")
    killed = cache / "texts" / ".new-1-2"
    killed.mkdir()
    code, out, _ = cli("data", "list")
    assert code == 0
    (line,) = [line for line in out.splitlines() if made.digest in line]
    tokens = sum(len(made.tokens(split)) for split in corpus.SPLITS)
    assert line.split()[:4] == [f"poem-{made.digest}", "bytes", "3", f"{tokens:,}"]
    assert f"downloaded: shakespeare, {len(TEXT) / 1024:.6g} KiB" in out
    assert f"not readable: {broken / 'corpus.json'} is not valid JSON" in out
    assert f"left by a process that was killed: {killed}" in out
    assert out.endswith(f"stored in {cache}\n")
    value = json.loads(cli("data", "list", "--json")[1])
    assert [row["digest"] for row in value["corpora"]] == [made.digest]
    assert [row["name"] for row in value["downloads"]] == ["shakespeare"]
    assert len(value["faults"]) == 1


@pytest.mark.parametrize("command", ["fetch", "prepare", "list"])
def test_help(command, cli):
    code, out, _ = cli("data", command, "--help")
    assert code == 0
    assert "--json" in out


# ---- processes


def test_two_at_once(poem, cache):
    both = [start("data", "prepare", poem, "--tokenizer", "bytes", "--json") for _ in range(2)]
    found = [child.communicate(timeout=PATIENCE_S) for child in both]
    assert [child.returncode for child in both] == [0, 0], found
    rows = [json.loads(out) for out, _ in found]
    assert rows[0] == rows[1]
    assert [path.name for path in (cache / "texts").iterdir()] == [f"poem-{rows[0]['digest']}"]


def test_a_full_disk(poem, cache):
    """A limit on the size of a file, which the training shard exceeds."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, out, err = run("data", "prepare", poem, "--tokenizer", "bytes", preexec_fn=limit)
    assert (code, out) == (3, "")
    message, hint = err.splitlines()[-2:]
    assert message == f"minqkv: cannot write to {cache / 'texts'}: File too large"
    assert "free some space" in hint
    assert not list((cache / "texts").iterdir())
