"""`minqkv lesson export --notebook DIR`: all notebooks run in a real kernel, and show what the
lesson shows in the terminal.
"""

import json
import os
import re
import signal

import pytest

from minqkv.render.lesson import Recorder
from minqkv.render.notebook import Kernel, _Notebook, kernel, output
from minqkv.runtime.errors import UsageError
from minqkv.teach import export
from minqkv.teach.author import play, spoken
from minqkv.teach.events import on
from minqkv.teach.lessons import Step, course, find
from minqkv.teach.notebook import check
from minqkv.teach.training import BRIEF, STEPS

LESSONS = course()
QUICK = [find(n, LESSONS) for n in (6, 8)]


@pytest.fixture(scope="module")
def quick():
    """The cells of a course of two lessons."""
    return [export.as_cells(lesson) for lesson in QUICK]


@pytest.fixture(scope="module")
def made(quick):
    """Name -> text of its notebooks."""
    return export.notebooks(quick)


@pytest.fixture
def few(quick, monkeypatch):
    """The course has two lessons, which have been run already."""
    by_lesson = {chapter.lesson: (chapter, cells) for chapter, cells in quick}
    monkeypatch.setattr(export, "course", lambda: QUICK)
    monkeypatch.setattr(export, "as_cells", by_lesson.get)


@pytest.fixture(scope="module")
def client():
    """nbclient and nbformat. Where $MINQKV_NOTEBOOKS is set, they must be there, with a kernel."""
    if not os.environ.get("MINQKV_NOTEBOOKS"):
        pytest.importorskip("nbclient", reason="nbclient is not installed")
        pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import ipykernel  # noqa: F401
    import nbclient
    import nbformat

    return nbclient.NotebookClient, nbformat


def cells(text):
    return {cell["id"]: cell for cell in json.loads(text)["cells"]}


# ---- in a kernel


