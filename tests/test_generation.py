"""Decoding: the cache changes the speed and not the words; sampling depends on the seed alone;
wrong input is refused.
"""

from dataclasses import replace

import numpy as np
import pytest
from toys import DESIGNS, SMALL, design, gpt, host

from minqkv import backend as backends
from minqkv.generation import compare_cache, generate, iter_tokens, pick
from minqkv.models import GPT
from minqkv.runtime.errors import UsageError
from minqkv.variants import cache_bytes_per_token


@pytest.fixture
def prompt(rng):
    return rng.integers(0, SMALL["vocab_size"], (3, 4))


SAMPLINGS = [{"temperature": 0.7, "top_k": 3}, {}, {"temperature": 1.3, "seed": 5}]


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("name", DESIGNS)
def test_the_cache_changes_no_id(name, position, prompt, backend):
    model = design(name, position=position)
    model.ln_f.weight.data *= -1  # else the tied head repeats the last token
    for sampling in SAMPLINGS:
        cached, uncached = (
            generate(model, prompt, 8, use_cache=use_cache, **sampling)
            for use_cache in (True, False)
        )
        assert cached.shape == (3, 12)
        np.testing.assert_array_equal(cached, uncached)
        np.testing.assert_array_equal(cached[:, :4], prompt)
        assert len(np.unique(cached[:, 4:])) > 1


def test_greedy_takes_the_largest_logit(prompt, backend):
    model = gpt("q-k=v")
    ids = generate(model, prompt, 6)
    for i in range(4, 10):
        np.testing.assert_array_equal(ids[:, i], host(model(ids[:, :i]))[:, -1].argmax(-1))
    np.testing.assert_array_equal(generate(model, prompt, 0), prompt)


def test_sampling_depends_on_the_seed(prompt, backend):
    model = gpt("qkv")
    draw = lambda seed: generate(model, prompt, 8, temperature=2.0, seed=seed)  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert len({draw(seed).tobytes() for seed in range(5)}) == 5
    np.random.seed(0)  # nothing global is read
    np.testing.assert_array_equal(draw(1), draw(1))


def test_top_k(prompt):
    model = gpt("qkv")
    np.testing.assert_array_equal(
        generate(model, prompt, 8, temperature=5.0, top_k=1), generate(model, prompt, 8)
    )
    seen = set()
    for seed in range(8):
        ids = generate(model, prompt, 6, temperature=5.0, top_k=2, seed=seed)
        for i in range(4, 10):
            order = (-host(model(ids[:, :i]))[:, -1]).argsort(-1)
            ranks = [order[row].tolist().index(ids[row, i]) for row in range(3)]
            seen.update(ranks)
    assert seen == {0, 1}
    everything = generate(model, prompt, 6, temperature=5.0, seed=3)
    np.testing.assert_array_equal(
        generate(model, prompt, 6, temperature=5.0, top_k=11, seed=3), everything
    )
    np.testing.assert_array_equal(
        generate(model, prompt, 6, temperature=5.0, top_k=99, seed=3), everything
    )


def test_each_step_and_row_draws_anew():
    """All logits equal: what varies is the noise alone."""
    model = gpt("qkv")
    for parameter in model.parameters():
        parameter.data[...] = 0.0
    drawn = generate(model, [[0]] * 50, 12, temperature=1.0)[:, 1:]
    counts = np.bincount(drawn.ravel(), minlength=11)
    assert counts.min() > 30  # 600 draws of 11 ids
    assert (drawn[:, 1:] == drawn[:, :-1]).mean() < 0.2
    assert (drawn[1:] == drawn[:-1]).mean() < 0.2


def test_draws_follow_the_softmax(rng):
    logits = np.log(np.array([[0.1, 0.2, 0.7]], "float32"))
    for temperature, top_k, expected in [
        (1.0, None, [0.1, 0.2, 0.7]),
        (0.5, None, [1 / 54, 4 / 54, 49 / 54]),
        (1, 2, [0, 2 / 9, 7 / 9]),
    ]:
        drawn = pick(np.repeat(logits, 20_000, axis=0), temperature, top_k, rng)
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, expected, atol=0.015)


