"""Runs what a study has no record of yet, and keeps a record of each run.

A record is a file OUT/runs/<key>.json; its key is a hash of the run's configuration, the version of
the code and the backend. So a study can be stopped anywhere and repeated, and a record of other
code is found but never taken for one of this code.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np

from ..models import GPT, GPTConfig
from ..optim import Adam
from ..runs import RunConfig, train_run
from ..runtime import backend, files
from ..runtime.blas import blas_threads
from ..runtime.errors import Diverged, EnvironmentFault
from ..runtime.version import code_version
from ..train import train_step
from ..variants import VariantSpec
from .executors import run_on

KIND = "minqkv study run"
FIELDS = {
    *("kind", "code", "backend", "config", "accuracy", "loss", "params", "diverged", "seconds"),
    *("cache_bytes_per_token", "cache_bytes_per_token_formula"),
}


def run_one(config: RunConfig) -> dict:
    """Train and score one run; a divergence is a result too. Returns its record, a JSON object."""
    config, began = config.resolved(), time.perf_counter()
    record = {"kind": KIND, "code": code_version(), "backend": backend.current.name}
    record |= {"config": asdict(config), "accuracy": None, "loss": None}
    record |= {"params": config.build().n_params, "diverged": None}
    try:
        _, result = train_run(config)
        record |= {"accuracy": result["accuracy"], "loss": result["loss"]}
    except Diverged as error:
        record["diverged"] = str(error)
    with blas_threads(1):  # as in the run: a second thread would only wait
        measured, formula = cache_bytes_per_token(config)
    record |= {"cache_bytes_per_token": measured, "cache_bytes_per_token_formula": formula}
    record["seconds"] = time.perf_counter() - began
    return record


def cache_bytes_per_token(config):
    """(measured, formula): float32 bytes of the cache that a decoder of this size has filled with
    seq_len tokens, and those of the closed form.

    An encoder has no cache: its figure is that of a GPT with the same attention.
    """
    size = (config.n_layer, config.n_head, config.n_embd)
    cfg = GPTConfig(config.alphabet, config.seq_len, *size, config.variant)
    model = GPT(cfg)
    cache = model.new_cache()
    model(np.zeros((1, config.seq_len), int), cache=cache)
    formula = VariantSpec.parse(config.variant).cache_bytes_per_token(cfg, itemsize=4)
    return cache.nbytes // len(cache), formula


# ---- records


def recorded(config: RunConfig, out: str | Path, accept_code: bool = False) -> dict | None:
    """The stored record with the same configuration, backend and code.

    With `accept_code`, if this code has none, another version's is used; if there are several, the
    most recent. A damaged record counts as none.
    """
    record = _record(config, out, code_version())
    if record or not accept_code:
        return record
    others = (_record(config, out, code) for code in _other_versions(out))
    return next(filter(None, others), None)


def other_code(configs: list[RunConfig], out: str | Path) -> dict[str, int]:
    """Code version -> for how many of these runs it has a record, while this code has none."""
    missing = [config for config in configs if recorded(config, out) is None]
    found = {
        code: sum(_record(config, out, code) is not None for config in missing)
        for code in _other_versions(out)
    }
    return {code: n for code, n in found.items() if n}


def _path(config, out, code):
    text = json.dumps([asdict(config.resolved()), code, backend.current.name])
    return Path(out) / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _record(config, out, code):
    path = _path(config, out, code)
    record = _read(path) if path.exists() else {}
    same = (record.get("code"), record.get("config")) == (code, asdict(config.resolved()))
    return record if same and record.keys() == FIELDS else None


def _read(path):
    with contextlib.suppress(EnvironmentFault):  # a damaged record is run again
        return files.read_json(path)
    return {}


def _other_versions(out):
    """The other code versions that have records under `out`, the one that wrote last first."""
    folder = Path(out) / "runs"
    if not folder.is_dir():
        return []
    versions = _versions_in(folder, folder.stat().st_mtime_ns)
    return [code for code in versions if code != code_version()]


@lru_cache(maxsize=1)
def _versions_in(folder, changed):
    """Read once for all runs of a study: `changed` is new whenever a file came or was replaced."""
    written = {}
    for path in folder.glob("*.json"):
        record = _read(path)
        if record.get("kind") == KIND:
            code = str(record.get("code"))
            written[code] = max(written.get(code, 0), path.stat().st_mtime_ns)
    return sorted(written, key=lambda code: (written[code], code), reverse=True)


# ---- running


def run_study(
    configs: list[RunConfig],
    out: str | Path,
    jobs: int = 1,
    on_record: Callable[[RunConfig, dict, bool], None] | None = None,
    accept_code: bool = False,
    executor: str | None = None,
) -> list[dict]:
    """Run what is missing under `out`, each run recorded as it ends; returns the records in the
    order of `configs`.

    `jobs` processes share the work, or the workers of an `executor` (executors.py); the results do
    not depend on who computes them. `on_record(config, record, reused)` is called for each run, in
    the order they end. `accept_code`: see `recorded`. Raises EnvironmentFault when `out` cannot be
    written, and what `run_on` raises.
    """
    records, missing = {}, []
    files.make_folder(out)

    def keep(config, record, reused):
        records[config] = record
        if not reused:
            files.write_json(_path(config, out, record["code"]), record)
        if on_record:
            on_record(config, record, reused)

    for config in configs:
        record = recorded(config, out, accept_code)
        if record:
            keep(config, record, True)
        else:
            missing.append(config)
    if executor is None and min(jobs, len(missing)) < 2:
        ended = ((config, run_one(config)) for config in missing)
    else:
        ended = run_on(executor, jobs, run_one, missing)
    with contextlib.closing(ended):  # whatever `keep` raises, nothing is left running
        for config, record in ended:
            keep(config, record, False)
    return [records[config] for config in configs]


# ---- how long it will take


def seconds_per_step(config):
    """A measured guess: a few steps on an eighth of the batch, times eight."""
    config = config.resolved()
    model = config.build()
    optimizer = Adam(model.parameters(), config.lr)
    x, y = config.data.draw(config.seed, "train", config.recipe.batch // 8)
    with blas_threads(1):  # as in the run
        train_step(model, optimizer, x, y)
        began = time.perf_counter()
        train_step(model, optimizer, x, y)
        return 8 * (time.perf_counter() - began)


_shape = attrgetter("n_embd", "n_layer", "n_head", "seq_len", "form", "protocol")


def estimate_seconds(configs: list[RunConfig], jobs: int) -> float:
    """Wall seconds that `configs` will take, from one measurement for each shape of model."""
    per_step = {}
    for config in configs:
        if _shape(config) not in per_step:
            plain = replace(config, variant="qkv", plus_start=None)
            per_step[_shape(config)] = seconds_per_step(plain)
    seconds = [per_step[_shape(c)] * (c.resolved().steps + 10) for c in configs]  # 10: the scoring
    return max(math.fsum(seconds) / jobs, max(seconds, default=0))
