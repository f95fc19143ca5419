"""The LP: its optimum against brute force over the same formulas, and its handling of bad answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pulp
import pytest
from numpy.typing import NDArray

from hwprofiles.profile import load_profile
from planner import lp
from planner.candidate import limits_of, tier_limits
from planner.handover import Failure, Rows, Vector, minimised
from planner.lp import Limits, Solution, shortage, solve
from planner.policy import Tier
from planner.problem import Problem
from planner.relaxed import Relaxed
from planner.request import Request
from planner.shares import Shares, Way
from planner.work import Choice
from tests.planner.problems import GB, MB, emulated, problem_of, small_gemma2, small_opt

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """An amount at many points at once; the formulas cannot tell it from a number."""

    values: Grid

    def __add__(self, other: Points, /) -> Points:
        return Points(self.values + other.values)

    def __mul__(self, factor: float, /) -> Points:
        return Points(self.values * factor)


def relaxed_of(problem: Problem, batches: int | None = 3, *, size: int = 8) -> Relaxed:
    choice = Choice(gpu_batch_size=size, prefill_rows=4, weight_bits=16, kv_bits=16)
    return Relaxed(
        problem=problem,
        choice=choice,
        num_gpu_batches=batches,
        max_decode_groups=3,
    )


def limits(problem: Problem, relaxed: Relaxed, request: Request | None = None) -> Limits:
    return limits_of(problem, request or Request(), relaxed.choice, tier_limits(problem))


def optimum(relaxed: Relaxed, allowed: Limits) -> float:
    """Of the LPs with and without attention on the CPU."""
    found = [
        solve(relaxed, allowed, Way(moves_activations=False, attends=attends)) for attends in (False, True)
    ]
    return min(solution.seconds_per_sequence for solution in found if isinstance(solution, Solution))


def brute_force(relaxed: Relaxed, allowed: Limits) -> float:
    """Least seconds per sequence, with and without attention on the CPU."""
    return min(brute_force_way(relaxed, allowed, attends=attends) for attends in (False, True))


def brute_force_way(relaxed: Relaxed, allowed: Limits, *, attends: bool) -> float:
    """Least seconds per sequence on a grid over five shares, drawn together around its best point.

    A corner of the limits may lie between grid lines, so points drawn at random join the grid.
    """
    random = np.random.default_rng(1)
    best, centre, width = np.inf, np.full(5, 0.5), 0.5
    for _ in range(64):
        low, high = np.clip(centre - width, 0, 1), np.clip(centre + width, 0, 1)
        axes = [np.linspace(a, b, 7) for a, b in zip(low, high, strict=True)]
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
        drawn = random.uniform(low, high, (grid.shape[1], 5)).T
        grid = np.concatenate((grid, drawn), axis=1)
        grid[4] *= attends
        seconds = seconds_at(relaxed, allowed, grid)
        index = int(np.argmin(seconds))
        if seconds[index] < best:
            best, centre = float(seconds[index]), grid[:, index]
        width *= 0.92
    return best


def seconds_at(relaxed: Relaxed, allowed: Limits, grid: Grid) -> Grid:
    """Seconds per sequence; infinite where a limit is broken. Coordinates: weights on gpu, of the rest on cpu;
    cache likewise; of what is off the gpu, the share attended, which is none or at least a row of each gpu batch."""
    assert relaxed.num_gpu_batches
    block = relaxed.num_gpu_batches * relaxed.choice.gpu_batch_size
    shares = shares_at(relaxed, grid, 1 / relaxed.num_gpu_batches, relaxed.weight_units / block)
    slot = np.maximum.reduce([needed.values for needed in relaxed.slots(shares)])
    shares = replace(shares, slot=Points(slot))
    seconds = relaxed.fixed_seconds(shares).values.copy()
    attends = shares.attended.values > 0
    for time in relaxed.times(shares):
        lanes = np.maximum.reduce([lane.values for _, lane in time.lanes])
        blocked = np.maximum.reduce([lane.values for _, lane in time.blocked])
        seconds += np.where(attends, np.maximum(lanes, blocked), lanes)
    seconds[attends & (shares.attended.values < relaxed.cache_units / relaxed.choice.gpu_batch_size)] = np.inf
    for use in relaxed.memory(shares):
        limit = use.inverse_block.values * allowed.tier_bytes[use.tier] / relaxed.unit_bytes
        seconds[use.used.values > limit * (1 + 1e-9)] = np.inf
    return seconds


def shares_at(relaxed: Relaxed, grid: Grid, inverse_batches: float, weights: float) -> Shares[Points]:
    weight_gpu, weight_cpu, cache_gpu, cache_cpu, attended = grid
    one = np.ones_like(weight_gpu)

    def split(gpu: Grid, cpu: Grid, total: float) -> dict[Tier, Points]:
        parts: dict[Tier, Grid] = {"gpu": gpu, "cpu": (1 - gpu) * cpu, "disk": (1 - gpu) * (1 - cpu)}
        return {tier: Points(part * total) for tier, part in parts.items()}

    return Shares(
        weights=split(weight_gpu, weight_cpu, weights),
        cache=split(cache_gpu, cache_cpu, relaxed.cache_units),
        activations=split(one, one, relaxed.activation_units),
        attended=Points((1 - cache_gpu) * attended * relaxed.cache_units),
        slot=Points(one * 0.0),
        inverse_batches=Points(one * inverse_batches),
        one=Points(one),
    )


CASES = {
    "everything tight": {"gpu": 130 * MB, "cpu": 160 * MB},
    "no room on the gpu": {"gpu": 114 * MB},
    "little host memory": {"gpu": 200 * MB, "cpu": 100 * MB},
    "roomy": {"gpu": 2 * GB},
}


@pytest.mark.parametrize("name", CASES)
def test_the_optimum_is_that_of_brute_force(name: str) -> None:
    """Within half a percent, and never worse than the best grid point by more than the tie-breaking term."""
    problem = problem_of(small_opt(), **CASES[name])
    relaxed = relaxed_of(problem)
    allowed = limits(problem, relaxed)
    assert optimum(relaxed, allowed) == pytest.approx(brute_force(relaxed, allowed), rel=0.005)


@pytest.mark.parametrize("caps", [{"gpu": 48 * MB, "cpu": 85 * MB}, {"gpu": 60 * MB}], ids=["tight", "cpu"])
def test_the_optimum_with_windows_is_that_of_brute_force(caps: dict[str, int]) -> None:
    """Layers that keep fewer tokens than others: their cache is smaller, and a pass is all layers' lanes together."""
    problem = problem_of(small_gemma2(), **caps)
    relaxed = relaxed_of(problem)
    allowed = limits(problem, relaxed)
    assert optimum(relaxed, allowed) == pytest.approx(brute_force(relaxed, allowed), rel=0.005)


