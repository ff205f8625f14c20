"""A model in a file: `save`, and `load` for what it has written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..nn import Module
from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.files import read_arrays, write_arrays
from ..variants import params
from .gpt import GPT, GPTConfig
from .tagger import Tagger, TaggerConfig
from .vit import ViT, ViTConfig

KIND = "minqkv model"
CLASSES = {"GPT": (GPT, GPTConfig), "Tagger": (Tagger, TaggerConfig), "ViT": (ViT, ViTConfig)}


def save(model: Module, path: str | Path) -> None:
    """Write the configuration and the weights of a model to a file, which is either complete or
    absent; `load_run(path)` reads it. Raises UsageError for a model of a class of your own.
    """
    name = type(model).__name__
    if CLASSES.get(name, (None,))[0] is not type(model):
        why = f"a {name} cannot be saved, only one of {', '.join(CLASSES)}"
        raise UsageError(why, "np.savez(path, **model.state_dict()) keeps its weights")
    if name == "GPT" and model.n_params != params(model.config):
        why = "parts of this model were replaced, so its configuration does not describe it"
        raise UsageError(why, "save the model that it was made of")
    meta = {"class": name, "config": asdict(model.config)}
    write_arrays(path, KIND, meta, model.state_dict())


def load(path: str | Path) -> tuple[Module, object]:
    """The model in a file, and its configuration. Raises EnvironmentFault if it is damaged."""
    meta, arrays = read_arrays(path, KIND)
    try:
        model_class, config_class = CLASSES[meta["class"]]
        config = config_class(**meta["config"])
        model = model_class(config)
        model.load_state_dict(arrays)
    except (UsageError, LookupError, TypeError) as error:
        why = f"{path} is damaged, or from another version of minqkv: {error}"
        raise EnvironmentFault(why, "restore it from a copy") from error
    return model.eval(), config
