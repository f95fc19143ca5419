"""How far a run is: what the engine reports, and the rate and the remaining time that follow from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

Phase = Literal["prefill", "decode"]


class Reporter(Protocol):
    """Receives the progress of a job; the engine calls it and never prints."""

    def started(self, total_tokens: int, done_tokens: int, prompt_tokens: int = 0) -> None:
        """Tokens generated at most, those of them an earlier run did, and prompt tokens left to prefill."""

    def advance(self, phase: Phase, tokens: int) -> None:
        """Prompt tokens prefilled, or tokens generated, since the last call."""

    def dropped(self, tokens: int) -> None:
        """Tokens that need not be generated because their sequences ended before max_tokens."""

    def finished(self) -> None:
        """The run is over, by its end or by an error."""


class SilentReporter:
    """Shows nothing."""

    def started(self, total_tokens: int, done_tokens: int, prompt_tokens: int = 0) -> None: ...

    def advance(self, phase: Phase, tokens: int) -> None: ...

    def dropped(self, tokens: int) -> None: ...

    def finished(self) -> None: ...


class Pace:
    """Rate and remaining time of a run, the two phases timed apart because a token costs very different time.

    The time since the last call of `advance` counts for the phase of that call.
    """

    def __init__(
        self, generate_tokens: int, prompt_tokens: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left: dict[Phase, int] = {"prefill": prompt_tokens, "decode": generate_tokens}
        self._done: dict[Phase, int] = {"prefill": 0, "decode": 0}
        self._seconds: dict[Phase, float] = {"prefill": 0.0, "decode": 0.0}
        self._clock = clock
        self._last_s = clock()

    def advance(self, phase: Phase, tokens: int) -> None:
        """`tokens` of `phase` were done since the last call."""
        now_s = self._clock()
        self._seconds[phase] += now_s - self._last_s
        self._last_s = now_s
        self._done[phase] += tokens
        self._left[phase] = max(0, self._left[phase] - tokens)

    def dropped(self, tokens: int) -> None:
        """`tokens` less are to be generated."""
        self._left["decode"] = max(0, self._left["decode"] - tokens)

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens / (prefill time + decode time); None before the first."""
        seconds = sum(self._seconds.values())
        return self._done["decode"] / seconds if seconds > 0 and self._done["decode"] else None

    @property
    def remaining_s(self) -> float | None:
        """Tokens left at each phase's own rate; None while a phase with tokens left has no rate yet."""
        remaining_s = 0.0
        for phase, tokens in self._left.items():
            if tokens and not self._done[phase]:
                return None
            if tokens:
                remaining_s += tokens * self._seconds[phase] / self._done[phase]
        return remaining_s
