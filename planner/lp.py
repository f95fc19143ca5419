"""LP: the best shares, and the best block size, for a discrete choice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.handover import Failure, Matrix, Rows, Vector, minimised
from planner.policy import TIERS, Tier
from planner.relaxed import Relaxed
from planner.request import CpuAttention
from planner.shares import DiskUse, Shares, Way, WholeRows
from planner.work import A

_WORK_WEIGHT = 1e-3
"""Of the work on all lanes in the objective: between equal times, the splits that move less are taken."""
_AGREEMENT = 1e-3
"""Of the time, between the solver's objective and the cost model."""
_TOLERANCE = 1e-5
"""Of a row's largest term, or of 1 where that is larger."""
_KINDS = ("weights", "cache", "activations")
NO_SHARE = 1e-5
"""Of some bytes: what the solver's rounding may leave where nothing should be."""
_NAMES = (
    *(f"{kind}_{tier}" for kind in _KINDS for tier in TIERS),
    "attended",
    "slot",
    "inverse_batches",
)
_FIRST_TIME = len(_NAMES)
_COST_OF_MORE: dict[Tier, float] = {"gpu": 100.0, "cpu": 10.0, "disk": 1.0}
ANY_WAY, NO_ROWS = Way(), WholeRows()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a solution must keep to."""

    tier_bytes: Mapping[Tier, int]
    max_batches: float
    cpu_attention: CpuAttention
    max_latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best shares, checked."""

    shares: Shares[float]
    seconds_per_sequence: float
    compute_tier: Tier

    @property
    def moves_activations(self) -> bool:
        """Whether any leave the compute tier."""
        activations = self.shares.activations
        far = sum(amount for tier, amount in activations.items() if tier != self.compute_tier)
        return far > NO_SHARE * sum(activations.values())

    @property
    def attends(self) -> bool:
        """Whether the CPU attends any rows."""
        return self.shares.attended > NO_SHARE * sum(self.shares.cache.values())

    @property
    def disk_use(self) -> DiskUse:
        """What is on disk."""
        used = [
            by_tier["disk"] > NO_SHARE * sum(by_tier.values())
            for by_tier in (self.shares.weights, self.shares.cache, self.shares.activations)
        ]
        return "all" if any(used[1:]) else "weights" if used[0] else "none"


def solve(relaxed: Relaxed, limits: Limits, way: Way = ANY_WAY) -> Solution | Failure:
    """Minimise time per sequence over the splits, and over the gpu batches where they are not fixed."""
    return Program(relaxed, limits).solve(limits.tier_bytes, way)


def shortage(relaxed: Relaxed, limits: Limits, growing: Sequence[Tier]) -> dict[Tier, int] | Failure:
    """Bytes by which the limits of `growing` tiers must rise for there to be a solution.

    The least on the fastest tier first.
    """
    program = Program(relaxed, limits, growing)
    rows = program.rows(limits.tier_bytes, ANY_WAY)
    first = len(rows.upper) - len(growing)
    costs = [_COST_OF_MORE[tier] for tier in growing]
    answer = _checked(replace(rows, objective=np.array([*np.zeros(first), *costs, 0.0])))
    if isinstance(answer, Failure):
        return answer
    block = relaxed.choice.gpu_batch_size / float(answer[_NAMES.index("inverse_batches")])
    grown = {tier: float(more) * block for tier, more in zip(growing, answer[first:], strict=True)}
    return {tier: math.ceil(more * relaxed.unit_bytes) for tier, more in grown.items() if more > _TOLERANCE}


