"""Decoding: the cache changes the speed and not the words; sampling depends on the seed alone;
wrong input is refused.
"""

from dataclasses import replace

import numpy as np
import pytest
from toys import DESIGNS, POSITIONS, SMALL, design, gpt, host

from minqkv import AdamW
from minqkv import backend as backends
from minqkv.caches import KINDS, BranchCache, RingCache, branches, options
from minqkv.generation import compare_cache, generate, iter_tokens, nucleus, pick
from minqkv.models import GPT
from minqkv.models.gpt import LAST
from minqkv.nn import LayerNorm
from minqkv.runtime.errors import UsageError
from minqkv.runtime.parallel import set_threads
from minqkv.train import train_step
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
        ({"temperature": float("nan")}, "finite"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "above 0 and at most 1, not 1.5"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"first_row": -1}, "first_row must be at least 0"),
        ({"end": 11}, "the end token 11 is outside 0..10"),
        ({"samples": 3, "cache": "of one"}, "room for 1 sequences, but 3 are generated"),
        ({"cache": "used", "use_cache": False}, "holds 2 positions, but use_cache is false"),
    ],
)
def test_refused_settings(settings, says):
    model = gpt("q-k=v")
    if "cache" in settings:
        cache = model.new_cache()
        if settings["cache"] == "used":
            model([[1, 2]], cache=cache)
        settings = {**settings, "cache": cache}
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
    for ids, n in (([[]], 2), ([[1], []], 2), (prompt, 10), (prompt, -1)):
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


@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_are_computed_where_a_token_is_drawn(use_cache, monkeypatch, backend):
    """Not for every token of a prompt: the vocabulary is large."""
    model, seen, forward = gpt("q-k=v"), [], LayerNorm.forward

    def spy(self, x):
        seen.append((self is model.ln_f, x.shape))
        return forward(self, x)

    monkeypatch.setattr(LayerNorm, "forward", spy)
    generate(model, RAGGED, 3, use_cache=use_cache)
    assert {shape for head, shape in seen if head} == {(4, 1, 16)}
    assert (False, (4, 4, 16)) in seen


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_of_the_last_token(threads, monkeypatch, hardware):
    model, ids = gpt("q-k=v"), np.arange(12).reshape(4, 3) % 11
    monkeypatch.setattr(backends, "LARGE_CACHE", 0)
    set_threads(threads)
    try:
        expected = host(model(ids))
        for cache in (None, model.new_cache(4)):
            found = host(model(ids, cache=cache, at=LAST))
            assert found.shape == (4, 1, 11)
            np.testing.assert_allclose(found, expected[:, -1:], rtol=0, atol=1e-12)
    finally:
        set_threads(1)
    with pytest.raises(UsageError, match="are for training"):
        model(ids, cache=model.new_cache(4), at=np.ones((4, 3), bool))


def test_no_graph_and_no_dropout(prompt):
    model = gpt("q-k=v", dropout=0.5).train(3)
    np.testing.assert_array_equal(generate(model, prompt, 8), generate(gpt("q-k=v"), prompt, 8))
    assert all(p.grad is None for p in model.parameters())
    assert backends.current.name == "numpy"


# ---- prompts of different length

RAGGED = [[9], [3, 0, 7, 1], [3, 0, 7, 1], [5, 10]]
SCHEMES = {f"{name} {value}": {"position": name, "rope_value": value} for name, value in POSITIONS}


def rows_alone(model, prompts, n, **how):
    """What each prompt gives alone, with the random numbers of its row."""
    return [
        generate(model, [prompt], n, first_row=r, **how)[0].tolist()
        for r, prompt in enumerate(prompts)
    ]


def without_padding(ids):
    return [row[row >= 0].tolist() for row in ids]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DESIGNS)
def test_a_row_of_a_ragged_batch_is_what_it_is_alone(name, scheme):
    model = design(name, **SCHEMES[scheme])
    for how in ({}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}):
        alone = rows_alone(model, RAGGED, 7, **how)
        for use_cache in (True, False):
            together = generate(model, RAGGED, 7, use_cache=use_cache, **how)
            assert together.shape == (4, 4 + 7)
            assert without_padding(together) == alone
    assert alone[1] != alone[2]  # the same prompt, but a row of its own
    assert len({token for row in alone for token in row[-7:]}) > 2


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DESIGNS)
def test_a_row_of_a_ragged_batch_through_a_ring(name, scheme):
    """After three turns of it, the same tokens as alone, and as without a cache."""
    model = design(name, **SCHEMES[scheme], window=2, sinks=1)
    how = {"temperature": 1.5, "seed": 3}
    alone = rows_alone(model, RAGGED, 9, **how)
    cache = model.new_cache(4, kind=RingCache)
    assert without_padding(generate(model, RAGGED, 9, cache=cache, **how)) == alone
    assert without_padding(generate(model, RAGGED, 9, use_cache=False, **how)) == alone
    several = model.new_cache(8, kind=RingCache)
    found = generate(model, RAGGED, 9, cache=several, samples=2, **how)
    repeated = [prompt for prompt in RAGGED for _ in range(2)]
    np.testing.assert_array_equal(found, generate(model, repeated, 9, **how))
    assert cache.nbytes == 4 * 3 * cache_bytes_per_token(model.config, 8)


