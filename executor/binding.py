"""Binding: a rank's processors and threads, as its plan has them; what is refused is a warning, not an error."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from planner.plan import Stage


def bind(stage: Stage, rank: int, *, widen: bool) -> list[str]:
    """Bind this process to its processors; memory that it touches first then lies beside them.

    `widen`: what the launcher bound it to is not a limit that a user has set. Returns a line for what was refused.
    """
    warnings = list(_bind_to(stage, rank, widen=widen))
    torch.set_num_threads(max(1, min(stage.threads, len(os.sched_getaffinity(0)))))
    return warnings


def _bind_to(stage: Stage, rank: int, *, widen: bool) -> Iterator[str]:
    if not stage.cpus:
        return
    try:
        if widen:
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        allowed = sorted(os.sched_getaffinity(0))
        if max(stage.cpus) >= len(allowed):
            yield (
                f"warning: rank {rank} is not bound to processors: its plan has number {max(stage.cpus)}, "
                f"it may use {len(allowed)} here"
            )
        else:
            os.sched_setaffinity(0, {allowed[position] for position in stage.cpus})
    except OSError as error:
        yield f"warning: rank {rank} is not bound to processors: the system refuses ({error.strerror})"
