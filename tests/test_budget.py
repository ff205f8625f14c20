"""The rules of the house: line budgets, ranks without circles, few dependencies, short functions,
docstrings.

`python tests/test_budget.py` prints the table. Code lines are what is left without docstrings,
comments and blanks.
"""

import ast
import io
import json
import shutil
import subprocess
import sys
import tokenize
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import minqkv

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minqkv"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]

# A module, or a folder of them, imports from lower ranks and from its own folder.
BOOK = ("tensor", "reference", "functional", "checking", "nn", "optim", "variants", "attention",
        "online", "cache", "caches", "models", "designs", "train", "generation")  # fmt: skip
RANKS = [
    {"kernels"},
    {"runtime"},  # with these: what the book stands on
    *({unit} for unit in BOOK),
    {"tasks"},
    {"runs"},
    {"analysis"},
    {"study"},
    {"render"},
    {"teach"},
    {"cli"},
    {"__main__"},
]

IMAGES = {f"tasks/{name}.py" for name in (
    "images", "imagesets", "imagefiles", "imagefolders", "bounded", "shapes")}  # fmt: skip
APART = ("analysis/vectors",)  # a folder within a unit, with a budget of its own
# The largest number of code lines. A budget that must grow is raised in a commit of its own that
# says why.
BUDGETS = {
    "the book": ({*BOOK, "runs"} - {"caches", "designs"}, 3440),
    "beside it, further kinds of cache": ({"caches"}, 400),
    "beside it, layers of models that ship, and linear attention": ({"designs"}, 525),
    "GPU kernels, from Python": ({"kernels"}, 370),
    "runtime": ({"runtime"}, 1350),
    "of it, several cores": ({"runtime/parallel.py"}, 150),
    "of it, several machines": ({"runtime/distributed.py"}, 60),
    "tasks": ({"tasks"}, 2650),
    "of it, images": (IMAGES, 740),
    "study": ({"study"}, 2150),
    "analysis": ({"analysis"}, 1410),
    "vectors for other implementations": ({"analysis/vectors"}, 1100),
    "render, teach": ({"render", "teach"}, 5305),
    "cli, and the way in": ({"cli", "__main__", "__init__"}, 2830),
}
CUDA = 700, 150  # lines of all kernels, and of one .cu file, as they stand
LONGEST = 40  # code lines of a function in the book
OF_THE_BOOK = [n for n in NAMES if n.split("/")[0].removesuffix(".py") in {*BOOK, "runs"}]


def unit(path):
    """The top-level module or folder that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def code_line_numbers(source):
    """The numbers of the lines that carry code: no docstring, comment or blank."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
               tokenize.ENDMARKER}  # fmt: skip
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            code.update(range(token.start[0], token.end[0] + 1))
    return code - docstrings


def code_lines(source):
    """How many of them there are."""
    return len(code_line_numbers(source))


def counts():
    """Unit, folder apart, and file by its path, -> code lines."""
    lines = {}
    for path, name in zip(FILES, NAMES, strict=True):
        n = code_lines(path.read_text("utf-8"))
        whole = next((folder for folder in APART if name.startswith(f"{folder}/")), unit(path))
        lines[whole] = lines.get(whole, 0) + n
        if "/" in name:
            lines[name] = n
    return lines


def report(lines):
    """The table of budgets, as text."""
    rows = []
    for name, (units, budget) in BUDGETS.items():
        present = sorted((u for u in units if u in lines), key=lambda u: -lines[u])
        parts = ", ".join(f"{u} {lines[u]}" for u in present)
        rows.append(f"{sum(lines[u] for u in present):5} of {budget:5}  {name}: {parts}")
    return "\n".join(rows)


def imports(path):
    """What a file imports, at any depth: ("minqkv.x.y" or "numpy", whether inside a function).

    What only type checkers read, under `if TYPE_CHECKING:`, does not count.
    """
    tree = ast.parse(path.read_text("utf-8"))
    inside, unread = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            inside.update(map(id, ast.walk(node)))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unread.update(id(below) for line in node.body for below in ast.walk(line))
    package = ["minqkv", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if module_path(name) else base for name in names]
        else:
            continue
        yield from ((name, id(node) in inside) for name in names)


