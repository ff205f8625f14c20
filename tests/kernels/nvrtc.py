"""NVIDIA's compiler without a GPU: kernels as machine code, and what they use of a device.

`python tests/kernels/nvrtc.py` writes resources.json: for each function of each build in builds.py,
registers, bytes of local memory (spills, and arrays that are indexed by variables), and bytes of
shared memory.
"""

import ctypes
import json
import re
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from builds import BUILDS
from on_cpu import source

from minqkv.kernels import options

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # A100, H100 and H200, B200
TABLE = Path(__file__).with_name("resources.json")


@lru_cache
def library():
    """libnvrtc of the wheel nvidia-cuda-nvrtc, or None."""
    found = [path for root in sys.path for path in Path(root).glob("nvidia/*/lib/libnvrtc.so*")]
    return ctypes.CDLL(str(found[0])) if found else None


@lru_cache
def headers():
    """The folder of cuda_fp16.h, of the wheel nvidia-cuda-runtime, or None."""
    found = [path for root in sys.path for path in Path(root).glob("nvidia/*/include/cuda_fp16.h")]
    return found[0].parent if found else None


def missing():
    """Why nothing can be compiled, or None."""
    if library() and headers():
        return None
    return "needs NVRTC and its headers: pip install -e '.[kernels]'"


def compiled(text, flags):
    """(whether CUDA C compiles, what the compiler says)."""
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None
    )
    assert made == 0
    flags = [flag.encode() for flag in flags]
    failed = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return not failed, log.value.decode()


def resources(file, constants, architecture):
    """{function: [registers, bytes of local and of shared memory]} of a build. Raises
    AssertionError with what the compiler says if it fails, or if it warns.
    """
    as_cupy = ("-std=c++17", "--device-as-default-execution-space")
    flags = (*as_cupy, f"-arch={architecture}", "--ptxas-options=-v", f"-I{headers()}")
    good, log = compiled(source(file), (*flags, *options(constants)))
    assert good, log
    assert "warning" not in log, log
    found, name = {}, None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name, spills = match[1], 0
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads", line):
            spills = max(map(int, match.groups()))  # or an array that is not in registers
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = [int(match[1]), spills, int(shared[1]) if shared else 0]
    return found


def table():
    """All of it: {"nvrtc": version, FILE: {constants as text: {architecture: resources}}}."""
    return {"nvrtc": version("nvidia-cuda-nvrtc")} | {
        file: {
            " ".join(options(constants)): {a: resources(file, constants, a) for a in ARCHITECTURES}
            for constants in builds
        }
        for file, builds in BUILDS.items()
    }


if __name__ == "__main__":
    text = json.dumps(table(), indent=1)
    TABLE.write_text(re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", text) + "\n")
