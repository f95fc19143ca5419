"""The ledger: every byte a plan will hold, by tier and by purpose, in prefill and in decode.

The planner's memory limits and the executor's allocations both come from here and from layout.py. Entries marked
`arena` are allocated once, at exactly this size; the others are upper bounds on what libraries allocate and free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hwprofiles.errors import UserError
from hwprofiles.points import NO_MARGINS, Margins
from hwprofiles.units import MIB, format_bytes
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
    kv_vector_bytes,
    layer_slabs,
)
from planner.messages import ID_BYTES, Messages
from planner.model import LayerSpec, ModelSpec
from planner.placement import CacheRows, Placement, TierRows, group_tier
from planner.policy import TIERS, Policy, Tier
from planner.workload import Workload
from planner.workspace import (
    Fed,
    argument_bytes,
    logits_bytes,
    padding_bytes,
    quantise_temporaries,
    request_bytes,
    tokenizer_bytes,
    workspace_bytes,
)

PART_BYTES = 16 * MIB
"""Smaller copies are slower than the link."""
TOKENIZER = "tokenizer"
"""Purpose of what runs on made-up prompts do without."""
LOADING_BYTES = 40 * MIB
"""Read buffers while a checkpoint is loaded; free again before the first block."""
LIBRARY_BYTES = 12 * MIB
"""Pages of libraries that only some models touch, a model's Python objects (some 50 KB a layer), what malloc keeps."""
GPU_LIBRARY_BYTES = 36 * MIB
"""The same of libraries of a real GPU, whose kernels differ from model to model: on an H200 host OPT's runs held
between 0.07 GB less and 0.09 GB more than the process that is weighed, half of them more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a plan runs: the compute tier, each tier's limit and what the process takes for itself."""

    name: str
    digest: str
    """Hash of the hardware profile."""
    fingerprint: str
    compute_tier: Tier
    emulated: bool
    """The gpu tier is an arena in host memory."""
    gpu_bytes: int
    cpu_bytes: int
    disk_bytes: int
    context_bytes: int
    process_bytes: int
    margins: Margins = NO_MARGINS
    """On the GPU."""
    process_spread_bytes: int = 0
    headroom_bytes: int = 0
    """Host memory left to the kernel and other processes; no longer in `cpu_bytes`."""
    kernel_share: float = 0.0
    """Of host memory registered with the GPU, what the kernel keeps beside it; not in the ledger."""
    mapped_share: float = 0.0
    """Of the same, what is kept on the GPU; that is in the ledger."""
    graph_operation_bytes: int = 0
    """For each operation of a CUDA graph, what the driver keeps on the GPU; 0: runs use no graphs."""

    def limit_bytes(self, tier: Tier) -> int:
        """The most bytes a plan may hold on a tier."""
        return {"gpu": self.gpu_bytes, "cpu": self.cpu_bytes, "disk": self.disk_bytes}[tier]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Bytes of one purpose on one tier."""

    tier: Tier
    purpose: str
    prefill_bytes: int
    decode_bytes: int
    arena: bool = False
    loading_bytes: int = 0
    """While the weights are loaded: arenas are there already, workspaces not yet."""

    @property
    def peak_bytes(self) -> int:
        """The most at any time."""
        return max(self.loading_bytes, self.prefill_bytes, self.decode_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All entries of a plan."""

    entries: tuple[Entry, ...]

    def peak_bytes(self, tier: Tier) -> int:
        """The largest of the sums on a tier: while loading, in prefill, in decode."""
        mine = [entry for entry in self.entries if entry.tier == tier]
        return max(
            sum(e.loading_bytes for e in mine),
            sum(e.prefill_bytes for e in mine),
            sum(e.decode_bytes for e in mine),
        )

    def without(self, purpose: str) -> Ledger:
        """What is left where one purpose does not arise."""
        return Ledger(entries=tuple(entry for entry in self.entries if entry.purpose != purpose))

    def bytes_of(self, tier: Tier, purpose: str) -> int:
        """The peak of one purpose on one tier; 0 if there is none."""
        found = (e for e in self.entries if e.tier == tier and e.purpose == purpose)
        return sum(e.peak_bytes for e in found)

    def shortfalls(self, target: Target) -> dict[Tier, int]:
        """By how many bytes each tier is over its limit; tiers that fit are left out."""
        short = {tier: self.peak_bytes(tier) - target.limit_bytes(tier) for tier in TIERS}
        return {tier: excess for tier, excess in short.items() if excess > 0}

    def check(self, target: Target) -> None:
        """A UserError naming every tier that does not fit, with the sum that shows it."""
        short = self.shortfalls(target)
        if short:
            raise UserError("; ".join(self.explain(tier, target) for tier in short))

    def explain(self, tier: Tier, target: Target) -> str:
        """One line: what a tier needs, of what, and what it has."""
        user = [(p, self.bytes_of(tier, p)) for p in ("weights", "cache", "activations")]
        named = [(purpose, nbytes) for purpose, nbytes in user if nbytes]
        total, held = self.peak_bytes(tier), sum(nbytes for _, nbytes in named)
        parts = " + ".join(f"{purpose} {format_bytes(nbytes)}" for purpose, nbytes in named)
        parts += f" = {format_bytes(held)}" if len(named) > 1 else ""
        sums = f" ({parts}, and {format_bytes(total - held)} to work with)" if named else ""
        limit = target.limit_bytes(tier)
        return (
            f"{tier} tier needs {format_bytes(total)}{sums}, its limit is {format_bytes(limit)}: "
            f"short by {format_bytes(total - limit)}"
        )


