"""Our committed results in short, for `minqkv paper` of an installed package.

    python -m bench.ours        # writes minqkv/study/published/ours.csv from bench/results

Results of recall are left out: the paper has none.
"""

import csv
import io

from minqkv.runtime.files import write_text
from minqkv.study.measured import IN_SHORT, as_rows, committed
from minqkv.tasks.rules import RECALL


def in_short():
    """The text of ours.csv."""
    found = {c: one for c, one in committed().items() if c.task.name not in RECALL}
    rows, text = as_rows(found), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    write_text(IN_SHORT, in_short())
