"""Script: the tasks of a sample on one stage, in the order of its schedule, and what each of them asks of its lane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from planner.activity import Span
from planner.cost import HOST
from planner.schedule import tasks
from planner.shape import LayerShape, Shape, shape_of
from planner.task_costs import SHARED_LANES, Group, Load, TaskCosts
from planner.tasks import Ids, Task, TaskKind


class LaneWork:
    """How long a lane had been at work by some time, as corners of a line."""

    def __init__(self, times_s: Sequence[tuple[float, float]]) -> None:
        """(start, stop) of its tasks, one after the other."""
        spans = np.array(times_s)
        done_s = np.cumsum(spans[:, 1] - spans[:, 0])
        before_s = np.concatenate(([0.0], done_s[:-1]))
        self._times_s = np.concatenate(([0.0], spans.ravel()))
        self._work_s = np.concatenate(([0.0], np.column_stack((before_s, done_s)).ravel()))

    def until(self, times_s: Sequence[float]) -> list[float]:
        """Seconds at work until each time."""
        found: list[float] = np.interp(times_s, self._times_s, self._work_s).tolist()
        return found


class Call(NamedTuple):
    """What the caller's thread does to ask a GPU for a compute task, and for the copies that belong to it."""

    seconds: float
    waits: Ids
    """Tasks that it waits for."""


class Script:
    """What is to be played; times come from the player."""

    def __init__(self, costs: TaskCosts, tokens: Sequence[int], groups: Sequence[Group]) -> None:
        """Some tokens, and layers one by one or in groups that are played as one layer each."""
        whole, self._costs = shape_of(costs.sizes), costs
        self.shape = replace(whole, layers=tuple(_shape_of(whole, group) for group in groups))
        self._tokens, self._groups = tokens, [*groups, ((len(whole.layers), 1.0),)]
        """By their numbers in what is played; the head's is last."""
        alike = [[(costs.layer_kinds[j], part) for j, part in group] for group in groups]
        self._kinds = [*(alike.index(group) for group in alike), len(groups)]
        self.tasks = list(tasks(self.shape, len(tokens)))
        self.alike: list[Load] = []
        """The loads that there are."""
        self._known: dict[tuple[object, ...], int] = {}
        self._places: dict[int, int] = {}
        self.kinds = [self._kind(task) for task in self.tasks]
        """Of each task the place of its load in `alike`."""
        self.loads = [self.alike[kind] for kind in self.kinds]

    def _kind(self, task: Task) -> int:
        """The place of a task's load."""
        layers = self._kinds[task.j] if task.j >= 0 else task.j
        part = task.part if task.kind is TaskKind.COMPUTE else 0  # all parts of a layer's weights are alike
        batch = self._costs.batch_kinds[task.k]
        key = task.kind, task.resource, task.i, layers, batch, part, task.num_parts
        known = self._known.get(key)
        if known is None:
            group = self._group(task)
            load = self._costs.load(task, self._tokens[task.i], group)
            known = self._known[key] = self._places.setdefault(id(load), len(self.alike))
            if known == len(self.alike):
                self.alike.append(load)
        return known

    def _group(self, task: Task) -> Group:
        """The layers of a task, by their numbers in the plan."""
        if task.j < 0:
            return ((task.j, 1.0),)
        return tuple(chain.from_iterable(self._groups[task.j : task.j + task.num_layers]))

    def _named(self, task: Task) -> tuple[int, int]:
        """(token, layer) by their numbers in the plan."""
        return self._tokens[task.i], self._groups[task.j][0][0] if task.j >= 0 else task.j

    def waits(self) -> Iterator[Ids]:
        """What each task waits for beside its lane; where the caller's thread computes nothing later is issued before.

        Beside a GPU calls stand before it, too: `calls`.
        """
        blocker: Ids = ()
        for task, load in zip(self.tasks, self.loads, strict=True):
            yield task.deps + blocker
            if load.is_blocking:
                blocker = (task.id,)

    def calls(self) -> tuple[list[Call], list[int]]:
        """What the caller's thread does beside a GPU, in this order; for each task how many of them stand before it.

        Its own does not: the GPU begins with the first kernel that it is asked for. The thread runs ahead of the GPU,
        but for two things that it waits for: the ids of the last token but one before it begins the next pass, and the
        CPU's attention before it goes on with a layer.
        """
        calls: list[Call] = []
        before: list[int] = []
        last_of = {k: wave[-1] for wave in self.shape.waves for k in wave}
        begun: set[tuple[int, int]] = set()
        known: dict[tuple[int, int], Ids] = {}
        """By token and the last gpu batch of a wave."""
        for task, load in zip(self.tasks, self.loads, strict=True):
            before.append(len(calls))
            if task.kind is TaskKind.COMPUTE and not load.is_blocking:
                deps = task.deps if 0 < task.part == task.num_parts - 1 else ()
                if (wave := (task.i, last_of[task.k])) not in begun:
                    begun.add(wave)
                    deps += known.get((task.i - 2, wave[1]), ())
                calls.append(Call(load.issue_s, deps))
            if self.shape.is_final(task):
                known[task.i, task.k] = (task.id,)
                before[-1] = len(calls)  # its last kernel is asked for at the end
        return calls, before

    def spans(self, times_s: Iterable[tuple[float, float]]) -> Iterator[Span]:
        """The tasks from start to stop, in the order of the schedule."""
        for task, load, (start_s, stop_s) in zip(self.tasks, self.loads, times_s, strict=True):
            i, j = self._named(task)
            kind, nbytes = task.kind.value, load.num_bytes
            yield Span(task.id, kind, task.resource, i, j, task.k, start_s, stop_s, nbytes, task.deps)

    def lanes(self, times_s: Iterable[tuple[float, float]]) -> dict[str, LaneWork]:
        """What each lane did."""
        lanes: dict[str, list[tuple[float, float]]] = {}
        for task, span_s in zip(self.tasks, times_s, strict=True):
            lanes.setdefault(task.resource, []).append(span_s)
        return {name: LaneWork(spans_s) for name, spans_s in lanes.items()}

    def work_s(self, within: Iterable[int] | None = None) -> dict[str, float]:
        """By lane and by shared lane, of all tasks or of some, not calibrated by phase."""
        work: dict[str, float] = {}
        each = range(len(self.tasks)) if within is None else within
        for (resource, kind), count in Counter((self.tasks[n].resource, self.kinds[n]) for n in each).items():
            load = self.alike[kind]
            work[resource] = work.get(resource, 0.0) + load.seconds * count
            if load.issue_s:
                work[HOST] = work.get(HOST, 0.0) + load.issue_s * count
            for name, share in zip(SHARED_LANES, load.shares, strict=True):
                if share:
                    work[name] = work.get(name, 0.0) + share * load.seconds * count
        return work


def _shape_of(whole: Shape, group: Group) -> LayerShape:
    """Of layers that are played as one."""
    layers = [whole.layers[j] for j, _ in group]
    return LayerShape(
        on_link=any(layer.on_link for layer in layers),
        on_disk=any(layer.on_disk for layer in layers),
        num_parts=max(layer.num_parts for layer in layers),
    )
