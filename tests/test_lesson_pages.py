"""`minqkv lesson export --html DIR`, with a few lessons as the whole course.

That every lesson becomes a page is tested in test_lessons.py, where all of them are played.
"""

import html
import json
import os
import re
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np
import pytest
from browser import overflow, pale, unfold, visit
from commands import wait_until
from pages import Page

from minqkv.render import course as pages
from minqkv.render.drawn import Events, highlighted
from minqkv.render.layout import _LAYOUTS, number
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.locks import locked
from minqkv.teach import export
from minqkv.teach.events import array_event
from minqkv.teach.lessons import course, find

LESSONS = course()
QUICK = [find(n, LESSONS) for n in (5, 6, 8)]  # heat maps, curves, masks, links to each other


@pytest.fixture(scope="module")
def chapters():
    return [export.played(lesson) for lesson in QUICK]


@pytest.fixture(scope="module")
def made(chapters):
    """Name -> text of the pages of a course of these lessons."""
    return export.render(chapters)


@pytest.fixture
def few(chapters, monkeypatch):
    """The course has a few lessons, which have been played already."""
    by_lesson = {chapter.lesson: chapter for chapter in chapters}
    monkeypatch.setattr(export, "course", lambda: QUICK)
    monkeypatch.setattr(export, "played", by_lesson.get)


# ---- pages


def test_steps_have_stable_names_and_are_listed(chapters, made):
    page = Page(made["06_attention_by_hand.html"])
    steps = [e["title"] for e in chapters[1].events if e["event"] == "step"]
    assert len(steps) == 11
    assert "#a-score-for-each-pair" in page.links()
    names = [to[1:] for to in page.links() if to.startswith("#") and to != "#content"]
    assert names == [pages.anchor(title) for title in steps] + ["exercise"]
    assert set(names) <= set(page.ids())


def test_a_fold_out_holds_the_answer_and_what_would_give_it_away(chapters, made):
    page = Page(made["06_attention_by_hand.html"])
    events = chapters[1].events
    answers = [event for event in events if event["event"] == "answer"]
    assert len([a for a in page.all("details") if a.get("class") == "answer"]) == len(answers) > 3
    folded, shown = page.text("details"), page.text("body")
    assert shown.count("pattern (3, 3)") == folded.count("pattern (3, 3)") == 1
    assert "scores (3, 3)" in shown  # of a step that asks nothing
    outside = " ".join(t for around, t in page.texts if "details" not in around)
    assert "What weight does it give to" in outside
    assert "masked after softmax" not in outside
    assert not any("open" in attributes for attributes in page.all("details"))


def test_the_exercise(made):
    page = Page(made["06_attention_by_hand.html"])
    for hint in ("Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Five lines, one for each step"):
        assert hint in page.text("details")
    assert "raise NotImplementedError" in page.text("pre")
    assert "return pattern @ v # (T, d)" in page.text("details")
    outside = " ".join(t for around, t in page.texts if "details" not in around)
    assert "return pattern" not in outside
    assert "minqkv learn" in outside
    assert "minqkv lesson check 6" in outside


def test_links_resolve_and_nothing_is_fetched(made):
    parsed = {name: Page(text) for name, text in made.items()}
    seen = set()
    for name, page in parsed.items():
        assert page.outside() == [], name
        for to in page.links():
            file, _, place = to.partition("#")
            target = str(PurePosixPath(name).parent / file) if file else name
            target = os.path.normpath(target) if file else target
            assert target in parsed, (name, to)
            assert not place or place in parsed[target].ids(), (name, to)
            seen.add(target)
    assert seen == set(made)
    assert "minqkv/attention.py" in made["source/minqkv.attention.html"]


def test_the_source_is_what_the_lesson_points_to(made):
    page = Page(made["06_attention_by_hand.html"])
    (to,) = [to for to in page.links() if "minqkv.attention.html" in to]
    line = to.partition("#")[2]
    row = re.search(rf'<span id="{line}">(.*)</span>', made["source/minqkv.attention.html"])[1]
    assert "def forward" in re.sub(r"<[^>]*>", "", row)
    assert "06_attention_by_hand.html" in made["source/minqkv.attention.html"]


def test_lessons_link_to_each_other(made):
    page = Page(made["06_attention_by_hand.html"])
    text = made["06_attention_by_hand.html"]
    assert '<a href="05_why_look_at_other_tokens.html">lesson 05</a>' in text
    assert "lesson 07" in page.text()  # not in this course, so not a link
    assert "07_heads" not in text
    rels = {a["rel"]: a["href"] for a in page.all("a") if "rel" in a}
    assert rels == {
        "prev": "05_why_look_at_other_tokens.html",
        "next": "08_two_projections_or_one.html",
    }
    assert "You need: softmax, weighted average." in page.text("header")


@pytest.mark.parametrize("name", ["index", "06_attention_by_hand", "source/minqkv.attention"])
def test_headings_and_names(made, name):
    page = Page(made[f"{name}.html"])
    levels, ids = page.levels(), page.ids()
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert len(ids) == len(set(ids))
    labels = [a["aria_label"] for a in page.all("nav") if "aria_label" in a]
    assert len(labels) == len(set(labels))
    (attributes,) = page.all("html")
    assert attributes["lang"] == "en"


