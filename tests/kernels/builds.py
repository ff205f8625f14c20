"""The builds that are compiled for a GPU and held against resources.json: constants of each file.

They cover the extremes of what its Python function may choose.
"""

SAME, APART, TURNED = range(3)


def decode(stored, width, group, form=SAME, **more):
    """Constants of decode.cu."""
    sizes = {"WIDTH": width, "VALUE": width, "BESIDE": 0, "ASKED": width, "FORM": form, "TURN": 0}
    vector = 16 // {"float": 4, "int8": 1}.get(stored, 2)
    sizes |= {"GROUP": group, "ROWS": 32, "VECTOR": vector}
    return {"STORED": stored, "NUMBER": "float", **sizes, **more}


BUILDS = {
    "decode": [
        decode("float", 16, 1),
        decode("float", 64, 8, APART),
        decode("__half", 128, 4, APART),
        decode("__nv_bfloat16", 128, 8, NUMBER="__nv_bfloat16"),
        decode("float", 256, 8, APART, ROWS=16),
        decode("int8", 128, 8, TURNED, TURN=128),
        decode("__half", 512, 8, BESIDE=64, ASKED=576, ROWS=8),
    ],
}
