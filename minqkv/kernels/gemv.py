"""When `gemv.cu` multiplies a few rows by a matrix, and how it is launched."""

TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}  # CUDA's names
EXAMPLE = {"STORED": "float", "BATCH": 1, "LANES": 8}
THREADS, WARPS = 256, 8  # of a block
FLOATS = "float32", (4,)  # a vector without gaps: its type and strides
MOST = 8  # rows: with more, a product of matrices pays
BLOCKS = 264  # that keep a GPU busy: two for each multiprocessor of an H100


def gemv(gpu, x, w, b):
    """x (B, n) @ w (n, m) + b (m,), b being None where there is none: (B, m).

    None unless x has few rows, and w is stored row by row or column by column.
    """
    (B, n), (rows, m), size = x.shape, w.shape, w.dtype.itemsize
    orders = {(m * size, size): "across", (size, rows * size): "along"}
    types = x.dtype.name == "float32" and (b is None or (b.dtype.name, b.strides) == FLOATS)
    if not 0 < B <= MOST or not types or w.dtype.name not in TYPES or n != rows or not m:
        return None
    if (function := orders.get(w.strides)) is None:
        return None
    lanes = 32 // size  # a sector of memory, of 32 bytes, is the least that is read
    while lanes < 32 and m // (2 * lanes) >= BLOCKS:
        lanes *= 2
    blocks = -(-m // (lanes if function == "across" else WARPS))
    constants = {"STORED": TYPES[w.dtype.name], "BATCH": B, "LANES": lanes}
    y = gpu.empty((B, m), "float32")
    args = gpu.xp.ascontiguousarray(x), w, b, y, n, m
    return y if gpu.launch("gemv", function, (blocks,), (THREADS,), args, constants) else None
