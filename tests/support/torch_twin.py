"""The models again in PyTorch, written from the paper's formulas and not from this package:
functions of a state dict.

`p` maps the package's state names to tensors; linear weights are (in, out). "+" is the literal 1×1
convolution over scores and fixed channels, rotary positions are complex numbers, and heads are
repeated for groups.
"""

import math

import torch
import torch.nn.functional as tF


def sinusoids(n, channels, width=None):
    """(n, channels): sin, cos, sin, cos ... of position / 10000^(2k / width)."""
    table = torch.zeros(n, channels, dtype=torch.float64)
    for c in range(channels):
        angle = torch.arange(n, dtype=torch.float64) / 10000 ** (2 * (c // 2) / (width or channels))
        table[:, c] = angle.cos() if c % 2 else angle.sin()
    return table


def turn(x, back=False):
    """Rotary positions on (B, h, T, d): pair (i, i + d/2) as a complex number, times
    e^(±i·position·frequency).
    """
    d, T = x.shape[-1], x.shape[-2]
    frequency = 10000 ** (-2 * torch.arange(d // 2, dtype=torch.float64) / d)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * frequency
    z = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(
        torch.ones_like(angle), -angle if back else angle
    )
    return torch.cat([z.real, z.imag], dim=-1)


def linear(p, name, x):
    y = x @ p[f"{name}.weight"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def norm(p, name, x):
    return tF.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def attention(p, name, x, variant, n_head, seen, rope=None, channels=(5, 5, 5)):
    """`seen` (T, T) booleans; `rope` None, "raw" or "unrotate", or a scheme of distances;
    `channels` (row, column, width) of "+".
    """
    B, T, _ = x.shape
    d_v = len(p[f"{name}.wo.weight"]) // n_head
    d = int(variant.removeprefix("thin-")) if variant.startswith("thin") else d_v
    split = lambda y, width=d: y.reshape(B, T, -1, width).transpose(1, 2)  # noqa: E731
    k = split(linear(p, f"{name}.wk", x))
    q = k if variant.startswith("q=k") else split(linear(p, f"{name}.wq", x))
    one_stream = "k=v" in variant or variant.startswith(("q-mqa", "q-gqa"))
    v = k if one_stream else split(linear(p, f"{name}.wv", x), d_v)
    if rope in ("raw", "unrotate"):
        q, k = turn(q), turn(k)
        v = k if one_stream and rope == "unrotate" else v
    k, v = (y.repeat_interleave(n_head // y.shape[1], dim=1) for y in (k, v))
    if f"{name}.plus.weight" in p:
        w, (rows, columns, width) = p[f"{name}.plus.weight"], channels
        i = sinusoids(T, rows, width)[:, None, :].expand(T, T, rows)
        j = sinusoids(T, columns, width)[None, :, :].expand(T, T, columns)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(d))[..., None] + torch.cat(
            [i, j], dim=-1
        )  # (B, H, T, T, m)
        scores = (scores * w).sum(-1).masked_fill(~seen, -math.inf)
        z = (scores + by_distance(p, name, rope, n_head, seen)).softmax(-1) @ v
    else:
        added = by_distance(p, name, rope, n_head, seen)  # (H, T, T)
        z = tF.scaled_dot_product_attention(q, k, v, added.masked_fill(~seen, -math.inf))
    if rope == "unrotate" and one_stream:
        z = turn(z, back=True)
    return linear(p, f"{name}.wo", z.transpose(1, 2).reshape(B, T, -1))


def by_distance(p, name, scheme, n_head, seen):
    """What the scores of each head get by distance, (H, T, T), written element by element."""
    T, added = len(seen), []
    weight = p.get(f"{name}.distance.weight")
    for head in range(n_head):
        for i in range(T):
            for j in range(T):
                if scheme == "alibi":
                    added.append(torch.tensor(-abs(i - j) * 2 ** (-8 * (head + 1) / n_head)))
                elif "relative" in str(
                    scheme
                ):  # signed, where later keys are seen, and 0 in the middle
                    at = i - j + len(weight) // 2 if seen.triu(1).any() else max(i - j, 0)
                    added.append(weight[at, head])
                else:
                    added.append(torch.tensor(0.0))
    return torch.stack(added).double().reshape(n_head, T, T)


def mlp(p, name, x, activation):
    return linear(p, f"{name}.proj", activation(linear(p, f"{name}.fc", x)))


def gelu(x):
    return tF.gelu(x, approximate="tanh")


def layers(p):
    return len({name.split(".")[1] for name in p if name.startswith("blocks.")})


def gpt(p, ids, variant, n_head, position="learned", rope_value="raw", window=99, sinks=0):
    """Logits (B, T, V) of a pre-norm decoder with a tied head. `variant` names one for each layer,
    or for all; ids of several channels are embedded one by one and added.
    """
    T = ids.shape[1]
    x = p["wte.weight"][ids]
    x = x.sum(2) if ids.ndim == 3 else x
    names = variant.split("/")
    if "learned" in position:
        x = x + p["wpe.weight"][:T]
    elif position == "sinusoidal":
        x = x + sinusoids(T, x.shape[-1])
    ago = torch.arange(T)[:, None] - torch.arange(T)  # how far a key lies behind its query
    seen = (ago >= 0) & ((ago < window) | (torch.arange(T) < sinks))
    rope = rope_value if position == "rope" else position
    for i in range(layers(p)):
        name = f"blocks.{i}"
        x = x + attention(
            p, f"{name}.attn", norm(p, f"{name}.ln_1", x), names[i % len(names)], n_head, seen, rope
        )
        if f"{name}.mlp.fc.weight" in p:
            x = x + mlp(p, f"{name}.mlp", norm(p, f"{name}.ln_2", x), gelu)
    return norm(p, "ln_f", x) @ p["wte.weight"].T


def tagger(p, ids, variant, n_head, protocol="2026", hide_self=False):
    """Logits (B, T, n_class) of an encoder on one-hot inputs; 2023 without its dropout."""
    T = ids.shape[1]
    x = linear(p, "embed", tF.one_hot(ids, len(p["embed.weight"])).double())
    seen = ~torch.eye(T, dtype=torch.bool) if hide_self else torch.ones(T, T, dtype=torch.bool)
    if protocol == "2026":
        x = x + p["wpe.weight"][:T]
        for i in range(layers(p)):
            name = f"blocks.{i}"
            x = x + attention(p, f"{name}.attn", norm(p, f"{name}.ln_1", x), variant, n_head, seen)
            x = x + mlp(p, f"{name}.mlp", norm(p, f"{name}.ln_2", x), gelu)
        return linear(p, "head", norm(p, "ln_f", x))
    x = x + sinusoids(T, x.shape[-1])
    for i in range(layers(p)):
        name = f"blocks.{i}"
        x = norm(
            p,
            f"{name}.ln_1",
            x + attention(p, f"{name}.attn", x, variant, n_head, seen, channels=(6, 4, 6)),
        )
        x = norm(p, f"{name}.ln_2", x + mlp(p, f"{name}.mlp", x, torch.relu))
    return linear(p, "head", norm(p, "ln_f", linear(p, "fc", x)).relu())


def vit(p, x, variant, n_head, pool, position="learned", rope_value="raw"):
    """Logits for vectors (B, N, n_in): (B, n_class), or with pool "each" for each token; with pool
    "choice" one for each token, (B, N).
    """
    x = linear(p, "embed", x)
    if pool == "class":
        x = torch.cat([p["cls"].expand(len(x), 1, -1), x], dim=1)
    T = x.shape[1]
    if "learned" in position:
        x = x + p["wpe.weight"][:T]
    elif position == "sinusoidal":
        x = x + sinusoids(T, x.shape[-1])
    seen, rope = torch.ones(T, T, dtype=torch.bool), rope_value if position == "rope" else position
    for i in range(layers(p)):
        name, h = f"blocks.{i}", norm(p, f"blocks.{i}.ln_1", x)
        x = x + attention(p, f"{name}.attn", h, variant, n_head, seen, rope)
        x = x + mlp(p, f"{name}.mlp", norm(p, f"{name}.ln_2", x), gelu)
    x = {"class": x[:, 0], "mean": x.mean(1)}.get(pool, x)
    logits = linear(p, "head", norm(p, "ln_f", x))
    return logits[..., 0] if pool == "choice" else logits


def loss(logits, targets):
    """Mean cross-entropy over the targets that are not -100."""
    return tF.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def parameters(state):
    """The leaves for a state dict of NumPy arrays."""
    return {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in state.items()
    }


def train(p, forward, batches, make_optimizer, clip):
    """The losses of one optimiser step per (x, y), gradients clipped."""
    optimizer, losses = make_optimizer(list(p.values())), []
    for x, y in batches:
        optimizer.zero_grad()
        value = loss(forward(p, torch.tensor(x)), torch.tensor(y))
        value.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), clip)
        optimizer.step()
        losses.append(value.item())
    return losses


def adamw(ps, lr, decay):
    """torch.optim.AdamW that decays matrices only."""
    groups = [{"params": [p for p in ps if p.ndim >= 2], "weight_decay": decay},
              {"params": [p for p in ps if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=lr)
