"""Rates: from a hardware profile, how fast a plan's tasks run; contention and overheads included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hwprofiles.allocation import LARGE_BYTES
from hwprofiles.errors import UserError
from hwprofiles.points import (
    GPU_LARGE_COLUMNS,
    GPU_SMALL_COLUMNS,
    LARGE_COLUMNS,
    SMALL_COLUMNS,
    AttentionPoint,
    Dtype,
    GemmPoint,
    Rate,
)
from hwprofiles.profile import Gpu, HardwareProfile, Host
from planner.attention_rates import attention_threads, packed_attention, packed_head_share, query_head_share
from planner.disk_rates import (
    disk_curve,
    disk_in_a_run,
    disk_parallel,
    full_rate,
    parts_at_work,
    read_threads,
)
from planner.factors import HANDOVER, LAUNCH, Factors, factor_of
from planner.host_rates import (
    FEW_OPERATIONS,
    capture_time,
    host_memory,
    host_time,
    in_a_run,
    kernel_time,
)
from planner.packed_work import PackedRates, Reading
from planner.products import MANY_ROWS, of_outputs
from planner.rate_curve import UNUSED, Curve

_SUM_BYTES = 3
"""Moved for each byte of a sum's result."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast each resource works; bytes, FLOP or seconds."""

    on_cpu: bool
    """Compute runs on the host's cores: no GPU, or an emulated one."""
    gemm: Curve
    memory_bytes_per_s: float
    """Of the compute device."""
    attention_bytes_per_s: float
    """K and V of decode attention on the compute device."""
    cpu_attention_bytes_per_s: float
    cpu_packed_attention_values_per_s: float | None = None
    """K and V that are attended to as they lie in 4 bits; None where a run unpacks them first and in older profiles."""
    query_head_share: float = 0.0
    """CPU attention to K and V as they are computed with: by how much of its time each further query head that shares
    them makes it longer; 0 in plans of older versions."""
    packed_query_head_share: float | None = None
    """Likewise to packed ones; None: as many seconds as to others."""
    cpu_memory_bytes_per_s: float
    h2d: Curve
    d2h: Curve
    both_bytes_per_s: float
    """Both directions of the link together."""
    disk_read: Curve
    disk_write: Curve
    disk_parallel: float
    """How many of reading and writing the disk does at full speed at once: 1 to 2."""
    parallel: float | None
    """Where the host's cores compute: how many of copies each way, CPU attention and disk reads it does at full speed
    at once; None: unknown, or beside a GPU."""
    elementwise_bytes_per_s: float
    """Of the compute device, for operations whose results are new tensors."""
    prompt_attention_flops_per_s: float
    """Prompts attending to themselves, on the compute device."""
    call_s: float
    operation_s: float
    """Host time of calling a layer, and for each of its operations."""
    task_overhead_s: float
    io_threads: int
    attention_threads: int
    factors: Factors
    """Calibration: predicted seconds are multiplied by these."""
    gemm_swing: float = 0.0
    """By what share of its rate with many rows a GPU is faster when it was idle; it settles as far below."""
    kernel_s: float = 0.0
    """GPU time for each operation beside its bytes and products."""
    graph_s: float | None = None
    """Host time to start a layer as a CUDA graph; None where runs use none."""
    capture_s: float = 0.0
    """Host time to make such a graph, for each of its operations, beside calling the layer."""
    packed: PackedRates | None = None
    """4-bit values on the compute device; None where the profile does not have them."""
    net: Curve
    """Messages to the next stage of a pipeline, by size."""
    gemm_wide: Curve | None = None
    """As `gemm`, of matrices with many outputs; None where all are taken to be as fast."""
    gemm_small: Curve | None = None
    """As `gemm`, of small matrices; None where a rate is taken to be that of all of them."""
    gemm_columns: tuple[int, int] = SMALL_COLUMNS, LARGE_COLUMNS
    """The columns that `gemm_small` and `gemm` are of; on a host the hidden sizes of layers."""
    elementwise_small_bytes_per_s: float | None = None
    """As `elementwise_bytes_per_s`, of tensors that the allocator has at hand; None: as fast as others."""

    def product_flops_per_s(self, rows: float, columns: float, output: float | None = None) -> float:
        """Matrix products of so many rows; straight in log scales between two sizes.

        Beside a GPU of a square matrix with so many columns; on a host of a model of this hidden size, with this
        `output_weight`, or without one of a layer's matrices together.
        """
        mixed = self.gemm.at(rows)
        if self.gemm_small is not None:
            small, large = self.gemm_columns
            sizes = (small, self.gemm_small.at(rows)), (large, mixed)
            mixed = Curve(sizes, below=0.0).at(columns)
        if output is None or self.gemm_wide is None:
            return mixed
        return mixed * of_outputs(self.gemm_wide.at(rows) / self.gemm.at(rows), columns, output)

    def elementwise_s(self, num_bytes: float) -> float:
        """Seconds to read and write so many bytes, new tensors being at hand."""
        return num_bytes / (self.elementwise_small_bytes_per_s or self.elementwise_bytes_per_s)

    def new_tensor_s(self, num_bytes: float) -> float:
        """What a new tensor of this size takes beside the bytes that are written to it: its pages, if it has its own.

        A sum reads two bytes and writes one; it is slower by this where its results are large.
        """
        if not self.elementwise_small_bytes_per_s or num_bytes < LARGE_BYTES:
            return 0.0
        slower = _SUM_BYTES / self.elementwise_bytes_per_s - _SUM_BYTES / self.elementwise_small_bytes_per_s
        return max(0.0, slower) * num_bytes

    @property
    def small_layer_s(self) -> float:
        """Host time of calling a layer of few operations: how fast the host's interpreter is.

        A figure as measured; how it falls into call and operations differs more from one measurement to the next.
        """
        return self.call_s + FEW_OPERATIONS * self.operation_s

    @property
    def has_disk(self) -> bool:
        """Whether a disk was measured."""
        return self.disk_read != UNUSED

    def factor(self, resource: str, kind: str = "") -> float:
        """The calibration factor of a kind of task on a resource; without a kind, of the resource."""
        return factor_of(self.factors, resource, kind)

    def calibrated(self, factors: Factors) -> Rates:
        """The same machine under other factors; those of overheads are within the overheads themselves."""
        launch, handover = (factor_of(factors, name) / self.factor(name) for name in (LAUNCH, HANDOVER))
        return replace(
            self,
            call_s=self.call_s * launch,
            operation_s=self.operation_s * launch,
            task_overhead_s=self.task_overhead_s * handover,
            graph_s=self.graph_s and self.graph_s * launch,
            capture_s=self.capture_s * launch,
            packed=self.packed and replace(self.packed, issue_s=self.packed.issue_s * launch),
            factors=factors,
        )


