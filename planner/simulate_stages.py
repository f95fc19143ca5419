"""Simulate stages: plays the schedules of all stages of a pipeline together.

What one stage sends and the next receives is one task, which begins when both are ready for it: so waiting for one
another, the filling of the pipe and its gaps come out of the play. Ranks of a host slow one another where they share
its links, memory and disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from planner.activity import Activity
from planner.coarse import Coarse, of_single_layers, plays, whole
from planner.contention import Commons, Shares
from planner.cost import HOST
from planner.plan import PHASES, Phase, Plan
from planner.player import Pieces, play
from planner.rates import Rates
from planner.sample import Sample, few_tokens, representatives
from planner.script import Script
from planner.sharing import THINGS, Sharing, at_full_rates
from planner.simulate import Simulation, phase_of, stretches_of
from planner.sizes import Sizes
from planner.task_costs import SHARED_LANES, Load, TaskCosts
from planner.tasks import Resource, Task

_DIGITS = 3
"""Shares that differ by less are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stage: what it holds, how fast it is with all ranks at work, and what it shares with those of its host."""

    sizes: Sizes
    rates: Rates
    host: int = 0
    sharing: Sharing | None = None


def parts_of(plan: Plan) -> list[Part]:
    """The stages of a plan."""
    return [
        Part(
            sizes=plan.of_rank(rank).sizes(),
            rates=plan.of_rank(rank).known_rates(),
            host=stage.host,
            sharing=stage.sharing,
        )
        for rank, stage in enumerate(plan.stages)
    ]


def simulate_stages(parts: Sequence[Part], samples: Sequence[Sample] | None = None) -> list[Simulation]:
    """Each stage's part in a block, all layers of it, by one clock; phases and throughput are the whole pipeline's.

    Samples are of the same tokens; without any, of all tokens or of `representatives`.
    """
    sizes = [part.sizes for part in parts]
    samples = samples or representatives(sizes)
    played = _Played(parts, _costs(parts), whole(sizes, samples[0]))
    return [played.simulation(s, sample) for s, sample in enumerate(samples)]


def stages_times(parts: Sequence[Part], max_visits: int) -> list[dict[Phase, Activity]]:
    """Of each stage how long its lanes are at work in each phase, whose time is the pipeline's; from a sample."""
    sizes, costs = [part.sizes for part in parts], _costs(parts)
    runs = [_Played(parts, costs, play) for play in plays(sizes, few_tokens(sizes[0]), max_visits)]
    found = [runs[0].sums(s) for s in range(len(parts))]
    for phase in PHASES:
        single_s = of_single_layers([run.seconds(phase) for run in runs], [run.coarse.size for run in runs])
        played_s, seconds = runs[0].seconds(phase), max(single_s, runs[0].least_seconds(phase))
        for sums in found:
            sums[phase].add(sums[phase], seconds / played_s - 1 if played_s else 0.0)
    return found


def _costs(parts: Sequence[Part]) -> list[TaskCosts]:
    return [TaskCosts(part.sizes, at_full_rates(part.rates, part.sharing)) for part in parts]


