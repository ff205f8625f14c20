"""The command line: parse, call, render. Nothing here computes, and `--help` imports no NumPy.

Results go to stdout, progress and errors to stderr. An error is one line that says what happened
and why; if something fixes it, a second line says what. Exit codes: errors.Exit.
"""

import codecs
import errno
import inspect
import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from difflib import get_close_matches

import click

from ..runtime.errors import Exit, MinqkvError
from ..runtime.files import printable
from ..runtime.signals import stopping
from ..runtime.version import __version__
from . import (
    cache,
    convert,
    data,
    diagnose,
    evaluate,
    generate,
    info,
    lesson,
    paper,
    plan,
    report,
    run,
    study,
    text,
    trace,
    vectors,
)  # fmt: skip


class Commands(click.Group):
    """A group that suggests the nearest name for one mistyped."""

    def get_command(self, ctx, name):
        command = super().get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            near = get_close_matches(name, self.commands, n=3, cutoff=0.5)
            raise click.UsageError(
                f"no command {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""),
                ctx,
            )
        return command


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="minqkv")
@click.pass_context
def cli(ctx):
    """Attention with shared projections: train it, compare it, measure its cache.

    `minqkv` alone shows where you are in the course; `minqkv learn` continues it. `minqkv study`
    compares variants at equal cache bytes, and first says how long it will take.
    """
    if ctx.invoked_subcommand is None:
        lesson.start_page()


SHOWN = (  # in this order
    lesson, trace, study, report, paper, plan, run, evaluate, diagnose, convert, generate, cache,
    vectors, text, data, info,
)  # fmt: skip
for module in SHOWN:
    for command in module.COMMANDS:
        cli.add_command(command)


def _add_help(command):
    """To this command and those below: under `python -OO`, click finds no docstrings."""
    from ..runtime.docs import docstrings

    function = inspect.unwrap(command.callback)
    command.help = command.help or docstrings(function.__code__.co_filename)[function.__name__]
    for each in getattr(command, "commands", {}).values():
        _add_help(each)


if sys.flags.optimize > 1:
    _add_help(cli)


def main(argv=None):
    """The entry point: runs a command, turns an error into a message and an exit code, exits."""
    sys.exit(run_cli(sys.argv[1:] if argv is None else argv))


def _spelled(error):
    """For `codecs`: what an encoding lacks, spelled out."""
    from ..render.layout import SPELLED

    lacking = error.object[error.start : error.end]
    return "".join(SPELLED.get(c, "?") for c in lacking), error.end


codecs.register_error("minqkv.spelled", _spelled)


def run_cli(argv):
    """`main` without the exit; returns the code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        # in an ASCII terminal, − is "-" and Δ is "?", not a crash
        getattr(sys, name).reconfigure(errors="minqkv.spelled")
    warnings.formatwarning = lambda message, *about: f"minqkv: {message}\n"
    for number in stopping():
        signal.signal(number, _interrupt)
    try:
        code = cli.main(argv, prog_name="minqkv", standalone_mode=False)
        sys.stdout.flush()
        return Exit.OK if code is None else code
    except BrokenPipeError:
        _silence_stdout()
        return Exit.OK
    except SystemExit as error:
        if "_MINQKV_COMPLETE" in os.environ:
            raise
        return Exit.OK if error.code == 1 else error.code  # click and rich on a broken pipe
    except (KeyboardInterrupt, click.Abort) as error:  # click turns the first into the second
        return _complain(argv, "interrupted", str(error.__cause__ or error), Exit.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except MinqkvError as error:
        return _complain(argv, str(error), error.hint, error.code)
    except Exception as error:
        if isinstance(error, OSError):
            _silence_stdout()
        if lacking := _lacking(error, argv[0] if argv else None):
            return _complain(argv, *lacking, Exit.ENVIRONMENT)
        what = f"unexpected {type(error).__name__}: {error}"
        hint = "this is a bug in minqkv: please report it, with what --traceback and "
        return _complain(argv, what, hint + "`minqkv doctor` print", Exit.CHECK_FAILED)


def _lacking(error, command):
    """What happened, and what to do, if a resource of this process is the cause; None for a bug."""
    if "minqkv.runtime.backend" in sys.modules:
        from ..runtime.backend import out_of_memory

        if why := out_of_memory(error):
            return why, _SMALLER.get(command, "choose a smaller size")
    try:
        os.getcwd()
    except OSError:
        return "the working directory is gone", "cd to another folder, and repeat the command"
    if isinstance(error, OSError):
        what = f"{error.filename or 'output'}: {error.strerror}"
        return what, _CURES.get(error.errno, "check free space and permissions")
    if isinstance(error, ImportError) and not (error.name or "").startswith("minqkv"):
        why = str(error).partition("\n")[0]
        if "failed to map" in why or "annot allocate" in why:  # the library itself is whole
            return f"out of memory: {why}", _CURES[errno.ENOMEM]
        return f"a library cannot be loaded: {why}", "install it again, with pip"
    if "can't start new thread" in str(error):
        return "no further thread can be started", _CURES[errno.EAGAIN]
    return None


_SMALLER = {
    "train": "--recompute needs less, also with --resume: the last checkpoint is kept; so does, in "
    "a new folder, --set accumulate=N or a smaller --set batch=N",
    "study": "finished runs are kept; use fewer --jobs, --set accumulate=N or a smaller model",
    "generate": "ask for fewer sequences or tokens, or use --cache int8",
}
_CURES = {
    errno.EAGAIN: "this user has too many processes and threads: see ulimit -u",
    errno.EMFILE: "too many files are open: see ulimit -n",
    errno.ENOMEM: "free some memory, or choose a smaller size",
}


def _interrupt(number, frame):
    raise KeyboardInterrupt


def _complain(argv, message, hint, code):
    if "--traceback" in argv:
        traceback.print_exc()
    with suppress(OSError):
        click.echo(f"minqkv: {printable(message)}", err=True)
        if hint:
            click.echo(f"        {printable(hint)}", err=True)
    return code


def _silence_stdout():
    """Nobody reads any more: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
