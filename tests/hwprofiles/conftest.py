"""A budget small enough for tests."""

from __future__ import annotations

import pytest

from hwprofiles.budget import Budget
from hwprofiles.units import KIB, MIB


@pytest.fixture(scope="session")
def tiny_budget() -> Budget:
    """Two points of everything in well under a second."""
    return Budget(
        total_s=0.5,
        process_runs=1,
        working_set_bytes=4 * MIB,
        gemm_rows=(1, 8),
        wide_rows=(1, 4),
        gemm_pool_bytes=2**20,
        gpu_gemm_columns=1024,
        every_thread_count=False,
        link_sizes_bytes=(64 * KIB, MIB),
        disk_file_bytes=4 * MIB,
        disk_block_bytes=(MIB,),
        disk_threads=(1, 2),
        net_s=0.2,
    )
