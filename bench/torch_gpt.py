"""The same GPT in eager PyTorch, every variant, as fast as we know to write it: functions over
packed weights.

No nn.Module: its calls cost a decoded token another 15–45 %. One product for the projections that
read the same input, a tied head, attention by scaled_dot_product_attention ("sdpa") or written out
("written").
"""

import math
from functools import partial

import torch
from torch.nn import functional as F

from minqkv import VariantSpec

from .caches import contents, new_ids


class GPT:
    """ids (B, T) -> logits (B, T, V), with the weights of a minqkv GPT (learned positions).

    If that model has dropout, it is always on.
    """

    def __init__(self, model, attention="sdpa", device="cpu"):
        cfg = model.config
        self.spec, self.attention = VariantSpec.parse(cfg.variant), attention
        self.heads, self.device, self.dropout = cfg.n_head, device, cfg.dropout
        self.kv_heads, self.d_head = self.spec.stored_heads(cfg.n_head), cfg.n_embd // cfg.n_head
        state = {
            name: torch.from_numpy(array).to(device) for name, array in model.state_dict().items()
        }
        state |= {
            name: array.T
            for name, array in state.items()
            if array.ndim == 2 and not name.startswith("w")
        }  # (out, in)
        self.parameters = []
        self.wte, self.wpe = self.own(state["wte.weight"]), self.own(state["wpe.weight"])
        self.blocks = [self.block(state, f"blocks.{i}.") for i in range(cfg.n_layer)]
        self.ln_f = self.own(state["ln_f.weight"]), self.own(state["ln_f.bias"])
        self.blocked = torch.empty(0, 0)
        self.columns = None
        if self.spec.plus:
            columns = model.blocks[0].attn.plus.columns.numpy().copy()
            self.columns = torch.from_numpy(columns).to(device)

    def own(self, array):
        """A parameter."""
        self.parameters.append(array.clone(memory_format=torch.contiguous_format).requires_grad_())
        return self.parameters[-1]

    def block(self, state, prefix):
        """(weight, bias) of each part."""
        names = [
            f"{prefix}attn.{w}" for w in ("wq", "wk", "wv") if f"{prefix}attn.{w}.weight" in state
        ]
        packed = (
            torch.cat([state[f"{name}.weight"] for name in names]),
            torch.cat([state[f"{name}.bias"] for name in names]),
        )
        parts = {"in": tuple(map(self.own, packed))}
        for name in ("ln_1", "attn.wo", "ln_2", "mlp.fc", "mlp.proj"):
            parts[name] = (
                self.own(state[f"{prefix}{name}.weight"]),
                self.own(state[f"{prefix}{name}.bias"]),
            )
        if self.spec.plus:
            parts["plus"] = self.own(state[f"{prefix}attn.plus.weight"])
        return parts

    def __call__(self, ids, cache=None):
        start = 0 if cache is None else len(cache)
        x = F.embedding(ids, self.wte) + self.wpe[start : start + ids.shape[1]]
        for layer, p in enumerate(self.blocks):
            mixed = self.attend(F.layer_norm(x, x.shape[-1:], *p["ln_1"]), p, cache, layer)
            x = x + self.drop(mixed)
            hidden = F.gelu(
                F.linear(F.layer_norm(x, x.shape[-1:], *p["ln_2"]), *p["mlp.fc"]),
                approximate="tanh",
            )
            x = x + self.drop(F.linear(hidden, *p["mlp.proj"]))
        return F.linear(F.layer_norm(x, x.shape[-1:], *self.ln_f), self.wte)

    def drop(self, x):
        """Dropout of what a sublayer adds."""
        return F.dropout(x, self.dropout) if self.dropout else x

    def attend(self, x, p, cache, layer):
        """The attention sublayer of one block: (B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        stored = self.kv_heads * self.d_head
        parts = F.linear(x, *p["in"]).split(
            [C] * self.spec.own_query + [stored] * self.spec.streams, dim=-1
        )
        parts = [
            part.view(B, T, -1, self.d_head).transpose(1, 2) for part in parts
        ]  # (B, heads, T, d_h)
        q, k, v = parts[0], parts[int(self.spec.own_query)], parts[-1]
        if cache is not None:
            k, v = cache.append(layer, k, v)
        bias = None
        if self.spec.plus:
            q = q * p["plus"].sum()
            bias = self.columns[: k.shape[2]] @ p["plus"][-self.columns.shape[1] :]  # (S,)
        z = (self.fused if self.attention == "sdpa" else self.written)(q, k, v, bias)
        return F.linear(z.transpose(1, 2).reshape(B, T, C), *p["attn.wo"])

    def fused(self, q, k, v, bias):
        """By PyTorch's own function."""
        T, S = q.shape[2], k.shape[2]
        mask = None if bias is None else bias.expand(T, S) if T == 1 else bias + self.causal(T)
        causal = T > 1 and mask is None
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, enable_gqa=self.kv_heads < self.heads
        )

    def written(self, q, k, v, bias):
        """By two products and a softmax; queries that share a stored head are more rows of one
        product.
        """
        B, H, T, _ = q.shape
        folded, S = (B, self.kv_heads, H // self.kv_heads * T, -1), k.shape[2]
        scores = ((q * self.d_head**-0.5).reshape(folded) @ k.transpose(-1, -2)).view(B, H, T, S)
        scores = scores if bias is None else scores + bias
        scores = scores if T == 1 else scores + self.causal(T)
        return (scores.softmax(-1).view(folded) @ v).view(q.shape)

    def causal(self, T):
        """(T, T), added to the scores of a whole sequence; made once."""
        if len(self.blocked) != T:
            self.blocked = torch.full((T, T), -math.inf, device=self.device).triu(1)
        return self.blocked


class Cache:
    """Preallocated; with K = V one buffer. `len` positions are filled in every layer."""

    def __init__(self, model, batch, capacity):
        shape = batch, model.kv_heads, capacity, model.d_head
        self.device, self.filled = model.device, 0
        self.keys = [torch.empty(shape, device=self.device) for _ in model.blocks]
        self.values = self.keys
        if model.spec.streams == 2:
            self.values = [torch.empty(shape, device=self.device) for _ in model.blocks]

    def __len__(self):
        return self.filled

    def append(self, layer, k, v):
        """Store new positions (B, h, T, d_h); return all so far."""
        end = self.filled + k.shape[2]
        for buffers, new in ((self.keys, k), (self.values, v))[
            : 1 if self.values is self.keys else 2
        ]:
            buffers[layer][:, :, self.filled : end] = new
        if layer == len(self.keys) - 1:
            self.filled = end
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def fill(self, contents):
        """Put the same NumPy blocks of (keys, values) into every layer."""
        for block in contents:
            keys, values = (torch.from_numpy(array).to(self.device) for array in block)
            for layer in range(len(self.keys)):
                self.append(layer, keys, values)
        return self


def adamw(model, fused, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01):
    """AdamW with decay on matrices only; `fused` False is PyTorch's default on a CPU."""
    matrices = [p for p in model.parameters if p.ndim >= 2]
    others = [p for p in model.parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr, betas, fused=fused or None)


ATTENTIONS = ("sdpa", "written")
CONFIGURATIONS = {
    f"torch {attention}, {'fused' if fused else 'default'} AdamW": (attention, fused)
    for attention in ATTENTIONS
    for fused in (True, False)
}


def all_training(source, ids, targets, device="cpu", **optimizer):
    """{configuration: a function that does one training step of a copy of a minqkv GPT}.

    `optimizer`: the settings of `adamw`.
    """
    return {
        name: training(GPT(source, attention, device), fused, ids, targets, **optimizer)
        for name, (attention, fused) in CONFIGURATIONS.items()
    }


def all_decoding(source, size, device="cpu"):
    """{"torch sdpa", "torch written": a function that decodes one token onto one filled cache}."""
    models = {f"torch {attention}": GPT(source, attention, device) for attention in ATTENTIONS}
    cache = Cache(models["torch sdpa"], size.B, size.T).fill(contents(source, size))
    return {name: decoding(model, cache, new_ids(size)) for name, model in models.items()}


def all_stretches(source, size, tokens):
    """The same for the last tokens of a sequence; only the last logits are returned."""
    models = {f"torch {attention}": GPT(source, attention) for attention in ATTENTIONS}
    before = contents(source, size._replace(T=size.T - tokens + 1))
    cache = Cache(models["torch sdpa"], size.B, size.T).fill(before)
    ids, filled = torch.from_numpy(new_ids(size)), len(cache)

    def decode(model):
        cache.filled = filled
        with torch.inference_mode():
            for _ in range(tokens):
                logits = model(ids, cache)[:, -1]
                logits.argmax(-1)
        return logits

    return {name: partial(decode, model) for name, model in models.items()}


def training(model, fused, ids, targets, **settings):
    """A function without arguments that does one training step, as in minqkv.train_step, and
    returns the loss. `settings`: of `adamw`.
    """
    optimizer = adamw(model, fused, **settings)
    ids, targets = (torch.from_numpy(array).to(model.device) for array in (ids, targets))

    def step():
        logits = model(ids)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters, 1.0)
        optimizer.step()
        return loss.item()

    return step


def decoding(model, cache, ids):
    """A function without arguments that decodes one token (B, 1) onto a filled cache and forgets it
    again: ids (B,), logits.
    """
    ids, filled = torch.from_numpy(ids).to(model.device), len(cache)

    def step():
        with torch.inference_mode():
            logits = model(ids, cache)[:, -1]
            cache.filled = filled
            return logits.argmax(-1), logits

    return step
