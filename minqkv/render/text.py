"""Tokens of a text, printed so that their boundaries can be seen."""

from rich.cells import cell_len, chop_cells
from rich.text import Text

from .console import say, stdout
from .layout import Page

COLOURS = ("black on cyan", "black on yellow")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def token_summary(row, asked):
    """What `minqkv tokenize` reports, as a sentence or two; `asked` is the N of bpe-N, or None."""
    size, tokens = _count(row["bytes"], "byte"), _count(row["tokens"], "token")
    each = _count(round(row["bytes_per_token"], 3), "byte")
    text = f"{row['file']}: {size}, {tokens}, {each} per token. "
    text += f"Tokenizer {row['tokenizer']}, vocabulary {row['vocab_size']:,}."
    if asked and row["vocab_size"] < asked:
        text += f" It is not {asked:,}: no other pair of tokens occurs twice in this text."
    if row["saved"]:
        text += f" Saved as {row['saved']}."
    say(stdout(), text)


def _count(n, unit):
    """ "1 byte", "2.406 bytes", "1,024 tokens"."""
    return f"{n:,} {unit}s" if n != 1 else f"1 {unit}"


def show_tokens(tokenizer, ids):
    """Print tokens in two alternating colours; without colour, each one ends with "|"."""
    console = stdout()
    marked = console.no_color or console.color_system is None
    page, shown = Page(console.width, console.encoding), {}
    for token in set(ids):
        piece = tokenizer.pieces[token]
        text = legible(piece, page)
        text = text.replace("|", "\\|") + "|" if marked else text
        shown[token] = text, b"\n" in piece
    for line in lay_out((shown[token] for token in ids), console.width):
        text = Text()
        for piece, number in line:
            text.append(piece, "" if marked else COLOURS[number % 2])
        console.print(text, soft_wrap=True)


def legible(piece, page):
    """A token's bytes as text. What cannot be seen, or is not UTF-8, becomes an escape: \\n, \\xff
    (a byte), \\u200b (a character).
    """
    return "".join(_visible(c, page) for c in piece.decode("utf-8", "surrogateescape"))


def _visible(c, page):
    if c in _ESCAPES:
        return _ESCAPES[c]
    if c.isprintable() and cell_len(c) and page.holds(c):
        return c
    code = ord(c)
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:  # ASCII, or a byte that is not UTF-8
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def lay_out(tokens, width):
    """Lines of (text, number of the token), at most `width` columns wide.

    `tokens` are (text, whether the line ends after it). A token that does not fit begins a new
    line; only one that is longer than a line is cut.
    """
    line, room = [], width
    for number, (token, ends) in enumerate(tokens):
        for part in chop_cells(token, width):
            if cell_len(part) > room:
                yield line
                line, room = [], width
            line.append((part, number))
            room -= cell_len(part)
        if ends:
            yield line
            line, room = [], width
    if line:
        yield line
