"""The course as pages: the events of a lesson as HTML, its exercise, an index, and the source files
that lessons point to.

A prediction is a fold-out. It holds the answer and what the lesson shows after it, up to the next
question: those arrays would give the answer away.
"""

import re
from dataclasses import dataclass

from . import figures, svg
from .layout import compared, number, paragraphs
from .page import (
    Markup,
    anchor,
    array,
    code,
    figure,
    fold,
    gallery,
    heading,
    inline,
    joined,
    link,
    page,
    paragraph,
    table,
    tag,
)

WIDEST, MOST = 16, 1000  # columns of an array that is a table, and numbers of a table


@dataclass(frozen=True)
class Chapter:
    """What a page needs to know of a lesson: its metadata, the events of playing it, the texts of
    its exercise, and the steps of its training if that was cut short.
    """

    lesson: object
    events: list
    stub: str
    solution: str
    hints: tuple
    explanation: str
    brief: int | None = None

    @property
    def file(self):
        """The name of its page."""
        return f"{self.lesson.name}.html"

    @property
    def title(self):
        """ "Lesson 6: Attention by hand" """
        return f"Lesson {self.lesson.number}: {self.lesson.title}"


def module_page(file):
    """The page of a source file: minqkv/models/gpt.py -> source/minqkv.models.gpt.html."""
    return f"source/{file.removesuffix('.py').replace('/', '.')}.html"


# ---- a lesson


def lesson_page(chapter, chapters, made_by):
    """The page of a lesson, with links to the other chapters of the course."""
    return _Page(chapter, chapters).whole(made_by)


class _Page:
    """A page in the making."""

    def __init__(self, chapter, chapters):
        self.chapter, self.chapters = chapter, chapters
        self.files = {other.lesson.number: other.file for other in chapters}
        self.taught = {topic: o.lesson for o in chapters for topic in o.lesson.teaches}
        self.names = {"top", "content", "exercise"}  # ids that are taken

    def whole(self, made_by):
        """The file's text."""
        lesson, steps = self.chapter.lesson, []
        for event in self.chapter.events:
            if event["event"] == "step":
                steps.append((self.name(event["title"]), event, []))
            else:
                steps[-1][2].append(event)
        links = [(event["title"], f"#{name}") for name, event, _ in steps]
        items = [tag("li", link(*to)) for to in [*links, ("Exercise", "#exercise")]]
        listed = tag("nav", tag("ol", *items), class_="steps", aria_label="Steps of this lesson")
        unfold = tag("button", "Open all answers", type="button", class_="unfold", hidden=True)
        sections = [self.step(*step) for step in steps]
        asked = paragraph(self.linked(lesson.question), "lead")
        return page(
            self.chapter.title,
            *(listed, unfold, *sections, self.exercise(), self.beside("Continue")),
            description=lesson.question,
            top=joined(self.beside(), asked, self.about()),
            footer=paragraph(made_by),
            kind="course",
        )

    def name(self, title):
        """An id that nothing else has, made of the title: it stays when steps are added."""
        base = anchor(title)
        wanted = [base, *(f"{base}-{i}" for i in range(2, 100))]
        name = next(name for name in wanted if name not in self.names)
        self.names.add(name)
        return name

    def beside(self, label="Course"):
        """Links to the lesson before, the index and the lesson after."""
        at, found = self.chapters.index(self.chapter), []
        if at:
            before = self.chapters[at - 1]
            found.append(tag("a", f"← {before.title}", href=before.file, rel="prev"))
        found.append(link("All lessons", "index.html"))
        if at + 1 < len(self.chapters):
            after = self.chapters[at + 1]
            found.append(tag("a", f"{after.title} →", href=after.file, rel="next"))
        return tag("nav", tag("ul", [tag("li", to) for to in found]), aria_label=label)

    def about(self):
        """What comes before, how long it takes, and where the numbers are from."""
        lesson, needed = self.chapter.lesson, []
        for topic in lesson.needs:
            home = self.taught.get(topic)
            needed.append(link(topic, self.files[home.number]) if home else topic)
        words = [f"About {lesson.minutes} minutes."]
        words += [" You need: ", joined(*needed, between=", "), "."] if needed else []
        text = (
            "Each array and number on this page was computed when the lesson was run to make the "
            f"page. To step through it in a terminal: `minqkv lesson play {lesson.number}`."
        )
        made = [tag("p", *words, class_="note"), paragraph(text, "note")]
        if self.chapter.brief:
            text = (
                f"For this page the model was trained for only {self.chapter.brief} steps, so it "
                "has hardly learned anything. In a terminal it trains for a few minutes."
            )
            made.append(paragraph(text, "warning"))
        return joined(*made)

    def step(self, name, step, events):
        """A section: what comes before the first question, then a fold-out for each of them."""
        made = into = [heading(f"{step['number']}. {step['title']}", 2, name)]
        for event in events:
            if event["event"] == "answer":
                into = [tag("p", self.linked(event["answer"]))]
                made.append(into)
            else:
                (made if event["event"] == "predict" else into).append(self.drawn(event))
        made = [self.folded(part) if isinstance(part, list) else part for part in made]
        return tag("section", *made, aria_labelledby=name)

    def folded(self, answer):
        """The fold-out of an answer, and of what is shown with it."""
        summary = "The answer, and what the lesson shows next" if answer[1:] else "The answer"
        return fold(summary, *answer, class_="answer")

    def exercise(self):
        """The task, the file to begin with, hints, and the solution."""
        chapter, lesson = self.chapter, self.chapter.lesson
        names = joined(*(tag("code", name) for name in lesson.exercise), between=" and ")
        file = f"minqkv-work/{lesson.name}.py"
        task = paragraph(
            "`minqkv learn` copies this file into your folder when you have read the lesson, and "
            "checks your code on random cases when you have written it. It recognises common "
            f"mistakes. Directly: `minqkv lesson start {lesson.number}`, then edit `{file}`, then "
            f"`minqkv lesson check {lesson.number}`."
        )
        hints = [
            fold(f"Hint {i} of {len(chapter.hints)}", paragraph(self.linked(hint)))
            for i, hint in enumerate(chapter.hints, 1)
        ]
        solved = fold(
            "The solution",
            paragraph("Try it on your own first.", "note"),
            code(highlighted(chapter.solution)),
            self.prose(chapter.explanation),
        )
        made = [heading("Exercise", 2, "exercise"), tag("p", "Write ", names, "."), task]
        made += [code(highlighted(chapter.stub)), *hints, solved]
        return tag("section", *made, aria_labelledby="exercise")

    # -- events

    def drawn(self, event):
        """Any event but a step and an answer, as Markup."""
        return getattr(self, f"_{event['event']}")(event)

    def linked(self, text):
        """Text with `code`, **strong** words, and links where another lesson is named."""
        return inline(text, self.lessons_linked)

    def lessons_linked(self, text):
        """Plain words; "lesson 05" is a link."""
        made = re.split(r"([Ll]esson \d+)", text)
        for i in range(1, len(made), 2):
            number = int(made[i].split()[1])
            if number in self.files and number != self.chapter.lesson.number:
                made[i] = link(made[i], self.files[number])
        return joined(*made)

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
        name, where = event["name"], f"{event['file']}:{event['line']}"
        if event["file"].startswith("minqkv/"):
            where = link(where, f"{module_page(event['file'])}#L{event['line']}")
        return tag("p", "In the package: ", tag("code", name), ", ", where, class_="source")

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
        return figure(figures.figure(title, [panel], 1), caption="; ".join(ends))

    def _show(self, event):
        return _arrays(event)

    _heat = _show


