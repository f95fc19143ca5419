"""What a process costs before it holds any model: resident host memory, and GPU memory for its contexts."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hwprofiles.allocation import CUDA_ALLOCATOR
from hwprofiles.errors import UserError
from hwprofiles.points import NO_MARGINS, Kernels, Margins
from hwprofiles.probes.weighed import Weighed
from hwprofiles.yaml_io import from_plain

_PACKAGE_PARENT = Path(__file__).parents[2]
_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCost:
    """Memory a fresh process takes; `context_bytes` has one entry a GPU."""

    resident_bytes: int
    context_bytes: tuple[int, ...]
    spread_bytes: int = 0
    """Between the largest and the smallest of several processes."""
    margins: Margins = NO_MARGINS
    """Of each GPU."""
    kernels_host_bytes: Mapping[Kernels, int] = field(default_factory=dict)
    """Of each kind of model, beyond `resident_bytes`; empty without a GPU."""


def process_cost(num_gpus: int, num_runs: int = 1) -> ProcessCost:
    """Start fresh processes that import and initialise everything, one after the other, and weigh them.

    A GPU's context is the free memory that vanishes there while a process lives, workspaces included, less what
    a run's kernels add, which is a margin; other processes must leave the GPU alone meanwhile. With a GPU the first of
    several compiles the kernels, as a first run does, and says nothing but what that takes. UserError when a process
    fails.
    """
    with tempfile.TemporaryDirectory() as compiled:
        runs = [_weigh(num_gpus, compiled) for _ in range(num_runs)]
    first, runs = runs[0][0], runs[1:] if num_gpus and num_runs > 1 else runs
    resident = sorted(weighed.resident_bytes for weighed, _ in runs)
    return ProcessCost(
        resident_bytes=statistics.median_low(resident),
        context_bytes=tuple(max(gpu) for gpu in zip(*(context for _, context in runs), strict=True)),
        spread_bytes=resident[-1] - resident[0],
        kernels_host_bytes=_kernels([weighed for weighed, _ in runs], first),
        margins=Margins(
            context_bytes=max(weighed.margins.context_bytes for weighed, _ in runs),
            allocator_bytes=max(weighed.margins.allocator_bytes for weighed, _ in runs),
            fragmentation_bytes=max(weighed.margins.fragmentation_bytes for weighed, _ in runs),
        ),
    )


def _kernels(runs: Sequence[Weighed], first: Weighed) -> dict[Kernels, int]:
    """The middle of each figure; and by how much the first process was larger when it had called Triton's kernels."""
    if not first.kernels_host_bytes:
        return {}
    compiling = first.resident_bytes - statistics.median_low([weighed.resident_bytes for weighed in runs])
    found: dict[Kernels, int] = {"compiling": max(0, compiling)}
    for kind in first.kernels_host_bytes:
        found[kind] = statistics.median_low([weighed.kernels_host_bytes[kind] for weighed in runs])
    return found


def _weigh(num_gpus: int, compiled: str) -> tuple[Weighed, tuple[int, ...]]:
    """One process, and the context it has on each GPU; `compiled` is the directory of compiled kernels."""
    before = [_free_bytes(index) for index in range(num_gpus)]
    variable, setting = CUDA_ALLOCATOR
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
        variable: os.environ.get(variable, setting),
        "TRITON_CACHE_DIR": compiled,
    }
    command = [sys.executable, "-m", "hwprofiles.probes.baseline", str(num_gpus)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        watchdog = threading.Timer(_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            after = [_free_bytes(index) for index in range(num_gpus)]
            process.communicate()
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        last_words = " ".join(errors.read().split())[-300:]
    if not line.startswith("{"):
        raise UserError(
            f"a fresh process with torch and transformers failed ({last_words or f'no word in {_TIMEOUT_S} s'}); "
            "check that both can be imported and that the GPU has memory left"
        )
    weighed = from_plain(json.loads(line), Weighed, "a fresh process")
    vanished = (b - a for b, a in zip(before, after, strict=True))
    return weighed, tuple(max(0, nbytes - weighed.margins.context_bytes) for nbytes in vanished)


def _free_bytes(index: int) -> int:
    free: int = torch.cuda.mem_get_info(index)[0]
    return free
