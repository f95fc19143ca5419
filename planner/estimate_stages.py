"""Estimate over stages: a given policy on every stage of a pipeline, the layers divided by time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hwprofiles.errors import UserError
from planner.advise import check_policy, estimate
from planner.cluster import Cluster, Staged
from planner.divide import divide
from planner.plan import Plan
from planner.policy import Policy
from planner.predict_stages import simulated
from planner.problem import Problem


def estimate_stages(
    cluster: Cluster, num_stages: int, num_waves: int, policy_for: Callable[[Problem], Policy]
) -> Plan:
    """The pipeline with this policy on every stage; a UserError names the stage that is short, and of what."""
    staged = cluster.staged(num_stages)

    def policy_on(problem: Problem) -> Policy:
        policy = policy_for(problem)
        check_policy(problem, policy)
        return replace(policy, stages=num_stages, num_waves=num_waves, comm_device=cluster.comm_device)

    def place(stage: int, first: int, stop: int) -> Plan | None:
        problem = staged.problem(stage, first, stop, num_waves)
        plan = problem.plan(policy_on(problem))
        return None if plan.ledger.shortfalls(plan.hardware) else problem.with_interval(plan)

    parts = divide(cluster.model.num_layers, num_stages, place)
    return simulated(staged.join(parts)) if parts else _refuse(staged, num_waves, policy_on)


def _refuse(staged: Staged, num_waves: int, policy_on: Callable[[Problem], Policy]) -> Plan:
    """A UserError with what the first stage that does not fit lacks, the layers divided by number."""
    for stage in range(staged.num_stages):
        problem = staged.even(stage, num_waves)
        try:
            estimate(problem, policy_on(problem))
        except UserError as error:
            raise UserError(f"stage {stage} of {staged.num_stages}: {error}") from None
    raise UserError("no division of the layers among the stages fits; lower --num-gpu-batches")
