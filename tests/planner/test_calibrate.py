"""Calibration: factors learned from run reports bring predictions to what was measured."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from rich.console import Console, RenderableType

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import format_seconds
from planner.calibrate import calibrate, corrected, run_on
from planner.plan import PHASES
from planner.policy import Split
from planner.rates import make_rates
from planner.render_calibration import calibration_view
from planner.report import RunReport, load_report, report_json
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, emulated, policy_of, small_opt, small_t4
from tests.planner.runs import problem_on, report_of, seconds_of, times, with_factors

SLOWER = {"h2d": 2.0, "gpu": 1.5, "disk_read": 3.0}
STREAMED = policy_of(ON_CPU, ON_CPU, ON_GPU, size=16, batches=2)
FROM_DISK = policy_of(ON_DISK, ON_CPU, ON_GPU, size=8, batches=3)
POLICIES = (
    STREAMED,
    FROM_DISK,
    policy_of(ON_GPU, ON_CPU, ON_GPU, size=16, batches=4),
    policy_of(ON_GPU, ON_GPU, ON_GPU, size=4, batches=1),
    policy_of(ON_CPU, ON_DISK, ON_CPU, size=4, batches=2),
    policy_of(Split(gpu=0.5, cpu=0.5, disk=0), ON_CPU, ON_GPU, size=32, batches=1),
)


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


def test_one_run_moves_factors_part_of_the_way() -> None:
    """What one run says of a rate is believed in part, however many tasks it had; measured values stay."""
    profile = small_t4()
    outcome = calibrate(
        profile, [report_of(profile, STREAMED, {"h2d": 2.0, "gpu": 2.0, "d2h": 2.0}, scale=50.0)]
    )
    calibration = outcome.calibration
    assert (calibration.num_runs, calibration.num_folds) == (1, 0)
    assert calibration.error_before == pytest.approx(0.5, abs=0.05)
    assert 0.02 < calibration.error_after < 0.25
    assert calibration.worst_after is not None
    assert calibration.worst_after >= calibration.error_after
    for name in ("h2d", "h2d.load_weight", "gpu", "gpu.prefill"):
        assert 1.3 < calibration.factors[name] < 1.95, name
    assert replace(outcome.profile, calibration=None) == profile


def test_what_no_run_used_stays_as_measured() -> None:
    """A run without a disk says nothing of the disk."""
    profile = small_t4()
    factors = calibrate(profile, [report_of(profile, STREAMED, SLOWER)]).calibration.factors
    assert not [name for name in factors if name.startswith("disk")]


def test_more_runs_that_agree_are_believed_more() -> None:
    """With each plan that says the same, the factors come nearer to the truth."""
    profile = small_t4()
    reports = [report_of(profile, policy, {"h2d": 2.0}) for policy in POLICIES]
    found = [calibrate(profile, reports[:count]).calibration.factors["h2d"] for count in (1, 3, len(reports))]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(2.0, rel=0.1)


MACHINE = {
    "h2d": 1.8, "h2d.load_weight": 2.2, "gpu": 1.5, "gpu.decode": 2.0, "disk_read": 3.0, "launch": 4.0,
}  # fmt: skip


@cache
def runs(noise: float) -> tuple[RunReport, ...]:
    """Of two models and of different plans on a machine slower than its profile, each time off by some noise."""
    draw = random.Random(7)
    reports = [
        report_of(small_t4(), policy, MACHINE, model=model, prompt_len=prompt_len)
        for model, prompt_len in (
            (small_opt(num_layers=4), 64),
            (small_opt(num_layers=2, hidden_size=2048), 200),
        )
        for policy in POLICIES
    ]
    return tuple(times(report, lambda: math.exp(draw.gauss(0, noise))) for report in reports)


def test_errors_on_runs_held_out_fall() -> None:
    """Different models, plans and days: what some runs teach holds for the others, within the runs' own noise."""
    calibration = calibrate(small_t4(), runs(noise=0.05)).calibration
    assert calibration.num_folds == 5
    assert calibration.error_before > 0.3
    assert calibration.error_after < 0.06
    assert calibration.worst_before is not None
    assert calibration.worst_after is not None
    assert calibration.worst_after < 0.5 * calibration.worst_before
    assert calibration.num_outliers == 0
    assert calibration.factors["h2d.load_weight"] == pytest.approx(2.2, rel=0.1)
    assert calibration.factors["disk_read.load_weight"] == pytest.approx(3.0, rel=0.15)


def test_tasks_that_only_an_older_planner_knew_are_left_out() -> None:
    """A report of before an update teaches what it can."""
    report = report_of(small_t4(), STREAMED, SLOWER)
    plan, (task, *_) = report.plan, report.tasks
    [known] = [t for t in plan.prediction.tasks if (t.phase, t.kind) == (task.phase, task.kind)]
    older = replace(
        plan.prediction,
        tasks=(*plan.prediction.tasks, replace(known, kind="load_activation", resource="disk_read")),
    )
    also = replace(task, kind="load_activation", resource="disk_read")
    old = replace(report, plan=replace(plan, prediction=older), tasks=(*report.tasks, also))
    assert calibrate(small_t4(), [old]).calibration == calibrate(small_t4(), [report]).calibration


