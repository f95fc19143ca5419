"""Lanes: each resource's tasks in order, each on its own stream (CUDA) or thread; every copy runs in one.

A lane waits for a task's dependencies in both directions: a stream waits for other streams' events on the device, a
thread waits for events on the host. Nothing waits for the whole device.

Compute is issued by the caller's own thread, which waits for the CPU's attention only once the next gpu batch is on
its way; and so are copies on a stream whose dependencies are all issued: threads
that hand Python's lock to each other cost more than a kernel's launch. A thread serves a stream only while something
that the disk has yet to bring stands before it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from hwprofiles.probes.compute import hold_back
from planner.schedule import Resource, Task, TaskKind

Body = Callable[[], int]
"""Does a task; returns the bytes it moved."""
Meeting = Callable[[], None]
"""Waits for another rank, before a task begins."""
Delay = Callable[[Task], float]
"""Seconds to hold a task back: for tests, which look for missing dependencies."""


_NET: tuple[Resource, ...] = ("net_in", "net_out")
_HANG_S = 0.5
"""What a lane to another rank has to end after a failure; its thread may wait for a message that never comes."""
PIECE_BYTES = 16 * 2**20
"""Copies are cut to this size: large enough for the link's full rate, and a short copy of another stream (a query, a
result) waits for one piece instead of a whole layer."""


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> int:
    """Copy flat uint8 tensors of one size, in pieces, without waiting; the bytes copied."""
    for start in range(0, source.numel(), PIECE_BYTES):
        piece = slice(start, start + PIECE_BYTES)
        target[piece].copy_(source[piece], non_blocking=True)
    return source.numel()


def copy_on_host(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy between contiguous tensors of one size in host memory, by the calling thread alone.

    torch would start threads for it; those of a lane and those that compute would make each other sleep.
    """
    here, there = (tensor.view(torch.uint8).view(-1).numpy() for tensor in (target, source))
    np.copyto(here, there)


@dataclass(slots=True)
class Handle:
    """A task on its way: when it is issued, done, and what it took."""

    task: Task
    meeting: Meeting | None = None
    submitted_s: float = field(default_factory=time.perf_counter)
    """It cannot begin before."""
    issued: threading.Event = field(default_factory=threading.Event)
    device_event: torch.cuda.Event | None = None
    start_event: torch.cuda.Event | None = None
    start_s: float = 0.0
    stop_s: float = 0.0
    num_bytes: int = 0
    by_caller: bool = False
    """Issued by the thread that issues compute, not by its lane's."""

    def wait(self) -> None:
        """Block until the task is done, on the device too."""
        self.issued.wait()
        if self.device_event is not None:
            self.device_event.synchronize()

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self.issued.is_set() and (self.device_event is None or self.device_event.query())

    def seconds(self) -> float:
        """Measured on the device where the task ran on a stream."""
        if self.start_event is not None and self.device_event is not None:
            return float(self.start_event.elapsed_time(self.device_event)) / 1e3
        return self.stop_s - self.start_s


class Failure:
    """The first error of any lane; after it, lanes let their tasks pass undone so that nobody waits for ever."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def note(self, error: BaseException) -> None:
        """Keep the first."""
        with self._lock:
            self.error = self.error or error

    def check(self) -> None:
        """Raise it in the caller's thread."""
        if self.error is not None:
            raise self.error


