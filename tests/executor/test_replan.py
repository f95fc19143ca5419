"""`executor run --replan`: a job whose first block is far from its prediction goes on with a better plan."""

from __future__ import annotations

import os
import pkgutil
import signal
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from executor import job
from executor import replan as replan_module
from executor.arena import Arena
from executor.cli import main
from executor.leg import FirstBlock
from executor.replan import Replanner, check_can_replan
from hwprofiles.errors import UserError
from hwprofiles.points import DiskPoint, Rate
from hwprofiles.profile import HardwareProfile
from planner.plan import Plan
from planner.report import load_report
from tests.executor.jobs import (
    ON_DISK,
    many_prompts,
    plan_for,
    results,
    save_checkpoint,
    write_plan,
    write_prompts,
)
from tests.planner.problems import emulated, policy_of
from tests.planner.runs import report_of
from tests.processes import start

NUM_PROMPTS = 61


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with its tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer)


def wrong_profile() -> HardwareProfile:
    """An emulated GPU's host whose disk is said to be a thousand times faster than any."""
    profile = emulated()
    assert profile.disk is not None

    def faster(point: DiskPoint) -> DiskPoint:
        return replace(point, bytes_per_s=Rate(median=1000 * point.bytes_per_s.median))

    read, write = (tuple(map(faster, points)) for points in (profile.disk.read, profile.disk.write))
    return replace(profile, disk=replace(profile.disk, read=read, write=write))


@pytest.fixture
def plan(checkpoint: Path) -> Plan:
    """A poor one: everything on disk, two sequences at a time."""
    return plan_for(checkpoint, profile=wrong_profile(), gpu_batch_size=2, num_gpu_batches=1, splits=ON_DISK)


@pytest.fixture
def command(plan: Plan, checkpoint: Path, tmp_path: Path) -> list[str]:
    """executor run of 61 prompts, with --replan."""
    prompts = write_prompts(tmp_path / "p.jsonl", many_prompts(NUM_PROMPTS))
    (tmp_path / "offload").mkdir()
    words = [
        "run", write_plan(tmp_path / "plan.yaml", plan), "--model-path", checkpoint, "--input", prompts,
        "--offload-dir", tmp_path / "offload", "--output", tmp_path / "r.jsonl", "--report", tmp_path / "report.json",
        "--replan",
    ]  # fmt: skip
    return [str(word) for word in words]


def test_the_rest_runs_with_another_plan(
    command: list[str],
    plan: Plan,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said and reported, no memory of the first plan is left when the second takes its own, the tokens are the
    same as without, and a second run has nothing to do."""
    mappings: list[weakref.ref[object]] = []
    map_host, give_back = Arena._map_host, job.give_memory_back

    def remember(arena: Arena) -> object:
        tensor = map_host(arena)
        if arena.nbytes:
            mappings.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    def check(*arguments: object) -> None:
        give_back(*arguments)  # type: ignore[arg-type]
        assert mappings
        assert [ref() for ref in mappings if ref() is not None] == []
        assert list((tmp_path / "offload").iterdir()) == [], "the first plan's files are gone"

    monkeypatch.setattr(replan_module, "OFF", 0.0)
    monkeypatch.setattr(Arena, "_map_host", remember)
    monkeypatch.setattr(job, "give_memory_back", check)
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "the first block took" in shown
    assert "going on with another plan: gpu batch 2 x 1 to" in shown
    report = load_report(tmp_path / "report.json")
    assert report.replanned is not None
    before, after = report.legs
    assert (before.plan, before.num_blocks, before.num_requests) == (plan, 1, 2)
    assert after.plan.policy.block_size > 2
    assert after.plan_digest != before.plan_digest
    assert report.num_requests == NUM_PROMPTS
    replanned = results(tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").unlink()
    assert main([word for word in command if word != "--replan"]) == 0
    assert replanned == results(tmp_path / "r.jsonl")
    assert main(command) == 0
    assert load_report(tmp_path / "report.json").num_blocks == 0
    assert results(tmp_path / "r.jsonl") == replanned


KILL_AT = {
    "while the planner searches": "executor.replan._ask_planner",
    "when the first plan's memory is given back": "executor.job.give_memory_back",
    "when the second plan is checked": "executor.job._go_on",
}


def run_until(place: str, command: list[str]) -> int:
    """executor run in a process that is killed where it calls this function.

    It plans again however near the first block's time is to what was predicted, which depends on the machine.
    """
    replan_module.OFF = 0.0
    module, _, name = place.rpartition(".")
    setattr(pkgutil.resolve_name(module), name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    return main(command)


@pytest.mark.parametrize("place", KILL_AT.values(), ids=KILL_AT)
def test_killed_while_it_replans(place: str, command: list[str], tmp_path: Path) -> None:
    """The same command finishes the rest: no line twice, none lost."""
    child = start(partial(run_until, place, command), tmp_path / "log")
    assert child.wait() == -signal.SIGKILL, child.said
    kept = (tmp_path / "r.jsonl").read_text()
    assert len(results(tmp_path / "r.jsonl")) == 2
    assert main(command) == 0
    assert (tmp_path / "r.jsonl").read_text().startswith(kept)
    assert sorted(results(tmp_path / "r.jsonl")) == sorted(f"request-{n + 1}" for n in range(NUM_PROMPTS))


def first_block(off: float, one_time_s: float = 0.0) -> FirstBlock:
    """Of a run that took so much longer than predicted."""
    report = report_of(emulated(), policy_of(), {})
    phases = tuple(
        replace(phase, measured_s=phase.predicted_s * (1 + off) + one_time_s) for phase in report.phases
    )
    return FirstBlock(
        report=replace(report, phases=phases),
        one_time_s=dict.fromkeys(("prefill", "decode"), one_time_s),
        remaining=(),
        reload_s=1.0,
    )


@pytest.mark.parametrize(
    ("off", "one_time_s", "asks"),
    [(0.14, 0.0, False), (-0.14, 5.0, False), (0.16, 0.0, True), (-0.16, 5.0, True)],
)
def test_within_fifteen_percent_nothing_is_asked(
    off: float, one_time_s: float, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One-time costs left out; a search that fails is said, and the job goes on."""
    said: list[str] = []

    def fail(*_: object) -> None:
        raise UserError("no memory")

    monkeypatch.setattr(replan_module, "_ask_planner", fail)
    assert Replanner(said.append)(first_block(off, one_time_s)) is None
    assert [("16% more" in text or "16% less" in text) and "no memory" in text for text in said] == [
        True
    ] * asks


def test_plans_that_cannot_be_replanned(plan: Plan) -> None:
    """Without rates, or over several stages: said before the run."""
    check_can_replan(plan)
    with pytest.raises(UserError, match="holds no rates"):
        check_can_replan(replace(plan, rates=None))
    with pytest.raises(UserError, match="2 stages"):
        check_can_replan(replace(plan, policy=replace(plan.policy, stages=2)))
