"""Tables of the commands that only inform."""

from ..designs.models import GTA
from ..runtime.shown import counted
from .console import bytes_text, command, say, stdout, table

LONGEST = 60  # characters of an example of a task
STORED = "stored\nper token"
TEXTS = ("kind", "variant", STORED)  # columns of words


def variant_table(rows, cfg, config, context, dtype):
    """The paper's table, by the closed forms."""
    console = stdout()
    size = f"L {cfg.n_layer}  d {cfg.n_embd}  H {cfg.n_head}  f {cfg.d_ff}"
    title = f"{config}: {size}  V {cfg.vocab_size}  P {cfg.block_size}"
    columns = [
        ("variant", "left"),
        ("attention", "left"),
        ("parameters", "right"),
        ("10⁹ MACs\nfull n²", "right"),
        ("10⁹ MACs\ncausal", "right"),
        (f"cache per\ntoken, {dtype}", "right"),
        (f"cache at\n{counted(context, 'token')}", "right"),
        ("saved", "right"),
    ]
    lines = []
    for row in rows:
        macs = [row[name] / 1e9 for name in ("macs", "macs_causal")]
        macs = [f"{n:,.1f}" if n >= 1 else f"{n:.2g}" for n in macs]
        cache = [f"{row['cache_bytes_per_token']:,} B", bytes_text(row["cache_bytes_at_context"])]
        saved = f"{100 * row['reduction']:.6g} %" if row["reduction"] else "–"
        lines.append([row["name"], row["formula"], f"{row['params']:,}", *macs, *cache, saved])
    table(console, title, columns, lines)
    names = 'In a name "=" joins what is shared; the hyphen is not a minus sign.'
    symbols = 'α = 1/√d_h; head i reads stored head ⌊i/G⌋; s, g: what "+" learns.'
    macs = f"MACs: multiply-accumulates of a prefill of {counted(context, 'token')}."
    say(console, f"{names} {symbols} {macs}")


def model_table(report):
    """What each kind of layers of a published model keeps; see Published.report."""
    heads = ["kind", "layers", "variant", STORED, "rows\nkept"]
    lines = []
    for kind in report["kinds"]:
        stored = _stored(kind) + f" per {kind['ratio']}" * (kind["ratio"] > 1)
        what = [kind["kind"], str(kind["layers"]), kind["variant"], stored, f"{kind['rows']:,}"]
        lines.append([*what, *_both(kind), f"{kind['bytes_per_token_and_layer']:,} B"])
    lines.append(["all", str(report["n_layer"]), "", "", "", *_both(report), ""])
    console = _published(report, heads, lines, "per token\nand layer")
    needed, released = (report[f"{w}bytes_per_further_token"] for w in ("", "released_"))
    more = f"; as released, {released:,} B" if released != needed else ""
    say(console, f"Each further token adds {needed:,} B{more}.")
    _sources(console, report)


def replaced_table(reports):
    """A published model as it is, then with each of some variants in place of its own design."""
    own, replaced = reports[0], [kind for kind in reports[0]["kinds"] if kind["grows"]]
    lines = []
    for report in reports:
        stored = next(_stored(kind) for kind in report["kinds"] if kind["grows"])
        name = report["variant"] or f"{replaced[0]['variant']}, its own"
        share = f"{100 * report['bytes'] / own['bytes']:.6g} %"
        adds = f"{report['bytes_per_further_token']:,} B"
        needed, released = _both(report)
        known = report["kinds"] == own["kinds"] or GTA in report["notes"]  # else nobody released it
        lines.append([name, stored, adds, needed, released if known else "–", share])
    heads = ["variant", STORED, "a further\ntoken adds"]
    console = _published(own, heads, lines, "share of\nits own")
    layers = " and ".join(f"{kind['layers']} {kind['kind']}" for kind in replaced)
    say(console, f"Replaced: the design of the {layers} layers, of {own['n_layer']} in all.")
    _sources(console, *reports)


def _published(report, heads, lines, last):
    """The table, with the cache before its last column; returns the console."""
    console, (dtype, name) = stdout(), (report["dtype"], report["title"])
    heads = [*heads, f"cache,\n{dtype}", "as\nreleased", last]
    columns = [(head, "left" if head in TEXTS else "right") for head in heads]
    table(console, f"{name}, {counted(report['context'], 'token')}", columns, lines)
    return console


