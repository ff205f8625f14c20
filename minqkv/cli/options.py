"""Options and parameter types that several commands share."""

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from fractions import Fraction
from functools import wraps
from importlib.resources import files

import click
from click.shell_completion import CompletionItem

from ..runtime.errors import EnvironmentFault, UsageError, unknown
from ..runtime.files import opened, text_of
from ..tasks.rules import FORMS, TOKENIZERS, YEARS
from ..variants import POSITIONS, ROPE_VALUES

MOST = 10_000  # seeds, or samples of a prompt


class Known(click.ParamType):
    """A word. Completion offers these names; a function gives them where they are not at hand."""

    name = "text"

    def __init__(self, names):
        self.names = names

    def shell_complete(self, ctx, param, incomplete):
        """What the word may become; of a list or of layers, its last part."""
        names = self.names() if callable(self.names) else self.names
        last = re.split("[,/]", incomplete)[-1]
        before = incomplete.removesuffix(last)
        found = [name.replace("-N", "-2") for name in names if name.startswith(last)]
        return [CompletionItem(before + name) for name in found]


class Amount(click.ParamType):
    """A whole number of `what`, with a unit of `units` or without: LENGTH and SIZE."""

    def __init__(self, what, units, example, most):
        self.name, self.units, self.example, self.most = what, units, example, most

    def convert(self, value, param, ctx):
        if re.search("[KMGTP]b", str(value)):
            self.fail(f"{value} counts bits; bytes are {str(value).replace('b', 'B')}", param, ctx)
        text = str(value).strip().lower().removesuffix("/s" if "b" in self.units else "")
        found = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?) ?([a-z]*)", text, re.ASCII)
        if not found or found[2] not in self.units:
            self.fail(f"{value!r} is not a {self.name}: write {self.example}", param, ctx)
        amount = Fraction(found[1]) * self.units[found[2]]
        if not 1 <= amount <= self.most:
            self.fail(f"{value} is not in the range from 1 to {self.most:,}", param, ctx)
        if amount.denominator > 1:
            self.fail(f"{value} is not a whole number: {float(amount):.6g}", param, ctx)
        return int(amount)


# As the field writes lengths, 32k is 32 · 1,024. As memory is sold, a GB is 10⁹ bytes; a GiB is
# 2³⁰. "8G" could be either.
LENGTH = Amount("length", {"": 1, "k": 2**10, "m": 2**20}, "512, 32k (32,768) or 1M", 10**12)
_UNITS = {f"{unit}b": 1000**n for n, unit in enumerate(["", *"kmgtp"])}
_UNITS |= {f"{unit}ib": 1024**n for n, unit in enumerate("kmgtp", 1)}
SIZE = Amount("size", {"": 1} | _UNITS, "8GB (10⁹ bytes each) or 8GiB (2³⁰)", 10**18)


