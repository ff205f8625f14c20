"""What objects say of themselves, the names of a trace, and models in files."""

import pickle
from html.parser import HTMLParser

import numpy as np
import pytest

import minqkv as mq
from minqkv import nn
from minqkv.caches import KINDS, options
from minqkv.caches.branch import branches
from minqkv.models import ViT, ViTConfig
from minqkv.optim import SGD, Adam
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.runtime.shown import counted


def gpt(**changes):
    given = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
    return mq.GPT(mq.GPTConfig(**given | {"variant": "q-k=v"} | changes))


def read(model):
    cache = model.new_cache()
    model([[1, 2, 3]], cache=cache)
    return cache


def traced():
    with mq.trace() as found:
        gpt()([[1, 2, 3]])
    return found


def shown():
    """name -> (an object, words that its line must have)."""
    model = gpt()
    found = {
        "gpt": (model, ["GPT", "q-k=v", "2 layers", "2 heads", "float32", f"{model.n_params:,}"]),
        "one head": (gpt(n_head=1, n_layer=1), ["1 layer,", "1 head,"]),
        "tagger": (mq.Tagger(mq.TaggerConfig(11, 8, 1, 2, 8)), ["Tagger qkv", "bytes"]),
        "vit": (ViT(ViTConfig(3, 4, 2, 1, 2, 8)), ["ViT qkv", "bytes"]),
        "attention": (model.blocks[0].attn, ["Attention q-k=v", "wk.weight (8, 8)", "bytes"]),
        "linear": (nn.Linear(2, 3, nn.Init()), ["Linear", "(2, 3)", "9 parameters", "36 bytes"]),
        "dropout": (model.blocks[0].drop_1, ["Dropout: 0 parameters"]),
        "block": (model.blocks[0], ["Block"]),
        "own": (type("Mine", (nn.Module,), {})(), ["Mine: 0 parameters"]),
        "trace": (traced(), ["14 names", "blocks.0.attn.q (1, 2, 3, 4)", "bytes", "…"]),
        "no trace": (type(traced())(), ["Trace of 0 names"]),
        "branches": (branches(read(model), 2), ["BranchCache", "batch 2", "3 of 8 positions"]),
        "layer": (read(model).layers[0], ["LayerCache: 3 positions", "(1, 2, 8, 4)"]),
    }
    for kind in (SGD, Adam, mq.AdamW):
        made = kind(gpt().parameters(), lr=0.5)
        found[kind.__name__] = made, [kind.__name__, "lr 0.5", "after 0 steps", "float32", "bytes"]
    for kind, about in KINDS.items():
        cache = model.new_cache(**options(kind, **({"window": 4} if about.windowed else {})))
        model([[1, 2, 3]], cache=cache)
        of = [type(cache).__name__, "3 of 8 positions", f"{cache.nbytes:,} of", "[(2, 4)]"]
        found[kind] = cache, of
    return found


SHOWN = shown()


class Rows(HTMLParser):
    """The rows of a table, each a list of its cells."""

    def __init__(self, text):
        super().__init__()
        self.rows = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows:
            self.rows[-1].append(data)


@pytest.mark.parametrize("name", SHOWN)
def test_objects_say_what_they_are(name):
    thing, words = SHOWN[name]
    assert " object at 0x" not in repr(thing)
    assert "\n" not in repr(thing)
    for word in words:
        assert word in repr(thing)
    header, *rows = Rows(thing._repr_html_()).rows
    assert header == ["array", "shape", "dtype", "bytes"]
    assert all(len(row) == 4 and int(row[3].replace(",", "")) > 0 for row in rows)
    if hasattr(thing, "named_parameters"):
        assert [row[0] for row in rows] == [name for name, _ in thing.named_parameters()]
    if hasattr(thing, "capacity_nbytes") and name != "branches":
        assert sum(int(row[3].replace(",", "")) for row in rows) == thing.capacity_nbytes


def test_a_name_is_no_markup():
    with mq.trace() as found:
        from minqkv.runtime.tracing import probe

        probe("<b>", np.zeros(1))
    assert "<b>" not in found._repr_html_()


def test_counted():
    assert [counted(n, "run") for n in (0, 1, 2, 1024)] == [
        "0 runs",
        "1 run",
        "2 runs",
        "1,024 runs",
    ]


def test_the_names_of_a_trace():
    found = traced()
    assert found.keys() == list(found)
    assert found.keys()[0] == "blocks.0.attn.q"
    assert dict(found)["blocks.1.attn.z"] is found["blocks.1.attn.z"]
    for wrong, near in (("q", "blocks.0.attn.q or blocks.1.attn.q"),
                        ("blocks.0.attn.patern", "blocks.0.attn.pattern"),
                        ("blocks.0.attn.k.grad", "blocks.0.attn.k"),
                        ("attn.z", "blocks.0.attn.z"), (3, "known: blocks.0.attn.q")):  # fmt: skip
        with pytest.raises(KeyError, match=near):
            found[wrong]


# ---- models in files


MODELS = {
    "gpt": gpt(variant="qkv/q-k=v", position="rope", dtype="float64", d_ff=0),
    "tagger": mq.Tagger(mq.TaggerConfig(11, 8, 1, 2, 8, "q=k-v+")),
    "vit": ViT(ViTConfig(3, 4, 2, 1, 2, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_saved_and_loaded(name, tmp_path):
    model = MODELS[name]
    mq.save(model, tmp_path / "a model.npz")
    again, config = mq.load_run(str(tmp_path / "a model.npz"))
    assert (type(again), config) == (type(model), model.config)
    assert not again.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)
        assert again.state_dict()[name].dtype == array.dtype


def test_what_cannot_be_saved_or_loaded(tmp_path):
    class Mine(mq.GPT):
        pass

    with pytest.raises(UsageError, match="a Mine cannot be saved"):
        mq.save(Mine(gpt().config), tmp_path / "x")
    assert not list(tmp_path.iterdir())
    path = tmp_path / "m.npz"
    mq.save(gpt(), path)
    whole = path.read_bytes()
    for broken in (
        whole[:-40],
        b"",
        pickle.dumps(gpt()),
        whole.replace(b'"n_embd": 8', b'"n_embd": 9'),
    ):
        path.write_bytes(broken)
        with pytest.raises(EnvironmentFault, match=r"m\.npz"):
            mq.load_run(path)
    from minqkv.runtime.files import write_arrays

    for meta in ({}, {"class": "GPT"}, {"class": "os", "config": {}}, {"class": "GPT", "config": 3},
                 {"class": "GPT", "config": {"x": 1}}):  # fmt: skip
        write_arrays(path, "minqkv model", meta, {})
        with pytest.raises(EnvironmentFault, match="damaged"):
            mq.load_run(path)
