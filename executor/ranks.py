"""Ranks: the processes that carry out one plan together, as one of them sees them; or the only one."""

from __future__ import annotations

from typing import Protocol, TypeVar

from executor.transport import Transport

T = TypeVar("T")


class Ranks(Protocol):
    """All ranks call these in the same order."""

    @property
    def rank(self) -> int:
        """This one's number; the first one, 0, has the prompts and the results."""

    @property
    def transport(self) -> Transport | None:
        """To the other stages; None where there are none."""

    @property
    def on_this_host(self) -> tuple[int, ...]:
        """The other ranks whose memory is this host's too."""

    @property
    def clock_offset_s(self) -> float:
        """What to add to this rank's clock for the first one's."""

    def meet(self, name: str) -> None:
        """Wait until all ranks have come to a place."""

    def share(self, value: T | None) -> T:
        """What the first rank gives."""

    def collect(self, name: str, value: T) -> list[T]:
        """At the first rank what all of them give, in their order; at the others nothing."""


class Alone:
    """One process."""

    rank = 0
    transport: Transport | None = None
    on_this_host: tuple[int, ...] = ()
    clock_offset_s = 0.0

    def meet(self, name: str) -> None:
        """There is nobody to wait for."""

    def share(self, value: T | None) -> T:
        """Its own."""
        assert value is not None
        return value

    def collect(self, name: str, value: T) -> list[T]:
        """Its own."""
        return [value]


ALONE: Ranks = Alone()
"""For plans without stages."""
