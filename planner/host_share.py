"""Host share: what one of several ranks has of its host, as a hardware profile of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hwprofiles.points import (
    AttentionPoint,
    Dtype,
    GemmPoint,
    GroupedAttention,
    Link,
    Packed,
    Rate,
    SizePoint,
)
from hwprofiles.profile import (
    Concurrent,
    Disk,
    Gpu,
    HardwareProfile,
    Host,
    LinksAtOnce,
)
from planner.attention_rates import query_head_share, rate_by
from planner.rate_curve import Curve
from planner.sharing import Sharing


def share_of(
    profile: HardwareProfile, num_ranks: int, gpu: int | None, hop: Sequence[SizePoint]
) -> HardwareProfile:
    """The profile of a rank with the `gpu`-th GPU among `num_ranks` on one host, whose messages travel by `hop`.

    Memory, cores and disk are divided evenly; the links by what was measured of so many at once. An emulated GPU
    is host memory and cores, and divided like them.
    """
    if num_ranks == 1:
        return replace(profile, gpus=_only(profile, gpu), between_processes=tuple(hop))
    part = 1 / num_ranks
    gpus = tuple(_gpu_share(found, profile, num_ranks) for found in _only(profile, gpu))
    return replace(
        profile,
        host=_host_share(profile.host, num_ranks),
        gpus=gpus,
        disk=_disk_share(profile.disk, part) if profile.disk else None,
        concurrent=_concurrent_share(profile, num_ranks) if profile.concurrent else None,
        between_processes=tuple(hop),
    )


def link_shares(profile: HardwareProfile, num_ranks: int) -> tuple[float, float, float]:
    """Of its own rate, what each of so many links keeps with all at work: h2d, d2h, both ways.

    1 where the profile says nothing: links are then taken not to disturb one another.
    """
    by_count = {each.num_gpus: each for each in profile.links_at_once}
    alone, together = by_count.get(1), by_count.get(num_ranks)
    if alone is None or together is None:
        return 1.0, 1.0, 1.0
    h2d, d2h, both = (_kept(alone, together, name) for name in ("h2d", "d2h", "both"))
    return h2d, d2h, both


def sharing_of(profile: HardwareProfile, num_ranks: int) -> Sharing | None:
    """What the ranks of a host have in common beyond their own parts of it; None for one rank.

    An emulated GPU's link and, where the CPU computes, host memory are as much of a rank's own as its cores are.
    """
    if num_ranks == 1:
        return None
    counts = range(1, num_ranks + 1)
    whole, parts = (1.0,) * num_ranks, tuple(1 / count for count in counts)
    if not profile.gpus or profile.gpus[0].emulated:
        return Sharing(h2d=whole, d2h=whole, link=whole, disk=parts, cpu_mem=whole)
    h2d, d2h, link = zip(*(_links_at_work(profile, count, num_ranks) for count in counts), strict=True)
    return Sharing(h2d=h2d, d2h=d2h, link=link, disk=parts, cpu_mem=parts)


def _links_at_work(profile: HardwareProfile, count: int, num_ranks: int) -> tuple[float, ...]:
    """What each of `count` links keeps; where that was not measured, no more than all of them have together."""
    known = any(each.num_gpus == count for each in profile.links_at_once)
    shares = link_shares(profile, count if known else num_ranks)
    return shares if known else tuple(min(1.0, share * num_ranks / count) for share in shares)


def _kept(alone: LinksAtOnce, together: LinksAtOnce, name: str) -> float:
    one, all_of_them = (getattr(each, f"{name}_bytes_per_s").median for each in (alone, together))
    return float(min(1.0, all_of_them / together.num_gpus / one))


def _only(profile: HardwareProfile, gpu: int | None) -> tuple[Gpu, ...]:
    return () if gpu is None else (profile.gpus[gpu],)


def _slower(rate: Rate, part: float) -> Rate:
    return replace(rate, median=rate.median * part)


def _slower_if_measured(rate: Rate | None, part: float) -> Rate | None:
    return None if rate is None else _slower(rate, part)


def _host_share(host: Host, num_ranks: int) -> Host:
    part = 1 / num_ranks
    cores = max(1, host.logical_cores // num_ranks)
    attention = {
        dtype: _attention_share(points, num_ranks, cores) for dtype, points in host.attention.items()
    }
    packed_attention = _attention_share(host.packed_attention, num_ranks, cores)
    return replace(
        host,
        memory_bytes=host.memory_bytes // num_ranks,
        memory_limits_bytes={**host.memory_limits_bytes, "share": host.granted_bytes // num_ranks},
        occupied_bytes=None if host.occupied_bytes is None else host.occupied_bytes // num_ranks,
        logical_cores=cores,
        physical_cores=max(1, host.physical_cores // num_ranks),
        memory_bytes_per_s=_slower(host.memory_bytes_per_s, part),
        elementwise_bytes_per_s=_slower_if_measured(host.elementwise_bytes_per_s, part),
        elementwise_small_bytes_per_s=_slower_if_measured(host.elementwise_small_bytes_per_s, part),
        prompt_attention={dtype: _slower(rate, part) for dtype, rate in host.prompt_attention.items()},
        gemm=_gemm_share(host.gemm, part),
        gemm_small=_gemm_share(host.gemm_small, part),
        gemm_wide=_gemm_share(host.gemm_wide, part),
        attention=attention,
        grouped_attention={
            dtype: _grouped_share(grouped, host.attention[dtype], attention[dtype])
            for dtype, grouped in host.grouped_attention.items()
            if dtype in attention
        },
        packed_attention=packed_attention,
        grouped_packed_attention=host.grouped_packed_attention
        and _grouped_share(host.grouped_packed_attention, host.packed_attention, packed_attention),
        packed=host.packed and _packed_share(host.packed, part),
    )


def _packed_share(measured: Packed, part: float) -> Packed:
    return replace(
        measured,
        unpack_values_per_s=_slower(measured.unpack_values_per_s, part),
        pack_values_per_s=_slower(measured.pack_values_per_s, part),
        attend_values_per_s=_slower_if_measured(measured.attend_values_per_s, part),
    )


def _gemm_share(
    gemm: Mapping[Dtype, tuple[GemmPoint, ...]], part: float
) -> dict[Dtype, tuple[GemmPoint, ...]]:
    return {
        dtype: tuple(replace(point, flops_per_s=_slower(point.flops_per_s, part)) for point in points)
        for dtype, points in gemm.items()
    }


def _attention_share(
    points: tuple[AttentionPoint, ...], num_ranks: int, cores: int
) -> tuple[AttentionPoint, ...]:
    """A rank's threads beside those of the others: its part of what all of them together reach."""
    if not points:
        return ()
    ordered = sorted(points, key=lambda point: point.threads)
    curve = Curve(tuple((float(point.threads), point.bytes_per_s.median) for point in ordered))
    counts = {min(point.threads, cores) for point in ordered}
    return tuple(
        AttentionPoint(
            threads=count,
            bytes_per_s=Rate(
                median=curve.at(count * num_ranks) / num_ranks, spread=ordered[-1].bytes_per_s.spread
            ),
        )
        for count in sorted(counts)
    )


