"""A chosen plan and its rivals: all fit, none is there twice, the figures are those of the runs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.best_plan import planner_flags
from benchmarks.best_plan_page import page
from benchmarks.best_plan_result import CHOSEN, BestPlan, BestPlanCase, summed_up
from benchmarks.best_plan_rivals import rivals
from benchmarks.json_result import load_json_result, write_json_result
from benchmarks.plan_runs import load_named
from benchmarks.setting import Setting
from hwprofiles.errors import UserError
from planner.commands import search
from planner.plan import Plan
from planner.policy import Policy
from planner.report import RunReport
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, policy_of, small_t4
from tests.planner.runs import problem_on, report_of

CASES = sorted(Path(__file__).parents[2].glob("benchmarks/best-plan-*.yaml"))


@pytest.fixture
def chosen() -> Plan:
    """Everything on the CPU and the GPU, in a memory that is almost full."""
    problem = problem_on(small_t4())
    policy = policy_of(ON_CPU, ON_CPU, ON_GPU, size=16, batches=4)
    limit = problem.plan(policy).ledger.peak_bytes("cpu") + 2**20
    return problem.with_limit("cpu", limit).plan(policy)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_planner_understands_every_case(path: Path) -> None:
    """The flags are those of a search."""
    for case in load_named(path, BestPlanCase, []).values():
        parser = argparse.ArgumentParser()
        search.add_flags(parser)
        assert parser.parse_args([*planner_flags(case), "--hw", "hw.yaml"]).num_prompts


def test_rivals_fit_and_differ(chosen: Plan) -> None:
    """At least ten others, in every variable; larger gpu batches are cut down to what the memory holds."""
    flexgen = policy_of(ON_DISK, ON_CPU, ON_CPU, size=4)
    found = rivals(chosen, {"flexgen": flexgen})
    policies: list[Policy] = [chosen.policy, *(plan.policy for plan in found.values())]
    assert len(found) >= 10
    assert all(policies.count(policy) == 1 for policy in policies)
    assert all(not plan.ledger.shortfalls(chosen.hardware) for plan in found.values())
    for name in ("gpu_batch_size", "num_gpu_batches", "weights", "cache", "activations", "cpu_attention"):
        assert any(getattr(policy, name) != getattr(chosen.policy, name) for policy in policies), name
    assert found["flexgen"].policy == flexgen
    assert found["all-weights-on-disk"].policy.weights == ON_DISK
    assert "gpu-batch-times-1.5" not in found or found["gpu-batch-times-1.5"].policy.gpu_batch_size < 24


def run_at(report: RunReport, tokens_per_s: float) -> RunReport:
    """The same run at another rate."""
    return replace(report, throughput_tokens_per_s=tokens_per_s)


def test_the_chosen_plan_is_held_against_the_fastest(setting: Setting, tmp_path: Path) -> None:
    """Medians of rounds, the fastest first; the page names every plan."""
    report = report_of(small_t4(), policy_of(), {})
    reports = {
        "some-case": {
            CHOSEN: [run_at(report, rate) for rate in (8.0, 9.0, 30.0)],
            "slower": [run_at(report, 5.0)],
            "faster": [run_at(report, rate) for rate in (10.0, 1.0, 10.0)],
        }
    }
    cases = {"some-case": BestPlanCase(planner="--model opt-125m")}
    result = summed_up(cases, reports, setting)
    (found,) = result.found
    assert [plan.label for plan in found.plans] == ["faster", CHOSEN, "slower"]
    assert found.share == pytest.approx(0.9)
    write_json_result(result, tmp_path / "result.json")
    text = page([load_json_result(tmp_path / "result.json", BestPlan)])
    assert "the chosen plan is at 90.0% of the fastest of 3" in text
    assert all(f"| {label} |" in text for label in ("**chosen**", "slower", "faster"))


def test_without_a_rival_there_is_nothing_to_say(setting: Setting) -> None:
    """A UserError."""
    with pytest.raises(UserError, match="1 plans were run"):
        summed_up({}, {"some": {CHOSEN: [report_of(small_t4(), policy_of(), {})]}}, setting)
