"""The house rules, read from the source itself: imports run one way, names are public on purpose, functions are short,
commands and settings are documented, and nothing heavy is imported by what does not need it."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import veritune
from veritune import config, data, decide, probe, stats
from veritune.commands.app import app
from veritune.config.load import json_schema

REPO = Path(__file__).resolve().parent.parent
SRC = REPO / "src" / "veritune"
ORDER = (
    "counting",
    "faces",
    "errors",
    "extras",
    "patterns",
    "canonical",
    "display",
    "zstd",
    "arrow",
    "untrusted",
    "files",
    "lease",
    "records",
    "drawing",
    "ci",
    "pipes",
    "config",
    "stats",
    "ledger",
    "store",
    "contract",
    "seal",
    "machine",
    "progress",
    "data",
    "train",
    "probe",
    "evaluate",
    "decide",
    "report",
    "writeup",
    "release",
    "results",
    "pipeline",
    "view",
    "verbs",
    "health",
    "demo",
    "commands",
    "pytest_plugin",
)
MAY_IMPORT_TORCH = (
    "train/trainer.py",
    "train/regularise.py",
    "train/telemetry.py",
    "train/tensors.py",
    "train/adapters/",
    "probe/",
)
MAY_IMPORT_TORCH += ("release/parity/merge_others.py",)
HEAVY = {"torch", "transformers", "peft", "accelerate", "trl", "numpy", "scipy", "pandas", "polars", "pyarrow"}
HEAVY |= {"matplotlib", "jinja2", "numba", "datasets", "rich"}


parse = cache(ast.parse)
"""A tree of each text, made once for all rules."""


def sources(root: Path = SRC) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), parse(path.read_text(encoding="utf-8"))


def room(path: str) -> str:
    """The room a file belongs to: a folder's name, or the file's own."""
    first = path.split("/")[0].removesuffix(".py")
    return first


def imported(tree: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    """Dotted names of every import, at any depth, relative ones resolved; `from veritune import x` counts as x."""
    package = ["veritune", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names] if module == "veritune" else [""]
            yield from ((f"{module}.{name}".rstrip("."), node.lineno) for name in names)


def runs_back_up(root: Path = SRC) -> list[str]:
    """Every import of a room that stands later in `ORDER`, as `file:line imports name`."""
    found = []
    for path, tree in sources(root):
        here = room(path)
        if here in ("__init__", "__main__"):
            continue
        assert here in ORDER, f"{path} stands in no room: add it to the order"
        for name, line in imported(tree, path):
            if name.split(".")[0] != "veritune":
                continue
            target = room(name.split(".")[1]) if "." in name else ""
            if target not in ORDER or ORDER.index(target) > ORDER.index(here):
                found.append(f"{path}:{line} imports {name}")
    return found


def test_imports_run_one_way() -> None:
    assert runs_back_up() == []


def test_the_engine_of_near_duplicates_knows_texts_alone() -> None:
    """`data/near` could be a package of its own: it imports itself, canonical text and the errors."""
    allowed = ("veritune.data.near", "veritune.data.text", "veritune.errors")
    imports = {
        f"{path}:{line} imports {name}"
        for path, tree in sources()
        for name, line in imported(tree, path)
        if path.startswith("data/near/") and name.startswith("veritune") and not name.startswith(allowed)
    }
    assert imports == set()
    assert (SRC / "data" / "near" / "engine.py").exists()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("store.py", "import veritune.commands.app"),
        ("data/load.py", "from veritune.train.models import resolve"),
        ("records/base.py", "def f():\n    from veritune import decide"),
        ("data/load.py", "from ..report.page import write_report"),
        ("train/models.py", "from veritune import run"),
    ],
)
def test_an_import_that_runs_back_up_is_found(tmp_path: Path, path: str, line: str) -> None:
    copy = tmp_path / "veritune"
    shutil.copytree(SRC, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / path
    file.write_text(file.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    (found,) = runs_back_up(copy)
    assert found.startswith(f"{path}:")


FACES = [veritune, config, stats, data, probe, decide]


@pytest.mark.parametrize("package", FACES, ids=lambda p: p.__name__)
def test_public_names_are_sorted_and_importable(package: ModuleType) -> None:
    names = package.__all__
    assert names == sorted(names) and len(names) == len(set(names))
    assert set(dir(package)) == set(names)
    assert all(getattr(package, name) is not None for name in names)


@pytest.mark.parametrize("package", [stats, data, probe, decide], ids=lambda p: p.__name__)
def test_every_public_name_has_an_example_that_runs(package: ModuleType) -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    for name in package.__all__:
        thing = getattr(package, name)
        globs = vars(import_module(thing.__module__))
        examples = [e for test in finder.find(thing, name, globs=dict(globs)) for e in test.examples]
        assert examples, f"{package.__name__}.{name} shows no example"
        for test in finder.find(thing, name, globs=dict(globs)):
            assert runner.run(test).failed == 0, name


def test_the_face_holds_the_verbs_of_a_study() -> None:
    assert {"init", "run", "status", "draw_report", "doctor", "load_study"} <= set(veritune.__all__)


@pytest.mark.parametrize("package", FACES, ids=lambda p: p.__name__)
def test_no_public_name_is_also_a_module(package: ModuleType) -> None:
    """Importing `veritune.x` sets the attribute x of the package, and would hide a function of that name."""
    modules = {path.stem if path.suffix else path.name for path in Path(str(package.__file__)).parent.iterdir()}
    assert set(package.__all__) & modules == set()


@pytest.mark.parametrize("package", [veritune, config, stats], ids=lambda p: p.__name__)
def test_a_type_checker_sees_the_public_names_where_they_are(package: ModuleType) -> None:
    """The lazy table and the imports under TYPE_CHECKING say the same."""
    name = package.__name__
    listed = {
        alias.name: node.module
        for node in ast.walk(ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{name}.")
        if node.module != "veritune.faces"
        for alias in node.names
    }
    assert listed == {public: f"{name}.{home}" for public, home in package._HOMES.items()}
    assert all(getattr(import_module(home), public) is getattr(package, public) for public, home in listed.items())


@pytest.mark.parametrize("package", [veritune, config, stats], ids=lambda p: p.__name__)
def test_an_unknown_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        package.trian  # noqa: B018


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{node.lineno} {node.name}", node


def test_no_function_is_longer_than_100_lines() -> None:
    assert [name for name, node in functions() if (node.end_lineno or 0) - node.lineno + 1 > 100] == []


def test_a_class_name_stands_in_one_file() -> None:
    where: dict[str, set[str]] = {}
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, set()).add(path.relative_to(SRC).as_posix())
    assert {name: sorted(paths) for name, paths in where.items() if len(paths) > 1} == {}


def test_no_function_takes_more_than_six_parameters() -> None:
    """Compiled kernels take arrays and commands take options; anything else says why beside its `noqa`."""

    def excused(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        path, line = name.split(" ")[0].split(":")
        text = (SRC / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        compiled = any(isinstance(d, ast.Name) and d.id == "kernel" for d in node.decorator_list)
        return room(path) == "commands" or compiled or bool(re.search(r"noqa: PLR0913 - \w{3}", text))

    def count(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        return len([n for n in names if n not in ("self", "cls")])

    assert [name for name, node in functions() if count(node) > 6 and not excused(name, node)] == []


def test_every_public_function_and_class_says_what_it_is() -> None:
    silent = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_source_holds_no_path_of_a_machine_and_no_todo() -> None:
    wrong = re.compile(r"#.*\b(TODO|FIXME|XXX)\b|/(home|root|Users|work|tmp|mnt)/\w")
    places = [
        *SRC.rglob("*.py"),
        *(REPO / "tests").rglob("*.py"),
        *(REPO / "examples").rglob("*.*"),
        *(REPO / "docs").rglob("*.*"),
    ]
    found = [
        f"{path.relative_to(REPO)}:{n} {line.strip()}"
        for path in places
        if path.suffix in (".py", ".md", ".yaml") and path != Path(__file__).resolve()
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if wrong.search(line)
    ]
    assert found == []


def test_only_named_files_import_torch_at_the_top() -> None:
    found = []
    for path, tree in sources():
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        if any(name.split(".")[0] in ("torch", "transformers", "peft") for name, _ in imported(top, path)):
            found.append(path)
    assert [path for path in found if not path.startswith(MAY_IMPORT_TORCH)] == []


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["--version"], ["schema"], ["status", "nowhere"]])
def test_what_needs_no_model_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from veritune.commands.main import main\n"
        "try: main()\n"
        "finally: print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    loaded = set(done.stderr.rsplit("LOADED", 1)[1].split())
    assert "veritune" in loaded
    assert loaded & HEAVY == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, veritune; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (HEAVY | {"pydantic", "yaml", "typer"}) == set()


def test_importing_every_module_leaves_the_process_as_it_is() -> None:
    """Only `main()` sets the process up. What torch and its companions change at their own import is not ours."""
    modules = [path.removesuffix(".py").replace("/", ".") for path, _ in sources() if not path.endswith("__main__.py")]
    code = (
        "import csv, os, sys\n"
        "from importlib import import_module\n"
        "import torch, transformers, peft, numba\n"
        "before = dict(os.environ), csv.field_size_limit(), sys.getrecursionlimit()\n"
        "for name in sys.argv[1:]: import_module(f'veritune.{name}'.removesuffix('.__init__'))\n"
        "assert before == (dict(os.environ), csv.field_size_limit(), sys.getrecursionlimit()), 'changed'\n"
        "from veritune.machine import set_up_process\n"
        "set_up_process()\n"
        "assert csv.field_size_limit() == sys.maxsize and os.environ['LRU_CACHE_CAPACITY']"
    )
    # A bare environment: what our imports set in this process must not hide that they set it.
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "HF_HUB_OFFLINE") if name in os.environ}
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_set_up_of_the_process_keeps_what_the_user_set() -> None:
    code = "import os; from veritune.machine import set_up_process as s; s(); print(os.environ['LRU_CACHE_CAPACITY'])"
    environment = {**os.environ, "LRU_CACHE_CAPACITY": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"


def lazy_gates() -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """Every command file's gate: the modules by local name, for the type checker and for the run."""
    for path, tree in sources(SRC / "commands"):
        for node in tree.body:
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                checked = {
                    alias.asname or alias.name: f"{part.module}.{alias.name}"
                    for part in node.body
                    if isinstance(part, ast.ImportFrom)
                    for alias in part.names
                }
                yield path, checked, {name: str(module) for part in node.orelse for name, module in assigned(part)}


