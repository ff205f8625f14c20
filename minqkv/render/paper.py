"""The paper's tables beside ours as a report: what differs comes first, then table by table."""

from ..study.paper import DIFFERENT, STATES, summary
from .document import Code, Items, Section, Table, Text
from .study import change, number, with_interval, with_sign

LEGEND = (
    "**The same**: the 95 % interval of the difference lies within ± .02 of accuracy or ± 1 % of "
    "perplexity; a figure that is computed agrees in all digits that were printed.",
    "**Different**: with eight seeds or more, the exact sign-flip test and Welch's test say so "
    "after Holm's correction; or a figure that is computed is not what was printed.",
    "**Cannot be told**: neither of the two. The interval shows what n seeds leave open.",
    "**Smaller scale**: our runs are too small to be compared figure by figure.",
)
_COLOURS = {"different": "bold", "the same": "green", "cannot be told": "yellow"}
_NONE = "–"  # in a cell without a figure


def headline(tables):
    """How many rows are in each state, in a sentence."""
    counts = [f"{n} {state}" for state, n in summary(tables).items() if n]
    return f"The paper and minqkv, row by row: {', '.join(counts)}."


def sections(tables):
    """The report as Sections of document.py."""
    found = []
    if len(tables) > 1:
        found.append(Section("Table by table", [_overview(tables)]))
    if different := [part for one in tables for part in _differences(one)]:
        found.append(Section("Different from the paper", different))
    found.append(
        Section("The tables", [Section(f"{t.title} [{t.name}]", _table(t)) for t in tables])
    )
    return [*found, Section("What the states mean", [Items(list(LEGEND))])]


def _overview(tables):
    headings = ("different", "the\nsame", "cannot\nbe told", "smaller\nscale", "not\nrun")
    columns = [("table", "left"), *((heading, "right") for heading in headings)]
    counts = [(one.name, summary([one])) for one in tables]
    rows = [[name, *(str(n[state] or "·") for state in STATES)] for name, n in counts]
    return Table("Rows in each state", columns, rows)


def _differences(one):
    """What differs in a table, group by group, and the likely reasons."""
    for group in one.groups:
        rows = [row for row in group.rows if row.state == DIFFERENT]
        said = []
        for row in rows:
            figures = [f"{source} {_figure(text)}" for source, text in row.published.items()]
            said.append(f"**{row.name}**: {', '.join([*figures, f'ours {_ours(row)}'])}")
        if rows:
            reasons = [Text(why) for why in dict.fromkeys(row.why for row in rows)]
            yield Section(f"{one.name}: {group.title}", [Items(said), *reasons])


def _table(one):
    """One table: where it is, groups with our numbers, groups without, and the commands."""
    alone, blocks = len(one.groups) == 1, [Text(f"Published: {one.where}.")]
    ran = [group for group in one.groups if any(row.ours for row in group.rows)]
    for group in ran:
        blocks += _group(group, alone)
    missing = {}  # groups with the same rows share a table
    for group in (group for group in one.groups if group not in ran):
        missing.setdefault(tuple(row.name for row in group.rows), []).append(group)
    for names, groups in missing.items():
        blocks += _matrix(names, groups, alone)
    if folders := dict.fromkeys(folder for row in one.rows for folder in row.folders):
        blocks.append(Text(f"Ours: {', '.join(folders)}."))
    if commands := dict.fromkeys(text for group in one.groups for text in group.commands):
        blocks += [Text("To make ours:"), *map(Code, commands)]
    return blocks


def _group(group, alone):
    """Rows with our numbers. What all rows share, state and reason, is said once."""
    rows, first = group.rows, group.rows[0]
    shared = len({(row.state, row.why) for row in rows}) == 1
    relative = any(row.relative for row in rows)
    parts = [] if alone and shared else [group.title]
    title = ": ".join([*parts, *([first.state] if shared else [])])
    columns, lines = [("row", "left")], [[row.name] for row in rows]

    def add(header, values, side="right"):
        if any(value != _NONE for value in values):
            columns.append((header, side))
            for line, value in zip(lines, values, strict=True):
                line.append(value)

    if not shared:
        add("state", [(row.state, _COLOURS.get(row.state, "")) for row in rows], "left")
    for source in dict.fromkeys(source for row in rows for source in row.published):
        add(source, [_figure(row.published.get(source)) for row in rows])
        add("change", [change(row.change.get(source), relative) for row in rows])
    compared = any(row.difference for row in rows)
    add("ours", [_ours(row, brief=compared) for row in rows])
    add("n", [str(row.ours.n) if row.ours and row.ours.n else _NONE for row in rows])
    add("ours, change\nfrom qkv", [with_sign(row.our_change, relative) for row in rows])
    add("ours minus\npublished", [with_sign(row.difference, relative) for row in rows])
    reasons = [(row.name, row.why) for row in rows if row.state != DIFFERENT]
    return [Table(title, columns, lines), *_reasons(reasons, shared)]


def _matrix(names, groups, alone):
    """What is published of groups of which we have nothing: a column for each group and source."""
    columns, lines, several = [("row", "left")], [[name] for name in names], len(groups) > 1
    for group in groups:
        for source in dict.fromkeys(source for row in group.rows for source in row.published):
            columns.append((f"{group.title}\n{source}" if several else source, "right"))
            for row, line in zip(group.rows, lines, strict=True):
                line.append(_figure(row.published.get(source)))
    title = "not run" if several or alone else f"{groups[0].title}: not run"
    whys = [(group.title, group.rows[0].why) for group in groups]
    shared = len({why for _, why in whys}) == 1
    if len(columns) == 1:
        return [Text(f"**{title}.**"), *_reasons(whys, shared)]
    return [Table(title, columns, lines), *_reasons(whys, shared)]


def _reasons(whys, shared):
    """Each reason once, after the names of what it is about unless that is all there is."""
    names = {}
    for name, why in whys:
        names.setdefault(why, []).append(name)
    pairs = [(why, "" if shared else f"{', '.join(of)}: ") for why, of in names.items()]
    return [Text(f"{about}{why}") for why, about in pairs if why]


def _ours(row, brief=False):
    """Our figure: measured, with its interval unless `brief`; or computed, to as many digits as
    are printed.
    """
    if row.ours is None:
        return _NONE
    if row.ours.n:
        text = with_interval(row.ours, row.gain, 2 if row.relative else 3)
        return text.partition(" ")[0] if brief else text
    value = round(row.ours.mean, 6)
    decimals = len(next(iter(row.published.values())).partition(".")[2])
    if value == int(value):
        return f"{int(value):,}"
    return number(value, decimals) if decimals else f"{value:.3g}".removeprefix("0")


def _figure(text):
    """A published figure, the thousands of a long one marked."""
    if text is None:
        return _NONE
    return f"{int(text):,}" if text.isdecimal() and len(text) > 4 else text
