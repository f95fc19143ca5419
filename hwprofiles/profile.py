"""HardwareProfile: what was measured of a machine. The contract of hw.yaml; see docs/profile.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hwprofiles.errors import UserError
from hwprofiles.points import (
    AttentionPoint,
    DiskPoint,
    Dtype,
    GemmPoint,
    Graph,
    GroupedAttention,
    Kernels,
    LayerPoint,
    Link,
    Margins,
    Packed,
    Rate,
    SizePoint,
    check_points,
    check_positive,
)
from hwprofiles.yaml_io import check_schema, dump_yaml, from_plain, load_yaml

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or an emulated one: a capped arena in host memory whose compute is the CPU's."""

    name: str
    emulated: bool
    memory_bytes: int
    memory_bytes_per_s: Rate
    gemm: Mapping[Dtype, tuple[GemmPoint, ...]]
    launch_overhead_s: Rate
    context_bytes: int
    link: Link
    gemm_small: Mapping[Dtype, tuple[GemmPoint, ...]] = field(default_factory=dict)
    """As `gemm`, with a small matrix and few rows; empty in older profiles."""
    layer: tuple[LayerPoint, ...] = ()
    """Host time to issue a small layer; empty in older profiles."""
    prompt_attention: Mapping[Dtype, Rate] = field(default_factory=dict)
    """FLOP per second of prompts' attention to themselves; empty in older profiles."""
    margins: Margins | None = None
    """None: not measured."""
    numa_node: int | None = None
    """The NUMA node it hangs on; None where the system does not say."""
    kernel_share: float | None = None
    """Of host memory registered with it, what the kernel and its driver keep beside it; None: not measured."""
    mapped_share: float | None = None
    """Likewise what is kept on the GPU; None: not measured."""
    packed: Packed | None = None
    """None in older profiles."""
    graph: Graph | None = None
    """None in older profiles, and where decode attention has no kernel that can be part of one."""
    kernels_host_bytes: Mapping[Kernels, int] = field(default_factory=dict)
    """What a process keeps in host memory, beyond the host's `process_bytes`, of the kernels it calls and compiles;
    empty, or without some, in older profiles."""

    def __post_init__(self) -> None:
        check_positive(memory_bytes=self.memory_bytes)
        for kind, nbytes in self.kernels_host_bytes.items():
            if nbytes < 0:
                raise UserError(f"kernels_host_bytes of {kind} must not be negative, found {nbytes}")
        check_points(gemm=self.gemm, **{f"gemm.{dtype}": points for dtype, points in self.gemm.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Processor and memory."""

    cpu_model: str
    sockets: int
    physical_cores: int
    logical_cores: int
    numa_nodes: int
    memory_bytes: int
    """What may really be used: the smallest of `memory_limits_bytes`."""
    memory_limits_bytes: Mapping[str, int]
    """mem_total, cgroup, cap: those that apply."""
    memory_bytes_per_s: Rate
    gemm: Mapping[Dtype, tuple[GemmPoint, ...]]
    attention: Mapping[Dtype, tuple[AttentionPoint, ...]]
    task_overhead_s: Rate
    """Handing one task from one thread to another."""
    process_bytes: int
    """Resident memory of a process that has imported torch and transformers (and initialised CUDA)."""
    elementwise_bytes_per_s: Rate | None = None
    """Of operations that write new tensors; null in older profiles."""
    layer: tuple[LayerPoint, ...] = ()
    """As a GPU's, where the CPU computes."""
    prompt_attention: Mapping[Dtype, Rate] = field(default_factory=dict)
    process_spread_bytes: int | None = None
    """Between the largest and the smallest of several such processes; None: not measured."""
    occupied_bytes: int | None = None
    """What the kernel and other processes held of the host's memory at the time; None: not measured."""
    numa_cpus: tuple[tuple[int, ...], ...] = ()
    """For each NUMA node its processors, as positions among those a process may use; empty in older profiles."""
    packed: Packed | None = None
    """As a GPU's, where the CPU computes."""
    grouped_attention: Mapping[Dtype, GroupedAttention] = field(default_factory=dict)
    """By dtype; empty in older profiles."""
    packed_attention: tuple[AttentionPoint, ...] = ()
    """As `attention`, of K and V in 4 bits as they lie; empty where they are unpacked first, and in older profiles."""
    grouped_packed_attention: GroupedAttention | None = None
    """Likewise for a group of query heads."""
    gemm_small: Mapping[Dtype, tuple[GemmPoint, ...]] = field(default_factory=dict)
    """As `gemm`, with the matrices of a layer of few parameters; empty in older profiles."""
    gemm_wide: Mapping[Dtype, tuple[GemmPoint, ...]] = field(default_factory=dict)
    """As `gemm`, of a matrix with many outputs and few rows; empty in older profiles."""
    elementwise_small_bytes_per_s: Rate | None = None
    """Of operations whose new tensors are too small to be mappings of their own; null in older profiles."""

    @property
    def granted_bytes(self) -> int:
        """What the host gives, whatever cap was measured under."""
        limits = [limit for name, limit in self.memory_limits_bytes.items() if name != "cap"]
        return min(limits, default=self.memory_bytes)

    def __post_init__(self) -> None:
        for name in ("process_spread_bytes", "occupied_bytes"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} must not be negative, found {getattr(self, name)}")
        check_positive(
            sockets=self.sockets,
            physical_cores=self.physical_cores,
            logical_cores=self.logical_cores,
            numa_nodes=self.numa_nodes,
            memory_bytes=self.memory_bytes,
            process_bytes=self.process_bytes,
        )
        check_points(gemm=self.gemm, **{f"gemm.{dtype}": points for dtype, points in self.gemm.items()})
        check_points(
            attention=self.attention,
            **{f"attention.{dtype}": curve for dtype, curve in self.attention.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A directory's disk, past the page cache where `direct`."""

    directory: str
    free_bytes: int
    direct: bool
    read: tuple[DiskPoint, ...]
    write: tuple[DiskPoint, ...]
    both_read_bytes_per_s: Rate
    both_write_bytes_per_s: Rate

    def __post_init__(self) -> None:
        check_points(read=self.read, write=self.write)
        if self.free_bytes < 0:
            raise UserError(f"free_bytes must not be negative, found {self.free_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideH2d:
    """CPU attention and copies to a GPU at work at once, and nothing else: what decode does where the CPU attends."""

    dtype: Dtype
    """Of K and V."""
    threads: int
    attention_bytes_per_s: Rate
    h2d_bytes_per_s: Rate

    def __post_init__(self) -> None:
        check_positive(threads=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrent:
    """Each rate while all the others are at work too; None where the machine lacks the part."""

    h2d_bytes_per_s: Rate | None
    d2h_bytes_per_s: Rate | None
    cpu_attention_bytes_per_s: Rate
    disk_read_bytes_per_s: Rate
    cpu_attention_dtype: Dtype | None = None
    cpu_attention_threads: int | None = None
    attention_beside_h2d: BesideH2d | None = None
    """None in older profiles, and without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksAtOnce:
    """The links of so many GPUs of a host at work at once: the totals over all of them, pinned."""

    num_gpus: int
    h2d_bytes_per_s: Rate
    d2h_bytes_per_s: Rate
    both_bytes_per_s: Rate

    def __post_init__(self) -> None:
        check_positive(num_gpus=self.num_gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Factors fitted from runs: predicted seconds are multiplied by them."""

    factors: Mapping[str, float]
    """By resource, or by resource and kind of task."""
    num_runs: int
    error_before: float
    """Median relative error of the predicted phase times, as a fraction."""
    error_after: float
    worst_before: float | None = None
    """The largest such error; None in profiles of older versions."""
    worst_after: float | None = None
    num_folds: int = 0
    """The errors after are on runs held out, in so many parts; 0: on the runs that were fitted."""
    num_outliers: int = 0
    """Runs that count for less than the others."""

    def __post_init__(self) -> None:
        check_positive(num_runs=self.num_runs, **{f"factors.{name}": x for name, x in self.factors.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """All that the planner knows about a machine."""

    schema_version: int
    name: str
    created: str
    method: Literal["measured", "published"]
    source: str
    """How: the command that measured it, or where the figures were published."""
    fingerprint: str
    """Of the host it was measured on: `fingerprint_of` its parts; empty when published."""
    host: Host
    gpus: tuple[Gpu, ...]
    disk: Disk | None
    concurrent: Concurrent | None
    calibration: Calibration | None = None
    links_at_once: tuple[LinksAtOnce, ...] = ()
    """For 1, 2, ... GPUs at work; empty where there are not several, or they were not measured."""
    gpu_to_gpu_bytes_per_s: Rate | None = None
    between_processes: tuple[SizePoint, ...] = ()
    """Messages from one process of this host to another through host memory, by size."""
    between_hosts: tuple[SizePoint, ...] = ()
    """Messages from this host to the next one."""

    def to_yaml(self) -> str:
        """The text of hw.yaml."""
        return dump_yaml(self)

    def digest(self) -> str:
        """A short hash of the whole profile, calibration included."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()[:16]


def fingerprint_of(cpu_model: str, logical_cores: int, gpu_names: tuple[str, ...]) -> str:
    """What tells one kind of host from another: processor, cores, GPUs (emulated ones left out)."""
    return hashlib.sha256("|".join((cpu_model, str(logical_cores), *gpu_names)).encode()).hexdigest()[:16]


DATA = Path(__file__).parent / "data"


def shipped_names() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(sorted(path.stem for path in DATA.glob("*.yaml")))


def load_profile(name_or_path: str) -> HardwareProfile:
    """A shipped profile by its name, or any profile by its path."""
    path = Path(name_or_path)
    if not path.is_file():
        if name_or_path not in shipped_names():
            names = ", ".join(shipped_names())
            raise UserError(
                f"hardware profile {name_or_path!r} is neither a file nor a shipped profile ({names}); "
                "measure one with: hwprofile measure -o hw.yaml"
            )
        path = DATA / f"{name_or_path}.yaml"
    data = load_yaml(path)
    check_schema(data, SCHEMA_VERSION, str(path))
    return from_plain(data, HardwareProfile, str(path))
