"""Key numbers of each lesson, kept in lesson_golden/NN_name.json: `python tests/lesson_golden.py
[NN ...]` writes them anew.

Of each array that is shown: shape, sum, and a sum weighted by place, so that neither a value nor an
order can change unseen; of each prediction: its answer.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
FOLDER = Path(__file__).with_name("lesson_golden")


def digest(events):
    """The key numbers of a lesson's events."""
    rows = []
    for event in events:
        if event["event"] in ("show", "heat"):
            values = np.array(
                [x for x in _leaves(event["values"]) if isinstance(x, (int, float))], float
            )
            weighted = float(values @ np.cos(np.arange(len(values))))
            rows.append([event["name"], event["shape"], float(values.sum()), weighted])
        elif event["event"] == "answer":
            rows.append(["answer", event["answer"]])
    return rows


def _leaves(value):
    return (
        [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]
    )


def main(numbers):
    """Write the files of these lessons, or of all."""
    from minqkv.teach.author import events_of
    from minqkv.teach.lessons import course

    FOLDER.mkdir(exist_ok=True)
    for lesson in course():
        if not numbers or lesson.number in numbers:
            rows = ",\n ".join(json.dumps(row) for row in digest(events_of(lesson)[0]))
            (FOLDER / f"{lesson.name}.json").write_text(f"[\n {rows}\n]\n", "utf-8")


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
