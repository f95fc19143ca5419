"""LP: the best shares, and the best block size, for a discrete choice. Only this module and handover.py import pulp."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pulp
from numpy.typing import NDArray

from planner.handover import HiGHS
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
Vector = NDArray[np.float64]
"""A value of each variable; or a linear expression of them, the last of its terms being the constant."""
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


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no solution, as the solver or the check of its answer says."""

    reason: str
    infeasible: bool = False


@dataclass(slots=True)
class _Rows:
    """Constraints terms . (x, 1) <= 0 or = 0, the objective, and the bounds of x >= 0."""

    size: int
    at_most: list[Vector] = field(default_factory=list)
    equal: list[Vector] = field(default_factory=list)
    objective: Vector = field(default_factory=lambda: np.zeros(0))
    upper: dict[int, float] = field(default_factory=dict)
    lower: dict[int, float] = field(default_factory=dict)


def solve(relaxed: Relaxed, limits: Limits, way: Way = ANY_WAY) -> Solution | Failure:
    """Minimise time per sequence over the splits, and over the gpu batches where they are not fixed."""
    return Program(relaxed, limits).solve(limits.tier_bytes, way)


def shortage(relaxed: Relaxed, limits: Limits, growing: Sequence[Tier]) -> dict[Tier, int] | Failure:
    """Bytes by which the limits of `growing` tiers must rise for there to be a solution.

    The least on the fastest tier first.
    """
    program = Program(relaxed, limits, growing)
    rows = program.rows(limits.tier_bytes, ANY_WAY)
    rows.objective = np.zeros(rows.size + 1)
    extra = range(rows.size - len(growing), rows.size)
    rows.objective[list(extra)] = [_COST_OF_MORE[tier] for tier in growing]
    answer = _checked(rows)
    if isinstance(answer, Failure):
        return answer
    block = relaxed.choice.gpu_batch_size / float(answer[_NAMES.index("inverse_batches")])
    grown = {tier: float(answer[index]) * block for tier, index in zip(growing, extra, strict=True)}
    return {tier: math.ceil(more * relaxed.unit_bytes) for tier, more in grown.items() if more > _TOLERANCE}


class Program:
    """The LP of one relaxed problem, to be solved under one set of tier limits and in one way after another.

    Its variables are the shares, the times of each step, and what `growing` tiers get more.
    """

    def __init__(self, relaxed: Relaxed, limits: Limits, growing: Sequence[Tier] = ()) -> None:
        self._relaxed, self._limits = relaxed, limits
        self._times = slice(_FIRST_TIME, _FIRST_TIME + len(relaxed.steps))
        self._common = _Rows(size=self._times.stop + len(growing))
        self._blocked: list[Vector] = []
        self._memory: list[tuple[Tier, Vector, Vector, Vector]] = []
        """What a tier holds, what activation slots add to it, and 1 / N."""
        unit = np.eye(self._common.size + 1)
        shares = _shares_of([unit[index] for index in (*range(_FIRST_TIME), self._common.size)])
        more = {tier: unit[index] for index, tier in enumerate(growing, start=self._times.stop)}
        self._add_totals(shares)
        self._add_memory(shares, more)
        self._add_times(shares, unit[self._times])

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

    def rows(self, tier_bytes: Mapping[Tier, int], way: Way, whole: WholeRows = NO_ROWS) -> _Rows:
        """All rows and bounds that hold under these limits and in this way."""
        at_most = list(self._common.at_most)
        if self._relaxed.is_blocking(way):
            at_most += self._blocked
        for tier, used, slots, inverse_block in self._memory:
            limit = inverse_block * (tier_bytes[tier] / self._relaxed.unit_bytes)
            at_most.append(used + slots - limit if way.moves_activations else used - limit)
        upper = dict.fromkeys(self._unused(way), 0.0)
        settled = self._settled(way, whole)
        lower = {name: low for name, (low, _) in settled.items()}
        upper |= {name: high for name, (_, high) in settled.items() if high is not None}
        return replace(
            self._common,
            at_most=at_most,
            lower={_NAMES.index(name): low for name, low in lower.items()},
            upper={_NAMES.index(name): high for name, high in upper.items()},
        )

    def _add_times(self, shares: Shares[Vector], times: Vector) -> None:
        """Every lane of every step takes at most the step's time; the objective is their sum."""
        relaxed, rows, latency_s = self._relaxed, self._common, self._limits.max_latency_s
        rows.objective = times.sum(axis=0)
        for time, variable in zip(relaxed.times(shares), times, strict=True):
            lanes = np.array([seconds for _, seconds in time.lanes]) / relaxed.unit_s
            rows.at_most.extend(lanes - variable)
            rows.objective += lanes.sum(axis=0) * _WORK_WEIGHT
            self._blocked += [seconds / relaxed.unit_s - variable for _, seconds in time.blocked]
        fixed = self._fixed = relaxed.fixed_seconds(shares) / relaxed.unit_s
        rows.objective += fixed
        if latency_s is not None:
            allowed = latency_s / relaxed.unit_s / relaxed.choice.gpu_batch_size
            rows.at_most.append(times.sum(axis=0) + fixed - shares.inverse_batches * allowed)

    def _add_totals(self, shares: Shares[Vector]) -> None:
        """Weights divide over the block; cache and activations are each sequence's own."""
        relaxed, rows = self._relaxed, self._common
        weights = shares.inverse_batches * (relaxed.weight_units / relaxed.choice.gpu_batch_size)
        for by_tier, whole in (
            (shares.weights, weights),
            (shares.cache, shares.one * relaxed.cache_units),
            (shares.activations, shares.one * relaxed.activation_units),
        ):
            rows.equal.append(sum((part for part in by_tier.values()), -whole))
        far = sum((shares.cache[tier] for tier in relaxed.far_tiers), np.zeros(rows.size + 1))
        rows.at_most.append(shares.attended - far)
        if self._limits.cpu_attention == "on" and relaxed.compute_tier == "gpu":
            rows.at_most.append(far - shares.attended)

    def _add_memory(self, shares: Shares[Vector], more: Mapping[Tier, Vector]) -> None:
        for needed in self._relaxed.slots(shares):
            self._common.at_most.append(needed - shares.slot)
        for use in self._relaxed.memory(shares):
            used = use.used - more[use.tier] if use.tier in more else use.used
            self._memory.append((use.tier, used, use.activation_slots, use.inverse_block))

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

    def _settled(self, way: Way, whole: WholeRows) -> dict[str, tuple[float, float | None]]:
        """Bounds of variables other than 0: the number of gpu batches, rows; an attending CPU has one of each batch."""
        relaxed, batches = self._relaxed, self._relaxed.num_gpu_batches
        row = relaxed.cache_units / relaxed.choice.gpu_batch_size
        found: dict[str, tuple[float, float | None]] = {
            "inverse_batches": (1 / (batches or self._limits.max_batches), 1 / (batches or 1))
        }
        if self._attends(way) and self._limits.cpu_attention != "on":
            found["attended"] = (row, None)
        if batches and whole.near is not None:
            found[f"cache_{relaxed.compute_tier}"] = (whole.near * row / batches,) * 2
        if batches and whole.attended is not None:
            found["attended"] = (whole.attended * row / batches,) * 2
        return found


