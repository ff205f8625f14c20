"""A study's tables, picture and lines, from finished summaries."""

import math

from ..runtime.shown import decimal
from ..study import stats
from ..study.beside import changes
from ..study.grid import ONLY_K
from ..study.paper import of_same_data
from ..variants import VariantSpec
from .console import say, table
from .figures import Panel, Series, learning_curves
from .figures import figure as svg_figure

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
    small = abs(value) < 10**-digits
    text = f"{value:.{digits}f}" if small else decimal(value, digits)
    return text[1:] if text.startswith("0.") else text


def with_interval(estimate, sign=False, digits=3):
    """ "mean ± half"; the half is "–" for a single seed."""
    if estimate is None:
        return "–"
    mean = number(abs(estimate.mean), digits)
    prefix = "" if not sign or float(mean) == 0 else "−" if estimate.mean < 0 else "+"
    return f"{prefix}{mean} ± {number(estimate.half, digits)}"


def with_sign(difference, relative):
    """A difference with its interval; a relative one is in per cent."""
    if not relative or difference is None:
        return with_interval(difference, sign=True)
    percent = stats.Estimate(100 * difference.mean, 100 * difference.half, difference.n)
    return f"{with_interval(percent, sign=True, digits=2)} %"


def change(value, relative):
    """ "+.003", or "+3.1 %" of a relative one; "–" where there is none."""
    if value is None:
        return "–"
    sign = "+" if value > 0 else "−" if value < 0 else ""
    size = f"{number(abs(100 * value), 1)} %" if relative else number(abs(value))
    return f"{sign}{size}"


def cell_tables(console, cell, note):
    """One task: scores, what they cost, and what this many seeds cannot show. Columns that would be
    empty are left out.
    """
    columns = [
        ("variant", "left"),
        (f"{cell.metric}\n95 % interval", "right"),
        ("each seed", "left"),
    ]
    digits = 2 if cell.relative else 3  # 7.22, .714
    filled = [
        [row.arm, with_interval(row.score, digits=digits), _each(row, digits)] for row in cell.rows
    ]

    def add(header, values, side="right"):
        if any(value != "–" for value in values):
            columns.append((header, side))
            for line, value in zip(filled, values, strict=True):
                line.append(value)

    rows = cell.rows
    if cell.solved_from is not None:
        sign = "≥" if cell.better == "higher" else "≤"
        solved = ["–" if row.lifted else f"{row.solved}/{len(row.by_seed)}" for row in rows]
        add(f"solved\n{sign} {number(cell.solved_from, 2)}", solved)
    add("steps to\nlearn it", [_steps(row, cell.size["steps"]) for row in rows])
    of = "against" if cell.relative else "minus"
    add(f"{of} {cell.baseline},\npaired, 95 % interval", [_against(row, cell) for row in rows])
    add("published\nmean ± sd", [_published(row) for row in rows])
    where, figures = of_same_data(cell)
    sources = tuple(dict.fromkeys(source for of in figures.values() for source in of))
    what = "published change" if cell.relative else "published"
    add(f"{what},\n{' / '.join(sources)}", [_of_paper(row, cell, figures, sources) for row in rows])
    rates = [f"{row.lr:g}{' !' if row.at_the_edge else ''}" for row in rows]
    chosen = any(row.lr_was_chosen for row in rows)
    add("learning\nrate", rates if chosen or len(set(rates)) > 1 else [])
    add("parameters", [f"{row.params:,}" for row in rows])
    add("cache\nB/token", [f"{row.cache_measured:,}" for row in rows])
    if any(row.cache_measured != row.cache_formula for row in rows):
        add("by formula", [f"{row.cache_formula:,}" for row in rows])
    add("bits per\nbyte", [number(row.bits_per_byte and row.bits_per_byte.mean) for row in rows])
    speeds = [row.tokens_per_second for row in rows]
    add("tokens/s,\ntraining", ["–" if speed is None else f"{speed:,.0f}" for speed in speeds])
    table(console, cell.title, columns, filled)
    say(console, note)
    if figures:
        what = "One number each, without an interval, of other models with more data. Compare only "
        say(console, f"Published: {where}. {what}which variants are better or worse.")
    if any(speeds):
        say(console, "tokens/s: the median run on the machine of this study, scoring included.")
    if any(row.at_the_edge for row in rows):
        edge = "! the best rate is at the edge of the list: a rate beyond it might be better."
        say(console, edge)
    console.print()


