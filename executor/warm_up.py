"""Warm-up: a block run of which only the first and the last layer are played, one task at a time."""

from __future__ import annotations

from collections.abc import Sequence

from executor.allocations import Allocations
from executor.batching import Block
from executor.block_run import BlockRun
from executor.measure import Measurements
from executor.progress import SilentReporter
from executor.sampling import Sampler
from executor.transfer import Lanes
from planner.schedule import PRELUDE, Task, TaskKind


class WarmUpRun(BlockRun):
    """Calls every kernel of a run at its own sizes, and leaves the allocator the memory that a run takes."""

    def __init__(self, held: Allocations, block: Block, samplers: Sequence[Sampler]) -> None:
        super().__init__(held, block, samplers, SilentReporter(), Measurements())
        self.lanes = Lanes(held.streams, overlap=False)  # tasks that are left out order nothing
        num_layers = len(self.sizes.model.layers)
        self.stops = {PRELUDE, 0, num_layers - 1, num_layers}
        for state in self.states:  # what another stage would send
            state.host_ids.zero_()

    def wanted(self, task: Task) -> bool:
        """Other stages are left alone."""
        return task.j in self.stops and task.kind not in {TaskKind.SEND, TaskKind.RECEIVE}