def _checked(rows: _Rows) -> Vector | Failure:
    """The solver's answer, if it keeps every row and bound."""
    answer = _run(rows)
    broken = None if isinstance(answer, Failure) else _broken(rows, answer)
    return answer if broken is None else Failure(f"the solver's answer breaks {broken}")


def _run(rows: _Rows) -> Vector | Failure:
    """Hand the rows to HiGHS, without variables that are 0."""
    problem = pulp.LpProblem("shares", pulp.LpMinimize)
    used = [index for index in range(rows.size) if rows.upper.get(index) != 0]
    variables = [
        problem.add_variable(f"x{index}", rows.lower.get(index, 0.0), rows.upper.get(index)) for index in used
    ]
    problem.setObjective(_expression(variables, rows.objective[used].tolist()))
    at_most = _undominated(np.array(rows.at_most), used)
    for sense, constraints in ((pulp.LpConstraintLE, at_most), (pulp.LpConstraintEQ, np.array(rows.equal))):
        for terms, constant in zip(constraints[:, used].tolist(), constraints[:, -1].tolist(), strict=True):
            problem.addConstraint(pulp.LpConstraint(_expression(variables, terms), sense, rhs=-constant))
    solver = HiGHS(msg=False, threads=1, presolve="off")  # there is little to share out, or to simplify
    status = problem.solve(solver)
    if status != pulp.LpStatusOptimal:
        return Failure(f"the solver ends with {pulp.LpStatus[status]!r}", status == pulp.LpStatusInfeasible)
    answer = np.zeros(rows.size)
    answer[used] = [variable.value() for variable in variables]
    return answer


def _undominated(terms: Vector, used: list[int]) -> Vector:
    """Rows that no other one implies: all variables are at least 0, so that the larger terms ask for more."""
    seen = terms[:, [*used, -1]]
    implied = (seen[:, None] <= seen[None]).all(axis=2)
    implied &= ~(implied.T & np.triu(np.ones_like(implied)))  # of equal ones the first stays
    kept: Vector = terms[~implied.any(axis=1)]
    return kept


def _expression(variables: Iterable[pulp.LpVariable], terms: Iterable[float]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression([pair for pair in zip(variables, terms, strict=True) if pair[1]])


def _broken(rows: _Rows, answer: Vector) -> str | None:
    """The first constraint that the answer does not keep."""
    point = np.append(answer, 1.0)
    for name, constraints, sign in (("an upper limit", rows.at_most, 0.0), ("a sum", rows.equal, -1.0)):
        parts = np.array(constraints) * point
        excess = parts.sum(axis=1)
        scale = np.maximum(1.0, np.abs(parts).max(axis=1))
        broken = np.flatnonzero(np.maximum(excess, sign * excess) > _TOLERANCE * scale)
        if broken.size:
            return f"{name} (row {broken[0]}) by {excess[broken[0]]:g}"
    if any(answer[i] > upper + _TOLERANCE for i, upper in rows.upper.items()) or answer.min() < -_TOLERANCE:
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
