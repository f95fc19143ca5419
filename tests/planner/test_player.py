"""The player: against an event loop that looks at everything at every event."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contention import Commons, fair_speeds
from planner.player import Pieces, play

SHARES = [(0.0, 0.0), (0.6, 0.0), (0.3, 0.9), (1.5, 0.2)]
NUM_LANES = 3


@st.composite
def pieces_of(draw: st.DrawFn) -> Pieces:
    """Up to twelve tasks, each after some of those before it."""
    pieces = Pieces()
    for task in range(draw(st.integers(1, 12))):
        deps = draw(st.sets(st.integers(0, task - 1), max_size=3)) if task else set()
        pieces.add(
            draw(st.integers(0, NUM_LANES - 1)),
            draw(st.sampled_from((0.0, 0.5, 1.0, 2.5))),
            draw(st.integers(0, len(SHARES) - 1)),
            tuple(sorted(deps)),
        )
    return pieces


def play_plainly(pieces: Pieces) -> tuple[list[float], list[float]]:
    """At every event start whatever can be, share out speeds anew, and go on to the next end."""
    count, now = len(pieces.lanes), 0.0
    left, starts, stops = list(pieces.seconds), [-1.0] * count, [-1.0] * count
    while any(stop < 0 for stop in stops):
        for task in range(count):
            before = [t for t in range(task) if pieces.lanes[t] == pieces.lanes[task]]
            if starts[task] < 0 and all(stops[t] >= 0 for t in (*before, *pieces.deps[task])):
                starts[task] = now
        running = [task for task in range(count) if starts[task] >= 0 > stops[task]]
        speeds = fair_speeds([SHARES[pieces.kinds[task]] for task in running])
        step = min(left[task] / speed for task, speed in zip(running, speeds, strict=True))
        now += step
        for task, speed in zip(running, speeds, strict=True):
            left[task] -= step * speed
            if left[task] <= 1e-12:
                stops[task] = now
    return starts, stops


@settings(max_examples=150, deadline=None)
@given(pieces=pieces_of())
def test_every_task_runs_when_a_plain_loop_says(pieces: Pieces) -> None:
    """Starts and stops are the same, whatever waits for what and slows what."""
    starts, stops = play(pieces, NUM_LANES, Commons(SHARES))
    plain_starts, plain_stops = play_plainly(pieces)
    assert starts == pytest.approx(plain_starts, abs=1e-9)
    assert stops == pytest.approx(plain_stops, abs=1e-9)


def test_a_task_that_waits_for_itself_is_our_bug() -> None:
    """Nothing is left undone in silence."""
    pieces = Pieces()
    pieces.add(0, 1.0, 0, (0,))
    with pytest.raises(AssertionError, match="never comes"):
        play(pieces, 1, Commons(SHARES))