def _each(row, digits):
    values = row.by_seed.values()
    return " ".join("diverged" if value is None else number(value, digits) for value in values)


def _steps(row, budget):
    """The median of the steps until the task was learned, and how many seeds learned it."""
    if not row.reached:
        return "–"
    middle, learned = stats.median_steps(list(row.reached.values()), budget)
    middle = f"> {budget:,}" if middle is None else f"{middle:,.0f}"
    return f"{middle} ({learned}/{len(row.reached)})"


def _against(row, cell):
    if row.to_baseline is None:
        return "–"
    style = _difference_style(row.to_baseline, cell.better)
    return (with_sign(row.to_baseline, cell.relative), style)


def _published(row):
    if row.published is None:
        return "–"
    return f"{number(row.published.mean)} ± {number(row.published_spread)}"


def _of_paper(row, cell, published, sources):
    """What the paper has of an arm that is a plain variant: a figure by each source, or, with
    `relative`, its change from qkv.
    """
    figures = published.get(row.variant, {}) if row.arm == row.variant else {}
    if cell.relative:
        found = changes(row.variant, published, relative=True) if figures else {}
        figures = {source: change(value, relative=True) for source, value in found.items()}
    return " / ".join(figures.get(source, "–") for source in sources) if figures else "–"


def _difference_style(estimate, better):
    if not estimate.clear_of_zero:
        return ""
    return "green" if (estimate.mean > 0) == (better == "higher") else "red"


def memory_table(console, cells):
    """Memory of one training step, for each task and arm."""
    rows = []
    for cell in cells:
        alone = not cell.equal and [each.task for each in cells].count(cell.task) == 1
        for row in (row for row in cell.rows if row.memory):
            m = row.memory
            parts = [m[name] for name in ("weights", "gradients", "moments", "activations")]
            by_formula = m["activations_formula"]
            texts = [f"{n / 1e3:,.0f}" for n in (*parts, sum(parts))]
            texts.append("–" if by_formula is None else f"{by_formula / 1e3:,.0f}")
            rows.append([f"{cell.task if alone else name_of(cell)}: {row.arm}", *texts])
    columns = [
        ("task and arm", "left"),
        ("weights", "right"),
        ("gradients", "right"),
        ("moments", "right"),
    ]
    columns += [("activations", "right"), ("all", "right"), ("activations\nby formula", "right")]
    if rows:
        title = "Memory of one training step, in kB (1,000 bytes), measured"
        table(console, title, columns, rows)


def formulas(console, cells, itemsize):
    """What the names mean, once for all tables."""
    rows = dict.fromkeys((row.variant, row.formula) for cell in cells for row in cell.rows)
    title = 'What each variant computes ("=" joins what is shared; the hyphen is not a minus sign)'
    columns = [("variant", "left"), ("attention", "left")]
    table(console, title, columns, [list(pair) for pair in rows])
    cache = f"Cache: measured on a filled cache, {itemsize} bytes per number; equal to the formula."
    encoder = "An encoder has no cache; the figures are for a decoder with the same attention."
    say(console, f"{cache} {encoder}")
    say(console, "α = 1/√d_h; head i reads stored head ⌊i/G⌋; s and g are learned.")
    console.print()


def picture(console, title, what, metric, series, height=11):
    """The score upwards, cache bytes to the right, a column for each distinct size; nothing where
    there is only one. A point lies in the row whose value it reaches: a picture must not flatter.

    Variants are named where the names fit, otherwise lettered, with a key below.
    """
    points = [(s.name, x, mean) for s in series if not s.hollow for x, mean, *_ in s.points]
    if len({x for _, x, _ in points}) < 2:
        return
    high = math.ceil(max(mean for *_, mean in points) * 20) / 20
    low = min(high - 0.1, math.floor(min(mean for *_, mean in points) * 20) / 20)
    step = (high - low) / (height - 1)
    places = [(name, (math.floor((mean - low) / step + 1e-9), x)) for name, x, mean in points]
    names = {name: name for name, _ in places}
    letters = {name: chr(ord("a") + i) for i, name in enumerate(names)}
    for labels in (names, letters):
        marks, width = _marks(places, labels)
        if 7 + sum(width.values()) <= console.width:
            break
    say(console, f"{title}: {metric} against {what.partition(' (')[0]}", "bold")
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
    for name, place in places:
        marks.setdefault(place, []).append(labels[name])
    marks = {place: " ".join(found) for place, found in marks.items()}
    width = {}
    for size in sorted({size for _, size in marks}):
        texts = [text for (_, n), text in marks.items() if n == size]
        width[size] = max(map(len, [f"{size:,}", *texts])) + 3
    return marks, width


