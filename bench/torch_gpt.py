"""The same GPT in eager PyTorch, as its users write it: modules, scaled_dot_product_attention, a tied head, a fused AdamW."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc, self.proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x, cache=None):
        B, T, d = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(self.ln_1(x)).split(d, dim=-1))
        if cache is not None:
            k, v = cache.append(k, v)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, d))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """ids (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab, block_size, d, layers, heads):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(block_size, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d)

    def forward(self, ids, caches=None, start=0):
        x = self.wte(ids) + self.wpe(torch.arange(start, start + ids.shape[1]))
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None)
        return F.linear(self.ln_f(x), self.wte.weight)

    def load(self, model):
        """Take the weights of a minqkv GPT of variant qkv."""
        state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
        pairs = {"ln_1": "ln_1", "ln_2": "ln_2", "out": "attn.wo", "fc": "mlp.fc", "proj": "mlp.proj"}
        with torch.no_grad():
            self.wte.weight.copy_(state["wte.weight"])
            self.wpe.weight.copy_(state["wpe.weight"])
            for i, block in enumerate(self.blocks):
                parts = [f"blocks.{i}.attn.{name}" for name in ("wq", "wk", "wv")]
                block.qkv.weight.copy_(torch.cat([state[f"{part}.weight"].T for part in parts]))
                block.qkv.bias.copy_(torch.cat([state[f"{part}.bias"] for part in parts]))
                for mine, theirs in pairs.items():
                    weight = state[f"blocks.{i}.{theirs}.weight"]
                    getattr(block, mine).weight.copy_(weight.T if weight.ndim == 2 else weight)
                    getattr(block, mine).bias.copy_(state[f"blocks.{i}.{theirs}.bias"])
            self.ln_f.weight.copy_(state["ln_f.weight"])
            self.ln_f.bias.copy_(state["ln_f.bias"])
        return self


class Cache:
    """A preallocated cache of one layer."""

    def __init__(self, batch, heads, capacity, d_head):
        self.k, self.v, self.n = torch.empty(batch, heads, capacity, d_head), torch.empty(batch, heads, capacity, d_head), 0

    def append(self, k, v):
        end = self.n + k.shape[2]
        self.k[:, :, self.n : end], self.v[:, :, self.n : end] = k, v
        self.n = end
        return self.k[:, :, :end], self.v[:, :, :end]


def adamw(model, fused):
    """AdamW with decay on matrices only."""
    groups = [{"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
              {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=1e-3, fused=fused)


def train_step(model, optimizer, ids, targets):
    """One step, as in minqkv.train_step."""
    logits = model(ids)
    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
