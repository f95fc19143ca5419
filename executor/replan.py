"""Replan: where the first block's time is far from the predicted one, ask the planner for a plan for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from executor.leg import FirstBlock, Switch
from hwprofiles.errors import UserError
from hwprofiles.units import format_seconds
from hwprofiles.yaml_io import from_plain, to_plain
from planner.plan import Plan
from planner.replan_question import Answer, Question
from planner.report import RunReport

OFF = 0.15
"""How far the measured time may be from the predicted one before a job is planned again."""
_PACKAGE_PARENT = Path(__file__).parents[1]
_TIMEOUT_S = 600


def check_can_replan(plan: Plan) -> None:
    """A UserError now for a plan that could not be made again after its first block."""
    plan.known_rates()
    if plan.policy.stages > 1:
        raise UserError(f"the plan has {plan.policy.stages} stages; --replan is for plans of one")


class Replanner:
    """Decides after a job's first block; `say` is told what it found, in a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def __call__(self, first: FirstBlock) -> Switch | None:
        """Another plan for the rest where one is worth it."""
        report = without(first)
        off = report.measured_s / report.predicted_s - 1
        if abs(off) <= OFF:
            return None
        found = (
            f"the first block took {format_seconds(report.measured_s)}, {abs(off):.0%} "
            f"{'more' if off > 0 else 'less'} than the {format_seconds(report.predicted_s)} predicted"
        )
        try:
            answer = _ask_planner(report, first)
        except UserError as error:
            self._say(f"{found}; the search for another plan failed ({error}); going on with this one")
            return None
        if answer.plan is None:
            self._say(f"{found}; going on with this plan: {answer.text}")
            return None
        reason = f"{found}; going on with another plan: {answer.text}"
        self._say(reason)
        return Switch(plan=answer.plan, remaining=first.remaining, reason=reason)


def without(first: FirstBlock) -> RunReport:
    """The report with the phases' one-time costs taken out."""
    phases = (
        replace(phase, measured_s=max(0.0, phase.measured_s - first.one_time_s[phase.phase]))
        for phase in first.report.phases
    )
    return replace(first.report, phases=tuple(phases))


def _ask_planner(report: RunReport, first: FirstBlock) -> Answer:
    """In a process of its own, whose memory is gone before the job goes on."""
    lengths = tuple((len(request.prompt_ids), request.max_tokens) for request in first.remaining)
    question = Question(report=report, remaining=lengths, reload_s=first.reload_s)
    path = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "planner.replan"],
            input=json.dumps(to_plain(question)),
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(" ".join(str(error).split())[:200]) from None
    if done.returncode:
        raise UserError(" ".join(done.stderr.split())[-200:] or f"status {done.returncode}")
    return from_plain(json.loads(done.stdout), Answer, "the planner's answer")