def _grouped_share(
    grouped: GroupedAttention, points: Sequence[AttentionPoint], shared: Sequence[AttentionPoint]
) -> GroupedAttention:
    """Further query heads take a rank's threads as much arithmetic as they take any others."""
    share = query_head_share(grouped, points, grouped.threads)
    if share is None:
        return grouped
    alone_s, rank_s = (1 / rate_by(each, grouped.threads, _median) for each in (points, shared))
    counts = [point.threads for point in shared]
    threads = max(count for count in counts if count <= max(grouped.threads, min(counts)))
    further_s = share * alone_s * (grouped.group - 1) * grouped.threads / threads
    seconds = rank_s + further_s
    return replace(grouped, threads=threads, bytes_per_s=replace(grouped.bytes_per_s, median=1 / seconds))


def _median(rate: Rate) -> float:
    return rate.median


def _gpu_share(gpu: Gpu, profile: HardwareProfile, num_ranks: int) -> Gpu:
    if not gpu.emulated:
        return replace(gpu, link=_link_share(gpu.link, *link_shares(profile, num_ranks)))
    part = 1 / num_ranks
    return replace(
        gpu,
        memory_bytes=gpu.memory_bytes // num_ranks,
        memory_bytes_per_s=_slower(gpu.memory_bytes_per_s, part),
        gemm=_gemm_share(gpu.gemm, part),
        link=_link_share(gpu.link, part, part, part),
    )


def _link_share(link: Link, h2d: float, d2h: float, both: float) -> Link:
    return Link(
        h2d_pinned=_sizes_share(link.h2d_pinned, h2d),
        d2h_pinned=_sizes_share(link.d2h_pinned, d2h),
        h2d_pageable=_sizes_share(link.h2d_pageable, h2d),
        d2h_pageable=_sizes_share(link.d2h_pageable, d2h),
        both_bytes_per_s=_slower(link.both_bytes_per_s, both),
    )


def _sizes_share(points: tuple[SizePoint, ...], part: float) -> tuple[SizePoint, ...]:
    return tuple(replace(point, bytes_per_s=_slower(point.bytes_per_s, part)) for point in points)


def _disk_share(disk: Disk, part: float) -> Disk:
    read, write = (
        tuple(replace(point, bytes_per_s=_slower(point.bytes_per_s, part)) for point in points)
        for points in (disk.read, disk.write)
    )
    return replace(
        disk,
        free_bytes=int(disk.free_bytes * part),
        read=read,
        write=write,
        both_read_bytes_per_s=_slower(disk.both_read_bytes_per_s, part),
        both_write_bytes_per_s=_slower(disk.both_write_bytes_per_s, part),
    )


def _concurrent_share(profile: HardwareProfile, num_ranks: int) -> Concurrent | None:
    """Every part keeps the share of its full rate that it had."""
    together = profile.concurrent
    if together is None:
        return None
    part = 1 / num_ranks
    is_real = bool(profile.gpus) and not profile.gpus[0].emulated
    h2d, d2h, _ = link_shares(profile, num_ranks) if is_real else (part, part, part)
    return replace(
        together,
        h2d_bytes_per_s=_slower(together.h2d_bytes_per_s, h2d) if together.h2d_bytes_per_s else None,
        d2h_bytes_per_s=_slower(together.d2h_bytes_per_s, d2h) if together.d2h_bytes_per_s else None,
        cpu_attention_bytes_per_s=_slower(together.cpu_attention_bytes_per_s, part),
        cpu_attention_threads=None,
        disk_read_bytes_per_s=_slower(together.disk_read_bytes_per_s, part),
    )
