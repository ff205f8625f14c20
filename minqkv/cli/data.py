"""`minqkv data fetch`, `prepare`, `list`: texts to train on."""

import click

from .options import TOKENIZER_HELP, print_json, reports


@click.group()
def data():
    """Download, prepare and list texts to train on."""


@data.command()
@click.argument("name")
@click.option("--url", help="Another address of the same text.")
@click.option(
    "--out", type=click.Path(), help="The file to write.  [default: one in the cache folder]"
)
@reports
def fetch(name, url, out, as_json):
    """Download the text NAME, such as shakespeare (1.1 MB).

    Its SHA-256 is verified. Then `minqkv train --text NAME` uses it.
    """
    from ..render.progress import progress
    from ..runtime.errors import unknown
    from ..tasks.downloads import DOWNLOADS
    from ..tasks.downloads import fetch as download

    if name not in DOWNLOADS:
        raise unknown("text", name, DOWNLOADS)
    text = DOWNLOADS[name]
    with progress(f"{name}, bytes", text.n_bytes) as advance:
        path = download(name, url, out, lambda done, total: advance(done))
    if as_json:
        print_json({"name": name, "path": str(path), "bytes": text.n_bytes, "sha256": text.sha256})
        return
    click.echo(f"{text.about}\n{text.n_bytes:,} bytes, SHA-256 as expected: {path}")


@data.command()
@click.argument("source", default="")
@click.option(
    "--tokenizer",
    default="chars",
    show_default=True,
    metavar="NAME",
    help=TOKENIZER_HELP,
)
@reports
def prepare(source, tokenizer, as_json):
    """Turn a text into tokens, once, and print its size.

    SOURCE is a file, a folder, - for stdin, or a downloaded text. Without SOURCE, it is the
    built-in text. In a .jsonl file, each line is a document: {"text": "…"}.
    """
    from ..render.progress import patient
    from ..tasks import corpus

    with patient("preparing", 100) as advance:
        made = corpus.prepare(source, tokenizer, lambda done, total: advance(done))
    row = _described(made.folder)
    if as_json:
        print_json(row)
        return
    from ..render.console import say, stdout, table

    console = stdout()
    columns = [("split", "left"), *((unit, "right") for unit in ("documents", "tokens", "bytes"))]
    rows = [
        [split, *(f"{counts[unit]:,}" for unit in ("documents", "tokens", "bytes"))]
        for split, counts in row["splits"].items()
    ]
    title = f"{row['label']}  digest {row['digest']}  tokenizer {row['tokenizer']}"
    table(console, f"{title}  vocabulary {made.tokenizer.vocab_size:,}", columns, rows)
    if row["left_out"]:
        say(console, "left out: " + ", ".join(f"{n} {why}" for why, n in row["left_out"].items()))
    click.echo(row["folder"])


@data.command("list")
@reports
def list_data(as_json):
    """List the prepared and downloaded texts, with their sizes."""
    from ..runtime.errors import MinqkvError
    from ..tasks import corpus, downloads

    rows, faults = [], []
    for folder in corpus.folders():
        try:
            rows.append(_described(folder))
        except MinqkvError as error:
            faults.append(str(error))
    fetched = [
        {"name": name, "path": str(downloads.place(name)), "bytes": text.n_bytes}
        for name, text in downloads.DOWNLOADS.items()
        if downloads.is_whole(downloads.place(name), text)
    ]
    if as_json:
        print_json({"corpora": rows, "downloads": fetched, "faults": faults})
        return
    from ..render.console import bytes_text, stdout, table

    columns = [("prepared", "left"), ("tokenizer", "left"), ("documents", "right")]
    columns += [("tokens", "right"), ("text", "right"), ("on disk", "right")]
    lines = []
    for row in rows:
        total = {unit: sum(counts[unit] for counts in row["splits"].values()) for unit in _UNITS}
        sizes = [bytes_text(total["bytes"]), bytes_text(row["bytes_on_disk"])]
        name = f"{row['label']}-{row['digest']}"
        lines.append(
            [name, row["tokenizer"], f"{total['documents']:,}", f"{total['tokens']:,}", *sizes]
        )
    if lines:
        table(stdout(), None, columns, lines)
    for row in fetched:
        click.echo(f"downloaded: {row['name']}, {bytes_text(row['bytes'])}, {row['path']}")
    for fault in faults:
        click.echo(f"not readable: {fault}")
    for folder in corpus.unfinished():
        click.echo(f"unfinished, or left by a process that was killed: {folder}")
    where = corpus.cache_root()
    click.echo(f"stored in {where}" if rows or fetched else f"nothing is stored in {where} yet")


_UNITS = ("documents", "tokens", "bytes")


def _described(folder):
    """A prepared corpus and its sizes. Raises EnvironmentFault if it is damaged."""
    from ..runtime.errors import EnvironmentFault
    from ..tasks.corpus import about

    found = about(folder)
    try:
        row = {name: found[name] for name in ("label", "digest", "tokenizer", "left_out")}
        row["splits"] = {
            split: {unit: counts[unit] for unit in _UNITS}
            for split, counts in found["splits"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"{folder} is damaged", f"delete {folder}") from error
    size = sum(file.stat().st_size for file in folder.iterdir())
    return row | {"bytes_on_disk": size, "folder": str(folder)}


COMMANDS = (data,)