@pytest.mark.parametrize("seed", range(3))
def test_mere_noise_teaches_nothing(seed: int) -> None:
    """Runs that are slower or faster than predicted by chance leave the others' predictions nearly as they were."""
    draw, reports = random.Random(seed), []
    for model in (small_opt(num_layers=4), small_opt(num_layers=2, hidden_size=2048)):
        reports += [report_of(small_t4(), policy, {}, model=model) for policy in POLICIES]
    noisy = [times(report, lambda: math.exp(draw.gauss(0, 0.25))) for report in reports]
    learned = calibrate(small_t4(), noisy).profile
    for report in reports:
        run = run_on(learned, report)
        found = run.phase_s(run.predict(learned.calibration.factors if learned.calibration else {}))
        for phase in report.phases:
            assert found[phase.phase] == pytest.approx(phase.measured_s, rel=0.12)


def test_runs_of_one_plan_are_held_out_together() -> None:
    """Three runs of one plan do not vouch for one another; there is nothing to hold out."""
    profile = small_t4()
    report = report_of(profile, STREAMED, SLOWER)
    planned_later = replace(
        report.plan, prediction=report_of(profile, STREAMED, {"h2d": 1.1}).plan.prediction
    )
    outcome = calibrate(profile, [report, report, replace(report, plan=planned_later)])
    assert (outcome.calibration.num_runs, outcome.calibration.num_folds) == (3, 0)


@pytest.mark.parametrize(
    ("chosen", "all_times_slower", "bound"),
    [((0, 5, 6, 11), (1000.0,), 1.5), (range(6, 12), (10.0, 0.1), 1.1)],
    ids=("beside-three", "beside-five"),
)
def test_one_wild_run_moves_no_factor_far(
    chosen: Sequence[int], all_times_slower: Sequence[float], bound: float
) -> None:
    """Away from the rate measured: by half at most beside three runs, by 10% beside five, which name it."""
    profile = small_t4()
    *good, last = (runs(noise=0.03)[n] for n in chosen)
    before = calibrate(profile, good).calibration.factors
    for times_slower in all_times_slower:
        wild = times(last, lambda slower=times_slower: slower)
        after = calibrate(profile, [*good, wild]).calibration.factors
        for name, factor in before.items():
            assert min(1, factor) / bound <= after[name] <= max(1, factor) * bound, (name, times_slower)


def test_an_outlier_is_named() -> None:
    """The run that is far from what all others say is shown with what was measured and predicted, and counts less."""
    good = runs(noise=0.03)
    wild = replace(times(good[3], lambda: 10.0), created="2026-12-24T18:00:00+00:00")
    outcome = calibrate(small_t4(), [*good, wild])
    assert outcome.calibration.num_outliers == 1
    assert {(found.report.created, found.is_outlier) for found in outcome.phases if found.weight < 0.5} == {
        (wild.created, True)
    }
    shown = as_text(calibration_view(outcome))
    decode = next(phase for phase in wild.phases if phase.phase == "decode")
    assert f"outlier: small-opt of {wild.created}: decode took {format_seconds(decode.measured_s)}" in shown


def test_few_runs_name_no_outlier() -> None:
    """With four runs it cannot be told which is the wild one."""
    first, *rest = runs(noise=0.03)[:4]
    assert calibrate(small_t4(), [times(first, lambda: 10.0), *rest]).calibration.num_outliers == 0


def as_text(view: RenderableType) -> str:
    """What a wide terminal shows."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_another_policy_is_predicted_better_too() -> None:
    """What one run taught of a machine holds for a plan with other splits."""
    profile = small_t4()
    learned = calibrate(profile, [report_of(profile, FROM_DISK, SLOWER)]).profile
    truth = report_of(profile, STREAMED, SLOWER)
    for phase in truth.phases:
        found = seconds_of(problem_on(learned).plan(STREAMED).prediction, phase.phase)
        assert abs(found - phase.measured_s) < 0.5 * abs(phase.predicted_s - phase.measured_s)


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
    calibration = calibrate(profile, [report_of(profile, STREAMED, slower)]).calibration
    assert calibration.error_after < 0.2 * calibration.error_before


def test_a_calibrated_profile_is_calibrated_anew() -> None:
    """Old factors do not multiply new ones; `before` is what the profile said until now."""
    profile = small_t4()
    first = calibrate(profile, [report_of(profile, STREAMED, SLOWER)])
    again = calibrate(first.profile, [report_of(profile, STREAMED, SLOWER)])
    assert again.calibration.factors == first.calibration.factors
    assert again.calibration.error_before == pytest.approx(first.calibration.error_after)


def test_a_correction_starts_from_what_is_known() -> None:
    """One run that agrees with the plan's factors moves none; one that does not moves those it measured."""
    profile = with_factors(small_t4(), {"h2d": 2.0, "gpu": 1.5, "disk_write": 3.0, "launch": 2.0})
    same = corrected(report_of(profile, STREAMED, {"h2d": 2.0, "gpu": 1.5, "launch": 2.0}))
    assert same.factor("h2d", "load_weight") == pytest.approx(2.0, rel=0.01)
    assert same.factor("gpu", "decode") == pytest.approx(1.5, rel=0.01)
    assert same.call_s == pytest.approx(make_rates(profile, "float16").call_s, rel=0.01)
    slow = corrected(report_of(profile, STREAMED, {"h2d": 4.0, "gpu": 1.5, "launch": 2.0}))
    assert 2.6 < slow.factor("h2d", "load_weight") < 4.0
    assert slow.factor("disk_write") == 3.0


