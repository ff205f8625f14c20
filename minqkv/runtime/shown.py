"""What models, caches, optimisers and traces say of themselves: a line; in notebooks a table."""

import shlex
from html import escape


def counted(n: int, noun: str) -> str:
    """ "1 head", "2 heads", "1,024 heads"."""
    return f"{n:,} {noun}{'s' if n != 1 else ''}"


def decimal(value: float, digits: int = 4) -> str:
    """ "1.6078", but "2.02e+19" and "3.1e-07", where so many digits would say nothing, and
    "0.99996", because what is almost 1 is not 1.
    """
    while round(value, digits) == 1 and abs(value - 1) > 1e-9:
        digits += 1
    usual = 10**-digits <= abs(value) < 1e7 or not value
    return f"{value:.{digits}f}" if usual else f"{value:.3g}"


def size_text(n: int) -> str:
    """Bytes in MiB, or GiB where there are many."""
    digits = 1 if n < 10 * 2**20 else 0
    return f"{n / 2**20:.{digits}f} MiB" if n < 2**30 else f"{n / 2**30:,.1f} GiB"


def pasted(path) -> str:
    """A path for a command line: quoted, and never taken for an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


class Shown:
    """`_shown_line()` follows the name of the class; `_shown_rows()` is the table: (name, array,
    bytes).
    """

    def __repr__(self):
        try:
            return f"<{type(self).__name__}{self._shown_line()}>"
        except AttributeError:  # a debugger looks before __init__ has run
            return f"<{type(self).__name__}, unfinished>"

    def _repr_html_(self):
        rows = [
            (name, str(tuple(a.shape)), str(a.dtype), f"{n:,}") for name, a, n in self._shown_rows()
        ]
        rows = [("array", "shape", "dtype", "bytes"), *rows]
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        table = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<p>{escape(repr(self)[1:-1])}</p><table>{table}</table>"


class Model(Shown):
    """A module: its variant and sizes, where it has a configuration; its parameters."""

    def _shown_line(self):
        rows, cfg = self._shown_rows(), getattr(self, "config", None)
        variant = getattr(cfg, "variant", None) or getattr(getattr(self, "spec", None), "name", "")
        line = f" {variant}" * bool(variant)
        if cfg is not None:
            line += f", {counted(cfg.n_layer, 'layer')}, {counted(cfg.n_head, 'head')}"
            line += f", width {cfg.n_embd}, {cfg.dtype}"
        elif len(rows) <= 8:
            line += "".join(f" {name} {tuple(array.shape)}" for name, array, _ in rows)
        size = counted(sum(n for *_, n in rows), "byte")
        mode = "training" if self.training else "eval"
        return f"{line}: {counted(self.n_params, 'parameter')}, {size}, {mode} mode"

    def _shown_rows(self):
        return [(name, p.data, p.data.nbytes) for name, p in self.named_parameters()]


class Cache(Shown):
    """A cache: positions and bytes, in use and allocated; what each layer stores of a token."""

    def _shown_line(self):
        stored = " and ".join(dict.fromkeys(str(layer) for layer in self.stored))
        line = f" of {counted(len(self.layers), 'layer')}, batch {self.batch}, {self.dtype}"
        line += f": {len(self)} of {self.capacity} positions, {self.nbytes:,} of "
        return f"{line}{self.capacity_nbytes:,} bytes; a token stores (heads, width) {stored}"

    def _shown_rows(self):
        layers = enumerate(self.layers)
        found = [(f"{i}.{j}", a) for i, layer in layers for j, a in enumerate(layer.buffers)]
        return [(name, array, array.nbytes) for name, array in found]


class Layer(Shown):
    """The cache of a layer: positions, and its arrays as allocated."""

    def _shown_line(self):
        shapes = "".join(f" {tuple(array.shape)}" for _, array, _ in self._shown_rows())
        return f": {len(self)} positions, {self.nbytes:,} bytes, in{shapes}"

    def _shown_rows(self):
        return [(str(j), array, array.nbytes) for j, array in enumerate(self.buffers)]


class Moments(Shown):
    """An optimiser: its settings, steps, parameters, and the arrays it keeps."""

    def _shown_line(self):
        given = {name: v for name, v in vars(self).items() if isinstance(v, (float, tuple))}
        line = "".join(f" {name} {value}" for name, value in given.items())
        line += f": after {counted(self.steps, 'step')}, {counted(len(self.parameters), 'array')}"
        size = sum(n for *_, n in self._shown_rows())
        return f"{line} of {self.data.size:,} numbers, {self.data.dtype}, {size:,} bytes in all"

    def _shown_rows(self):
        kept = ("data", "gradient", *self.slots)
        return [(name, getattr(self, name), getattr(self, name).nbytes) for name in kept]


class Arrays(Shown):
    """A trace: how many arrays, and their names with the shape of the last of each."""

    def _shown_line(self):
        rows = self._shown_rows()
        names = ", ".join(f"{name} {tuple(array.shape)}" for name, array, _ in rows[:8])
        more = ", …" if len(rows) > 8 else ""
        size = sum(n for *_, n in rows)
        return f" of {counted(len(rows), 'name')}, {counted(size, 'byte')}: {names or '-'}{more}"

    def _shown_rows(self):
        return [(name, got[-1], sum(a.nbytes for a in got)) for name, got in self.seen.items()]
