"""The diagnosis of a trained attention: tables for a terminal and a page, spectra, and maps of who
attends to whom, in which a token shows what it attends to.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..analysis.patterns import LONGEST
from .console import GAP
from .document import Code, Figure, Fold, Section, Table, Text
from .figures import Panel, Series, figure
from .layout import SHADES, legible
from .page import gallery, tag
from .report import layer_name
from .study import number

PLAIN_SHADES = " .:*#"  # for a terminal that has no SHADES


@dataclass(frozen=True)
class Measure:
    """A number of a head: the header of its column, what it is, its range, what chance gives, and
    the changes of basis under which it stays the same.
    """

    header: str
    about: str
    limits: str
    chance: str
    stays: str = "any"
    digits: int = 2


_START = "see “at start”"
OF_WEIGHTS = {
    "qk_rank": Measure(
        "QK\nrank", "effective rank of W_q W_kᵀ: how many directions make the scores",
        "1 to d_k", _START, digits=1),
    "ov_rank": Measure(
        "OV\nrank", "effective rank of W_v W_o: how many directions the head passes on",
        "1 to d_v", _START, digits=1),
    "overlap": Measure(
        "overlap\nof K, V", "mean cos² of the angles between what W_k and W_v read of a token",
        "0 (orthogonal) to 1 (equal)", "the larger of d_k and d_v, divided by d"),
    "cosine": Measure(
        "cos K, V\nnot invariant", "cosine of W_k and W_v as two long vectors",
        "−1 to 1", "0", "none"),
}  # fmt: skip
ON_EXAMPLES = {
    "v_from_k": Measure(
        "R² of\nV by K", "share of the variance of V that a linear map of K explains",
        "to 1; below 0 if it misleads", _START, "any of K; rotations and one scale of V"),
    "k_from_v": Measure(
        "R² of\nK by V", "share of the variance of K that a linear map of V explains",
        "to 1; below 0 if it misleads", _START, "any of V; rotations and one scale of K"),
    "cka": Measure(
        "CKA", "whether the same tokens are alike in K and in V",
        "0 to 1", _START, "rotations, and one scale each of K and V"),
    "entropy": Measure(
        "entropy", "of the weights of a query, as a share of that of even weights",
        "0 (one key) to 1 (even)", "1"),
    "distance": Measure(
        "dis-\ntance", "tokens between a query and its keys, averaged by weight",
        "0 to T − 1", "that of even weights"),
    "diagonal": Measure(
        "own\nkey", "diagonal dominance: share of queries whose own key has the highest score",
        "0 to 1", "1 / number of keys"),
    "asymmetry": Measure(
        "asym-\nmetry", "share of the squared scores that changes sign if query and key swap",
        "0 (Q = K) to 1", "(T − 1) / 2T"),
    "curl": Measure(
        "curl", "largest log ratio of going around three tokens one way and the other",
        "0 (reversible) and up", _START),
}  # fmt: skip
START = "“At start” is the mean over the heads of a layer before training, on the same examples."
MAPS = "A row is a query, a column a key. The stronger the colour of a cell, the larger its "
MAPS += "weight: it grows with the square root, so that small weights can be seen. Rest the "
MAPS += "pointer on a token, or move to it with the Tab key, to see what it attends to in every "
MAPS += f"head of its layer. Of a long example, the first {LONGEST} tokens are shown."


# ---- tables


def blocks(layers, start, where):
    """Tables with a row for each head of the layers that `analysis.diagnose` gives, and after each
    layer its mean at the start of training and what chance gives. `where` names the examples.
    """
    made = [_table("Of the weights", OF_WEIGHTS, layers, start)]
    made.append(_table(f"On {where}", ON_EXAMPLES, layers, start))
    same = [str(i) for i, layer in enumerate(layers) if not layer["heads"][0]["angles"]]
    if same:
        which = "" if len(same) == len(layers) else f" in layer {', '.join(same)}"
        made.append(Text(f"K = V{which}: there is nothing to compare between the two."))
    return made


def _cell(value, digits):
    sign = "−" if _known(value) and value < 0 else ""
    return sign + number(value and abs(value), digits)


def _known(value):
    return value is not None and not math.isnan(value)


def _table(title, measures, layers, start):
    """Without the columns that no head has."""
    every = [head for layer in layers for head in layer["heads"]]
    shown = {n: m for n, m in measures.items() if any(_known(head[n]) for head in every)}
    rows = []
    for i, (layer, fresh) in enumerate(zip(layers, start, strict=True)):
        each = {f"{i}.{j}": head for j, head in enumerate(layer["heads"])}
        each[f"{i} at start"] = {name: _mean(fresh["heads"], name) for name in shown}
        each[f"{i} by chance"] = layer["chance"]
        for label, found in each.items():
            rows.append([label, *(_cell(found.get(n), m.digits) for n, m in shown.items())])
    return Table(title, [("head", "left"), *((m.header, "right") for m in shown.values())], rows)


def _mean(heads, name):
    known = [head[name] for head in heads if _known(head[name])]
    return sum(known) / len(known) if known else None


def meanings():
    """A table of what each number is."""
    columns = ("number", "what it is", "range", "by chance", "stays under a change of basis")
    rows = [[m.header.replace("-\n", "").replace("\n", " "), m.about, m.limits, m.chance, m.stays]
            for m in (OF_WEIGHTS | ON_EXAMPLES).values()]  # fmt: skip
    return Table("What each number means", [(text, "left") for text in columns], rows)


# ---- spectra


def _spectra(layer):
    """Singular values of every head of a layer, and angles between what K and V read."""
    heads, share = layer["heads"], "share of their sum"
    panels = [
        Panel(f"singular values of {name}", "number", share, _lines(heads, key), y_range=(0, 0))
        for name, key in (("QK", "qk_values"), ("OV", "ov_values"))
    ]
    if heads[0]["angles"]:
        drawn = _lines(heads, "angles") + _lines([layer["chance"]], "angles")
        name = "principal angles of W_k and W_v"
        panels.append(Panel(name, "number", "degrees", drawn, y_range=(0, 90)))
    title = f"Spectra of {layer_name(layer['name'])}"
    return Figure(title, *(figure(title, panels, columns) for columns in (2, 1)))


def _lines(heads, key):
    """A line for each head, or for chance."""
    lines = []
    for j, head in enumerate(heads):
        whole = 1 if key == "angles" else sum(head[key]) or 1
        points = [(i, value / whole, None, ()) for i, value in enumerate(head[key], 1)]
        name = f"head {j}" if "qk_rank" in head else "by chance"
        lines.append(Series(name, points, marked=len(points) < 2))
    return lines


# ---- who attends to whom


def map_lines(found, labels, page):
    """The maps of every head as lines of text, side by side as far as the page is wide. Shades grow
    with the square root of a weight. `found` holds weights (H, T, T) by layer.
    """
    shades = SHADES if page.holds(SHADES) else PLAIN_SHADES
    single = all(len(label) == 1 for label in labels)
    short = "".join(label if single else str(i % 10) for i, label in enumerate(labels))
    beside = min(6, max(map(len, labels)))
    drawn = []
    for i, layer in enumerate(found.values()):
        for j, weights in enumerate(layer):
            levels = np.nan_to_num(np.sqrt(weights)) * (len(shades) - 1) + 0.5  # (T, T)
            lines = [f"{i}.{j}", " " * (beside + 1) + short]
            for label, row in zip(labels, levels, strict=False):
                lines.append(f"{label[:beside]:>{beside}} " + "".join(shades[int(v)] for v in row))
            drawn.append(lines)
    size = max(len(line) for lines in drawn for line in lines) + GAP
    each = max(1, (page.width + GAP) // size)
    for first in range(0, len(drawn), each):
        for row in zip(*drawn[first : first + each], strict=True):
            yield legible("".join(line.ljust(size) for line in row).rstrip(), page)
        yield ""


def _maps(heads, labels):
    """The maps of a layer, (H, T, T), as Markup. page.js shows what a token attends to."""
    return tag(
        "div", gallery([_map(j, head, labels) for j, head in enumerate(heads)]), class_="maps"
    )


def _map(j, weights, labels):
    """Head j; the tokens of head 0 can be reached by keyboard."""
    labels, body = [label.replace(" ", "␣") for label in labels], []
    for label, row in zip(labels, weights, strict=False):
        cells = [tag("td") if np.isnan(w) else
                 tag("td", style=f"--w:{100 * w**0.5:.0f}%", title=f"{w:.2f}")
                 for w in row]  # fmt: skip
        body.append(tag("tr", tag("th", label, scope="row", tabindex=None if j else 0), cells))
    heads = [tag("th", label, scope="col") for label in labels]
    parts = tag("thead", tag("tr", tag("td"), heads)), tag("tbody", body)
    box = {"class_": "scroll", "role": "region", "aria_label": f"head {j}", "tabindex": "0"}
    made = tag("div", tag("table", *parts, class_="map"), **box)
    return tag("figure", tag("figcaption", f"head {j}"), made, tag("p", class_="told"))


# ---- the page


def sections(layers, start, where, found, labels, commands):
    """The page as Sections. `found` holds weights (H, T, T) of an example by layer."""
    drawn = [Fold(layer_name(name).capitalize(), [_maps(weights, labels)], unfolded=not i)
             for i, (name, weights) in enumerate(found.items())]  # fmt: skip
    return [
        Section("Numbers", [*blocks(layers, start, where), Text(START)]),
        Section("Meanings", [meanings()]),
        Section("Spectra", [_spectra(layer) for layer in layers]),
        Section("Who attends to whom", [Text(MAPS), *drawn]),
        Section("How it was made", [Code("\n".join(commands))]),
    ]
