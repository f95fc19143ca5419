"""LP: the best shares, and the best block size, for a discrete choice. The only module that imports pulp."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pulp
from numpy.typing import NDArray

from planner.policy import TIERS, Tier
from planner.relaxed import Relaxed
from planner.request import CpuAttention
from planner.shares import Shares
from planner.work import A

_WORK_WEIGHT = 1e-3
"""Of the work on all lanes in the objective: between equal times, the splits that move less are taken."""
_AGREEMENT = 1e-3
"""Of the time, between the solver's objective and the cost model."""
_TOLERANCE = 1e-5
"""Of a row's largest term, or of 1 where that is larger."""
_NAMES = (
    *(f"{kind}_{tier}" for kind in ("weights", "cache", "activations") for tier in TIERS),
    "attended",
    "slot",
    "inverse_batches",
)
_FIRST_TIME = len(_NAMES)
_COST_OF_MORE: dict[Tier, float] = {"gpu": 100.0, "cpu": 10.0, "disk": 1.0}
Vector = NDArray[np.float64]


@dataclass(slots=True)
class Linear:
    """A linear expression of the LP's variables; the last of its terms is the constant.

    Never changed; not frozen, as an LP makes some 700 of them and freezing doubles what that takes.
    """

    terms: Vector

    def __add__(self, other: Linear, /) -> Linear:
        return Linear(self.terms + other.terms)

    def __mul__(self, factor: float, /) -> Linear:
        return Linear(self.terms * factor)


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
    memory: dict[int, tuple[Tier, Vector, Vector]] = field(default_factory=dict)
    """Which of `at_most` are what a tier holds less its limit: what it holds, and 1 / N."""

    def limit(self, tier_units: Mapping[Tier, float]) -> None:
        """Set the limits of tiers, in `Relaxed.unit_bytes`."""
        for index, (tier, used, inverse_block) in self.memory.items():
            self.at_most[index] = used - inverse_block * tier_units[tier]


def solve(relaxed: Relaxed, limits: Limits) -> Solution | Failure:
    """Minimise time per sequence over the splits, and over the gpu batches where they are not fixed."""
    return Program(relaxed, limits).solve(limits.tier_bytes)


class Program:
    """The LP of one relaxed problem, to be solved under one set of tier limits after another."""

    def __init__(self, relaxed: Relaxed, limits: Limits) -> None:
        self._relaxed = relaxed
        self._rows, self._times = _build(relaxed, limits)

    def solve(self, tier_bytes: Mapping[Tier, int]) -> Solution | Failure:
        """The optimum, checked against the rows and against the cost model."""
        relaxed = self._relaxed
        self._rows.limit({tier: nbytes / relaxed.unit_bytes for tier, nbytes in tier_bytes.items()})
        answer = _checked(self._rows)
        if isinstance(answer, Failure):
            return answer
        shares = _shares(answer)
        seconds = relaxed.seconds(shares)
        claimed = float(answer[self._times].sum()) * relaxed.unit_s + relaxed.fixed_seconds(shares)
        if abs(claimed - seconds) > _AGREEMENT * seconds:
            return Failure(f"the solver's time of {claimed:g} s is {seconds:g} s by the cost model")
        return Solution(shares=shares, seconds_per_sequence=seconds)


def shortage(relaxed: Relaxed, limits: Limits, growing: Sequence[Tier]) -> dict[Tier, int] | Failure:
    """Bytes by which the limits of `growing` tiers must rise for there to be a solution.

    The least on the fastest tier first.
    """
    rows, _ = _build(relaxed, limits, growing)
    rows.objective = np.zeros(rows.size + 1)
    extra = range(rows.size - len(growing), rows.size)
    rows.objective[list(extra)] = [_COST_OF_MORE[tier] for tier in growing]
    answer = _checked(rows)
    if isinstance(answer, Failure):
        return answer
    block = relaxed.choice.gpu_batch_size / float(answer[_NAMES.index("inverse_batches")])
    grown = {tier: float(answer[index]) * block for tier, index in zip(growing, extra, strict=True)}
    return {tier: math.ceil(more * relaxed.unit_bytes) for tier, more in grown.items() if more > _TOLERANCE}


def _build(relaxed: Relaxed, limits: Limits, growing: Sequence[Tier] = ()) -> tuple[_Rows, slice]:
    """The rows, and which variables are times: after the shares, before what growing tiers get more."""
    times = slice(_FIRST_TIME, _FIRST_TIME + len(relaxed.steps) * len(relaxed.kinds))
    rows = _Rows(size=times.stop + len(growing))
    unit = np.eye(rows.size + 1)
    shares = _shares_of([Linear(unit[index]) for index in (*range(_FIRST_TIME), rows.size)])
    more = {tier: unit[index] for index, tier in enumerate(growing, start=times.stop)}
    _add_totals(rows, relaxed, shares, limits.cpu_attention)
    _add_memory(rows, relaxed, limits, shares, more)
    _add_times(rows, relaxed, limits, shares, unit[times])
    _add_bounds(rows, relaxed, limits)
    return rows, times


