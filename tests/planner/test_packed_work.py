"""What 4 bits cost: at the profile's rates where it has them, else by the bytes that plain torch moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.packed_work import PackedRates
from planner.plan import Plan
from planner.problem import Problem
from tests.planner.problems import ON_CPU, ON_GPU, emulated, policy_of, problem_of, small_opt, small_t4

RATES = PackedRates(unpack=1e8, pack=5e7, attend=2e8, issue_s=0.0)
POLICY = policy_of(ON_GPU, ON_GPU, ON_GPU, size=4, batches=1, weight_bits=4, kv_bits=4)


def with_rates(packed: PackedRates | None) -> Problem:
    """A host whose emulated GPU computes."""
    problem = problem_of(small_opt(), emulated(), prompt_len=32, gen_len=2)
    return replace(problem, rates=replace(problem.rates, packed=packed))


def compute_s(problem: Problem, phase: str) -> float:
    """Of all compute tasks of a phase, with the policy."""
    plan: Plan = problem.plan(POLICY)
    return sum(
        task.seconds for task in plan.prediction.tasks if (task.phase, task.kind) == (phase, "compute")
    )


def test_weights_are_unpacked_once_a_pass() -> None:
    """Half the rate, twice the time of all quantised values."""
    model = with_rates(RATES).model
    values = sum(tensor.numel for layer in model.layers for tensor in layer.tensors if tensor.quantizable)
    slower = compute_s(with_rates(replace(RATES, unpack=RATES.unpack / 2)), "decode")
    assert slower - compute_s(with_rates(RATES), "decode") == pytest.approx(values / RATES.unpack)


def test_a_prompt_is_packed_and_not_read_packed() -> None:
    """K and V of 4 sequences of 32 tokens; how fast packed ones are attended to is decode's business."""
    model = with_rates(RATES).model
    values = 2 * model.kv_dim * len(model.layers) * 4 * 32
    slower = compute_s(with_rates(replace(RATES, pack=RATES.pack / 2)), "prefill")
    assert slower - compute_s(with_rates(RATES), "prefill") == pytest.approx(values / RATES.pack)
    assert compute_s(with_rates(replace(RATES, attend=1.0)), "prefill") == compute_s(
        with_rates(RATES), "prefill"
    )


def test_decode_attends_to_what_is_packed() -> None:
    """33 tokens of each sequence at that rate, in place of unpacking the 32 cached ones and of attention's own."""
    model = with_rates(RATES).model
    values = 2 * model.kv_dim * len(model.layers) * 4 * 33
    slower = compute_s(with_rates(replace(RATES, attend=1e8)), "decode")
    assert slower - compute_s(with_rates(RATES), "decode") == pytest.approx(values / 1e8 - values / 2e8)
    unpacked = compute_s(with_rates(replace(RATES, attend=None)), "decode")
    assert unpacked - compute_s(with_rates(RATES), "decode") > values * 32 / 33 / RATES.unpack - values / 2e8


def test_the_cpu_attends_to_what_is_packed_beside_a_gpu() -> None:
    """33 tokens of each sequence at that rate; without one it reads K and V unpacked and unpacks the 32 cached ones."""
    problem = problem_of(small_opt(), small_t4(), prompt_len=32, gen_len=2)
    policy = policy_of(ON_GPU, ON_CPU, ON_GPU, size=4, batches=2, kv_bits=4, cpu_attention=1.0)
    rates, model = problem.rates, problem.model
    values = 2 * model.kv_dim * len(model.layers) * 8
    num_tasks = 2 * len(model.layers)

    def attend_s(packed: float | None) -> float:
        plan = replace(problem, rates=replace(rates, cpu_packed_attention_values_per_s=packed)).plan(policy)
        found = [task.seconds for task in plan.prediction.tasks if task.kind == "attend"]
        return sum(found) - num_tasks * rates.task_overhead_s

    assert attend_s(1e8) == pytest.approx(values * 33 / 1e8)
    read = values * 33 * 2 / rates.cpu_attention_bytes_per_s
    assert attend_s(None) == pytest.approx(read + values * 32 * 29 / rates.cpu_memory_bytes_per_s)


def test_older_profiles_are_priced_by_bytes() -> None:
    """27 + 2 bytes for a float16 value at the memory's rate."""
    problem = with_rates(None)
    model, rate = problem.model, problem.rates.memory_bytes_per_s
    values = sum(tensor.numel for layer in model.layers for tensor in layer.tensors if tensor.quantizable)
    plain = problem.plan(replace(POLICY, weight_bits=16))
    without = sum(
        task.seconds for task in plain.prediction.tasks if (task.phase, task.kind) == ("decode", "compute")
    )
    assert compute_s(problem, "decode") - without == pytest.approx(values * 29 / rate)
