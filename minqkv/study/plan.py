"""A study from its blocks to its tables: rates are chosen first, then come the runs that are
reported.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..runs import RunConfig
from ..runtime.errors import UsageError
from ..tasks.registry import field_names, task_class
from .execute import Records
from .grid import as_list, grid
from .rates import FIRST_SEED, Choice, arm_of, candidates, choose, choose_one, with_rates
from .summary import Cell, summarise, told_apart


@dataclass
class Part:
    """Runs that belong to the same tables, and where their learning rate comes from."""

    configs: list[RunConfig]
    rates: tuple[float, ...] = ()  # to choose from; empty: the runs have theirs already
    equal: str | None = None  # "bytes" or "params": what the arms of a table have in common
    targets: tuple[int, ...] = ()
    selection_seeds: int = 3  # how many seeds decide a rate
    one_rate: bool = False  # whether all arms of all such parts get the same rate

    @property
    def candidates(self) -> list[RunConfig]:
        """The runs that decide its rates."""
        return candidates(self.configs, self.rates, self.selection_seeds) if self.rates else []


@dataclass
class Plan:
    """All parts of a study, and what cannot be built."""

    parts: list[Part]
    impossible: list[str] = field(default_factory=list)
    choices: dict[RunConfig, Choice] = field(default_factory=dict)  # filled by `run`
    own: dict[str, type] = field(default_factory=dict)  # MODULE:CLASS -> the class

    @property
    def configs(self) -> list[RunConfig]:
        """What is reported, each run once; with its rate as soon as that is chosen."""
        configs = [c for part in self.parts for c in part.configs]
        return list(dict.fromkeys(with_rates(configs, self.choices)))

    @property
    def identity(self) -> set[tuple[str, int]]:
        """What distinguishes these tables from those of another study: arms and seeds, whatever
        rates are chosen.
        """
        return {(arm_of(c).hash, c.seed) for part in self.parts for c in part.configs}

    @property
    def candidates(self) -> list[RunConfig]:
        """The runs that decide the rates."""
        return list(dict.fromkeys(config for part in self.parts for config in part.candidates))

    def _choose(self, records):
        """Choose the rates, from the records of the candidates."""
        found = dict(zip(self.candidates, records, strict=True))
        alone = {c: found[c] for part in self.parts if not part.one_rate for c in part.candidates}
        alike = {c: found[c] for part in self.parts if part.one_rate for c in part.candidates}
        self.choices = choose(alone.items())
        self.choices |= choose_one(alike.items()) if alike else {}

    def recall(self, stored: Records, accept_code: bool = False) -> None:
        """Choose the rates now, if the runs that decide them are all on record."""
        records = [stored.of(config, accept_code) for config in self.candidates]
        if all(records):
            self._choose(records)

    def run(self, execute: Callable) -> tuple[list[dict], list[dict]]:
        """(records to report, records that decided the rates). `execute` runs configurations and
        returns their records, in order. No test split is scored before all rates are chosen.
        """
        deciding = self.candidates
        selection = execute(deciding) if deciding else []
        self._choose(selection)
        return execute(self.configs), selection

    def cells(self, records: list[dict | None]) -> list[Cell]:
        """The tables, in the order of the parts, without the runs whose record is None."""
        by_hash = {config.hash: r for config, r in zip(self.configs, records, strict=True)}
        groups = {}  # parts of the same task and kind share their tables
        for part in self.parts:
            for config in part.configs:
                key = config.task.name if part.equal else None, part.equal, part.targets
                groups.setdefault(key, []).append(config)
        cells = []
        for (_, equal, targets), configs in groups.items():
            configs = with_rates(list(dict.fromkeys(configs)), self.choices)
            found = [r for config in configs if (r := by_hash[config.hash])]
            cells += summarise(found, equal, targets, self.choices, self.own)
        return told_apart(cells)


def plan(
    blocks: Iterable[dict],
    own: dict[str, type] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """A Plan from blocks of lists, as in presets.PRESETS. With several values of `lr`, one is
    chosen for each arm, or with `one_rate` for all of them, on `selection_seeds` seeds.
    `progress(done, total)` is called while a text is prepared. Raises UsageError, and what that
    preparation raises.
    """
    parts, impossible, own = [], [], own or {}
    for block in blocks:
        block = _prepared(block, own, progress)
        rates, n_seeds = tuple(block.pop("lr", ())), block.pop("selection_seeds", 3)
        one_rate = block.pop("one_rate", False)
        if len(rates) == 1:
            block["lr"], rates = rates, ()
        equal = next((name for name in ("bytes", "params") if f"equal_{name}" in block), None)
        targets = tuple(block["equal_params"]) if equal == "params" else ()
        configs = grid(**block, own=own, impossible=impossible)
        if rates and any(config.seed >= FIRST_SEED for config in configs):
            why = f"seeds from {FIRST_SEED} up choose the learning rates"
            raise UsageError(f"{why}: they cannot be reported as well", "--seeds 8")
        parts.append(Part(configs, rates, equal, targets, n_seeds, one_rate))
    if not any(part.configs for part in parts):
        raise UsageError("nothing to run" + (f": {impossible[0]}" if impossible else ""))
    return Plan([part for part in parts if part.configs], impossible, own=own)


def _prepared(block, own, progress):
    """A block, completed by what its tasks must read or prepare first. The runs then find that by
    its digest, in any process.
    """
    block = dict(block)
    for task in block["tasks"]:
        cls = task_class(task, own.get(task))
        given = {name: as_list(block[name]) for name in field_names(cls) if name in block}
        for name in cls.one_each:
            if len(given.get(name, ())) > 1:
                why = f"a study takes one {name}, not {len(given[name])}"
                raise UsageError(why, f"run a study for each {name}")
        single = {name: values[0] for name, values in given.items() if len(values) == 1}
        block |= {name: (value,) for name, value in cls.prepared(single, progress).items()}
    return block
