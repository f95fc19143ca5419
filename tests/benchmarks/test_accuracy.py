"""Predictions held against runs: cases are understood, errors are those of the reports, the page has every row."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy import planner_command
from benchmarks.accuracy_page import page
from benchmarks.accuracy_result import Accuracy, AccuracyCase, median_round, summed_up
from benchmarks.json_result import load_json_result, write_json_result
from benchmarks.plan_runs import load_named
from benchmarks.setting import Setting
from hwprofiles.errors import UserError
from planner.commands import estimate, search
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, policy_of, small_t4
from tests.planner.runs import report_of

CASES = sorted(Path(__file__).parents[2].glob("benchmarks/accuracy-*.yaml"))
SLOWER = {"h2d": 2.0, "gpu": 1.5}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_planner_understands_every_case(path: Path, tmp_path: Path) -> None:
    """Flags and percents are the planner's own; searched and given policies are among them."""
    cases = load_named(path, AccuracyCase, [])
    commands = [planner_command(case, "hw.yaml", tmp_path)[1:] for case in cases.values()]
    assert {command[0] for command in commands} == {"search", "estimate"}
    for name, *flags in commands:
        parser = argparse.ArgumentParser()
        (search if name == "search" else estimate).add_flags(parser)
        assert parser.parse_args(flags).hw == "hw.yaml"


def test_a_case_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """In one line that names the case."""
    (tmp_path / "cases.yaml").write_text("small: {planner: --model opt-125m, percents: 0 100 0 100 0 100}\n")
    with pytest.raises(UserError, match=r"percents.*small"):
        load_named(tmp_path / "cases.yaml", AccuracyCase, [])


def test_errors_are_those_of_the_runs(setting: Setting, tmp_path: Path) -> None:
    """Of a machine that is slower than its profile: before, and on runs that did not calibrate it, less."""
    profile = small_t4()
    policies = [policy_of(ON_CPU, ON_CPU, ON_GPU, size=size) for size in (8, 16, 24)]
    policies += [policy_of(ON_DISK, ON_CPU, ON_GPU, size=size) for size in (8, 16, 24)]
    reports = {f"case-{n}": report_of(profile, policy, SLOWER) for n, policy in enumerate(policies)}
    cases = {name: AccuracyCase(planner=f"--model opt-125m --{name}") for name in reports}
    result = summed_up(cases, reports, profile, setting)
    assert [(row.case, row.phase) for row in result.rows] == [
        (name, phase.phase) for name, report in reports.items() for phase in report.phases
    ]
    assert {row.case for row in result.rows if row.calibrated_s is None} == {"case-0", "case-3"}
    worst = max(abs(row.predicted_s / row.measured_s - 1) for row in result.rows)
    assert result.from_the_profile.worst == pytest.approx(worst)
    assert result.calibrated.worst < result.from_the_profile.median
    write_json_result(result, tmp_path / "result.json")
    assert load_json_result(tmp_path / "result.json", Accuracy) == replace(
        result, rows=tuple(result.rows), memory=tuple(result.memory)
    )
    text = page([result])
    assert all(text.count(f"| {name} |") >= 2 for name in reports)


def test_the_middle_round_counts() -> None:
    """Neither the one that others disturbed, nor the one that was lucky."""
    profile, policy = small_t4(), policy_of(ON_CPU, ON_CPU, ON_GPU)
    slow, middle, quick = (report_of(profile, policy, dict.fromkeys(SLOWER, n)) for n in (3.0, 2.0, 1.0))
    assert median_round([slow, quick, middle]) is middle
    assert median_round([slow, quick]) is quick


@pytest.mark.parametrize(
    ("num_rounds", "said"), [((1, 1), ".\n"), ((3, 3), "of 3 rounds each"), ((1, 3), "of 1 to 3 rounds each")]
)
def test_cases_may_have_more_rounds_than_others(
    num_rounds: tuple[int, int], said: str, setting: Setting
) -> None:
    """The page says how many there were."""
    profile = small_t4()
    reports = {name: report_of(profile, policy_of(), dict.fromkeys(SLOWER, 1.1)) for name in ("one", "two")}
    cases = dict.fromkeys(reports, AccuracyCase(planner=""))
    assert f"2 plans{'' if num_rounds == (1, 1) else ', the middle one '}{said}" in page(
        [summed_up(cases, reports, profile, setting, num_rounds)]
    )


def test_one_run_is_not_enough(setting: Setting) -> None:
    """None would be left to hold the calibration against."""
    profile = small_t4()
    with pytest.raises(UserError, match="at least 2"):
        summed_up({}, {"one": report_of(profile, policy_of(), {})}, profile, setting)
