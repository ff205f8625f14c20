"""Check 11: both forms of one buffer, token by token, against the package's cache."""

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import rope_table
from minqkv.cache import LayerCache

TOLERANCE = 1e-9

HINTS = (
    'The new token is at n = cache["n"], read before you count it. In both forms its query is '
    "turned by n. Write first, then read the first n + 1 rows: the token sees itself.",
    "raw_step: store x @ wk as it is. For the scores alone make a turned copy, turn(stored, "
    "np.arange(n + 1)), each row by its own position. The weights are applied to `stored`. "
    "unrotate_step: store turn(x @ wk, n), and use what is stored for the scores and for the "
    "mix, without turning it again.",
    "unrotate_step ends with turn(mixed, n, back=True): back by the position of the query. "
    "raw_step ends with the mix, where nothing has been turned, so there is nothing to undo.",
)

EXPLANATION = """
The package has both in one class: `rope_value` chooses, and two flags say where a turn is made,
`turn_late` in `store` and `read`, `turn_back` in `answer`. The raw form is the default, because it
is the same function as two arrays with equal weights. Its turned keys are a temporary that lives
for one step.

A single query needs no mask: a new token sees all that is stored. The package also decodes several
tokens at once, and then takes the mask from the cache, as in lesson 10; each query, and its answer,
is turned by its own position.

There the cosines and sines are a table, made once for all positions; you computed them at each
step.
"""


def cases(rng):
    """x (T, C) and two matrices (C, d), with T, C and d all different and d even."""
    d = int(rng.choice([4, 6]))
    T, C = (int(n) for n in rng.permutation([n for n in range(3, 8) if n != d])[:2])
    return rng.standard_normal((T, C)), *rng.standard_normal((2, C, d))


def use(learner, x, wq, wk):
    """A sequence, a token at a time, in both forms: the answers, and what the cache holds then."""
    found = {}
    for name in ("raw_step", "unrotate_step"):
        room = (len(x) + 1, wk.shape[1])
        cache = {"k": np.zeros(room), "n": 0}
        for i, token in enumerate(x):
            try:
                found[f"{name} at {i}"] = getattr(learner, name)(token.copy(), wq, wk, cache)
            except ValueError as error:
                if "zero-size" not in str(error):
                    raise
                text = f"{name}: a softmax over no keys: at first nothing is stored yet. "
                text += "Write first, then read"
                raise ValueError(text).with_traceback(error.__traceback__) from None
            now = np.shape(cache["k"])
            if now != room:
                text = f'{name}: cache["k"] had the shape {room} and is {now} now: write into it'
                raise ValueError(text)
        found |= {f'{name} cache["n"]': cache["n"], f'{name} cache["k"]': cache["k"][: len(x)]}
    return found


def reference(x, wq, wk):
    """The package's cache, rotation and attention."""
    found, d = {}, wk.shape[1]
    cos, sin = rope_table(len(x), d, "float64")  # (T, d/2) each
    for name in ("raw_step", "unrotate_step"):
        cache = LayerCache(1, [(1, d)], len(x), "float64")  # one row per token, of one head
        for i, token in enumerate(x):
            q, k = (mq.Tensor((token @ w)[None, None, None]) for w in (wq, wk))  # (1, 1, 1, d) each
            here = cos[i : i + 1], sin[i : i + 1]
            q, turned = F.rotate(q, *here), F.rotate(k, *here)
            (rows,) = cache.append((k if name == "raw_step" else turned).data)
            stored = mq.Tensor(rows)  # (1, 1, S, d)
            keys = F.rotate(stored, cos[: i + 1], sin[: i + 1]) if name == "raw_step" else stored
            z = F.scaled_dot_product_attention(q, keys, stored)  # (1, 1, 1, d)
            z = z if name == "raw_step" else F.rotate(z, here[0], -here[1])
            found[f"{name} at {i}"] = z.data[0, 0, 0]
        found |= {f'{name} cache["n"]': len(cache), f'{name} cache["k"]': rows[0, 0]}
    return found
