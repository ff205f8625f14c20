"""The named grids. A preset is a list of blocks, and each block is a grid."""

from ..tasks.rules import RULES
from ..variants import NAMES, variant_names
from .published import synthetic_2026

_authors = synthetic_2026()  # what the authors ran: (variant, task, and the size)
PROJECTIONS = tuple(name for name in NAMES if any(name == key[0] for key in _authors))
_TASKS = tuple(name for name in RULES if any(name == key[1] for key in _authors))
TEN = tuple(name for name in variant_names(2, among=NAMES) if not name.startswith("thin"))
_ONE_SIZE = {"seq_len": (16,), "n_embd": (64,), "n_layer": (2,), "n_head": (4,)}
_PAPER = {
    "tasks": _TASKS, "variants": PROJECTIONS, "seeds": (0, 1, 2), "seq_len": (16, 64, 128),
    "n_embd": (32, 64, 256), "n_layer": (2, 4), "n_head": (2, 4),
}  # fmt: skip
_RATES = (1e-3, 3e-3, 6e-3)
_PAIRS = {"tasks": ("pairs",), "equal_bytes": (8, 16, 24), "lr": _RATES, "seeds": tuple(range(10))}
_MQAR = {"tasks": ("mqar",), "lr": _RATES, "selection_seeds": 2, "seeds": tuple(range(8))}
_THREE = (32, 48, 64)
RECALL_FULL = [  # docs/recall-plan.md
    {**_PAIRS, "variants": ("qkv", "q-k=v"), "n_head": (1,), "equal_bytes": (8, 16, 24, 32)},
    {**_PAIRS, "variants": ("mqa", "q-mqa"), "n_head": (4,), "equal_bytes": (8, 16, 24, 32)},
    {**_PAIRS, "variants": ("q=k-v", "thin-1", "thin-2"), "n_head": (1,)},
    {**_PAIRS, "variants": ("qkv", "q-k=v"), "n_head": (2,)},
    {**_PAIRS, "variants": ("gqa-2", "q-gqa-2"), "n_head": (4,)},
    {**_MQAR, "variants": ("qkv", "q-k=v"), "equal_bytes": _THREE},
    {**_MQAR, "variants": ("q-k=v",), "rope_value": ("unrotate",), "equal_bytes": _THREE},
    {**_MQAR, "variants": ("qkv/q-k=v", "q-k=v/qkv"), "equal_bytes": (48,)},
    {**_MQAR, "variants": ("qkv", "q-k=v"), "position": ("learned",), "equal_bytes": (48, 64)},
]
_SIX = {"seeds": tuple(range(6)), "selection_seeds": 2}
RECALL = [
    {**_PAIRS, **_SIX, "variants": ("qkv", "q-k=v"), "n_head": (1,)},
    {**_PAIRS, **_SIX, "variants": ("mqa", "q-mqa"), "n_head": (4,)},
    {"tasks": ("mqar",), "seeds": (0, 1, 2, 3), "equal_bytes": (48,),
     "variants": ("qkv", "q-k=v", "qkv/q-k=v", "q-k=v/qkv")},
]  # fmt: skip
QUICK = [  # chosen on seeds from 100 up; its results: bench/results/study-default
    {"tasks": ("mqar",), "equal_bytes": (48,), "seeds": (0, 1, 2, 3), "steps": (1000,),
     "lr": (6e-3,), "variants": ("qkv", "q-k=v", "qkv/q-k=v", "q-k=v/qkv")},
    {"tasks": ("sort",), "variants": ("qkv", "q-k=v", "q=k=v"), "seeds": (0, 1, 2), **_ONE_SIZE},
]  # fmt: skip
_NANO = {"tasks": ("text",), "text": ("shakespeare",), "seeds": tuple(range(8)),
         "lr": (2e-3, 4e-3, 8e-3), "one_rate": True, "selection_seeds": 1}  # fmt: skip
NANO = [  # docs/language-models-plan.md
    {**_NANO, "variants": ("qkv", "q-k=v", "q=k-v", "q=k=v", "mqa", "q-mqa", "gqa-2")},
    {**_NANO, "variants": ("qkv",), "head_dim": (16,)},  # the bytes of q-k=v
]
_SHARED = ("qkv", "q=k-v", "q=k=v")
_RULED = {"tasks": ("reverse", "sort"), **_ONE_SIZE}
_BOUND = {"tasks": ("mqar",), "head_dim": (16,)}
_RATED = {"lr": _RATES, "selection_seeds": 2, "seeds": tuple(range(8))}
POSITIONS = [  # docs/positions-plan.md
    {**_RULED, **_RATED, "variants": (*_SHARED, "q=k-v+", "q=k=v+")},
    {**_RULED, **_RATED, "variants": _SHARED,
     "position": ("learned+relative", "relative", "alibi", "rope")},
    {**_BOUND, **_RATED, "variants": (*_SHARED, "q=k-v+", "q=k=v+"), "position": ("rope",)},
    {**_BOUND, **_RATED, "variants": _SHARED, "position": ("relative", "alibi")},
]  # fmt: skip
_DESIGNS = {**_MQAR, "equal_bytes": (48, 64)}
DESIGNS = [  # docs/designs-plan.md
    {**_DESIGNS, "variants": ("qkv", "q-k=v", "thin-4"), "n_head": (1,)},
    {**_DESIGNS, "variants": ("mqa", "q-mqa", "gqa-1-thin-4"), "n_head": (4,)},
    {**_DESIGNS, "variants": ("q-mqa",), "n_head": (4,), "rope_value": ("unrotate",)},
    {**_DESIGNS, "variants": ("gta-1", "gla-1", "mla"), "n_head": (4,), "d_rope": (4,)},
    {**_MQAR, "variants": ("qkv", "q-k=v", "gqa-2"), "n_head": (4,), "equal_bytes": (256,)},
    {**_MQAR, "variants": ("qkv",), "n_head": (4,), "equal_bytes": (512,)},
]
_SEEN = {"tasks": ("images",), "variants": PROJECTIONS, "seeds": tuple(range(5))}
MNIST = [{**_SEEN, "data": ("mnist",), "patch": (7,), "steps": (5000,), "n_validation": (500,)}]
CIFAR10 = [{**_SEEN, "data": ("cifar10",), "patch": (4,), "steps": (1600,)}]
SETS = [{"tasks": ("sets",), "variants": PROJECTIONS, "seeds": tuple(range(5))}]
DENSE = [{"tasks": ("segment",), "variants": PROJECTIONS, "seeds": tuple(range(5))}]
QUICK_2026 = [{"tasks": ("reverse", "sort"), "variants": TEN, "seeds": (0, 1, 2), **_ONE_SIZE}]
PRESETS = {
    "quick": QUICK,
    "recall": RECALL,
    "recall-full": RECALL_FULL,
    "nano": NANO,
    "positions": POSITIONS,
    "designs": DESIGNS,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "sets": SETS,
    "dense": DENSE,
    "quick-2026": QUICK_2026,
    "paper": [_PAPER],
}
