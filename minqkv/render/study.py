"""A study's tables, picture and lines, from finished summaries."""

import math

from .console import say, table


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


def cell_tables(console, cell, note):
    """One task: accuracies, what they cost, and what this many seeds cannot tell."""
    columns = [("variant", "left"), ("accuracy\n95 % interval", "right"), ("each seed", "left"), ("solved", "right"),
               ("to qkv, paired\n95 % interval", "right"), ("published\nmean ± sd", "right"), ("parameters", "right"),
               ("cache B/token\nmeasured", "right"), ("cache B/token\nformula", "right")]  # fmt: skip
    rows = []
    for row in cell.rows:
        seeds = " ".join("diverged" if value is None else number(value) for value in row.by_seed.values())
        published = "–" if row.published is None else f"{number(row.published.mean)} ± {number(row.published_spread)}"
        difference = (with_interval(row.to_qkv, sign=True), _difference_style(row.to_qkv))
        rows.append([row.arm, with_interval(row.accuracy), seeds, f"{row.solved}/{len(row.by_seed)}", difference, published,
                     f"{row.params:,}", f"{row.cache_measured:,}", f"{row.cache_formula:,}"])  # fmt: skip
    table(console, cell.title, columns, rows)
    say(console, note)
    console.print()


def _difference_style(estimate):
    if estimate is None or not estimate.clear_of_zero:
        return ""
    return "green" if estimate.mean > 0 else "red"


def formulas(console, cells, itemsize):
    """What the names mean, once for all tables."""
    rows = {row.arm: row.formula for cell in cells for row in cell.rows}
    table(console, 'What each variant computes ("-" separate, "=" shared; no subtraction)',
          [("variant", "left"), ("attention", "left")], [list(pair) for pair in rows.items()])  # fmt: skip
    say(console, f"Cache figures: elements of {itemsize} bytes, batch 1. An encoder has no cache: they are those of a decoder.")
    say(console, "α = 1/√d_h; head i reads stored head ⌊i/G⌋; s and g are learned.")
    console.print()


def picture(console, cell, height=11):
    """Accuracy upwards, cache bytes to the right: one letter a variant, in a column per distinct size."""
    rows = [row for row in cell.rows if row.accuracy]
    if not rows:
        return
    letters = {row.arm: chr(ord("a") + i) for i, row in enumerate(rows)}
    low = math.floor(min(row.accuracy.mean for row in rows) * 20) / 20
    high = math.ceil(max(row.accuracy.mean for row in rows) * 20) / 20
    step = max(0.05, high - low) / (height - 1)
    sizes = sorted({row.cache_measured for row in rows})
    marks = {}  # (level, size) -> letters
    for row in rows:
        level = round((row.accuracy.mean - low) / step)
        marks[level, row.cache_measured] = marks.get((level, row.cache_measured), "") + letters[row.arm]
    width = {size: max(len(f"{size:,}"), *(len(text) for (_, s), text in marks.items() if s == size)) + 2 for size in sizes}
    say(console, f"{cell.task}: accuracy against cache bytes a token", "bold")
    for level in reversed(range(height)):
        line = "".join(marks.get((level, size), "").center(width[size]) for size in sizes)
        say(console, f"{number(low + level * step, 2):>5} │{line}".rstrip())
    say(console, "      └" + "─" * sum(width.values()))
    say(console, "       " + "".join(f"{size:,}".center(width[size]) for size in sizes) + " bytes")
    say(console, "  ".join(f"{letter} {name}" for name, letter in letters.items()))
    console.print()


def ablation_table(console, cells):
    """One row a task and Q = K variant, one column an arm of the "+"."""
    arms = {"none": "{}", "full +": "{}+", "temperature only": "{}+temperature", "bias only": "{}+bias",
            "no +, diagonal masked": "{} (diagonal masked)"}  # fmt: skip
    rows = []
    for cell in cells:
        found = {row.arm: row.accuracy for row in cell.rows}
        for base in ("q=k-v", "q=k=v"):
            rows.append([f"{cell.task} {base}", *(with_interval(found.get(form.format(base))) for form in arms.values())])
    columns = [("", "left"), *((name.replace(", ", ",\n"), "right") for name in arms)]
    table(console, 'What the "+" does: token accuracy, mean and 95 % interval', columns, rows)


def study(console, cells, notes, itemsize=4, ablate=False):
    """The whole report."""
    if ablate:
        ablation_table(console, cells)
    for cell, note in zip(cells, notes, strict=True):
        cell_tables(console, cell, note)
    for cell in cells:
        picture(console, cell)
    formulas(console, cells, itemsize)
