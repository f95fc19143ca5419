"""Same machine: whether a run, or a plan, is of the machine that a profile describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.ledger import Target
from planner.plan import Plan

if TYPE_CHECKING:  # what searches do without
    from planner.report import RunReport


def check_report(profile: HardwareProfile, report: RunReport, *, force: bool = False) -> None:
    """A UserError unless the report is of a run on the kind of machine that the profile describes."""
    check_kind(profile, report.plan.hardware, f"the report of {report.created}")
    hosts = {report.fingerprint, *(rank.fingerprint for rank in report.ranks)}
    if profile.fingerprint not in hosts and not force:
        raise UserError(
            f"the report of {report.created} comes from a host with fingerprint {report.fingerprint}, "
            f"profile {profile.name} describes {profile.fingerprint or 'no host in particular'}; "
            "give a report of that host, or --force"
        )


def check_tier(plan: Plan, profile: HardwareProfile) -> None:
    """A UserError where a plan is to be priced for a machine that computes elsewhere."""
    tier = "gpu" if profile.gpus else "cpu"
    if tier != plan.hardware.compute_tier:
        raise UserError(
            f"the plan computes on the {plan.hardware.compute_tier}, profile {profile.name} on the {tier}; "
            "give the profile it was made with"
        )


def check_kind(profile: HardwareProfile, target: Target, what: str) -> None:
    """A UserError unless `target` computes where the profile's machine does: on a GPU, an emulated one, or none."""
    described = _kind("gpu" if profile.gpus else "cpu", bool(profile.gpus) and profile.gpus[0].emulated)
    computed = _kind(target.compute_tier, target.emulated)
    if computed != described:
        raise UserError(
            f"{what} computes on {computed}, profile {profile.name} on {described}; "
            "give the profile it was planned with"
        )


def _kind(compute_tier: str, emulated: bool) -> str:
    return "an emulated gpu" if emulated else compute_tier
