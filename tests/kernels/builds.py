"""The builds that are compiled for a GPU and held against resources.json: constants of each file.

They cover the extremes of what its Python function may choose.
"""

SAME, APART, TURNED = range(3)


def decode(stored, width, group, form=SAME, **more):
    """Constants of decode.cu."""
    sizes = {"WIDTH": width, "VALUE": width, "BESIDE": 0, "ASKED": width, "FORM": form, "TURN": 0}
    vector = 16 // {"float": 4, "int8": 1}.get(stored, 2)
    sizes |= {"GROUP": group, "ROWS": 32, "VECTOR": vector}
    return {"STORED": stored, **sizes, **more}


def softmax(threads, number="float"):
    """Constants of softmax.cu."""
    return {"NUMBER": number, "THREADS": threads}


def rows(threads):
    """Constants of rows.cu."""
    return {"THREADS": threads}


def gemv(batch, lanes, stored="float"):
    """Constants of gemv.cu."""
    return {"STORED": stored, "BATCH": batch, "LANES": lanes}


BUILDS = {
    "decode": [
        decode("float", 16, 1),
        decode("float", 64, 8, APART),
        decode("__half", 128, 4, APART),
        decode("__nv_bfloat16", 128, 8),
        decode("float", 256, 8, APART, ROWS=16),
        decode("int8", 128, 8, TURNED, TURN=128),
        decode("__half", 512, 8, BESIDE=64, ASKED=576, ROWS=8),
    ],
    "rows": [
        rows(32),
        rows(128),
        rows(512),
    ],
    "softmax": [
        softmax(32),
        softmax(256, "__half"),
        softmax(1024),
        softmax(1024, "__nv_bfloat16"),
    ],
    "elementwise": [{}],
    "gemv": [gemv(1, 8), gemv(8, 32), gemv(8, 16, "__half"), gemv(3, 32, "__nv_bfloat16")],
}