class Program:
    """The LP of one relaxed problem, to be solved under one set of tier limits and in one way after another.

    Its variables are the shares, the times of each step, and what `growing` tiers get more.
    """

    def __init__(self, relaxed: Relaxed, limits: Limits, growing: Sequence[Tier] = ()) -> None:
        self._relaxed, self._limits = relaxed, limits
        self._times = slice(_FIRST_TIME, _FIRST_TIME + len(relaxed.steps))
        unit = np.eye(self._times.stop + len(growing) + 1)
        shares, times = _shares_of([*unit[:_FIRST_TIME], unit[-1]]), unit[self._times]
        self._fixed = relaxed.fixed_seconds(shares) / relaxed.unit_s
        self._objective = times.sum(axis=0) + self._fixed
        at_most, blocked = [np.array([*self._limited(shares, times)])], []
        for time, variable in zip(relaxed.times(shares), times, strict=True):
            lanes, more = (
                np.array([seconds for _, seconds in each]) / relaxed.unit_s
                for each in (time.lanes, time.blocked)
            )
            self._objective += lanes.sum(axis=0) * _WORK_WEIGHT
            at_most.append(lanes - variable)
            blocked.append(more - variable)
        self._at_most, self._blocked = np.concatenate(at_most), np.concatenate((*at_most, *blocked))
        """Every lane of every step takes at most the step's time; where computing keeps the caller, some more do."""
        self._equal = np.array([*self._totals(shares)])
        self._add_memory(shares, dict(zip(growing, unit[self._times.stop : -1], strict=True)))

    def solve(
        self, tier_bytes: Mapping[Tier, int], way: Way, whole: WholeRows = NO_ROWS
    ) -> Solution | Failure:
        """The optimum, checked against the rows and against the cost model."""
        relaxed, found = self._relaxed, self.solve_only(tier_bytes, way, whole)
        if isinstance(found, Failure):
            return found
        seconds, claimed = relaxed.seconds(found.shares, way), found.seconds_per_sequence
        if abs(claimed - seconds) > _AGREEMENT * seconds:
            return Failure(f"the solver's time of {claimed:g} s is {seconds:g} s by the cost model")
        return replace(found, seconds_per_sequence=seconds)

    def solve_only(
        self, tier_bytes: Mapping[Tier, int], way: Way, whole: WholeRows = NO_ROWS
    ) -> Solution | Failure:
        """The optimum, checked against the rows; its time is the solver's."""
        answer = _checked(self.rows(tier_bytes, way, whole))
        if isinstance(answer, Failure):
            return answer
        seconds = float(answer[self._times].sum()) + float(self._fixed @ np.append(answer, 1.0))
        return Solution(
            shares=_shares(answer),
            seconds_per_sequence=seconds * self._relaxed.unit_s,
            compute_tier=self._relaxed.compute_tier,
        )

    def rows(self, tier_bytes: Mapping[Tier, int], way: Way, whole: WholeRows = NO_ROWS) -> Rows:
        """All rows and bounds that hold under these limits and in this way."""
        limits = np.array([tier_bytes[tier] / self._relaxed.unit_bytes for tier in self._tiers])
        memory = self._used - self._inverse_blocks * limits[:, None]
        if way.moves_activations:
            memory += self._activation_slots
        times = self._blocked if self._relaxed.is_blocking(way) else self._at_most
        lower, upper = np.zeros(self._objective.size - 1), np.full(self._objective.size - 1, np.inf)
        upper[[_NAMES.index(name) for name in self._unused(way)]] = 0.0
        for name, (low, high) in self._settled(way, whole).items():
            lower[_NAMES.index(name)], upper[_NAMES.index(name)] = low, high
        return Rows(
            objective=self._objective,
            at_most=np.concatenate((times, memory)),
            equal=self._equal,
            lower=lower,
            upper=upper,
        )

    def _totals(self, shares: Shares[Vector]) -> Iterator[Vector]:
        """Weights divide over the block; cache and activations are each sequence's own."""
        relaxed = self._relaxed
        weights = shares.inverse_batches * (relaxed.weight_units / relaxed.choice.gpu_batch_size)
        for by_tier, whole in (
            (shares.weights, weights),
            (shares.cache, shares.one * relaxed.cache_units),
            (shares.activations, shares.one * relaxed.activation_units),
        ):
            yield sum(by_tier.values(), -whole)

    def _limited(self, shares: Shares[Vector], times: Matrix) -> Iterator[Vector]:
        """What is attended, what slots hold, and a block's time."""
        relaxed, latency_s = self._relaxed, self._limits.max_latency_s
        far = sum((shares.cache[tier] for tier in relaxed.far_tiers), shares.one * 0.0)
        yield shares.attended - far
        if self._limits.cpu_attention == "on" and relaxed.compute_tier == "gpu":
            yield far - shares.attended
        yield from (needed - shares.slot for needed in relaxed.slots(shares))
        if latency_s is not None:
            allowed = latency_s / relaxed.unit_s / relaxed.choice.gpu_batch_size
            yield times.sum(axis=0) + self._fixed - shares.inverse_batches * allowed

    def _add_memory(self, shares: Shares[Vector], more: Mapping[Tier, Vector]) -> None:
        """Of each tier and phase: what is used, what activation slots add to it, and 1 / N."""
        uses = [*self._relaxed.memory(shares)]
        self._tiers = [use.tier for use in uses]
        self._used = np.array([use.used - more[use.tier] if use.tier in more else use.used for use in uses])
        self._activation_slots = np.array([use.activation_slots for use in uses])
        self._inverse_blocks = np.array([use.inverse_block for use in uses])

    def _unused(self, way: Way) -> Iterator[str]:
        """Variables that are 0."""
        tier = self._relaxed.compute_tier
        if not way.moves_activations:
            yield from (f"activations_{far}" for far in TIERS if far != tier)
        if not self._attends(way):
            yield "attended"
        if tier == "cpu":
            yield from (f"{kind}_gpu" for kind in _KINDS)
        if way.disk != "all":
            yield from (f"{kind}_disk" for kind in _KINDS if way.disk == "none" or kind != "weights")

    def _attends(self, way: Way) -> bool:
        wanted = self._limits.cpu_attention
        is_open = wanted == "on" or (wanted == "auto" and way.attends)
        return is_open and self._relaxed.compute_tier == "gpu"

    def _settled(self, way: Way, whole: WholeRows) -> dict[str, tuple[float, float]]:
        """Bounds of variables other than 0: the number of gpu batches, rows; an attending CPU has one of each batch."""
        relaxed, batches = self._relaxed, self._relaxed.num_gpu_batches
        row = relaxed.cache_units / relaxed.choice.gpu_batch_size
        found = {"inverse_batches": (1 / (batches or self._limits.max_batches), 1 / (batches or 1))}
        if self._attends(way) and self._limits.cpu_attention != "on":
            found["attended"] = (row, math.inf)
        if batches and whole.near is not None:
            found[f"cache_{relaxed.compute_tier}"] = (whole.near * row / batches,) * 2
        if batches and whole.attended is not None:
            found["attended"] = (whole.attended * row / batches,) * 2
        return found


