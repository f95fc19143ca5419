"""Turns: the runs of one case, ours and then each peer's, as often as there are rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from benchmarks.cases import Case
from benchmarks.confine import Ran
from benchmarks.ours import OurRun, Setting, run_plan
from benchmarks.page_cache import forget_files
from benchmarks.peers.base import Peer, PeerRun, job_of, run_peer
from benchmarks.result import OurFigures, PeerRuns, Result
from planner.plan import Plan

Run = TypeVar("Run")
_TRIES, _STOPPED_S = 3, 1.0
"""How often a run is made anew that was stopped, by job control for example, for longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all cases of a call have in common."""

    setting: Setting
    peers: tuple[Peer, ...]
    rounds: int
    directory: Path
    """For checkpoints, offloaded weights and packages; removed at the end."""
    first_runs: dict[str, PeerRun] = field(default_factory=dict)
    """Of a peer with a setting, by what it was told: a case that lists the same one later is given this run."""


class Turns:
    """What has been run of a case so far."""

    def __init__(
        self, case: Case, plan: Plan, session: Session, directory: Path, checkpoint: Path | None
    ) -> None:
        self.ours: list[OurRun] = []
        self.theirs: dict[str, list[PeerRun]] = {peer.name: [] for peer in session.peers}
        self._case, self._plan, self._session = case, plan, session
        self._directory, self._checkpoint = directory, checkpoint

    def play(self) -> Iterator[None]:
        """All rounds, run by run."""
        for index in range(self._session.rounds):
            self._run_ours()
            yield
            for peer in self._session.peers:
                for setting in self._settings(peer, is_first=index == 0):
                    self._run_theirs(peer, setting, is_first=index == 0)
                    yield

    def added_to(self, result: Result) -> Result:
        """The result with all runs so far."""
        median = self.median()
        return replace(
            result,
            commands=(result.commands[0], self.ours[0].command),
            report=median.report if median else None,
            error=None if median else self.ours[-1].error,
            runs=tuple(_figures(run) for run in self.ours),
            peers=tuple(
                PeerRuns(name=peer.name, how=peer.how, runs=tuple(self.theirs[peer.name]))
                for peer in self._session.peers
            ),
        )

    def median(self) -> OurRun | None:
        """Of our runs that were done the middle one, by throughput; the slower one of two."""
        done = sorted((run for run in self.ours if run.report), key=lambda run: _throughput(run) or 0.0)
        return done[(len(done) - 1) // 2] if done else None

    def _settings(self, peer: Peer, *, is_first: bool) -> Sequence[dict[str, object]]:
        best = PeerRuns(name=peer.name, how=peer.how, runs=self.theirs[peer.name]).best()
        if is_first:
            return [dict(setting) for setting in self._case.peers[peer.name]]
        return [dict(best.setting)] if best else []

    def _run_ours(self) -> None:
        self.ours.append(_unstopped(self._our_run, lambda run: run.ran))

    def _run_theirs(self, peer: Peer, setting: dict[str, object], *, is_first: bool) -> None:
        told = job_of(self._plan, checkpoint=self._checkpoint, work_dir=Path(), setting=setting)
        name, known = f"{peer.name} {self._case.host_limit} {told}", self._session.first_runs
        if is_first and name in known:
            run = known[name]
        else:
            run = _unstopped(lambda: self._their_run(peer, setting), lambda run: run.ran)
        known.setdefault(name, run)
        self.theirs[peer.name].append(run)

    def _our_run(self) -> OurRun:
        self._forget()
        return run_plan(
            self._directory / "plan.yaml",
            self._session.setting,
            self._directory,
            checkpoint=self._checkpoint,
            limit_bytes=self._case.limit_bytes(),
        )

    def _their_run(self, peer: Peer, setting: dict[str, object]) -> PeerRun:
        self._forget()
        with tempfile.TemporaryDirectory(dir=self._directory) as work_dir:
            job = job_of(self._plan, checkpoint=self._checkpoint, work_dir=Path(work_dir), setting=setting)
            return run_peer(
                peer,
                job,
                self._session.directory / peer.name,
                limit_bytes=self._case.limit_bytes(),
                timeout_s=self._session.setting.timeout_s,
            )

    def _forget(self) -> None:
        """So that the checkpoint is read from the disk by everyone."""
        if self._checkpoint:
            forget_files(self._checkpoint)


def _unstopped(run: Callable[[], Run], ran_of: Callable[[Run], Ran]) -> Run:
    """A run that nobody stopped on its way; after some tries, whatever the last one was."""
    for _ in range(_TRIES - 1):
        found = run()
        if ran_of(found).stopped_s < _STOPPED_S:
            return found
    return run()


def _throughput(run: OurRun) -> float | None:
    return _figures(run).throughput_tokens_per_s


def _figures(run: OurRun) -> OurFigures:
    """What a result keeps of a run of ours."""
    report = run.report or {}
    phases = report.get("phases")
    seconds = {phase["phase"]: phase["measured_s"] for phase in phases} if isinstance(phases, list) else {}
    found = report.get("throughput_tokens_per_s")
    return OurFigures(
        prefill_s=seconds.get("prefill"),
        decode_s=seconds.get("decode"),
        throughput_tokens_per_s=found if isinstance(found, float) else None,
        error=run.error,
        ran=run.ran,
    )
