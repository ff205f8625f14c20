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
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..analysis.lift import lift
from ..analysis.needs import seconds_per_step
from ..designs.layers import slimmed
from ..designs.linear import LinearGPT
from ..models import GPT, GPTConfig
from ..runs import RunConfig, config_from, train_run
from ..runtime import backend, files
from ..runtime.blas import blas_threads
from ..runtime.errors import Diverged, EnvironmentFault, MinqkvError, UsageError
from ..runtime.locks import locked
from ..runtime.version import code_version
from ..variants import cache_bytes_per_token
from .executors import run_on
from .grid import ITEMSIZE, cell
from .rates import arm_of

KIND = "minqkv study run"
SCORING = 0.3  # cost of an example that is scored, in units of one that is trained on
PARTS = 40  # of a run: the mean loss of each is kept
FIELDS = {
    *("kind", "code", "backend", "config", "metric", "score", "losses", "curve", "reached"),
    *("params", "diverged", "seconds", "cache_bytes_per_token", "cache_bytes_per_token_formula"),
    *("lifted", "slim"),
}


def run_one(config: RunConfig) -> dict:
    """Train and score one run; a divergence is a result too. Returns its record, a JSON object."""
    began, losses = time.perf_counter(), []
    record = {"kind": KIND, "code": code_version(), "backend": backend.current.label}
    record |= {"config": asdict(config), "metric": config.task.metric, "score": None}
    record |= {"curve": [], "reached": None, "params": config.build().n_params, "diverged": None}
    record |= {"lifted": None, "slim": None}
    try:
        model, result = train_run(config, progress=lambda step: losses.append(step.loss))
        with blas_threads(1):  # as in the run
            record["lifted"] = _lifted(config, model)
            record["slim"] = _slim(config, model)
        extra = ("curve", "best", "reached", "steps", "params", "seconds")
        record["score"] = {name: value for name, value in result.items() if name not in extra}
        record |= {name: result[name] for name in ("curve", "reached") if name in result}
    except Diverged as error:
        record["diverged"] = str(error)
    record["losses"] = [float(part.mean()) for part in np.array_split(losses, PARTS) if len(part)]
    with blas_threads(1):  # as in the run: a second thread would only wait
        measured, formula = measured_cache(config)
    record |= {"cache_bytes_per_token": measured, "cache_bytes_per_token_formula": formula}
    record["seconds"] = time.perf_counter() - began
    return record


def _lifted(config, model):
    """The score of a trained decoder in its equivalent form with K = V, and that form's size: a
    control for models with K = V that learned less. None where there is no such form.
    """
    try:
        twin = lift(model) if isinstance(model, GPT) else None
    except UsageError:
        return None
    if twin is None:
        return None
    found = {"score": config.task.score(twin, config.split, config.seed)[config.task.metric]}
    found |= {"params": twin.n_params, "variant": twin.config.variant}
    return found | {"head_dim": twin.config.head_dim}


def _slim(config, model):
    """The score of a trained decoder that stores only K, and the bytes of a token in its filled
    cache: half of them, without further training. None where K does not give V back.
    """
    if not isinstance(model, GPT) or config.split != "test":
        return None
    try:
        twin = slimmed(model)
    except UsageError:
        return None
    return {"score": config.task.score(twin, config.split, config.seed),
            "cache_bytes_per_token": filled_bytes(twin)}  # fmt: skip


def measured_cache(config):
    """(measured, formula): float32 bytes of a token in all layers of a filled cache, and the same
    by formula.

    An encoder has no cache: its figure is for a GPT with the same attention. A state does not grow:
    its bytes are divided by block_size.
    """
    own = config.task.config(config.variant)
    if isinstance(model := config.build(), LinearGPT):
        state = own.n_layer * own.n_head * own.head_dim * (own.head_dim + 1)
        return filled_bytes(model), state * ITEMSIZE // own.block_size
    names = ("block_size", "n_layer", "n_head", "n_embd", "variant", "head_dim", "position")
    cfg = GPTConfig(1, **{name: getattr(own, name) for name in (*names, "d_rope")}, d_ff=0)
    return filled_bytes(GPT(cfg)), cache_bytes_per_token(cfg, ITEMSIZE)


