"""Tables of the commands that only inform."""

from ..runtime.shown import counted
from .console import bytes_text, say, stdout, table

LONGEST = 60  # characters of an example of a task


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
