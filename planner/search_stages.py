"""Search over stages: the pipeline with the highest throughput for a number of stages, or for the best number.

A stage of a model is a problem of its own. One of them, on the rank with the least, is searched like any model; what
the search finds there, all stages take over: the block and its gpu batches. Then each stage gets its own splits, and
layers go from one to the other until they take the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.candidate import Candidate
from planner.divide import divide
from planner.machine import Caps
from planner.model import ModelSpec
from planner.pipeline import join
from planner.plan import Plan
from planner.policy import CommDevice, Policy
from planner.problem import Pipe, Problem, make_problem
from planner.realise import place_within
from planner.request import Request
from planner.search import WORTH_IT, glance, search
from planner.shares import Way
from planner.shortage import explain_shortage
from planner.sites import Site, most_stages, sites_of
from planner.work import Choice
from planner.workload import Workload

Reporter = Callable[[str], None]
_NUM_BLOCKS = 2
"""Gpu batch sizes of the search that are tried on all stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a pipeline is sought for."""

    model: ModelSpec
    workload: Workload
    hosts: tuple[HardwareProfile, ...]
    caps: Caps
    comm_device: CommDevice

    def staged(self, num_stages: int) -> Staged:
        """The problem with this number of stages; a UserError where the hosts do not have as many places."""
        num_layers = self.model.num_layers
        if num_stages > num_layers:
            raise UserError(
                f"{num_stages} stages, {self.model.name} has {num_layers} layers and each stage needs one; "
                f"use --stages {num_layers} at most"
            )
        return Staged(cluster=self, sites=sites_of(self.hosts, num_stages, self.comm_device))

    @property
    def most_stages(self) -> int:
        """What the hosts have places for."""
        return most_stages(self.hosts, self.model.num_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A pipeline of a number of stages, each on its site."""

    cluster: Cluster
    sites: tuple[Site, ...]
    _problems: dict[tuple[int, int, int, int], Problem] = field(default_factory=dict)

    @property
    def num_stages(self) -> int:
        """As many as sites."""
        return len(self.sites)

    def problem(self, stage: int, first: int, stop: int, num_waves: int) -> Problem:
        """Some layers on a stage's site."""
        key = stage, first, stop, num_waves
        if key not in self._problems:
            cluster, site = self.cluster, self.sites[stage]
            found = make_problem(
                cluster.model.part(first, stop), cluster.workload, site.share, site.caps(cluster.caps)
            )
            pipe = Pipe(num_stages=self.num_stages, num_waves=num_waves, comm_device=cluster.comm_device)
            target = replace(found.target, name=site.whole.name, digest=site.whole.digest())
            self._problems[key] = replace(found, target=target, pipe=pipe)
        return self._problems[key]

    def even(self, stage: int, num_waves: int) -> Problem:
        """A stage's problem with layers divided by number."""
        count = self.cluster.model.num_layers
        bounds = [count * s // self.num_stages for s in range(self.num_stages + 1)]
        return self.problem(stage, bounds[stage], bounds[stage + 1], num_waves)

    def join(self, parts: Sequence[Plan]) -> Plan:
        """The stages' plans as one."""
        return join(self.cluster.model, self.cluster.workload, parts, self.sites)

    @property
    def tightest(self) -> int:
        """The stage on the site with the least memory near its compute; of equal ones the last, which has the head."""
        targets = [self.even(stage, 1).target for stage in range(self.num_stages)]
        room = [
            (target.limit_bytes(target.compute_tier), target.cpu_bytes, -s)
            for s, target in enumerate(targets)
        ]
        return room.index(min(room))


def search_stages(
    cluster: Cluster, num_stages: int, request: Request, report: Reporter = lambda _: None
) -> Plan | None:
    """The best pipeline of so many stages, or None where none fits."""
    staged = cluster.staged(num_stages)
    plans = [
        replace(plan, request=request)
        for num_waves in wave_options(num_stages)
        for plan in _with_waves(staged, num_waves, request, report)
    ]
    return max(plans, key=lambda plan: plan.throughput_tokens_per_s, default=None)


def wave_options(num_stages: int) -> tuple[int, ...]:
    """As many waves as stages keep all of them at work; one more hides uneven stages and the messages' way.

    Many of them fill the pipe sooner, which pays where the weights are at home.
    """
    return (num_stages, num_stages + 1, 2 * num_stages, 4 * num_stages)


def stage_options(cluster: Cluster) -> list[int]:
    """Numbers of stages worth comparing: all up to four, then doubled, and the most there can be."""
    most, least = cluster.most_stages, len(cluster.hosts)
    wanted = {1, 2, 3, 4, 8, 16, 32, 64, most}
    return sorted(count for count in wanted if least <= count <= most)


def best_of(plans: Sequence[Plan]) -> Plan:
    """The highest throughput, or of those as good as it the one with the fewest stages."""
    top = max(plan.throughput_tokens_per_s for plan in plans)
    near = [plan for plan in plans if plan.throughput_tokens_per_s >= top * (1 - WORTH_IT)]
    return min(near, key=lambda plan: plan.num_ranks)


def explain_stages(cluster: Cluster, num_stages: int, request: Request) -> str:
    """One line: which stage does not fit where, and what would help."""
    staged = cluster.staged(num_stages)
    for stage in (staged.tightest, *range(num_stages)):
        problem = staged.even(stage, 1)
        if glance(problem, request) is None:
            site = staged.sites[stage]
            why = explain_shortage(problem, request)
            return f"stage {stage} of {num_stages}, with 1/{site.num_ranks} of its host: {why}"
    return (
        f"no division of {cluster.model.name} among {num_stages} stages fits; use fewer stages or more memory"
    )


def _with_waves(staged: Staged, num_waves: int, request: Request, report: Reporter) -> Iterator[Plan]:
    """Pipelines with the blocks that the search of one stage finds best."""
    found: list[Plan] = []
    report(f"{staged.num_stages} stages, {num_waves} waves: searching one of them")
    search(staged.even(staged.tightest, num_waves), request, report, keep=found.append)
    tried: set[int] = set()
    for plan in sorted(found, key=lambda plan: -plan.throughput_tokens_per_s):
        if len(tried) == _NUM_BLOCKS:
            return
        if plan.policy.gpu_batch_size in tried:
            continue
        tried.add(plan.policy.gpu_batch_size)
        report(f"{staged.num_stages} stages, {num_waves} waves: dividing the layers")
        pipeline = _with_block(staged, num_waves, plan.policy, request)
        if pipeline:
            yield pipeline


def _with_block(staged: Staged, num_waves: int, policy: Policy, request: Request) -> Plan | None:
    """The pipeline with a block like this, or with fewer gpu batches where a stage has no room."""
    count = policy.num_gpu_batches
    while True:
        parts = divide(
            staged.cluster.model.num_layers,
            staged.num_stages,
            _Placing(staged, num_waves, policy, count, request).place,
        )
        if parts:
            return staged.join(parts)
        if count <= num_waves:
            return None
        count = max(num_waves, count * 3 // 4 // num_waves * num_waves)


class _Placing:
    """Places stages with one block, alike ones once."""

    def __init__(self, staged: Staged, num_waves: int, policy: Policy, count: int, request: Request) -> None:
        self.staged, self.num_waves, self.policy, self.count = staged, num_waves, policy, count
        self.request = request
        self.known: dict[tuple[object, ...], Plan | None] = {}

    def place(self, stage: int, first: int, stop: int) -> Plan | None:
        """The stage's plan with these layers; None where it does not fit."""
        problem = self.staged.problem(stage, first, stop, self.num_waves)
        model = problem.model
        kinds = tuple(id(layer) for layer in model.layers)
        key = kinds, model.has_embedding, model.has_head, problem.target, problem.rates.h2d, problem.rates.net
        if key not in self.known:
            self.known[key] = self._place(problem)
        found = self.known[key]
        return replace(found, model=replace(found.model, layers=(first, stop))) if found else None

    def _place(self, problem: Problem) -> Plan | None:
        """With activations at rest or moving, whichever is faster."""
        choice = replace(Choice.of(self.policy), num_waves=self.num_waves)
        plans = []
        for moves in (False, True):
            candidate = Candidate(
                choice=choice,
                way=Way(moves_activations=moves, attends=self.policy.cpu_attention > 0),
                seconds_per_sequence=0.0,
                num_gpu_batches=float(self.count),
            )
            found = place_within(problem, self.request, candidate, self.count)
            plans += [found] if found else []
        best = max(plans, key=lambda plan: plan.throughput_tokens_per_s, default=None)
        return problem.with_interval(problem.predicted(best)) if best else None
