"""What a trained attention does, head by head: what its weights read and write, and how it attends
on examples.

A model stays the same if the queries and keys of a head, or its values and its rows of the output
projection, change their basis together (paper, section 5). A number that describes the model must
then stay the same, too. All numbers here do, except the cosine of weights, which is there to show
the difference. docs/diagnose.md says what each number means.
"""

import numpy as np

from ..attention import Attention
from ..models import GPT
from ..nn import Module
from ..runtime import backend
from ..runtime.errors import UsageError
from ..runtime.rng import stream
from ..runtime.shown import counted
from ..runtime.tracing import trace
from ..tensor import Tensor, no_grad
from .patterns import visible

TOKENS = 128  # of a sequence that are looked at
AROUND = 24  # tokens whose cycles of three count for the curl
SMALL = 1e-6  # of the largest singular value: below it, float32 holds only rounding


def first_tokens(model: Module, x: np.ndarray) -> np.ndarray:
    """Sequences (n, T, …), up to TOKENS for a decoder: those after them change nothing before."""
    return x[:, :TOKENS] if isinstance(model, GPT) else x


def diagnose(model: Module, x: np.ndarray) -> list[dict]:
    """The numbers of every layer, on the sequences x (n, T), or (n, T, …) of channels or vectors.

    A layer has a `name`, its `variant`, `heads`, and `chance`: what unrelated projections give, and
    a head that attends evenly. A head has numbers, and three lists: `qk_values` and `ov_values`,
    the singular values of W_q W_kᵀ and W_v W_o, and `angles`, the principal angles between W_k and
    W_v in degrees. NaN stands for what is not defined: what compares K with V where they are the
    same, and distances between vectors, which need not be in a row. Raises UsageError for a model
    without attention or scores, and for sequences of fewer than three tokens.
    """
    layers = [module for _, module in model.named_modules() if isinstance(module, Attention)]
    if not layers:
        raise UsageError("this model has no attention that can be diagnosed")
    if x.shape[1] < 3:
        raise UsageError(f"{counted(x.shape[1], 'token')} in a sequence: at least 3 are needed")
    seen = [[] for _ in layers]
    for row in x:
        with no_grad(), trace() as t:
            model(row[None])
        if any(f"{attn.name}.scores" not in t for attn in layers):
            raise UsageError("linear attention has no scores, so its heads cannot be diagnosed")
        mask = visible(model, t[f"{layers[0].name}.pattern"].shape[-1])
        for attn, sequences in zip(layers, seen, strict=True):
            sequences.append(_on_sequence(attn, t, mask))
    found = [_layer(attn, sequences, mask) for attn, sequences in zip(layers, seen, strict=True)]
    if x.dtype.kind not in "iu":
        for numbers in (one for layer in found for one in (*layer["heads"], layer["chance"])):
            numbers["distance"] = np.nan
    return found


def _layer(attn, sequences, mask):
    """What `diagnose` gives for a layer; `sequences` holds what `_on_sequence` gave for each."""
    keys, values = (np.stack([one.pop(n) for one in sequences], 1) for n in ("k", "v"))
    acts = {name: np.mean([one[name] for one in sequences], 0) for name in sequences[0]}  # (H,)
    apart = attn.spec.streams == 2 or attn.spec.apart
    heads = []
    for i, (q, k, v, o) in enumerate(zip(*circuits(attn), strict=True)):
        qk, ov, angles = spectrum(q, k), spectrum(v, o.T), principal_angles(k, v)
        heads.append({
            "qk_rank": effective_rank(qk),
            "ov_rank": effective_rank(ov),
            "overlap": overlap(angles) if apart else np.nan,
            "cosine": cosine(k, v) if apart else np.nan,
            "v_from_k": cross_r2(keys[i], values[i]) if apart else np.nan,
            "k_from_v": cross_r2(values[i], keys[i]) if apart else np.nan,
            "cka": cka(keys[i], values[i]) if apart else np.nan,
            **{name: numbers[i] for name, numbers in acts.items()},
            "qk_values": list(qk),
            "ov_values": list(ov),
            "angles": list(angles) if apart else [],
        })  # fmt: skip
    chance = evenly(mask) | (_unrelated(*k.shape, v.shape[1]) if apart else {"angles": []})
    return {"name": attn.name, "variant": attn.spec.name, "heads": heads, "chance": chance}


# ---- weights


