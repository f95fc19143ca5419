"""Measure this machine: runs every probe within a budget and returns a HardwareProfile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from hwprofiles.allocation import give_back_large_tensors
from hwprofiles.budget import DTYPES, Budget, Pace, Progress
from hwprofiles.errors import UserError
from hwprofiles.host import current_fingerprint, memory_limits, occupied_bytes, processor
from hwprofiles.numa import numa_node
from hwprofiles.points import GPU_SMALL_COLUMNS, NO_MARGINS, Rate
from hwprofiles.probes.attention import fastest
from hwprofiles.probes.buffers import affordable_bytes
from hwprofiles.probes.compute import Products, launch_overhead
from hwprofiles.probes.concurrent import contention, contention_points
from hwprofiles.probes.disk import check_directory, measure_disk, scratch_file
from hwprofiles.probes.graphs import measure_graph
from hwprofiles.probes.host import CACHES_READ, CPU, NUM_VISITS, HostTimes, host_points, thread_counts
from hwprofiles.probes.layers import LAYER_POINTS, LayerTimes, prompt_attention_rates, sweep_core
from hwprofiles.probes.links import BOTH_BYTES, measure_link
from hwprofiles.probes.memory import memory_rate
from hwprofiles.probes.packed import PACKED_POINTS, measure_packed
from hwprofiles.probes.process import ProcessCost, process_cost
from hwprofiles.probes.registering import registered_shares
from hwprofiles.probes.several_gpus import gpu_to_gpu, links_at_once, num_points
from hwprofiles.probes.visits import Visits
from hwprofiles.profile import (
    SCHEMA_VERSION,
    Gpu,
    HardwareProfile,
    Host,
    LinksAtOnce,
)
from hwprofiles.units import MIB, format_bytes

_SMALLEST_GPU_BYTES = 64 * MIB
_GPU_BUFFER_SHARE = 16
_GPU_WORKING_SET_BYTES = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked to measure."""

    name: str
    budget: Budget
    disk_dir: Path
    source: str
    """The command, for the profile."""
    gpu_cap_bytes: int | None = None
    cpu_cap_bytes: int | None = None
    emulated_gpu_bytes: int | None = None


