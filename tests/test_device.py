"""The device of a run: how much memory is asked for before it starts, what is said when it is full,
when it cannot be used, and when a run moves to another.
"""

import gc
import pickle
import sys
import types
import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import strict
from strict import OutOfMemoryError, StrictArray

import minqkv as mq
from minqkv import backend
from minqkv.analysis import needs
from minqkv.analysis.memory import activation_bytes
from minqkv.designs.linear import LinearGPT
from minqkv.runs import configure, train_run
from minqkv.runtime import files
from minqkv.runtime.backend import GpuBackend, out_of_memory
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.study import workers
from minqkv.tasks.synthetic import Synthetic
from minqkv.tasks.text import Text
from minqkv.train import token_loss

MIB = 2**20
TEXT = {"seq_len": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, "batch": 4}
SMALL = [f"--set={name}={value}" for name, value in TEXT.items()]
SMALL += ["--set=n_test=4", "--set=n_validation=4"]


def said(err):
    """A message on one line."""
    return " ".join(err.split())


@pytest.fixture(autouse=True)
def restored():
    """The command line sets the backend for the whole process."""
    with backend.use_backend("numpy"):
        yield


@pytest.fixture
def gpu():
    with backend.use_backend("strict") as current:
        yield current


# ---- before a run starts


def held():
    """Bytes of all arrays on the device."""
    gc.collect()
    arrays = {}
    for thing in gc.get_objects():
        if type(thing) is StrictArray:
            array = thing._host
            while isinstance(array.base, np.ndarray):
                array = array.base
            arrays[id(array)] = array.nbytes
    return sum(arrays.values())


@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "mqa"])
@pytest.mark.parametrize("length", [64, 256, 600])
@pytest.mark.parametrize("kernels", [False, True])
def test_activations_are_predicted_on_a_gpu(kernels, length, variant, gpu, monkeypatch):
    """By the formula of the host."""
    monkeypatch.setattr(GpuBackend, "kernels", kernels)
    cfg = mq.GPTConfig(50, length, 3, 2, 32, variant=variant)
    model, ids = mq.GPT(cfg), np.arange(2 * length).reshape(2, length) % 50
    before = held()
    loss = token_loss(model, ids, ids)
    assert held() - before == pytest.approx(activation_bytes(cfg, 2, length), rel=0.01)
    loss.backward()


def test_what_is_free_on_a_gpu(gpu):
    with strict.memory(free=5 * MIB):
        assert needs.available() == 5 * MIB  # and what the pool keeps: here nothing
    assert needs.peak_memory() == gpu.held_memory() > 0
    gpu.release()


@pytest.mark.parametrize(
    ("given", "change", "cure"),
    [
        ({"batch": 16}, {"accumulate": 4}, "it fits with --set accumulate=4"),
        ({"batch": 8, "accumulate": 8}, {"recompute": True}, "it fits with --recompute"),
        ({"batch": 16}, {"accumulate": 8, "recompute": True},
         "it fits with --recompute --set accumulate=8"),
        ({"batch": 1, "n_embd": 256}, {"n_layer": 1}, "make it smaller with --n-layer"),
    ],
)  # fmt: skip
def test_a_run_that_does_not_fit_the_gpu(given, change, cure, gpu):
    config = configure("text", digest="0" * 12, text="text", vocab_size=66, seq_len=512, n_layer=8,
                       threads=4, n_test=4, n_validation=4, **{"n_embd": 64} | given)  # fmt: skip
    free = needs.needs(config.change(**change)).total
    with strict.memory(free=free), pytest.raises(EnvironmentFault) as error:
        needs.check_memory(config)
    assert "of the GPU's memory (weights" in str(error.value)
    assert "is free" in str(error.value)
    assert cure in error.value.hint
    assert "--threads" not in error.value.hint


def test_fewer_examples_are_scored_where_scoring_does_not_fit(gpu):
    config = configure("copy", batch=1, n_test=2000, threads=4)
    small = needs.needs(config.change(n_test=50))
    with strict.memory(free=small.total), pytest.raises(EnvironmentFault) as error:
        needs.check_memory(config)
    assert error.value.hint == "it fits with --set n_test=50"


