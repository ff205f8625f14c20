"""Who uses a model: many threads may decode with it, or one may train it."""

from threading import Thread

import numpy as np
import pytest
from toys import fresh_gpt

import minqkv as mq
from minqkv.runtime.claims import decoding, evaluating, training
from minqkv.runtime.errors import UsageError


def elsewhere(function):
    """The error that `function` raises in another thread, or None."""
    caught = []

    def run():
        try:
            function()
        except UsageError as error:
            caught.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return caught[0] if caught else None


@pytest.fixture
def model():
    return fresh_gpt()


def test_a_model_in_use_is_not_trained(model):
    optimizer, ids = mq.AdamW(model.parameters()), np.array([[1, 2]])
    step = lambda: mq.train_step(model, optimizer, ids, ids)  # noqa: E731
    for claim, says in ((training, "being trained"), (decoding, "used for decoding")):
        with claim(model):
            assert says in str(elsewhere(step))
            assert optimizer.steps == 0
    assert elsewhere(step) is None
    assert optimizer.steps == 1


def test_a_model_being_trained_does_not_decode(model):
    cache = model.new_cache()
    with training(model):
        error = elsewhere(lambda: model([[1]], cache=cache))
        assert "being trained" in str(error)
        assert "copy" in error.hint
        assert len(cache) == 0
        assert elsewhere(lambda: fresh_gpt()([[1]], cache=cache)) is None  # another model may
    assert elsewhere(lambda: model([[1]], cache=cache)) is None


def test_many_decode_and_whoever_does_evaluates(model):
    """The mode of the model is not touched: it is that of all threads."""
    model.train(7)
    with decoding(model):
        assert evaluating.get()
        with decoding(model):
            assert elsewhere(lambda: model([[1]], cache=model.new_cache())) is None
        assert evaluating.get()
        assert (model.training, model.step, model.blocks[1].attn.training) == (True, 7, True)
    assert not evaluating.get()


def test_a_claim_ends_with_an_error(model):
    for claim in (training, decoding):
        with pytest.raises(ZeroDivisionError), claim(model):
            _ = 1 / 0
        with training(model):
            pass
