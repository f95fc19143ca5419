"""One block in the engine: its gpu batches' state between tasks, clipped to the rows that it really has."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from executor.arena import write_by_kernel
from executor.attention import Part
from executor.batching import Block, GpuBatch
from executor.cache import KvView
from executor.sampling import Sampler
from executor.template import Arguments
from planner.placement import CacheRows, TierRows
from planner.sizes import IDS_KEPT, Sizes


@dataclass(frozen=True, slots=True)
class CachePlace:
    """A cache group of a gpu batch in one layer, with the ends of its copies."""

    near: KvView | None
    """In a slot of the compute tier; None in decode for rows that the CPU attends."""
    far: KvView
    """Its home on the host, or the buffer from which the disk is written; where the CPU computes, the slot itself."""
    file_offset: int | None
    """In the cache's file, where it is on disk."""


@dataclass(slots=True)
class BatchState:
    """A gpu batch while it is generated for."""

    batch: GpuBatch
    sampler: Sampler
    cache_rows: CacheRows
    activation_rows: TierRows
    pads: torch.Tensor | None
    """[rows] left padding on the compute device; None where nothing is padded."""
    host_pads: torch.Tensor | None
    """The same on the host."""
    chunks: tuple[tuple[int, int], ...]
    """(first row, rows) of each prefill chunk."""
    host_ids: torch.Tensor
    """[IDS_KEPT, rows] int64 on the host: ids of the last tokens, sampled here or on another stage."""
    written_ids: torch.Tensor
    """The same as the compute device's kernels see it."""
    arguments: list[tuple[Arguments, ...]] = field(default_factory=list)
    """For each chunk of this token, each layer's arguments."""
    last_hidden: torch.Tensor | None = None
    """[rows, hidden]: the last layer's output at the last position."""
    last_ids: torch.Tensor | None = None
    """[rows] on the compute device, as sampled here; the same tensor for every token."""
    decode_parts: dict[tuple[int, int], list[Part]] = field(default_factory=dict)
    """By layer and cache slot, where K and V are in decode: the same for every token."""
    decode_places: dict[tuple[int, int], list[CachePlace]] = field(default_factory=dict)
    """By layer and cache slot, likewise the ends of copies."""
    decode_hidden: torch.Tensor | None = None
    """[rows, 1, hidden], likewise the hidden states."""
    length: torch.Tensor | None = None
    """[1] int64 on the GPU: tokens cached before this step; None where no layer is replayed as a graph."""

    @property
    def num_rows(self) -> int:
        """Sequences of the gpu batch."""
        return len(self.batch.requests)

    def past(self, i: int) -> int:
        """Tokens cached before token i."""
        return 0 if i == 0 else self.batch.prompt_len + i - 1

    def num_new(self, i: int) -> int:
        """Tokens that token i's pass feeds in."""
        return self.batch.prompt_len if i == 0 else 1

    def sampled(self, i: int) -> torch.Tensor:
        """[rows] int64 on the host for token i, until token i + IDS_KEPT is sampled."""
        return self.host_ids[i % IDS_KEPT]

    def keep_sampled(self, ids: torch.Tensor) -> None:
        """The last token's ids [rows] on the compute device."""
        if self.last_ids is None:
            self.last_ids = ids
        else:
            self.last_ids.copy_(ids)

    def send_sampled(self, i: int) -> None:
        """Bring them to the host as token i's; they are there once what is queued on the device's stream is done."""
        assert self.last_ids is not None
        write_by_kernel(self.last_ids, self.written_ids[i % IDS_KEPT])

    def chunks_of(self, i: int) -> tuple[tuple[int, int], ...]:
        """Prefill goes in chunks of rows, decode takes all at once."""
        return self.chunks if i == 0 else ((0, self.num_rows),)


def batch_states(
    block: Block,
    samplers: list[Sampler],
    sizes: Sizes,
    ids: tuple[torch.Tensor, torch.Tensor],
    device: torch.device,
) -> list[BatchState]:
    """The state of each gpu batch of a block, which may have fewer rows than planned.

    `ids` are as of Allocations.token_ids.
    """
    host_ids, written_ids = ids
    states = []
    for k, (batch, sampler) in enumerate(zip(block.gpu_batches, samplers, strict=True)):
        rows, step = len(batch.requests), sizes.policy.prefill_rows
        pads = torch.tensor(batch.pad_lens) if any(batch.pad_lens) else None
        states.append(
            BatchState(
                batch=batch,
                sampler=sampler,
                cache_rows=sizes.placement.cache_rows[k].first(rows),
                activation_rows=sizes.placement.activation_rows[k].first(rows),
                pads=None if pads is None else pads.to(device),
                host_pads=pads,
                host_ids=host_ids[k, :, :rows],
                written_ids=written_ids[k, :, :rows],
                chunks=tuple((first, min(step, rows - first)) for first in range(0, rows, step)),
            )
        )
    return states
