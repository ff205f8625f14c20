"""bench.roofline: bounds by hand, bytes against real arrays, operations against what really runs,
and the page against the file.
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # bench is run from a checkout; it is not installed

import minqkv as mq  # noqa: E402
from bench import bounds, gpu_ops, roofline  # noqa: E402
from bench.bounds import KERNELS, Each, Gpu, Work  # noqa: E402
from bench.common import per_cent  # noqa: E402
from minqkv import functional as F  # noqa: E402
from minqkv.models import PRESETS  # noqa: E402
from minqkv.runtime import backend  # noqa: E402
from minqkv.runtime.errors import UsageError  # noqa: E402
from minqkv.tasks.shards import SHARD_TOKENS  # noqa: E402
from minqkv.teach import author  # noqa: E402
from minqkv.teach.lessons import course, find  # noqa: E402
from minqkv.tensor import Tensor  # noqa: E402
from minqkv.variants import macs, params  # noqa: E402

TINY = mq.GPTConfig(11, 12, 2, 4, 32)
ROPE = replace(TINY, position="rope")
VARIANTS = ["qkv", "q=k-v", "q-k=v", "q=k=v", "gqa-2", "mqa", "q-gqa-2", "q-mqa", "thin-4",
            "q=k=v+", "qkv/q-k=v"]  # fmt: skip
TURNED = [*VARIANTS, "gta-2", "gla-2", "mla"]
CASES = [(TINY, v) for v in VARIANTS] + [(ROPE, v) for v in TURNED]
PAGE = (ROOT / "docs/roofline.md").read_text("utf-8")
TEXT = " ".join(PAGE.split())
FILE = json.loads((ROOT / "bench/results/roofline/300m-h200.json").read_text("utf-8"))
H200 = bounds.gpu("H200")


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].position}-{case[1]}")
def cfg(request):
    base, variant = request.param
    return replace(base, variant=variant)


# ---- bounds by hand


def toy(**rates):
    return Gpu("toy", "a toy", ["Toy"], 1000, 100, rates, [])


def test_a_bound_by_hand():
    card = toy(fp32=10, bf16=1000)
    work = Work(nbytes=200, products=3000, others=5)
    in_bf16 = card.bound(work, "bf16")  # 3000 / 1000 beside 5 / 10
    assert (in_bf16.bytes_s, in_bf16.operations_s, in_bf16.seconds) == (2, 3, 3)
    assert (in_bf16.binds, in_bf16.intensity) == ("operations", 3005 / 200)
    in_fp32 = card.bound(work, "fp32")  # on the same units, one after the other
    assert in_fp32.operations_s == 300.5
    assert card.bound(Work(400, 3000, 5), "bf16").binds == "bytes"
    assert card.bound(Work(200, 3000, 50), "bf16").seconds == 5  # 50 / 10
    assert (2 * work + Work(1)).parts == (401, 6000, 10)


def test_a_token_by_hand():
    """One layer of two heads of width 4, 5 tokens in the vocabulary, 3 positions in view."""
    cfg = mq.GPTConfig(5, 8, 1, 2, 8, position="none", bias=False)
    found = bounds.token(cfg, 3, 2, "bf16")
    attention, mlp, norms = 4 * 8 * 8, 2 * 8 * 32, 3 * 16
    assert found["gemv products"] == Work(
        2 * (attention + mlp + norms + 5 * 8), 2 * 2 * (attention + mlp + 5 * 8)
    )
    rows, scores = 2 * 3 * 2 * 8, 2 * 3 * 2  # sequences · positions · (K, V) · width; · heads
    assert found["decode attention"] == Work(2 * rows, 2 * 2 * scores * 4, 5 * scores)
    shared = replace(cfg, variant="q-k=v")
    once, twice = (bounds.token(shared, 3, 2, "bf16", r)["decode attention"] for r in (1, 2))
    assert (once.nbytes, twice.nbytes) == (rows, 2 * rows)
    assert once.products == twice.products == found["decode attention"].products


def test_a_step_by_hand():
    """Weights twice in bf16; a gradient; 8 numbers of AdamW; a copy in bf16; activations."""
    n, kept = params(TINY), bounds.activations(TINY, 3, 2)
    found = bounds.whole_step(TINY, 3, "bf16")
    assert found.nbytes == n * (2 * 2 + 4 + 8 * 4 + 2) + 2 * kept
    assert found.products == 6 * 3 * macs(TINY, 12, causal=True)
    assert bounds.whole_step(TINY, 3, "fp32").nbytes == n * (2 * 4 + 4 + 8 * 4) + 2 * (
        mq.analysis.memory.activation_bytes(TINY, 3, 12)
    )


def test_rows_by_hand():
    assert Each(2, 1, 5).work(10, 2) == Work(60, 0, 50)
    both = bounds.of_operation("gelu", [[2, 5]])["both"]
    assert both == Work((2 + 3) * 10 * 4, 0, (8 + 15) * 10)
    linear = bounds.of_operation("linear", [[2, 3, 5], [5, 7], [7]])
    assert linear["forward"] == Work(4 * (30 + 35 + 42), 2 * 6 * 5 * 7)
    assert linear["both"] == 3 * linear["forward"]
    attention = bounds.of_operation("sdpa causal", [[1, 2, 3, 5]] * 3)  # 6 pairs of each head
    assert attention["forward"] == Work(4 * 4 * 30, 2 * 2 * 12 * 5, 6 * 12)
    assert attention["both"].products == 3 * attention["forward"].products
    assert bounds.of_operation("AdamW", [[3], [4]])["step"] == Work(7 * 7 * 4, 0, 14 * 7)
    assert bounds.of_operation("embedding", [[3, 4]]) == {}


def test_the_operations_of_bench_gpu_are_counted():
    assert set(bounds.OPERATIONS) <= set(gpu_ops.OPERATIONS)
    uncounted = {n for n in gpu_ops.OPERATIONS if not bounds.of_operation(n, [[1, 1, 2, 2]] * 3)}
    assert uncounted == {"embedding", "rotate"}


def test_lesson_20_has_the_same_card_and_the_same_bounds():
    """An installed lesson has no folder bench, so it states the figures itself."""
    events = author.events_of(find("20", course()))
    roofs = [event for event in events if event["event"] == "roofline"]
    assert {(e["bandwidth"], e["rate"]) for e in roofs} == {(H200.bandwidth, H200.rates["fp32"])}
    assert all(H200.title in event["title"] for event in roofs)
    (table,) = [e for e in events if e["event"] == "table" and "H200" in e["title"]]
    for tokens, *found in table["rows"]:
        seconds = []
        for variant, reads in (("qkv", 1), ("q-k=v", 1), ("q-k=v", 2)):
            cfg = replace(PRESETS["300m"], variant=variant)
            work = bounds.token(cfg, int(tokens.replace(",", "")), 8, "bf16", reads)
            seconds.append(H200.bound(sum(work.values(), Work(0)), "bf16").seconds)
        qkv, once, twice = seconds
        assert found == pytest.approx([1e3 * qkv, 1e3 * once, qkv / once, qkv / twice])


# ---- bytes of real arrays


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", "float32"), ("fp16", "float16")])
def test_bytes_of_a_token_are_those_of_real_arrays(cfg, dtype, kind):
    """Weights without the table of positions, of which a step reads a row; the rows of a cache."""
    model = mq.GPT(cfg)
    cache = model.new_cache(2, 8, dtype=kind)
    model(np.zeros((2, 7), int), cache=cache)
    found = bounds.token(cfg, 7, 2, dtype)
    weights = [p.data for n, p in model.named_parameters() if n != "wpe.weight"]
    assert found["gemv products"].nbytes == sum(w.astype(kind).nbytes for w in weights)
    assert found["decode attention"].nbytes == cache.nbytes


def test_bytes_of_two_reads_are_those_of_keys_and_values(cfg):
    """As two products read them: keys, then values. What turns beside several heads is one row."""
    model, total = mq.GPT(cfg), 0
    cache = model.new_cache(2, 8)
    model(np.zeros((2, 7), int), cache=cache)
    for block, layer in zip(model.blocks, cache.layers, strict=True):
        k, v = block.attn.read([Tensor(row) for row in layer.rows])
        beside = layer.rows[1].nbytes if block.attn.spec.apart else 0
        total += k.data.nbytes + v.data.nbytes - beside * (block.attn.kv_heads - 1)
    once, twice = (bounds.token(cfg, 7, 2, "fp32", r)["decode attention"] for r in (1, 2))
    assert twice.nbytes == total
    assert (twice.nbytes > once.nbytes) == any(spec.streams == 1 for spec in cfg.specs)


def test_bytes_of_activations_in_fewer_bits():
    """Of numbers half as large; masks and ids stay as they are."""
    dropped = replace(TINY, dropout=0.1)
    four, two = (bounds.activations(dropped, 3, size) for size in (4, 2))
    assert four == mq.analysis.memory.activation_bytes(dropped, 3, 12)
    masks = 2 * TINY.n_layer * 3 * 12 * TINY.n_embd
    ids = 12 * 12 + 8 * 4 * 36
    assert two - masks - ids == (four - masks - ids) / 2


# ---- operations that really run


@pytest.fixture
def multiplied(monkeypatch):
    """Operations of all products on the stand-in for CuPy, as they run: a list to add up."""
    seen = []

    def counted(function):
        def product(a, b):
            if b.shape[-1] > 1:  # a product with a column is a sum of rows
                seen.append(2 * math.prod(a.shape) * b.shape[-1])
            return function(a, b)

        return product

    monkeypatch.setattr(backend.GpuBackend, "kernels", False)  # they multiply unseen
    with backend.use_backend("strict"):
        array = backend.xp.ndarray
        monkeypatch.setattr(array, "__matmul__", counted(array.__matmul__))
        backend.bmm = counted(backend.bmm)  # the end of the `with` takes it back
        yield seen


def test_operations_of_a_token_are_those_that_run(cfg, multiplied):
    model = mq.GPT(cfg).eval()
    cache = model.new_cache(2, 8)
    model(np.zeros((2, 6), int), cache=cache)
    multiplied.clear()
    model(np.zeros((2, 1), int), cache=cache)
    found = bounds.token(cfg, 7, 2, "fp32")
    assert sum(multiplied) == sum(work.products for work in found.values())


@pytest.mark.parametrize("length", [12, 640])
def test_operations_of_a_step_are_those_that_run(cfg, multiplied, length, monkeypatch):
    """Beyond F.KEEP, the scores of each block are computed again."""
    cfg = replace(cfg, block_size=length)
    # On a GPU the package does not look where a block ends, because the host would have to wait.
    monkeypatch.setattr(backend, "visible", _last)
    ids = np.random.default_rng(0).integers(0, 11, (2, 1, length))
    mq.train_step(model := mq.GPT(cfg), mq.AdamW(model.parameters()), *ids)
    found = bounds.step(cfg, 1, "fp32")
    assert (length**2 > F.KEEP) == (length == 640)
    assert sum(multiplied) == sum(work.products for work in found.values())


def _last(mask):
    """The end of the keys that any query of a block sees."""
    return int(np.flatnonzero(mask._host.any(0))[-1]) + 1


def test_products_of_a_step_are_those_of_the_formula(cfg):
    """In one block of queries, the full scores that `macs` counts."""
    found = bounds.step(cfg, 3, "fp32")
    assert sum(work.products for work in found.values()) == 6 * 3 * macs(cfg, 12)


class Counting(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that counts operations: of each element, or of each that a reduction takes in."""

    operations = 0

    def __init__(self, array):
        self.array = np.asarray(array)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        arrays = [x.array if isinstance(x, Counting) else x for x in inputs]
        out = getattr(ufunc, method)(*arrays, **kwargs)
        Counting.operations += np.size(arrays[0]) if method == "reduce" else np.size(out)
        return Counting(out)