def filled_bytes(model):
    """Bytes of a token in all layers of a filled cache."""
    cache, block_size = model.new_cache(), model.config.block_size
    model(np.zeros((1, block_size), int), cache=cache)
    return cache.nbytes // len(cache)


# ---- records


class Records:
    """The intact records in a folder, by hash of the configuration and version of the code: those
    of one backend, by default the one in use. `damaged` counts the others that are not intact.
    """

    def __init__(
        self, out: str | Path, own: dict[str, type] | None = None, where: str | None = None
    ):
        self.found, self.damaged, written = {}, 0, {}
        for path in _files(Path(out) / "runs"):
            record, config = _read(path, own)
            self.damaged += record is None
            if record and record["backend"] == (where or backend.current.label):
                code = record["code"]
                self.found[config.hash, code] = record
                written[code] = max(written.get(code, 0), path.stat().st_mtime_ns)
        self.codes = sorted(written, key=lambda code: (written[code], code), reverse=True)

    def of(self, config: RunConfig, accept_code: bool = False) -> dict | None:
        """The record of a run by this code.

        With `accept_code`, if this code has none, another version's is used; if there are several,
        that of the version that wrote last.
        """
        codes = [code_version(), *(self.codes if accept_code else ())]
        found = (self.found.get((config.hash, code)) for code in codes)
        return next(filter(None, found), None)

    def of_other_code(self, configs: list[RunConfig]) -> dict[str, int]:
        """Code version -> for how many of these runs it has a record, while this code has none."""
        missing = [config for config in configs if self.of(config) is None]
        others = [code for code in self.codes if code != code_version()]
        found = {code: sum((c.hash, code) in self.found for c in missing) for code in others}
        return {code: n for code, n in found.items() if n}


def recorded(config: RunConfig, out: str | Path, accept_code: bool = False) -> dict | None:
    """The record of one run; see `Records.of`."""
    return Records(out, own_classes([config])).of(config, accept_code)


@contextlib.contextmanager
def study_folder(out: str | Path, identity: set[tuple[str, int]]):
    """The folder of a study, for this process alone; `identity` comes from a Plan. Raises
    UsageError where it holds the tables of another grid, which would be replaced, or a run. A grid
    may grow, by more seeds for instance.
    """
    files.make_folder(out)
    with locked(out, "study"):
        if (Path(out) / "config.json").exists():
            raise UsageError(f"{out} holds a run, not a study", "choose another folder with --out")
        if not identity >= identity_of(Path(out) / "results.json"):
            why = f"{out} holds the tables of another grid, which these runs would replace"
            raise UsageError(why, "choose another folder with --out")
        yield


def identity_of(path: Path) -> set[tuple[str, int]]:
    """Arms and seeds of the runs in a results.json; tasks of your own are left out. None of it
    counts where it is damaged: its tables are made again from the records. Raises EnvironmentFault
    where it cannot be read: then it may be whole.
    """
    found = set()
    try:
        for run in files.read_sealed(path)["runs"] if path.exists() else ():
            with contextlib.suppress(UsageError):
                config = config_from(run["config"])
                found.add((arm_of(config).hash, config.seed))
    except (MinqkvError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error.__cause__, OSError):
            raise
        return set()
    return found


def own_classes(configs: list[RunConfig]) -> dict[str, type]:
    """MODULE:CLASS -> the class, for the tasks of your own among these runs."""
    return {c.task.name: type(c.task) for c in configs if ":" in c.task.name}


