"""Calibration: factors learned from run reports bring predictions to what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from planner.calibrate import calibrate
from planner.report import load_report, report_json
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, emulated, policy_of, small_t4
from tests.planner.runs import problem_on, report_of, seconds_of

SLOWER = {"h2d": 2.0, "gpu": 1.5, "disk_read": 3.0}
STREAMED = policy_of(ON_CPU, ON_CPU, ON_GPU, size=16, batches=2)
FROM_DISK = policy_of(ON_DISK, ON_CPU, ON_GPU, size=8, batches=3)


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    """What is written is what is read."""
    report = report_of(small_t4(), STREAMED, SLOWER)
    path = tmp_path / "report.json"
    path.write_text(report_json(report))
    assert load_report(path) == report


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a run report"),
        ("{}", "schema_version is missing"),
        ('{"schema_version": 99}', "schema_version is 99"),
        ('{"schema_version": 1}', "plan_digest"),
    ],
)
def test_a_malformed_report_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The error names the file and what is wrong in it."""
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_report(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    """So is one that is not there."""
    with pytest.raises(UserError, match="cannot be read"):
        load_report(tmp_path / "report.json")


def test_predictions_come_nearer_and_measured_values_stay() -> None:
    """After one run the phases are predicted within 2%, and only `calibration` of the profile has changed."""
    profile = small_t4()
    outcome = calibrate(profile, [report_of(profile, STREAMED, SLOWER)])
    calibration = outcome.profile.calibration
    assert calibration is not None
    assert (calibration.num_runs, outcome.held_out) == (1, False)
    assert calibration.error_before > 0.2
    assert calibration.error_after < 0.02
    assert replace(outcome.profile, calibration=None) == profile


def test_another_policy_is_predicted_better_too() -> None:
    """What one run taught of a machine holds for a plan with other splits."""
    profile = small_t4()
    learned = calibrate(profile, [report_of(profile, FROM_DISK, SLOWER)]).profile
    truth = report_of(profile, STREAMED, SLOWER)
    for phase in truth.phases:
        found = seconds_of(problem_on(learned).plan(STREAMED).prediction, phase.phase)
        assert abs(found - phase.measured_s) < 0.5 * abs(phase.predicted_s - phase.measured_s)


def test_several_runs_are_judged_on_the_ones_held_out() -> None:
    """With two reports each is predicted by a fit to the other."""
    profile = small_t4()
    reports = [report_of(profile, policy, SLOWER) for policy in (STREAMED, FROM_DISK)]
    outcome = calibrate(profile, reports)
    assert outcome.held_out
    assert len(outcome.phases) == 4
    calibration = outcome.profile.calibration
    assert calibration is not None
    assert calibration.error_after < calibration.error_before


def test_the_number_of_blocks_makes_no_difference() -> None:
    """Half a block or three say the same of a machine."""
    profile = small_t4()
    once, thrice = (
        calibrate(profile, [report_of(profile, STREAMED, SLOWER, scale=scale)]) for scale in (1.0, 3.0)
    )
    assert once.profile.calibration is not None
    assert thrice.profile.calibration is not None
    for name, factor in once.profile.calibration.factors.items():
        assert thrice.profile.calibration.factors[name] == pytest.approx(factor, rel=0.01)


def test_an_emulated_gpu_is_calibrated() -> None:
    """Contention and overhead are fitted where the host's cores do it all."""
    profile = emulated()
    slower = {"gpu": 1.3, "cpu": 1.3, "h2d": 2.0, "launch": 5.0, "handover": 3.0, "contention": 1.2}
    outcome = calibrate(profile, [report_of(profile, STREAMED, slower)])
    assert outcome.profile.calibration is not None
    assert outcome.profile.calibration.error_after < 0.02


def test_a_calibrated_profile_is_calibrated_anew() -> None:
    """Old factors do not multiply new ones; `before` is what the profile said until now."""
    profile = small_t4()
    first = calibrate(profile, [report_of(profile, STREAMED, SLOWER)]).profile
    again = calibrate(first, [report_of(profile, STREAMED, SLOWER)])
    assert again.profile.calibration is not None
    assert first.calibration is not None
    assert again.profile.calibration.factors == first.calibration.factors
    assert again.profile.calibration.error_before == pytest.approx(first.calibration.error_after)


def test_a_report_of_another_host_is_refused_unless_forced() -> None:
    """The error names both fingerprints."""
    profile = replace(small_t4(), fingerprint="here")
    report = replace(report_of(profile, STREAMED, SLOWER), fingerprint="elsewhere")
    with pytest.raises(UserError, match=r"elsewhere.*here.*--force"):
        calibrate(profile, [report])
    assert calibrate(profile, [report], force=True).profile.calibration is not None


def test_a_report_of_another_compute_tier_is_refused() -> None:
    """Even a forced one cannot be predicted with a profile that has no GPU."""
    report = report_of(small_t4(), STREAMED, SLOWER)
    with pytest.raises(UserError, match="computed on gpu"):
        calibrate(load_profile("two-core"), [report], force=True)


def test_a_report_without_a_run_is_refused() -> None:
    """Nothing measured, nothing learned."""
    profile = small_t4()
    report = report_of(profile, STREAMED, SLOWER)
    idle = tuple(replace(phase, measured_s=0.0, tokens_per_s=None) for phase in report.phases)
    with pytest.raises(UserError, match="run at least one block"):
        calibrate(profile, [replace(report, phases=idle, tasks=())])


def test_report_json_is_plain() -> None:
    """Any JSON reader can read it; None stands for what was not measured."""
    data = json.loads(report_json(report_of(small_t4(), STREAMED, SLOWER)))
    assert data["memory"][1]["measured_peak_bytes"] is None
    assert data["plan"]["policy"]["gpu_batch_size"] == 16
