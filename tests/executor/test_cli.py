"""The command line from end to end: prompts in, result lines and a report out, resumed, interrupted, verified."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from executor import commands
from executor.cli import main
from hwprofiles.units import KIB
from planner.plan import PHASES
from planner.report import load_report
from tests.executor.jobs import (
    ON_DISK,
    TEXTS,
    many_prompts,
    plan_for,
    results,
    save_checkpoint,
    write_plan,
    write_prompts,
)
from tests.processes import start, wait_until


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with its tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Leave the test process its own handling of SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(plan: Path, checkpoint: Path, directory: Path, *more: str | Path) -> int:
    """executor run in this process, with its offload files in `directory`/offload."""
    offload = directory / "offload"
    offload.mkdir(exist_ok=True)
    command = ["run", plan, "--model-path", checkpoint, "--offload-dir", offload, *more]
    return main([str(word) for word in command])


def numbers(value: object) -> Iterator[float]:
    """Every number in a JSON document."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_run_writes_results_and_report(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a prompt, a report that loads back, tables on stdout, and an empty offload directory."""
    plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint))
    prompts = write_prompts(tmp_path / "p.jsonl", many_prompts(11))
    output, report_path = tmp_path / "r.jsonl", tmp_path / "report.json"
    assert (
        run(plan, checkpoint, tmp_path, "--input", prompts, "--output", output, "--report", report_path) == 0
    )
    assert sorted(results(output)) == sorted(f"request-{line}" for line in range(1, 12))
    assert list((tmp_path / "offload").iterdir()) == []
    report = load_report(report_path)
    assert (report.num_requests, report.num_blocks) == (11, 2)
    assert report.generated_tokens == 11 * 6
    shown = capsys.readouterr().out
    assert "memory at its peak" in shown
    assert "…" not in shown


def test_report_holds_predicted_and_measured(checkpoint: Path, tmp_path: Path) -> None:
    """For both phases, every kind of task and every tier, each a finite number."""
    plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint))
    report_path = tmp_path / "report.json"
    assert run(plan, checkpoint, tmp_path, "--report", report_path) == 0
    report = load_report(report_path)
    assert all(math.isfinite(number) for number in numbers(json.loads(report_path.read_text())))
    for phase in report.phases:
        assert phase.predicted_s > 0
        assert phase.measured_s > 0
        assert phase.tokens_per_s is not None
    for name in PHASES:
        kinds = {task.kind for task in report.tasks if task.phase == name and task.count}
        wanted = {"load_weight", "compute", "store_cache"}
        wanted |= {"load_activation", "store_activation"} if name == "prefill" else {"load_cache"}
        assert kinds == wanted
    for task in report.tasks:
        if task.kind != "attend":
            assert (task.predicted_s > 0) == (task.count > 0), task
    assert {row.tier for row in report.memory} == {"gpu", "cpu", "disk", "host"}
    measured = {row.tier: row.measured_peak_bytes for row in report.memory}
    disk = report.plan.ledger.peak_bytes("disk")
    assert disk <= (measured["disk"] or 0) <= disk + 64 * KIB, "and what the file system adds"
    assert measured["host"] is not None


def test_decode_that_does_not_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token each is prefill alone: decode has no rate, and is shown as not run."""
    plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint, gen_len=1))
    report_path = tmp_path / "report.json"
    assert run(plan, checkpoint, tmp_path, "--report", report_path) == 0
    text = report_path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    decode = load_report(report_path).phases[1]
    assert (decode.phase, decode.tokens, decode.tokens_per_s) == ("decode", 0, None)
    assert main(["report", str(report_path)]) == 0
    shown = capsys.readouterr().out
    assert "not run" in shown
    assert "nan" not in shown


def test_dummy_weights(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights of the right shapes on made-up prompts; the loading bar shows all of their bytes."""
    plan = plan_for(checkpoint)
    path = write_plan(tmp_path / "plan.yaml", plan)
    assert main(["run", str(path), "--dummy-weights", "--offload-dir", str(tmp_path)]) == 0
    total_kib = plan.model.spec().weight_bytes(4) / 1024
    assert f"{total_kib:.1f}/{total_kib:.1f} KiB" in capsys.readouterr().err


def test_a_finished_job_run_again(checkpoint: Path, tmp_path: Path) -> None:
    """Nothing is left to do, and the lines stay as they are."""
    plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint))
    prompts = write_prompts(tmp_path / "p.jsonl", TEXTS[:3])
    output, report_path = tmp_path / "r.jsonl", tmp_path / "report.json"
    arguments = ("--input", prompts, "--output", output, "--report", report_path)
    assert run(plan, checkpoint, tmp_path, *arguments) == 0
    before = output.read_bytes()
    assert run(plan, checkpoint, tmp_path, *arguments) == 0
    assert output.read_bytes() == before
    report = load_report(report_path)
    assert (report.num_requests, report.throughput_tokens_per_s) == (0, None)


