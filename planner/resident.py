"""Resident: the largest gpu batches with which nothing has to leave the compute tier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from planner.candidate import most_sequences
from planner.policy import TIERS, Bits, Policy, Split
from planner.problem import Problem
from planner.shares import layer_kinds


def resident_sizes(problem: Problem, weight_bits: Bits, kv_bits: Bits) -> Iterator[tuple[int, int]]:
    """(gpu batch size, rows of a chunk), with one gpu batch in each wave; nothing where the weights are too large.

    Smaller chunks of prefill leave more room.
    """
    tier = problem.target.compute_tier
    kinds = layer_kinds(problem.model, weight_bits, problem.workload.max_len)
    weights = sum(kind.nbytes * kind.count for kind in kinds)
    if weights > problem.target.limit_bytes(tier):
        return
    near, count = Split.on(tier), problem.pipe.num_waves

    def room_bytes(rows: int, size: int) -> int:
        policy = Policy(
            gpu_batch_size=size,
            num_gpu_batches=count,
            weights=near,
            cache=near,
            activations=near,
            weight_bits=weight_bits,
            kv_bits=kv_bits,
            prefill_rows=min(rows, size),
            num_waves=count,
        )
        _, ledger = problem.place(policy)
        return min(problem.target.limit_bytes(tier) - ledger.peak_bytes(tier) for tier in TIERS)

    most = most_sequences(problem)
    rows = problem.prefill_rows(most)
    while rows:
        size = largest(max(1, most // count), partial(room_bytes, rows))
        if size:
            size = _evenly(problem, size * count) // count
            yield size, min(rows, size)
        rows //= 2


def largest(most: int, room_bytes: Callable[[int], int]) -> int:
    """The largest of 1..most for which there is room, if that shrinks as they grow; 0 if there is none.

    It shrinks about evenly: so the next one tried is where a line says that it ends, and every third time the middle.
    """
    low, high, tries = 1, most, 0
    room, lack = room_bytes(low), -room_bytes(high)
    if room < 0 or lack <= 0:
        return 0 if room < 0 else most
    while high - low > 1:
        tries += 1
        ends = low + (high - low) * room // (room + lack) if tries % 3 else (low + high) // 2
        middle = min(max(ends, low + 1), high - 1)
        found = room_bytes(middle)
        if found >= 0:
            low, room = middle, found
        else:
            high, lack = middle, -found
    return low


def _evenly(problem: Problem, block: int) -> int:
    """The smallest block of which no more are needed for the prompts."""
    prompts = problem.workload.num_prompts
    return math.ceil(prompts / math.ceil(prompts / block)) if prompts else block
