"""What a run took: seconds and bytes of every kind of task, and the wall time of both phases."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from executor.transfer import Handle
from planner.plan import Phase
from planner.schedule import Task

ATTEND = "attend"
"""The CPU's share of attention, inside a compute task."""
Key = tuple[Phase, str, str]
"""(phase, kind, resource)"""


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


class Measurements:
    """Sums over all blocks of a run; handles are dropped as soon as their tasks are done."""

    def __init__(self) -> None:
        self.totals: dict[Key, Total] = {}
        self.phase_s: dict[Phase, float] = {"prefill": 0.0, "decode": 0.0}
        self.phase_tokens: dict[Phase, int] = {"prefill": 0, "decode": 0}
        self.num_blocks = 0
        self._pending: deque[Handle] = deque()
        self._forget: Callable[[Handle], None] = lambda _: None
        self._base: torch.cuda.Event | None = None
        self._began = self._prefilled = self._ended = 0.0

    def start_block(self, device: torch.device, forget: Callable[[Handle], None]) -> None:
        """The clock starts; `forget` is told of every task that is done."""
        self._forget = forget
        self._base = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._base = torch.cuda.Event(enable_timing=True)
            self._base.record(torch.cuda.current_stream(device))
        self._began = self._prefilled = self._ended = time.perf_counter()

    def add(self, handle: Handle) -> None:
        """A task is on its way."""
        self._pending.append(handle)
        while self._pending and self._pending[0].is_done():
            self._count(self._pending.popleft())

    def add_attend(self, task: Task, num_bytes: int, seconds: float) -> None:
        """The CPU attended inside a compute task."""
        self.totals.setdefault((_phase(task), ATTEND, "cpu"), Total()).add(num_bytes, seconds)

    def token_done(self, handle: Handle, num_tokens: int) -> None:
        """A gpu batch's token has been sampled; `num_tokens` went through the layers for it."""
        at = self._finished_at(handle)
        self._ended = max(self._ended, at)
        if handle.task.i == 0:
            self._prefilled = max(self._prefilled, at)
        self.phase_tokens[_phase(handle.task)] += num_tokens

    def finish_block(self) -> None:
        """The clock stops, when every task is done."""
        while self._pending:
            handle = self._pending.popleft()
            handle.wait()
            self._count(handle)
        self.phase_s["prefill"] += self._prefilled - self._began
        self.phase_s["decode"] += self._ended - self._prefilled
        self.num_blocks += 1

    def _count(self, handle: Handle) -> None:
        key = (_phase(handle.task), handle.task.kind.value, handle.task.resource)
        self.totals.setdefault(key, Total()).add(handle.num_bytes, handle.seconds())
        self._forget(handle)

    def _finished_at(self, handle: Handle) -> float:
        """On the host's clock."""
        if self._base is not None and handle.device_event is not None:
            return self._began + float(self._base.elapsed_time(handle.device_event)) / 1e3
        return handle.stop_s


def _phase(task: Task) -> Phase:
    return "prefill" if task.i == 0 else "decode"
