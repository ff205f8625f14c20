"""The test of claims: its judgements on known numbers, its measurements on constructed models, and
what docs/claims.md shows.
"""

import contextlib
import io
import itertools
import re
import sys

import numpy as np
import pytest
from commands import ROOT
from toys import gpt, scramble, tagger

from minqkv.analysis.diagnose import circuits, cosine
from minqkv.runtime.rng import stream
from minqkv.study.stats import estimate

sys.path.append(str(ROOT))  # bench is run from a checkout; it is not installed

from bench.claims import SEEDS, Check, Claim, Runs, all_claims, learned, named, score, show, stored
from bench.claims_measured import ARMS, attending, gauges, literal, shifted

SCORE = named("score")
EIGHT = [0.1 + 0.01 * i for i in range(8)]  # all above zero: p = 2 / 2^8
X = stream(0, "x").integers(0, 11, (4, 12))


@pytest.mark.parametrize(
    ("values", "kind", "bound", "outcome"),
    [
        (EIGHT, "above", 0.0, "holds"),
        (EIGHT, "above", 0.135, "cannot be told"),
        (EIGHT, "above", 0.2, "fails"),
        (EIGHT[:3], "above", 0.0, "cannot be told"),  # p = 2 / 2^3
        (EIGHT, "within", 0.2, "holds"),
        (EIGHT, "within", 0.14, "cannot be told"),
        (EIGHT, "within", 0.05, "fails"),
        ([-x for x in EIGHT], "within", 0.05, "fails"),
        (EIGHT, "at most", 0.17, "holds"),
        (EIGHT, "at most", 0.16, "fails"),
    ],
)
def test_a_check(values, kind, bound, outcome):
    check = Check("", values, kind, bound)
    assert Claim("", "", "", [check]).judged() == ([outcome], outcome)


def test_a_claim_corrects_for_its_checks_and_needs_all():
    good = Check("", EIGHT, "above")
    assert Claim("", "", "", [good] * 6).judged()[1] == "holds"  # 6 · .0078 is below .05
    assert Claim("", "", "", [good] * 7).judged()[1] == "cannot be told"
    found = Claim("", "", "", [good, Check("", EIGHT, "at most", 0.0)]).judged()
    assert found == (["holds", "fails"], "fails")


def test_differences_are_paired_by_seed_and_need_trained_runs():
    def row(arm, seed, score):
        return {"arm": arm, "seed": seed, "score": score, "metric": "accuracy"}

    rows = [row("reverse qkv", 0, 0.96), row("reverse qkv", 1, 1.0), row("reverse q=k-v", 1, 0.98),
            row("reverse q=k-v", 0, 0.5), row("slow q=k=v", 0, 0.2)]  # fmt: skip
    assert [learned(r) for r in rows] == [True, True, True, False, True]
    runs = Runs(rows)
    assert runs.minus(lambda r: r["score"], "reverse qkv", "reverse q=k-v") == [1.0 - 0.98]


def test_a_rotation_of_each_head_reaches_the_cosine_that_is_named():
    model = gpt("qkv")
    most, reached = gauges(model), []
    for block in model.blocks:
        for k, v in zip(*circuits(block.attn)[1:3], strict=True):
            u, _, w = np.linalg.svd(k.T @ v)
            reached.append([cosine(k @ u @ w * sign, v) for sign in (1, -1)])
    assert [most["cos largest"], most["cos smallest"]] == pytest.approx(np.mean(reached, 0))
    assert most["cos largest"] > 0.1


def test_only_what_is_turned_back_does_not_move_with_its_positions():
    for variant, value, moves in (("q-k=v", "raw", False), ("q-k=v", "unrotate", False),
                                  ("qkv", "raw", False), ("q-k=v", "unrotate", True)):  # fmt: skip
        model = gpt(variant, position="rope", rope_value=value)
        for block in model.blocks:
            block.attn.turn_back &= not moves
        assert (shifted(model, X) > 0.01) == moves
        assert (shifted(model, X) < 1e-10) != moves


def test_the_plus_as_written_gives_the_same_pattern():
    model = scramble(tagger("q=k-v+"))
    assert literal(model, X) < 1e-12
    plus = model.blocks[0].attn.plus
    plus.columns.data[...] = plus.columns.data[::-1].copy()
    assert literal(model, X) < 1e-12  # both read the table of the layer
    wrong = plus.forward
    plus.forward = lambda at: (wrong(at)[0], None)
    assert literal(model, X) > 1e-3


def test_only_a_query_of_its_own_has_a_direction():
    for variant, curled in (("qkv", True), ("q=k-v", False), ("q=k-v+", False)):
        found = attending(scramble(tagger(variant)), X)
        assert (found["least curl"] > 1e-3) == curled
        assert (found["curl"] < 1e-10) != curled
        assert found["map asymmetry"] > 0.01  # the softmax divides each row by its own sum


def test_every_run_is_committed_and_the_page_shows_them():
    rows = stored()
    assert [(r["arm"], r["seed"]) for r in rows] == [(arm, s) for arm in ARMS for s in SEEDS]
    printed, page = io.StringIO(), (ROOT / "docs/claims.md").read_text("utf-8")
    with contextlib.redirect_stdout(printed):
        show(rows)
    claims, checks = printed.getvalue().strip().split("\n\n")
    assert len(claims.splitlines()) == 2 + len(all_claims(rows))
    assert claims in page
    assert checks in page


def test_the_page_shows_what_the_plan_did_not_ask():
    runs, page = Runs(stored()), " ".join((ROOT / "docs/claims.md").read_text("utf-8").split())

    def shown(values, digits):
        found = estimate(values)
        text = f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"
        return re.sub(r"\b0\.", ".", text)

    for arm, text in (("q-k=v", "{} % with q-k=v"), ("q=k-v", "{} % with q=k-v")):
        pairs = zip(runs.of(f"text {arm}", SCORE), runs.of("text qkv", SCORE), strict=True)
        assert text.format(shown([100 * (a / b - 1) for a, b in pairs], 1)) in page
    better = runs.minus(score, "text q=k-v", "text q-k=v")
    assert f"by {shown(better, 3)} of loss" in page
    plus = runs.minus(SCORE, "slow q=k=v+", "slow q=k=v")
    assert f"is higher by {shown(plus, 3)} in the slow runs" in page


def test_no_cell_of_a_table_has_a_bar():
    """It would be two cells."""
    for name in ("claims", "claims-plan", "convert", "diagnose", "vectors", "plan"):
        lines = (ROOT / f"docs/{name}.md").read_text("utf-8").split("\n")
        for above, line in itertools.pairwise(lines):
            if above.startswith("|") and line.startswith("|"):
                assert above.count("|") == line.count("|"), line