def test_nothing_is_allocated_for_a_run_that_does_not_fit(cli, monkeypatch, tmp_path):
    made = []
    with strict.memory(free=MIB):
        monkeypatch.setattr(StrictArray, "__init__", lambda self, host: made.append(host))
        code, out, err = cli("train", "--task", "copy", "--backend", "strict", "--out", "run")
    assert (code, out, made) == (3, "", [])
    assert "of the GPU's memory" in said(err)
    assert "but only 1.0 MiB is free" in said(err)
    assert not (tmp_path / "run").exists()


def test_a_long_run_on_a_gpu_is_estimated_without_threads(gpu, monkeypatch):
    monkeypatch.setattr(needs, "_product_speed", lambda: 1e12)
    config = configure("copy", steps=10**6, seq_len=1024, n_embd=1024, n_layer=8)
    assert needs.run_seconds(config) == needs.run_seconds(config.change(threads=8)) > 1000


# ---- a study


STUDY = ("study", "--tasks", "copy,reverse", "--variants", "qkv", "--seeds", 4, "--steps", 2,
         "--set", "n_test=20", "--backend", "strict")  # fmt: skip


def room(n):
    """Bytes for n processes that train the largest run of STUDY."""
    with backend.use_backend("strict"):
        runs = [configure(name, n_test=20, steps=2) for name in ("copy", "reverse")]
        return n * (max(needs.needs(run).total for run in runs) + needs.CONTEXT)


@pytest.mark.parametrize(("free", "jobs", "fit"), [(2.9, 2, 2), (30, 8, 30), (0.9, 1, 1)])
def test_as_many_processes_as_fit_the_gpu(free, jobs, fit, cli):
    with strict.memory(free=int(room(free))):
        code, out, err = cli(*STUDY, "--jobs", 8, "--dry-run")
        assert code == 0, err
        where = f"{jobs} process{'es' if jobs > 1 else ''} (the GPU's memory has room for {fit})"
        assert where in said(out)
        assert f'"jobs": {jobs},' in cli(*STUDY, "--jobs", 8, "--dry-run", "--json")[1]


def test_a_study_of_which_a_run_does_not_fit(cli, tmp_path):
    with strict.memory(free=MIB):
        code, out, err = cli(*STUDY, "--out", "study")
    assert (code, out) == (3, "")
    assert "this run needs about" in said(err)
    assert not (tmp_path / "study").exists()


def test_a_study_whose_runs_are_on_record_needs_nothing(cli):
    few = (*STUDY, "--seeds", 2, "--jobs", 1, "--out", "study")
    code, _, err = cli(*few)
    assert code == 0, err
    with strict.memory(free=MIB):
        assert cli(*few)[0] == 0


def test_memory_that_was_used_to_estimate_is_given_back(cli, monkeypatch):
    given = []
    monkeypatch.setattr(strict.pool, "free_all_blocks", lambda: given.append(1))
    cli(*STUDY, "--dry-run")
    assert given


def test_the_host_lowers_no_jobs(cli, monkeypatch):
    monkeypatch.setattr(needs, "available", lambda: int(room(1)))
    code, out, _ = cli(*STUDY, "--backend", "numpy", "--jobs", 8, "--dry-run")
    assert code == 0
    assert "on 8 processes" in said(out)
    assert "room for" not in out


def full(item):
    """A run for which there is no memory."""
    raise OutOfMemoryError(3 * MIB, 0)


def test_a_worker_without_memory_ends_the_study_with_one_line():
    work = (b"study", workers.code_version(), ("strict", "fp32", True), pickle.dumps((full, 1)))
    free = strict.memory(free=2 * MIB)
    with free, backend.use_backend("strict"), pytest.raises(EnvironmentFault) as error:
        workers.run_here(*work)
    assert "3.0 MiB were asked for, 2.0 MiB are free" in str(error.value)
    assert "fewer --jobs" in error.value.hint
    assert pickle.loads(pickle.dumps(error.value)).hint == error.value.hint


