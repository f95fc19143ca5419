"""Machine: from a hardware profile and the user's caps, what a plan may hold on each tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwprofiles.errors import UserError
from hwprofiles.points import NO_MARGINS, Graph, Kernels, Margins
from hwprofiles.profile import Gpu, HardwareProfile
from planner.headroom import Headroom, headroom_bytes
from planner.ledger import Target

UNMEASURED_GPU = Margins(context_bytes=212_593_664, allocator_bytes=0, fragmentation_bytes=0)
"""Where a profile has no margins: how far a run was over a ledger without them, of whatever kind that was.

On an H200 host, OPT-30B in 4 bits was 213 MB over its 8.8 GB, OPT-1.3B 106 MB over its 3.5 GB (benchmarks/results).
"""
UNMEASURED_KERNEL_SHARE = 0.02
"""Of host memory registered with a GPU, what the kernel and its driver keep beside it where a profile does not say.

On an H200 host of 135.15 GB, of which others held 0.27, a run was killed when it held 132.23 GB: at most 2.0%.
"""
UNMEASURED_MAPPED_SHARE = 1 / 512
"""Likewise what is kept on the GPU: eight bytes for each page of 4 KiB.

On an H200 host OPT-30B in 4 bits, with 52 GB registered, was 110 MB over a ledger without it, OPT-13B with 24 GB 46 MB.
"""


UNMEASURED_GRAPH_HOST_BYTES = 4600
"""In host memory for each operation of a CUDA graph: 174 MiB for Llama-3-70B's 39200 on an H200 host."""
UNMEASURED_KERNELS_HOST_BYTES: Mapping[Kernels, int] = {
    "opt": 38_000_000,
    "rotary": 218_000_000,
    "experts": 518_000_000,
    "few_rows": 70_000_000,
}
"""On the same host OPT's runs held between 0.07 GB less and 0.09 GB more than the process that is weighed, half of
them more; Llama-3-70B and Qwen3-32B 0.14 to 0.26 GB more than a process that had run OPT's kernels, Mixtral-8x7B 0.46
to 0.49 GB. What compiling takes was part of the process then; looking up few rows took 0.07 GB later
(benchmarks/results/profiles/h200-host-late.yaml)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The most bytes the user grants on each tier; None: what the machine has."""

    gpu_bytes: int | None = None
    cpu_bytes: int | None = None
    disk_bytes: int | None = None
    headroom: Headroom | None = None
    """Of host memory; None: what others held when it was measured."""


def make_target(profile: HardwareProfile, caps: Caps, whole: tuple[str, str] | None = None) -> Target:
    """The limits of each tier; an emulated GPU's arena is taken out of host memory.

    Of a profile that is a share of another, `whole` is that one's name and digest.
    """
    host, gpu = profile.host, profile.gpus[0] if profile.gpus else None
    if gpu is None and caps.gpu_bytes:
        raise UserError(f"profile {profile.name} has no GPU; leave out --gpu-mem")
    gpu_bytes = _least(gpu.memory_bytes, caps.gpu_bytes) if gpu else 0
    arena_bytes = gpu_bytes if gpu and gpu.emulated else 0
    limit = max(0, _least(host.memory_bytes - arena_bytes, caps.cpu_bytes))
    kernel = _share(gpu, gpu.kernel_share if gpu else None, UNMEASURED_KERNEL_SHARE)
    headroom = headroom_bytes(host, host.granted_bytes - arena_bytes, limit, caps.headroom, kernel)
    name, digest = whole or (profile.name, profile.digest())
    return Target(
        name=name,
        digest=digest,
        fingerprint=profile.fingerprint,
        compute_tier="gpu" if gpu else "cpu",
        emulated=bool(gpu and gpu.emulated),
        gpu_bytes=gpu_bytes,
        cpu_bytes=limit - headroom,
        disk_bytes=_least(profile.disk.free_bytes, caps.disk_bytes) if profile.disk else 0,
        context_bytes=gpu.context_bytes if gpu else 0,
        process_bytes=host.process_bytes,
        margins=_margins(gpu),
        process_spread_bytes=host.process_spread_bytes or 0,
        headroom_bytes=headroom,
        kernel_share=kernel,
        mapped_share=_share(gpu, gpu.mapped_share if gpu else None, UNMEASURED_MAPPED_SHARE),
        graph_operation_bytes=gpu.graph.operation_bytes if gpu and gpu.graph else 0,
        graph_operation_host_bytes=_on_host(gpu.graph) if gpu and gpu.graph else 0,
        kernels_host_bytes=_kernels(gpu),
    )


def _on_host(graph: Graph) -> int:
    measured = graph.host_operation_bytes
    return UNMEASURED_GRAPH_HOST_BYTES if measured is None else measured


def _kernels(gpu: Gpu | None) -> Mapping[Kernels, int]:
    if gpu is None or gpu.emulated:
        return {}
    return {**UNMEASURED_KERNELS_HOST_BYTES, **gpu.kernels_host_bytes}


def _margins(gpu: Gpu | None) -> Margins:
    if gpu is None or gpu.emulated:
        return NO_MARGINS
    return gpu.margins or UNMEASURED_GPU


def _share(gpu: Gpu | None, measured: float | None, unmeasured: float) -> float:
    """Of registered memory, which there is with a real GPU only."""
    if gpu is None or gpu.emulated:
        return 0.0
    return unmeasured if measured is None else measured


def usable_bytes(target: Target, host_bytes: float) -> int:
    """What a plan may hold of so much host memory, if the target's share of it is left free."""
    whole = target.cpu_bytes + target.headroom_bytes
    return round(host_bytes - host_bytes * target.headroom_bytes / whole) if whole else 0


def _least(measured: int, cap: int | None) -> int:
    return measured if cap is None else min(measured, cap)
