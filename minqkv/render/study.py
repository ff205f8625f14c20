"""A study's tables, picture and lines, from finished summaries."""

import math

from .console import say, table

ARMS = {  # of the "+": heading -> the name of an arm, by variant
    "none": "{}",
    "full +": "{}+",
    "temperature only": "{}+temperature",
    "bias only": "{}+bias",
    "full +,\nfrom s₀ = −1": "{}+ (s₀ = -1)",
    "no +,\ndiagonal masked": "{} (diagonal masked)",
}


def number(value, digits=3):
    """.684, 1.000, or "–" where there is none."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def with_interval(estimate, sign=False):
    """ "mean ± half"; the half is "–" for a single seed."""
    if estimate is None:
        return "–"
    mean = number(abs(estimate.mean))
    prefix = "" if not sign or mean == ".000" else "−" if estimate.mean < 0 else "+"
    return f"{prefix}{mean} ± {number(estimate.half)}"


def cell_tables(console, cell, note, solved_from):
    """One task: accuracies, what they cost, and what this many seeds cannot tell."""
    columns = [
        ("variant", "left"),
        ("accuracy\n95 % interval", "right"),
        ("each seed", "left"),
        (f"solved\n≥ {number(solved_from, 2)}", "right"),
        ("minus qkv, paired\n95 % interval", "right"),
        ("published\nmean ± sd", "right"),
        ("parameters", "right"),
        ("cache B/token\nmeasured", "right"),
        ("cache B/token\nformula", "right"),
    ]
    table(console, cell.title, columns, [_line(row) for row in cell.rows])
    say(console, note)
    console.print()


def _line(row):
    values = row.by_seed.values()
    published = "–"
    if row.published is not None:
        published = f"{number(row.published.mean)} ± {number(row.published_spread)}"
    return [
        row.arm,
        with_interval(row.accuracy),
        " ".join("diverged" if value is None else number(value) for value in values),
        f"{row.solved}/{len(values)}",
        (with_interval(row.to_qkv, sign=True), _difference_style(row.to_qkv)),
        published,
        f"{row.params:,}",
        f"{row.cache_measured:,}",
        f"{row.cache_formula:,}",
    ]


def _difference_style(estimate):
    if estimate is None or not estimate.clear_of_zero:
        return ""
    return "green" if estimate.mean > 0 else "red"


def formulas(console, cells, itemsize):
    """What the names mean, once for all tables."""
    rows = {row.arm: row.formula for cell in cells for row in cell.rows}
    title = 'What each variant computes ("=" joins what is shared; the hyphen is not a minus sign)'
    columns = [("variant", "left"), ("attention", "left")]
    table(console, title, columns, [list(pair) for pair in rows.items()])
    cache = f"Cache figures: batch 1, {itemsize} bytes per element."
    encoder = "An encoder has no cache; its figures are those of a decoder with the same attention."
    say(console, f"{cache} {encoder}")
    say(console, "α = 1/√d_h; head i reads stored head ⌊i/G⌋; s and g are learned.")
    console.print()


def picture(console, cell, height=11):
    """Accuracy upwards, cache bytes to the right, a column for each distinct size.

    Variants are named where the names fit, otherwise lettered, with a key below.
    """
    rows = [row for row in cell.rows if row.accuracy]
    if not rows:
        return
    high = math.ceil(max(row.accuracy.mean for row in rows) * 20) / 20
    low = min(high - 0.1, math.floor(min(row.accuracy.mean for row in rows) * 20) / 20)
    step = (high - low) / (height - 1)
    places = {
        row.arm: (round((row.accuracy.mean - low) / step), row.cache_measured) for row in rows
    }
    names = {name: name for name in places}
    letters = {name: chr(ord("a") + i) for i, name in enumerate(places)}
    for labels in (names, letters):
        marks, width = _marks(places, labels)
        if 7 + sum(width.values()) <= console.width:
            break
    say(console, f"{cell.task}: accuracy against cache bytes per token", "bold")
    for i in reversed(range(height)):
        line = "".join(marks.get((i, size), "").center(width[size]) for size in width)
        say(console, f"{number(low + i * step, 2):>5} │{line}".rstrip())
    say(console, "      └" + "─" * sum(width.values()))
    sizes = "".join(f"{size:,}".center(width[size]) for size in width)
    say(console, f"       {sizes.rstrip()} B")
    if labels is letters:
        say(console, "  ".join(f"{letter}\u00a0{name}" for name, letter in letters.items()))
    console.print()


def _marks(places, labels):
    """What is at each (level, size), and how wide the column of each size is."""
    marks = {}
    for name, place in places.items():
        marks.setdefault(place, []).append(labels[name])
    marks = {place: " ".join(found) for place, found in marks.items()}
    width = {}
    for size in sorted({size for _, size in marks}):
        texts = [text for (_, n), text in marks.items() if n == size]
        width[size] = max(map(len, [f"{size:,}", *texts])) + 3
    return marks, width


def ablation_table(console, cells):
    """A row for each task and Q = K variant, a column for each arm of the "+"."""
    rows = []
    for cell in cells:
        found = {row.arm: row.accuracy for row in cell.rows}
        for base in ("q=k-v", "q=k=v"):
            estimates = [with_interval(found.get(name.format(base))) for name in ARMS.values()]
            rows.append([f"{cell.task} {base}", *estimates])
    columns = [("", "left"), *((heading, "right") for heading in ARMS)]
    table(console, 'What the "+" does: token accuracy, mean and 95 % interval', columns, rows)


def study(console, cells, notes, itemsize, solved_from, ablate=False):
    """The whole report."""
    if ablate:
        ablation_table(console, cells)
    for cell, note in zip(cells, notes, strict=True):
        cell_tables(console, cell, note, solved_from)
    for cell in cells:
        picture(console, cell)
    formulas(console, cells, itemsize)
