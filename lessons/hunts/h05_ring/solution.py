"""Solution h5: first together, then the last ones."""

import numpy as np


class Last:
    """Keeps the last `window` rows of all that are appended."""

    def __init__(self, window):
        self.window, self.rows = window, None

    def append(self, new):
        """Append rows (T, d), T at least 1. Return those that are kept, (at
        most window, d), the oldest first.
        """
        rows = new if self.rows is None else np.concatenate([self.rows, new])
        self.rows = rows[-self.window :]
        return self.rows
