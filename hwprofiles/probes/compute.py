"""Compute: matrix products over the number of rows, and the cost of starting one operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from hwprofiles.budget import DTYPES
from hwprofiles.points import HEATING_ROWS, LARGE_COLUMNS, WIDE_OUTPUT, Dtype, GemmPoint, Rate
from hwprofiles.probes.buffers import fill_random
from hwprofiles.probes.cores import mean_over_cores
from hwprofiles.probes.timing import Rounds, measured_rate, rounded, rounds_of
from hwprofiles.probes.visits import Visits

TORCH_DTYPE: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FEWEST_COLUMNS = 256
_MANY_ROWS = 256
_ROUNDS_IN_A_SLICE = 5
_REST_S, _SETTLE_S, _BURST_S = 1.0, 2.0, 0.25
"""After how long a GPU has the clocks of an idle one, and those of one at work; what a burst may take. Products of 1024
and of 4096 rows made 650 to 685 TFLOP/s in the first quarter second on an H200, 560 to 630 in the fourth and 590 to 650
from the eighth on, for 12 s."""
_ROUNDS_AHEAD = 256
"""Fewer than a GPU takes before the host has to wait."""
_ISSUE_S = 80e-6
"""What a slow host takes to ask for a product: 60 us on one with an H200."""
_CYCLES_PER_S = 2e9
"""Of a GPU's clock."""
Shape = tuple[int, int]
_LAUNCHES_PER_ROUND = 100


def matrices(device: torch.device, columns: int, rows: int) -> tuple[Shape, ...]:
    """[out, in] of what one round multiplies with: on the CPU a layer's matrices, on a GPU a square one.

    Where rows are few, a CPU is up to 1.7 times faster with a wide matrix than with a tall one of the same size.
    """
    square, tall, wide = (columns, columns), (4 * columns, columns), (columns, 4 * columns)
    is_shape_felt = device.type == "cpu" and rows < _MANY_ROWS
    return (square, square, square, square, tall, wide) if is_shape_felt else (square,)