def claims_table(console, found):
    """Contrasts that were planned, and what may be said of each."""
    columns = [("contrast", "left"), ("difference\n95 % interval", "right"), ("p", "right")]
    columns += [("p, corrected\nby Holm", "right"), ("verdict", "left")]
    rows = []
    for finding in found:
        of = "against" if finding.relative else "minus"
        what = f"{finding.cell}: {finding.arm} {of} {finding.against}"
        p_values = [number(finding.p, 4), number(finding.p_adjusted, 4)]
        shown = with_sign(finding.difference, finding.relative)
        rows.append([what, shown, *p_values, finding.verdict])
    table(console, "Planned contrasts (exact sign-flip tests, paired by seed)", columns, rows)


# ---- figures


def figure(cells, columns=2):
    """Score against bytes: a curve for each kind of arm where tables are at equal bytes, else a
    point for each variant. SVG text.
    """
    panels, whole = [], any(cell.equal for cell in cells)
    for title, what, metric, series in _groups(cells):
        limits = (0, 1) if whole and metric == "accuracy" else None
        panels.append(Panel(title, what, metric, series, x_log=True, y_range=limits))
    n = sorted({len(row.by_seed) for cell in cells for row in cell.rows})
    seeds = f"{n[0]} to {n[-1]} seeds" if len(n) > 1 else f"{n[0]} seed{'s' if n[0] > 1 else ''}"
    caption = f"Means of {seeds}. {_control(cells)}".rstrip()
    columns = min(columns, len(panels))
    return svg_figure("Score against cache bytes", panels, columns, caption) if panels else ""


def groups(cells):
    """(title, what is to the right, its cells) of each panel: a table, or all tables of a task at
    equal bytes.
    """
    found = {}
    for cell in cells:
        single = not _by_bytes(cell)
        name = cell.title if single else _with(cell.task, cell)
        found.setdefault((name, single), []).append(cell)
    for (title, single), of in found.items():
        # Panels whose labels differ have their own axes.
        yield title, "cache bytes per token" if single else f"B per token and layer ({title})", of


def _groups(cells):
    """(title, what is to the right, metric, Series) of each panel."""
    for title, what, found in groups(cells):
        if series := series_of(found):
            yield title, what, found[0].metric, series


def series_of(cells):
    """The Series of a panel: a point for each arm, or curves of arms at equal bytes."""
    return _curves_of_arms(cells) if _by_bytes(cells[0]) else _points(cells)


def _control(cells):
    """How far the lifted models are from the ones that were trained."""
    pairs = []
    for cell in cells:
        rows = {row.arm: row for row in cell.rows}
        for row in (row for row in cell.rows if row.lifted):
            trained = rows[row.arm.partition(", lifted")[0]].by_seed
            pairs += [abs(v - trained[s]) for s, v in row.by_seed.items() if v is not None]
    if not pairs:
        return ""
    control = "In its form with K = V (lifted), a trained model scores what it scored"
    return f"{control} (largest difference {max(pairs):.2g})."


def _point(row, x):
    half = None if math.isnan(row.score.half) else row.score.half
    return x, row.score.mean, half, tuple(v for v in row.by_seed.values() if v is not None)


def _points(cells):
    series = []
    for row in (row for cell in cells for row in cell.rows if row.score and not row.lifted):
        series.append(Series(row.arm, (_point(row, row.cache_measured),), line=False))
        if row.published:
            published = (row.cache_measured, row.published.mean, None, ())
            series.append(Series(row.arm, (published,), line=False, hollow=True))
    return tuple(series)


