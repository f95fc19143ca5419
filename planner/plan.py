"""Plan: model, workload, hardware, policy, placement, ledger, prediction. plan.yaml's contract; see docs/plan.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hwprofiles.errors import UserError
from hwprofiles.points import Dtype
from hwprofiles.yaml_io import check_schema, dump_yaml, from_plain, load_yaml
from planner.ledger import Ledger, Target
from planner.model import ModelSpec, spec_from_config
from planner.placement import Placement
from planner.policy import Policy
from planner.rates import Rates
from planner.request import Request
from planner.sharing import Sharing
from planner.sizes import Sizes
from planner.workload import Workload

SCHEMA_VERSION = 1
Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The model a plan was made for; the executor compares it with the checkpoint's own config."""

    name: str
    dtype: Dtype
    config: Mapping[str, object]
    layers: tuple[int, int] | None = None
    """(first, stop) of those a pipeline stage has; None for all."""

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelRef:
        """The reference to a model, or to a stage's part of it."""
        layers = spec.first_layer, spec.first_layer + spec.num_layers
        return cls(
            name=spec.name, dtype=spec.dtype, config=spec.config, layers=None if spec.is_whole else layers
        )

    def spec(self) -> ModelSpec:
        """Every tensor's shape."""
        whole = spec_from_config(self.name, self.config, self.dtype)
        return whole.part(*self.layers) if self.layers else whole


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPrediction:
    """All tasks of one kind on one resource in one phase of one block."""

    phase: Phase
    kind: str
    resource: str
    count: int
    num_bytes: float
    flops: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePrediction:
    """One phase of one block."""

    seconds: float
    busy_s: Mapping[str, float]
    """Seconds each resource is at work."""
    binding: str
    """The resource that is busy longest."""
    formula_s: float | None = None
    """What the closed formula says, where `seconds` are simulated."""

    @property
    def beyond_formula(self) -> float:
        """How many times as long as by the closed formula."""
        return self.seconds / self.formula_s if self.formula_s else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From low to high, both included."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where 90% of runs should lie."""

    prefill_s: Range
    decode_s: Range
    throughput_tokens_per_s: Range
    error: float | None
    """The calibration's median error on runs it did not see, which is part of it; None: only the profile's spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one full block will take, simulated; its tasks are those of the closed formula."""

    prefill: PhasePrediction
    decode: PhasePrediction
    throughput_tokens_per_s: float
    """Generated tokens / (prefill + decode), as in the FlexGen paper."""
    tasks: tuple[TaskPrediction, ...]
    interval: Interval | None = None
    """None in plans that were written before there were any."""

    @property
    def seconds(self) -> float:
        """Prefill and decode."""
        return self.prefill.seconds + self.decode.seconds

    def of(self, phase: Phase) -> PhasePrediction:
        """One phase's part."""
        return {"prefill": self.prefill, "decode": self.decode}[phase]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPrediction:
    """What the cost model says of all blocks of the job, each with its own lengths, the last one as small as it is."""

    num_blocks: int
    last_block_size: int
    padding_tokens: int
    """Fill in front of the shorter prompts of gpu batches."""
    prefill_s: float
    decode_s: float
    throughput_tokens_per_s: float
    """Tokens to generate / (prefill + decode)."""

    @property
    def seconds(self) -> float:
        """The whole job, once the weights are loaded."""
        return self.prefill_s + self.decode_s

    def like(self, block: Prediction) -> JobPrediction:
        """The closed formula's seconds, of blocks that only it knows, as far off as they are for a simulated block."""
        prefill_s, decode_s = (
            self.prefill_s * block.prefill.beyond_formula,
            self.decode_s * block.decode.beyond_formula,
        )
        tokens = self.throughput_tokens_per_s * self.seconds
        return replace(
            self,
            prefill_s=prefill_s,
            decode_s=decode_s,
            throughput_tokens_per_s=tokens / (prefill_s + decode_s),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One rank's part of a pipeline: some layers, and all that a plan of those alone would say."""

    layers: tuple[int, int]
    """(first, stop)"""
    host: int
    """Hosts are numbered in the order of their ranks."""
    gpu: int | None
    """Of the host's; None where the CPU computes."""
    cpus: tuple[int, ...]
    """Positions among the processors that the host lets a process use; empty for all of them."""
    threads: int
    """For computing on the CPU."""
    hardware: Target
    """The stage's share of its host."""
    policy: Policy
    placement: Placement
    ledger: Ledger
    prediction: Prediction
    rates: Rates | None = None
    """What was predicted with: the stage's share of its host with all ranks at work."""
    sharing: Sharing | None = None
    """What it shares with the other ranks of its host; None where it is alone there, and in older plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that the executor needs to run, and all that the report is held against.

    With stages, what stands beside them is of all together: limits and ledger are sums, the placement's rows are
    left out, and the prediction is the pipeline's.
    """

    schema_version: int
    model: ModelRef
    workload: Workload
    hardware: Target
    policy: Policy
    """As requested; `placement` says what it became as whole tensors and rows."""
    placement: Placement
    ledger: Ledger
    prediction: Prediction
    request: Request | None = None
    """What it was searched for with; None where the policy was given."""
    job: JobPrediction | None = None
    """None where the number of prompts is open."""
    rates: Rates | None = None
    """What was predicted with; None in plans of older versions."""

    stages: tuple[Stage, ...] = ()
    """Of a pipeline, in the order of its ranks; empty for a plan that one process carries out."""

    @property
    def throughput_tokens_per_s(self) -> float:
        """Predicted, over all prompts; over a full block where their number is open."""
        return (self.job or self.prediction).throughput_tokens_per_s

    def known_rates(self) -> Rates:
        """What it was predicted with; a UserError where it does not say."""
        if self.rates is None:
            raise UserError("the plan holds no rates, it was written by an older version; search again")
        return self.rates

    @property
    def num_ranks(self) -> int:
        """Processes that carry it out."""
        return max(1, len(self.stages))

    def of_rank(self, rank: int) -> Plan:
        """What one rank carries out, as a plan of its layers; the whole plan where there are no stages."""
        if not self.stages:
            return self
        stage = self.stages[rank]
        return replace(
            self,
            model=replace(self.model, layers=stage.layers),
            hardware=stage.hardware,
            policy=stage.policy,
            placement=stage.placement,
            ledger=stage.ledger,
            prediction=stage.prediction,
            rates=stage.rates,
            job=None,
            stages=(),
        )

    def sizes(self) -> Sizes:
        """The sizes of all that it holds and moves."""
        return Sizes(
            self.model.spec(), self.workload, self.policy, self.placement, self.hardware.compute_tier
        )

    def rank_name(self, rank: int) -> str:
        """A rank of a pipeline, for people."""
        first, stop = self.stages[rank].layers
        return f"rank {rank}, layers {first} to {stop - 1}"

    def to_yaml(self) -> str:
        """The text of plan.yaml."""
        return dump_yaml(self)

    def digest(self) -> str:
        """A short hash of the whole plan."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()[:16]


def load_plan(path: Path) -> Plan:
    """The plan a file holds."""
    data = load_yaml(path)
    check_schema(data, SCHEMA_VERSION, str(path))
    return from_plain(data, Plan, str(path))