def circuits(attn: Attention) -> tuple[np.ndarray, ...]:
    """What each of H heads reads and writes: W_q, W_k (H, C, d_k), W_v (H, C, d_v), W_o
    (H, d_v, C), in float64.

    Heads of a group share W_k and W_v. The two matrices of a latent row are multiplied into W_k and
    W_v, and the gains of `norm` into W_q and W_k; biases are left out.
    """
    state = {name: array.astype(np.float64) for name, array in attn.state_dict().items()}

    def heads(name, count):
        weight = state[f"{name}.weight"]  # (C, count · width)
        return weight.reshape(len(weight), count, -1).swapaxes(0, 1)  # (count, C, width)

    spec, h, H = attn.spec, attn.kv_heads, attn.n_head
    row = heads("wk", h)
    k = row * state.get("k_gain", 1.0)  # (h, C, d_row)
    v = heads("wv", h) if spec.streams == 2 else row if attn.turn_late else k  # (h, C, d_v)
    if spec.apart and attn.d_rope:
        still = k if spec.latent else k[..., : k.shape[-1] - attn.d_rope]
        k = np.concatenate([still, np.repeat(heads("wr", 1), h, 0)], -1)
    k, v = _of_each_head(attn, k, v)
    q = heads("wq", H) * state.get("q_gain", 1.0) if spec.own_query else k
    o = state["wo.weight"]  # (H · d_v, C)
    return q, k, v, o.reshape(H, -1, o.shape[1])


