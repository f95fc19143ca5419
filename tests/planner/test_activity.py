"""Busy time, overlap and gaps from spans, in one stretch or in many; what is said of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.activity import ISSUE, Activity, Span, Timeline
from planner.bottleneck import phase_activity, sentences
from planner.tasks import TaskKind


def span(
    number: int, lane: str, start: float, stop: float, deps: tuple[int, ...] = (), kind: str = "load_cache"
) -> Span:
    return Span(number, kind, lane, 1, 0, 0, start, stop, 100.0, deps)


SPANS = (
    span(0, "h2d", 0, 4),
    span(1, "gpu", 4, 6, (0,), "compute"),
    span(2, "h2d", 4, 7),
    span(3, "d2h", 6, 6.5, (1,)),
    span(4, "gpu", 7.5, 10, (2, 1), "compute"),
)


def activity_of(spans: tuple[Span, ...], *cuts: float) -> Activity:
    timeline, total = Timeline(0.0), Activity()
    for each in spans:
        timeline.add(each)
    for cut in cuts:
        total.add(timeline.close(cut))
    return total


def test_busy_overlap_and_waits() -> None:
    """Worked by hand: the GPU waits 4 s and 1 s for loads, then half a second for the host."""
    found = activity_of(SPANS, 10)
    assert found.seconds == 10
    assert found.busy_s == {"h2d": 7, "gpu": 4.5, "d2h": 0.5}
    assert found.overlap_s == pytest.approx(2.5)
    assert found.waits_s["gpu"] == {"load_cache on h2d": 5.0, ISSUE: 0.5}
    assert found.waits_s["d2h"] == {"compute on gpu": 6.0}


@settings(max_examples=100)
@given(st.lists(st.floats(0, 12), max_size=6))
def test_stretches_add_up(cuts: list[float]) -> None:
    """Wherever time is cut, the pieces sum to the whole."""
    whole, pieces = activity_of(SPANS, 12), activity_of(SPANS, *sorted(cuts), 12)
    assert pieces.seconds == pytest.approx(whole.seconds)
    assert pieces.overlap_s == pytest.approx(whole.overlap_s)
    for lane, busy_s in whole.busy_s.items():
        assert pieces.busy_s[lane] == pytest.approx(busy_s)
    for lane, waits in whole.waits_s.items():
        assert sum(pieces.waits_s[lane].values()) == pytest.approx(sum(waits.values()))


def test_spans_may_come_while_time_is_cut() -> None:
    """Only those that begin before a cut need be known by then; none is kept for longer than it lasts."""
    timeline, total = Timeline(0.0), Activity()
    for each, cut in zip(SPANS, (1, 4, 5, 6, 7), strict=True):
        timeline.add(each)
        total.add(timeline.close(cut))
        assert len(timeline) <= 2
    total.add(timeline.close(10))
    assert len(timeline) == 0
    assert total.busy_s == pytest.approx({"h2d": 7, "gpu": 4.5, "d2h": 0.5})


def test_cpu_attention_is_a_lane_like_others() -> None:
    """It overlaps the compute of other gpu batches, waits for that of its own, and binds where it is busiest."""
    spans = (
        span(0, "gpu", 0, 1, (), "compute"),
        span(1, "cpu", 1, 3.5, (0,), TaskKind.ATTEND),
        span(2, "gpu", 1, 2, (), "compute"),
        span(3, "gpu", 3.5, 4, (1,), "compute"),
    )
    found = activity_of(spans, 4)
    assert (found.busy_s, found.overlap_s) == ({"gpu": 2.5, "cpu": 2.5}, 1)
    assert found.waits_s["cpu"] == {"compute on gpu": 1}
    assert found.waits_s["gpu"] == {"attend on cpu": 1.5}


def test_sentences_answer_the_field_report() -> None:
    """Which resource binds, whether the steps overlap, and what the gaps are, in words."""
    found = phase_activity("decode", activity_of(SPANS, 10))
    assert found is not None
    text = sentences(found)
    assert "decode: h2d binds, at work 70% of 10.00 s" in text
    assert "overlap in part: two or more resources were at work at once 25% of the time" in text
    assert "h2d was idle 30%" in text


@pytest.mark.parametrize(("issue_s", "said"), [(6.0, True), (1.0, False)])
def test_a_host_that_asks_for_work_most_of_the_time_is_named(issue_s: float, said: bool) -> None:
    """How much of the phase it took, where that is worth a sentence."""
    activity = activity_of(SPANS, 10)
    activity.issue_s = issue_s
    total = Activity()
    total.add(activity, 2)
    found = phase_activity("decode", total)
    assert found is not None
    assert found.issue_share == pytest.approx(issue_s / 10)
    assert ("The host was asking the GPU for its work 60% of the time." in sentences(found)) == said


def test_sequential_steps_are_said_to_hardly_overlap() -> None:
    """One task after the other."""
    spans = (span(0, "h2d", 0, 5), span(1, "gpu", 5, 9, (0,), "compute"))
    found = phase_activity("prefill", activity_of(spans, 9))
    assert found is not None
    assert "hardly overlap" in sentences(found)


def test_a_phase_that_was_not_run_has_no_figures() -> None:
    """Nothing is divided by zero seconds."""
    assert phase_activity("decode", Activity()) is None
