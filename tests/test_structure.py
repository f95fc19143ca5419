"""docs/structure.md lists the modules there are, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_module_has_its_line() -> None:
    """A new module is named in docs/structure.md, a deleted one no longer."""
    listed: dict[str, set[str]] = {}
    package = ""
    for line in (ROOT / "docs" / "structure.md").read_text().splitlines():
        if line.startswith("### "):
            package = line.removeprefix("### ")
            listed[package] = set()
        elif found := re.match(r"\| (\S+\.py) \|", line):
            listed[package].add(found[1])
    for name, modules in listed.items():
        folder = ROOT / name
        there = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
        assert modules == there - {"__init__.py", "__main__.py"}
    assert set(listed) == {"hwprofiles", "planner", "executor"}
