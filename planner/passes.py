"""Passes: all the passes that a job's blocks make over the layers, as a few steps that stand for them.

Work is nearly linear in the tokens a pass attends to, so that passes of like blocks are priced together at their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.batching import BlockLengths
from planner.graphs import CAPTURE_PASS
from planner.policy import Policy
from planner.work import MAX_DECODE_GROUPS, Step, steps_of
from planner.workload import Workload

Blocks = Mapping[BlockLengths, int]
"""Blocks, and how many there are of each."""
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Blocks with the same number of rows in each gpu batch, and what they do one after the other."""

    batch_rows: tuple[int, ...]
    num_blocks: int
    steps: tuple[Step, ...]

    @property
    def mean_rows(self) -> float:
        """Sequences of a gpu batch."""
        return sum(self.batch_rows) / len(self.batch_rows)

    def ends_of(self, step: Step) -> float:
        """How many of a step's passes end a phase of a block: prefill has one, of decode each pass a share."""
        passes = sum(other.num_steps for other in self.steps if other.phase == step.phase)
        return self.num_blocks * step.num_steps / passes


def full_block(policy: Policy, workload: Workload, max_decode_groups: int) -> Run:
    """One block as large, and with sequences as long, as planned."""
    rows = (policy.gpu_batch_size,) * policy.num_gpu_batches
    return Run(batch_rows=rows, num_blocks=1, steps=tuple(steps_of(workload, max_decode_groups)))


def runs_of(blocks: Blocks, max_groups: int = MAX_DECODE_GROUPS) -> list[Run]:
    """The blocks of a job, alike ones together; passes of a phase in so many groups, of decode up to twice as many."""
    by_rows: dict[tuple[int, ...], list[BlockLengths]] = {}
    for block in blocks:
        by_rows.setdefault(tuple(batch.rows for batch in block), []).append(block)
    return [
        Run(
            batch_rows=rows,
            num_blocks=sum(blocks[block] for block in alike),
            steps=tuple(_steps(alike, [blocks[block] for block in alike], max_groups, max_groups)),
        )
        for rows, alike in by_rows.items()
    ]


def mean_steps(blocks: Blocks, max_decode_groups: int) -> list[Step]:
    """What one of the blocks does on average; gpu batches that are smaller than others count like them."""
    counts = list(blocks.values())
    return _steps(list(blocks), [count / sum(counts) for count in counts], 1, max_decode_groups)


def _steps(
    blocks: Sequence[BlockLengths], counts: Sequence[float], prefills: int, decodes: int
) -> list[Step]:
    """At most so many steps of each phase; where gpu batches end at different times, twice as many of decode."""
    batches = np.array(blocks, dtype=np.float64)  # [blocks, gpu batches, fields of BatchLengths]
    rows, prompt_lens, gen_lens = batches[..., 0], batches[..., 1], batches[..., 2]
    weights = np.array(counts, dtype=np.float64)
    return [
        *_prefill(rows, prompt_lens, weights, prefills),
        *_decode(rows, prompt_lens, gen_lens, weights, decodes),
    ]


def _prefill(rows: Vector, prompt_lens: Vector, weights: Vector, max_groups: int) -> list[Step]:
    """One pass a block, at the mean length of its sequences."""
    total = rows.sum(axis=1)
    mean = (rows * prompt_lens).sum(axis=1) / total
    square = (rows * prompt_lens**2).sum(axis=1) / total
    group = _groups(np.argsort(mean, kind="stable"), weights, max_groups)
    count, length = _sums(group, weights), _means(group, weights, mean)
    spread = np.maximum(0.0, _means(group, weights, square) - length**2)
    return [
        Step(phase="prefill", num_new=new, context=new, num_steps=number, spread=beyond)
        for number, new, beyond in zip(count.tolist(), length.tolist(), spread.tolist(), strict=True)
    ]


def _decode(
    rows: Vector, prompt_lens: Vector, gen_lens: Vector, weights: Vector, max_groups: int
) -> list[Step]:
    """A block's passes in pieces between the ends of its gpu batches; then pieces that are alike together."""
    order = np.argsort(gen_lens, axis=1, kind="stable")
    rows, prompt_lens, ends = (np.take_along_axis(of, order, axis=1) for of in (rows, prompt_lens, gen_lens))
    starts = np.concatenate([np.ones_like(ends[:, :1]), ends[:, :-1]], axis=1)
    active, tokens = (np.cumsum(of[:, ::-1], axis=1)[:, ::-1] for of in (rows, rows * prompt_lens))
    cuts = starts[..., None] + np.floor((ends - starts)[..., None] * np.arange(max_groups + 1) / max_groups)
    passes = np.diff(cuts) * weights[:, None, None]  # [blocks, gpu batches, pieces]
    context = (tokens / active)[..., None] + (cuts[..., :-1] + cuts[..., 1:] - 1) / 2
    share = np.broadcast_to((active / active[:, :1])[..., None], passes.shape)
    some = passes > 0
    if not some.any():
        return []
    passes, context, share = passes[some], context[some], share[some]
    num_groups = max_groups if len(set(share.tolist())) <= 1 else 2 * max_groups
    group = _groups(np.lexsort((context, share)), passes, num_groups)
    count, mean_share = _sums(group, passes), _means(group, passes, share)
    mean_context = _means(group, passes * share, context)
    captured = min(1.0, float(weights.sum() / passes.sum()))  # once a block
    eager = min(1.0, CAPTURE_PASS * captured)
    return [
        Step(
            phase="decode",
            num_new=1,
            context=length,
            num_steps=number,
            share=part,
            eager=eager,
            captured=captured,
        )
        for number, length, part in zip(
            count.tolist(), mean_context.tolist(), mean_share.tolist(), strict=True
        )
    ]


def _groups(order: NDArray[np.int64], weights: Vector, max_groups: int) -> NDArray[np.int64]:
    """For each element its group: neighbours in `order`, groups of equal weight, numbered without gaps."""
    ordered = weights[order]
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.floor((np.cumsum(ordered) - ordered / 2) / ordered.sum() * max_groups)
    return np.unique(group, return_inverse=True)[1]


def _sums(group: NDArray[np.int64], values: Vector) -> Vector:
    return np.bincount(group, weights=values).astype(np.float64)


def _means(group: NDArray[np.int64], weights: Vector, values: Vector) -> Vector:
    return _sums(group, weights * values) / _sums(group, weights)
