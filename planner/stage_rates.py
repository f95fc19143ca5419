"""Stage rates: the stages of a plan at the rates of a profile, whichever one the plan was made with."""

from __future__ import annotations

from dataclasses import replace

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.pipeline import formula_of
from planner.plan import Plan
from planner.predict_stages import simulated
from planner.pricing import price
from planner.rates import Rates
from planner.same_machine import check_tier
from planner.sites import Site, sites_of


def stage_rates(plan: Plan, profile: HardwareProfile) -> list[Rates]:
    """Of each stage, its share of a host like the profile's; a UserError where such hosts have no place for all."""
    sites = _sites(plan, profile)
    return [
        site.rates(plan.model.dtype, stage.policy.num_waves)
        for site, stage in zip(sites, plan.stages, strict=True)
    ]


def priced_at(plan: Plan, profile: HardwareProfile) -> Plan:
    """The plan of a pipeline on hosts like the profile's: what it would take there."""
    stages = []
    for rank, (site, rates) in enumerate(zip(_sites(plan, profile), stage_rates(plan, profile), strict=True)):
        stage, sizes = plan.stages[rank], plan.of_rank(rank).sizes()
        sharing = site.sharing.among(stage.policy.num_waves) if site.sharing else None
        stages.append(replace(stage, rates=rates, sharing=sharing, prediction=price(sizes, rates)))
    there = replace(plan, stages=tuple(stages), job=None)
    return simulated(replace(there, prediction=formula_of(there)))


def _sites(plan: Plan, profile: HardwareProfile) -> tuple[Site, ...]:
    """As many ranks on each host as the plan has there."""
    check_tier(plan, profile)
    hosts = [stage.host for stage in plan.stages]
    sites = sites_of((profile,) * (max(hosts) + 1), len(hosts), plan.policy.comm_device)
    if [site.host for site in sites] != hosts:
        raise UserError(
            f"the plan's ranks are on hosts {hosts}, on hosts like {profile.name} they would be on "
            f"{[site.host for site in sites]}; plan again with that profile"
        )
    return sites
