"""Resident: the largest gpu batches with which nothing has to leave the compute tier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from planner.advise import largest
from planner.candidate import most_sequences
from planner.policy import Bits, Policy, Split
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

    def fits(rows: int, size: int) -> bool:
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
        return problem.fits(policy)

    most = most_sequences(problem)
    rows = problem.prefill_rows(most)
    while rows:
        size = largest(max(1, most // count), partial(fits, rows))
        if size:
            size = _evenly(problem, size * count) // count
            yield size, min(rows, size)
        rows //= 2


def _evenly(problem: Problem, block: int) -> int:
    """The smallest block of which no more are needed for the prompts."""
    prompts = problem.workload.num_prompts
    return math.ceil(prompts / math.ceil(prompts / block)) if prompts else block
