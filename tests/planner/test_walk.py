"""The walk: the best gpu batch size is found whatever integer it is."""

from __future__ import annotations

import math
from itertools import product

import pytest

from hwprofiles.profile import load_profile
from planner.candidate import Candidate
from planner.problem import Problem
from planner.request import Request
from planner.shares import Way
from planner.walk import Walk
from tests.planner.problems import GB, MB, problem_of, small_opt, with_lengths

LOSSLESS = Request(cpu_attention="off")
FROM_MEMORY = [Way(moves_activations=moves, attends=False, disk="none") for moves in (False, True)]


def walk_of(problem: Problem, request: Request = LOSSLESS) -> Walk:
    return Walk(problem=problem, request=request, weight_bits=16, kv_bits=16)


def best_of(walk: Walk) -> Candidate:
    found = [candidate for curve in walk.free() for candidate in walk.whole(curve)]
    return min(found, key=walk.promise)


def exhaustive(walk: Walk, most: int) -> float:
    """The least seconds per prompt over every gpu batch size, number and chunk, with blocks of up to `most`."""
    best = math.inf
    for size in range(1, most + 1):
        chunks = {max(1, walk.problem.prefill_rows(size) // less) for less in (1, 2, 4, 8, 16)}
        for count, rows in product(range(1, most // size + 1), chunks):
            found = (walk._exactly(size, count, way, rows) for way in FROM_MEMORY)
            best = min(best, *(walk.promise(one) if one else math.inf for one in found))
    return best


@pytest.mark.parametrize(("cpu", "gpu"), [(1150, 420), (700, 180), (700, 300)])
def test_the_best_integer_is_found(cpu: int, gpu: int) -> None:
    """All at home or some of it in host memory: as good as trying all block shapes, to 0.5%."""
    problem = problem_of(small_opt(8, 1024), gpu=gpu * MB, cpu=cpu * MB, disk=0, prompt_len=256, gen_len=16)
    walk = walk_of(problem)
    assert walk.promise(best_of(walk)) <= exhaustive(walk, 30) * 1.005


@pytest.mark.parametrize(
    ("layers", "hidden", "gpu", "cpu", "prompt_len", "gen_len", "prompts"),
    [
        (8, 512, 100, 300, 256, 48, 96),  # one gpu batch, prompt by prompt, so that the weights stay
        (6, 1024, 130, 300, 256, 4, None),  # smaller chunks leave room for one gpu batch more
        (8, 512, 130, 1150, 128, 16, 37),  # a size in six chunks, five, four or three
        (12, 1024, 800, 1150, 512, 48, 96),  # the next size that divides the prompts, in small chunks
    ],
)
def test_chunks_and_blocks_are_found_together(
    layers: int, hidden: int, gpu: int, cpu: int, prompt_len: int, gen_len: int, prompts: int | None
) -> None:
    """As good as trying all block shapes and chunks, where one is only good with the other."""
    limits = {"gpu": gpu * MB, "cpu": cpu * MB, "disk": 0}
    model = small_opt(layers, hidden)
    problem = problem_of(model, prompt_len=prompt_len, gen_len=gen_len, num_prompts=prompts, **limits)
    walk = walk_of(problem)
    assert walk.promise(best_of(walk)) <= exhaustive(walk, 30) * 1.005


def test_sizes_that_do_not_fit_do_not_crowd_out_those_that_do() -> None:
    """On a GPU for two sequences at a time the best block is found, though larger batches would divide the prompts."""
    lengths = [(700, 16)] * 4 + [(40, 16)] * 600
    walk = walk_of(with_lengths(problem_of(small_opt(), gpu=130 * MB, disk=0), lengths))
    assert walk.promise(best_of(walk)) <= exhaustive(walk, 30) * 1.005


@pytest.mark.parametrize("prompts", [37, 48, 74, 96, 111])
def test_prompts_are_divided_evenly(prompts: int) -> None:
    """37 prompts are five gpu batches of 8: blocks leave few rows empty."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=32, num_prompts=prompts)
    block = round(best_of(walk_of(problem)).block_size)
    assert block * math.ceil(prompts / block) <= prompts * 1.09


def test_a_kink_between_powers_of_two_is_found() -> None:
    """60 sequences fit beside the weights of OPT-175B in 4 bits: not 64, and not three of 16."""
    problem = problem_of(
        "opt-175b", load_profile("h200-host"), prompt_len=512, gen_len=32, gpu=16 * GB, disk=0
    )
    walk = Walk(problem=problem, request=LOSSLESS, weight_bits=4, kv_bits=4)
    best = best_of(walk)
    assert 52 <= best.block_size <= 56
    free = min(curve.least for curve in walk.free())
    assert best.seconds_per_sequence <= free * 1.02


def test_nothing_is_solved_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second walk over the same ground asks the solver nothing."""
    walk = walk_of(problem_of(small_opt(), cpu=1 * GB))
    best = best_of(walk)
    monkeypatch.setattr("planner.lp.minimised", lambda _: pytest.fail("solved again"))
    assert best_of(walk) == best
