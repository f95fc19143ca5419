"""The engine: a plan's allocations, loaded once, and the loop that generates one block after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from executor.allocations import Allocations, EngineOptions
from executor.batching import Block, make_blocks
from executor.block_run import BlockRun
from executor.checkpoint import Checkpoint
from executor.measure import Measurements
from executor.progress import Reporter, SilentReporter
from executor.sampling import Sampler
from executor.warm_up import WarmUpRun
from hwprofiles.allocation import trim_heap
from planner.plan import Plan
from planner.prompts import synthetic_requests

__all__ = ["Engine", "EngineOptions"]
_WARM_UP_TOKENS = 2
"""One of prefill, one of decode."""


class Engine(Allocations):
    """Runs blocks on what a plan allocates, and measures them."""

    def __init__(self, plan: Plan, options: EngineOptions) -> None:
        super().__init__(plan, options)
        self.measurements = Measurements()

    def load(self, checkpoint: Checkpoint, progress: Callable[[int], None] = lambda _: None) -> None:
        """The checkpoint's weights into their homes, tensor by tensor; `progress` is told the bytes."""
        self.homes.load(checkpoint, progress)
        self._ready()

    def load_dummy(self, seed: int = 0, progress: Callable[[int], None] = lambda _: None) -> None:
        """Random weights of the right shapes instead of a checkpoint's; `progress` is told the bytes."""
        self.homes.load_dummy(seed, progress)
        self._ready()

    def _ready(self) -> None:
        trim_heap()  # of what weights were read or made in
        self.compute.bind_ends(self.homes)
        if self.options.device.type == "cuda":
            self.warm_up()

    def warm_up(self) -> None:
        """Play a few layers of one gpu batch, so that no block waits for kernels to be compiled and loaded.

        What they leave in slots and homes is written anew before it is read.
        """
        workload, vocab_size = self.plan.workload, self.plan.model.spec().vocab_size
        size, gen_len = self.plan.policy.gpu_batch_size, min(_WARM_UP_TOKENS, workload.gen_len)
        requests = synthetic_requests(size, workload.prompt_len, gen_len, vocab_size)
        block = make_blocks(requests, gpu_batch_size=size, num_gpu_batches=1, pad_id=0)[0]
        sampler = Sampler(
            block.gpu_batches[0], eos_ids=frozenset(), tokenizer=None, device=self.options.device
        )
        self._play(WarmUpRun(self, block, [sampler]))

    def generate(self, block: Block, samplers: Sequence[Sampler], reporter: Reporter | None = None) -> None:
        """Generate for a block until every row of every sampler is finished."""
        self._play(BlockRun(self, block, samplers, reporter or SilentReporter(), self.measurements))

    @staticmethod
    def _play(run: BlockRun) -> None:
        try:
            with torch.inference_mode():
                run.play()
        except BaseException as error:
            run.lanes.failure.note(error)  # what is queued is not worth waiting for
            raise
        finally:
            run.lanes.close()
