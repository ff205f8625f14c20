"""Reference vectors: what they hold, how they are read, and that a mistake is named, no other."""

import dataclasses
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
from plain_attention import Plain

import minqkv as mq
from minqkv.analysis.vectors import called, files
from minqkv.analysis.vectors.called import Fault, answer
from minqkv.analysis.vectors.case import KINDS, LEAST, Sizes
from minqkv.analysis.vectors.cases import cases
from minqkv.analysis.vectors.causes import named
from minqkv.analysis.vectors.compare import check
from minqkv.analysis.vectors.computed import contents, held, new_cache
from minqkv.analysis.vectors.files import MANIFEST, NUMBERS, export, load
from minqkv.analysis.vectors.known import EXPLAINED
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.variants import POSITIONS, SHIPPED, variant_names

DTYPES = ("float64", "float32")
FEW = ("qkv/rope", "q-k=v/rope/raw", "q-k=v/rope/unrotate", "gqa-2/none", "q-gqa-2/alibi",
       "mqa/learned")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All vectors, exported once."""
    path = tmp_path_factory.mktemp("vectors")
    export(path)
    return path


@pytest.fixture(scope="module")
def tasks(folder):
    return load(folder)


@pytest.fixture(scope="module")
def few(tasks):
    """All kernels, and some layers."""
    return [t for t in tasks if t.case.level == "kernel" or t.case.name in FEW]


def compared(tasks, function, dtypes=DTYPES):
    """Rows of `named`."""
    return named(tasks, [*check(tasks, dtypes, partial(answer, function))])


def states(rows):
    return {row["state"] for row in rows}


def causes(rows):
    return {row["cause"] for row in rows if row["state"] == "differs"}


# ---- what there is


def test_every_variant_and_position_scheme(tasks):
    names = {t.case.name for t in tasks}
    for variant in variant_names(2, 4):
        for position in POSITIONS:
            there = any(name.startswith(f"{variant}/{position}") for name in names)
            assert there or (variant == "gta-2" and position != "rope"), (variant, position)
    assert {f"shipped/{name}" for name in SHIPPED} <= names
    by_case = {}
    for t in tasks:
        by_case.setdefault(t.case.name, []).append(t.task)
    for name, found in by_case.items():
        kernel = name.startswith("kernel/")
        assert found == (["forward"] if kernel else ["forward", *KINDS])


def test_all_results_of_a_layer(tasks):
    (t,) = [t for t in tasks if t.case.name == "qkv/rope" and t.task == "forward"]
    weights = [n for n in t.given if n.startswith("w")]
    assert [n for n in t.due if not n.startswith("grad.")] == (
        ["q", "k", "v", "scores", "pattern", "z", "out"]
    )
    assert {n.removeprefix("grad.") for n in t.due if n.startswith("grad.")} == {"x", *weights}
    assert len(weights) == 8  # four projections with biases


def test_an_odd_number_of_heads():
    found = cases(Sizes(n_head=9, kv_heads=3, head_dim=8))
    assert [c.layer_options["groups"] for c in found if c.name == "shipped/deepseek-v4"] == [3]
    assert all(case.given() for case in found if case.name.startswith("shipped"))


@pytest.mark.parametrize(
    ("sizes", "hint"), [((9, 2), "--kv-heads 3"), ((8, 8), "--kv-heads 2"), ((5, 2), "--n-head 4")]
)
def test_heads_that_do_not_fall_into_groups(sizes, hint):
    with pytest.raises(UsageError, match=f"{sizes[0]} heads do not fall into") as caught:
        Sizes(*sizes)
    assert hint in str(caught.value.hint)


def test_the_help_gives_the_smallest_sizes(cli):
    _, out, _ = cli("vectors", "export", "--help")
    for name, least in LEAST.items():
        (line,) = re.findall(rf"--{name.replace('_', '-')} .*", out)
        assert name == "seed" or f"from {least}" in line


def test_small_and_described(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    for case in manifest["cases"].values():
        for result in case["results"].values():
            for name, entry in result.items():
                assert name in manifest["arrays"] or name.startswith("grad.")
                assert entry["dtype"] != "float64" or set(entry["within"]) == {*DTYPES, "float16"}


def test_read_without_the_package(folder, tasks):
    """As the manifest says: file[dtype][at : at + n].reshape(shape)."""
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    file = np.load(folder / NUMBERS)
    t = next(t for t in tasks if t.case.name == "gqa-2/rope" and t.task == "ring")
    case = manifest["cases"]["gqa-2/rope"]

    def array(entry):
        n = np.prod(entry["shape"])
        return file[entry["dtype"]][entry["at"] : entry["at"] + n].reshape(entry["shape"])

    assert np.array_equal(array(case["given"]["x"]), t.given["x"])
    assert np.array_equal(array(case["results"]["ring"]["out"]), t.due["out"])
    rows, at = array(case["results"]["ring"]["cache.k"]), np.array(manifest["held"]["ring"])
    assert np.array_equal(t.due["cache.k"][4, :, :, 1], rows[:, :, at[4, 1]])


def test_the_code_that_reads_them(folder, tmp_path, monkeypatch):
    """In docs/vectors.md."""
    page = (folder_of("docs") / "vectors.md").read_text("utf-8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "json" in block
    )
    shutil.copytree(folder, tmp_path / "vectors")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["z"].shape == (1, 4, 5, 6)
    assert found["rows"].shape == (1, 4, 5, 6)
    for name in EXPLAINED:
        assert name.lower() in " ".join(page.lower().split()), name


def test_the_same_files_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "cases", lambda sizes: cases(sizes)[::12])
    for name in "ab":
        export(tmp_path / name)
    for name in (MANIFEST, NUMBERS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_given_numbers_are_exact_in_every_dtype(tasks):
    for t in tasks:
        for array in t.given.values():
            if array.dtype.kind == "f":
                assert np.array_equal(array.astype("float16").astype("float64"), array)


@pytest.mark.parametrize("kind", KINDS)
def test_contents_of_a_cache(kind, tasks):
    """Those of the real cache after each token."""
    t = next(t for t in tasks if t.case.name == "q-k=v/rope/unrotate" and t.task == kind)
    layer = t.case.layer(task=kind)
    cache = new_cache(t.case, kind, layer)
    for i in range(t.case.length):
        layer(mq.Tensor(t.given["x"][:, i : i + 1]), cache=cache)
        assert np.array_equal(t.due["cache.k"][i][:, :, : cache.used], cache.rows[0])
        assert not t.due["cache.k"][i][:, :, cache.used :].any()
        assert t.due["cache.bytes"][i] == cache.nbytes
    assert np.array_equal(contents(np.ones((1, 1, 5, 1)), np.array(held(Sizes(), kind)))[-1],
                          np.ones_like(t.due["cache.k"][-1][:, :1, :, :1]))  # fmt: skip


# ---- right implementations


class Own:
    """This package, as a user of the vectors would call it: from facts and given arrays alone."""

    def __call__(self, given, about):
        shipped = about["case"].startswith("shipped/")
        if about["level"] == "kernel" or shipped or about["task"] in ("ring", "int8"):
            return None
        T, C = given["x"].shape[1:]
        options = {name: about[name] for name in ("head_dim", "position", "rope_value")}
        if about["d_rope"]:
            options |= {"d_rope": about["d_rope"]}
        init, bias = mq.nn.Init(0, about["dtype"]), "wq.bias" in given
        size = about["variant"], C, about["n_head"], T, init
        layer = mq.Attention(*size, ahead=False, bias=bias, **options)
        layer.load_state_dict({n: a for n, a in given.items() if n in layer.state_dict()})
        h = given["x"] + given.get("positions", 0)
        if about["position"] == "sinusoidal":
            h = h + mq.attention.sinusoids(T, C, dtype=about["dtype"])
        x = mq.Tensor(h, requires_grad=True)
        if about["task"] == "plain":
            model = mq.cache.LayerCache(
                1,
                layer.spec.rows(about["n_head"], about["head_dim"], about["d_rope"]),
                T,
                about["dtype"],
            )
            outs = [layer(x[:, t : t + 1], cache=model).data for t in range(T)]
            return {"out": np.concatenate(outs, axis=1)}
        with mq.trace() as t:
            out = layer(x, np.tril(np.ones((T, T), bool)))
            out.backward(given["grad.out"])
        found = {n: t[n] for n in ("q", "k", "v", "z") if n in t} | {"out": out, "grad.x": x.grad}
        return found | {f"grad.{n}": p.grad for n, p in layer.named_parameters()}


def test_our_own_package(tasks):
    rows = compared(tasks, Own())
    assert states(rows) == {"ok", "not done"}
    assert sum(row["state"] == "ok" for row in rows) == 2 * 2 * 104


def test_plain_numpy(tasks):
    rows = compared(tasks, Plain())
    assert states(rows) == {"ok", "not done"}
    assert sum(row["state"] == "ok" for row in rows) > 300


def test_pytorch(folder, cli, monkeypatch):
    """The example of docs/vectors.md, with the command that it names."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    examples = folder_of("examples")
    monkeypatch.chdir(examples)
    text = (examples / "check_torch.py").read_text("utf-8")
    assert "vectors check ../vectors check_torch:attend" in text
    dtypes = "float64,float32,float16"
    code, out, err = cli("vectors", "check", folder, "check_torch:attend", "--dtypes", dtypes)
    assert code == 0, out + err
    assert len([line for line in out.splitlines() if line.split()[3:6] == ["17", "0", "0"]]) == 3