def total(x, axis=-1):
    return np.add.reduce(x, axis, keepdims=True)


def softmax(x):
    x = x * 0.5
    x = np.exp(x - np.maximum.reduce(x, -1, keepdims=True))
    return x / total(x)


def softmax_backward(x, g):  # x: what softmax has returned
    return (g - total(g * x)) * x * 0.5


def layer_norm(x, w, b):
    x = x - total(x) * (1 / 64)
    return x * (1 / np.sqrt(total(x * x) * (1 / 64) + 1e-5)) * w + b


def layer_norm_backward(x, g, w, mean, inv):
    x = (x - mean) * inv
    sums = total(g * x, 0), total(g, 0)
    g = g * w
    return (g - total(g) * (1 / 64) - x * (total(g * x) * (1 / 64))) * inv, sums


def cross_entropy(x):  # the target's logit, one a row, is left out
    top = np.maximum.reduce(x, -1, keepdims=True)
    return np.log(total(np.exp(x - top))) + top


def cross_entropy_backward(x, lse):
    return np.exp(x - lse) * (1 / 32)


def inner(x):
    square = x * x
    phi = (np.tanh((square * (0.044715 * C) + C) * x) + 1) * 0.5
    return square, phi


def gelu(x):
    return inner(x)[1] * x


def gelu_backward(x, g):
    square, phi = inner(x)
    return ((square * (6 * 0.044715 * C) + 2 * C) * (1 - phi) * phi * x + phi) * g


