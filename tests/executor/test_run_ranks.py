"""A job on several ranks: one results file, report and trace; whatever ends one rank ends all, with the reason."""

from __future__ import annotations

import json
import math
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hwprofiles.host import current_fingerprint
from hwprofiles.profile import load_profile
from planner.report import load_report
from tests.executor.jobs import many_prompts, results, save_checkpoint, write_plan, write_prompts
from tests.executor.rank_processes import free_port, mpi_environ, staged_plan, start_rank, torch_environ
from tests.planner.problems import emulated
from tests.processes import Forked, wait_until

Environ = Callable[[int, int, int], dict[str, str]]
Start = Callable[..., list[Forked]]


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT of four layers with its tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer, num_hidden_layers=4)


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Start:
    """Starts ranks of a plan with a results file, an offload directory and the prompts of p.jsonl."""
    (tmp_path / "offload").mkdir()

    def starter(
        plans: Sequence[Path],
        *more: object,
        ranks: Sequence[int] = (),
        port: int = 0,
        environ: Environ = torch_environ,
    ) -> list[Forked]:
        port = port or free_port()
        flags = ["--model-path", checkpoint, "--input", tmp_path / "p.jsonl"]
        flags += ["--output", tmp_path / "r.jsonl", "--offload-dir", tmp_path / "offload", *more]
        return [
            start_rank(environ(rank, len(plans), port), ["run", plans[rank], *flags], tmp_path / f"log{rank}")
            for rank in ranks or range(len(plans))
        ]

    return starter


