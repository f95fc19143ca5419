"""Imports only go down: hwprofiles <- planner <- executor, and the planner does without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = frozenset(("torch", "transformers"))
FORBIDDEN = {
    "hwprofiles": frozenset(("planner", "executor")),
    "planner": frozenset(("executor", "torch", "transformers")),
    "executor": frozenset(),
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names a module imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    """No module names a package of a higher floor, not even inside a function."""
    assert modules(package)
    found = {
        str(path.relative_to(ROOT)): sorted(FORBIDDEN[package].intersection(imported(path)))
        for path in modules(package)
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_torch_is_imported_by_the_probes_only() -> None:
    """In hwprofiles the modules outside probes/, and measure.py that plays them, do without torch."""
    outside = [
        path for path in modules("hwprofiles") if "probes" not in path.parts and path.stem != "measure"
    ]
    assert [path.name for path in outside if HEAVY.intersection(imported(path))] == []


@pytest.mark.parametrize("module", ["planner.cli", "hwprofiles.cli"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    """Importing a command leaves torch, transformers and the executor out of the process."""
    heavy = sorted({*HEAVY, "executor"})
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
