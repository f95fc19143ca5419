"""Objectives other than throughput: least latency of a block, and least memory for a deadline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import MIB, format_duration, parse_duration
from planner.cli import main
from planner.deadline import Deadline, Finish, explain_lateness, finish_in, job_s
from planner.latency import latency_s, quickest, single_sequences
from planner.machine import Caps
from planner.machine_change import parse_changes
from planner.plan import Plan, load_plan
from planner.problem import Problem
from planner.request import Request
from planner.search import search
from planner.workload import Workload
from tests.planner.problems import GB, MB, emulated, problem_of, small_opt, small_t4

RAGGED = Workload.of_lengths([(8 * (n % 30) + 5, (4, 16)[n % 2]) for n in range(120)], 16)


def found(problem: Problem, request: Request) -> Plan:
    plan = search(problem, request)
    assert plan is not None
    return plan


PROBLEMS = {
    "streamed weights": problem_of(small_opt(), gpu=120 * MB),
    "all on the gpu": problem_of(small_opt()),
    "few prompts": problem_of(small_opt(), gpu=120 * MB, num_prompts=3),
    "from disk": problem_of(small_opt(), gpu=120 * MB, cpu=120 * MB),
    "no gpu": problem_of(small_opt(), load_profile("two-core"), prompt_len=32),
    "emulated": problem_of(small_opt(), emulated(), prompt_len=32),
    "many lengths": replace(problem_of(small_opt(), gpu=130 * MB), workload=RAGGED),
}
AUTO = Request(weight_bits="auto", kv_bits="auto")


@pytest.mark.parametrize(
    ("name", "request_"), [*((name, Request()) for name in PROBLEMS), ("streamed weights", AUTO)], ids=str
)
def test_no_plan_is_quicker(name: str, request_: Request) -> None:
    """A block takes no longer than one sequence by itself, or the fastest plan's block, as far as can be told."""
    problem = PROBLEMS[name]
    quick = quickest(problem, request_)
    assert quick is not None
    assert quick.ledger.shortfalls(problem.target) == {}
    rivals = [found(problem, request_), *single_sequences(problem, request_)]
    assert latency_s(quick) <= min(map(latency_s, rivals)) * 1.0051
    assert quick.policy.block_size <= (problem.workload.num_prompts or 4096)


