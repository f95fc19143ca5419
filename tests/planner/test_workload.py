"""Workloads of real lengths: their blocks, the passes of those, and what a job of them costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from hwprofiles.yaml_io import from_plain
from planner.batching import BatchLengths, BlockLengths, Lengths, block_bounds, longest_first
from planner.passes import mean_steps, runs_of
from planner.plan import PHASES, Plan
from planner.predict import predict
from planner.pricing import price_blocks
from planner.problem import Problem
from planner.request import Request
from planner.search import search
from planner.workload import Workload
from tests.planner.problems import MB, ON_CPU, ON_DISK, ON_GPU, policy_of, problem_of, small_opt, with_lengths

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=50)
SPREAD = [(8 * (n % 60) + 5, (4, 16, 40)[n % 3]) for n in range(200)]


def by_hand(lengths: Lengths, size: int, batches: int) -> list[BlockLengths]:
    """The blocks, one prompt after the other."""
    ordered = sorted(lengths, reverse=True)
    blocks = []
    for start in range(0, len(ordered), size * batches):
        rows = ordered[start : start + size * batches]
        groups = -(-len(rows) // size)
        cuts = [len(rows) * group // groups for group in range(groups + 1)]
        dealt = [rows[first:end] for first, end in pairwise(cuts)]
        blocks.append(
            tuple(
                BatchLengths(len(b), max(p for p, _ in b), max(g for _, g in b), sum(p for p, _ in b))
                for b in dealt
            )
        )
    return blocks


@given(LENGTHS, st.integers(1, 6), st.integers(1, 4))
def test_blocks_are_those_dealt_by_hand(lengths: list[tuple[int, int]], size: int, batches: int) -> None:
    """From a histogram come the blocks that sorting every prompt gives; none is lost."""
    workload = Workload.of_lengths(lengths, 16)
    assert workload.blocks(size, batches) == Counter(by_hand(lengths, size, batches))
    assert workload.prompt_tokens == sum(prompt_len for prompt_len, _ in lengths)
    assert workload.gen_tokens == sum(gen_len for _, gen_len in lengths)
    assert (workload.prompt_len, workload.gen_len) == tuple(map(max, zip(*lengths, strict=True)))


@given(LENGTHS, st.integers(1, 6), st.integers(1, 4))
def test_the_executors_order_makes_the_same_blocks(
    lengths: list[tuple[int, int]], size: int, batches: int
) -> None:
    """Positions in the order of a job, which the executor deals by, lead to the same blocks."""
    order = longest_first(lengths)
    dealt = [
        tuple([lengths[order[n]] for n in batch] for batch in block)
        for block in block_bounds(len(order), size, batches)
    ]
    expected = by_hand(lengths, size, batches)
    assert [tuple(len(batch) for batch in block) for block in dealt] == [
        tuple(batch.rows for batch in block) for block in expected
    ]
    assert [tuple(sum(p for p, _ in batch) for batch in block) for block in dealt] == [
        tuple(batch.prompt_tokens for batch in block) for block in expected
    ]


@pytest.mark.parametrize("prompts", [1, 7, 8, 9, 10**9])
def test_alike_prompts_are_counted_not_listed(prompts: int) -> None:
    """A billion alike prompts are one kind of block, and the last one."""
    blocks = Workload(prompt_len=5, gen_len=2, num_prompts=prompts).blocks(4, 2)
    assert sum(batch.rows * n for block, n in blocks.items() for batch in block) == prompts
    assert len(blocks) <= 2


@given(LENGTHS, st.integers(1, 6), st.integers(1, 4))
def test_no_pass_is_lost(lengths: list[tuple[int, int]], size: int, batches: int) -> None:
    """The few steps stand for as many passes, new tokens and attended ones as walking over all blocks counts."""
    blocks = Workload.of_lengths(lengths, 16).blocks(size, batches)
    prompts = new = pairs = passes = attended = 0.0
    for block, count in blocks.items():
        prompts += count
        new += count * sum(b.rows * b.prompt_len for b in block)
        pairs += count * sum(b.rows * b.prompt_len**2 for b in block)
        passes += count * (max(b.gen_len for b in block) - 1)
        attended += count * sum(b.rows * (b.prompt_len + i) for b in block for i in range(1, b.gen_len))
    runs = runs_of(blocks)
    steps = [(sum(run.batch_rows), step) for run in runs for step in run.steps]
    prefill = [(rows, step) for rows, step in steps if step.phase == "prefill"]
    decode = [(rows, step) for rows, step in steps if step.phase == "decode"]
    assert sum(step.num_steps for _, step in prefill) == pytest.approx(prompts)
    assert sum(rows * step.num_steps * step.num_new for rows, step in prefill) == pytest.approx(new)
    assert sum(rows * step.num_steps * step.num_pairs for rows, step in prefill) == pytest.approx(pairs)
    assert sum(step.num_steps for _, step in decode) == pytest.approx(passes)
    assert sum(rows * s.num_steps * s.share * s.context for rows, s in decode) == pytest.approx(attended)
    assert len(steps) <= 2 * 3 * 8


@given(LENGTHS, st.integers(1, 6))
def test_mean_steps_are_of_one_block(lengths: list[tuple[int, int]], size: int) -> None:
    """One prefill; as many passes as a gpu batch has on average."""
    blocks = Workload.of_lengths(lengths, 16).blocks(size, 1)
    prefill, *decode = mean_steps(blocks, 3)
    passes = sum((block[0].gen_len - 1) * count for block, count in blocks.items()) / blocks.total()
    assert prefill.num_steps == pytest.approx(1)
    assert sum(step.num_steps for step in decode) == pytest.approx(passes)


POLICIES = {
    "on gpu": policy_of(ON_GPU, ON_GPU, ON_GPU),
    "on cpu": policy_of(ON_CPU, ON_CPU, ON_CPU),
    "on disk": policy_of(ON_DISK, ON_DISK, ON_DISK),
    "4 bit, attended on the cpu": policy_of(
        ON_CPU, ON_CPU, ON_GPU, weight_bits=4, kv_bits=4, cpu_attention=1.0
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_alike_blocks_cost_as_many_times_one(name: str) -> None:
    """Seven blocks of full length take seven times what one takes, task by task."""
    problem = problem_of(small_opt())
    plan = problem.draft(POLICIES[name])
    block = (BatchLengths(4, 128, 16, 4 * 128),) * 2
    seven = price_blocks(plan.sizes(), problem.rates, {block: 7}, 7 * 8 * 16)
    for phase in PHASES:
        one = getattr(plan.prediction, phase)
        assert getattr(seven, phase).seconds == pytest.approx(7 * one.seconds)
    assert seven.throughput_tokens_per_s == pytest.approx(plan.prediction.throughput_tokens_per_s)
    assert [task.count for task in seven.tasks] == [7 * task.count for task in plan.prediction.tasks]


@pytest.mark.parametrize("name", POLICIES)
def test_blocks_together_cost_what_they_cost_apart(name: str) -> None:
    """Pricing like blocks at their mean is within a percent of each by itself: their busiest lanes differ."""
    problem = with_lengths(problem_of(small_opt()), SPREAD)
    plan = problem.draft(POLICIES[name])
    assert plan.job is not None
    sizes, blocks = plan.sizes(), problem.workload.blocks(4, 2)
    apart = [price_blocks(sizes, problem.rates, {block: 1}, 1) for block in blocks.elements()]
    assert plan.job.prefill_s == pytest.approx(sum(one.prefill.seconds for one in apart), rel=1e-2)
    assert plan.job.decode_s == pytest.approx(sum(one.decode.seconds for one in apart), rel=1e-2)


def test_a_job_without_spread_is_the_old_one() -> None:
    """Prompts all as long as the longest, in whole blocks, cost as many blocks as there are."""
    problem = problem_of(small_opt(), num_prompts=24)
    plan = problem.plan(policy_of())
    alike = with_lengths(problem, [(128, 16)] * 24).plan(policy_of())
    assert plan.job is not None
    assert plan.job == alike.job
    assert (plan.job.num_blocks, plan.job.last_block_size, plan.job.padding_tokens) == (3, 8, 0)
    assert plan.throughput_tokens_per_s == pytest.approx(plan.prediction.throughput_tokens_per_s)


def test_a_smaller_last_block_costs_less() -> None:
    """Of nine prompts in blocks of eight the second block holds one, and is not priced as a full one."""
    plan = problem_of(small_opt(), num_prompts=9).plan(policy_of())
    assert plan.job is not None
    block_s = plan.prediction.prefill.seconds + plan.prediction.decode.seconds
    assert (plan.job.num_blocks, plan.job.last_block_size) == (2, 1)
    assert block_s < plan.job.seconds < 1.9 * block_s


def found(problem: Problem, request: Request | None = None) -> Plan:
    plan = search(problem, request or Request())
    assert plan is not None
    assert plan.ledger.shortfalls(problem.target) == {}
    return plan


def test_the_search_is_for_the_job() -> None:
    """With many short prompts and a few long ones, the plan is better for the job than that for the longest alone."""
    lengths = [(700, 16)] * 4 + [(40, 16)] * 600
    problem = with_lengths(problem_of(small_opt(12), gpu=130 * MB, cpu=400 * MB, prompt_len=700), lengths)
    longest = replace(problem, workload=replace(problem.workload, lengths=(), num_prompts=604))
    plan = found(problem)
    rival = problem.plan(found(longest).policy)
    assert plan.throughput_tokens_per_s >= 0.995 * rival.throughput_tokens_per_s


def test_a_limit_on_latency_is_for_the_longest_prompts() -> None:
    """Short prompts on average do not let the longest block take more than was asked for."""
    problem = with_lengths(problem_of(small_opt(), gpu=130 * MB), [(700, 16)] * 4 + [(40, 16)] * 600)
    free = found(problem)
    limit = 0.5 * (free.prediction.prefill.seconds + free.prediction.decode.seconds)
    prediction = found(problem, Request(max_latency_s=limit)).prediction
    assert prediction.prefill.seconds + prediction.decode.seconds <= limit


def test_requests_are_held_as_long_as_they_are() -> None:
    """The ledger counts the prompts' own tokens, so that one long prompt among short ones costs little."""
    lengths = [(1000, 16)] + [(10, 16)] * 10_000
    problem = problem_of(small_opt(), prompt_len=1000)
    alike = replace(problem, workload=replace(problem.workload, num_prompts=len(lengths)))
    held = with_lengths(problem, lengths).plan(policy_of()).ledger.bytes_of("cpu", "requests")
    tokens = 8 * sum(prompt_len for prompt_len, _ in lengths)
    assert 2 * tokens < held < alike.plan(policy_of()).ledger.bytes_of("cpu", "requests") / 5


def test_a_plan_with_lengths_is_read_back() -> None:
    """The histogram, the job and the rates survive the file."""
    plan = with_lengths(problem_of(small_opt()), SPREAD).plan(policy_of())
    assert from_plain(yaml.safe_load(plan.to_yaml()), Plan, "plan") == plan
    assert plan.rates is not None
    assert predict(plan.sizes(), plan.rates) == plan.prediction


def test_lengths_that_do_not_add_up_are_refused() -> None:
    """A histogram edited by hand is named."""
    with pytest.raises(UserError, match="lengths are not those of 3 prompts"):
        Workload(prompt_len=5, gen_len=2, num_prompts=3, lengths=((5, 2, 1),))
