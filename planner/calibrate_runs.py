"""A run as calibration sees it: its plan, to be priced again under other factors, and what was measured of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprofiles.yaml_io import dump_yaml
from planner.cost import HOST
from planner.factors import CONTENTION, HANDOVER, LAUNCH, UNPACK, Factors, kind_name
from planner.passes import Blocks
from planner.plan import PHASES, Phase, Plan, Prediction
from planner.pricing import price, price_blocks
from planner.rates import Rates
from planner.report import RunReport, TaskReport
from planner.schedule import TaskKind
from planner.sizes import Sizes
from planner.work import MAX_DECODE_GROUPS

Vector = NDArray[np.float64]
_SMALL_SHARE = 0.02
"""Of a phase's busy seconds: what a task kind with this share tells of its rate counts half."""
_OVERHEADS = (LAUNCH, HANDOVER, CONTENTION)
_HIDDEN = 0.75
"""Of a GPU's time, the host's from which compute tasks take as long as it takes to ask for them."""
MAX_FOLDS = 5
"""Parts that runs are held out in."""


Priced = tuple[Prediction, ...]
"""A run's prediction; of a pipeline one for each rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one rank did, or the only one."""

    plan: Plan
    sizes: Sizes
    rates: Rates
    is_calibrated: bool
    """Its host is the one that is calibrated; another one's rates stay as they are."""
    tasks: tuple[TaskReport, ...]
    """Those that were predicted and measured."""

    def is_own_time(self) -> Vector:
        """1 for each kind of task whose seconds say how fast it is, 0 for tasks that wait for others, or need not.

        Where cores compute, copies are ready long before they are wanted, and how long a core lets them wait is the
        scheduler's affair; where they bind a phase it is their own rate that one sees. Beside a GPU, copies over the
        link share the host's memory with the CPU's attention, which their own rate knows nothing of; and a GPU that
        waits for copies has been asked for its work long before, which hides the time that asking takes.
        """
        return np.array([self._is_own_time(task) for task in self.tasks], dtype=float)

    def _is_own_time(self, task: TaskReport) -> bool:
        phase = self.plan.prediction.of(task.phase)
        busy, binding = phase.busy_s, phase.binding
        if self.rates.on_cpu:
            return task.kind == TaskKind.COMPUTE or task.resource == binding
        if task.kind == TaskKind.COMPUTE:
            is_long = busy.get(HOST, 0.0) < _HIDDEN * busy.get(task.resource, 0.0)
            return binding in (task.resource, HOST) or is_long
        attends = any(other.kind == TaskKind.ATTEND and other.phase == task.phase for other in self.tasks)
        return not (attends and task.resource in ("h2d", "d2h"))

    def predict(self, blocks: Blocks, num_tokens: int, factors: Factors, num_groups: int) -> Prediction:
        """Blocks as they were run, or without any a full one."""
        rates = self.rates.calibrated(factors) if self.is_calibrated else self.rates
        if not blocks:
            return price(self.sizes, rates, num_groups)
        return price_blocks(self.sizes, rates, blocks, num_tokens, num_groups)


