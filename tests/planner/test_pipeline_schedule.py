"""The schedules of a pipeline's stages fit together: same messages in the same order, and nobody waits for ever."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule import Task, TaskKind, tasks
from planner.shape import BatchShape, LayerShape, Place, Shape, split_waves

FAR_BATCH = BatchShape(
    stored_cache=True,
    disk_cache=True,
    loaded_cache=True,
    attended_cache=False,
    near_cache=True,
    stored_activation=True,
    disk_activation=True,
)
NEAR_BATCH = BatchShape(
    stored_cache=False,
    disk_cache=False,
    loaded_cache=False,
    attended_cache=False,
    near_cache=True,
    stored_activation=False,
    disk_activation=False,
)
ATTENDED_BATCH = dataclasses.replace(FAR_BATCH, attended_cache=True)
HALF_ATTENDED_BATCH = dataclasses.replace(
    NEAR_BATCH, stored_cache=True, attended_cache=True, near_cache=False
)
BATCHES = {
    "cpu": (FAR_BATCH, NEAR_BATCH),
    "gpu": (FAR_BATCH, NEAR_BATCH, ATTENDED_BATCH, HALF_ATTENDED_BATCH),
}


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[Shape], list[int]]:
    """The stages' shapes, and how many tokens each gpu batch is generated for."""
    num_stages, num_batches = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    waves = split_waves(num_batches, draw(st.integers(1, 5)))
    tier = draw(st.sampled_from(("gpu", "cpu")))
    over_link = tier == "gpu" and draw(st.booleans())
    shapes = []
    for stage in range(num_stages):
        is_first, is_last = stage == 0, stage == num_stages - 1
        layer = st.builds(
            LayerShape, on_link=st.just(tier == "gpu"), on_disk=st.booleans(), num_parts=st.integers(1, 2)
        )
        shapes.append(
            Shape(
                compute_tier=tier,
                layers=tuple(draw(st.lists(layer, min_size=1, max_size=3))),
                batches=tuple(
                    draw(
                        st.lists(
                            st.sampled_from(BATCHES[tier]),
                            min_size=num_batches,
                            max_size=num_batches,
                        )
                    )
                ),
                weight_slots=draw(st.integers(2, 3)),
                cache_slots=draw(st.integers(2, 3)),
                waves=waves,
                place=Place(
                    is_first=is_first,
                    is_last=is_last,
                    over_link=over_link,
                    incoming_slots=0 if is_first else draw(st.integers(2, 3)),
                    outgoing_slots=0 if is_last else 2,
                ),
            )
        )
    return shapes, draw(st.lists(st.integers(1, 4), min_size=num_batches, max_size=num_batches))


def until(gen_lens: Sequence[int]) -> Callable[[int, Sequence[int]], list[int]]:
    """Gpu batches that end at their own time."""
    return lambda i, ks: [k for k in ks if i < gen_lens[k]]


def schedules(shapes: Sequence[Shape], gen_lens: Sequence[int]) -> list[list[Task]]:
    return [list(tasks(shape, max(gen_lens), until(gen_lens))) for shape in shapes]


def on(stage: Sequence[Task], resource: str) -> list[tuple[int, int]]:
    return [(task.i, task.k) for task in stage if task.resource == resource]


@settings(max_examples=60)
@given(case=pipelines())
def test_what_is_sent_is_received_in_the_same_order(case: tuple[list[Shape], list[int]]) -> None:
    """Around the ring, each stage's `net_out` is the next one's `net_in`, message by message."""
    stages = schedules(*case)
    for stage, following in zip(stages, [*stages[1:], stages[0]], strict=True):
        assert on(stage, "net_out") == on(following, "net_in")
        assert len(on(stage, "net_out")) == sum(case[1])


@settings(max_examples=60)
@given(case=pipelines())
def test_nobody_waits_for_ever(case: tuple[list[Shape], list[int]]) -> None:
    """Lanes first in first out, computing and issuing in one thread, sends that block until they are received."""
    stages = schedules(*case)
    queues = [dict[str, deque[Task]]() for _ in stages]
    done: list[set[int]] = [set() for _ in stages]
    issued = [0] * len(stages)

    def is_ready(s: int, task: Task) -> bool:
        return done[s].issuperset(task.deps)

    def finish(s: int, lane: str) -> None:
        done[s].add(queues[s][lane].popleft().id)

    def head(s: int, lane: str) -> Task | None:
        queue = queues[s].get(lane)
        return queue[0] if queue and is_ready(s, queue[0]) else None

    has_moved = True
    while has_moved:
        has_moved = False
        for s, stage in enumerate(stages):
            while issued[s] < len(stage):
                task = stage[issued[s]]
                if task.kind is TaskKind.COMPUTE:
                    if not is_ready(s, task):
                        break
                    done[s].add(task.id)
                else:
                    queues[s].setdefault(task.resource, deque()).append(task)
                issued[s] += 1
                has_moved = True
            for lane in list(queues[s]):
                while not lane.startswith("net") and head(s, lane):
                    finish(s, lane)
                    has_moved = True
            following = (s + 1) % len(stages)
            while head(s, "net_out") and head(following, "net_in"):
                finish(s, "net_out")
                finish(following, "net_in")
                has_moved = True
    assert [len(each) for each in done] == [len(stage) for stage in stages]


@settings(max_examples=30)
@given(case=pipelines())
def test_no_slot_is_taken_while_it_is_read(case: tuple[list[Shape], list[int]]) -> None:
    """A message's slot is filled again only after all that reads it, by the dependencies alone."""
    shapes, gen_lens = case
    for shape, stage in zip(shapes, schedules(shapes, gen_lens), strict=True):
        before: dict[int, set[int]] = {}
        for task in stage:
            before[task.id] = set(task.deps).union(*(before[dep] for dep in task.deps))
        over_link = shape.place.over_link
        for kind, name, fills in (
            (TaskKind.RECEIVE, "incoming", "net_in"),
            (TaskKind.SEND, "outgoing", "d2h" if over_link else shape.compute_tier),
        ):
            used: dict[int, list[Task]] = {}
            kinds = {kind} if over_link else {kind, TaskKind.COMPUTE}
            for task in stage:
                slot = getattr(task.slots, name)
                is_near = task.kind is TaskKind.COMPUTE and 0 < task.part < task.num_parts - 1
                if slot < 0 or task.kind not in kinds or is_near:  # attention touches no message
                    continue
                if task.resource == fills:
                    assert before[task.id].issuperset(user.id for user in used.get(slot, []))
                used.setdefault(slot, []).append(task)


def test_a_plan_without_stages_is_its_own_first_and_last() -> None:
    """No messages, and a wave that is the whole block."""
    shape = Shape(
        compute_tier="gpu",
        layers=(LayerShape(True, False, 1),) * 2,
        batches=(FAR_BATCH,) * 3,
        weight_slots=2,
        cache_slots=2,
        waves=split_waves(3, 1),
    )
    yielded = list(tasks(shape, 3))
    assert {task.resource for task in yielded}.isdisjoint({"net_in", "net_out"})
    waves = list(tasks(dataclasses.replace(shape, waves=split_waves(3, 3)), 3))
    loads = [sum(task.kind is TaskKind.LOAD_WEIGHT for task in each) for each in (yielded, waves)]
    assert loads[1] == 3 * loads[0]
