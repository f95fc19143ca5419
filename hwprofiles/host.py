"""This host without its speed: processor, memory limits, and the fingerprint that tells hosts apart."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hwprofiles.cgroups import cpu_quota, memory_headroom_bytes, memory_limit_bytes
from hwprofiles.numa import numa_cpus
from hwprofiles.process_memory import resident_bytes
from hwprofiles.profile import HardwareProfile, fingerprint_of

_CPUS = Path("/sys/devices/system/cpu")
_NVIDIA_SMI_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The processor's parts that this process may use."""

    model: str
    sockets: int
    physical_cores: int
    logical_cores: int
    numa_nodes: int
    cache_bytes: int
    """Last-level cache of all sockets; 0 where the system does not say."""
    numa_cpus: tuple[tuple[int, ...], ...]
    """For each NUMA node the positions of its processors among those this process may use."""


def processor() -> Processor:
    """What affinity and the control group's quota leave of the processor."""
    cpus = sorted(os.sched_getaffinity(0))
    cores = {(_topology(cpu, "physical_package_id"), _topology(cpu, "core_id")) for cpu in cpus}
    logical = min(len(cpus), cpu_quota() or len(cpus))
    return Processor(
        model=cpu_model(),
        sockets=len({package for package, _ in cores}),
        physical_cores=min(len(cores), logical),
        logical_cores=logical,
        numa_nodes=max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        cache_bytes=_cache_bytes(cpus),
        numa_cpus=numa_cpus(cpus),
    )


def memory_limits(cap_bytes: int | None = None) -> dict[str, int]:
    """Each limit on host memory that applies, in bytes: mem_total, cgroup, cap; the smallest one binds."""
    import psutil  # noqa: PLC0415  which planning does without

    limits = {"mem_total": psutil.virtual_memory().total}
    cgroup = memory_limit_bytes()
    if cgroup is not None:
        limits["cgroup"] = cgroup
    if cap_bytes is not None:
        limits["cap"] = cap_bytes
    return limits


def occupied_bytes() -> int:
    """Of the host memory that `memory_limits` grants, what the kernel and other processes hold now."""
    import psutil  # noqa: PLC0415

    usable = psutil.virtual_memory().available
    in_group = memory_headroom_bytes()
    if in_group is not None:
        usable = min(usable, in_group)
    return max(0, min(memory_limits().values()) - usable - resident_bytes())


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def gpu_names() -> tuple[str, ...]:
    """Names of this host's NVIDIA GPUs, from nvidia-smi or else from the driver's files in /proc."""
    return _names_from_nvidia_smi() or _names_from_driver(Path("/proc/driver/nvidia/gpus"))


def current_fingerprint() -> str:
    """This host's fingerprint; affinity and quotas do not change it."""
    return fingerprint_of(cpu_model(), os.cpu_count() or 1, gpu_names())


def mismatch(profile: HardwareProfile) -> str | None:
    """One line of warning when `profile` does not describe this host; None when it does."""
    remedy = "measure this one with: hwprofile measure -o hw.yaml"
    if profile.method == "published" or not profile.fingerprint:
        return f"profile {profile.name} holds published figures, not measurements of this host; {remedy}"
    here = current_fingerprint()
    if profile.fingerprint == here:
        return None
    gpus = ", ".join(gpu.name for gpu in profile.gpus if not gpu.emulated) or "no GPU"
    return (
        f"profile {profile.name} was measured on another host ({profile.host.cpu_model}, "
        f"{profile.host.logical_cores} cores, {gpus}; fingerprint {profile.fingerprint}, here {here}); "
        f"{remedy}"
    )


def _names_from_nvidia_smi() -> tuple[str, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _names_from_driver(directory: Path) -> tuple[str, ...]:
    lines = [line for path in sorted(directory.glob("*/information")) for line in _read(path).splitlines()]
    return tuple(line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))


def _topology(cpu: int, name: str) -> str:
    text = _read(_CPUS / f"cpu{cpu}/topology" / name).strip()
    return text or (str(cpu) if name == "core_id" else "0")


def _cache_bytes(cpus: list[int]) -> int:
    """Sum of the distinct level-3 caches that `cpus` share."""
    caches = {
        _read(_CPUS / f"cpu{cpu}/cache/index3/shared_cpu_list").strip(): _read(
            _CPUS / f"cpu{cpu}/cache/index3/size"
        ).strip()
        for cpu in cpus
    }
    return sum(
        int(size[:-1]) * 2**10 for size in caches.values() if size.endswith("K") and size[:-1].isdecimal()
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
