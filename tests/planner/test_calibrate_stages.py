"""Reports of runs with ranks: a profile learns from each rank's tasks, and a plan is priced at a profile's rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.calibrate import calibrate
from planner.cli import main
from planner.plan import PHASES, Plan, load_plan
from planner.policy import Policy
from planner.report import PhaseReport, RankReport, RunReport, TaskReport, load_report, report_json
from planner.stage_rates import priced_at, stage_rates
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, policy_of, small_t4
from tests.planner.runs import report_of, with_factors
from tests.planner.test_simulate_stages import several_t4, staged

SLOWER = {"h2d": 2.0, "gpu": 1.5, "disk_read": 3.0, "net_out": 2.0}
HOST = replace(several_t4(2, 12, 18), fingerprint="this host")
POLICIES = (
    policy_of(ON_CPU, ON_CPU, ON_GPU, size=16, batches=2),
    policy_of(ON_DISK, ON_CPU, ON_GPU, size=8, batches=4),
    policy_of(ON_GPU, ON_CPU, ON_GPU, size=16, batches=4),
    policy_of(ON_GPU, ON_GPU, ON_GPU, size=4, batches=2),
)


def ranks_report(policy: Policy, factors: Mapping[str, float], others: str = "this host") -> RunReport:
    """What a run of two ranks reports on hosts slower by `factors`; the second rank is on such a host, or another."""
    plan = staged(policy, host=HOST)
    really = priced_at(plan, with_factors(HOST, factors))
    ranks = [
        RankReport(
            rank=rank,
            fingerprint="this host" if rank == 0 else others,
            overlap=1.0,
            binding={},
            tasks=tuple(
                TaskReport(
                    phase=task.phase,
                    kind=task.kind,
                    resource=task.resource,
                    count=task.count,
                    num_bytes=round(task.num_bytes),
                    flops=task.flops,
                    predicted_s=task.seconds,
                    measured_s=task.seconds * (1.0 if rank == 0 or others == "this host" else 10.0),
                )
                for task in stage.prediction.tasks
            ),
            memory=(),
            activity=(),
        )
        for rank, stage in enumerate(really.stages)
    ]
    return replace(
        report_of(small_t4(), policy, {}),
        fingerprint="this host",
        phases=tuple(
            PhaseReport(
                phase=phase,
                predicted_s=plan.prediction.of(phase).seconds,
                measured_s=really.prediction.of(phase).seconds,
                tokens=1,
                tokens_per_s=1.0,
            )
            for phase in PHASES
        ),
        tasks=(),
        plan=plan,
        ranks=tuple(ranks),
    )


def test_each_ranks_tasks_move_the_factors(tmp_path: Path) -> None:
    """Runs on a slower host: factors go most of the way, predictions of runs held out come near."""
    reports = [ranks_report(policy, SLOWER) for policy in POLICIES]
    outcome = calibrate(HOST, reports)
    found = outcome.calibration.factors
    assert outcome.calibration.error_after < 0.65 * outcome.calibration.error_before
    for name, low, high in (
        ("h2d.load_weight", 1.4, 2.2),
        ("gpu.decode", 1.25, 1.6),
        ("net_out.send", 1.4, 2.2),
    ):
        assert low < found[name] < high, name
    assert "d2h" not in found or found["d2h"] == pytest.approx(1.0, abs=0.1)
    again = priced_at(reports[0].plan, outcome.profile).prediction
    measured = {phase.phase: phase.measured_s for phase in reports[0].phases}
    before = reports[0].plan.prediction
    for phase in PHASES:
        off, was = (abs(p.of(phase).seconds / measured[phase] - 1) for p in (again, before))
        assert off < 0.6 * was
    path = tmp_path / "report.json"
    path.write_text(report_json(reports[0]))
    assert load_report(path) == reports[0]


def test_ranks_of_other_hosts_say_nothing_of_this_one() -> None:
    """Their tasks, ten times as slow, are left out; a report without any rank of this host is refused."""
    alone, mixed = (
        calibrate(HOST, [ranks_report(POLICIES[0], SLOWER, others)]) for others in ("this host", "other")
    )
    name = "h2d.load_weight"
    assert mixed.calibration.factors[name] == pytest.approx(alone.calibration.factors[name], rel=0.15)
    stranger = replace(HOST, fingerprint="a third")
    with pytest.raises(UserError, match="fingerprint"):
        calibrate(stranger, [ranks_report(POLICIES[0], SLOWER)])


def test_calibrate_takes_runs_with_and_without_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One set of factors from both, by the command."""
    hw, out = tmp_path / "hw.yaml", tmp_path / "out.yaml"
    hw.write_text(HOST.to_yaml())
    single = replace(report_of(HOST, POLICIES[0], SLOWER), fingerprint="this host")
    names = []
    for n, report in enumerate([single, *(ranks_report(policy, SLOWER) for policy in POLICIES[:2])]):
        names.append(str(tmp_path / f"{n}.json"))
        Path(names[-1]).write_text(report_json(report))
    assert main(["calibrate", "--hw", str(hw), *names, "-o", str(out)]) == 0
    assert "Median error" in capsys.readouterr().out


def plan_and_profile(tmp_path: Path, profile: HardwareProfile) -> tuple[Plan, list[str]]:
    plan = staged(policy_of(ON_CPU, ON_GPU, ON_GPU, size=2, batches=2), host=HOST)
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    (tmp_path / "other.yaml").write_text(profile.to_yaml())
    return load_plan(tmp_path / "plan.yaml"), [
        str(tmp_path / "plan.yaml"),
        "--hw",
        str(tmp_path / "other.yaml"),
    ]


def test_a_plan_with_stages_at_another_profiles_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same profile gives the same times; a slower one gives longer ones, and `planner simulate --hw` shows them."""
    plan, words = plan_and_profile(tmp_path, with_factors(HOST, {"h2d": 3.0}))
    same = priced_at(plan, HOST)
    for ours, theirs in zip(plan.stages, same.stages, strict=True):
        assert theirs == replace(ours, prediction=replace(ours.prediction, interval=None))
    assert same.prediction == replace(plan.prediction, interval=None)
    slow = priced_at(plan, with_factors(HOST, {"h2d": 3.0}))
    assert slow.prediction.decode.seconds > 2 * plan.prediction.decode.seconds
    assert main(["simulate", *words]) == 0
    shown = capsys.readouterr()
    assert f"{slow.prediction.throughput_tokens_per_s:,.2f}" in shown.out
    assert "another profile" in shown.err


def test_a_profile_without_places_for_all_ranks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few GPUs, or none: one line."""
    plan, words = plan_and_profile(tmp_path, small_t4())
    assert main(["simulate", *words]) == 2
    assert "2 stages need a GPU each" in capsys.readouterr().err
    with pytest.raises(UserError, match="computes on the gpu"):
        stage_rates(plan, replace(small_t4(), gpus=()))
    assert main(["explain", words[0]]) == 2
    assert "is for plans of one rank, this one has 2" in capsys.readouterr().err
