"""Attention in plain NumPy, from the facts of a vector's case alone, as a user of the vectors would
write it: function(given, about) -> arrays. It can make mistakes, chosen by name.
"""

import numpy as np

LAYERS = ("qkv", "q=k-v", "q-k=v", "q=k=v", "gqa", "mqa", "q-gqa", "q-mqa", "thin")


def rotated(x, at, about, times=1, pairing=None):
    """x (B, h, T, d), the last d_rope channels turned by positions (T,)."""
    m, pairing = about["d_rope"] // 2, pairing or about["pairing"]
    angle = times * np.outer(at, about["rope_base"] ** (-np.arange(m) / m))  # (T, m)
    still = x.shape[-1] - 2 * m
    first, second = slice(still, still + m), slice(still + m, None)
    if pairing == "interleaved":
        first, second = slice(still, None, 2), slice(still + 1, None, 2)
    y, a, b = x.copy(), x[..., first], x[..., second]
    y[..., first] = a * np.cos(angle) - b * np.sin(angle)
    y[..., second] = b * np.cos(angle) + a * np.sin(angle)
    return y.astype(x.dtype)


def softmax(x, axis=-1):
    """A row that is -∞ throughout gives zeros."""
    top = x.max(axis, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis, keepdims=True)
    return e / np.where(total == 0, 1, total)