def _path(config, out, code):
    text = json.dumps([config.hash, code, backend.current.label])
    return Path(out) / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _files(folder):
    """The records in a folder, in order. Raises EnvironmentFault where it cannot be read: they
    would all be made again.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise EnvironmentFault(f"cannot read {folder}: {error.strerror}") from error


def _read(path, own):
    """(record, its RunConfig); nothing for a file that is damaged or of another kind: its run is
    repeated. Raises EnvironmentFault for one that cannot be read: it may be whole.
    """
    try:
        record = _upgraded(files.read_sealed(path))
        config = config_from(record["config"], own)
        score = (record["score"] or {}).get(record["metric"])
        low, high = config.task.limits
        good = score is None if record["diverged"] else low <= score <= high
        if good and record.keys() == FIELDS and _sound(record):
            return record, config
    except (MinqkvError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error.__cause__, OSError):
            raise
    return None, None


def _sound(record):
    """Whether the values of a record are of the types that tables and figures need."""
    score, lifted, curve = record["score"] or {}, record["lifted"] or {}, record["curve"]
    diverged, reached = record["diverged"], record["reached"]
    names = ("params", "seconds", "cache_bytes_per_token", "cache_bytes_per_token_formula")
    finite = [record[name] for name in names] + [*score.values(), *record["losses"]]
    numbers = finite + [number for point in curve for number in point]
    numbers += [lifted[name] for name in ("score", "params") if lifted]
    if slim := record["slim"]:
        numbers += [slim["cache_bytes_per_token"], *slim["score"].values()]
    numbers += [reached] if reached is not None else []
    texts = [record["code"], *([] if diverged is None else [diverged])]
    points = all(len(point) == 2 for point in curve)
    sound = all(type(n) in (int, float) for n in numbers) and all(map(math.isfinite, finite))
    return points and sound and all(isinstance(text, str) for text in texts)


def _upgraded(record):
    """A record of version 0.1.0, or of the recall study's code, in today's form."""
    if record["kind"] != KIND:
        raise ValueError("of another kind")
    record = {"slim": None} | record
    if "metric" in record:
        if record.get("lifted") and "variant" not in record["lifted"]:  # the recall study's
            width = 2 * record["config"]["task"]["head_dim"]
            record["lifted"] |= {"variant": "q-k=v", "head_dim": width}
        return record
    accuracy, loss = record.pop("accuracy"), record.pop("loss")
    score = None if record["diverged"] else {"accuracy": accuracy, "loss": loss}
    config = asdict(config_from(record["config"]))
    new = {"config": config, "metric": "accuracy", "score": score}
    return record | new | {"losses": [], "curve": [], "reached": None, "lifted": None}


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
    files.make_folder(Path(out) / "runs")
    stored = Records(out, own_classes(configs))

    def keep(config, record, reused):
        records[config] = record
        if not reused:
            path = _path(config, out, record["code"])
            if not path.parent.is_dir():
                why = f"{out} was removed, emptied or moved while the study was using it"
                raise EnvironmentFault(why, "repeat the command, with another folder")
            files.write_json(path, files.sealed(record))
        if on_record:
            on_record(config, record, reused)

    for config in configs:
        record = stored.of(config, accept_code)
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


def estimate_seconds(configs: list[RunConfig], jobs: int) -> float:
    """Wall seconds that `configs` will take, from one measurement for each size of task."""
    per_step, seconds = {}, []
    for config in configs:
        shape = tuple(sorted(cell(config, equal=True).items()))
        if shape not in per_step:
            per_step[shape] = seconds_per_step(config)
            backend.release()  # the memory is for the processes of the study
        recipe, task = config.recipe, config.task
        watched = recipe.steps // (recipe.watch or math.inf)
        scored = watched * task.n_scored("validation") + task.n_scored(config.split)
        work = recipe.steps + SCORING * scored / recipe.batch
        seconds.append(per_step[shape] * work)
    return max(math.fsum(seconds) / jobs, max(seconds, default=0))
