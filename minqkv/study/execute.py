"""Runs the cells of a study that are not yet on record, one process each, and keeps every record."""

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ..models import GPT, GPTConfig
from ..optim import Adam
from ..runs import train_run
from ..runtime import backend, files
from ..runtime.errors import Diverged, EnvironmentFault
from ..runtime.version import code_version
from ..train import train_step
from ..variants import VariantSpec

FIELDS = {"kind", "code", "backend", "config", "accuracy", "loss", "params", "diverged", "cache_bytes_per_token",
          "cache_bytes_per_token_formula", "seconds"}  # fmt: skip


def run_one(config):
    """Train and score one run; a divergence is a result too. Returns its record, a JSON object."""
    record = {
        "kind": "minqkv study run",
        "code": code_version(),
        "backend": backend.current.name,
        "config": asdict(config),
    }
    began = time.perf_counter()
    try:
        _, result = train_run(config)
        record |= {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "params": result["params"],
            "diverged": None,
        }
    except Diverged as error:
        record |= {
            "accuracy": None,
            "loss": None,
            "params": config.build().n_params,
            "diverged": str(error),
        }
    measured, formula = cache_bytes_per_token(config)
    record |= {"cache_bytes_per_token": measured, "cache_bytes_per_token_formula": formula}
    record["seconds"] = time.perf_counter() - began
    return record


def cache_bytes_per_token(config):
    """(measured, formula): float32 bytes of the cache a decoder of this size has filled, and of the
    closed form.

    The decoder reads seq_len tokens. An encoder decodes nothing: its figure is that of a GPT with
    the same attention.
    """
    cfg = GPTConfig(
        config.alphabet,
        config.seq_len,
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.variant,
    )
    model = GPT(cfg)
    cache = model.new_cache()
    model(np.zeros((1, config.seq_len), int), cache=cache)
    return cache.nbytes // len(cache), VariantSpec.parse(config.variant).cache_bytes_per_token(
        cfg, itemsize=4
    )


def _key(config):
    text = json.dumps([asdict(config), code_version(), backend.current.name])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def recorded(config, out):
    """The record of this very run (configuration, code and backend the same) under `out`, or None."""
    path = Path(out) / "runs" / f"{_key(config)}.json"
    if not path.exists():
        return None
    with contextlib.suppress(EnvironmentFault):  # a damaged record is run again
        record = files.read_json(path)
        same = (record.get("config"), record.get("code")) == (asdict(config), code_version())
        return record if same and record.keys() == FIELDS else None
    return None


def run_study(configs, out, jobs=1, on_record=None):
    """Run what is missing under `out`, each run recorded as it ends; returns the records in the
    order of `configs`.

    `on_record(config, record, reused)` is called for each, in the order they end. The result does
    not depend on `jobs`.
    """
    records = {}
    files.make_folder(out)

    def keep(config, record, reused):
        records[config] = record
        if not reused:
            files.write_json(Path(out) / "runs" / f"{_key(config)}.json", record)
        if on_record:
            on_record(config, record, reused)

    missing = []
    for config in configs:
        record = recorded(config, out)
        if record:
            keep(config, record, True)
        else:
            missing.append(config)
    if jobs == 1 or len(missing) < 2:
        for config in missing:
            keep(config, run_one(config), False)
    else:
        _run_in_processes(missing, min(jobs, len(missing)), keep)
    return [records[config] for config in configs]


def _run_in_processes(configs, jobs, keep):
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, spawn, initializer=_start_worker, initargs=(backend.current.name,)
    )
    try:
        waiting = {pool.submit(run_one, config): config for config in configs}
        for future in as_completed(waiting):
            keep(waiting[future], future.result(), False)
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            why = "a worker process was killed, perhaps for want of memory"
            raise EnvironmentFault(
                why, "the same command goes on from there; with fewer --jobs it needs less"
            ) from error
        raise


def _start_worker(backend_name):
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    backend.tame_allocator()
    backend.set_backend(backend_name)


def _die_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def seconds_per_step(config):
    """A measured guess: a few steps on an eighth of the batch, times eight."""
    model = config.build()
    optimizer = Adam(model.parameters(), config.lr)
    x, y = config.data.draw(config.seed, "train", config.recipe.batch // 8)
    train_step(model, optimizer, x, y)
    began = time.perf_counter()
    train_step(model, optimizer, x, y)
    return 8 * (time.perf_counter() - began)


def estimate_seconds(configs, jobs):
    """Wall seconds that `configs` will take, from one measurement per model shape."""
    shapes = {}
    for config in configs:
        shape = (
            config.n_embd,
            config.n_layer,
            config.n_head,
            config.seq_len,
            config.form,
            config.protocol,
        )
        if shape not in shapes:
            shapes[shape] = seconds_per_step(replace(config, variant="qkv", plus_start=None))
    per_run = [
        shapes[(c.n_embd, c.n_layer, c.n_head, c.seq_len, c.form, c.protocol)] * (c.steps + 10)
        for c in configs
    ]
    return max(math.fsum(per_run) / jobs, max(per_run, default=0))
