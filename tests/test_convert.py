"""Converting a trained model: what is exact is exact, what is aligned does not depend on bases, and
a converted run is a run.
"""

import contextlib
import html
import io
import json
import re
import sys

import numpy as np
import pytest
from commands import ROOT
from toys import IDS, design, gpt, host, tagger, vit

from minqkv.analysis.convert import Layer, convert, methods
from minqkv.analysis.converted import batches, check_alike
from minqkv.nn import Module
from minqkv.runs import configure, load_run, read_run, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.rng import stream
from minqkv.study.stats import estimate

sys.path.append(str(ROOT))  # bench is run from a checkout; it is not installed

from bench.convert import show, stored

MANY = [stream(0, "ids").integers(0, 11, (40, 12))]
POSITIONS = ["learned", "rope", "alibi"]


def same(model, other, atol=1e-9):
    expected = host(model(MANY[0]))
    assert abs(expected).max() > 1
    np.testing.assert_allclose(host(other(MANY[0])), expected, rtol=0, atol=atol)


def changed(model, change):
    """A copy whose layers were changed head by head, with `change(layer, rng)`."""
    twin, state = type(model)(model.config), model.state_dict()
    for i, block in enumerate(model.blocks):
        layer = Layer(block.attn)
        change(layer, stream(5, "change", i))
        state |= {f"blocks.{i}.attn.{name}": a for name, a in layer.state().items()}
    twin.load_state_dict({n: a for n, a in state.items() if n in dict(twin.named_parameters())})
    return twin.eval()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    ("variant", "to"),
    [("q-k=v", "qkv"), ("q=k-v", "qkv"), ("q=k=v", "q-k=v"), ("q=k=v", "qkv"), ("gqa-2", "qkv"),
     ("mqa", "gqa-2"), ("q-gqa-2", "gqa-2"), ("q-mqa", "qkv"), ("q-k=v/mqa", "qkv/mqa")],
)  # fmt: skip
def test_what_was_shared_can_be_copied(variant, to, position):
    for make in (gpt, tagger):
        model = make(variant, position=position)
        assert methods(model, to) == ("copy",)
        twin = convert(model, to, "copy")
        assert twin.config.variant == to
        same(model, twin, 1e-12)


def test_slim_is_exact_and_stores_half():
    model = gpt("qkv", position="rope")
    twin = convert(model, "slim", "slim")
    same(model, twin, 1e-8)
    caches = [m.new_cache(2) for m in (model, twin)]
    for m, cache in zip((model, twin), caches, strict=True):
        m(IDS, cache=cache)
    assert caches[1].nbytes * 2 == caches[0].nbytes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("method", ["pool", "align"])
def test_equal_heads_are_pooled_without_loss(method, position, bias):
    model = convert(gpt("gqa-2", position=position, bias=bias), "qkv", "copy")
    same(model, convert(model, "gqa-2", method, MANY))


def keys_from_values(layer, rng):
    """K = V M + c in each head."""
    d = layer.k.shape[2]
    for g in range(len(layer.k)):
        layer.k[g] = layer.v[g] @ rng.standard_normal((d, d))
        layer.k[g, -1] += rng.standard_normal(d) * layer.biased


