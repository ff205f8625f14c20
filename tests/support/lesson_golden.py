"""Key numbers of each lesson, kept in its golden.json.

`python tests/support/lesson_golden.py [NN ...]` writes them again.

Of each array that is shown: shape, sum, and a sum weighted by place, so that neither a value nor
the order can change unnoticed; of each prediction: its answer; of a roofline: its points.
"""

import json
import os
import sys
from tempfile import TemporaryDirectory

import numpy as np


def path_of(lesson):
    """Where the key numbers of a lesson are."""
    return lesson.path.with_name("golden.json")


def digest(events):
    """The key numbers of a lesson's events."""
    rows = []
    for event in events:
        if event["event"] in ("show", "heat"):
            numbers = [x for x in _leaves(event["values"]) if isinstance(x, (int, float))]
            values = np.array(numbers, float)
            weighted = float(values @ np.cos(np.arange(len(values))))
            rows.append([event["name"], event["shape"], float(values.sum()), weighted])
        elif event["event"] == "roofline":
            rows.append([event["title"], list(event["points"]), *event["points"].values()])
        elif event["event"] == "answer":
            rows.append(["answer", event["answer"]])
    return rows


def _leaves(value):
    if not isinstance(value, list):
        return [value]
    return [leaf for part in value for leaf in _leaves(part)]


def main(numbers):
    """Write the files of these lessons, or of all."""
    from minqkv.teach.author import events_of
    from minqkv.teach.lessons import course

    for lesson in course():
        if not numbers or lesson.number in numbers:
            rows = ",\n ".join(json.dumps(row) for row in digest(events_of(lesson)))
            path_of(lesson).write_text(f"[\n {rows}\n]\n", "utf-8")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:  # with the built-in text, whatever was fetched
        os.environ["MINQKV_CACHE"] = folder
        main([int(number) for number in sys.argv[1:]])
