"""A study from its blocks to its tables: rates are chosen first, then come the runs that are
reported.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..runs import RunConfig
from ..runtime.errors import UsageError
from .execute import Records
from .grid import grid
from .rates import FIRST_SEED, Choice, arm_of, candidates, choose, with_rates
from .summary import Cell, summarise


@dataclass
class Part:
    """Runs that belong to the same tables, and where their learning rate comes from."""

    configs: list[RunConfig]
    rates: tuple[float, ...] = ()  # to choose from; empty: the runs have theirs already
    equal: str | None = None  # "bytes" or "params": what the arms of a table have in common
    targets: tuple[int, ...] = ()
    selection_seeds: int = 3  # how many seeds decide a rate


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
        parts = [part for part in self.parts if part.rates]
        found = [candidates(p.configs, p.rates, p.selection_seeds) for p in parts]
        return list(dict.fromkeys(config for part in found for config in part))

    def recall(self, stored: Records, accept_code: bool = False) -> None:
        """Choose the rates now, if the runs that decide them are all on record."""
        deciding = self.candidates
        records = [stored.of(config, accept_code) for config in deciding]
        if all(records):
            self.choices = choose(zip(deciding, records, strict=True))

    def run(self, execute: Callable) -> tuple[list[dict], list[dict]]:
        """(records to report, records that decided the rates). `execute` runs configurations and
        returns their records, in order. No test split is scored before all rates are chosen.
        """
        deciding = self.candidates
        selection = execute(deciding) if deciding else []
        self.choices = choose(zip(deciding, selection, strict=True))
        return execute(self.configs), selection

    def cells(self, records: list[dict]) -> list[Cell]:
        """The tables, in the order of the parts."""
        by_hash = {config.hash: r for config, r in zip(self.configs, records, strict=True)}
        groups = {}  # parts of the same task and kind share their tables
        for part in self.parts:
            for config in part.configs:
                key = config.task.name if part.equal else None, part.equal, part.targets
                groups.setdefault(key, []).append(config)
        cells = []
        for (_, equal, targets), configs in groups.items():
            configs = with_rates(list(dict.fromkeys(configs)), self.choices)
            found = [by_hash[config.hash] for config in configs]
            cells += summarise(found, equal, targets, self.choices, self.own)
        return cells


def plan(blocks: Iterable[dict], own: dict[str, type] | None = None) -> Plan:
    """A Plan from blocks of lists, as in presets.PRESETS. With several values of `lr`, one is
    chosen for each arm, on `selection_seeds` seeds. Raises UsageError.
    """
    parts, impossible, own = [], [], own or {}
    for block in blocks:
        block = dict(block)
        rates, n_seeds = tuple(block.pop("lr", ())), block.pop("selection_seeds", 3)
        if len(rates) == 1:
            block["lr"], rates = rates, ()
        equal = next((name for name in ("bytes", "params") if f"equal_{name}" in block), None)
        targets = tuple(block["equal_params"]) if equal == "params" else ()
        configs = grid(**block, own=own, impossible=impossible)
        if rates and any(config.seed >= FIRST_SEED for config in configs):
            why = f"seeds from {FIRST_SEED} up choose the learning rates"
            raise UsageError(f"{why}: they cannot be reported as well", "--seeds 8")
        parts.append(Part(configs, rates, equal, targets, n_seeds))
    if not any(part.configs for part in parts):
        raise UsageError("nothing to run" + (f": {impossible[0]}" if impossible else ""))
    return Plan([part for part in parts if part.configs], impossible, own=own)
