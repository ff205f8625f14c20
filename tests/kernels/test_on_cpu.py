"""The CPU that stands in for a GPU: CUDA's promises hold, and what it does not promise fails."""

import numpy as np
import on_cpu
import pytest

from minqkv import kernels

HEAD = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"


def launch(text, name, grid, block, args, seed=0, shared=0):
    """Run a function of some CUDA C."""
    module = on_cpu.Module(HEAD + text, (), seed)
    module.get_function(name)(grid, block, args, shared_mem=shared)


REVERSED = """
extern "C" __global__ void reversed(float* x) {
  __shared__ float kept[256];
  kept[threadIdx.x] = x[threadIdx.x];
  BARRIER
  x[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}
"""


def test_a_missing_barrier_shows():
    for seed in range(5):
        x = np.arange(100, dtype="f4")
        launch(REVERSED.replace("BARRIER", "__syncthreads();"), "reversed", (1,), (100,), [x], seed)
        assert (x == np.arange(100)[::-1]).all()
        launch(REVERSED.replace("BARRIER", ""), "reversed", (1,), (100,), [x], seed)
        assert not (x == np.arange(100)).all()


def test_a_missing_barrier_of_a_warp_shows():
    for seed in range(5):
        x = np.arange(32, dtype="f4")
        launch(REVERSED.replace("BARRIER", "__syncwarp();"), "reversed", (1,), (32,), [x], seed)
        assert (x == np.arange(32)[::-1]).all()
        launch(REVERSED.replace("BARRIER", ""), "reversed", (1,), (32,), [x], seed)
        assert not (x == np.arange(32)).all()


RACE = """
extern "C" __global__ void race(int* x, int rounds) {
  __shared__ int kept;
  for (int i = 0; i < rounds; i++) {
    if (threadIdx.x == 0) kept = i;
    __syncthreads();
    x[i * blockDim.x + threadIdx.x] = kept;
    AFTER
  }
}
"""


def test_a_value_that_is_overwritten_too_early_shows():
    for after in ("__syncthreads();", ""):
        wrong = 0
        for seed in range(5):
            x = np.full((20, 64), -1, "i4")
            text = RACE.replace("AFTER", after)
            launch(text, "race", (1,), (64,), [x, np.int32(20)], seed)
            wrong += (x != np.arange(20)[:, None]).any()
        assert wrong == (0 if after else 5)


SUMS = """
extern "C" __global__ void sums(const float* x, float* y, unsigned* z) {
  int t = threadIdx.x;
  float a = x[t], b = a, c = a;
  for (int step = 16; step; step /= 2) a += __shfl_xor_sync(0xffffffff, a, step);
  for (int step = 8; step; step /= 2) b += __shfl_down_sync(0xffffffff, b, step, 16);
  for (int step = 1; step < 32; step *= 2) {
    float below = __shfl_up_sync(0xffffffff, c, step);
    if (t % 32 >= step) c += below;
  }
  y[t] = a, y[64 + t] = __shfl_sync(0xffffffff, b, 0, 16), y[128 + t] = c;
  z[t] = __ballot_sync(0xffffffff, x[t] > 30);
  z[64 + t] = __any_sync(0xffffffff, x[t] > 62) + 2 * __all_sync(0xffffffff, x[t] > 31);
}
"""


@pytest.mark.parametrize("seed", range(3))
def test_shuffles(seed):
    x, y, z = np.arange(64, dtype="f4"), np.empty((3, 64), "f4"), np.empty((2, 64), "u4")
    launch(SUMS, "sums", (1,), (64,), [x, y, z], seed)
    assert (y[0] == x.reshape(2, 32).sum(1).repeat(32)).all()
    assert (y[1] == x.reshape(4, 16).sum(1).repeat(16)).all()
    assert (y[2] == x.reshape(2, 32).cumsum(1).ravel()).all()
    assert (z[0] == np.repeat([1 << 31, 0xFFFFFFFF], 32)).all()
    assert (z[1] == np.repeat([0, 3], 32)).all()


VOTES = """
extern "C" __global__ void votes(const int* x, int* y) {
  y[threadIdx.x] = __syncthreads_count(x[threadIdx.x]);
  y[100 + threadIdx.x] = __syncthreads_or(x[threadIdx.x]);
  y[200 + threadIdx.x] = __syncthreads_and(x[threadIdx.x]);
}
"""