def keys_are_rotated_values(layer, rng):
    """K = V R in each head, R orthogonal."""
    for g in range(len(layer.k)):
        layer.k[g] = layer.v[g] @ np.linalg.qr(rng.standard_normal((layer.k.shape[2],) * 2))[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_refit_q_is_exact_where_keys_follow_from_values(position, bias):
    for variant, to in (("qkv", "q-k=v"), ("gqa-2", "q-gqa-2")):
        model = changed(gpt(variant, position=position, bias=bias), keys_from_values)
        same(model, convert(model, to, "refit-q", MANY), 1e-6)


@pytest.mark.parametrize("position", POSITIONS)
def test_procrustes_finds_a_rotation(position):
    model = changed(gpt("qkv", position=position), keys_are_rotated_values)
    same(model, convert(model, "q-k=v", "procrustes", MANY))
    plain = convert(model, "q-k=v", "avg")
    assert abs(host(plain(IDS)) - host(model(IDS))).max() > 0.1


def any_basis(layer, rng, draw=lambda a: a):
    """The same function in other bases: A for keys, which commutes with turns, and B for values."""
    d = layer.k.shape[2]
    for g in range(len(layer.k)):
        a, b = (draw(rng.standard_normal((d, d))) for _ in "ab")
        if layer.turning:
            z = np.exp(rng.standard_normal(d // 2) * 1j)  # a turn of each pair
            re, im = np.diag(z.real), np.diag(z.imag)
            a = np.block([[re, im], [-im, re]])
        layer.turn_keys(g, a)
        layer.turn_values(g, b)


def rotated_basis(layer, rng):
    """A and B are orthogonal, times a factor."""
    any_basis(layer, rng, lambda a: np.linalg.qr(a)[0] * np.exp(a[0, 0]))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    ("to", "method", "basis"),
    [
        ("q-k=v", "procrustes", rotated_basis),
        ("q-k=v", "refit-q", any_basis),
        ("gqa-2", "align", rotated_basis),
        ("mqa", "align", rotated_basis),
    ],
)
def test_aligned_results_do_not_depend_on_bases(to, method, basis, position):
    for make in (gpt, tagger):
        model = make("qkv", position=position)
        other = changed(model, basis)
        same(model, other, 1e-8)
        same(convert(model, to, method, MANY), convert(other, to, method, MANY), 1e-5)


def test_of_other_methods_they_do():
    model = gpt("qkv")
    for to, method in (("q-k=v", "avg"), ("gqa-2", "pool")):
        a, b = (convert(m, to, method) for m in (model, changed(model, rotated_basis)))
        assert abs(host(a(IDS)) - host(b(IDS))).max() > 0.1


def test_layers_that_stay_are_left_alone():
    model = gpt("qkv/q=k-v")
    twin = convert(model, "q-k=v/q=k-v", "refit-q", MANY)
    assert twin.config.variant == "q-k=v/q=k-v"
    before, after = model.state_dict(), twin.state_dict()
    kept = [name for name in after if not name.startswith("blocks.0.attn.w")]
    assert all((before[name] == after[name]).all() for name in kept)
    assert len(kept) > 20


def test_the_original_is_left_as_it_was():
    model = vit("qkv")
    before = model.state_dict()
    x = stream(0, "x").standard_normal((30, 5, 6))
    assert convert(model, "mqa", "align", [x]).config.variant == "mqa"
    assert all((before[name] == array).all() for name, array in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "to", "said"),
    [
        (gpt("qkv"), "q=k-v", "qkv cannot become q=k-v"),
        (gpt("qkv"), "qkv", "qkv cannot become qkv"),
        (gpt("qkv"), "q-gqa-2", "qkv cannot become q-gqa-2"),
        (gpt("gqa-2"), "slim", "gqa-2 cannot become slim"),
        (gpt("thin-2"), "q-k=v", "thin-2 cannot become q-k=v"),
        (gpt("q=k=v+"), "qkv", "cannot become qkv"),
        (gpt("qkv/gqa-2"), "q-k=v", "cannot become q-k=v"),
        (gpt("q-k=v", position="rope", rope_value="unrotate"), "qkv", "q-k=v cannot become qkv"),
        (design("norms"), "q-gqa-2", "gqa-2 cannot become q-gqa-2"),
        (gpt("qkv"), "gqa-3", "4 heads do not fall into 3 equal groups"),
        (gpt("qkv"), "q-k=w", "unknown variant 'q-k=w'"),
        (tagger("qkv"), "slim", "this run is an encoder"),
        (Module(), "qkv", "a Module cannot be converted; only: GPT, Tagger, ViT"),
    ],
)
def test_what_cannot_be_converted(model, to, said):
    with pytest.raises(UsageError, match=said.replace("+", r"\+")):
        convert(model, to, "copy")


def test_the_refusal_says_what_is_possible():
    hints = {"qkv": "q-k=v, mqa, gqa-2, slim", "mqa": "qkv, q-mqa, gqa-2", "q-k=v": "qkv"}
    for variant, possible in hints.items():
        with pytest.raises(UsageError) as refused:
            methods(gpt(variant), "q=k=v")
        assert refused.value.hint == f"it can become: {possible}"
    with pytest.raises(UsageError) as refused:
        methods(gpt("mla"), "qkv")
    assert refused.value.hint == "it can become: no other variant; docs/convert.md says why"


def test_methods_and_examples_that_do_not_fit():
    with pytest.raises(UsageError, match="does not become mqa by refit-q"):
        convert(gpt("qkv"), "mqa", "refit-q", MANY)
    with pytest.raises(UsageError, match="procrustes aligns activations"):
        convert(gpt("qkv"), "q-k=v", "procrustes")


# ---- runs

SIZE = {"seq_len": 4, "n_embd": 8, "n_layer": 1, "n_head": 2, "steps": 3, "n_test": 20}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of small runs: two seeds of an encoder, a decoder, and one that has not ended."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train_run(configure("reverse", seed=seed, **SIZE), folder / f"encoder-{seed}")
    config = configure("reverse", form="causal", watch=1, **SIZE)
    train_run(config, folder / "decoder")

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(config, folder / "unfinished", progress=stop)
    return folder


def test_the_table_of_a_run(runs, cli):
    code, out, _ = cli("convert", runs / "encoder-0", "--to", "q-k=v")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("q-k=v")] == [
        ["q-k=v", name] for name in ("keep_k", "keep_v", "avg", "procrustes", "refit-q")
    ]
    assert "64 B" in out
    assert "32 B" in out