# ---- arrays


def _arrays(event):
    """A number, or a table for each matrix of an array; drawings where it is too large for that."""
    name, shape, values = event["name"], event["shape"], event["values"]
    if not shape:
        return tag("p", tag("strong", name), f" = {number(values, event['digits'])}")
    each = [("", values)] if len(shape) == 2 else [("", [values])]  # one row: (1, n)
    if len(shape) > 2:
        each = [*_matrices(values, len(shape) - 2)]
    count = sum(len(row) for _, matrix in each for row in matrix)
    if count > MOST:
        return _map(event, each)
    rows = [""] if len(shape) == 1 else event["rows"]
    looks = {"digits": event["digits"], "shaded": event["dtype"].startswith("float")}
    tables = [
        array(f"{name}{index} {_size(shape[-2:])}", matrix, rows, event["columns"], **looks)
        for index, matrix in each
    ]
    if shape[-1] > WIDEST:
        return joined(_map(event, each), fold("The numbers", *tables))
    return gallery(tables) if len(tables) > 1 else tables[0]


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


def _map(event, each):
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
    return figure(figures.heat_map(event["name"], drawn, rows, columns, 1), caption=told)


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


def source_page(file, text, chapters, made_by):
    """The page of a source file, each line with its number, and the lessons that point to it."""
    rows = highlighted(text).split("\n")
    lines = [tag("span", Markup(row), id=f"L{i}") for i, row in enumerate(rows, 1)]
    users = [link(chapter.title, f"../{chapter.file}") for chapter in chapters]
    top = [
        tag("nav", tag("ul", tag("li", link("All lessons", "../index.html"))), aria_label="Course"),
        tag("p", "Lessons that point here: ", joined(*users, between=", "), ".", class_="note"),
    ]
    content = tag("pre", tag("code", joined(*lines, between="\n"), class_="lines"), tabindex="0")
    return page(file, content, top=joined(*top), footer=paragraph(made_by))


# ---- the index


def index_page(chapters, sources, made_by):
    """The first page: the lessons with their questions, and the source files."""
    total = sum(chapter.lesson.minutes for chapter in chapters)
    items = []
    for chapter in chapters:
        lesson = chapter.lesson
        minutes = tag("span", f"{lesson.minutes} minutes", class_="note")
        words = tag("strong", link(lesson.title, chapter.file)), tag("br"), lesson.question, " "
        items.append(tag("li", *words, minutes))
    intro = (
        f"{len(chapters)} lessons, from the gradient of a single number to the cache of a language "
        f"model, about {round(total / 60)} hours in all. Every array and number was computed by "
        "the code of the package when these pages were made."
    )
    use = (
        "Make a guess before you open an answer. Each lesson ends with an exercise: with minqkv "
        "installed, `minqkv learn` plays the lessons in a terminal and checks your code on random "
        "cases."
    )
    files = tag("ul", [tag("li", link(file, module_page(file))) for file in sources])
    return page(
        "minqkv: the course",
        *(heading("Lessons", 2), tag("ol", *items, class_="lessons")),
        *(heading("The source", 2), paragraph("The files that the lessons point to."), files),
        description=intro,
        top=joined(paragraph(intro, "lead"), paragraph(use)),
        footer=paragraph(made_by),
        kind="course",
    )
