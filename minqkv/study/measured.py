"""Our own results, ready to be set beside published ones: runs that differ only in their seeds, by
their configuration.

They come from folders of `minqkv study`. The committed ones lie in bench/results of the repository;
an installed package carries them in short, in published/ours.csv, which `python -m bench.ours`
writes.
"""

import csv
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..runs import RunConfig, config_from, configure
from ..runtime import files
from ..runtime.errors import EnvironmentFault, UsageError

COMMITTED = Path(__file__).parents[2] / "bench" / "results"
IN_SHORT = Path(__file__).parent / "published" / "ours.csv"
AGAIN = "repeat the command of the study: its finished runs are kept"


@dataclass(frozen=True)
class Measured:
    """The scores of one configuration by seed (None: the run diverged), and the folders they are
    from. `config` has seed 0 and one thread, whatever the runs had.
    """

    config: RunConfig
    scores: dict[int, float | None]
    folders: tuple[str, ...]

    @property
    def finished(self) -> dict[int, float]:
        """The scores of the runs that did not diverge."""
        return {seed: score for seed, score in self.scores.items() if score is not None}


Results = dict[RunConfig, Measured]


def committed() -> Results:
    """The committed results: those beside the package, or else those inside it."""
    folders = sorted(path.parent for path in COMMITTED.glob("*/results.json"))
    return merged(in_folder(folder, folder.name) for folder in folders) if folders else in_short()


def merged(several: Iterable[Results]) -> Results:
    """All results together. A seed that several folders have is taken from the first of them."""
    found = {}
    for config, one in (item for results in several for item in results.items()):
        if before := found.get(config):
            scores = one.scores | before.scores
            one = Measured(config, dict(sorted(scores.items())), before.folders + one.folders)
        found[config] = one
    return found


def in_folder(folder: str | Path, name: str | None = None) -> Results:
    """The test scores in a study's folder, which is called `name`, if not by its path. Runs of
    tasks that this version of minqkv does not have are left out.

    Raises UsageError if it is not such a folder, EnvironmentFault if its file is damaged.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        cure = "name the folder of a finished study, as written by `minqkv study --out`"
        raise UsageError(f"there is no results.json in {folder}", cure)
    found = {}
    try:
        for run in files.read_sealed(path, AGAIN)["runs"]:
            with suppress(UsageError):
                config = config_from(_upgraded(run["config"]))
                if config.split == "test":
                    arm = replace(config, seed=0, threads=1)
                    score = _score(run[config.task.metric], config)
                    found.setdefault(arm, {})[config.seed] = score
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"{path} is damaged, or not the results of a study: {type(error).__name__}: {error}"
        raise EnvironmentFault(why, AGAIN) from error
    name = name or str(folder)
    return {config: Measured(config, scores, (name,)) for config, scores in found.items()}


def _upgraded(stored):
    """The oldest results of version 0.1.0 do not name the number of threads."""
    return {"threads": 1, **stored} if isinstance(stored["task"], str) else stored


def _score(value, config):
    """A score as a number; None where the run diverged."""
    low, high = config.task.limits
    if value is not None and not low <= value <= high:
        raise ValueError(f"{config.task.metric} {value}")
    return value


# ---- in short


def as_rows(results: Results) -> list[dict]:
    """What `in_short` reads: of each configuration what is not the default of a field, and its
    scores as seed:score.
    """
    rows = []
    for config, one in results.items():
        usual = {f.name: f.default for f in fields(config.task)} | {"name": config.task.name}
        usual |= asdict(configure(config.task.name).recipe)
        given = _flat(config).items() - usual.items()
        scores = (f"{seed}:{'' if s is None else repr(s)}" for seed, s in one.scores.items())
        about = {"folders": " ".join(one.folders), "task": config.task.name}
        about |= {"variant": config.variant, "settings": json.dumps(dict(sorted(given)))}
        rows.append(about | {"scores": " ".join(scores)})
    return rows


def _flat(config):
    return asdict(config.task) | asdict(config.recipe)


def in_short(path: Path = IN_SHORT) -> Results:
    """The results that the package carries."""
    found = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            config = configure(row["task"], row["variant"], **json.loads(row["settings"]))
            pairs = (pair.split(":") for pair in row["scores"].split())
            scores = {int(seed): float(score) if score else None for seed, score in pairs}
            found[config] = Measured(config, scores, tuple(row["folders"].split()))
    return found