def dropout(x, drawn):
    return x * (drawn >= 0.1) * (1 / 0.9)


def adamw(p, g, m, v):
    m = m * 0.9 + g * 0.1
    v = v * 0.999 + g * g * 0.001
    return p * 0.99 - m / (np.sqrt(v) * 1.2 + 1e-8) * 0.01


def clipped(p, g, m, v):
    return adamw(p, g * (1 / np.sqrt(total(total(g * g), 0))), m, v)


C = math.sqrt(2 / math.pi)
FORMULAS = {
    "softmax rows": softmax, "softmax rows, backward": softmax_backward,
    "layer norm rows": layer_norm, "layer norm rows, backward": layer_norm_backward,
    "cross-entropy rows": cross_entropy, "cross-entropy rows, backward": cross_entropy_backward,
    "GELU": gelu, "GELU, backward": gelu_backward, "dropout": dropout,
    "dropout, backward": dropout, "AdamW": adamw, "AdamW with clipping": clipped,
}  # fmt: skip
SHAPES = {"w": (64,), "b": (64,), "mean": (32, 1), "inv": (32, 1), "lse": (32, 1)}


def arguments(kernel, rng):
    names = FORMULAS[kernel].__code__.co_varnames[: FORMULAS[kernel].__code__.co_argcount]
    return [rng.random(SHAPES.get(name, (32, 64))) for name in names]


