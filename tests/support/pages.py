"""A page of HTML, taken apart with the parser of the standard library; and what the page of a
lesson has to hold.
"""

import re
from html.parser import HTMLParser

import numpy as np

from minqkv.render.layout import number

VOID = {"meta", "br", "link", "img", "input", "hr"}
INLINE = {"a", "code", "span", "strong"}  # others begin a word


class Page(HTMLParser):
    """What a test asks of a page. Raises AssertionError where a tag is not closed, or not in order.

    `tags` holds (name, attributes) of every element, `texts` (names of the elements around it,
    text) of every piece of text. SVG elements may close themselves.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in INLINE:
            self.texts.append((tuple(self.open), " "))

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def all(self, tag):
        """The attributes of each element of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, within="body"):
        """All text within elements of this name, with single blanks."""
        outside = ("script", "style")
        pieces = [t for around, t in self.texts if within in around and around[-1] not in outside]
        return " ".join("".join(pieces).split())

    def ids(self):
        """Every id, in order."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def levels(self):
        """The levels of the headings, in order."""
        return [int(name[1]) for name, _ in self.tags if name in ("h1", "h2", "h3", "h4")]

    def links(self):
        """Where links lead."""
        return [attributes["href"] for attributes in self.all("a")]

    def outside(self):
        """Everything that would be fetched from elsewhere when the page is opened."""
        fetching = ("src", "srcset", "data", "poster", "xlink:href")
        found = [(tag, a) for tag, a in self.tags if any(name in a for name in fetching)]
        found += [(tag, a) for tag, a in self.tags if tag in ("link", "iframe", "base", "object")]
        styles = [text for around, text in self.texts if around[-1:] == ("style",)]
        return found + [text for text in styles if "url(" in text or "@import" in text]


def told(event):
    """The texts by which an event of a lesson is known on its page."""
    kind = event["event"]
    if kind in ("show", "heat"):
        values = np.ravel(np.array(event["values"], object))
        return [event["name"], *(number(value, event["digits"]) for value in values)]
    if kind == "table":
        cells = [number(cell) for row in event["rows"] for cell in row]
        return [event["title"], *event["columns"], *cells]
    if kind in ("curve", "roofline"):
        return [event["title"], *event["series" if kind == "curve" else "points"]]
    if kind == "predict":
        return [event["question"], *(event["options"] or ())]
    if kind == "compare":
        return [f"{event['left']} and {event['right']}: "]
    if kind == "source":
        return [event["name"], f"{event['file']}:{event['line']}"]
    words = {"step": "title", "code": "source", "answer": "answer"}
    return [event[words.get(kind, "text")]]


def flat(text):
    """Single blanks; and without what marks code, strong words and items."""
    return " ".join(re.sub(r"`|\*\*|^- ", "", text, flags=re.M).split())


def missing(events, page):
    """Texts of events that are not on the page; large arrays are drawings, without numbers."""
    words, found = flat(page.text()), []
    for event in events:
        texts = told(event)[: 1 if np.prod(event.get("shape", 0)) > 1000 else None]
        found += [text for text in texts if flat(text) not in words]
    return found