def test_padding_is_marked_and_never_stored(backend):
    model = gpt("q-k=v", position="rope")
    cache = model.new_cache(4)
    ids = generate(model, RAGGED, 3, cache=cache)
    assert (ids[:, :4] == [[-1, -1, -1, 9], [3, 0, 7, 1], [3, 0, 7, 1], [-1, -1, 5, 10]]).all()
    assert (ids[:, 4:] >= 0).all()
    assert cache.lengths.tolist() == [1 + 2, 4 + 2, 4 + 2, 2 + 2]
    assert cache.nbytes == (3 + 6 + 6 + 4) * cache_bytes_per_token(model.config, 8)


def test_the_longest_prompt_sets_the_limit():
    model = gpt("qkv")  # 12 positions
    assert generate(model, [[1] * 10, [1]], 3).shape == (2, 13)
    with pytest.raises(UsageError, match="10 tokens and 4 new ones"):
        generate(model, [[1] * 10, [1]], 4)
    with pytest.raises(UsageError, match="the prompt has 13 tokens, but this model has 12"):
        generate(model, [[1], [1] * 13], 1)


@pytest.mark.parametrize("position", ["rope", "none", "sinusoidal"])
def test_writing_goes_on_after_block_size(position):
    """A ring gives what a longer model gives. The limit is the capacity of the cache, if any."""
    about = {"position": position, "window": 3, "sinks": 1}
    short, long = gpt("q-k=v", **about), gpt("q-k=v", **about, block_size=80)
    how = {"temperature": 1.5, "seed": 3}
    expected = generate(long, RAGGED, 70, use_cache=False, **how)
    cache = short.new_cache(4, capacity=73, kind=RingCache)
    np.testing.assert_array_equal(generate(short, RAGGED, 70, cache=cache, **how), expected)
    np.testing.assert_array_equal(generate(short, RAGGED, 70, **how), expected)
    assert cache.nbytes == 4 * 4 * cache_bytes_per_token(short.config, 8)
    with pytest.raises(UsageError, match="10 new ones, but this model has 12 positions"):
        generate(short, RAGGED, 10, use_cache=False)
    with pytest.raises(UsageError, match="10 new ones, but the cache has 12 positions"):
        generate(short, RAGGED, 10, cache=short.new_cache(4))
    long_prompt = [[1, 2] * 10]
    np.testing.assert_array_equal(generate(short, long_prompt, 5), generate(long, long_prompt, 5))


def test_a_row_does_not_depend_on_the_rows_beside_it(backend):
    model = gpt("q-gqa-2", position="rope")
    how = {"temperature": 1.0, "seed": 2}
    first = generate(model, [RAGGED[0], RAGGED[1]], 6, **how)
    other = generate(model, [RAGGED[0], [2] * 6], 6, **how)
    assert first[0][3:].tolist() == other[0][5:].tolist()


# ---- top-p


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, [3]), (0.49, [3]), (0.51, [0, 3]), (0.74, [0, 3]), (0.76, [0, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_a_nucleus_by_hand(top_p, kept):
    p = np.array([[0.25, 0.0625, 0.1875, 0.5]])  # falling: token 3, 0, 2, 1
    found = nucleus(np.log(p), top_p)
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == kept
    np.testing.assert_array_equal(found[0, kept], np.log(p)[0, kept])


def test_a_nucleus_of_equals_and_of_several_rows():
    found = nucleus(np.array([[0.0] * 4, [9.0, 0, 0, 0]]), 0.5)
    assert np.isfinite(found).tolist() == [[True, True, False, False], [True, False, False, False]]


def test_top_p_is_of_what_temperature_and_top_k_leave(rng):
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    for temperature, top_k, top_p, expected in [
        (1, None, 0.5, [4 / 7, 3 / 7, 0, 0]),
        (1, 2, 0.5, [1, 0, 0, 0]),  # of the two likeliest, 4/7 and 3/7, one is enough
        (0.5, None, 0.5, [1, 0, 0, 0]),  # squared: 16, 9, 4 and 1, of 30
        (1, None, 1.0, [0.4, 0.3, 0.2, 0.1]),
    ]:
        drawn = pick(np.repeat(logits, 20_000, axis=0), temperature, top_k, rng, top_p)
        np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, expected, atol=0.015)


def test_the_smallest_nucleus_is_greedy(prompt, backend):
    model = gpt("q-k=v")
    drawn = generate(model, prompt, 8, temperature=3.0, top_p=1e-9)
    np.testing.assert_array_equal(drawn, generate(model, prompt, 8))


# ---- the end token


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_finished_row_repeats_the_end_and_the_last_one_stops(use_cache, backend):
    model = gpt("qkv")
    how = {"temperature": 2.0, "seed": 4, "use_cache": use_cache}
    free = generate(model, RAGGED, 8, **how)[:, 4:]
    end = int(free[0, 2])
    stops = [row.index(end) if end in row else 8 for row in free.tolist()]
    assert min(stops) < 7
    found = generate(model, RAGGED, 8, end=end, **how)[:, 4:]
    assert found.shape[1] == min(8, max(stops) + 1)
    for row, full, stop in zip(found.tolist(), free.tolist(), stops, strict=True):
        assert row == (full[:stop] + [end] * 8)[: found.shape[1]]
    (alone,) = generate(model, RAGGED[:1], 8, end=end, **how).tolist()
    assert alone == [*RAGGED[0], *free[0].tolist()[: stops[0] + 1]]


def test_an_end_at_once():
    model = gpt("qkv")
    (first,) = next(iter_tokens(model, [[1, 2]], 3))
    assert generate(model, [[1, 2]], 3, end=int(first)).tolist() == [[1, 2, first]]


# ---- several samples of a prompt


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", DESIGNS)
def test_samples_are_rows_of_the_same_prompt(name, use_cache):
    model = design(name, position="rope")
    how = {"temperature": 1.0, "seed": 1, "use_cache": use_cache}
    found = generate(model, RAGGED[:2], 6, samples=3, **how)
    repeated = [prompt for prompt in RAGGED[:2] for _ in range(3)]
    np.testing.assert_array_equal(found, generate(model, repeated, 6, **how))
    assert len(np.unique(found[:3], axis=0)) > 1
    if use_cache:
        assert without_padding(found) == rows_alone(model, repeated, 6, temperature=1.0, seed=1)


def test_the_prompt_of_several_samples_is_read_once(monkeypatch, backend):
    model, read = gpt("q-k=v"), []
    forward = GPT.forward

    def spy(self, ids, **options):
        read.append(np.shape(ids))
        return forward(self, ids, **options)

    monkeypatch.setattr(GPT, "forward", spy)
    cache = model.new_cache(6)
    generate(model, RAGGED[:2], 3, samples=3, temperature=1.0, cache=cache)
    assert read == [(2, 4), (6, 1), (6, 1)]
    assert cache.lengths.tolist() == [3] * 3 + [6] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DESIGNS)
