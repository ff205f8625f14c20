"""What `vectors check` says of other implementations, at other sizes: a right one is not refused,
each known mistake is named, and no other one is.
"""

from functools import cache, partial

import numpy as np
import pytest
from mistakes import KNOWN, UNKNOWN
from other_attention import Other
from plain_attention import Plain
from remembered import predictions_once

from minqkv.analysis.vectors.called import answer
from minqkv.analysis.vectors.case import Sizes
from minqkv.analysis.vectors.cases import cases
from minqkv.analysis.vectors.causes import named
from minqkv.analysis.vectors.compare import check
from minqkv.analysis.vectors.computed import results
from minqkv.analysis.vectors.files import Task, as_due
from minqkv.analysis.vectors.tolerances import tolerances

DEFAULT = Sizes()  # thin keys have as many channels as there are heads
SQUARE = Sizes(n_head=8, kv_heads=2, head_dim=8, seed=1)  # so has nearly everything
OTHERS = [Sizes(n_head=6, kv_heads=2, head_dim=8, seed=3), Sizes(seed=10),
          Sizes(n_head=4, head_dim=16, n_embd=24, length=7, seed=2)]  # fmt: skip
LAYERS = ("q=k-v/rope", "qkv/alibi", "q=k-v/sinusoidal")


def task(case, name):
    """A task as `load` gives it, without a file."""
    given = case.given()
    right = results(case, name, given, case.layer(task=name))
    within = {n: {} for n in right} | tolerances(case, name, given, right)
    due = {n: as_due(case, name, n, array) for n, array in right.items()}
    return Task(case, name, case.about(task=name), given, due, within)


@cache
def tasks(sizes):
    """All kernels, and a few layers."""
    some = [case for case in cases(sizes) if case.level == "kernel" or case.name in LAYERS]
    return [task(case, name) for case in some for name in case.tasks[:2]]


def compared(sizes, function, dtypes=("float32",), layers=LAYERS):
    some = [t for t in tasks(sizes) if t.case.level == "kernel" or t.case.name in layers]
    return named(some, [*check(some, dtypes, partial(answer, function))])


def wrong(rows):
    return [row for row in rows if row["state"] not in ("ok", "not done")]


@pytest.fixture(scope="module", autouse=True)
def once():
    """What known mistakes give is computed once, not for every mistake."""
    with predictions_once():
        yield


# ---- right implementations


def torch_attention(given, about):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from check_torch import attend

    return attend(given, about)


@pytest.mark.parametrize("sizes", [DEFAULT, SQUARE, *OTHERS], ids=str)
@pytest.mark.parametrize("function", [Plain(), Other(), torch_attention], ids=["a", "b", "torch"])
def test_what_is_right_is_not_refused(function, sizes, monkeypatch):
    """Whatever the order of sums, gradients included: also those that are nearly zero, because a
    softmax does not notice what is added to a whole row.
    """
    monkeypatch.syspath_prepend("examples")
    rows = compared(sizes, function, ("float64", "float32"))
    assert wrong(rows) == []
    assert sum(row["state"] == "ok" for row in rows) >= 34


def test_large_scores_overflow_exp():
    """In every dtype, without a shift by the largest score."""
    (case,) = [t for t in tasks(DEFAULT) if t.case.name == "kernel/large scores"]
    seen = case.due["pattern"] > 0
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(case.due["scores"][seen])).all()
    assert case.due["pattern"][:, :, 1:].max() < 0.95  # but no query looks at one key only


def long_sums(dot=np.matmul, before=1.0):
    """A function for the two cases of long sums alone, with another `dot` in place of a @ b. The
    queries are multiplied by the scale to the power of `before`, the keys by the rest.
    """

    def function(given, about):
        if about["case"] not in ("kernel/long sum", "kernel/wide sum"):
            return None
        dtype = about["dtype"].replace("float16", "float32")
        q, k, v = (given[name].astype(dtype) for name in "qkv")  # k, v (1, 1, S, d): one KV head
        scale = np.asarray(about["scale"], dtype)
        scores = dot(q * scale**before, (k * scale ** (1 - before)).swapaxes(2, 3))
        e = np.exp(scores - scores.max(-1, keepdims=True))
        pattern = e / e.sum(-1, keepdims=True)
        found = {"scores": scores, "pattern": pattern, "z": dot(pattern, v)}
        return {name: a.astype(about["dtype"]) for name, a in found.items()}

    return function


def one_by_one(a, b):
    """a @ b, its terms added one after another in the dtype of a."""
    total = np.zeros((), a.dtype)
    for i in range(a.shape[-1]):
        total = (total + a[..., i, None] * b[..., i, None, :]).astype(a.dtype)
    return total


@pytest.mark.parametrize("sizes", [DEFAULT, *OTHERS[:1]], ids=str)
@pytest.mark.parametrize("before", [0, 0.5, 1])
@pytest.mark.parametrize("dot", [np.matmul, one_by_one, lambda a, b: np.einsum("...i,...ij", a, b)])
def test_long_sums_are_right_in_any_order_with_a_scale_anywhere(sizes, before, dot):
    rows = compared(sizes, long_sums(dot, before), ("float64", "float32"))
    assert wrong(rows) == []
    assert sum(row["state"] == "ok" for row in rows) == 4


