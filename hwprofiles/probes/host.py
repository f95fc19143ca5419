"""Host: every figure of its processors and its memory, on visits some time apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hwprofiles.budget import DTYPES, Budget, Pace
from hwprofiles.host import Processor
from hwprofiles.points import LARGE_COLUMNS, SMALL_COLUMNS, Packed
from hwprofiles.probes.attention import AttentionTimes, attention_memory, attention_points
from hwprofiles.probes.buffers import affordable_bytes
from hwprofiles.probes.compute import Products, wide_output
from hwprofiles.probes.layers import (
    ELEMENTWISE_BYTES,
    LAYER_POINTS,
    SMALL_ELEMENTWISE_BYTES,
    LayerTimes,
    elementwise_rate,
    prompt_attention_rates,
    sweep_all,
)
from hwprofiles.probes.memory import memory_rate
from hwprofiles.probes.packed import PACKED_POINTS, measure_packed
from hwprofiles.probes.process import ProcessCost
from hwprofiles.probes.threads import task_overhead
from hwprofiles.probes.visits import Visits
from hwprofiles.profile import Host

CPU = torch.device("cpu")
CACHES_READ = 2
"""Memory that goes through a processor's caches where they must not help, in such caches."""
NUM_VISITS = 4
"""Float32 products of 4 rows make 18 GFLOP/s on two cores, visit by visit. In one profile both of two visits were slow,
13 and 8, and decode of Gemma 2 was predicted 45% too long."""
_SINGLE_POINTS = 4
"""Memory, handing over a task, elementwise operations of both sizes."""


class HostTimes:
    """The processors and the memory, on NUM_VISITS visits; what lies between them is up to the caller."""

    def __init__(
        self, budget: Budget, cpu: Processor, threads: tuple[int, ...], working_set_bytes: int, pace: Pace
    ) -> None:
        """`threads` are the numbers that attention is measured with."""
        self._cpu, self._working_set_bytes = cpu, working_set_bytes
        self._visits = Visits(pace, NUM_VISITS)
        self._attention = AttentionTimes(threads, _some_threads(threads), Visits(pace, NUM_VISITS))
        pool_bytes = affordable_bytes(max(working_set_bytes, budget.gemm_pool_bytes))
        self._gemm, self._gemm_small = (
            Products(CPU, budget.gemm_rows, pool_bytes, Visits(pace, NUM_VISITS), num_columns=columns)
            for columns in (LARGE_COLUMNS, SMALL_COLUMNS)
        )
        self._gemm_wide = Products(
            CPU,
            budget.wide_rows,
            pool_bytes,
            Visits(pace, NUM_VISITS),
            num_columns=LARGE_COLUMNS,
            shapes_of=wide_output,
        )
        sweep = sweep_all(CACHES_READ * cpu.cache_bytes)
        self._layers = LayerTimes(CPU, sweep, Visits(pace, NUM_VISITS))

    def visit(self) -> None:
        """Measure everything."""
        visits, slice_s = self._visits, self._visits.slice_s
        self._attention.visit(attention_memory(self._working_set_bytes))
        rate = memory_rate(CPU, self._working_set_bytes, slice_s("host memory bandwidth"))
        visits.add("memory", rate)
        self._gemm.visit()
        visits.add("task", task_overhead(slice_s("handing a task to a thread")))
        large = elementwise_rate(CPU, ELEMENTWISE_BYTES, slice_s("elementwise operations"))
        visits.add("elementwise", large)
        self._layers.visit()
        for dtype, rate in prompt_attention_rates(CPU, slice_s).items():
            visits.add(("prompt", dtype), rate)
        packed = measure_packed(CPU, slice_s)
        visits.add("unpack", packed.unpack_values_per_s)
        visits.add("pack", packed.pack_values_per_s)
        self._gemm_small.visit()
        self._gemm_wide.visit()
        small = elementwise_rate(CPU, SMALL_ELEMENTWISE_BYTES, slice_s("small elementwise operations"))
        visits.add("small elementwise", small)

    def figures(self, memory_limits_bytes: Mapping[str, int], cost: ProcessCost, occupied_bytes: int) -> Host:
        """All of a host: what is half-way between the visits, of attention the best one."""
        mean, cpu, attention = self._visits.mean, self._cpu, self._attention.figures()
        return Host(
            cpu_model=cpu.model,
            sockets=cpu.sockets,
            physical_cores=cpu.physical_cores,
            logical_cores=cpu.logical_cores,
            numa_nodes=cpu.numa_nodes,
            memory_bytes=min(memory_limits_bytes.values()),
            memory_limits_bytes=memory_limits_bytes,
            memory_bytes_per_s=mean("memory"),
            gemm=self._gemm.curves(),
            attention=attention.curves,
            task_overhead_s=mean("task"),
            process_bytes=cost.resident_bytes,
            elementwise_bytes_per_s=mean("elementwise"),
            layer=self._layers.points(),
            prompt_attention={dtype: mean(("prompt", dtype)) for dtype in DTYPES},
            process_spread_bytes=cost.spread_bytes,
            occupied_bytes=occupied_bytes,
            numa_cpus=cpu.numa_cpus,
            packed=Packed(
                unpack_values_per_s=mean("unpack"),
                pack_values_per_s=mean("pack"),
                attend_values_per_s=None,
                issue_s=None,
            ),
            grouped_attention=attention.grouped,
            packed_attention=attention.packed,
            grouped_packed_attention=attention.grouped_packed,
            gemm_small=self._gemm_small.curves(),
            gemm_wide=self._gemm_wide.curves(),
            elementwise_small_bytes_per_s=mean("small elementwise"),
        )


def host_points(budget: Budget, num_thread_counts: int) -> int:
    """How many points `HostTimes` takes."""
    rows = 2 * len(budget.gemm_rows) + len(budget.wide_rows)
    layer = LAYER_POINTS + len(DTYPES)
    single = _SINGLE_POINTS + PACKED_POINTS["cpu"]
    return single + len(DTYPES) * rows + layer + attention_points(num_thread_counts)


def thread_counts(cpu: Processor, budget: Budget) -> tuple[int, ...]:
    """Numbers of threads worth comparing: powers of two, three quarters, physical and logical cores."""
    counts = {1, max(1, cpu.logical_cores * 3 // 4), cpu.logical_cores}
    if budget.every_thread_count:
        counts |= {2**power for power in range(cpu.logical_cores.bit_length())} | {cpu.physical_cores}
    return tuple(sorted(count for count in counts if count <= cpu.logical_cores))


def _some_threads(counts: tuple[int, ...]) -> int:
    """The most of those measured that leave some cores to a GPU, if any do."""
    return counts[-2] if len(counts) > 2 else counts[-1]
