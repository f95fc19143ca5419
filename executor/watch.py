"""Watch: a thread that tells a rank when another one has failed or is gone, and sees to it that it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil
from torch import distributed

from executor.board import Board, Cause, Hello
from hwprofiles.errors import USER_ERROR_EXIT

PERIOD_S = 0.5
SILENCE_S = 15.0
"""A rank that gives no sign of life for so long is gone: a host lost its power or its network."""
_NUM_LOOKS = 20
LEAVE_S = 10.0
"""What a rank has for cleaning up; one that hangs in a call of a device's library is then ended as it is."""


class Watch:
    """Watches over the ranks until it is stopped; `hellos` says where they run."""

    def __init__(self, board: Board, hellos: dict[int, Hello], say: Callable[[Cause], str]) -> None:
        self.board, self.hellos, self.say = board, hellos, say
        self.cause: Cause | None = None
        self._stopped = threading.Event()
        self._main = threading.main_thread().ident
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is interrupted after this."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)

    def find_cause(self, wait_s: float) -> Cause | None:
        """Why this rank was told to stop, as soon as it shows; None where nobody says within this time."""
        until = time.monotonic() + wait_s
        while True:
            found = self.cause or self._look()
            if found or time.monotonic() > until:
                return found
            time.sleep(PERIOD_S / 5)

    def _work(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self.cause = self._look(with_beats=True)
            if self.cause:
                self._end(self.cause)
                return

    def _look(self, *, with_beats: bool = False) -> Cause | None:
        """The cause that is known, or one that this rank finds."""
        try:
            if with_beats:
                self.board.beat()
            found = self.board.cause()
            if found is None and (gone := self._killed() or (self._silent() if with_beats else None)):
                found = self.board.fail(gone)
        except distributed.DistError:
            text = "rank 0, or the launcher, that kept the ranks together has ended"
            found = self._killed_by_now() or Cause(rank=None, text=text)
        return found

    def _killed_by_now(self) -> Cause | None:
        """A process that is killed closes its connections a moment before it ends."""
        for _ in range(_NUM_LOOKS):
            if found := self._killed():
                return found
            time.sleep(PERIOD_S / 5)
        return None

    def _killed(self) -> Cause | None:
        """A rank of this host whose process has ended; without a word, if the board has no other cause."""
        own = self.hellos[self.board.rank]
        for hello in self.hellos.values():
            if hello.host_id == own.host_id and not _is_alive(hello.pid):
                return Cause(rank=hello.rank, text=f"{hello.name} was killed")
        return None

    def _silent(self) -> Cause | None:
        """A rank whose beats have stopped."""
        now = time.monotonic()
        for rank, beat in enumerate(self.board.beats()):
            if self._heard.get(rank, (None, 0.0))[0] != beat:
                self._heard[rank] = beat, now
            elif now - self._heard[rank][1] > SILENCE_S and rank != self.board.rank:
                text = f"{self.hellos[rank].name} gives no sign of life for {SILENCE_S:.0f} s"
                return Cause(rank=rank, text=text)
        return None

    def _end(self, cause: Cause) -> None:
        """Interrupt the main thread as Ctrl-C would; if that does not end it, end the process."""
        assert self._main is not None
        signal.pthread_kill(self._main, signal.SIGTERM)
        if not self._stopped.wait(LEAVE_S):
            print(f"error: {self.say(cause)}", file=sys.stderr, flush=True)
            os._exit(USER_ERROR_EXIT)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False