def _stored(kind):
    """Arrays as text: heads × width of each."""
    return " + ".join(f"{heads}×{width}" for heads, width in kind["stored"]) or "–"


def _both(figures):
    """Bytes as the design needs them, and as the released software stores them."""
    return [bytes_text(figures[key], 4) for key in ("bytes", "released_bytes")]


def _sources(console, *reports):
    """What is not obvious in the figures of a published model, and where its sizes are from."""
    say(console, f"As released: {reports[0]['software']}.")
    for note in dict.fromkeys(note for report in reports for note in report["notes"]):
        say(console, note)
    for source in reports[0]["sources"]:
        command(console, f"Sizes: {source}")


def task_table(rows):
    """Tasks with examples."""
    columns = [("task", "left"), ("target", "left"), ("example", "left")]
    lines = []
    for row in rows:
        example = "even lengths only"
        if row["input"]:
            example = f"{_digits(row['input'])} → {_digits(row['target'])}"
        if len(example) > LONGEST:
            example = f"{_digits(row['input'])} → an answer for each"
        lines.append([row["name"], row["about"], example])
    table(stdout(), None, columns, lines)


def _digits(row):
    """Ids as text; those at the same position are joined by a plus."""
    return " ".join("+".join(map(str, v)) if isinstance(v, list) else str(v) for v in row)


def check_table(rows):
    """Gradient checks."""
    columns = [("backward of", "left"), ("relative error", "right"), ("", "left")]
    lines = []
    for row in rows:
        error = "–" if row["error"] is None else f"{row['error']:.1e}"
        lines.append([row["name"], error, "ok" if row["ok"] else row["fault"]])
    table(stdout(), None, columns, lines)


def law_table(name, laws):
    """The laws of caches, as `by_law` gives them; for each broken law, the first case found."""
    columns = [("law", "left"), ("worst error", "right"), ("bound", "right"), ("", "left")]
    lines = []
    for law in laws:
        error = "–" if law["error"] is None else f"{law['error']:.1e}"
        broken = f"broken in {law['broken']} of {law['cases']} cases"
        lines.append([law["name"], error, f"{law['bound']:.0e}", "ok" if law["ok"] else broken])
    console = stdout()
    table(console, name, columns, lines)
    for law in laws:
        if not law["ok"]:
            say(console, f"{law['name']}: {law['found']}")


def vector_table(name, rows, printed):
    """A function's results on vectors, as `compare.named` gives them: how many, the first that
    differs, and the causes.
    """
    from ..analysis.vectors.known import EXPLAINED

    console, states = stdout(), ("ok", "differs", "fault", "not done")
    lines, groups = [], {}
    for row in rows:
        level = row["case"].split("/")[0].replace("shipped", "layer")
        level = "kernel" if level == "kernel" else "layer"
        what = f"{level}, {row['task']}"
        groups.setdefault((what, row["dtype"]), []).append(row["state"])
    for (what, dtype), found in groups.items():
        lines.append([what, dtype, *[str(found.count(state)) for state in states]])
    heads = [("cases", "left"), ("dtype", "left"), *[(state, "right") for state in states]]
    table(console, name, heads, lines)
    wrong = [row for row in rows if row["state"] == "differs"]
    for row in wrong[:1]:
        say(console, f"First, {row['case']} ({row['task']}, {row['dtype']}): {row['text']}.")
    causes = [row["cause"] for row in wrong]
    for cause in dict.fromkeys(causes):
        share = f"{causes.count(cause)} of {len(wrong)} that differ"
        text = f"{cause}: {EXPLAINED[cause]}" if cause else "no known mistake"
        say(console, f"Likely cause of {share}: {text}." if cause else f"{share}: {text}.")
    faults = {row["text"]: row for row in reversed(rows) if row["state"] == "fault"}
    for text, row in reversed(faults.items()):
        times = counted(sum(row.get("text") == text for row in rows), "call")
        say(console, f"{row['case']} ({row['task']}, {row['dtype']}): {text}; so in {times}.")
    if printed:
        say(console, "The function prints; its output is not shown.")
    if not {"ok", "differs", "fault"} & {row["state"] for row in rows}:
        say(console, "The function computed no case: it returned None for all.")
