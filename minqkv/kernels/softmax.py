"""When `softmax.cu` turns scores into weights, and back, and how it is launched."""

from numpy import int64

# What scores may be: NumPy's name, and CUDA's.
NUMBERS = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
EXAMPLE = {"NUMBER": "float", "THREADS": 128}
HELD = 8  # numbers of a row that a thread keeps


def threads(n: int) -> int:
    """How many threads share a row of n numbers: a power of two from 32 to 1024."""
    return min(max(1 << (-(-n // HELD) - 1).bit_length(), 32), 1024)


def added(gpu, array, dtype, shape):
    """A bias or a mask as a kernel takes it: (array, strides of its first three axes), 0 where all
    share one. None if its type or its last axis does not fit.
    """
    if array is None:
        return None, [int64(0)] * 3
    *steps, last = gpu.xp.broadcast_to(array, shape).strides
    if array.dtype != dtype or (last != array.itemsize and shape[-1] > 1):
        return None
    return array, [int64(step // array.itemsize) for step in steps]


def weigh(gpu, scores, bias, mask):
    """Scores (B, H, T, n), of which each row becomes exp(score + bias - peak), 0 where the mask
    hides the key: 1 over the sums of the rows, (B, H, T, 1).

    None, and the scores as they were, if types or strides do not fit.
    """
    number, (B, H, T, n) = NUMBERS.get(scores.dtype.name), scores.shape
    pairs = added(gpu, bias, "float32", scores.shape), added(gpu, mask, "bool", scores.shape)
    if not number or None in pairs or not scores.flags.c_contiguous:
        return None
    (bias, of_bias), (mask, (of_sequence, _, of_row)) = pairs
    constants = {"NUMBER": number, "THREADS": threads(n)}
    inv_sums = gpu.empty((B, H, T, 1), "float32")
    args = (scores, inv_sums, bias, mask, *of_bias, of_sequence, of_row, n, H, T)
    block = (constants["THREADS"],)
    done = gpu.launch("softmax", "weigh", (B * H * T,), block, args, constants)
    return inv_sums if done else None


def unweigh(gpu, d, weights, inv_sums):
    """d (B, H, T, n), inv_sums times the gradient of the pattern, becomes that of the scores, and
    is returned. None, and d as it was, for types that the kernel lacks.
    """
    number, n = NUMBERS.get(d.dtype.name), d.shape[-1]
    if not number or inv_sums.dtype != "float32" or not d.flags.c_contiguous:
        return None
    constants = {"NUMBER": number, "THREADS": threads(n)}
    args, block = (d, weights, inv_sums, n), (constants["THREADS"],)
    done = gpu.launch("softmax", "gradient", (d.size // n,), block, args, constants)
    return d if done else None
