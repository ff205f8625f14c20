"""Events of a lesson as Markup, for pages and notebooks.

A prediction is a fold-out. It holds the answer and what the lesson shows after it, up to the next
question: those arrays would give the answer away.
"""

from . import figures, svg
from .layout import compared, number, paragraphs, roof, under
from .page import array, code, figure, fold, gallery, inline, joined, paragraph, table, tag

WIDEST, MOST = 16, 1000  # columns of an array that is a table, and numbers of a table


class Events:
    """Draws events, one by one or in a row."""

    def told(self, events):
        """What comes before the first question, then a fold-out for each of them, as a list."""
        made = into = []
        for event in events:
            if event["event"] == "answer":
                into = [tag("p", self.linked(event["answer"]))]
                made.append(into)
            else:
                (made if event["event"] == "predict" else into).append(self.drawn(event))
        return [self.folded(part) if isinstance(part, list) else part for part in made]

    def folded(self, answer):
        """The fold-out of an answer, and of what is shown with it."""
        summary = "The answer, and what the lesson shows next" if answer[1:] else "The answer"
        return fold(summary, *answer, class_="answer")

    def drawn(self, event):
        """Any event but a step and an answer, as Markup."""
        return getattr(self, f"_{event['event']}")(event)

    def linked(self, text):
        """Text with `code` and **strong** words; what the others become is up to `words`."""
        return inline(text, self.words)

    def words(self, text):
        """Plain words, which a page may give links."""
        return text

    def place(self, event):
        """File and line of a source event, which a page may link."""
        return f"{event['file']}:{event['line']}"

    def figure(self, drawing, caption):
        """An SVG with its caption."""
        return figure(drawing, caption=caption)

    def prose(self, text):
        """Paragraphs, lists and formulas."""
        made = []
        for group in paragraphs(text):
            items = []
            for kind, words in group:
                if kind == "formula":
                    made.append(tag("pre", words, class_="formula", tabindex="0"))
                elif kind == "item":
                    items.append(tag("li", self.linked(words.removeprefix("- "))))
                else:
                    made.append(paragraph(self.linked(words)))
            made.append(tag("ul", *items) if items else None)
        return joined(*made)

    def _prose(self, event):
        return self.prose(event["text"])

    def _code(self, event):
        return code(highlighted(event["source"]))

    def _say(self, event):
        rows = [self.linked(row) for row in event["text"].split("\n")]
        return paragraph(joined(*rows, between="<br>"), "say")

    def _predict(self, event):
        options = [tag("li", self.linked(option)) for option in event["options"] or ()]
        asked = tag("p", tag("strong", "Predict: "), self.linked(event["question"]))
        return tag("div", asked, tag("ol", *options, type="a") if options else None, class_="ask")

    def _compare(self, event):
        return paragraph(self.linked(compared(event)), "good" if event["equal"] else "bad")

    def _source(self, event):
        name = tag("code", event["name"])
        return tag("p", "In the package: ", name, ", ", self.place(event), class_="source")

    def _table(self, event):
        rows = [[number(cell) for cell in row] for row in event["rows"]]
        words = [any(isinstance(row[j], str) for row in event["rows"])
                 for j in range(len(event["columns"]))]  # fmt: skip
        sides = ["left" if is_word or not j else "right" for j, is_word in enumerate(words)]
        columns = list(zip(event["columns"], sides, strict=True))
        return table(event["title"], columns, rows, sortable=False)

    def _curve(self, event):
        series = [
            figures.Series(name, [(i, y, None, ()) for i, y in enumerate(ys)], marked=False)
            for name, ys in event["series"].items()
        ]
        ends = [f"{name}: starts at {ys[0]:.3g}, ends at {ys[-1]:.3g}"
                for name, ys in event["series"].items()]  # fmt: skip
        label = f"{event['x']} ({max(map(len, event['series'].values()))} values)"
        panel = figures.Panel("", label, "", series, y_log=event["log"])
        title = event["title"] + (" (logarithmic)" if event["log"] else "")
        return self.figure(figures.figure(title, [panel], 1), "; ".join(ends))

    def _roofline(self, event):
        bandwidth, rate = event["bandwidth"], event["rate"]
        left, right = roof(event)
        xs = [*(10.0**p for p in range(left, right + 1)), rate / bandwidth]

        def at(x):
            return (x, min(rate, x * bandwidth) / 1e12, None, ())

        series = [figures.Series("at most", [at(x) for x in xs], marked=False)]
        series += [figures.Series(name, [at(x)]) for name, x in event["points"].items()]
        axes = "operations per byte", "trillion operations per second"
        panel = figures.Panel("", *axes, series, x_log=True, y_log=True)
        told = "; ".join(f"{name}: {under(event, x)}" for name, x in event["points"].items())
        return self.figure(figures.figure(event["title"], [panel], 1), told)

    def _show(self, event):
        """A number, or a table for each matrix of an array; drawings where that is too large."""
        name, shape, values = event["name"], event["shape"], event["values"]
        if not shape:
            return tag("p", tag("strong", name), f" = {number(values, event['digits'])}")
        each = [("", values)] if len(shape) == 2 else [("", [values])]  # one row: (1, n)
        if len(shape) > 2:
            each = [*_matrices(values, len(shape) - 2)]
        count = sum(len(row) for _, matrix in each for row in matrix)
        if count > MOST:
            return self._map(event, each)
        rows = [""] if len(shape) == 1 else event["rows"]
        looks = {"digits": event["digits"], "shaded": event["dtype"].startswith("float")}
        tables = [
            array(f"{name}{index} {_size(shape[-2:])}", matrix, rows, event["columns"], **looks)
            for index, matrix in each
        ]
        if shape[-1] > WIDEST:
            return joined(self._map(event, each), fold("The numbers", *tables))
        return gallery(tables) if len(tables) > 1 else tables[0]

    _heat = _show

    def _map(self, event, each):
        """A drawing of each matrix below the others; its words say what the values are."""
        drawn = [(index, [[None if isinstance(v, str) else v for v in row] for row in matrix])
                 for index, matrix in each]  # fmt: skip
        rows = event["rows"] or range(len(each[0][1]))
        columns = event["columns"] or range(len(each[0][1][0]))
        known = [v for _, matrix in drawn for row in matrix for v in row if svg.placeable(v)]
        told = f"An array {_size(event['shape'])}."
        if known:
            least, most, mean = min(known), max(known), sum(known) / len(known)
            told += f" Its values are from {least:.3g} to {most:.3g}, and {mean:.3g} on average."
        return self.figure(figures.heat_map(event["name"], drawn, rows, columns, 1), told)


def _size(shape):
    """A shape as text that no line breaks."""
    return str(tuple(shape)).replace(" ", "\u00a0")


def _matrices(values, depth, index=""):
    """("[0, 1]", matrix) of everything above the last two axes."""
    if not depth:
        yield f"[{index.removeprefix(', ')}]", values
        return
    for i, part in enumerate(values):
        yield from _matrices(part, depth - 1, f"{index}, {i}")


# ---- code


def highlighted(source):
    """Python as Markup: comments, strings, keywords, numbers and names of definitions are marked.
    No mark goes over the end of a line.
    """
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    classes = {
        Comment: "c", String: "s", Keyword: "k", Operator.Word: "k", Number: "m",
        Name.Function: "d", Name.Class: "d", Name.Decorator: "d",
    }  # fmt: skip
    made = []
    for token, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(source.rstrip()):
        class_ = next((name for kind, name in classes.items() if token in kind), None)
        pieces = [tag("span", row, class_=class_) if class_ and row.strip() else row
                  for row in text.split("\n")]  # fmt: skip
        made.append(joined(*pieces, between="\n"))
    return joined(*made)
