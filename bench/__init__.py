"""Benchmarks, run from a checkout: `python -m bench` for all of them, `python -m bench.step` and so
on for one; `python -m bench.gpu` on a machine with a GPU.
"""
