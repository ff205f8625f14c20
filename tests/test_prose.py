"""What a person reads is plain English: no phrase of the list below, no sentence of more than 35
words, and in a lesson no term that no lesson has taught by then.

The pages are read, the lessons with their exercises, hints and diagnoses, the examples, and of the
package every docstring, help text and message. A test cannot hear how a sentence sounds; it keeps
out what was once found by reading aloud.
"""

import ast
import inspect
import re

import pytest
from commands import ROOT

from minqkv.teach.lessons import FILES, course, hunts

MOST = 35  # words of a sentence
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "lessons").glob("*.md"))
PAGES = [page for page in PAGES if not page.stem.endswith("-plan")]  # a plan stays as it was
CODE = [path for top in ("examples", "minqkv") for path in sorted((ROOT / top).rglob("*.py"))]
LESSONS = course()

# Translated, archaic, or a private word for what the field has a word for.
PHRASES = """
(?<!there )(is|are|was|were) no (?!longer|more|less|better|worse|larger)
(shown|meant|kept|given|told|asked) (is|are) (the|a|an|what)
(not|known) (to be )?told from zero
for ever
by itself
hangs? on
held? against
mends?|mended|cures?|cured
afresh|anew|whosoever|thereof|therein|lest|nought|hitherto
half[- ]way
crew|hireling|fellows?|heaps
for a pencil
resolves? nothing
twice the same
no more and no less
but for
to be had
holds? zero
in whatever way
knows? nothing of
what came of
that is not proof
is a subtraction
of the last one the first
sees the bend
and with force
(is|are|was|were) (that|those) of
of (yours|ours|theirs)
(class|flag|line|message|model|number|process|row|scale|stream|sum)s? of (its|their) own
(another|other) (?!hand|than)[a-z]+ than
holds (no|none|neither|another)
for who
how many percent
(a|the|its) root of
widths? of (a|the) head
a step of training
models? of text
truncated or no
"""
PHRASES = [re.compile(rf"\b({line})\b", re.I) for line in PHRASES.strip().split("\n")]

# term -> the lesson that teaches it; an earlier lesson may name that lesson, or explain it in bold
TERMS = {
    r"accumulat\w+": 1,
    r"broadcast\w*": 2,
    r"cotangents?": 2,
    r"matmul|matrix product": 3,
    r"softmax(es)?": 3,
    r"cross-entropy": 3,
    r"vjp|vector-Jacobian product|Jacobian": 3,
    r"gradient check|gradcheck": 3,
    r"learning rate": 4,
    r"Adam|SGD|optimisers?": 4,
    r"seeds?": 4,
    r"tokens?": 5,
    r"one-hot": 5,
    r"weighted average": 5,
    r"quer(y|ies)": 6,
    r"causal|masks?|masked": 6,
    r"patterns?": 6,
    r"attention": 6,
    r"residuals?": 7,
    r"layer norm": 7,
    r"MLP": 7,
    r"projections?": 8,
    r"curl": 8,
    r"gauge freedom": 8,
    r"temperature": 8,
    r"KV heads?": 9,
    r"MACs?|multiply-accumulates?": 9,
    r"thin keys": 9,
    r"caches?": 10,
    r"logits?": 10,
    r"prefill|decod(e|es|ed|ing)": 10,
    r"rope|rotary": 11,
    r"padding": 12,
    r"perplexit(y|ies)": 12,
    r"Student's t": 12,
    r"tokenizers?": 13,
    r"sampling|top-p": 13,
    r"language models?": 13,
    r"sinks?": 14,
    r"int8": 14,
    r"patch(es)?": 15,
    r"class token": 15,
    r"back-rotation": 16,
    r"latent (row|attention)s?": 17,
    r"absorb(s|ed|ing)?": 17,
    r"principal angles?": 18,
    r"cross-R²": 18,
    r"Procrustes": 19,
    r"zero-shot": 19,
    r"arithmetic intensity": 20,
    r"rooflines?": 20,
    r"(running|online) softmax": 20,
}
TERMS = {re.compile(rf"\b({term})\b"): number for term, number in TERMS.items()}


