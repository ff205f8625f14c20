"""A writer of the safetensors format, for the tests: a header in JSON, then the bytes."""

import json

import numpy as np

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64"}


def entries(tensors):
    """The header's entries, and the bytes that they are about."""
    header, data = {}, b""
    for name, array in tensors.items():
        raw, bf16 = np.ascontiguousarray(array).tobytes(), array.dtype == "uint16"
        about = {"dtype": "BF16" if bf16 else NAMES[array.dtype.name], "shape": [*array.shape]}
        header[name] = about | {"data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header, data


def write(path, tensors, **metadata):
    """Write arrays to a file; uint16 stands for the upper halves of float32. Returns the path."""
    header, data = entries(tensors)
    return write_raw(path, json.dumps({"__metadata__": metadata} | header).encode(), data)


def write_raw(path, header, data=b"", length=None):
    """Write a header, whatever it is, and what follows."""
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path
