"""A report as plain data, and the three ways to show it: a page of HTML, Markdown, and a terminal.

    sections = [Section("Scores", [Text("Higher is better."), Table("Accuracy", columns, rows)])]
    to_html("My report", sections), to_markdown("My report", sections), show(console, …)

What is tabled by functions that write on a console (`console.table`, `console.say`) is collected by
a Sheet in its place.
"""

import re
from dataclasses import dataclass, field

from ..runtime import files
from ..runtime.errors import EnvironmentFault
from . import page
from .console import command, say, table
from .layout import parts

_STYLES = {"green": "good", "red": "bad", "bold": "strong"}  # of the terminal -> of a page


@dataclass(frozen=True)
class Text:
    """A paragraph, with `code` and **strong** words; `warning` sets it off."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Items:
    """A list of texts."""

    items: list


@dataclass(frozen=True)
class Code:
    """Commands or code, as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table as `console.table` takes it: columns (header, "left" or "right"), rows of cells."""

    title: str
    columns: list
    rows: list


@dataclass(frozen=True)
class Figure:
    """SVG text, for a wide and a narrow page. `file` is a copy that Markdown can show."""

    title: str
    wide: str
    narrow: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Small Figures beside each other."""

    figures: list


@dataclass(frozen=True)
class Fold:
    """Blocks that a page hides below a summary until they are asked for."""

    summary: str
    blocks: list
    unfolded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what is below it: blocks, and further Sections. Markup is for pages alone."""

    title: str
    blocks: list


@dataclass
class Sheet:
    """Takes the place of a console and keeps what is written on it."""

    width: int = 10**6
    blocks: list = field(default_factory=list)

    def say(self, text, style=None):
        """Keep a paragraph."""
        self.blocks += [Text(text)] if text else []

    def table(self, title, columns, rows):
        """Keep a table."""
        self.blocks.append(Table(title, columns, rows))

    def print(self):
        """An empty line, which no page needs."""


# ---- HTML


def to_html(title, sections, description=""):
    """A whole page. The first level of Sections is linked at its top."""
    names = _names()
    made = [_section(section, 2, names) for section in sections]
    links = [(s.title, f"#{name}") for s, (name, _) in zip(sections, made, strict=True)]
    top = page.contents(links) if len(links) > 1 else None
    return page.page(title, *(part for _, part in made), description=description, top=top)


def write_html(path, title, sections, description=""):
    """Write that page: whole or not at all. Raises EnvironmentFault."""
    try:
        files.write_text(path, to_html(title, sections, description))
    except EnvironmentFault as error:
        raise EnvironmentFault(str(error), "choose another file with --html") from error


def _names():
    """A function that gives each heading its own anchor."""
    used = {"top", "content"}

    def name(title):
        base = name = page.anchor(title)
        n = 1
        while name in used:
            n += 1
            name = f"{base}-{n}"
        used.add(name)
        return name

    return name


def _section(section, level, names):
    """(its anchor, it as Markup); below level 4 headings stay at 4."""
    name = names(section.title)
    parts = [page.heading(section.title, level, name)]
    for block in section.blocks:
        if isinstance(block, Section):
            parts.append(_section(block, min(level + 1, 4), names)[1])
        else:
            parts.append(_html(block))
    return name, page.tag("section", *parts, aria_labelledby=name)


def _html(block):
    match block:
        case page.Markup():
            return block
        case Text(text, warning):
            return page.paragraph(text, "warning" if warning else None)
        case Items(items):
            return page.listed(items)
        case Code(text):
            return page.code(text)
        case Table(title, columns, rows):
            cells = [[_styled(cell) for cell in row] for row in rows]
            return page.table(title, columns, cells)
        case Figure(_, wide, narrow):
            return page.figure(wide, narrow)
        case Gallery(figures):
            return page.gallery([_html(figure) for figure in figures])
        case Fold(summary, blocks, unfolded):
            return page.fold(summary, *map(_html, blocks), unfolded=unfolded)
    raise TypeError(f"{block!r} is not a block")


def _styled(cell):
    return (cell[0], _STYLES.get(cell[1], "")) if isinstance(cell, tuple) else cell


# ---- Markdown


def to_markdown(title, sections):
    """The same for a README: headings from level 2 on, tables, no fold-outs; of the figures, those
    that are in a file.
    """
    return "\n\n".join([f"## {_plain(title)}", *_marked(sections, 3)]) + "\n"


def _marked(blocks, level):
    for block in blocks:
        match block:
            case Section(title, within):
                parts = [*_marked(within, min(level + 1, 6))]
                yield from [f"{'#' * level} {_plain(title)}", *parts] if parts else []
            case Fold(summary, within):
                yield f"**{_plain(summary)}**"
                yield from _marked(within, level)
            case Text(text):
                yield _prose(text)
            case Items(items):
                yield "\n".join(f"- {_prose(item)}" for item in items)
            case Code(text):
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                yield f"{fence}sh\n{text}\n{fence}"
            case Table(heading, columns, rows):
                yield _pipes(heading, columns, rows)
            case Figure(alt, file=file) if file:
                yield f"![{_plain(alt)}]({file})"


def _plain(text):
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;")


def _prose(text):
    """The same for prose, whose `code` and **strong** words stay."""
    made = []
    for part, style in parts(text):
        if style == "strong":
            part = f"**{_plain(part)}**"
        made.append(part if style else _spaced(part))
    return "".join(made)


def _spaced(part):
    """A piece of prose, with its blanks at both ends."""
    before, after = part[:1].isspace() * " ", (part[-1:].isspace() and len(part) > 1) * " "
    return before + _plain(part) + after if part.strip() else before


def _pipes(title, columns, rows):
    heads = " | ".join(_plain(text) for text, _ in columns)
    sides = " | ".join("---:" if side == "right" else "---" for _, side in columns)
    lines = [f"**{_plain(title)}**", "", f"| {heads} |", f"| {sides} |"]
    for row in rows:
        cells = [cell[0] if isinstance(cell, tuple) else cell for cell in row]
        lines.append(f"| {' | '.join(_plain(str(cell)) for cell in cells)} |")
    return "\n".join(lines)


# ---- a terminal


def show(console, title, sections):
    """The same on a console; figures are left out."""
    say(console, title, "bold")
    _show(console, sections)


def _show(console, blocks):
    for before, block in zip([None, *blocks], blocks, strict=False):
        if isinstance(before, Text) and isinstance(block, Table):
            console.print()
        match block:
            case Section(title, within):
                if not all(isinstance(one, Figure | Gallery) for one in within):
                    console.print()
                    say(console, title, "bold")
                _show(console, within)
            case Text(text):
                say(console, text.replace("**", ""))
            case Code(text):
                command(console, text)
            case Items(items):
                for item in items:
                    say(console, f"- {item.replace('**', '')}")
            case Table(title, columns, rows):
                table(console, title, columns, rows)
            case Fold(_, within):
                _show(console, within)
