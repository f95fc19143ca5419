"""Candidate: a discrete choice with what the LP promises of it; the search's currency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.lp import Limits
from planner.policy import TIERS, Bits, Tier
from planner.problem import Problem
from planner.request import BitsChoice, Request
from planner.shares import DISK_USES, Way
from planner.work import Choice

MAX_BLOCK = 4096
"""Sequences of a block, where the number of prompts sets no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A discrete choice and the best that the LP finds for it."""

    choice: Choice
    way: Way
    seconds_per_sequence: float
    num_gpu_batches: float
    """Whole, unless it was free."""

    @property
    def block_size(self) -> float:
        """Sequences that share one pass of the weights."""
        return self.choice.gpu_batch_size * self.num_gpu_batches


def bits_of(wanted: BitsChoice) -> tuple[Bits, ...]:
    """The bits to try."""
    options: dict[BitsChoice, tuple[Bits, ...]] = {"16": (16,), "4": (4,), "auto": (16, 4)}
    return options[wanted]


def tier_limits(problem: Problem) -> dict[Tier, int]:
    """Each tier's limit in bytes."""
    return {tier: problem.target.limit_bytes(tier) for tier in TIERS}


def limits_of(problem: Problem, request: Request, choice: Choice, tier_bytes: Mapping[Tier, int]) -> Limits:
    """What the LP must keep to."""
    return Limits(
        tier_bytes=dict(tier_bytes),
        max_batches=max(1.0, most_sequences(problem) / choice.gpu_batch_size),
        cpu_attention=request.cpu_attention if problem.model.cpu_attention else "off",
        max_latency_s=request.max_latency_s,
    )


def ways_of(problem: Problem, request: Request) -> tuple[Way, ...]:
    """How a choice may be carried out, as far as that is open; those that others follow from come first."""
    attends: tuple[bool, ...] = {"off": (False,), "on": (True,), "auto": (False, True)}[request.cpu_attention]
    if problem.target.compute_tier == "cpu" or not problem.model.cpu_attention:
        attends = (False,)
    disk = DISK_USES if problem.target.disk_bytes else DISK_USES[-1:]
    return tuple(
        Way(moves_activations=moves, attends=attend, disk=use)
        for use in disk
        for attend in attends
        for moves in (True, False)
    )


def most_sequences(problem: Problem) -> int:
    """The largest block worth considering."""
    return min(problem.workload.num_prompts or MAX_BLOCK, MAX_BLOCK)