def test_as_quick_but_faster() -> None:
    """Where the weights' way to the GPU takes longest, a block holds more than one sequence at no cost."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, gen_len=32)
    quick = quickest(problem, Request())
    assert quick is not None
    assert quick.policy.block_size > 1
    assert found(problem, quick.request or Request()).policy == quick.policy


def test_a_limit_below_the_least_latency() -> None:
    """Not even the quickest plan keeps it."""
    problem = PROBLEMS["streamed weights"]
    assert quickest(problem, Request(max_latency_s=1e-6)) is None


JOB = problem_of(small_opt(), gpu=300 * MB, cpu=400 * MB, disk=2 * GB, num_prompts=100)
FASTEST = found(JOB, Request())
ON_CPU_JOB = problem_of(
    small_opt(3), load_profile("two-core"), cpu=560 * MB, prompt_len=16, gen_len=6, num_prompts=20
)


def deadline_of(problem: Problem, profile: HardwareProfile, finish_in_s: float) -> Deadline:
    target = problem.target
    caps = Caps(
        gpu_bytes=target.gpu_bytes,
        cpu_bytes=target.cpu_bytes + target.headroom_bytes,
        disk_bytes=target.disk_bytes,
    )
    deadline = Deadline(
        problem=problem, request=Request(), profile=profile, caps=caps, finish_in_s=finish_in_s
    )
    assert deadline.under(caps) == problem
    return deadline


HALF_AS_FAST = deadline_of(JOB, small_t4(), 2 * job_s(FASTEST))


@pytest.fixture(scope="module")
def finish() -> Finish:
    """Half as fast will do."""
    finish = finish_in(HALF_AS_FAST, FASTEST)
    assert finish is not None
    return finish


def test_the_least_memory_does_and_less_does_not(finish: Finish) -> None:
    """The plan is in time within the caps found for it; under a few percent less of either none is in time."""
    cpu, gpu = finish.least["cpu"], finish.least["gpu"]
    caps = replace(HALF_AS_FAST.caps, cpu_bytes=cpu, gpu_bytes=gpu)
    enough = HALF_AS_FAST.under(caps)
    assert job_s(finish.plan) <= HALF_AS_FAST.finish_in_s
    assert finish.plan.ledger.shortfalls(enough.target) == {}
    assert finish.plan.policy == found(enough, Request()).policy
    less_gpu = replace(caps, gpu_bytes=round(gpu * (1 - 1 / 32)) - MIB)
    less_cpu = replace(HALF_AS_FAST.caps, cpu_bytes=round(cpu * (1 - 1 / 32)) - MIB)
    for less in (less_gpu, less_cpu):
        plan = search(HALF_AS_FAST.under(less), Request())
        assert plan is None or job_s(plan) > HALF_AS_FAST.finish_in_s


def test_more_time_never_needs_more_memory() -> None:
    """From what the fastest takes to more than a run from disk takes."""
    fastest = found(ON_CPU_JOB, Request())
    least = []
    for factor in (1, 1.1, 1.5, 4, 100):
        deadline = deadline_of(ON_CPU_JOB, load_profile("two-core"), factor * job_s(fastest))
        finish = finish_in(deadline, fastest)
        assert finish is not None
        assert job_s(finish.plan) <= deadline.finish_in_s
        assert finish.plan.ledger.peak_bytes("cpu") <= finish.least["cpu"]
        least.append(finish.least["cpu"])
    assert least == sorted(least, reverse=True)
    assert least[-1] < least[0]


def test_too_little_time_is_told_with_what_would_do() -> None:
    """What is named as enough is enough; where nothing is, the nearest change is named."""
    deadline = deadline_of(JOB, small_t4(), 0.999 * job_s(FASTEST))
    assert finish_in(deadline, FASTEST) is None
    message = explain_lateness(deadline, FASTEST)
    assert f"100 prompts take {format_duration(job_s(FASTEST))} at best" in message
    text = message.partition("in time with ")[2].partition(" (")[0]
    better = JOB
    for change in parse_changes(text):
        better = change.apply(better)
    assert job_s(found(better, Request())) <= deadline.finish_in_s


def test_where_nothing_would_do_the_nearest_is_named() -> None:
    """A tenth of the time, on a machine where all changes together would not bring it."""
    fastest = found(ON_CPU_JOB, Request())
    deadline = deadline_of(ON_CPU_JOB, load_profile("two-core"), 0.1 * job_s(fastest))
    assert "no single change that was tried brings it, nearest is " in explain_lateness(deadline, fastest)


def test_a_deadline_needs_a_job() -> None:
    """Of an open number of prompts nothing is ever done."""
    problem = PROBLEMS["all on the gpu"]
    with pytest.raises(UserError, match="--input FILE or --num-prompts"):
        deadline_of(problem, small_t4(), 1.0)


SMALL = ("search", "--model", "opt-125m", "--hw", "two-core", "--prompt-len", "32", "--gen-len", "8")


def test_the_flags_named_for_a_deadline_find_the_plan_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--finish-in` alone means a deadline; what it prints can be given to the next search."""
    path, job = tmp_path / "plan.yaml", ("--num-prompts", "50")
    assert main([*SMALL, *job, "--finish-in", "10m", "-o", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "In time: " in shown
    flags = re.search(r"--cpu-mem \d+MiB", shown)
    assert flags
    plan = load_plan(path)
    assert plan.job is not None
    assert plan.job.seconds <= parse_duration("10m")
    assert main([*SMALL, *job, *flags[0].split(), "-o", str(path)]) == 0
    again = load_plan(path)
    assert (again.policy, again.hardware) == (plan.policy, plan.hardware)


def test_latency_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is written, and what was sought is said."""
    path = tmp_path / "plan.yaml"
    assert main([*SMALL, "--objective", "latency", "-o", str(path)]) == 0
    assert "A block of 1 takes " in " ".join(capsys.readouterr().out.split())
    assert load_plan(path).request is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "deadline"], "give --finish-in, such as --finish-in 8h"),
        (["--objective", "latency", "--finish-in", "8h"], "--objective is latency; leave out one"),
        (
            ["--finish-in", "soon", "--num-prompts", "9"],
            "duration 'soon' is not understood; write for example",
        ),
        (["--objective", "latency", "--stages", "2"], "--objective latency is for plans without stages"),
        (["--finish-in", "8h", "--stages", "auto"], "--finish-in is for plans without stages"),
        (["--finish-in", "8h"], "say how large it is with --input FILE or --num-prompts N"),
        (
            ["--finish-in", "0.001s", "--num-prompts", "9"],
            "9 prompts take .* at best on two-core, 1.0 ms are given",
        ),
    ],
)
def test_mistakes_are_one_line(
    flags: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and what to give instead."""
    assert main([*SMALL, *flags]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(error) == 1
    assert re.search(message, error[0])
