"""The house: which folder imports which, what is imported lazily, and how large files grow."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from triax.launcher.cli import COMMANDS
from triax.parallel.engines import ENGINES

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "common": set(),
    "models": {"common"},
    "data": {"common", "models"},
    "parallel": {"common", "models"},
    "checkpoint": {"common", "models", "parallel"},
    "training": {"common", "models", "parallel", "checkpoint", "data"},
    "inference": {"common", "models", "data", "parallel", "checkpoint"},
    "planning": {"common", "models", "data", "parallel", "checkpoint", "training"},
    "launcher": {
        "common",
        "models",
        "parallel",
        "checkpoint",
        "data",
        "training",
        "inference",
        "planning",
    },
}
LAZY_IMPORTS = {"triax.launcher.cli", "triax.launcher.job.engine"}
"""The modules that resolve the two string tables: commands and engines."""
TORCH_FREE = (
    "triax.launcher.cli",
    "triax.launcher.cluster.launchers",
    "triax.launcher.commands.check",
    "triax.launcher.commands.diagnose",
    "triax.launcher.commands.init",
    "triax.launcher.commands.plan",
    "triax.launcher.commands.report",
    "triax.launcher.api.planning",
    "triax.launcher.api.runs",
    "triax.launcher.commands.submit",
    "triax.launcher.commands.watch",
    "triax.launcher.slurm.placement",
    "triax.models.counts",
    "triax.models.families.gpt2",
    "triax.models.families.llama",
    "triax.parallel.layout",
)
"""Besides every `config.py`, `common/` and `planning/` (but for its rehearsal)."""
MAX_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_IMPORTS = 20
"""Of the house's own modules in one file: who needs more knows too much."""
MAY_BE_LONGER: set[str] = set()
"""Files with a reason to be longer, as paths from the root."""

FILES = {
    ".".join(("triax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for folder in MAY_IMPORT
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def imported_modules(node: ast.AST) -> Iterator[str]:
    """Names of the modules that an import statement within `node` may load."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            assert child.module is not None
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                yield submodule if submodule in FILES else child.module


def own(modules: Iterator[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0] == "triax"}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_up_the_table(module: str) -> None:
    folder = module.split(".")[1]
    for imported in own(imported_modules(TREES[module])):
        assert imported in FILES, f"{module} imports {imported}, which is no module"
        assert imported.split(".")[1] in MAY_IMPORT[folder] | {folder}, (
            f"{module} imports {imported}: {folder}/ may import {sorted(MAY_IMPORT[folder])}"
        )


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: own(imported_modules(tree)) - {module} for module, tree in TREES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def room(module: str) -> str:
    """The folder that a module lies in, as `launcher.checks`."""
    return ".".join(FILES[module].relative_to(ROOT).parts[:-1])


def test_no_rooms_import_each_other_in_a_circle() -> None:
    """Not only the folders at the root but also those inside them can be read top to bottom."""
    graph: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        imported = {room(name) for name in own(imported_modules(tree)) if name in FILES}
        graph.setdefault(room(module), set()).update(imported - {room(module)})
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", FILES)
def test_no_function_imports_from_the_house(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            assert not own(imported_modules(node)), f"{module}:{node.lineno} imports in a function"


def test_only_the_two_string_tables_are_imported_lazily() -> None:
    found = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in ("__import__", "import_module"))
        or (isinstance(node, ast.alias) and node.name == "import_module")
    }
    assert found <= LAZY_IMPORTS
    assert all(module in FILES for module, _ in COMMANDS.values())
    assert all(target.split(":")[0] in FILES for target in ENGINES.values())


def test_configs_and_checks_import_no_torch() -> None:
    free = [
        module
        for module in FILES
        if module in TORCH_FREE
        or module.endswith(".config")
        or (module.startswith(("triax.common.", "triax.planning.")) and "rehearsal" not in module)
    ]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "sys.exit('torch' in sys.modules and 'torch was imported')"
    result = subprocess.run(
        [sys.executable, "-c", code, *free], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert len(free) >= 12


def test_nothing_is_imported_by_its_bare_folder_name() -> None:
    """From the root `import models` works, and would load a second copy of everything."""
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0].startswith(".") or parts[0] in ("build", "dist"):
            continue
        for imported in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            assert imported.split(".")[0] not in MAY_IMPORT, f"{path} imports {imported}"


@pytest.mark.parametrize("module", FILES)
def test_a_file_has_one_job_and_says_which(module: str) -> None:
    path, tree = FILES[module], TREES[module]
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    if str(path.relative_to(ROOT)) not in MAY_BE_LONGER:
        assert num_lines <= MAX_LINES, f"{path} has {num_lines} lines: it may have two jobs"
    assert ast.get_docstring(tree), f"{path} has no docstring"


@pytest.mark.parametrize("module", FILES)
def test_no_file_knows_too_many_others(module: str) -> None:
    imported = own(imported_modules(TREES[module]))
    assert len(imported) <= MAX_IMPORTS, f"{module} imports {len(imported)}: {sorted(imported)}"


@pytest.mark.parametrize("module", FILES)
def test_a_function_fits_on_a_screen(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{module}: {node.name} has {num_lines} lines"


def test_every_folder_is_a_package_that_installs() -> None:
    """`find_packages` leaves out folders without `__init__.py`, and wheels lack them."""
    for path in FILES.values():
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_is_imported_from_its_place_at_the_root(folder: str) -> None:
    spec = importlib.util.find_spec(f"triax.{folder}")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).name == "__init__.py"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_is_seen_by_the_type_checker(folder: str) -> None:
    assert (ROOT / ".typing" / "triax" / folder).resolve() == ROOT / folder
