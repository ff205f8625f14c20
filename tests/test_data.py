"""`minqkv data`: downloads from a server on this machine, and what the commands print."""

import hashlib
import json
import resource
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import PATIENCE_S, run, start

from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.tasks import corpus, downloads
from minqkv.tasks.downloads import Download, fetch

TEXT = b"".join(b"line %d: to be, or not to be\n" % i for i in range(5000))
COUNTED = ("documents", "tokens", "bytes")


class Handler(BaseHTTPRequestHandler):
    """Each path is answered in its own way."""

    def do_GET(self):
        getattr(self, self.path.strip("/"))()

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
        server.over, server.hung_up = threading.Event(), threading.Event()
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


def left(folder):
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


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
    "other": "it is another text than expected",
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
    assert not left(cache)


def test_an_endless_download_is_hung_up(server, text):
    server.hung_up.clear()
    with pytest.raises(EnvironmentFault):
        fetch("shakespeare", f"{server.url}/endless")
    assert server.hung_up.wait(PATIENCE_S)


def test_a_server_that_keeps_us_waiting(server, text, monkeypatch, cache):
    """A server that sends a few bytes now and then is too slow, even if each comes in time."""
    monkeypatch.setattr(downloads, "PATIENCE", 0)
    with pytest.raises(EnvironmentFault, match="only 11 bytes came in 0 s"):
        fetch("shakespeare", f"{server.url}/silent", timeout=PATIENCE_S)
    assert not left(cache)


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


def test_an_interrupted_download_leaves_nothing(text, cache):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("shakespeare", progress=interrupt)
    assert not left(cache)


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
        "sha256": text.sha256,
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
    assert cli("data", "list")[1] == f"nothing is stored in {cache} yet\n"
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
