"""Arrays of published attention layers, made by the models' own code: transformers 5.24.0 with
torch 2.13.0, eager attention, on the CPU. Nothing of this package is used.

    pip install transformers==5.24.0 torch==2.13.0
    python tests/support/make_authorities.py tests/data/authorities

One .npz a layer, in float64. These modules compute some steps in float32, whatever they are given;
here such casts give float64, so that only formulas are compared. A file holds the layer's tensors
under their names in a checkpoint, and x (B, T, d), g (B, T, d), the cotangent. For a causal mask,
and for one with a window of 4: the output "out", or "window.out"; the gradient of the sum of
out · g for x, and without a window for each tensor, "grad.…"; and "steps", the output token by
token through the cache.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import torch
from transformers import DynamicCache

warnings.filterwarnings("ignore")
B, T, D, WINDOW, LAYER = 2, 9, 24, 4, 1
PREFIX = f"model.layers.{LAYER}.self_attn."
SMALL = {"hidden_size": D, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 16,
         "sliding_window": 128, "attn_implementation": "eager"}  # fmt: skip
SLIDING, FULL = ["sliding_attention"] * 2, ["sliding_attention", "full_attention"]


def qwen3():
    from transformers.models.qwen3 import modeling_qwen3 as m
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

    turns = {"rope_type": "default", "rope_theta": 1e6}  # as in the published checkpoints
    cfg = Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, rope_parameters=turns)
    layer, rotary = m.Qwen3Attention(cfg, LAYER), m.Qwen3RotaryEmbedding(cfg)
    return layer, lambda x, at, mask, cache: layer(x, rotary(x, at), mask, cache)[0]


def gemma3():
    from transformers.models.gemma3 import modeling_gemma3 as m
    from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

    cfg = Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8, layer_types=FULL,
                           query_pre_attn_scalar=8)  # fmt: skip
    layer, rotary = m.Gemma3Attention(cfg, LAYER), m.Gemma3RotaryEmbedding(cfg)
    return layer, lambda x, at, mask, cache: layer(x, rotary(x, at, FULL[1]), mask, cache)[0]


def gemma4_global():
    from transformers.models.gemma4 import modeling_gemma4 as m
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    cfg = Gemma4TextConfig(**SMALL, num_key_value_heads=2, num_global_key_value_heads=2, head_dim=8,
                           global_head_dim=16, attention_k_eq_v=True, layer_types=FULL,
                           hidden_size_per_layer_input=0, num_kv_shared_layers=0)  # fmt: skip
    layer, rotary = m.Gemma4TextAttention(cfg, LAYER), m.Gemma4TextRotaryEmbedding(cfg)
    assert layer.v_proj is None
    return layer, lambda x, at, mask, cache: layer(x, rotary(x, at, FULL[1]), mask, {}, cache)[0]


def deepseek_v3(q_rank=12, **fields):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as m
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    cfg = DeepseekV3Config(**SMALL, **fields, num_key_value_heads=4, q_lora_rank=q_rank,
                           kv_lora_rank=32, qk_rope_head_dim=4, qk_nope_head_dim=8,
                           v_head_dim=8)  # fmt: skip
    layer, rotary = m.DeepseekV3Attention(cfg, LAYER), m.DeepseekV3RotaryEmbedding(cfg)

    def run(x, at, mask, cache):
        about = {"position_embeddings": rotary(x, at), "attention_mask": mask}
        return layer(x, **about, past_key_values=cache)[0]

    return layer, run


def deepseek_v2():
    return deepseek_v3(None)  # without a low rank for queries, as in DeepSeek-V2-Lite


def deepseek_v4():
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as m
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

    cfg = DeepseekV4Config(**SMALL, head_dim=16, qk_rope_head_dim=8, q_lora_rank=12, o_groups=2,
                           o_lora_rank=6, layer_types=SLIDING, mlp_layer_types=["moe"] * 2,
                           n_routed_experts=4, moe_intermediate_size=8)  # fmt: skip
    layer, rotary = m.DeepseekV4Attention(cfg, LAYER), m.DeepseekV4RotaryEmbedding(cfg)

    def run(x, at, mask, cache):
        turns = {"main": rotary(x, position_ids=at, layer_type="main")}
        return layer(x, turns, at, mask, cache=cache)[0]

    return layer, run


LAYERS = {"qwen3": qwen3, "gemma3": gemma3, "gemma4-global": gemma4_global,
          "deepseek-v3": deepseek_v3, "deepseek-v3-no-rank": deepseek_v2,
          "deepseek-v4": deepseek_v4}  # fmt: skip


def lift_casts():
    """Let casts to float32 give float64."""
    torch.Tensor.float = lambda self, *args, **kwargs: self.double()
    torch.float32 = torch.float = torch.float64
    torch.set_default_dtype(torch.float64)


def mask_of(queries, keys, window):
    """(B, 1, T, S), 0 where a key is seen, else -∞."""
    q, k = queries[:, None], keys[None, :]
    seen = (k <= q) & (k > q - window)
    return torch.where(seen, 0.0, -torch.inf)[None, None].expand(B, 1, -1, -1)


def arrays(make):
    """All arrays of one layer."""
    torch.manual_seed(0)
    layer, run = make()
    for name, p in layer.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        p.data = torch.round(torch.randn(p.shape) * 16) / 32 + centre  # few digits: small files
    layer.eval()
    x, g = torch.randn(B, T, D, requires_grad=True), torch.randn(B, T, D)
    found = {PREFIX + name: p for name, p in layer.named_parameters()} | {"x": x, "g": g}
    at, inputs = torch.arange(T), {"x": x, **dict(layer.named_parameters())}
    for start, window in (("", T), ("window.", WINDOW)):
        out = run(x, at[None].expand(B, T), mask_of(at, at, window), None)
        inputs = inputs if not start else {"x": x}
        grads = torch.autograd.grad((out * g).sum(), [*inputs.values()])
        names = [f"{start}grad.{name if name == 'x' else PREFIX + name}" for name in inputs]
        found |= {f"{start}out": out} | dict(zip(names, grads, strict=True))
        cache, steps = DynamicCache(), []
        for t in range(T):
            now = at[t : t + 1]
            mask = mask_of(now, at[: t + 1], window)
            steps.append(run(x[:, t : t + 1], now[None].expand(B, 1), mask, cache))
        found[f"{start}steps"] = torch.cat(steps, dim=1)
    return {name: tensor.detach().double().numpy() for name, tensor in found.items()}


if __name__ == "__main__":
    lift_casts()
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in LAYERS.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays(make))
