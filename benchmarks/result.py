"""Result: all that a session measured of one case. The contract of benchmarks/results/*.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.confine import Ran
from benchmarks.peers.base import PeerRun


@dataclass(frozen=True, slots=True, kw_only=True)
class OurFigures:
    """One of our runs."""

    prefill_s: float | None
    decode_s: float | None
    throughput_tokens_per_s: float | None
    error: str | None
    ran: Ran


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRuns:
    """All runs of a peer, each in turn with one of ours."""

    name: str
    how: str
    runs: Sequence[PeerRun]

    def best(self) -> PeerRun | None:
        """The fastest run; None where all failed."""
        done = [run for run in self.runs if run.throughput_tokens_per_s]
        return max(done, key=lambda run: run.throughput_tokens_per_s or 0.0, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A case as it was run once or more on one machine at one commit."""

    case: str
    commands: Sequence[str]
    """How our run is repeated: planning, then running."""
    commit: str
    created: str
    machine: Mapping[str, object]
    profile: Mapping[str, object] | None = None
    """Name, digest and date of the profile that the plan was made with."""
    report: Mapping[str, object] | None = None
    """report.json of our median run, with the plan; its contract is of the version at `commit`."""
    error: str | None = None
    runs: Sequence[OurFigures] = ()
    peers: Sequence[PeerRuns] = ()
