"""docs/performance.md is what its generator makes of the results."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks import functions_page
from benchmarks.cases import load_cases
from benchmarks.table import PAGE, RESULTS, page_of, results_in

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEER_PACKAGES = frozenset(("accelerate", "deepspeed", "flexgen"))


def test_the_page_is_up_to_date() -> None:
    """Nobody has edited it, and every result is in it; else run python -m benchmarks.table."""
    cases = load_cases()
    assert PAGE.read_text() == page_of(results_in(RESULTS, cases), cases)


def test_the_page_of_functions_is_up_to_date() -> None:
    """Likewise; else run python -m benchmarks.functions_page."""
    assert functions_page.PAGE.read_text() == functions_page.page()


def test_only_workers_import_peers() -> None:
    """The rest runs where no peer is installed."""
    for path in BENCHMARKS.rglob("*.py"):
        if path.parent.name == "workers":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in PEER_PACKAGES, path
            elif isinstance(node, ast.Import):
                assert PEER_PACKAGES.isdisjoint(name.name.partition(".")[0] for name in node.names), path
