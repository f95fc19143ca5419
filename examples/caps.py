"""Memory caps under which a plan must use all three tiers, from the ledger of the model itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprofiles.errors import UserError
from planner.ledger import Ledger
from planner.machine import HEADROOM
from planner.policy import Policy, Split
from planner.problem import Problem

GPU_BATCH_SIZES = (16, 8, 4, 2, 1)
ON_DISK_SHARE = 1 / 8
"""At least this share of the weights finds no room on gpu and cpu, whatever the policy."""
ROOM_SHARE = 1 / 8
"""At least this share of the weights has room on gpu, and on cpu, beside what a run needs to work."""
MB = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class TightCaps:
    """What to give as --gpu-mem and --cpu-mem; the latter includes the process itself."""

    gpu_mb: float
    cpu_mb: float
    needed_mb: float
    """What the smallest run without the disk would take on gpu and cpu, process included."""


def tight_caps(problem: Problem) -> TightCaps:
    """Room for the largest gpu batch whose weights, cache and activations are on disk, and for little more.

    Together the caps stay below what one sequence takes with everything on the gpu, so part must be on disk.
    """
    without_disk = everything_on(problem, 1, Split(gpu=1, cpu=0, disk=0))
    needed = without_disk.peak_bytes("gpu") + without_disk.peak_bytes("cpu")
    weights = without_disk.bytes_of("gpu", "weights")
    for size in GPU_BATCH_SIZES:
        least = everything_on(problem, size, Split(gpu=0, cpu=0, disk=1))
        gpu, cpu = least.peak_bytes("gpu"), least.peak_bytes("cpu")
        room = (needed - ON_DISK_SHARE * weights - gpu - cpu) / 2
        if room >= ROOM_SHARE * weights:
            return TightCaps(
                gpu_mb=tenths(gpu + room),
                cpu_mb=tenths((cpu + room) / (1 - HEADROOM)),
                needed_mb=tenths(needed),
            )
    raise UserError("the model has too few layers for a plan over three tiers; give it more")


def everything_on(problem: Problem, gpu_batch_size: int, split: Split) -> Ledger:
    """The ledger of one gpu batch with all that has a home on one tier."""
    policy = Policy(
        gpu_batch_size=gpu_batch_size,
        num_gpu_batches=1,
        weights=split,
        cache=split,
        activations=split,
        prefill_rows=problem.prefill_rows(gpu_batch_size),
    )
    return problem.plan(policy).ledger


def tenths(num_bytes: float) -> float:
    """Megabytes, rounded up to one place."""
    return math.ceil(num_bytes / MB * 10) / 10
