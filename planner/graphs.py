"""Graphs: layers of gpu batches whose decode never leaves the GPU, and is replayed there as one CUDA graph each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.elementwise import elementwise
from planner.layout import is_resident
from planner.model import ModelSpec
from planner.placement import Placement
from planner.workload import Workload

MOST_GRAPHS = 512
"""A plan that would take more has larger things to do than to wait for the host."""
LEAST_TOKENS = 5
"""Shorter generations are over before a graph has paid: one pass of decode goes ahead, the next one is captured."""
CAPTURE_PASS = 2
"""The token whose pass captures the layers, calling them as the passes before it do."""
_OWN_OPERATIONS = 8
"""Beside a layer's: writing K and V, attention, its merge, and copies to where the result lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """Which layers are replayed for which gpu batches."""

    layers: frozenset[int]
    batches: frozenset[int]
    num_operations: int
    """Of all graphs together."""

    def of_layer(self, j: int) -> frozenset[int]:
        """The gpu batches for which layer j is replayed."""
        return self.batches if j in self.layers else frozenset()


NO_GRAPHS = Graphs(layers=frozenset(), batches=frozenset(), num_operations=0)


def graphs_of(model: ModelSpec, workload: Workload, placement: Placement, near: Sequence[bool]) -> Graphs:
    """Of a plan that computes on a GPU; `near` says which layers' weights are all there.

    Nothing that is replayed moves, so that all addresses stay, and nothing in it depends on the host: experts that
    are looked up there, windows that slide, a family's own attention.
    """
    if not model.cpu_attention or workload.gen_len < LEAST_TOKENS:
        return NO_GRAPHS
    layers = frozenset(j for j, is_near in enumerate(near) if is_near and _is_steady(model, workload, j))
    batches = frozenset(
        k
        for k, cache in enumerate(placement.cache_rows)
        if all(is_resident(group, "gpu") for group, count in cache.counts() if count)
    )
    if not 0 < len(layers) * len(batches) <= MOST_GRAPHS:
        return NO_GRAPHS
    operations = sum(elementwise(model, model.layers[j]).operations + _OWN_OPERATIONS for j in layers)
    return Graphs(layers=layers, batches=batches, num_operations=operations * len(batches))


def _is_steady(model: ModelSpec, workload: Workload, j: int) -> bool:
    layer = model.layers[j]
    slides = layer.sliding_window is not None and layer.sliding_window < workload.max_len
    has_message = (j == 0 and not model.has_embedding) or (j == model.num_layers - 1 and not model.has_head)
    return not (layer.num_experts or slides or has_message)
