"""Why not: a preferred policy beside a plan, and the diff of two plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from planner.compare import Line, decided_lines, differing_lines
from planner.machine_change import parse_changes
from planner.plan import Plan
from planner.policy import Policy, Split
from planner.problem import Problem
from planner.request import Request
from planner.search import DISK_WORTH_IT, search
from planner.why_not import WhyNot, why_not
from tests.planner.problems import (
    GB,
    MB,
    ON_CPU,
    ON_DISK,
    ON_GPU,
    policy_of,
    problem_of,
    small_mixtral,
    small_opt,
)

FLEXGEN = Split(gpu=0.2, cpu=0.8, disk=0)


def found(problem: Problem, request: Request | None = None) -> Plan:
    """The plan a search finds."""
    plan = search(problem, request or Request())
    assert plan is not None
    return plan


def asked(problem: Problem, policy: Policy) -> WhyNot:
    """Why the search's plan is not this policy."""
    return why_not(problem, found(problem), policy)


def values(lines: tuple[Line, ...], name: str) -> tuple[object, object]:
    """Both figures of the only line of a name."""
    (line,) = (line for line in lines if line.name == name)
    return line.left, line.right


def test_the_plans_own_policy_is_no_different() -> None:
    """No line differs, and the verdict says so."""
    problem = problem_of(small_opt(), gpu=300 * MB)
    plan = found(problem)
    same = why_not(problem, plan, plan.policy)
    assert same.lines
    assert not [line for line in same.lines if line.differs]
    assert (same.gain, same.lacking_bytes) == (0, {})
    assert "no difference" in same.verdict


def test_flexgens_policy_on_a_125_gb_host_does_not_fit() -> None:
    """OPT-30B in four gpu batches of 48: 0.8 x 55 + 134 + 1.4 GiB on the cpu, and what would fit."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, gen_len=32, cpu=125 * GB)
    given = problem.plan(policy_of(size=8, batches=1))
    policy = policy_of(FLEXGEN, ON_CPU, ON_CPU, size=48, batches=4, prefill_rows=8)
    other = why_not(problem, given, policy)
    assert "= 179.3 GiB" in other.verdict
    assert other.lacking_bytes["cpu"] / 2**30 == pytest.approx(179.3 + 3 - 125e9 * 0.98 / 2**30, abs=1.0)
    assert "Nearest that fits:" in other.verdict
    assert "With enough memory it would be" in other.verdict
    left, right = values(other.lines, "cpu room")
    assert str(left).endswith("free")
    assert str(right).startswith("over by ")


def test_every_figure_is_that_of_an_estimate() -> None:
    """Splits, memory, times and bounds of both, from the plans themselves."""
    problem = problem_of(small_opt(), gpu=300 * MB)
    plan, policy = found(problem), policy_of(ON_CPU, ON_DISK, ON_GPU, size=2, batches=2, prefill_rows=2)
    other, lines = problem.plan(policy), asked(problem, policy).lines
    for name, of in (
        ("prefill of one block", lambda plan: plan.prediction.prefill.seconds),
        ("decode bound by", lambda plan: plan.prediction.decode.binding),
        ("generated tokens/s", lambda plan: plan.prediction.throughput_tokens_per_s),
        ("cpu peak", lambda plan: plan.ledger.peak_bytes("cpu")),
        ("gpu limit", lambda plan: plan.hardware.gpu_bytes),
        ("kv_bits", lambda plan: plan.policy.kv_bits),
    ):
        assert values(lines, name) == (of(plan), of(other))
    read = next(
        task for task in other.prediction.tasks if (task.phase, task.resource) == ("decode", "disk_read")
    )
    assert values(lines, "decode load_cache on disk_read")[1] == pytest.approx(read.seconds / (4 * 16))


def test_a_slower_policy_names_the_work_it_has_more_of() -> None:
    """A cache on disk is bound by reading it; the seconds are of as many sequences as the plan's block."""
    problem = problem_of(small_opt(), gpu=GB)
    plan = problem.plan(policy_of(ON_GPU, ON_GPU, ON_GPU, size=4, batches=2))
    policy = policy_of(ON_GPU, ON_DISK, ON_GPU, size=4, batches=1)
    other, lost = problem.plan(policy).prediction.decode, why_not(problem, plan, policy)
    extra = 2 * other.seconds - plan.prediction.decode.seconds
    assert f"It fits but is {-100 * lost.gain:.1f}% slower." in lost.verdict
    assert "For 8 sequences its decode takes" in lost.verdict
    assert f"{extra * 1e3:.1f} ms more" in lost.verdict or f"{extra:.2f} s more" in lost.verdict
    assert "because disk_read, which binds it, has" in lost.verdict
    assert "load_cache on disk_read" in lost.verdict


def test_work_that_does_not_overlap_is_said_to_be_so() -> None:
    """One gpu batch instead of two has the same work, but nothing to compute while its hidden states travel."""
    problem = problem_of(small_opt(), gpu=GB, prompt_len=512, gen_len=2)
    plan = problem.plan(policy_of(ON_GPU, ON_GPU, ON_CPU, size=4, batches=4))
    policy = policy_of(ON_GPU, ON_GPU, ON_CPU, size=4, batches=1)
    lost = why_not(problem, plan, policy)
    assert lost.gain < 0
    assert "because less of it overlaps" in lost.verdict


