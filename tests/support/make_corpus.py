"""Write minqkv/tasks/builtin.jsonl, the built-in corpus, from the project's history.

    python tests/support/make_corpus.py

It is a snapshot of the book and the lessons at one commit: one document a file, sorted by path. It
stays as it is, because results depend on it; tests/test_corpus.py asserts its SHA-256.
"""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "2de577ea01e8828b6c15a11cf9d04474da331443"
# The book, its models, and what the twelve lessons say.
TAKEN = re.compile(r"minqkv/(?!__)\w+\.py|minqkv/models/(?!__)\w+\.py|lessons/\w+/lesson\.py")


def git(*args):
    """What a git command prints."""
    return subprocess.run(
        ["git", *args], cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    ).stdout


def documents():
    """A JSON object for each file."""
    for path in sorted(git("ls-tree", "-r", "--name-only", COMMIT).splitlines()):
        if TAKEN.fullmatch(path):
            yield json.dumps(
                {"name": path, "text": git("show", f"{COMMIT}:{path}")}, ensure_ascii=False
            )


if __name__ == "__main__":
    place = ROOT / "minqkv" / "tasks" / "builtin.jsonl"
    place.write_text("".join(line + "\n" for line in documents()), "utf-8", newline="\n")
