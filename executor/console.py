"""Progress on a terminal: one line on stderr with tokens done, tokens per second and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from executor.progress import Pace, Phase
from hwprofiles.units import format_seconds


class ConsoleReporter:
    """A progress line drawn by rich; without a terminal only its last state is printed."""

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>7}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} tokens  {task.fields[pace]}"),
            console=console or Console(stderr=True),
        )
        self._clock = clock
        self._pace = Pace(0, 0, clock=clock)
        self._task = self._progress.add_task("", total=0, visible=False, pace="")
        self._total_tokens = 0

    def started(self, total_tokens: int, done_tokens: int, prompt_tokens: int = 0) -> None:
        self._total_tokens = total_tokens
        self._pace = Pace(total_tokens - done_tokens, prompt_tokens, clock=self._clock)
        self._progress.update(self._task, total=total_tokens, completed=done_tokens, visible=True)
        self._progress.start()

    def advance(self, phase: Phase, tokens: int) -> None:
        self._pace.advance(phase, tokens)
        done = tokens if phase == "decode" else 0
        self._progress.update(self._task, description=phase, advance=done, pace=_describe(self._pace))

    def dropped(self, tokens: int) -> None:
        self._pace.dropped(tokens)
        self._total_tokens -= tokens
        self._progress.update(self._task, total=self._total_tokens, pace=_describe(self._pace))

    def finished(self) -> None:
        self._progress.update(self._task, pace=_describe(self._pace))
        self._progress.stop()


def _describe(pace: Pace) -> str:
    rate, left_s = pace.tokens_per_s, pace.remaining_s
    return "  ".join(
        ([] if rate is None else [f"{rate:.1f} tok/s"])
        + ([] if not left_s else [f"{format_seconds(left_s)} left"])
    )