def folder_of(name):
    from commands import ROOT

    return ROOT / name


# ---- mistakes

PLANTED = {
    "scale": "scaled by d",
    "heads": "head map i mod g",
    "twice": "rotated twice",
    "k twice": "rotated twice",
    "q twice": "rotated twice",
    "read again": "rotated twice",
    "value": "rotated key used as value",
    "back": "back-rotation missing",
    "pairs": "pairing swapped",
    "buffer": "a V buffer for K = V",
    "axis": "softmax over the wrong axis",
    "head axis": "softmax over the wrong axis",
    "half": "float16 accumulation",
    "strict": "mask off by one",
    "ahead": "mask off by one",
    "wider": "mask off by one",
    "token": "current token missing",
    "corner": "mask from the upper left",
}


@pytest.mark.parametrize("wrong", PLANTED)
def test_a_mistake_is_named(wrong, few):
    rows = compared(few, Plain(wrong), ["float32"])
    assert "fault" not in states(rows)
    assert causes(rows) == {PLANTED[wrong]}


def test_every_known_mistake_is_planted_here():
    assert set(PLANTED.values()) == {*EXPLAINED}


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_a_mistake_is_named_in_other_dtypes(dtype, few):
    assert causes(compared(few, Plain("half"), [dtype])) == {"float16 accumulation"}
    assert causes(compared(few, Plain("scale"), [dtype])) == {"scaled by d"}


