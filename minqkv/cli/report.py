"""`minqkv report`: studies and runs as one page, as Markdown, or as text."""

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from ..runtime.errors import EnvironmentFault, UsageError
from ..runtime.files import read_sealed
from ..runtime.shown import pasted
from .options import SETTINGS, command_line, computes, own_task, print_json

html_option = click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write a report, one page that needs no network.",
)


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@html_option
@click.option("--markdown", is_flag=True, help="Print Markdown, for a README.")
@click.option("--task", help="MODULE:CLASS, for a run or an unfinished study of your own task.")
@computes
def report(folders, html, markdown, task, as_json):
    """Report studies and runs: tables, figures, intervals, and what they cannot show.

    FOLDERS were written by `minqkv study` or `minqkv train`.  [default: all in runs/]
    """
    from ..render.console import say, stderr, stdout
    from ..render.document import show, to_markdown, write_html

    folders = folders or _all_here()
    own = {task: own_task(task)} if task else {}
    title, sections, data = _compose(folders, own, command_line())
    if html:
        write_html(html, title, sections)
        say(stderr(), f"written: {html}")
    if as_json:
        print_json(data)
    elif markdown:
        click.echo(to_markdown(title, sections), nl=False)
    elif not html:
        show(stdout(), title, sections)


def write_page(folders, html, own):
    """Write the page of these folders; a line on stderr says where it is."""
    from ..render.console import say, stderr
    from ..render.document import write_html

    again = f"minqkv report {' '.join(map(pasted, folders))} --html {pasted(html)}"
    title, sections, _ = _compose(folders, own, again)
    write_html(html, title, sections)
    say(stderr(), f"written: {html}")


def _all_here():
    """The folders in runs/ that hold a study or a run."""
    from ..study.stored import is_study

    found = [path for path in sorted(Path("runs").glob("*")) if is_study(path) or _is_run(path)]
    if not found:
        cure = "name folders: minqkv report FOLDER…; or run a study first: minqkv study"
        raise UsageError("there is no study and no run in runs/", cure)
    return found


def _is_run(path):
    return (path / "config.json").exists()


def _compose(folders, own, command):
    """(title, Sections, data for --json) of one or several folders."""
    from ..render.document import Section

    parts = [_part(path, own, command) for path in folders]
    data = [found for *_, found in parts]
    if len(parts) == 1:
        return parts[0][0], parts[0][1], data
    return "Report", [Section(title, sections) for title, sections, _ in parts], data


def _part(path, own, command):
    """The same of one folder."""
    from ..study.stored import is_study

    if not path.is_dir():
        raise UsageError(f"{path} is not a folder", "name one written by minqkv study or train")
    if _is_run(path):
        return _run(path, own, command)
    if is_study(path):
        return _study(path, own, command)
    cure = "name a folder that minqkv study or minqkv train wrote, with --out or under runs/"
    raise EnvironmentFault(f"{path} contains neither a study nor a run", cure)


def _study(path, own, command):
    from ..render.report import study_sections
    from ..study.claims import as_data
    from ..study.stored import read_study

    stored = read_study(path, own)
    data = {"folder": str(path), "kind": "study", "planned": stored.planned}
    data |= {"runs": len(stored.records), "missing": stored.missing, "damaged": stored.damaged}
    data |= {"diverged": len(stored.diverged), "cells": [asdict(cell) for cell in stored.cells]}
    data |= {"contrasts": as_data(stored.findings)}
    title = f"Results of {path.resolve().name}"
    return title, study_sections(stored, command), data


def _run(path, own, command):
    from ..render.report import read_run, run_sections

    run = read_run(path, next(iter(own.values()), None))
    data = {"folder": str(path), "kind": "run", "config": asdict(run.config)}
    data |= {"steps": len(run.metrics), "result": run.result}
    title = f"Results of {path.resolve().name}"
    commands = (made_by(path, run.config), command)
    return title, run_sections(run, commands), data


def made_by(path, config):
    """The command that made a run folder. Of a converted one, RUN is the original."""
    origin = read_sealed(path / "config.json").get("converted")
    made = train_command(config)
    if origin:
        made = f"minqkv convert RUN --to {config.variant} --method {origin['method']}"
        made += f" --steps {origin['steps']}" * bool(origin["steps"])
    return f"{made} --out {pasted(path)}"


def train_command(config):
    """The `minqkv train` of a configuration: what differs from the defaults of its task."""
    task, recipe = asdict(config.task), asdict(config.recipe)
    usual = type(config.task)(task.pop("name"))
    steps = None if recipe["steps"] == usual.recipe().steps else recipe["steps"]
    defaults = asdict(usual) | asdict(usual.recipe(steps)) | {"steps": usual.recipe().steps}
    words = ["minqkv", "train", "--task", config.task.name, "--variant", config.variant]
    for name, value in {**task, **recipe}.items():
        if value != defaults[name] and value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            flag = "--" + name.replace("_", "-")
            own = name in SETTINGS and not isinstance(value, bool)
            words += [flag, text] if own else ["--set", f"{name}={text}"]
    words += ["--seed", str(config.seed), "--threads", str(config.threads)]
    return shlex.join(
        words + (["--set", "split=" + config.split] if config.split != "test" else [])
    )


COMMANDS = (report,)