# ---- out of memory in the middle


def test_what_is_said_when_memory_is_full(gpu):
    with strict.memory(free=2 * MIB):
        found = out_of_memory(OutOfMemoryError(5 * MIB, 0))
        assert found == "the GPU is out of memory; 5.0 MiB were asked for, 2.0 MiB are free"
        for name in (
            "cudaErrorMemoryAllocation",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ):
            found = out_of_memory(RuntimeError(f"{name}: out of memory"))
            assert found == "the GPU is out of memory, 2.0 MiB are free"
    host = MemoryError("Unable to allocate 9.00 GiB for an array")
    assert out_of_memory(host) == f"out of memory: {host}"  # of the host, though on a GPU
    assert out_of_memory(ValueError("no")) is None
    with backend.use_backend("numpy"):
        assert out_of_memory(MemoryError()) == "out of memory"
        assert out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")) is None


def test_a_checkpoint_survives_a_full_gpu(cli, monkeypatch, tmp_path):
    """The run goes on from it, also with less memory: the same bits as if nothing had happened."""
    command = ("train", "--task", "text", *SMALL, "--steps", 8, "--threads", 1)
    command += ("--backend", "strict", "--out")
    assert cli(*command, "plain")[0] == 0
    batch = Text.batch

    def filling(self, seed, step, size):
        strict.device.largest = 100 if step == 5 else 1 << 40
        return batch(self, seed, step, size)

    with strict.memory(free=70 * MIB):
        with monkeypatch.context() as patch:
            patch.setattr(Text, "batch", filling)
            code, out, err = cli(*command, "run")
        strict.device.largest = 1 << 40
    assert (code, out) == (3, "")
    (fault,) = [line for line in err.splitlines() if line.startswith("minqkv:")]
    assert "the GPU is out of memory" in fault
    assert "were asked for, 70 MiB are free" in fault
    assert "--recompute needs less, also with --resume" in said(err)
    assert "--set accumulate=N" in said(err)
    saved = files.read_arrays(tmp_path / "run" / "checkpoint.npz", "minqkv checkpoint")[0]["step"]
    assert 1 <= saved < 6
    again = ("train", "--resume", "--recompute", "--backend", "strict", "--out", "run")
    code, _, err = cli(*again)
    assert code == 0, err
    ends = [files.read_arrays(tmp_path / name / "checkpoint.npz", "minqkv checkpoint")
            for name in ("plain", "run")]  # fmt: skip
    assert all(ends[0][1][name].tobytes() == array.tobytes() for name, array in ends[1][1].items())
    assert ends[0][0] == ends[1][0]
    assert cli("eval", "run")[0] == 0
    code, _, err = cli(*again, "--set", "accumulate=2")
    assert code == 2
    assert "accumulate is 1 there, 2 here" in said(err)


@pytest.mark.parametrize(
    ("command", "cure"), [("generate", "--cache int8"), ("eval", "a smaller size")]
)
def test_each_command_says_what_helps(command, cure, cli, monkeypatch):
    small = ("--form", "causal", "--seq-len", 4, "--n-embd", 16, "--steps", 1, "--out", "run")
    assert cli("train", "--task", "copy", *small)[0] == 0
    given = ("1234",) if command == "generate" else ()
    monkeypatch.setattr(mq.GPT, "forward", lambda *given, **more: full(0))
    code, _, err = cli(command, "run", *given, "--backend", "strict")
    assert (code, cure in said(err)) == (3, True), err


# ---- a run that moves to another backend


def moved(folder, *names, steps=3):
    """Train a step or so on each of these backends; the warnings, and the losses."""
    config, told = configure("copy", seq_len=4, n_embd=16, steps=steps, n_test=8), []

    def stop(step):
        if step.done < steps:
            raise KeyboardInterrupt

    for name in names:
        with backend.use_backend(name), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with suppress(KeyboardInterrupt):
                train_run(config, folder, resume=True, progress=stop)
        told.append([str(warning.message) for warning in found])
    lines = files.read_json(folder / "result.json")["loss"]
    return told, lines


