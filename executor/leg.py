"""A leg of a job: the blocks that one plan runs, from what it allocates to the report of what it measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from executor import memory
from executor.batching import Block, make_blocks
from executor.checkpoint import Checkpoint
from executor.engine import Engine, EngineOptions
from executor.loading import LoadProgress
from executor.measure import Recorder
from executor.progress import Reporter
from executor.report import JobTotals, make_report
from executor.results import ResultFile
from executor.sampling import Completion, Sampler
from planner.ledger import LOADING, TOKENIZER
from planner.plan import Phase, Plan
from planner.prompts import Request
from planner.report import RunReport

DUMMY_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What all legs of a job have in common."""

    engine_options: EngineOptions
    checkpoint: Checkpoint | None
    """None: dummy weights."""
    tokenizer: PreTrainedTokenizerBase | None
    eos_ids: frozenset[int]
    total_tokens: int
    """Of all prompts of the job, at most."""
    results: ResultFile | None
    recorder: Recorder | None
    reporter: Reporter
    loading: LoadProgress
    sink: Callable[[Sequence[Completion]], None]
    has_tokens: bool = True
    """Whether all tokens become known here: on the first of a pipeline's ranks."""

    @property
    def absent(self) -> frozenset[str]:
        """What does not arise of a plan's ledger."""
        has = {TOKENIZER: self.tokenizer is not None, LOADING: self.checkpoint is not None}
        return frozenset(purpose for purpose in has if not has[purpose])


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlock:
    """What is known when a job's first block is done and others are left."""

    report: RunReport
    one_time_s: Mapping[Phase, float]
    """Within the report's times: what only the first block of a process takes."""
    remaining: tuple[Request, ...]
    reload_s: float
    """What loading the weights took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Another plan for the rest of a job."""

    plan: Plan
    remaining: tuple[Request, ...]
    reason: str


Ask = Callable[[FirstBlock], Switch | None]
"""Whether the rest of a job is to go on with another plan."""


def run_leg(
    plan: Plan, pending: Sequence[Request], context: JobContext, ask: Ask | None = None
) -> tuple[RunReport, Switch | None]:
    """Run these prompts block by block; all of them, or where `ask` wants another plan, those of the first block."""
    with ExitStack() as stack:
        blocks = make_blocks(
            pending,
            gpu_batch_size=plan.policy.gpu_batch_size,
            num_gpu_batches=plan.policy.num_gpu_batches,
            pad_id=_pad_id(context.tokenizer),
        )
        leg = _Leg(plan, context)
        stack.callback(leg.engine.close)
        leg.load()
        left = sum(request.max_tokens for request in pending)
        prompt_tokens = sum(len(request.prompt_ids) for request in pending)
        context.reporter.started(context.total_tokens, context.total_tokens - left, prompt_tokens)
        stack.callback(context.reporter.finished)
        for number, block in enumerate(blocks):
            leg.run(block)
            if ask and number == 0 and len(blocks) > 1:
                first = leg.first_block(blocks[1:])
                if switch := ask(first):
                    return first.report, switch
        return leg.report(), None


def give_memory_back(device: torch.device) -> None:
    """Between two legs: what the first one held is gone before the second one allocates, and peaks begin anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    memory.reset_peak()


def _pad_id(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Any token will do where nothing attends to it; the tokenizer's own if it has one."""
    found = tokenizer.pad_token_id if tokenizer else None
    return int(found) if found is not None else 0


class _Leg:
    """An engine, and what was run on it."""

    def __init__(self, plan: Plan, context: JobContext) -> None:
        self.plan, self.context, self.load_s = plan, context, 0.0
        self.totals = JobTotals(absent=context.absent)
        self.engine = Engine(plan, context.engine_options)
        self.engine.measurements.recorder = context.recorder

    def load(self) -> None:
        """The checkpoint's weights, or random ones, into their homes."""
        context, began = self.context, time.perf_counter()
        with context.loading:
            if context.checkpoint is None:
                self.engine.load_dummy(DUMMY_SEED, context.loading.advance)
            else:
                self.engine.load(context.checkpoint, context.loading.advance)
        self.load_s = time.perf_counter() - began

    def run(self, block: Block) -> None:
        """Generate one block; its lines are safe before anything else is told of them."""
        context = self.context
        completions = self._generate(block)
        if context.results:
            context.results.append(completions)
        self.totals.add(block, completions, self.engine.measurements.passes)
        context.sink(completions)

    def _generate(self, block: Block) -> list[Completion]:
        context = self.context
        samplers = [
            Sampler(
                batch, eos_ids=context.eos_ids, tokenizer=context.tokenizer, device=self.engine.options.device
            )
            for batch in block.gpu_batches
        ]
        self.engine.generate(block, samplers, context.reporter)
        if not context.has_tokens:
            return []
        completions = [completion for sampler in samplers for completion in sampler.results()]
        context.reporter.dropped(
            sum(max(0, c.request.max_tokens - len(c.token_ids) - 1) for c in completions)
        )
        return completions

    def first_block(self, others: Sequence[Block]) -> FirstBlock:
        """What is known after it."""
        requests = (request for block in others for batch in block.gpu_batches for request in batch.requests)
        return FirstBlock(
            report=self.report(),
            one_time_s=self.engine.measurements.one_time_s(),
            remaining=tuple(requests),
            reload_s=self.load_s,
        )

    def report(self) -> RunReport:
        """Of everything run so far."""
        store = self.engine.store
        return make_report(
            self.plan,
            self.engine.measurements,
            self.totals,
            self.engine.options.device,
            disk_bytes=store.allocated_bytes() if store else 0,
        )
