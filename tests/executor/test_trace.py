"""A run's trace and verdict: every task's interval, lanes that really overlap, sums that agree with the report."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from executor.cli import main
from executor.engine import Engine, EngineOptions
from executor.sampling import Sampler
from executor.trace import RunTrace
from planner.ledger import make_ledger
from planner.plan import Plan, load_plan
from planner.report import RunReport, load_report
from planner.schedule import tasks
from planner.shape import shape_of
from planner.trace import TraceWriter
from tests.executor.jobs import ON_DISK, plan_for, save_checkpoint, write_plan
from tests.executor.tiny import blocks_of, make_plan, random_model, random_prompts, save
from tests.planner.problems import emulated
from tests.traces import read_trace, spans_by_lane


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(autouse=True)
def _setting() -> Iterator[None]:
    """One thread; and leave the test process its own handling of SIGTERM."""
    torch.set_num_threads(1)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(plan: Plan, directory: Path, *more: str) -> RunReport:
    """executor run with dummy weights; its report."""
    report, path = directory / "report.json", write_plan(directory / "plan.yaml", plan)
    given = ["run", str(path), "--dummy-weights", "--offload-dir", str(directory), "--report", str(report)]
    assert main([*given, *more]) == 0
    return load_report(report)


def test_every_task_is_in_the_trace(checkpoint: Path, tmp_path: Path) -> None:
    """Measured lanes hold the schedule's tasks and the CPU's attention; predicted lanes stand beside them."""
    plan = plan_for(checkpoint, splits=ON_DISK, cpu_attention=0.5)
    (tmp_path / "hw.yaml").write_text(emulated().to_yaml())
    trace = tmp_path / "t.json"
    report = run(plan, tmp_path, "--trace", str(trace), "--hw", str(tmp_path / "hw.yaml"))
    found = read_trace(trace)
    measured, predicted = (spans_by_lane(found, process) for process in ("measured", "predicted"))
    assert set(measured) == set(predicted) == {"h2d", "d2h", "gpu", "cpu", "disk_read", "disk_write"}
    yielded = [f"{task.kind} ({task.i}, {task.j}, {task.k})" for task in tasks(shape_of(plan.sizes()), 6)]
    for lanes in (measured, predicted):
        shown = [event["name"] for events in lanes.values() for event in events]
        assert sorted(shown) == sorted(yielded)
    for task in report.tasks:
        dur = sum(
            event["dur"]
            for event in measured[task.resource]
            if event["cat"] == task.kind
            and event["name"].startswith(f"{task.kind} (0,") == (task.phase == "prefill")
        )
        assert dur == pytest.approx(task.measured_s * 1e6, rel=1e-3, abs=5.0 + task.count)
    counters = [event for event in found["traceEvents"] if event["ph"] == "C" and event["pid"] == 2]
    assert len(counters) >= 6
    assert all(event["args"]["held"] > 0 for event in counters)


def test_attention_lies_between_the_parts_of_its_compute_task(checkpoint: Path, tmp_path: Path) -> None:
    """The CPU attends after the first part, before the second one, and the next gpu batch is begun in between."""
    plan = plan_for(checkpoint, splits=ON_DISK, cpu_attention=1.0)
    run(plan, tmp_path, "--trace", str(tmp_path / "t.json"))
    lanes = spans_by_lane(read_trace(tmp_path / "t.json"), "measured")
    computes = defaultdict(list)
    for event in lanes["gpu"]:
        computes[event["name"].removeprefix("compute")].append(event)
    assert len(lanes["cpu"]) == 3 * 2 * 5
    for event in lanes["cpu"]:
        first, second = computes[event["name"].removeprefix("attend")]
        assert first["ts"] + first["dur"] <= event["ts"] + 1
        assert event["ts"] + event["dur"] <= second["ts"] + 1
    order = [event["name"] for event in sorted(lanes["gpu"], key=lambda event: event["ts"])]
    assert order.index("compute (1, 0, 1)") < len(order) - 1 - order[::-1].index("compute (1, 0, 0)")


def test_only_the_first_blocks_are_recorded(checkpoint: Path, tmp_path: Path) -> None:
    """One block by default, as many as asked for, one after the other."""
    plan = plan_for(checkpoint, gen_len=2)
    workload = replace(plan.workload, num_prompts=20)
    ledger = make_ledger(plan.model.spec(), workload, plan.policy, plan.placement, plan.hardware)
    plan = replace(plan, workload=workload, ledger=ledger)
    counts = []
    for blocks in ("1", "2"):
        report = run(plan, tmp_path, "--trace", str(tmp_path / "t.json"), "--trace-blocks", blocks)
        assert report.num_blocks == 3
        counts.append(len(spans_by_lane(read_trace(tmp_path / "t.json"), "measured")["gpu"]))
    assert counts[1] == 2 * counts[0]


def test_the_report_says_how_time_was_used(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shares of both phases, the same binding resource in figures and in words."""
    report = run(plan_for(checkpoint), tmp_path)
    assert [found.phase for found in report.activity] == ["prefill", "decode"]
    for found, phase in zip(report.activity, report.phases, strict=True):
        assert found.seconds == pytest.approx(phase.measured_s)
        assert found.binding == report.binding[found.phase]
        assert all(0 <= share <= 1 + 1e-6 for share in found.busy_share.values())
        idle = 1 - found.busy_share[found.binding]
        assert sum(found.waits_share.values()) <= idle + 1e-6
        measured = sum(
            task.measured_s for task in report.tasks if (task.phase, task.resource) == (found.phase, "gpu")
        )
        assert found.busy_share["gpu"] * found.seconds == pytest.approx(measured, rel=1e-6)
    assert "binds, at work" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "report.json")]) == 0
    assert f"decode: {report.binding['decode']} binds, at work" in capsys.readouterr().out


