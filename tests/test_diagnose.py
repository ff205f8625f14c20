"""The curl of scores: zero for a reversible chain."""

import numpy as np
import pytest
from toys import gpt, tagger

from minqkv.analysis.diagnose import cycle_curl
from minqkv.runtime.tracing import trace


def relative_curl(scores):
    return cycle_curl(scores) / np.abs(scores).max()


@pytest.mark.parametrize(
    ("variant", "reversible"),
    [
        ("qkv", False),
        ("q-k=v", False),
        ("q=k-v", True),
        ("q=k=v", True),
        ("q=k-v+", True),
        ("q=k=v+", True),
    ],
)
def test_curl_tells_direction(variant, reversible, backend, rng):
    """Q = K is a reversible chain and "+" does not change that; its pattern is not symmetric all
    the same.
    """
    ids = rng.integers(0, 11, (2, 12))
    with trace() as t:
        tagger(variant)(ids)
        gpt(variant, position="none")(ids)
    patterns = [t.all(f"blocks.{i}.attn.pattern")[0] for i in range(2)]
    scores = [
        t.all(f"blocks.{i}.attn.{'plus' if variant.endswith('+') else 'scores'}")[1]
        for i in range(2)
    ]
    for found in (*map(np.log, patterns), *scores):
        assert found.shape == (2, 4, 12, 12)
        assert relative_curl(found) < 1e-12 if reversible else relative_curl(found) > 0.1
    assert np.abs(patterns[0] - patterns[0].swapaxes(-1, -2)).max() > 0.05


def test_curl_by_hand():
    assert cycle_curl([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) == 3
    assert cycle_curl([[[0, 1, 0], [0, 0, 1], [0, 0, 0]], np.zeros((3, 3))]) == 2
    g, h = np.arange(3.0), np.array([0.5, -2, 4])
    assert cycle_curl(g[:, None] + h) == 0  # a row part and a column part turn nothing
