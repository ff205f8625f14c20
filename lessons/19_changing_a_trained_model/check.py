"""Check 19: `refit` in a head that writes digits backwards, against the package's refit-q."""

import numpy as np

import minqkv as mq
from minqkv.analysis import convert

TOLERANCE = 1e-6

HINTS = (
    "First make the keys and the values of the examples. The fit is over tokens: n equations for "
    "each column of M. It goes from values to keys.",
    "A fit with a constant is a fit without one after the mean over tokens is subtracted, from the "
    "keys and from the values. np.linalg.lstsq(values, keys, rcond=None)[0] is then M.",
    "q · (v M) = (q Mᵀ) · v, and q = x @ wq. So return wq @ M.T. The last row of wq is the bias, "
    "and it is multiplied as well. The constant c is not needed.",
)

EXPLANATION = """
The package does the same in `_refit_q` (minqkv/analysis/convert.py), for all heads that read a KV
head. It computes M by another way: both sides are whitened, so that M becomes a matrix of
correlations. There, correlations that are almost 0 are raised a little, so that M has an inverse.

An inverse is needed with rotary positions. There the queries cannot take up M, because a turn by
the position comes in between. Instead the rows become v M + c, and W_O undoes M.

The result does not depend on the basis in which keys and values are written: the fit goes from one
space to the other, whatever the coordinates are.
"""


def cases(rng):
    """Sequences of T digits, as they are read, (n · T, C + 1); a head that reverses them; and the
    digits that are right, (n, T).

    A token is the sum of two of the rows of `code`, one for its digit and one for its place, and of
    noise.
    """
    T, D = ((2, 3), (3, 2), (3, 4), (4, 3))[int(rng.integers(4))]
    C, d = D + T + 1, D + T - 1
    code = np.linalg.qr(rng.standard_normal((C, C)))[0][: D + T]  # (D + T, C)
    places = np.linalg.qr(rng.standard_normal((d, d)))[0][:T]  # (T, d)
    looked_for = places[::-1] * 8 * np.sqrt(d)
    said = rng.standard_normal((D + T, d))
    wq, wk, wv = (code[-len(part) :].T @ part for part in (looked_for, places, said))
    wk = wk + 0.1 * rng.standard_normal((C, d))
    wq, wk, wv = (np.vstack([w, rng.standard_normal(d) / 2]) for w in (wq, wk, wv))
    answer = np.linalg.lstsq(*_table(said, wv[-1], D, T), rcond=None)[0]  # (d, D)
    digits = rng.integers(0, D, (5, T))
    x = _tokens(rng, code, digits).reshape(-1, C + 1)
    return x, wq, wk, wv, answer, digits[:, ::-1]


def _tokens(rng, code, digits):
    """(n, T) -> (n, T, C + 1), the last column 1."""
    T = digits.shape[1]
    x = code[digits] + code[len(code) - T + np.arange(T)]  # (n, T, C)
    x = x + 0.1 * rng.standard_normal(x.shape)
    return np.concatenate([x, np.ones((*digits.shape, 1))], axis=-1)


def _table(said, bias, D, T):
    """The value of each digit at each place, (D · T, d), and the digit it stands for, (D · T, D),
    both centred.
    """
    values = said[:D, None] + said[None, D:] + bias  # (D, T, d)
    wanted = np.repeat(np.eye(D), T, axis=0) - 1 / D
    values = values.reshape(D * T, -1)
    return values - values.mean(axis=0), wanted


def use(learner, x, wq, wk, wv, wo, digits):
    """The head with new queries, its values serving as keys."""
    new = learner.refit(x, wq, wk, wv)
    if not isinstance(new, np.ndarray) or new.shape != wq.shape:
        shape = getattr(new, "shape", type(new).__name__)
        raise TypeError(f"refit returns {shape}; expected an array of shape {wq.shape}")
    return _converted(x, new, wv, wo, digits)


def _converted(x, wq, wv, wo, digits):
    x = x.reshape(*digits.shape, -1)  # (n, T, C + 1)
    q, v = x @ wq, x @ wv  # (n, T, d) each
    scores = q @ v.swapaxes(1, 2) / np.sqrt(q.shape[-1])  # (n, T, T)
    scores = scores - scores.mean(axis=-1, keepdims=True)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    z = e / e.sum(axis=-1, keepdims=True) @ v  # (n, T, d)
    found = ((z - v.mean(axis=(0, 1))) @ wo).argmax(axis=-1)  # (n, T)
    return {"scores": scores[0], "digits right": float((found == digits).mean())}


def reference(x, wq, wk, wv, wo, digits):
    """The package's refit-q, in a layer of one head."""
    C, d = x.shape[1] - 1, wq.shape[1]
    attn = mq.Attention("qkv", C, 1, len(x), mq.nn.Init(dtype="float64"), head_dim=d)
    state = attn.state_dict()
    for name, w in {"wq": wq, "wk": wk, "wv": wv}.items():
        state |= {f"{name}.weight": w[:-1], f"{name}.bias": w[-1]}
    attn.load_state_dict(state)
    layer = convert.Layer(attn)
    convert.METHODS["refit-q"](layer, x, 1)
    return _converted(x, layer.q[0], wv, wo, digits)
