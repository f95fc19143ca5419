"""A run as calibration sees it: its plan, to be priced again under other factors, and what was measured of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from hwprofiles.yaml_io import dump_yaml
from planner.factors import CONTENTION, HANDOVER, LAUNCH, UNPACK, kind_name
from planner.machine import Rates
from planner.passes import Blocks
from planner.plan import PHASES, Phase, Plan, Prediction
from planner.pricing import price, price_blocks
from planner.report import RunReport
from planner.schedule import ATTEND, TaskKind
from planner.work import MAX_DECODE_GROUPS

Vector = NDArray[np.float64]
_SMALL_SHARE = 0.02
"""Of a phase's busy seconds: what a task kind with this share tells of its rate counts half."""
_OVERHEADS = (LAUNCH, HANDOVER, CONTENTION)


class Run:
    """One report; its rows are the phases and the kinds of tasks that were predicted and measured."""

    def __init__(self, report: RunReport) -> None:
        plan = report.plan
        self.report, self.dtype, self.sizes = report, plan.model.dtype, plan.sizes()
        self.group = group_of(plan)
        """What runs of one plan have in common."""
        self.blocks: Blocks = {found.lengths(): found.count for found in report.blocks}
        self.work = f"{self.group} {sorted(self.blocks.items())}"
        """What runs of the same work have in common."""
        planned = {phase: plan.prediction.of(phase).seconds for phase in PHASES}
        run = [phase for phase in report.phases if phase.measured_s > 0 and planned[phase.phase] > 0]
        self.measured: dict[Phase, float] = {phase.phase: phase.measured_s for phase in run}
        self.scale = {phase.phase: phase.predicted_s / planned[phase.phase] for phase in run}
        """Full blocks' worth of work, where the report does not hold the blocks themselves."""
        if self.blocks:
            self.scale = dict.fromkeys(self.scale, 1.0)
        known = {(task.phase, task.kind, task.resource) for task in plan.prediction.tasks if task.seconds > 0}
        self._tasks = [
            task
            for task in report.tasks
            if task.phase in self.measured
            and task.measured_s > 0
            and (task.phase, task.kind, task.resource) in known
        ]
        self.logs = np.log([*self.measured.values(), *(task.measured_s for task in self._tasks)])
        self.evidence = self._evidence()
        """How much each row counts: every phase as one, the kinds of tasks of one resource together as one."""

    def predict(self, rates: Rates, num_groups: int = MAX_DECODE_GROUPS) -> Prediction:
        """The run at these rates, or without its blocks a full one; with fewer groups of passes more coarsely."""
        if not self.blocks:
            return price(self.sizes, rates, num_groups)
        return price_blocks(self.sizes, rates, self.blocks, self.report.generated_tokens, num_groups)

    def phase_s(self, prediction: Prediction) -> dict[Phase, float]:
        """Seconds of each phase that was run, as far from the closed formula's as the plan's simulation was."""
        planned = self.report.plan.prediction
        return {
            phase: prediction.of(phase).seconds * planned.of(phase).beyond_formula * self.scale[phase]
            for phase in self.measured
        }

    def predicted_logs(self, prediction: Prediction) -> Vector:
        """log(seconds) of each row."""
        found = {(task.phase, task.kind, task.resource): task.seconds for task in prediction.tasks}
        tasks = [found[task.phase, task.kind, task.resource] * self.scale[task.phase] for task in self._tasks]
        phases = self.phase_s(prediction)
        return np.log([*(phases[phase] for phase in self.measured), *tasks])

    def factor_names(self) -> set[str]:
        """Factors of kinds that this run's tasks take, and of what is not a task."""
        names = {*_OVERHEADS, *self.measured}
        for task in self._tasks:
            if task.kind == TaskKind.COMPUTE:
                names.add(kind_name(task.resource, task.phase))
                if task.phase == "decode":
                    names.add(kind_name(task.resource, ATTEND))
                if self.report.plan.policy.weight_bits == 4:
                    names.add(kind_name(task.resource, UNPACK))
            else:
                names.add(kind_name(task.resource, task.kind))
        return names

    def _evidence(self) -> Vector:
        busy: defaultdict[Phase, float] = defaultdict(float)
        for task in self._tasks:
            busy[task.phase] += task.measured_s
        shares = [task.measured_s / busy[task.phase] for task in self._tasks]
        of_resource: defaultdict[str, float] = defaultdict(float)
        for task, share in zip(self._tasks, shares, strict=True):
            of_resource[task.resource] += share
        tasks = [
            share / (of_resource[task.resource] + _SMALL_SHARE)
            for task, share in zip(self._tasks, shares, strict=True)
        ]
        return np.array([*(1.0 for _ in self.measured), *tasks])


def group_of(plan: Plan) -> str:
    """The same for a plan that was made again after the profile was calibrated."""
    parts = plan.model, plan.workload, plan.policy, plan.placement
    return hashlib.sha256("".join(dump_yaml(part) for part in parts).encode()).hexdigest()
