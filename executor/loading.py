"""Progress of loading: bytes so far, on the terminal or nowhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


class LoadProgress(Protocol):
    """Told of every piece of a checkpoint that is in its home; a context around the whole loading."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, num_bytes: int) -> None:
        """`num_bytes` more are loaded."""


class SilentLoading:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, num_bytes: int) -> None: ...


class ConsoleLoading:
    """A bar on stderr with bytes and the time left."""

    def __init__(self, total_bytes: int, console: Console) -> None:
        columns = (
            TextColumn("loading"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("", total=total_bytes)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, num_bytes: int) -> None:
        self._progress.update(self._task, advance=num_bytes)