def test_one_job_of_two_ranks(checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """One line a prompt; the report has both ranks' tasks and memory, the trace a group of lanes for each."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(13))
    plan = staged_plan(checkpoint, 2)
    path = write_plan(tmp_path / "plan.yaml", plan)
    report_path, trace_path = tmp_path / "report.json", tmp_path / "trace.json"
    ranks = start([path, path], "--report", report_path, "--trace", trace_path)
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert sorted(results(tmp_path / "r.jsonl")) == sorted(f"request-{line}" for line in range(1, 14))
    assert list((tmp_path / "offload").iterdir()) == []
    report = load_report(report_path)
    assert (report.num_requests, report.num_blocks, report.generated_tokens) == (13, 2, 13 * 6)
    assert report.plan == plan
    assert [rank.rank for rank in report.ranks] == [0, 1]
    for kind, rank in (("send", 0), ("receive", 1)):
        tasks = [task for task in report.ranks[rank].tasks if task.kind == kind and task.num_bytes]
        assert {task.phase for task in tasks} == {"prefill", "decode"}
    host = {row.tier: row for row in report.memory}["host"]
    own = [row for rank in report.ranks for row in rank.memory if row.tier == "host"]
    assert host.measured_peak_bytes == sum(row.measured_peak_bytes or 0 for row in own)
    assert all(phase.measured_s > 0 and phase.predicted_s > 0 for phase in report.phases)
    assert "2 ranks" in ranks[0].said
    shown = " ".join(ranks[1].said.split()).split("warning: ")
    may_be_said = "rank 1 is not bound", "the plan was made for two-core, measured on another kind of host"
    assert all(line.startswith(may_be_said) for line in shown if line), (
        "on a single processor, or another one"
    )
    _check_trace(json.loads(trace_path.read_text())["traceEvents"])


def _check_trace(events: list[dict[str, object]]) -> None:
    """What a rank receives it cannot have received before the other began to send it, both by one clock."""
    groups = {
        str(event["args"]["name"]): event["pid"]  # type: ignore[index]
        for event in events
        if event["name"] == "process_name"
    }
    assert sorted(groups) == ["rank 0, layers 0 to 1", "rank 1, layers 2 to 3"]
    first, second = (groups[name] for name in sorted(groups))
    lanes = {
        (event["pid"], event["tid"]): event["args"]["name"]  # type: ignore[index]
        for event in events
        if event["name"] == "thread_name"
    }

    def spans(pid: object, lane: str) -> list[tuple[float, float]]:
        return [
            (float(str(event["ts"])), float(str(event["ts"])) + float(str(event["dur"])))
            for event in events
            if event["ph"] == "X" and event["pid"] == pid and lanes[event["pid"], event["tid"]] == lane
        ]

    sent, received = spans(first, "net_out"), spans(second, "net_in")
    assert len(sent) == len(received) > 0
    for (began_us, _), (_, ended_us) in zip(sent, received, strict=True):
        assert ended_us > began_us - 1.0, "to a microsecond: one host's processes have one clock"


def test_the_profile_learns_from_all_ranks(checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """`--calibrate` fits it to what both measured; `--hw` puts their predicted lanes into the trace."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(6))
    host, hw, trace_path = (
        replace(emulated(), fingerprint=current_fingerprint()),
        tmp_path / "hw.yaml",
        tmp_path / "t.json",
    )
    hw.write_text(host.to_yaml())
    path = write_plan(tmp_path / "plan.yaml", staged_plan(checkpoint, 2, host=host))
    ranks = start([path, path], "--calibrate", hw, "--hw", hw, "--trace", trace_path)
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert "Median error" in ranks[0].said
    learned = load_profile(str(hw))
    assert learned.calibration is not None
    assert learned.calibration.num_runs == 1
    assert any(name.startswith("net_") for name in learned.calibration.factors)
    events = json.loads(trace_path.read_text())["traceEvents"]
    groups = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    stages = ["rank 0, layers 0 to 1", "rank 1, layers 2 to 3"]
    assert groups == {*stages, *(f"predicted, {name}" for name in stages)}


@pytest.mark.parametrize(("gen_len", "environ"), [(1, torch_environ), (2, mpi_environ)], ids=["1", "2"])
def test_few_tokens(gen_len: int, environ: Environ, checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """Generation cut to one or two tokens: each figure is a number, or the phase is said not to have been run."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(5))
    path = write_plan(tmp_path / "plan.yaml", staged_plan(checkpoint, 2, gen_len=gen_len))
    ranks = start([path, path], "--report", tmp_path / "report.json", environ=environ)
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    shown = ranks[0].said
    assert "nan" not in shown
    assert "inf" not in shown
    assert ("not run" in shown) == (gen_len == 1)
    text = (tmp_path / "report.json").read_text()
    assert math.isfinite(len(json.loads(text, parse_constant=pytest.fail)))
    assert load_report(tmp_path / "report.json").generated_tokens == 5 * gen_len


@pytest.mark.parametrize("victim", [1, 0], ids=["a rank", "the rank that keeps the store"])
def test_a_killed_rank_ends_all(victim: int, checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """kill -9: the others say which one and end, nothing is left of them; two ranks then finish the job."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(300))
    small = staged_plan(checkpoint, 3, gpu_batch_size=1, num_gpu_batches=2)
    output = tmp_path / "r.jsonl"
    ranks = start([write_plan(tmp_path / "plan.yaml", small)] * 3)
    wait_until(lambda: output.exists() and output.stat().st_size > 0)
    ranks[victim].send(signal.SIGKILL)
    others = [rank for number, rank in enumerate(ranks) if number != victim]
    assert [rank.wait() for rank in others] == [2, 2], [rank.said for rank in others]
    for rank in others:
        assert len(rank.errors) == 1, rank.said
        assert f"rank {victim} (process {ranks[victim].process.pid} on" in rank.errors[0]
        assert "was killed" in rank.errors[0]
    left = [path.name.split("-")[1] for path in (tmp_path / "offload").iterdir()]
    assert left in ([], [str(ranks[victim].process.pid)]), (
        "only the killed one's files, which the next run removes"
    )
    done = len(results(output))
    assert 0 < done < 300
    large = staged_plan(checkpoint, 2, gpu_batch_size=25, num_gpu_batches=4)
    ranks = start([write_plan(tmp_path / "plan2.yaml", large)] * 2)
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert len(results(output)) == 300
    assert list((tmp_path / "offload").iterdir()) == []


def test_a_rank_that_never_comes(checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """Those that are there name the one that is not; nothing is written."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(3))
    path = write_plan(tmp_path / "plan.yaml", staged_plan(checkpoint, 3))
    ranks = start([path] * 3, "--wait-for-ranks", 10, ranks=(0, 2))
    assert [rank.wait() for rank in ranks] == [2, 2], [rank.said for rank in ranks]
    for rank in ranks:
        assert len(rank.errors) == 1
        assert "rank 1 has not come within 10 s" in rank.errors[0]
    assert not (tmp_path / "r.jsonl").exists()


def test_a_port_in_use(checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """Rank 0 names the port; to rank 1 nobody answers, though somebody listens."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(3))
    path = write_plan(tmp_path / "plan.yaml", staged_plan(checkpoint, 2))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ranks = start([path] * 2, "--wait-for-ranks", 2, port=port)
        assert [rank.wait() for rank in ranks] == [2, 2], [rank.said for rank in ranks]
    assert f"127.0.0.1:{port}, where the ranks meet, is in use" in ranks[0].errors[0]
    assert "rank 0 does not answer" in ranks[1].errors[0]
    assert not (tmp_path / "r.jsonl").exists()


def test_plans_that_differ(checkpoint: Path, tmp_path: Path, start: Start) -> None:
    """Every rank names the one with another plan."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(3))
    path = write_plan(tmp_path / "plan.yaml", staged_plan(checkpoint, 2))
    other = write_plan(tmp_path / "other.yaml", staged_plan(checkpoint, 2, gen_len=5))
    ranks = start([path, other])
    assert [rank.wait() for rank in ranks] == [2, 2], [rank.said for rank in ranks]
    for rank in ranks:
        assert len(rank.errors) == 1
        assert f"rank 1 (process {ranks[1].process.pid} on" in rank.errors[0]
        assert "another plan" in rank.errors[0]
    assert not (tmp_path / "r.jsonl").exists()