def test_the_optimum_on_an_emulated_gpu_is_that_of_brute_force() -> None:
    """The lanes that share cores are in both."""
    problem = problem_of(small_opt(), emulated(), gpu=120 * MB, cpu=1 * GB, prompt_len=32, gen_len=8)
    relaxed = relaxed_of(problem, batches=2, size=4)
    allowed = limits(problem, relaxed)
    assert optimum(relaxed, allowed) == pytest.approx(brute_force(relaxed, allowed), rel=0.005)


def test_more_memory_is_never_worse() -> None:
    """Each tier's growth leaves the optimum or improves it."""
    for tier in ("gpu", "cpu", "disk"):
        caps = {"gpu": 116 * MB, "cpu": 150 * MB, "disk": 200 * MB}
        seconds = []
        for factor in (1, 1.3, 2, 10):
            problem = problem_of(small_opt(), **(caps | {tier: int(caps[tier] * factor)}))
            solution = solve(relaxed_of(problem), limits(problem, relaxed_of(problem)))
            assert isinstance(solution, Solution)
            seconds.append(solution.seconds_per_sequence)
        assert all(after <= before * (1 + 1e-3) for before, after in pairwise(seconds))


def test_the_free_block_size_is_as_good_as_any_fixed_one() -> None:
    """One LP over the block size promises no less than the LPs of fixed numbers of gpu batches reach."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, gen_len=32)
    free = relaxed_of(problem, None, size=48)
    best = solve(free, limits(problem, free))
    assert isinstance(best, Solution)
    for batches in (1, 2, 4, 8):
        relaxed = relaxed_of(problem, batches, size=48)
        fixed = solve(relaxed, limits(problem, relaxed))
        if isinstance(fixed, Solution):
            assert best.seconds_per_sequence <= fixed.seconds_per_sequence * 1.005


def test_what_cannot_fit_is_infeasible_and_what_it_lacks_suffices() -> None:
    """The shortage of a tier, added to its limit, makes the LP feasible; a little less does not."""
    problem = problem_of(small_opt(), gpu=130 * MB, cpu=150 * MB, disk=0)
    relaxed = relaxed_of(problem)
    allowed = limits(problem, relaxed)
    failure = solve(relaxed, allowed)
    assert isinstance(failure, Failure)
    assert failure.infeasible
    short = shortage(relaxed, allowed, ["cpu"])
    assert isinstance(short, dict)
    for share, feasible in ((1.001, True), (0.98, False)):
        raised = dict(allowed.tier_bytes) | {"cpu": allowed.tier_bytes["cpu"] + int(short["cpu"] * share)}
        solution = solve(relaxed, replace(allowed, tier_bytes=raised))
        assert isinstance(solution, Solution) == feasible


def test_a_latency_limit_is_kept() -> None:
    """Half of the best block's time is kept to by a smaller block, or not at all."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512, gen_len=32)
    relaxed = relaxed_of(problem, None, size=16)
    free = solve(relaxed, limits(problem, relaxed))
    assert isinstance(free, Solution)
    latency = free.seconds_per_sequence * 16 / free.shares.inverse_batches / 2
    quick = solve(relaxed, limits(problem, relaxed, Request(max_latency_s=latency)))
    assert isinstance(quick, Solution)
    assert quick.seconds_per_sequence * 16 / quick.shares.inverse_batches <= latency * 1.001


