"""The course as pages: the events of a lesson as HTML, its exercise, an index, and the source files
that lessons point to.
"""

import re
from dataclasses import dataclass

from .drawn import Events, highlighted
from .page import Markup, anchor, code, fold, heading, joined, link, page, paragraph, tag


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


class _Page(Events):
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
        """A section of the page."""
        made = [heading(f"{step['number']}. {step['title']}", 2, name), *self.told(events)]
        return tag("section", *made, aria_labelledby=name)

    def words(self, text):
        """Plain words; "lesson 05" is a link."""
        made = re.split(r"([Ll]esson \d+)", text)
        for i in range(1, len(made), 2):
            number = int(made[i].split()[1])
            if number in self.files and number != self.chapter.lesson.number:
                made[i] = link(made[i], self.files[number])
        return joined(*made)

    def place(self, event):
        """File and line, with a link where it is the package's."""
        where = super().place(event)
        if event["file"].startswith("minqkv/"):
            where = link(where, f"{module_page(event['file'])}#L{event['line']}")
        return where

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
