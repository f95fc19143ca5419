"""Requests to blocks of gpu batches, left-padded; planner/batching.py says which go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planner.batching import BatchLengths, block_bounds, longest_first
from planner.prompts import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBatch:
    """The sequences computed together.

    input_ids: [rows, prompt_len] int64, left-padded; pad_lens: padding at the left of each row, in tokens.
    """

    requests: tuple[Request, ...]
    input_ids: torch.Tensor
    pad_lens: tuple[int, ...]

    @property
    def prompt_len(self) -> int:
        return self.input_ids.shape[1]

    @property
    def gen_len(self) -> int:
        return max(request.max_tokens for request in self.requests)

    @property
    def num_pad_tokens(self) -> int:
        return sum(self.pad_lens)

    def lengths(self, num_passes: int) -> BatchLengths:
        """As the planner prices it, with so many tokens generated."""
        rows, prompt_len = len(self.requests), self.prompt_len
        return BatchLengths(rows, prompt_len, num_passes, rows * prompt_len - self.num_pad_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The gpu batches that share one pass of the weights."""

    gpu_batches: tuple[GpuBatch, ...]


def make_blocks(
    requests: Sequence[Request], *, gpu_batch_size: int, num_gpu_batches: int, pad_id: int
) -> list[Block]:
    """Every request in exactly one gpu batch of at most `gpu_batch_size` rows, `num_gpu_batches` to a block.

    Which is in which, planner.batching says: by the same rules a plan's blocks are priced.
    """
    requests = sorted(requests, key=lambda request: request.index)
    order = longest_first([(len(request.prompt_ids), request.max_tokens) for request in requests])
    return [
        Block(gpu_batches=tuple(_left_pad([requests[order[n]] for n in batch], pad_id) for batch in block))
        for block in block_bounds(len(order), gpu_batch_size, num_gpu_batches)
    ]


def _left_pad(requests: list[Request], pad_id: int) -> GpuBatch:
    prompt_len = max(len(request.prompt_ids) for request in requests)
    pad_lens = tuple(prompt_len - len(request.prompt_ids) for request in requests)
    input_ids = torch.full((len(requests), prompt_len), pad_id, dtype=torch.int64)  # [rows, prompt_len]
    for row, (request, pad_len) in enumerate(zip(requests, pad_lens, strict=True)):
        input_ids[row, pad_len:] = torch.tensor(request.prompt_ids, dtype=torch.int64)
    return GpuBatch(requests=tuple(requests), input_ids=input_ids, pad_lens=pad_lens)
