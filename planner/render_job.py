"""Render: what a plan says of a whole job, in sentences a person reads."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from hwprofiles.units import format_duration
from planner.plan import Plan


def job_lines(plan: Plan, now: datetime) -> Iterator[str]:
    """Prompts, padding, blocks; then how long it takes, and when it is done if it begins now."""
    job, workload, size = plan.job, plan.workload, plan.policy.block_size
    if job is None:
        return
    padding = job.padding_tokens / (workload.prompt_tokens + job.padding_tokens)
    last = "" if job.last_block_size == size else f", the last of {job.last_block_size}"
    yield (
        f"Job: {workload.num_prompts:,} prompts of {workload.prompt_tokens:,} tokens and {100 * padding:.1f}% padding, "
        f"{workload.gen_tokens:,} to generate; {job.num_blocks:,} blocks of {size}{last}"
    )
    done = now + timedelta(seconds=job.seconds)
    yield (
        f"[bold]{format_duration(job.seconds)} in all[/bold] once the weights are loaded, "
        f"{job.throughput_tokens_per_s:,.2f} generated tokens/s: begun now, it is done {done:%a %d %b %H:%M}"
    )
