"""Hunt h5. Check your repair with `minqkv lesson check h5`."""

import numpy as np


class Last:
    """Keeps the last `window` rows of all that are appended."""

    def __init__(self, window):
        self.window, self.rows = window, None

    def append(self, new):
        """Append rows (T, d), T at least 1. Return those that are kept, (at
        most window, d), the oldest first.
        """
        if self.rows is None:
            self.rows = new[:0]
        surplus = len(self.rows) + 1 - self.window
        if surplus > 0:
            self.rows = self.rows[surplus:]
        self.rows = np.concatenate([self.rows, new])
        return self.rows
