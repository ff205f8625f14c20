"""What every benchmark shares: threads, interleaved timing, and a JSON file with all samples."""

import json
import os
import platform
import re
import statistics
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def set_threads(n):
    """BLAS threads for this process; call before NumPy or PyTorch is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(n)


def interleaved(candidates, rounds, inner=1, warmup=2):
    """Time named functions in turn, A B A B ...; returns name -> seconds of each round (`inner` calls, averaged)."""
    for function in candidates.values():
        for _ in range(warmup):
            function()
    samples = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            began = time.perf_counter()
            for _ in range(inner):
                function()
            samples[name].append((time.perf_counter() - began) / inner)
    return samples


def ratio(samples, a, b):
    """The median over rounds of a's time over b's: noise that hits both cancels."""
    return statistics.median(x / y for x, y in zip(samples[a], samples[b], strict=True))


def machine():
    """Hardware and versions."""
    import numpy

    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    info = {"date": date.today().isoformat(), "cpu": found[1] if found else platform.processor(), "cores": os.cpu_count()}
    info["python"] = platform.python_version()
    info |= {"numpy": numpy.__version__, "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", "as found")}
    if "torch" in sys.modules:
        info["torch"] = sys.modules["torch"].__version__
    return info


def write(module, name, threads, rows):
    """bench/results/<name>.json: command, machine, threads, every sample."""
    command = f"python -m bench.{module} {' '.join(sys.argv[1:])}".strip()
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"command": command, "machine": machine(), "threads": threads, "rows": rows}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"written to bench/results/{name}.json")