# ---- mistakes


def in_half(a, b, together=1):
    """Each partial sum rounded to float16, of so many terms `together` in float32."""
    total = np.zeros((), "float16")
    for i in range(0, a.shape[-1], together):
        total = (total + a[..., i : i + together] @ b[..., i : i + together, :]).astype("float16")
    return total.astype(a.dtype)


def in_pairs(a, b):
    x = (a[..., None] * b[..., None, :, :]).astype("float16")  # (..., n, m)
    while x.shape[-2] > 1:
        odd = x[..., x.shape[-2] // 2 * 2 :, :]
        x = np.concatenate([x[..., 0:-1:2, :] + x[..., 1::2, :], odd], -2)
    return x[..., 0, :].astype(a.dtype)


@pytest.mark.parametrize("sizes", [DEFAULT, SQUARE, *OTHERS], ids=str)
@pytest.mark.parametrize("dot", [in_half, partial(in_half, together=4), in_pairs])
def test_float16_accumulation_in_any_order(sizes, dot):
    found = wrong(compared(sizes, long_sums(dot), ("float16",)))
    assert {row["cause"] for row in found} == {"float16 accumulation"}


@pytest.mark.parametrize("lost", [[-1], range(1984, 2048), range(16), [0, 700, 1400]], ids=str)
def test_terms_that_are_missing_in_long_sums_have_no_name(lost):
    """Even where the error is about as large as that of float16."""

    def dot(a, b):
        kept = np.ones(a.shape[-1], a.dtype)
        kept[list(lost) if len(kept) == 2048 else []] = 0
        return (a * kept) @ b

    for sizes in (DEFAULT, SQUARE):
        found = wrong(compared(sizes, long_sums(dot), ("float16",)))
        assert found
        assert {row["cause"] for row in found} == {None}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_mistake_has_no_name(name):
    """Though in some cases it may give the same numbers as a known one."""
    sizes = (SQUARE, DEFAULT)[[*UNKNOWN].index(name) % 2]
    found = wrong(compared(sizes, UNKNOWN[name], layers=LAYERS[:1]))
    assert found
    assert {row.get("cause") for row in found} == {None}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("scale 1/sqrt(H d)", DEFAULT),
        ("softmax base 2", DEFAULT),
        ("turned three times", DEFAULT),
        ("mask two keys ahead", DEFAULT),
        ("mask strict by two keys", DEFAULT),
    ],
)
def test_other_cases_refute_a_name(name, sizes):
    """In one case each of these gives what a known mistake gives."""
    assert {row["cause"] for row in wrong(compared(sizes, UNKNOWN[name]))} == {None}


@pytest.mark.parametrize(("cause", "how"), KNOWN)
def test_a_known_mistake_has_its_name(cause, how):
    found = wrong(compared(SQUARE, KNOWN[cause, how], layers=LAYERS[:1]))
    assert {row["cause"] for row in found} == {cause}


def squared_gain(layer):
    for name in ("q_gain", "k_gain"):
        gain = getattr(layer, name, None)
        if gain is not None:
            gain.data *= gain.data


def nothing(layer):
    pass


OF_A_LAYER = {  # a change to the real layer, and to what it gives
    "no norm": (lambda layer: vars(layer).update(norm=False), {}),
    "gain twice": (squared_gain, {}),
    "int8 scale over 128": (nothing, {"cache.k.scale": lambda a: a * np.float32(127 / 128)}),
    "slots in reverse": (nothing, {"cache.k": lambda a: a[:, :, :, ::-1].copy()}),
    "next slot": (nothing, {"cache.v": lambda a: np.roll(a, 1, 3)}),
    "bytes of the first token": (nothing, {"cache.bytes": lambda a: a[0] + 0 * a}),
}


@pytest.mark.parametrize("name", OF_A_LAYER)
def test_an_unknown_mistake_in_norms_or_caches_has_no_name(name):
    change, after = OF_A_LAYER[name]
    known = {(t.case.name, t.task): t for case in cases(DEFAULT)
             if case.name in ("qkv/rope", "shipped/qwen3")
             for t in (task(case, each) for each in case.tasks)}  # fmt: skip

    def function(given, about):
        t = known[about["case"], about["task"]]
        layer = t.case.layer(task=t.task, weights=t.given)
        change(layer)
        found = results(t.case, t.task, t.given, layer)
        found = {n: as_due(t.case, t.task, n, array) for n, array in found.items()}
        return found | {n: f(found[n]) for n, f in after.items() if n in found}

    rows = named([*known.values()], [*check([*known.values()], ("float64",), function)])
    found = wrong(rows)
    assert found
    assert {row["cause"] for row in found} == {None}


def test_a_mistake_in_one_part_of_the_code():
    """Of decoding, or of rotary positions alone: the cases of other code do not refute it."""
    for part in ({"task": "plain"}, {"position": "rope"}):

        def scale(about, part=part):
            here = all(about[name] == value for name, value in part.items())
            return 1 / about["query_width"] if here else about["scale"]

        found = wrong(compared(DEFAULT, Other(scale=scale)))
        assert "scaled by d" in {row["cause"] for row in found} <= {"scaled by d", None}
