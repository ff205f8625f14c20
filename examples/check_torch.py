"""PyTorch's scaled_dot_product_attention, compared with the vectors: kernels without positions.

minqkv vectors export vectors
cd examples && minqkv vectors check ../vectors check_torch:attend
"""

import torch
import torch.nn.functional as F


def attend(given, about):
    """From q (B, H, T, d), k and v (B, h, S, d) to z (B, H, T, d) and three gradients."""
    if about["level"] != "kernel" or about["position"] != "none":
        return None  # not what this function computes
    leaves = {n: torch.tensor(given[n], requires_grad=True) for n in "qkv" if n in given}
    q, k = leaves["q"], leaves["k"]
    v = leaves.get("v", k)  # K = V: one array, whose two gradients add up
    query = torch.arange(q.shape[2])[:, None] + about["past"]  # the position of each query
    key = torch.arange(k.shape[2])
    mask = torch.ones(len(query), len(key), dtype=torch.bool)
    if about["causal"]:
        mask &= key <= query
    if about["window"]:  # so many keys, the query's own included, and the first few
        mask &= (key > query - about["window"]) | (key < about["sinks"])
    if "segments" in given:  # texts in a row do not see each other; -1 is padding
        text = torch.tensor(given["segments"])
        same = (text[:, :, None] == text[:, None]) & (text >= 0)[:, :, None]
        mask = mask & same[:, None]
    z = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=about["scale"], enable_gqa=k.shape[1] < q.shape[1]
    )
    blind = ~mask.any(-1, keepdim=True)  # a query that sees nothing gets zeros
    z = z.masked_fill(blind, 0)
    z.backward(torch.tensor(given["grad.z"]))
    return {"z": z} | {f"grad.{n}": leaf.grad for n, leaf in leaves.items()}
