"""Benchmarks, run from a checkout: `python -m bench.step`, `python -m bench.decode`."""
