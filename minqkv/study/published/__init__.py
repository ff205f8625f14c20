"""The authors' own results, one row a run: variant, task, seq_len, n_embd, n_layer, n_head, seed,
accuracy.

synthetic_2026.csv: the synthetic sweep of protocol 2026, 3,240 runs, from the repository of the
paper's authors (Brainchip-Inc/Do-Transformers-Need-3-Projections, MIT licence, BrainChip Inc.).
"""

import csv
from functools import lru_cache
from pathlib import Path


@lru_cache
def synthetic_2026():
    """(variant, task, seq_len, n_embd, n_layer, n_head) -> accuracies by seed."""
    table = {}
    with open(Path(__file__).with_name("synthetic_2026.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            dims = tuple(int(row[name]) for name in ("seq_len", "n_embd", "n_layer", "n_head"))
            table.setdefault((row["variant"], row["task"], *dims), []).append(
                float(row["accuracy"])
            )
    return table