def wide_output(device: torch.device, columns: int, rows: int) -> tuple[Shape, ...]:
    """A matrix with WIDE_OUTPUT outputs, or as many fewer as columns are fewer than LARGE_COLUMNS."""
    return ((WIDE_OUTPUT // LARGE_COLUMNS * columns, columns),)


class Products:
    """Rates of matrix products by dtype and rows, on visits some time apart.

    Weights come from a pool larger than the caches. Half-way between the visits counts: runs take minutes, in which a
    shared host is slower for seconds, too.
    """

    def __init__(
        self,
        device: torch.device,
        row_counts: Sequence[int],
        pool_bytes: int,
        visits: Visits,
        *,
        num_columns: int,
        shapes_of: Callable[[torch.device, int, int], tuple[Shape, ...]] = matrices,
    ) -> None:
        """Of matrices of at most so many columns; `shapes_of` a device, columns and rows are those of a round."""
        self._device, self._row_counts, self._pool_bytes = device, row_counts, pool_bytes
        self._visits, self._num_columns, self._shapes_of = visits, num_columns, shapes_of
        self._idle: dict[tuple[Dtype, int], float] = {}

    def visit(self) -> None:
        """Measure every point."""
        for dtype in DTYPES:
            itemsize = TORCH_DTYPE[dtype].itemsize
            numel = self._pool_bytes // itemsize
            pool = fill_random(torch.empty(numel, dtype=TORCH_DTYPE[dtype], device=self._device))
            columns, before = self._num_columns, 0.0
            while _numel(self._shapes_of(self._device, columns, 1)) > numel:
                columns //= 2
            for rows in self._row_counts:
                label = f"{self._device} gemm {dtype}, rows {rows}, columns {self._num_columns}"
                slice_s = self._visits.slice_s(label)
                at_once = slice_s / _ROUNDS_IN_A_SLICE * before
                while columns > _FEWEST_COLUMNS and 0 < at_once < self._flops(columns, rows):
                    columns //= 2
                run = _products(pool, rows, self._shapes_of(self._device, columns, rows))
                flops = self._flops(columns, rows)
                if _is_heating(self._device, dtype, rows):
                    rate, self._idle[dtype, rows] = _rate_while_heating(run, flops, slice_s)
                else:
                    rate = measured_rate(run, flops, slice_s)
                self._visits.add((dtype, rows), rate)
                before = rate.median

    def curves(self) -> dict[Dtype, tuple[GemmPoint, ...]]:
        """By dtype, of each number of rows."""
        return {dtype: tuple(self._point(dtype, rows) for rows in self._row_counts) for dtype in DTYPES}

    def _point(self, dtype: Dtype, rows: int) -> GemmPoint:
        key = dtype, rows
        return GemmPoint(rows=rows, flops_per_s=self._visits.mean(key), idle_flops_per_s=self._idle.get(key))

    def _flops(self, columns: int, rows: int) -> int:
        return 2 * rows * _numel(self._shapes_of(self._device, columns, rows))


def _is_heating(device: torch.device, dtype: Dtype, rows: int) -> bool:
    """Whether a GPU soon lowers its clocks under such products."""
    return device.type == "cuda" and dtype != "float32" and rows >= HEATING_ROWS


def _rate_while_heating(run: Rounds, amount: float, slice_s: float) -> tuple[Rate, float]:
    """Half-way between a GPU that was idle and one that has been at work, with a spread that reaches both; and idle.

    A prefill begins with the one and soon goes on with the other, and what it does between its products cools.
    """
    time.sleep(_REST_S)
    idle = measured_rate(run, amount, min(slice_s, _BURST_S))
    deadline = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < deadline:
        run(_ROUNDS_IN_A_SLICE)
    settled = measured_rate(run, amount, min(slice_s, _BURST_S))
    middle = (idle.median + settled.median) / 2
    apart = round(abs(idle.median - settled.median) / 2 / middle, 4)
    return Rate(median=rounded(middle), spread=max(apart, idle.spread, settled.spread)), idle.median


def launch_overhead(device: torch.device, slice_s: float) -> Rate:
    """Seconds from one small operation to the next when many are issued and none is waited for."""
    tensor = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES_PER_ROUND):
            tensor.add_(1)

    run = rounds_of(launches, lambda: synchronize(device))
    run(1)
    return mean_over_cores(lambda: run(1) / _LAUNCHES_PER_ROUND, slice_s)


def hold_back(seconds: float) -> None:
    """Let the current stream of the current GPU do nothing for about so long."""
    torch.cuda._sleep(int(seconds * _CYCLES_PER_S))


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's work; the CPU has none outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _numel(shapes: Sequence[Shape]) -> int:
    return sum(rows * columns for rows, columns in shapes)


def _products(pool: Tensor, rows: int, shapes: Sequence[Shape]) -> Rounds:
    """Rounds of x @ w.T for each shape of w, with the pool's weights in turn and room for the results."""
    # x: [rows, in], each weight: [out, in]
    inputs, results = (
        {
            width: fill_random(torch.empty(rows, width, dtype=pool.dtype, device=pool.device))
            for width in {shape[side] for shape in shapes}
        }
        for side in (1, 0)
    )
    size = _numel(shapes)
    sizes = [out * columns for out, columns in shapes]
    layers = cycle(
        [weight.view(shape) for weight, shape in zip(piece.split(sizes), shapes, strict=True)]
        for piece in pool.split(size)
        if piece.numel() == size
    )

    def multiply() -> None:
        for weight in next(layers):
            torch.mm(inputs[weight.shape[1]], weight.t(), out=results[weight.shape[0]])

    if pool.device.type == "cpu":
        return rounds_of(multiply)
    if (
        rows >= HEATING_ROWS
    ):  # longer than the host takes to ask, and a GPU that rests between rounds stays cool
        return rounds_of(multiply, lambda: synchronize(pool.device))
    return _rounds_on_device(multiply, pool.device)


def _rounds_on_device(operation: Callable[[], object], device: torch.device) -> Rounds:
    """Rounds by the device's own clock, which first waits until the host has asked for some of them.

    Products of few rows are over before a slow host has asked for the next one.
    """

    def run(num_rounds: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        seconds = 0.0
        with torch.cuda.device(device):
            for first in range(0, num_rounds, _ROUNDS_AHEAD):
                count = min(_ROUNDS_AHEAD, num_rounds - first)
                hold_back(count * _ISSUE_S)
                begin.record()
                for _ in range(count):
                    operation()
                end.record()
                end.synchronize()
                seconds += begin.elapsed_time(end) / 1e3
        return seconds

    return run
