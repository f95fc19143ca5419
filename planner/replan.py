"""Replan: after a job's first block, whether the rest is worth another plan at the rates that the block showed.

Run as `python -m planner.replan`: it reads a Question as JSON from its standard input and writes the Answer. So the
search takes no memory from the process that runs the job.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from hwprofiles.errors import run_cli
from hwprofiles.units import format_seconds
from hwprofiles.yaml_io import from_plain, to_plain
from planner.calibrate import corrected
from planner.calibrate_runs import Run
from planner.plan import Plan
from planner.problem import Problem
from planner.replan_question import Answer, Question
from planner.request import Request
from planner.search import search
from planner.what_if import differences, request_like
from planner.workload import Workload

WORTH = 0.05
"""Of the time that is left: what a new plan must save beside the loading of the weights."""


def answer(question: Question) -> Answer:
    """Search for the rest within the same limits and bits; both plans priced at the rates that the block showed."""
    report = question.report
    plan, rates = report.plan, corrected(report)
    problem = Problem(
        model=plan.model.spec(),
        workload=Workload.of_lengths(
            question.remaining, plan.workload.default_gen_len or plan.workload.gen_len
        ),
        target=plan.hardware,
        rates=rates,
    )
    found = search(problem, _request(plan))
    if found is None or found.policy == plan.policy:
        return Answer(plan=None, text="no better plan was found")
    run = Run(report, [rates])
    pace = sum(run.measured.values()) / sum(run.phase_s(run.predict(rates.factors)).values())
    now_s, then_s = (pace * _job_s(each) for each in (problem.plan(plan.policy), found))
    saved_s, reload_s = now_s - then_s, question.reload_s
    if saved_s < reload_s + WORTH * now_s:
        return Answer(
            plan=None,
            text=f"the best other plan would save {format_seconds(max(0.0, saved_s))} of {format_seconds(now_s)}, "
            f"and loading the weights again take {format_seconds(reload_s)}",
        )
    changes = "; ".join(differences(plan.policy, found.policy)) or "other threads and chunks"
    return Answer(
        plan=found,
        text=f"{changes}: {len(question.remaining)} prompts in {format_seconds(then_s)} instead of "
        f"{format_seconds(now_s)}, and {format_seconds(reload_s)} to load the weights again",
    )


def _request(plan: Plan) -> Request:
    """What the plan was searched for, with the bits that its results have so far."""
    bits = request_like(plan)
    return replace(plan.request or bits, weight_bits=bits.weight_bits, kv_bits=bits.kv_bits)


def _job_s(plan: Plan) -> float:
    assert plan.job is not None, "the number of prompts is known"
    return plan.job.seconds


def main() -> int:
    """Answer one question."""
    question = from_plain(json.load(sys.stdin), Question, "question")
    print(json.dumps(to_plain(answer(question))))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