def test_a_run_may_move_to_another_backend(tmp_path):
    stayed, loss = moved(tmp_path / "stay", "numpy", "numpy", "numpy")
    assert stayed == [[], [], []]
    told, other = moved(tmp_path / "move", "numpy", "strict", "numpy")
    assert other == pytest.approx(loss, rel=1e-5)
    assert told[0] == []
    path = tmp_path / "move" / "checkpoint.npz"
    end = "the run may differ in its last bits"
    assert told[1:] == [
        [f"{path} was made on numpy: continued on strict, {end}"],
        [f"{path} was made on strict: continued on numpy, {end}"],
    ]
    assert files.read_arrays(path, "minqkv checkpoint")[0]["backend"] == "numpy"


def test_checkpoints_of_earlier_versions_do_not_say_where_they_were_made(tmp_path):
    write = files.write_arrays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            files, "write_arrays",
            lambda path, kind, meta, arrays: write(
                path, kind, {k: v for k, v in meta.items() if k != "backend"}, arrays
            ),
        )  # fmt: skip
        told, _ = moved(tmp_path / "run", "numpy", "strict", "numpy")
    assert told == [[], [], []]


def test_a_warning_is_one_line_of_the_command_line(cli):
    cli("variants", "--json")
    about = (RuntimeWarning, "a/file.py", 7, "the_line()")
    assert warnings.formatwarning("what happened", *about) == "minqkv: what happened\n"


# ---- a GPU that cannot be used


BANNER = """
================================================================
Failed to import CuPy.

If you installed CuPy via wheels, make sure that only one package is installed.

Original error:
  ImportError: libcuda.so.1: cannot open shared object file
================================================================
"""


class Broken(types.ModuleType):
    """A CuPy that works, except for what a test breaks."""

    def __init__(self, devices=1, compute=None, cublas=None):
        super().__init__("cupy")
        self.ndarray, self.fault, self.asnumpy = StrictArray, compute, strict.xp.asnumpy
        runtime = types.SimpleNamespace(getDeviceCount=lambda: self.count(devices), is_hip=False)
        load = lambda: self.load(cublas)  # noqa: E731
        self.cuda = types.SimpleNamespace(runtime=runtime, get_cublas_handle=load)

    def count(self, devices):
        if isinstance(devices, str):
            raise RuntimeError(devices)
        self.devices = devices
        return devices

    def load(self, fault):
        if fault:
            raise fault

    def is_available(self):
        return self.devices > 0

    def zeros(self, n):
        if self.fault:
            raise self.fault
        return strict.xp.zeros(n)