def module_path(name):
    """The file behind "minqkv.x.y", or None."""
    stem = ROOT.joinpath(*name.split("."))
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


def test_what_counts_as_an_import(tmp_path, monkeypatch):
    monkeypatch.setattr("test_budget.PACKAGE", tmp_path)
    file = tmp_path / "models" / "gpt.py"
    file.parent.mkdir()
    file.write_text(
        "import numpy as np\nfrom ..runtime import backend\nfrom .block import Block\n"
        "if TYPE_CHECKING:\n    from ..cli import run\n"
        "def f():\n    from ..tensor import Tensor\n    return lambda: __import__('os')\n"
    )
    assert list(imports(file)) == [
        ("numpy", False),
        ("minqkv.runtime.backend", False),
        ("minqkv.models.block", False),
        ("minqkv.tensor", True),
    ]


@pytest.fixture(scope="module")
def lines():
    return counts()


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(name, lines):
    units, budget = BUDGETS[name]
    print("\n" + report(lines))
    assert sum(lines.get(u, 0) for u in units) <= budget, "\n" + report(lines)


def test_budget_of_cuda():
    lines = {
        path.name: len(path.read_text("utf-8").splitlines())
        for pattern in ("*.cu", "*.cuh")
        for path in PACKAGE.rglob(pattern)
    }
    assert sum(lines.values()) <= CUDA[0], lines
    assert max(lines.values()) <= CUDA[1], lines


def test_every_file_has_a_budget_and_a_rank(lines):
    units = {unit(path) for path in FILES}
    assert units - set().union(*(u for u, _ in BUDGETS.values())) == set(), report(lines)
    assert units - set().union(*RANKS) == {"__init__"}
    assert sum(map(len, RANKS)) == len(set().union(*RANKS))
    assert set().union(*RANKS) <= units | {"__main__"}


