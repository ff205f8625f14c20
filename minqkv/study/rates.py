"""A learning rate for each arm, or one for all: chosen on seeds and a split never reported."""

from dataclasses import dataclass, replace

from ..runs import RunConfig

FIRST_SEED = 100  # the first that rates are chosen on
DIVERGED = 99.0  # counts as the loss of a run that diverged, if all arms get one rate


@dataclass(frozen=True)
class Choice:
    """What was found for one arm: the mean validation score of each rate, and the best rate."""

    lr: float
    scores: dict  # rate -> mean score; None where a run diverged

    @property
    def at_the_edge(self) -> bool:
        """Whether a rate beyond the list might be better still."""
        return len(self.scores) > 1 and self.lr in (min(self.scores), max(self.scores))


def arm_of(config: RunConfig) -> RunConfig:
    """What a rate is chosen for: the run without its seed and rate."""
    return replace(config, seed=0, split="test").change(lr=1.0)


def candidates(configs: list[RunConfig], rates: list[float], n_seeds: int) -> list[RunConfig]:
    """The runs that decide: each arm with each rate, scored on the validation split of seeds from
    100 up.
    """
    arms = dict.fromkeys(map(arm_of, configs))
    return [
        replace(arm, seed=FIRST_SEED + i, split="validation").change(lr=rate)
        for arm in arms
        for rate in rates
        for i in range(n_seeds)
    ]


def choose(runs: list[tuple[RunConfig, dict]]) -> dict[RunConfig, Choice]:
    """Arm -> Choice, from the candidates and their records. The best mean score wins; among equal
    ones the lower mean loss. A rate at which a run diverged comes after all others; of several such
    rates, the smallest is taken.
    """
    found = {}
    for config, record in runs:
        by_rate = found.setdefault(arm_of(config), {})
        by_rate.setdefault(config.recipe.lr, []).append(record["score"])
    return {arm: _choice(arm.task, by_rate) for arm, by_rate in found.items()}


def choose_one(runs: list[tuple[RunConfig, dict]]) -> dict[RunConfig, Choice]:
    """The same with one rate for all arms: the one with the lowest mean loss over all these runs. A
    run that diverged counts as a loss of DIVERGED.
    """
    losses = {}
    for config, record in runs:
        loss = record["score"]["loss"] if record["score"] else DIVERGED
        losses.setdefault(config.recipe.lr, []).append(loss)
    best = min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))
    return {arm: replace(choice, lr=best) for arm, choice in choose(runs).items()}


def _choice(task, by_rate):
    sign = 1 if task.better == "higher" else -1
    means, order = {}, {}
    for rate, scores in by_rate.items():
        finished = all(scores)
        means[rate] = _mean(scores, task.metric) if finished else None
        loss = _mean(scores, "loss") if finished and "loss" in scores[0] else 0.0
        order[rate] = (True, sign * means[rate], -loss) if finished else (False, -rate, 0.0)
    return Choice(max(order, key=order.get), means)


def _mean(scores, name):
    return sum(score[name] for score in scores) / len(scores)


def with_rates(configs: list[RunConfig], choices: dict[RunConfig, Choice]) -> list[RunConfig]:
    """The same runs, each with the rate of its arm where one was chosen."""
    return [
        config.change(lr=choices[arm_of(config)].lr) if arm_of(config) in choices else config
        for config in configs
    ]