@pytest.mark.parametrize("kernel", KERNELS)
def test_operations_of_kernels_are_those_of_their_formulas(kernel, rng):
    """What there is once for a row or a column is less than an operation for each number."""
    Counting.operations = 0
    FORMULAS[kernel](*map(Counting, arguments(kernel, rng)))
    assert Counting.operations // (32 * 64) == KERNELS[kernel].operations
    assert Counting.operations % (32 * 64) < 10 * 64


@pytest.mark.parametrize(
    ("formula", "backward", "real"),
    [
        (gelu, gelu_backward, F.gelu),
        (softmax, softmax_backward, lambda x: F.softmax(x * 0.5)),
    ],
)
def test_the_formulas_are_right(formula, backward, real, rng):
    x, g = rng.standard_normal((2, 32, 64))
    leaf = Tensor(x, requires_grad=True)
    out = real(leaf)
    out.backward(g)
    np.testing.assert_allclose(formula(x), out.data, rtol=1e-12)
    point = formula(x) if formula is softmax else x
    np.testing.assert_allclose(backward(point, g), leaf.grad, rtol=1e-9)


def test_the_formula_of_layer_norm_is_right(rng):
    x, g = rng.standard_normal((2, 32, 64))
    w, b = rng.standard_normal((2, 64))
    leaves = [Tensor(a, requires_grad=True) for a in (x, w, b)]
    out = F.layer_norm(*leaves)
    out.backward(g)
    np.testing.assert_allclose(layer_norm(x, w, b), out.data, rtol=1e-9)
    inv = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    dx, (dw, db) = layer_norm_backward(x, g, w, x.mean(-1, keepdims=True), inv)
    for mine, leaf in zip((dx, dw[0], db[0]), leaves, strict=True):
        np.testing.assert_allclose(mine, leaf.grad, rtol=1e-8, atol=1e-12)


