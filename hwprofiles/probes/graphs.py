"""Graphs: what it takes to start a layer that was captured as a CUDA graph, and what the driver keeps for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import cycle, islice

import torch

from hwprofiles.allocation import trim_heap
from hwprofiles.points import GRAPH_OPERATIONS, Graph, Rate
from hwprofiles.probes.cores import cores, mean_over_cores, on_core
from hwprofiles.probes.kernels import AMPERE, usable
from hwprofiles.probes.timing import mean_rate_of, rate_of
from hwprofiles.process_memory import resident_bytes

_GROUPS, _GRAPHS = 16, 8
"""Groups that are captured on one core after the other, and graphs in each."""
_VALUES = 4096


def measure_graph(device: torch.device, slice_s: float) -> Graph | None:
    """Of graphs of small operations; None where runs do not use any."""
    if not usable(device, AMPERE):
        return None
    values = torch.zeros(_VALUES, device=device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        values += 1  # its kernel is loaded before anything is weighed
        torch.cuda.synchronize(device)
        trim_heap()  # else the host's part may come to lie in what was freed
        before, on_host = _driver_bytes(device), resident_bytes()
        graphs, capture_s = list[torch.cuda.CUDAGraph](), list[float]()
        for core in islice(cycle(cores()), _GROUPS):
            with on_core(core):
                captured, seconds = zip(*(_captured(values) for _ in range(_GRAPHS)), strict=True)
            graphs += captured
            capture_s.append(statistics.median(seconds))
        torch.cuda.synchronize(device)
        kept, kept_on_host = _driver_bytes(device) - before, resident_bytes() - on_host
        replay_s, operation_s = _replay_seconds(graphs, device, slice_s)
    return Graph(
        replay_s=replay_s,
        operation_bytes=max(1, kept // (len(graphs) * GRAPH_OPERATIONS)),
        capture_s=mean_rate_of(capture_s),
        operation_s=operation_s,
        host_operation_bytes=max(0, kept_on_host // (len(graphs) * GRAPH_OPERATIONS)),
    )


def _replay_seconds(
    graphs: Sequence[torch.cuda.CUDAGraph], device: torch.device, slice_s: float
) -> tuple[Rate, Rate]:
    """Of a graph on the host, which does not wait for the device; of an operation on the device, which is behind.

    The device starts an operation when the one before has ended.
    """
    on_device = list[float]()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        begin.record()
        began = time.perf_counter()
        for graph in graphs:
            graph.replay()
        on_host = time.perf_counter() - began
        end.record()
        torch.cuda.synchronize(device)
        on_device.append(begin.elapsed_time(end) / 1e3 / (len(graphs) * GRAPH_OPERATIONS))
        return on_host / len(graphs)

    return mean_over_cores(replay, slice_s), rate_of(on_device)


def _captured(values: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, float]:
    """A graph, started once, and the seconds that took beside its operations.

    It has no tensor of its own, so that it takes no memory but the driver's.
    """
    began = time.perf_counter()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    called = time.perf_counter()
    for _ in range(GRAPH_OPERATIONS):
        values += 1
    done = time.perf_counter()
    graph.capture_end()
    graph.replay()
    return graph, time.perf_counter() - done + called - began


def _driver_bytes(device: torch.device) -> int:
    """GPU memory in use that is not torch's."""
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free) - int(torch.cuda.memory_reserved(device))
