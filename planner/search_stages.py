"""Search over stages: the pipeline with the highest throughput for a number of stages, or for the best number.

A stage of a model is a problem of its own. One of them, on the rank with the least, is searched like any model; what
the search finds there, all stages take over: the block and its gpu batches. Then each stage gets its own splits, and
layers go from one to the other until they take the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.candidate import Candidate
from planner.cluster import Cluster, Staged
from planner.divide import divide
from planner.plan import Plan
from planner.policy import Policy
from planner.predict_stages import simulated
from planner.problem import Problem
from planner.realise import place_within
from planner.request import Request
from planner.search import WORTH_IT, finalists, glance
from planner.shares import Way
from planner.shortage import explain_shortage
from planner.work import Choice

Reporter = Callable[[str], None]
_NUM_SEARCHED = 2
"""Blocks of the search that are cut into other numbers of waves."""
_NUM_BLOCKS = 4
"""Blocks that are tried on all stages."""
_BEHIND = 1.03
"""Of a stage's least time a sequence: a stage's finalists are priced by the formula, which tells no more apart."""
_HOPELESS = 0.9
"""Of the best pipeline's throughput: what the closed formula promises less than is not tried."""
_NUM_PLAYED, _MOST_PLAYED = 2, 3
"""Pipelines that are simulated; the latter where the closed formula is far off."""
_FAR_OFF = 0.85
"""Of its throughput: what is simulated."""
_CLEARLY = 1.3
"""Of two stages' throughput: where four have more, three are not as good."""
_FEW_ROWS = 32
"""Sequences of a block for each stage: with no more, fewer waves than stages are tried too."""


def search_stages(
    cluster: Cluster, num_stages: int, request: Request, report: Reporter = lambda _: None
) -> Plan | None:
    """The best pipeline of so many stages, or None where none fits."""
    staged = cluster.staged(num_stages)
    found: list[_Divided] = []
    for policy, rate in _blocks(staged, request, report):
        best = max((divided.throughput_tokens_per_s for divided in found), default=0.0)
        if rate < best * _HOPELESS:
            break
        report(f"{num_stages} stages, {policy.num_waves} waves: dividing the layers")
        divided = _with_block(staged, policy.num_waves, policy, request)
        found += [divided] if divided else []
    report(f"{num_stages} stages: playing the most promising")
    best_plan = _best_played(staged, found)
    return replace(best_plan, request=request) if best_plan else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Divided:
    """A block on all stages, and what the closed formula promises of it."""

    parts: list[Plan]
    throughput_tokens_per_s: float


def _best_played(staged: Staged, found: Iterable[_Divided]) -> Plan | None:
    """The best of the most promising as they are simulated, while one promises more than what was found."""
    ordered = sorted(found, key=lambda each: -each.throughput_tokens_per_s)
    best: Plan | None = None
    for n, divided in enumerate(ordered[:_MOST_PLAYED]):
        if best and divided.throughput_tokens_per_s <= best.throughput_tokens_per_s:
            break
        if best and n >= _NUM_PLAYED:
            is_far_off = best.throughput_tokens_per_s < ordered[0].throughput_tokens_per_s * _FAR_OFF
            if not is_far_off:
                break
        plan = simulated(staged.shown(divided.parts))
        if best is None or plan.throughput_tokens_per_s > best.throughput_tokens_per_s:
            best = plan
    return best


def wave_options(num_stages: int) -> tuple[int, ...]:
    """As many waves as stages keep all of them at work; one more hides uneven stages and the messages' way.

    Many of them fill the pipe sooner, which pays where the weights are at home.
    """
    return (num_stages, num_stages + 1, 2 * num_stages, 4 * num_stages)


