"""⟨u, Jv⟩ = ⟨Jᵀu, v⟩ for each variant's Attention and for whole models, by every position scheme,
on every backend.
"""

import pytest
from toys import TEN

from minqkv import backend as backends
from minqkv.analysis.selfcheck import checks
from minqkv.checking import gradcheck
from minqkv.models import GPT, GPTConfig, Tagger, TaggerConfig
from minqkv.optim import AdamW
from minqkv.train import train_step

POSITIONS = [
    ("learned", "raw"),
    ("sinusoidal", "raw"),
    ("none", "raw"),
    ("rope", "raw"),
    ("rope", "unrotate"),
]


def test_every_check_of_the_command_holds(backend):
    found = list(checks(seed=1))
    assert len(found) > 35
    assert {name: fault for name, _, fault in found if fault} == {}


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", TEN)
def test_a_whole_gpt(variant, position, rope_value, backend, rng):
    cfg = GPTConfig(
        7, 5, 1, 4, 8, variant, position=position, rope_value=rope_value, d_ff=8, dtype="float64"
    )
    model, ids = GPT(cfg), rng.integers(0, 7, (2, 5))
    for p in model.parameters():  # away from zero, where mistakes hide
        p.data += backends.upload(0.3 * rng.standard_normal(p.shape))
    assert gradcheck(lambda *_: model(ids), *model.parameters()) < 1e-7


@pytest.mark.parametrize("protocol", ["2023", "2026"])
@pytest.mark.parametrize("variant", ["qkv", "q=k=v+"])
def test_a_whole_tagger(variant, protocol, backend, rng):
    model = Tagger(TaggerConfig(5, 4, 1, 2, 8, variant, protocol, dtype="float64")).eval()
    ids = rng.integers(0, 5, (2, 4))
    assert gradcheck(lambda *_: model(ids), *model.parameters()) < 1e-6


def test_train_step_draws_new_dropout_masks_each_step(backend, rng):
    model = GPT(GPTConfig(7, 5, 1, 2, 8, dropout=0.5)).eval()  # train_step switches it on by itself
    optimizer, ids = AdamW(model.parameters(), lr=0.0), rng.integers(0, 7, (4, 5))
    assert len({train_step(model, optimizer, ids, ids) for _ in range(4)}) == 4


def test_an_optimiser_that_lost_its_parameters_says_so(backend, rng):
    model = GPT(GPTConfig(7, 5, 1, 2, 8))
    first, ids = AdamW(model.parameters()), rng.integers(0, 7, (4, 5))
    AdamW(model.parameters())
    with pytest.raises(RuntimeError, match="another optimiser"):
        train_step(model, first, ids, ids)
