"""Near misses 11: decode steps on one buffer that are almost right, each with what it does
wrong.
"""

import numpy as np


def _turn(x, position, back=False):
    half = x.shape[-1] // 2
    angle = np.asarray(position)[..., None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), -np.sin(angle) if back else np.sin(angle)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(q, keys, values, scale=True):
    """(d,), two (S, d) -> (d,)."""
    scores = keys @ q / (np.sqrt(len(q)) if scale else 1)
    e = np.exp(scores - scores.max(initial=-1e30))
    return e / e.sum() @ values


def _write(cache, row):
    """Append a row; return its position n, the rows (n + 1, d) so far, and their positions."""
    n = cache["n"]
    cache["k"][n], cache["n"] = row, n + 1
    return n, cache["k"][: n + 1], np.arange(n + 1)


def raw_step__turned_in_the_cache(x, wq, wk, cache):
    """raw_step: you store the turned key and mix it as a value, which then depends on its position.
    Store it raw.
    """
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _attend(_turn(x @ wq, n), stored, stored)


def raw_step__turned_twice(x, wq, wk, cache):
    """raw_step: your keys turn twice, when they are written and again when they are read. Write
    them raw.
    """
    n, stored, places = _write(cache, _turn(x @ wk, cache["n"]))
    return _attend(_turn(x @ wq, n), _turn(stored, places), stored)


def raw_step__turned_values(x, wq, wk, cache):
    """raw_step: you mix the turned copy. It is for the scores alone; mix what is stored."""
    n, stored, places = _write(cache, x @ wk)
    keys = _turn(stored, places)
    return _attend(_turn(x @ wq, n), keys, keys)


def raw_step__turned_values_and_back(x, wq, wk, cache):
    """raw_step: you mix the turned copy and turn the answer back. That is the other form; here mix
    what is stored.
    """
    n, stored, places = _write(cache, x @ wk)
    keys = _turn(stored, places)
    return _turn(_attend(_turn(x @ wq, n), keys, keys), n, back=True)


def raw_step__answer_turned_back(x, wq, wk, cache):
    """raw_step: you turn the answer back, but nothing that was mixed had been turned."""
    n, stored, places = _write(cache, x @ wk)
    return _turn(_attend(_turn(x @ wq, n), _turn(stored, places), stored), n, back=True)


def raw_step__turned_in_place(x, wq, wk, cache):
    """raw_step: you write the turned keys back into the cache, so they turn further at each step.
    Turn a copy.
    """
    n, stored, places = _write(cache, x @ wk)
    keys = _turn(stored, places)
    z = _attend(_turn(x @ wq, n), keys, stored)
    stored[:] = keys
    return z


def raw_step__query_not_turned(x, wq, wk, cache):
    """raw_step: your query is not turned, or by position 0: turn it by n."""
    _, stored, places = _write(cache, x @ wk)
    return _attend(x @ wq, _turn(stored, places), stored)


def raw_step__query_late(x, wq, wk, cache):
    """raw_step: your query is turned by n + 1: read cache["n"] before you count the new row."""
    n, stored, places = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n + 1), _turn(stored, places), stored)


def raw_step__keys_not_turned(x, wq, wk, cache):
    """raw_step: only your query turns: for the scores each stored key turns by its own position."""
    n, stored, _ = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), stored, stored)


def raw_step__keys_at_the_query(x, wq, wk, cache):
    """raw_step: you turn all keys by the position of the query, so that no distance is left. Each
    has its own.
    """
    n, stored, _ = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), _turn(stored, n), stored)


def raw_step__keys_turned_back(x, wq, wk, cache):
    """raw_step: query and keys turn in opposite directions: both turn forward, and the distance is
    what remains.
    """
    n, stored, places = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), _turn(stored, places, back=True), stored)


def raw_step__positions_reversed(x, wq, wk, cache):
    """raw_step: you count the keys' positions from the newest one: the oldest is at 0."""
    n, stored, places = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), _turn(stored, places[::-1]), stored)


