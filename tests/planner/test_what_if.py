"""What-ifs: changes of a machine, and new searches on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from planner.machine import Caps, make_target
from planner.machine_change import Change, parse_changes, unit_changes
from planner.problem import Problem, make_problem
from planner.rate_curve import Curve
from planner.request import Request
from planner.search import score, search
from planner.what_if import Answer, differences, what_ifs
from planner.workload import Workload
from tests.planner.problems import (
    GB,
    MB,
    ON_CPU,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_opt,
)


def changed(problem: Problem, text: str) -> Problem:
    """The problem with all changes of a text made."""
    for change in parse_changes(text):
        problem = change.apply(problem)
    return problem


def asked(problem: Problem, *texts: str, request: Request | None = None) -> tuple[Answer, ...]:
    """The machine as it is, and each change, from the plan that a search finds."""
    plan = search(problem, request or Request())
    assert plan is not None
    return what_ifs(problem, plan, [parse_changes(text) for text in texts])


def test_a_size_is_the_cap_a_user_would_give() -> None:
    """cpu-mem=SIZE plans for what --cpu-mem SIZE does; + and x go from what there is."""
    profile = load_profile("t4-host")
    given = make_problem(small_opt(), Workload(prompt_len=8, gen_len=8), profile, Caps(cpu_bytes=8 * GB))
    for size in (4 * GB, 8 * GB, 64 * GB):
        expected = make_target(profile, Caps(cpu_bytes=size)).cpu_bytes
        assert changed(given, f"cpu-mem={size // GB}GB").target.cpu_bytes == expected
        assert changed(given, f"cpu-mem=x{size / (8 * GB)}").target.cpu_bytes == pytest.approx(expected)
    assert changed(given, "cpu-mem=+8GB").target.cpu_bytes == 2 * given.target.cpu_bytes
    assert changed(given, "gpu-mem=-1GB").target.gpu_bytes == given.target.gpu_bytes - GB
    assert changed(given, "gpu-mem=-999GB").target.gpu_bytes == 0
    assert changed(given, "disk=0GB").target.disk_bytes == 0


def test_changes_joined_with_a_comma_are_made_together() -> None:
    """Each of them, and nothing else."""
    problem = problem_of(small_opt(), gpu=GB)
    both = changed(problem, "gpu-mem=2GB, pcie=x2")
    assert both == changed(changed(problem, "pcie=x2"), "gpu-mem=2GB")
    assert both.target.gpu_bytes == 2 * GB
    assert both.rates.h2d.best == 2 * problem.rates.h2d.best


def test_a_faster_link_moves_bytes_faster_and_starts_no_sooner() -> None:
    """Twice the bandwidth halves large copies; what a small one takes beside its bytes remains."""
    problem = problem_of(small_opt())
    problem = replace(problem, rates=replace(problem.rates, h2d=Curve(((1e6, 5e9), (1e9, 10e9)))))
    twice = changed(problem, "pcie=x2").rates
    assert twice.h2d.at(1e9) == pytest.approx(20e9)
    latency = 1e6 / 5e9 - 1e6 / 10e9
    assert 1e6 / twice.h2d.at(1e6) == pytest.approx(latency + 1e6 / 20e9)
    assert changed(replace(problem, rates=twice), "pcie=x0.5").rates.h2d.at(1e6) == pytest.approx(5e9)


ROUNDING = 1e-12
"""Sums of floats in another order."""


@pytest.mark.parametrize("part", ["pcie", "disk-rate", "gpu-rate", "cpu-rate"])
def test_a_faster_part_never_makes_a_policy_slower(part: str) -> None:
    """The same policies, priced on the faster and on the slower machine."""
    problem = problem_of(small_opt())
    faster, slower = changed(problem, f"{part}=x2"), changed(problem, f"{part}=x0.5")
    for policy in (policy_of(), policy_of(ON_GPU, ON_CPU, ON_GPU, cpu_attention=0.5)):
        slow, now, fast = (
            machine.plan(policy).prediction.throughput_tokens_per_s for machine in (slower, problem, faster)
        )
        assert slow <= now * (1 + ROUNDING) <= fast * (1 + 2 * ROUNDING)


MISTAKES = {
    "foo=x2": "--what-if 'foo=x2' is not understood; write gpu-mem",
    "pcie=2": "--what-if 'pcie=2' is not understood",
    "pcie=x0": "'0' is not a positive number",
    "pcie=xnan": "'nan' is not a positive number",
    "cpu-mem": "--what-if 'cpu-mem' is not understood",
    "cpu-mem=lots": "size 'lots' is not understood",
    "cpu-mem=+-3GB": "size '-3GB' must not be negative",
    "disk=x": "'' is not a positive number",
    "gpus=0": "--what-if 'gpus=0' is not understood",
    "gpus=1.5": "--what-if 'gpus=1.5' is not understood",
    "pcie=x2,": "--what-if 'pcie=x2,' is not understood",
    "": "--what-if '' is not understood",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_change_that_makes_no_sense_is_named(text: str) -> None:
    """The value as it was written, and the forms there are."""
    with pytest.raises(UserError) as error:
        parse_changes(text)
    assert MISTAKES[text] in str(error.value)
    assert "cpu-mem=256GB" in str(error.value)


@pytest.mark.parametrize("text", ["gpu-mem=+8GB", "pcie=x2", "gpu-rate=x2", "gpus=2"])
def test_a_gpu_that_is_not_there_cannot_be_changed(text: str) -> None:
    """Its rates are not known, so nothing is made up."""
    profile = load_profile("two-core")
    with pytest.raises(UserError, match=f"--what-if {text.replace('+', '.')}: profile two-core has no GPU"):
        changed(problem_of(small_opt(), profile), text)


def test_an_emulated_gpu_is_as_fast_as_the_cores() -> None:
    """Neither its rate nor its number can be changed; the cores' can, and it computes faster then."""
    profile = emulated()
    problem = problem_of(small_opt(), profile)
    for text in ("gpu-rate=x2", "gpus=2"):
        with pytest.raises(UserError, match="ask for cpu-rate"):
            changed(problem, text)
    assert changed(problem, "cpu-rate=x2").rates.gemm.best == 2 * problem.rates.gemm.best