FAULTS = [
    (Broken("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime"),
     "driver version is insufficient", "update the driver"),
    (Broken("cudaErrorNoDevice: no CUDA-capable device is detected"),
     "no CUDA-capable device", "check nvidia-smi"),
    (Broken(0), "it finds no GPU", "check nvidia-smi"),
    (Broken(1, OutOfMemoryError(512, 0)), "Out of memory allocating 512 bytes", "which programs"),
    (Broken(1, RuntimeError("cudaErrorMemoryAllocation: out of memory")),
     "out of memory", "which programs hold the memory"),
    (Broken(1, OSError("libnvrtc.so.13: cannot open shared object file: No such file")),
     "libnvrtc.so.13", "install CUDA's compiler"),
    (Broken(1, RuntimeError("a.cu(1): catastrophic error: cannot open source file \"x.h\"\n 1")),
     "cannot open source file", "install CUDA's headers"),
    (Broken(1, RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers")),
     "Failed to find CUDA headers", "install them: pip install"),
    (Broken(1, cublas=ImportError('Failure finding "libcublasLt.so.13": No such file')),
     "libcublasLt.so.13", "install cuBLAS"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "why", "cure"), FAULTS, ids=lambda value: str(value)[:30])
def test_a_gpu_that_cannot_be_used_is_one_line(module, why, cure, cli, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", module)
    code, out, err = cli("train", "--task", "copy", "--backend", "cupy")
    assert (code, out) == (3, "")
    first, *_ = err.splitlines()
    assert first.startswith("minqkv: CuPy is installed, but it cannot compute here: ")
    assert why in first
    assert cure in said(err)
    assert "or use --backend numpy" in said(err)
    assert len(err.splitlines()) == 2
    assert not list(tmp_path.iterdir())
    assert "cannot compute here" in cli("doctor")[1].replace("\n", " ")


def test_a_gpu_that_can_be_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", Broken())
    with backend.use_backend("cupy") as found:
        assert type(found) is GpuBackend


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ImportError(BANNER), "failed: ImportError: libcuda.so.1: cannot open shared object file"),
        (ValueError("numpy.dtype size changed\nmore"), "failed: numpy.dtype size changed"),
        (AttributeError(), "failed: AttributeError"),
    ],
)
def test_a_cupy_that_cannot_be_imported_is_one_line(error, why, cli, monkeypatch, tmp_path):
    real = __import__

    def without(name, *args, **options):
        if name == "cupy":
            raise error
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr("builtins.__import__", without)
    code, out, err = cli("train", "--task", "copy", "--backend", "cupy")
    assert (code, out) == (3, "")
    assert err.splitlines()[0].endswith(why)
    assert len(err.splitlines()) == 2
    assert not list(tmp_path.iterdir())


# ---- a wrong id is refused on the host: on a GPU it would silently be another one


def entrances():
    """What takes ids, by name."""
    gpt = mq.GPT(mq.GPTConfig(7, 8, 1, 2, 8))
    tagger = mq.Tagger(mq.TaggerConfig(7, 8, 1, 2, 8))
    cache, optimizer = gpt.new_cache(2), mq.AdamW(gpt.parameters())
    gpt([[1, 2], [3, 4]], cache=cache)
    right = np.ones((1, 3), int)
    return {
        "a decoder": lambda ids: gpt(ids),
        "a decoder with a cache": lambda ids: gpt(np.concatenate([ids, ids]), cache=cache),
        "channels": lambda ids: gpt(np.stack([right, ids], 2)),
        "an encoder": lambda ids: tagger(ids),
        "generate": lambda ids: mq.generate(gpt, ids, 2),
        "inputs of a step": lambda ids: mq.train_step(gpt, optimizer, ids, right),
        "targets of a step": lambda ids: mq.train_step(gpt, optimizer, right, ids),
        "targets of which some are ignored": lambda ids: mq.train_step(
            gpt, optimizer, np.ones((1, 4), int), np.append(ids, [[-100]], 1)
        ),
        "a score": lambda ids: mq.train.evaluate(gpt, ids, right),
        "targets of a score": lambda ids: mq.train.evaluate(gpt, right, ids),
        "rows of a cache": lambda ids: cache.clone(ids[0]),
        "an embedding": lambda ids: mq.nn.Embedding(7, 3)(ids),
        "rows of a tensor": lambda ids: gpt.wte.weight[ids[0]],
        "a batch made ahead": lambda ids: [
            gpt(x) for x, _ in backend.ahead([(ids, right)])
        ],
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [7, -8, 2**40])
@pytest.mark.parametrize("name", [
    "a decoder", "a decoder with a cache", "channels", "an encoder", "generate",
    "inputs of a step", "targets of a step", "targets of which some are ignored", "a score",
    "targets of a score", "rows of a cache", "an embedding", "rows of a tensor",
    "a batch made ahead",
])  # fmt: skip
def test_a_wrong_id_is_refused(name, wrong, gpu):
    use = entrances()[name]
    use(np.array([[0, 1, 1]]))
    with pytest.raises(UsageError, match="outside 0"):
        use(np.array([[0, wrong, 1]]))


def test_all_entrances_are_tried(gpu):
    assert len(entrances()) == 14