class Lane:
    """One resource's tasks, first in first out: at once where nothing is pending, else on a thread of its own."""

    def __init__(self, stream: torch.cuda.Stream | None, failure: Failure, delay: Delay | None) -> None:
        self.stream, self.failure, self.delay = stream, failure, delay
        self._queue: queue.SimpleQueue[tuple[Handle, list[Handle], Body] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Handle | None = None

    def put(self, handle: Handle, deps: list[Handle], body: Body) -> None:
        """Do a task, or queue it behind those it depends on."""
        idle = self._last is None or self._last.issued.is_set()
        self._last = handle
        at_once = self.stream is not None and idle and handle.meeting is None
        if at_once and all(dep.issued.is_set() for dep in deps):
            handle.by_caller = True
            run_task(handle, deps, body, self.stream, self.delay, self.failure)
            handle.issued.set()
            return
        if self._thread is None:
            thread = threading.Thread(target=self._work, daemon=True)
            thread.start()
            self._thread = thread  # known once it runs: an interrupt before leaves nothing to join
        self._queue.put((handle, deps, body))

    def close(self, wait_s: float | None = None) -> None:
        """Finish what is queued and end the thread, within a time if one is given; a thread that hangs is left."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(wait_s)

    def _work(self) -> None:
        with torch.inference_mode():
            while (item := self._queue.get()) is not None:
                handle, deps, body = item
                try:
                    if self.failure.error is None:
                        run_task(handle, deps, body, self.stream, self.delay, self.failure)
                except BaseException as error:
                    self.failure.note(error)
                finally:
                    handle.issued.set()


def run_task(
    handle: Handle,
    deps: list[Handle],
    body: Body,
    stream: torch.cuda.Stream | None,
    delay: Delay | None,
    failure: Failure,
) -> None:
    """Wait for the dependencies, then do a task and note when it ran; raises where one of them was left undone.

    Before a meeting they are done on the device too: what is sent from GPU to GPU is then ready on both.
    """
    for dep in deps:
        if stream is None or handle.meeting is not None:
            dep.wait()
        else:
            dep.issued.wait()  # from here on its event, if it has one, is recorded
            if dep.device_event is not None:
                stream.wait_event(dep.device_event)
    failure.check()
    if delay is not None:
        _hold_back(delay(handle.task), stream)
    if handle.meeting is not None:
        handle.meeting()
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        if stream is not None:
            handle.start_event = torch.cuda.Event(enable_timing=True)
            handle.start_event.record(stream)
        handle.start_s = time.perf_counter()
        handle.num_bytes = body()
        handle.stop_s = time.perf_counter()
        if stream is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(stream)
            handle.device_event = event


def _hold_back(seconds: float, stream: torch.cuda.Stream | None) -> None:
    if stream is None:
        time.sleep(seconds)
        return
    with torch.cuda.stream(stream):
        hold_back(seconds)


Streams = Mapping[Resource, torch.cuda.Stream]


def make_streams(device: torch.device, names: Collection[Resource]) -> Streams:
    """A stream of its own for each of these lanes where the device is a GPU.

    They outlive a run: torch keeps freed memory, and its libraries their workspaces, for the stream that used them.
    """
    return {name: torch.cuda.Stream(device) for name in names} if device.type == "cuda" else {}


class Lanes:
    """All lanes of a run. With `overlap` off, a task is done when `submit` returns, but for what the net carries."""

    def __init__(self, streams: Streams, *, overlap: bool, delay: Delay | None = None) -> None:
        self.overlap, self.delay = overlap, delay
        self.failure = Failure()
        self._lanes: dict[Resource, Lane] = {}
        self._handles: dict[int, Handle] = {}
        self._streams = streams

    def submit(self, task: Task, body: Body, meeting: Meeting | None = None) -> Handle:
        """Hand a task to its resource's lane; raises the first error any lane has met."""
        self.failure.check()
        handle = Handle(task, meeting)
        deps = [self._handles[dep] for dep in task.deps if dep in self._handles]
        self._handles[task.id] = handle
        stream = self._streams.get(task.resource)
        if self._has_lane(task):
            if task.resource not in self._lanes:
                self._lanes[task.resource] = Lane(stream, self.failure, self.delay)
            self._lanes[task.resource].put(handle, deps, body)
            return handle
        handle.by_caller = True
        run_task(handle, deps, body, stream, self.delay, self.failure)
        handle.issued.set()
        if not self.overlap:
            handle.wait()
        return handle

    def _has_lane(self, task: Task) -> bool:
        """Whether it need not be done before `submit` returns; waiting for another stage could wait for ever."""
        if task.kind is TaskKind.ATTEND:  # a CPU that computes everything has no cores left for it
            return self.overlap and bool(self._streams)
        return task.resource in _NET or (self.overlap and task.kind is not TaskKind.COMPUTE)

    def forget(self, handle: Handle) -> None:
        """A task that is done need not be waited for."""
        self._handles.pop(handle.task.id, None)

    def close(self) -> None:
        """Finish all lanes; never raises.

        After a failure nobody waits for what another rank may never send.
        """
        if self.failure.error is not None:
            for handle in self._handles.values():
                if handle.task.resource in _NET:
                    handle.issued.set()
        for name, lane in self._lanes.items():
            lane.close(_HANG_S if name in _NET and self.failure.error is not None else None)
        self._lanes.clear()
        self._handles.clear()
