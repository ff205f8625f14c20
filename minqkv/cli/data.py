"""`minqkv data fetch`, `prepare`, `list`: texts and images to train on."""

import click

from ..tasks.rules import TOKENIZERS
from .options import TOKENIZER_HELP, Known, print_json, reports


def _names():
    from ..tasks import downloads

    return (*downloads.DOWNLOADS, *downloads.IMAGES)


@click.group()
def data():
    """Download, prepare and list what models are trained on."""


@data.command()
@click.argument("name", type=Known(_names))
@click.option("--url", help="Another address of the same file.")
@click.option(
    "--out",
    type=click.Path(),
    help="The file to write, or the folder for images.  [default: one in the cache folder]",
)
@reports
def fetch(name, url, out, as_json):
    """Download NAME: the text shakespeare (1.1 MB), or the images of mnist (12 MB), fashion
    (31 MB), cifar10 (170 MB) or cifar100 (169 MB).

    Checksums are verified. Then `minqkv train --task text --text shakespeare` or `minqkv train
    --task images --data mnist` uses it. After an interruption, repeat the command: it continues.
    """
    from ..render.progress import progress
    from ..tasks import downloads

    wanted = downloads.collection(name)
    n_bytes = sum(file.n_bytes for file in wanted.files)
    with progress(f"{name}, bytes", n_bytes) as advance:
        path = downloads.fetch(name, url, out, lambda done, total: advance(done))
    if as_json:
        sums = {f.file: {f.algorithm: f.checksum} for f in wanted.files}
        found = {"name": name, "path": str(path), "bytes": n_bytes}
        print_json(found | (sums.popitem()[1] if len(sums) == 1 else {"files": sums}))
        return
    checked = " and ".join({downloads.ALGORITHMS[f.algorithm] for f in wanted.files})
    click.echo(f"{wanted.about}\n{n_bytes:,} bytes, {checked} as expected: {path}")


@data.command()
@click.argument("source", default="")
@click.option(
    "--tokenizer",
    type=Known(TOKENIZERS),
    default="chars",
    show_default=True,
    metavar="NAME",
    help=TOKENIZER_HELP,
)
@reports
def prepare(source, tokenizer, as_json):
    """Turn a text into tokens before training, and print its size.

    SOURCE is a file, a folder, - for stdin, or a downloaded text. Without SOURCE, the
    built-in text is used. In a .jsonl file, each line is a document: {"text": "…"}.
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
    """List what is prepared, what is downloaded, and what can be."""
    from ..runtime.errors import MinqkvError
    from ..tasks import corpus, downloads

    rows, faults = [], []
    for folder in corpus.folders():
        try:
            rows.append(_described(folder))
        except MinqkvError as error:
            faults.append(str(error))
    names = _names()
    fetched = [
        {"name": name, "path": str(downloads.place(name)), "bytes": _size(name)}
        for name in names
        if downloads.is_complete(name)
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
    others = [name for name in names if name not in {row["name"] for row in fetched}]
    if others:
        click.echo(f"available with `minqkv data fetch`: {', '.join(others)}")
    where = corpus.cache_root()
    click.echo(f"stored in {where}" if rows or fetched else f"nothing is stored in {where} yet")


_UNITS = ("documents", "tokens", "bytes")


def _size(name):
    """Bytes of a download."""
    from ..tasks.downloads import collection

    return sum(file.n_bytes for file in collection(name).files)


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