# ---- cards


def test_cards():
    """Each with its sources; its rates rise from type to type, and no two have the same device."""
    found = bounds.gpus()
    assert list(found) == ["H200", "H100", "A100", "4090", "T4"]
    devices = [device for card in found.values() for device in card.devices]
    assert len(set(devices)) == len(devices) >= len(found)
    for name, card in found.items():
        assert all(re.search(r": https://\S+$", source) for source in card.sources)
        rates = [card.rates[t] for t in ("fp32", "tf32", "bf16", "fp16") if t in card.rates]
        assert rates == sorted(rates)
        assert card.rates.keys() <= bounds.ITEMSIZE.keys()
        assert bounds.gpu(name.lower()) == card == bounds.gpu_of(card.devices[0])
    assert bounds.gpu_of("NVIDIA H100 PCIe") is None  # another bandwidth


def test_the_same_card_elsewhere():
    server = roofline.tomllib.loads(
        (ROOT / "minqkv/study/published/deployment.toml").read_text("utf-8")
    )["devices"]["server"]
    card = bounds.gpu("H100")
    assert (server["memory"], server["bandwidth"]) == (card.memory, card.bandwidth)


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "bench.roofline", *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--gpu", "H20"], 2, "unknown GPU 'H20'; did you mean H200"),
        (["--gpu", "T4"], 2, "the T4 has no bf16 units; --dtype, one of fp32, fp16"),
        (["--gpu", "H200", "--variant", "gqa-3"], 2, "gqa-3: 16 heads do not fall into 3"),
        (["--gpu", "H200", "--config", "7b"], 2, "no configuration '7b'"),
    ],
)
def test_bad_input(words, code, says):
    done = command(*words)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


@pytest.mark.parametrize("words", [[], ["--gpu", "T4", "--results"], ["--gpu", "T4", "--context",
                                                                        "32q"]])  # fmt: skip
