"""`minqkv generate`: a decoder answers, or writes."""

import sys
from itertools import chain
from pathlib import Path

import click

from ..caches import KINDS
from ..caches import options as cache_options
from ..runtime.errors import UsageError, unknown
from ..runtime.shown import counted
from .evaluate import best_option, loaded
from .options import LENGTH, MOST, Known, computes, either, print_json
from .run import own_task_option, threads_option

CONTROL = {i: "\ufffd" for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1)
@own_task_option
@click.option(
    "--max-new-tokens",
    type=LENGTH,
    help="Add at most this many tokens.  [default: as many as in training; for a text, up to the "
    "end token, or as many as fit]",
)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy."
)
@click.option("--top-k", type=click.IntRange(1), help="Draw only from the k likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw only from the likeliest tokens: the fewest whose probabilities reach p.",
)
@click.option(
    "--samples",
    type=click.IntRange(1, MOST),
    default=1,
    help="Draw this many answers to each prompt.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws."
)
@click.option(
    "--cache",
    "kind",
    type=Known(KINDS),
    default="plain",
    help=f"{either(KINDS)}.  [default: plain]",
)
@click.option("--window", type=LENGTH, help="Window of a ring.  [default: the model's]")
@click.option("--sinks", type=click.IntRange(0), help="Sinks of a ring.  [default: the model's]")
@click.option("--save-cache", type=click.Path(), help="After reading PROMPT, save the cache.")
@click.option("--load-cache", type=click.Path(), help="Start from a saved cache, then read PROMPT.")
@click.option("--no-cache", is_flag=True, help="Compute the whole text again for every token.")
@click.option("--show-cache", is_flag=True, help="Draw the cache on stderr as it grows.")
@click.option(
    "--compare",
    is_flag=True,
    help="Decode with and without the cache; print speed and bytes side by side.",
)
@best_option
@threads_option
@computes
def generate(
    run, prompt, own, max_new_tokens, kind, window, sinks, save_cache, load_cache, no_cache,
    show_cache, compare, best, threads, as_json, **sampling,
):  # fmt: skip
    """Let a trained decoder answer a PROMPT, or continue a text.

    A PROMPT is, for example, "3 1 4 1" or "Once upon". With a text, an empty PROMPT starts a
    new document. Without a PROMPT, each line of stdin is one, and all are read as one batch.
    The first answer is printed token by token.
    """
    from ..analysis.needs import check_cache_memory
    from ..caches import branches, load
    from ..generation import compare_cache, iter_tokens
    from ..runtime.parallel import set_threads

    _check(kind, no_cache, show_cache, compare, sampling)
    _check_files(save_cache, load_cache, prompt, kind, no_cache, compare)
    set_threads(threads)
    model, config = loaded(run, own, best)
    task, block_size = config.task, model.config.block_size
    ids = [task.prompt(text) for text in ([" ".join(prompt)] if prompt else _lines_of_stdin())]
    if remark := task.remark(ids):
        click.echo(f"note: {remark}", err=True)
    rows = [row for row in ids for _ in range(sampling["samples"])]
    longest = max(map(len, ids))
    more = longest + (max_new_tokens or 1) - 1  # positions; the last token is never read
    if model.config.bounded:
        more = 0  # there are none after block_size
    cache = load(load_cache, model, room=more) if load_cache else None
    room = block_size + 1 - longest - len(cache or ())
    count = max_new_tokens or task.n_answer or max(1, room)
    sampling["end"] = task.end
    options = _cache_options(kind, window, sinks, model.config)
    if compare:
        _compare(compare_cache(model, ids, count, options, **sampling), kind, as_json)
        return
    if cache is None and not no_cache:
        capacity = max(block_size, more)
        check_cache_memory(model, len(rows), capacity=capacity, **options)
        cache = model.new_cache(len(ids), capacity, **options)
    if cache is not None:
        cache = branches(cache, sampling["samples"])
    tokens = iter_tokens(model, ids, count, use_cache=not no_cache, cache=cache, **sampling)
    if save_cache:
        tokens = _saving(tokens, cache, save_cache, model)
    watch = None
    if show_cache:
        from ..render.cache import Watch

        next(iter_tokens(model, [ids[0][:1]], 1))  # a warm-up: the first call takes longer
        watch = Watch(cache, model.config, sum(map(len, ids)))
        tokens = watch.follow(tokens)
        tokens = chain([next(tokens)], tokens)
        watch.show_prompts()
    try:
        if as_json:
            _print_json(task, rows, list(tokens), cache)
        else:
            _write(task, rows, tokens)
    finally:
        if watch:
            watch.show_all()


def _check_files(save_cache, load_cache, prompt, kind, no_cache, compare):
    """--save-cache and --load-cache need a PROMPT, and a cache to save or to start from."""
    if not (save_cache or load_cache):
        return
    flag = "--load-cache" if load_cache else "--save-cache"
    if not prompt:
        what = "that continues the saved text" if load_cache else "to read into the cache"
        raise UsageError(f"{flag} needs a PROMPT {what}", f'minqkv generate RUN "…" {flag} FILE')
    if no_cache or compare:
        other = "--no-cache" if no_cache else "--compare"
        raise UsageError(f"{flag} and {other} cannot be combined", "leave one of them out")
    if load_cache and kind != "plain":
        raise UsageError("the saved cache already determines the kind", "leave out --cache")


