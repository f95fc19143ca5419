"""Measurements: what is summed up of tasks, without a run."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from executor.measure import Measurements
from executor.transfer import Handle
from planner.activity import Span
from planner.schedule import Slots, Task, TaskKind

TASK = Task(id=0, kind=TaskKind.COMPUTE, i=0, j=0, k=0, resource="gpu", deps=(), slots=Slots(-1, -1, -1, -1))


class Over:
    """Stands in for an event of a stream that is over."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Kept:
    """A recorder."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_block(self, at_s: float) -> None:
        pass

    def span(self, span: Span) -> None:
        self.spans.append(span)

    def token(self, at_s: float) -> None:
        pass


def handle(number: int, i: int, start_s: float, stop_s: float, *, on_stream: bool, by_caller: bool) -> Handle:
    found = Handle(TASK._replace(id=number, i=i), start_s=start_s, stop_s=stop_s, by_caller=by_caller)
    if on_stream:
        found.device_event = cast("torch.cuda.Event", Over())
    found.issued.set()
    return found


def test_the_host_is_at_work_where_it_asks_a_device() -> None:
    """By phase: not where a lane's own thread asks, nor where the work itself is the host's."""
    measured, kept = Measurements(), Kept()
    measured.recorder = kept
    measured.start_block(torch.device("cpu"), lambda _: None)
    measured.add(handle(0, 0, 1.0, 1.5, on_stream=True, by_caller=True))
    measured.add(handle(1, 1, 2.0, 2.25, on_stream=True, by_caller=True))
    measured.add(handle(2, 1, 3.0, 4.0, on_stream=True, by_caller=False))
    measured.add(handle(3, 1, 5.0, 7.0, on_stream=False, by_caller=True))
    assert measured.activities["prefill"].issue_s == pytest.approx(0.5)
    assert measured.activities["decode"].issue_s == pytest.approx(0.25)
    assert [span.id for span in kept.spans if span.lane == "host"] == [0, 1]
    assert [span.id for span in kept.spans if span.lane == "gpu"] == [0, 1, 2, 3]
