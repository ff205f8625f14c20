"""Modules and their state; parameters that start by name, dropout masks by name and step."""

import math

import numpy as np
import pytest
from toys import FRESH, IDS, fresh_gpt, fresh_tagger, host, ones

from minqkv import nn, optim
from minqkv.runtime.errors import UsageError

# --- modules and state


def test_state_dict_round_trip(backend):
    model, other = fresh_gpt("gqa-2", seed=1), fresh_gpt("gqa-2", seed=2)
    state = model.state_dict()
    assert all(isinstance(a, np.ndarray) for a in state.values())
    assert list(state) == [name for name, _ in model.named_parameters()]
    other.load_state_dict(state)
    np.testing.assert_array_equal(host(model(IDS)), host(other(IDS)))
    state["ln_f.bias"] += 1  # a copy: the models do not notice
    assert not host(model.ln_f.bias.data).any()
    assert model.n_params == sum(a.size for a in state.values())
    optimizer = optim.SGD(other.parameters())
    other.load_state_dict(state)  # into the optimiser's buffer, which stays the one in use
    assert float(host(optimizer.data).sum()) == pytest.approx(
        sum(float(a.sum()) for a in state.values()), abs=1e-3
    )


def test_state_names():
    names = set(fresh_gpt().state_dict())
    linear = ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "mlp.fc", "mlp.proj")
    block = {f"{part}.{kind}" for part in ("ln_1", "ln_2", *linear) for kind in ("weight", "bias")}
    assert names == {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"} | {
        f"blocks.{i}.{n}" for i in (0, 1) for n in block
    }
    without = {
        v: {n.split(".")[3] for n in set(fresh_gpt(v).state_dict()) if ".attn." in n} for v in FRESH
    }
    assert without == {
        "qkv": {"wq", "wk", "wv", "wo"}, "q=k-v": {"wk", "wv", "wo"}, "q-k=v": {"wq", "wk", "wo"},
        "q=k=v": {"wk", "wo"},
        "q=k=v+": {"wk", "wo", "plus"}, "gqa-2": {"wq", "wk", "wv", "wo"},
        "q-mqa": {"wq", "wk", "wo"},
    }  # fmt: skip
    assert "wpe.weight" not in fresh_gpt(position="rope").state_dict()


def test_load_state_dict_names_every_fault_and_changes_nothing():
    model = fresh_gpt()
    state, before = model.state_dict(), model.state_dict()
    state["wte.weight"] = state["wte.weight"].T + 1
    state["blocks.0.attn.wq.weight"] += 1
    state["typo"] = state.pop("ln_f.bias")
    with pytest.raises(UsageError) as caught:
        model.load_state_dict(state)
    for words in ("ln_f.bias is missing", "typo is unknown", "wte.weight is (16, 5), not (5, 16)"):
        assert words in str(caught.value)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_train_and_eval_reach_every_module():
    model = fresh_tagger(protocol="2023")
    modules, stack = [], [model]
    while stack:
        modules.append(stack.pop())
        stack += [child for _, child in modules[-1].children()]
    drops = [m for m in modules if isinstance(m, nn.Dropout)]
    assert len(drops) == 2 * 3 + 1
    assert model.train(7) is model
    assert all(m.training for m in modules)
    assert {d.step for d in drops} == {7}
    assert not any(m.training for m in [model.eval(), *modules])
    assert len({d.name for d in drops}) == len(drops)


# --- randomness keyed by name and step


@pytest.mark.parametrize("build", [fresh_gpt, fresh_tagger], ids=["gpt", "tagger"])
def test_variants_share_the_start_of_what_they_share(build):
    base = build("qkv").state_dict()
    for variant in FRESH[1:]:
        shared = 0
        for name, array in build(variant).state_dict().items():
            if name in base and base[name].shape == array.shape:
                np.testing.assert_array_equal(array, base[name], err_msg=name)
                shared += 1
        assert shared >= len(base) - 8
    other = build("qkv", seed=1).state_dict()
    assert all(not np.array_equal(other[n], a) for n, a in base.items() if np.ptp(a))


def test_names_seeds_and_schemes_of_the_start():
    init = nn.Init(3)
    assert (init / "a" / "b").name == "a.b"
    a, b = (init / "a").weight(64, 64), (init / "b").weight(64, 64)
    assert not np.allclose(a.data, b.data)
    np.testing.assert_array_equal(a.data, (nn.Init(3) / "a").weight(64, 64).data)
    assert a.data.std() == pytest.approx(0.02, rel=0.05)
    uniform = nn.Init(3, "float64", "uniform", "u")
    assert 0.24 < np.abs(uniform.weight(16, 64).data).max() <= 0.25
    assert 0.2 < np.abs(uniform.bias(16, 64).data).max() <= 0.25
    xavier = init.using("xavier") / "x"
    bound = math.sqrt(6 / (64 + 192))
    assert 0.98 * bound < np.abs(xavier.weight(64, 64, fused=192).data).max() <= bound
    assert not xavier.bias(64, 64).data.any()
    assert a.dtype == "float32"
    assert uniform.weight(2, 2).dtype == "float64"
    assert a.requires_grad


def test_dropout_depends_on_seed_name_and_step_alone(backend):
    def mask(seed=0, name="a", step=0, rate=0.5, calls=1):
        module = nn.Dropout(rate, nn.Init(seed, name=name)).train(step)
        return [host(module(ones(40))) for _ in range(calls)][-1]

    first = mask()
    assert set(np.unique(first)) == {0, 2}
    np.testing.assert_array_equal(mask(step=5), mask(step=3, calls=3))  # a step a call
    for other in (mask(seed=1), mask(name="b"), mask(step=1)):
        assert not np.array_equal(first, other)
    np.testing.assert_array_equal(mask(rate=0.0), np.ones(40))
    x = ones(3)
    assert nn.Dropout(0.9).eval()(x) is x
    assert np.mean(mask(rate=0.2) > 0) == pytest.approx(0.8, abs=0.2)