def test_a_faster_policy_was_excluded_or_not_searched_for() -> None:
    """The flag that kept it out is named; a plan of a given policy was never the best."""
    problem = problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=500 * MB)
    plain = found(problem, Request(kv_bits="16", cpu_attention="off"))
    packed = found(problem, Request(weight_bits="4", cpu_attention="off")).policy
    lossy = why_not(problem, plain, packed)
    assert lossy.gain > 0
    assert "searched for with --weight-bits 16, which excludes it" in lossy.verdict
    slow = problem.plan(policy_of(size=1, batches=1, prefill_rows=1))
    assert "was given, not searched for" in why_not(problem, slow, plain.policy).verdict
    seconds = (plain.prediction.prefill.seconds + plain.prediction.decode.seconds) / 2
    quick = found(problem, Request(cpu_attention="off", max_latency_s=seconds))
    assert f"with --max-latency {seconds:g}, which" in why_not(problem, quick, plain.policy).verdict
    missed = replace(slow, request=Request(cpu_attention="off"))
    assert "the search has missed it" in why_not(problem, missed, plain.policy).verdict


def test_a_disk_must_bring_more_than_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a disk 20 times as fast a search that takes any gain uses it; the plan does not, and says so."""
    (twenty_times,) = parse_changes("disk-rate=x20")
    problem = twenty_times.apply(problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=650 * MB))
    plan = found(problem)
    assert plan.ledger.peak_bytes("disk") == 0
    monkeypatch.setattr("planner.search.DISK_WORTH_IT", 0.0)
    with_disk = found(problem)
    monkeypatch.undo()
    assert with_disk.ledger.peak_bytes("disk") > 0
    answer = why_not(problem, plan, with_disk.policy)
    assert 0 < answer.gain < DISK_WORTH_IT
    assert "the search uses a disk where that brings 5% or more" in answer.verdict


def test_decode_that_is_called_is_a_risk() -> None:
    """What would be a little faster if the host were always as fast as when it was measured is not taken."""
    problem = problem_of("mixtral-8x7b", load_profile("h200-host"), prompt_len=512, gen_len=10, gpu=16 * GB)
    plan = found(problem)
    assert plan.policy.graphs
    without = replace(problem, target=replace(problem.target, graph_operation_bytes=0))
    answer = why_not(problem, plan, found(without).policy)
    assert 0 < answer.gain < 0.08
    assert "the search counts on a host that is slower at times" in answer.verdict


def test_what_the_machine_or_the_model_lacks_is_a_mistake() -> None:
    """A share on a GPU that is not there is not a comparison."""
    problem = problem_of(small_opt(), load_profile("two-core"))
    with pytest.raises(UserError, match="has no GPU, but 100 percent of weights"):
        why_not(problem, problem.plan(policy_of()), policy_of(ON_GPU))


def test_a_plan_does_not_differ_from_itself() -> None:
    """Nor from what its file loads back as."""
    plan = problem_of(small_mixtral(), gpu=GB).plan(policy_of())
    assert differing_lines(plan, plan) == ()


def test_only_what_differs_is_shown() -> None:
    """Every differing key is there, with both values; nothing else is."""
    problem = problem_of(small_opt(), gpu=GB)
    one = problem.plan(policy_of(size=4, batches=2))
    two = problem.plan(policy_of(size=4, batches=2, cpu_attention=0.5))
    lines = differing_lines(one, two)
    assert all(line.differs for line in lines)
    assert values(lines, "cpu_attention") == (0.0, 0.5)
    assert values(lines, "gpu batches with cache elsewhere") == (None, "2 of 2")
    assert {line.section for line in lines} <= {"plan", "policy", "placement", "memory", "prediction", "work"}
    other = problem_of(small_opt(num_layers=7), gpu=2 * GB, gen_len=17).plan(policy_of(size=4, batches=2))
    lines = differing_lines(one, other)
    assert values(lines, "config.num_hidden_layers") == (6, 7)
    assert values(lines, "gen_len") == (16, 17)
    assert values(lines, "gpu_bytes") == (GB, 2 * GB)


def test_plans_that_differ_in_anything_show_it() -> None:
    """Where no figure shows the difference, the digests do."""
    plan = problem_of(small_opt(), gpu=GB).plan(policy_of())
    moved = replace(
        plan, placement=replace(plan.placement, weight_tiers=("g" * 16, *plan.placement.weight_tiers[1:]))
    )
    assert values(differing_lines(plan, moved), "layers with tensors elsewhere") == (None, "1 of 6")
    task = replace(plan.prediction.tasks[0], count=999)
    counted = replace(plan, prediction=replace(plan.prediction, tasks=(task, *plan.prediction.tasks[1:])))
    (line,) = differing_lines(plan, counted)
    assert (line.name, line.left, line.right) == ("digest", plan.digest(), counted.digest())


def test_what_only_one_plan_was_searched_for_is_shown() -> None:
    """A request on one side stands alone."""
    plan = problem_of(small_opt(), gpu=GB).plan(policy_of())
    lines = differing_lines(plan, replace(plan, request=Request(kv_bits="auto")))
    assert values(tuple(line for line in lines if line.section == "request"), "kv_bits") == (None, "auto")
    assert not decided_lines(plan, plan)[0].differs
