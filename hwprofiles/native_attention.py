"""native_attention.c, compiled for this machine by its own C compiler and kept in the user's cache directory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from pathlib import Path

MAX_HEAD_DIM = 512
_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_COMPILE_TIMEOUT_S = 60


class Stored(IntEnum):
    """What cached values are stored as."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    PACKED = 3
    """4 bits, as hwprofiles.probes.quantize lays them out."""


class Job(ctypes.Structure):
    """The arguments of a call: `struct job` of the source, which says what they are."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("token_bytes", ctypes.c_int64),
        ("value_bytes", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("query", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("pads", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("stop", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


Attend = Callable[[Job], None]


@cache
def find_attention() -> Attend | None:
    """The compiled function, which runs without the GIL; None where no compiler makes it."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        function = ctypes.CDLL(str(_library(compiler))).attend
    except (OSError, subprocess.SubprocessError):
        return None
    function.argtypes = [ctypes.POINTER(Job)]

    def attend(job: Job) -> None:
        if function(ctypes.byref(job)):
            raise MemoryError("no memory for the CPU's attention")

    return attend


def _library(compiler: str) -> Path:
    """The shared library for this source, compiler and processor; compiled where it is not there yet."""
    key = "\n".join((_SOURCE.read_text(), compiler, *_FLAGS, _processor()))
    directory = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tierplan"
    library = directory / f"attention-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = Path(scratch) / library.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)
            made.replace(library)
    return library


def _processor() -> str:
    """What -march=native depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
