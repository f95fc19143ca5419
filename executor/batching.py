"""Requests to blocks of gpu batches: longest first, left-padded, as little padding as sorting allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The gpu batches that share one pass of the weights."""

    gpu_batches: tuple[GpuBatch, ...]


def make_blocks(
    requests: Sequence[Request], *, gpu_batch_size: int, num_gpu_batches: int, pad_id: int
) -> list[Block]:
    """Every request in exactly one gpu batch of at most `gpu_batch_size` rows, `num_gpu_batches` to a block.

    Sorted over the whole job, longest prompt first: the block that needs most memory runs first, and rows of
    one gpu batch have nearly the same length. Rows of equal length are sorted by max_tokens, so that they end
    together. Only the last block may be smaller; it has as few gpu batches as hold it, and their sizes differ
    by at most one row.
    """
    ordered = sorted(
        requests, key=lambda request: (-len(request.prompt_ids), -request.max_tokens, request.index)
    )
    block_size = gpu_batch_size * num_gpu_batches
    return [
        Block(
            gpu_batches=tuple(
                _left_pad(rows, pad_id)
                for rows in _spread(ordered[start : start + block_size], gpu_batch_size)
            )
        )
        for start in range(0, len(ordered), block_size)
    ]


def _spread(requests: list[Request], gpu_batch_size: int) -> list[list[Request]]:
    """Consecutive groups of at most `gpu_batch_size`, as few as possible, their sizes equal up to one."""
    num_groups = -(-len(requests) // gpu_batch_size)
    bounds = [len(requests) * group // num_groups for group in range(num_groups + 1)]
    return [requests[start:end] for start, end in pairwise(bounds)]


def _left_pad(requests: list[Request], pad_id: int) -> GpuBatch:
    prompt_len = max(len(request.prompt_ids) for request in requests)
    pad_lens = tuple(prompt_len - len(request.prompt_ids) for request in requests)
    input_ids = torch.full((len(requests), prompt_len), pad_id, dtype=torch.int64)  # [rows, prompt_len]
    for row, (request, pad_len) in enumerate(zip(requests, pad_lens, strict=True)):
        input_ids[row, pad_len:] = torch.tensor(request.prompt_ids, dtype=torch.int64)
    return GpuBatch(requests=tuple(requests), input_ids=input_ids, pad_lens=pad_lens)
