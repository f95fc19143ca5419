"""`executor run --calibrate`: the profile learns from the run, and what is wrong with it is said before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from executor import commands
from executor.cli import main
from hwprofiles.host import current_fingerprint
from hwprofiles.profile import HardwareProfile, load_profile
from planner.report import load_report
from tests.executor.jobs import many_prompts, plan_for, results, save_checkpoint, write_plan, write_prompts
from tests.planner.problems import emulated


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with its tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer)


def write_profile(path: Path, fingerprint: str) -> HardwareProfile:
    """An emulated GPU's profile of a host with this fingerprint."""
    profile = replace(emulated(), fingerprint=fingerprint)
    path.write_text(profile.to_yaml())
    return profile


def test_the_profile_learns_from_each_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports are kept and fitted together; a run that had nothing to do leaves everything as it was."""
    hw, output = tmp_path / "hw.yaml", tmp_path / "r.jsonl"
    profile = write_profile(hw, current_fingerprint())
    plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint, profile=profile))
    prompts = write_prompts(tmp_path / "p.jsonl", many_prompts(11))
    command = ["run", plan, "--model-path", checkpoint, "--offload-dir", tmp_path, "--calibrate", hw]
    resumed = [*command, "--input", prompts, "--output", output]
    assert main([str(word) for word in resumed]) == 0
    assert "Median error" in capsys.readouterr().out
    assert len(results(output)) == 11
    assert main([str(word) for word in resumed]) == 0
    assert "nothing was run" in capsys.readouterr().out
    assert main([str(word) for word in command]) == 0
    learned = load_profile(str(hw))
    assert learned.calibration is not None
    assert learned.calibration.num_runs == 2
    assert replace(learned, calibration=None) == profile
    reports = [load_report(file) for file in sorted((tmp_path / "hw.reports").iterdir())]
    assert sorted(report.num_requests for report in reports) == [8, 11]


@pytest.mark.parametrize(
    ("name", "complaint"), [("hw.yaml", "fingerprint elsewhere"), ("two-core", "not a file")]
)
def test_a_profile_that_cannot_learn_is_refused_before_the_run(
    name: str,
    complaint: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of another host, and one that comes with tierplan."""
    monkeypatch.chdir(tmp_path)
    profile = write_profile(Path("hw.yaml"), "elsewhere")
    plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint, profile=profile))
    monkeypatch.setattr(commands, "run_job", lambda *_: pytest.fail("it must not run"))
    assert main(["run", str(plan), "--model-path", str(checkpoint), "--calibrate", name]) == 2
    assert complaint in capsys.readouterr().err
