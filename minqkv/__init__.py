"""minqkv: attention with shared query, key and value projections, to be read end to end.

    import minqkv as mq
    config = mq.GPTConfig(vocab_size=96, block_size=64, n_layer=2, n_head=4, n_embd=64,
                          variant="q-k=v")
    model = mq.GPT(config)

The names below are loaded when they are first used, so `minqkv --help` imports no NumPy.
"""

from importlib import import_module

from .runtime.version import __version__

TYPE_CHECKING = False  # a name that type checkers take for true; `typing` loads slowly
if TYPE_CHECKING:
    from . import functional, nn
    from .attention import Attention
    from .cache import KVCache
    from .checking import gradcheck
    from .designs.checkpoints import load_layer
    from .designs.layers import shipped_layer
    from .generation import generate
    from .models.gpt import GPT, GPTConfig
    from .models.saved import save
    from .models.tagger import Tagger, TaggerConfig
    from .models.vit import ViT, ViTConfig
    from .optim import AdamW
    from .runs import load_run
    from .runtime import backend
    from .runtime.backend import set_backend, tame_allocator, use_backend
    from .runtime.parallel import set_threads
    from .runtime.tracing import trace
    from .tasks.base import Task
    from .tensor import Tensor, no_grad
    from .train import train_step
    from .variants import VariantSpec

_HOME = {  # public name -> the module it is in
    "Tensor": "tensor",
    "no_grad": "tensor",
    "gradcheck": "checking",
    "trace": "runtime.tracing",
    "set_backend": "runtime.backend",
    "use_backend": "runtime.backend",
    "tame_allocator": "runtime.backend",
    "set_threads": "runtime.parallel",
    "VariantSpec": "variants",
    "Attention": "attention",
    "KVCache": "cache",
    "GPT": "models.gpt",
    "GPTConfig": "models.gpt",
    "Tagger": "models.tagger",
    "TaggerConfig": "models.tagger",
    "ViT": "models.vit",
    "ViTConfig": "models.vit",
    "AdamW": "optim",
    "train_step": "train",
    "generate": "generation",
    "Task": "tasks.base",
    "load_run": "runs",
    "load_layer": "designs.checkpoints",
    "shipped_layer": "designs.layers",
    "save": "models.saved",
}
_MODULES = {"functional": "functional", "nn": "nn", "backend": "runtime.backend"}
__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _MODULES:
        return import_module(f"minqkv.{_MODULES[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'minqkv' has no attribute {name!r}")
    value = getattr(import_module(f"minqkv.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