def few_waves(num_stages: int, num_rows: int) -> tuple[int, ...]:
    """Fewer waves than stages leave some of these idle, but take each layer's weights fewer times to larger batches.

    Worth a try where a block has few rows: there are few prompts, or little memory for their cache.
    """
    if num_rows > _FEW_ROWS * num_stages:
        return ()
    return tuple(sorted({1, num_stages // 2, num_stages - 1} - {0, num_stages}))


def stage_options(cluster: Cluster) -> list[int]:
    """Numbers of stages worth comparing: each twice the one before, and the most there can be."""
    most, least = cluster.most_stages, len(cluster.hosts)
    wanted = {1, 2, 4, 8, 16, 32, 64, most}
    return sorted(count for count in wanted if least <= count <= most)


def stages_between(cluster: Cluster, plans: Mapping[int, Plan]) -> list[int]:
    """Three, where four stages do not fit or bring little more than two; else three are slower than four."""
    two, four = plans.get(2), plans.get(4)
    if 3 in plans or not two or not len(cluster.hosts) <= 3 <= cluster.most_stages:
        return []
    is_clear = four and four.throughput_tokens_per_s > _CLEARLY * two.throughput_tokens_per_s
    return [] if is_clear else [3]


def best_of(plans: Sequence[Plan]) -> Plan:
    """The highest throughput, or of those as good as it the one with the fewest stages."""
    top = max(plan.throughput_tokens_per_s for plan in plans)
    near = [plan for plan in plans if plan.throughput_tokens_per_s >= top * (1 - WORTH_IT)]
    return min(near, key=lambda plan: plan.num_ranks)


def explain_stages(cluster: Cluster, num_stages: int, request: Request) -> str:
    """One line: which stage does not fit where, and what would help."""
    staged = cluster.staged(num_stages)
    for stage in (staged.tightest, *range(num_stages)):
        problem = staged.even(stage, 1)
        if glance(problem, request) is None:
            site = staged.sites[stage]
            why = explain_shortage(problem, request)
            return f"stage {stage} of {num_stages}, with 1/{site.num_ranks} of its host: {why}"
    return (
        f"no division of {cluster.model.name} among {num_stages} stages fits; use fewer stages or more memory"
    )


def _blocks(staged: Staged, request: Request, report: Reporter) -> list[tuple[Policy, float]]:
    """Blocks that are best for one stage, cut into each number of waves, and the tokens per second they promise."""
    numbers = wave_options(staged.num_stages)
    fewest = numbers[0]
    report(f"{staged.num_stages} stages: searching one of them")
    found: dict[tuple[int, int], tuple[Policy, float]] = {}
    for plan in finalists(staged.even(staged.tightest, fewest), request, behind=_BEHIND, most=_NUM_BLOCKS):
        found.setdefault((fewest, plan.policy.gpu_batch_size), (plan.policy, _promise(plan)))
    num_prompts = staged.cluster.workload.num_prompts
    searched = [policy for policy, _ in sorted(found.values(), key=lambda block: -block[1])[:_NUM_SEARCHED]]
    options = [(policy, num_waves) for policy in searched for num_waves in numbers]
    for policy in searched[:1]:
        rows = min(policy.block_size, num_prompts or policy.block_size)
        options += [(policy, num_waves) for num_waves in few_waves(staged.num_stages, rows)]
    for policy, num_waves in options:
        for cut in _in_waves(policy, num_waves, num_prompts):
            placed = place_policy(staged.even(staged.tightest, num_waves), request, cut)
            if placed:
                found[num_waves, cut.gpu_batch_size] = placed.policy, _promise(placed)
    return sorted(found.values(), key=lambda block: -block[1])[:_NUM_BLOCKS]


def _promise(part: Plan) -> float:
    """Tokens per second of as many stages like this one; until the first wave is through, those behind it wait.

    With fewer waves than stages, one that is through goes on with its next token, and stages behind it wait again.
    """
    policy, prediction, workload = part.policy, part.prediction, part.workload
    filled_s = prediction.prefill.seconds * (1 + (policy.stages - 1) / policy.num_waves)
    decode_s = prediction.decode.seconds * max(1.0, policy.stages / policy.num_waves)
    rows = min(policy.block_size, workload.num_prompts or policy.block_size)
    return rows * workload.gen_len / (filled_s + decode_s)


def _in_waves(policy: Policy, num_waves: int, num_prompts: int | None) -> Iterator[Policy]:
    """As many gpu batches in every wave: more of this size, or as many or twice as many in a block as large."""
    size, count = policy.gpu_batch_size, max(1, round(policy.num_gpu_batches / num_waves)) * num_waves
    rows = min(policy.block_size, num_prompts or policy.block_size)
    cuts = {(size, count), (math.ceil(rows / count), count), (math.ceil(rows / (2 * count)), 2 * count)}
    if num_waves < policy.stages:
        cuts.add((math.ceil(rows / num_waves), num_waves))
    for batch_size, num_batches in sorted(cuts):
        chunk = min(policy.prefill_rows, batch_size)
        if (num_batches - 1) * batch_size < (num_prompts or math.inf):  # no wave without a prompt
            yield replace(
                policy,
                gpu_batch_size=batch_size,
                num_gpu_batches=num_batches,
                num_waves=num_waves,
                prefill_rows=chunk,
            )


def place_policy(problem: Problem, request: Request, policy: Policy) -> Plan | None:
    """The block of a policy with splits of its own; activations stay or move as in the policy, where that fits."""
    tier = problem.target.compute_tier
    moves = any(share for other, share in policy.activations.items() if other != tier)
    for moving in (moves, not moves):
        candidate = Candidate(
            choice=Choice.of(policy),
            way=Way(moves_activations=moving, attends=policy.cpu_attention > 0),
            seconds_per_sequence=0.0,
            num_gpu_batches=float(policy.num_gpu_batches),
        )
        found = place_within(problem, request, candidate, policy.num_gpu_batches)
        if found:
            return found
    return None


def _with_block(staged: Staged, num_waves: int, policy: Policy, request: Request) -> _Divided | None:
    """The pipeline with a block like this, or with fewer gpu batches where a stage has no room."""
    count = policy.num_gpu_batches
    while True:
        parts = divide(
            staged.cluster.model.num_layers,
            staged.num_stages,
            _Placing(staged, num_waves, policy, count, request).place,
        )
        if parts:
            promised = staged.join(parts).throughput_tokens_per_s
            return _Divided(parts=parts, throughput_tokens_per_s=promised)
        if count <= num_waves:
            return None
        count = max(num_waves, count * 3 // 4 // num_waves * num_waves)


class _Placing:
    """Places stages with one block, alike ones once."""

    def __init__(self, staged: Staged, num_waves: int, policy: Policy, count: int, request: Request) -> None:
        self.staged, self.num_waves, self.request = staged, num_waves, request
        self.policy = replace(policy, num_waves=num_waves, num_gpu_batches=count)
        self.known: dict[tuple[object, ...], Plan | None] = {}

    def place(self, stage: int, first: int, stop: int) -> Plan | None:
        """The stage's plan with these layers; None where it does not fit."""
        problem = self.staged.problem(stage, first, stop, self.num_waves)
        model = problem.model
        kinds = tuple(id(layer) for layer in model.layers)
        key = kinds, model.has_embedding, model.has_head, problem.target, problem.rates.h2d, problem.rates.net
        if key not in self.known:
            self.known[key] = place_policy(problem, self.request, self.policy)
        found = self.known[key]
        return replace(found, model=replace(found.model, layers=(first, stop))) if found else None
