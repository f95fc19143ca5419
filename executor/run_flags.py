"""The flags of run and verify: what is wrong with them is said before anything is imported or started."""

from __future__ import annotations

import argparse
import os

from executor.rank_env import RankEnv, rank_env
from hwprofiles.errors import UserError
from hwprofiles.files import check_writable
from hwprofiles.host import current_fingerprint
from planner.comm_device import with_comm_device
from planner.kept_reports import check_can_learn
from planner.plan import Plan, load_plan

_SAME_EVERYWHERE = ("command", "dummy_weights", "no_overlap", "num_prompts", "comm_device")
_GIVEN_EVERYWHERE = ("input", "trace", "model_path")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan, with hidden states passing as the user wants."""
    plan = load_plan(arguments.plan)
    return with_comm_device(plan, arguments.comm_device) if arguments.comm_device else plan


def env_of(plan: Plan) -> RankEnv | None:
    """What the launcher says; a UserError where it has not started as many processes as the plan has ranks."""
    env = rank_env(os.environ)
    if env is None:
        return None
    size = env.size or plan.num_ranks
    if size != plan.num_ranks or env.rank >= size:
        raise UserError(
            f"rank {env.rank}: the plan is for {plan.num_ranks} {'ranks' if plan.stages else 'process'}, "
            f"{max(size, env.rank + 1)} were started; start {plan.num_ranks}, or search again with --stages {size}"
        )
    return env if plan.stages else None


def same_flags(arguments: argparse.Namespace) -> str:
    """What all ranks must have been given alike, as text."""
    values = [f"{name} {getattr(arguments, name, None)}" for name in _SAME_EVERYWHERE]
    given = [f"{name} {getattr(arguments, name, None) is not None}" for name in _GIVEN_EVERYWHERE]
    return ", ".join([*values, *given])


def check_flags(arguments: argparse.Namespace, plan: Plan, rank: int = 0) -> None:
    """A UserError for flags that contradict each other or name what cannot be written."""
    if arguments.command == "verify":
        _check_verify(arguments)
        return
    if (arguments.model_path is None) == (not arguments.dummy_weights):
        raise UserError("give either --model-path DIR or --dummy-weights")
    if arguments.hw and not arguments.trace:
        raise UserError("--hw predicts the lanes of a trace; give --trace FILE with it")
    if arguments.trace_blocks < 1:
        raise UserError(f"--trace-blocks is {arguments.trace_blocks}; record at least one block")
    if plan.stages and arguments.replan:
        raise UserError(
            f"--replan is for plans of one rank, this one has {len(plan.stages)}: another plan may want other "
            "ranks; plan again with the profile that --calibrate corrects, and start the same command with that plan"
        )
    for path in (arguments.report, arguments.trace):
        if path and rank == 0:
            check_writable(path)
    if arguments.calibrate and rank == 0:
        check_can_learn(arguments.calibrate, plan, current_fingerprint())


def _check_verify(arguments: argparse.Namespace) -> None:
    if arguments.model_path is None:
        raise UserError("verify compares with a real model: give --model-path DIR")
    if arguments.num_prompts < 1:
        raise UserError(f"--num-prompts is {arguments.num_prompts}; compare at least one prompt")