def _curves_of_arms(cells):
    """Arms that differ only in their bytes form one curve."""
    curves = {}
    for cell in cells:
        for row in cell.rows:
            if row.score and not row.lifted:
                curves.setdefault(_kind(row, cells), []).append(_point(row, cell.equal["bytes"]))
    return tuple(Series(name, tuple(points)) for name, points in curves.items())


def _kind(row, cells):
    """The name of an arm without the width of its heads and without what all arms share."""
    rows = [other for cell in cells for other in cell.rows]
    parts = [row.variant]
    if len({r.settings["n_head"] for r in rows if r.variant == row.variant}) > 1:
        parts.append(f"H {row.settings['n_head']}")
    parts += [ONLY_K] if row.arm.endswith(ONLY_K) else []
    values = {_positions(r) for r in rows if r.variant == row.variant}
    return ", ".join([*parts, _positions(row)] if len(values) > 1 else parts)


def _positions(row):
    """The position scheme; with K = V under rope, what is stored."""
    shared = any(spec.streams == 1 for spec in map(VariantSpec.parse, row.variant.split("/")))
    position = row.settings["position"]
    return row.settings["rope_value"] if position == "rope" and shared else position


def curves(cells, records, columns=2):
    """How each run learned, with a panel for each table: the watched validation score, or the
    training loss. SVG text.
    """
    panels = []
    for cell in cells:
        rows = [row for row in cell.rows if not row.lifted]
        watched = any(records[h]["curve"] for row in rows for h in row.runs)
        same_task = [other for other in cells if other.task == cell.task]
        series = []
        for row in rows:
            found = [(_curve(records[h], watched), records[h]["reached"]) for h in row.runs]
            runs = [(_until(run, goal), goal is not None) for run, goal in found if run]
            if runs:
                name = _kind(row, same_task) if cell.equal else row.arm
                series.append(learning_curves(name, *zip(*runs, strict=True)))
        if series:
            what = f"validation {cell.metric}" if watched else "training loss"
            title = name_of(cell)
            limits = (0, 1) if watched and cell.equal and cell.metric == "accuracy" else None
            steps = f"steps ({cell.task})"
            panels.append(Panel(title, steps, what, tuple(series), y_range=limits))
    columns = min(columns, len(panels))
    return svg_figure("How the runs learned", panels, columns) if panels else ""


def name_of(cell):
    """A table in a few words: its task and bytes; otherwise its title."""
    return _with(f"{cell.task}, {cell.equal['bytes']} B", cell) if _by_bytes(cell) else cell.title


def _with(name, cell):
    return f"{name}  {cell.apart}" if cell.apart else name


def _by_bytes(cell):
    return cell.equal is not None and "bytes" in cell.equal


def _until(run, goal):
    """A curve up to where the task was learned."""
    return [point for point in run if goal is None or point[0] <= goal]


def _curve(record, watched):
    """(steps, validation score), or (steps, mean training loss); empty for a run that diverged."""
    if watched or record["score"] is None:
        return record["curve"]
    part = record["config"]["recipe"]["steps"] / max(1, len(record["losses"]))  # 0.1.0 kept none
    return [(round((i + 1) * part), loss) for i, loss in enumerate(record["losses"])]


def ablation_table(console, cells):
    """A row for each task and Q = K variant, a column for each arm of the "+"."""
    rows = []
    for cell in cells:
        found = {row.arm: row.score for row in cell.rows}
        for base in ("q=k-v", "q=k=v"):
            estimates = [with_interval(found.get(name.format(base))) for name in ARMS.values()]
            rows.append([f"{cell.task} {base}", *estimates])
    columns = [("task and variant", "left"), *((heading, "right") for heading in ARMS)]
    table(console, 'What the "+" does: token accuracy, mean and 95 % interval', columns, rows)


def study(console, cells, notes, itemsize, found=(), ablate=False):
    """The whole report."""
    if ablate:
        ablation_table(console, cells)
    for cell, note in zip(cells, notes, strict=True):
        cell_tables(console, cell, note)
    if found:
        claims_table(console, found)
    memory_table(console, cells)
    for group in _groups(cells):
        picture(console, *group)
    formulas(console, cells, itemsize)
