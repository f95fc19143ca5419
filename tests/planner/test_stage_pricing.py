"""The price of a pipeline's stage, held against its schedule and against the whole model's price."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from planner.plan import Plan
from planner.policy import Policy, Split
from planner.problem import Pipe, Problem
from planner.schedule import TaskKind, tasks
from planner.shape import shape_of
from planner.simulate import simulate
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, problem_of, small_opt

THIRDS = Split(gpu=0.3, cpu=0.4, disk=0.3)
POLICIES = {
    "near": policy_of(ON_GPU, ON_GPU, ON_GPU, batches=4),
    "far": policy_of(ON_CPU, ON_CPU, ON_CPU, batches=6),
    "three tiers": policy_of(THIRDS, THIRDS, THIRDS, size=10, batches=5, cpu_attention=0.5),
    "4 bit": policy_of(THIRDS, THIRDS, ON_CPU, size=6, batches=3, weight_bits=4, kv_bits=4),
}
PARTS = {"first": (0, 2), "middle": (2, 5), "last": (5, 6)}


def stage(part: str, policy: Policy, num_waves: int) -> tuple[Problem, Plan]:
    """A stage of a small model, planned."""
    problem = problem_of(small_opt(), prompt_len=20, gen_len=5)
    problem = replace(problem, model=problem.model.part(*PARTS[part]), pipe=Pipe(num_waves=num_waves))
    return problem, problem.plan(replace(policy, num_waves=num_waves))


@pytest.mark.parametrize("num_waves", [1, 3])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", POLICIES)
def test_tasks_are_counted_as_the_schedule_yields_them(name: str, part: str, num_waves: int) -> None:
    """Sends, receives and a load of the weights for each wave included."""
    problem, plan = stage(part, POLICIES[name], num_waves)
    counts = {(t.phase, t.kind, t.resource): t.count for t in plan.prediction.tasks}
    yielded = Counter(
        ("decode" if task.i else "prefill", task.kind.value, task.resource)
        for task in tasks(shape_of(plan.sizes()), problem.workload.gen_len)
        if task.part == 0 or task.kind is TaskKind.COMPUTE
    )
    assert counts == yielded


@pytest.mark.parametrize("part", PARTS)
def test_the_simulator_takes_the_same_work(part: str) -> None:
    """Task by task, the bytes of messages and of weights that come once a wave add up to the prediction's."""
    problem, plan = stage(part, POLICIES["three tiers"], 2)
    found: Counter[tuple[str, str]] = Counter()
    for span in simulate(plan.sizes(), problem.rates).spans:
        found[span.kind, span.lane] += round(span.num_bytes)
    for kind, lane in {(task.kind, task.resource) for task in plan.prediction.tasks}:
        total = sum(t.num_bytes for t in plan.prediction.tasks if (t.kind, t.resource) == (kind, lane))
        assert found[kind, lane] == pytest.approx(total, rel=1e-6)


def test_parts_hold_all_that_the_model_holds() -> None:
    """Layers once each; of the ends the tied embedding on the first and on the last stage, all others once."""
    model = small_opt()
    parts = [model.part(*PARTS[name]) for name in PARTS]
    assert [layer for part in parts for layer in part.layers] == list(model.layers)
    ends = [tensor for part in parts for tensor in part.ends]
    assert Counter(ends) - Counter(model.ends) == Counter({model.ends[0]: 1})
    assert set(ends) == set(model.ends)
    assert [part.has_embedding for part in parts] == [True, False, False]
    assert [part.has_head for part in parts] == [False, False, True]


def test_waves_cost_a_load_of_the_weights_each() -> None:
    """What is streamed comes once a wave; a block whose weights are at home takes nearly the same time."""
    for name, is_dearer in (("far", True), ("near", False)):
        once, thrice = (stage("middle", POLICIES[name], waves)[1] for waves in (1, 3))
        loads = [
            sum(task.num_bytes for task in plan.prediction.tasks if task.kind == "load_weight")
            for plan in (once, thrice)
        ]
        assert loads[1] == 3 * loads[0]
        assert (thrice.prediction.decode.seconds > 1.1 * once.prediction.decode.seconds) is is_dearer
