"""Measures of a trained attention: known answers, what stays the same when the weights are
rewritten, the command, its page, and what docs/diagnose.md says.
"""

import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
from browser import overflow, pale, unfold, visit
from commands import ROOT
from pages import Page
from toys import design, gpt, tagger, vit

from minqkv.analysis import diagnose as d
from minqkv.analysis.diagnose import cycle_curl, diagnose
from minqkv.analysis.patterns import patterns, visible
from minqkv.attention import Attention
from minqkv.designs.linear import LinearGPT
from minqkv.models import GPTConfig
from minqkv.nn import Init, Module
from minqkv.render.diagnose import MAPS, blocks, map_lines, meanings
from minqkv.render.document import _pipes
from minqkv.render.layout import Page as Terminal
from minqkv.runs import configure, train_run
from minqkv.runtime.errors import UsageError
from minqkv.runtime.tracing import trace
from minqkv.tensor import Tensor

SMALL = {"seq_len": 6, "n_layer": 2, "n_head": 2, "n_embd": 8, "steps": 4, "n_test": 20}
COMMITTED = ROOT / "bench/results/diagnose/reverse-qkv.json"
DOCS = (ROOT / "docs/diagnose.md").read_text("utf-8")
EXACT = ["qk_values", "ov_values", "angles", "qk_rank", "ov_rank", "overlap", "entropy"]
EXACT += ["distance", "diagonal", "asymmetry", "curl"]  # whatever the change of basis
SIMILAR = ["v_from_k", "k_from_v", "cka"]  # under rotations and scales


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run."""
    out = tmp_path_factory.mktemp("run") / "small"
    train_run(configure("reverse", "qkv/q-k=v", **SMALL), out)
    return out


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """The folder of a small language model that knows the letters a to d, and blanks. It has been
    trained on documents, each in a row, with padding after it.
    """
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("abcd dcba bad cab " * 200)
    size = {name: SMALL[name] for name in ("n_layer", "n_head", "n_embd", "steps")}
    size |= {"text": str(folder / "text.txt"), "seq_len": 8, "padded": True}
    train_run(configure("text", **size), folder / "run")
    return folder / "run"


# ---- the curl


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


# ---- known answers


def test_ranks_of_constructed_matrices(rng):
    u, v, w = rng.standard_normal((3, 12, 4))
    np.testing.assert_allclose(
        d.spectrum(u, v), np.linalg.svd(u @ v.T, compute_uv=False)[:4], rtol=1e-9
    )
    one = np.outer(u[:, 0], [1.0, 2, 3, 4])  # rank one
    assert d.effective_rank(d.spectrum(one, v)) == pytest.approx(1, abs=1e-6)
    equal = np.linalg.qr(w)[0]
    assert d.effective_rank(d.spectrum(equal, equal)) == pytest.approx(4)
    assert d.effective_rank(np.array([3.0, 3, 0])) == pytest.approx(2)
    assert len(d.spectrum(*rng.standard_normal((2, 3, 5)))) == 3  # heads wider than the model


def test_equal_and_orthogonal_spaces(rng):
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    a, mixed = basis[:, :4], rng.standard_normal((4, 4))
    for b, angles, share in (
        (a @ mixed, [0, 0, 0, 0], 1),
        (basis[:, 4:8], [90, 90, 90, 90], 0),
        (basis[:, 2:6], [0, 0, 90, 90], 0.5),
        (np.outer(a[:, 0] + basis[:, 5], [1, 2, 3.0]), [45], 0.5),  # rank one has one angle
    ):
        found = d.principal_angles(a @ mixed.T, b)
        np.testing.assert_allclose(found, angles, atol=1e-5)
        assert d.overlap(found) == pytest.approx(share)
    assert math.isnan(d.overlap(d.principal_angles(a, np.zeros((12, 2)))))
    assert d.cosine(a, -3 * a) == pytest.approx(-1)
    assert d.cosine(a, basis[:, 4:8]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(d.cosine(a, basis[:, :2]))


@pytest.mark.parametrize(("C", "a", "b"), [(24, 4, 4), (24, 3, 8), (10, 10, 4)])
def test_chance_of_principal_angles(C, a, b, rng):
    """Against a simulation of its own: uniform subspaces, from normal numbers."""
    drawn = []
    for _ in range(200):
        p, q = (np.linalg.qr(rng.standard_normal((C, n)))[0] for n in (a, b))
        drawn.append(np.linalg.svd(p.T @ q, compute_uv=False))
    chance = d._unrelated(C, a, b)
    assert np.mean(np.square(drawn)) == pytest.approx(chance["overlap"], abs=0.02)
    angles = np.degrees(np.arccos(np.minimum(drawn, 1))).mean(0)
    np.testing.assert_allclose(chance["angles"], angles, atol=4)


def test_r2_and_cka_of_constructed_arrays(rng):
    k = rng.standard_normal((40, 8, 4))
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    assert d.cross_r2(k, k @ rng.standard_normal((4, 3)) + 5) == pytest.approx(1)
    many = rng.standard_normal((1000, 8, 4))
    half = np.concatenate([many[..., :2], rng.standard_normal((1000, 8, 2))], -1)
    assert d.cross_r2(many, half) == pytest.approx(0.5, abs=0.03)
    assert -0.2 < d.cross_r2(k, rng.standard_normal((40, 8, 4))) < 0.02
    assert d.cka(k, 3 * k @ rotation + 1) == pytest.approx(1)
    assert d.cka(k, rng.standard_normal((40, 8, 4))) < 0.05
    for few in (k[:1], k[:2, :4]):  # nothing to judge on, and too little to fit
        assert math.isnan(d.cross_r2(few, few))
    assert math.isnan(d.cross_r2(k, np.ones_like(k)))
    assert math.isnan(d.cka(k, np.ones_like(k)))


def test_how_heads_attend_by_hand(rng):
    T, every = 6, np.ones((6, 6), bool)
    at = np.arange(T)
    even, own = np.full((T, T), 1 / T), np.eye(T)
    before = np.roll(own, -1, axis=1)  # each looks one ahead, the last at the first
    turning = np.triu(np.ones((T, T)), 1) - np.tril(np.ones((T, T)), -1)
    scores = np.stack([own, -own, turning])
    found = d.attending(scores, np.stack([even, own, before]), every)
    np.testing.assert_allclose(found["entropy"], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found["distance"], [35 / 18, 0, 10 / 6])
    np.testing.assert_array_equal(found["diagonal"], [1, 0, 1 / 6])
    np.testing.assert_array_equal(found["asymmetry"], [0, 0, 1])
    np.testing.assert_array_equal(found["curl"][:2], [0, 0])
    assert d.evenly(every)["distance"] == pytest.approx(abs(at[:, None] - at).mean())
    drawn = d.attending(rng.standard_normal((4000, T, T)), np.tile(even, (4000, 1, 1)), every)
    for name in ("diagonal", "asymmetry"):
        assert drawn[name].mean() == pytest.approx(d.evenly(every)[name], abs=0.01)


def test_what_a_query_cannot_see_does_not_count():
    """In a decoder the first query has no choice; with the diagonal hidden, nobody sees itself."""
    causal = visible(gpt("qkv"), 3)
    weights = np.array([[[1, 0, 0], [0.5, 0.5, 0], [1, 0, 0]]])
    scores = np.array([[[-9.0, 9, 9], [0, 1, 9], [0, 0, 1]]])
    found = d.attending(scores, weights, causal)
    assert (found["entropy"], found["diagonal"]) == (0.5, 1)
    assert d.evenly(causal)["diagonal"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    hidden = visible(tagger("qkv", hide_self=True), 3)
    assert not hidden.diagonal().any()
    assert d.evenly(hidden)["diagonal"] == pytest.approx(1 / 3)
    window = visible(gpt("qkv", window=1), 3)
    assert math.isnan(d.evenly(window)["diagonal"])
    assert np.isnan(d.attending(scores, np.eye(3)[None], window)["entropy"]).all()


# ---- every design


DESIGNED = ["qkv", "q=k-v", "q-k=v", "q=k=v", "gqa-2", "thin-2", "q-mqa", "gla-2", "mla"]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("variant", "position"),
    [*itertools.product(DESIGNED, ["none", "rope"]), ("gta-2", "rope")],  # gta has no other
)
def test_circuits_are_those_of_the_forward_pass(variant, position, norm, rng):
    """Scores are x W_q W_kᵀ xᵀ, and the output is Σ pattern x W_v W_o. Rotary positions do not
    change the score of a token with itself; norms scale queries and rows, token by token.
    """
    attn = Attention(variant, 12, 4, 8, Init(0, "float64"), bias=False, position=position,
                     head_dim=4, norm=norm).eval()  # fmt: skip
    for p in attn.parameters():
        p.data = p.data + rng.standard_normal(p.shape) / 3
    x = rng.standard_normal((8, 12))
    with trace() as t:
        out = attn(Tensor(x[None])).numpy()[0]
    q, k, v, o = d.circuits(attn)
    scores, pattern = t["scores"][0] * attn.root, t["pattern"][0]
    expected = (x @ q) @ (x @ k).swapaxes(-1, -2)  # (H, T, T)
    if position == "rope":
        scores, expected = (np.diagonal(a, axis1=1, axis2=2) for a in (scores, expected))
    scaled = norm or attn.spec.latent
    if not scaled:
        np.testing.assert_allclose(scores, expected, atol=1e-9)
        np.testing.assert_allclose((pattern @ (x @ v @ o)).sum(0), out, atol=1e-9)
    elif position == "none":
        ratio = scores / expected  # of one row and one column: rank one, the same in all heads
        assert np.linalg.matrix_rank(ratio[0], tol=1e-6) == 1
    stored = {"k": t["k"], "v": t["v"], "scores": t["scores"], "pattern": t["pattern"]}
    attn.name, named = "a", {f"a.{name}": array for name, array in stored.items()}
    seen = d._on_sequence(attn, named, np.ones((8, 8), bool))
    for found, weights in ((seen["k"], k), (seen["v"], v)):  # unturned, for each query head
        assert found.shape == (4, 8, weights.shape[-1])
        if not scaled:
            np.testing.assert_allclose(found, x @ weights, atol=1e-9)


@pytest.mark.parametrize("name", ["q-k=v", "q=k=v+", "q-gqa-2", "norms, unrotate"])
def test_with_one_row_nothing_is_compared(name, rng):
    for layer in diagnose(design(name), rng.integers(0, 11, (4, 12))):
        for head in layer["heads"]:
            assert head["angles"] == []
            assert all(math.isnan(head[n]) for n in ("overlap", "cosine", *SIMILAR))
            assert 1 < head["qk_rank"] <= 6
            if name == "q=k=v+":
                assert head["curl"] < 1e-9 < head["asymmetry"]


def test_encoders_of_vectors_have_no_distance(rng):
    (layer, _) = diagnose(vit("gqa-2"), rng.standard_normal((6, 5, 6)))
    assert math.isnan(layer["chance"]["distance"])
    for head in layer["heads"]:
        assert math.isnan(head["distance"])
        assert 0 < head["entropy"] < 1
    assert layer["heads"][0]["angles"] == layer["heads"][1]["angles"]  # of one group


def test_a_model_of_ones_own(rng):
    """One that is no GPT, Tagger or ViT: its attention is found all the same."""

    class Own(Module):
        def __init__(self):
            self.mixer = Attention("gqa-2", 12, 4, 8, Init(0, "float64", name="mixer"))

        def forward(self, x):
            return self.mixer(Tensor(x))

    x = rng.standard_normal((6, 8, 12))
    (layer,) = diagnose(Own().eval(), x)
    assert (layer["name"], len(layer["heads"])) == ("mixer", 4)
    assert layer["chance"]["diagonal"] == pytest.approx(1 / 8)
    assert patterns(Own().eval(), x)["mixer"].shape == (6, 4, 8, 8)


def test_what_cannot_be_diagnosed():
    with pytest.raises(UsageError, match="2 tokens in a sequence: at least 3 are needed"):
        diagnose(gpt("qkv"), np.zeros((1, 2), int))
    with pytest.raises(UsageError, match="no attention"):
        diagnose(gpt("qkv").blocks[0].mlp, np.zeros((1, 4), int))
    linear = LinearGPT(GPTConfig(11, 8, variant="q=k=v", n_layer=1, n_head=2, n_embd=8))
    with pytest.raises(UsageError, match="linear attention has no scores"):
        diagnose(linear.eval(), np.zeros((1, 4), int))


# ---- changes of basis


def rewritten(model, of_keys, of_values):
    """Change the basis of every stored head of every layer: matrices from `of_keys(d)` for queries
    and keys, from `of_values(d)` for values and the output projection.
    """
    for block in model.blocks:
        attn = block.attn
        group, width = attn.n_head // attn.kv_heads, attn.wo.weight.shape[0] // attn.n_head
        for j in range(attn.kv_heads):
            a, b = of_keys(width), of_values(width)
            change(attn.wk, j, width, np.linalg.inv(a).T)
            change(attn.wv, j, width, b)
            for i in range(group * j, group * (j + 1)):
                change(attn.wq, i, width, a)
                rows = slice(i * width, (i + 1) * width)
                attn.wo.weight.data[rows] = np.linalg.inv(b) @ attn.wo.weight.data[rows]
    return model


def change(linear, j, width, matrix):
    columns = slice(j * width, (j + 1) * width)
    for p in (linear.weight, linear.bias):
        p.data[..., columns] = p.data[..., columns] @ matrix


def numbers_of(model, ids):
    heads = [head for layer in diagnose(model, ids) for head in layer["heads"]]
    return {name: np.array([head[name] for head in heads]) for name in heads[0]}


@pytest.mark.parametrize("variant", ["qkv", "gqa-2"])
def test_rotations_and_scales_move_only_the_cosine(variant, rng):
    """The changes of basis of the paper (section 5) that keep lengths, up to one scale for each of
    the four projections.
    """
    ids = rng.integers(0, 11, (32, 12))
    model = gpt(variant)
    logits, before = model(ids).numpy(), numbers_of(model, ids)

    def similar(width):
        return rng.uniform(0.3, 3) * np.linalg.qr(rng.standard_normal((width, width)))[0]

    rewritten(model, similar, similar)
    np.testing.assert_allclose(model(ids).numpy(), logits, atol=1e-10)
    after = numbers_of(model, ids)
    assert before.keys() == {*EXACT, *SIMILAR, "cosine"}
    for name in (*EXACT, *SIMILAR):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=name)
    assert np.abs(after["cosine"] - before["cosine"]).max() > 0.1


def test_any_change_of_basis(rng):
    """The page promises for most numbers that nothing moves them; for R², that a change of what it
    is explained by does not. CKA may move.
    """
    ids = rng.integers(0, 11, (32, 12))
    model = gpt("qkv")
    logits, before = model(ids).numpy(), numbers_of(model, ids)

    def any_change(width):
        return rng.standard_normal((width, width)) + 2 * np.eye(width)

    after = numbers_of(rewritten(model, any_change, np.eye), ids)
    np.testing.assert_allclose(model(ids).numpy(), logits, atol=1e-9)
    for name in (*EXACT, "v_from_k"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=name)
    for name in ("k_from_v", "cka", "cosine"):
        assert np.abs(after[name] - before[name]).max() > 0.01, name
    between, after = after, numbers_of(rewritten(model, np.eye, any_change), ids)
    np.testing.assert_allclose(model(ids).numpy(), logits, atol=1e-9)
    for name in (*EXACT, "k_from_v"):
        np.testing.assert_allclose(after[name], between[name], atol=1e-6, err_msg=name)
    stays = {row[0]: row[-1] for row in meanings().rows}
    assert sorted(stays.values()).count("any") == len(EXACT) - 3  # three of them are lists


# ---- the command


def test_json(cli, run):
    code, out, err = cli("diagnose", run, "--n", 20, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["command"].startswith("minqkv ")
    assert found["trained"].startswith("minqkv train --task reverse --variant qkv/q-k=v ")
    assert found["examples"] == "20 sequences of 6 tokens of the validation split"
    assert [layer["variant"] for layer in found["layers"]] == ["qkv", "q-k=v"]
    one, shared = (layer["heads"][1] for layer in found["layers"])
    assert (len(one["qk_values"]), len(one["angles"]), shared["angles"]) == (4, 4, [])
    assert shared["cka"] is None
    assert found["start"][0]["heads"][0]["qk_rank"] != found["layers"][0]["heads"][0]["qk_rank"]
    assert json.loads(cli("diagnose", run, "--n", 20, "--json")[1]) == found  # seeds are fixed


@pytest.mark.parametrize("columns", [60, 80])
def test_the_terminal_is_wide_enough(columns, cli, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = cli("diagnose", run, "--maps")
    assert code == 0
    for line in (out + cli("diagnose", run)[1]).splitlines():
        assert len(line) <= columns
    words = " ".join(out.split())
    for text in ("not invariant", "K = V in layer 1: ", "0 at start", "1 by chance", " 1.1"):
        assert text in words


@pytest.mark.parametrize(
    ("task", "variant"),
    [("pairs", "mla"), ("mqar", "qkv"), ("images", "gqa-2"), ("segment", "qkv")],
)
def test_every_kind_of_task(task, variant, cli, tmp_path):
    size = {"n_layer": 1, "n_head": 4, "n_embd": 16, "steps": 1, "n_test": 2}
    train_run(configure(task, variant, **size), tmp_path / "run")
    code, out, err = cli("diagnose", "run", "--n", 2, "--maps", "--html", "page.html")
    assert (code, err) == (0, "written: page.html\n")
    assert ("tance" in out) == (task in ("pairs", "mqar"))
    assert "0.3" in out.split()
    assert "head 3" in Page((tmp_path / "page.html").read_text("utf-8")).text()


def test_maps_in_a_terminal():
    weights = np.array([[[1, np.nan, np.nan], [0.5, 0.25, np.nan], [0, 0.2, 0.8]]])
    drawn = [*map_lines({"a": weights, "b": weights}, ["x", "é", "z"], Terminal(40))]
    assert drawn == ["0.0     1.0", "  xéz     xéz", "x █     x █", "é ▓▒    é ▓▒",
                     "z  ▒█   z  ▒█", ""]  # fmt: skip
    plain = [*map_lines({"a": weights}, ["the", " é", "z"], Terminal(20, "ascii"))]
    assert plain == ["0.0", "    012", "the #", "  ? *:", "  z  :#", ""]


def test_a_text_of_ones_own(cli, text_run, tmp_path):
    (tmp_path / "own.txt").write_text("abcd" * 10)
    code, out, err = cli("diagnose", text_run, "--text", "own.txt", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["examples"] == "5 sequences of 8 tokens of own.txt"
    (tmp_path / "short.txt").write_text("abcda")
    out = cli("diagnose", text_run, "--text", "short.txt")[1]
    assert "On 1 sequence of 5 tokens of short.txt" in out
    out = cli("diagnose", text_run, "--n", 5)[1]  # windows, where there is one document
    assert "On 5 sequences of 8 tokens of the validation split" in out


@pytest.mark.parametrize(
    ("made", "code", "words"),
    [
        ("zzz", 2, "character 1 of the text, 'z', is none of the"),
        (b"\xff\xff", 2, "the text is not UTF-8: byte 0 is 0xff"),
        ("", 2, "own.txt is empty"),
        ("ab", 2, "2 tokens in a sequence: at least 3 are needed"),
        (None, 3, "cannot read own.txt"),
    ],
)
def test_texts_that_cannot_be_read(made, code, words, cli, text_run, tmp_path):
    if made is not None:
        (tmp_path / "own.txt").write_bytes(made if isinstance(made, bytes) else made.encode())
    found, out, err = cli("diagnose", text_run, "--text", "own.txt")
    assert (found, out) == (code, "")
    assert words in err.splitlines()[0]
    assert err.count("\n") <= 2


def test_runs_that_cannot_be_diagnosed(cli, run, tmp_path):
    for name in ("unfinished", "lost", "damaged"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "unfinished/result.json").unlink()
    (tmp_path / "lost/checkpoint.npz").unlink()
    whole = (run / "checkpoint.npz").read_bytes()
    (tmp_path / "damaged/checkpoint.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "file").write_text("")
    (tmp_path / "study").mkdir()
    (tmp_path / "study/results.json").write_text("{}")
    for args, code, words, hint in (
        (("nothing",), 3, "there is no run in nothing", "minqkv train --out FOLDER"),
        (("file",), 3, "file is a file", "name the folder of a run"),
        (("study",), 2, "study is a study, which keeps scores and no models", "name a run"),
        (("unfinished",), 2, "the run in unfinished is unfinished, and only trained models are",
         "minqkv train --resume --out unfinished"),
        (("lost",), 3, "checkpoint.npz", ""),
        (("damaged",), 3, "damaged/checkpoint.npz", ""),
        ((run, "--text", "file"), 2, "--text is for language models, and this run has learned",
         "leave out --text"),
        ((run, "--best"), 2, "no best model", ""),
    ):  # fmt: skip
        found, out, err = cli("diagnose", *args)
        assert (found, out) == (code, ""), args
        assert words in err.splitlines()[0], args
        assert hint in err.splitlines()[-1]
        assert err.count("\n") <= 2


# ---- the page


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    from minqkv.cli import cli as command

    file = tmp_path_factory.mktemp("page") / "page.html"
    command.main(["diagnose", str(run), "--html", str(file)], standalone_mode=False)
    return file


def test_the_page_stands_alone(page):
    text = page.read_text("utf-8")
    found = Page(text)
    assert found.outside() == []
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    words = found.text("main")
    for row in meanings().rows:
        for cell in row:
            assert cell in words
    maps = [a for a in found.all("table") if a.get("class") == "map"]
    assert len(maps) == 4  # of every head
    assert "K = V in layer 1: there is nothing to compare between the two." in words
    assert "Spectra of layer 1" in words
    assert " ".join(MAPS.split()) in words
    assert "dark" not in MAPS  # on a dark page, a large weight is bright
    assert found.levels() == [1, 2, 2, 2, 2, 2]


def test_nothing_overflows(browser, page):
    with visit(browser, page) as shown:
        unfold(shown)
        for width in (400, 1000):
            shown.set_viewport_size({"width": width, "height": 900})
            assert overflow(shown) == [], width


READ_MAPS = """maps => [...maps.querySelectorAll("table")].map((table) => ({
  framed: [...table.tBodies[0].rows].map((row) => row.classList.contains("on")),
  shades: [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1)
    .map((cell) => [cell.style.getPropertyValue("--w"), cell.title])),
  keys: [...table.tHead.rows[0].cells].slice(1)
    .map((key) => [key.style.getPropertyValue("--w"), key.textContent]),
  told: table.closest("figure").querySelector(".told").textContent }))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_token_shows_what_it_attends_to(browser, page, scheme):
    with visit(browser, page, 1000, scheme) as shown:
        layer = shown.locator(".maps").first
        tables = layer.locator("table.map")

        def check(query):
            for one in (found := layer.evaluate(READ_MAPS)):
                assert one["framed"] == [i == query for i in range(6)]
                shades = one["shades"][query]
                assert [shade for shade, _ in one["keys"]] == [shade for shade, _ in shades]
                (_, token), best = one["keys"][query], max(shades, key=lambda cell: float(cell[1]))
                assert one["told"].startswith(f"{token} → ")
                assert one["told"].split(", ")[0].endswith(best[1])
            assert len(found) == 2

        tables.nth(1).locator("tbody th").nth(2).hover()
        check(2)
        tables.nth(0).locator("thead th").nth(4).hover()
        check(4)
        tables.nth(1).locator("tbody tr").nth(1).locator("td").nth(3).hover()
        check(1)
        assert pale(shown) == []
        shown.mouse.move(0, 0)
        assert [one["told"] for one in layer.evaluate(READ_MAPS)] == ["", ""]
        tables.nth(0).locator("tbody th").nth(3).focus()
        check(3)
        assert tables.nth(1).locator("tbody th").first.get_attribute("tabindex") is None


# ---- the docs


def pipes(table):
    """A table in Markdown, without its title. Its headers come on one line."""
    columns = [(h.replace("-\n", "").replace("\n", " "), side) for h, side in table.columns]
    return _pipes("", columns, table.rows).split("\n\n", 1)[1].replace("\\", "")


def test_the_docs_say_what_each_number_means():
    assert pipes(meanings()) in DOCS


def test_the_docs_show_the_committed_result():
    found = json.loads(COMMITTED.read_text("utf-8"))
    for command in (found["trained"], found["command"]):
        assert command in DOCS
    for table in blocks(found["layers"], found["start"], found["examples"]):
        assert f"**{table.title}**\n\n{pipes(table)}\n" in DOCS
