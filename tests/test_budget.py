"""The house rules, held by a machine: line budgets, floors without circles, few dependencies,
docstrings.

`python tests/test_budget.py` prints the table. Code lines are what is left without docstrings,
comments and blanks.
"""

import ast
import io
import subprocess
import sys
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minqkv"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module, or a package of them, imports from lower floors and from its own package. Empty places
# may still be filled.
FLOORS = [
    {"version", "errors"},
    {"backend", "rng", "files", "variants", "stats", "published", "workers"},
    {"debug", "tracing", "positions"},
    {"tensor", "cache"},
    {"ops", "fused", "optim"},
    {"composed", "functional", "checking", "nn", "reading"},
    {"attention", "letters"},
    {"models", "tasks", "shards"},
    {"decoding", "train"},
    {"runs"},
    {"convert", "diagnose", "selfcheck", "doctor"},
    {"study"},
    {"render"},
    {"teach"},
    {"cli"},
    {"__main__"},
]

ENGINE = {
    "backend",
    "debug",
    "tensor",
    "ops",
    "fused",
    "composed",
    "functional",
    "checking",
    "tracing",
}
SPINE = {"nn", "optim", "variants", "cache", "positions", "attention", "models", "reading", "workers", "letters",
         "shards", "train", "runs", "decoding"}  # fmt: skip
BUDGETS = {  # the largest number of code lines; a budget that must grow is raised in a commit of its own that says why
    "engine": (ENGINE, 840),
    "spine, with the engine": (ENGINE | SPINE | {"errors", "rng", "files", "version"}, 2390),
    "tasks, study and what measures": (
        {"tasks", "study", "stats", "published", "convert", "diagnose", "selfcheck", "doctor"}, 1100),
    "cli, and the way in": ({"cli", "__main__", "__init__"}, 900),
    "teach, render": ({"teach", "render"}, 1520),
}  # fmt: skip


def unit(path):
    """The top-level module or package a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def code_lines(source):
    """Lines that carry code: no docstring, comment or blank."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node) is not None
        ):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    nothing = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def counts():
    """Unit -> code lines."""
    lines = {}
    for path in FILES:
        lines[unit(path)] = lines.get(unit(path), 0) + code_lines(path.read_text("utf-8"))
    return lines


def report():
    """The table of budgets, as text."""
    lines = counts()
    rows = []
    for name, (units, budget) in BUDGETS.items():
        present = sorted((u for u in units if u in lines), key=lambda u: -lines[u])
        rows.append(
            f"{sum(lines[u] for u in present):5} of {budget:5}  {name}: {', '.join(f'{u} {lines[u]}' for u in present)}"
        )
    return "\n".join(rows)


def imports(path):
    """What a file imports, at any depth: ("minqkv.x.y" or "numpy", the node, whether inside a
    function).
    """
    tree = ast.parse(path.read_text("utf-8"))
    inside = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(f)
    }
    package = ["minqkv", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])]
            )
            base = base if node.level else node.module
            names = [
                f"{base}.{alias.name}" if module_path(f"{base}.{alias.name}") else base
                for alias in node.names
            ]
        else:
            continue
        yield from ((name, id(node) in inside) for name in names)


def module_path(name):
    """The file behind "minqkv.x.y", or None."""
    stem = PACKAGE.parent.joinpath(*name.split("."))
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.exists()), None)


def ours(path):
    """The files of this package that a file imports."""
    return {module_path(name) for name, _ in imports(path) if name.split(".")[0] == "minqkv"}


SAMPLE = '''"""Doc.

More."""

x = 1  # one
# none
text = """

three
"""


def f(
    a,
):
    """Doc."""
    return a
'''


def test_what_counts_as_code():
    assert code_lines(SAMPLE) == 1 + 4 + 3 + 1
    assert code_lines('class A:\n    """Doc."""\n\n    "no docstring"\n') == 2


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(name):
    units, budget = BUDGETS[name]
    lines = counts()
    assert sum(lines.get(u, 0) for u in units) <= budget, "\n" + report()


def test_every_file_has_a_budget_and_a_floor():
    print("\n" + report())
    units = {unit(path) for path in FILES}
    assert units - set().union(*(u for u, _ in BUDGETS.values())) == set()
    assert units - set().union(*FLOORS) == {"__init__"}
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_floors(path):
    floor = {u: i for i, units in enumerate(FLOORS) for u in units} | {
        "__init__": 0.5
    }  # after version
    for target in ours(path):
        assert target is not None
        same_package = unit(path) == unit(target) and unit(path) != path.stem
        assert same_package or floor[unit(target)] < floor[unit(path)], (
            f"{unit(path)} imports {unit(target)}"
        )


def test_no_circles():
    """Imports inside functions count; a package imports its own modules, never the other way round."""
    graph = {path: ours(path) for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies(path):
    """The standard library, and where each of the four others may be: cupy only in the backend,
    inside a function.
    """
    for name, inside in imports(path):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top == "minqkv":
            continue
        assert top in {"numpy", "click", "rich", "cupy"}, f"{path.name} imports {name}"
        if top == "cupy":
            assert inside
            assert unit(path) == "backend"
        if top == "rich":
            assert unit(path) in {"render", "teach"}
        if top == "click":
            assert unit(path) == "cli"


LIGHT = [
    "import minqkv; dir(minqkv)",
    "from minqkv.cli import main; main([])",
    "from minqkv.cli import main; main(['lesson', 'list'])",
    "from minqkv.cli import main; main(['--help'])",
    "from minqkv.cli import main; main(['--version'])",
    "from minqkv.cli import main; main(['study', '--help'])",
    "from minqkv.cli import main; main(['no-such-command'])",
]


@pytest.mark.parametrize("code", LIGHT)
def test_starts_without_numpy(code):
    """What only talks must not wait for what computes."""
    check = "import atexit, sys; atexit.register(lambda: print('LOADED', *sorted({'numpy', 'rich', 'cupy'} & set(sys.modules))))\n"
    done = subprocess.run(
        [sys.executable, "-c", check + code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "LOADED", done.stdout[-300:] + done.stderr[-1000:]
    assert "Traceback" not in done.stderr


def test_a_tensor_alone_can_compute():
    """Names load lazily: `mq.Tensor` must bring its operators along."""
    code = "import minqkv as mq; x = mq.Tensor([3.0]); assert ((x + x) * x).item() == 18"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, timeout=60)


def undocumented(tree):
    """Names of public classes, functions and methods without a docstring, unless what a method
    overrides has one.
    """
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def documented(cls, name):
        own = [f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == name]
        bases = [classes[b.id] for b in cls.bases if isinstance(b, ast.Name) and b.id in classes]
        of_a_library = any(
            isinstance(b, ast.Attribute) for b in cls.bases
        )  # click.Group: documented there
        return (
            of_a_library
            or any(ast.get_docstring(f) for f in own)
            or any(documented(base, name) for base in bases)
        )

    for node in tree.body:
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            yield node.name
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name in [f.name for f in node.body if isinstance(f, ast.FunctionDef)]:
                if not (
                    name.startswith("_") or name in ("forward", "update") or documented(node, name)
                ):
                    yield f"{node.name}.{name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the file says nothing about itself"
    assert list(undocumented(tree)) == []


if __name__ == "__main__":
    print(report())