def test_votes_of_a_block():
    for yes in (0, 1, 99, 100):
        x, y = (np.arange(100) < yes).astype("i4"), np.full((3, 100), -1, "i4")
        launch(VOTES, "votes", (1,), (100,), [x, y])
        assert (y == [[yes], [yes > 0], [yes == 100]]).all()


STUCK = {
    "a shuffle that half a warp skips": "if (threadIdx.x < 16) __shfl_xor_sync(~0u, 1.0f, 1);"
    "else __syncthreads();",
    "a barrier that half a block skips": "if (threadIdx.x < 32) __syncthreads();\n"
    "else __syncthreads();",
    "a shuffle without oneself": "__shfl_xor_sync(2u, 1.0f, 1);",
}


@pytest.mark.parametrize("name", STUCK)
def test_threads_that_wait_for_ever(name):
    text = f'extern "C" __global__ void stuck() {{ {STUCK[name]} }}'
    with pytest.raises(on_cpu.KernelError, match="waits at line"):
        launch(text, "stuck", (1,), (64,), [])


COUNT = """
extern "C" __global__ void count(int* n, float* sum, int* most, int* blocks) {
  extern __shared__ int local[];
  if (threadIdx.x + threadIdx.y == 0) local[0] = 0;
  if (threadIdx.x + threadIdx.y == 0) blocks[blockIdx.x + gridDim.x * blockIdx.y]++;
  __syncthreads();
  atomicAdd(&local[0], 1);
  atomicMax(most, int(threadIdx.x + 100 * threadIdx.y));
  __syncthreads();
  if (threadIdx.x + threadIdx.y == 0) atomicAdd(n, local[0]), atomicAdd(sum, 0.5f);
}
"""


def test_atomics_blocks_and_dynamic_shared_memory():
    n, total, most = np.zeros(1, "i4"), np.zeros(1, "f4"), np.zeros(1, "i4")
    blocks = np.zeros((3, 5), "i4")
    launch(COUNT, "count", (5, 3), (7, 9), [n, total, most, blocks], shared=4)
    assert (n[0], total[0], most[0]) == (15 * 63, 7.5, 806)
    assert (blocks == 1).all()


GARBAGE = """
extern "C" __global__ void garbage(float* x) {
  __shared__ float kept[2];
  extern __shared__ float more[];
  float local[8];
  x[0] = kept[1], x[1] = more[0], kept[1] = more[0] = 7;
  for (int i = 2; i < 8; i++) local[i] += i;
  x[2] = local[3];
}
"""


def test_memory_starts_as_garbage():
    x = np.zeros(3, "f4")
    found = set()
    for seed in range(8):  # also in the second launch, and the second block
        launch(GARBAGE, "garbage", (2,), (1,), [x], seed, shared=4)
        assert (np.isnan(x[:2]) | (x[:2] > 1e38)).all()
        assert abs(x[2]) > 1e30
        found.update(np.isnan(x[:2]))
    assert len(found) == 2


CONVERTED = """
extern "C" __global__ void converted(const __half* h, float* f, const float* x, __half* r,
                                     __nv_bfloat16* s, float* t, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    f[i] = __half2float(h[i]), r[i] = __float2half(x[i]), s[i] = __float2bfloat16(x[i]);
    t[i] = __bfloat162float(s[i]);
  }
}
"""


def test_half_types_round_as_numpy_does(rng):
    h = np.arange(65536, dtype="u2").view("f2")
    x = np.concatenate([h.astype("f4"), rng.integers(0, 2**32, 65536, "u4").view("f4")])
    with np.errstate(all="ignore"):
        between = np.nextafter(h, np.float16(np.inf)).astype("f4") / 2 + h.astype("f4") / 2
    x = np.concatenate([x, between])
    h = np.resize(h, x.shape)
    f, r = np.empty(x.shape, "f4"), np.empty(x.shape, "f2")
    s, t = np.empty(x.shape, "u2"), np.empty(x.shape, "f4")
    launch(CONVERTED, "converted", (1,), (64,), [h, f, x, r, s, t, np.int32(x.size)])
    assert np.array_equal(f, h.astype("f4"), equal_nan=True)
    with np.errstate(all="ignore"):
        assert np.array_equal(r, x.astype("f2"), equal_nan=True)
        bits = x.view("u4").astype("u8")
        nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype("u4").view("f4")
        nearest[np.isnan(x)] = np.nan
    assert np.array_equal(t, nearest, equal_nan=True)


