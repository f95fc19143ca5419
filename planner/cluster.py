"""Cluster: hosts, a model and a workload, and the problems that the stages of a pipeline on them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.machine import Caps
from planner.model import ModelSpec
from planner.pipeline import join
from planner.plan import Plan
from planner.policy import CommDevice
from planner.problem import Pipe, Problem, make_problem
from planner.sharing import at_work
from planner.sites import Site, most_stages, sites_of
from planner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a pipeline is sought for."""

    model: ModelSpec
    workload: Workload
    hosts: tuple[HardwareProfile, ...]
    caps: Caps
    comm_device: CommDevice

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Of the hosts."""
        return tuple(host.digest() for host in self.hosts)

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
    _wholes: dict[int, Problem] = field(default_factory=dict)

    @property
    def num_stages(self) -> int:
        """As many as sites."""
        return len(self.sites)

    def problem(self, stage: int, first: int, stop: int, num_waves: int) -> Problem:
        """Some layers on a stage's site."""
        key = stage, first, stop, num_waves
        if key not in self._problems:
            pipe = Pipe(num_stages=self.num_stages, num_waves=num_waves, comm_device=self.cluster.comm_device)
            part = self.cluster.model.part(first, stop)
            self._problems[key] = replace(self._at_work(stage, num_waves), model=part, pipe=pipe)
        return self._problems[key]

    def _at_work(self, stage: int, num_waves: int) -> Problem:
        """All layers on a stage's site; with few waves other ranks rest."""
        found, sharing = self._whole(stage), self.sites[stage].sharing
        if sharing is None or num_waves >= self.sites[stage].num_ranks:
            return found
        band = found.band
        if band:
            slow, fast = (at_work(rates, sharing, num_waves) for rates in (band.slow, band.fast))
            band = replace(band, slow=slow, fast=fast)
        return replace(found, rates=at_work(found.rates, sharing, num_waves), band=band)

    def _whole(self, stage: int) -> Problem:
        """All layers on a stage's site."""
        if stage not in self._wholes:
            cluster, site = self.cluster, self.sites[stage]
            self._wholes[stage] = make_problem(
                cluster.model,
                cluster.workload,
                site.share,
                site.caps(cluster.caps),
                whole=(site.whole.name, cluster.digests[site.host]),
            )
        return self._wholes[stage]

    def even(self, stage: int, num_waves: int) -> Problem:
        """A stage's problem with layers divided by number."""
        count = self.cluster.model.num_layers
        bounds = [count * s // self.num_stages for s in range(self.num_stages + 1)]
        return self.problem(stage, bounds[stage], bounds[stage + 1], num_waves)

    def join(self, parts: Sequence[Plan]) -> Plan:
        """The stages' plans as one."""
        return join(self.cluster.model, self.cluster.workload, parts, self.sites)

    def shown(self, parts: Sequence[Plan]) -> Plan:
        """The stages' plans as one, each with its final price and interval."""
        found = []
        for stage, part in enumerate(parts):
            assert part.model.layers is not None, "a stage has some of the layers"
            problem = self.problem(stage, *part.model.layers, part.policy.num_waves)
            found.append(problem.with_interval(problem.predicted(part)))
        return self.join(found)

    @property
    def tightest(self) -> int:
        """The stage on the site with the least memory near its compute; of equal ones the last, which has the head."""
        targets = [self.even(stage, 1).target for stage in range(self.num_stages)]
        room = [
            (target.limit_bytes(target.compute_tier), target.cpu_bytes, -s)
            for s, target in enumerate(targets)
        ]
        return room.index(min(room))
