"""Sizes: what a placed policy holds, moves and keeps at hand, in bytes, layer by layer and gpu batch by gpu batch.

The ledger adds them up, the executor allocates them, the cost model prices what moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from hwprofiles.units import MIB
from planner.graphs import NO_GRAPHS, Graphs, graphs_of
from planner.layout import (
    ATTENTION_CHUNK_BYTES,
    DTYPE_BYTES,
    Slab,
    activation_bytes,
    activations_resident,
    align,
    cache_slot_offsets,
    group_bytes,
    is_resident,
    kv_vector_bytes,
    layer_slabs,
)
from planner.messages import ID_BYTES, Messages
from planner.model import LayerSpec, ModelSpec
from planner.placement import CacheRows, Placement, TierRows, group_tier
from planner.policy import Policy, Tier
from planner.workload import Workload
from planner.workspace import quantise_temporaries

PART_BYTES = 16 * MIB
"""Smaller copies are slower than the link."""
IDS_KEPT = 4
"""Tokens: one is sampled while the one before is sent on, and the host looks at the one before that, a pass later."""
ACTIVATION_SLOTS = 3
"""One loading, one computing, one storing."""
WEIGHT_STAGING = 2
ATTENDED_AT_ONCE = 2
"""Gpu batches: while the CPU attends for one, the GPU computes for another."""


class Sizes:
    """The sizes that both the ledger and the executor's allocations are made of, in bytes."""

    def __init__(
        self, model: ModelSpec, workload: Workload, policy: Policy, placement: Placement, compute_tier: Tier
    ) -> None:
        self.model, self.workload, self.policy, self.placement = model, workload, policy, placement
        self.compute_tier = compute_tier
        self.messages = Messages(model=model, workload=workload, policy=policy, compute_tier=compute_tier)
        self.element_bytes = DTYPE_BYTES[model.dtype]
        self.vector_bytes = kv_vector_bytes(model, policy.kv_bits, self.element_bytes)
        keys = [
            (id(layer), letters) for layer, letters in zip(model.layers, placement.weight_tiers, strict=True)
        ]
        kinds = dict(zip(keys, model.layers, strict=True))  # alike ones once
        slabs = {
            key: layer_slabs(layer, key[1], policy.weight_bits, self.element_bytes)
            for key, layer in kinds.items()
        }
        self.slabs = [slabs[key] for key in keys]
        self._alike_rows = Counter(placement.cache_rows)
        self._alike_slabs = [(slabs[key], count) for key, count in Counter(keys).items()]
        self.kept = [layer.kept_tokens(workload.max_len) for layer in model.layers]
        """Tokens of a sequence whose K and V each layer keeps."""

    def of_rows(self, batch_rows: Sequence[int]) -> Sizes:
        """Of a smaller block, whose gpu batches have so many rows."""
        if tuple(rows.total for rows in self.placement.cache_rows) == tuple(batch_rows):
            return self
        placement = self.placement.first(batch_rows)
        return Sizes(self.model, self.workload, self.policy, placement, self.compute_tier)

    @cached_property
    def graphs(self) -> Graphs:
        """What is replayed as CUDA graphs, where the GPU is a real one and runs use them."""
        if self.compute_tier != "gpu" or not self.policy.graphs:
            return NO_GRAPHS
        streamed = [self.streamed(j) > 0 for j in range(len(self.slabs))]
        return graphs_of(self.model, self.workload, self.policy, self.placement, streamed)

    @cached_property
    def joins_layers(self) -> bool:
        """Whether decode computes all layers of a gpu batch as one task, and replays them as one graph.

        So it is where nothing moves between them: all is on the GPU, and on no other stage. Packed weights are unpacked
        once for all gpu batches of a pass, and so layer by layer.
        """
        batches = self.placement.cache_rows
        return (
            len(self.graphs.layers) == len(self.slabs)
            and len(self.graphs.batches) == len(batches)
            and not any(map(self._streamed, self.slabs))
            and all(is_resident(group, "gpu") for rows in batches for group, count in rows.counts() if count)
            and self.model.is_whole
            and self.policy.weight_bits == 16
        )

    def ends(self) -> int:
        """Embeddings, final norm and head, each tensor aligned, on the compute tier."""
        return sum(align(tensor.numel * self.element_bytes, 256) for tensor in self.model.ends)

    def weights(self, tier: Tier) -> int:
        """All layers' slabs on a tier."""
        return sum(slabs[tier].nbytes * count for slabs, count in self._alike_slabs)

    def streamed(self, j: int) -> int:
        """Bytes of layer j that a weight slot receives."""
        return self._streamed(self.slabs[j])

    def _streamed(self, slabs: Mapping[Tier, Slab]) -> int:
        return sum(slab.nbytes for tier, slab in slabs.items() if tier != self.compute_tier)

    def weight_parts(self, j: int) -> int:
        """Into how many copies layer j's streamed bytes may be cut without losing the link's rate."""
        return max(1, self.streamed(j) // PART_BYTES)

    def weight_slot(self) -> int:
        """One weight slot."""
        return max(self._streamed(slabs) for slabs, _ in self._alike_slabs)

    def weight_staging(self) -> int:
        """One host buffer between disk and a weight slot; the disk reads straight into the slot on the CPU."""
        return (
            max(slabs["disk"].nbytes for slabs, _ in self._alike_slabs) if self.compute_tier == "gpu" else 0
        )

    def dequantised_weights(self) -> int:
        """One layer's quantised tensors in the model's dtype."""
        if self.policy.weight_bits == 16:
            return 0
        kinds = {id(layer): layer for layer in self.model.layers}.values()
        return max(dequantised_layer_bytes(layer, self.element_bytes) for layer in kinds)

    def cache(self, tier: Tier) -> int:
        """Homes of all layers and gpu batches on a tier."""
        return sum(
            num_layers * num_batches * group_bytes(group, count, self.vector_bytes, kept)
            for kept, num_layers in Counter(self.kept).items()
            for rows, num_batches in self._alike_rows.items()
            for group, count in rows.counts()
            if count and group_tier(group) == tier
        )

    def cache_slot(self) -> int:
        """One cache slot of the compute tier, for any layer."""
        most = max(self.kept)
        stored = min(most, self.workload.prompt_len)
        return max(
            max(self._slot(rows, stored, True), self._slot(rows, most, False)) for rows in self._alike_rows
        )

    def _slot(self, rows: CacheRows, num_tokens: int, prefill: bool) -> int:
        offsets = cache_slot_offsets(rows, self.vector_bytes, num_tokens, self.compute_tier, prefill=prefill)
        return sum(nbytes for _, nbytes in offsets.values())

    def cache_staging(self) -> int:
        """One host buffer for the disk rows of a cache slot; none when the compute tier is the CPU."""
        if self.compute_tier != "gpu":
            return 0
        return max(
            sum(
                group_bytes(group, count, self.vector_bytes, max(self.kept))
                for group, count in rows.counts()
                if count and group_tier(group) == "disk"
            )
            for rows in self._alike_rows
        )

    def dequantised_cache(self, *, attend: bool) -> int:
        """K and V of one attention call in the model's dtype: on the compute device, or for rows the CPU attends."""
        if self.policy.kv_bits == 16:
            return 0
        values = 2 * max(self.kept) * self.model.kv_dim
        row = values * self.element_bytes
        counts = [
            count
            for rows in self._alike_rows
            for group, count in rows.counts()
            if group.endswith("_attend") == attend
        ]
        count = max(counts, default=0)
        if self.model.cpu_attention:  # the registered attention reads as much as may be dequantised at once
            count = min(count, max(1, ATTENTION_CHUNK_BYTES // row))
        return count * row + quantise_temporaries(count * values)

    def attention_staging(self) -> int:
        """Queries and results of the rows that the CPU attends in two gpu batches, on the host."""
        if self.compute_tier != "gpu":
            return 0
        rows = max(r.cpu_attend + r.disk_attend for r in self._alike_rows)
        values = rows * self.model.num_heads * self.model.head_dim
        return ATTENDED_AT_ONCE * 2 * values * DTYPE_BYTES["float32"]

    def token_ids(self) -> int:
        """Ids of the last tokens of a block, int64 on the host."""
        return IDS_KEPT * self.policy.block_size * ID_BYTES

    def activations(self, tier: Tier) -> int:
        """Homes of the hidden states of a block on a tier."""
        return sum(self.activation_rows(dict(rows.counts())[tier]) for rows in self.placement.activation_rows)

    def activation_rows(self, count: int) -> int:
        """Hidden states of some rows of a gpu batch, in one piece."""
        return activation_bytes(count, self.workload.prompt_len, self.model.hidden_size, self.element_bytes)

    def token_activations(self) -> int:
        """Homes on the compute tier of one token's hidden states, for gpu batches whose prompts' are elsewhere."""
        return sum(self.token_activation_rows(rows) for rows in self.placement.activation_rows)

    def token_activation_rows(self, rows: TierRows) -> int:
        """The same of one gpu batch, which works on one token in its own home where that is on the compute tier."""
        if activations_resident(rows, self.compute_tier):
            return 0
        return activation_bytes(rows.total, 1, self.model.hidden_size, self.element_bytes)

    def activation_slot(self) -> int:
        """One slot for the hidden states of a gpu batch's prompts; none when they never leave the compute tier."""
        if all(activations_resident(rows, self.compute_tier) for rows in self.placement.activation_rows):
            return 0
        return self.activation_rows(self.policy.gpu_batch_size)

    def activation_staging(self) -> int:
        """One host buffer for the disk rows of an activation slot, which start and end on pages."""
        return self.activation_rows(max(rows.disk for rows in self.placement.activation_rows))


def dequantised_layer_bytes(layer: LayerSpec, element_bytes: int) -> int:
    """A layer's quantised tensors side by side in the model's dtype."""
    return sum(align(t.numel * element_bytes, 256) for t in layer.tensors if t.quantizable)
