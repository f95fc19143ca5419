"""Reading traces back, for tests of both sides."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def read_trace(path: Path) -> dict[str, Any]:
    """The parsed file, its events checked to be well-formed and no lane to do two things at once."""
    trace: dict[str, Any] = json.loads(path.read_text())
    lanes: defaultdict[tuple[int, int], list[Event]] = defaultdict(list)
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["name"] == "thread_name"}
    for event in trace["traceEvents"]:
        assert event["ph"] in "XCM", event
        if event["ph"] != "M":
            assert event["ts"] >= 0, event
        if event["ph"] == "X":
            assert event["dur"] >= 0, event
            assert event["args"]["bytes"] >= 0, event
            lanes[event["pid"], event["tid"]].append(event)
    assert set(lanes) == named
    for events in lanes.values():
        ordered = sorted(events, key=lambda event: (event["ts"], event["dur"]))
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(ordered))
    return trace


def spans_by_lane(trace: dict[str, Any], process: str) -> dict[str, list[Event]]:
    """A process's tasks, by lane."""
    events: list[Event] = trace["traceEvents"]
    pids = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found: dict[str, list[Event]] = {}
    for event in events:
        if event["ph"] == "X" and event["pid"] == pids.get(process):
            found.setdefault(names[event["pid"], event["tid"]], []).append(event)
    return found
