"""Explain: what binds a plan, what its tiers hold and why, and what else could be, as figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.alternatives import Alternative, alternatives
from planner.compare import Line
from planner.holdings import TierView, tier_views
from planner.plan import Plan
from planner.policy import Tier
from planner.problem import Problem
from planner.relief import Bound, bounds
from planner.what_if import Answer
from planner.why_not import WhyNot

NOTICED = 5e-5
"""Smaller relative changes of a block's time are said to be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Why a plan is as it is."""

    phases: tuple[Bound, ...]
    tiers: tuple[TierView, ...]
    alternatives: tuple[Alternative, ...]
    binding_limits: tuple[Tier, ...]
    """Tiers on which something that would be faster has no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What was asked about a plan; None: not asked."""

    plan_digest: str
    reasons: Reasons | None
    what_ifs: tuple[Answer, ...] | None
    """The machine as it is, then each change of it."""
    why_not: WhyNot | None
    diff: tuple[Line, ...] | None


def reasons(problem: Problem, plan: Plan) -> Reasons:
    """What binds, what is held where, and what a small change would do."""
    tiers, others = tier_views(problem, plan), alternatives(problem, plan)
    return Reasons(
        phases=tuple(bounds(problem, plan)),
        tiers=tiers,
        alternatives=others,
        binding_limits=tuple(view.tier for view in tiers if _binds(view.tier, tiers, others)),
    )


def _binds(tier: Tier, tiers: Iterable[TierView], others: Iterable[Alternative]) -> bool:
    moves = (move for view in tiers for holding in view.holdings for move in holding.moves if move.to == tier)
    wanted = any(move.slower < -NOTICED and move.lacking_bytes for move in moves)
    return wanted or any(other.gain > NOTICED and tier in other.lacking_bytes for other in others)
