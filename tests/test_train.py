"""A training step: its one wait for the device, its dropout masks, and what it refuses."""

import numpy as np
import pytest
import strict
from toys import FRESH, IDS, fresh_gpt, fresh_tagger

import minqkv as mq
from minqkv import backend as backends
from minqkv.train import train_step


@pytest.mark.parametrize("variant", [*FRESH, "q=k-v+"])
@pytest.mark.parametrize(
    ("build", "kwargs"),
    [
        (fresh_gpt, {"position": "rope", "dropout": 0.1}),
        (fresh_gpt, {}),
        (fresh_tagger, {"hide_self": True}),
        (fresh_tagger, {"protocol": "2023"}),
    ],
    ids=["gpt, rope", "gpt", "tagger 2026", "tagger 2023"],
)
def test_one_wait_per_training_step(build, kwargs, variant):
    with backends.use_backend("strict"):
        model = build(variant, **kwargs)
        optimizer = mq.AdamW(model.parameters())
        train_step(model, optimizer, IDS, IDS)
        some = np.where(IDS == 2, -100, IDS)
        with strict.count_syncs() as syncs:
            train_step(model, optimizer, IDS, some)
            assert syncs() == 1


def test_train_step_draws_new_dropout_masks_each_step(backend, rng):
    model = mq.GPT(
        mq.GPTConfig(7, 5, 1, 2, 8, dropout=0.5)
    ).eval()  # train_step switches it on by itself
    optimizer, ids = mq.AdamW(model.parameters(), lr=0.0), rng.integers(0, 7, (4, 5))
    assert len({train_step(model, optimizer, ids, ids) for _ in range(4)}) == 4


def test_an_optimiser_that_lost_its_parameters_says_so(backend, rng):
    model = mq.GPT(mq.GPTConfig(7, 5, 1, 2, 8))
    first, ids = mq.AdamW(model.parameters()), rng.integers(0, 7, (4, 5))
    mq.AdamW(model.parameters())
    with pytest.raises(RuntimeError, match="another optimiser"):
        train_step(model, first, ids, ids)
