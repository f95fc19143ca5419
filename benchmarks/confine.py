"""Run a command, held to a memory limit if asked, and say what it and others took of the machine meanwhile."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory_group import MemoryGroup, make_memory_group

_POLL_S = 0.1
_STARVED_S = 2.0
"""Between two looks: longer than a busy machine makes this process wait."""
_RUSAGE_BLOCK_BYTES = 512
_LOG_TAIL = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that has ended."""

    exit_status: int
    """Negative: the signal that ended it."""
    is_timed_out: bool
    is_out_of_memory: bool
    """The kernel killed it because its group was at the limit."""
    wall_s: float
    cpu_s: float
    limit_bytes: int | None
    """Of its control group: anonymous memory and the pages of files that it reads."""
    peak_charged_bytes: int | None
    peak_anonymous_bytes: int | None
    """Of samples 0.1 s apart."""
    peak_resident_bytes: int
    """Its largest process, with the pages of files that it had mapped."""
    disk_read_bytes: int
    others_cores: float
    """Cores that everything else kept busy on average."""
    others_niced_cores: float
    """Of these, by programs of low priority."""
    stopped_s: float
    """For how long a signal had stopped it, or all of us: such a run says nothing about speed."""
    log: str
    """The end of what it printed."""


def run_confined(
    command: Sequence[str],
    *,
    limit_bytes: int | None,
    timeout_s: float,
    environment: Mapping[str, str],
    log: Path,
) -> Ran:
    """Run `command` to its end, or until `timeout_s`; what it prints goes to `log`."""
    with ExitStack() as stack:
        group = make_memory_group(limit_bytes) if limit_bytes else None
        if group:
            stack.callback(group.remove)
        printed = stack.enter_context(log.open("wb"))
        before, began = _busy_s(), time.monotonic()
        process = subprocess.Popen(
            group.entering(command) if group else command,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        stack.callback(_end, process)
        status, usage, watched = _watch(process, group, began + timeout_s)
        wall_s, cpu_s = time.monotonic() - began, usage.ru_utime + usage.ru_stime
        busy_s, niced_s = (after - at_start for after, at_start in zip(_busy_s(), before, strict=True))
        return Ran(
            exit_status=status,
            is_timed_out=watched.is_timed_out,
            is_out_of_memory=bool(group and group.kills()),
            wall_s=wall_s,
            cpu_s=cpu_s,
            limit_bytes=limit_bytes,
            peak_charged_bytes=group.peak_bytes() if group else None,
            peak_anonymous_bytes=watched.anonymous_bytes if group else None,
            peak_resident_bytes=watched.resident_bytes,
            disk_read_bytes=usage.ru_inblock * _RUSAGE_BLOCK_BYTES,
            others_cores=max(0.0, busy_s - cpu_s) / wall_s,
            others_niced_cores=niced_s / wall_s,
            stopped_s=watched.stopped_s,
            log=log.read_text(errors="replace")[-_LOG_TAIL:],
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing running after an interrupt."""
    if process.returncode is None:
        process.kill()
        process.wait()


@dataclass(slots=True)
class _Watched:
    """What is seen of a process while it runs."""

    is_timed_out: bool = False
    anonymous_bytes: int = 0
    resident_bytes: int = 0
    stopped_s: float = 0.0


def _watch(
    process: subprocess.Popen[bytes], group: MemoryGroup | None, deadline: float
) -> tuple[int, resource.struct_rusage, _Watched]:
    """Wait for a process to end, or end it at the deadline: its exit status, what it used, what was seen."""
    watched, last = _Watched(), time.monotonic()
    while True:
        found, status, usage = os.wait4(process.pid, os.WNOHANG)
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage, watched
        if group:
            watched.anonymous_bytes = max(watched.anonymous_bytes, group.anonymous_bytes())
        watched.resident_bytes = max(watched.resident_bytes, _peak_resident_bytes(process.pid))
        passed_s, last = time.monotonic() - last, time.monotonic()
        if _is_stopped(process.pid) or passed_s > _STARVED_S:  # who stops it may stop this process too
            watched.stopped_s += passed_s
        if not watched.is_timed_out and time.monotonic() > deadline:
            watched.is_timed_out = True
            process.kill()
        time.sleep(_POLL_S)


def _peak_resident_bytes(pid: int) -> int:
    """The most it had so far; what wait4 tells would count the process that started it, too."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _is_stopped(pid: int) -> bool:
    """The state after the name in parentheses; see proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _busy_s() -> tuple[float, float]:
    """Seconds of processor time that the whole machine has used, and those of niced programs in user code."""
    user, niced, system, _, _, irq, softirq = (
        int(number) / os.sysconf("SC_CLK_TCK")
        for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    )
    return user + niced + system + irq + softirq, niced