class _Played:
    """The tasks of all stages, and when each of them ran."""

    def __init__(self, parts: Sequence[Part], costs: Sequence[TaskCosts], coarse: Coarse) -> None:
        self.coarse, self._parts = coarse, parts
        self._factors = [max(part.rates.factor(phase) for part in parts) for phase in PHASES]
        self._scripts = [
            Script(own, coarse.tokens, groups) for own, groups in zip(costs, coarse.stages, strict=True)
        ]
        self._places = _places(self._scripts)
        self._starts, self._stops = _play(parts, self._scripts, self._places)
        ends, first = [0.0] * len(coarse.tokens), self._scripts[0]
        for task, place in zip(first.tasks, self._places[0], strict=True):
            if first.shape.is_final(task):
                ends[task.i] = max(ends[task.i], self._stops[place])
        self._prefill_s = ends[0]
        self._ends_s = [self._at(end) for end in ends]
        """When the first rank had each token's ids, as it measures it."""

    def _at(self, time_s: float) -> float:
        """A time stretched by each phase's own calibration factor."""
        prefill, decode = self._factors
        return min(time_s, self._prefill_s) * prefill + max(0.0, time_s - self._prefill_s) * decode

    def _times_s(self, stage: int) -> Iterator[tuple[float, float]]:
        """(start, stop) of each task of a stage."""
        return ((self._at(self._starts[n]), self._at(self._stops[n])) for n in self._places[stage])

    def seconds(self, phase: Phase) -> float:
        """The time of a phase."""
        passes = [Activity(stop - start) for start, stop in pairwise((0.0, *self._ends_s))]
        return _summed(self.coarse, passes)[phase].seconds

    def least_seconds(self, phase: Phase) -> float:
        """What the busiest lane has to do in a phase."""
        work = defaultdict[tuple[int, str], float](float)
        for s, script in enumerate(self._scripts):
            for task, load in zip(script.tasks, script.loads, strict=True):
                if phase_of(task.i) == phase:
                    times = self.coarse.weights[task.i]
                    work[s, task.resource] += load.seconds * times
                    work[s, HOST] += load.issue_s * times
        return max(work.values(), default=0.0) * self._factors[PHASES.index(phase)]

    def sums(self, stage: int) -> dict[Phase, Activity]:
        """How long a stage's lanes are at work in each phase."""
        cuts = [0.0, *self._ends_s]
        lanes = self._scripts[stage].lanes(self._times_s(stage))
        done = {name: lane.until(cuts) for name, lane in lanes.items()}
        busy = (
            {name: work[n + 1] - work[n] for name, work in done.items()} for n in range(len(self._ends_s))
        )
        passes = [
            Activity(stop - start, 0.0, own) for (start, stop), own in zip(pairwise(cuts), busy, strict=True)
        ]
        return _summed(self.coarse, passes)

    def simulation(self, stage: int, sample: Sample) -> Simulation:
        """A stage's part, and how its time was used."""
        sizes, script = self._parts[stage].sizes, self._scripts[stage]
        spans = tuple(script.spans(self._times_s(stage)))
        phases = _summed(self.coarse, stretches_of(spans, self._ends_s))
        tokens = sizes.policy.block_size * sizes.workload.gen_len
        return Simulation(
            sample=sample,
            phases=phases,
            throughput_tokens_per_s=tokens / sum(phase.seconds for phase in phases.values()),
            spans=spans,
            token_ends_s=tuple(self._ends_s),
            end_s=max(span.stop_s for span in spans),
            work_s=script.work_s(),
            num_skipped=sizes.workload.gen_len - len(sample.tokens),
        )


def _summed(coarse: Coarse, passes: Iterable[Activity]) -> dict[Phase, Activity]:
    """The passes of each phase, each as often as it stands for others."""
    phases: dict[Phase, Activity] = {phase: Activity() for phase in PHASES}
    for token, weight, used in zip(coarse.tokens, coarse.weights, passes, strict=True):
        phases[phase_of(token)].add(used, weight)
    return phases


def _places(scripts: Sequence[Script]) -> list[list[int]]:
    """For each stage's tasks their places in what is played; what is sent and received has one place."""
    places: list[list[int]] = []
    sent: list[Iterator[int]] = []
    num_placed = 0
    for script in scripts:
        own, messages = [], []
        for task in script.tasks:
            own.append(num_placed)
            if task.resource == "net_out":
                messages.append(num_placed)
            num_placed += task.resource != "net_in"
        places.append(own)
        sent.append(iter(messages))
    for s, script in enumerate(scripts):  # the first one's messages come from the last one
        for n, task in enumerate(script.tasks):
            if task.resource == "net_in":
                places[s][n] = next(sent[s - 1])
    return places


