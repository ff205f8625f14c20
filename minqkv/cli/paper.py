"""`minqkv paper`."""

import contextlib
import io
import json
import shlex
from pathlib import Path

import click

from ..runtime.errors import MinqkvError
from ..runtime.shown import counted
from .options import Known, Listed, computes, print_json
from .report import html_option
from .study import study


def _tables():
    from ..study.paper import tables

    return [table.name for table in tables({}, None)]


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--table",
    "names",
    type=Listed(Known(_tables)),
    help="Only these tables, by the names in brackets.",
)
@click.option(
    "--run",
    type=click.Choice(["quick", "all"]),
    help="First run the studies behind our numbers: those that fit into ten minutes, or all.",
)
@click.option("--jobs", type=click.IntRange(1), help="For --run: see `minqkv study`.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/paper"),
    show_default=True,
    help="For --run: the parent folder of the studies.",
)
@html_option
@click.option("--dry-run", is_flag=True, help="Print what --run would run, and its duration.")
@computes
def paper(folders, names, run, jobs, out, html, dry_run, as_json):
    """The paper's tables and claims beside ours: what agrees, what does not, what was not run.

    Ours are the committed results. FOLDERS are your own studies: they replace our
    runs of the same settings, and add missing ones.
    """
    from ..render.console import say, stderr, stdout
    from ..render.document import Section, Text, show, write_html
    from ..render.paper import headline, sections
    from ..study.measured import committed, in_folder, merged
    from ..study.paper import as_data, tables

    if dry_run and not run:
        raise click.UsageError("--dry-run needs --run quick or --run all")
    tables({}, names)  # refuses an unknown name now, not after hours of --run
    given = [in_folder(folder) for folder in folders]
    if run:
        plans = _plan(run, out, jobs, as_json and dry_run)
        if dry_run:
            return
        given += [_run(name, args, out) for name, args in plans.items()]
    found = tables(committed() | merged(given), names)
    used = {folder for table in found for row in table.rows for folder in row.folders}
    for folder in folders if not names else ():
        if str(folder) not in used:
            say(stderr(), f"{folder}: nothing in it belongs to a table of the paper")
    if html:
        first = Section("Summary", [Text(headline(found))])
        write_html(html, "The paper and minqkv", [first, *sections(found)])
        say(stderr(), f"written: {html}")
    if as_json:
        print_json(as_data(found))
    elif not html:
        show(stdout(), headline(found), sections(found))


def _plan(which, out, jobs, as_json):
    """The studies that can be run: name -> arguments; on stderr, what each takes. With `as_json`,
    that is printed instead.
    """
    from ..render.console import duration, say, stderr
    from ..study.paper import studies

    plans, costs = {}, {}
    for name, (_, *args) in studies(quick=which == "quick").items():
        args += ["--out", str(out / name), *(["--jobs", str(jobs)] if jobs else [])]
        try:
            cost = json.loads(_study(*args, "--dry-run", "--json"))
        except MinqkvError as error:
            say(stderr(), f"{name} is left out: {error}. {error.hint or ''}".rstrip())
            continue
        plans[name], costs[name] = args, cost
        about = (
            f"{counted(cost['runs'], 'run')}, {cost['recorded']} of them on record in {cost['out']}"
        )
        say(stderr(), f"{name}: {about}; about {duration(cost['seconds'])}")
    seconds = sum(cost["seconds"] for cost in costs.values())
    say(
        stderr(),
        f"All together: about {duration(seconds)}. If you stop it, repeat the command to continue.",
    )
    if as_json:
        print_json({"studies": costs, "seconds": seconds})
    return plans


def _run(name, args, out):
    """Run a study, and read its results."""
    from ..render.console import command, stderr
    from ..study.measured import in_folder

    command(stderr(), shlex.join(["minqkv", "study", *args]))
    _study(*args)
    return in_folder(out / name)


def _study(*args):
    """What `minqkv study` prints to stdout with these arguments. Its progress goes to stderr."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(printed):
        study.main(list(args), standalone_mode=False, obj=["study", *args])
    printed.seek(0)
    return printed.read()


COMMANDS = (paper,)
