"""Memory caps under which the best plan uses all three tiers, from the ledger of the model itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.ledger import Ledger
from planner.machine import Caps, make_target
from planner.model import ModelSpec
from planner.policy import Policy, Split
from planner.problem import Problem, make_problem
from planner.request import Request
from planner.search import search
from planner.workload import Workload

GPU_BATCH_SIZES = (16, 12, 8, 6, 4, 3, 2, 1)
ROOM = 0.25
"""Share of the weights that finds room on gpu, and on cpu, beside what a run needs to work."""
LEAST = 0.03
"""Share of the weights that a tier must hold to count as used."""
MB = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class TightCaps:
    """What to give as --gpu-mem and --cpu-mem, in units of 10**6 bytes; the latter includes the process itself."""

    gpu_batch_size: int
    gpu_mb: float
    cpu_mb: float

    def caps(self) -> Caps:
        """As the planner takes them."""
        return Caps(gpu_bytes=round(self.gpu_mb * MB), cpu_bytes=round(self.cpu_mb * MB))


def tight_caps(model: ModelSpec, workload: Workload, profile: HardwareProfile) -> TightCaps:
    """The widest caps whose best plan keeps a part of the weights on each tier.

    From one gpu batch size to the next they leave less: what it takes to work on such a gpu batch with all else on
    disk, and room for a quarter of the weights on each of gpu and cpu. A smaller gpu batch would leave room for
    more of the weights, so whether the disk pays is for the search to say.
    """
    free = make_problem(model, workload, profile, Caps())
    for size in GPU_BATCH_SIZES:
        tight = caps_for(free, profile, size)
        plan = search(make_problem(model, workload, profile, tight.caps()), Request())
        if plan and all(share >= LEAST for _, share in plan.placement.weights.items()):
            return tight
    raise UserError("no caps make the best plan use gpu, cpu and disk; give the model more layers")


def caps_for(problem: Problem, profile: HardwareProfile, gpu_batch_size: int) -> TightCaps:
    """Room to work on one gpu batch, and for a part of the weights on gpu and on cpu."""
    least = everything_on_disk(problem, gpu_batch_size)
    room = ROOM * least.bytes_of("disk", "weights")
    return TightCaps(
        gpu_batch_size=gpu_batch_size,
        gpu_mb=tenths(least.peak_bytes("gpu") + room),
        cpu_mb=tenths(cap_for(profile, least.peak_bytes("cpu") + room)),
    )


def cap_for(profile: HardwareProfile, held_bytes: float) -> float:
    """The cap on host memory that leaves so much beside what is kept free of it."""
    cap = held_bytes
    for _ in range(4):  # what is kept free grows with the cap by some percent, and by less each time
        cap += held_bytes - make_target(profile, Caps(cpu_bytes=round(cap))).cpu_bytes
    return cap


def everything_on_disk(problem: Problem, gpu_batch_size: int) -> Ledger:
    """The ledger of one gpu batch whose weights, cache and activations are all on disk."""
    disk = Split(gpu=0, cpu=0, disk=1)
    policy = Policy(
        gpu_batch_size=gpu_batch_size,
        num_gpu_batches=1,
        weights=disk,
        cache=disk,
        activations=disk,
        prefill_rows=problem.prefill_rows(gpu_batch_size),
    )
    return problem.plan(policy).ledger


def tenths(num_bytes: float) -> float:
    """Megabytes, rounded up to one place."""
    return math.ceil(num_bytes / MB * 10) / 10
