"""The question that a running job asks planner/replan.py, and the answer; without what a search needs."""

from __future__ import annotations

from dataclasses import dataclass

from planner.plan import Plan
from planner.report import RunReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a run knows after its first block."""

    report: RunReport
    """Of that block."""
    remaining: tuple[tuple[int, int], ...]
    """(prompt tokens, tokens to generate) of each prompt that is left."""
    reload_s: float
    """What loading the weights takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether to go on with another plan."""

    plan: Plan | None
    """None: the one that runs is as good."""
    text: str
    """What it does otherwise and what that saves, or why there is none."""
