"""What a run took: when every task ran, and the wall time of both phases, summed up while it runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from executor.one_time import OneTime
from executor.transfer import Handle
from planner.activity import Activity, Span, Timeline
from planner.cost import HOST
from planner.plan import PHASES, Phase
from planner.schedule import Task, TaskKind

Key = tuple[Phase, str, str]
"""(phase, kind, resource)"""
_SETTLE_SPANS = 2048
"""Spans are merged when there are so many, and once a token at most."""
_NEAR_S = 10.0
"""CUDA gives the time between events in milliseconds of single precision: within this, to a microsecond."""


class Recorder(Protocol):
    """Is told of everything measured, as it is measured; times are on the host's clock (time.perf_counter)."""

    def start_block(self, at_s: float) -> None:
        """A block begins."""

    def span(self, span: Span) -> None:
        """A task ran."""

    def token(self, at_s: float) -> None:
        """A token has been sampled for every gpu batch."""


@dataclass(slots=True)
class Total:
    """All tasks of one kind on one resource in one phase."""

    count: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """One more task."""
        self.count += 1
        self.num_bytes += num_bytes
        self.seconds += seconds


class DeviceClock:
    """Puts events of a device's streams on the host's clock."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)
        self._base = torch.cuda.Event(enable_timing=True)
        self._base.record(torch.cuda.current_stream(device))
        self._base.synchronize()  # other streams may be ahead of this one
        self._base_s = time.perf_counter()

    def at(self, event: torch.cuda.Event) -> float:
        """When an event took place, which is over."""
        since_s = float(self._base.elapsed_time(event)) / 1e3
        at_s = self._base_s + since_s
        if since_s > _NEAR_S:
            self._base, self._base_s = event, at_s
        return at_s


class Measurements:
    """Sums over all blocks of a run; handles are dropped as soon as their tasks are done."""

    def __init__(self) -> None:
        self.totals: dict[Key, Total] = {}
        self.activities: dict[Phase, Activity] = {phase: Activity() for phase in PHASES}
        self.phase_s: dict[Phase, float] = {"prefill": 0.0, "decode": 0.0}
        self.phase_tokens: dict[Phase, int] = {"prefill": 0, "decode": 0}
        self.num_blocks = 0
        self.passes: dict[int, int] = {}
        """Of each gpu batch of the latest block: tokens generated for it."""
        self.recorder: Recorder | None = None
        self._pending: deque[Handle] = deque()
        self._forget: Callable[[Handle], None] = lambda _: None
        self._clock: DeviceClock | None = None
        self._timeline = Timeline(0.0)
        self._began = self._prefilled = self._ended = 0.0
        self._token = 0
        self._one_time, self._first_began = OneTime(), 0.0

    def start_block(self, device: torch.device, forget: Callable[[Handle], None]) -> None:
        """The clock starts; `forget` is told of every task that is done."""
        self._forget = forget
        self._clock = DeviceClock(device) if device.type == "cuda" else None
        self._began = self._prefilled = self._ended = time.perf_counter()
        if self.num_blocks == 0:
            self._first_began = self._began
        self._timeline, self._token, self.passes = Timeline(self._began), 0, {}
        if self.recorder:
            self.recorder.start_block(self._began)

    def add(self, handle: Handle) -> None:
        """A task is on its way."""
        self._pending.append(handle)
        while self._pending and self._pending[0].is_done():
            self._count(self._pending.popleft())

    def token_done(self, handle: Handle, num_tokens: int) -> None:
        """A gpu batch's token has been sampled; `num_tokens` went through the layers for it."""
        at = self._finished_at(handle)
        i = handle.task.i
        self.passes[handle.task.k] = i + 1
        if i > self._token:
            self._next_token(i)
        self._ended = max(self._ended, at)
        if self.num_blocks == 0:
            self._one_time.token_done(i, at)
        if i == 0:
            self._prefilled = max(self._prefilled, at)
        self.phase_tokens[_phase(handle.task)] += num_tokens

    def finish_block(self) -> None:
        """The clock stops, when every task is done."""
        while self._pending:
            handle = self._pending.popleft()
            handle.wait()
            self._count(handle)
        self._next_token(self._token)
        self._settle(self._ended)
        self.phase_s["prefill"] += self._prefilled - self._began
        self.phase_s["decode"] += self._ended - self._prefilled
        self.num_blocks += 1

    def one_time_s(self) -> dict[Phase, float]:
        """Of each phase of the first block, after it: what is paid only once."""
        loads = sum(
            total.seconds
            for (phase, kind, _), total in self.totals.items()
            if (phase, kind) == ("prefill", TaskKind.LOAD_WEIGHT.value)
        )
        return self._one_time.seconds(self._first_began, loads)

    def _count(self, handle: Handle) -> None:
        task, seconds = handle.task, handle.seconds()
        key = (_phase(task), task.kind.value, task.resource)
        self.totals.setdefault(key, Total()).add(handle.num_bytes, seconds)
        stop_s = self._finished_at(handle)
        if self.num_blocks == 0 and task.i == 0 and task.kind is TaskKind.COMPUTE:
            self._one_time.layer_done(task.j, stop_s)
        self._keep(_span(task, task.kind.value, task.resource, stop_s - seconds, stop_s, handle.num_bytes))
        if handle.by_caller and handle.device_event is not None:
            self._issued(_span(task, task.kind.value, HOST, handle.start_s, handle.stop_s, 0))
        self._forget(handle)

    def _issued(self, span: Span) -> None:
        """The host asked a device for something."""
        self.activities["prefill" if span.i == 0 else "decode"].issue_s += span.stop_s - span.start_s
        if self.recorder:
            self.recorder.span(span)

    def _keep(self, span: Span) -> None:
        self._timeline.add(span)
        if self.recorder:
            self.recorder.span(span)

    def _next_token(self, i: int) -> None:
        """All gpu batches' tokens before i are there: what ran up to now can be merged."""
        self._token = i
        if self.recorder:
            self.recorder.token(self._ended)
        if len(self._timeline) > _SETTLE_SPANS:
            # nothing still on its way can have begun before it was submitted
            self._settle(self._pending[0].submitted_s if self._pending else self._ended)

    def _settle(self, until_s: float) -> None:
        """Sum up the time until then, cut where prefill ended."""
        if until_s >= self._prefilled > self._timeline.start_s:
            self.activities["prefill"].add(self._timeline.close(self._prefilled))
        if until_s > self._timeline.start_s >= self._prefilled:
            self.activities["decode"].add(self._timeline.close(until_s))

    def _finished_at(self, handle: Handle) -> float:
        """On the host's clock."""
        if self._clock is not None and handle.device_event is not None:
            return self._clock.at(handle.device_event)
        return handle.stop_s


def _phase(task: Task) -> Phase:
    return "prefill" if task.i == 0 else "decode"


def _span(task: Task, kind: str, lane: str, start_s: float, stop_s: float, num_bytes: int) -> Span:
    return Span(task.id, kind, lane, task.i, task.j, task.k, start_s, stop_s, num_bytes, task.deps)
