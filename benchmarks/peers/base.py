"""The contract of a peer: what it is told, what it tells, and how one is run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.confine import Ran, run_confined
from benchmarks.ours import shown
from hwprofiles.errors import UserError
from hwprofiles.points import Dtype
from hwprofiles.yaml_io import from_plain, to_plain
from planner.plan import Plan

_LOG_TAIL = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJob:
    """What a peer's process is given: our plan's model, workload and cap."""

    model_name: str
    config: Mapping[str, object]
    """Of transformers."""
    dtype: Dtype
    prompt_len: int
    gen_len: int
    gpu_bytes: int | None
    """The cap on GPU memory, the device context included; None where the plan has no GPU."""
    context_bytes: int
    checkpoint: str | None
    """A directory; None for dummy weights."""
    work_dir: str
    """For files of the peer's own, such as offloaded weights."""
    setting: Mapping[str, object]
    """In the terms of the peer, one of those that the case lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFigures:
    """What a peer's process tells."""

    num_prompts: int
    prefill_s: float
    decode_s: float
    is_projected: bool
    """Whether a part of the decode was run and the rest computed from it."""
    peak_gpu_bytes: int | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another system."""

    name: str
    packages: tuple[str, ...]
    """For pip, without what they depend on; torch and transformers are ours."""
    dependencies: tuple[str, ...] = ()
    """What they import beside those: small packages, installed with what they depend on."""
    worker: str
    """The module that runs it, in its own process."""
    setting: type
    """The dataclass of its settings."""
    how: str
    """How it is run, and why that is its best."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRun:
    """One run of a peer with one of its settings."""

    setting: Mapping[str, object]
    command: str
    figures: PeerFigures | None
    throughput_tokens_per_s: float | None
    """Generated tokens / (prefill + decode)."""
    error: str | None
    ran: Ran


def job_of(plan: Plan, *, checkpoint: Path | None, work_dir: Path, setting: Mapping[str, object]) -> PeerJob:
    """The plan's model, workload and cap, for a peer."""
    has_gpu = plan.hardware.compute_tier == "gpu"
    return PeerJob(
        model_name=plan.model.name,
        config=plan.model.config,
        dtype=plan.model.dtype,
        prompt_len=plan.workload.prompt_len,
        gen_len=plan.workload.gen_len,
        gpu_bytes=plan.hardware.gpu_bytes if has_gpu else None,
        context_bytes=plan.hardware.context_bytes,
        checkpoint=str(checkpoint) if checkpoint else None,
        work_dir=str(work_dir),
        setting=setting,
    )


def check_settings(peer: Peer, settings: Mapping[str, object], what: str) -> None:
    """A UserError where a setting has not the peer's keys."""
    from_plain(settings, peer.setting, what)


def run_peer(
    peer: Peer, job: PeerJob, packages: Path, *, limit_bytes: int | None, timeout_s: float
) -> PeerRun:
    """Run a peer in a process of its own, with its packages from the directory `packages`."""
    directory = Path(job.work_dir)
    told, tells = directory / "job.json", directory / "figures.json"
    told.write_text(json.dumps(to_plain(job)))
    tells.unlink(missing_ok=True)
    command = [sys.executable, "-m", peer.worker, str(told), str(tells)]
    ran = run_confined(
        command,
        limit_bytes=limit_bytes,
        timeout_s=timeout_s,
        environment={**peer.environment, "PYTHONPATH": _python_path(packages)},
        log=directory / "peer.log",
    )
    figures = _figures(tells)
    return PeerRun(
        setting=job.setting,
        command=shown(command, directory),
        figures=figures,
        throughput_tokens_per_s=_throughput(figures, job.gen_len),
        error=None if figures else _why(ran),
        ran=ran,
    )


def _python_path(packages: Path) -> str:
    """The peer's packages before all others; this tree is found from the working directory."""
    return os.pathsep.join(part for part in (str(packages), os.environ.get("PYTHONPATH", "")) if part)


def _figures(path: Path) -> PeerFigures | None:
    if not path.is_file():
        return None
    try:
        return from_plain(json.loads(path.read_text()), PeerFigures, str(path))
    except ValueError:
        raise UserError(f"{path}: the peer's process left half a file") from None


def _throughput(figures: PeerFigures | None, gen_len: int) -> float | None:
    if figures is None:
        return None
    return figures.num_prompts * gen_len / (figures.prefill_s + figures.decode_s)


def _why(ran: Ran) -> str:
    if ran.is_timed_out:
        return f"not done after {ran.wall_s:.0f} s"
    if ran.is_out_of_memory or ran.exit_status == -9:
        return "killed: out of memory"
    return ran.log.strip()[-_LOG_TAIL:]
