"""Trace: spans and counters as a Chrome/Perfetto JSON file, written as they come.

Open it at https://ui.perfetto.dev or chrome://tracing. A process each for what was predicted and what was measured,
or for each rank, in it a lane for each resource.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hwprofiles.errors import UserError
from planner.activity import Span
from planner.cost import HOST
from planner.ledger import Ledger
from planner.policy import TIERS
from planner.simulate import Simulation

MAX_EVENTS = 200_000
"""About 30 MB; more are dropped and counted."""
PREDICTED, MEASURED = "predicted", "measured"
"""Groups of lanes; the ranks of a pipeline have one each."""
LANES = ("h2d", "d2h", "gpu", "cpu", "disk_read", "disk_write", "net_in", "net_out", HOST)
"""From top to bottom."""


class TraceSink(Protocol):
    """What spans and counters can be told to; times are in seconds."""

    def span(self, process: str, span: Span) -> None:
        """A task on its lane."""

    def counter(self, process: str, name: str, at_s: float, values: Mapping[str, float]) -> None:
        """Values from this time on."""


class KeptEvents:
    """A sink that keeps what it is told, up to a number, to be told to another one later."""

    def __init__(self, max_events: int) -> None:
        self._left = max_events
        self._spans: list[tuple[str, Span]] = []
        self._counters: list[tuple[str, str, float, dict[str, float]]] = []

    def span(self, process: str, span: Span) -> None:
        """Keep a task."""
        if self._admits():
            self._spans.append((process, span))

    def counter(self, process: str, name: str, at_s: float, values: Mapping[str, float]) -> None:
        """Keep values."""
        if self._admits():
            self._counters.append((process, name, at_s, dict(values)))

    def replay(self, sink: TraceSink, shift_s: float) -> None:
        """Tell all of it to another one, by another clock."""
        for process, span in self._spans:
            shifted = span._replace(start_s=span.start_s + shift_s, stop_s=span.stop_s + shift_s)
            sink.span(process, shifted)
        for process, name, at_s, values in self._counters:
            sink.counter(process, name, max(0.0, at_s + shift_s), values)

    def _admits(self) -> bool:
        self._left -= 1
        return self._left >= 0


class TraceWriter:
    """A trace file, open until `close`; a context manager. Times are in seconds from the trace's start."""

    def __init__(self, path: Path, max_events: int = MAX_EVENTS) -> None:
        try:
            self._file = path.open("w")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --trace") from None
        self._left, self._dropped = max_events, 0
        self._notes: dict[str, str] = {}
        self._processes = {PREDICTED: 1, MEASURED: 2}
        self._named: set[tuple[int, int]] = set()
        self._last_us: dict[tuple[int, int], float] = {}
        self._separator = ""
        self._file.write('{"displayTimeUnit":"ms","traceEvents":[')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def span(self, process: str, span: Span) -> None:
        """A task on its lane, named by its kind and (token, layer, gpu batch)."""
        if not self._admits():
            return
        pid, tid = self._lane(process, span.lane)
        start_us = max(round(span.start_s * 1e6, 3), self._last_us.get((pid, tid), 0.0))
        stop_us = max(round(span.stop_s * 1e6, 3), start_us)
        self._last_us[pid, tid] = stop_us
        self._write(
            f'{{"ph":"X","pid":{pid},"tid":{tid},"ts":{start_us:.3f},"dur":{stop_us - start_us:.3f},'
            f'"name":"{span.kind} ({span.i}, {span.j}, {span.k})","cat":"{span.kind}",'
            f'"args":{{"bytes":{round(span.num_bytes)}}}}}'
        )

    def counter(self, process: str, name: str, at_s: float, values: Mapping[str, float]) -> None:
        """Values from this time on, drawn as one stacked graph."""
        if self._admits():
            pid = self._process(process)
            event = {"ph": "C", "pid": pid, "ts": round(at_s * 1e6, 3), "name": name, "args": dict(values)}
            self._write(json.dumps(event))

    def note(self, key: str, text: str) -> None:
        """Something a reader should know of the whole trace."""
        self._notes[key] = text

    def close(self) -> None:
        """Make the file whole; safe to call twice."""
        if self._file.closed:
            return
        if self._dropped:
            self.note("dropped", f"{self._dropped} events beyond the trace's limit were left out")
        self._file.write(f'\n],"otherData":{json.dumps(self._notes)}}}\n')
        self._file.close()

    def _admits(self) -> bool:
        self._left -= 1
        self._dropped += self._left < 0
        return self._left >= 0

    def _process(self, process: str) -> int:
        pid = self._processes.setdefault(process, len(self._processes) + 1)
        self._name_once(pid, 0, "process", process, pid)
        return pid

    def _lane(self, process: str, lane: str) -> tuple[int, int]:
        pid, tid = self._process(process), LANES.index(lane) + 1
        self._name_once(pid, tid, "thread", lane, tid)
        return pid, tid

    def _name_once(self, pid: int, tid: int, what: str, name: str, rank: int) -> None:
        """Its name and its place among its like."""
        if (pid, tid) in self._named:
            return
        self._named.add((pid, tid))
        for key, value in (("name", name), ("sort_index", rank)):
            event = {"ph": "M", "pid": pid, "tid": tid, "name": f"{what}_{key}", "args": {key: value}}
            self._write(json.dumps(event))

    def _write(self, event: str) -> None:
        self._file.write(f"{self._separator}\n{event}")
        self._separator = ","


def write_prediction(
    writer: TraceWriter, simulation: Simulation, ledger: Ledger, process: str = PREDICTED
) -> None:
    """The predicted lanes, and each tier's bytes by phase."""
    for span in sorted(simulation.spans, key=lambda span: span.start_s):
        writer.span(process, span)
    decode_s = simulation.token_ends_s[0]
    for tier in TIERS:
        mine = [entry for entry in ledger.entries if entry.tier == tier]
        if mine:
            prefill, decode = sum(e.prefill_bytes for e in mine), sum(e.decode_bytes for e in mine)
            writer.counter(process, f"{tier} bytes", 0.0, {"ledger": prefill})
            writer.counter(process, f"{tier} bytes", decode_s, {"ledger": decode})
    skipped = simulation.num_skipped
    if skipped:
        tokens = ", ".join(map(str, simulation.sample.tokens))
        writer.note("predicted", f"only tokens {tokens} were played; {skipped} others are left out")
