"""Simulate: plays the schedule of a placed plan against the machine's rates, task by task.

Each lane does its tasks in the order of the schedule, as the executor's does; a task starts when its lane is free
and its dependencies are done. Tasks that run at once share what they have in common: the link, the disk, host
memory, the cores.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.activity import Activity, Span, Timeline
from planner.contention import fair_speeds
from planner.ledger import ACTIVATION_SLOTS, WEIGHT_STAGING, Sizes
from planner.machine import Rates, make_rates
from planner.plan import PHASES, Phase, Plan
from planner.schedule import ATTEND, Resource, Task, TaskKind, tasks
from planner.shape import shape_of
from planner.task_costs import SHARED_LANES, Load, TaskCosts

MAX_TASKS = 50_000
"""Blocks of more tasks are played for some of their tokens."""
NUM_TOKENS = 6
"""Decode passes that then stand for all of them."""
_DONE = 1e-9
"""Share of a task that rounding may leave over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """One full block, played."""

    played: tuple[int, ...]
    """Tokens played; where they are not all, the decode passes between them are interpolated."""
    phases: Mapping[Phase, Activity]
    throughput_tokens_per_s: float
    spans: tuple[Span, ...]
    """Of the tokens played, one after the other."""
    token_ends_s: tuple[float, ...]
    """When each token played was done."""
    end_s: float
    """When the last store of what was played was done."""
    work_s: Mapping[str, float]
    """What was played, by lane and by shared lane: `end_s` is at least the longest."""

    num_skipped: int
    """Tokens not played."""

    @property
    def seconds(self) -> float:
        """Prefill and decode."""
        return sum(activity.seconds for activity in self.phases.values())


def simulate(sizes: Sizes, rates: Rates, played: Sequence[int] | None = None) -> Simulation:
    """Play a block: `played` tokens, in rising order from 0; without them all, or `representative` ones."""
    gen_len = sizes.workload.gen_len
    chosen = tuple(representative(sizes) if played is None else played)
    player = _Player(sizes, rates, chosen)
    spans, ends = _calibrated(player.play(), player.token_ends, rates)
    passes = _passes(spans, ends)
    phases: dict[Phase, Activity] = {phase: Activity() for phase in PHASES}
    for token, activity, weight in zip(chosen, passes, _weights(chosen, gen_len), strict=True):
        phases["prefill" if token == 0 else "decode"].add(activity, weight)
    return Simulation(
        played=chosen,
        phases=phases,
        throughput_tokens_per_s=sizes.policy.block_size * gen_len / sum(a.seconds for a in phases.values()),
        spans=spans,
        token_ends_s=ends,
        end_s=max(span.stop_s for span in spans),
        work_s=player.work_s,
        num_skipped=gen_len - len(chosen),
    )


def rates_for(plan: Plan, profile: HardwareProfile) -> Rates:
    """The rates a plan is to be played at; a UserError where the profile is of another kind of machine."""
    tier = "gpu" if profile.gpus else "cpu"
    if tier != plan.hardware.compute_tier:
        raise UserError(
            f"the plan computes on the {plan.hardware.compute_tier}, profile {profile.name} on the {tier}; "
            "give the profile it was made with"
        )
    return make_rates(profile, plan.model.dtype)


def representative(sizes: Sizes, num_tokens: int | None = None) -> list[int]:
    """Prefill, the first and the last decode pass, which differ, and `num_tokens` evenly from those between.

    Without `num_tokens` all of them, or NUM_TOKENS where all are more than MAX_TASKS tasks.
    """
    gen_len = sizes.workload.gen_len
    if num_tokens is None:
        num_tokens = gen_len if len(first_tokens(sizes, MAX_TASKS)) == gen_len else NUM_TOKENS
    first, last = 2, gen_len - 2
    if num_tokens >= last - first + 1:
        return list(range(gen_len))
    steps = max(1, num_tokens - 1)
    between = {first + round((last - first) * n / steps) for n in range(steps + 1)}
    return [0, 1, *sorted(between), gen_len - 1]


def first_tokens(sizes: Sizes, max_tasks: int) -> list[int]:
    """Prefill and as many decode passes as come to about `max_tasks` tasks."""
    per_token = sum(1 for _ in tasks(shape_of(sizes), 2)) / 2
    return list(range(max(1, min(sizes.workload.gen_len, int(max_tasks / per_token)))))


def _passes(spans: Sequence[Span], ends: Sequence[float]) -> list[Activity]:
    """How the time of each token played was used."""
    timeline, ordered, num_added, passes = Timeline(0.0), sorted(spans, key=lambda span: span.start_s), 0, []
    for end_s, known_s in zip(ends, [*ends[1:], math.inf], strict=True):
        while num_added < len(ordered) and ordered[num_added].start_s < known_s:
            timeline.add(ordered[num_added])
            num_added += 1
        passes.append(timeline.close(end_s))
    return passes


def _weights(played: Sequence[int], gen_len: int) -> list[float]:
    """Passes that each token played stands for: itself, and its share of those between it and its neighbours."""
    weights = [0.0] * len(played)
    for i in range(gen_len):
        above = min(bisect_left(played, i), len(played) - 1)
        below = above if played[above] <= i else above - 1
        share = (i - played[below]) / (played[above] - played[below]) if above > below else 0.0
        weights[below] += 1 - share
        weights[above] += share
    return weights


