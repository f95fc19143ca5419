"""Piece: some compute as the cost formulas see it, which can be added up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Some compute: seconds at the profile's rates, FLOP, bytes of memory, and seconds of the host to issue it."""

    seconds: float
    flops: float = 0.0
    num_bytes: float = 0.0
    issue_s: float = 0.0

    @property
    def alone_s(self) -> float:
        """Time with nothing before or after it: it is not done before it is issued."""
        return max(self.seconds, self.issue_s)

    def __mul__(self, times: float) -> Piece:
        return Piece(self.seconds * times, self.flops * times, self.num_bytes * times, self.issue_s * times)


NOTHING = Piece(0.0)


def total(parts: Iterable[Piece]) -> Piece:
    """The sum of pieces that follow one another."""
    seconds = flops = num_bytes = issue_s = 0.0
    for piece in parts:
        seconds += piece.seconds
        flops += piece.flops
        num_bytes += piece.num_bytes
        issue_s += piece.issue_s
    return Piece(seconds, flops, num_bytes, issue_s)
