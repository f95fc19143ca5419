"""The frame of a peer's process: its job from a file, its figures to another."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.facts import SHARED_PACKAGES
from benchmarks.peers.base import PeerFigures, PeerJob
from hwprofiles.yaml_io import from_plain, to_plain


def serve(run: Callable[[PeerJob], PeerFigures]) -> None:
    """Do the job named on the command line."""
    told, tells = Path(sys.argv[1]), Path(sys.argv[2])
    job = from_plain(json.loads(told.read_text()), PeerJob, str(told))
    hold_gpu(job)
    tells.write_text(json.dumps(to_plain(run(job))))


def hold_gpu(job: PeerJob) -> None:
    """Let torch's allocator have no more of the GPU than our run may have."""
    if job.gpu_bytes is None:
        return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (job.gpu_bytes - job.context_bytes) / total), 0)


def peak_gpu_bytes() -> int | None:
    """The most that torch's allocator held, and what is used beside it."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return torch.cuda.max_memory_reserved(0) + max(0, total - free - torch.cuda.memory_reserved(0))


def versions(*names: str) -> dict[str, str]:
    """Of the peer's packages, and of what it shares with us."""
    return {name: importlib.metadata.version(name) for name in (*names, *SHARED_PACKAGES)}


def device_of(job: PeerJob) -> torch.device:
    """Where the job's layers compute."""
    return torch.device("cuda", 0) if job.gpu_bytes else torch.device("cpu")


def dtype_of(job: PeerJob) -> torch.dtype:
    """The job's dtype."""
    found: torch.dtype = getattr(torch, job.dtype)
    return found


def figures(
    num_prompts: int, times: Sequence[float], peer: str, *, is_projected: bool = False
) -> PeerFigures:
    """From the seconds of the start, of each token and of the end."""
    return PeerFigures(
        num_prompts=num_prompts,
        prefill_s=times[1] - times[0],
        decode_s=times[-1] - times[1],
        is_projected=is_projected,
        peak_gpu_bytes=peak_gpu_bytes(),
        versions=versions(peer),
    )