def test_a_task_with_a_wrong_id_is_refused(gpu, monkeypatch):
    real = Synthetic.examples

    def wrong(self, rng, n):
        x, y = real(self, rng, n)
        x[0, 0] = 10_000
        return x, y

    monkeypatch.setattr(Synthetic, "examples", wrong)
    with pytest.raises(UsageError, match="id 10000 is outside"):
        train_run(configure("copy", steps=1, n_test=8))


# ---- the paper's language model, on shards, and scaled down


@pytest.fixture
def folder(tmp_path):
    """A folder of documents, and a file of merges, as of GPT-2."""
    (tmp_path / "texts").mkdir()
    for i in range(60):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"document {i}: " + "to be or not " * (i % 7))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt o\nn o\nno t\n")
    return "texts", "gpt2:merges.txt"


TINY = ("--seq-len", 16, "--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--steps", 4)
TINY += ("--set=vocab_size=300", "--set=batch=8", "--set=accumulate=4", "--set=watch=2")
TINY += ("--set=n_validation=4", "--set=n_test=4")


def test_the_300m_model_says_what_it_needs(folder, cli, tmp_path):
    text, tokenizer = folder
    code, out, _ = cli("data", "prepare", text, "--tokenizer", tokenizer)
    assert code == 0, out
    command = ("train", "--config", "300m", "--text", text, "--tokenizer", tokenizer)
    command += ("--backend", "strict", "--show-config")
    with strict.memory(free=10 * 2**30):
        code, out, err = cli(*command)
        assert code == 0, err
        (tmp_path / "shown.toml").write_text(out)
        again = cli("train", "--config", "shown.toml", *command[-3:])
        assert again[:2] == (0, out)
    settings, comments = out.split("\n# ", 1)
    for line in ("n-layer = 20", "vocab_size = 50304", "padded = true", 'tokenizer = "gpt2"'):
        assert line in settings
    comments = said(comments.replace("\n#", ""))
    assert comments.startswith("305,534,976 parameters; training needs about")
    assert "this does not fit: only 10.0 GiB is free; it fits with" in comments
    assert "--set accumulate=" in comments
    assert "# this fits into the memory" in cli(*command)[1]
    assert "305,534,976" not in cli(*command, "--json")[1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["numpy", "strict"])
@pytest.mark.parametrize("more", [(), ("--recompute",)])
def test_the_300m_model_scaled_down(name, more, folder, cli):
    text, tokenizer = folder
    command = ("train", "--config", "300m", "--text", text, "--tokenizer", tokenizer, *TINY)
    code, out, err = cli(*command, *more, "--backend", name, "--threads", 1, "--out", "run")
    assert code == 0, err
    assert "test perplexity" in out
    assert cli("generate", "run", "to be", "--backend", name)[0] == 0


# ---- blocks that are computed again, on a GPU


def gradients(model, x, y):
    """The loss, and the gradient of each parameter."""
    loss = mq.train.loss_and_gradients(model.train(3), x, y)
    return loss, {n: backend.to_host(p.grad).tobytes() for n, p in model.named_parameters()}


def linear(cfg):
    return LinearGPT(replace(cfg, variant="q=k=v", position="learned"), decay=0.9)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "q=k-v+", "mqa", "mla", "gta-2", "linear"])
def test_recomputation_keeps_every_bit_on_a_gpu(variant, kernels, gpu, monkeypatch):
    """With dropout, and in less memory."""
    monkeypatch.setattr(GpuBackend, "kernels", kernels)
    x = np.arange(2 * 96).reshape(2, 96) % 11
    cfg = mq.GPTConfig(11, 96, 2, 4, 32, dropout=0.2, position="rope",
                       variant="qkv" if variant == "linear" else variant)  # fmt: skip
    make, found = linear if variant == "linear" else mq.GPT, []
    for recompute in (False, True):
        model = make(replace(cfg, recompute=recompute))
        found.append(gradients(model, x, x))
        model.eval()
        before = held()
        loss = token_loss(model.train(3), x, x)
        found[-1] += (held() - before,)
        del loss
    assert found[0][:2] == found[1][:2]
    assert found[1][2] < 0.5 * found[0][2]
