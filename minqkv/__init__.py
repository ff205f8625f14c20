"""minqkv: attention with shared query, key and value projections, to be read end to end.

    import minqkv as mq
    model = mq.GPT(mq.GPTConfig(vocab_size=96, block_size=64, n_layer=2, n_head=4, n_embd=64, variant="q-k=v"))

The names below are loaded when they are first used, so `minqkv --help` imports no NumPy.
"""

from importlib import import_module

from .version import __version__

# No module is called like a name below (`tracing` has `trace`, `decoding` has `generate`): importing it would hide the name.
_HOME = {
    "Tensor": "ops",  # which gives it its operators
    "no_grad": "tensor",
    "gradcheck": "checking",
    "trace": "tracing",
    "set_backend": "backend",
    "use_backend": "backend",
    "tame_allocator": "backend",
    "VariantSpec": "variants",
    "Attention": "attention",
    "KVCache": "cache",
    "GPT": "models",
    "GPTConfig": "models",
    "Tagger": "models",
    "TaggerConfig": "models",
    "AdamW": "optim",
    "generate": "decoding",
    "train_step": "train",
    "set_threads": "workers",
    "load_run": "runs",
}
_MODULES = ("functional", "nn")
__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _MODULES:
        return import_module(f"minqkv.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'minqkv' has no attribute {name!r}")
    value = getattr(import_module(f"minqkv.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
