"""Simulate: plays the schedule of a placed plan against the machine's rates, task by task.

Each lane does its tasks in the order of the schedule, as the executor's does; a task starts when its lane is free
and its dependencies are done. Tasks that run at once share what they have in common: the link, the disk, host
memory, the cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hwprofiles.profile import HardwareProfile
from planner.activity import Activity, Span, Timeline
from planner.contention import Commons, Shares
from planner.cost import HOST
from planner.plan import PHASES, Phase, Plan
from planner.player import Pieces, play
from planner.rates import Rates, make_rates
from planner.same_machine import check_tier
from planner.sample import Sample, representative
from planner.schedule import Resource, TaskKind
from planner.script import LaneWork, Script
from planner.sizes import Sizes
from planner.task_costs import SHARED_LANES, TaskCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """One full block, played."""

    sample: Sample
    """What was played; where it is not all, the rest is interpolated."""
    phases: Mapping[Phase, Activity]
    throughput_tokens_per_s: float
    spans: tuple[Span, ...]
    """Of what was played, one after the other."""
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


def simulate(sizes: Sizes, rates: Rates, sample: Sample | None = None) -> Simulation:
    """Play a block: a sample of it, without one all or `representative` tokens."""
    sample = sample or representative(sizes)
    played = _Played(sizes, rates, sample)
    spans, marks = tuple(played.script.spans(played.times_s())), played.marks
    passes = _passes(spans, marks, sample)
    phases: dict[Phase, Activity] = {phase: Activity() for phase in PHASES}
    for token, activity, weight in zip(sample.tokens, passes, sample.weights, strict=True):
        phases[phase_of(token)].add(activity, weight)
    gen_len = sizes.workload.gen_len
    return Simulation(
        sample=sample,
        phases=phases,
        throughput_tokens_per_s=sizes.policy.block_size * gen_len / sum(a.seconds for a in phases.values()),
        spans=spans,
        token_ends_s=tuple(mark.end_s for mark in marks),
        end_s=max(span.stop_s for span in spans),
        work_s=played.script.work_s(),
        num_skipped=gen_len - len(sample.tokens),
    )


def phase_times(sizes: Sizes, rates: Rates, sample: Sample) -> dict[Phase, Activity]:
    """The time of each phase and how long its lanes are at work in it, without gaps and overlap, in half the time."""
    played = _Played(sizes, rates, sample)
    marks, starts = played.marks, [0.0, *(mark.end_s for mark in played.marks)]
    cuts = [
        cut
        for start_s, mark in zip(starts[:-1], marks, strict=True)
        for cut in (start_s, mark.end_s, mark.first_s, mark.last_s)
    ]
    done = {name: lane.until(cuts) for name, lane in played.lanes().items()}
    stretches = (
        Activity(cuts[i + 1] - cuts[i], 0.0, {name: work[i + 1] - work[i] for name, work in done.items()})
        for i in range(0, len(cuts), 2)
    )
    phases: dict[Phase, Activity] = {phase: Activity() for phase in PHASES}
    for token, weight, mark in zip(sample.tokens, sample.weights, marks, strict=True):
        for times in (1.0, mark.times - 1):  # the whole pass, and its window again
            phases[phase_of(token)].add(next(stretches), weight * times)
    return phases


def rates_for(plan: Plan, profile: HardwareProfile) -> Rates:
    """The rates a plan is to be played at; a UserError where the profile is of another kind of machine."""
    check_tier(plan, profile)
    return make_rates(profile, plan.model.dtype)


def phase_of(token: int) -> Phase:
    return "prefill" if token == 0 else "decode"


@dataclass(frozen=True, slots=True)
class _Mark:
    """When a pass reached and left the sample's window, and when it was done."""

    first_s: float
    last_s: float
    end_s: float
    times: float
    """How often the window counts."""


