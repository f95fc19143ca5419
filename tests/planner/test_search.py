"""The search: plans that keep every limit, beat simple policies and fit the number of prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from planner.plan import Plan, load_plan
from planner.policy import Bits, Split
from planner.problem import Problem
from planner.request import Request
from planner.search import DISK_WORTH_IT, score, search
from planner.shortage import explain_shortage
from tests.planner.problems import (
    GB,
    MB,
    ON_CPU,
    ON_DISK,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_mixtral,
    small_opt,
)


def found(problem: Problem, request: Request | None = None) -> Plan:
    plan = search(problem, request or Request())
    assert plan is not None
    assert plan.ledger.shortfalls(problem.target) == {}
    return plan


def test_a_plan_says_what_it_was_searched_for(tmp_path: Path) -> None:
    """The request is in the file and comes back; a file without one is that of a given policy."""
    request = Request(weight_bits="auto", kv_bits="4", cpu_attention="off", max_latency_s=1e6)
    plan = found(problem_of(small_opt(), num_prompts=4), request)
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml())
    assert load_plan(path).request == request
    data = yaml.safe_load(plan.to_yaml())
    del data["request"]
    path.write_text(yaml.safe_dump(data))
    assert load_plan(path) == replace(plan, request=None)


BASELINES = {
    "all on gpu": policy_of(ON_GPU, ON_GPU, ON_GPU),
    "weights on cpu": policy_of(ON_CPU, ON_GPU, ON_GPU),
    "all on cpu": policy_of(ON_CPU, ON_CPU, ON_GPU),
    "all on disk": policy_of(ON_DISK, ON_DISK, ON_GPU),
    "FlexGen's for OPT-30B": policy_of(Split(gpu=0.2, cpu=0.8, disk=0), ON_CPU, ON_CPU),
    "cpu attention": policy_of(ON_CPU, ON_CPU, ON_GPU, cpu_attention=1.0),
}


@pytest.mark.parametrize(
    ("model", "prompts"), [("opt-6.7b", None), ("opt-30b", None), ("llama-3.1-8b", None), ("opt-30b", 24)]
)
def test_no_simple_policy_is_better(model: str, prompts: int | None) -> None:
    """The plan is priced no worse than any simple policy that fits, over many block shapes."""
    problem = problem_of(
        model, load_profile("t4-host"), prompt_len=512, gen_len=32, cpu=128 * GB, num_prompts=prompts
    )
    best = score(problem, found(problem))
    for name, baseline in BASELINES.items():
        for size, batches in ((1, 1), (2, 1), (4, 2), (8, 3), (12, 2), (24, 1), (32, 1), (32, 8), (64, 4)):
            policy = replace(
                baseline,
                gpu_batch_size=size,
                num_gpu_batches=batches,
                prefill_rows=problem.prefill_rows(size),
            )
            if problem.fits(policy) and (prompts is None or size * batches <= prompts):
                assert score(problem, problem.plan(policy)) <= best * 1.005, (name, size, batches)


@pytest.mark.parametrize("megabytes", [650, 700, 750])
def test_having_a_disk_does_not_make_the_plan_worse(megabytes: int) -> None:
    """What fits without one is compared with what uses it, even where the formulas promise more of the latter."""
    model, cpu = small_opt(num_layers=24), megabytes * MB
    without = problem_of(model, gpu=300 * MB, cpu=cpu, disk=0)
    problem = problem_of(model, gpu=300 * MB, cpu=cpu)
    assert score(problem, found(problem)) >= score(without, found(without)) * (1 - DISK_WORTH_IT)


def test_gpu_batches_are_not_only_powers_of_two() -> None:
    """FlexGen's walk cannot reach its own 48; ours takes any size."""
    profile = load_profile("t4-host")
    problems = (problem_of("opt-30b", profile, prompt_len=length, gen_len=32) for length in (400, 512))
    sizes = [found(problem).policy.gpu_batch_size for problem in problems]
    assert any(size & (size - 1) for size in sizes)


