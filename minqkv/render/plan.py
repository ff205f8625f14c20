"""Tables of `minqkv plan`: what fits, the authors' advice, and the frontier of a study."""

from ..designs.models import MODELS
from ..runtime.shown import counted
from ..study.quality import places
from ..study.stats import Estimate
from .console import bytes_text, command, say, stdout, table
from .figures import Panel, Series
from .figures import figure as svg_figure
from .study import groups, picture, series_of, with_interval, with_sign

NOT = "not measured"
SPEED = (
    "Tokens/s: of all sequences together, if each step reads weights and cache once at this "
    "bandwidth and adds one token to each. Nothing else is counted, so a program is slower."
)


def plan_table(report, positions, given):
    """What each variant needs, what fits, and what is known of its quality; see quality.plan.
    `positions`: how many were learned, or None. `given`: whether the bytes of weights were.
    """
    console, name = stdout(), report["model"]
    memory, bandwidth = report["memory"], report["bandwidth"]
    columns = [("variant and\ncache", "left"), ("bytes\nper token", "right")]
    columns += [("cache", "right"), ("cache and\nweights", "right")]
    columns += [("longest\ncontext", "right"), ("largest\nbatch", "right")] if memory else []
    columns += [("tokens/s\nat most", "right")] if bandwidth else []
    columns += [("change of\nperplexity", "right")]
    lines = []
    for row in report["rows"]:
        line = [row["name"], _count(row["bytes_per_token"])]
        line += [bytes_text(row[key], 4) for key in ("cache_bytes", "bytes")]
        fits = ("longest_context", "largest_batch") if memory else ()
        line += [_count(row[key]) for key in fits]
        line += [_speed(row["tokens_per_second"])] if bandwidth else []
        lines.append([*line, _change(row["change"])])
    title = [_title(name, report)]
    title += [f"memory {_decimal(memory)} ({bytes_text(memory, 4)})"] if memory else []
    title += [f"{_decimal(bandwidth)}/s"] if bandwidth else []
    table(console, "; ".join(title), columns, lines)
    for line in [*_advice(report), *_measured(report)]:
        say(console, line)
    weights = "Weights as given." if given else "Weights in bf16, two bytes each."
    say(console, f"{weights} Not counted: activations, and what the software needs.")
    _warn_of_positions(console, report, positions)
    if name in MODELS:
        cache = "Caches as the designs need them; what software stores, and sources:"
        say(console, f"{cache} minqkv variants --model {name}")
    if bandwidth:
        say(console, SPEED)


def _warn_of_positions(console, report, positions):
    if positions is not None and report["context"] > positions:
        say(console, f"This model has {positions:,} learned positions; it cannot read more.")


def _title(name, report):
    tokens, sequences = counted(report["context"], "token"), counted(report["batch"], "sequence")
    return f"{name}: {tokens}, {sequences}"


def _advice(report):
    """What fits, and which of these no other beats."""
    rows, fit = {row["name"]: row for row in report["rows"]}, report["fit"]
    if report["memory"]:
        yield f"{fit} of {len(rows)} fit into the memory."
    if not fit:
        return
    best = [f"{name} ({_change(rows[name]['change'])})" for name in report["unbeaten"]]
    if best:
        among = "that fit and were measured" if report["memory"] else "that were measured"
        yield f"Of those {among}, no other is both as small and as good as: {', '.join(best)}."
    smallest = report["smallest"]
    yield f"The smallest: {smallest} ({_change(rows[smallest]['change'])})."


def _measured(report):
    """What models the changes of perplexity are from."""
    heads, there = report["heads"], report["heads_measured"]
    yield f"Change of perplexity from qkv, with its 95 % interval: {report['scale']}."
    if heads != there and any(row["change"] and "mqa" in row["name"] for row in report["rows"]):
        yield f"There, one head of mqa serves {there} query heads; here it serves {heads}."


def _change(measured):
    """What was measured of the cost in quality, as text."""
    if measured is None:
        return NOT
    change = Estimate(**measured)
    return with_sign(change, relative=True) if change.mean or change.half else "baseline"


def _count(n):
    return n if n == "any" else f"{n:,}" if n == int(n) else f"{n:,.1f}"


def _speed(n):
    return f"{n:,.0f}" if n >= 10 else f"{n:.2g}"


