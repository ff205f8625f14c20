"""`minqkv tokenize`."""

import sys
from codecs import BOM_UTF8
from os.path import exists, isdir, isfile

import click

from ..runtime.errors import EnvironmentFault, UsageError
from ..tasks.rules import TOKENIZERS
from .options import TOKENIZER_HELP, Known, print_json, reports


@click.command()
@click.argument("file")
@click.option(
    "--tokenizer",
    "name",
    type=Known(TOKENIZERS),
    default="bpe-1024",
    show_default=True,
    metavar="NAME",
    help=TOKENIZER_HELP,
)
@click.option("--show", is_flag=True, help="Print the tokens; with --json, their ids.")
@click.option("--save", metavar="FILE.json", help="Save the tokenizer, for use with --tokenizer.")
@reports
def tokenize(file, name, show, save, as_json):
    """Split a text into tokens, and count them.

    FILE is any file; - reads standard input.
    """
    from ..render.progress import patient
    from ..runtime.files import sealed, write_json
    from ..tasks.tokenizers import bpe_size, make

    if save and not save.endswith(".json"):
        raise UsageError(f"--save {save} does not end in .json", f"--save {save}.json")
    data, asked = read_bytes(file), bpe_size(name)
    if asked:
        with patient(f"train {name}", asked - 257) as advance:
            tokenizer = make(name, data, lambda done, total: advance(done))
    else:
        tokenizer = make(name, data)
    ids = tokenizer.encode(data)
    if save:
        write_json(save, sealed(tokenizer.as_json()))
    row = {"file": "standard input" if file == "-" else file, "bytes": len(data)}
    row |= {"tokens": len(ids), "bytes_per_token": len(data) / len(ids)}
    row |= {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size, "saved": save}
    if as_json:
        print_json(row | ({"ids": ids.tolist()} if show else {}))
        return
    from ..render.text import show_tokens, token_summary

    if show:
        show_tokens(tokenizer, ids.tolist())
    token_summary(row, asked)


def _special(file):
    """Whether this is a FIFO, a device or a socket."""
    return exists(file) and not isfile(file) and not isdir(file)


def read_bytes(file):
    """The bytes of a file, or of standard input. Raises EnvironmentFault if it cannot be read,
    UsageError if it is empty.
    """
    from ..runtime.files import opened

    try:
        if file == "-":
            data = sys.stdin.buffer.read() if sys.stdin else b""
        else:
            with opened(file) as stream:
                data = stream.read()
    except OSError as error:
        what = f"cannot read {file}: {error.strerror}"
        hint = "to read from a pipe, give - as FILE"
        raise EnvironmentFault(what, hint if _special(file) else None) from error
    if not data:
        raise UsageError(f"{'standard input' if file == '-' else file} is empty")
    return data.removeprefix(BOM_UTF8)  # no part of the text


COMMANDS = (tokenize,)