class _Played:
    """The tasks of a sample, and when each of them ran."""

    def __init__(self, sizes: Sizes, rates: Rates, sample: Sample) -> None:
        self._sizes, self._sample = sizes, sample
        self._factors = rates.factor("prefill"), rates.factor("decode")
        self.script = Script(TaskCosts(sizes, rates), sample.tokens, [((j, 1.0),) for j in sample.layers])
        self._starts, self._stops = self._play()
        self.marks = self._marks()

    def _play(self) -> tuple[list[float], list[float]]:
        script = self.script
        lanes: dict[Resource, int] = {}
        kinds: dict[tuple[Shares, bool], int] = {}
        calls, before = script.calls()
        count, nothing = len(script.tasks), ((0.0,) * len(SHARED_LANES), False)
        kind_of = [kinds.setdefault((load.shares, load.yields), len(kinds)) for load in script.alike]
        pieces = Pieces(
            lanes=[lanes.setdefault(task.resource, len(lanes)) for task in script.tasks],
            seconds=[load.seconds for load in script.loads],
            kinds=[kind_of[kind] for kind in script.kinds],
            deps=[
                (*deps, count + n - 1) if n else deps for deps, n in zip(script.waits(), before, strict=True)
            ],
        )
        for call in calls:
            pieces.add(len(lanes), call.seconds, kinds.setdefault(nothing, len(kinds)), call.waits)
        shares, yields = zip(*kinds, strict=True)
        starts, stops = play(pieces, len(lanes) + 1, Commons(shares, yields=yields))
        return starts[:count], stops[:count]

    def _marks(self) -> tuple[_Mark, ...]:
        """Of each token, calibrated."""
        window_work_s = self._window_work_s()
        first, last = (edge - 1 for edge in self._sample.window)
        head = len(self._sample.layers) - (not self._sizes.model.has_head)
        found: dict[tuple[int, int], float] = {}
        for task, stop_s in zip(self.script.tasks, self._stops, strict=True):
            if task.kind is TaskKind.COMPUTE:
                found[task.i, task.j] = stop_s  # in the end of its last gpu batch
        self._prefill_s = found[0, head]
        marks = []
        for i in range(len(self._sample.tokens)):
            length_s = found[i, last] - found[i, first]
            slower = max(1.0, window_work_s[i] / length_s) if length_s else 1.0
            first_s, last_s, end_s = (self._at(found[i, j]) for j in (first, last, head))
            marks.append(_Mark(first_s, last_s, end_s, 1 + (self._sample.times - 1) * slower))
        return tuple(marks)

    def _window_work_s(self) -> list[float]:
        """What the busiest lane has to do for each token in the window's layers.

        It may be at work ahead of them, for as long as there are slots; in the long run it is not.
        """
        first, stop = self._sample.window
        within: list[list[int]] = [[] for _ in self._sample.tokens]
        for n, task in enumerate(self.script.tasks):
            if first <= task.j < stop:
                within[task.i].append(n)
        return [self._busiest_s(tasks) for tasks in within]

    def _busiest_s(self, tasks: Sequence[int]) -> float:
        """What the busiest lane has to do for these tasks; the host may be a whole pass ahead."""
        work_s = self.script.work_s(tasks)
        return max((seconds for name, seconds in work_s.items() if name != HOST), default=0.0)

    def _at(self, time_s: float) -> float:
        """A time stretched by each phase's own calibration factor."""
        prefill, decode = self._factors
        return min(time_s, self._prefill_s) * prefill + max(0.0, time_s - self._prefill_s) * decode

    def times_s(self) -> Iterator[tuple[float, float]]:
        """(start, stop) of each task."""
        if self._factors == (1.0, 1.0):
            return zip(self._starts, self._stops, strict=True)
        return ((self._at(a), self._at(b)) for a, b in zip(self._starts, self._stops, strict=True))

    def lanes(self) -> dict[str, LaneWork]:
        """What each of them did."""
        return self.script.lanes(self.times_s())


def _passes(spans: Sequence[Span], marks: Sequence[_Mark], sample: Sample) -> Iterator[Activity]:
    """How the time of each token played was used, the window counted as often as it stands for others."""
    cuts = [mark.end_s for mark in marks]
    if not sample.is_whole:
        cuts = [at_s for mark in marks for at_s in (mark.first_s, mark.last_s, mark.end_s)]
    stretches = stretches_of(spans, cuts)
    for mark in marks:
        used = Activity()
        for times in (1.0,) if sample.is_whole else (1.0, mark.times, 1.0):
            used.add(next(stretches), times)
        yield used


def stretches_of(spans: Sequence[Span], cuts: Sequence[float]) -> Iterator[Activity]:
    """How time was used up to each cut; what begins before the next one tells what a gap waited for."""
    timeline, ordered, num_added = Timeline(0.0), sorted(spans, key=lambda span: span.start_s), 0
    for cut_s, known_s in zip(cuts, [*cuts[1:], math.inf], strict=True):
        while num_added < len(ordered) and ordered[num_added].start_s < known_s:
            timeline.add(ordered[num_added])
            num_added += 1
        yield timeline.close(cut_s)
