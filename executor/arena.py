"""Arena: memory that is allocated once, at exactly its size, and handed out in aligned pieces."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from hwprofiles.errors import UserError
from hwprofiles.units import MIB, format_bytes
from planner.layout import PAGE_BYTES, align

_TOUCH_BYTES = 64 * MIB
"""What one thread touches at a time."""
_MAX_TOUCH_THREADS = 16
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14 and later; the mmap module has no name for it."""


class Arena:
    """Exactly `nbytes` on a device, handed out piece by piece.

    On the host it is a private mapping of zeros: page-aligned, every page touched so that none fails later,
    and with `register` pinned for CUDA at its exact size (torch's pin_memory rounds up to a power of two).
    On CUDA it is one uninitialised tensor. Raises UserError where the memory cannot be had.
    """

    def __init__(self, nbytes: int, device: torch.device, *, register: bool) -> None:
        self.nbytes, self.device = nbytes, device
        self._used = 0
        self._registered_at = 0
        if device.type == "cpu":
            self.tensor = self._map_host()
            if register and nbytes:
                self._register()
        else:
            self.tensor = _cuda_bytes(nbytes, device)

    def take(self, nbytes: int, align: int = PAGE_BYTES) -> torch.Tensor:
        """The next `nbytes` as a uint8 view that starts at a multiple of `align` within the arena."""
        start = -(-self._used // align) * align if nbytes else self._used
        assert start + nbytes <= self.nbytes, f"arena of {self.nbytes} B has no {nbytes} B left at {start}"
        self._used = start + nbytes
        return self.tensor[start : start + nbytes]

    def on_device(self) -> torch.Tensor:
        """A registered arena as a CUDA tensor: kernels read and write the host's memory over the link.

        Slow for bulk, but such a kernel does not queue behind the copies of other streams.
        """
        assert self._registered_at, "only registered memory has an address on the device"
        return torch.as_tensor(_Registered(self._registered_at, self.nbytes), device="cuda")

    def as_kernels_see_it(self) -> torch.Tensor:
        """`on_device` where the arena is registered and not empty, else the memory itself."""
        return self.on_device() if self._registered_at else self.tensor

    def close(self) -> None:
        """Unpin and let go of the memory; it is returned when the last view of it is gone."""
        if self._registered_at:
            _cuda_call("cudaHostUnregister", torch.cuda.cudart().cudaHostUnregister(self._registered_at))
            self._registered_at = 0
        self.tensor = torch.empty(0, dtype=torch.uint8)

    def _map_host(self) -> torch.Tensor:
        if self.nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        size = align(self.nbytes)
        try:
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            whole = torch.frombuffer(mapping, dtype=torch.uint8)  # holds the mapping, which goes with it
            _touch(whole.data_ptr(), size)
        except (OSError, MemoryError) as error:
            raise _no_memory(self.nbytes, "cpu", error) from None
        return whole[: self.nbytes]

    def _register(self) -> None:
        address, size = self.tensor.data_ptr(), align(self.nbytes)
        try:
            _cuda_call("cudaHostRegister", torch.cuda.cudart().cudaHostRegister(address, size, 0))
        except RuntimeError as error:
            self.close()
            raise UserError(
                f"cannot pin {format_bytes(self.nbytes)} of host memory ({_one_line(error)}); "
                "plan with a smaller --cpu-mem"
            ) from None
        self._registered_at = address


def write_by_kernel(values: torch.Tensor, target: torch.Tensor) -> None:
    """Write values to an arena as kernels see it.

    A copy of a few bytes to the host may wait as long as the copies of other streams that were asked for before it.
    """
    torch.mul(values, 1, out=target)


class _Registered:
    """Registered host memory, described as CUDA's array interface has it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _touch(address: int, size: int) -> None:
    """Make every page of a fresh mapping resident, in parallel; raises OSError or MemoryError."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Huge pages never reach beyond the mapping, so its resident size stays exact; refused where they are off.
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)

    def touch(start: int) -> None:
        piece, length = ctypes.c_void_p(address + start), min(_TOUCH_BYTES, size - start)
        if libc.madvise(piece, ctypes.c_size_t(length), _POPULATE_WRITE) == 0:
            return
        if ctypes.get_errno() != errno.EINVAL:
            raise MemoryError(os.strerror(ctypes.get_errno()))
        ctypes.memset(piece, 0, length)  # a kernel before 5.14

    threads = min(_MAX_TOUCH_THREADS, len(os.sched_getaffinity(0)), -(-size // _TOUCH_BYTES))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(touch, range(0, size, _TOUCH_BYTES)):
            pass


def _cuda_bytes(nbytes: int, device: torch.device) -> torch.Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise _no_memory(nbytes, "gpu", error) from None


def _cuda_call(name: str, status: object) -> None:
    """Raise RuntimeError unless a call to the CUDA runtime returned success, which is 0."""
    code = int(status)  # type: ignore[call-overload]
    if code != 0:
        raise RuntimeError(f"{name} failed: CUDA error {code}")


def _no_memory(nbytes: int, tier: str, error: BaseException) -> UserError:
    flag = "--gpu-mem" if tier == "gpu" else "--cpu-mem"
    return UserError(
        f"cannot allocate {format_bytes(nbytes)} on the {tier} tier ({_one_line(error)}); "
        f"close other programs or plan with a smaller {flag}"
    )


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
