"""Problem: a model, a workload and a machine; what a policy becomes on it, as a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.cost import CostModel
from planner.interval import Band, interval, make_band
from planner.ledger import Ledger, Sizes, Target, make_ledger
from planner.machine import Caps, Rates, make_rates, make_target
from planner.model import ModelSpec
from planner.place import place
from planner.placement import Placement
from planner.plan import SCHEMA_VERSION, ModelRef, Plan
from planner.policy import TIERS, CommDevice, Policy, Tier
from planner.pricing import predict_job, price
from planner.work import Choice
from planner.workload import Workload

_GPU_PREFILL_TOKENS = 4096
"""Tokens of a prefill chunk that saturate a GPU's matrix products."""
_CPU_PREFILL_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """What the stages of a pipeline have in common."""

    num_stages: int = 1
    num_waves: int = 1
    comm_device: CommDevice = "cpu"


ALONE = Pipe()
"""A model that is not divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a policy is sought for."""

    model: ModelSpec
    workload: Workload
    target: Target
    rates: Rates
    band: Band | None = None
    """How far the rates may be off; None: plans get no interval."""
    pipe: Pipe = ALONE
    """The pipeline that the model is a stage of."""

    def cost_model(self, choice: Choice) -> CostModel:
        """The formulas for one discrete choice."""
        return CostModel(
            model=self.model,
            workload=self.workload,
            choice=choice,
            compute_tier=self.target.compute_tier,
            rates=self.rates,
        )

    def check_attention(self, *, wanted: bool) -> None:
        """A UserError where attention on the CPU is asked for and the model's cannot be moved."""
        if wanted and not self.model.cpu_attention:
            raise UserError(
                f"the attention of {self.model.name} cannot run apart from its layers; use --cpu-attention off"
            )

    def with_limit(self, tier: Tier, limit: int) -> Problem:
        """The same with another limit on a tier."""
        gpu, cpu, disk = (limit if tier == other else self.target.limit_bytes(other) for other in TIERS)
        target = replace(self.target, gpu_bytes=gpu, cpu_bytes=cpu, disk_bytes=disk)
        return replace(self, target=target)

    def prefill_rows(self, gpu_batch_size: int) -> int:
        """Sequences of a prefill chunk, where memory allows it."""
        tokens = _CPU_PREFILL_TOKENS if self.rates.on_cpu else _GPU_PREFILL_TOKENS
        return max(1, min(gpu_batch_size, tokens // self.workload.prompt_len))

    def place(self, policy: Policy) -> tuple[Placement, Ledger]:
        """The policy placed and added up."""
        placement = place(self.model, policy, self.target.compute_tier)
        return placement, make_ledger(self.model, self.workload, policy, placement, self.target)

    def fits(self, policy: Policy) -> bool:
        """Whether the placed policy stays within every tier's limit."""
        return not self.place(policy)[1].shortfalls(self.target)

    def plan(self, policy: Policy) -> Plan:
        """The policy placed, added up and priced; whether it fits is the caller's question."""
        placement, ledger = self.place(policy)
        sizes = Sizes(self.model, self.workload, policy, placement, self.target.compute_tier)
        return Plan(
            schema_version=SCHEMA_VERSION,
            model=ModelRef.of(self.model),
            workload=self.workload,
            hardware=self.target,
            policy=policy,
            placement=placement,
            ledger=ledger,
            prediction=price(sizes, self.rates),
            job=predict_job(sizes, self.rates) if self.workload.num_prompts else None,
            rates=self.rates,
        )

    def priced(self, plan: Plan) -> Plan:
        """A plan as it is placed, at these rates."""
        sizes = plan.sizes()
        job = predict_job(sizes, self.rates) if plan.workload.num_prompts else None
        return replace(plan, prediction=price(sizes, self.rates), job=job, rates=self.rates)

    def with_interval(self, plan: Plan) -> Plan:
        """The plan with its prediction's interval, which costs two more pricings: for plans that are shown."""
        if self.band is None:
            return plan
        found = interval(plan.prediction, plan.sizes(), self.band)
        return replace(plan, prediction=replace(plan.prediction, interval=found))


def make_problem(model: ModelSpec, workload: Workload, profile: HardwareProfile, caps: Caps) -> Problem:
    """A UserError where the model cannot hold the workload's sequences."""
    longest = max((prompt + gen for prompt, gen, _ in workload.lengths), default=workload.max_len)
    if model.max_positions is not None and longest > model.max_positions:
        raise UserError(
            f"prompt_len {workload.prompt_len} + gen_len {workload.gen_len} = {workload.max_len} tokens, "
            f"{model.name} has {model.max_positions} positions; shorten --prompt-len or --gen-len"
        )
    return Problem(
        model=model,
        workload=workload,
        target=make_target(profile, caps),
        rates=make_rates(profile, model.dtype),
        band=make_band(profile, model.dtype),
    )
