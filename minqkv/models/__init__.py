"""One model per file, all built from the same Block."""

from .block import PROTOCOLS, Block, Positions, Style
from .gpt import GPT, PRESETS, GPTConfig
from .tagger import Tagger, TaggerConfig
from .vit import ViT, ViTConfig, patchify, unpatchify

MODELS = {GPTConfig: GPT, TaggerConfig: Tagger, ViTConfig: ViT}  # by their configurations

__all__ = [
    "GPT", "MODELS", "PRESETS", "PROTOCOLS", "Block", "GPTConfig", "Positions", "Style", "Tagger",
    "TaggerConfig", "ViT", "ViTConfig", "patchify", "unpatchify",
]  # fmt: skip