def make_ledger(
    model: ModelSpec, workload: Workload, policy: Policy, placement: Placement, target: Target
) -> Ledger:
    """The ledger of a placed policy."""
    sizes = Sizes(model, workload, policy, placement, target.compute_tier)
    entries = [
        *_homes(sizes),
        *_buffers(sizes),
        *_transients(sizes, target),
        *_process(sizes, target),
        *_margins(target),
    ]
    registered = sum(entry.peak_bytes for entry in entries if entry.arena and entry.tier == "cpu")
    entries.append(_both("gpu", "mapped host memory", round(target.mapped_share * registered)))
    return Ledger(entries=tuple(e for e in entries if e.peak_bytes))


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


def _homes(sizes: Sizes) -> Iterator[Entry]:
    yield _arena(sizes.compute_tier, "ends", sizes.ends())
    for tier in TIERS:
        yield _arena(tier, "weights", sizes.weights(tier))
        yield _arena(tier, "cache", sizes.cache(tier))
        yield _arena(tier, "activations", sizes.activations(tier))


def _buffers(sizes: Sizes) -> Iterator[Entry]:
    tier, policy = sizes.compute_tier, sizes.policy
    yield _arena(tier, "weight slots", policy.weight_slots * sizes.weight_slot())
    yield _arena(tier, "dequantised weights", sizes.dequantised_weights())
    yield _arena(tier, "cache slots", policy.cache_slots * sizes.cache_slot())
    yield _arena(tier, "activation slots", ACTIVATION_SLOTS * sizes.activation_slot())
    yield _arena(tier, "one token's activations", sizes.token_activations())
    yield _arena("cpu", "weight staging", WEIGHT_STAGING * sizes.weight_staging())
    yield _arena("cpu", "cache staging", policy.cache_slots * sizes.cache_staging())
    yield _arena("cpu", "attention staging", sizes.attention_staging())
    yield _arena("cpu", "activation staging", ACTIVATION_SLOTS * sizes.activation_staging())
    yield _arena(sizes.messages.tier, "messages", sizes.messages.nbytes)
    yield _arena("cpu", "token ids", sizes.token_ids())


IDS_KEPT = 4
"""Tokens: one is sampled while the one before is sent on, and the host looks at the one before that, a pass later."""
ACTIVATION_SLOTS = 3
"""One loading, one computing, one storing."""
WEIGHT_STAGING = 2
GRAPH_POOL_BYTES = 2 * MIB
"""Torch's allocator takes memory for the tensors of graphs in pieces of this size."""
ATTENDED_AT_ONCE = 2
"""Gpu batches: while the CPU attends for one, the GPU computes for another."""


