"""The paper's tables beside ours: as text, or part by part for a page."""

from ..study.paper import DIFFERENT, STATES, summary
from .console import command, say, table
from .study import number, with_interval, with_sign

LEGEND = (
    "The same: the 95 % interval of the difference lies within ± .02 of accuracy or ± 1 % of "
    "perplexity; a figure that is computed agrees in all digits that were printed.",
    "Different: with eight seeds or more, the exact sign-flip test says so after Holm's "
    "correction, and the interval does not contain zero; or a figure that is computed is not what "
    "was printed.",
    "Cannot be told: neither. The interval shows what this many seeds (n) leave open.",
    "Smaller scale: our runs are too small to be compared figure by figure.",
)
_COLOURS = {"different": "bold", "the same": "green", "cannot be told": "yellow"}


def paper(console, tables):
    """The whole report."""
    say(console, headline(tables), "bold")
    console.print()
    for title, draw in parts(tables):
        say(console, title, "bold")
        draw(console)
        console.print()


def headline(tables):
    """How many rows are in each state, in a sentence."""
    counts = [f"{n} {state}" for state, n in summary(tables).items() if n]
    return f"The paper and minqkv, row by row: {', '.join(counts)}."


def parts(tables):
    """(title, draw) of each part, in order: what differs comes before the tables. `draw(console)`
    writes it.
    """
    found = []
    if len(tables) > 1:
        found.append(("Table by table", lambda console: _overview(console, tables)))
    if summary(tables)[DIFFERENT]:
        found.append(("Different from the paper", lambda console: _differences(console, tables)))
    for one in tables:
        title = f"{one.title} [{one.name}]"
        found.append((title, lambda console, one=one: _table(console, one)))
    return [*found, ("What the states mean", _legend)]


def _legend(console):
    for text in LEGEND:
        say(console, text)
        console.print()


def _overview(console, tables):
    headings = ("different", "the\nsame", "cannot\nbe told", "smaller\nscale", "not\nrun")
    columns = [("table", "left"), *((heading, "right") for heading in headings)]
    rows = []
    for one in tables:
        counts = summary([one])
        rows.append([one.name, *(str(counts[state] or "·") for state in STATES)])
    table(console, None, columns, rows)


def _differences(console, tables):
    """What differs, and the likely reason; each reason once."""
    for one in tables:
        for group in one.groups:
            rows = [row for row in group.rows if row.state == DIFFERENT]
            for i, row in enumerate(rows):
                figures = [f"{source} {_figure(text)}" for source, text in row.published.items()]
                if i == 0:
                    say(console, f"{one.name}: {group.title}")
                say(console, f"{row.name}: {', '.join([*figures, f'ours {_ours(row)}'])}", "bold")
            for why in dict.fromkeys(row.why for row in rows):
                say(console, why)
                console.print()


def _table(console, one):
    """One table: where it is, groups with numbers of ours, and those without."""
    say(console, f"Published: {one.where}.")
    console.print()
    ran = [group for group in one.groups if any(row.ours for row in group.rows)]
    for group in ran:
        _group(console, group, alone=len(one.groups) == 1)
    missing = {}  # groups with the same rows share a table
    for group in (group for group in one.groups if group not in ran):
        missing.setdefault(tuple(row.name for row in group.rows), []).append(group)
    for names, groups in missing.items():
        _matrix(console, names, groups, alone=len(one.groups) == 1)
    if folders := dict.fromkeys(folder for row in one.rows for folder in row.folders):
        say(console, f"Ours: {', '.join(folders)}.")
    commands = dict.fromkeys(text for group in one.groups for text in group.commands)
    if commands:
        say(console, "To make ours:")
    for text in commands:
        command(console, text)


def _group(console, group, alone):
    """Rows with numbers of ours. What all rows share, state and reason, is said once."""
    shared = len({(row.state, row.why) for row in group.rows}) == 1
    first, rows = group.rows[0], group.rows
    title = "" if alone else group.title
    if shared:
        title = f"{title}: {first.state}" if title else first.state
    columns, lines = [("", "left")], [[row.name] for row in rows]

    def add(header, values, side="right"):
        if any(value != "–" for value in values):
            columns.append((header, side))
            for line, value in zip(lines, values, strict=True):
                line.append(value)

    if not shared:
        add("", [(row.state, _COLOURS.get(row.state, "")) for row in rows], "left")
    for source in dict.fromkeys(source for row in rows for source in row.published):
        add(source, [_figure(row.published.get(source)) for row in rows])
        add("change", [_change(row.change.get(source), group.relative) for row in rows])
    compared = any(row.difference for row in rows)
    add("ours", [_ours(row, brief=compared) for row in rows])
    add("n", [str(row.ours.n) if row.ours and row.ours.n else "–" for row in rows])
    add("ours, change\nfrom qkv", [with_sign(row.our_change, group.relative) for row in rows])
    add("ours minus\npublished", [with_sign(row.difference, group.relative) for row in rows])
    table(console, title, columns, lines)
    _reasons(console, [(row.name, row.why) for row in rows if row.state != DIFFERENT], shared)


def _matrix(console, names, groups, alone):
    """What is published of groups of which we have nothing: a column for each group and source."""
    columns, lines = [("", "left")], [[name] for name in names]
    several = len(groups) > 1
    for group in groups:
        for source in dict.fromkeys(source for row in group.rows for source in row.published):
            columns.append((f"{group.title}\n{source}" if several else source, "right"))
            for row, line in zip(group.rows, lines, strict=True):
                line.append(_figure(row.published.get(source)))
    title = "not run" if several or alone else f"{groups[0].title}: not run"
    if len(columns) > 1:
        table(console, title, columns, lines)
    else:
        say(console, title, "bold")
    whys = [(group.title, group.rows[0].why) for group in groups]
    _reasons(console, whys, len({why for _, why in whys}) == 1)


def _reasons(console, whys, shared):
    """Each reason once, after the names of what it is about unless that is all there is."""
    names = {}
    for name, why in whys:
        names.setdefault(why, []).append(name)
    for why, about in names.items():
        if why:
            say(console, why if shared else f"{', '.join(about)}: {why}")
            console.print()


def _ours(row, brief=False):
    """Our figure: measured, with its interval unless `brief`; or computed, to as many digits as
    are printed.
    """
    if row.ours is None:
        return "–"
    if row.ours.n:
        digits, signed = 2 if row.relative else 3, row.gain
        text = with_interval(row.ours, signed, digits)
        return text.partition(" ")[0] if brief else text
    value = round(row.ours.mean, 6)
    decimals = len(next(iter(row.published.values())).partition(".")[2])
    if value == int(value):
        return f"{int(value):,}"
    return number(value, decimals) if decimals else f"{value:.3g}".removeprefix("0")


def _figure(text):
    """A published figure, the thousands of a long one marked."""
    if text is None:
        return "–"
    return f"{int(text):,}" if text.isdecimal() and len(text) > 4 else text


def _change(value, relative):
    if value is None:
        return "–"
    sign = "+" if value > 0 else "−" if value < 0 else ""
    size = f"{number(abs(100 * value), 1)} %" if relative else number(abs(value))
    return f"{sign}{size}"