def test_several_seeds_and_further_steps(runs, cli):
    args = ("convert", runs / "encoder-0", runs / "encoder-1", "--to", "mqa", "--steps", 2)
    found = json.loads(cli(*args, "--json")[1])
    result = [read_run(runs / f"encoder-{seed}")[2]["accuracy"] for seed in (0, 1)]
    assert found["scores"] == result
    assert found["bytes_per_token"] == [64, 32]
    assert found["methods"].keys() == {"pool", "align"}
    assert all(len(m[name]) == 2 for m in found["methods"].values() for name in m)
    out = cli(*args)[1]
    assert "2 runs, 95 % intervals" in out
    assert "peak rate of 0.00033, a third" in out


def test_a_converted_run_is_a_run(runs, cli, tmp_path):
    new, original = tmp_path / "new", runs / "decoder"
    args = ("convert", original, "--to", "q-k=v", "--method", "refit-q", "--steps", 2)
    before = {path: path.read_bytes() for path in original.iterdir()}
    found = json.loads(cli(*args, "--out", new, "--json")[1])
    assert before == {path: path.read_bytes() for path in original.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    config, metrics, result, _ = read_run(new)
    assert (config.variant, config.recipe.steps, len(metrics)) == ("q-k=v", 5, 5)
    assert [result["accuracy"]] == found["methods"]["refit-q"]["after"]
    losses = [line["loss"] for line in read_run(original)[1]]
    assert [line["loss"] for line in metrics[:3]] == losses
    assert files.read_sealed(new / "config.json")["converted"]["method"] == "refit-q"
    score = json.loads(cli("eval", new, "--json")[1])
    assert score["accuracy"] == result["accuracy"]
    assert cli("generate", new, "1 2 3 4")[0] == 0
    assert cli("train", "--resume", "--out", new)[0] == 0
    assert cli("report", new)[0] == 0
    made = f"minqkv convert RUN --to q-k=v --method refit-q --steps 2 --out {new}"
    assert json.loads(cli("diagnose", new, "--json")[1])["trained"] == made
    assert cli("report", new, "--html", tmp_path / "page.html")[0] == 0
    page = html.unescape((tmp_path / "page.html").read_text("utf-8"))
    assert made in page
    assert "minqkv train" not in page
    code, _, err = cli("convert", original, "--to", "mqa", "--method", "pool", "--out", new)
    assert code == 2
    assert "there is already something in" in err


def test_a_converted_run_can_be_converted(runs, cli, tmp_path):
    new = tmp_path / "new"
    cli("convert", runs / "decoder", "--to", "q-k=v", "--method", "avg", "--out", new)
    found = json.loads(cli("convert", new, "--to", "qkv", "--json")[1])
    assert found["methods"] == {"copy": {"zero_shot": found["scores"], "after": None}}


def test_examples_continue_the_stream(runs):
    config = load_run(runs / "decoder")[1]
    for step, (x, _) in zip(range(3, 6), batches(config), strict=False):
        np.testing.assert_array_equal(x, config.task.batch(config.seed, step, 128)[0])


def test_nothing_is_left_of_what_could_not_be_written(runs, cli, tmp_path, monkeypatch):
    def fail(*args):
        raise EnvironmentFault("the disk is full")

    monkeypatch.setattr("minqkv.runs.RunFolder.write_result", fail)
    args = ("--to", "mqa", "--method", "pool", "--out", tmp_path / "new")
    assert cli("convert", runs / "decoder", *args)[0] == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("encoder-0", "--to", "slim"), 2, "this run is an encoder"),
        (("unfinished", "--to", "q-k=v"), 2, "is unfinished: 1 of 3 steps"),
        (("decoder", "--to", "q=k-v"), 2, "it can become: q-k=v, mqa, slim"),
        (("decoder", "--to", "q-k=v", "--method", "pool"), 2, "choose from keep_k"),
        (("decoder", "--to", "q-k=v", "--out", "new"), 2, "--out keeps one converted run"),
        (("decoder", "--to", "slim", "--steps", 1), 2, "leave out --steps and --out"),
        (("decoder", "encoder-0", "--to", "mqa"), 2, "form is causal there, encoder here"),
        (("nowhere", "--to", "mqa"), 3, "there is no run in"),
        (("decoder",), 2, "--to"),
    ],
)
def test_bad_input(args, code, said, runs, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [runs / arg if (runs / str(arg)).exists() else arg for arg in args]
    found, _, err = cli("convert", *args)
    assert found == code
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.json", "results.json"])
def test_a_study_keeps_no_models(name, cli, tmp_path):
    (tmp_path / name).write_text("{}")
    assert "which keeps scores and no models" in cli("convert", tmp_path, "--to", "mqa")[2]


def test_runs_of_a_mean_differ_only_in_seeds():
    check_alike([configure("reverse", seed=seed, threads=1 + seed) for seed in range(3)])
    with pytest.raises(UsageError, match="steps is 158 there, 3 here"):
        check_alike([configure("reverse"), configure("reverse", seed=1, steps=3, warmup=7)])
    with pytest.raises(UsageError, match="two of the runs have the same seed"):
        check_alike([configure("reverse", seed=1), configure("reverse", seed=1, threads=2)])


def test_a_method_named_twice_counts_once(runs, cli):
    """Two equal scores would have an interval of no width."""
    code, out, _ = cli("convert", runs / "decoder", "--to", "q-k=v", "--method", "avg,avg")
    assert (code, out.count("avg")) == (0, 1)
    assert "±" not in out


def test_the_page_shows_what_was_measured():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show(stored())
    page = (ROOT / "docs/convert.md").read_text("utf-8")
    assert printed.getvalue().count("\n") > 15
    assert printed.getvalue() in page
    rows = {(r["task"], r["seed"], r["variant"], r["method"]): r for r in stored()}

    def gap(task, method, other, what, variant="q-k=v", than=None):
        """Of two methods; or of one, against the model that is converted."""
        pairs = [[rows[task, seed, v, m][w] for v, m, w in (
            (variant, method, what), (than or variant, other, "zero_shot" if than else what))]
            for seed in range(5)]  # fmt: skip
        found = estimate([a - b for a, b in pairs])
        return f"{abs(found.mean):.3f} ± {found.half:.3f}"

    assert gap("text", "avg", "keep_v", "zero_shot") == "1.645 ± 1.474"  # 1.6 ± 1.5
    assert gap("text", "align", "from scratch", "after", "gqa-2") == "1.076 ± 0.384"  # 1.1 ± .4
    pooled = ["zero_shot", "gqa-2", "qkv"], ["zero_shot", "mqa", "qkv"]
    lost = [gap("text", "align", "trained", *each) for each in pooled]
    assert lost == ["2.309 ± 1.271", "2.635 ± 1.497"]  # 2.3 ± 1.3, 2.6 ± 1.5
    shown = [gap("sort", "align", "trained", *each) for each in pooled]
    shown.append(gap("sort", "refit-q", "from scratch", "after"))
    for text in shown:
        assert re.sub(r"\b0\.", ".", text) in " ".join(page.split())