def make_rates(profile: HardwareProfile, dtype: Dtype, *, spreads: float = 0.0) -> Rates:
    """The rates for a model of this dtype; each so many of its own spreads better than its median.

    Contention is a ratio of rates and stays at the medians.
    """

    def at(rate: Rate) -> float:
        return rate.median * math.exp(spreads * rate.spread)

    def overhead(rate: Rate) -> float:
        return rate.median * math.exp(-spreads * rate.spread)

    def issued(rate: Rate) -> float:
        return in_a_run(profile) * overhead(rate)

    disk_share = disk_in_a_run(profile)

    def disk_at(rate: Rate) -> float:
        return disk_share * at(rate)

    host, gpu = profile.host, profile.gpus[0] if profile.gpus else None
    on_cpu = gpu is None or gpu.emulated
    device = host if on_cpu or gpu is None else gpu
    gemm = _of_dtype(gpu.gemm if gpu else host.gemm, dtype, profile.name, "GEMM")
    attention = _of_dtype(host.attention, dtype, profile.name, "CPU attention")
    threads, attended = attention_threads(attention, host.logical_cores, at)
    memory = at(gpu.memory_bytes_per_s if gpu else host.memory_bytes_per_s)
    io_threads = read_threads(profile.disk)
    h2d, d2h, both = _link(gpu, at)
    call_s, operation_s = host_time(profile, overhead)
    prompt = device.prompt_attention.get(dtype)
    measured = Rates(
        on_cpu=on_cpu,
        gemm=_gemm_curve(gemm, at),
        memory_bytes_per_s=memory,
        attention_bytes_per_s=min(memory, max(at(p.bytes_per_s) for p in attention)) if on_cpu else memory,
        cpu_attention_bytes_per_s=attended,
        cpu_packed_attention_values_per_s=packed_attention(host, attention, threads, at),
        query_head_share=query_head_share(host.grouped_attention.get(dtype), attention, threads) or 0.0,
        packed_query_head_share=packed_head_share(host, threads),
        cpu_memory_bytes_per_s=host_memory(profile, at),
        h2d=h2d,
        d2h=d2h,
        both_bytes_per_s=both,
        disk_read=disk_curve(profile.disk.read if profile.disk else (), io_threads, disk_at),
        disk_write=disk_curve(profile.disk.write if profile.disk else (), io_threads, disk_at),
        disk_parallel=disk_parallel(profile.disk),
        parallel=_parallel(profile, attention) if on_cpu else None,
        elementwise_bytes_per_s=_if_computing(host.elementwise_bytes_per_s, at, on_cpu) or memory,
        prompt_attention_flops_per_s=at(prompt) if prompt else max(at(p.flops_per_s) for p in gemm),
        call_s=call_s,
        operation_s=operation_s,
        task_overhead_s=overhead(host.task_overhead_s),
        io_threads=io_threads,
        attention_threads=threads,
        factors={},
        gemm_swing=0.0 if on_cpu else _swing(gemm),
        kernel_s=kernel_time(device, overhead) if isinstance(device, Gpu) else 0.0,
        graph_s=overhead(device.graph.replay_s) if isinstance(device, Gpu) and device.graph else None,
        capture_s=capture_time(profile, overhead),
        packed=_packed(device, at, issued),
        net=_net(profile, at),
        gemm_wide=_gemm_wide(host, dtype, at) if on_cpu else None,
        gemm_small=_gemm_small(device, dtype, at),
        gemm_columns=(SMALL_COLUMNS, LARGE_COLUMNS) if on_cpu else (GPU_SMALL_COLUMNS, GPU_LARGE_COLUMNS),
        elementwise_small_bytes_per_s=_if_computing(host.elementwise_small_bytes_per_s, at, on_cpu),
    )
    return measured.calibrated(profile.calibration.factors) if profile.calibration else measured


