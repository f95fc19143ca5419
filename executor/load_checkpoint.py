"""A checkpoint's parameters into their homes, converted or quantised on the way, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from threading import Event, Lock

import torch

from executor.arena import Arena
from executor.checkpoint import Checkpoint
from executor.homes import Home
from executor.workers import num_workers, share_out
from hwprofiles.errors import UserError
from hwprofiles.packing import GROUP_BYTES, GROUP_SIZE
from hwprofiles.probes.quantize import quantise_groups
from hwprofiles.units import MIB
from planner.layout import PAGE_BYTES
from planner.model import TensorSpec

_MIN_THREADS, _MAX_THREADS = 4, 8
"""More than the cores where those are few: reading waits for the disk."""
_PIECE_BYTES = MIB
_BUFFERS = 3
"""Of each thread: what is read, what it becomes, what passes through on the way to the disk."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where one parameter goes."""

    name: str
    """In full, as the checkpoint is asked for it."""
    tensor: TensorSpec
    home: Home
    offset: int
    quantised: bool


def load_checkpoint(
    checkpoint: Checkpoint, batches: Sequence[Sequence[Destination]], dtype: torch.dtype, progress: Progress
) -> None:
    """Load every destination; those of one batch one after the other, different batches side by side.

    `progress` is told, under a lock, the bytes that came home, counted in the model's dtype.
    """
    threads = max(_MIN_THREADS, num_workers(_MAX_THREADS))
    arena = Arena(threads * (_BUFFERS * _PIECE_BYTES + 2 * PAGE_BYTES), torch.device("cpu"), register=False)
    idle = [_Loader(checkpoint, dtype, arena) for _ in range(threads)]
    lock = Lock()

    def load(batch: Sequence[Destination], stopping: Event) -> None:
        loader = idle.pop()
        try:
            for count in chain.from_iterable(map(loader.load, batch)):
                if stopping.is_set():
                    return
                with lock:
                    progress(count * dtype.itemsize)
        finally:
            idle.append(loader)

    try:
        share_out(load, batches, threads=threads)
    finally:
        idle.clear()
        arena.close()


class _Loader:
    """One thread's buffers."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, arena: Arena) -> None:
        self._checkpoint, self._dtype = checkpoint, dtype
        self._read = arena.take(_PIECE_BYTES)
        self._converted = arena.take(_PIECE_BYTES)
        self._bounce = arena.take(_PIECE_BYTES + 2 * PAGE_BYTES)

    def load(self, destination: Destination) -> Iterator[int]:
        """One parameter, piece by piece; yields the number of values of each piece that is home."""
        name, numel, item = destination.name, destination.tensor.numel, self._dtype.itemsize
        stored = self._checkpoint.dtype(name)
        room = _PIECE_BYTES // max(stored.itemsize, item) // GROUP_SIZE * GROUP_SIZE
        is_copy = stored == self._dtype and not destination.quantised
        with closing(self._checkpoint.stream(name)) as stream:
            for start in range(0, numel, room):
                count, offset = min(room, numel - start), destination.offset + start * item
                memory = destination.home.in_place(offset, count * item) if is_copy else None
                piece = self._read[: count * stored.itemsize] if memory is None else memory
                stream.fill(piece.numpy().data)
                if destination.quantised:
                    self._put_quantised(destination, start, piece.view(stored))
                elif memory is None:
                    destination.home.put(offset, self._convert(name, piece.view(stored)), self._bounce)
                yield count

    def _convert(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The bytes of values in the model's dtype."""
        if values.dtype == self._dtype:
            return values.view(torch.uint8)
        converted = self._converted[: values.numel() * self._dtype.itemsize]
        typed = converted.view(self._dtype)
        typed.copy_(values)
        if self._dtype == torch.float16 and not bool(typed.isfinite().all()):
            raise UserError(
                f"{self._checkpoint.directory}: tensor {name} has values beyond float16's range; "
                "plan with a bfloat16 config"
            )
        return converted

    def _put_quantised(self, destination: Destination, start: int, values: torch.Tensor) -> None:
        """Packed groups and their constants, which lie apart in the slab."""
        num_groups = -(-values.numel() // GROUP_SIZE)
        packed = self._converted[: num_groups * GROUP_SIZE // 2]
        constants = self._converted[packed.numel() : num_groups * GROUP_BYTES]
        try:
            quantise_groups(
                values,
                packed.view(num_groups, -1),
                constants.view(torch.float16).view(num_groups, 2),
                check_finite=True,
            )
        except ValueError:
            raise UserError(
                f"{self._checkpoint.directory}: tensor {destination.name} holds values that are not finite; "
                "the checkpoint is damaged, or must be run with --weight-bits 16"
            ) from None
        first_group = start // GROUP_SIZE
        all_packed = -(-destination.tensor.numel // GROUP_SIZE) * GROUP_SIZE // 2
        home, offset = destination.home, destination.offset
        home.put(offset + first_group * (GROUP_SIZE // 2), packed, self._bounce)
        home.put(offset + all_packed + first_group * (GROUP_BYTES - GROUP_SIZE // 2), constants, self._bounce)
