"""How long a measurement may take and how much it looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hwprofiles.points import Dtype
from hwprofiles.units import KIB, MIB

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
_SHORTEST_SLICE_S = 0.01
_LONGEST_SLICE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The points each probe measures, and the seconds all of them share."""

    total_s: float
    process_runs: int
    """Fresh processes that are weighed."""
    working_set_bytes: int
    """Of memory, attention and a GPU's GEMM probes; enlarged to twice the last-level cache."""
    gemm_pool_bytes: int
    """Weights of the host's GEMM probe, as far as its working set is not more: a layer's, in float32."""
    gemm_rows: tuple[int, ...]
    wide_rows: tuple[int, ...]
    """Of products with many outputs: few, since with many those are as fast as others."""
    gpu_gemm_columns: int
    """Of a square matrix, so many that a product does not measure the launch."""
    every_thread_count: bool
    link_sizes_bytes: tuple[int, ...]
    disk_file_bytes: int
    disk_block_bytes: tuple[int, ...]
    disk_threads: tuple[int, ...]
    net_s: float
    """Of `--net`, which is measured by itself."""


QUICK = Budget(
    total_s=27,
    process_runs=2,
    working_set_bytes=64 * MIB,
    gemm_pool_bytes=256 * MIB,
    gemm_rows=(1, 16, 256, 1024),
    wide_rows=(1, 16),
    gpu_gemm_columns=4096,
    every_thread_count=False,
    link_sizes_bytes=(64 * KIB, MIB, 16 * MIB, 64 * MIB),
    disk_file_bytes=256 * MIB,
    disk_block_bytes=(16 * KIB, MIB, 16 * MIB),
    disk_threads=(1, 4),
    net_s=4,
)
FULL = Budget(
    total_s=120,
    process_runs=3,
    working_set_bytes=512 * MIB,
    gemm_pool_bytes=512 * MIB,
    gemm_rows=(1, 2, 3, 4, 8, 16, 64, 256, 1024, 4096),
    wide_rows=(1, 4, 8, 16, 64),
    gpu_gemm_columns=8192,
    every_thread_count=True,
    link_sizes_bytes=(64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB),
    disk_file_bytes=1024 * MIB,
    disk_block_bytes=(16 * KIB, MIB, 4 * MIB, 16 * MIB),
    disk_threads=(1, 4, 8),
    net_s=12,
)

Slices = Callable[[str], float]
"""Begins a point with this label, and tells the seconds that it may take."""
Progress = Callable[[str, int, int], None]
"""Called before each point with its label, the points done and the points in all."""


class Pace:
    """Shares what is left of the time among the points that are left, and reports progress."""

    def __init__(self, total_s: float, num_points: int, progress: Progress) -> None:
        self.num_points = num_points
        self.num_done = 0
        self._progress = progress
        self._deadline = time.monotonic() + total_s
        self._owed_s = 0.0

    def next(self, label: str) -> float:
        """Begin the next point; the seconds it may take."""
        self._progress(label, self.num_done, self.num_points)
        num_left = max(1, self.num_points - self.num_done)
        self.num_done += 1
        share = (self._deadline - self._owed_s - time.monotonic()) / num_left
        return min(max(share, _SHORTEST_SLICE_S), _LONGEST_SLICE_S)

    def owe(self, seconds: float) -> None:
        """Keep so many seconds for visits to points that are begun, or no longer where negative: a visit is there."""
        self._owed_s += seconds
