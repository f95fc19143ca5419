"""Board: what the ranks of a pipeline tell one another through their store, the first failure above all."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
_POLL_S = 0.05
"""Between two looks at the store: a thread that waits in the store itself could not be interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a rank says of itself when it comes."""

    rank: int
    host: str
    host_id: str
    """The same for processes that see the same process numbers."""
    pid: int
    plan: str
    """Digest of the plan that it was given."""
    flags: str
    """Those that all ranks must have alike."""

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a pipeline ends before its time."""

    rank: int | None
    """Whose fault it is; None where that is no rank."""
    text: str


class Store(Protocol):
    """As much of torch.distributed's stores as is used here; their errors are `distributed.DistError`."""

    def set(self, key: str, value: str | bytes) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...

    def delete_key(self, key: str) -> bool: ...


class Board:
    """One rank's view of the store."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._num_shared = 0
        self._num_beats = 0

    def say_hello(self, hello: Hello) -> Hello:
        """Take this rank's place; whoever had it before, which is this process if all is well."""
        data = json.dumps(asdict(hello))
        return _hello(self.store.compare_set(f"hello/{self.rank}", "", data))

    def hellos(self) -> dict[int, Hello]:
        """Of the ranks that have come."""
        names = {rank: f"hello/{rank}" for rank in range(self.size)}
        return {rank: _hello(self.store.get(name)) for rank, name in names.items() if self._has(name)}

    def fail(self, cause: Cause) -> Cause:
        """Say why; the cause that was there first."""
        return _cause(self.store.compare_set("cause", "", json.dumps(asdict(cause))))

    def cause(self) -> Cause | None:
        """Why the pipeline ends, if it does."""
        return _cause(self.store.get("cause")) if self._has("cause") else None

    def beat(self) -> None:
        """This rank is alive."""
        self._num_beats += 1
        self.store.set(f"beat/{self.rank}", str(self._num_beats))

    def beats(self) -> list[bytes]:
        """How often each rank has been alive."""
        names = [f"beat/{rank}" for rank in range(self.size)]
        return [self.store.get(name) if self._has(name) else b"" for name in names]

    def mark(self, name: str) -> None:
        """This rank has come to a place."""
        self.store.set(f"{name}/{self.rank}", "")

    def marked(self, name: str) -> set[int]:
        """The ranks that have come to a place."""
        return {rank for rank in range(self.size) if self._has(f"{name}/{rank}")}

    def meet(self, name: str) -> None:
        """Wait until all ranks have come to a place."""
        self.mark(name)
        _wait_for(lambda: len(self.marked(name)) == self.size)

    def share(self, value: T | None) -> T:
        """What the first rank gives; all ranks call this as often."""
        name = f"share/{self._num_shared}"
        self._num_shared += 1
        if self.rank == 0:
            assert value is not None
            self.store.set(name, pickle.dumps(value))
            return value
        _wait_for(lambda: self._has(name))
        found: T = pickle.loads(self.store.get(name))
        return found

    def collect(self, name: str, value: T) -> list[T]:
        """What all ranks give, in their order, at the first one; nothing at the others."""
        if self.rank:
            self.store.set(f"{name}/{self.rank}", pickle.dumps(value))
            return []
        return [value, *self._collected(name)]

    def _collected(self, name: str) -> Iterable[T]:
        for rank in range(1, self.size):
            key = f"{name}/{rank}"
            _wait_for(lambda key=key: self._has(key))  # type: ignore[misc]
            yield pickle.loads(self.store.get(key))
            self.store.delete_key(key)

    def _has(self, name: str) -> bool:
        return bool(self.store.check([name]))


def _wait_for(is_there: Callable[[], bool]) -> None:
    while not is_there():
        time.sleep(_POLL_S)


def _hello(data: bytes) -> Hello:
    return Hello(**json.loads(data))


def _cause(data: bytes) -> Cause:
    return Cause(**json.loads(data))