def _calibrated(
    spans: Sequence[Span], ends: Sequence[float], rates: Rates
) -> tuple[tuple[Span, ...], tuple[float, ...]]:
    """Times stretched by each phase's own calibration factor."""
    prefill, decode = (rates.factor(phase) for phase in PHASES)
    if prefill == decode == 1:
        return tuple(spans), tuple(ends)

    def at(time_s: float) -> float:
        return min(time_s, ends[0]) * prefill + max(0.0, time_s - ends[0]) * decode

    stretched = (span._replace(start_s=at(span.start_s), stop_s=at(span.stop_s)) for span in spans)
    return tuple(stretched), tuple(at(end_s) for end_s in ends)


class _Running:
    """A task on its lane, and the seconds of work left of it."""

    __slots__ = ("left_s", "load", "start_s", "task")

    def __init__(self, task: Task, load: Load, start_s: float) -> None:
        self.task, self.load, self.start_s, self.left_s = task, load, start_s, load.seconds


class _Player:
    """The event loop: lanes take tasks, the next one to be done moves the clock."""

    def __init__(self, sizes: Sizes, rates: Rates, played: tuple[int, ...]) -> None:
        self.played, self.last_layer = played, len(sizes.slabs) - (not sizes.model.has_head)
        self.costs = TaskCosts(sizes, rates)
        self.schedule = tasks(shape_of(sizes), len(played))
        layers_ahead = sizes.policy.weight_slots + WEIGHT_STAGING
        self.ahead = (
            layers_ahead * len(sizes.placement.cache_rows) + sizes.policy.cache_slots + ACTIVATION_SLOTS
        )
        """Visits by which a task may run ahead of computing; more need not be known."""
        self.lanes: dict[Resource, deque[tuple[Task, Load, tuple[int, ...]]]] = {}
        self.running: dict[Resource, _Running] = {}
        self.unfinished: set[int] = set()
        self.blocker: tuple[int, ...] = ()
        self.num_computes = 0
        self.speeds: dict[tuple[int, ...], tuple[float, ...]] = {}
        self.spans: list[Span] = []
        self.token_ends = [0.0] * len(played)
        self.work_s: dict[str, float] = {}

    def play(self) -> list[Span]:
        """All spans, in the order in which they end."""
        now = 0.0
        while True:
            self._pull()
            self._start(now)
            if not self.running:
                break
            now = self._advance(now)
        assert not self.unfinished, "a task waits for one that never comes"
        return self.spans

    def _pull(self) -> None:
        """Hand tasks to their lanes until enough computes are queued."""
        while self.num_computes < self.ahead and (task := next(self.schedule, None)):
            load = self.costs.load(task, self.played[task.i])
            self.lanes.setdefault(task.resource, deque()).append((task, load, task.deps + self.blocker))
            self.unfinished.add(task.id)
            self._count(task, load)
            if task.kind is TaskKind.COMPUTE:
                self.num_computes += 1
                if load.is_blocking:
                    self.blocker = (task.id,)

    def _count(self, task: Task, load: Load) -> None:
        work = self.work_s
        work[task.resource] = work.get(task.resource, 0.0) + load.seconds
        for name, share in zip(SHARED_LANES, load.shares, strict=True):
            if share:
                work[name] = work.get(name, 0.0) + share * load.seconds

    def _start(self, now: float) -> None:
        for lane, queue in self.lanes.items():
            if lane not in self.running and queue and self.unfinished.isdisjoint(queue[0][2]):
                task, load, _ = queue.popleft()
                self.running[lane] = _Running(task, load, now)

    def _advance(self, now: float) -> float:
        """Go on to when the next task is done; the time then."""
        running = list(self.running.values())
        key = tuple(id(each.load) for each in running)  # loads live as long as the player
        speeds = self.speeds.get(key)
        if speeds is None:
            speeds = self.speeds[key] = fair_speeds([each.load.shares for each in running])
        step = min(each.left_s / speed for each, speed in zip(running, speeds, strict=True))
        now += step
        for each, speed in zip(running, speeds, strict=True):
            each.left_s -= step * speed
            if each.left_s <= _DONE * each.load.seconds:
                self._finish(each, now)
        return now

    def _finish(self, done: _Running, now: float) -> None:
        task, load = done.task, done.load
        del self.running[task.resource]
        self.unfinished.discard(task.id)
        i, kind = self.played[task.i], task.kind.value
        span = Span(
            task.id, kind, task.resource, i, task.j, task.k, done.start_s, now, load.num_bytes, task.deps
        )
        self.spans.append(span)
        if task.kind is not TaskKind.COMPUTE:
            return
        self.num_computes -= 1
        if load.attend_s:
            self.spans.append(_attended(span, load))
        if task.j == self.last_layer:
            self.token_ends[task.i] = now


def _attended(span: Span, load: Load) -> Span:
    """The CPU's part of a compute task, put in its middle: projections come before it, the MLP after it."""
    slowed = (span.stop_s - span.start_s) / load.seconds
    start_s = span.start_s + slowed * (load.seconds - load.attend_s) / 2
    stop_s = start_s + slowed * load.attend_s
    return span._replace(kind=ATTEND, lane="cpu", start_s=start_s, stop_s=stop_s, num_bytes=load.attend_bytes)
