"""Rates, remaining time and the line on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from executor.console import ConsoleReporter
from executor.progress import Pace, Reporter, SilentReporter


class _Clock:
    """Seconds set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_phases_are_timed_apart() -> None:
    """Remaining time takes each phase's own seconds per token; throughput is over both phases."""
    clock = _Clock()
    pace = Pace(100, 1000, clock=clock)
    assert (pace.tokens_per_s, pace.remaining_s) == (None, None)
    clock.now_s = 2.0
    pace.advance("prefill", 500)
    assert (pace.tokens_per_s, pace.remaining_s) == (None, None)
    clock.now_s = 7.0
    pace.advance("decode", 10)
    assert pace.tokens_per_s == pytest.approx(10 / 7)
    assert pace.remaining_s == pytest.approx(500 * 2 / 500 + 90 * 5 / 10)
    pace.dropped(40)
    assert pace.remaining_s == pytest.approx(2 + 50 * 5 / 10)


def test_nothing_left_takes_no_time() -> None:
    """With all tokens generated or dropped the remaining time is zero."""
    clock = _Clock()
    pace = Pace(10, 0, clock=clock)
    clock.now_s = 1.0
    pace.advance("decode", 4)
    pace.dropped(6)
    assert pace.remaining_s == 0


def test_the_terminal_shows_tokens_rate_and_time_left() -> None:
    """A resumed job begins where the earlier run was; tokens that are not needed leave the total."""
    clock, output = _Clock(), io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, record=True)
    reporter: Reporter = ConsoleReporter(console, clock=clock)
    reporter.started(300, 100, 64)
    clock.now_s = 1.0
    reporter.advance("prefill", 64)
    clock.now_s = 11.0
    reporter.advance("decode", 110)
    reporter.dropped(20)
    reporter.finished()
    last = console.export_text().splitlines()[-1]
    assert "210/280 tokens" in last
    assert "10.0 tok/s" in last
    assert "6.36 s left" in last


def test_silence() -> None:
    """A run without a terminal needs no reporter of its own."""
    reporter: Reporter = SilentReporter()
    reporter.started(3, 0)
    reporter.advance("decode", 1)
    reporter.dropped(2)
    reporter.finished()
