"""Exercise 14: the positions in a ring. Check it with `minqkv lesson check 14`."""

import numpy as np  # noqa: F401


def positions(read, window, sinks):
    """Which position each slot of a ring holds, after `read` tokens.

    The ring has sinks + window slots. Token p is at position p, counted from 0. A position below
    `sinks` stays in the slot of the same number. The other positions use the slots after these in
    turn: position `sinks` goes to slot `sinks`, the next one to the slot after it, and so on. After
    the last slot comes slot `sinks` again. A newer position replaces an older one.

    read is 0 or more, window 1 or more, sinks 0 or more. Return an array of integers
    (sinks + window,); -1 where a slot is still empty.
    """
    raise NotImplementedError
