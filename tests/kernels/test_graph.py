"""A token as one graph: the same numbers as by single launches, and nothing that CuPy refuses."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import on_cpu
import pytest
import strict

import minqkv as mq
from minqkv import backend, caches, generation
from minqkv.models import recorded
from minqkv.runtime.backend import GpuBackend
from minqkv.runtime.errors import UsageError

TOKENS = 16  # with graphs for 8, 16 and 32 slots


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """First graphs for few slots, so that some tokens need another."""
    monkeypatch.setattr(recorded, "LEAST", 8)


@pytest.fixture
def gpu():
    """The stand-in, with kernels."""
    with backend.use_backend("strict") as current:
        yield current


def decoder(**changes):
    """A decoder whose answers depend on all it has read."""
    sizes = {"vocab_size": 23, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = mq.GPT(mq.GPTConfig(**sizes | changes))
    for p in model.parameters():
        if p.ndim > 1:
            p.data *= 8
    return model


def said(model, cache, recorded=None, tokens=TOKENS):
    """Logits (tokens, B, V), step by step; each token read depends on the logits before."""
    ids, found = np.arange(3 * cache.batch).reshape(cache.batch, 3) % 23, []
    model(ids, cache=cache)
    unread = ids[:, -1:]
    for _ in range(tokens):
        logits = (recorded or (lambda ids: model(ids, cache=cache)))(unread)
        found.append(logits.numpy()[:, -1])
        unread = found[-1].argmax(-1)[:, None]
    return np.array(found)


def check(gpu, batch=1, module=recorded, tokens=TOKENS, kind="plain", graphs=3, **design):
    """Graphs and single launches agree, to the last token, and in what they store."""
    model = decoder(**design)
    ours, theirs = (model.new_cache(batch, **caches.options(kind)) for _ in range(2))
    token, before = module.recorded(model, ours), gpu.graphs
    found = said(model, ours, token, tokens)
    assert gpu.graphs - before == graphs
    np.testing.assert_allclose(found, said(model, theirs, tokens=tokens), 1e-4, 1e-4)
    assert len(ours) == len(theirs) == tokens + 3
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        for mine, other in zip(a.rows, b.rows, strict=True):
            np.testing.assert_allclose(mine.get(), other.get(), 1e-3, 1e-3)


DESIGNS = {
    "K and V, learned positions": {},
    "one row": {"variant": "q-k=v", "position": "sinusoidal"},
    "one row, turned late": {"variant": "q-k=v", "position": "rope"},
    "one row, turned back": {"variant": "q-k=v", "position": "rope", "rope_value": "unrotate"},
    "queries are keys": {"variant": "q=k=v", "position": "rope", "n_head": 1},
    "shared by two heads": {"variant": "mqa", "position": "rope", "norm": True},
    "attention alone": {"position": "none", "d_ff": 0, "bias": False},
}


@pytest.mark.parametrize("name", DESIGNS)
def test_a_graph_says_what_single_launches_say(gpu, name):
    check(gpu, **DESIGNS[name])


def test_several_sequences_and_smaller_numbers(gpu):
    check(gpu, batch=3, tokens=12, graphs=2)
    for kind in ("float16", "int8"):
        check(gpu, batch=2, tokens=12, graphs=2, kind=kind, variant="q-k=v", position="rope")


def test_tables_of_positions_grow_before_they_are_frozen(gpu):
    model = decoder(position="rope", block_size=8)
    ours, theirs = model.new_cache(1, 40), decoder(position="rope", block_size=8).new_cache(1, 40)
    found = said(model, ours, recorded.recorded(model, ours), 30)
    np.testing.assert_allclose(found, said(model, theirs, tokens=30), 1e-4, 1e-4)


def generated(model, kernels=True, **more):
    with_kernels, backend.current.kernels = backend.current.kernels, kernels
    try:
        return generation.generate(model, [[1, 2, 3]], 20, **more)
    finally:
        backend.current.kernels = with_kernels


def test_generation_uses_it(gpu):
    model = decoder()
    assert (generated(model) == generated(model, kernels=False)).all()
    assert gpu.graphs == 3
    assert (generated(model, temperature=0.7) == generated(model, False, temperature=0.7)).all()


def test_the_host_does_little(gpu):
    """One wait and one upload for a token, and one launch for all that it takes."""
    model = decoder()
    cache = model.new_cache()
    token = recorded.recorded(model, cache)
    said(model, cache, token, 2)
    before = gpu.functions.copy()
    gpu.functions.clear()  # a kernel that is launched by itself would be looked up here
    with (
        strict.count_syncs() as waits, strict.count_uploads() as uploads,
        on_cpu.recording() as calls, mq.no_grad(),
    ):  # fmt: skip
        token(np.array([[1]])).numpy()
    assert (waits(), uploads(), gpu.functions) == (1, 1, {})
    gpu.functions.update(before)
    names = [call[2] for call in calls]
    assert (names.count("decode"), names.count("gelu"), names.count("along")) == (2, 2, 1)


def test_weights_that_move_are_seen(gpu):
    model = decoder()
    ours, theirs = model.new_cache(), model.new_cache()
    token = recorded.recorded(model, ours)

    def answers():
        """Two tokens, by the graph and without."""
        for _ in range(2):
            ids = np.array([[5]])
            found = token(ids).numpy(), model(ids, cache=theirs).numpy()
            np.testing.assert_allclose(*found, 1e-4, 1e-4)
        return found[0]

    with mq.no_grad():
        first, before = answers(), gpu.graphs
        for p in model.parameters():
            p.data *= 1.5  # in place: the graph reads what is there
        assert np.abs(answers() - first).max() > 0.01
        assert gpu.graphs == before
        for p in model.parameters():
            p.data = p.data * 0.5  # somewhere else
        answers()
        assert gpu.graphs == before + 1


def test_a_cache_that_is_cut_goes_on_from_there(gpu):
    model = decoder()
    ours, theirs = model.new_cache(), model.new_cache()
    token = recorded.recorded(model, ours)
    first = said(model, ours, token, 20)
    said(model, theirs, tokens=20)
    for cache in (ours, theirs):
        cache.trim(7)
    with mq.no_grad():
        found = token(np.array([[4]])).numpy(), model([[4]], cache=theirs).numpy()
    np.testing.assert_allclose(*found, 1e-4, 1e-4)
    assert np.abs(found[0][0, 0] - first[4, 0]).max() > 0.01


def test_an_interrupt_leaves_nothing_behind(gpu, monkeypatch):
    model = decoder()
    cache = model.new_cache()
    token = recorded.recorded(model, cache)
    said(model, cache, token, 3)

    def stop(self, n):
        self.layers[0].ends += n
        raise KeyboardInterrupt

    monkeypatch.setattr(type(cache), "grow", stop)
    with pytest.raises(KeyboardInterrupt), mq.no_grad():
        token(np.array([[1]]))
    assert [layer.ends for layer in cache.layers] == [6, 6]


def test_errors_are_those_of_single_launches(gpu):
    model = decoder()
    cache = model.new_cache(1, 6)
    token = recorded.recorded(model, cache)
    said(model, cache, token, 3)
    with pytest.raises(UsageError, match="holds 6"):
        token(np.array([[1]]))
    cache.trim(2)
    with pytest.raises(UsageError, match="outside 0"):
        token(np.array([[23]]))
    assert len(cache) == 2


UNFIT = {
    "the paper's +": {"variant": "q=k-v+"},
    "a bias by distance": {"position": "alibi"},
    "a window": {"window": 5},
    "latent rows": {"variant": "mla", "position": "rope"},
    "float64": {"dtype": "float64"},
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_a_graph_cannot_hold(gpu, name):
    model = decoder(**UNFIT[name])
    assert recorded.recorded(model, model.new_cache()) is None
    assert generated(model).shape == (1, 23)
    assert gpu.graphs == 0


def test_other_caches_and_many_sequences_have_none(gpu):
    model = decoder()
    for cache in (
        model.new_cache(9), model.new_cache(**caches.options("ring", window=5)),
        caches.branches(model.new_cache(), 2),
    ):  # fmt: skip
        assert recorded.recorded(model, cache) is None
    with backend.use_backend("numpy"):
        model = decoder()
        assert recorded.recorded(model, model.new_cache()) is None


def test_what_no_kernel_knows_is_launched_singly(gpu):
    """Heads of six numbers; prompts of different length."""
    model = decoder(n_embd=12)
    assert (generated(model) == generated(model, kernels=False)).all()
    model = decoder()
    found = []
    for gpu.kernels in (True, False):
        found.append(generation.generate(model, [[1, 2, 3], [4]], 10))
    assert (found[0] == found[1]).all()
    assert gpu.graphs == 0


def test_what_cannot_be_recorded_is_said_once(gpu, monkeypatch):
    def refuse(self, function):
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    model = decoder()
    monkeypatch.setattr(GpuBackend, "recorded", refuse)
    with pytest.warns(RuntimeWarning, match="many launches: cudaErrorStreamCapture") as warned:
        found = generated(model)
    assert len(warned) == 1
    assert (found == generated(model, kernels=False)).all()
    assert gpu.usable()["graphs"] == "cannot be recorded: cudaErrorStreamCaptureUnsupported"


def test_commands_say_so(gpu, cli, monkeypatch):
    monkeypatch.setattr(GpuBackend, "kernels", True)
    assert "graphs usable" in " ".join(cli("doctor", "--backend", "strict")[1].split())
    small = ("--seq-len", 4, "--n-embd", 32, "--n-layer", 1, "--n-head", 2, "--steps", 1)
    assert cli("train", "--task", "copy", "--form", "causal", *small, "--out", "run")[0] == 0
    found = []
    for flags in ((), ("--no-kernels",)):
        out = cli("generate", "run", "1234", "--backend", "strict", "--json", *flags)[1]
        found += json.loads(out)
    assert [row.pop("graph") for row in found] == [True, False]
    assert found[0] == found[1]


# ---- what the stand-in refuses, as CuPy does


def refused(gpu):
    """Name -> (what is tried while a graph is recorded, what is said of it)."""
    xp, a, m = gpu.xp, gpu.xp.ones(3), gpu.xp.ones((2, 2))
    return {
        "a number for the host": (lambda: float(a.sum()), "wait"),
        "a download": (lambda: gpu.to_host(a), "wait"),
        "a truth": (lambda: bool((a > 0).all()), "wait"),
        "a size that data decide": (lambda: a[a > 0], "wait"),
        "an upload": (lambda: gpu.upload(np.ones(3)), "upload"),
        "matmul": (lambda: xp.matmul(m, m), "cuBLAS"),
        "@": (lambda: m @ m, "cuBLAS"),
        "bmm": (lambda: gpu.bmm(m, m), "cuBLAS"),
        "a graph": (lambda: gpu.recorded(lambda: a + 1), "capture"),
    }


def test_what_is_refused(gpu):
    for name, (attempt, why) in refused(gpu).items():
        attempt()
        recording = 0

        def later(attempt=attempt):
            nonlocal recording
            recording += 1
            return attempt() if recording > 1 else None

        with pytest.raises(NotImplementedError, match=why):
            gpu.recorded(later)
        assert gpu.recorded(lambda: gpu.xp.ones(2) + 1)().get().tolist() == [2, 2], name


def test_a_kernel_is_compiled_before(gpu):
    def run():
        gpu.functions.clear()
        return gpu.gelu(gpu.xp.ones(3, "float32"), gpu.xp.ones(3, "float32"), None)

    gpu.recorded(lambda: gpu.gelu(*[gpu.xp.ones(3, "float32")] * 2, None))
    with pytest.warns(RuntimeWarning, match="a new kernel during"):
        gpu.recorded(run)


def test_a_graph_is_frozen(gpu):
    """Numbers and addresses are those of the recording; contents are those of the launch. Nothing
    is done while it is recorded.
    """
    xp = gpu.xp
    a, total, factor = xp.arange(3), xp.zeros(3, "int64"), [10]

    def run():
        nonlocal total
        total += a * factor[0]
        return total[1:] + 0

    again = gpu.recorded(run)
    assert total.get().tolist() == [0, 10, 20]  # by the run before the recording
    factor[0] = 1000
    assert again().get().tolist() == [20, 40]
    a[...] = 1
    first, total = total, xp.zeros(3, "int64")
    assert again().get().tolist() == [30, 50]
    assert first.get().tolist() == [10, 30, 50]


def test_a_graph_has_memory_of_its_own(gpu):
    again = gpu.recorded(lambda: gpu.xp.ones(2) + 1)
    again()
    del again.memory
    with pytest.raises(RuntimeError, match="given back"):
        again()
    pool, stream = gpu.xp.cuda.MemoryPool(), gpu.xp.cuda.Stream()
    with stream, pytest.raises(RuntimeError, match="given to others"):
        stream.begin_capture()
    other = gpu.xp.cuda.Stream()
    with gpu.xp.cuda.using_allocator(pool.malloc), pytest.raises(RuntimeError, match="another"):
        other.begin_capture()


def test_what_follows_waits_for_the_recording(gpu):
    usual = gpu.xp.cuda.get_current_stream()
    before = usual.waited
    gpu.recorded(lambda: gpu.xp.ones(2) + 1)
    assert (gpu.xp.cuda.get_current_stream(), usual.waited) == (usual, before + 1)


# ---- planted faults, in the kernel and in what is recorded


def quick():
    with backend.use_backend("strict") as gpu:
        check(gpu, tokens=10, graphs=2, position="rope")


@pytest.mark.parametrize("new", ["n", "newest ? int(*newest) : n", "newest ? int(*newest) + 2 : n"])
def test_a_planted_fault_in_the_kernel_is_noticed(new):
    assert not on_cpu.survives("decode", "newest ? int(*newest) + 1 : n", new, quick)


FAULTS = [
    ("        self.at[...] = position\n", ""),
    ("self.ids[...] = backend", "_ = backend"),
    ("cache.grow(1)", "pass"),
    (", newest=at)", ")"),
    ("buffer[:, :, at] = row", "pass"),
    ("table.data[self.at]", "table.data[:1]"),
    ("x = block(x, None, layer, self.at)",
     "x = block(x, None, layer, slice(3, 4))"),
    ("for buffer in layer.buffers]\n", "for buffer in reversed(layer.buffers)]\n"),
    ("any(p.data is not w for p, w in weights)", "False"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[new or old.strip() for old, new in FAULTS])
def test_a_planted_fault_is_noticed(gpu, fault, monkeypatch):
    text = Path(recorded.__file__).read_text("utf-8")
    assert text.count(fault[0]) == 1
    wrong = ModuleType("minqkv.models.wrong")
    wrong.__package__ = "minqkv.models"
    monkeypatch.setitem(sys.modules, wrong.__name__, wrong)
    exec(text.replace(*fault), vars(wrong))
    wrong.LEAST = 8

    def checks():
        check(gpu, tokens=12, graphs=2, module=wrong)
        monkeypatch.setattr(recorded, "recorded", wrong.recorded)
        test_weights_that_move_are_seen(gpu)

    with pytest.raises((AssertionError, UsageError, RuntimeWarning)):
        checks()
