"""When `decode.cu` answers a query of one new token, and how it is launched."""

from numpy import int64

TYPES = {"float32": "float"}  # what may be stored: a NumPy name, and CUDA's
EXAMPLE = {"STORED": "float", "WIDTH": 64, "GROUP": 4, "ROWS": 32, "APART": 0}
BLOCKS = 1024  # that keep a GPU busy


def decode(gpu, attention, q, stored, mask):
    """The answers (B, H, 1, d) to queries q (B, H, 1, d), from all stored rows (B, h, S, d).

    None unless keys and values are rows as they are stored, in float32, and all of them are seen.
    """
    (B, H, T, width), (_, h, n, _) = q.shape, stored[0].shape
    plain = attention.spec.apart or attention.turn_late or attention.spec.plus
    fits = T == 1 and mask is None and not plain and attention.distance is None
    types = {array.dtype.name for array in (q, *stored)} == {"float32"}
    if not fits or not types or width % 16 or width > 256 or stored[0].strides[-1] != 4:
        return None
    group = next(g for g in (8, 4, 2, 1) if H // h % g == 0)
    rows = 32 if width <= 128 else 16
    span = -(-max(n * B * H // group // BLOCKS, 2 * rows) // rows) * rows
    spans = -(-n // span)
    constants = {"STORED": "float", "WIDTH": width, "GROUP": group, "ROWS": rows}
    constants["APART"] = len(stored) - 1
    mixed = gpu.empty((B, H, spans, width), "float32")
    totals, peaks = (gpu.empty((B, H, spans), "float32") for _ in range(2))
    answer = gpu.empty((B, H, 1, width), "float32")
    strides = [int64(stride // 4) for stride in stored[0].strides[:2]]
    q = gpu.xp.ascontiguousarray(q * (1 / attention.root))
    args = (q, stored[0], stored[-1], *strides, stored[0].strides[2] // 4, mixed, totals, peaks)
    args += (n, span, h, H)
    if not gpu.launch("decode", "decode", (spans, H // group, B), (128,), args, constants):
        return None
    gpu.launch("decode", "join", (B * H,), (128,), (mixed, totals, peaks, answer, spans), constants)
    return answer