def sum_float16(a, b):
    """a @ b, each partial sum rounded to float16."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), "float16")
    for i in range(a.shape[-1]):
        total = total + a[..., i, None].astype("float16") * b[..., i, None, :].astype("float16")
    return total.astype(a.dtype)


class Plain:
    """The function; `wrong` is the mistake to make."""

    def __init__(self, wrong=None):
        self.wrong = wrong

    def __call__(self, given, about):
        if about["level"] == "kernel":
            return self.kernel(given, about)
        known = about["variant"].rstrip("-0123456789") in LAYERS
        added = "relative" in about["position"] or about["norm"] or about["plus"]
        if not known or added or about["task"] == "int8":
            return None
        return self.decode(given, about) if about["task"] != "forward" else self.layer(given, about)

    def turned(self, x, at, about, what):
        if not about["d_rope"]:
            return x
        times = 1
        if self.wrong in ("twice", f"{what} twice"):
            times = 2
        other = {"halves": "interleaved", "interleaved": "halves"}[about["pairing"]]
        return rotated(x, at, about, times, other if self.wrong == "pairs" else None)

    def mixed(self, q, k, v, about, at, of, segments=None):
        """Queries at positions `at` against rows at positions `of`: scores, pattern, z."""
        H, h = q.shape[1], k.shape[1]
        head = np.arange(H) % h if self.wrong == "heads" else np.arange(H) // (H // h)
        k, v = k[:, head], v[:, head]
        product = sum_float16 if self.wrong == "half" else np.matmul
        scale = 1 / about["query_width"] if self.wrong == "scale" else about["scale"]
        scores = product(q, k.swapaxes(-1, -2)) * np.asarray(scale, q.dtype)
        i, j = np.asarray(at)[:, None], np.asarray(of)[None]
        if about["position"] == "alibi":
            n = 2 ** int(np.log2(H))
            rate = 2.0 ** (-8 / n * np.r_[1 : n + 1, np.arange(H - n) + 0.5])
            scores = scores - rate.astype(q.dtype)[:, None, None] * abs(i - j).astype(q.dtype)
        if self.wrong == "corner":
            i = i - i[0]
        seen = np.ones(np.broadcast_shapes(i.shape, j.shape), bool)
        if about["causal"]:
            seen = (
                j < i
                if self.wrong == "strict" or (self.wrong == "token" and len(i) == 1)
                else j <= i
            )
            if self.wrong == "ahead":
                seen = j <= i + 1
            if about["window"]:
                w = about["window"] + (self.wrong == "wider")
                seen = seen & ((j > i - w) | (j < about["sinks"]))
        if segments is not None:
            same = segments[:, :, None] == segments[:, None, :]
            seen = (seen & same & (segments >= 0)[:, :, None])[:, None]
        scores = np.where(seen, scores, -np.inf)
        axis = {"axis": -2, "head axis": 1}.get(self.wrong, -1)
        pattern = softmax(scores, axis)
        if self.wrong == "half":
            top = scores.max(-1, keepdims=True)
            e = np.exp(scores - np.where(np.isfinite(top), top, 0))
            total = sum_float16(e, np.ones((e.shape[-1], 1), e.dtype))
            return scores, pattern, product(e, v) / np.where(total == 0, 1, total)
        return scores, pattern, pattern @ v

    def kernel(self, given, about):
        """From q, k and v on."""
        k, at = given["k"], np.arange(given["q"].shape[2]) + about["past"]
        of = np.arange(k.shape[2])
        q, key = self.turned(given["q"], at, about, "q"), self.turned(k, of, about, "k")
        v = given.get("v", k)
        if (
            about["one_row"]
            and about["d_rope"]
            and (about["rope_value"] == "unrotate" or self.wrong == "value")
        ):
            v = key
        with np.errstate(all="ignore"):
            _, pattern, z = self.mixed(q, key, v, about, at, of, given.get("segments"))
        if about["rope_value"] == "unrotate" and self.wrong != "back":
            z = rotated(z, -at, about)
        found = {"q": q, "k": key, "v": v, "pattern": pattern, "z": z}
        return {"z": z} if self.wrong == "half" else found

    def project(self, given, about, h):
        def heads(name, n):
            y = h @ given[f"{name}.weight"] + given.get(f"{name}.bias", np.zeros(1, h.dtype))
            return y.reshape(*h.shape[:2], n, -1).swapaxes(1, 2)

        k = heads("wk", about["kv_heads"])
        v = k if about["one_row"] else heads("wv", about["kv_heads"])
        return heads("wq", about["n_head"]) if about["own_query"] else k, k, v

    def layer(self, given, about):
        """From x on, forward."""
        h = self.placed(given, about)
        at = np.arange(h.shape[1])
        q, k, v = self.project(given, about, h)
        key = self.turned(k, at, about, "k")
        unrotate = about["one_row"] and about["d_rope"] and about["rope_value"] == "unrotate"
        v = (
            key
            if unrotate or (self.wrong == "value" and about["one_row"] and about["d_rope"])
            else v
        )
        q = self.turned(q, at, about, "q")
        scores, pattern, z = self.mixed(q, key, v, about, at, at)
        z = rotated(z, -at, about) if unrotate and self.wrong != "back" else z
        biased = "plus" if about["position"] == "alibi" else "scores"
        found = {"q": q, "k": key, "v": v, biased: scores, "pattern": pattern, "z": z}
        return found | {"out": self.out(given, z)}

    def out(self, given, z):
        z = z.swapaxes(1, 2).reshape(len(z), z.shape[2], -1)
        return z @ given["wo.weight"] + given.get("wo.bias", np.zeros(1, z.dtype))

    def placed(self, given, about):
        h = given["x"]
        if about["position"] == "sinusoidal":
            T, C = h.shape[1:]
            angle = np.arange(T)[:, None] * 10000.0 ** (-2 * (np.arange(C) // 2) / C)
            h = h + np.where(np.arange(C) % 2 == 0, np.sin(angle), np.cos(angle)).astype(h.dtype)
        return h + given["positions"] if "learned" in about["position"] else h

    def decode(self, given, about):
        """From x on, token by token."""
        h, ring = self.placed(given, about), about["task"] == "ring"
        T, s, w = h.shape[1], about["sinks"], about["window"]
        q, k, v = self.project(given, about, h)
        slots = s + w if ring else T
        at = np.arange(T)
        turned = about["d_rope"] and not (about["one_row"] and about["rope_value"] == "raw")
        unrotate = turned and about["one_row"]
        rows = [self.turned(k, at, about, "k") if turned else k] + ([] if about["one_row"] else [v])
        cache = [np.zeros((*r.shape[:2], slots, r.shape[-1]), r.dtype) for r in rows]
        if self.wrong == "buffer" and about["one_row"]:
            cache, rows = [*cache, cache[0].copy()], [*rows, rows[0]]
        place, outs, kept = np.full(slots, -1), [], [[] for _ in cache]
        for t in range(T):
            slot = t if not ring or t < s else s + (t - s) % w
            place[slot] = t
            for c, r, all_ in zip(cache, rows, kept, strict=True):
                c[:, :, slot] = r[:, :, t]
                all_.append(c.copy())
            of = place[place >= 0]
            key, value = cache[0][:, :, place >= 0], cache[-1][:, :, place >= 0]
            if not turned and about["d_rope"]:
                key = np.stack([self.turned(key[:, :, n : n + 1], [p], about, "k")[:, :, 0]
                                for n, p in enumerate(of)], 2)  # fmt: skip
                value = key if self.wrong == "value" else value
            if self.wrong == "read again" and about["d_rope"]:
                key = rotated(key, of, about)
            ask = self.turned(q[:, :, t : t + 1], [t], about, "q")
            with np.errstate(all="ignore"):
                z = self.mixed(ask, key, value, about, [t], of)[2]
            z = rotated(z, [-t], about) if unrotate and self.wrong != "back" else z
            outs.append(self.out(given, z))
        names = ("cache.k", "cache.v")
        found = {n: np.stack(all_) for n, all_ in zip(names, kept, strict=False)}
        return found | {"out": np.concatenate(outs, axis=1)}
