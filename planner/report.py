"""RunReport: what a run measured beside what was predicted. The contract of report.json; see docs/plan.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.yaml_io import check_schema, from_plain, to_plain
from planner.activity import PhaseActivity
from planner.batching import BatchLengths, BlockLengths
from planner.plan import Phase, Plan

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport:
    """One phase of all blocks that were run; what was predicted is for the same blocks."""

    phase: Phase
    predicted_s: float
    measured_s: float
    tokens: int
    """Tokens that went through the layers."""
    tokens_per_s: float | None
    """None where the phase was not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """All tasks of one kind on one resource in one phase."""

    phase: Phase
    kind: str
    resource: str
    count: int
    num_bytes: int
    flops: float
    predicted_s: float
    measured_s: float

    def __add__(self, other: TaskReport) -> TaskReport:
        """Both together; they are of one kind."""
        return replace(
            self,
            count=self.count + other.count,
            num_bytes=self.num_bytes + other.num_bytes,
            flops=self.flops + other.flops,
            predicted_s=self.predicted_s + other.predicted_s,
            measured_s=self.measured_s + other.measured_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """A tier's ledger beside the measured peak; `host` is gpu and cpu together, where the GPU is emulated."""

    tier: str
    ledger_bytes: int
    limit_bytes: int
    measured_peak_bytes: int | None
    """None where it cannot be told from another tier's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBlocks:
    """Blocks that were run and were alike."""

    gpu_batches: tuple[tuple[int, int, int, int], ...]
    """The fields of BatchLengths."""
    count: int

    def lengths(self) -> BlockLengths:
        """One of them, as it is priced."""
        return tuple(BatchLengths(*batch) for batch in self.gpu_batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What one rank of a pipeline measured of its layers; the whole report's figures are of all ranks together."""

    rank: int
    fingerprint: str
    """Of its host."""
    overlap: float | None
    binding: Mapping[str, str]
    tasks: tuple[TaskReport, ...]
    memory: tuple[TierReport, ...]
    activity: tuple[PhaseActivity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A whole run."""

    schema_version: int
    plan_digest: str
    model_name: str
    fingerprint: str
    """Of the host that ran it."""
    hardware_digest: str
    """Of the profile it was planned with."""
    created: str
    num_blocks: int
    num_requests: int
    prompt_tokens: int
    generated_tokens: int
    padding_tokens: int
    phases: tuple[PhaseReport, ...]
    throughput_tokens_per_s: float | None
    predicted_throughput_tokens_per_s: float | None
    overlap: float | None
    """Busy seconds of all lanes / wall seconds: above 1 where lanes worked at the same time."""
    binding: Mapping[str, str]
    """Phase -> the resource that was busy longest."""
    tasks: tuple[TaskReport, ...]
    memory: tuple[TierReport, ...]
    plan: Plan
    activity: tuple[PhaseActivity, ...] = ()
    """Of the phases that were run; empty in reports of older versions."""
    blocks: tuple[RunBlocks, ...] = ()
    """All blocks as they were run: sequences may have ended early. Empty in reports of older versions."""
    ranks: tuple[RankReport, ...] = ()
    """Of a pipeline, in their order."""
    replanned: Replanned | None = None
    """Where the job went on with another plan; the figures beside are of both."""

    @property
    def legs(self) -> tuple[RunReport, ...]:
        """What each plan measured."""
        return (self.replanned.before, self.replanned.after) if self.replanned else (self,)

    @property
    def predicted_s(self) -> float:
        """Of both phases."""
        return sum(phase.predicted_s for phase in self.phases)

    @property
    def measured_s(self) -> float:
        """Of both phases."""
        return sum(phase.measured_s for phase in self.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replanned:
    """A job that went on with another plan."""

    at: str
    """When, UTC."""
    reason: str
    before: RunReport
    """Of the plan that the job began with."""
    after: RunReport


def report_json(report: RunReport) -> str:
    """The text of report.json."""
    return json.dumps(to_plain(report), indent=1)


def load_report(path: Path) -> RunReport:
    """The report a file holds; a UserError names what is wrong with it."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {type(data).__name__}, expected a run report")
    check_schema(data, SCHEMA_VERSION, str(path))
    return from_plain(data, RunReport, str(path))
