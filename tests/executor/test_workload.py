"""Jobs of prompts of many lengths: what was planned of their blocks is what is run, and is predicted the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from executor import job
from executor.job import JobOptions, run_job
from executor.loading import SilentLoading
from executor.progress import SilentReporter
from executor.tokenize import encode_prompt
from hwprofiles.errors import UserError
from planner.machine import Caps
from planner.model import load_model
from planner.plan import Plan
from planner.problem import make_problem
from planner.prompts import read_requests
from planner.report import RunReport
from planner.workload import Workload
from tests.executor.jobs import TEXTS, plan_for, results, save_checkpoint, write_prompts
from tests.planner.problems import emulated

DEFAULT_MAX_TOKENS = 3


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with its tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer)


def plan_of_lengths(checkpoint: Path, lengths: list[tuple[int, int]]) -> Plan:
    """The policy of `plan_for`, planned for these prompts."""
    model, workload = load_model(str(checkpoint)), Workload.of_lengths(lengths, DEFAULT_MAX_TOKENS)
    return make_problem(model, workload, emulated(), Caps()).plan(plan_for(checkpoint).policy)


def run(plan: Plan, checkpoint: Path, directory: Path) -> RunReport:
    options = JobOptions(
        model_dir=checkpoint,
        input_path=directory / "p.jsonl",
        output_path=directory / "r.jsonl",
        offload_dir=directory,
    )
    return run_job(plan, options, SilentReporter(), SilentLoading())


def lengths_of(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    requests = read_requests(
        path,
        partial(encode_prompt, tokenizer),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        max_positions=None,
    )
    return [(len(request.prompt_ids), request.max_tokens) for request in requests]


@pytest.mark.parametrize("num_prompts", [1, 5, 11, 21])
def test_the_run_is_the_one_that_was_planned(
    num_prompts: int, checkpoint: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Blocks, padding, tokens and predicted seconds of the report are those of the plan's job."""
    prompts = [
        {"prompt": " ".join(TEXTS[: 1 + n % 4]), **({} if n % 3 else {"max_tokens": 1 + n % 7})}
        for n in range(num_prompts)
    ]
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    plan = plan_of_lengths(checkpoint, lengths_of(path, tokenizer))
    report = run(plan, checkpoint, tmp_path)
    assert plan.job is not None
    assert report.num_blocks == plan.job.num_blocks
    assert report.padding_tokens == plan.job.padding_tokens
    assert report.prompt_tokens == plan.workload.prompt_tokens
    assert report.generated_tokens == plan.workload.gen_tokens
    predicted = {phase.phase: phase.predicted_s for phase in report.phases}
    assert predicted["prefill"] == pytest.approx(plan.job.prefill_s)
    assert predicted["decode"] == pytest.approx(plan.job.decode_s)
    assert len(results(tmp_path / "r.jsonl")) == num_prompts


def test_blocks_end_early_in_the_prediction_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where any token ends a sequence, what is predicted is the passes that were made, not those planned."""
    write_prompts(tmp_path / "p.jsonl", TEXTS)
    plan = plan_for(checkpoint, gen_len=30)
    whole = run(plan, checkpoint, tmp_path)
    (tmp_path / "r.jsonl").unlink()
    monkeypatch.setattr(job, "end_of_sequence_ids", lambda _: frozenset(range(1000)))
    short = run(plan, checkpoint, tmp_path)
    assert short.generated_tokens == 0
    assert short.phases[0].predicted_s == pytest.approx(whole.phases[0].predicted_s)
    one_pass = whole.phases[1].predicted_s / 29
    assert 0.9 * one_pass < short.phases[1].predicted_s < 1.1 * one_pass


def test_longest_prompt_and_longest_answer_need_not_be_one(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The model's positions hold each prompt with its own answer; both maxima together may be more."""
    prompts = [{"prompt": [5] * 100, "max_tokens": 4}, {"prompt": [7, 8, 9], "max_tokens": 100}]
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    plan = plan_of_lengths(checkpoint, lengths_of(path, tokenizer))
    assert plan.workload.max_len > (load_model(str(checkpoint)).max_positions or 0)
    assert run(plan, checkpoint, tmp_path).generated_tokens == 104


def test_a_plan_of_an_older_version_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    """Without its rates nothing could be predicted of the blocks that are run."""
    write_prompts(tmp_path / "p.jsonl", TEXTS)
    with pytest.raises(UserError, match="older version; search again"):
        run(replace(plan_for(checkpoint), rates=None), checkpoint, tmp_path)
