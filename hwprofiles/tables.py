"""Profiles as tables for people: one profile, the shipped ones, two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rich.table import Table

from hwprofiles.points import Dtype, GemmPoint, Margins, Packed, Rate
from hwprofiles.profile import (
    Calibration,
    Concurrent,
    Disk,
    Gpu,
    HardwareProfile,
    Host,
    load_profile,
    shipped_names,
)
from hwprofiles.units import format_bytes, format_flops, format_rate, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value with its place in the profile and its unit."""

    group: str
    label: str
    rate: Rate
    form: Callable[[float], str]


def figures(profile: HardwareProfile) -> Iterator[Figure]:
    """Every measured value of a profile."""
    yield from _host_figures(profile.host)
    for index, gpu in enumerate(profile.gpus):
        yield from _gpu_figures(f"gpu {index}", gpu)
    yield from _several_gpus_figures(profile)
    if profile.disk is not None:
        yield from _disk_figures(profile.disk)
    if profile.concurrent is not None:
        yield from _concurrent_figures(profile.concurrent)


def profile_tables(profile: HardwareProfile) -> Iterator[Table]:
    """What the profile is of, every figure with its spread, and the calibration if there is one."""
    facts = Table(title=f"{profile.name} ({profile.method}, {profile.created})", show_header=False)
    for name, value in _facts(profile):
        facts.add_row(name, value)
    yield facts
    table = Table("", "figure", "median", "spread", title="Rates")
    group = ""
    for figure in figures(profile):
        if figure.group != group:
            table.add_section()
        first = figure.group if figure.group != group else ""
        spread = f"{figure.rate.spread:.1%}"
        table.add_row(first, figure.label, figure.form(figure.rate.median), spread)
        group = figure.group
    for column in table.columns[2:]:
        column.justify = "right"
    yield table
    if profile.calibration is not None:
        yield _calibration_table(profile.calibration)


def list_table() -> Table:
    """The shipped profiles."""
    table = Table("name", "method", "created", "host", "GPUs")
    for name in shipped_names():
        profile = load_profile(name)
        host = f"{profile.host.logical_cores} cores, {format_bytes(profile.host.memory_bytes)}"
        table.add_row(name, profile.method, profile.created, host, _gpu_summary(profile))
    return table


def diff_table(a: HardwareProfile, b: HardwareProfile) -> Table:
    """Each rate of both profiles and the ratio B / A; a figure that only one has stands alone."""
    left = {(figure.group, figure.label): figure for figure in figures(a)}
    right = {(figure.group, figure.label): figure for figure in figures(b)}
    table = Table("", "figure", f"A: {a.name}", f"B: {b.name}", "B / A")
    for key in [*left, *(key for key in right if key not in left)]:
        ours, theirs = left.get(key), right.get(key)
        ratio = f"{theirs.rate.median / ours.rate.median:.2f}" if ours and theirs else ""
        table.add_row(*key, _value(ours), _value(theirs), ratio)
    table.columns[1].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _value(figure: Figure | None) -> str:
    return figure.form(figure.rate.median) if figure else "none"


