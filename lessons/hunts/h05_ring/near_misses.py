"""Near misses h5: repairs that are not."""

import numpy as np


class Last__long_call:
    """You drop enough old rows now. But a call that brings more rows than the window is kept
    whole.
    """

    def __init__(self, window):
        self.window, self.rows = window, None

    def append(self, new):
        """Drops old rows only."""
        rows = new[:0] if self.rows is None else self.rows
        self.rows = np.concatenate([rows[max(0, len(rows) + len(new) - self.window) :], new])
        return self.rows


class Last__first(Last__long_call):
    """You keep the first rows, not the last ones: the cache stops at the beginning of the text."""

    def append(self, new):
        """Keeps the oldest."""
        rows = new if self.rows is None else np.concatenate([self.rows, new])
        self.rows = rows[: self.window]
        return self.rows