def _of_each_head(attn, k, v):
    """Keys and values (h, n, width) as the H query heads read them, (H, n, width)."""
    k, v = (np.repeat(a, attn.n_head // attn.kv_heads, 0) for a in (k, v))
    if not attn.spec.latent:
        return k, v
    into, out_of = (w.numpy().astype(np.float64) for w in (attn.into, attn.out_of))
    d_row = v.shape[-1]
    still = k[..., :d_row] @ into.swapaxes(-1, -2)  # (H, n, d_row) -> (H, n, d_h)
    return np.concatenate([still, k[..., d_row:]], -1), v @ out_of


def spectrum(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Singular values of left @ rightᵀ, largest first; left and right are (C, d), so at most d are
    not zero, and only these are given.
    """
    left, right = (np.linalg.qr(a)[1] for a in (left, right))  # (d, d): a Q changes no such value
    return np.linalg.svd(left @ right.T, compute_uv=False)


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of singular values, as shares of their sum: from 1 up to their number."""
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles in degrees between what the columns of a and of b (C, d) span, smallest first. As many
    as the smaller of the two spaces has dimensions.
    """
    cosines = np.linalg.svd(_basis(a).T @ _basis(b), compute_uv=False)
    return np.degrees(np.arccos(np.minimum(cosines, 1)))


def _basis(a):
    u, sizes, _ = np.linalg.svd(a, full_matrices=False)
    return u[:, sizes > SMALL * sizes[0]]  # (C, rank)


def overlap(angles: np.ndarray) -> float:
    """How much two spaces share, from 0 (orthogonal) to 1 (equal): the mean of cos² of their
    principal angles. For random ones of dimensions a and b among C it is max(a, b) / C on average.
    """
    return float(np.mean(np.cos(np.radians(angles)) ** 2)) if len(angles) else np.nan


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two matrices as long vectors; NaN if they differ in shape. A change of basis moves it."""
    if a.shape != b.shape:
        return np.nan
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def _unrelated(C, a, b, pairs=32):
    """What random projections of C channels to widths a and b give."""
    rng = stream(0, "diagnose", "angles")
    drawn = [principal_angles(rng.standard_normal((C, a)), rng.standard_normal((C, b)))
             for _ in range(pairs)]  # fmt: skip
    return {"angles": list(np.mean(drawn, 0)), "overlap": max(a, b) / C, "cosine": 0.0}


# ---- keys and values of examples


def cross_r2(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the variance of b (n, T, d_b) that a linear map of a (n, T, d_a) explains.

    The map is fitted to every other sequence and judged on the rest: 0 or less if a says nothing of
    b. NaN with fewer than two tokens to fit for each number of a.
    """
    (a, a_new), (b, b_new) = ([_tokens(each[i::2]) for i in (0, 1)] for each in (a, b))
    if len(a) < 2 * a.shape[1] or not len(a_new):
        return np.nan
    linear = np.linalg.lstsq(a - a.mean(0), b - b.mean(0), rcond=SMALL)[0]  # (d_a, d_b)
    missed = b_new - b.mean(0) - (a_new - a.mean(0)) @ linear  # (tokens, d_b)
    whole = ((b_new - b_new.mean(0)) ** 2).sum()
    return float(1 - (missed**2).sum() / whole) if whole else np.nan


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear centred kernel alignment of a (n, T, d_a) and b (n, T, d_b), from 0 to 1: whether the
    same tokens are alike in both (Kornblith et al., 2019, arXiv 1905.00414).
    """
    a, b = (tokens - tokens.mean(0) for tokens in (_tokens(a), _tokens(b)))
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norms) if norms else np.nan


def _tokens(a):
    return a.reshape(-1, a.shape[-1]).astype(np.float64)  # (n, T, d) -> (n · T, d)


# ---- how a head attends


def _on_sequence(attn, t, mask):
    """One sequence: keys and values (H, T, width), and how each head attends, name -> (H,)."""
    at = f"{attn.name}."
    k = Tensor(backend.upload(t[at + "k"]))  # (1, h, T, d_k)
    k = attn.turn(k, slice(0, k.shape[2]), back=True).numpy()  # what rotary positions have turned
    k, v = _of_each_head(attn, k[0], t[at + "v"][0])
    scores = t[at + ("plus" if at + "plus" in t else "scores")][0]  # (H, T, T)
    found = attending(scores.astype(np.float64), t[at + "pattern"][0].astype(np.float64), mask)
    return {"k": k, "v": v, **found}


def attending(scores: np.ndarray, weights: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """How heads attend in one sequence, name -> (H,): scores before the mask and weights
    (H, T, T), and which keys a query sees, (T, T).

    Entropy, as a share of that of even weights, and diagonal dominance are means over queries that
    see more than one key.
    """
    free, own, away = _queries(mask)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    entropy = -(weights * logs).sum(-1)[:, free] / np.log(mask.sum(-1)[free])  # (H, queries)
    others = np.where(mask & ~own, scores, -np.inf).max(-1)[:, free]  # (H, queries)
    dominant = np.diagonal(scores, axis1=1, axis2=2)[:, free] >= others
    even, odd = (((scores + s * scores.swapaxes(1, 2)) ** 2).sum((1, 2)) for s in (1, -1))  # (H,)
    return {
        "entropy": _mean(entropy),
        "distance": _mean((weights * away).sum(-1)),
        "diagonal": _mean(dominant),
        "asymmetry": odd / np.maximum(even + odd, np.finfo(float).tiny),
        "curl": np.array([cycle_curl(head[:AROUND, :AROUND]) for head in scores]),
    }


def evenly(mask: np.ndarray) -> dict[str, float]:
    """The same, without the curl, for a head that attends evenly to the keys it sees, (T, T), and
    whose scores are independent random numbers.
    """
    free, own, away = _queries(mask)
    return {
        "entropy": 1.0,
        "distance": _mean((mask * away).sum(-1) / mask.sum(-1)),
        "diagonal": _mean(1 / (mask | own).sum(-1)[free]),
        "asymmetry": (len(mask) - 1) / (2 * len(mask)),
    }


def _queries(mask):
    """(T,): which queries see more than one key; (T, T): the diagonal, and distances."""
    at = np.arange(len(mask))
    away = np.abs(at[:, None] - at)  # (T, T)
    return mask.sum(-1) > 1, away == 0, away


def _mean(a):
    """Over the last axis; NaN where it is empty."""
    return a.mean(-1) if a.shape[-1] else np.full(a.shape[:-1], np.nan)


def cycle_curl(scores):
    """How far scores (..., T, T) are from a reversible chain: max |N_ij + N_jk + N_ki| over
    triples, N = S - Sᵀ.

    Zero for Q = K, with or without "+"; in general not zero if Q has its own projection (lesson
    08). For a non-causal pattern A give log A; for a causal model the scores before the mask.
    Memory grows with T³: meant for short sequences.
    """
    scores = np.asarray(scores, np.float64)
    n = scores - scores.swapaxes(-1, -2)  # (..., T, T)
    around = (
        n[..., :, :, None] + n[..., None, :, :] + n.swapaxes(-1, -2)[..., :, None, :]
    )  # (..., i, j, k)
    return float(np.abs(around).max())
