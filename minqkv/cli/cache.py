"""`minqkv check-cache`: check a user's cache class against the laws of a cache."""

import math
import os
from contextlib import contextmanager

import click

from ..runtime.errors import Exit, UsageError
from ..variants import VARIANTS
from .options import Known, Listed, computes, own_class, print_json


@click.command("check-cache")
@click.argument("name", metavar="MODULE:CLASS")
@click.option(
    "--bound",
    type=click.FloatRange(0),
    default=1e-10,
    show_default=True,
    help="Largest difference allowed between logits with the cache and without it, in float64.",
)
@click.option(
    "--variants",
    type=Listed(Known(VARIANTS)),
    help="Variants of the models, which have four heads.  [default: all, with 2 KV heads]",
)
@computes
def check_cache(name, bound, variants, as_json):
    """Check that your own cache class obeys the laws of a cache.

    MODULE:CLASS names a class in a file of this folder, derived from minqkv.KVCache; see
    examples/own_cache.py. Tiny models of each variant and position scheme read the same tokens
    through it in many ways, and their logits are compared with those without a cache. A cache
    that rounds what it stores is compared with a model that rounds the same rows. The exit code
    is 1 if a law is broken.
    """
    import numpy as np

    from ..analysis.laws import by_law, check, check_class
    from ..render.progress import patient
    from ..variants import VariantSpec, variant_names

    if math.isnan(bound):  # nothing is above it
        raise UsageError("--bound nan would let every cache pass", "--bound 1e-10")
    for variant in variants or ():
        VariantSpec.parse(variant).for_heads(4)
    rows, variants = [], variants or variant_names(2)
    with _no_exit(), patient("check", len(variants)) as advance:
        kind = check_class(name, own_class(name, "cache", "my_file:MyCache"))
        for i, variant in enumerate(variants):
            with np.errstate(all="ignore"):  # a wrong cache is reported, not warned of
                rows += check(kind, bound, (variant,))
            advance(i + 1)
    laws = by_law(rows)
    if as_json:
        print_json(laws)
    else:
        from ..render.info import law_table

        law_table(name, laws)
    return None if all(law["ok"] for law in laws) else Exit.CHECK_FAILED


@contextmanager
def _no_exit():
    """A class that ended this process with exit code 0 would seem to obey every law."""

    def refuse(code):
        raise RuntimeError(f"the code calls os._exit({code})")

    before, os._exit = os._exit, refuse
    try:
        yield
    finally:
        os._exit = before


COMMANDS = (check_cache,)
