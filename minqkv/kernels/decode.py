"""When `decode.cu` answers the query of one new token, and how it is launched."""

import numpy as np

STORED = {  # what may be stored: NumPy's name, and CUDA's
    "float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16", "int8": "int8",
}  # fmt: skip
SAME, APART, TURNED = range(3)  # FORM in decode.cu
EXAMPLE = {"STORED": "float", "WIDTH": 64, "VALUE": 64, "BESIDE": 0}
EXAMPLE |= {"ASKED": 64, "FORM": SAME, "TURN": 0, "GROUP": 4, "ROWS": 32, "VECTOR": 4}
READS = {"read", "key", "turn", "attend", "shifts", "mix"}  # what a layer does with stored rows
SHARED = 12_200  # floats of shared memory that a block gets without asking for more
MOST = 65_535  # sequences: blocks along z of a launch
BLOCKS = 528  # of a launch, about: four for each multiprocessor of an H100


def decode(gpu, attention, q, stored, at, mask, asked, newest=None):
    """The answers (B, H, 1, d_v) to queries q (B, H, 1, d) at positions `asked`, from all stored
    arrays, at positions `at`: `LayerCache.read` for one new token. `newest`, an array (1,) of the
    device, says which slot is the last in use, if that is not the last.

    None if there are several, if the layer reads its rows in a way of its own, or if types and
    sizes do not fit.
    """
    (B, H, T, _), (_, h, n, _), quantised = q.shape, stored[0].shape, stored[0].dtype == "int8"
    rows, scales = (stored[::2], stored[1::2]) if quantised else (stored, [None] * len(stored))
    constants = choose(gpu, attention, q, rows)
    fits = constants is not None and T == 1 and B <= MOST
    if not fits or not usual(attention, at) or not in_place(stored):
        return None
    tile, value = constants["ROWS"], constants["VALUE"]
    span = -(-n * B * H // constants["GROUP"] // BLOCKS)  # positions of a block
    span = -(-max(span, 4 * tile) // tile) * tile
    spans = -(-n // span)

    def floats(x):  # an array, or that of a Tensor, as decode.cu takes it
        array = x if x is None or isinstance(x, gpu.ndarray) else x.data
        return None if array is None else gpu.xp.ascontiguousarray(array, "float32")

    turned = (None,) * 4  # gains, cos, sin, and the positions of slots that are not in order
    if constants["FORM"] == TURNED:
        turned = getattr(attention, "k_gain", None), *(attention.angles or (None, None))
        in_order = isinstance(at, slice)
        slots = None if in_order else gpu.shared(np.ascontiguousarray(at, "int32"))
        turned = *map(floats, turned), slots
    temperature, bias = map(floats, attention.shifts(asked, at))
    sink = floats(attention.sink)
    mixed = gpu.empty((B, H, spans, value), "float32")
    totals, peaks = (gpu.empty((B, H, spans), "float32") for _ in range(2))
    answer = gpu.empty((B, H, 1, value), "float32")
    steps = step(turned[3], 0), step(mask, 0), step(bias, 0), step(bias, 1)
    capacity = stored[0].strides[1] // stored[0].strides[2]
    args = (floats(q), 1 / attention.root, temperature)
    args += (*places(attention, rows), *places(attention, scales), *turned, mask, bias, *steps)
    args += (mixed, totals, peaks, newest, n, span, capacity, h, H)
    grid = spans, H // constants["GROUP"], B
    if not gpu.launch("decode", "decode", grid, (128,), args, constants):
        return None
    args = mixed, totals, peaks, sink, answer, spans, H
    gpu.launch("decode", "join", (B * H, -(-value // 32)), (128,), args, constants)
    return answer


def choose(gpu, attention, q, rows):
    """The constants of decode.cu for queries and rows of these types and sizes, or None.

    STORED is the type of rows. WIDTH, VALUE, BESIDE and ASKED are how many numbers are in a row, in
    a value, in what turns apart for all heads, and in a query; TURN of a row turn. A block has
    GROUP queries, and tiles of ROWS rows; a load has VECTOR numbers.
    """
    (_, H, _, asked), (_, h, _, width), two = q.shape, rows[0].shape, len(rows) == 2
    beside = rows[1].shape[3] if two and attention.spec.apart else 0
    form = TURNED if attention.turn_late else APART if two and not beside else SAME
    value, kinds = rows[1].shape[3] if form == APART else width, {row.dtype.name for row in rows}
    kind = kinds.pop()
    fits = not kinds and kind in STORED and q.dtype == "float32"
    if not fits or width + beside < 16 or any(n % 4 for n in (width, value, beside)):
        return None
    group, tile, vector = 8, 32, 16 // rows[0].itemsize  # loads of 16 bytes, or less
    key, own = width + beside, value * (form != SAME)
    while group > 1 and (H // h % group or taken(key, own, group, 8) > SHARED):
        group //= 2
    while tile > 8 and taken(key, own, group, tile) > SHARED:
        tile //= 2
    if taken(key, own, group, tile) > SHARED:
        return None
    while any(row.shape[3] % vector or gpu.address(row) % (vector * row.itemsize) for row in rows):
        vector //= 2
    sizes = {"WIDTH": width, "VALUE": value, "BESIDE": beside, "ASKED": asked, "FORM": form}
    sizes |= {"TURN": attention.d_rope if form == TURNED else 0, "GROUP": group, "ROWS": tile}
    return {"STORED": STORED[kind], **sizes, "VECTOR": vector}


def taken(key, own, group, tile):
    """Floats of shared memory that decode.cu takes."""
    return tile * (key + (48 - key % 32) % 32 + own) + group * (key + tile + 3)


def usual(attention, at):
    """Whether a layer reads its rows as `Attention` does, with angles for all positions. A `mix` of
    its own is allowed to a layer with a sink, which decode.cu knows.
    """
    own = set(vars(attention))
    for cls in type(attention).__mro__:
        if cls.__module__ == "minqkv.attention":
            break
        own.update(vars(cls))
    in_order = isinstance(at, slice)
    end = at.stop if in_order else int(at.max()) + 1
    reached = attention.angles is None or end <= len(attention.angles[0])
    return (
        reached
        and not (in_order and at.start)
        and not READS & own - ({"mix"} if attention.sink is not None else set())
    )


def in_place(stored):
    """Whether these are the first positions of contiguous buffers of one capacity."""
    capacity = stored[0].strides[1] // stored[0].strides[2]
    for array in stored:
        _, heads, _, width = array.shape
        inner = array.itemsize, array.itemsize * width, array.itemsize * width * capacity
        if array.strides[::-1] != (*inner, inner[2] * heads):
            return False
    return True


def places(attention, arrays):
    """Two arrays, or one, as the three arguments: rows, values of their own, what turns apart."""
    first, second = arrays[0], arrays[1] if len(arrays) == 2 else None
    return (first, None, second) if attention.spec.apart else (first, second, None)


def step(array, axis):
    """By how many numbers an array (B, ..., n) goes on along an axis; 0: all share one."""
    if array is None or array.ndim < 2 or array.shape[axis] == 1:
        return 0
    return array.strides[axis] // array.itemsize
