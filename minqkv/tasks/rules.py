"""The synthetic tasks, each registered once: its name, what is asked, and how to work it out.

Help texts, suggestions and `minqkv tasks` go through RULES. This file imports no NumPy, so `--help`
can list the tasks; a rule works with the methods and operators of the array it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """`target(x, a)`: digits (n, T) below the alphabet size a -> the answers, (n, T)."""

    about: str
    target: Callable
    even: str | None = None  # why the length must be even, if it must


def _sorted(x):
    x = x.copy()
    x.sort(axis=1)
    return x


def _halves_swapped(x):
    half = x.shape[1] // 2
    return x[:, [*range(half, x.shape[1]), *range(half)]]


RULES = {
    "reverse": Rule("the sequence backwards", lambda x, a: x[:, ::-1]),
    "sort": Rule("the digits in ascending order", lambda x, a: _sorted(x)),
    "sub": Rule(
        "each digit d becomes 9 - d (alphabet size - 1 - d)",
        lambda x, a: a - 1 - x,
    ),
    "swap": Rule(
        "the second half first; even lengths only",
        lambda x, a: _halves_swapped(x),
        even="exchanges two halves",
    ),
    "copy": Rule("the sequence itself", lambda x, a: x),
}
RECALL = {
    "pairs": "recall: key and value in one token, then keys alone; answer with their values",
    "mqar": "recall: keys and values in turn, then keys alone; answer with their values",
}
TEXT = {"text": "a text: predict the next token"}
IMAGES = {
    "images": "an image, cut into patches: say what is shown",
    "segment": "a generated image: say what covers each patch",
    "sets": "ten images: say which one is of a different class",
}
TASKS = {name: rule.about for name, rule in RULES.items()} | RECALL | TEXT | IMAGES
FORMS = ("encoder", "causal")
SPLITS = ("train", "validation", "test")
TOKENIZERS = {  # name of a kind, as --tokenizer takes it -> what its tokens are
    "chars": "characters of the text",
    "bytes": "the 256 bytes",
    "bpe-1024": "that many tokens, learned from the text",
    "gpt2:PATH": "by GPT-2's merges.txt",
    "FILE.json": "as saved by `minqkv tokenize --save`",
}
YEARS = (
    "2023",
    "2026",
)  # protocols, by the year of the paper: synthetic.TRAINING and models.PROTOCOLS