def test_titles_that_meet(chapters):
    """Two steps of one title, and one that is called like the exercise."""
    page = pages._Page(chapters[0], chapters)
    names = [page.name(title) for title in ("A b", "A b", "a-b 2", "Exercise", "Top", "…")]
    assert len(set(names)) == 6
    assert names[:2] == ["a-b", "a-b-2"]
    assert "exercise" not in names


def test_the_same_lesson_gives_the_same_page(chapters, made):
    again = export.played(QUICK[1])
    assert (
        pages.lesson_page(again, [chapters[0], again, chapters[2]], export._MADE_BY)
        == (made["06_attention_by_hand.html"])
    )


def test_every_kind_of_event_has_a_look():
    for kind in _LAYOUTS.keys() - {"step", "answer"}:
        assert hasattr(Events, f"_{kind}"), kind


def test_a_brief_training_is_said(chapters):
    short = replace(chapters[0], brief=20)
    assert "trained for only 20 steps" in pages.lesson_page(short, [short], "")
    assert "trained for only" not in pages.lesson_page(chapters[0], chapters, "")
    assert [lesson.number for lesson in LESSONS if lesson.trains] == [13]


# ---- arrays


def shown(array, kind="show", **options):
    """The part of a page that an array makes."""
    text = Events()._show(array_event(kind, "a <b>", array, **options))
    return text, Page(f"<body>{text}</body>")


def test_a_small_array_is_a_table(rng):
    text, page = shown(np.array([[0.25, -1.0], [np.inf, 0.5]]), mask=np.array([[1, 1], [1, 0]]))
    assert "<svg" not in text
    assert page.text("tbody") == "0 0.250 -1.000 1 inf ."
    assert "a <b> (2, 2)" in page.text("caption")
    assert [a["scope"] for a in page.all("th")] == ["col", "col", "row", "row"]
    assert len([a for a in page.all("td") if "style" in a]) == 2


def test_whole_numbers_are_not_shaded():
    text, _ = shown(np.arange(4))
    assert "style" not in text


def test_an_array_of_more_axes_is_a_table_for_each_matrix(rng):
    _, page = shown(rng.random((2, 1, 3, 2)))
    assert page.text("caption") == "a <b>[0, 0] (3, 2) a <b>[1, 0] (3, 2)"


def test_a_wide_array_is_a_drawing_with_words_and_numbers(rng):
    image = rng.random((28, 28))
    _, page = shown(image, "heat")
    words = f"An array (28, 28). Its values are from {image.min():.3g} to {image.max():.3g}"
    assert words in page.text("figcaption")
    assert len(page.all("svg")) == 1
    assert number(image[3, 4]) in page.text("details")


def test_a_huge_array_has_no_table(rng):
    text, page = shown(np.where(rng.random((60, 60)) < 0.5, -np.inf, 2.0))
    assert "<td" not in text
    assert "from 2 to 2, and 2 on average" in page.text("figcaption")


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0), (1, 1), (3, 2, 0)])
def test_odd_shapes(shape):
    assert "a <b>" in shown(np.zeros(shape))[1].text()


# ---- code


def test_code_keeps_every_character_and_no_mark_crosses_a_line():
    source = (
        'def f(x):\n    """Two\n    lines & <tags>."""\n\n    return f"{x!r}\\n" if x else 0x1f\n'
    )
    text = highlighted(source)
    assert html.unescape(re.sub(r"<[^>]*>", "", text)) == source.rstrip()
    for row in text.split("\n"):
        Page(f"<pre>{row}</pre>")
    assert '<span class="k">def</span>' in text


