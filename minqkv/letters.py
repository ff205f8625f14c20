"""A model as it is, sent to another process: everything but the numbers of its parameters, which lie in shared memory."""

import io
import math
import pickle

from .errors import UsageError
from .nn import Parameter
from .tensor import Tensor


class Letter(pickle.Pickler):
    """A model in bytes, without the numbers of its parameters: each is only named, by where they begin and its shape."""

    def __init__(self, model):
        self.leaves, self.places, self.size = [], [], 0
        file = io.BytesIO()
        super().__init__(file, protocol=5)
        try:
            self.dump(model)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(f"this model cannot be sent to other processes: {error}", "mq.set_threads(1)") from error
        self.text = file.getvalue()

    def reducer_override(self, item):
        """What stands for a parameter, once for each: `leaf(where its numbers begin, shape)`. Anything else is written out."""
        if not isinstance(item, Tensor) or not item.requires_grad:
            return NotImplemented
        self.leaves.append(item)
        self.places.append((self.size, item.shape))
        self.size += item.size
        return leaf, self.places[-1]

    def numbers(self, row):
        """For each parameter, its part of an array (size,), in its shape."""
        return [_part(row, *place) for place in self.places]


class Opener(pickle.Unpickler):
    """The model of a letter, its parameters on these numbers."""

    def __init__(self, text, numbers):
        super().__init__(io.BytesIO(text))
        self.numbers, self.leaves = numbers, []

    def find_class(self, module, name):
        """What a name in a letter means."""
        return self._leaf if (module, name) == (__name__, "leaf") else super().find_class(module, name)

    def _leaf(self, start, shape):
        self.leaves.append(Parameter(_part(self.numbers, start, shape)))
        return self.leaves[-1]


def leaf(start, shape):
    """A parameter, as a letter names it; only an Opener knows its numbers."""
    raise TypeError("a letter is read by an Opener")


def _part(row, start, shape):
    return row[start : start + math.prod(shape)].reshape(shape)
