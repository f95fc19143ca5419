"""A profile that learns: reports kept beside it, fitted together, the file replaced in one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile, load_profile
from planner import learn as learn_module
from planner.kept_reports import MOST_REPORTS, check_can_learn, kept, load_reports, reports_dir
from planner.learn import learn
from planner.report import RunReport
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, emulated, policy_of, small_t4
from tests.planner.runs import report_of

SLOWER = {"h2d": 2.0, "gpu": 1.5}
HERE = "here"


@pytest.fixture
def profile() -> HardwareProfile:
    """Of this host."""
    return replace(small_t4(), fingerprint=HERE)


@pytest.fixture
def path(profile: HardwareProfile, tmp_path: Path) -> Path:
    """hw.yaml."""
    file = tmp_path / "hw.yaml"
    file.write_text(profile.to_yaml())
    return file


def run_on(profile: HardwareProfile, day: int) -> RunReport:
    """A run of one of two plans on a machine that is slower than its profile."""
    policies = (
        policy_of(ON_CPU, ON_CPU, ON_GPU, size=16),
        policy_of(ON_DISK, ON_CPU, ON_GPU, size=8, batches=3),
    )
    return replace(report_of(profile, policies[day % 2], SLOWER), created=f"2026-11-{day:02}T10:00:00+00:00")


def test_each_run_is_kept_and_counts(path: Path, profile: HardwareProfile) -> None:
    """The second run is fitted together with the first, and the file holds what was fitted."""
    first, second = (learn(path, run_on(profile, day)) for day in (1, 2))
    assert (first.outcome.calibration.num_runs, second.outcome.calibration.num_runs) == (1, 2)
    assert second.outcome.calibration.num_folds == 2
    assert load_profile(str(path)) == second.outcome.profile
    assert replace(second.outcome.profile, calibration=None) == profile
    assert kept(path.parent / "hw.reports") == [first.kept_at, second.kept_at]
    assert list(load_reports([reports_dir(path)])) == [run_on(profile, 1), run_on(profile, 2)]


def test_two_runs_within_a_second_both_count(path: Path, profile: HardwareProfile) -> None:
    """Reports of one plan with one time are two files, in the order of the runs."""
    first, second = (learn(path, run_on(profile, 1)) for _ in range(2))
    assert second.outcome.calibration.num_runs == 2
    assert kept(reports_dir(path)) == [first.kept_at, second.kept_at]


def test_reports_that_do_not_count_are_named(path: Path, profile: HardwareProfile) -> None:
    """A broken file and one of another host, put there by hand, are left out."""
    learn(path, run_on(profile, 1))
    directory = reports_dir(path)
    (directory / "broken.json").write_text("{")
    elsewhere = replace(run_on(profile, 2), fingerprint="elsewhere")
    learn_module.keep(elsewhere, directory)
    learned = learn(path, run_on(profile, 3))
    assert learned.outcome.calibration.num_runs == 2
    assert [("broken.json" in reason, "elsewhere" in reason) for reason in learned.left_out] == [
        (False, True),
        (True, False),
    ]


def test_the_newest_count(path: Path, profile: HardwareProfile) -> None:
    """Of more reports than are fitted the oldest are left alone."""
    directory = reports_dir(path)
    directory.mkdir()
    for number in range(MOST_REPORTS + 3):
        (directory / f"2026-{number:04}.json").touch()
    assert [file.name for file in kept(directory)][:2] == ["2026-0003.json", "2026-0004.json"]


def test_an_interrupted_write_leaves_the_profile(
    path: Path, profile: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is kept, the profile is what it was, and the next run learns from both."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(learn_module, "write_atomically", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(path, run_on(profile, 1))
    assert path.read_text() == before
    assert learn(path, run_on(profile, 2)).outcome.calibration.num_runs == 2


def test_what_cannot_learn_is_said_before_the_run(
    path: Path, profile: HardwareProfile, tmp_path: Path
) -> None:
    """A shipped profile, one of another host, one of another kind of machine, a place that cannot be written."""
    plan = run_on(profile, 1).plan
    check_can_learn(path, plan, HERE)
    with pytest.raises(UserError, match="t4-host: is not a file"):
        check_can_learn(Path("t4-host"), plan, HERE)
    with pytest.raises(UserError, match=r"here.*this one has elsewhere.*--force"):
        check_can_learn(path, plan, "elsewhere")
    other = tmp_path / "emulated.yaml"
    other.write_text(replace(emulated(), fingerprint=HERE).to_yaml())
    with pytest.raises(UserError, match="the plan computes on gpu"):
        check_can_learn(other, plan, HERE)
    reports_dir(path).rmdir()
    reports_dir(path).write_text("in the way")
    with pytest.raises(UserError, match="cannot be created"):
        check_can_learn(path, plan, HERE)


def test_a_directory_without_reports_is_refused(tmp_path: Path) -> None:
    """It is likely a mistake."""
    with pytest.raises(UserError, match="holds no report"):
        list(load_reports([tmp_path]))