def test_factors_of_older_profiles_still_apply(tmp_path: Path) -> None:
    """A profile that was calibrated with factors by resource alone loads, and every kind of task takes them."""
    profile = with_factors(small_t4(), {"h2d": 2.0, "gpu": 1.5, "prefill": 1.1})
    data = yaml.safe_load(profile.to_yaml())
    data["calibration"] = {
        key: data["calibration"][key] for key in ("factors", "num_runs", "error_before", "error_after")
    }
    path = tmp_path / "hw.yaml"
    path.write_text(yaml.safe_dump(data))
    old = load_profile(str(path))
    assert old == profile
    rates = make_rates(old, "float16")
    assert rates.factor("h2d", "load_weight") == rates.factor("h2d") == 2.0
    assert rates.factor("gpu", "prefill") == rates.factor("gpu", "attend") == 1.5
    assert rates.factor("disk_read", "load_weight") == 1.0
    by_kind = make_rates(with_factors(profile, {"h2d": 2.0, "h2d.load_weight": 3.0}), "float16")
    assert (by_kind.factor("h2d", "load_weight"), by_kind.factor("h2d", "load_cache")) == (3.0, 2.0)


def test_a_report_of_another_host_is_refused_unless_forced() -> None:
    """The error names both fingerprints."""
    profile = replace(small_t4(), fingerprint="here")
    report = replace(report_of(profile, STREAMED, SLOWER), fingerprint="elsewhere")
    with pytest.raises(UserError, match=r"elsewhere.*here.*--force"):
        calibrate(profile, [report])
    assert calibrate(profile, [report], force=True).profile.calibration is not None


@pytest.mark.parametrize("other", [load_profile("two-core"), emulated()], ids=["cpu", "emulated"])
def test_a_report_of_another_kind_of_machine_is_refused(other: HardwareProfile) -> None:
    """Even a forced one cannot be predicted with a profile that has no GPU, or an emulated one."""
    report = report_of(small_t4(), STREAMED, SLOWER)
    with pytest.raises(UserError, match="computes on gpu"):
        calibrate(other, [report], force=True)


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


def test_copies_beside_attention_say_nothing_of_the_link() -> None:
    """Where the CPU attends beside a GPU, slower copies are host memory's affair; without it they are the link's."""
    profile = small_t4()
    for attends in (0.0, 1.0):
        report = report_of(profile, replace(STREAMED, cpu_attention=attends), {})
        slowed = replace(
            report,
            tasks=tuple(
                replace(task, measured_s=task.measured_s * (2.0 if task.resource == "h2d" else 1.0))
                for task in report.tasks
                if task.phase == "decode"
            ),
        )
        factor = calibrate(profile, [slowed] * 4).calibration.factors.get("h2d.load_weight", 1.0)
        assert (factor > 1.2) == (not attends)


def test_copies_that_wait_for_cores_say_nothing_of_the_disk() -> None:
    """Beside cores that compute and bind, reads that took eight times as long leave the disk as fast as measured."""
    profile = load_profile("two-core")
    report = report_of(profile, policy_of(ON_DISK, ON_CPU, ON_CPU, size=64), {})
    assert {report.plan.prediction.of(phase).binding for phase in PHASES} == {"cpu"}
    late = [
        replace(task, measured_s=8 * task.measured_s) if task.resource == "disk_read" else task
        for task in report.tasks
    ]
    factors = calibrate(profile, [replace(report, tasks=tuple(late))]).calibration.factors
    assert factors["disk_read.load_weight"] == pytest.approx(1.0, abs=0.05)


def test_a_disk_that_binds_is_learned_about_beside_cores() -> None:
    """One sequence reads all weights for each token: a disk half as fast is found out."""
    profile = load_profile("two-core")
    report = report_of(profile, policy_of(ON_DISK, ON_CPU, ON_CPU, size=1), {"disk_read": 2.0})
    assert report.plan.prediction.of("decode").binding == "disk_read"
    assert calibrate(profile, [report]).calibration.factors["disk_read.load_weight"] > 1.3