class Listed(click.ParamType):
    """A comma-separated list: `16,64`. A lone number with `counts` means that many, from 0."""

    name = "list"

    def __init__(self, kind=str, counts=False):
        self.kind, self.counts = kind, counts

    def shell_complete(self, ctx, param, incomplete):
        """The parts are completed where they are names."""
        known = isinstance(self.kind, Known)
        return self.kind.shell_complete(ctx, param, incomplete) if known else []

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            value = str(value)
            asked = (param, ctx) if isinstance(self.kind, click.ParamType) else ()
            parts = [part.strip() for part in value.split(",") if part.strip()]
            parts = tuple(self.kind(part, *asked) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not a list of {self.kind.__name__}s, such as 1,2", param, ctx)
        if not parts:
            self.fail("the list is empty", param, ctx)
        if self.counts and "," not in value:
            if parts[0] < 1:
                self.fail(f"at least 1 is needed, not {value}", param, ctx)
            if parts[0] > MOST:
                self.fail(f"at most {MOST:,} of them", param, ctx)
            return tuple(range(parts[0]))
        return parts


def either(names):
    """ "raw or unrotate", "a, b or c": registered names, for a help text."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


TOKENIZER_HELP = "; ".join(f"{name}: {about}" for name, about in TOKENIZERS.items()) + "."


# ---- the settings of a run

SETTINGS = {  # name -> (type, help), of fields of tasks and recipes that have a flag
    "seq_len": (LENGTH, "Length T, such as 64 or 2k (2,048)."),
    "text": (str, "A file, a folder, - (stdin) or a download.  [default: the built-in text]"),
    "tokenizer": (Known(TOKENIZERS), f"For texts: {either(TOKENIZERS)}.  [default: chars]"),
    "data": (str, "For images: a folder of them, or a download.  [default: generated shapes]"),
    "alphabet": (int, "How many digits there are."),
    "form": (Known(FORMS), f"{either(FORMS)}: label each digit, or continue `input | output`."),
    "protocol": (Known(YEARS), f"{either(YEARS)}: data, blocks, optimiser."),
    "pairs": (int, "Pairs P of a recall task."),
    "keys": (int, "How many keys, and values, a recall task has."),
    "n_layer": (int, "Number of layers L."),
    "n_head": (int, "Number of heads H."),
    "n_embd": (int, "Width d."),
    "head_dim": (int, "Head width, if not d / H."),
    "position": (Known(POSITIONS), f"{either(POSITIONS)}."),
    "rope_value": (Known(ROPE_VALUES), f"What K = V stores under rope: {either(ROPE_VALUES)}."),
    "window": (LENGTH, "For texts: tokens that each token sees, itself included.  [default: all]"),
    "recompute": (bool, "For texts: compute each block again in backward, to save memory."),
    "steps": (int, "Training steps."),
    "lr": (float, "Peak learning rate."),
}


def settings(listed=False):
    """Options for SETTINGS, and --set for any other setting; the task's defaults fill in the rest.
    With `listed`, each takes several values.
    """

    def add(command):
        several = ", or several: 2,4" if listed else ""
        command = click.option(
            "--set",
            "more",
            multiple=True,
            metavar="NAME=VALUE",
            help=f"Any other setting of the task or its recipe{several}.",
        )(command)
        for name, (kind, about) in reversed(SETTINGS.items()):
            flag = "--" + name.replace("_", "-")
            if listed and name == "lr":
                about += " If several are given, one is chosen for each arm."
            of_type = {"is_flag": True, "default": None} if kind is bool else {"type": kind}
            if listed:
                of_type = {"type": Listed(kind)}
            command = click.option(flag, **of_type, help=about)(command)
        return command

    return add


def given_settings(flags, more, listed=False):
    """The settings that were given, by name; those under [set] in a --config file give way to all
    others. Raises UsageError for a --set that has no value.
    """
    found = {name: flags.pop(name) for name in SETTINGS}
    found = {name: value for name, value in found.items() if value is not None}
    in_file = click.get_current_context().meta.get(_SET, ())
    return _set(in_file, listed) | found | _set(more, listed)


_OWN_FLAGS = ("task", "tasks", "equal_bytes", "equal_params", "selection_seeds")


def _set(texts, listed):
    """The values of --set NAME=VALUE, by name."""
    found = {}
    for text in texts:
        name, is_given, value = text.partition("=")
        if not is_given or not value:
            raise UsageError(f"--set {text}: a name and a value are needed", "--set plus_start=-1")
        if name.strip().replace("-", "_") in _OWN_FLAGS:
            flag = "--" + name.strip().replace("_", "-")
            raise UsageError(f"--set {text}: it has its own flag", f"use {flag}")
        name = name.strip().replace("-", "_")
        kind = SETTINGS.get(name, (None,))[0]
        read = _word if kind is str or isinstance(kind, Known) else _literal
        read = kind if isinstance(kind, Amount) else read
        values = tuple(read(part.strip()) for part in value.split(","))
        found[name] = values if listed else read(value.strip())
    return found


def _literal(text):
    try:
        return json.loads(text)  # a number, true or false
    except ValueError:
        return text


def _word(text):
    """A value that is a word, though it may look like a number: protocol=2023."""
    value = _literal(text)
    return value if isinstance(value, str) else text


def look_here():
    """Let modules of the current folder be imported, as `python` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def own_task(name):
    """The class of a task MODULE:CLASS; None for other tasks."""
    if name is None or ":" not in name:
        return None
    from ..tasks.registry import check_class

    return check_class(name, own_class(name, "task", "my_file:MyTask"))


def own_class(name, what, example):
    """Import MODULE:CLASS, or MODULE:FUNCTION if `what` is "function", from the current folder or
    sys.path. Raises UsageError if it fails.
    """
    from importlib import import_module

    module, _, cls = name.partition(":")
    kind = "function" if what == "function" else "class"
    if not cls or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"a {what} of your own is MODULE:{kind.upper()}, not {name}", example)
    look_here()
    try:
        found = import_module(module)
    except ImportError as error:
        cure = f"MODULE:{kind.upper()} names a file {module}.py here, or an installed package"
        raise UsageError(f"cannot import {module}: {error}", cure) from error
    except (Exception, SystemExit) as error:  # a script ends with sys.exit()
        raise UsageError(f"{module} raised {type(error).__name__}: {error}") from error
    if not hasattr(found, cls):
        raise unknown(f"{kind} of {module}", cls, [n for n in vars(found) if not n.startswith("_")])
    return getattr(found, cls)


