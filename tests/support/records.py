"""Configurations of tiny runs, and records of them that nobody trained."""

from dataclasses import asdict

from minqkv.study.grid import ITEMSIZE
from minqkv.variants import cache_bytes_per_token

TINY = {"pairs": 2, "keys": 4, "n_embd": 16, "n_test": 8, "batch": 4}


def record_of(config, value, loss=1.0, **changes):
    """A record of a run that scored `value`; None: it diverged. `changes` replace its fields."""
    cached = cache_bytes_per_token(config.task.config(config.variant), ITEMSIZE)
    metric = config.task.metric
    score = None if value is None else {metric: value, "loss": loss} | {metric: value}
    record = {"config": asdict(config), "metric": metric, "score": score, "losses": []}
    record |= {
        "curve": [],
        "reached": None,
        "params": config.build().n_params,
        "lifted": None,
        "slim": None,
    }
    record |= {"diverged": "the loss is nan" if value is None else None, "seconds": 1.0}
    record |= {"cache_bytes_per_token": cached, "cache_bytes_per_token_formula": cached}
    return record | {"code": "none", "backend": "numpy"} | changes
