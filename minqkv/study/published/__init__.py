"""The authors' own results.

synthetic_2026.csv: the synthetic sweep of protocol 2026, 3,240 runs, from the repository of the
paper's authors (Brainchip-Inc/Do-Transformers-Need-3-Projections, MIT licence, BrainChip Inc.). One
row a run: variant, task, seq_len, n_embd, n_layer, n_head, seed, accuracy.

language_models.csv: the language models with 300M parameters, validation perplexity per GPT-2
token, one seed each. `padded` is the paper's table (arXiv 2606.04032, section 5; SlimPajama), which
counts padding as text. `masked` does not count padding: it is from the authors' own later models of
the same size, on FineWeb-Edu.

vision.csv: test accuracy on images and of the odd one out in a set (arXiv 2606.04032, section 4.2),
one number for each variant and data set. There `paper` is the paper's table, `re-run` the authors'
later run of it. Empty: not published.

paper.csv: the other numbers of the paper and its authors, as printed: table, group, row, source,
value. Its sources: "paper", arXiv 2606.04032; "later", later models and scripts of the authors;
"code", an analysis in their repository; "talk", the slides of their talk; "zero-shot" and
"distilled", their conversions. The file paper.toml says what the tables are, and how ours are
found.

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


def printed() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """table -> group -> row -> source -> figure, as printed: paper.csv, vision.csv and
    language_models.csv.
    """
    found = {"vision": {}, "lm-300m": {"perplexity": {}}}
    for line in _lines("paper.csv"):
        rows = found.setdefault(line["table"], {}).setdefault(line["group"], {})
        rows.setdefault(line["row"], {})[line["source"]] = line["value"]
    for line in _lines("vision.csv"):
        variant, source = line.pop("variant"), line.pop("by")
        for group, figure in line.items():
            row = found["vision"].setdefault(group, {}).setdefault(variant, {})
            row |= {source: figure} if figure else {}
    for line in _lines("language_models.csv"):
        figures = {"paper": line["padded"], "later": line["masked"]}
        row = {source: figure for source, figure in figures.items() if figure}
        found["lm-300m"]["perplexity"][line["variant"]] = row
    return found


def _lines(name):
    with open(Path(__file__).with_name(name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
