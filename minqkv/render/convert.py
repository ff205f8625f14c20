"""The table of `minqkv convert`."""

from ..runtime.shown import counted, decimal
from ..study.stats import estimate
from .console import say, stdout, table
from .study import with_interval


def show(report):
    """What each method loses, at once and after further training."""
    console, n, steps = stdout(), len(report["runs"]), report["steps"]
    before, after = report["bytes_per_token"]
    variant, to, metric = report["variant"], report["to"], report["metric"]
    columns = [("", "left"), ("method", "left"), (f"{metric}\nzero-shot", "right")]
    columns += [(f"after\n{counted(steps, 'step')}", "right")] * bool(steps)
    columns += [("cache per\ntoken", "right")]
    trained = f"after {counted(report['trained'], 'step')}"
    rows = [[variant, trained, _score(report["scores"]), *[""] * bool(steps), f"{before:,} B"]]
    for method, found in report["methods"].items():
        scores = [_score(found[name]) for name in ("zero_shot", "after") if found[name]]
        rows.append([to, method, *scores, f"{after:,} B"])
    seeds = f", {counted(n, 'run')}, 95 % intervals" if n > 1 else ""
    table(console, f"{report['task']}, {report['split']} split{seeds}", columns, rows)
    if steps:
        say(console, f"Trained further at a peak rate of {report['lr']:.2g}, a third of the run's.")


def _score(values):
    return with_interval(estimate(values)) if len(values) > 1 else decimal(values[0])