def test_one_task_after_the_other_does_not_overlap(checkpoint: Path, tmp_path: Path) -> None:
    """With overlap off, no two resources are at work at once."""
    plan = plan_for(checkpoint, splits=ON_DISK)
    assert all(found.overlap_share == 0 for found in run(plan, tmp_path, "--no-overlap").activity)
    assert any(found.overlap_share > 0 for found in run(plan, tmp_path).activity)


def test_long_blocks_are_summed_up_on_the_way(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging after every token keeps few spans, and gives whole phases all the same."""
    monkeypatch.setattr("executor.measure._SETTLE_SPANS", 1)
    report = run(plan_for(checkpoint, gen_len=24), tmp_path)
    for found in report.activity:
        of_phase = [task for task in report.tasks if task.phase == found.phase and task.kind == "compute"]
        busy_s = sum(task.measured_s for task in of_phase)
        assert found.busy_share["gpu"] * found.seconds == pytest.approx(busy_s, rel=1e-6)


def test_flags_of_the_trace_are_checked(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is allocated."""
    path = str(write_plan(tmp_path / "plan.yaml", plan_for(checkpoint)))
    for more in (
        ["--hw", "t4-host"],
        ["--trace", str(tmp_path / "none" / "t.json")],
        ["--trace", str(tmp_path / "t.json"), "--trace-blocks", "0"],
    ):
        assert main(["run", path, "--dummy-weights", *more]) == 2
        assert capsys.readouterr().err.count("error: ") == 1
    assert load_plan(Path(path)).policy.block_size == 8


@pytest.mark.gpu
@pytest.mark.parametrize("attended", [0, 2])
def test_streams_overlap_on_the_device(
    attended: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device times of real streams: well-formed lanes, real overlap, and phases that add up after clock changes."""
    monkeypatch.setattr("executor.measure._NEAR_S", 0.01)
    model = random_model("opt", hidden_size=512, num_attention_heads=8, ffn_dim=2048, word_embed_proj_dim=512)
    plan = make_plan(
        save(model, tmp_path / "model"),
        weights="cd",
        cache=(0, 4 - attended, attended, 0, 0),
        activations=(0, 4, 0),
        emulated=False,
        num_gpu_batches=3,
    )
    device = torch.device("cuda", 0)
    engine = Engine(plan, EngineOptions(device=device, offload_dir=tmp_path))
    try:
        engine.load_dummy()
        with TraceWriter(tmp_path / "t.json") as writer:
            engine.measurements.recorder = RunTrace(writer, 1, device)
            (block,) = blocks_of(plan, random_prompts([16] * 12, 8))
            samplers = [
                Sampler(batch, eos_ids=frozenset(), tokenizer=None, device=device)
                for batch in block.gpu_batches
            ]
            engine.generate(block, samplers)
    finally:
        engine.close()
    found = read_trace(tmp_path / "t.json")
    lanes = spans_by_lane(found, "measured")
    assert set(lanes) == {"h2d", "d2h", "gpu", "disk_read", "host", *(["cpu"] if attended else [])}
    asked = {event["name"] for event in lanes["host"]}
    assert asked >= {event["name"] for event in lanes["gpu"]}, (
        "compute is issued by the caller's thread alone"
    )
    assert {event["name"] for event in found["traceEvents"] if event["ph"] == "C"} == {
        "cpu bytes",
        "gpu bytes",
    }
    activity = engine.measurements.activities["decode"]
    assert 0 < activity.overlap_s < activity.seconds
    assert 0 < activity.issue_s < activity.seconds
    assert all(busy_s <= activity.seconds * 1.001 for busy_s in activity.busy_s.values())
