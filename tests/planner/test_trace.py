"""The trace file: valid JSON that a viewer shows in the right order, whole however a run ends; `planner simulate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from planner.activity import Span
from planner.cli import main
from planner.plan import Plan
from planner.schedule import tasks
from planner.shape import shape_of
from planner.simulate import simulate
from planner.trace import TraceWriter, write_prediction
from tests.planner.problems import ON_CPU, ON_DISK, ON_GPU, policy_of, problem_of, small_opt
from tests.traces import read_trace, spans_by_lane


@pytest.fixture
def plan() -> Plan:
    """A plan that moves everything everywhere, with attention on the CPU."""
    problem = problem_of(small_opt(), prompt_len=20, gen_len=4)
    return problem.plan(policy_of(ON_DISK, ON_CPU, ON_DISK, size=4, batches=2, cpu_attention=1.0))


def test_a_simulation_makes_a_whole_trace(plan: Plan, tmp_path: Path) -> None:
    """Every task once, named by kind and (i, j, k), a lane for each resource, the ledger by tier."""
    simulation = simulate(plan.sizes(), problem_of(small_opt()).rates)
    with TraceWriter(tmp_path / "t.json") as writer:
        write_prediction(writer, simulation, plan.ledger)
    trace = read_trace(tmp_path / "t.json")
    lanes = spans_by_lane(trace, "predicted")
    assert set(lanes) == {"h2d", "d2h", "gpu", "cpu", "disk_read", "disk_write"}
    yielded = [f"{task.kind} ({task.i}, {task.j}, {task.k})" for task in tasks(shape_of(plan.sizes()), 4)]
    shown = [event["name"] for events in lanes.values() for event in events]
    assert sorted(shown) == sorted(yielded)
    counters = {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"}
    assert counters == {"gpu bytes", "cpu bytes", "disk bytes"}


def test_predicted_lanes_stand_above_measured_ones(tmp_path: Path) -> None:
    """Processes and lanes carry their place, whichever came first."""
    span = Span(0, "compute", "gpu", 0, 0, 0, 1.0, 2.0, 8.0, ())
    with TraceWriter(tmp_path / "t.json") as writer:
        writer.span("measured", span)
        writer.span("measured", span._replace(lane="h2d"))
        writer.span("predicted", span)
    events = read_trace(tmp_path / "t.json")["traceEvents"]
    ranks = {
        event["pid"]: event["args"]["sort_index"] for event in events if event["name"] == "process_sort_index"
    }
    names = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert ranks[names["predicted"]] < ranks[names["measured"]]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert [lanes[tid] for tid in sorted(lanes)] == ["h2d", "gpu"]


def test_events_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    """A long run's trace stays small and says that it was cut."""
    with TraceWriter(tmp_path / "t.json", max_events=10) as writer:
        for n in range(25):
            writer.span("measured", Span(n, "compute", "gpu", 0, 0, 0, n, n + 1, 8.0, ()))
    trace = read_trace(tmp_path / "t.json")
    assert len(spans_by_lane(trace, "measured")["gpu"]) == 10
    assert "15 events" in trace["otherData"]["dropped"]


def test_a_run_that_fails_leaves_a_whole_trace(tmp_path: Path) -> None:
    """The file can be opened with all that was written before the error."""
    path = tmp_path / "t.json"

    def fail() -> None:
        with TraceWriter(path) as writer:
            writer.span("measured", Span(0, "compute", "gpu", 0, 0, 0, 0.0, 1.0, 8.0, ()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(spans_by_lane(read_trace(path), "measured")["gpu"]) == 1


def test_spans_that_rounding_lets_touch_do_not_overlap(tmp_path: Path) -> None:
    """Times that differ by less than a clock's step are put one after the other."""
    with TraceWriter(tmp_path / "t.json") as writer:
        for n in range(5):
            writer.span("measured", Span(n, "compute", "gpu", 0, 0, 0, n / 3, (n + 1) / 3 + 1e-8, 8.0, ()))
    read_trace(tmp_path / "t.json")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(UserError, match=r"none/t\.json"):
        TraceWriter(tmp_path / "none" / "t.json")


def test_the_command_shows_both_predictions_and_writes_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """planner simulate: phases beside the closed formula, what binds, and a file for the viewer."""
    path, trace = tmp_path / "plan.yaml", tmp_path / "t.json"
    given = "estimate --model opt-125m --hw t4-host --prompt-len 32 --gen-len 9 --percent 0 100 0 100 0 100"
    assert main([*given.split(), "--gpu-batch-size", "4", "--num-gpu-batches", "2", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["simulate", str(path), "--hw", "t4-host", "--trace", str(trace)]) == 0
    captured = capsys.readouterr()
    words = ("closed formula", "prefill", "decode", "binds", "generated tokens/s", "all 9 tokens")
    assert all(word in captured.out for word in words)
    assert "another profile" not in captured.err
    assert "h2d" in spans_by_lane(read_trace(trace), "predicted")
    assert main(["simulate", str(path), "--hw", "t4-host", "--tokens", "2"]) == 0
    assert "tokens 0, 1, 2, 3, 4, 7, 8 played, the 2 between them interpolated" in capsys.readouterr().out


def test_the_command_knows_other_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another version of the profile is warned of; another kind of machine is a mistake."""
    problem = problem_of("opt-125m", gen_len=3)
    path = tmp_path / "plan.yaml"
    path.write_text(problem.plan(policy_of(ON_GPU, ON_GPU, ON_GPU)).to_yaml())
    assert main(["simulate", str(path), "--hw", "t4-host"]) == 0
    assert "another profile" in capsys.readouterr().err
    assert main(["simulate", str(path), "--hw", "two-core"]) == 2
    assert "two-core on the cpu" in capsys.readouterr().err
    assert main(["simulate", str(path), "--hw", "t4-host", "--tokens", "0"]) == 2