def _transients(sizes: Sizes, target: Target) -> Iterator[Entry]:
    tier, policy, workload, model = sizes.compute_tier, sizes.policy, sizes.workload, sizes.model
    element_bytes, prompt_len, max_len = sizes.element_bytes, workload.prompt_len, workload.max_len
    chunk = Fed(
        rows=min(policy.prefill_rows, policy.gpu_batch_size), num_new=prompt_len, num_total=prompt_len
    )
    step = Fed(rows=policy.gpu_batch_size, num_new=1, num_total=max_len)
    on_gpu = tier == "gpu" and not target.emulated
    prefill, decode = (
        workspace_bytes(model, fed, element_bytes, policy.kv_bits, on_gpu=on_gpu) for fed in (chunk, step)
    )
    decode *= ATTENDED_AT_ONCE if sizes.attention_staging() else 1
    yield Entry(tier=tier, purpose="workspace", prefill_bytes=prefill, decode_bytes=decode)
    if target.graph_operation_bytes and sizes.graphs.num_operations:  # and a workspace of their own
        nbytes = target.graph_operation_bytes * sizes.graphs.num_operations + align(decode, GRAPH_POOL_BYTES)
        yield Entry(tier=tier, purpose="graphs", prefill_bytes=0, decode_bytes=nbytes)
    prefill = policy.block_size * argument_bytes(model, prompt_len, prompt_len, element_bytes)
    decode = policy.block_size * argument_bytes(model, 1, max_len, element_bytes)
    yield Entry(tier=tier, purpose="layer arguments", prefill_bytes=prefill, decode_bytes=decode)
    logits = logits_bytes(model, policy.gpu_batch_size, element_bytes) if model.has_head else 0
    yield Entry(tier=tier, purpose="logits", prefill_bytes=logits, decode_bytes=logits)
    kv = sizes.dequantised_cache(attend=False)
    yield Entry(tier=tier, purpose="dequantised cache", prefill_bytes=0, decode_bytes=kv)
    if tier == "gpu":
        kv = sizes.dequantised_cache(attend=True)
        yield Entry(tier="cpu", purpose="dequantised cache", prefill_bytes=0, decode_bytes=kv)
        yield _both("gpu", "device context", target.context_bytes)


def _process(sizes: Sizes, target: Target) -> Iterator[Entry]:
    """What the process takes on the host, whatever the policy."""
    model, workload = sizes.model, sizes.workload
    yield _both("cpu", "process", target.process_bytes)
    yield _both("cpu", "libraries", library_bytes(target.compute_tier, emulated=target.emulated))
    yield _both("cpu", TOKENIZER, tokenizer_bytes(model))
    yield _both("cpu", "requests", _requests(workload, sizes.policy))
    yield Entry(tier="cpu", purpose="loading", prefill_bytes=0, decode_bytes=0, loading_bytes=LOADING_BYTES)


def library_bytes(compute_tier: Tier, *, emulated: bool) -> int:
    """What libraries take beyond the process that is weighed."""
    return LIBRARY_BYTES + (GPU_LIBRARY_BYTES if compute_tier == "gpu" and not emulated else 0)


def _requests(workload: Workload, policy: Policy) -> int:
    """All prompts and their answers; and the padding of all gpu batches, at most.

    In a job sorted by length a batch's rows differ by no more than what the lengths fall by from its first to its last.
    """
    histogram = workload.histogram or ((workload.prompt_len, workload.gen_len, policy.block_size),)
    held = sum(request_bytes(count, prompt_len, gen_len) for prompt_len, gen_len, count in histogram)
    return held + padding_bytes((policy.gpu_batch_size - 1) * (histogram[0][0] - histogram[-1][0]))


def _margins(target: Target) -> Iterator[Entry]:
    """What is held beyond what is asked for, by kind; nobody allocates it."""
    yield _both("gpu", "margin: context", target.margins.context_bytes)
    yield _both("gpu", "margin: allocator", target.margins.allocator_bytes)
    yield _both("gpu", "margin: fragmentation", target.margins.fragmentation_bytes)
    yield _both("cpu", "margin: process", target.process_spread_bytes)


def dequantised_layer_bytes(layer: LayerSpec, element_bytes: int) -> int:
    """A layer's quantised tensors side by side in the model's dtype."""
    return sum(align(t.numel * element_bytes, 256) for t in layer.tensors if t.quantizable)


def _arena(tier: Tier, purpose: str, nbytes: int) -> Entry:
    return _both(tier, purpose, nbytes, arena=True)


def _both(tier: Tier, purpose: str, nbytes: int, *, arena: bool = False) -> Entry:
    """Held from the start to the end."""
    return Entry(
        tier=tier,
        purpose=purpose,
        prefill_bytes=nbytes,
        decode_bytes=nbytes,
        arena=arena,
        loading_bytes=nbytes,
    )
