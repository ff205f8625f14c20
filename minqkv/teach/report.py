"""What a check reports: lines of JSON, [passed, events], of which the last whole one counts.

They come from a process in which a learner's code runs, and anything may be in them. Only what
`written` could have written is believed.
"""

import json
from math import isfinite

BEGIN = b"\n"  # the learner's code runs from now on
LARGEST = 1 << 20  # bytes
TEXT = 4000  # characters of a string; more is cut off
STYLES = ("", "good", "bad", "strong")
_FIELDS = {
    "say": {"text": str, "style": str},
    "code": {"source": str, "line": int},
    "prose": {"text": str},
    "show": {
        "name": str, "shape": list, "dtype": str, "values": object, "rows": type(None),
        "columns": type(None), "digits": int,
    },
}  # fmt: skip


def written(passed, events):
    """The line of a report."""
    return json.dumps(_cut([passed, events])).encode() + b"\n"


def _cut(value):
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(item) for item in value]
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 64 else "an integer of many digits"
    return (value if isinstance(value, str) else repr(value))[:TEXT]


def read(data):
    """(passed, events), or None if these bytes are not a report. No text in it can make a terminal
    do anything but print it.
    """
    try:
        line = data.split(b"\n")[-2]  # what follows the last line's end is not whole
        passed, events = json.loads(line, parse_constant=_refuse)
        sound = len(data) <= LARGEST and type(passed) is bool and all(map(_sound, events))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return (passed, clean(events)) if sound else None


def _refuse(name):
    raise ValueError(f"{name} is not JSON")


def _sound(event):
    fields = _FIELDS[event["event"]]
    typed = all(_is(event[name], kind) for name, kind in fields.items())
    known = event.keys() == {"event", *fields} and event.get("style", "") in STYLES
    shaped = event["event"] != "show" or _shaped(event["values"], event["shape"])
    return typed and known and shaped and event.get("digits", 4) == 4


def _is(value, kind):
    return kind is object or (type(value) is kind and (kind is not str or len(value) <= TEXT))


def _shaped(values, shape):
    """Whether these are numbers, or words for numbers, of this shape."""
    if shape:
        size, *inner = shape
        fits = type(values) is list and type(size) is int and len(values) == size
        return fits and all(_shaped(value, inner) for value in values)
    if type(values) is float:
        return isfinite(values)
    return values is None or isinstance(values, (bool, int)) or _is(values, str)


def clean(value):
    """The same without characters that a terminal would obey."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value)
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value