def assigned(node: ast.stmt) -> Iterator[tuple[str, object]]:
    """Names and literal arguments of `a, b = lazy("x"), lazy("y")`."""
    assert isinstance(node, ast.Assign)
    (target,) = node.targets
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    calls = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    for name, call in zip(names, calls, strict=True):
        assert isinstance(name, ast.Name) and isinstance(call, ast.Call) and isinstance(call.args[0], ast.Constant)
        yield name.id, call.args[0].value


def test_lazy_modules_are_what_the_type_checker_sees() -> None:
    gates = list(lazy_gates())
    assert len(gates) > 8
    for path, checked, at_run in gates:
        assert checked == at_run, path
        assert all(import_module(name) for name in at_run.values())


def test_commands_import_inside_no_function() -> None:
    inside = [
        f"{path}:{node.lineno}"
        for path, tree in sources(SRC / "commands")
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inside == []


# ---------------------------------------------------------------- documentation


def commands() -> Iterator[tuple[str, object]]:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        subs = getattr(command, "commands", {})
        yield from ((f"{name} {sub}", inner) for sub, inner in subs.items())
        if not subs:
            yield name, command


def test_every_command_and_option_is_documented() -> None:
    page = (REPO / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in commands():
        assert f"## `veritune {name}`" in page, name
        section = page.split(f"## `veritune {name}`")[1].split("\n## ")[0]
        for parameter in command.params:  # type: ignore[attr-defined]
            assert parameter.opts[-1].upper() in section.upper(), f"{name} {parameter.opts}"
            assert getattr(parameter, "help", None), f"{name} {parameter.opts} has no help text"


@pytest.mark.parametrize(
    "script", ["make_cli.py", "make_study.py", "make_fields.py", "make_python.py", "make_errors.py", "make_files.py"]
)
def test_a_generated_page_is_what_its_script_makes_now(script: str, tmp_path: Path) -> None:
    copy = tmp_path / "docs"
    shutil.copytree(REPO / "docs", copy)
    subprocess.run([sys.executable, str(copy / script)], cwd=tmp_path, check=True, capture_output=True)
    pages = [p.relative_to(copy) for p in sorted(copy.rglob("*.md"))]
    changed = [str(p) for p in pages if (copy / p).read_bytes() != (REPO / "docs" / p).read_bytes()]
    assert changed == [], "run `make docs`"


def test_every_command_that_reports_speaks_json() -> None:
    reporting = {name: command for name, command in commands() if name in ("run", "status", "doctor")}
    assert len(reporting) == 3
    for name, command in reporting.items():
        assert any("--json" in p.opts for p in command.params), name  # type: ignore[attr-defined]


def test_every_key_of_study_yaml_is_in_its_page() -> None:
    page = (REPO / "docs" / "study.md").read_text(encoding="utf-8")
    schema = json_schema()
    keys = {key for body in (schema, *schema["$defs"].values()) for key in body.get("properties", {})}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


@pytest.mark.parametrize("script", sorted((REPO / "bench").rglob("*.py")), ids=lambda p: str(p.relative_to(REPO)))
def test_what_a_bench_imports_of_the_package_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "veritune":
            module = import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name):
                    import_module(f"{node.module}.{name.name}")