def _facts(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    host = profile.host
    yield "source", profile.source
    yield "fingerprint", profile.fingerprint or "none"
    cores = f"{host.physical_cores} cores, {host.logical_cores} logical"
    yield "processor", f"{host.cpu_model}; {host.sockets} sockets, {cores}, {host.numa_nodes} NUMA nodes"
    limits = ", ".join(f"{name} {format_bytes(size)}" for name, size in host.memory_limits_bytes.items())
    yield "host memory", f"{format_bytes(host.memory_bytes)} ({limits})"
    yield "process", f"{format_bytes(host.process_bytes)} resident before any model{_spread(host)}"
    if host.occupied_bytes is not None:
        yield "occupied", f"{format_bytes(host.occupied_bytes)} by the kernel and other processes"
    for index, gpu in enumerate(profile.gpus):
        context = f"context {format_bytes(gpu.context_bytes)}{_margins(gpu.margins)}"
        yield f"gpu {index}", f"{gpu.name}; {format_bytes(gpu.memory_bytes)}, {context}"
    disk = profile.disk
    if disk is not None:
        how = "past the page cache" if disk.direct else "through the page cache"
        yield "disk", f"{disk.directory}; {format_bytes(disk.free_bytes)} free, {how}"
    if profile.concurrent is not None and profile.concurrent.cpu_attention_dtype is not None:
        concurrent = profile.concurrent
        yield (
            "at once",
            f"attention in {concurrent.cpu_attention_dtype}, {concurrent.cpu_attention_threads} threads",
        )


def _spread(host: Host) -> str:
    spread = host.process_spread_bytes
    return "" if spread is None else f", {format_bytes(spread)} between one and the next"


def _margins(margins: Margins | None) -> str:
    if margins is None:
        return ", margins not measured"
    kinds = {
        "kernels": margins.context_bytes,
        "allocator": margins.allocator_bytes,
        "fragmentation": margins.fragmentation_bytes,
    }
    return "".join(f", {kind} margin {format_bytes(nbytes)}" for kind, nbytes in kinds.items() if nbytes)


def _gpu_summary(profile: HardwareProfile) -> str:
    return ", ".join(f"{gpu.name} {format_bytes(gpu.memory_bytes)}" for gpu in profile.gpus) or "none"


def _calibration_table(calibration: Calibration) -> Table:
    table = Table("resource", "seconds multiplied by", title="Calibration")
    for resource, factor in calibration.factors.items():
        table.add_row(resource, f"{factor:.3f}")
    table.add_section()
    table.add_row("runs", str(calibration.num_runs))
    table.add_row("outliers among them", str(calibration.num_outliers))
    basis = f"on runs held out, {calibration.num_folds} folds" if calibration.num_folds else "on these runs"
    for when, middle, worst in (
        ("before", calibration.error_before, calibration.worst_before),
        (f"after, {basis}", calibration.error_after, calibration.worst_after),
    ):
        table.add_row(f"error {when}: median", f"{middle:.1%}")
        if worst is not None:
            table.add_row(f"error {when}: worst", f"{worst:.1%}")
    return table


def _host_figures(host: Host) -> Iterator[Figure]:
    group = "host"
    yield Figure(group=group, label="memory", rate=host.memory_bytes_per_s, form=format_rate)
    sizes = {"gemm": host.gemm, "small gemm": host.gemm_small, "wide gemm": host.gemm_wide}
    yield from _gemm_figures(group, sizes)
    for dtype, attention in host.attention.items():
        for threads in attention:
            label = f"attention {dtype}, threads {threads.threads}"
            yield Figure(group=group, label=label, rate=threads.bytes_per_s, form=format_rate)
    for threads in host.packed_attention:
        label = f"attention to 4 bits, threads {threads.threads}"
        yield Figure(group=group, label=label, rate=threads.bytes_per_s, form=format_rate)
    yield Figure(group=group, label="handing over a task", rate=host.task_overhead_s, form=format_seconds)
    for label, rate in (
        ("elementwise", host.elementwise_bytes_per_s),
        ("small elementwise", host.elementwise_small_bytes_per_s),
    ):
        if rate:
            yield Figure(group=group, label=label, rate=rate, form=format_rate)
    yield from _layer_figures(group, host)


def _gemm_figures(group: str, sizes: Mapping[str, Mapping[Dtype, tuple[GemmPoint, ...]]]) -> Iterator[Figure]:
    for size, curves in sizes.items():
        for dtype, gemm in curves.items():
            for point in gemm:
                label = f"{size} {dtype}, rows {point.rows}"
                yield Figure(group=group, label=label, rate=point.flops_per_s, form=format_flops)


def _layer_figures(group: str, part: Host | Gpu) -> Iterator[Figure]:
    for point in part.layer:
        yield Figure(
            group=group,
            label=f"layer, {point.operations} operations",
            rate=point.seconds,
            form=format_seconds,
        )
    for dtype, rate in part.prompt_attention.items():
        yield Figure(group=group, label=f"prompt attention {dtype}", rate=rate, form=format_flops)
    if part.packed:
        yield from _packed_figures(group, part.packed)


def _packed_figures(group: str, packed: Packed) -> Iterator[Figure]:
    for label, rate in (
        ("unpacking 4 bits", packed.unpack_values_per_s),
        ("packing 4 bits", packed.pack_values_per_s),
        ("attention to 4 bits", packed.attend_values_per_s),
    ):
        if rate is not None:
            yield Figure(group=group, label=label, rate=rate, form=_format_values)
    if packed.issue_s:
        yield Figure(group=group, label="starting a kernel", rate=packed.issue_s, form=format_seconds)


def _format_values(per_s: float) -> str:
    return f"{per_s / 1e9:.1f} G values/s"


def _gpu_figures(group: str, gpu: Gpu) -> Iterator[Figure]:
    yield Figure(group=group, label="memory", rate=gpu.memory_bytes_per_s, form=format_rate)
    yield from _gemm_figures(group, {"gemm": gpu.gemm, "small gemm": gpu.gemm_small})
    yield Figure(group=group, label="launch", rate=gpu.launch_overhead_s, form=format_seconds)
    yield from _layer_figures(group, gpu)
    link = gpu.link
    for name, points in (
        ("h2d pinned", link.h2d_pinned),
        ("d2h pinned", link.d2h_pinned),
        ("h2d pageable", link.h2d_pageable),
        ("d2h pageable", link.d2h_pageable),
    ):
        for point in points:
            label = f"{name}, {format_bytes(point.size_bytes)}"
            yield Figure(group=group, label=label, rate=point.bytes_per_s, form=format_rate)
    yield Figure(group=group, label="h2d and d2h at once", rate=link.both_bytes_per_s, form=format_rate)


def _several_gpus_figures(profile: HardwareProfile) -> Iterator[Figure]:
    group = "several gpus"
    for found in profile.links_at_once:
        for label, rate in (
            ("h2d", found.h2d_bytes_per_s),
            ("d2h", found.d2h_bytes_per_s),
            ("both ways", found.both_bytes_per_s),
        ):
            yield Figure(group=group, label=f"{label}, {found.num_gpus} in all", rate=rate, form=format_rate)
    if profile.gpu_to_gpu_bytes_per_s:
        rate = profile.gpu_to_gpu_bytes_per_s
        yield Figure(group=group, label="from one to the next", rate=rate, form=format_rate)


def _disk_figures(disk: Disk) -> Iterator[Figure]:
    group = "disk"
    for name, points in (("read", disk.read), ("write", disk.write)):
        for point in points:
            label = f"{name}, {point.threads} x {format_bytes(point.block_bytes)}"
            yield Figure(group=group, label=label, rate=point.bytes_per_s, form=format_rate)
    yield Figure(group=group, label="read while writing", rate=disk.both_read_bytes_per_s, form=format_rate)
    yield Figure(group=group, label="write while reading", rate=disk.both_write_bytes_per_s, form=format_rate)


def _concurrent_figures(concurrent: Concurrent) -> Iterator[Figure]:
    for label, rate in (
        ("h2d", concurrent.h2d_bytes_per_s),
        ("d2h", concurrent.d2h_bytes_per_s),
        ("cpu attention", concurrent.cpu_attention_bytes_per_s),
        ("disk read", concurrent.disk_read_bytes_per_s),
    ):
        if rate is not None:
            yield Figure(group="at once", label=label, rate=rate, form=format_rate)
