"""What a learner types at a question: a number as people write it, a letter, yes or no.

An expression is parsed and computed here, node by node; nothing of it is ever executed.
"""

import ast
import math
import operator
import re
import warnings

_OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
_FUNCTIONS = {"sqrt": math.sqrt, "exp": math.exp, "log": math.log}
_SPELLED = str.maketrans({"−": "-", "·": "*", "×": "*", "^": "**", "½": "(1/2)", "¼": "(1/4)"})
LONGEST = 80  # characters of a number


def number(text: str) -> list[float]:
    """The finite numbers that a text may mean: 1/2, 50%, 2*3, sqrt(2), 1 024; 1,024 has two
    readings. Empty if it is not a number.
    """
    text = re.sub(r"(?<=\d)%$", "/100", re.sub(r"(?<=\d) (?=\d{3}\b)", "", text.strip()))
    readings = {text.replace(",", "."), text.replace(",", "")}
    found = [_computed(reading.translate(_SPELLED)) for reading in readings]
    return [value for value in found if isinstance(value, float) and math.isfinite(value)]


def _computed(text):
    try:
        if len(text) > LONGEST:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of a text that is hardly a number
            return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, LookupError, ValueError, ArithmeticError, AttributeError):
        return None


def _value(node):
    """The number of an expression. Raises LookupError for anything else."""
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        return _OPERATIONS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return _FUNCTIONS[node.func.id](_value(node.args[0]))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    raise LookupError(node)


def verdict(reply: str, answer, options: list[str] | None, tolerance: float) -> bool | None:
    """Whether a reply is right; None if it does not answer such a question."""
    low = reply.lower()
    if options is not None:
        letters = dict(zip("abcdefgh", options, strict=False))
        bare = {re.sub(r"[\s()\[\]]", "", option.lower()): option for option in options}
        chosen = letters.get(low, bare.get(re.sub(r"[\s()\[\]]", "", low)))
        return None if chosen is None else chosen == answer
    if isinstance(answer, bool):
        said = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
        return said[low] == answer if low in said else None
    if isinstance(answer, (int, float)):
        found = [abs(value - answer) <= tolerance for value in number(reply)]
        return any(found) if found else None
    return low == str(answer).lower()


def wanted(answer, options: list[str] | None) -> str:
    """What such a question takes, in words."""
    if options is not None:
        return f"Answer with a letter from a to {'abcdefgh'[len(options) - 1]}."
    if isinstance(answer, bool):
        return "Answer yes or no."
    return "Answer with a number, such as 0.5, 1/2 or 3*4."
