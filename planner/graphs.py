"""Graphs: layers whose decode for a gpu batch is captured as CUDA graphs and replayed for every later token."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from planner.elementwise import elementwise
from planner.layout import is_large_expert, is_loaded, takes_slot
from planner.model import LayerSpec, ModelSpec
from planner.placement import CacheRows, Placement, group_tier
from planner.policy import Policy
from planner.workload import Workload

MOST_GRAPHS = 1024
"""In all; the gpu batches beyond are called."""
LEAST_TOKENS = 5
"""Shorter generations are over before a graph has paid: one pass of decode goes ahead, the next one is captured."""
CAPTURE_PASS = 2
"""The token whose pass captures the layers, calling them as the passes before it do."""
OPERATIONS_OF_END = 18
"""Embedding, positions and what layers are called with; final norm, head and sampling."""
_OWN_OPERATIONS = 8
"""Beside a layer's: writing K and V, attention, its merge, and copies to where the result lies."""
_GROUPED_DTYPE = "bfloat16"
"""In which torch computes all experts' products without asking the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """Which layers are replayed for which gpu batches."""

    layers: Mapping[int, int]
    """Each with the number of slots in which its weights come to lie, 1 at home."""
    batches: Mapping[int, int]
    """Likewise, of what is loaded of their cache."""
    has_ends: bool
    """Whether embedding and head are replayed, too: ids stay on one stage, and no layer is left between its parts then,
    whose tensors their graphs would write over."""
    num_operations: int
    """Of all graphs together."""

    def of_layer(self, j: int) -> frozenset[int]:
        """The gpu batches for which layer j is replayed."""
        return frozenset(self.batches) if j in self.layers else frozenset()

    def share_of_ends(self, ks: Collection[int]) -> float:
        """Of these gpu batches, the share for which embedding and head are replayed, too."""
        return len(self.batches.keys() & set(ks)) / max(1, len(ks)) if self.has_ends else 0.0

    def num_graphs(self, j: int, ks: Collection[int]) -> int:
        """Of layer j and these gpu batches: one for each place."""
        return sum(self.layers[j] * self.batches[k] for k in self.of_layer(j) & set(ks))


NO_GRAPHS = Graphs(layers={}, batches={}, has_ends=False, num_operations=0)


def graphs_of(
    model: ModelSpec, workload: Workload, policy: Policy, placement: Placement, streamed: Sequence[bool]
) -> Graphs:
    """Of a plan that computes on a GPU; `streamed` says which layers have weights that pass through a slot.

    A graph reads and writes where it did when it was captured, so there is one for each slot that a layer's weights or
    a gpu batch's cache may be in. Nothing in it depends on the host: windows that slide, a family's own attention,
    experts whose tokens are counted there, rows on disk.
    """
    size = policy.gpu_batch_size
    layers = [
        j
        for j, layer in enumerate(model.layers)
        if may_be_replayed(model, layer, workload, size) and not _has_message(model, j)
    ]
    in_slots = len(model.layers) * sum(takes_slot(rows, "gpu") for rows in placement.cache_rows)
    of_weights, of_cache = places(sum(streamed), policy.weight_slots), places(in_slots, policy.cache_slots)
    captured = {j: of_weights if streamed[j] else 1 for j in layers}
    num_a_batch, batches = sum(captured.values()), dict[int, int]()
    for k, rows in enumerate(placement.cache_rows):
        times = of_cache if is_loaded(rows, "gpu") else 1
        if _keeps_its_place(rows) and num_a_batch * (sum(batches.values()) + times) <= MOST_GRAPHS:
            batches[k] = times
    if not (captured and batches):
        return NO_GRAPHS
    operations = sum(count * graph_operations(model, model.layers[j]) for j, count in captured.items())
    num_operations = operations * sum(batches.values())
    has_ends = model.is_whole and not any(
        rows.cpu_attend or rows.disk_attend for rows in placement.cache_rows
    )
    if has_ends:
        num_operations += 2 * OPERATIONS_OF_END * len(batches)
    return Graphs(layers=captured, batches=batches, has_ends=has_ends, num_operations=num_operations)


def graph_operations(model: ModelSpec, layer: LayerSpec) -> int:
    """Of the graph of a layer's decode."""
    return elementwise(model, layer).operations + _OWN_OPERATIONS


def places(num_a_pass: int, num_slots: int) -> int:
    """In how many of the slots that are taken in turn, so many a pass, one and the same content comes to lie."""
    return num_slots // math.gcd(num_a_pass, num_slots)


def _keeps_its_place(rows: CacheRows) -> bool:
    return all(group_tier(group) != "disk" for group in rows.held)


def may_be_replayed(model: ModelSpec, layer: LayerSpec, workload: Workload, gpu_batch_size: int) -> bool:
    """Whether a layer's decode for gpu batches of so many rows leaves nothing to the host, and is long enough."""
    slides = layer.sliding_window is not None and layer.sliding_window < workload.max_len
    counts_tokens = layer.num_experts > 0 and (
        model.dtype != _GROUPED_DTYPE or is_large_expert(layer, gpu_batch_size)
    )
    return model.cpu_attention and workload.gen_len >= LEAST_TOKENS and not (slides or counts_tokens)


def _has_message(model: ModelSpec, j: int) -> bool:
    """Whether another stage's messages are read or written in place."""
    return (j == 0 and not model.has_embedding) or (j == model.num_layers - 1 and not model.has_head)