def strings(source):
    """Docstrings and other strings with a space; what is inserted is `…`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            text = "".join(parts)
            for part in node.values:  # the pieces are not texts of their own
                if isinstance(part, ast.Constant):
                    part.value = None
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if " " in text.strip():
            yield inspect.cleandoc(text)


def sentences(text):
    """Plain sentences: without code, formulas, links and tables. A list item ends a sentence."""
    text = re.sub(r"```.*?(```|\Z)", "\n\n", text, flags=re.S)
    text = re.sub(r"^( {4,}| *\||#).*$|^.*[{};]$", "", text, flags=re.M)
    text = re.sub(r"^.*\S {2,}\S.*$", r"\n\n\g<0>\n\n", text, flags=re.M)  # a row of columns
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "…", text)
    for paragraph in re.split(r"\n\s*\n|^ *(?:[-*]|\d+\.) ", text, flags=re.M):
        yield from re.split(r"(?<=[^.][.?!])[\"')*]*\s+", " ".join(paragraph.split()))


def faults(text):
    """Phrases of the list, and sentences that are too long."""
    for sentence in sentences(text):
        for phrase in PHRASES:
            if found := phrase.search(sentence):
                yield f"{found[0]!r} in: {sentence}"
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > MOST:
            yield f"{len(words)} words: {sentence}"


def lesson_texts(lesson):
    """What a learner reads of a lesson."""
    for step in lesson.steps:
        yield step.prose
    yield from strings(lesson.path.read_text("utf-8"))
    for kind in ("exercise", "check", "near_misses"):
        yield from strings(lesson.companion(kind).read_text("utf-8"))


def untaught(number, texts):
    """Terms that are used before the lesson that teaches them.

    A lesson may use one earlier if it explains it, in bold, or says which lesson will.
    """
    read = [sentence for text in texts for sentence in sentences(text)]
    explained = " ".join(re.findall(r"\*\*(.+?)\*\*", " ".join(read)))
    for term, taught in TERMS.items():
        if taught <= number or term.search(explained):
            continue
        for sentence in read:
            if (found := term.search(sentence)) and not re.search(r"lesson \d\d", sentence):
                yield f"{found[0]!r} is taught in lesson {taught:02}: {sentence}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page):
    assert list(faults(page.read_text("utf-8"))) == []


def test_code():
    """Every docstring, help text and message."""
    texts = [(path, text) for path in CODE for text in strings(path.read_text("utf-8"))]
    assert len(texts) > 2000
    assert [f"{path}: {fault}" for path, text in texts for fault in faults(text)] == []


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_lesson(lesson):
    texts = list(lesson_texts(lesson))
    assert [fault for text in texts for fault in faults(text)] == []
    assert list(untaught(lesson.number, texts)) == []


@pytest.mark.parametrize("hunt", hunts(), ids=lambda hunt: hunt.name)
def test_hunt(hunt):
    """For after the course: any term may be used."""
    texts = [hunt.title, hunt.question]
    for kind in FILES:
        texts += strings(hunt.companion(kind).read_text("utf-8"))
    assert [fault for text in texts for fault in faults(text)] == []


def test_terms_are_taught_where_the_table_says():
    taught = {topic: lesson.number for lesson in LESSONS for topic in lesson.teaches}
    numbers = {topic: {TERMS[term] for term in TERMS if term.fullmatch(topic)} for topic in taught}
    assert sum(map(len, numbers.values())) > 20
    for topic, found in numbers.items():
        assert found <= {taught[topic]}, topic


# ---- the checks of this file can fail


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("'2' is no key of the lesson.", "is no"),
        ("No text. The task is **not told from zero**.", "not told from zero"),
        ("Each by\nitself.", "by itself"),
        ("Kept is what\n    comes last.", "Kept is what"),
        ("- The score hangs on\n  their lengths.", "hangs on"),
        ("It says " + "more " * 34 + "`or` less.", "37 words"),
        ("It " * 36 + "is. Short.", "37 words"),
    ],
)
def test_faults_are_found(text, fault):
    (found,) = faults(text)
    assert fault in found


@pytest.mark.parametrize(
    "text",
    [
        "There is no key. It is no longer there.",
        "It " * 34 + "is. " + "It " * 34 + "is.",
        "One\n\n    for ever(by, itself)\n\ntwo, `for ever`, ends.",
        "```\nis no key\n```",
        "\n".join(f"- {'item ' * 30}" for _ in "ab"),
    ],
)
def test_what_is_no_fault(text):
    assert list(faults(text)) == []


def test_strings_of_a_file_are_found():
    found = strings(
        'def f(n):\n    """A text."""\n    say(f"it has {n} " "parts", help="Show it.", x=1)'
    )
    assert sorted(found) == ["A text.", "Show it.", "it has … parts"]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("A cotangent of ones.", ["cotangent"]),
        ("A **cotangent** is a row of weights. The cotangent is one.", []),
        ("Lesson 02: see lesson 02 for the cotangent. Not the `cotangent`.", []),
        ("Then softmax. Then a\nweighted average.", ["softmax", "weighted average"]),
    ],
)
def test_terms_before_their_lesson_are_found(text, terms):
    found = list(untaught(1, [text]))
    assert [fault.split("'")[1] for fault in found] == terms
    assert list(untaught(17, [text])) == []