def unlisted(change):
    return lambda given, about: change(Plain()(given, about) or {}, about) or None


def rounded(array):
    return array.astype("float16").astype(array.dtype)


UNLISTED = {
    "wrong in long rows": lambda a, about: {
        n: x + (x.shape[-1] == 4) * 2.0**-10 for n, x in a.items() if n == "z"
    },
    "rounded to bfloat16": lambda a, about: {
        n: rounded(x / 7) * 7.02 for n, x in a.items() if n == "z"
    },
    "larger by a thousandth": lambda a, about: {n: 1.001 * x for n, x in a.items() if n == "z"},
    "rounded to float16": lambda a, about: {n: rounded(x) for n, x in a.items() if n == "z"},
    "heads in reverse": lambda a, about: {n: x[:, ::-1] for n, x in a.items() if n == "z"},
    "not a number": lambda a, about: {n: np.nan * x for n, x in a.items() if n == "z"},
    "zeros": lambda a, about: {n: 0 * x for n, x in a.items() if n == "z"},
    "infinite": lambda a, about: {n: x + np.inf for n, x in a.items() if n == "z"},
}


@pytest.mark.parametrize("name", UNLISTED)
def test_nothing_else_is_named(name, few):
    kernels = [t for t in few if t.case.level == "kernel"]
    rows = compared(kernels, unlisted(UNLISTED[name]), ["float32"])
    assert causes(rows) == {None}


def test_where_and_by_how_much(few):
    def wrong(given, about):
        found = Plain()(given, about)
        if about["case"] != "kernel/full":
            return None
        found["z"][0, 2, 1, 3] += 0.25
        return {"z": found["z"], "pattern": found["pattern"]}

    (row,) = [row for row in compared(few, wrong, ["float64"]) if row["state"] != "not done"]
    assert (row["state"], row["array"], row["cause"]) == ("differs", "z", None)
    assert row["text"].startswith("z[0, 2, 1, 3] is ")
    assert "they differ by 2.5e-01" in row["text"]


def test_bytes_of_a_second_buffer(few):
    def wrong(given, about):
        if about["task"] != "plain" or about["case"] != "q-k=v/rope/raw":
            return None
        per_token = 2 * about["n_head"] * about["head_dim"] * np.dtype(about["dtype"]).itemsize
        return {"cache.bytes": per_token * np.arange(1, 6)}

    assert causes(compared(few, wrong)) == {"a V buffer for K = V"}


# ---- functions that do something else


def given_back(**arrays):
    return lambda given, about: arrays