def test_bad_flags(words):
    done = command(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# ---- what was measured


def test_shares_by_hand():
    card = toy(fp32=1e9)
    row = {"case": "gelu", "inputs": [[2, 5]], "median_ms": {"forward": 1600.0, "torch both": 4e3}}
    assert bounds.shares("ops", row, card) == {
        "bound_ms": {"forward": 800.0, "torch both": 2000.0},
        "of_bound": {"forward": 0.5, "torch both": 0.5},
    }
    rates = {"case": "product fp32", "tflops": {"array": 0.0005}}
    assert bounds.shares("ceilings", rates, card) == {"of_bound": {"array": 0.5}}
    copy = {"case": "copy", "GB_per_second": {"array": 0.05e-6}}
    assert bounds.shares("ceilings", copy, card)["of_bound"]["array"] == pytest.approx(0.5)
    for part, one in (("ops", {"failed": "MemoryError"}), ("tests", {"passed": 3})):
        assert bounds.shares(part, {"case": "x", **one}, card) == {}
    assert bounds.shares("ops", row, None) == {}


def measured():
    return roofline.read_results(ROOT / "bench/results")


def test_no_committed_measurement_beats_its_bound():
    """Each file of bench.gpu is read, and its figures have shares."""
    found = measured()
    assert [one["part"] for one in found] == [f"gpu-{part}" for part in roofline.UNITS]
    for one in found:
        assert one["card"], one["gpu"]
        assert one["rows"]
        most = 2 if one["part"] == "gpu-ops" else 1  # their arrays may lie in the chip's cache
        assert all(0 < row["share"] <= most for row in one["rows"])


@pytest.mark.parametrize("columns", [60, 80])
def test_results_in_a_narrow_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    roofline.show_results(measured())
    out = capsys.readouterr().out
    assert "gpu-decode: NVIDIA H100 80GB HBM3" in out
    assert max(map(len, out.splitlines())) <= columns


@pytest.mark.parametrize("columns", [60, 80])
def test_bounds_in_a_narrow_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    roofline.show(FILE)
    out = capsys.readouterr().out
    assert "NVIDIA H200 SXM: 141 GB, 4,800 GB/s" in out
    assert max(map(len, out.splitlines())) <= columns


def test_no_results(tmp_path):
    with pytest.raises(UsageError, match="no file of bench"):
        roofline.read_results(tmp_path)


def test_results_of_an_unknown_card(tmp_path, capsys):
    result = {"command": "python -m bench.gpu", "machine": {"gpu": "Z1", "date": "2027-01-01"}}
    (tmp_path / "gpu-step.json").write_text(json.dumps(result | {"rows": [{"case": "S1"}]}))
    roofline.show_results(roofline.read_results(tmp_path))
    assert "This card is not in bench/gpus.toml" in capsys.readouterr().out


def test_json():
    """What was measured, and bounds, as data."""
    found, report = (
        json.loads(command(*words, "--json").stdout)
        for words in (["--results"], ["--gpu", "T4", "--dtype", "fp16", "--variant", "mla"])
    )
    assert found == measured()
    assert report["gpu"]["name"] == "T4"
    assert {row["variant"] for row in report["rows"]} == {"mla"}
    assert report["rows"][0]["over_qkv"] > report["rows"][0]["read_twice"]["over_qkv"] > 1


def test_a_configuration_of_ones_own(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({**vars(TINY), "window": 4}))
    with pytest.raises(UsageError, match="a window is not counted"):
        roofline.configuration(str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text(json.dumps(vars(TINY)))
    assert roofline.configuration(str(tmp_path / "mine.json")) == ("mine", TINY)


# ---- the committed table, and the page


def test_the_file_is_what_the_command_computes():
    words = FILE["command"].split()
    assert words[:3] == ["python", "-m", "bench.roofline"]
    again = json.loads(json.dumps(roofline.computed(roofline.parse(words[3:]))))
    assert not FILE["measured"]
    for key in FILE.keys() - {"command", "versions"}:
        assert FILE[key] == again[key], key


def test_the_model_is_that_of_the_paper():
    """Sizes and dropout of minqkv/configs/300m.toml."""
    recipe = roofline.tomllib.loads((ROOT / "minqkv/configs/300m.toml").read_text("utf-8"))
    preset, sizes = PRESETS["300m"], FILE["sizes"]
    assert (preset.n_layer, preset.n_embd, preset.n_head, preset.d_ff) == (20, 1024, 16, 4096)
    assert (preset.vocab_size, preset.block_size) == (50304, 2048)
    for flag in ("n-layer", "n-head", "n-embd"):
        assert recipe[flag] == sizes[flag.replace("-", "_")]
    assert recipe["seq-len"] == sizes["block_size"]
    for key in ("vocab_size", "dropout"):
        assert recipe["set"][key] == sizes[key]
    assert FILE["batch"] == recipe["set"]["batch"] // recipe["set"]["accumulate"]


def rows(kind):
    return [row for row in FILE["rows"] if row["kind"] == kind]


def test_the_tables_of_the_page():
    for row in rows("token"):
        sizes = f"{row['weights_bytes'] / 1e9:.3f} | {row['cache_bytes'] / 1e9:.3f}"
        times = " | ".join(f"{row[k]:.3f}" for k in ("bytes_ms", "operations_ms", "fp32_units_ms"))
        speeds = [f"{each['tokens_per_second']:,.0f} | {each['over_qkv']:.2f}"
                  for each in (row, row["read_twice"])]  # fmt: skip
        assert f"| `{row['variant']}` | {sizes} | {times} | {' | '.join(speeds)} |" in PAGE
        assert row["binds"] == "bytes"
    for row in rows("step"):
        times = f"{row['bytes_ms']:.1f} | {row['operations_ms']:.1f}"
        speed = f"{row['tokens_per_second']:,.0f} | {row['kernels_ms']:.1f}"
        speed += f" | {row['kernels_tokens_per_second']:,.0f} | {row['kernels_over_qkv']:.2f}"
        assert f"| `{row['variant']}` | {times} | {speed} |" in PAGE
        assert row["binds"] == "operations"
    for row in rows("kernel"):
        if row["variant"] == "qkv":
            times = f"{row['bytes_ms']:.3f} | {row['operations_ms']:.3f} | {row['binds']}"
            line = f"| {row['kernel']} | {row['bytes'] / 1e6:,.1f} | "
            line += f"{row['operations'] / 1e9:,.1f} | {row['intensity']:,.1f} | {times} |"
            assert line in PAGE


def test_the_aims_of_the_page():
    token = {row["variant"]: row for row in rows("token")}
    (step, *_) = rows("step")
    assert step["variant"] == "qkv"
    bound = f"{step['tokens_per_second']:,.0f}; {step['kernels_tokens_per_second']:,.0f}"
    assert f"{bound} one kernel after another | not measured yet |" in PAGE
    shared = token["q-k=v"]
    ratios = f"{shared['over_qkv']:.2f} × with rows read once, "
    ratios += f"{shared['read_twice']['over_qkv']:.2f} × with rows read twice"
    assert f"| {ratios} | not measured yet |" in PAGE
    aims = [f"{0.6 * token[v]['tokens_per_second']:,.0f} tokens/s" for v in ("qkv", "q-k=v")]
    assert f"| `qkv` {aims[0]}, `q-k=v` {aims[1]} | not measured yet |" in PAGE
    file = json.loads((ROOT / "bench/results/gpu-ops.json").read_text("utf-8"))
    near = [r["case"] for r in file["rows"] if r.get("forward_ratio", r.get("step_ratio"))[0] < 1.5]
    assert f"without kernels: only `{', '.join(near)}` |" in PAGE
    (last,) = [r for r in rows("kernel") if (r["variant"], r["kernel"]) == ("q-mqa",
               "decode attention")]  # fmt: skip
    assert f"{last['fp32_units_ms']:.3f} ms there, and {last['bytes_ms']:.3f} ms for" in TEXT
    change = f"{shared['over_qkv']:.2f} times the tokens of `qkv` to "
    assert f"{change}{shared['read_twice']['over_qkv']:.2f} times" in TEXT


def test_the_figures_of_cards_and_shards_of_the_page():
    card, rates = FILE["gpu"], {t: f"{r / 1e12:g}" for t, r in FILE["gpu"]["rates"].items()}
    assert f"{card['memory'] / 1e9:g} GB at {card['bandwidth'] / 1e12:g} TB/s; " in TEXT
    assert f"; {rates['fp32']} TFLOP/s in fp32 on ordinary units" in TEXT
    assert f"{rates['tf32']} in TF32 and {rates['bf16']} in bf16" in TEXT
    assert f"files of {SHARD_TOKENS:,} tokens each" in TEXT
    assert " ".join(FILE["command"].split()) in TEXT.replace(chr(92), "").replace("  ", " ")


def test_the_measured_figures_of_the_page():
    """Of bench.gpu on one card; each line with the file's own figures."""
    for one in measured():
        assert one["card"] in TEXT
        assert f"on {one['date']}" in TEXT
        path = ROOT / f"bench/results/{one['part']}.json"
        file = json.loads(path.read_text("utf-8"))["rows"]
        best = {row["case"]: row.get("best_torch") for row in file}
        by = {(row["case"], row["what"]): row for row in one["rows"]}
        for (case, what), row in by.items():
            if what == "both" or what.startswith("torch"):
                continue
            theirs = by[case, THEIRS.get(what, best[case])]
            shares = f"{per_cent(row['share'])} | {per_cent(theirs['share'])}"
            assert f"| {case} | {row['bound']:,.3f} | {row['value']:,.3f} | {shares} |" in PAGE


THEIRS = {"forward": "torch forward", "step": "torch step", "array": "torch"}
