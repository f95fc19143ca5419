"""What a process costs before it holds any model: resident host memory, and GPU memory for its contexts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from hwprofiles.errors import UserError

_PACKAGE_PARENT = Path(__file__).parents[2]
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCost:
    """Memory a fresh process takes; `context_bytes` has one entry a GPU."""

    resident_bytes: int
    context_bytes: tuple[int, ...]


def process_cost(num_gpus: int) -> ProcessCost:
    """Start a fresh process that imports and initialises everything, and weigh it.

    A GPU's context is the free memory that vanishes there while the process lives, workspaces included; other
    processes must leave the GPU alone meanwhile. UserError when the process fails.
    """
    before = [_free_bytes(index) for index in range(num_gpus)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
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
            f"a fresh process with torch and transformers failed ({last_words}); "
            "check that both can be imported and that the GPU has memory left"
        )
    return ProcessCost(
        resident_bytes=json.loads(line)["resident_bytes"],
        context_bytes=tuple(max(0, b - a) for b, a in zip(before, after, strict=True)),
    )


def _free_bytes(index: int) -> int:
    free: int = torch.cuda.mem_get_info(index)[0]
    return free
