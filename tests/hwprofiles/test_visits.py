"""Visits: slices that visits share, and what counts of the rates that they found."""

from __future__ import annotations

import time

import pytest

from hwprofiles.budget import Pace
from hwprofiles.points import Rate
from hwprofiles.probes.visits import Visits


def visited(*rates: Rate) -> Visits:
    """One point, `here`, with these rates."""
    visits = Visits(Pace(1.0, 1, lambda *_: None), len(rates))
    for rate in rates:
        visits.add("here", rate)
    return visits


def test_visits_share_a_slice() -> None:
    """The first visit is a point of the pace, and those that follow get as long as it did."""
    labels: list[str] = []
    pace = Pace(1.0, 2, lambda label, *_: labels.append(label))
    visits = Visits(pace, 2)
    slices_s = [visits.slice_s(label) for label in ("here", "there", "here", "there")]
    assert labels == ["here", "there"]
    assert slices_s[:2] == slices_s[2:]
    assert slices_s[0] == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("num_visits", [1, 2, 3])
def test_later_visits_have_their_time(monkeypatch: pytest.MonkeyPatch, num_visits: int) -> None:
    """Points that come after get none of it: with all visits done, and one more, the budget is used up."""
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    pace = Pace(12.0, 12, lambda *_: None)
    for _ in range(2):
        visits = Visits(pace, num_visits)
        for label in [f"point {n}" for n in range(6)] * num_visits:
            slice_s = visits.slice_s(label)
            assert slice_s == pytest.approx(1 / num_visits)
            now_s += slice_s
        assert visits.slice_s("point 0") == pytest.approx(1 / num_visits)
    assert now_s == pytest.approx(12.0)


def test_the_best_visit() -> None:
    """As it was found, its spread too; other points do not count."""
    visits = visited(Rate(median=2.0, spread=0.1), Rate(median=3.0, spread=0.2), Rate(median=1.0))
    visits.add("there", Rate(median=9.0))
    assert visits.best("here") == Rate(median=3.0, spread=0.2)


def test_the_middle_visit() -> None:
    """Its own spread, or half the interquartile range of the visits over it if that is more."""
    low, middle, high = Rate(median=2.0, spread=0.3), Rate(median=10.0, spread=0.1), Rate(median=11.0)
    assert visited(high, low, middle).middle("here") == Rate(median=10.0, spread=0.225)
    assert visited(middle, middle, high).middle("here") == middle


def test_half_way_between_visits() -> None:
    """Each visit counts as much as the other, and the spread covers both; of one visit it is that visit's own."""
    both = visited(Rate(median=1.0, spread=0.1), Rate(median=3.0, spread=0.2))
    assert both.mean("here") == Rate(median=2.0, spread=0.5)
    assert visited(Rate(median=1.0, spread=0.1)).mean("here") == Rate(median=1.0, spread=0.1)


def test_of_four_visits_the_outer_ones_do_not_count() -> None:
    """One that was disturbed is no part of the mean, nor of the spread."""
    rates = [Rate(median=median, spread=0.01) for median in (11.0, 36.0, 40.0, 38.0)]
    assert visited(*rates).mean("here") == Rate(median=37.0, spread=0.027)
    assert visited(*rates[:3]).mean("here").median == 29.0
