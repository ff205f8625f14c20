"""The encoder of vectors: patches and back, pools, what it refuses, its gradients, and that it
computes the same on every backend and in PyTorch.
"""

import numpy as np
import pytest
from toys import EVERY, POSITIONS, host, scramble, vit

import minqkv as mq
from minqkv import backend as backends
from minqkv import functional as F
from minqkv.analysis.needs import n_params
from minqkv.models import ViT, ViTConfig, patchify, unpatchify
from minqkv.models.vit import POOLS
from minqkv.runtime.errors import UsageError
from minqkv.runtime.tracing import trace
from minqkv.train import train_step


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 4, 6, 3), 2), ((1, 28, 28, 1), 7), ((3, 4, 4, 2), 4)]
)
def test_patches_and_back(shape, size, rng):
    images = rng.integers(0, 256, shape).astype("uint8")
    B, height, width, C = shape
    patches = patchify(images, size)
    assert patches.shape == (B, height * width // size**2, size * size * C)
    assert patches.dtype == images.dtype
    np.testing.assert_array_equal(unpatchify(patches, size, height, width), images)


def test_patches_come_row_by_row():
    image = np.arange(16).reshape(1, 4, 4, 1)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patchify(image, 2)[0].tolist() == expected
    colours = np.stack([image, 100 + image], axis=-1)[..., 0, :]  # (1, 4, 4, 2)
    assert patchify(colours, 2)[0, 0].tolist() == [0, 100, 1, 101, 4, 104, 5, 105]


@pytest.mark.parametrize("size", [0, 3, 8])
def test_patches_must_fill_the_image(size):
    with pytest.raises(UsageError, match=f"patches of {size} × {size} do not fill images of 4 × 6"):
        patchify(np.zeros((1, 4, 6, 1)), size)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 4), (1, 6, 4)])
def test_patches_that_are_no_image(shape):
    with pytest.raises(UsageError, match="do not fill 4 × 4 in squares of 2 × 2"):
        unpatchify(np.zeros(shape), 2, 4, 4)


SHAPES = {"class": (2, 3), "mean": (2, 3), "each": (2, 5, 3), "choice": (2, 5)}  # of five tokens


def answers(pool, rng):
    """Two right answers for each shape of logits."""
    if pool == "choice":
        return rng.integers(0, 5, 2)
    return rng.integers(0, 3, SHAPES[pool][:-1])


@pytest.mark.parametrize("pool", POOLS)
def test_the_shape_of_an_answer(pool, backend, rng):
    model, x = vit("q-k=v", pool=pool), rng.standard_normal((2, 5, 6))
    assert model(x).shape == SHAPES[pool]
    fewer = {"each": (2, 3, 3), "choice": (2, 3)}
    assert model(x[:, :3]).shape == fewer.get(pool, SHAPES[pool])
    assert model.config.block_size == (6 if pool == "class" else 5)
    assert ("cls" in model.state_dict()) == (pool == "class")


def test_what_a_pool_reads(rng):
    """The same model, each answer read as the pool says."""
    model, x = vit("qkv", pool="each"), rng.standard_normal((2, 5, 6))
    tokens = {}
    model.ln_f.forward, norm = lambda y: tokens.setdefault("all", y), model.ln_f.forward
    model(x)
    mean = vit("qkv", pool="mean")
    mean.load_state_dict(model.state_dict())
    expected = model.head(norm(tokens["all"].mean(axis=1)))
    np.testing.assert_allclose(host(mean(x)), host(expected), rtol=0, atol=1e-13)


def test_a_choice_is_one_answer_of_each_token(rng):
    """With a head of one class, and a bias that changes no softmax."""
    model, x = vit("q-k=v", pool="choice"), rng.standard_normal((2, 5, 6))
    assert "head.bias" not in model.state_dict()
    each = vit("q-k=v", pool="each", n_class=1)
    each.load_state_dict({**model.state_dict(), "head.bias": np.array([4.0])})
    np.testing.assert_allclose(host(each(x))[..., 0], host(model(x)) + 4, rtol=0, atol=1e-13)


def test_features_are_what_the_head_reads(rng):
    for pool, shape in SHAPES.items():
        model, x = vit("qkv", pool=pool), rng.standard_normal((2, 5, 6))
        features = model.features(x)
        assert features.shape == (2, 5, 16) if pool in ("each", "choice") else (2, 16)
        np.testing.assert_array_equal(model.head(features).data.reshape(shape), model(x).data)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("variant", EVERY)
def test_without_positions_order_does_not_matter(variant, pool, rng):
    """The "+" is left out: its bias depends on the position of a key."""
    model = vit(variant.rstrip("+"), pool=pool, position="none")
    x, order = rng.standard_normal((2, 5, 6)), np.array([3, 0, 4, 1, 2])
    plain, permuted = host(model(x)), host(model(x[:, order]))
    plain = plain[:, order] if pool in ("each", "choice") else plain
    np.testing.assert_allclose(permuted, plain, rtol=0, atol=1e-12)


