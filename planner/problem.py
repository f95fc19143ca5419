"""Problem: a model, a workload and a machine; what a policy becomes on it, as a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.cost import HOST, CostModel
from planner.interval import Band, interval, make_band
from planner.ledger import Ledger, Target, make_ledger
from planner.machine import Caps, make_target
from planner.model import ModelSpec
from planner.place import place
from planner.placement import Placement
from planner.plan import SCHEMA_VERSION, ModelRef, PhasePrediction, Plan, Prediction
from planner.policy import TIERS, CommDevice, Policy, Tier
from planner.predict import finished, predict, simulated_in_short
from planner.pricing import predict_job, price
from planner.rates import Rates, make_rates
from planner.sizes import Sizes
from planner.work import MAX_DECODE_GROUPS, Choice
from planner.workload import Workload

_GPU_PREFILL_TOKENS = 4096
"""Tokens of a prefill chunk that saturate a GPU's matrix products."""
_CPU_PREFILL_TOKENS = 1024
_WAITS = 0.25
"""Of decode's time, the host's from which decode may wait for it: it is slower at times than when it was measured."""
_INSURANCE = 1.08
"""Of decode's time, what it may be with graphs, which do not depend on how fast the host is."""


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
        """The policy placed, added up and simulated; whether it fits is the caller's question."""
        return self._predicted(self.draft(policy))

    def draft(
        self, policy: Policy, max_decode_groups: int = MAX_DECODE_GROUPS, *, make_room: bool = False
    ) -> Plan:
        """A plan priced by the closed formula alone, in fewer groups of decode passes where that will do.

        Graphs are used where they fit, decode might wait for the host without them, and capturing takes less than that;
        where room is to be made for them, whether or not they fit.
        """
        placement = place(self.model, policy, self.target.compute_tier)
        for sizes, prediction in self._preferred(policy, placement, max_decode_groups):
            plan = Plan(
                schema_version=SCHEMA_VERSION,
                model=ModelRef.of(self.model),
                workload=self.workload,
                hardware=self.target,
                policy=sizes.policy,
                placement=placement,
                ledger=make_ledger(self.model, self.workload, sizes.policy, placement, self.target),
                prediction=prediction,
                job=predict_job(sizes, self.rates) if self.workload.num_prompts else None,
                rates=self.rates,
            )
            if make_room or not plan.ledger.shortfalls(self.target):
                break
        return plan

    def insured_s(self, plan: Plan) -> float:
        """Seconds of a block; decode that may wait for the host as long as it may be with graphs, which do not."""
        risk_s = (_INSURANCE - 1) * plan.prediction.decode.seconds if self.may_wait(plan) else 0.0
        return plan.prediction.seconds + risk_s

    def may_wait(self, plan: Plan) -> bool:
        """Whether decode is called, though this GPU can replay graphs, and takes the host much of its time."""
        can_replay = self.target.graph_operation_bytes > 0
        return can_replay and not plan.policy.graphs and _takes_the_host(plan.prediction.decode)

    def _preferred(
        self, policy: Policy, placement: Placement, max_decode_groups: int
    ) -> Iterator[tuple[Sizes, Prediction]]:
        """What is placed and its price: with graphs where they pay, and without them."""

        def priced(policy: Policy) -> tuple[Sizes, Prediction]:
            sizes = Sizes(self.model, self.workload, policy, placement, self.target.compute_tier)
            return sizes, price(sizes, self.rates, max_decode_groups)

        if not self.target.graph_operation_bytes:
            yield priced(policy)
            return
        called = priced(replace(policy, graphs=False))
        decode = called[1].decode
        if _takes_the_host(decode):
            replayed = priced(replace(policy, graphs=True))
            if replayed[1].decode.seconds <= _INSURANCE * decode.seconds:
                yield replayed
        yield called

    def priced(self, plan: Plan) -> Plan:
        """A plan as it is placed, at these rates."""
        return self.predicted(replace(plan, rates=self.rates))

    def predicted(self, plan: Plan) -> Plan:
        """The plan with its final prediction, whatever it was compared by before."""
        return self._predicted(self._with_job(plan))

    def _predicted(self, draft: Plan) -> Plan:
        """A draft's final prediction; that of a pipeline's stage is the closed formula's."""
        if self.pipe.num_stages > 1:
            return replace(draft, prediction=price(self._sizes(draft), self.rates))
        return _with_prediction(draft, predict(self._sizes(draft), self.rates))

    def compared(self, draft: Plan) -> Plan:
        """The plan with a prediction that is good enough to compare it with others by."""
        if self.pipe.num_stages > 1:
            return draft
        found = simulated_in_short(draft.prediction, self._sizes(draft), self.rates)
        return _with_prediction(draft, found)

    def finished(self, plan: Plan) -> Plan:
        """`predicted`, of a plan that was `compared`: sooner where that has played as much."""
        if self.pipe.num_stages > 1:
            return self.predicted(plan)
        found = finished(plan.prediction, self._sizes(plan), self.rates)
        return _with_prediction(self._with_job(plan), found)

    def _with_job(self, plan: Plan) -> Plan:
        """With the closed formula's prediction of the job."""
        job = predict_job(self._sizes(plan), self.rates) if plan.workload.num_prompts else None
        return replace(plan, job=job)

    def with_interval(self, plan: Plan) -> Plan:
        """The plan with its prediction's interval, which costs two more pricings: for plans that are shown."""
        if self.band is None:
            return plan
        found = interval(plan.prediction, self._sizes(plan), self.band)
        return replace(plan, prediction=replace(plan.prediction, interval=found))

    def _sizes(self, plan: Plan) -> Sizes:
        return Sizes(self.model, self.workload, plan.policy, plan.placement, self.target.compute_tier)


def _takes_the_host(decode: PhasePrediction) -> bool:
    return decode.busy_s.get(HOST, 0.0) >= _WAITS * decode.seconds


def _with_prediction(draft: Plan, prediction: Prediction) -> Plan:
    """The draft with a simulated block; the job's blocks, which only the formula knows, differ from it as that one."""
    job = draft.job.like(prediction) if draft.job else None
    return replace(draft, prediction=prediction, job=job)


def make_problem(
    model: ModelSpec,
    workload: Workload,
    profile: HardwareProfile,
    caps: Caps,
    whole: tuple[str, str] | None = None,
) -> Problem:
    """A UserError where the model cannot hold the workload's sequences; `whole` is as in `make_target`."""
    longest = max((prompt + gen for prompt, gen, _ in workload.lengths), default=workload.max_len)
    if model.max_positions is not None and longest > model.max_positions:
        raise UserError(
            f"prompt_len {workload.prompt_len} + gen_len {workload.gen_len} = {workload.max_len} tokens, "
            f"{model.name} has {model.max_positions} positions; shorten --prompt-len or --gen-len"
        )
    return Problem(
        model=model,
        workload=workload,
        target=make_target(profile, caps, whole),
        rates=make_rates(profile, model.dtype),
        band=make_band(profile, model.dtype),
    )
