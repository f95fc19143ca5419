"""Result: all that a session measured of one case. The contract of benchmarks/results/*.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.confine import Ran
from benchmarks.peers.base import PeerRun
from hwprofiles.errors import UserError
from hwprofiles.files import write_atomically
from hwprofiles.yaml_io import from_plain, to_plain


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


def result_text(result: Result) -> str:
    """The text of a result file."""
    return json.dumps(to_plain(result), indent=1) + "\n"


def write_result(result: Result, path: Path) -> None:
    """Replace the file, whole or not at all."""
    write_atomically(path, result_text(result))


def load_result(path: Path) -> Result:
    """The result a file holds."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a result of benchmarks.compare ({error})") from None
    return from_plain(data, Result, str(path))
