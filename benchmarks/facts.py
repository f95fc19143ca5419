"""What tells one machine, and one state of this code, from another."""

from __future__ import annotations

import platform
import subprocess
import sys

import psutil

from hwprofiles.host import cpu_model

SHARED_PACKAGES = ("torch", "transformers")
"""What our runs and the peers' have in common."""


def machine_facts() -> dict[str, object]:
    """Processor, memory, GPUs, and the versions that our runs use."""
    return {
        "platform": platform.platform(),
        "processor": cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
        "python": platform.python_version(),
        **{package: _version(package) for package in SHARED_PACKAGES},
    }


def current_commit() -> str:
    """The commit of the working tree; empty outside of one."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


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
