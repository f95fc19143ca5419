"""Headroom: host memory that a plan leaves to the kernel and to other processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprofiles.errors import UserError
from hwprofiles.profile import Host
from hwprofiles.units import parse_bytes

_UNMEASURED = 0.02
"""Share of the limit, where the profile does not say what others hold."""
COME_AND_GO = 0.015
"""Share of the machine's memory beside what others held when it was measured: a shell, a script that starts the run.

On an H200 host 1.4% more of it was taken minutes after it was measured, by nobody in particular.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """What the user wants left: a share of the limit, or so many bytes."""

    share: float = 0.0
    num_bytes: int = 0

    def of(self, limit_bytes: int) -> int:
        """In bytes, of this limit."""
        return min(limit_bytes, round(self.share * limit_bytes) + self.num_bytes)


def parse_headroom(text: str) -> Headroom:
    """From "5%" or "2GB"; a UserError names what is wrong."""
    if not text.rstrip().endswith("%"):
        return Headroom(num_bytes=parse_bytes(text))
    try:
        percent = float(text.rstrip()[:-1])
    except ValueError:
        percent = math.nan
    if not 0 <= percent < 100:
        raise UserError(
            f"headroom {text!r} is not a share of host memory; write 0% to below 100%, or a size such as 2GB"
        )
    return Headroom(share=percent / 100)


def headroom_bytes(
    host: Host, machine_bytes: int, limit_bytes: int, wanted: Headroom | None, kernel_share: float
) -> int:
    """What stays free of a limit: as wanted, or else what others held when the host was measured and a little more.

    Of `machine_bytes`, all there is for this plan, others may also have what lies beyond the limit. The kernel keeps
    `kernel_share` of what a plan holds, for memory registered with a GPU.
    """
    if wanted is not None:
        return wanted.of(limit_bytes)
    if host.occupied_bytes is None:
        return Headroom(share=_UNMEASURED).of(limit_bytes)
    registered = limit_bytes * kernel_share / (1 + kernel_share)
    others = host.occupied_bytes + round(COME_AND_GO * machine_bytes + registered)
    return min(limit_bytes, max(0, others - max(0, machine_bytes - limit_bytes)))
