"""Compute: matrix products over the number of rows, and the cost of starting one operation."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import linear

from hwprofiles.budget import DTYPES, Budget, Pace
from hwprofiles.points import Dtype, GemmPoint, Rate
from hwprofiles.probes.buffers import fill_random
from hwprofiles.probes.timing import Rounds, measured_rate, rate_of, rounded, rounds_of, seconds_per_round

TORCH_DTYPE: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FEWEST_COLUMNS = 256
_ROUNDS_IN_A_SLICE = 5
_LAUNCHES_PER_ROUND = 100


def gemm_curves(
    device: torch.device, budget: Budget, pool_bytes: int, pace: Pace
) -> dict[Dtype, tuple[GemmPoint, ...]]:
    """Rates of [rows, n] x [n, n] for each dtype; weights come in turn from a pool larger than the caches."""
    curves: dict[Dtype, tuple[GemmPoint, ...]] = {}
    for dtype in DTYPES:
        itemsize = TORCH_DTYPE[dtype].itemsize
        pool = fill_random(torch.empty(pool_bytes // itemsize, dtype=TORCH_DTYPE[dtype], device=device))
        columns = budget.gemm_columns if device.type == "cpu" else budget.gpu_gemm_columns
        while 2 * columns**2 > pool.numel():
            columns //= 2
        points: list[GemmPoint] = []
        for rows in budget.gemm_rows:
            slice_s = pace.next(f"{device} gemm {dtype}, rows {rows}")
            if points:
                columns = _affordable_columns(columns, rows, points[-1].flops_per_s.median, slice_s)
            flops = 2 * rows * columns**2
            rate = measured_rate(_products(pool, rows, columns), flops, slice_s)
            points.append(GemmPoint(rows=rows, flops_per_s=rate))
        curves[dtype] = tuple(points)
    return curves


def launch_overhead(device: torch.device, slice_s: float) -> Rate:
    """Seconds from one small operation to the next when many are issued and none is waited for."""
    tensor = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES_PER_ROUND):
            tensor.add_(1)

    samples = seconds_per_round(rounds_of(launches, lambda: synchronize(device)), slice_s)
    per_launch = rate_of([seconds / _LAUNCHES_PER_ROUND for seconds in samples])
    return Rate(median=rounded(per_launch.median), spread=per_launch.spread)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's work; the CPU has none outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _affordable_columns(columns: int, rows: int, flops_per_s: float, slice_s: float) -> int:
    """Fewer columns where the rate of the point before says that the slice would not hold enough rounds."""
    while columns > _FEWEST_COLUMNS and _ROUNDS_IN_A_SLICE * 2 * rows * columns**2 / flops_per_s > slice_s:
        columns //= 2
    return columns


def _products(pool: Tensor, rows: int, columns: int) -> Rounds:
    """Rounds of x @ w.T, as a Linear layer computes it, with the pool's weights in turn."""
    # x: [rows, n], each weight: [n, n]
    x = fill_random(torch.empty(rows, columns, dtype=pool.dtype, device=pool.device))
    size = columns**2
    weights = itertools.cycle(
        piece.view(columns, columns) for piece in pool.split(size) if piece.numel() == size
    )
    return rounds_of(lambda: linear(x, next(weights)), lambda: synchronize(pool.device))
