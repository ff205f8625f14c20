"""Hunt 15: `likely`, the tokens of top-p sampling, against the package."""

# /// script
# [tool.minqkv.hunt]
# title = "The likely tokens"
# question = """
# Top-p sampling. Texts are duller than they should be: the tokens that may be drawn are less \
# likely together than the threshold says, often much less."""
# exercise = "likely"
# reports = [
#   "https://github.com/ggml-org/llama.cpp/pull/1953",
#   "https://github.com/Biohub/esm/pull/360",
# ]
# source = [["minqkv.generation.nucleus", "missing ="]]
# ///

import numpy as np

from minqkv.generation import nucleus

TOLERANCE = 1e-9

LAW = "The fewest tokens that together reach top_p are kept, and no fewer."

HINTS = (
    "What is the sum of the probabilities that are kept? Compare it with top_p.",
    "The token that crosses the threshold is the one that makes the sum reach it.",
    "A token is needed as long as those before it do not reach top_p: total - p[order] < top_p.",
)

EXPLANATION = """
"The largest set below p" and "the smallest set that reaches p" sound alike, and differ by one
token, one of the more likely ones. If two tokens hold most of the probability, the first rule often
leaves only one of them.

One of these projects fixed it years ago; the other report is recent, and there are more. Tests that
put the threshold exactly on a sum cannot see the difference.
"""


def cases(rng):
    """Probabilities (V,) and a threshold."""
    e = np.exp(1.5 * rng.standard_normal(int(rng.integers(2, 7))))
    return e / e.sum(), float(rng.uniform(0.2, 0.95))


def reference(p, top_p):
    """The package's choice, as probabilities."""
    kept = np.isfinite(nucleus(np.log(p)[None], top_p)[0])
    return np.where(kept, p, 0) / p[kept].sum()
