"""Figures of results: bounds and gaps that add up, peers' ratios, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.case_text import case_section, gap_text
from benchmarks.cases import Case, Target
from benchmarks.confine import Ran
from benchmarks.figures import Figures, figures_of
from benchmarks.json_result import load_json_result, write_json_result
from benchmarks.peers.base import PeerFigures, PeerRun
from benchmarks.result import OurFigures, PeerRuns, Result
from benchmarks.table import COLUMNS, RESULTS, result_paths, row_of

REPORT: dict[str, object] = {
    "plan": {
        "prediction": {
            "prefill": {"seconds": 11.0, "busy_s": {"gpu": 10.0, "disk_read": 2.0}},
            "decode": {"seconds": 22.0, "busy_s": {"gpu": 4.0, "disk_read": 19.0, "host": 1.0}},
            "tasks": [
                {"phase": "prefill", "resource": "gpu", "seconds": 10.0},
                {"phase": "prefill", "resource": "disk_read", "seconds": 2.0},
                {"phase": "decode", "resource": "gpu", "seconds": 6.0},
                {"phase": "decode", "resource": "disk_read", "seconds": 7.0},
                {"phase": "decode", "resource": "disk_read", "seconds": 11.0},
            ],
        }
    },
    "phases": [
        {"phase": "prefill", "predicted_s": 22.0, "measured_s": 25.0},
        {"phase": "decode", "predicted_s": 44.0, "measured_s": 40.0},
    ],
    "activity": [
        {
            "phase": "prefill",
            "binding": "gpu",
            "busy_share": {"gpu": 0.88, "disk_read": 0.2},
            "waits_share": {"load_weight on disk_read": 0.1, "the host to issue it": 0.02},
        },
        {"phase": "decode", "binding": "disk_read", "busy_share": {"disk_read": 1.0}, "waits_share": {}},
    ],
    "memory": [
        {"tier": "cpu", "ledger_bytes": 1000, "measured_peak_bytes": 990},
        {"tier": "gpu", "ledger_bytes": 2000, "measured_peak_bytes": None},
    ],
    "generated_tokens": 130,
}
RAN = Ran(
    exit_status=0,
    is_timed_out=False,
    is_out_of_memory=False,
    wall_s=70.0,
    cpu_s=100.0,
    limit_bytes=2000,
    peak_charged_bytes=1900,
    peak_anonymous_bytes=1500,
    peak_resident_bytes=1600,
    disk_read_bytes=5000,
    others_cores=0.5,
    others_niced_cores=0.5,
    stopped_s=0.0,
    log="",
)


def peer_run(prefill_s: float, decode_s: float) -> PeerRun:
    figures = PeerFigures(
        num_prompts=4,
        prefill_s=prefill_s,
        decode_s=decode_s,
        is_projected=False,
        peak_gpu_bytes=None,
        versions={},
    )
    throughput = 4 * 32 / (prefill_s + decode_s)
    return PeerRun(
        setting={"batch_size": 4},
        command="",
        figures=figures,
        throughput_tokens_per_s=throughput,
        error=None,
        ran=RAN,
    )


def result(*runs: PeerRun) -> Result:
    ours = OurFigures(prefill_s=25.0, decode_s=40.0, throughput_tokens_per_s=2.0, error=None, ran=RAN)
    return Result(
        case="some",
        commands=("python -m planner search",),
        commit="c" * 40,
        created="2026-01-01T00:00:00+00:00",
        machine={"platform": "Linux", "torch": "2", "transformers": "5"},
        report=REPORT,
        runs=(ours,),
        peers=(PeerRuns(name="other", how="as it is", runs=runs),),
    )


def figures() -> Figures:
    found = figures_of(REPORT)
    assert found is not None
    return found


def test_the_bound_is_each_phase_s_busiest_resource() -> None:
    """Two blocks' worth: 20 s of gpu in prefill, 36 s of disk in decode, without what it loses to others."""
    found = figures()
    assert found.throughput == 130 / 65
    assert found.bound == pytest.approx(130 / (20 + 36))
    assert found.share_of_bound == pytest.approx(56 / 65)
    assert found.share_of_disk == pytest.approx((4 + 36) / 65)


def test_gaps_add_up() -> None:
    """What the binding resource took beyond its rates, and what it was idle, is all there is."""
    prefill, decode = figures().gaps
    assert prefill.busy_s - prefill.planned_s == pytest.approx(2.0)
    assert prefill.idle_s == pytest.approx(3.0)
    assert sum(prefill.waits_s.values()) == pytest.approx(3.0)
    assert prefill.bound_s + 2.0 + 3.0 == pytest.approx(prefill.measured_s)
    assert (decode.bound_by, decode.binding, decode.idle_s) == ("disk_read", "disk_read", 0.0)


def test_the_text_names_the_causes() -> None:
    """Slower or faster than the profile, idle and what for."""
    prefill, decode = (gap_text(gap) for gap in figures().gaps)
    assert "gpu was at work 22.00 s, 2.00 s longer than the 20.00 s" in prefill
    assert (
        "idle 3.00 s, waiting for load_weight on disk_read 2.50 s, the host to issue it 500.0 ms" in prefill
    )
    assert "4.00 s longer" in decode
    assert "never idle" in decode


def test_a_peer_s_best_run_counts() -> None:
    """The row has the fastest of its runs and how many times as fast ours was."""
    case = Case(target=Target(share_of_bound=0.8, peer="other", times_peer=1.5))
    row = dict(zip(COLUMNS[:-1], row_of(result(peer_run(20, 60), peer_run(4, 60)), case), strict=False))
    assert (row["case"], row["of bound"]) == ("some", "86%")
    cells = row_of(result(peer_run(20, 60), peer_run(4, 60)), case)
    assert cells[4:] == ["80%", "other", "2.00", "1.0", "1.5", "cpu 99.0%"]


def test_a_projected_figure_says_so() -> None:
    """Never is a projected figure shown as a measured one."""
    run = peer_run(4, 60)
    assert run.figures is not None
    cut = replace(run, figures=replace(run.figures, is_projected=True))
    assert "2.00 projected" in row_of(result(cut), Case())


def test_failures_are_shown() -> None:
    """A peer that was killed, and a run of ours that failed, stay in the table and in the text."""
    killed = replace(
        peer_run(1, 1), figures=None, throughput_tokens_per_s=None, error="killed: out of memory"
    )
    assert row_of(result(killed), Case())[5:7] == ["other", "failed"]
    assert "killed: out of memory" in case_section(result(killed))
    failed = replace(result(), report=None, error="does not fit")
    assert row_of(failed, Case())[1] == "failed"
    assert "does not fit" in case_section(failed)


def test_results_come_back(tmp_path: Path) -> None:
    """A written result is read as the same."""
    path = tmp_path / "some.json"
    write_json_result(result(peer_run(1.0, 2.0)), path)
    write_json_result(load_json_result(path, Result), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


@pytest.mark.parametrize("path", result_paths(RESULTS), ids=lambda path: path.stem)
def test_a_kept_result_s_gaps_have_causes(path: Path) -> None:
    """What the binding resource waited for accounts for the time it was idle."""
    found = figures_of(load_json_result(path, Result).report or {})
    assert found is not None
    for gap in found.gaps:
        assert sum(gap.waits_s.values()) == pytest.approx(gap.idle_s, abs=0.02 * gap.measured_s)
