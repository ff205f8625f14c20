"""Docstrings that a user sees, read from files: `python -OO` drops them."""

import ast
from pathlib import Path


def docstrings(path) -> dict:
    """name -> docstring of the functions and classes of a file."""
    tree = ast.parse(Path(path).read_text("utf-8"))
    defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: ast.get_docstring(node) or "" for node in defined}