def _add_times(rows: _Rows, relaxed: Relaxed, limits: Limits, shares: Shares[Linear], times: Vector) -> None:
    """Every lane of every step takes at most the step's time; the objective is their sum."""
    rows.objective = times.sum(axis=0)
    for time, variable in zip(relaxed.times(shares), times, strict=True):
        lanes = np.array([seconds.terms for _, seconds in time.lanes]) / relaxed.unit_s
        rows.at_most.extend(lanes - variable)
        rows.objective += lanes.sum(axis=0) * _WORK_WEIGHT
    fixed = relaxed.fixed_seconds(shares).terms / relaxed.unit_s
    rows.objective += fixed
    if limits.max_latency_s is not None:
        allowed = limits.max_latency_s / relaxed.unit_s / relaxed.choice.gpu_batch_size
        rows.at_most.append(times.sum(axis=0) + fixed - shares.inverse_batches.terms * allowed)


def _add_totals(rows: _Rows, relaxed: Relaxed, shares: Shares[Linear], cpu_attention: CpuAttention) -> None:
    """Weights divide over the block; cache and activations are each sequence's own."""
    weights = shares.inverse_batches * (relaxed.weight_units / relaxed.choice.gpu_batch_size)
    for by_tier, whole in (
        (shares.weights, weights),
        (shares.cache, shares.one * relaxed.cache_units),
        (shares.activations, shares.one * relaxed.activation_units),
    ):
        rows.equal.append(sum((part.terms for part in by_tier.values()), -whole.terms))
    far = sum((shares.cache[tier].terms for tier in relaxed.far_tiers), np.zeros(rows.size + 1))
    rows.at_most.append(shares.attended.terms - far)
    if cpu_attention == "on" and relaxed.compute_tier == "gpu":
        rows.at_most.append(far - shares.attended.terms)


def _add_memory(
    rows: _Rows, relaxed: Relaxed, limits: Limits, shares: Shares[Linear], more: Mapping[Tier, Vector]
) -> None:
    for needed in relaxed.slots(shares):
        rows.at_most.append(needed.terms - shares.slot.terms)
    for use in relaxed.memory(shares):
        used = use.used.terms - more[use.tier] if use.tier in more else use.used.terms
        rows.memory[len(rows.at_most)] = (use.tier, used, use.inverse_block.terms)
        rows.at_most.append(used)
    rows.limit({tier: nbytes / relaxed.unit_bytes for tier, nbytes in limits.tier_bytes.items()})


def _add_bounds(rows: _Rows, relaxed: Relaxed, limits: Limits) -> None:
    inverse = _NAMES.index("inverse_batches")
    batches = relaxed.num_gpu_batches
    rows.lower[inverse] = 1 / (batches or limits.max_batches)
    rows.upper[inverse] = 1 / (batches or 1)
    if limits.cpu_attention == "off" or relaxed.compute_tier == "cpu":
        rows.upper[_NAMES.index("attended")] = 0.0
    for tier in TIERS:
        if tier != relaxed.compute_tier and not relaxed.moves_activations:
            rows.upper[_NAMES.index(f"activations_{tier}")] = 0.0
        if tier == "gpu" and relaxed.compute_tier == "cpu":
            for kind in ("weights", "cache", "activations"):
                rows.upper[_NAMES.index(f"{kind}_{tier}")] = 0.0


def _checked(rows: _Rows) -> Vector | Failure:
    """The solver's answer, if it keeps every row and bound."""
    answer = _run(rows)
    broken = None if isinstance(answer, Failure) else _broken(rows, answer)
    return answer if broken is None else Failure(f"the solver's answer breaks {broken}")


def _run(rows: _Rows) -> Vector | Failure:
    """Hand the rows to HiGHS."""
    problem = pulp.LpProblem("shares", pulp.LpMinimize)
    variables = [
        problem.add_variable(f"x{index}", rows.lower.get(index, 0.0), rows.upper.get(index))
        for index in range(rows.size)
    ]
    problem.setObjective(_expression(variables, rows.objective))
    at_most = _undominated(rows.at_most)
    for sense, constraints in ((pulp.LpConstraintLE, at_most), (pulp.LpConstraintEQ, rows.equal)):
        for terms in constraints:
            problem.addConstraint(pulp.LpConstraint(_expression(variables, terms), sense, rhs=-terms[-1]))
    status = problem.solve(pulp.HiGHS(msg=False, presolve="off"))  # there is little to simplify
    if status == pulp.LpStatusOptimal:
        return np.array([variable.value() for variable in variables])
    return Failure(f"the solver ends with {pulp.LpStatus[status]!r}", status == pulp.LpStatusInfeasible)


def _undominated(constraints: Sequence[Vector]) -> list[Vector]:
    """Those that no other one implies: all variables are at least 0, so that the larger terms ask for more."""
    terms = np.array(constraints)
    implied = (terms[:, None] <= terms[None]).all(axis=2)
    implied &= ~(implied.T & np.triu(np.ones_like(implied)))  # of equal ones the first stays
    return [constraints[int(index)] for index in np.flatnonzero(~implied.any(axis=1))]


def _expression(variables: list[pulp.LpVariable], terms: Vector) -> pulp.LpAffineExpression:
    used = np.flatnonzero(terms[:-1])
    return pulp.LpAffineExpression([(variables[index], float(terms[index])) for index in used])


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
    kinds = {
        kind: {tier: by_name[f"{kind}_{tier}"] for tier in TIERS}
        for kind in ("weights", "cache", "activations")
    }
    return Shares(
        **kinds,
        attended=by_name["attended"],
        slot=by_name["slot"],
        inverse_batches=by_name["inverse_batches"],
        one=by_name["one"],
    )