class Run:
    """One report; its rows are the phases and the kinds of tasks that were predicted and measured.

    `rates` are the machine's, of a pipeline those of each rank. Of a pipeline the phases are those of all ranks
    together, and the tasks those of the ranks on the host that is calibrated.
    """

    def __init__(self, report: RunReport, rates: Sequence[Rates], here: Collection[int] = (0,)) -> None:
        """`here` are the ranks on the host that is calibrated."""
        plan = report.plan
        self.report, self.dtype = report, plan.model.dtype
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
        self._parts = tuple(self._parts_of(rates, here))
        self._tasks = [task for part in self._parts if part.is_calibrated for task in part.tasks]
        self.logs = np.log([*self.measured.values(), *(task.measured_s for task in self._tasks)])
        self.evidence = self._evidence()
        """How much each row counts: every phase as one, the kinds of tasks of one resource together as one."""

    def _parts_of(self, rates: Sequence[Rates], here: Collection[int]) -> Iterator[_Part]:
        report = self.report
        tasks = [rank.tasks for rank in report.ranks] or [report.tasks]
        for rank, own in enumerate(rates):
            plan = report.plan.of_rank(rank)
            sizes = plan.sizes()
            by_the_plan, today = _predicted(plan.prediction), _predicted(price(sizes, own, 1))
            yield _Part(
                plan=plan,
                sizes=sizes,
                rates=own,
                is_calibrated=rank in here,
                tasks=tuple(self._comparable(by_the_plan & today, tasks[rank])),
            )

    def _comparable(
        self, known: Collection[tuple[Phase, str, str]], tasks: Iterable[TaskReport]
    ) -> Iterator[TaskReport]:
        for task in tasks:
            if task.phase in self.measured and task.measured_s > 0:
                yield from [task] if (task.phase, task.kind, task.resource) in known else []

    def predict(self, factors: Factors, num_groups: int = MAX_DECODE_GROUPS) -> Priced:
        """The run under these factors, or without its blocks a full one; with fewer groups of passes more coarsely."""
        tokens = self.report.generated_tokens
        return tuple(part.predict(self.blocks, tokens, factors, num_groups) for part in self._parts)

    def phase_s(self, priced: Priced) -> dict[Phase, float]:
        """Seconds of each phase that was run, as far from the closed formula's as the plan's simulation was.

        A pipeline's are as much longer than its slowest rank's as they are in the plan.
        """
        plan = self.report.plan
        return {
            phase: max(found.of(phase).seconds for found in priced) * self.scale[phase] * _beyond(plan, phase)
            for phase in self.measured
        }

    def predicted_logs(self, priced: Priced) -> Vector:
        """log(seconds) of each row."""
        tasks = []
        for part, prediction in zip(self._parts, priced, strict=True):
            found = {(task.phase, task.kind, task.resource): task.seconds for task in prediction.tasks}
            if part.is_calibrated:
                own = ((task.phase, task.kind, task.resource) for task in part.tasks)
                tasks += [found[key] * self.scale[key[0]] for key in own]
        phases = self.phase_s(priced)
        return np.log([*(phases[phase] for phase in self.measured), *tasks])

    def factor_names(self) -> set[str]:
        """Factors of kinds that this run's tasks take, and of what is not a task."""
        names = {*_OVERHEADS, *self.measured}
        for task in self._tasks:
            if task.kind == TaskKind.COMPUTE:
                names.add(kind_name(task.resource, task.phase))
                if task.phase == "decode":
                    names.add(kind_name(task.resource, TaskKind.ATTEND))
                if self.report.plan.policy.weight_bits == 4:
                    names.add(kind_name(task.resource, UNPACK))
            else:
                names.add(kind_name(task.resource, task.kind))
        return names

    def _evidence(self) -> Vector:
        """Ranks that did the same say no more together than one of them would."""
        counted = [part for part in self._parts if part.is_calibrated]
        tasks = [_shares(part.tasks) * part.is_own_time() / len(counted) for part in counted]
        return np.concatenate([np.ones(len(self.measured)), *tasks])


def _predicted(prediction: Prediction) -> set[tuple[Phase, str, str]]:
    """Phase, kind and resource of the tasks that take time."""
    return {(task.phase, task.kind, task.resource) for task in prediction.tasks if task.seconds > 0}


def _shares(tasks: Sequence[TaskReport]) -> Vector:
    """How much each kind of task of a rank counts."""
    busy: defaultdict[Phase, float] = defaultdict(float)
    for task in tasks:
        busy[task.phase] += task.measured_s
    shares = [task.measured_s / busy[task.phase] for task in tasks]
    of_resource: defaultdict[str, float] = defaultdict(float)
    for task, share in zip(tasks, shares, strict=True):
        of_resource[task.resource] += share
    counted = zip(tasks, shares, strict=True)
    return np.array([share / (of_resource[task.resource] + _SMALL_SHARE) for task, share in counted])


def _beyond(plan: Plan, phase: Phase) -> float:
    """How much longer a phase is in a plan than by the closed formula, of a pipeline's slowest rank by itself."""
    if not plan.stages:
        return plan.prediction.of(phase).beyond_formula
    slowest_s = max(stage.prediction.of(phase).seconds for stage in plan.stages)
    return plan.prediction.of(phase).seconds / slowest_s if slowest_s else 1.0


def group_of(plan: Plan) -> str:
    """The same for a plan that was made again after the profile was calibrated."""
    parts = [plan.model, plan.workload, plan.policy, plan.placement]
    parts += [part for stage in plan.stages for part in (stage.policy, stage.placement)]
    layers = [stage.layers for stage in plan.stages]
    text = "".join(dump_yaml(part) for part in parts) + (str(layers) if layers else "")
    return hashlib.sha256(text.encode()).hexdigest()


def folds_of(runs: Sequence[Run]) -> list[list[int]]:
    """Runs by number in at most MAX_FOLDS parts; those of one plan in one part."""
    groups: dict[str, list[int]] = {}
    for n, run in enumerate(runs):
        groups.setdefault(run.group, []).append(n)
    parts = [list(groups.values())[start::MAX_FOLDS] for start in range(min(MAX_FOLDS, len(groups)))]
    return [[n for group in part for n in group] for part in parts]