def _checked(rows: Rows) -> Vector | Failure:
    """The solver's answer, if it keeps every row and bound."""
    answer = minimised(rows)
    broken = None if isinstance(answer, Failure) else _broken(rows, answer)
    return answer if broken is None else Failure(f"the solver's answer breaks {broken}")


def _broken(rows: Rows, answer: Vector) -> str | None:
    """The first constraint that the answer does not keep."""
    point = np.append(answer, 1.0)
    for name, constraints, sign in (("an upper limit", rows.at_most, 0.0), ("a sum", rows.equal, -1.0)):
        parts = constraints * point
        excess = parts.sum(axis=1)
        scale = np.maximum(1.0, np.abs(parts).max(axis=1))
        broken = np.flatnonzero(np.maximum(excess, sign * excess) > _TOLERANCE * scale)
        if broken.size:
            return f"{name} (row {broken[0]}) by {excess[broken[0]]:g}"
    if (answer > rows.upper + _TOLERANCE).any() or (answer < -_TOLERANCE).any():
        return "a bound"
    return None


def _shares(answer: Vector) -> Shares[float]:
    return _shares_of([*(max(0.0, float(x)) for x in answer[:_FIRST_TIME]), 1.0])


def _shares_of(values: list[A]) -> Shares[A]:
    """Shares from the values of `_NAMES` and of the number 1."""
    by_name = dict(zip((*_NAMES, "one"), values, strict=True))
    kinds = {kind: {tier: by_name[f"{kind}_{tier}"] for tier in TIERS} for kind in _KINDS}
    return Shares(
        **kinds,
        attended=by_name["attended"],
        slot=by_name["slot"],
        inverse_batches=by_name["inverse_batches"],
        one=by_name["one"],
    )