def _saving(tokens, cache, path, model):
    """The same tokens; before the first of them, the cache is saved."""
    from ..caches import save

    for i, token in enumerate(tokens):
        if not i:
            save(cache.once(cache.batch), path, model)
        yield token


def _check(kind, no_cache, show_cache, compare, sampling):
    if kind not in KINDS:
        raise unknown("cache", kind, KINDS)
    if no_cache and (show_cache or compare or kind != "plain"):
        other = "--show-cache" if show_cache else "--compare" if compare else f"--cache {kind}"
        raise UsageError(f"{other} and --no-cache cannot be combined", "leave one of them out")
    if show_cache and compare:
        raise UsageError("--compare does not draw the cache", "leave out --show-cache")
    if not sampling["temperature"]:
        for name, usual in (("top_k", None), ("top_p", None), ("samples", 1)):
            if sampling[name] != usual:
                flag = "--" + name.replace("_", "-")
                why = f"{flag} has no effect: temperature 0 always takes the likeliest token"
                raise UsageError(why, "--temperature 1")


def _cache_options(kind, window, sinks, config):
    """Arguments of model.new_cache."""
    given = {"window": window, "sinks": sinks}
    given = {name: value for name, value in given.items() if value is not None}
    ring = KINDS[kind].windowed
    if given and not ring:
        raise UsageError("--window and --sinks are for a ring cache", "--cache ring")
    if ring and window is None and config.window is None:
        why = "this model was trained without a window, so the ring needs one"
        raise UsageError(why, f"for example: --window {max(1, config.block_size // 2)}")
    return cache_options(kind, **given)


def _lines_of_stdin():
    """Prompts, one per line; if there are none, an empty one."""
    if sys.stdin is None or sys.stdin.isatty():
        return [""]
    try:
        lines = sys.stdin.read().removeprefix("\ufeff").splitlines()  # some shells send a mark
    except UnicodeDecodeError as error:
        raise UsageError("the input on stdin is not text") from error
    return [line for line in lines if line.strip()] or [""]


def _write(task, rows, tokens):
    """Print prompts with their answers: the first token by token, then the others. After an
    interrupt, the other answers are printed as far as they are.
    """
    columns = []  # of tokens, one for each row

    def first():
        for column in tokens:
            columns.append(column.tolist())
            yield columns[-1][0]

    try:
        _print_one(task, rows, 0, first())
    finally:
        for i in range(1, len(rows)):
            _print_one(task, rows, i, [column[i] for column in columns])


def _print_one(task, rows, i, answer):
    """A prompt and its answer. Of several texts, each gets a heading: a text has many lines."""
    if len(rows) > 1 and not task.answers:
        click.echo(("\n" if i else "") + f"--- {i + 1} of {len(rows)}")
    plain = CONTROL if sys.stdout.isatty() else {}  # control characters would act on a terminal
    try:
        for piece in chain([task.decode(rows[i])], task.pieces(answer)):
            click.echo(piece.translate(plain), nl=False)
    finally:
        click.echo()


def _print_json(task, rows, tokens, cache):
    from ..runtime import backend

    found, held = [], cache.row_nbytes if cache else [0] * len(rows)
    for i, row in enumerate(rows):
        answer = [int(token[i]) for token in tokens]
        if task.end in answer:
            answer = answer[: answer.index(task.end) + 1]
        found.append({
            "prompt": row[:-1] if task.answers else row,  # without the separator
            "output": answer,
            "text": task.decode(row) + "".join(task.pieces(answer)),
            "cache_bytes": int(held[i]),
            "graph": backend.current.graphs > 0,  # a token was one CUDA graph
        })  # fmt: skip
    print_json(found)


def _compare(report, kind, as_json):
    if as_json:
        print_json({name: {**part, "ids": part["ids"].tolist()} for name, part in report.items()})
        return
    from ..render.console import bytes_text, stdout, table

    lines = []
    for name, part in report.items():
        speed = [f"{part['seconds'] * 1e3:.1f} ms", f"{part['tokens_per_second']:,.0f}"]
        lines.append([name, *speed, bytes_text(part["cache_bytes"])])
    columns = [("decoding", "left"), ("time", "right"), ("tokens/s", "right"), ("cache", "right")]
    n, new = len(report["cached"]["ids"]), report["cached"]["new_tokens"]
    title = f"{counted(n, 'sequence')}, {counted(new, 'new token')} each"
    table(stdout(), title, columns, lines)
    cached, uncached = (part["ids"].tolist() for part in report.values())
    why = "rounding decided a near tie" if kind == "plain" else f"--cache {kind} is not exact"
    same = cached == uncached
    click.echo("both give the same tokens" if same else f"the tokens differ: {why}")


COMMANDS = (generate,)
