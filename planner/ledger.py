"""The ledger: every byte a plan will hold, by tier and by purpose, in prefill and in decode.

The planner's memory limits and the executor's allocations both come from sizes.py and layout.py. Entries marked
`arena` are allocated once, at exactly this size; the others are upper bounds on what libraries allocate and free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hwprofiles.errors import UserError
from hwprofiles.points import FEW_ROWS, NO_MARGINS, Kernels, Margins
from hwprofiles.units import MIB, format_bytes
from planner.elementwise import has_rotary
from planner.layout import align
from planner.model import ModelSpec
from planner.placement import Placement
from planner.policy import TIERS, Policy, Tier
from planner.sizes import ACTIVATION_SLOTS, ATTENDED_AT_ONCE, WEIGHT_STAGING, Sizes
from planner.workload import Workload
from planner.workspace import (
    Fed,
    argument_bytes,
    greedy_logits_bytes,
    logits_bytes,
    padding_bytes,
    request_bytes,
    tokenizer_bytes,
    workspace_bytes,
)

NCCL = "NCCL"
"""The purpose of what it takes of a GPU; it is not torch's allocator that allocates it."""
GRAPH_POOL_BYTES = 2 * MIB
"""Torch's allocator takes memory for the tensors of graphs in pieces of this size."""
TOKENIZER = "tokenizer"
"""Purpose of what runs on made-up prompts do without."""
LOADING = "loading"
"""Purpose of what runs on made-up weights do without."""
COMPILING = "compiling kernels"
"""Purpose of what runs that find every kernel compiled do without."""
LOADING_BYTES = 40 * MIB
"""Read buffers while a checkpoint is loaded; free again before the first block."""
LIBRARY_BYTES = 12 * MIB
"""Pages of libraries that only some models touch, a model's Python objects (some 50 KB a layer), what malloc keeps."""


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
    graph_operation_host_bytes: int = 0
    """Likewise in host memory."""
    kernels_host_bytes: Mapping[Kernels, int] = field(default_factory=dict, hash=False)
    """What a process on a GPU keeps in host memory of the kernels it calls, and while it compiles them."""

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

    def without(self, *purposes: str) -> Ledger:
        """What is left where some purposes do not arise."""
        return Ledger(entries=tuple(entry for entry in self.entries if entry.purpose not in purposes))

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
        of_head = greedy_logits_bytes(model, policy.gpu_batch_size, element_bytes) * sizes.graphs.has_ends
        pool = align(max(decode, of_head), GRAPH_POOL_BYTES)
        nbytes = target.graph_operation_bytes * sizes.graphs.num_operations + pool
        on_host = target.graph_operation_host_bytes * sizes.graphs.num_operations
        is_last = workload.num_prompts is not None and workload.num_prompts <= policy.block_size
        for where, held in ((tier, nbytes), ("cpu", on_host)):
            kept = 0 if is_last else held  # for the next block
            yield Entry(tier=where, purpose="graphs", prefill_bytes=kept, decode_bytes=held)
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
        for where, nbytes in sizes.messages.library_bytes.items():
            yield _both(where, NCCL, nbytes)


def _process(sizes: Sizes, target: Target) -> Iterator[Entry]:
    """What the process takes on the host, whatever the policy."""
    model, workload, policy = sizes.model, sizes.workload, sizes.policy
    yield _both("cpu", "process", target.process_bytes)
    yield _both("cpu", "libraries", LIBRARY_BYTES)
    last = (workload.num_prompts or 0) % policy.block_size or policy.block_size
    smallest = last // -(
        -last // policy.gpu_batch_size
    )  # gpu batch, of the last block, which has what is left
    kernels, compiling = (
        kernels_host_bytes(model, smallest, target),
        target.kernels_host_bytes.get("compiling", 0),
    )
    for purpose, held in (("kernels", kernels), (COMPILING, compiling)):  # from the first pass on
        yield Entry(tier="cpu", purpose=purpose, prefill_bytes=held, decode_bytes=held)
    yield _both("cpu", TOKENIZER, tokenizer_bytes(model))
    yield _both("cpu", "requests", _requests(workload, policy))
    yield Entry(tier="cpu", purpose=LOADING, prefill_bytes=0, decode_bytes=0, loading_bytes=LOADING_BYTES)


def kernels_host_bytes(model: ModelSpec, num_rows: int, target: Target) -> int:
    """What a process keeps in host memory of the kernels it calls for a model, `num_rows` sequences or more at once."""
    kind: Kernels = "rotary" if has_rotary(model) else "opt"
    if any(layer.num_experts for layer in model.layers):
        kind = "experts"
    held = target.kernels_host_bytes
    has_few = model.has_embedding and num_rows <= FEW_ROWS and kind != "experts"
    return held.get(kind, 0) + (held.get("few_rows", 0) if has_few else 0)


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
