"""Comm device: a pipeline's plan with hidden states passing through host memory, or from GPU to GPU, instead."""

from __future__ import annotations

from dataclasses import replace

from planner.ledger import make_ledger
from planner.pipeline import sum_ledgers
from planner.plan import Plan, Stage
from planner.policy import CommDevice


def with_comm_device(plan: Plan, comm_device: CommDevice) -> Plan:
    """The plan with its messages elsewhere and the ledgers of that; what was predicted stays as it was."""
    if plan.policy.comm_device == comm_device:
        return plan
    stages = tuple(_stage(plan, rank, comm_device) for rank in range(len(plan.stages)))
    return replace(
        plan,
        policy=replace(plan.policy, comm_device=comm_device),
        stages=stages,
        ledger=sum_ledgers([stage.ledger for stage in stages]) if stages else plan.ledger,
    )


def _stage(plan: Plan, rank: int, comm_device: CommDevice) -> Stage:
    part, stage = plan.of_rank(rank), plan.stages[rank]
    policy = replace(stage.policy, comm_device=comm_device)
    ledger = make_ledger(part.model.spec(), part.workload, policy, stage.placement, stage.hardware)
    return replace(stage, policy=policy, ledger=ledger)
