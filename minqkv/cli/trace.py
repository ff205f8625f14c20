"""`minqkv trace forward | decode | backward`: the arrays of a small model of any variant."""

import click

from ..variants import POSITIONS, ROPE_VALUES, VARIANTS
from .options import Known, Listed, computes, either, print_json, stages


@click.group()
def trace():
    """Show every array computed in one attention call."""


def _view(name, about):
    @trace.command(name, help=about)
    @click.option(
        "--variant",
        type=Known(VARIANTS),
        default="qkv",
        show_default=True,
        help="See `minqkv variants`.",
    )
    @click.option(
        "--position",
        type=Known(POSITIONS),
        default="learned",
        show_default=True,
        help=f"{either(POSITIONS)}.",
    )
    @click.option(
        "--rope-value",
        type=Known(ROPE_VALUES),
        default="raw",
        show_default=True,
        help=f"What K = V stores under rope: {either(ROPE_VALUES)}.",
    )
    @click.option(
        "--tokens", type=Listed(int), default="3,1,4,1", show_default=True, help="The input."
    )
    @click.option("--n-head", type=int, default=2, show_default=True, help="Number of heads.")
    @click.option("--n-embd", type=int, default=4, show_default=True, help="Width d.")
    @click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of the random weights.",
    )
    @click.option(
        "--digits", type=click.IntRange(0, 17), default=3, show_default=True, help="Decimals."
    )
    @stages
    @computes
    def command(as_json, plain, svg, digits, **sizes):
        from ..render.figures import heat_map
        from ..render.lesson import choose
        from ..runtime.files import write_text
        from ..teach.events import on
        from ..teach.views import VIEWS, build, pattern

        model, ids = build(**sizes)
        with on(choose(plain, as_json)) as stage:
            VIEWS[name](model, ids, digits)
        if as_json:
            print_json(stage.drawn)
        if svg:
            title, heads, tokens = pattern(name, model, ids)
            maps = [(f"head {i}", rows.tolist()) for i, rows in enumerate(heads)]
            write_text(svg, heat_map(title, maps, tokens, tokens))


_view("forward", "Queries, keys, values, scores, pattern and output, in order.")
_view("decode", "Token by token: the cache, its bytes, and which arrays share memory.")
_view("backward", "The gradient of each array, then of each weight.")

COMMANDS = (trace,)