# ---- the folder


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_command(few, cli, tmp_path, made):
    code, out, err = cli("lesson", "export", "--html", "pages/course")
    folder = tmp_path / "pages/course"
    assert (code, out) == (0, f"{len(made)} pages in pages/course; the first is "
                              "pages/course/index.html\n")  # fmt: skip
    assert "lessons" in err
    assert names_in(folder) == {*made, export.PAGES.mark}
    assert (folder / "index.html").read_text("utf-8") == made["index.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]

    code, out, _ = cli("lesson", "export", "--html", folder, "--json")
    assert code == 0
    assert json.loads(out) == {"folder": str(folder), "pages": list(made)}


def test_an_earlier_export_is_replaced_and_other_files_stay(few, tmp_path, made):
    export.export(tmp_path)
    (tmp_path / "CNAME").write_text("teacher's")
    (tmp_path / "source/minqkv.old.html").write_text("old")
    (tmp_path / "index.html").write_text("changed")
    mark = json.loads((tmp_path / export.PAGES.mark).read_text())
    outside = tmp_path.parent / "outside.html"
    outside.write_text("not ours")
    odd = ["source/minqkv.old.html", "../outside.html", "CNAME", "gone.html"]
    (tmp_path / export.PAGES.mark).write_text(
        json.dumps({**mark, "pages": mark["pages"] | dict.fromkeys(odd)})
    )
    export.export(tmp_path)
    assert names_in(tmp_path) == {*made, export.PAGES.mark, "CNAME"}
    assert (tmp_path / "index.html").read_text("utf-8") == made["index.html"]
    assert outside.read_text() == "not ours"


def test_a_folder_with_other_files_is_refused_before_anything_runs(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "played", lambda lesson: pytest.fail("it ran"))
    (tmp_path / "thesis.tex").write_text("years of work")
    code, out, err = cli("lesson", "export", "--html", ".")
    assert (code, out) == (2, "")
    assert "might replace other files" in err
    assert "--html course" in err
    (tmp_path / "file").write_text("")
    assert "is not a folder" in cli("lesson", "export", "--html", "file")[2]
    assert names_in(tmp_path) == {"thesis.tex", "file"}


def test_a_damaged_mark(few, tmp_path):
    (tmp_path / export.PAGES.mark).write_text('{"pages"')
    with pytest.raises(EnvironmentFault, match="not valid JSON"):
        export.export(tmp_path)
    (tmp_path / export.PAGES.mark).write_text('{"pages": "index.html"}')
    export.export(tmp_path)


def test_an_interrupt_leaves_nothing(few, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "played", lambda _: os.kill(os.getpid(), signal.SIGINT))
    code, out, err = cli("lesson", "export", "--html", "pages")
    assert (code, out) == (130, "")
    assert "nothing was written" in err
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed(tmp_path, made):
    (tmp_path / ".minqkv-course-x/source").mkdir(parents=True)
    (tmp_path / ".minqkv-course-x/source/half.html").write_text("half a pa")
    (tmp_path / ".lock").write_text("")
    with locked(tmp_path, "course"), pytest.raises(EnvironmentFault, match="this course is locked"):
        export.write(tmp_path, made)
    export.write(tmp_path, made)
    assert names_in(tmp_path) == {*made, export.PAGES.mark}
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_earlier_pages(few, tmp_path, monkeypatch):
    export.export(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    write, written = export.write_text, []

    def fail(path, text):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write(path, "something new")

    monkeypatch.setattr(export, "write_text", fail)
    with pytest.raises(EnvironmentFault, match="No space left"):
        export.export(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


def test_a_place_that_cannot_be_written(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((EnvironmentFault, UsageError)):
        export.export(tmp_path / "file/pages")


# ---- in a browser


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """The pages as files."""
    folder = tmp_path_factory.mktemp("course")
    export.write(folder, made)
    return folder


def test_nothing_overflows(browser, folder, made):
    for name in made:
        with visit(browser, folder / name) as page:
            unfold(page)
            for width in (400, 800, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                assert overflow(page) == [], (name, width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser, folder, scheme):
    for name in ("index", "08_two_projections_or_one", "source/minqkv.tensor"):
        with visit(browser, folder / f"{name}.html", 800, scheme) as page:
            unfold(page)
            assert pale(page) == [], name


def test_fold_outs_open_from_the_keyboard(browser, folder):
    with visit(browser, folder / "06_attention_by_hand.html") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        focused, folds = "document.activeElement", []
        while page.evaluate(f"{focused}.tagName") != "SUMMARY":
            page.keyboard.press("Tab")
        for key in ("Enter", "Space", "Enter"):
            page.keyboard.press(key)
            folds.append(page.evaluate(f"{focused}.parentElement.open"))
        assert folds == [True, False, True]
        assert page.evaluate("document.querySelectorAll('details[open]').length") == 1


def test_all_answers_open_at_once_but_no_solution(browser, folder):
    with visit(browser, folder / "06_attention_by_hand.html") as page:
        page.get_by_role("button", name="Open all answers").press("Enter")
        assert page.locator("details.answer:not([open])").count() == 0
        assert page.locator("details[open]").count() == page.locator("details.answer").count()


def test_on_paper_everything_is_open(browser, folder):
    with visit(browser, folder / "06_attention_by_hand.html", 700) as page:
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        assert not page.get_by_role("button", name="Open all answers").is_visible()
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == "rgb(255, 255, 255)"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0


def test_without_scripts_nothing_is_lost(browser, folder):
    with visit(browser, folder / "06_attention_by_hand.html", scripts=False) as page:
        assert page.get_by_text("Open all answers").is_hidden()
        answer = page.locator("details.answer").first
        answer.locator("summary").click()
        assert answer.locator("table").first.is_visible()


def test_a_link_leads_to_the_line(browser, folder):
    with visit(browser, folder / "06_attention_by_hand.html") as page:
        page.get_by_role("link", name="minqkv/attention.py:").click()
        page.wait_for_url("**/source/minqkv.attention.html#L*")
        line = page.locator(":target")
        assert "def forward" in line.inner_text()
        wait_until(lambda: page.evaluate("scrollY") > 1000)  # it glides there
        page.get_by_role("link", name="Lesson 6").click()
        page.wait_for_url("**/06_attention_by_hand.html")
