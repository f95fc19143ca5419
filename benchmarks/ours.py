"""Our own run of a case: the commands as a user would type them, and the report."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.confine import Ran, run_confined
from hwprofiles.errors import UserError

_ERROR_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all cases of a session have in common."""

    hw: str
    """The profile that plans are made with: a name or a path."""
    prompt_len: int
    gen_len: int
    timeout_s: float
    """For each command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OurRun:
    """One run of a plan."""

    command: str
    report: dict[str, object] | None
    """report.json; None where the run failed."""
    error: str | None
    ran: Ran


def make_checkpoint(case: Case, directory: Path) -> Path:
    """The case's checkpoint of random weights, made in a process of its own."""
    assert case.checkpoint
    path = directory / case.checkpoint.model
    command = [sys.executable, "-m", "benchmarks.checkpoint", case.checkpoint.model, case.checkpoint.dtype]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"no checkpoint could be written: {done.stderr.strip()[-_ERROR_TAIL:]}")
    return path


def planner_command(case: Case, setting: Setting, plan: Path, checkpoint: Path | None = None) -> list[str]:
    """`planner search`, or `planner estimate` where the case gives its percents."""
    command = [sys.executable, "-m", "planner", "estimate" if case.percent else "search"]
    command += ["--model", str(checkpoint)] if checkpoint else []
    command += [*shlex.split(case.planner), "--hw", setting.hw, "-o", str(plan)]
    command += ["--prompt-len", str(setting.prompt_len), "--gen-len", str(setting.gen_len)]
    if case.percent:
        command += ["--percent", *case.percent.split()]
        command += ["--gpu-batch-size", str(case.gpu_batch_size)]
        command += ["--num-gpu-batches", str(case.num_gpu_batches)]
    return command


def make_plan(case: Case, setting: Setting, plan: Path, checkpoint: Path | None = None) -> str:
    """Write the case's plan; the command that did it. A UserError where the planner finds none."""
    command = planner_command(case, setting, plan, checkpoint)
    done = subprocess.run(command, capture_output=True, text=True, timeout=setting.timeout_s, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip()[-_ERROR_TAIL:].removeprefix("error: "))
    return shown(command, plan.parent)


def run_plan(
    plan: Path, setting: Setting, directory: Path, *, checkpoint: Path | None, limit_bytes: int | None
) -> OurRun:
    """Run a plan in a process of its own; its files go to `directory`."""
    report = directory / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "executor", "run", str(plan)]
    command += ["--model-path", str(checkpoint)] if checkpoint else ["--dummy-weights"]
    command += ["--report", str(report), "--offload-dir", str(directory)]
    ran = run_confined(
        command,
        limit_bytes=limit_bytes,
        timeout_s=setting.timeout_s,
        environment={},
        log=directory / "executor.log",
    )
    found = json.loads(report.read_text()) if report.is_file() else None
    return OurRun(
        command=shown(command, directory),
        report=found,
        error=None if found else ran.log.strip()[-_ERROR_TAIL:],
        ran=ran,
    )


def shown(command: list[str], directory: Path) -> str:
    """A command as it can be typed; `directory`, which is gone after the session, is DIR."""
    return shlex.join(["python", *command[1:]]).replace(str(directory), "DIR")