COPY = """
extern "C" __global__ void copied(const float* x, float* y, int n) {
  __shared__ float kept[4];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  kept[threadIdx.x + OFF] = 1;
  if (i < n + MORE) y[i] = x[i];
}
extern "C" __global__ void fours(const float4* x, float4* y) { y[0] = x[0]; }
"""


def text_of(more=0, off=0):
    return HEAD + COPY.replace("MORE", str(more)).replace("OFF", str(off))


def test_the_address_sanitiser():
    room = np.zeros(100, "f4")
    args = [room[1:8], room[20:27], np.int32(7)]
    good, beyond, shared = text_of(), text_of(more=1), text_of(off=1)
    with on_cpu.recording() as calls:
        for text in (good, beyond, shared):
            on_cpu.Module(text, ()).get_function("copied")((2,), (4,), args)
        fours = on_cpu.Module(good, ()).get_function("fours")
        fours((1,), (1,), [room[4:8], room[8:12]])
    *head, (data, off, dtype), out = calls[3][:5] + tuple(calls[3][5])
    calls.append((*head, [(data, off + 4, dtype), out], 0))  # here, that would be a crash
    on_cpu.sanitised([calls[0], calls[3]])
    for call, what in ((1, "heap-buffer-overflow"), (2, "out of bounds"), (4, "misaligned")):
        with pytest.raises(on_cpu.KernelError, match=what):
            on_cpu.sanitised(calls[call : call + 1])


def test_arguments_are_checked():
    x = np.zeros(4, "f4")
    launch(text_of(), "copied", (1,), (4,), [x, x, np.int32(4)])
    for args, why in (
        ([x, x], "takes 3 arguments, not 2"),
        ([x, x, np.int64(4)], "argument 2 is int32, and was given int64"),
        ([x, x.astype("f2"), np.int32(4)], "argument 1 is .float32, and was given .float16"),
        ([x, np.float32(1), np.int32(4)], "argument 1 is .float32, and was given float32"),
    ):
        with pytest.raises(on_cpu.KernelError, match=why):
            launch(text_of(), "copied", (1,), (4,), args)
    with pytest.raises(on_cpu.KernelError, match="no kernel other"):
        launch(text_of(), "other", (1,), (4,), [])
    with pytest.raises(on_cpu.CompileError, match="error"):
        launch('extern "C" __global__ void f() { x = 1; }', "f", (1,), (1,), [])
    unset = "float y; for (int i = 0; i < 4; i++) y += x[i]; *x = y;"
    with pytest.raises(on_cpu.CompileError, match="uninitialized"):
        launch(f'extern "C" __global__ void f(float* x) {{ {unset} }}', "f", (1,), (1,), [x])
    for grid in ((1, 65_536), (1, 1, 65_536), (0,), (2**31,)):
        with pytest.raises(on_cpu.KernelError, match="a grid has"):
            launch(text_of(), "copied", grid, (4,), [x, x, np.int32(4)])


def test_planted_faults():
    """What a fault does to a check is told apart from a fault that does not compile."""

    def check():
        """Of nothing, `join` makes zeros."""
        sums, answer = np.zeros(100, "f4"), np.full(64, 7, "f4")
        args = [sums, sums, sums, None, answer, 1, 1]
        on_cpu.run("decode", "join", (1, 2), (128,), args, kernels.FILES["decode"])
        assert not answer.any()

    old = "total ? z / total : 0"
    assert on_cpu.survives("decode", old, "total ? z : 0", check)
    assert not on_cpu.survives("decode", old, "z / total", check)
    assert not on_cpu.survives("decode", old, "((float*)0)[0]", check)
    with pytest.raises(on_cpu.KernelError, match="does not compile"):
        on_cpu.survives("decode", old, "nonsense", check)
    with pytest.raises(AssertionError, match="0 times in decode"):
        on_cpu.survives("decode", "what is not there", "", check)