def _play(
    parts: Sequence[Part], scripts: Sequence[Script], places: Sequence[Sequence[int]]
) -> tuple[list[float], list[float]]:
    """A lane for each resource of each stage, one for its caller's thread, and one from each stage to the next."""
    common = _Common(parts)
    calls = [script.calls() for script in scripts]
    num_tasks = 1 + max(place for own in places for place in own)
    firsts = list(accumulate((len(own) for own, _ in calls), initial=num_tasks))
    waits = [
        [
            (*(own[dep] for dep in deps), *((first + num_before - 1,) if num_before else ()))
            for deps, num_before in zip(script.waits(), before, strict=True)
        ]
        for script, own, (_, before), first in zip(scripts, places, calls, firsts, strict=False)
    ]
    received = {
        place: (load, deps)
        for s, script in enumerate(scripts)
        for task, load, deps, place in zip(script.tasks, script.loads, waits[s], places[s], strict=True)
        if task.resource == "net_in"
    }
    pieces, lanes = Pieces(), dict[tuple[int, Resource], int]()
    for s, script in enumerate(scripts):
        for task, load, deps, place in zip(script.tasks, script.loads, waits[s], places[s], strict=True):
            if task.resource == "net_in":
                continue
            seconds, more = load.seconds, ()
            if task.resource == "net_out":
                other, more = received[place]
                seconds = min(seconds, other.seconds)
            lane = lanes.setdefault((s, task.resource), len(lanes))
            pieces.add(lane, seconds, common.kind(s, task, load), (*deps, *more))
    for s, (own, _) in enumerate(calls):
        for call in own:
            pieces.add(
                len(lanes) + s, call.seconds, common.nothing(s), tuple(places[s][dep] for dep in call.waits)
            )
    starts, stops = play(pieces, len(lanes) + len(parts), common.commons())
    return starts[:num_tasks], stops[:num_tasks]


class _Common:
    """What tasks take of what their own rank's lanes share, and of what the ranks of a host share."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._full = [at_full_rates(part.rates, part.sharing) for part in parts]
        hosts = {part.host: part.sharing for part in parts if part.sharing}
        self._things = [(host, name) for host in hosts for name in THINGS]
        own = [(1.0,)] * (len(SHARED_LANES) * len(parts))
        self._rooms = [*own, *(sharing.room(name) for sharing in hosts.values() for name in THINGS)]
        self._kinds: dict[tuple[int, str, Shares, float, bool], int] = {}
        self._known: dict[tuple[int, int], int] = {}

    def kind(self, stage: int, task: Task, load: Load) -> int:
        """The number of a task's kind; the loads of all tasks are there as long as this is asked."""
        known = self._known.get((stage, id(load)))
        if known is not None:
            return known
        full = 0.0
        if load.seconds and task.resource in ("h2d", "d2h"):
            best = getattr(self._full[stage], task.resource).best
            full = (
                load.num_bytes / load.seconds / best
            )  # small copies take less of what the links have together
        shares = tuple(round(share, _DIGITS) for share in load.shares)
        key = stage, task.resource, shares, round(full, _DIGITS), load.yields
        kind = self._known[stage, id(load)] = self._kinds.setdefault(key, len(self._kinds))
        return kind

    def nothing(self, stage: int) -> int:
        """The number of the kind of what takes nothing of what is shared."""
        return self._kinds.setdefault((stage, "", (0.0,) * len(SHARED_LANES), 0.0, False), len(self._kinds))

    def commons(self) -> Commons:
        """For the player."""
        shares = [self._shares(stage, resource, own, full) for stage, resource, own, full, _ in self._kinds]
        owners, yields = [stage for stage, *_ in self._kinds], [yields for *_, yields in self._kinds]
        return Commons(shares, self._rooms, owners, yields)

    def _shares(self, stage: int, resource: str, own: Shares, full: float) -> Shares:
        """Of what the stage's lanes share, then of what the ranks of each host share."""
        before, host = stage * len(SHARED_LANES), self._parts[stage].host
        after = (len(self._parts) - 1) * len(SHARED_LANES) - before
        taken = {**dict(zip(SHARED_LANES, own, strict=True)), resource: full}
        others = (taken.get(name, 0.0) if where == host else 0.0 for where, name in self._things)
        return (*(0.0,) * before, *own, *(0.0,) * after, *others)
