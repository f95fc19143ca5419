"""benchmarks.stages: what is asked, and the page of the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.json_result import load_json_result
from benchmarks.stages import CASES, Answer, Answers, ask, one_link, page
from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile

ROOT = Path(__file__).parents[2]


def test_behind_one_link_all_gpus_reach_what_one_does(tmp_path: Path) -> None:
    """Of the same host otherwise."""
    one_link(tmp_path / "hw.yaml")
    found, host = load_profile(str(tmp_path / "hw.yaml")), load_profile("h200x4-host")
    assert len({links.h2d_bytes_per_s.median for links in found.links_at_once}) == 1
    assert (found.gpus, found.host) == (host.gpus, host.host)


def test_the_answer_is_the_planner_s(tmp_path: Path) -> None:
    """A small search is asked as a process; one that fails is no answer."""
    found = ask("--model opt-125m --num-prompts 8 --hw two-core", tmp_path)
    assert set(found.tokens_per_s) >= {"1", "2"}
    assert min(found.tokens_per_s.values()) > 0
    with pytest.raises(UserError, match="names no stages"):
        ask("--model opt-125m --num-prompts 8 --hw no-such-host", tmp_path)


def test_gains_stand_beside_the_rates() -> None:
    """Over one stage."""
    answer = Answer(flags="--model m", tokens_per_s={"1": 10.0, "2": 15.0})
    text = page(Answers(created="2026-01-02T03:04:05", commit="0123456789abcdef", answers=[answer]))
    assert "| `--model m` | 1: 10.00 (1.00x), 2: 15.00 (1.50x) |" in text


def test_the_page_is_that_of_the_result() -> None:
    """Nobody has edited it, and every case was asked."""
    found = load_json_result(ROOT / "benchmarks" / "results" / "stages.json", Answers)
    assert [answer.flags for answer in found.answers] == list(CASES)
    assert (ROOT / "docs" / "stages.md").read_text() == page(found)
