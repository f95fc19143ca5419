"""Safetensors files: their headers, checked against the file's length, and reads past any memory map."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from hwprofiles.errors import UserError

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (huggingface/safetensors)."""
_COMPARED_BYTES = 2**20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor's values lie."""

    path: Path
    dtype: str
    """As the header spells it: F32, BF16, F8_E4M3, ..."""
    shape: tuple[int, ...]
    offset: int
    """From the start of the file."""
    nbytes: int

    def torch_dtype(self, name: str) -> torch.dtype:
        """The dtype of floating values; a UserError for a quantised or integer tensor."""
        if self.dtype not in _DTYPES:
            raise UserError(
                f"{self.path}: tensor {name} has dtype {self.dtype}, known are {', '.join(_DTYPES)}; "
                "use the unquantised checkpoint"
            )
        return _DTYPES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by their key; a UserError where the file is missing, malformed or cut short."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise _damaged(path, f"its header is cut short at {size} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the checkpoint") from None
    except ValueError:
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    return {
        key: _stored(path, key, entry, 8 + length, size)
        for key, entry in header.items()
        if key != "__metadata__"
    }


class TensorStream:
    """Several stored tensors as one run of bytes."""

    def __init__(self, parts: tuple[StoredTensor, ...]) -> None:
        self._parts = iter(parts)
        self._part: StoredTensor | None = None
        self._done = 0
        self._descriptor = -1
        self._path: Path | None = None

    def fill(self, into: memoryview) -> None:
        """The next bytes."""
        filled = 0
        while filled < len(into):
            part = self._current()
            count = min(len(into) - filled, part.nbytes - self._done)
            _read_exactly(
                self._descriptor, into[filled : filled + count], part.offset + self._done, part.path
            )
            self._done += count
            filled += count

    def close(self) -> None:
        """Close the file that is open."""
        if self._path is not None:
            os.close(self._descriptor)
            self._path = None

    def _current(self) -> StoredTensor:
        while self._part is None or self._done == self._part.nbytes:
            self._part, self._done = next(self._parts), 0
        if self._part.path != self._path:
            self.close()
            try:
                self._descriptor = os.open(self._part.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UserError(f"{self._part.path}: cannot be read ({error.strerror})") from None
            self._path = self._part.path
        return self._part


def have_same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same bytes, compared piece by piece."""
    if one.dtype != other.dtype:
        return False
    streams = TensorStream((one,)), TensorStream((other,))
    buffers = bytearray(_COMPARED_BYTES), bytearray(_COMPARED_BYTES)
    try:
        for start in range(0, one.nbytes, _COMPARED_BYTES):
            pieces = [memoryview(buffer)[: min(_COMPARED_BYTES, one.nbytes - start)] for buffer in buffers]
            for stream, piece in zip(streams, pieces, strict=True):
                stream.fill(piece)
            if pieces[0] != pieces[1]:
                return False
    finally:
        for stream in streams:
            stream.close()
    return True


def _read_exactly(descriptor: int, into: memoryview, offset: int, path: Path) -> None:
    """Fill `into` from `offset`; a UserError where the file ends too soon."""
    done = 0
    while done < len(into):
        try:
            count = os.preadv(descriptor, [into[done:]], offset + done)
        except OSError as error:
            raise UserError(f"{path}: reading failed at byte {offset + done} ({error.strerror})") from None
        if count == 0:
            raise _damaged(path, f"it ends at byte {offset + done}")
        done += count


def _stored(path: Path, key: str, entry: object, start: int, size: int) -> StoredTensor:
    try:
        fields = dict(entry)  # type: ignore[call-overload]
        dtype, shape = str(fields["dtype"]), tuple(int(length) for length in fields["shape"])
        begin, end = (int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"the header's entry for {key} is malformed") from None
    nbytes = end - begin
    if dtype in _DTYPES and nbytes != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise _damaged(path, f"{key} has {nbytes} bytes for shape {list(shape)} of {dtype}")
    if begin < 0 or nbytes < 0 or start + end > size:
        raise _damaged(path, f"{key} ends at byte {start + end}, the file at {size}")
    return StoredTensor(path=path, dtype=dtype, shape=shape, offset=start + begin, nbytes=nbytes)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: truncated or damaged ({what}); download or save the checkpoint again")
