"""Planning the rest of a job again: what the first block shows decides, within the same limits and bits."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.yaml_io import from_plain, to_plain
from planner import replan
from planner.calibrate import calibrate, corrected
from planner.joined_report import joined
from planner.problem import Problem
from planner.replan import answer
from planner.replan_question import Answer, Question
from planner.report import RunReport, load_report, report_json
from planner.request import Request
from planner.workload import Workload
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, policy_of, small_t4
from tests.planner.runs import report_of

SLOW_DISK = {"disk_read": 20.0, "disk_write": 20.0}
REMAINING = ((60, 17), (40, 17), (30, 8)) * 100
ON_DISK_ONLY = policy_of(ON_DISK, ON_CPU, ON_GPU, size=8, batches=2)


def question(report: RunReport, reload_s: float = 1.0) -> Question:
    """With 300 prompts left."""
    return Question(report=report, remaining=REMAINING, reload_s=reload_s)


def test_a_better_plan_is_found() -> None:
    """Where the disk is slow the weights leave it; the new plan fits, and is for just what is left."""
    report = report_of(small_t4(), ON_DISK_ONLY, SLOW_DISK)
    found = answer(question(report))
    assert found.plan is not None
    assert found.plan.policy.weights.disk < 0.1
    assert found.plan.hardware == report.plan.hardware
    assert not found.plan.ledger.shortfalls(found.plan.hardware)
    assert found.plan.workload == Workload.of_lengths(REMAINING, report.plan.workload.gen_len)
    assert "weights on" in found.text
    problem = Problem(
        model=report.plan.model.spec(),
        workload=found.plan.workload,
        target=report.plan.hardware,
        rates=corrected(report),
    )
    before, after = problem.plan(ON_DISK_ONLY).job, found.plan.job
    assert before is not None
    assert after is not None
    assert after.seconds < 0.9 * before.seconds


def test_it_must_pay_for_loading_the_weights() -> None:
    """A plan that saves less than loading takes is not worth it."""
    report = report_of(small_t4(), ON_DISK_ONLY, SLOW_DISK)
    found = answer(question(report, reload_s=1e6))
    assert found.plan is None
    assert "would save" in found.text


def test_a_plan_that_is_still_best_stays() -> None:
    """The search at the corrected rates finds the plan that runs, or none that is worth it."""
    slow = answer(question(report_of(small_t4(), ON_DISK_ONLY, SLOW_DISK))).plan
    assert slow is not None
    again = answer(question(report_of(small_t4(), slow.policy, SLOW_DISK), reload_s=0.0))
    assert again.plan is None or again.plan.job.seconds < 0.95 * slow.job.seconds  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [4, 16])
def test_bits_stay_as_they_are(bits: int) -> None:
    """What was searched with `auto` goes on with the bits it has: the results are of one kind."""
    policy = policy_of(ON_DISK, ON_CPU, ON_GPU, size=8, batches=2, weight_bits=bits, kv_bits=bits)
    report = report_of(small_t4(), policy, SLOW_DISK)
    auto = Request(weight_bits="auto", kv_bits="auto")
    found = answer(question(replace(report, plan=replace(report.plan, request=auto)))).plan
    assert found is not None
    assert (found.policy.weight_bits, found.policy.kv_bits) == (bits, bits)


def test_question_and_answer_are_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a process is asked on its input it answers on its output."""
    asked = question(report_of(small_t4(), ON_DISK_ONLY, SLOW_DISK))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(to_plain(asked))))
    assert replan.main() == 0
    assert from_plain(json.loads(capsys.readouterr().out), Answer, "answer") == answer(asked)


def test_two_legs_make_one_report(tmp_path: Path) -> None:
    """Sums of both, both plans within, as a file and for calibration."""
    profile = small_t4()
    other = policy_of(ON_CPU, ON_CPU, ON_GPU, size=16)
    before, after = (report_of(profile, policy, SLOW_DISK) for policy in (ON_DISK_ONLY, other))
    report = joined(before, after, "slow disk")
    assert report.replanned is not None
    assert report.legs == (before, after)
    assert (report.num_requests, report.num_blocks) == (before.num_requests + after.num_requests, 2)
    assert report.measured_s == pytest.approx(before.measured_s + after.measured_s)
    assert report.predicted_s == pytest.approx(before.predicted_s + after.predicted_s)
    assert sum(task.measured_s for task in report.tasks) == pytest.approx(
        sum(task.measured_s for leg in report.legs for task in leg.tasks)
    )
    assert (report.plan_digest, report.replanned.before.plan_digest) == (
        after.plan_digest,
        before.plan_digest,
    )
    path = tmp_path / "report.json"
    path.write_text(report_json(report))
    assert load_report(path) == report
    assert (
        calibrate(profile, [report]).calibration.factors
        == calibrate(profile, [before, after]).calibration.factors
    )
