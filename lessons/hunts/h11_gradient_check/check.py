"""Hunt 11: `is_right`, a gradient check, on backwards that are right and on some that are not."""

# /// script
# [tool.minqkv.hunt]
# title = "A gradient check that never complains"
# question = """
# A function that checks backwards. It has passed every softmax it was shown, also one whose \
# gradient is always zero.\
# """
# exercise = "is_right"
# reports = ["https://github.com/harvard-edge/cs249r_book/pull/2053"]
# source = [["minqkv.checking.gradcheck", "u = rng"]]
# ///

import numpy as np

TOLERANCE = 0

LAW = "A check passes a backward if and only if it is right."

HINTS = (
    "What is the sum of a row of a softmax? How does that sum change when x changes?",
    "With g all ones, the check asks for the gradient of the sum of all outputs. For a softmax "
    "that is a constant, so zero is right, and many wrong backwards give zero.",
    "Give each output a weight of its own: g = np.random.default_rng(0).standard_normal(y.shape).",
)

EXPLANATION = """
The rows of a softmax sum to one whatever x is, so the gradient of their sum is zero. A cotangent of
ones asks only for that, and accepts zero, a wrong sign, and half of the formula.

In the public report, an operator in the backward of a softmax was changed on purpose: minus to
plus, to times, to divided by. No test noticed, because each called `.sum()` on the output first.
`minqkv.gradcheck` draws a random cotangent and a random direction.
"""


def softmax(x):
    """Rows that sum to one."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _softmax(x, g):
    y = softmax(x)
    return y * (g - (g * y).sum(axis=1, keepdims=True))


def _first_row(x, g):
    return np.where(np.arange(len(x))[:, None] == 0, _softmax(x, g), 0)


def _mean_row(x, g):
    return _softmax(x, np.broadcast_to(g.mean(axis=0), g.shape))


BACKWARDS = {  # name -> (forward, backward)
    "softmax": (softmax, _softmax),
    "softmax, always zero": (softmax, lambda x, g: 0 * x),
    "softmax, twice as large": (softmax, lambda x, g: 2 * _softmax(x, g)),
    "softmax, only its first row": (softmax, _first_row),
    "softmax, of the mean row": (softmax, _mean_row),
    "tanh": (np.tanh, lambda x, g: g * (1 - np.tanh(x) ** 2)),
    "tanh, without g": (np.tanh, lambda x, g: 1 - np.tanh(x) ** 2),
}


def cases(rng):
    """One array x (T, d)."""
    return (rng.standard_normal((int(rng.integers(2, 4)), int(rng.integers(2, 5)))),)


def use(learner, x):
    """What the check says of each backward."""
    return {name: learner.is_right(*pair, x.copy()) for name, pair in BACKWARDS.items()}


def reference(x):
    """Which of them are right."""
    return {name: "," not in name for name in BACKWARDS}
