"""Request: what a user asks of a search; it is kept in the plan, so that the search can be done again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hwprofiles.errors import UserError

BitsChoice = Literal["16", "4", "auto"]
CpuAttention = Literal["on", "off", "auto"]
"""Of the cache off the GPU: attended by the CPU, loaded, or what is best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user leaves open."""

    weight_bits: BitsChoice = "16"
    kv_bits: BitsChoice = "16"
    cpu_attention: CpuAttention = "auto"
    max_latency_s: float | None = None
    """Of one block, prefill and decode."""

    def __post_init__(self) -> None:
        if self.max_latency_s is not None and not (
            math.isfinite(self.max_latency_s) and self.max_latency_s > 0
        ):
            raise UserError(
                f"max latency is {self.max_latency_s:g} s; it must be positive: set --max-latency"
            )
