"""Near misses 14: rings that are almost right, each with what it does wrong."""

import numpy as np


def _filled(read, n_slots, slot_of, value_of=lambda p: p):
    """Positions in slots, where token p goes to slot_of(p)."""
    held = np.full(n_slots, -1)
    for p in range(read):
        held[slot_of(p)] = value_of(p)
    return held


def _right(read, window, sinks):
    return _filled(read, sinks + window, lambda p: p if p < sinks else sinks + (p - sinks) % window)


def positions__without_sinks(read, window, sinks):
    """Your sinks are overwritten: all slots are used in turn. The first positions stay where they
    are, and only the others go round.
    """
    return _filled(read, sinks + window, lambda p: p % (sinks + window))


def positions__sinks_inside_the_turn(read, window, sinks):
    """You divide by sinks + window. The ring after the sinks has `window` slots: the remainder of
    p − sinks divided by window.
    """
    n = sinks + window
    turn = [p if p < sinks else sinks + (p - sinks) % n for p in range(read)]
    held = np.full(n, -1)
    for p, slot in enumerate(turn):
        if slot < n:
            held[slot] = p
    return held


def positions__count_not_from_the_sinks(read, window, sinks):
    """You take p mod window after the sinks. The turn begins with position `sinks`, so it is
    (p − sinks) mod window.
    """
    return _filled(read, sinks + window, lambda p: p if p < sinks else sinks + p % window)


def positions__ring_over_the_sinks(read, window, sinks):
    """After the first turn you begin again at slot 0: the turn begins at slot `sinks`."""
    n = sinks + window
    return _filled(read, n, lambda p: p if p < n else (p - n) % window)


def positions__stops_when_full(read, window, sinks):
    """When all slots are full you keep what is there. A newer position replaces the oldest one of
    the ring.
    """
    return _right(min(read, sinks + window), window, sinks)


def positions__one_late(read, window, sinks):
    """You are one token behind: after `read` tokens the newest position is read − 1."""
    return _right(max(0, read - 1), window, sinks)


def positions__one_early(read, window, sinks):
    """You are one token ahead: positions count from 0, so the newest is read − 1, not read."""
    return _right(read + 1, window, sinks)


def positions__one_off_after_a_turn(read, window, sinks):
    """After the first turn you are off by one slot: the turn has `window` slots, not window + 1."""
    n = sinks + window

    def slot_of(p):
        return p if p < n else sinks + (p - sinks - 1) % window

    return _filled(read, n, slot_of)


def positions__empty_slots_filled(read, window, sinks):
    """You give positions to slots that are still empty: put -1 where nothing was written."""
    return _right(max(read, sinks + window), window, sinks)


def positions__zero_for_empty(read, window, sinks):
    """You put 0 into empty slots. 0 is a position; an empty slot holds -1."""
    return _right(read, window, sinks).clip(0)


def positions__a_turn_too_early(read, window, sinks):
    """Your empty slots hold what a formula gives them, a turn too early. Put -1 where nothing was
    written.
    """
    held, i = _right(read, window, sinks), np.arange(window)
    behind = max(0, read - sinks)  # tokens read after the sinks
    held[sinks:] = sinks + i + window * ((behind - 1 - i) // window)
    return held


def positions__in_order(read, window, sinks):
    """You list the positions in order, the oldest first. Return them in slot order: the newest may
    be in the middle.
    """
    held = _right(read, window, sinks)
    held[sinks:] = np.sort(np.where(held[sinks:] < 0, read, held[sinks:]))
    return np.where(held == read, -1, held)


def positions__newest_first(read, window, sinks):
    """You turn the ring the other way round: newest and oldest are swapped. The slots are used in
    rising order.
    """
    held = _right(read, window, sinks)
    return np.concatenate([held[:sinks], held[sinks:][::-1]])


def positions__sinks_behind(read, window, sinks):
    """You put the sinks behind the ring: they lie in the first slots."""
    held = _right(read, window, sinks)
    return np.concatenate([held[sinks:], held[:sinks]])


def positions__slots_by_position(read, window, sinks):
    """You return the slot of each token. Return the position in each slot."""
    held, n = np.full(sinks + window, -1), sinks + window
    first = max(0, read - n)
    for i, p in enumerate(range(first, read)):
        held[i] = p if p < sinks else sinks + (p - sinks) % window
    return held


def positions__counted_within_the_ring(read, window, sinks):
    """You count positions from 0 after the sinks. They are positions of the text: add `sinks`."""
    held = _right(read, window, sinks)
    ring = held[sinks:]
    held[sinks:] = np.where(ring < 0, -1, ring - sinks)
    return held
