"""Final figures: simulated, with the closed formula's beside them, and coherent from the block to the job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.profile import load_profile
from planner.model import ModelSpec
from planner.plan import PHASES
from planner.predict import as_simulated
from planner.pricing import price
from planner.request import Request
from planner.sample import representative
from planner.search import search
from planner.simulate import simulate
from tests.planner.problems import GB, ON_CPU, ON_DISK, ON_GPU, policy_of, problem_of, small_opt


def test_a_plan_holds_the_simulators_times_and_the_formulas() -> None:
    """Both phases as simulated in full, to a percent; beside them what pricing says."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=8)
    plan = problem.plan(policy_of(ON_DISK, ON_DISK, ON_CPU, size=16, batches=4, prefill_rows=8))
    sizes = plan.sizes()
    whole, formula = simulate(sizes, problem.rates, representative(sizes, 8)), price(sizes, problem.rates)
    for phase in PHASES:
        predicted = plan.prediction.of(phase)
        assert predicted.seconds == pytest.approx(whole.phases[phase].seconds, rel=0.01)
        assert predicted.formula_s == formula.of(phase).seconds
        assert predicted.busy_s["disk_read"] == pytest.approx(
            whole.phases[phase].busy_s["disk_read"], rel=0.02
        )
    assert plan.prediction.prefill.beyond_formula > 1.05
    tokens = 64 * 8
    assert plan.prediction.throughput_tokens_per_s == pytest.approx(tokens / plan.prediction.seconds)
    assert plan.prediction.tasks == formula.tasks


def test_what_has_no_lane_can_bind() -> None:
    """Host memory that several lanes share binds where it is busier than any of them."""
    problem = problem_of(small_opt(), gen_len=4)
    slow = replace(problem, rates=replace(problem.rates, cpu_memory_bytes_per_s=1e8))
    decode = slow.plan(policy_of(ON_CPU, ON_CPU, ON_CPU)).prediction.decode
    assert decode.binding == "cpu_mem"
    assert decode.busy_s["cpu_mem"] <= decode.seconds * 1.001


def test_a_single_token_has_no_decode() -> None:
    """Nothing divides by zero, in the plan or in its job."""
    plan = problem_of(small_opt(), gen_len=1, num_prompts=20).plan(policy_of())
    assert plan.prediction.decode.seconds == 0
    assert plan.prediction.decode.beyond_formula == 1
    assert plan.job is not None
    assert plan.job.decode_s == 0


def test_a_job_is_stretched_as_its_block() -> None:
    """Three full blocks take three times the simulated block, and a report's blocks as much longer."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=4, num_prompts=192)
    plan = problem.plan(policy_of(ON_DISK, ON_DISK, ON_CPU, size=16, batches=4, prefill_rows=8))
    assert plan.job is not None
    assert plan.job.prefill_s == pytest.approx(3 * plan.prediction.prefill.seconds)
    assert plan.job.decode_s == pytest.approx(3 * plan.prediction.decode.seconds)
    assert plan.job.throughput_tokens_per_s == pytest.approx(plan.prediction.throughput_tokens_per_s)
    formula = problem.draft(plan.policy).prediction
    assert as_simulated(formula, plan.prediction).seconds == pytest.approx(plan.prediction.seconds)


def test_the_chosen_plan_is_the_fastest_simulated() -> None:
    """No plan that the search placed is faster by more than the simpler one may give away."""
    problem = problem_of("opt-175b", load_profile("h200-host"), prompt_len=512, gen_len=32, gpu=16 * GB)
    met = []
    chosen = search(problem, Request(weight_bits="4", kv_bits="4"), keep=met.append)
    assert chosen is not None
    assert len(met) > 1
    best = max(problem.plan(plan.policy).throughput_tokens_per_s for plan in met)
    assert chosen.throughput_tokens_per_s >= best * 0.99
    whole = simulate(chosen.sizes(), problem.rates)
    assert chosen.prediction.seconds == pytest.approx(whole.seconds, rel=0.01)


def test_in_gpu_memory_formula_and_simulation_agree() -> None:
    """With nothing to move there is nothing to wait for, but for the host, which is early for decode's first passes."""
    problem = problem_of(small_opt(), gen_len=16)
    for phase in PHASES:
        predicted = problem.plan(policy_of(ON_GPU, ON_GPU, ON_GPU)).prediction.of(phase)
        assert 0.8 < predicted.beyond_formula < 1.05


def test_a_plan_that_was_searched_is_predicted_as_one_that_is_given() -> None:
    """What the search compares plans by leaves nothing in the figures of the block, or of the job."""
    problem = problem_of(
        "opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=8, num_prompts=24, cpu=8 * GB, gpu=4 * GB
    )
    searched = search(problem, Request())
    assert searched is not None
    assert searched.prediction.decode.beyond_formula > 1.001
    given = problem.plan(searched.policy)
    assert searched.job is not None
    assert given.job is not None
    assert searched.prediction.seconds == pytest.approx(given.prediction.seconds)
    assert searched.job.seconds == pytest.approx(given.job.seconds)


@pytest.mark.parametrize(("model", "batches"), [("opt-6.7b", 3), ("opt-6.7b", 8), (small_opt(), 2)])
@pytest.mark.parametrize("num_prompts", [None, 200])
def test_a_compared_plan_is_finished_as_if_it_were_new(
    model: str | ModelSpec, batches: int, num_prompts: int | None
) -> None:
    """Whether the comparison played as much as the final figure needs or less; the job with it."""
    problem = problem_of(model, load_profile("t4-host"), prompt_len=64, gen_len=16, num_prompts=num_prompts)
    draft = problem.draft(policy_of(ON_CPU, ON_CPU, ON_CPU, size=8, batches=batches), max_decode_groups=2)
    compared = problem.compared(draft)
    assert compared.prediction != problem.predicted(draft).prediction
    assert problem.finished(compared) == problem.predicted(draft)
