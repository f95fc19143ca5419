"""Holdings: what each tier of a plan holds, and what it would cost or save to hold some of it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from hwprofiles.units import GIB, MIB
from planner.plan import Plan
from planner.policy import TIERS, Policy, Split, Tier
from planner.problem import Problem

Kind = Literal["weights", "cache", "activations"]
KINDS: tuple[Kind, ...] = ("weights", "cache", "activations")
_STEPS = (GIB, 100 * MIB, 10 * MIB, MIB)
"""Bytes that a move is of, the first that is small beside all that is held."""
_SMALL = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Some bytes of a holding put on another tier, all else left as it is."""

    to: Tier
    num_bytes: int
    """As whole tensors or sequences."""
    slower: float
    """By how much of a block's time; negative: faster."""
    lacking_bytes: int
    """What that tier would then be over its limit by; 0: it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One kind of bytes on one tier."""

    kind: Kind
    num_bytes: int
    share: float
    """Of all bytes of the kind."""
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierView:
    """A tier with its holdings; `other_bytes` are what is needed to work with."""

    tier: Tier
    peak_bytes: int
    limit_bytes: int
    other_bytes: int
    holdings: tuple[Holding, ...]

    @property
    def free_bytes(self) -> int:
        """What the limit leaves."""
        return self.limit_bytes - self.peak_bytes


def tier_views(problem: Problem, plan: Plan) -> tuple[TierView, ...]:
    """Every tier that the plan uses or could use, fastest first."""
    mover = _Mover(problem, plan)
    return tuple(
        _view(plan, mover, tier)
        for tier in TIERS
        if plan.ledger.peak_bytes(tier) or plan.hardware.limit_bytes(tier)
    )


def _view(plan: Plan, mover: _Mover, tier: Tier) -> TierView:
    peak = plan.ledger.peak_bytes(tier)
    held = {kind: plan.ledger.bytes_of(tier, kind) for kind in KINDS}
    return TierView(
        tier=tier,
        peak_bytes=peak,
        limit_bytes=plan.hardware.limit_bytes(tier),
        other_bytes=peak - sum(held.values()),
        holdings=tuple(
            Holding(
                kind=kind,
                num_bytes=num_bytes,
                share=dict(split_of(plan.policy, kind).items())[tier],
                moves=tuple(mover.moves(kind, tier)),
            )
            for kind, num_bytes in held.items()
            if num_bytes
        ),
    )


def split_of(policy: Policy, kind: Kind) -> Split:
    """The split of one kind of bytes."""
    return {"weights": policy.weights, "cache": policy.cache, "activations": policy.activations}[kind]


class _Mover:
    """Tries moves: places, adds up and prices the policy with some bytes elsewhere."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem, self.plan = problem, plan
        self.totals = {kind: sum(plan.ledger.bytes_of(tier, kind) for tier in TIERS) for kind in KINDS}
        small = _SMALL * sum(self.totals.values())
        step = next((step for step in _STEPS if step <= small), _STEPS[-1])
        row = 1 / plan.policy.block_size
        self.steps: dict[Kind, float] = {
            "weights": step / self.totals["weights"],
            "cache": max(row, step / self.totals["cache"]),
            "activations": max(row, step / self.totals["activations"]),
        }
        """As shares; at least a sequence's, which is on one tier as a whole."""

    def moves(self, kind: Kind, tier: Tier) -> Iterator[Move]:
        """A step of a holding, or all of it where that is less, to each other tier there is."""
        for to in TIERS:
            if to != tier and self.problem.target.limit_bytes(to):
                yield self._move(kind, tier, to)

    def _move(self, kind: Kind, tier: Tier, to: Tier) -> Move:
        shares = dict(split_of(self.plan.policy, kind).items())
        step = min(shares[tier], self.steps[kind])
        shares[tier], shares[to] = shares[tier] - step, shares[to] + step
        other = self.problem.plan(_with_split(self.plan.policy, kind, Split(**shares)))
        before, after = (plan.prediction.throughput_tokens_per_s for plan in (self.plan, other))
        return Move(
            to=to,
            num_bytes=self.plan.ledger.bytes_of(tier, kind) - other.ledger.bytes_of(tier, kind),
            slower=before / after - 1,
            lacking_bytes=other.ledger.shortfalls(self.problem.target).get(to, 0),
        )


def _with_split(policy: Policy, kind: Kind, split: Split) -> Policy:
    if kind == "weights":
        return replace(policy, weights=split)
    return replace(policy, cache=split) if kind == "cache" else replace(policy, activations=split)