def prepared(name, own, given):
    """The settings of a task, completed by what it reads or prepares; see Task.prepared."""
    from ..render.progress import patient
    from ..tasks.registry import task_class

    with patient("prepare the data", 100) as advance:
        return task_class(name, own).prepared(given, advance)


# ---- flags from a file

PRECISIONS = ("fp32", "tf32", "bf16")  # of kernels/products.py
CONFIGS = ("nano", "small", "300m", "1.2b")  # in minqkv/configs
# Only on the command line:
_TYPED = ("config", "show-config", "backend", "precision", "no-kernels", "traceback")
_SET = "minqkv: [set]"  # the key of a file's [set] values in click's context


def configurable(command):
    """--config and --show-config."""
    command = click.option(
        "--show-config", is_flag=True, help="Print the resulting settings as TOML, and stop."
    )(command)
    return click.option(
        "--config",
        type=click.Path(),
        is_eager=True,
        expose_value=False,
        callback=_read_flags,
        metavar="FILE.toml",
        help=f"Read flags from a file: `n-head = 4`. Flags that you type take precedence. For "
        f"language models there are built-in files: {either(CONFIGS)}.",
    )(command)


def _read_flags(ctx, param, path):
    if not path or ctx.resilient_parsing:
        return
    packaged = files("minqkv.configs") / f"{path}.toml"
    path = packaged if packaged.is_file() and not os.path.exists(path) else path
    known = {p.name: p for p in ctx.command.params if isinstance(p, click.Option)}
    spelled = {flag.removeprefix("--"): p.name for p in known.values() for flag in p.opts}
    flags = {}
    for key, value in _read_toml(path).items():
        name = spelled.get(key.replace("_", "-"))
        if name is None or name.replace("_", "-") in _TYPED:
            raise unknown(f"key in {path}:", key, [k for k in spelled if k not in _TYPED])
        if name == "more" and isinstance(value, dict):
            ctx.meta[_SET] = [f"{k}={_as_set(v)}" for k, v in value.items()]
        elif name == "more" or not _fits(value, known[name]):
            raise UsageError(f"{key} in {path} cannot be {value!r}")
        else:  # as typed; the comma marks a list of one number, which is not a count
            one = isinstance(value, list) and len(value) == 1
            flags[name] = value if known[name].is_flag else _as_text(value) + "," * one
    ctx.default_map = {**(ctx.default_map or {}), **flags}