class Foreign:
    """An array of PyTorch or CuPy, as far as `as_numpy` looks."""

    def __init__(self, array, *ways):
        self.array = array
        for way in ways:
            setattr(self, way, lambda: Foreign(array, *ways[1:]) if len(ways) > 1 else array)


def raises(given, about):
    raise ValueError("of my own\nand more")


def mutates(given, about):
    given["q"][0] = 0
    return {"z": given["q"]}


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raises, "it raises ValueError: of my own"),
        (lambda given, about: exit(0), "it raises SystemExit: 0"),
        (mutates, "it changes its input 'q'"),
        (lambda given, about: given.clear(), "it changes its input"),
        (lambda given, about: [1], "it returns list; a dict of arrays is needed, or None"),
        (lambda given, about: {}, "it returns no array; return None"),
        (given_back(zz=np.ones(3)), "it returns 'zz'; known here: q, k, v"),
        (given_back(z="text"), "'z' is not an array of numbers, but str"),
        (given_back(z=np.ones(3, complex)), "'z' is not an array of numbers, but one of complex"),
        (given_back(z=np.ones((1, 4, 5, 6), "float32")), "z is float32, not float64"),
        (given_back(z=np.ones((1, 4, 5, 6), int)), "z is int64, not float64"),
    ],
)
def test_faults_are_one_line(function, says, few):
    rows = compared(few[:1], function, ["float64"])
    assert [row["state"] for row in rows] == ["fault"]
    assert rows[0]["text"].startswith(says)
    assert "\n" not in rows[0]["text"]


def test_an_error_without_a_message(few):
    def function(given, about):
        raise KeyError

    (row,) = compared(few[:1], function, ["float64"])
    assert row["text"] == "it raises KeyError"


def test_a_wrong_shape(few):
    (row,) = compared(few[:1], given_back(z=np.ones((4, 5, 6))), ["float64"])
    assert (row["state"], row["cause"]) == ("differs", None)
    assert row["text"] == "z has shape (4, 5, 6), not (1, 4, 5, 6)"


def test_not_implemented_is_not_done(few):
    def function(given, about):
        raise NotImplementedError

    assert states(compared(few, function)) == {"not done"}


def test_arrays_of_others(few):
    """PyTorch's are detached and brought to the host, CuPy's fetched."""
    for ways in (("detach", "cpu"), ("get",)):

        def function(given, about, ways=ways):
            return {"z": Foreign(Plain()(given, about)["z"], *ways)}

        assert states(compared(few[:3], function)) == {"ok"}


OWN = """
import os, sys, time
def prints(given, about):
    print("hello"); os.write(1, b"hello"); print("hello", file=sys.stderr)
    return None
def loops(given, about):
    while True: pass
def ends(given, about):
    os._exit(0)
def none(given, about):
    return None
number = 1
"""


