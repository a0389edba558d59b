"""The code has floors: no file imports from a floor above its own, not even types, and imports are never circular."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ["util", "ops", "datasets", "models", "training engine", "main_pretrain main_finetune main_predict hubconf"]
FLOORS += ["tools"]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names.split()}


def _modules() -> dict[str, Path]:
    files = [*ROOT.glob("*.py"), *(path for name in LEVEL for path in (ROOT / name).rglob("*.py"))]
    names = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in LEVEL and path != ROOT / "ops" / "setup.py":
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imports(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of this project that ``path`` imports anywhere, also in functions and under ``TYPE_CHECKING``."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {module for module in inner if module in modules} or {base}
    return (found & modules.keys()) - {name}


MODULES = _modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_imported_from_a_floor_above(name):
    level = LEVEL[name.partition(".")[0]]
    above = {m for m in _imports(name, MODULES[name], MODULES) if LEVEL[m.partition(".")[0]] > level}
    assert not above


def test_there_is_no_circle_among_the_files():
    graph = {name: _imports(name, path, MODULES) for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError for a circle