def raw_step__misses_itself(x, wq, wk, cache):
    """raw_step: the new token is missing from its own attention: write first, then read n + 1
    rows.
    """
    n, stored, places = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), _turn(stored, places)[:n], stored[:n])


def raw_step__no_scale(x, wq, wk, cache):
    """raw_step: your scores are not divided by the square root of d."""
    n, stored, places = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), _turn(stored, places), stored, scale=False)


def raw_step__scaled_by_the_token(x, wq, wk, cache):
    """raw_step: you scale by the width C of the token: it is d, the columns of a query, whose root
    divides the scores.
    """
    n, stored, places = _write(cache, x @ wk)
    q = _turn(x @ wq, n)
    return _attend(q * np.sqrt(len(q) / len(x)), _turn(stored, places), stored)


def raw_step__never_counts(x, wq, wk, cache):
    """raw_step: you never count: set cache["n"], or every token overwrites the first row."""
    _, stored, _ = _write(cache, x @ wk)
    cache["n"] = 0
    return _attend(x @ wq, stored, stored)


def unrotate_step__nothing_undone(x, wq, wk, cache):
    """unrotate_step: you do not turn the answer back: it depends on where the text begins."""
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _attend(_turn(x @ wq, n), stored, stored)


def unrotate_step__wrong_sign(x, wq, wk, cache):
    """unrotate_step: you turn the answer forward once more: turn it back (back=True)."""
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _turn(_attend(_turn(x @ wq, n), stored, stored), n)


def unrotate_step__back_too_far(x, wq, wk, cache):
    """unrotate_step: you turn the answer back by n + 1; the query is at n, as it was before you
    counted.
    """
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _turn(_attend(_turn(x @ wq, n), stored, stored), n + 1, back=True)


def unrotate_step__values_turned_back(x, wq, wk, cache):
    """unrotate_step: you turn each value back by its own position: the raw form, at its cost. Turn
    the answer, by n.
    """
    n, stored, places = _write(cache, _turn(x @ wk, cache["n"]))
    return _attend(_turn(x @ wq, n), stored, _turn(stored, places, back=True))


def unrotate_step__stored_raw(x, wq, wk, cache):
    """unrotate_step: you store raw keys and mix them, as in raw_step. Here the cache holds turned
    keys, and they are mixed.
    """
    n, stored, places = _write(cache, x @ wk)
    return _attend(_turn(x @ wq, n), _turn(stored, places), stored)


def unrotate_step__turned_twice(x, wq, wk, cache):
    """unrotate_step: your keys turn twice: what is stored was already turned when it was
    written.
    """
    n, stored, places = _write(cache, _turn(x @ wk, cache["n"]))
    return _turn(_attend(_turn(x @ wq, n), _turn(stored, places), stored), n, back=True)


def unrotate_step__query_not_turned(x, wq, wk, cache):
    """unrotate_step: your query is not turned, or by position 0: turn it by n."""
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _turn(_attend(x @ wq, stored, stored), n, back=True)


def unrotate_step__query_late(x, wq, wk, cache):
    """unrotate_step: your query is turned by n + 1: read cache["n"] before you count the new
    row.
    """
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _turn(_attend(_turn(x @ wq, n + 1), stored, stored), n, back=True)


def unrotate_step__all_late(x, wq, wk, cache):
    """unrotate_step: key, query and answer all turn by n + 1. The answers come out right; the
    stored keys are one place off.
    """
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"] + 1))
    return _turn(_attend(_turn(x @ wq, n + 1), stored, stored), n + 1, back=True)


def unrotate_step__misses_itself(x, wq, wk, cache):
    """unrotate_step: the new token is missing from its own attention: write first, then read n + 1
    rows.
    """
    n, stored, _ = _write(cache, _turn(x @ wk, cache["n"]))
    return _turn(_attend(_turn(x @ wq, n), stored[:n], stored[:n]), n, back=True)