def parts(changes: list[tuple[Change, ...]]) -> list[str]:
    """What is changed, each by itself."""
    return [change.part for (change,) in changes]


def test_a_unit_more_is_asked_of_what_there_is() -> None:
    """A machine without a GPU or a disk is not asked for more of it."""
    full = ["gpu-mem", "cpu-mem", "disk", "disk-rate", "pcie", "gpu-rate", "cpu-rate", "gpus"]
    assert parts(unit_changes(problem_of(small_opt()))) == full
    assert parts(unit_changes(problem_of(small_opt(), disk=0))) == [
        part for part in full if not part.startswith("disk")
    ]
    host = replace(load_profile("two-core"), disk=None)
    assert parts(unit_changes(problem_of(small_opt(), host))) == ["cpu-mem", "cpu-rate"]
    with pytest.raises(UserError, match="has no disk whose rates could be taken"):
        changed(problem_of(small_opt(), host), "disk=1GB")


def test_more_memory_is_never_slower() -> None:
    """Tier by tier, in growing steps; less memory is never faster."""
    problem = problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=500 * MB, disk=2 * GB)
    for part, sizes in (("gpu-mem", (50, 100, 400)), ("cpu-mem", (100, 300, 900))):
        now, *more, less = asked(problem, *(f"{part}=+{size}MB" for size in sizes), f"{part}=-20MB")
        rates = [answer.tokens_per_s or 0.0 for answer in (less, now, *more)]
        assert rates == sorted(rates)
        assert all((answer.gain or 0.0) >= 0 for answer in more)
    assert rates[-1] > 1.05 * rates[1]


