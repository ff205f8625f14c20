"""What tasks share: how long and how fast a protocol trains, and the order of its examples."""

from dataclasses import dataclass

from ..runtime.rng import stream


@dataclass(frozen=True)
class Recipe:
    """What a protocol trains with (paper, section 4.1)."""

    n_train: int
    n_test: int
    batch: int
    epochs: int
    drop_last: bool
    lr: float
    clip: float
    warmup_share: float  # of all steps; 0: five steps
    restart: bool  # see optim.warmup_cosine

    @property
    def steps_per_epoch(self):
        """Batches in one pass over the training examples."""
        whole, rest = divmod(self.n_train, self.batch)
        return whole + (rest > 0 and not self.drop_last)


class Batches:
    """step -> (x, y): shuffled anew each epoch by a permutation of (seed, epoch) alone."""

    def __init__(self, x, y, recipe, seed):
        self.x, self.y, self.recipe, self.seed = x, y, recipe, seed
        self.epoch, self.order = None, None

    def __call__(self, step):
        epoch, i = divmod(step, self.recipe.steps_per_epoch)
        if epoch != self.epoch:
            permutation = stream(self.seed, "order", epoch).permutation(len(self.x))
            self.epoch, self.order = epoch, permutation
        rows = self.order[i * self.recipe.batch : (i + 1) * self.recipe.batch]
        return self.x[rows], self.y[rows]