def test_with_positions_order_matters(rng):
    model, x = vit("qkv", pool="mean"), rng.standard_normal((2, 5, 6))
    assert np.abs(host(model(x)) - host(model(x[:, ::-1]))).max() > 1e-3


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("variant", EVERY)
def test_gradients(variant, pool, rng):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩ in every parameter."""
    model, x = vit(variant, pool=pool), rng.standard_normal((2, 5, 6))
    assert mq.gradcheck(lambda *_: model(x), *model.parameters()) < 1e-7
    model.zero_grad()
    model(x).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS, ids="-".join)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("variant", EVERY)
def test_equals_pytorch(variant, pool, position, rope_value, rng):
    """Logits, loss and every gradient, to 1e-10."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_twin as twin

    model = vit(variant, pool=pool, position=position, rope_value=rope_value)
    x = rng.standard_normal((2, 5, 6))
    y = answers(pool, rng)
    p = twin.parameters(model.state_dict())
    expected = twin.vit(p, torch.tensor(x), variant, 4, pool, position, rope_value)
    logits = model(x)
    np.testing.assert_allclose(logits.data, expected.detach().numpy(), rtol=1e-10, atol=1e-10)
    F.cross_entropy(logits, y).backward()
    twin.loss(expected, torch.tensor(y)).backward()
    for name, parameter in model.named_parameters():
        found, grad = parameter.grad, p[name].grad.numpy()
        np.testing.assert_allclose(found, grad, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("variant", EVERY)
def test_numpy_and_strict_agree(variant, pool, rng):
    found, x = [], rng.standard_normal((2, 5, 6))
    y = answers(pool, rng)
    for name in ("numpy", "strict"):
        with backends.use_backend(name):
            model = vit(variant, pool=pool)
            F.cross_entropy(model(x), y).backward()
            found.append({name: host(p.grad) for name, p in model.named_parameters()})
    for name, g in found[0].items():
        np.testing.assert_allclose(g, found[1][name], rtol=1e-11, atol=1e-11, err_msg=name)


def test_layers_may_differ_and_heads_have_a_width(rng):
    model = vit("qkv/q-k=v", head_dim=6)
    assert [hasattr(block.attn, "wv") for block in model.blocks] == [True, False]
    assert model.state_dict()["blocks.0.attn.wq.weight"].shape == (16, 24)
    model(rng.standard_normal((1, 5, 6)))


def test_the_start_of_plus():
    weight = ViT(ViTConfig(6, 5, 3, 1, 4, 16, "q=k=v+", plus_start=-1.0)).blocks[0].attn.plus.weight
    np.testing.assert_allclose(weight.data.sum(), -1, rtol=1e-6)


def test_variants_start_alike():
    """What two variants have in common starts equal."""
    one, two = (
        ViT(ViTConfig(6, 5, 3, 2, 4, 16, name), 3).state_dict() for name in ("qkv", "q=k=v")
    )
    assert [name for name in one if name not in two]
    for name in two:
        np.testing.assert_array_equal(one[name], two[name])


def test_integers_and_float32_are_taken(rng):
    x = rng.integers(0, 256, (2, 5, 6)).astype("uint8")
    model = scramble(ViT(ViTConfig(6, 5, 3, 1, 4, 16)))
    assert model(x).dtype == "float32"
    np.testing.assert_array_equal(model(x).data, model(x.astype("float64")).data)


def test_it_learns(rng):
    """Which of three places of a vector is largest, in the token of largest norm."""
    model = ViT(ViTConfig(3, 4, 3, 1, 2, 16))
    optimizer = mq.AdamW(model.parameters(), lr=3e-3)

    def batch(n):
        x = 0.2 * rng.standard_normal((n, 4, 3))
        y, row = rng.integers(0, 3, n), rng.integers(0, 4, n)
        x[np.arange(n), row, y] += 2
        return x, y

    for _ in range(60):
        train_step(model, optimizer, *batch(32))
    x, y = batch(200)
    assert (model.eval()(x).data.argmax(-1) == y).mean() > 0.95


def test_traces_show_patterns_over_patches(rng):
    with trace() as t:
        vit("q-k=v")(rng.standard_normal((2, 5, 6)))
    assert t["blocks.0.attn.pattern"].shape == (2, 4, 6, 6)
    np.testing.assert_allclose(t["blocks.1.attn.pattern"].sum(-1), 1)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((2, 5)), r"tokens must be \(batch, tokens, 6\), not \(2, 5\)"),
        (np.zeros((2, 5, 7)), "tokens must be"),
        (np.zeros((0, 5, 6)), "tokens must be"),
        (np.zeros((2, 0, 6)), "tokens must be"),
        (np.zeros((2, 6, 6)), "6 tokens, but this model has 5 positions"),
        ([[[1.0] * 6], [[1.0]]], "equally long"),
        (np.zeros((2, 5, 6), bool), "vectors of numbers, not of bool"),
        (np.zeros((2, 5, 6), complex), "not of complex"),
        (np.full((2, 5, 6), None), "not of object"),
    ],
)
def test_what_is_refused(x, says, backend):
    with pytest.raises(UsageError, match=says):
        vit("qkv")(x)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"n_in": 0}, "n_in must be a whole number from 1"),
        ({"n_token": 2.0}, "n_token must be"),
        ({"n_class": 0}, "n_class must be"),
        ({"pool": "choice", "n_class": 3}, "one score: n_class 3 must be 1"),
        ({"n_head": 3}, "not divisible"),
        ({"position": "here"}, "unknown position scheme"),
        ({"plus_start": 1.0}, "qkv has none"),
        ({"dtype": "float16"}, "unknown dtype"),
    ],
)
def test_configurations_that_cannot_be(values, says):
    with pytest.raises(UsageError, match=says):
        vit("qkv", **values)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("variant", EVERY)
def test_its_parameters_are_counted_without_building_it(variant, pool):
    model = vit(variant, pool=pool)
    assert n_params(model.config) == model.n_params
