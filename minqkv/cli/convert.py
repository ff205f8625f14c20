"""`minqkv convert`: a trained run as another variant."""

from pathlib import Path

import click

from ..runtime.errors import UsageError
from ..runtime.shown import pasted
from ..variants import VARIANTS
from .options import Known, Listed, computes, own_task, print_json
from .run import own_task_option


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--to", required=True, type=Known([*VARIANTS, "slim"]), help="A variant; or slim: only K kept."
)
@click.option("--method", "chosen", type=Listed(), help="One, or several.  [default: all]")
@click.option(
    "--steps", type=click.IntRange(0), default=0, help="Then train further, for this many steps."
)
@click.option("--out", type=click.Path(path_type=Path), help="Keep the result: a new run folder.")
@own_task_option
@computes
def convert(runs, to, chosen, steps, out, own, as_json):
    """Convert a trained run to another variant.

    A table shows what each method loses. From separate K and V to K = V: keep_k, keep_v, avg,
    procrustes (V is aligned with K before the mean) and refit-q (V stays, and W_Q is fitted to it).
    To fewer KV heads: pool, and align (heads are aligned before the mean). Exact: copy, for what
    was shared, and slim. The run stays as it is. Several runs that differ in their seeds give means
    with 95 % intervals.
    """
    from ..analysis.convert import SLIM, methods
    from ..analysis.converted import check_alike, check_free, convert_run, finished, write_run
    from ..render.convert import show
    from ..render.progress import patient
    from ..runtime.parallel import set_threads

    originals = [finished(run, own_task(own)) for run in runs]
    check_alike([one.config for one in originals])
    first, chosen = originals[0], [*dict.fromkeys(chosen or methods(originals[0].model, to))]
    if out and (len(runs) > 1 or len(chosen) > 1):
        raise UsageError("--out keeps one converted run", f"one RUN, and --method {chosen[-1]}")
    if to == SLIM and (out or steps):
        why = "slim computes V from the weights of qkv, which stay as they are in the run"
        raise UsageError(why, "leave out --steps and --out; in Python: designs.layers.slimmed")
    if out:
        check_free(out)
    set_threads(first.config.threads)
    found = {method: [] for method in chosen}
    with patient("convert", len(runs) * len(chosen) * (steps + 1)) as advance:
        done = 0

        def one_more():
            nonlocal done
            advance(done := done + 1)

        for original in originals:
            for method in chosen:
                found[method].append(convert_run(original, to, method, steps, one_more))
    if out:
        write_run(out, original, found[method][0], method)
    report = _report(runs, originals, to, steps, found)
    if as_json:
        print_json(report)
        return
    show(report)
    if out:
        click.echo(f"kept in {out}; score it: minqkv eval {pasted(out)}")


def _report(runs, originals, to, steps, found):
    """What --json prints, and the table shows."""
    from ..analysis.converted import SHARE, bytes_per_token

    config, metric = originals[0].config, originals[0].config.task.metric
    twin = next(iter(found.values()))[0].model
    return {
        "task": config.task.name,
        "variant": config.variant,
        "to": to,
        "metric": metric,
        "split": config.split,
        "runs": [str(run) for run in runs],
        "trained": config.recipe.steps,
        "steps": steps,
        "lr": SHARE * config.recipe.lr if steps else None,
        "bytes_per_token": [bytes_per_token(model) for model in (originals[0].model, twin)],
        "scores": [one.result[metric] for one in originals],
        "methods": {
            method: {
                "zero_shot": [one.scores[0][metric] for one in made],
                "after": [one.scores[-1][metric] for one in made] if steps else None,
            }
            for method, made in found.items()
        },
    }


COMMANDS = (convert,)
