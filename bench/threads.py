"""How many threads both sides of a comparison may use: the only place that knows how the engine
gets its own.

BLAS reads its environment once, when NumPy or PyTorch is loaded, so `settle` looks at the command
line before that. Child processes inherit the environment.
"""

import argparse
import os
import sys

BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
COUNT = 1


def settle():
    """COUNT := `--threads`, else MINQKV_THREADS, else all cores; the environment to match."""
    global COUNT
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--threads", type=_positive, default=os.environ.get("MINQKV_THREADS") or _cores()
    )
    COUNT = parser.parse_known_args(sys.argv[1:])[0].threads
    os.environ["MINQKV_THREADS"] = str(COUNT)
    for name in BLAS:
        os.environ[name] = str(blas_threads())


def blas_threads():
    """BLAS threads under the engine: one, for it shares its work among processes (mq.set_threads).
    PyTorch has COUNT.
    """
    return 1


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _positive(text):
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} threads: there must be at least one")
    return count
