"""benchmarks.search_speed: what it runs, what it keeps, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.json_result import load_json_result, write_json_result
from benchmarks.search_speed import Case, cases, timed
from benchmarks.search_speed_page import page
from benchmarks.search_speed_result import SearchSpeed, Timed
from planner.model import load_model

ROOT = Path(__file__).parents[2]


def test_models_differ_in_their_layers_only(tmp_path: Path) -> None:
    """The planner reads them as it reads any directory."""
    found = [case for case in cases(tmp_path) if case.group == "layers"]
    models = [load_model(str(tmp_path / f"opt-175b-{case.label}-layers")) for case in found]
    assert [model.num_layers for model in models] == [int(case.label) for case in found]
    assert {model.hidden_size for model in models} == {12288}


def test_a_process_is_timed() -> None:
    """As often as asked, and what it used of the cores is its own."""
    busy = Case(group="open", label="busy", arguments=("-c", "sum(range(3_000_000))"))
    found = timed(busy, 2)
    assert len(found.wall_s) == len(found.cpu_s) == 2
    assert all(seconds > 0 for seconds in found.cpu_s)


def test_a_result_is_read_back_and_shown(tmp_path: Path) -> None:
    """The median run of each command stands on the page."""
    row = Timed(
        group="imports", label="imports", command="python -c x", wall_s=[3.0, 1.0, 2.0], cpu_s=[2, 4, 6]
    )
    search = "python -m planner search --model opt-175b --hw t4-host"
    rows = [row, Timed(group="open", label="bits", command=search, wall_s=[0.5], cpu_s=[0.625])]
    machine = {"processor": "a processor", "cores": 2, "python": "3.11.7"}
    result = SearchSpeed(
        created="2026-01-02T03:04:05",
        commit="0123456789abcdef",
        machine=machine,
        load_average=0.5,
        rows=rows,
    )
    write_json_result(result, tmp_path / "found.json")
    text = page(load_json_result(tmp_path / "found.json", SearchSpeed))
    assert "2.00 s on the wall and 4.00 s of the cores" in text
    assert "| bits | `--hw t4-host` | 0.50 | 0.62 |" in text


@pytest.mark.parametrize("kept", [ROOT / "benchmarks" / "results" / "search-speed.json"])
def test_the_page_is_that_of_the_result(kept: Path) -> None:
    """Nobody has edited it."""
    assert (ROOT / "docs" / "search-speed.md").read_text() == page(load_json_result(kept, SearchSpeed))
    assert json.loads(kept.read_text())["commit"]