def measure(request: Request, progress: Progress) -> HardwareProfile:
    """Every figure of hw.yaml for this machine; UserError where the request does not fit it."""
    gpus = _gpu_devices(request)
    cpu = processor()
    threads = thread_counts(cpu, request.budget)
    check_directory(request.disk_dir, request.budget.disk_file_bytes)
    working_set = affordable_bytes(max(request.budget.working_set_bytes, CACHES_READ * cpu.cache_bytes))
    if not any(device.type == "cuda" for device in gpus):
        give_back_large_tensors()  # as a run does that computes on the CPU
    pace = Pace(request.budget.total_s, count_points(request.budget, gpus, len(threads)), progress)
    with _all_cores(cpu.physical_cores):
        pace.next("memory of a fresh process")
        occupied = occupied_bytes()
        cost = process_cost(sum(device.type == "cuda" for device in gpus), request.budget.process_runs)
        times = HostTimes(request.budget, cpu, threads, working_set, pace)
        for _ in range(NUM_VISITS // 2):
            times.visit()
        measured_gpus = tuple(_measure_gpu(request, gpu, cost, pace) for gpu in gpus if gpu.type == "cuda")
        for _ in range(NUM_VISITS // 2):
            times.visit()
        host = times.figures(memory_limits(request.cpu_cap_bytes), cost, occupied)
        measured_gpus = measured_gpus or tuple(_emulated_gpu(request, gpu, host, pace) for gpu in gpus)
        at_once, gpu_to_gpu_rate = _measure_several(gpus, measured_gpus, host, pace)
        with (
            scratch_file(request.disk_dir, request.budget.disk_file_bytes) as file,
            contention(
                device=gpus[0] if gpus else None,
                link_bytes=max(
                    (p.size_bytes for gpu in measured_gpus for p in gpu.link.h2d_pinned), default=0
                ),
                attention=fastest(host.attention, _threads_at_once(host, gpus)),
                working_set_bytes=working_set,
                file=file,
                pace=pace,
                num_visits=3,
            ) as together,
        ):
            together.visit()
            disk = measure_disk(request.disk_dir, file, request.budget, pace, between=together.visit)
            together.visit()
    return HardwareProfile(
        schema_version=SCHEMA_VERSION,
        name=request.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        method="measured",
        source=request.source,
        fingerprint=current_fingerprint(),
        host=host,
        gpus=measured_gpus,
        disk=disk,
        concurrent=together.figures(),
        links_at_once=at_once,
        gpu_to_gpu_bytes_per_s=gpu_to_gpu_rate,
    )


def count_points(budget: Budget, gpus: tuple[torch.device, ...], num_thread_counts: int) -> int:
    """How many points `measure` takes with these devices."""
    gemm = len(DTYPES) * len((*budget.gemm_rows, *budget.wide_rows))
    link = 4 * len(budget.link_sizes_bytes) + 1
    real = gemm + 1 + LAYER_POINTS + len(DTYPES) + PACKED_POINTS["cuda"] + 2
    per_gpu = sum(link + 1 + (real if device.type == "cuda" else 0) for device in gpus)
    host = 1 + host_points(budget, num_thread_counts)
    disk = 2 * len(budget.disk_block_bytes) * len(budget.disk_threads) + 1
    return host + per_gpu + num_points(len(gpus)) + disk + contention_points(len(gpus))


def _gpu_devices(request: Request) -> tuple[torch.device, ...]:
    """The GPUs to measure; the emulated one stands in for real ones and its device is the CPU."""
    if request.emulated_gpu_bytes is not None:
        devices = [CPU]
        size, memory = request.emulated_gpu_bytes, min(memory_limits().values())
        if size > memory:
            raise UserError(
                f"--emulate-gpu {format_bytes(size)} is more than the host's memory of "
                f"{format_bytes(memory)}; ask for less"
            )
    else:
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [torch.device("cuda", index) for index in range(num_gpus)]
    if request.gpu_cap_bytes is not None and not devices:
        raise UserError("--gpu-mem needs a GPU and this host has none; leave it out or use --emulate-gpu 1GB")
    for device in devices:
        size, free = _gpu_bytes(request, device), _free_bytes(device)
        if min(size, free) < _SMALLEST_GPU_BYTES:
            raise UserError(
                f"GPU memory of {format_bytes(size)}, {format_bytes(free)} free, is too small to measure; "
                f"give at least {format_bytes(_SMALLEST_GPU_BYTES)}"
            )
    return tuple(devices)


def _gpu_bytes(request: Request, device: torch.device) -> int:
    if device.type == "cuda":
        size: int = torch.cuda.get_device_properties(device).total_memory
    else:
        assert request.emulated_gpu_bytes is not None
        size = request.emulated_gpu_bytes
    return size if request.gpu_cap_bytes is None else min(size, request.gpu_cap_bytes)


def _free_bytes(device: torch.device) -> int:
    """Memory that nobody holds on a GPU, or on the host for an emulated one."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return psutil.virtual_memory().available


def _threads_at_once(host: Host, gpus: tuple[torch.device, ...]) -> int:
    """Threads that work while everything moves: all where the processors compute, else some are left to a GPU."""
    computes = not gpus or gpus[0].type == "cpu"
    return host.logical_cores if computes else host.logical_cores * 3 // 4


def _measure_gpu(request: Request, device: torch.device, cost: ProcessCost, pace: Pace) -> Gpu:
    """One GPU."""
    buffer_bytes = _buffer_bytes(request, device)
    working_set = min(buffer_bytes, max(request.budget.working_set_bytes, _GPU_WORKING_SET_BYTES))
    kernel_share, mapped_share = registered_shares(device, pace)
    layers = LayerTimes(device, sweep_core(), Visits(pace, 2))
    layers.visit()
    rate = memory_rate(device, working_set, pace.next(f"{device} memory bandwidth"))
    rows, columns = request.budget.gemm_rows, request.budget.gpu_gemm_columns
    products = Products(device, rows, working_set, Visits(pace, 1), num_columns=columns)
    small = Products(
        device, request.budget.wide_rows, working_set, Visits(pace, 1), num_columns=GPU_SMALL_COLUMNS
    )
    for each in (products, small):
        each.visit()
    gpu = Gpu(
        name=torch.cuda.get_device_name(device),
        emulated=False,
        memory_bytes=_gpu_bytes(request, device),
        memory_bytes_per_s=rate,
        gemm=products.curves(),
        gemm_small=small.curves(),
        launch_overhead_s=launch_overhead(device, pace.next(f"{device} launch overhead")),
        context_bytes=cost.context_bytes[device.index],
        margins=cost.margins,
        link=measure_link(device, buffer_bytes, request.budget, pace),
        prompt_attention=prompt_attention_rates(device, pace.next),
        numa_node=_numa_node(device),
        packed=measure_packed(device, pace.next),
        graph=measure_graph(device, pace.next(f"{device} graphs")),
        kernel_share=kernel_share,
        mapped_share=mapped_share,
        kernels_host_bytes=cost.kernels_host_bytes,
    )
    layers.visit()
    return replace(gpu, layer=layers.points())


def _emulated_gpu(request: Request, device: torch.device, host: Host, pace: Pace) -> Gpu:
    """The host's compute, and links that are copies between arenas."""
    return Gpu(
        name="emulated",
        emulated=True,
        memory_bytes=_gpu_bytes(request, device),
        memory_bytes_per_s=host.memory_bytes_per_s,
        gemm=host.gemm,
        launch_overhead_s=launch_overhead(device, pace.next(f"{device} launch overhead")),
        context_bytes=0,
        margins=NO_MARGINS,
        link=measure_link(device, _buffer_bytes(request, device), request.budget, pace),
    )


def _buffer_bytes(request: Request, device: torch.device) -> int:
    """What probes take of a GPU's memory at once."""
    return min(_gpu_bytes(request, device), _free_bytes(device)) // _GPU_BUFFER_SHARE // MIB * MIB


def _measure_several(
    devices: tuple[torch.device, ...], gpus: tuple[Gpu, ...], host: Host, pace: Pace
) -> tuple[tuple[LinksAtOnce, ...], Rate | None]:
    """What GPUs of one host share; nothing where there is one, or none."""
    if len(devices) < 2:
        return (), None
    size = min(BOTH_BYTES, *(point.size_bytes for gpu in gpus for point in gpu.link.h2d_pinned[-1:]))
    nodes = [gpu.numa_node for gpu in gpus]
    near = [host.numa_cpus[n] if n is not None and n < len(host.numa_cpus) else () for n in nodes]
    return links_at_once(devices, near, size, pace), gpu_to_gpu(devices, size, pace)


def _numa_node(device: torch.device) -> int | None:
    """Where the GPU hangs; None with a torch that does not say its address."""
    found = torch.cuda.get_device_properties(device)
    address = [getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    domain, bus, slot = address
    return None if domain is None or bus is None or slot is None else numa_node(domain, bus, slot)


@contextmanager
def _all_cores(num_cores: int) -> Iterator[None]:
    """Torch with one thread a physical core, and as it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)