@pytest.mark.parametrize(("choice", "share"), [("off", 0.0), ("on", 1.0)])
def test_cpu_attention_is_as_asked(choice: str, share: float) -> None:
    """Off attends no row on the CPU, on all that are off the GPU."""
    problem = problem_of("opt-30b", load_profile("t4-host"), prompt_len=512)
    relaxed = relaxed_of(problem, size=48)
    request = Request(cpu_attention="on" if choice == "on" else "off")
    solution = solve(relaxed, limits(problem, relaxed, request))
    assert isinstance(solution, Solution)
    far = solution.shares.cache["cpu"] + solution.shares.cache["disk"]
    assert solution.shares.attended == pytest.approx(share * far, abs=1e-4)


def by_pulp(rows: Rows) -> float:
    """The least value of the objective, modelled with PuLP and solved by CBC."""
    problem = pulp.LpProblem("rows", pulp.LpMinimize)
    bounds = zip(rows.lower, rows.upper, strict=True)
    x = [
        problem.add_variable(f"x{index}", low, None if math.isinf(high) else high)
        for index, (low, high) in enumerate(bounds)
    ]

    def expression(terms: Vector) -> pulp.LpAffineExpression:
        return pulp.lpSum(term * one for term, one in zip(terms[:-1], x, strict=True)) + terms[-1]

    problem += expression(rows.objective)
    for terms in rows.at_most:
        problem += expression(terms) <= 0
    for terms in rows.equal:
        problem += expression(terms) == 0
    assert problem.solve(pulp.PULP_CBC_CMD(msg=False)) == pulp.LpStatusOptimal
    return float(pulp.value(problem.objective))


@pytest.mark.parametrize("way", [Way(), Way(moves_activations=False, disk="none"), Way(attends=False)])
@pytest.mark.parametrize("gpu", [120, 400])
@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD is deprecated")
def test_another_solver_finds_the_same_optimum(gpu: int, way: Way) -> None:
    """PuLP's CBC shares no code with HiGHS, nor with how rows are handed over."""
    problem = problem_of(small_opt(), gpu=gpu * MB)
    relaxed = relaxed_of(problem)
    rows = lp.Program(relaxed, limits(problem, relaxed)).rows(tier_limits(problem), way)
    found = minimised(rows)
    assert not isinstance(found, Failure)
    assert float(np.append(found, 1.0) @ rows.objective) == pytest.approx(by_pulp(rows), rel=1e-6)


def test_an_answer_that_breaks_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that claims an optimum outside the limits is not believed."""
    problem = problem_of(small_opt(), gpu=120 * MB)
    relaxed = relaxed_of(problem)

    def lying(rows: Rows) -> Vector | Failure:
        answer = minimised(rows)
        assert not isinstance(answer, Failure)
        answer[0] += 0.5
        return answer

    monkeypatch.setattr(lp, "minimised", lying)
    failure = solve(relaxed, limits(problem, relaxed))
    assert isinstance(failure, Failure)
    assert "breaks" in failure.reason


def test_an_answer_with_another_price_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are not those of the cost model at the claimed shares are not believed."""
    problem = problem_of(small_opt(), gpu=120 * MB)
    relaxed = relaxed_of(problem)

    def pessimistic(rows: Rows) -> Vector | Failure:
        answer = minimised(rows)
        assert not isinstance(answer, Failure)
        answer[lp._FIRST_TIME :] *= 2
        return answer

    monkeypatch.setattr(lp, "minimised", pessimistic)
    failure = solve(relaxed, limits(problem, relaxed))
    assert isinstance(failure, Failure)
    assert "cost model" in failure.reason
