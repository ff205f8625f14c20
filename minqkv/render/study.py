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


def cell_tables(console, cell, note, solved_from):
    """One task: accuracies, what they cost, and what this many seeds cannot tell."""
    columns = [
        ("variant", "left"),
        ("accuracy\n95 % interval", "right"),
        ("each seed", "left"),
        (f"solved\n≥ {number(solved_from, 2)}", "right"),
        ("to qkv, paired\n95 % interval", "right"),
        ("published\nmean ± sd", "right"),
        ("parameters", "right"),
        ("cache B/token\nmeasured", "right"),
        ("cache B/token\nformula", "right"),
    ]
    rows = []
    for row in cell.rows:
        seeds = " ".join(
            "diverged" if value is None else number(value) for value in row.by_seed.values()
        )
        published = (
            "–"
            if row.published is None
            else f"{number(row.published.mean)} ± {number(row.published_spread)}"
        )
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
    say(
        console,
        f"Cache figures: elements of {itemsize} bytes, batch 1. An encoder has no cache: they are those of a decoder.",
    )
    say(console, "α = 1/√d_h; head i reads stored head ⌊i/G⌋; s and g are learned.")
    console.print()


def picture(console, cell, height=11):
    """Accuracy upwards, cache bytes to the right, a column per distinct size; names where they fit,
    else letters.
    """
    rows = [row for row in cell.rows if row.accuracy]
    if not rows:
        return
    high = math.ceil(max(row.accuracy.mean for row in rows) * 20) / 20
    low = min(high - 0.1, math.floor(min(row.accuracy.mean for row in rows) * 20) / 20)
    step = (high - low) / (height - 1)
    level = {row.arm: round((row.accuracy.mean - low) / step) for row in rows}
    sizes = sorted({row.cache_measured for row in rows})
    letters = {row.arm: chr(ord("a") + i) for i, row in enumerate(rows)}
    for labels in ({row.arm: row.arm for row in rows}, letters):
        marks = {}  # (level, size) -> the labels that stand there
        for row in rows:
            marks.setdefault((level[row.arm], row.cache_measured), []).append(labels[row.arm])
        texts = {place: " ".join(found) for place, found in marks.items()}
        width = {
            n: max(len(f"{n:,}"), *(len(text) for (_, size), text in texts.items() if size == n))
            + 3
            for n in sizes
        }
        if 7 + sum(width.values()) <= console.width:
            break
    say(console, f"{cell.task}: accuracy against cache bytes a token", "bold")
    for i in reversed(range(height)):
        line = "".join(texts.get((i, size), "").center(width[size]) for size in sizes)
        say(console, f"{number(low + i * step, 2):>5} │{line}".rstrip())
    say(console, "      └" + "─" * sum(width.values()))
    say(
        console,
        "       " + "".join(f"{size:,}".center(width[size]) for size in sizes).rstrip() + " B",
    )
    if labels is letters:
        say(console, "  ".join(f"{letter}\u00a0{name}" for name, letter in letters.items()))
    console.print()


def ablation_table(console, cells):
    """One row a task and Q = K variant, one column an arm of the "+"."""
    arms = {"none": "{}", "full +": "{}+", "temperature only": "{}+temperature", "bias only": "{}+bias",
            "full +, from s₀ = −1": "{}+ (s₀ = -1)", "no +, diagonal masked": "{} (diagonal masked)"}  # fmt: skip
    rows = []
    for cell in cells:
        found = {row.arm: row.accuracy for row in cell.rows}
        for base in ("q=k-v", "q=k=v"):
            rows.append(
                [
                    f"{cell.task} {base}",
                    *(with_interval(found.get(form.format(base))) for form in arms.values()),
                ]
            )
    columns = [("", "left"), *((name.replace(", ", ",\n"), "right") for name in arms)]
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