@pytest.mark.parametrize("name", OF_THE_BOOK)
def test_functions_of_the_book_are_short(name):
    """A function within another counts for both. A signature counts as one line, however many
    hints it has.
    """
    source = (PACKAGE / name).read_text("utf-8")
    code = code_line_numbers(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = range(node.body[0].lineno, node.end_lineno + 1)
            length = 1 + len(node.decorator_list) + len(code.intersection(body))
            assert length <= LONGEST, f"{name}: {node.name} has {length} lines of code"


@pytest.mark.parametrize("name", NAMES)
def test_imports_come_from_lower_ranks(name):
    rank = {u: i for i, units in enumerate(RANKS) for u in units}
    rank["__init__"] = rank["runtime"] + 0.5
    path = PACKAGE / name
    for target in ours(path):
        assert target is not None
        same_folder = "/" in name and unit(path) == unit(target)
        lower = rank[unit(target)] < rank[unit(path)]
        assert same_folder or lower, f"{name} imports {target.relative_to(PACKAGE)}"


def test_no_circles():
    """Imports inside functions count. A folder imports its modules, never the other way round."""
    graph = {path: ours(path) for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # raises CycleError


PLACES = {  # beside the standard library: what may be imported, and where
    "numpy": lambda name, inside: True,
    "click": lambda name, inside: name.startswith("cli/"),
    "rich": lambda name, inside: name.startswith(("render/", "teach/")),
    "pygments": lambda name, inside: name == "render/drawn.py" and inside,  # comes with rich
    "threadpoolctl": lambda name, inside: name in ("runtime/blas.py", "runtime/doctor.py"),
    "cupy": lambda name, inside: name == "runtime/backend.py" and inside,
    "dask": lambda name, inside: name == "study/executors.py" and inside,
    "PIL": lambda name, inside: name == "tasks/imagefolders.py" and inside,
    "mpi4py": lambda name, inside: (
        name in ("study/executors.py", "runtime/distributed.py") and inside
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_dependencies(name):
    for imported, inside in imports(PACKAGE / name):
        top = imported.split(".")[0]
        if top not in sys.stdlib_module_names and top != "minqkv":
            assert top in PLACES, f"{name} imports {imported}"
            assert PLACES[top](name, inside), f"{name} imports {imported}"


def modules_after(code):
    """Names of the modules loaded when a Python has run this code, and its (stdout, stderr)."""
    check = "import atexit, json, sys; atexit.register(lambda: print(json.dumps([*sys.modules])))\n"
    done = subprocess.run(
        [sys.executable, "-c", check + code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    *out, loaded = done.stdout.splitlines()
    return set(json.loads(loaded)), ("\n".join(out), done.stderr)


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
    loaded, (_, err) = modules_after(code)
    assert not loaded & {"numpy", "rich", "cupy"}, err
    assert "Traceback" not in err


def test_one_thread_needs_nothing_of_several():
    """Neither in a training step nor while a token is decoded."""
    loaded, (_, err) = modules_after("""
import minqkv as mq, minqkv.attention, minqkv.train, minqkv.generation
model = mq.GPT(mq.GPTConfig(5, 8, 1, 2, 8))
mq.train_step(model, mq.AdamW(model.parameters()), [[1, 2], [3, 4]], [[2, 3], [4, 0]])
mq.generate(model, [[1, 2]], 3)
""")
    assert err == ""
    assert "minqkv.generation" in loaded
    assert not loaded & {"minqkv.runtime.parallel", "threadpoolctl", "concurrent.futures"}


def test_type_checkers_see_the_public_names():
    """They read the imports under `if TYPE_CHECKING:`, which must be those that are made lazily."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = set()
    for line in block.body:
        home = import_module(".".join(["minqkv", *filter(None, [line.module])]))
        for name in (alias.name for alias in line.names):
            assert getattr(home, name) is getattr(minqkv, name), name
            seen.add(name)
    assert seen == set(minqkv.__all__) - {"__version__"}


def test_a_tensor_alone_can_compute():
    """Names load lazily: `Tensor` must bring its operators along, wherever it comes from."""
    for line in ("import minqkv as mq; Tensor = mq.Tensor", "from minqkv.tensor import Tensor"):
        code = f"{line}; x = Tensor([3.0]); assert ((x + x) * x).item() == 18"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


# ---- the version of the code


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, and its code_version, asked afresh at every call."""
    package = tmp_path / "minqkv"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    place = package / "runtime" / "version.py"
    module = module_from_spec(spec := spec_from_file_location("version_of_a_copy", place))
    spec.loader.exec_module(module)
    return package, module.code_version.__wrapped__


@pytest.mark.parametrize("change", ["renamed", "edited", "deleted"])
def test_the_code_version_covers_every_file_that_can_change_a_result(change, copy):
    package, version = copy
    before, blind = version(), set()
    for name in NAMES:
        path, content = package / name, (package / name).read_bytes()
        aside = path.with_name(f"old_{path.name}")
        if change == "renamed":
            path.rename(aside)
        elif change == "edited":
            path.write_bytes(content + b"\n")
        else:
            path.unlink()
        if version() == before:
            blind.add(name)
        aside.unlink(missing_ok=True)
        path.write_bytes(content)
        assert version() == before
    talk = {"cli", "render", "teach"}  # they read results, or only talk
    assert blind == {name for name in NAMES if name.split("/")[0] in talk}


def test_the_code_version_covers_moved_and_new_files(copy):
    package, version = copy
    seen = {version()}
    (package / "tensor.py").rename(package / "runtime" / "tensor.py")
    seen.add(version())
    for name in ("new.py", "tasks/new.py", "a_folder/new.py", "kernels/new.cu", "kernels/new.cuh"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("")
        seen.add(version())
    assert len(seen) == 7
    (package / "runtime" / "notes.txt").write_text("")
    assert version() in seen


# ---- docstrings


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


@pytest.mark.parametrize("name", NAMES)
def test_docstrings(name):
    tree = ast.parse((PACKAGE / name).read_text("utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the file says nothing about itself"
    assert list(undocumented(tree)) == []


if __name__ == "__main__":
    print(report(counts()))
