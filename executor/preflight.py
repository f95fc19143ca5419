"""Preflight: a plan's ledger against what the machine has free, before anything is allocated."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from executor.disk import remove_stale
from executor.memory import resident_bytes
from hwprofiles.cgroups import memory_headroom_bytes
from hwprofiles.errors import UserError
from hwprofiles.units import format_bytes
from planner.ledger import Ledger, make_ledger
from planner.plan import Plan
from planner.policy import Tier

_IN_MEMORY = ("tmpfs", "ramfs")
"""File systems whose files are host memory."""


def check(plan: Plan, *, offload_dir: Path | None, device: torch.device, others: Sequence[Plan] = ()) -> None:
    """A UserError naming the tier, what it needs and what is free, unless the whole plan fits now.

    `offload_dir` None is the current directory. Files that killed runs left there are removed first. `others` are
    the plans of other ranks on this host, which have allocated nothing yet either.
    """
    _check_placement(plan)
    _check_ledger(plan)
    plan.ledger.check(plan.hardware)
    in_memory = 0
    needed = sum(each.ledger.peak_bytes("disk") for each in (plan, *others))
    if needed:
        directory = offload_dir or Path.cwd()
        in_memory = needed if _is_in_memory(directory) else 0
        _check_disk(directory, needed)
    _check_host(plan, in_memory, others)
    if device.type == "cuda":
        _check_gpu(plan.ledger, device)


def _check_placement(plan: Plan) -> None:
    """A placement is of one policy and one model; a plan edited by hand may hold two that do not match."""
    policy, placement, layers = plan.policy, plan.placement, plan.model.spec().layers
    rows = {r.total for r in placement.cache_rows} | {r.total for r in placement.activation_rows}
    tensors = [len(layer.tensors) for layer in layers]
    differs = None
    if len(placement.cache_rows) != policy.num_gpu_batches:
        differs = (
            f"num_gpu_batches {policy.num_gpu_batches}, its placement {len(placement.cache_rows)} gpu batches"
        )
    elif rows != {policy.gpu_batch_size}:
        differs = f"gpu_batch_size {policy.gpu_batch_size}, its placement gpu batches of {sorted(rows)} rows"
    elif [len(letters) for letters in placement.weight_tiers] != tensors:
        differs = f"weight_tiers of other layers than the model's {len(layers)} layers"
    if differs:
        raise UserError(f"plan: it has {differs}; it was edited by hand: run planner search again")


def _check_ledger(plan: Plan) -> None:
    """The executor allocates what the placement says: the plan's own ledger must be of that placement."""
    actual = make_ledger(plan.model.spec(), plan.workload, plan.policy, plan.placement, plan.hardware)
    tiers: tuple[Tier, ...] = ("gpu", "cpu", "disk")
    for tier in tiers:
        stated, needed = plan.ledger.peak_bytes(tier), actual.peak_bytes(tier)
        if stated != needed:
            raise UserError(
                f"plan: its ledger says {format_bytes(stated)} on {tier}, its placement takes "
                f"{format_bytes(needed)}; it was edited or is of another version: run planner search again"
            )


def _check_disk(directory: Path, needed: int) -> None:
    if not directory.is_dir():
        raise UserError(f"offload directory {directory} does not exist; create it or choose another")
    remove_stale(directory)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"disk tier needs {format_bytes(needed)}, {directory} has {format_bytes(free)} free; "
            "free some space, choose another --offload-dir, or plan with a smaller --disk"
        )


def _check_host(plan: Plan, in_memory: int, others: Sequence[Plan]) -> None:
    """What is still to come against what the system and the control groups would give."""
    beside = sum(_hosted_bytes(other) - other.ledger.bytes_of("cpu", "process") for other in others)
    kernel = sum(_kernel_bytes(each) for each in (plan, *others))
    needed = _still_to_come(plan) + in_memory + beside + kernel
    name, free = host_headroom()
    if needed > free:
        tiers = "cpu and emulated gpu tiers need" if plan.hardware.emulated else "cpu tier needs"
        disk = f" ({format_bytes(in_memory)} of it for files on tmpfs)" if in_memory else ""
        ranks = f" ({format_bytes(beside)} of it for other ranks)" if beside else ""
        ranks += f" ({format_bytes(kernel)} of it for the kernel, which keeps track of it)" if kernel else ""
        raise UserError(
            f"{tiers} {format_bytes(needed)} more host memory{disk}{ranks}, {format_bytes(free)} is free "
            f"({name}); close other programs or plan with a smaller --cpu-mem"
        )


def host_headroom() -> tuple[str, int]:
    """What limits the host memory that this process may still take, and how many bytes that leaves."""
    headrooms = {"MemAvailable": psutil.virtual_memory().available, "control group": memory_headroom_bytes()}
    known = {name: free for name, free in headrooms.items() if free is not None}
    name = min(known, key=lambda name: known[name])
    return name, known[name]


def _still_to_come(plan: Plan) -> int:
    """Host bytes of the ledger that this process does not occupy yet."""
    return _hosted_bytes(plan) - min(resident_bytes(), plan.ledger.bytes_of("cpu", "process"))


def _kernel_bytes(plan: Plan) -> int:
    """What the kernel keeps beside the memory that is registered with a GPU."""
    return round(
        plan.hardware.kernel_share * (plan.ledger.peak_bytes("cpu") - plan.ledger.bytes_of("cpu", "process"))
    )


def _hosted_bytes(plan: Plan) -> int:
    hosted: tuple[Tier, ...] = ("cpu", "gpu") if plan.hardware.emulated else ("cpu",)
    return sum(plan.ledger.peak_bytes(tier) for tier in hosted)


def _check_gpu(ledger: Ledger, device: torch.device) -> None:
    free, total = torch.cuda.mem_get_info(device)  # the context exists by now, and is not free
    needed = ledger.peak_bytes("gpu") - ledger.bytes_of("gpu", "device context")
    if needed > free:
        raise UserError(
            f"gpu tier needs {format_bytes(needed)} beside the context, {device} has {format_bytes(free)} "
            f"free of {format_bytes(total)}; close other programs on it or plan with a smaller --gpu-mem"
        )


def _is_in_memory(directory: Path) -> bool:
    """Whether the directory's file system lies in host memory."""
    path = directory.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    if not mounts:
        return False
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype in _IN_MEMORY