@pytest.mark.parametrize("lesson", LESSONS, ids=[lesson.name for lesson in LESSONS])
def test_a_notebook_runs_and_shows_what_the_lesson_shows(lesson, client, tmp_path, monkeypatch):
    """From any folder, and nothing is left there. The exercise's stub fails its check, in words."""
    monkeypatch.setenv(STEPS, str(BRIEF))
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    run, nbformat = client
    chapter, ran = export.as_cells(lesson)
    events = [event for _, parts in ran for *_, shown in parts for event in shown]
    assert events == spoken(play(lesson).events)
    (text,) = export.notebooks([(chapter, ran)]).values()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    fresh = nbformat.from_dict(json.loads(text))
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    run(fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, after in zip(notebook.cells, fresh.cells, strict=True):
        if before.id == "check":
            assert "not written yet" in after.outputs[0].data["text/plain"]
        elif before.cell_type == "code":
            assert after.outputs == before.outputs, before.id
    assert list(tmp_path.iterdir()) == []


# ---- the file


def test_twice_gives_the_same_bytes(made):
    again = [export.as_cells(lesson) for lesson in QUICK]
    assert export.notebooks(again) == made


def test_the_cells_of_a_notebook(made):
    found = cells(made["06_attention_by_hand.ipynb"])
    assert [*found][:4] == ["title", "setup", "step-1", "step-1-1"]
    assert [*found][-5:] == ["exercise", "answer", "check", "help", "next"]
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", name) for name in found)
    title = found["title"]["source"]
    assert title.startswith("# Lesson 6: Attention by hand\n")
    assert "pip install" in title
    assert "(08_two_projections_or_one.ipynb)" in title
    assert (
        "(06_attention_by_hand.ipynb)"
        in cells(made["08_two_projections_or_one.ipynb"])["next"]["source"]
    )
    assert found["step-2"]["source"].startswith("## 2. ")
    assert found["check"]["source"].endswith("check(6, In)")
    assert "raise NotImplementedError" in found["answer"]["source"]
    assert found["help"]["source"].count("<details>") == 4


def test_an_answer_is_folded_and_no_visible_cell_gives_it_away(made):
    for text in made.values():
        for cell in cells(text).values():
            hidden = cell["metadata"].get("jupyter") == {"source_hidden": True}
            assert hidden or cell["cell_type"] != "code" or "predict(" not in cell["source"]
            for shown in cell.get("outputs", ()):
                html = shown["data"]["text/html"]
                folded = re.findall(r"<details class=\"answer\">", html)
                assert len(folded) == html.count("<strong>Predict: </strong>")


def test_an_output_needs_nothing_that_jupyter_takes_away(made):
    for text in made.values():
        for cell in cells(text).values():
            for shown in cell.get("outputs", ()):
                assert not re.search(r"<(svg|style|script)", shown["data"]["text/html"])


def test_prose_says_in_markdown_what_it_says_in_the_terminal(quick):
    made = _Notebook(quick[0][0], [one for one, _ in quick])
    text = "a_b < `c_d` * [e], **f**, lesson 08, lesson 06\n\n    x = $y$\n\n- one_\n- two"
    assert made.text(text) == (
        "a_b \\< `c_d` \\* \\[e\\], **f**, [lesson 08](08_two_projections_or_one.ipynb), lesson 06"
        "\n\n```text\nx = $y$\n```\n\n- one\\_\n- two"
    )


def test_where_a_step_is_cut():
    def pieces(code):
        return Step("t", "", code, 1).pieces

    assert pieces("x = 1\nsay(x)\ny = 2\nsay(y)") == [("x = 1\ny = 2", "say(x)\nsay(y)")]
    assert pieces("x = 1\nsay(x)\nx = 2\nsay(x)") == [("x = 1", "say(x)"), ("x = 2", "say(x)")]
    loop = "for i in x:\n    say(i)"
    assert pieces(f"x = 1\nsay(x)\n{loop}\ny = 2") == [("x = 1", "say(x)"), (f"{loop}\ny = 2", "")]
    assert pieces("from minqkv.teach import say\nsay(1)") == [("", "say(1)")]
    assert pieces("") == [("", "")]


# ---- the stage


class Shell:
    """What the stage uses of IPython's shell."""

    kernel = True

    def __init__(self):
        self.events = self.display_pub = self
        self.published = []

    def register(self, name, function):
        assert name == "post_run_cell"
        self.end = function

    def publish(self, data):
        self.published.append(data)


def test_events_of_a_cell_are_shown_at_its_end():
    shell, event = Shell(), {"event": "say", "text": "a <b>"}
    stage = Kernel(shell)
    stage.draw(event)
    stage.draw(event)
    assert shell.published == []
    shell.end(None)
    shell.end(None)
    assert shell.published == [output([event, event])]
    assert shell.published[0]["text/plain"] == "a <b>\n\na <b>"
    assert shell.published[0]["text/html"].count("a &lt;b&gt;") == 2
    assert stage.ask("?") is None
    assert kernel() is None  # here


# ---- the exercise


def checked(*sources):
    with on(Recorder()) as recorder:
        check(6, ["", *sources])
    return " ".join(event.get("text", "") for event in recorder.drawn)


def test_the_newest_answer_is_checked():
    solution = QUICK[0].companion("solution").read_text("utf-8")
    stub = QUICK[0].companion("exercise").read_text("utf-8")
    assert "Correct on all 30 cases" in checked(stub, solution, "check(6, In)")
    assert "attend: not written yet" in checked(solution, stub)
    assert checked("x = 1") == "Run the cell that defines attend first."
    assert "your cell, line 1" in checked(solution, "def attend(:")


# ---- the folder


def test_the_command(few, cli, tmp_path, made):
    code, out, _ = cli("lesson", "export", "--notebook", "nb")
    first = "nb/06_attention_by_hand.ipynb"
    assert (code, out) == (0, f"2 notebooks in nb; the first is {first}\n")
    folder = tmp_path / "nb"
    assert {path.name for path in folder.iterdir()} == {*made, export.NOTEBOOKS.mark}
    assert (tmp_path / first).read_text("utf-8") == made["06_attention_by_hand.ipynb"]
    code, out, _ = cli("lesson", "export", "--notebook", "nb", "--json")
    assert json.loads(out) == {"folder": "nb", "notebooks": [*made]}


@pytest.mark.parametrize("options", [[], ["--html", "a", "--notebook", "b"]])
def test_one_form_at_a_time(cli, options, tmp_path):
    code, _, err = cli("lesson", "export", *options)
    assert code == 2
    assert "either --html DIR or --notebook DIR" in err
    assert not list(tmp_path.iterdir())


def test_work_in_a_notebook_is_never_replaced(few, tmp_path, made):
    export.export_notebooks(tmp_path)
    path = tmp_path / "06_attention_by_hand.ipynb"
    (tmp_path / "mine.ipynb").write_text("{}")
    run = json.loads(path.read_text("utf-8"))
    for cell in run["cells"]:  # as Jupyter saves it when it has run
        cell["source"] = cell["source"].splitlines(True)
        cell |= {"outputs": [], "execution_count": 3} if cell["cell_type"] == "code" else {}
    path.write_text(json.dumps(run))
    export.export_notebooks(tmp_path)
    assert path.read_text("utf-8") == made[path.name]
    for changed in (made[path.name].replace("raise NotImplementedError", "return v"), "{", ""):
        path.write_text(changed)
        with pytest.raises(UsageError, match="has changed since it was exported"):
            export.export_notebooks(tmp_path)
        assert path.read_text("utf-8") == changed
    (tmp_path / export.NOTEBOOKS.mark).write_text('{"pages": []}')
    with pytest.raises(UsageError, match="has changed since it was exported"):
        export.export_notebooks(tmp_path)
    assert path.read_text("utf-8") == ""


def test_pages_and_notebooks_do_not_share_a_folder(few, cli, tmp_path):
    export.export_notebooks(tmp_path)
    code, _, err = cli("lesson", "export", "--html", ".")
    assert code == 2
    assert "might replace other files" in err


def test_a_place_that_cannot_be_written(few, cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = cli("lesson", "export", "--notebook", "file/nb")
    assert code == 3
    assert "cannot write file/nb" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_leaves_the_earlier_notebooks(few, cli, tmp_path, monkeypatch):
    export.export_notebooks(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(export, "as_cells", lambda _: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = cli("lesson", "export", "--notebook", ".")
    assert code == 130
    assert "nothing was written" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