def test_each_answer_is_that_of_a_search() -> None:
    """On the changed machine, at least as good as the search for it; the gain is over the machine as it is."""
    problem = problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=500 * MB, num_prompts=24)
    now, faster = asked(problem, "pcie=x2")
    machine = changed(problem, "pcie=x2")
    found = search(machine, Request())
    assert found is not None
    assert now.tokens_per_s is not None
    assert faster.tokens_per_s is not None
    assert faster.policy is not None
    assert faster.tokens_per_s >= score(machine, found)
    assert faster.tokens_per_s == score(machine, machine.plan(faster.policy))
    assert machine.fits(faster.policy)
    assert faster.gain == pytest.approx(faster.tokens_per_s / now.tokens_per_s - 1)
    assert set(faster.binding) == {"prefill", "decode"}


def test_a_given_policy_is_first_searched_for() -> None:
    """What a change brings is told from what any search would have brought; the plan's bits are kept."""
    problem = problem_of(small_opt(num_layers=12), gpu=GB)
    plan = problem.plan(policy_of(kv_bits=4))
    now, more = what_ifs(problem, plan, [parse_changes("gpu-mem=+1GB")])
    assert now.gain is not None
    assert now.gain > 0
    assert now.differs
    assert now.policy is not None
    assert (now.policy.weight_bits, now.policy.kv_bits) == (16, 4)
    assert more.tokens_per_s is not None
    assert now.tokens_per_s is not None
    assert more.gain == pytest.approx(more.tokens_per_s / now.tokens_per_s - 1)


def test_the_request_is_kept() -> None:
    """A search that excluded attention on the CPU, or long blocks, excludes them on any machine."""
    problem = problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=GB)
    free = search(problem, Request())
    assert free is not None
    seconds = (free.prediction.prefill.seconds + free.prediction.decode.seconds) / 2
    for answer in asked(problem, "cpu-mem=+1GB", request=Request(cpu_attention="off", max_latency_s=seconds)):
        assert answer.policy is not None
        assert answer.policy.cpu_attention == 0
        assert answer.tokens_per_s is not None
        assert answer.policy.block_size * 16 / answer.tokens_per_s <= seconds


def test_what_does_not_fit_says_why() -> None:
    """No figure, and the sentence a search would give."""
    _, less = asked(problem_of(small_opt(), gpu=300 * MB, cpu=500 * MB), "cpu-mem=60MB,disk=0GB")
    assert (less.tokens_per_s, less.gain, less.policy, less.differs) == (None, None, None, ())
    assert less.failure is not None
    assert "does not fit" in less.failure


def test_a_second_gpu_is_a_bound() -> None:
    """As fast at least as one GPU, and as one with twice of each thing; it is said to be a bound."""
    problem = problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=500 * MB)
    now, two, memory = asked(problem, "gpus=2", "gpu-mem=x2,pcie=x2,gpu-rate=x2")
    assert two.is_bound
    assert not memory.is_bound
    assert now.tokens_per_s is not None
    assert two.tokens_per_s is not None
    assert memory.tokens_per_s is not None
    assert two.tokens_per_s >= now.tokens_per_s
    assert two.tokens_per_s >= memory.tokens_per_s * 0.99  # which has one context, not two


def test_what_a_plan_does_otherwise_is_named() -> None:
    """Batches, bits, tiers and attention; a policy does nothing that it does not do."""
    before = policy_of(ON_CPU, ON_CPU, ON_CPU, size=4, batches=2)
    after = policy_of(ON_GPU, ON_CPU, ON_CPU, size=8, batches=2, kv_bits=4, cpu_attention=0.5)
    assert differences(before, before) == []
    assert differences(before, after) == [
        "gpu batch 4 x 2 to 8 x 2",
        "cache 16 to 4 bits",
        "weights on gpu 0% to 100%",
        "attended on the CPU 0% to 50%",
    ]
