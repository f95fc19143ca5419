"""Bottleneck: which resource binds a phase, how busy it is and what its gaps are, in figures and in sentences."""

from __future__ import annotations

from hwprofiles.units import format_seconds
from planner.activity import Activity, PhaseActivity
from planner.plan import Phase

_HIDDEN = 0.005
"""Smaller shares are not worth a word."""
_LITTLE = 0.1
"""Of a phase's time, work of other resources that says nothing about how well steps overlap."""
_ISSUES = 0.25
"""Of a phase's time, the host's asking from which it is worth a sentence."""
_MOSTLY, _IN_PART = 0.75, 0.35
"""Of the work beside the busiest resource's, the share that ran at the same time as other work."""


def binding_lane(activity: Activity) -> str:
    """The lane at work longest."""
    return max(activity.busy_s, key=lambda lane: activity.busy_s[lane])


def phase_activity(phase: Phase, activity: Activity) -> PhaseActivity | None:
    """The figures of a phase as shares of its time; None where it was not run."""
    if activity.seconds <= 0 or not activity.busy_s:
        return None
    binding, seconds = binding_lane(activity), activity.seconds
    waits = activity.waits_s.get(binding, {})
    return PhaseActivity(
        phase=phase,
        seconds=seconds,
        binding=binding,
        busy_share={lane: busy_s / seconds for lane, busy_s in sorted(activity.busy_s.items())},
        overlap_share=activity.overlap_s / seconds,
        waits_share={cause: waited_s / seconds for cause, waited_s in sorted(waits.items())},
        issue_share=activity.issue_s / seconds,
    )


def sentences(found: PhaseActivity) -> str:
    """What binds a phase, whether its steps overlap, and what the gaps are."""
    binding = found.binding
    busy = found.busy_share[binding]
    text = (
        f"{found.phase}: {binding} binds, at work {_percent(busy)} of {format_seconds(found.seconds)}. "
        f"{_overlap(found)}"
    )
    if found.issue_share >= _ISSUES:
        text = f"{text} The host was asking the GPU for its work {_percent(found.issue_share)} of the time."
    waits = sorted(found.waits_share.items(), key=lambda wait: -wait[1])
    named = [f"{cause} {_percent(share)}" for cause, share in waits if share >= _HIDDEN]
    if 1 - busy < _HIDDEN:
        return f"{text} No gaps to speak of."
    reasons = f", waiting for {', '.join(named[:3])}" if named else ""
    return f"{text} {binding} was idle {_percent(1 - busy)}{reasons}."


def _overlap(found: PhaseActivity) -> str:
    """Whether work that could have run at once did; the CPU's attention is part of the compute tasks."""
    shares = [
        share
        for lane, share in found.busy_share.items()
        if (lane, "gpu" in found.busy_share) != ("cpu", True)
    ]
    beside = sum(shares) - max(shares)
    at_once = f"two or more resources were at work at once {_percent(found.overlap_share)} of the time"
    if beside < _LITTLE:
        return f"There was little beside it to overlap: {at_once}."
    done = found.overlap_share / min(beside, max(shares))
    verdict = "overlap" if done >= _MOSTLY else "overlap in part" if done >= _IN_PART else "hardly overlap"
    return f"The steps {verdict}: {at_once}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.0995 or share == 0 else f"{100 * share:.1f}%"