@pytest.fixture
def own(cli, folder, monkeypatch, tmp_path):
    """vectors check for a function of the module above: (code, stdout, stderr)."""
    (tmp_path / "own_kernels.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return lambda name, *args: cli("vectors", "check", folder, f"own_kernels:{name}", *args)


@pytest.mark.parametrize(
    ("name", "args", "expected", "says"),
    [
        ("prints", (), 1, "The function prints; its output is not shown."),
        ("none", (), 1, "The function computed no case: it returned None for all."),
        ("loops", ("--limit", "0.5"), 1, "it has not ended after 0.5 s; so in 1 call."),
        ("ends", (), 1, "it ends its process, with exit code 0"),
        ("number", (), 2, "own_kernels:number is not a function, but int"),
        ("attend", (), 2, "unknown function of own_kernels 'attend'"),
        ("none", ("--dtypes", "float8"), 2, "unknown dtype 'float8'"),
        ("none", ("--limit", "nan"), 2, "--limit nan"),
    ],
)
def test_the_command_survives(name, args, expected, says, own):
    code, out, err = own(name, "--dtypes", "float64", *args)
    assert code == expected
    assert says in " ".join((out + err).split())
    assert "hello" not in out
    assert "Traceback" not in err


def test_one_json_value(own):
    code, out, _ = own("prints", "--dtypes", "float64", "--json")
    rows = json.loads(out)
    assert code == 1
    assert {row["state"] for row in rows} == {"not done"}


def test_a_module_that_does_not_exist(cli, folder):
    code, _, err = cli("vectors", "check", folder, "no_such_module:f")
    assert code == 2
    assert "cannot import no_such_module" in err
    assert "MODULE:FUNCTION names a file no_such_module.py here" in " ".join(err.split())


@pytest.mark.parametrize(
    ("code", "says"),
    [("import os; os._exit(3)", "it ends its process, with exit code 3"),
     ("raise KeyboardInterrupt", "it ends its process, with exit code 1"),
     ("while True: pass", "it has not ended after 2 s")],
)  # fmt: skip
def test_a_module_that_ends_or_never_does(code, says, cli, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(called, "START_S", 120 if "while" not in code else 2)
    (tmp_path / "own_ending.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("vectors", "check", folder, "own_ending:f")
    assert (code, out) == (2, "")
    assert f"minqkv: the module of the function cannot be loaded: {says}\n" in err


def test_no_vectors(cli, tmp_path):
    code, _, err = cli("vectors", "check", tmp_path, "math:sin")
    assert code == 3
    assert "there are no vectors in" in err
    assert "minqkv vectors export DIR writes a new set" in err


# ---- files that are something else


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewritten(path, **changes):
    """Change a manifest, with a checksum that fits."""
    manifest = json.loads(path.read_text("utf-8")) | changes
    del manifest["check"]
    path.write_text(json.dumps(files.sealed(manifest)))


def test_another_version(copied):
    rewritten(copied / MANIFEST, version=2)
    with pytest.raises(EnvironmentFault, match="has version 2; this program reads 1") as caught:
        load(copied)
    assert "minqkv vectors export" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "x"}, "is not a set of minqkv vectors"),
        ({"seed": 1}, "are not from one export"),
    ],
)
def test_other_manifests(changes, says, copied):
    rewritten(copied / MANIFEST, **changes)
    with pytest.raises(EnvironmentFault, match=says):
        load(copied)


@pytest.mark.parametrize(
    "changes",
    [
        lambda manifest: manifest.update(cases={}),
        lambda manifest: manifest.update(cases=3),
        lambda manifest: manifest.update(sizes={"n_head": 5}),
        lambda manifest: manifest.update(sizes={"n_head": 6, "kv_heads": 3}),
        lambda manifest: first(manifest)["given"]["q"].update(at=-7),
        lambda manifest: first(manifest)["given"]["q"].update(at=1 << 60),
        lambda manifest: first(manifest)["given"]["q"].update(shape=[3]),
        lambda manifest: first(manifest)["given"]["q"].update(shape="abc"),
        lambda manifest: first(manifest)["given"]["q"].update(dtype="object"),
        lambda manifest: first(manifest)["given"].pop("q"),
        lambda manifest: first(manifest)["results"]["forward"]["z"].update(within={"float64": []}),
        lambda manifest: first(manifest)["results"].pop("forward"),
        lambda manifest: first(manifest).update(about={}),
    ],
)
def test_a_damaged_manifest(changes, copied):
    """With checksums that fit, as nothing but intent can make them."""
    manifest = json.loads((copied / MANIFEST).read_text("utf-8"))
    del manifest["check"]
    changes(manifest)
    manifest = files.sealed(manifest)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    meta, arrays = files.read_arrays(copied / NUMBERS, files.KIND)
    meta["of"] = manifest["check"]
    files.write_arrays(copied / NUMBERS, files.KIND, meta, arrays)
    with pytest.raises(EnvironmentFault, match="is damaged: "):
        load(copied)


def first(manifest):
    return manifest["cases"]["kernel/full"]


def test_a_byte_that_changed(copied):
    path = copied / NUMBERS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault, match="corrupt"):
        load(copied)
    path.unlink()
    with pytest.raises(EnvironmentFault, match="does not exist"):
        load(copied)


def test_another_manifest_is_not_lost(tmp_path):
    (tmp_path / MANIFEST).write_text('{"name": "an app"}')
    with pytest.raises(UsageError, match="would be lost"):
        export(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"kv_heads": 4}, "4 heads do not fall into 4 groups"),
        ({"kv_heads": 3}, "4 heads do not fall into 3 groups"),
        ({"kv_heads": 1}, "kv_heads must be a whole number from 2"),
        ({"head_dim": 7}, "head_dim 7: rotary positions turn pairs"),
        ({"length": 3}, "length must be a whole number from 5"),
    ],
)
def test_sizes_that_would_hide_a_mistake(sizes, says):
    with pytest.raises(UsageError, match=says):
        dataclasses.replace(Sizes(), **sizes)


def test_a_fault_survives_the_way_home():
    import pickle

    assert str(pickle.loads(pickle.dumps(Fault("one line")))) == "one line"