def _if_computing(rate: Rate | None, at: Reading, on_cpu: bool) -> float | None:
    """A host's rate where its cores compute and it was measured."""
    return at(rate) if on_cpu and rate else None


def _packed(device: Host | Gpu, at: Reading, issued: Reading) -> PackedRates | None:
    """4-bit values where values are computed with; the cores' attention to them is measured as that to others is."""
    found = PackedRates.of(device.packed, at, issued)
    if found is None or isinstance(device, Gpu) or not device.packed_attention:
        return found
    return replace(found, attend=packed_attention(device, (), device.logical_cores, at))


def _net(profile: HardwareProfile, at: Callable[[Rate], float]) -> Curve:
    """Where it was not measured, host memory's rate, read and written once by each of the two processes."""
    points = profile.between_processes
    if not points:
        return Curve(((1.0, at(profile.host.memory_bytes_per_s) / 4),))
    return Curve(tuple(sorted((float(p.size_bytes), at(p.bytes_per_s)) for p in points)))


def _gemm_curve(points: Sequence[GemmPoint], at: Reading) -> Curve:
    return Curve(tuple(sorted((float(p.rows), at(p.flops_per_s)) for p in points)))


def _swing(points: Sequence[GemmPoint]) -> float:
    """Of the most rows, by what share an idle GPU is faster."""
    most = max(points, key=lambda point: point.rows)
    return most.idle_flops_per_s / most.flops_per_s.median - 1 if most.idle_flops_per_s else 0.0


def _gemm_small(part: Host | Gpu, dtype: Dtype, at: Reading) -> Curve | None:
    return _with_many_rows(part.gemm_small.get(dtype, ()), part.gemm.get(dtype, ()), at)


def _gemm_wide(host: Host, dtype: Dtype, at: Reading) -> Curve | None:
    return _with_many_rows(host.gemm_wide.get(dtype, ()), host.gemm[dtype], at)


def _with_many_rows(few: Sequence[GemmPoint], all_of_them: Sequence[GemmPoint], at: Reading) -> Curve | None:
    """A curve that was measured with few rows, from many rows on as fast as others; None where there is none."""
    if not few or few[-1].rows >= MANY_ROWS:
        return _gemm_curve(few, at) if few else None
    whole = _gemm_curve(all_of_them, at)
    many = {float(MANY_ROWS), *(float(point.rows) for point in all_of_them if point.rows > MANY_ROWS)}
    return Curve((*_gemm_curve(few, at).points, *((rows, whole.at(rows)) for rows in sorted(many))))


def _median(rate: Rate) -> float:
    return rate.median


def _of_dtype(table: Mapping[Dtype, Sequence[T]], dtype: Dtype, name: str, what: str) -> Sequence[T]:
    points = table.get(dtype)
    if not points:
        known = ", ".join(known for known, found in table.items() if found) or "none"
        raise UserError(f"profile {name} has no {what} rate for {dtype}; choose --dtype among: {known}")
    return points


def _link(gpu: Gpu | None, at: Reading) -> tuple[Curve, Curve, float]:
    """Pinned copies each way by size, and both together; an unused link without a GPU."""
    if gpu is None:
        return UNUSED, UNUSED, 1.0
    h2d, d2h = (
        Curve(tuple(sorted((float(p.size_bytes), at(p.bytes_per_s)) for p in points)))
        for points in (gpu.link.h2d_pinned, gpu.link.d2h_pinned)
    )
    return h2d, d2h, at(gpu.link.both_bytes_per_s)


def _parallel(profile: HardwareProfile, attention: Sequence[AttentionPoint]) -> float | None:
    """The shares of its own full rate that each part keeps while all are at work, added.

    Parts that share cores or memory fully add up to 1, parts that do not disturb each other to their number.
    """
    together = profile.concurrent
    if together is None:
        return None
    measured = profile.host.attention.get(together.cpu_attention_dtype or "float32") or attention
    alone = [p.bytes_per_s.median for p in measured if p.threads == together.cpu_attention_threads]
    best = max(alone or [p.bytes_per_s.median for p in measured])
    shares = [together.cpu_attention_bytes_per_s.median / best]
    if profile.disk is not None:
        shares.append(together.disk_read_bytes_per_s.median / full_rate(profile.disk.read))
    if profile.gpus:
        h2d, d2h, _ = _link(profile.gpus[0], _median)
        for rate, curve in ((together.h2d_bytes_per_s, h2d), (together.d2h_bytes_per_s, d2h)):
            if rate is not None:
                shares.append(rate.median / curve.best)
    return parts_at_work(shares)
