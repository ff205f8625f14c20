"""The models that are measured, their data, and what their products cost."""

from typing import NamedTuple

import numpy as np

import minqkv as mq


class Size(NamedTuple):
    """A GPT and a batch: vocabulary, positions, width, layers, heads, sequences."""

    V: int
    T: int
    d: int
    L: int
    H: int
    B: int

    def config(self, variant="qkv", **more):
        """The model's configuration."""
        return mq.GPTConfig(self.V, self.T, self.L, self.H, self.d, variant, **more)

    def batch(self):
        """(ids, targets), random, (B, T) each."""
        return np.random.default_rng(0).integers(0, self.V, (2, self.B, self.T))

    def training(self, variant="qkv"):
        """(model, optimizer, ids, targets) of a new model: what `mq.train_step` takes."""
        model = mq.GPT(self.config(variant))
        return model, mq.AdamW(model.parameters(), lr=1e-3), *self.batch()

    def step(self, variant="qkv"):
        """A function without arguments that does one training step of a new model and returns the
        loss.
        """
        everything = self.training(variant)
        return lambda: mq.train_step(*everything)

    def flops(self, variant="qkv"):
        """Floating-point operations in the products of a training step: 2 a multiply-accumulate,
        and backward is twice forward.

        Scores count in full, also where a causal mask lets half of them be skipped.
        """
        cfg = self.config(variant)
        return 2 * 3 * self.B * mq.VariantSpec.parse(cfg.variant).macs(cfg, self.T)


SIZES = {
    "S1": Size(10, 16, 32, 1, 2, 128),
    "S2": Size(10, 64, 64, 2, 4, 128),
    "S3": Size(64, 64, 64, 2, 4, 16),
    "S4": Size(96, 128, 128, 4, 4, 16),
    "S5": Size(256, 256, 256, 4, 8, 8),
}
