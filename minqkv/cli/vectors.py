"""`minqkv vectors export` and `check`: numbers for implementations of attention to compare with."""

import math
from functools import partial

import click

from ..runtime.errors import Exit, UsageError, unknown
from ..runtime.shown import pasted
from .options import Listed, own_class, print_json, reports


@click.group()
def vectors():
    """Reference numbers for your own implementation of attention."""


@vectors.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--n-head", default=4, show_default=True, help="Number of heads H, from 4.")
@click.option("--kv-heads", default=2, show_default=True, help="Stored heads of groups, from 2.")
@click.option("--head-dim", default=6, show_default=True, help="Head width, even, from 6.")
@click.option("--n-embd", default=5, show_default=True, help="Width d of x, from 2.")
@click.option("--length", default=5, show_default=True, help="Tokens in a sequence, from 5.")
@click.option("--seed", default=0, show_default=True, help="Seed of all inputs and weights.")
@reports
def export(folder, as_json, **sizes):
    """Write small cases with every array that attention computes into DIR.

    Some cases start from queries, keys and values: masks, windows, packed sequences, groups, both
    rotary pairings. The others are a layer of every variant and position scheme: weights, all
    results, gradients, and decoding with three kinds of cache. manifest.json has the shape,
    formula and tolerance of each array; vectors.npz has the numbers, in float64. The same sizes
    give the same files.
    """
    from ..analysis.vectors.case import Sizes
    from ..analysis.vectors.cases import cases
    from ..analysis.vectors.files import export
    from ..render.progress import patient

    sizes = Sizes(**sizes)
    with patient("export", len(cases(sizes))) as advance:
        report = export(folder, sizes, advance)
    if as_json:
        print_json({"folder": str(folder), **report})
        return
    click.echo(f"{report['cases']} cases in {folder}, {report['bytes']:,} bytes")
    click.echo(f"to compare yours: minqkv vectors check {pasted(folder)} MODULE:FUNCTION")


@vectors.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.argument("name", metavar="MODULE:FUNCTION")
@click.option(
    "--dtypes",
    type=Listed(),
    default="float64,float32",
    show_default=True,
    help="Dtypes of what the function is given and returns. float16 is for kernels only.",
)
@click.option("--limit", default=60.0, show_default=True, help="Seconds that one call may take.")
@reports
def check(folder, name, dtypes, limit, as_json):
    """Compare your own implementation with the cases in DIR.

    MODULE:FUNCTION names a function in a file of this folder, for instance attend in
    examples/check_torch.py. function(given, about) gets arrays by name and facts of a case. It
    returns those arrays that it computes, by name (NumPy, PyTorch or CuPy), or None for a case
    that it does not compute. The report says which array differs first, where, by how much, and
    names the cause if it is a known mistake. The function runs in a separate process. The exit
    code is 1 if anything differs.
    """
    from ..analysis.vectors.called import Called
    from ..analysis.vectors.causes import named
    from ..analysis.vectors.compare import check
    from ..analysis.vectors.files import load
    from ..analysis.vectors.tolerances import DTYPES
    from ..render.info import vector_table
    from ..render.progress import patient

    for dtype in dtypes:
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
    if not 0 < limit < math.inf:
        raise UsageError(f"--limit {limit}: seconds above 0", "--limit 60")
    tasks, rows = load(folder), []
    with (
        Called(partial(_function, name), limit) as function,
        patient("check", len(tasks) * len(dtypes)) as advance,
    ):
        for row in check(tasks, dtypes, function):
            rows.append(row)
            advance(len(rows))
    differing = sum(row["state"] == "differs" for row in rows)
    with patient("find causes", differing) as advance:
        named(tasks, rows, advance)
    if as_json:
        print_json(rows)
    else:
        vector_table(name, rows, function.printed)
    states = {row["state"] for row in rows}
    return None if states <= {"ok", "not done"} and "ok" in states else Exit.CHECK_FAILED


def _function(name):
    found = own_class(name, "function", "my_file:attend")
    if not callable(found):
        raise UsageError(f"{name} is not a function, but {type(found).__name__}")
    return found


COMMANDS = (vectors,)