def test_samples_store_their_prompt_once(name, kind):
    """Tokens are those of a cache that stores every row. A ring cannot have branches."""
    model = design(name, position="rope", window=5, sinks=1)
    how = {"temperature": 1.0, "seed": 1, "samples": 3}
    whole = model.new_cache(6, **options(kind))
    cache = branches(model.new_cache(2, **options(kind)), 3)
    found = generate(model, RAGGED[:2], 6, cache=cache, **how)
    np.testing.assert_array_equal(found, generate(model, RAGGED[:2], 6, cache=whole, **how))
    assert cache.lengths.tolist() == whole.lengths.tolist() == [6] * 3 + [9] * 3
    if KINDS[kind].windowed:
        assert cache.nbytes == whole.nbytes
    else:
        tokens = 1 + 4 + 6 * 5  # read, and written but never read
        assert cache.nbytes * (6 * 3 + 9 * 3) == whole.nbytes * tokens


def test_samples_make_branches_unless_told_otherwise(monkeypatch):
    made, init = [], BranchCache.__init__

    def spy(self, cache, n, capacity=None):
        made.append((cache.lengths.tolist(), n))
        init(self, cache, n, capacity)

    monkeypatch.setattr(BranchCache, "__init__", spy)
    generate(gpt("q-k=v"), RAGGED[:2], 3, temperature=1.0, samples=3)
    assert made == [([0, 0], 3), ([1, 4], 3)]
    made.clear()
    report = compare_cache(gpt("q-k=v"), [[1, 2, 3]], 4, temperature=1.0, samples=3)
    np.testing.assert_array_equal(report["cached"]["ids"], report["uncached"]["ids"])
    per_token = cache_bytes_per_token(gpt("q-k=v").config, 8)
    assert report["cached"]["cache_bytes"] == (3 + 3 * 3) * per_token


def test_rows_may_be_drawn_in_several_batches():
    model = gpt("qkv")
    all_rows = generate(model, [[1, 2]], 6, temperature=1.0, samples=5)
    parts = [
        generate(model, [[1, 2]], 6, temperature=1.0, samples=n, first_row=first)
        for n, first in ((2, 0), (3, 2))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), all_rows)


# ---- what a stream leaves behind


def test_a_stream_that_is_not_read_to_its_end(prompt, backend):
    model = gpt("q-k=v")
    tokens = iter_tokens(model, prompt, 6)
    next(tokens)
    tokens.close()
    expected = generate(gpt("q-k=v"), prompt, 6)
    np.testing.assert_array_equal(generate(model, prompt, 6), expected)
    optimizer = AdamW(model.train().parameters())
    train_step(model, optimizer, prompt, prompt)  # nothing claims the model any more


def test_streams_can_be_interleaved(prompt, backend):
    model = gpt("q-mqa")
    streams = [iter_tokens(model, prompt[i : i + 1], 6) for i in range(3)]
    columns = zip(*streams, strict=True)
    found = np.array(list(columns))[:, :, 0].T  # (3, 6)
    np.testing.assert_array_equal(found, generate(model, prompt, 6)[:, 4:])
