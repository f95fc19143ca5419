"""Points: the measured figures that a hardware profile is made of."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Literal

from hwprofiles.errors import UserError

Dtype = Literal["float32", "float16", "bfloat16"]
Kernels = Literal["opt", "rotary", "experts", "few_rows", "compiling"]
"""Why kernels stay in a process's host memory. Three kinds of models, each of which calls kernels that the one before
does not: OPT, models with rotary embeddings and root mean square norms, and those with a mixture of experts besides.
For the first two, looking up at most FEW_ROWS tokens; and compiling, in a run that finds kernels not compiled yet."""
FEW_ROWS = 16
"""Torch looks up this many rows and fewer with a kernel that it has for nothing else (index_select on CUDA)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A repeated measurement: the median, and the spread (half the interquartile range / median)."""

    median: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.median) and self.median > 0):
            raise UserError(f"a measured value must be positive, found {self.median}")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise UserError(f"a spread must not be negative, found {self.spread}")


def check_positive(**values: float) -> None:
    """A UserError that names a value which is not more than zero."""
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name} must be more than zero, found {value}")


def check_points(**curves: Sized) -> None:
    """A UserError that names a curve without points."""
    for name, points in curves.items():
        if not len(points):
            raise UserError(f"{name} needs at least one point, found none")


SMALL_COLUMNS, LARGE_COLUMNS = 768, 2048
"""Hidden sizes of the two layers whose matrices a host multiplies, of 7 and of 50 million parameters: where rows are
few and matrices small, a product's time is not its arithmetic's alone."""
GPU_SMALL_COLUMNS, GPU_LARGE_COLUMNS = 2048, 8192
"""Likewise of two matrices that a GPU multiplies with, of 4 and of 67 million parameters; a kernel takes microseconds
to begin and to end."""
NARROW_OUTPUT, WIDE_OUTPUT = 4096, 8 * LARGE_COLUMNS
"""Outputs of a matrix up to which a product of few rows is as fast as any, and the many it is measured with: on two
cores float32 products of 8 rows make 23 GFLOP/s with many, and 37 with a layer's matrices together."""
HEATING_ROWS = 256
"""Rows from which 16-bit products draw a GPU's full power, so that it soon lowers its clocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmPoint:
    """Matrix products of so many rows; decode has few, prefill many."""

    rows: int
    flops_per_s: Rate
    idle_flops_per_s: float | None = None
    """What a GPU that was idle makes at first; null where products do not heat it, and in older profiles."""

    def __post_init__(self) -> None:
        check_positive(rows=self.rows)
        if self.idle_flops_per_s is not None:
            check_positive(idle_flops_per_s=self.idle_flops_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPoint:
    """CPU attention of one query row a sequence: bytes of K and V read per second."""

    threads: int
    bytes_per_s: Rate

    def __post_init__(self) -> None:
        check_positive(threads=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPoint:
    """Host time of one token's pass through a small decoder layer of so many operations (views not counted)."""

    operations: int
    seconds: Rate
    is_cold: bool = False
    """Whether other memory was read before each call, more than a core's own cache holds."""

    def __post_init__(self) -> None:
        check_positive(operations=self.operations)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention:
    """CPU attention where `group` query heads share each head of K and V."""

    group: int
    threads: int
    bytes_per_s: Rate
    """Of K and V."""

    def __post_init__(self) -> None:
        check_positive(group=self.group - 1, threads=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """How fast the functions of a run treat 4-bit values, on one device."""

    unpack_values_per_s: Rate
    """Weights."""
    pack_values_per_s: Rate
    """New K and V into the cache."""
    attend_values_per_s: Rate | None
    """K and V of decode attention that reads them packed; None where they are unpacked first, and on the CPU, whose
    figure is the host's `packed_attention`."""
    issue_s: Rate | None
    """Host time of starting one such function on a GPU; None on the CPU."""


GRAPH_OPERATIONS = 24
"""Of the graphs that are measured: about as many as a decoder layer has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Layers that a GPU replays as CUDA graphs."""

    replay_s: Rate
    """Host time to start one."""
    operation_bytes: int
    """What the driver keeps on the GPU for each operation in one."""
    capture_s: Rate | None = None
    """Host time to make one and to start it for the first time, beside calling the operations; None: not measured."""
    host_operation_bytes: int | None = None
    """What is kept in host memory for each operation in one; None: not measured."""
    operation_s: Rate | None = None
    """From the start of one small operation on the GPU to that of the next; None: not measured."""

    def __post_init__(self) -> None:
        check_positive(operation_bytes=self.operation_bytes)
        if (self.host_operation_bytes or 0) < 0:
            raise UserError(f"host_operation_bytes must not be negative, found {self.host_operation_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePoint:
    """One copy of `size_bytes`."""

    size_bytes: int
    bytes_per_s: Rate

    def __post_init__(self) -> None:
        check_positive(size_bytes=self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPoint:
    """`threads` threads, each moving blocks of `block_bytes`."""

    block_bytes: int
    threads: int
    bytes_per_s: Rate

    def __post_init__(self) -> None:
        check_positive(block_bytes=self.block_bytes, threads=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Copies between host and one GPU, by transfer size."""

    h2d_pinned: tuple[SizePoint, ...]
    d2h_pinned: tuple[SizePoint, ...]
    h2d_pageable: tuple[SizePoint, ...]
    d2h_pageable: tuple[SizePoint, ...]
    both_bytes_per_s: Rate
    """Total of both directions at once, pinned."""

    def __post_init__(self) -> None:
        check_points(
            h2d_pinned=self.h2d_pinned,
            d2h_pinned=self.d2h_pinned,
            h2d_pageable=self.h2d_pageable,
            d2h_pageable=self.d2h_pageable,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """GPU memory that is held beyond what is asked for, by kind, as measured."""

    context_bytes: int
    """What a run's kernels add to the context."""
    allocator_bytes: int
    """Of sizes rounded up."""
    fragmentation_bytes: int
    """Held by an allocator, but free."""

    def __post_init__(self) -> None:
        if min(self.context_bytes, self.allocator_bytes, self.fragmentation_bytes) < 0:
            raise UserError(f"margins must not be negative, found {self}")

    def times(self, count: int) -> Margins:
        """Of so many like it."""
        return Margins(
            context_bytes=count * self.context_bytes,
            allocator_bytes=count * self.allocator_bytes,
            fragmentation_bytes=count * self.fragmentation_bytes,
        )


NO_MARGINS = Margins(context_bytes=0, allocator_bytes=0, fragmentation_bytes=0)
