"""How a training step grows with T, d, L and B: `python -m bench.scale`.

One of them at a time is doubled, the others stay. Time grows as x to the fitted exponent; the
exponent of the last doubling is shown beside it, because small sizes are all overhead. Memory is
the traced peak of a step. A decoded token is fitted against its context. What grows faster than it
should is marked. All of it on one thread.
"""

import tracemalloc

import minqkv as mq

from .caches import decoding, filled
from .common import exponent, interleaved, median, progress, run, table
from .sizes import Size

BASE = Size(64, 128, 128, 2, 4, 4)
DOUBLED = {
    "T": (64, 128, 256, 512, 1024),
    "d": (64, 128, 256, 512),
    "L": (1, 2, 4, 8),
    "B": (1, 2, 4, 8, 16),
}
QUICK = {"T": (16, 32, 64), "L": (1, 2)}
EXPECTED = {"T": 2, "d": 2, "L": 1, "B": 1, "context": 1}  # at most, for time and for memory
SLACK = 0.15


def measure(options):
    """One row for each thing that grows."""
    rounds = options.rounds or (2 if options.quick else 7)
    timing = {"least": 0, "rest": 0} if options.quick else {}
    base = BASE._replace(T=16, d=32) if options.quick else BASE
    rows = [
        grow(base, axis, values, rounds, timing)
        for axis, values in (QUICK if options.quick else DOUBLED).items()
    ]
    rows.append(
        contexts((64, 128) if options.quick else (512, 1024, 2048, 4096, 8192), rounds, timing)
    )
    summary = {
        row["axis"]: {"time": row["time_exponent"], "memory": row["memory_exponent"]}
        for row in rows
    }
    show(rows)
    return rows, summary


def grow(base, axis, values, rounds, timing):
    """Time and traced peak of a training step for each value of one axis."""
    progress(f"scale: {axis} = {', '.join(map(str, values))}")
    steps = {str(value): base._replace(**{axis: value}).step() for value in values}
    samples = interleaved(steps, rounds, **timing)
    return fitted(axis, values, samples, [traced_peak(step) for step in steps.values()]) | {
        "base": base
    }


def contexts(values, rounds, timing):
    """Time of a decoded token, and bytes of the cache, for each context."""
    progress(f"scale: context = {', '.join(map(str, values))}")
    steps, sizes = {}, []
    for value in values:
        size = BASE._replace(T=value, B=1)
        model = mq.GPT(size.config()).eval()
        cache = filled(model, size)
        steps[str(value)] = decoding(model, cache, size)
        sizes.append(cache.nbytes)
    return fitted("context", values, interleaved(steps, rounds, **timing), sizes) | {
        "base": BASE._replace(B=1)
    }


def traced_peak(step):
    """Bytes that NumPy asks for during a step, at most."""
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def fitted(axis, values, samples, memory):
    """A row: medians, and exponents over all values and over the last doubling."""
    times = [median(samples, str(value)) for value in values]
    row = {
        "axis": axis,
        "values": values,
        "ms": [1e3 * t for t in times],
        "bytes": memory,
        "samples": samples,
    }
    row |= {
        "time_exponent": exponent(values, times),
        "time_last": exponent(values[-2:], times[-2:]),
    }
    row |= {
        "memory_exponent": exponent(values, memory),
        "memory_last": exponent(values[-2:], memory[-2:]),
    }
    row["too_steep"] = max(row["time_last"], row["memory_last"]) > EXPECTED[axis] + SLACK
    return row


def show(rows):
    """The table."""
    lines = []
    for row in rows:
        first, last = row["values"][0], row["values"][-1]
        times = f"{row['ms'][0]:.2f} to {row['ms'][-1]:.2f}"
        sizes = f"{row['bytes'][0] / 1e6:.1f} to {row['bytes'][-1] / 1e6:.1f}"
        line = [row["axis"], f"{first} to {last}", times]
        line += [f"{row['time_exponent']:.2f}", f"{row['time_last']:.2f}", sizes]
        line += [f"{row['memory_exponent']:.2f}", f"{row['memory_last']:.2f}"]
        lines.append([*line, EXPECTED[row["axis"]], "!" if row["too_steep"] else ""])
    columns = ["", "from", "ms", "time ~ x^", "last", "MB", "memory ~ x^", "last", "at most", ""]
    table("Growth of a training step; of a decoded token with its context", columns, lines)


if __name__ == "__main__":
    run("scale", __doc__, measure, one_thread=True)
