"""Benchmarks, run from a checkout: `python -m bench` for all of them, `python -m bench.step` and so
on for one.

Threads are settled here, before any module of this package can import NumPy or PyTorch.
"""

from . import threads

threads.settle()
