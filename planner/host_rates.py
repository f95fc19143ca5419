"""Host rates: the host's time to ask for work and its memory, where other parts are at work too."""

from __future__ import annotations

from hwprofiles.points import GRAPH_OPERATIONS
from hwprofiles.profile import Gpu, HardwareProfile
from planner.packed_work import Reading

_OF_COLD, _OF_WARM = 0.78, 1.5
"""What a layer's call takes in a run beside a GPU, of what it takes with cold caches and with those to itself;
docs/design.md tells of the first."""
_CAPTURE_IN_A_RUN = 1.25
"""What capturing takes in a run beside the call, of a probe's: traces of OPT-1.3B and OPT-6.7B on an H200 host show 0.8
to 1.6, or 0.17 to 0.35 ms a layer."""
_KERNEL_SHARE, _MOST_KERNEL_S = 0.4, 2.2e-6
"""From one operation to the next on the GPU, of what a host takes to ask for a small one, and no more than so much: on
H200 hosts 2 us with layers of OPT-6.7B and OPT-30B that are replayed, however slow the host."""
FEW_OPERATIONS = 13
"""Of the smallest layer that profiles have: OPT's."""


def host_time(profile: HardwareProfile, at: Reading) -> tuple[float, float]:
    """Seconds of a layer's call and of one operation: a line through the measured layers.

    Older and published profiles have no such layers: then every operation takes what a launch does.
    """
    gpu = profile.gpus[0] if profile.gpus else None
    points = profile.host.layer if gpu is None or gpu.emulated else gpu.layer
    if not points:
        return 0.0, at(gpu.launch_overhead_s) if gpu else 0.0
    share = in_a_run(profile)
    (few, less_s), *_, (many, more_s) = sorted(
        (point.operations, share * at(point.seconds)) for point in (*points, points[0])
    )
    operation_s = max(0.0, more_s - less_s) / max(1, many - few)
    return max(0.0, less_s - few * operation_s), operation_s


def in_a_run(profile: HardwareProfile) -> float:
    """Host time in a run over that in a probe: a CPU's probe has the caches of a run."""
    gpu = profile.gpus[0] if profile.gpus else None
    if gpu is None or gpu.emulated or not gpu.layer:
        return 1.0
    return _OF_COLD if gpu.layer[0].is_cold else _OF_WARM


def capture_time(profile: HardwareProfile, at: Reading) -> float:
    """Seconds for each operation of a CUDA graph that is made, beside calling it; 0 where that was not measured."""
    graph = profile.gpus[0].graph if profile.gpus else None
    if graph is None or graph.capture_s is None:
        return 0.0
    return _CAPTURE_IN_A_RUN * at(graph.capture_s) / GRAPH_OPERATIONS


def kernel_time(gpu: Gpu, at: Reading) -> float:
    """Seconds on the GPU for each operation beside its bytes and products: it starts when the one before has ended."""
    if gpu.graph is not None and gpu.graph.operation_s is not None:
        return at(gpu.graph.operation_s)
    return min(_KERNEL_SHARE * at(gpu.launch_overhead_s), _MOST_KERNEL_S)


def host_memory(profile: HardwareProfile, at: Reading) -> float:
    """What goes through the host's memory a second where its cores and a GPU's copies want more than there is.

    It is what attention and loads get at once; in older profiles what the cores read, or all parts together if that is
    more, though copies of one small buffer may have come from a processor's cache.
    """
    one, together = at(profile.host.memory_bytes_per_s), profile.concurrent
    if together is None or not profile.gpus or profile.gpus[0].emulated:
        return one
    beside = together.attention_beside_h2d
    if beside is not None:
        return at(beside.attention_bytes_per_s) + at(beside.h2d_bytes_per_s)
    parts = (
        together.cpu_attention_bytes_per_s,
        together.h2d_bytes_per_s,
        together.d2h_bytes_per_s,
        together.disk_read_bytes_per_s,
    )
    return max(one, sum(at(rate) for rate in parts if rate is not None))
