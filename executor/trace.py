"""The trace of a run: every task's measured interval, memory by token, and the predicted lanes above them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from executor import memory
from executor.ranks import ALONE, Ranks
from hwprofiles.profile import HardwareProfile
from planner.activity import Span
from planner.plan import Plan
from planner.sample import first_tokens
from planner.simulate import rates_for, simulate
from planner.simulate_stages import parts_of, simulate_stages
from planner.stage_rates import priced_at
from planner.trace import (
    MAX_EVENTS,
    MEASURED,
    PREDICTED,
    KeptEvents,
    TraceSink,
    TraceWriter,
    write_prediction,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """What goes into a trace and where it goes."""

    path: Path
    num_blocks: int = 1
    """The first so many blocks are recorded."""
    profile: HardwareProfile | None = None
    """To predict the lanes with; without one, there are only measured lanes."""


class RunTrace:
    """Tells a sink what is measured as it comes, by the clock of the trace; a Recorder of executor/measure.py."""

    def __init__(
        self, sink: TraceSink, num_blocks: int, device: torch.device, process: str = MEASURED
    ) -> None:
        self.sink, self.num_blocks, self.device, self.process = sink, num_blocks, device, process
        self.origin_s = 0.0
        self._block = 0

    def start_block(self, at_s: float) -> None:
        """The first one begins where the trace begins."""
        self._block += 1
        if self._block == 1:
            self.origin_s = at_s
        self.token(at_s)

    def span(self, span: Span) -> None:
        """A task ran."""
        if self._is_recording():
            start_s, stop_s = span.start_s - self.origin_s, span.stop_s - self.origin_s
            self.sink.span(self.process, span._replace(start_s=start_s, stop_s=stop_s))

    def token(self, at_s: float) -> None:
        """Sample the memory that the process and torch's allocator hold."""
        if not self._is_recording():
            return
        counts = {"cpu": memory.resident_bytes()}
        if self.device.type == "cuda":
            counts["gpu"] = torch.cuda.memory_reserved(self.device)
        for tier, held in counts.items():
            self.sink.counter(self.process, f"{tier} bytes", at_s - self.origin_s, {"held": held})

    def _is_recording(self) -> bool:
        return self._block <= self.num_blocks


@contextmanager
def open_trace(
    options: TraceOptions, plan: Plan, device: torch.device, ranks: Ranks = ALONE
) -> Iterator[RunTrace]:
    """A trace file, whole however the run ends; the prediction is of a full block, from its first token on."""
    if plan.stages:
        with _trace_of_ranks(options, plan, device, ranks) as trace:
            yield trace
        return
    with TraceWriter(options.path) as writer:
        if options.profile:
            sizes, rates = plan.sizes(), rates_for(plan, options.profile)
            (sample,) = first_tokens([sizes], MAX_EVENTS // 2)
            write_prediction(writer, simulate(sizes, rates, sample), plan.ledger)
        yield RunTrace(writer, options.num_blocks, device)


@contextmanager
def _trace_of_ranks(
    options: TraceOptions, plan: Plan, device: torch.device, ranks: Ranks
) -> Iterator[RunTrace]:
    """Every rank keeps its events; in the end the first one writes those of all, each by its own clock."""
    kept = KeptEvents(MAX_EVENTS // len(plan.stages))
    trace = RunTrace(kept, options.num_blocks, device, plan.rank_name(ranks.rank))
    everybody = [(kept, 0.0)]
    with TraceWriter(options.path) if ranks.rank == 0 else nullcontext() as writer:
        if writer and options.profile:
            _write_prediction(writer, plan, options.profile)
        try:
            yield trace
            everybody = ranks.collect("trace", (kept, trace.origin_s + ranks.clock_offset_s))
        finally:
            if writer:
                for events, origin_s in everybody:
                    events.replay(writer, origin_s - everybody[0][1])


def _write_prediction(writer: TraceWriter, plan: Plan, profile: HardwareProfile) -> None:
    """A group of predicted lanes for each rank."""
    parts = parts_of(priced_at(plan, profile))
    samples = first_tokens([part.sizes for part in parts], MAX_EVENTS // 2)
    for rank, simulation in enumerate(simulate_stages(parts, samples)):
        name = f"{PREDICTED}, {plan.rank_name(rank)}"
        write_prediction(writer, simulation, plan.stages[rank].ledger, name)