def _decimal(n):
    """Bytes in powers of ten, as memory is sold: 8 GB, 3.35 TB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.6g} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


# ---- the authors' advice


def deployment_table(report, positions):
    """The authors' advice: their figures beside ours, and what it means on a device."""
    console, rows = stdout(), report["rows"]
    columns = [("for", "left"), ("variant", "left"), ("cache saved,\ntalk", "right")]
    columns += [("ours", "right"), ("perplexity,\ntalk", "right"), ("their\nTable 4", "right")]
    columns += [("ours, small\nmodels", "right")]
    lines = []
    for row in rows:
        saved = [f"{row['saved_published']} %", f"{row['saved']:.6g} %"]
        theirs = [f"{row['change']} %", f"{_of_table(row)} %"]
        lines.append([row["name"], row["variant"], *saved, *theirs])
        lines[-1].append(_change(row["change_measured"]))
    table(console, "Which variant for which device: the authors' advice", columns, lines)
    say(console, f"The talk: {report['where'].partition(': ')[0]}.")
    for what, differ in (
        ("Another share of the cache is saved here", lambda r: _rounded(r) != r["saved_published"]),
        ("In perplexity, the talk differs from Table 4", lambda r: _of_table(r) != r["change"]),
    ):
        if names := [row["variant"] for row in rows if differ(row)]:
            say(console, f"{what}: {', '.join(names)}.")
    say(console, f"Ours: {report['scale']}.")
    console.print()
    _devices(console, report)
    _warn_of_positions(console, report, positions)


def _of_table(row):
    """The change of perplexity in the paper's own table, in per cent."""
    return f"{100 * row['change_in_its_table']:+.1f}"


def _rounded(row):
    """Our share to as many decimals as were printed."""
    return f"{row['saved']:.{len(row['saved_published'].partition('.')[2])}f}"


def _devices(console, report):
    columns = [("for", "left"), ("device", "left"), ("memory", "right"), ("bandwidth", "right")]
    columns += [("cache per\ntoken", "right"), ("cache and\nweights", "right")]
    columns += [("longest\ncontext", "right"), ("largest\nbatch", "right")]
    columns += [("tokens/s\nat most", "right")]
    lines = []
    for row in report["rows"]:
        device = report["devices"][row["device"]]
        line = [row["name"], row["device"], _decimal(device["memory"])]
        line += [f"{_decimal(device['bandwidth'])}/s", f"{row['bytes_per_token']:,} B"]
        line += [bytes_text(row["bytes"], 4), _count(row["longest_context"])]
        lines.append([*line, f"{row['largest_batch']:,}", _speed(row["tokens_per_second"])])
    table(console, f"On devices, {_title(report['model'], report)}", columns, lines)
    say(console, "Which device stands for which advice is our reading.")
    say(console, SPEED)
    for name, device in report["devices"].items():
        say(console, f"{name}: {device['title']}.")
        for source in device["sources"]:
            command(console, f"  {source}")


# ---- the frontier of a study


def frontier_tables(cells):
    """A table and a picture for each group of tables that may be compared: which arm no other
    beats.
    """
    console = stdout()
    for title, what, found in groups(cells):
        metric, relative = found[0].metric, found[0].relative
        columns = [("arm", "left"), (f"B per token{' and layer' * bool(found[0].equal)}", "right")]
        columns += [(f"{metric}\n95 % interval", "right"), ("beaten by", "left")]
        columns += [("difference\nfrom that", "right")]
        lines = []
        for place in places(found):
            score = with_interval(place.row.score, digits=2 if relative else 3)
            beaten = place.beaten_by.arm if place.beaten_by else ("none", "bold")
            off = with_sign(place.difference, relative) if place.beaten_by else ""
            lines.append([place.row.arm, f"{place.size:,}", score, beaten, off])
        table(console, title, columns, lines)
        picture(console, title, what, metric, series_of(found))
    better = "Beaten by: the best arm that has no more bytes and a better mean."
    say(console, f"{better} Where the interval contains zero, the two cannot be told apart.")


def frontier_figure(cells, columns=2):
    """Score against bytes, with a line through the arms that no other beats, as SVG text."""
    panels = []
    for title, what, found in groups(cells):
        front = [place for place in places(found) if place.beaten_by is None]
        points = tuple((place.size, place.row.score.mean, None, ()) for place in front)
        line = Series("frontier", points, marked=False)
        series = (*series_of(found), line)
        panels.append(Panel(title, what, found[0].metric, series, x_log=True))
    caption = "The frontier joins the arms that no other arm beats in quality and bytes."
    return svg_figure("Quality against bytes", panels, min(columns, len(panels)), caption)
