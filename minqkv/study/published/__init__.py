"""The authors' own results.

synthetic_2026.csv: the synthetic sweep of protocol 2026, 3,240 runs, from the repository of the
paper's authors (Brainchip-Inc/Do-Transformers-Need-3-Projections, MIT licence, BrainChip Inc.). One
row a run: variant, task, seq_len, n_embd, n_layer, n_head, seed, accuracy.

language_models.csv: the language models with 300M parameters, validation perplexity per GPT-2
token, one seed each. `padded` is the paper's table (arXiv 2606.04032, section 5; SlimPajama), which
counts padding as text. `masked` does not count padding: it is from the authors' own later models of
the same size, on FineWeb-Edu.

paper.csv: the other numbers of the paper and its authors, as printed: table, group, row, source,
value. Its sources: "paper", arXiv 2606.04032; "re-run", the same experiments in the repository of
the authors, 2026; "later", their later models and scripts; "code", an analysis in the repository;
"talk", the slides of their talk; "zero-shot" and "distilled", their conversions. paper.toml
says what the tables are, and how ours are found.

ours.csv: our committed results in short; see minqkv/study/measured.py.
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


def language_models() -> dict[str, dict[str, float]]:
    """Variant -> "padded" and, where it is known, "masked" -> perplexity."""
    path = Path(__file__).with_name("language_models.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = [(row.pop("variant"), row) for row in csv.DictReader(file)]
    return {name: {how: float(v) for how, v in row.items() if v} for name, row in rows}


def printed() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """paper.csv: table -> group -> row -> source -> figure, as printed."""
    found = {}
    with open(Path(__file__).with_name("paper.csv"), encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            rows = found.setdefault(line["table"], {}).setdefault(line["group"], {})
            rows.setdefault(line["row"], {})[line["source"]] = line["value"]
    return found