def _fits(value, option):
    """Whether an option can take this value of a file."""
    if isinstance(value, list) and isinstance(option.type, Listed):
        return all(_fits(item, option) for item in value)
    if option.is_flag:
        return isinstance(value, bool)
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _as_text(value):
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _as_set(value):
    """A value for --set: a string that looks like a number stays a string."""
    if isinstance(value, list):
        return ",".join(map(_as_set, value))
    numeric = isinstance(value, str) and _literal(value) != value
    return json.dumps(value) if numeric else _as_text(value)


def _read_toml(path):
    try:
        with opened(path) as file:
            return tomllib.loads(text_of(file.read()))
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def print_toml(flags):
    """Print settings as a file that --config reads: those with their own flag, then [set]."""
    own = {name: value for name, value in flags.items() if name in SETTINGS or name in _FLAGS}
    for name, value in own.items():
        click.echo(f"{name.replace('_', '-')} = {_toml(value)}")
    rest = {name: value for name, value in flags.items() if name not in own}
    if rest:
        click.echo("\n[set]")
    for name, value in rest.items():
        click.echo(f"{name} = {_toml(value)}")


_FLAGS = {
    *("task", "tasks", "variant", "variants", "seed", "seeds", "threads", "equal_bytes"),
    *("equal_params", "selection_seeds", "preset"),
}


def _toml(value):
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _use_backend(ctx, param, value):
    if not ctx.resilient_parsing:
        from ..runtime.backend import set_backend, tame_allocator

        tame_allocator()
        if value:
            set_backend(value)


def _use_kernels(ctx, param, off):
    if not ctx.resilient_parsing:
        from ..runtime.backend import use_kernels

        use_kernels(not off)


def computes(function):
    """--backend, --precision, --no-kernels and --traceback, for commands that compute; the
    allocator is tamed for them.
    """

    @wraps(function)
    def run(*given, precision, **options):
        from ..runtime.backend import use_precision

        use_precision(precision)  # here, where --backend has been read
        return function(*given, **options)

    command = click.option(
        "--precision",
        envvar="MINQKV_PRECISION",
        type=Known(PRECISIONS),
        default="fp32",
        help="On a GPU, how products round their factors: fp32, tf32 or bf16.  [default: fp32]",
    )(run)
    command = click.option(
        "--no-kernels",
        is_flag=True,
        envvar="MINQKV_NO_KERNELS",
        callback=_use_kernels,
        expose_value=False,
        help="On a GPU: only the readable code, without the package's own kernels.",
    )(command)
    command = click.option(
        "--backend",
        envvar="MINQKV_BACKEND",
        metavar="NAME",
        callback=_use_backend,
        expose_value=False,
        help="numpy, or cupy for a GPU.  [default: $MINQKV_BACKEND or numpy]",
    )(command)
    return reports(command)


def reports(command):
    """--json and --traceback, for every command that reports something."""
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON value instead of text."
    )(command)
    return click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        help="On an error, also print the Python traceback.",
    )(command)


def stages(command):
    """--plain and --svg, for commands that show arrays."""
    command = click.option(
        "--svg", type=click.Path(dir_okay=False), help="Also save a figure as an SVG file."
    )(command)
    return click.option("--plain", is_flag=True, help="No colour.")(command)


def echo(text, indent=0):
    """Print a text, wrapped to the terminal; its further lines are indented. It is not broken at a
    no-break space, which is printed as a plain one.
    """
    width = shutil.get_terminal_size((100, 25)).columns
    further = indent if isinstance(indent, str) else " " * indent
    filled = textwrap.fill(text, width, subsequent_indent=further, break_on_hyphens=False)
    click.echo(filled.replace("\u00a0", " "))


def print_json(value):
    """One JSON value on stdout. JSON has no NaN and no infinity: null instead."""
    value = json.loads(json.dumps(value), parse_constant=lambda name: None)
    click.echo(
        json.dumps(value, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf"), indent=1)
    )


def cores():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_line():
    """The command as typed, for results files; or as another command has made it up."""
    made_up = click.get_current_context().find_root().obj
    return "minqkv " + shlex.join(made_up or sys.argv[1:])
