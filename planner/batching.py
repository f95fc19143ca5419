"""Batching: prompts to blocks of gpu batches by their lengths alone, longest first, so that little is padded.

The planner prices a job's blocks and the executor makes them by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Lengths = Sequence[tuple[int, int]]
"""(prompt tokens, tokens to generate) of each prompt of a job."""


class BatchLengths(NamedTuple):
    """What one gpu batch is given, or was given in a run."""

    rows: int
    prompt_len: int
    """Of its longest prompt, to which the others are padded."""
    gen_len: int
    """Passes: the most that one of its rows generates."""
    prompt_tokens: int
    """Padding left out."""

    @property
    def padding_tokens(self) -> int:
        """Fill in front of the shorter prompts."""
        return self.rows * self.prompt_len - self.prompt_tokens


BlockLengths = tuple[BatchLengths, ...]


def longest_first(lengths: Lengths) -> list[int]:
    """The order of a job: positions in `lengths`, longest prompt first, then most tokens to generate.

    So the block that needs most memory runs first, rows of one gpu batch have nearly the same length, and those of
    the same length end together.
    """
    return sorted(range(len(lengths)), key=lambda n: (-lengths[n][0], -lengths[n][1], n))


def block_bounds(num_prompts: int, gpu_batch_size: int, num_gpu_batches: int) -> list[tuple[range, ...]]:
    """Each block's gpu batches, as positions in the order of the job.

    Only the last block may be smaller; it has as few gpu batches as hold it, and their sizes differ by at most one.
    """
    block_size = gpu_batch_size * num_gpu_batches
    return [
        tuple(_spread(start, min(block_size, num_prompts - start), gpu_batch_size))
        for start in range(0, num_prompts, block_size)
    ]


def _spread(start: int, rows: int, gpu_batch_size: int) -> Iterator[range]:
    num_groups = -(-rows // gpu_batch_size)
    bounds = [start + rows * group // num_groups for group in range(num_groups + 1)]
    return (range(first, end) for first, end in pairwise(bounds))


def make_blocks(
    prompt_lens: NDArray[np.int64], gen_lens: NDArray[np.int64], gpu_batch_size: int, num_gpu_batches: int
) -> list[BlockLengths]:
    """The blocks of a job whose lengths are in the order of `longest_first`."""
    bounds = block_bounds(len(prompt_lens), gpu_batch_size, num_gpu_batches)
    starts = [batch.start for block in bounds for batch in block]
    longest = prompt_lens[starts].tolist()
    most, tokens = (
        np.maximum.reduceat(gen_lens, starts).tolist(),
        np.add.reduceat(prompt_lens, starts).tolist(),
    )
    found = zip(longest, most, tokens, strict=True)
    return [tuple(BatchLengths(len(batch), *next(found)) for batch in block) for block in bounds]