@pytest.mark.parametrize("prompts", [1, 3, 10, 50])
def test_a_small_job_gets_a_small_block(prompts: int) -> None:
    """A block is no larger than it takes to hold all prompts."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, num_prompts=prompts)
    policy = found(problem).policy
    assert policy.gpu_batch_size <= prompts
    assert policy.gpu_batch_size * (policy.num_gpu_batches - 1) < prompts


def test_prompts_divide_evenly_into_blocks() -> None:
    """Ten prompts that fit in one block are not run as eight and two."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=32, num_prompts=10)
    assert found(problem).policy.block_size == 10


def test_a_latency_limit_is_kept() -> None:
    """Prefill and decode of a block stay within the limit, at a lower throughput."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, gen_len=32)
    free = found(problem)
    quick = found(problem, Request(max_latency_s=200))
    prediction = quick.prediction
    assert prediction.prefill.seconds + prediction.decode.seconds <= 200
    assert prediction.throughput_tokens_per_s < free.prediction.throughput_tokens_per_s


def test_an_impossible_latency_is_named() -> None:
    """The error says what one sequence takes."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512)
    request = Request(max_latency_s=1)
    assert search(problem, request) is None
    assert "--max-latency" in explain_shortage(problem, request)


def test_bits_stay_lossless_unless_asked() -> None:
    """The default is 16 bit; 4 takes 4; auto takes what is faster, only where it was said."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gpu=8 * GB)
    plans = {
        "16": found(problem),
        "4": found(problem, Request(weight_bits="4", kv_bits="4")),
        "auto": found(problem, Request(weight_bits="auto")),
    }
    wanted: dict[str, tuple[Bits, Bits]] = {"16": (16, 16), "4": (4, 4)}
    for name, bits in wanted.items():
        assert (plans[name].policy.weight_bits, plans[name].policy.kv_bits) == bits
    assert plans["auto"].policy.kv_bits == 16
    assert score(problem, plans["auto"]) >= score(problem, plans["16"]) * 0.99


def test_a_model_without_replaceable_attention_attends_on_the_gpu() -> None:
    """Attention on the CPU is not chosen where the family cannot do it, and refused where it is asked for."""
    model = replace(small_opt(), cpu_attention=False)
    problem = problem_of(model, gpu=120 * MB)
    assert found(problem).policy.cpu_attention == 0
    with pytest.raises(UserError, match="--cpu-attention off"):
        search(problem, Request(cpu_attention="on"))


def test_a_host_without_a_gpu_computes_on_the_cpu() -> None:
    """Nothing is on the gpu tier, and a tight memory cap sends weights to disk."""
    problem = problem_of(small_opt(), load_profile("two-core"), prompt_len=32, cpu=560 * MB)
    plan = found(problem)
    assert plan.ledger.peak_bytes("gpu") == 0
    assert plan.ledger.peak_bytes("disk") > 0
    assert plan.prediction.decode.binding in ("cpu", "cpu_mem", "disk_read")


def test_an_emulated_gpu_and_its_host_fit_together() -> None:
    """The arena lies in host memory, so that both ledgers together stay within the host's."""
    profile = emulated()
    host = replace(profile.host, memory_bytes=1100 * MB, process_bytes=400 * MB)
    problem = problem_of(small_opt(), replace(profile, host=host), prompt_len=32)
    plan = found(problem)
    assert plan.ledger.peak_bytes("gpu") + plan.ledger.peak_bytes("cpu") <= host.memory_bytes


def test_experts_are_placed_too() -> None:
    """A mixture of experts under tight memory is found a plan over the tiers."""
    problem = problem_of(small_mixtral(), gpu=90 * MB, cpu=120 * MB, prompt_len=32)
    assert found(problem).ledger.peak_bytes("cpu") > 0


def test_the_search_is_repeatable() -> None:
    """The same question has the same answer."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512)
    assert found(problem).to_yaml() == found(problem).to_yaml()


def test_what_would_fit_is_named_and_does() -> None:
    """For a model too large for all tiers together each remedy is a limit of one tier."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, cpu=20 * GB, disk=5 * GB)
    assert search(problem, Request()) is None
    message = explain_shortage(problem, Request())
    assert "on disk instead of 4.7 GiB" in message
    assert "--weight-bits 4" in message
    assert search(problem, Request(weight_bits="4")) is not None
    enough = int(message.split(" GiB on disk instead")[0].split()[-1].partition(".")[0]) + 1
    larger = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, cpu=20 * GB, disk=enough * 2**30)
    assert search(larger, Request()) is not None