class Child:
    """executor run in a process of its own, on a job of many short blocks."""

    def __init__(self, checkpoint: Path, directory: Path, num_prompts: int = 40) -> None:
        plan = plan_for(checkpoint, gpu_batch_size=1, num_gpu_batches=2, gen_len=12, splits=ON_DISK)
        self.plan = write_plan(directory / "plan.yaml", plan)
        self.prompts = write_prompts(directory / "p.jsonl", many_prompts(num_prompts))
        self.output, self.offload = directory / "r.jsonl", directory / "offload"
        self.offload.mkdir()
        self.directory, self.checkpoint, self.num_prompts = directory, checkpoint, num_prompts
        command = ["run", self.plan, "--model-path", checkpoint, "--offload-dir", self.offload,
                   "--input", self.prompts, "--output", self.output]  # fmt: skip
        self.process = start(partial(main, [str(word) for word in command]), directory / "log")

    def stop_in_the_middle(self, number: int) -> int | None:
        """Send the signal when some lines are written and others are not; the exit status."""
        wait_until(lambda: self.output.is_file() and self.output.read_bytes().count(b"\n") >= 4, self.process)
        assert list(self.offload.iterdir()), "the disk tier is in use"
        self.process.send(number)
        return self.process.wait()

    def finish(self) -> dict[str, str]:
        """Run the same command again, here; all results."""
        done_before = results(self.output)
        assert 4 <= len(done_before) < self.num_prompts
        assert len(done_before) % 2 == 0, "a block at a time"
        arguments = ("--input", self.prompts, "--output", self.output)
        assert run(self.plan, self.checkpoint, self.directory, *arguments) == 0
        done = results(self.output)
        assert {key: done[key] for key in done_before} == done_before
        return done

    def expected(self) -> dict[str, str]:
        """What the same job gives without an interruption."""
        output = self.directory / "whole.jsonl"
        arguments = ("--input", self.prompts, "--output", output)
        assert run(self.plan, self.checkpoint, self.directory, *arguments) == 0
        return results(output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: int, checkpoint: Path, tmp_path: Path) -> None:
    """Exit 130, no traceback, no offload files, finished blocks kept; the same command finishes the rest."""
    child = Child(checkpoint, tmp_path)
    assert child.stop_in_the_middle(number) == 130
    assert "Traceback" not in child.process.said
    assert child.process.said.rstrip().endswith("interrupted")
    assert list(child.offload.iterdir()) == []
    assert len(child.finish()) == child.num_prompts


def test_killed(checkpoint: Path, tmp_path: Path) -> None:
    """After kill -9 a second run finishes the rest: no line twice, none lost, the texts as without the kill."""
    child = Child(checkpoint, tmp_path)
    assert child.stop_in_the_middle(signal.SIGKILL) == -signal.SIGKILL
    assert child.finish() == child.expected()
    assert list(child.offload.iterdir()) == [], "what the killed run left there is gone as well"


def verify(checkpoint: Path, directory: Path, *more: str) -> int:
    """executor verify in this process."""
    plan = write_plan(directory / "plan.yaml", plan_for(checkpoint))
    prompts = write_prompts(directory / "p.jsonl", TEXTS)
    command = ["verify", plan, "--model-path", checkpoint, "--offload-dir", directory, "--input", prompts]
    return main([*map(str, command), *more])


def test_verify_is_green(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same tokens over three tiers as transformers' own generate."""
    assert verify(checkpoint, tmp_path) == 0
    assert "same tokens as transformers: 8 prompts, 48 tokens" in capsys.readouterr().out


def test_verify_names_the_first_difference(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference with one altered weight: exit 1, and the prompt, position and tokens of each difference."""
    unchanged = commands.reference_model

    def altered(*arguments: object) -> PreTrainedModel:
        model = unchanged(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            model.get_parameter("model.decoder.layers.1.fc2.bias")[0] += 30
        return model

    monkeypatch.setattr(commands, "reference_model", altered)
    assert verify(checkpoint, tmp_path, "--num-prompts", "3") == 1
    shown = capsys.readouterr().out
    assert "different from transformers: " in shown
    assert "first difference at generated token " in shown
    assert "more than rounding explains" in shown


def test_verify_of_a_damaged_home(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that goes wrong on its way into the engine shows as well."""
    from executor.engine import Engine  # noqa: PLC0415

    load = Engine.load

    def damaging(engine: Engine, *arguments: object) -> None:
        load(engine, *arguments)  # type: ignore[arg-type]
        engine.homes.end("model.decoder.final_layer_norm.bias")[:] = 3.0

    monkeypatch.setattr(Engine, "load", damaging)
    assert verify(checkpoint, tmp_path) == 1
    assert "instead of" in capsys.readouterr().out
