"""A second plain attention for the vectors, written apart from `plain_attention` and summed in
another order: keys in blocks from the last to the first, softmax online, gradients by hand.

Each part is a method, so that a test can replace it by a wrong one.
"""

import numpy as np
from plain_attention import LAYERS

BLOCK = 3  # keys


class Other:
    """The function of a user: (given, about) -> arrays. `parts` replace methods, by name."""

    def __init__(self, returned=None, **parts):
        self.returned = returned  # names of the arrays that it returns; all unless given
        for name, part in parts.items():
            assert hasattr(Other, name), name
            setattr(self, name, part)

    def __call__(self, given, about):
        known = about["level"] == "kernel" or about["variant"].rstrip("-0123456789") in LAYERS
        if not known or "relative" in about["position"] or about["norm"] or about["plus"]:
            return None
        found = self.kernel(given, about) if about["level"] == "kernel" else None
        if found is None:
            found = self.layer(given, about) if about["task"] != "int8" else {}
        found = {n: a for n, a in found.items() if self.returned is None or n in self.returned}
        return found or None

    # ---- parts

    def scale(self, about):
        return about["scale"]

    def seen(self, i, j, about):
        """Which keys at positions j (1, S) a query at i (T, 1) sees."""
        seen = (j <= i) if about["causal"] else (j == j) & (i == i)
        if about["window"]:
            seen = seen & ((i - j < about["window"]) | (j < about["sinks"]))
        return seen

    def frequency(self, about):
        m = about["d_rope"] // 2
        return about["rope_base"] ** (-np.arange(m) / m)

    def pairs(self, about):
        """Indices of the first and of the second channel of each pair, among those that turn."""
        m = about["d_rope"] // 2
        if about["pairing"] == "halves":
            return np.arange(m), np.arange(m) + m
        return 2 * np.arange(m), 2 * np.arange(m) + 1

    def place(self, at, about):
        """Positions, as they are rotated."""
        return np.asarray(at)

    def turn(self, x, at, about, sign=1):
        """x (B, h, T, d), turned by positions (T,)."""
        if not about["d_rope"]:
            return x
        angle = sign * np.outer(self.place(at, about), self.frequency(about))  # (T, m)
        still = x.shape[-1] - about["d_rope"]
        a, b = (still + channel for channel in self.pairs(about))
        c, s = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
        y = x.copy()
        y[..., a], y[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
        return y

    def turn_query(self, q, at, about):
        return self.turn(q, at, about)

    def turn_key(self, k, at, about):
        return self.turn(k, at, about)

    def turn_answer(self, z, at, about):
        """Back from the position of the query, where the rows are stored turned."""
        return self.turn(z, at, about, -1) if self.stored_turned(about) else z

    def stored_turned(self, about):
        return about["one_row"] and about["rope_value"] == "unrotate" and about["d_rope"]

    def value(self, row, key, about):
        """The values of K = V."""
        return key if self.stored_turned(about) else row

    def stored_head(self, i, about):
        return i // (about["n_head"] // about["kv_heads"])

    def slope(self, about):
        H = about["n_head"]
        n = 2 ** int(np.log2(H))
        return [2.0 ** (-8 * (i + 1) / n) if i < n else 2.0 ** (-8 * (i - n + 0.5) / n)
                for i in range(H)]  # fmt: skip

    def exp(self, x):
        return np.exp(x)

    def text(self, segments):
        """Which tokens are of one text (B, T, T)."""
        return (segments[:, :, None] == segments[:, None]) & (segments >= 0)[:, :, None]

    # ---- the whole

    def attend(self, q, k, v, dz, i, j, about, segments):
        """Pattern, z, and the gradients of q, k and v, head by head."""
        dtype, scale = q.dtype, np.asarray(self.scale(about), q.dtype)
        i, j = np.asarray(i)[:, None], np.asarray(j)[None]
        seen = np.broadcast_to(self.seen(i, j, about), (len(q), i.size, j.size))
        seen = seen if segments is None else seen & self.text(segments)
        if about["task"] != "forward":  # no later key is in the cache yet
            seen = seen & (j <= i)
        z, pattern = np.zeros((*q.shape[:3], v.shape[3]), dtype), np.zeros((*q.shape[:3], j.size))
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        for b, h in np.ndindex(*q.shape[:2]):
            g = self.stored_head(h, about)
            bias = np.zeros((), dtype)
            if about["position"] == "alibi":
                bias = (-self.slope(about)[h] * abs(i - j)).astype(dtype)
            s = np.where(seen[b], q[b, h] @ k[b, g].T * scale + bias, -np.inf)  # (T, S)
            top = np.full((i.size, 1), -np.inf, dtype)
            total, mix = np.zeros_like(top), np.zeros_like(z[b, h])
            for end in range(j.size, 0, -BLOCK):
                part = slice(max(0, end - BLOCK), end)
                new = np.maximum(top, s[:, part].max(1, keepdims=True))
                safe = np.where(np.isfinite(new), new, 0)
                fade, e = self.exp(top - safe), self.exp(s[:, part] - safe)
                total = total * fade + e.sum(1, keepdims=True)
                mix, top = mix * fade + e @ v[b, g, part], new
            total = np.where(total == 0, 1, total)
            z[b, h] = mix / total
            p = self.exp(s - np.where(np.isfinite(top), top, 0)) / total
            pattern[b, h] = p
            ds = p * (dz[b, h] @ v[b, g].T - (dz[b, h] * z[b, h]).sum(1, keepdims=True))
            dq[b, h] = ds @ k[b, g] * scale
            dk[b, g] += ds.T @ q[b, h] * scale
            dv[b, g] += p.T @ dz[b, h]
        return pattern.astype(dtype), z, dq, dk, dv

    def core(self, q, k, v, dz, at, of, about, segments=None):
        """From rows as they are given: q, keys, values, pattern, z, and three gradients."""
        one_row = v is None
        turned = self.turn_query(q, at, about)
        key = self.turn_key(k, of, about)
        v = self.value(k, key, about) if one_row else v
        dz = self.turn(dz, at, about) if self.stored_turned(about) else dz
        with np.errstate(all="ignore"):
            pattern, z, dq, dk, dv = self.attend(turned, key, v, dz, at, of, about, segments)
        z = self.turn_answer(z, at, about)
        if one_row:
            dk, dv = (dk + dv, None) if self.stored_turned(about) else (dk, dv)
        dq, dk = self.turn(dq, at, about, -1), self.turn(dk, of, about, -1)
        if one_row:
            dk = dk if dv is None else dk + dv
        return {"q": turned, "k": key, "v": v, "pattern": pattern, "z": z}, (dq, dk, dv)

    def kernel(self, given, about):
        at = np.arange(given["q"].shape[2]) + about["past"]
        of = np.arange(given["k"].shape[2])
        q, k, v, dz = given["q"], given["k"], given.get("v"), given["grad.z"]
        found, grads = self.core(q, k, v, dz, at, of, about, given.get("segments"))
        grads = dict(zip(("grad.q", "grad.k", "grad.v"), grads, strict=True))
        return found | {n: a for n, a in grads.items() if n[5:] in given}

    def project(self, h, given, name, heads):
        y = h @ given[f"{name}.weight"]
        y = y + given[f"{name}.bias"] if f"{name}.bias" in given else y
        return y.reshape(*h.shape[:2], heads, -1).swapaxes(1, 2)

    def placed(self, given, about):
        h, (T, C) = given["x"], given["x"].shape[1:]
        if about["position"] == "sinusoidal":
            angle = np.arange(T)[:, None] * 10000.0 ** (-2 * (np.arange(C) // 2) / C)
            h = h + np.where(np.arange(C) % 2, np.cos(angle), np.sin(angle)).astype(h.dtype)
        return h + given["positions"] if about["position"] == "learned" else h

    def layer(self, given, about):
        """Forward with all gradients; decoding, only what comes out."""
        H, kv, T = about["n_head"], about["kv_heads"], given["x"].shape[1]
        h, at = self.placed(given, about), np.arange(T)
        k = self.project(h, given, "wk", kv)
        q = self.project(h, given, "wq", H) if about["own_query"] else k
        v = None if about["one_row"] else self.project(h, given, "wv", kv)
        dout = given["grad.out"]
        dz = (dout @ given["wo.weight"].T).reshape(*h.shape[:2], H, -1).swapaxes(1, 2)
        found, (dq, dk, dv) = self.core(q, k, v, dz, at, at, about)
        z = found["z"].swapaxes(1, 2).reshape(*h.shape[:2], -1)
        out = z @ given["wo.weight"]
        out = out + given["wo.bias"] if "wo.bias" in given else out
        if about["task"] != "forward":
            return {"out": out}
        grads = {"wo": (z, dout)}
        if about["own_query"]:
            grads["wq"] = h, dq
        else:
            dk = dk + dq
        grads |= {"wk": (h, dk)} | ({} if about["one_row"] else {"wv": (h, dv)})
        dx, of_weights = np.zeros_like(h), {}
        for name, (x, dy) in grads.items():
            dy = dy if name == "wo" else dy.swapaxes(1, 2).reshape(*h.shape[:2], -1)
            dx = dx if name == "wo" else dx + dy @ given[f"{name}.weight"].T
            weight = np.einsum("btc,btd->cd", x[:, ::-1], dy[:, ::-1])
            of_weights |= {f"grad.{name}.weight": weight}
            if f"{name}.bias" in given:
                of_weights |= {f"grad.{name}.bias": dy.sum((0, 1))}
        if about["position"] == "learned":
            of_weights["grad.positions"] = dx.sum(0)
        return found | {"out": out, "grad.x": dx} | of_weights
