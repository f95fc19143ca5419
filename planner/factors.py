"""Factors: what calibration multiplies predicted seconds by, and which factor of a profile a task takes.

A factor is of a resource ("h2d") or of one kind of its tasks ("h2d.load_weight"). A kind without a factor of its
own takes its resource's, and a resource without one is as fast as measured.
"""

from __future__ import annotations

from collections.abc import Mapping

Factors = Mapping[str, float]
LAUNCH, HANDOVER = "launch", "handover"
"""Of launching kernels, and of handing tasks to threads."""
CONTENTION = "contention"
"""Of the work that shares cores or memory."""
UNPACK = "unpack"
"""Kind of the compute that brings 4-bit weights back to the model's dtype. The other kinds of compute are named
by their phase, and `attend` is attention to the cache in decode; kinds of copies are the tasks'."""


def factor_of(factors: Factors, resource: str, kind: str = "") -> float:
    """The factor of a kind of task, or its resource's, or 1."""
    if not factors:
        return 1.0
    return factors.get(kind_name(resource, kind), factors.get(resource, 1.0))


def kind_name(resource: str, kind: str) -> str:
    """The factor's name."""
    return f"{resource}.{kind}"


def resource_of(name: str) -> str:
    """The resource that a factor belongs to; of a resource's own factor, itself."""
    return name.partition(".")[0]
