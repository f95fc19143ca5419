"""What tells one machine, and one state of this code, from another."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence

import psutil

from hwprofiles.cgroups import memory_limit_bytes
from hwprofiles.host import cpu_model

SHARED_PACKAGES = ("torch", "transformers")
"""What our runs and the peers' have in common."""


def machine_facts() -> dict[str, object]:
    """Processor, memory and GPUs as affinity, control groups and CUDA leave them, and versions that our runs use."""
    gpus, memory_bytes = _gpus(), psutil.virtual_memory().total
    return {
        "platform": platform.platform(),
        "processor": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "host_cores": psutil.cpu_count(),
        "memory_bytes": min(memory_bytes, memory_limit_bytes() or memory_bytes),
        "gpus": visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES")),
        "host_gpus": len(gpus),
        "python": platform.python_version(),
        **{package: _version(package) for package in SHARED_PACKAGES},
    }


def current_commit() -> str:
    """The commit of the working tree; empty outside of one."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def visible(gpus: Sequence[str], setting: str | None) -> list[str]:
    """Those of a host's GPUs that CUDA_VISIBLE_DEVICES leaves, where it names them by number."""
    if setting == "":
        return []
    if setting is None or not all(word.strip().isdecimal() for word in setting.split(",")):
        return list(gpus)
    return [gpus[index] for index in map(int, setting.split(",")) if index < len(gpus)]


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(package: str) -> str:
    code = f"import {package}; print({package}.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()
