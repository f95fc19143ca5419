"""Cores: each in turn, the mean over them, and a thread that is let go again."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from hwprofiles.probes.cores import cores, mean_over_cores, on_core

ALLOWED = set(os.sched_getaffinity(0))


def test_a_thread_is_bound_and_let_go() -> None:
    """Also when what it does fails."""
    for core in cores():
        with on_core(core):
            assert os.sched_getaffinity(0) == {core}
    with pytest.raises(RuntimeError), on_core(min(ALLOWED)):
        raise RuntimeError
    assert os.sched_getaffinity(0) == ALLOWED


def test_slow_cores_count_as_much_as_fast_ones() -> None:
    """The mean of a figure that every second core doubles, whichever the thread would have stayed on."""
    each = cores()
    slow = set(each[::2])

    def seconds() -> float:
        (core,) = os.sched_getaffinity(0)
        return 2.0 if core in slow else 1.0

    share = len(slow) / len(each)
    found = mean_over_cores(seconds, 0.0)
    rounds = -(-3 // len(each)) * len(each)
    assert rounds >= 3  # each core as often as any other
    assert found.median == pytest.approx(1 + share, rel=1e-4)


def test_where_binding_is_refused_the_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container."""

    def refuse(pid: int, chosen: Iterable[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with on_core(min(ALLOWED)):
        assert os.sched_getaffinity(0) == ALLOWED
    assert mean_over_cores(lambda: 3.0, 0.0).median == 3.0


def test_at_most_sixteen_cores_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, of as many as there are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)))
    assert cores() == tuple(range(0, 40, 3))