def test_each_row_of_a_batch_is_what_it_would_be_alone(prompt, backend):
    model = gpt("q-gqa-2")
    together = generate(model, prompt, 8)
    for i in range(3):
        np.testing.assert_array_equal(generate(model, prompt[i : i + 1], 8), together[i : i + 1])
    np.testing.assert_array_equal(generate(model, prompt.tolist(), 8), together)  # lists will do
    np.testing.assert_array_equal(generate(model, tuple(prompt.astype("int32")), 8), together)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_last_token_needs_no_position(use_cache, prompt, backend):
    model = gpt("q-k=v")  # 12 positions
    assert generate(model, prompt, 9, use_cache=use_cache).shape == (3, 13)
    with pytest.raises(
        UsageError, match="4 tokens and 10 new ones, but this model has 12 positions"
    ) as caught:
        generate(model, prompt, 10, use_cache=use_cache)
    assert "at most 9 new tokens" in caught.value.hint


def test_a_cache_to_look_at_and_the_mode_it_found(prompt, backend):
    model = gpt("q-k=v").train(step=7)
    cache = model.new_cache(3, 11)
    generate(model, prompt, 8, cache=cache)
    assert len(cache) == 11
    assert (model.training, model.step) == (True, 7)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_cache_of_another_model_is_refused(layers, prompt, backend):
    other = GPT(replace(gpt("q-k=v").config, n_layer=layers))
    with pytest.raises(UsageError, match=f"a cache of {layers} layers in a model of 2"):
        generate(gpt("q-k=v"), prompt, 2, cache=other.new_cache(3))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "empty"),
        ([[]], "empty"),
        ([[], []], "empty"),
        (np.zeros((2, 0), int), "empty"),
        ([[1, 2], [3]], "equally long, not \\[1, 2\\]"),
        ([[1, 11]], "id 11 is outside 0..10"),
        ([[-1]], "id -1 is outside"),
        ([[1.0, 2.0]], "integers"),
        ([["a"]], "integers"),
        ([1, 2, 3], "batch"),
        ([[[1]]], "batch"),
        ([[1] * 13], "12 positions"),
    ],
)
def test_refused_prompts(ids, says, use_cache, backend):
    with pytest.raises(UsageError, match=says):
        generate(gpt("q-k=v"), ids, 2, use_cache=use_cache)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_new_tokens": -1}, "negative"),
        ({"temperature": -0.5}, "negative"),
        ({"top_k": 0}, "top_k"),
        ({"cache": "used"}, "empty"),
    ],
)
def test_refused_settings(settings, says):
    model = gpt("q-k=v")
    if "cache" in settings:
        settings = {"cache": model.new_cache()}
        model([[1, 2]], cache=settings["cache"])
    with pytest.raises(UsageError, match=says):
        generate(model, [[1, 2]], **{"max_new_tokens": 2} | settings)


def test_tokens_come_one_by_one(prompt, backend):
    """Each before the next is computed; together they are what `generate` gives."""
    model = gpt("q-k=v")
    cache = model.new_cache(3)
    tokens, seen = iter_tokens(model, prompt, 6, temperature=1.0, cache=cache), []
    assert len(cache) == 0
    for i, token in enumerate(tokens):
        assert len(cache) == 4 + i
        assert token.shape == (3,)
        seen.append(token)
    expected = generate(model, prompt, 6, temperature=1.0)
    np.testing.assert_array_equal(np.stack(seen, axis=1), expected[:, 4:])


def test_a_stream_is_refused_before_its_first_token(prompt):
    for ids, n in (([[]], 2), ([[1], [1, 2]], 2), (prompt, 10), (prompt, -1)):
        with pytest.raises(UsageError):
            iter_tokens(gpt("qkv"), ids, n)


@pytest.mark.parametrize("name", DESIGNS)
def test_compare_cache(name, prompt, backend):
    model = design(name)
    report = compare_cache(model, prompt, 6)
    np.testing.assert_array_equal(report["cached"]["ids"], report["uncached"]["ids"])
    per_token = cache_bytes_per_token(model.config, 8)
    assert (
        report["cached"]["cache_bytes"] == 3 * (4 + 6 - 1) * per_token
    )  # the last token is never read
    assert report["uncached"]["cache_bytes"] == 0
    for half in report.values():
        assert half["tokens_per_second"] == pytest.approx(18 / half["seconds"])


def test_no_graph_and_no_dropout(prompt):
    model = gpt("q-k=v", dropout=0.5).train(3)
    np.testing.assert_array_equal(generate(model, prompt, 8), generate(gpt("q-k=v"), prompt, 8))
    assert all(p.grad is None for p in model.parameters())
    assert backends.current.name == "numpy"
