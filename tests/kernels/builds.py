"""The builds that are compiled for a GPU and held against resources.json: constants of each file.

They cover the extremes of what its Python function may choose.
"""


def decode(width, group, rows, apart, stored="float"):
    """Constants of decode.cu."""
    return {"STORED": stored, "WIDTH": width, "GROUP": group, "ROWS": rows, "APART": apart}


BUILDS = {
    "decode": [
        decode(16, 1, 32, 0),
        decode(64, 8, 32, 1),
        decode(128, 4, 32, 1),
        decode(256, 8, 16, 1),
    ],
}
